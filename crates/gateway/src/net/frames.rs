//! Where WebSocket frames begin and end in a stream of bytes that is cut anywhere (RFC 6455, section 5.2), and
//! with them what the two sides of a connection send: messages of a client, packets of the engine.

/// Follows the headers of frames.
#[derive(Debug, Default, Clone)]
struct Frames {
    header: [u8; 14],
    header_bytes: u8,
    payload_left: u64,
}

/// What comes next in a stream.
enum Piece<'a> {
    /// Of a header that is not complete.
    Beginning,
    /// The last of a header.
    Header { opcode: u8, fin: bool },
    /// Of a payload.
    Payload(&'a [u8]),
}

impl Frames {
    /// Whether the stream stands between two frames.
    fn between(&self) -> bool {
        self.header_bytes == 0 && self.payload_left == 0
    }

    /// Takes the next piece of `bytes`, which is not empty; returns it with its length.
    fn next<'a>(&mut self, bytes: &'a [u8]) -> (usize, Piece<'a>) {
        if self.payload_left > 0 {
            let left = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
            let length = left.min(bytes.len());
            self.payload_left -= length as u64;
            return (length, Piece::Payload(&bytes[..length]));
        }
        self.header[usize::from(self.header_bytes)] = bytes[0];
        self.header_bytes += 1;
        if self.header_bytes < self.header_len() {
            return (1, Piece::Beginning);
        }
        self.payload_left = self.payload_len();
        self.header_bytes = 0;
        let [first, ..] = self.header;
        (1, Piece::Header { opcode: first & 0x0f, fin: first & 0x80 != 0 })
    }

    /// How long the header is, as far as its first bytes tell.
    fn header_len(&self) -> u8 {
        if self.header_bytes < 2 {
            return 2;
        }
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + extended + mask
    }

    fn payload_len(&self) -> u64 {
        let [_, second, a, b, c, d, e, f, g, h, ..] = self.header;
        match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([a, b])),
            127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            short => u64::from(short),
        }
    }
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

fn is_control(opcode: u8) -> bool {
    opcode & CLOSE != 0
}

/// The messages that a client sends, from its first frame on. A client that sends frames before it has been
/// told that it may is not followed correctly, and only itself the worse for it.
#[derive(Debug, Default)]
pub(crate) struct ClientMessages {
    frames: Frames,
    /// The message goes on in a further frame.
    unfinished: bool,
    messages: u8,
}

impl ClientMessages {
    /// Whether the stream stands between two messages.
    pub(crate) fn between(&self) -> bool {
        self.frames.between() && !self.unfinished
    }

    /// How many messages have ended, of the first 255.
    pub(crate) fn messages(&self) -> u8 {
        self.messages
    }

    /// Takes the next bytes of the stream. Returns the first end of a message in them.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut first_end = None;
        let mut at = 0;
        while at < bytes.len() {
            let (length, piece) = self.frames.next(&bytes[at..]);
            at += length;
            if let Piece::Header { opcode, fin } = piece
                && !is_control(opcode)
            {
                self.unfinished = !fin;
            }
            if self.between() {
                first_end.get_or_insert(at);
                self.messages = self.messages.saturating_add(1);
            }
        }
        first_end
    }
}

/// The response to a handshake, after which frames begin.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";
const HEAD_END: &[u8] = b"\r\n\r\n";

/// As much of a text frame as tells how many attachments follow it: `45` or `46`, digits and `-`.
const PACKET_HEAD_BYTES: usize = 12;

/// The packets that the engine sends, after the head of its response to the handshake.
#[derive(Debug, Default, Clone)]
pub(crate) struct EnginePackets {
    /// How much of [`SWITCHING`], and then of [`HEAD_END`], has been seen.
    head: (u8, u8),
    frames: Frames,
    text: [u8; PACKET_HEAD_BYTES],
    text_bytes: u8,
    in_text: bool,
    /// Frames that belong to the last packet and are still to come.
    attachments: u32,
    closed: bool,
}

impl EnginePackets {
    /// Whether the stream stands between two packets: after the head, in no frame, and with no attachment
    /// still to come. (The engine sends each message in one frame.)
    pub(crate) fn between(&self) -> bool {
        self.is_open() && self.frames.between() && self.attachments == 0
    }

