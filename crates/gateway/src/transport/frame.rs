//! WebSocket frames (RFC 6455) on the server's side, without extensions.

#[cfg(test)]
mod reference;

use std::mem;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use sha1::{Digest, Sha1};

/// What `Sec-WebSocket-Accept` appends to the client's key (RFC 6455, 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Two bytes, a length of eight, and the mask.
const HEADER_BYTES_MAX: usize = 14;
/// The longest payload of a control frame.
const CONTROL_BYTES_MAX: usize = 125;
/// The first allocation for a message that arrives in parts.
const MESSAGE_BYTES_MIN: usize = 64;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
/// In the second byte: the length is in the next two or eight bytes.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation = 0,
    /// A text message, or its first fragment.
    Text = 1,
    /// A binary message, or its first fragment.
    Binary = 2,
    /// The last frame of its sender.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Replies to a ping.
    Pong = 10,
}

impl Opcode {
    fn from_first_byte(byte: u8) -> Option<Self> {
        Some(match byte & !FIN {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            // Unknown opcodes, and all with reserved bits.
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A whole message or control frame from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
    /// The reply is a pong with the same payload.
    Ping(Bytes),
    /// The reply to a ping.
    Pong(Bytes),
    /// The client closes the connection, with its status code if it gave one.
    Close(Option<u16>),
}

/// Why the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The client violates the protocol.
    #[error("the client violates the WebSocket protocol")]
    Protocol,
    /// A text message, or the reason of a close frame, is not UTF-8.
    #[error("text that is not UTF-8")]
    Utf8,
    /// A message is larger than the limit.
    #[error("a message larger than the limit")]
    TooLarge,
}

impl FrameError {
    /// Status code for the close frame that tells the client.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::Utf8 => 1007,
            Self::TooLarge => 1009,
        }
    }
}

/// Reads what one client sends, in pieces of any size.
///
/// Holds nothing on the heap between messages. Within a message it holds what has arrived: a length
/// that the client only declares allocates nothing.
#[derive(Debug)]
pub struct FrameReader {
    max_message_bytes: usize,
    state: State,
    /// Only while a message or a control frame has arrived in part.
    parts: Option<Box<Parts>>,
}

#[derive(Debug)]
enum State {
    Header(HeaderBytes),
    Payload(Header),
    /// A close frame has arrived. Whatever follows it has no meaning.
    Closed,
    Failed(FrameError),
}

/// What has arrived of a frame's header.
#[derive(Debug, Default)]
struct HeaderBytes {
    bytes: [u8; HEADER_BYTES_MAX],
    len: u8,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    /// Bytes of the payload that have not arrived.
    left: usize,
    /// Rotated so that its first byte is for the next byte of the payload.
    mask: [u8; 4],
    opcode: Opcode,
    fin: bool,
}

#[derive(Debug, Default)]
struct Parts {
    message: Option<PartialMessage>,
    /// Payload of a control frame, which may come between the fragments of a message.
    control: Vec<u8>,
}

#[derive(Debug)]
struct PartialMessage {
    text: bool,
    bytes: Vec<u8>,
    /// The bytes that are known to be UTF-8.
    valid: usize,
}

