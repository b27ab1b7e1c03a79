//! Payloads of the polling transport: the packets in the body of one HTTP request or response.
//!
//! Reads and writes what Node's server does: packets separated by 0x1e in revision 4, and packets
//! with a length before them in revision 3, as text or as bytes.

use std::borrow::Cow;

use base64::{Engine, encoded_len, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::Protocol;
use super::packet::{BASE64, MESSAGE_TYPE, OutPacket, Packet, PacketError, base64_head};

/// Separator of packets in revision 4.
const SEPARATOR: char = '\u{1e}';
/// Ends the length of a packet in a binary payload.
const LENGTH_END: u8 = 0xff;
/// More digits than any length needs. Node gives up after as many.
const DIGITS_MAX: usize = 311;

/// Why the body of a request is no payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Protocol 4 has no binary payloads.
    #[error("binary content in revision 4 of the protocol")]
    BinaryContent,
    /// A packet has no valid length before it, or is not as long as that.
    #[error("a packet without a valid length")]
    Length,
    /// A text packet in a binary payload is not UTF-8.
    #[error("a text packet that is not UTF-8")]
    Utf8,
    /// A packet has no type, or an unknown one.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The payload has more packets than the limit.
    #[error("more packets than a payload may have")]
    TooManyPackets,
}

/// Reads all packets of a request's body. One malformed packet makes the whole payload an error.
///
/// `binary` tells whether the content type is `application/octet-stream`.
pub fn decode_payload(
    revision: Protocol,
    binary: bool,
    body: &[u8],
    max_packets: usize,
) -> Result<Vec<Packet>, PayloadError> {
    let mut packets = Vec::new();
    for packet in Packets::new(revision, binary, body)? {
        if packets.len() == max_packets {
            return Err(PayloadError::TooManyPackets);
        }
        packets.push(packet?);
    }
    Ok(packets)
}

/// The packets of a request's body, read one at a time. A body full of tiny packets takes no more
/// memory than any other.
///
/// As in Node, packets before a malformed one are good. The first error is the last item. Only the
/// lengths in a binary payload are all checked first.
#[derive(Debug)]
pub struct Packets<'a> {
    body: Body<'a>,
    /// Where the next packet begins.
    at: usize,
    ended: bool,
}

#[derive(Debug)]
enum Body<'a> {
    V4(Cow<'a, str>),
    V3(Cow<'a, str>),
    V3Binary(&'a [u8]),
}

impl<'a> Packets<'a> {
    /// `binary` tells whether the content type is `application/octet-stream`.
    ///
    /// In text, each invalid sequence becomes U+FFFD, as in Node.
    pub fn new(revision: Protocol, binary: bool, body: &'a [u8]) -> Result<Self, PayloadError> {
        let body = match (revision, binary) {
            (Protocol::Eio4, true) => return Err(PayloadError::BinaryContent),
            (Protocol::Eio4, false) => Body::V4(String::from_utf8_lossy(body)),
            (Protocol::Eio3, false) if body.is_empty() => return Err(PayloadError::Length),
            (Protocol::Eio3, false) => Body::V3(String::from_utf8_lossy(body)),
            (Protocol::Eio3, true) => Body::V3Binary(body),
        };
        if let Body::V3Binary(mut rest) = body {
            while !rest.is_empty() {
                cut_binary(&mut rest).ok_or(PayloadError::Length)?;
            }
        }
        Ok(Self { body, at: 0, ended: false })
    }

    fn read(&mut self) -> Result<Option<Packet>, PayloadError> {
        match &self.body {
            Body::V4(text) => {
                let rest = &text[self.at..];
                let packet = match rest.split_once(SEPARATOR) {
                    Some((packet, _)) => {
                        self.at += packet.len() + SEPARATOR.len_utf8();
                        packet
                    }
                    None => {
                        self.ended = true;
                        rest
                    }
                };
                Ok(Some(Packet::from_str(Protocol::Eio4, packet)?))
            }
            Body::V3(text) => loop {
                let mut rest = &text[self.at..];
                if rest.is_empty() {
                    return Ok(None);
                }
                let packet = cut_text(&mut rest).ok_or(PayloadError::Length)?;
                self.at = text.len() - rest.len();
                // Node skips these. `0:` is also how it says that there is no packet.
                if !packet.is_empty() {
                    return Ok(Some(Packet::from_str(Protocol::Eio3, packet)?));
                }
            },
            Body::V3Binary(bytes) => {
                let mut rest = &bytes[self.at..];
                if rest.is_empty() {
                    return Ok(None);
                }
                let (binary, packet) = cut_binary(&mut rest).ok_or(PayloadError::Length)?;
                self.at = bytes.len() - rest.len();
                if binary {
                    // A copy, so that a small attachment does not keep the whole body.
                    let packet = Bytes::copy_from_slice(packet);
                    return Ok(Some(Packet::from_binary(Protocol::Eio3, packet)?));
                }
                read_utf8_packet(packet).map(Some)
            }
        }
    }
}

impl Iterator for Packets<'_> {
    type Item = Result<Packet, PayloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let packet = self.read().transpose();
        self.ended |= !matches!(packet, Some(Ok(_)));
        packet
    }
}