    /// Whether a close frame has begun, after which there must be nothing.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    fn is_open(&self) -> bool {
        usize::from(self.head.1) == HEAD_END.len()
    }

    /// Takes the next bytes of the stream.
    pub(crate) fn advance(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..]);
        }
    }

    /// Where in `bytes`, which come next, the first packet begins for which `is` holds of the bytes from there on.
    pub(crate) fn find(&self, bytes: &[u8], is: impl Fn(&[u8]) -> bool) -> Option<usize> {
        let mut ahead = self.clone();
        let mut at = 0;
        while at < bytes.len() {
            if ahead.between() && is(&bytes[at..]) {
                return Some(at);
            }
            at += ahead.step(&bytes[at..]);
        }
        None
    }

    /// How much of `bytes`, which come next, belongs to the packet that is under way or begins; `None` if it does
    /// not end in them.
    pub(crate) fn packet_end(&self, bytes: &[u8]) -> Option<usize> {
        let mut ahead = self.clone();
        let mut at = 0;
        while at < bytes.len() {
            at += ahead.step(&bytes[at..]);
            if ahead.between() {
                return Some(at);
            }
        }
        None
    }

    fn step(&mut self, bytes: &[u8]) -> usize {
        if !self.is_open() {
            let (seen, sought) = match usize::from(self.head.0) {
                seen if seen < SWITCHING.len() => (&mut self.head.0, SWITCHING),
                _ => (&mut self.head.1, HEAD_END),
            };
            // No proper prefix of either ends in what it begins with, but for the first byte.
            *seen = if bytes[0] == sought[usize::from(*seen)] {
                *seen + 1
            } else {
                u8::from(bytes[0] == sought[0])
            };
            return 1;
        }
        let (length, piece) = self.frames.next(bytes);
        match piece {
            Piece::Beginning => {}
            Piece::Header { opcode, .. } => {
                self.closed |= opcode == CLOSE;
                self.in_text = opcode == TEXT;
                self.text_bytes = 0;
                if opcode == BINARY {
                    self.attachments = self.attachments.saturating_sub(1);
                }
            }
            Piece::Payload(part) if self.in_text => {
                let seen = usize::from(self.text_bytes);
                let length = part.len().min(PACKET_HEAD_BYTES - seen);
                self.text[seen..seen + length].copy_from_slice(&part[..length]);
                self.text_bytes += length as u8;
            }
            Piece::Payload(_) => {}
        }
        if self.in_text && self.frames.between() {
            self.in_text = false;
            self.attachments = attachments(&self.text[..usize::from(self.text_bytes)]);
        }
        length
    }
}