impl FrameReader {
    /// `max_message_bytes` limits a whole message, however many frames it has.
    pub fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes, state: State::Header(HeaderBytes::default()), parts: None }
    }

    /// Takes bytes off the input until a message or a control frame is whole. `None` means that all
    /// input is taken.
    ///
    /// After an error the same error is returned again. After a close frame all input is dropped.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        let result = self.read(input);
        let end = match &result {
            Ok(Some(Frame::Close(_))) => State::Closed,
            Err(error) => State::Failed(*error),
            _ => return result,
        };
        self.state = end;
        self.parts = None;
        *input = &[];
        result
    }

    /// Bytes on the heap.
    pub fn held_bytes(&self) -> usize {
        let Some(parts) = &self.parts else { return 0 };
        let message = parts.message.as_ref().map_or(0, |message| message.bytes.capacity());
        size_of::<Parts>() + message + parts.control.capacity()
    }

    fn read(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        loop {
            match &mut self.state {
                State::Header(bytes) => {
                    let Some(header) = bytes.read(input)? else { return Ok(None) };
                    self.check_header(&header)?;
                    self.state = State::Payload(header);
                }
                State::Payload(header) => {
                    if input.is_empty() && header.left > 0 {
                        return Ok(None);
                    }
                    let frame = *header;
                    let (piece, rest) = input.split_at(frame.left.min(input.len()));
                    *input = rest;
                    header.left -= piece.len();
                    header.mask.rotate_left(piece.len() % 4);
                    if header.left == 0 {
                        self.state = State::Header(HeaderBytes::default());
                    }
                    if let Some(frame) = self.read_payload(frame, piece)? {
                        return Ok(Some(frame));
                    }
                }
                State::Closed => {
                    *input = &[];
                    return Ok(None);
                }
                State::Failed(error) => return Err(*error),
            }
        }
    }

    /// Checks what depends on the frames before this one.
    fn check_header(&self, header: &Header) -> Result<(), FrameError> {
        if header.opcode.is_control() {
            return Ok(());
        }
        let message = self.message();
        if message.is_some() != (header.opcode == Opcode::Continuation) {
            return Err(FrameError::Protocol);
        }
        let held = message.map_or(0, |message| message.bytes.len());
        match header.left > self.max_message_bytes - held {
            true => Err(FrameError::TooLarge),
            false => Ok(()),
        }
    }

    fn message(&self) -> Option<&PartialMessage> {
        self.parts.as_ref()?.message.as_ref()
    }

    /// Takes the next piece of a frame's payload; `header` is as it was before the piece.
    fn read_payload(&mut self, header: Header, piece: &[u8]) -> Result<Option<Frame>, FrameError> {
        let whole = piece.len() == header.left;
        if header.opcode.is_control() {
            return self.read_control(header, piece, whole);
        }
        let last = whole && header.fin;
        if last && self.message().is_none() {
            let mut bytes = piece.to_vec();
            unmask(&mut bytes, header.mask);
            return data_frame(header.opcode == Opcode::Text, bytes).map(Some);
        }
        let mut parts = self.parts.take().unwrap_or_default();
        let mut message = parts.message.take().unwrap_or_else(|| PartialMessage {
            text: header.opcode == Opcode::Text,
            bytes: Vec::new(),
            valid: 0,
        });
        let bytes_max = match header.fin {
            true => message.bytes.len() + header.left,
            false => self.max_message_bytes,
        };
        message.push(piece, header.mask, bytes_max)?;
        if last {
            message.bytes.shrink_to_fit();
            return data_frame(message.text, message.bytes).map(Some);
        }
        parts.message = Some(message);
        self.parts = Some(parts);
        Ok(None)
    }

    fn read_control(
        &mut self,
        header: Header,
        piece: &[u8],
        whole: bool,
    ) -> Result<Option<Frame>, FrameError> {
        let mut payload = match &mut self.parts {
            Some(parts) => mem::take(&mut parts.control),
            None => Vec::new(),
        };
        push_unmasked(&mut payload, piece, header.mask);
        if !whole {
            self.parts.get_or_insert_default().control = payload;
            return Ok(None);
        }
        self.parts.take_if(|parts| parts.message.is_none());
        Ok(Some(match header.opcode {
            Opcode::Ping => Frame::Ping(payload.into()),
            Opcode::Pong => Frame::Pong(payload.into()),
            _ => Frame::Close(read_close_code(&payload)?),
        }))
    }
}

impl HeaderBytes {
    /// Takes the header off the input, or as much of it as there is.
    fn read(&mut self, input: &mut &[u8]) -> Result<Option<Header>, FrameError> {
        let held = usize::from(self.len);
        let copied = input.len().min(HEADER_BYTES_MAX - held);
        self.bytes[held..held + copied].copy_from_slice(&input[..copied]);
        let available = held + copied;
        let needed = self.check(available)?;
        if needed <= available {
            *input = &input[needed - held..];
            return self.parse().map(Some);
        }
        *input = &input[copied..];
        self.len = available as u8;
        Ok(None)
    }

