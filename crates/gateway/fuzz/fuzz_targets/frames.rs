//! Any bytes from a WebSocket client: `crates/gateway/fuzz/run`.
//!
//! Nothing panics. The frames and the error are those of tungstenite, apart from what `compare`
//! names, and the same however the bytes arrive. What is held grows with what has arrived. The
//! first byte is the size of the pieces.

#![no_main]

use std::io::{self, Cursor, Read, Write};

use antiphon_gateway::transport::frame::{Frame, FrameError, FrameReader};
use libfuzzer_sys::fuzz_target;
use tungstenite::{
    Error, Message, WebSocket,
    error::ProtocolError,
    protocol::{Role, WebSocketConfig, frame::coding::CloseCode},
};

/// Not less than a control frame may have: tungstenite applies it to those as well.
const MESSAGE_BYTES_MAX: usize = 300;
/// What a message in parts takes besides twice its bytes.
const HELD_BYTES_MIN: usize = 256;

fuzz_target!(|data: &[u8]| {
    let Some((&size, stream)) = data.split_first() else { return };
    let (frames, end) = read(stream, stream.len().max(1));
    assert_eq!(read(stream, usize::from(size).max(1)), (frames.clone(), end));
    compare(stream, frames, end);
});

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// In the middle, or before the next frame.
    Open,
    /// With a close frame.
    Closed,
    Failed(FrameError),
}

fn read(stream: &[u8], size: usize) -> (Vec<Frame>, End) {
    let mut reader = FrameReader::new(MESSAGE_BYTES_MAX);
    let mut frames = Vec::new();
    for mut input in stream.chunks(size) {
        loop {
            match reader.next(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, End::Failed(error)),
            }
        }
        assert!(input.is_empty());
        assert!(reader.held_bytes() <= HELD_BYTES_MIN + 2 * stream.len());
    }
    match frames.last() {
        Some(Frame::Close(_)) => (frames, End::Closed),
        _ => (frames, End::Open),
    }
}

/// A connection whose other side has sent some bytes and nothing more.
struct Received<'a>(Cursor<&'a [u8]>);

impl Read for Received<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Received<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_reference(stream: &[u8]) -> (Vec<Frame>, End) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let received = Received(Cursor::new(stream));
    let mut socket = WebSocket::from_raw_socket(received, Role::Server, Some(config));
    let mut frames = Vec::new();
    let end = loop {
        frames.push(match socket.read() {
            Ok(Message::Text(text)) => Frame::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => Frame::Binary(bytes),
            Ok(Message::Ping(bytes)) => Frame::Ping(bytes),
            Ok(Message::Pong(bytes)) => Frame::Pong(bytes),
            // What it makes of a status code that it does not allow.
            Ok(Message::Close(Some(close)))
                if close.code == CloseCode::Protocol && close.reason == "Protocol violation" =>
            {
                break End::Failed(FrameError::Protocol);
            }
            Ok(Message::Close(close)) => {
                frames.push(Frame::Close(close.map(|close| close.code.into())));
                break End::Closed;
            }
            Ok(Message::Frame(_)) => unreachable!("only written"),
            Err(Error::Capacity(_)) => break End::Failed(FrameError::TooLarge),
            Err(Error::Utf8(_)) => break End::Failed(FrameError::Utf8),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => break End::Open,
            Err(Error::Protocol(_)) => break End::Failed(FrameError::Protocol),
            Err(error) => panic!("{error}"),
        });
    };
    (frames, end)
}

/// What must be the same, and what may differ.
fn compare(stream: &[u8], mut frames: Vec<Frame>, mut end: End) {
    let (expected, expected_end) = read_reference(stream);
    // A client may well send this close frame, which is also what tungstenite makes of others.
    if stream.windows(18).any(|reason| reason == b"Protocol violation") {
        return;
    }
    // A control frame has no extended length, however small the number in it. tungstenite accepts
    // one.
    let extended = |pair: &[u8]| matches!(pair, [0x88..=0x8a, 0xfe | 0xff]);
    if end == End::Failed(FrameError::Protocol) && stream.windows(2).any(extended) {
        assert_eq!(frames, expected[..frames.len()]);
        return;
    }
    // The registry has 1014 (Bad Gateway); tungstenite does not know it.
    if frames.pop_if(|frame| *frame == Frame::Close(Some(1014))).is_some() {
        end = End::Failed(FrameError::Protocol);
    }
    assert_eq!(frames, expected);
    match (end, expected_end) {
        // The reader fails at the first byte that is wrong, tungstenite at the end of its frame.
        (End::Failed(_), End::Open) => {}
        // A frame with several faults: tungstenite looks at its length first.
        (End::Failed(FrameError::Protocol), End::Failed(_)) => {}
        (end, expected) => assert_eq!(end, expected),
    }
}
