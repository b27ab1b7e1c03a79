//! Bytes and types: what travels between nodes, as `@socket.io/redis-adapter` 8 writes and reads it.
//!
//! Pure: no await, no clock, no Redis. Nothing in here panics on any bytes, and what it does for a frame is
//! bounded by the frame's size and by [`Limits`]; every refusal is a [`WireError`].
//!
//! * [`Channels`]: which channel carries what.
//! * [`encode_broadcast`], [`decode_broadcast`], [`peek_uid`]: events, in MessagePack. socketioxide
//!   holds an event as JSON text with attachments aside; one pass over that text writes the frame.
//! * [`Request`], [`Response`]: questions between nodes, in JSON, or in MessagePack where they carry events.
//!
//! # What Node must never get
//!
//! Node decodes broadcasts outside of any `try`: bytes that notepack cannot read end the process, and so does a
//! value that socket.io-parser cannot print. The latter exists: an attachment under the key `__proto__`
//! becomes the prototype of an object that then passes for a `Buffer` and is none. So a client could
//! end every Node node of the cluster. In packets with attachments, members of that name are left out; Node
//! shows them to nobody anyway.
//!
//! # Where text and JavaScript values differ
//!
//! * Numbers: see below.
//! * Half a surrogate pair becomes U+FFFD. notepack does the same in long strings; in short ones it takes
//!   the next character for the other half, or leaves bytes of uninitialized memory in the frame.
//! * Keys keep the order of the text, where JavaScript puts integers first; of duplicate keys all are written,
//!   and every reader keeps the last.
//!
//! # Numbers
//!
//! The sender's own node relays numbers as they came. Remote nodes print what MessagePack carried:
//!
//! | number in the JSON text | in the frame | printed by a remote node |
//! |---|---|---|
//! | integer from -2^63 to 2^64 - 1 | integer | the same digits |
//! | `-0` | 32-bit float | `-0` |
//! | with a fraction or exponent | 64-bit float | the shortest text of this double |
//! | integer beyond 64 bits | 64-bit float | **rounded**: 2^64 is `18446744073709552000.0` |
//! | more digits than a double holds | 64-bit float | **rounded** |
//! | too large for a double: `1e400` | infinity | **`null`**, as on Node |
//!
//! So a client gets the same number on every Antiphon node, except in the bold rows. The text of a float
//! always has a fraction or an exponent (`10.0`, `1000.0` for `1e3`, `-0.0`), because Python and Dart
//! tell `10.0` from `10`. Node reads each of these frames as the nearest double.
//!
//! notepack writes a number without a fraction as an integer. A 64-bit float without one therefore comes
//! from an author who means a float, or who has nothing else: a Go program that forwards parsed
//! JSON sends `10` as a float, and it is printed as `10.0`. Of integers beyond 64 bits notepack writes the
//! lower 64 bits, which are another number; nothing here does.

mod broadcast;
mod channels;
mod date;
mod document;
mod from_json;
mod msgpack;
mod request;
mod response;
mod text;
mod to_json;

pub use broadcast::{
    Broadcast, Flags, Opts, decode_broadcast, decode_legacy_broadcast, encode_broadcast, peek_uid,
};
pub use channels::{Channels, Scope, Traffic, legacy_channel};
pub use request::{Command, Request, Targets, Whom, decode_request, encode_request};
pub use response::{
    Answer, Handshake, RemoteSocket, Response, decode_response, encode_handshake, encode_response,
    peek_request_id,
};

/// Where Node's own recursion ends is somewhere beyond 1000 levels: nothing deeper is written or read.
const DEPTH_MAX: usize = 1000;

/// What one frame may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a frame, read or written. Written ones matter too: a text may name one attachment
    /// many times.
    pub frame_bytes_max: usize,
    /// How deep the arguments of an event nest, the array of arguments not counted; at most 1000, whatever
    /// this says.
    pub depth_max: usize,
    /// Rooms in each of a frame's lists of rooms, except in answers, which list what a node has.
    pub rooms_max: usize,
    /// Attachments of an event.
    pub attachments_max: usize,
}

impl Limits {
    /// How deep the containers of an event nest, its array of arguments being one of them.
    fn containers_max(&self) -> usize {
        self.depth_max.min(DEPTH_MAX) + 1
    }
}

/// Why a frame was not written or not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WireError {
    /// More bytes than [`Limits::frame_bytes_max`].
    #[error("the frame is too large")]
    TooLarge,
    /// Deeper than [`Limits::depth_max`].
    #[error("the data nests too deep")]
    TooDeep,
    /// More than [`Limits::rooms_max`].
    #[error("the frame lists too many rooms")]
    TooManyRooms,
    /// More than [`Limits::attachments_max`].
    #[error("the event has too many attachments")]
    TooManyAttachments,
    /// The frame ends before what it announces.
    #[error("the frame is cut off")]
    Truncated,
    /// Neither MessagePack nor JSON.
    #[error("the frame is malformed")]
    Syntax,
    /// Something follows where the frame should end.
    #[error("bytes follow the end of the frame")]
    Trailing,
    /// Readable, but not what a peer sends: something is missing or of another type.
    #[error("the frame has an unexpected shape")]
    Shape,
    /// An object says that it stands for an attachment, and there is no such attachment.
    #[error("a placeholder has no attachment")]
    Placeholder,
    /// A packet that is no event.
    #[error("the packet is no event")]
    PacketType,
    /// A request of a type that this version does not know.
    #[error("the type of request is unknown")]
    UnknownRequest,
}

impl WireError {
    /// All there are, for whoever counts them.
    pub const ALL: [Self; 11] = [
        Self::TooLarge,
        Self::TooDeep,
        Self::TooManyRooms,
        Self::TooManyAttachments,
        Self::Truncated,
        Self::Syntax,
        Self::Trailing,
        Self::Shape,
        Self::Placeholder,
        Self::PacketType,
        Self::UnknownRequest,
    ];

    /// The reason's name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::TooDeep => "too_deep",
            Self::TooManyRooms => "too_many_rooms",
            Self::TooManyAttachments => "too_many_attachments",
            Self::Truncated => "truncated",
            Self::Syntax => "syntax",
            Self::Trailing => "trailing",
            Self::Shape => "shape",
            Self::Placeholder => "placeholder",
            Self::PacketType => "packet_type",
            Self::UnknownRequest => "unknown_request",
        }
    }
}