    /// Checks the bytes that are there, and tells how many the header has, as far as is known.
    fn check(&self, available: usize) -> Result<usize, FrameError> {
        let [first, second, ..] = self.bytes;
        if available == 0 {
            return Ok(2);
        }
        let opcode = Opcode::from_first_byte(first).ok_or(FrameError::Protocol)?;
        if opcode.is_control() && first & FIN == 0 {
            return Err(FrameError::Protocol);
        }
        if available == 1 {
            return Ok(2);
        }
        let length = second & !MASKED;
        if second & MASKED == 0 || opcode.is_control() && usize::from(length) > CONTROL_BYTES_MAX {
            return Err(FrameError::Protocol);
        }
        Ok(match length {
            LENGTH_16 => 2 + 2 + 4,
            LENGTH_64 => 2 + 8 + 4,
            _ => 2 + 4,
        })
    }

    /// Reads a header that is whole.
    fn parse(&self) -> Result<Header, FrameError> {
        let [first, second, rest @ ..] = self.bytes;
        let [a, b, c, d, e, f, g, h, ..] = rest;
        let (left, mask) = match second & !MASKED {
            LENGTH_16 => (u64::from(u16::from_be_bytes([a, b])), [c, d, e, f]),
            LENGTH_64 => {
                let [.., i, j, k, l] = rest;
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), [i, j, k, l])
            }
            length => (u64::from(length), [a, b, c, d]),
        };
        Ok(Header {
            left: usize::try_from(left).map_err(|_| FrameError::TooLarge)?,
            mask,
            opcode: Opcode::from_first_byte(first).ok_or(FrameError::Protocol)?,
            fin: first & FIN != 0,
        })
    }
}

impl PartialMessage {
    /// Appends a piece of the message. The message can have no more than `bytes_max` by the end of
    /// this frame.
    fn push(&mut self, piece: &[u8], mask: [u8; 4], bytes_max: usize) -> Result<(), FrameError> {
        let needed = self.bytes.len() + piece.len();
        if needed > self.bytes.capacity() {
            let doubled = self.bytes.capacity().saturating_mul(2).max(MESSAGE_BYTES_MIN);
            let capacity = doubled.min(bytes_max).max(needed);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        push_unmasked(&mut self.bytes, piece, mask);
        if !self.text {
            return Ok(());
        }
        match std::str::from_utf8(&self.bytes[self.valid..]) {
            Ok(_) => self.valid = self.bytes.len(),
            // The rest of the character may come with the next piece.
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(FrameError::Utf8),
        }
        Ok(())
    }
}

fn data_frame(text: bool, bytes: Vec<u8>) -> Result<Frame, FrameError> {
    match text {
        true => String::from_utf8(bytes).map(Frame::Text).map_err(|_| FrameError::Utf8),
        false => Ok(Frame::Binary(bytes.into())),
    }
}

/// Reads the payload of a close frame.
fn read_close_code(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        [_] => return Err(FrameError::Protocol),
    };
    // Those of RFC 6455 and of the IANA registry that may be sent, then those of libraries and
    // applications.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::Protocol);
    }
    std::str::from_utf8(reason).map_err(|_| FrameError::Utf8)?;
    Ok(Some(code))
}