/// Cuts `<length>:<packet>` off the text.
fn cut_text<'a>(text: &mut &'a str) -> Option<&'a str> {
    let (length, rest) = text.split_once(':')?;
    let (packet, rest) = rest.split_at(utf16_prefix(rest, read_length(length)?)?);
    *text = rest;
    Some(packet)
}

/// Reads a length as JavaScript's `Number` does, but only decimal digits.
fn read_length(text: &str) -> Option<usize> {
    let is_space = |c: char| (c.is_whitespace() && c != '\u{85}') || c == '\u{feff}';
    let digits = text.trim_matches(is_space).as_bytes();
    if text.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(number(digits.iter().map(|digit| digit - b'0')))
}

fn number(digits: impl Iterator<Item = u8>) -> usize {
    digits.fold(0, |number: usize, digit| number.saturating_mul(10).saturating_add(digit.into()))
}

/// Bytes of the first `units` UTF-16 code units; none if the text is shorter, or if they end within
/// a surrogate pair.
fn utf16_prefix(text: &str, units: usize) -> Option<usize> {
    if text.as_bytes().get(..units)?.is_ascii() {
        return Some(units);
    }
    let mut left = units;
    for (at, character) in text.char_indices() {
        if left == 0 {
            return Some(at);
        }
        left = left.checked_sub(character.len_utf16())?;
    }
    (left == 0).then_some(text.len())
}

/// Cuts one packet off a binary payload: 0 for text or 1 for binary, digits of the length as bytes
/// 0 to 9, 0xff, the packet. Tells whether the packet is binary.
fn cut_binary<'a>(bytes: &mut &'a [u8]) -> Option<(bool, &'a [u8])> {
    let (kind, rest) = bytes.split_first()?;
    let binary = match kind {
        0 => false,
        1 => true,
        _ => return None,
    };
    let end = rest.iter().take(DIGITS_MAX + 1).position(|byte| *byte == LENGTH_END)?;
    let digits = &rest[..end];
    if digits.is_empty() || digits.iter().any(|digit| *digit > 9) {
        return None;
    }
    let (packet, rest) = rest[end + 1..].split_at_checked(number(digits.iter().copied()))?;
    *bytes = rest;
    Some((binary, packet))
}

/// Reads a text packet of a binary payload.
fn read_utf8_packet(packet: &[u8]) -> Result<Packet, PayloadError> {
    if let [BASE64, content @ ..] = packet {
        return Ok(Packet::from_base64(Protocol::Eio3, content)?);
    }
    let text = decode_utf8(packet).ok_or(PayloadError::Utf8)?;
    Ok(Packet::from_str(Protocol::Eio3, &text)?)
}

/// Decodes UTF-8 as the utf8.js of engine.io-parser does: an encoded surrogate becomes U+FFFD.
fn decode_utf8(mut bytes: &[u8]) -> Option<Cow<'_, str>> {
    let mut decoded = String::new();
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) if decoded.is_empty() => return Some(text.into()),
            Ok(text) => return Some((decoded + text).into()),
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        let [0xed, 0xa0..=0xbf, 0x80..=0xbf, rest @ ..] = rest else { return None };
        decoded.push_str(std::str::from_utf8(valid).ok()?);
        decoded.push(char::REPLACEMENT_CHARACTER);
        bytes = rest;
    }
}

/// Writes packets as the body of a response, and tells whether its content type is
/// `application/octet-stream` rather than text.
///
/// `base64` is for clients that asked for `b64=1`: they cannot read binary payloads.
pub fn encode_payload(revision: Protocol, base64: bool, packets: &[OutPacket]) -> (Bytes, bool) {
    match revision {
        Protocol::Eio4 => (encode_v4(packets), false),
        Protocol::Eio3 if !base64 && packets.iter().any(|packet| packet.binary) => {
            (encode_v3_binary(packets), true)
        }
        Protocol::Eio3 => (encode_v3(packets), false),
    }
}

