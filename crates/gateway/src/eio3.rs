//! Polling payloads of Engine.IO 3, which engineioxide 0.17 neither reads nor writes well enough.
//!
//! Reading: a length that ends inside a surrogate pair makes its text decoder loop without end, and many
//! small chunks, or many packets in one chunk, cost it quadratic time. So a payload is taken apart here
//! first ([`packets`]), and the engine gets one chunk for each packet, with exact lengths.
//!
//! Writing: it puts an attachment into a payload as a text packet `b<base64>`, without the packet type
//! that belongs between the two (`b4<base64>`), and the client hangs. [`repair`] puts the type in and
//! corrects the packet's length. Text packets that begin with `b` are always attachments, and never have
//! the type: the engine writes them in one place (`engineioxide::socket::Permit::emit_many`).
//!
//! Payloads come in two framings (the Engine.IO protocol, revision 3, "Payload"): lengths in decimal
//! digits before each packet, in UTF-16 units; or, when the client takes binary, a byte for the kind
//! of packet, the digits of its length as bytes 0 to 9, and 255.

use bytes::Bytes;

/// The packets of a payload, each with its length before it, or `None` if it is not made of packets.
pub(crate) fn packets(payload: &Bytes) -> Option<Vec<Bytes>> {
    let mut packets = Vec::new();
    let mut rest = &payload[..];
    while !rest.is_empty() {
        let packet = Packet::split(rest).filter(|packet| packet.length > 0)?;
        packets.push(payload.slice_ref(&rest[..rest.len() - packet.rest.len()]));
        rest = packet.rest;
    }
    Some(packets)
}

/// The payload with its attachments as clients read them, or `None` if it is fine as it is.
pub(crate) fn repair(payload: &[u8]) -> Option<Vec<u8>> {
    if !payload.contains(&b'b') {
        return None;
    }
    let mut repaired = Vec::with_capacity(payload.len() + 8);
    let mut changed = false;
    let mut rest = payload;
    while !rest.is_empty() {
        let packet = Packet::split(rest)?;
        changed |= packet.is_attachment();
        packet.write(&mut repaired);
        rest = packet.rest;
    }
    changed.then_some(repaired)
}

const TEXT: u8 = 0;
const BINARY: u8 = 1;
const SEPARATOR: u8 = 255;

struct Packet<'a> {
    /// `None` in the framing for text.
    kind: Option<u8>,
    length: usize,
    body: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Packet<'a> {
    fn split(payload: &'a [u8]) -> Option<Self> {
        let kind = [TEXT, BINARY].into_iter().find(|kind| payload.first() == Some(kind));
        let (digits, base) = if kind.is_some() { (&payload[1..], 0) } else { (payload, b'0') };
        let separator = if kind.is_some() { SEPARATOR } else { b':' };
        let end = digits.iter().position(|byte| *byte == separator)?;
        let length = digits[..end].iter().try_fold(0_usize, |length, digit| {
            let digit = digit.checked_sub(base).filter(|digit| *digit < 10)?;
            length.checked_mul(10)?.checked_add(usize::from(digit))
        })?;
        let after = &digits[end + 1..];
        let bytes = if kind.is_some() { length } else { utf16_to_bytes(after, length)? };
        let (body, rest) = after.split_at_checked(bytes)?;
        Some(Self { kind, length, body, rest })
    }

    fn is_attachment(&self) -> bool {
        self.kind != Some(BINARY) && self.body.first() == Some(&b'b')
    }

    fn write(&self, payload: &mut Vec<u8>) {
        let attachment = self.is_attachment();
        let digits = (self.length + usize::from(attachment)).to_string();
        match self.kind {
            Some(kind) => {
                payload.push(kind);
                payload.extend(digits.bytes().map(|digit| digit - b'0'));
                payload.push(SEPARATOR);
            }
            None => {
                payload.extend(digits.bytes());
                payload.push(b':');
            }
        }
        if attachment {
            payload.extend(b"b4");
            payload.extend(&self.body[1..]);
        } else {
            payload.extend(self.body);
        }
    }
}

/// How many bytes the first `units` UTF-16 units of the text take.
fn utf16_to_bytes(text: &[u8], units: usize) -> Option<usize> {
    let (mut bytes, mut counted) = (0, 0);
    while counted < units {
        // The first byte of a character tells its length; four bytes are two units.
        let (length, width) = match text.get(bytes)? {
            0x00..0x80 => (1, 1),
            0x80..0xe0 => (2, 1),
            0xe0..0xf0 => (3, 1),
            0xf0.. => (4, 2),
        };
        bytes += length;
        counted += width;
    }
    (counted == units).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(payload: &[u8], repaired: Option<&[u8]>) {
        assert_eq!(repair(payload).as_deref(), repaired, "{}", payload.escape_ascii());
    }

    #[test]
    fn the_type_is_put_into_attachments_alone() {
        check(b"", None);
        check(b"1:62:40", None);
        check(b"5:4\"bb\"1:6", None);
        check("5:4\u{1f600}bb6:bAQID=".as_bytes(), Some("5:4\u{1f600}bb7:b4AQID=".as_bytes()));
        check(b"4:451-9:b45678901", Some(b"4:451-10:b445678901"));
        check(
            b"\x00\x04\xff451-\x00\x09\xffb45678901",
            Some(b"\x00\x04\xff451-\x00\x01\x00\xffb445678901"),
        );
        check(b"\x01\x03\xff\x04bb\x00\x01\xff6", None);
        for broken in [&b"9:b"[..], b"b", b"x:b", b"\x00\xff\xffb", b"99999999999999999999999:b"] {
            check(broken, None);
        }
    }

    #[test]
    fn payloads_are_taken_apart_or_refused() {
        let check = |payload: &'static str, expected: Option<&[&str]>| {
            let found = packets(&Bytes::from_static(payload.as_bytes()));
            let expected = expected.map(|all| all.iter().map(|one| Bytes::from(one.to_string())));
            assert_eq!(found, expected.map(Iterator::collect), "{payload}");
        };
        check("", Some(&[]));
        check("1:14:4é\u{1f600}2:40", Some(&["1:1", "4:4é\u{1f600}", "2:40"]));
        for broken in ["1:\u{1f600}x", "3:4x", "0:", "4", ":4", "-1:4", "+1:4", "1:42:4"] {
            check(broken, None);
        }
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(payload in prop::collection::vec(any::<u8>(), 0..60)) {
            repair(&payload);
            let payload = Bytes::from(payload);
            if let Some(packets) = packets(&payload) {
                prop_assert_eq!(packets.concat(), payload);
            }
        }

        #[test]
        fn digits_and_text_in_any_cut(payload in "[0-9:b4é😀]{0,40}") {
            repair(payload.as_bytes());
        }
    }
}