/// How many binary frames follow a packet that begins like this.
fn attachments(text: &[u8]) -> u32 {
    let Some(rest) = text.strip_prefix(b"45").or_else(|| text.strip_prefix(b"46")) else {
        return 0;
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if rest.get(digits) != Some(&b'-') {
        return 0;
    }
    rest[..digits]
        .iter()
        .fold(0_u32, |sum, digit| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
}

/// Appends a message of the server: one frame, final and unmasked.
pub(crate) fn write_frame(buffer: &mut Vec<u8>, binary: bool, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    buffer.push(0x80 | if binary { BINARY } else { TEXT });
    match length {
        0..126 => buffer.push(length as u8),
        126..0x1_0000 => {
            buffer.push(126);
            buffer.extend((length as u16).to_be_bytes());
        }
        _ => {
            buffer.push(127);
            buffer.extend((length as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| buffer.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FINAL: u8 = 0x81;
    const FRAGMENT: u8 = 0x01;
    const PING: u8 = 0x89;

    fn frame(first: u8, payload: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload {
            0..126 => bytes.push(bit | payload as u8),
            126..65536 => {
                bytes.push(bit | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(if masked { &[1, 2, 3, 4][..] } else { &[] });
        bytes.resize(bytes.len() + payload, 0xff);
        bytes
    }

    fn sizes() -> impl Strategy<Value = usize> {
        prop_oneof![0..3usize, 120..130usize, 65530..65540usize, 0..70000usize]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn ends_are_found_wherever_the_stream_is_cut(
            payloads in prop::collection::vec((0..3usize, sizes(), any::<bool>()), 1..6),
            cuts in prop::collection::vec(1..5000usize, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            let mut unfinished = false;
            for (kind, payload, masked) in payloads {
                let first = [FINAL, FRAGMENT, PING][kind];
                stream.extend(frame(first, payload, masked));
                unfinished = first == FRAGMENT || first == PING && unfinished;
                if !unfinished {
                    ends.push(stream.len());
                }
            }
            let mut frames = ClientMessages::default();
            let mut at = 0;
            for cut in cuts.into_iter().cycle() {
                prop_assert_eq!(frames.between(), ends.contains(&at));
                if at == stream.len() {
                    break;
                }
                let next = stream.len().min(at + cut);
                let expected = ends.iter().find(|end| **end > at && **end <= next);
                let found = frames.advance(&stream[at..next]);
                prop_assert_eq!(found.map(|end| at + end), expected.copied());
                at = next;
            }
        }
    }

    const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nx: \r\r\ny: HTTP/1.1\r\n\r\n";

    /// A packet of the engine, of a kind and with so large a payload in its first frame, at least.
    fn packet(kind: usize, size: usize) -> Vec<u8> {
        let begins: &[u8] = match kind {
            0 => b"42[1]",
            1 => b"451-[]",
            2 => b"462-/chat,7[]",
            3 => b"450-[]",
            4 => b"4512[]",  // Nothing that has attachments.
            5 => b"b451-[]", // Text all the same.
            6 => b"45",
            _ => b"",
        };
        let attachments = [0, 1, 2][if kind < 3 { kind } else { 0 }];
        let mut bytes = Vec::new();
        write_frame(&mut bytes, false, &[begins, &vec![b'x'; size.saturating_sub(begins.len())]]);
        for at in 0..attachments {
            bytes.extend(frame(0x8a, 2, false)); // A pong may come in between.
            write_frame(&mut bytes, true, &[&vec![0x81; if at == 0 { size } else { 0 }]]);
        }
        if kind == 8 { frame(PING, size.min(125), false) } else { bytes }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn packets_of_the_engine_are_followed_wherever_they_are_cut(
            packets in prop::collection::vec((0..9usize, sizes()), 0..6),
            cuts in prop::collection::vec(1..5000usize, 1..40),
            refused in any::<bool>(),
            closed in any::<bool>(),
        ) {
            // What is not a 101 goes before it.
            let mut stream = if refused { b"HTTP/1.1 100 Continue\r\n\r\n".to_vec() } else { Vec::new() };
            stream.extend(HEAD);
            let mut starts = vec![stream.len()];
            for (kind, size) in packets {
                stream.extend(packet(kind, size));
                starts.push(stream.len());
            }
            let close_from = stream.len();
            if closed {
                stream.extend(frame(0x88, 2, false));
                starts.push(stream.len());
            }
            let mut engine = EnginePackets::default();
            let mut at = 0;
            for cut in cuts.into_iter().cycle() {
                prop_assert_eq!(engine.between(), starts.contains(&at), "at {}", at);
                prop_assert_eq!(engine.closed(), at >= close_from + 2);
                if at == stream.len() {
                    break;
                }
                let rest = &stream[at..];
                let asked = std::cell::RefCell::new(Vec::new());
                let found = engine.find(rest, |there| {
                    asked.borrow_mut().push(stream.len() - there.len());
                    false
                });
                prop_assert_eq!(found, None);
                let ahead = |start: &&usize| (at..stream.len()).contains(*start);
                let begin: Vec<_> = starts.iter().filter(ahead).copied().collect();
                prop_assert_eq!(asked.into_inner(), begin.clone());
                prop_assert_eq!(engine.find(rest, |_| true), begin.first().map(|start| start - at));
                let end = starts.iter().find(|start| **start > at);
                prop_assert_eq!(engine.packet_end(rest), end.map(|end| end - at));
                let next = stream.len().min(at + cut);
                engine.advance(&stream[at..next]);
                at = next;
            }
        }
    }

    #[test]
    fn attachments_are_counted_as_the_parser_writes_them() {
        for (text, expected) in [
            ("451-[]", 1),
            ("4612-/chat,3[]", 12),
            ("45999999999-", 999_999_999),
            ("45-[]", 0),
            ("450-[]", 0),
            ("451[]", 0),
            ("45", 0),
            ("", 0),
            ("421-[]", 0),
            ("351-[]", 0),
        ] {
            assert_eq!(attachments(text.as_bytes()), expected, "{text}");
        }
    }
}