fn encode_v4(packets: &[OutPacket]) -> Bytes {
    if let [OutPacket { bytes, binary: false }] = packets {
        return bytes.clone();
    }
    let bytes: usize = packets.iter().map(|packet| text_bytes(Protocol::Eio4, packet) + 1).sum();
    let mut out = Vec::with_capacity(bytes.saturating_sub(1));
    for (index, packet) in packets.iter().enumerate() {
        if index > 0 {
            out.push(SEPARATOR as u8);
        }
        push_text(&mut out, Protocol::Eio4, packet);
    }
    out.into()
}

fn encode_v3(packets: &[OutPacket]) -> Bytes {
    if packets.is_empty() {
        return Bytes::from_static(b"0:");
    }
    let bytes = packets.iter().map(|packet| {
        let bytes = text_bytes(Protocol::Eio3, packet);
        // As many digits as the length in UTF-16 has, or more.
        count_digits(bytes) + 1 + bytes
    });
    let mut out = Vec::with_capacity(bytes.sum());
    for packet in packets {
        let units = match packet.binary {
            true => text_bytes(Protocol::Eio3, packet),
            false => count_utf16(&packet.bytes),
        };
        push_digits(&mut out, units, b'0');
        out.push(b':');
        push_text(&mut out, Protocol::Eio3, packet);
    }
    out.into()
}

fn encode_v3_binary(packets: &[OutPacket]) -> Bytes {
    let content_bytes = |packet: &OutPacket| packet.bytes.len() + usize::from(packet.binary);
    let bytes = packets.iter().map(|packet| {
        let bytes = content_bytes(packet);
        1 + count_digits(bytes) + 1 + bytes
    });
    let mut out = Vec::with_capacity(bytes.sum());
    for packet in packets {
        out.push(u8::from(packet.binary));
        push_digits(&mut out, content_bytes(packet), 0);
        out.push(LENGTH_END);
        if packet.binary {
            out.push(MESSAGE_TYPE);
        }
        out.extend_from_slice(&packet.bytes);
    }
    out.into()
}

/// Bytes of a packet as text.
fn text_bytes(revision: Protocol, packet: &OutPacket) -> usize {
    let bytes = packet.bytes.len();
    match packet.binary {
        false => bytes,
        true => {
            let encoded = encoded_len(bytes, true).expect("bytes in memory are far fewer");
            base64_head(revision).len() + encoded
        }
    }
}

/// Appends a packet as text.
fn push_text(out: &mut Vec<u8>, revision: Protocol, packet: &OutPacket) {
    if !packet.binary {
        return out.extend_from_slice(&packet.bytes);
    }
    let end = out.len() + text_bytes(revision, packet);
    out.extend_from_slice(base64_head(revision));
    let start = out.len();
    out.resize(end, 0);
    STANDARD
        .encode_slice(&packet.bytes, &mut out[start..])
        .expect("the slice is as long as the base64");
}

/// UTF-16 code units of UTF-8 text: one for each character, two for one of four bytes.
fn count_utf16(text: &[u8]) -> usize {
    let units = |byte: &u8| usize::from(byte & 0xc0 != 0x80) + usize::from(*byte >= 0xf0);
    text.iter().map(units).sum()
}

