//! Compares the reader with tungstenite, byte stream by byte stream.

use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;
use tokio_tungstenite::tungstenite::{
    Error, Message, WebSocket,
    protocol::{Role, WebSocketConfig, frame::coding::CloseCode},
};

use super::{Frame, FrameError, FrameReader, tests::client_frame};

/// Not less than a control frame may have: tungstenite applies it to those as well.
const MAX: usize = 300;

/// A connection whose other side has sent some bytes and nothing more.
struct Received(Cursor<Vec<u8>>);

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Received {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a stream ends.
#[derive(Debug, PartialEq)]
enum End {
    /// In the middle, or before the next frame.
    Open,
    /// With a close frame, which may be the last of the messages.
    Closed,
    Failed(FrameError),
}

fn read(stream: &[u8]) -> (Vec<Frame>, End) {
    let mut reader = FrameReader::new(MAX);
    let mut input = stream;
    let mut frames = Vec::new();
    loop {
        match reader.next(&mut input) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) if matches!(frames.last(), Some(Frame::Close(_))) => {
                return (frames, End::Closed);
            }
            Ok(None) => return (frames, End::Open),
            Err(error) => return (frames, End::Failed(error)),
        }
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(MAX)).max_frame_size(Some(MAX))
}

fn read_reference(stream: &[u8]) -> (Vec<Frame>, End) {
    let received = Received(Cursor::new(stream.to_vec()));
    let mut socket = WebSocket::from_raw_socket(received, Role::Server, Some(config()));
    let mut frames = Vec::new();
    loop {
        let end = match socket.read() {
            Ok(Message::Text(text)) => {
                frames.push(Frame::Text(text.as_str().to_owned()));
                continue;
            }
            Ok(Message::Binary(bytes)) => {
                frames.push(Frame::Binary(bytes));
                continue;
            }
            Ok(Message::Ping(bytes)) => {
                frames.push(Frame::Ping(bytes));
                continue;
            }
            Ok(Message::Pong(bytes)) => {
                frames.push(Frame::Pong(bytes));
                continue;
            }
            // What it makes of a status code that it does not allow.
            Ok(Message::Close(Some(close)))
                if close.code == CloseCode::Protocol && close.reason == "Protocol violation" =>
            {
                End::Failed(FrameError::Protocol)
            }
            Ok(Message::Close(close)) => {
                frames.push(Frame::Close(close.map(|close| close.code.into())));
                End::Closed
            }
            Ok(Message::Frame(_)) => unreachable!("only written"),
            Err(Error::Capacity(_)) => End::Failed(FrameError::TooLarge),
            Err(Error::Utf8(_)) => End::Failed(FrameError::Utf8),
            Err(Error::Protocol(
                tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => End::Open,
            Err(Error::Protocol(_)) => End::Failed(FrameError::Protocol),
            Err(error) => panic!("{error}"),
        };
        return (frames, end);
    }
}

/// Payload of the one frame that a server has written.
pub(super) fn read_as_client(stream: Vec<u8>) -> Vec<u8> {
    let received = Received(Cursor::new(stream));
    let mut socket = WebSocket::from_raw_socket(received, Role::Client, None);
    socket.read().expect("a message").into_data().into()
}

/// Whether tungstenite accepts the next frame, and the reader rightly does not.
fn is_known(stream: &[u8], end: &End, next: Option<&Frame>) -> bool {
    let extended = |pair: &[u8]| matches!(pair, [0x88..=0x8a, 0xfe | 0xff]);
    match next {
        // A control frame has no extended length, however small the number in it.
        Some(Frame::Ping(_) | Frame::Pong(_) | Frame::Close(_)) => {
            *end == End::Failed(FrameError::Protocol) && stream.windows(2).any(extended)
        }
        _ => false,
    }
}

/// What must be the same, and what may differ.
fn compare(stream: &[u8]) {
    let (mut frames, mut end) = read(stream);
    let (mut expected, expected_end) = read_reference(stream);
    if is_known(stream, &end, expected.get(frames.len())) {
        expected.truncate(frames.len());
        assert_eq!(frames, expected, "{stream:02x?}");
        return;
    }
    // The registry has 1014 (Bad Gateway); tungstenite does not know it.
    if frames.pop_if(|frame| *frame == Frame::Close(Some(1014))).is_some() {
        end = End::Failed(FrameError::Protocol);
    }
    assert_eq!(frames, expected, "{stream:02x?}: {end:?}, {expected_end:?}");
    let alike = match (&end, &expected_end) {
        // The reader fails at the first byte that is wrong, tungstenite at the end of its frame.
        (End::Failed(_), End::Open) => true,
        // A frame with several faults: tungstenite looks at its length first.
        (End::Failed(FrameError::Protocol), End::Failed(_)) => true,
        (end, expected) => end == expected,
    };
    assert!(alike, "{stream:02x?}: {end:?}, {expected_end:?}");
}

#[derive(Debug, Clone)]
enum Mutation {
    Set(u8),
    Flip(u8),
    Insert(u8),
    Remove,
    Cut,
}

impl Mutation {
    fn apply(&self, stream: &mut Vec<u8>, at: prop::sample::Index) {
        if stream.is_empty() {
            return;
        }
        let at = at.index(stream.len());
        match *self {
            Self::Set(byte) => stream[at] = byte,
            Self::Flip(bit) => stream[at] ^= 1 << bit,
            Self::Insert(byte) => stream.insert(at, byte),
            Self::Remove => drop(stream.remove(at)),
            Self::Cut => stream.truncate(at),
        }
    }
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        any::<u8>().prop_map(Mutation::Set),
        (0..8_u8).prop_map(Mutation::Flip),
        any::<u8>().prop_map(Mutation::Insert),
        Just(Mutation::Remove),
        Just(Mutation::Cut),
    ]
}

/// Frames that a client may send in this or another order: most streams of them violate something.
fn any_client_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81, 0x82, 0x01, 0x02, 0x00, 0x00, 0x80, 0x80, 0x89, 0x8a]),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6),
        "\\PC{0,40}".prop_map(String::into_bytes),
        // Parts of characters.
        prop::sample::select(vec![
            &b"\xe2"[..],
            b"\x82\xac",
            b"\xf0\x9f",
            b"\x98\x80",
            b"\xed\xa0"
        ])
        .prop_map(<[u8]>::to_vec),
        (120..310_usize).prop_map(|bytes| vec![b'a'; bytes]),
    ];
    let close =
        (prop_oneof![900..1020_u16, any::<u16>()], "\\PC{0,10}").prop_map(|(code, reason)| {
            client_frame(0x88, &[&code.to_be_bytes()[..], reason.as_bytes()].concat())
        });
    prop_oneof![
        12 => (first, payload).prop_map(|(first, payload)| client_frame(first, &payload)),
        1 => close,
        1 => prop::collection::vec(any::<u8>(), 0..4)
            .prop_map(|payload| client_frame(0x88, &payload)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_bytes(stream in prop::collection::vec(any::<u8>(), 0..60)) {
        compare(&stream);
    }

    #[test]
    fn frames_in_any_order(frames in prop::collection::vec(any_client_frame(), 0..12)) {
        compare(&frames.concat());
    }

    #[test]
    fn frames_with_faults(
        frames in prop::collection::vec(any_client_frame(), 1..8),
        mutations in prop::collection::vec((any_mutation(), any::<prop::sample::Index>()), 1..4),
    ) {
        let mut stream = frames.concat();
        for (mutation, at) in mutations {
            mutation.apply(&mut stream, at);
        }
        compare(&stream);
    }
}