fn push_unmasked(bytes: &mut Vec<u8>, piece: &[u8], mask: [u8; 4]) {
    let start = bytes.len();
    bytes.extend_from_slice(piece);
    unmask(&mut bytes[start..], mask);
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let mask_word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ mask_word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Appends an unfragmented frame of the server. The payload is `parts` one after another; that of a
/// control frame must not have more than 125 bytes.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, parts: &[&[u8]]) {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(!opcode.is_control() || bytes <= CONTROL_BYTES_MAX);
    out.reserve(HEADER_BYTES_MAX + bytes);
    out.push(FIN | opcode as u8);
    match (u8::try_from(bytes), u16::try_from(bytes)) {
        (Ok(short), _) if short < LENGTH_16 => out.push(short),
        (_, Ok(medium)) => {
            out.push(LENGTH_16);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(LENGTH_64);
            out.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends a close frame. Without a code there is no reason either. A reason that is too long for a
/// control frame is cut.
pub fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else { return write_frame(out, Opcode::Close, &[]) };
    let end = reason.floor_char_boundary(CONTROL_BYTES_MAX - size_of::<u16>());
    write_frame(out, Opcode::Close, &[&code.to_be_bytes(), &reason.as_bytes()[..end]]);
}

/// Value of `Sec-WebSocket-Accept` for the client's `Sec-WebSocket-Key`.
pub fn accept_key(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new_with_prefix(key).chain_update(ACCEPT_GUID).finalize())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    const MAX: usize = 1 << 20;

    /// A frame of a client, with the shortest length.
    pub(super) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(MASKED | len as u8),
            len @ 126..0x10000 => {
                frame.push(MASKED | LENGTH_16);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(MASKED | LENGTH_64);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// The head of a frame whose payload does not follow.
    fn declared(first: u8, bytes: u64) -> Vec<u8> {
        [&[first, MASKED | LENGTH_64][..], &bytes.to_be_bytes(), &MASK].concat()
    }

    /// Everything that is read before the end of the input, or before an error.
    fn read_all(reader: &mut FrameReader, mut input: &[u8]) -> (Vec<Frame>, Option<FrameError>) {
        let mut frames = Vec::new();
        loop {
            match reader.next(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => {
                    assert!(input.is_empty());
                    return (frames, None);
                }
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    fn read(stream: &[u8]) -> (Vec<Frame>, Option<FrameError>) {
        read_all(&mut FrameReader::new(MAX), stream)
    }

    /// As `read`, in pieces of the given sizes, over and over.
    fn read_split(stream: &[u8], sizes: &[usize]) -> (Vec<Frame>, Option<FrameError>) {
        let mut reader = FrameReader::new(MAX);
        let (mut frames, mut rest) = (Vec::new(), stream);
        for size in sizes.iter().cycle() {
            let (piece, left) = rest.split_at((*size).min(rest.len()));
            rest = left;
            let (more, error) = read_all(&mut reader, piece);
            frames.extend(more);
            if error.is_some() || rest.is_empty() {
                return (frames, error);
            }
        }
        (frames, None)
    }

    fn text(text: &str) -> Frame {
        Frame::Text(text.to_owned())
    }

    fn check(stream: &[u8], frames: &[Frame], error: Option<FrameError>) {
        let expected = (frames.to_vec(), error);
        assert_eq!(read(stream), expected, "{stream:02x?}");
        assert_eq!(read_split(stream, &[1]), expected, "{stream:02x?}, byte by byte");
    }

    #[test]
    fn is_small() {
        assert!(size_of::<FrameReader>() <= 48, "{}", size_of::<FrameReader>());
    }

    #[test]
    fn reads_messages_of_each_kind_and_size() {
        // RFC 6455, 5.7: a masked "Hello".
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        check(&hello, &[text("Hello")], None);
        for bytes in [0, 1, 7, 8, 9, 125, 126, 127, 300, 65_535, 65_536, 70_000] {
            let content = "x".repeat(bytes);
            let both =
                [client_frame(0x81, content.as_bytes()), client_frame(0x82, content.as_bytes())];
            check(&both.concat(), &[text(&content), Frame::Binary(content.into())], None);
        }
    }

    #[test]
    fn a_length_may_be_longer_than_needed() {
        let frame = [&declared(0x81, 2)[..], &[b'h' ^ MASK[0], b'i' ^ MASK[1]]].concat();
        check(&frame, &[text("hi")], None);
    }

    #[test]
    fn joins_fragments_around_control_frames() {
        let stream = [
            client_frame(0x01, b""),
            client_frame(0x00, "a\u{20ac}".as_bytes().split_at(2).0),
            client_frame(0x89, b"beat"),
            client_frame(0x8a, b""),
            client_frame(0x00, "\u{20ac}".as_bytes().split_at(1).1),
            client_frame(0x80, b""),
            client_frame(0x02, b"one"),
            client_frame(0x80, b"two"),
        ];
        let frames = [
            Frame::Ping(Bytes::from_static(b"beat")),
            Frame::Pong(Bytes::new()),
            text("a\u{20ac}"),
            Frame::Binary(Bytes::from_static(b"onetwo")),
        ];
        check(&stream.concat(), &frames, None);
    }

    #[test]
    fn refuses_what_violates_the_protocol() {
        let begun = client_frame(0x01, b"a");
        let violations = [
            // Reserved bits and opcodes.
            vec![0xc1],
            vec![0xa1],
            vec![0x91],
            vec![0x83],
            vec![0x87],
            vec![0x8b],
            vec![0x8f],
            // Fragmented control frames.
            vec![0x08],
            vec![0x09],
            // A control frame of more than 125 bytes.
            vec![0x89, 0xfe],
            vec![0x88, 0xff],
            // Not masked.
            vec![0x81, 0x05],
            vec![0x89, 0x00],
            // A fragment of no message, and a message within another.
            client_frame(0x80, b"a"),
            client_frame(0x00, b"a"),
            [&begun[..], &client_frame(0x81, b"a")].concat(),
            [&begun[..], &client_frame(0x02, b"a")].concat(),
            [&begun[..], &client_frame(0x80, b"a"), &client_frame(0x80, b"a")].concat(),
        ];
        for stream in violations {
            let (_, error) = read(&stream);
            assert_eq!(error, Some(FrameError::Protocol), "{stream:02x?}");
            assert_eq!(read_split(&stream, &[1]).1, Some(FrameError::Protocol), "{stream:02x?}");
        }
    }

    #[test]
    fn text_must_be_utf8() {
        for invalid in
            [&b"\xff"[..], b"a\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
        {
            let whole = client_frame(0x81, invalid);
            check(&whole, &[], Some(FrameError::Utf8));
            let (head, tail) = invalid.split_at(invalid.len() / 2);
            let fragments = [client_frame(0x01, head), client_frame(0x80, tail)].concat();
            check(&fragments, &[], Some(FrameError::Utf8));
        }
    }

    #[test]
    fn invalid_text_fails_before_its_end() {
        let stream = [&declared(0x81, 1000)[..], &[0xff ^ MASK[0]]].concat();
        check(&stream, &[], Some(FrameError::Utf8));
        check(&client_frame(0x01, b"a\xff"), &[], Some(FrameError::Utf8));
    }

    #[test]
    fn a_message_has_a_limit() {
        let too_large = [
            declared(0x82, MAX as u64 + 1),
            declared(0x81, u64::MAX),
            declared(0x01, 1 << 63),
            [client_frame(0x02, b"a"), declared(0x00, MAX as u64)].concat(),
            [client_frame(0x02, b"a"), client_frame(0x00, b"b"), declared(0x80, MAX as u64 - 1)]
                .concat(),
        ];
        for stream in too_large {
            check(&stream, &[], Some(FrameError::TooLarge));
        }
        let largest = vec![7; MAX];
        let fragments = [client_frame(0x02, &largest[1..]), client_frame(0x80, &largest[..1])];
        let stream = [client_frame(0x82, &largest), fragments.concat()].concat();
        let (frames, error) = read(&stream);
        assert!(error.is_none());
        assert!(frames.iter().all(|frame| *frame == Frame::Binary(largest.clone().into())));
        // The limit is not for control frames.
        let ping = read_all(&mut FrameReader::new(0), &client_frame(0x89, &[7; 125]));
        assert_eq!(ping, (vec![Frame::Ping(vec![7; 125].into())], None));
    }

    #[test]
    fn reads_close_frames() {
        check(&client_frame(0x88, b""), &[Frame::Close(None)], None);
        for code in [1000_u16, 1001, 1003, 1007, 1011, 1014, 3000, 4999] {
            let payload = [&code.to_be_bytes()[..], "bye \u{1f600}".as_bytes()].concat();
            check(&client_frame(0x88, &payload), &[Frame::Close(Some(code))], None);
        }
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
            check(&client_frame(0x88, &code.to_be_bytes()), &[], Some(FrameError::Protocol));
        }
        check(&client_frame(0x88, &[3]), &[], Some(FrameError::Protocol));
        check(&client_frame(0x88, b"\x03\xe8\xff"), &[], Some(FrameError::Utf8));
    }

    #[test]
    fn nothing_is_read_after_a_close_frame_or_an_error() {
        let close = client_frame(0x88, b"");
        let after = [&close[..], &client_frame(0x81, b"late"), &[0xff; 20]].concat();
        check(&after, &[Frame::Close(None)], None);

        let mut reader = FrameReader::new(MAX);
        for _ in 0..2 {
            let mut input = &[0xff; 20][..];
            assert_eq!(reader.next(&mut input), Err(FrameError::Protocol));
            assert!(input.is_empty());
        }
        assert_eq!(reader.held_bytes(), 0);
    }

    #[test]
    fn holds_no_more_than_has_arrived() {
        let mut reader = FrameReader::new(MAX);
        let mut hold = |bytes: &[u8]| {
            read_all(&mut reader, bytes);
            reader.held_bytes()
        };
        let head = declared(0x82, MAX as u64 - 1);
        assert_eq!(hold(&head[..5]), 0);
        assert_eq!(hold(&head[5..]), 0);
        let small = size_of::<Parts>() + MESSAGE_BYTES_MIN;
        assert_eq!(hold(&[0]), small);
        let mut arrived = 1;
        while arrived < MAX - 1 {
            let piece = vec![0; 1000.min(MAX - 1 - arrived)];
            arrived += piece.len();
            let held = hold(&piece);
            assert!(held <= small + 2 * arrived, "{held} for {arrived}");
        }
        assert_eq!(hold(&[]), 0);
        // A control frame between fragments, and the end of all.
        assert_eq!(hold(&client_frame(0x01, b"abc")), small);
        assert_eq!(hold(&client_frame(0x89, b"abc")), small);
        assert!(hold(&client_frame(0x89, b"abc")[..8]) > small);
        assert_eq!(hold(&client_frame(0x89, b"abc")[8..]), small);
        assert_eq!(hold(&client_frame(0x80, b"abc")), 0);
        assert!(hold(&client_frame(0x89, b"abc")[..8]) > 0);
        assert_eq!(hold(&client_frame(0x89, b"abc")[8..]), 0);
    }

    #[test]
    fn many_tiny_fragments_take_linear_time() {
        let fragment = client_frame(0x00, b"a");
        let mut reader = FrameReader::new(MAX);
        read_all(&mut reader, &client_frame(0x01, b""));
        for _ in 0..MAX {
            assert_eq!(reader.next(&mut &fragment[..]), Ok(None));
        }
        assert!(reader.held_bytes() <= size_of::<Parts>() + MAX);
        assert_eq!(
            reader.next(&mut &client_frame(0x80, b"")[..]),
            Ok(Some(text(&"a".repeat(MAX))))
        );
    }

    #[test]
    fn writes_frames() {
        let written = |opcode, parts: &[&[u8]]| {
            let mut out = vec![7];
            write_frame(&mut out, opcode, parts);
            out
        };
        assert_eq!(written(Opcode::Text, &[b"a", b"", b"bc"]), b"\x07\x81\x03abc");
        assert_eq!(written(Opcode::Ping, &[]), b"\x07\x89\x00");
        let heads: [(usize, &[u8]); 5] = [
            (125, &[7, 0x82, 125]),
            (126, &[7, 0x82, 126, 0, 126]),
            (255, &[7, 0x82, 126, 0, 255]),
            (65_535, &[7, 0x82, 126, 255, 255]),
            (65_536, &[7, 0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ];
        for (bytes, head) in heads {
            let payload = vec![9; bytes];
            assert_eq!(written(Opcode::Binary, &[&payload]), [head, &payload].concat());
        }
    }

    #[test]
    fn writes_close_frames() {
        let written = |code, reason: &str| {
            let mut out = Vec::new();
            write_close(&mut out, code, reason);
            out
        };
        assert_eq!(written(None, "not sent"), b"\x88\x00");
        assert_eq!(written(Some(1000), ""), b"\x88\x02\x03\xe8");
        assert_eq!(written(Some(1009), "too large"), b"\x88\x0b\x03\xf1too large");
        let cut = written(Some(1000), &format!("a{}", "\u{20ac}".repeat(100)));
        assert_eq!(cut[1], 2 + 1 + 40 * 3);
        assert!(std::str::from_utf8(&cut[4..]).is_ok());
    }

    #[test]
    fn accepts_the_key_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let control = || prop::collection::vec(any::<u8>(), 0..126).prop_map(Bytes::from);
        prop_oneof![
            "\\PC{0,200}".prop_map(Frame::Text),
            prop::collection::vec(any::<u8>(), 0..400)
                .prop_map(|bytes| Frame::Binary(bytes.into())),
            control().prop_map(Frame::Ping),
            control().prop_map(Frame::Pong),
        ]
    }

    /// Frames of a client for the messages: each message in fragments of the given size, with a
    /// ping after each fragment but the last.
    fn encode(frames: &[Frame], fragment: usize) -> (Vec<u8>, Vec<Frame>) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for frame in frames {
            let (opcode, payload) = match frame {
                Frame::Text(text) => (1, text.as_bytes()),
                Frame::Binary(bytes) => (2, &bytes[..]),
                Frame::Ping(bytes) => (9, &bytes[..]),
                Frame::Pong(bytes) => (10, &bytes[..]),
                Frame::Close(_) => continue,
            };
            let mut rest = payload;
            let mut first = opcode;
            while opcode < 8 && rest.len() > fragment {
                let (piece, left) = rest.split_at(fragment);
                stream.extend(client_frame(first, piece));
                stream.extend(client_frame(0x89, b"ping"));
                expected.push(Frame::Ping(Bytes::from_static(b"ping")));
                (rest, first) = (left, 0);
            }
            stream.extend(client_frame(FIN | first, rest));
            expected.push(frame.clone());
        }
        (stream, expected)
    }

    proptest! {
        #[test]
        fn what_a_client_sends_is_read(
            frames in prop::collection::vec(any_frame(), 0..6),
            fragment in 1..200_usize,
            sizes in prop::collection::vec(1..40_usize, 1..6),
        ) {
            let (stream, expected) = encode(&frames, fragment);
            let mut reader = FrameReader::new(MAX);
            prop_assert_eq!(read_all(&mut reader, &stream), (expected.clone(), None));
            prop_assert_eq!(reader.held_bytes(), 0);
            prop_assert_eq!(read_split(&stream, &sizes), (expected, None));
        }

        #[test]
        fn any_bytes_read_alike_however_they_arrive(
            stream in prop::collection::vec(any::<u8>(), 0..80),
            sizes in prop::collection::vec(1..20_usize, 1..6),
        ) {
            prop_assert_eq!(read_split(&stream, &sizes), read(&stream));
        }

        #[test]
        fn what_is_written_can_be_read_by_a_client(
            payload in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut out = Vec::new();
            let (head, tail) = payload.split_at(payload.len() / 2);
            write_frame(&mut out, Opcode::Binary, &[head, tail]);
            let read = reference::read_as_client(out);
            prop_assert_eq!(read, payload);
        }
    }
}