fn count_digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Appends the decimal digits of a number, where `zero` is the byte for 0.
fn push_digits(out: &mut Vec<u8>, mut number: usize, zero: u8) {
    let start = out.len();
    loop {
        out.push(zero + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out[start..].reverse();
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::packet::Message;
    use super::*;

    fn text(text: &str) -> OutPacket {
        OutPacket { bytes: Bytes::copy_from_slice(text.as_bytes()), binary: false }
    }

    fn binary(bytes: &[u8]) -> OutPacket {
        OutPacket { bytes: Bytes::copy_from_slice(bytes), binary: true }
    }

    /// Packets before the first error, and the error.
    fn decode(
        revision: Protocol,
        binary: bool,
        body: &[u8],
    ) -> (Vec<Packet>, Option<PayloadError>) {
        let mut packets = Vec::new();
        match Packets::new(revision, binary, body) {
            Err(error) => return (packets, Some(error)),
            Ok(read) => {
                for packet in read {
                    match packet {
                        Ok(packet) => packets.push(packet),
                        Err(error) => return (packets, Some(error)),
                    }
                }
            }
        }
        (packets, None)
    }

    /// A packet as the server would send it.
    fn as_sent(packet: &Packet) -> OutPacket {
        match packet {
            Packet::Open => text("0"),
            Packet::Close => text("1"),
            Packet::Ping(content) => text(&format!("2{content}")),
            Packet::Pong(content) => text(&format!("3{content}")),
            Packet::Message(Message::Text(content)) => text(&format!("4{content}")),
            Packet::Message(Message::Binary(content)) => binary(content),
            Packet::Upgrade => text("5"),
            Packet::Noop => text("6"),
        }
    }

    mod recorded {
        use super::*;

        const RECORDED: &str = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/payloads/payloads.json"
        ));

        fn check_all(list: &str, check: impl Fn(Protocol, &Value)) {
            let recorded: Value = serde_json::from_str(RECORDED).expect("JSON");
            let cases = recorded[list].as_array().expect("a list");
            assert!(cases.len() > 100);
            for case in cases {
                let revision = if case["revision"] == 3 { Protocol::Eio3 } else { Protocol::Eio4 };
                check(revision, case);
            }
        }

        fn unhex(hex: &Value) -> Vec<u8> {
            let digits = hex.as_str().expect("hex").as_bytes().chunks(2);
            let bytes = digits.map(|pair| str::from_utf8(pair).expect("ASCII"));
            bytes.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
        }

        fn packets(case: &Value) -> Vec<OutPacket> {
            let packets = case["packets"].as_array().expect("packets").iter();
            let parse = |packet: &str| match packet.split_once(':').expect("a kind") {
                ("text", content) => text(content),
                (_, content) => binary(&unhex(&content.into())),
            };
            packets.map(|packet| parse(packet.as_str().expect("text"))).collect()
        }

        #[test]
        fn reads_as_node() {
            check_all("decoded", |revision, case| {
                let body = unhex(&case["body"]);
                let (read, error) = decode(revision, case["binary"] == true, &body);
                let read: Vec<_> = read.iter().map(as_sent).collect();
                assert_eq!(read, packets(case), "{case}");
                assert_eq!(error.is_some(), case["error"] == true, "{case}: {error:?}");
            });
        }

        #[test]
        fn writes_as_node() {
            check_all("encoded", |revision, case| {
                let base64 = case["base64"] == true;
                let (body, binary) = encode_payload(revision, base64, &packets(case));
                assert_eq!(body, unhex(&case["body"]), "{case}");
                assert_eq!(binary, case["binary"] == true, "{case}");
            });
        }
    }

    /// Node reads these, by accident or with other content than the client meant.
    #[test]
    fn stricter_than_node() {
        let check = |body: &[u8], binary, error| {
            let (packets, found) = decode(Protocol::Eio3, binary, body);
            assert_eq!((packets, found), (vec![], Some(error)), "{body:?}");
        };
        let text_lengths = ["+1:4", "0x1:4", "1.0:4", "1e0:4", "-0:1:4"];
        for body in text_lengths {
            check(body.as_bytes(), false, PayloadError::Length);
        }
        // The length ends within a surrogate pair.
        check("2:4\u{1f600}1:4".as_bytes(), false, PayloadError::Length);
        // Binary content of an unknown type, or of none.
        check(b"1:b", false, PacketError.into());
        check(b"2:b7", false, PacketError.into());
        check(&[1, 1, 255, 7], true, PacketError.into());
        check(&[1, 0, 255], true, PacketError.into());
        // Neither text nor binary; a digit above 9; no digits; less than declared.
        check(&[2, 1, 255, 4], true, PayloadError::Length);
        check(&[0, 12, 255, b'4'], true, PayloadError::Length);
        check(&[0, 255, b'4'], true, PayloadError::Length);
        check(&[0, 3, 255, b'4', b'a'], true, PayloadError::Length);
    }

    /// Node takes the low byte of such a character for one of the alphabet.
    #[test]
    fn characters_beyond_latin_1_in_base64_are_skipped() {
        let (packets, error) = decode(Protocol::Eio4, false, "bAQ\u{141}ID".as_bytes());
        let expected = Packet::Message(Message::Binary(Bytes::from_static(&[1, 2, 3])));
        assert_eq!((packets, error), (vec![expected], None));
    }

    #[test]
    fn revision_4_has_no_binary_payload() {
        let result = decode_payload(Protocol::Eio4, true, b"4", 1);
        assert_eq!(result, Err(PayloadError::BinaryContent));
    }

    #[test]
    fn packets_have_a_limit() {
        let body = b"4\x1e4\x1e4";
        let result = |max_packets| decode_payload(Protocol::Eio4, false, body, max_packets);
        assert_eq!(result(2), Err(PayloadError::TooManyPackets));
        assert_eq!(result(3).map(|packets| packets.len()), Ok(3));
        // An error further on is none of those that count.
        assert_eq!(
            decode_payload(Protocol::Eio4, false, b"4\x1e4\x1ex", 2),
            Err(PayloadError::TooManyPackets)
        );
    }

    #[test]
    fn a_lone_text_packet_is_not_copied() {
        let packet = text("4hello");
        let (body, _) = encode_payload(Protocol::Eio4, false, std::slice::from_ref(&packet));
        assert_eq!(body.as_ptr(), packet.bytes.as_ptr());
    }

    #[test]
    fn an_attachment_does_not_keep_the_body() {
        let body = [&[1u8, 2, 255, 4, 7][..], &[0, 9, 0, 255, b'4'], &[b'x'; 89]].concat();
        let packets = decode_payload(Protocol::Eio3, true, &body, 2).expect("a payload");
        let Packet::Message(Message::Binary(attachment)) = &packets[0] else {
            panic!("{packets:?}");
        };
        assert!(!body.as_ptr_range().contains(&attachment.as_ptr()));
    }

    /// Takes minutes if the time grows with the square of the size.
    #[test]
    fn hostile_bodies_take_linear_time() {
        const BYTES: usize = 1 << 20;
        let fill = |text: &str| text.repeat(BYTES / text.len()).into_bytes();
        let bodies = [
            (Protocol::Eio4, false, fill("4\u{1e}")),
            (Protocol::Eio4, false, fill("b=\u{1e}")),
            (Protocol::Eio4, false, [b"b".to_vec(), fill("-\n")].concat()),
            (Protocol::Eio4, false, vec![0xff; BYTES]),
            (Protocol::Eio3, false, fill("1:4")),
            (Protocol::Eio3, false, fill("0:")),
            (Protocol::Eio3, false, fill("3:4\u{1f600}")),
            (Protocol::Eio3, false, fill("9")),
            (Protocol::Eio3, false, [fill(" "), b":".to_vec()].concat()),
            (Protocol::Eio3, false, [b"600000:4".to_vec(), fill("\u{1f600}")].concat()),
            (Protocol::Eio3, false, [b"1048575:4".to_vec(), fill("a\u{e9}")].concat()),
            (Protocol::Eio3, true, fill("\u{0}\u{0}\u{0}")),
            (Protocol::Eio3, true, b"\x00\x01\xff4".repeat(BYTES / 4)),
            (Protocol::Eio3, true, b"\x00\x03\xff\xed\xa0\x80".repeat(BYTES / 6)),
            (
                Protocol::Eio3,
                true,
                [
                    b"\x00\x01\x00\x00\x00\x00\x00\x03\xff4".to_vec(),
                    b"\xed\xa0\x80".repeat(333_334),
                ]
                .concat(),
            ),
        ];
        let start = Instant::now();
        for (revision, binary, body) in bodies {
            if let Ok(packets) = Packets::new(revision, binary, &body) {
                packets.for_each(drop);
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    fn any_packet(revision: Protocol) -> impl Strategy<Value = OutPacket> {
        let characters = match revision {
            Protocol::Eio3 => "[24].{0,20}",
            Protocol::Eio4 => "[24][^\u{1e}]{0,20}",
        };
        prop_oneof![
            characters.prop_map(|content| text(&content)),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| binary(&bytes)),
        ]
    }

    fn any_payload() -> impl Strategy<Value = (Protocol, Vec<OutPacket>)> {
        prop_oneof![Just(Protocol::Eio3), Just(Protocol::Eio4)].prop_flat_map(|revision| {
            (Just(revision), prop::collection::vec(any_packet(revision), 1..6))
        })
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read((revision, packets) in any_payload(), base64: bool) {
            let (body, binary) = encode_payload(revision, base64, &packets);
            prop_assert!(!(binary && base64));
            let read = decode_payload(revision, binary, &body, packets.len());
            let read: Vec<_> = read.expect("a payload").iter().map(as_sent).collect();
            prop_assert_eq!(read, packets);
        }

        #[test]
        fn any_body_is_read_or_refused(
            body in prop::collection::vec(any::<u8>(), 0..60),
            binary: bool,
        ) {
            decode(Protocol::Eio3, binary, &body);
            decode(Protocol::Eio4, binary, &body);
        }

        #[test]
        fn any_text_is_read_or_refused(body in "[0-9:b4=\u{1e}\u{1f600}é\u{feff} ]{0,40}") {
            decode(Protocol::Eio3, false, body.as_bytes());
            decode(Protocol::Eio4, false, body.as_bytes());
        }

        #[test]
        fn utf16_is_counted_as_in_javascript(content in ".{0,40}") {
            prop_assert_eq!(count_utf16(content.as_bytes()), content.encode_utf16().count());
        }
    }
}
