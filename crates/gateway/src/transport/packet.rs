//! Engine.IO packets: what a client sends, and what a session sends to it.

use base64::{
    Engine,
    alphabet::STANDARD as ALPHABET,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use bytes::Bytes;

use super::{
    Protocol,
    frame::{self, Opcode},
};

/// Type digit of a message, in a text packet.
const MESSAGE: u8 = b'4';
/// First character of a text packet that holds a binary message.
pub(crate) const BASE64: u8 = b'b';
/// First byte of a binary message in revision 3.
pub(crate) const MESSAGE_TYPE: u8 = 4;

/// Content of a message packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text without the type digit; empty if the packet has no content.
    Text(String),
    /// One attachment of a Socket.IO packet.
    Binary(Bytes),
}

/// A packet from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Has no meaning from a client. Its content is dropped.
    Open,
    /// The client ends the session. Whatever follows in the same payload must be ignored.
    Close,
    /// A heartbeat in revision 3, or a probe before an upgrade.
    Ping(String),
    /// The reply to a heartbeat in revision 4.
    Pong(String),
    /// Content for the layer above.
    Message(Message),
    /// The client has changed to the transport that this packet arrives on.
    Upgrade,
    /// Has no meaning from a client. Its content is dropped.
    Noop,
}

/// The packet has no type, or a type that the protocol does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet without a known type")]
pub struct PacketError;

impl Packet {
    /// Reads the packet in a WebSocket text message.
    pub fn from_text(revision: Protocol, mut text: String) -> Result<Self, PacketError> {
        if text.as_bytes().first() != Some(&MESSAGE) {
            return Self::from_str(revision, &text);
        }
        text.remove(0);
        Ok(Self::Message(Message::Text(text)))
    }

    /// Reads the packet in a WebSocket binary message.
    pub fn from_binary(revision: Protocol, mut bytes: Bytes) -> Result<Self, PacketError> {
        if revision == Protocol::Eio4 {
            return Ok(Self::Message(Message::Binary(bytes)));
        }
        if bytes.is_empty() {
            return Err(PacketError);
        }
        let kind = bytes.split_to(1)[0];
        Self::binary(kind.saturating_add(b'0'), || bytes)
    }

    /// Reads a text packet, and copies its content.
    pub(crate) fn from_str(revision: Protocol, text: &str) -> Result<Self, PacketError> {
        match text.as_bytes() {
            [BASE64, content @ ..] => Self::from_base64(revision, content),
            [digit, ..] if digit.is_ascii() => Self::text(*digit, &text[1..]),
            _ => Err(PacketError),
        }
    }

    /// Reads what follows the `b` of a text packet.
    pub(crate) fn from_base64(revision: Protocol, content: &[u8]) -> Result<Self, PacketError> {
        match (revision, content) {
            (Protocol::Eio4, _) => Self::binary(MESSAGE, || decode_base64(content)),
            (Protocol::Eio3, [digit, content @ ..]) => {
                Self::binary(*digit, || decode_base64(content))
            }
            (Protocol::Eio3, []) => Err(PacketError),
        }
    }

    fn text(digit: u8, content: &str) -> Result<Self, PacketError> {
        Ok(match digit {
            b'0' => Self::Open,
            b'1' => Self::Close,
            b'2' => Self::Ping(content.to_owned()),
            b'3' => Self::Pong(content.to_owned()),
            MESSAGE => Self::Message(Message::Text(content.to_owned())),
            b'5' => Self::Upgrade,
            b'6' => Self::Noop,
            _ => return Err(PacketError),
        })
    }

    /// Only a message has a use for binary content.
    fn binary(digit: u8, content: impl FnOnce() -> Bytes) -> Result<Self, PacketError> {
        match digit {
            MESSAGE => Ok(Self::Message(Message::Binary(content()))),
            _ => Self::text(digit, ""),
        }
    }
}

/// A packet for a client, not yet in the form that a transport writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutPacket {
    /// Text: UTF-8 with its type digit (`4..`, `2`). Binary: the bare attachment of a message.
    pub bytes: Bytes,
    /// Whether `bytes` is an attachment.
    pub binary: bool,
}

impl OutPacket {
    /// Appends the WebSocket frame of the packet. `base64` is for clients that asked for `b64=1`.
    pub fn write_frame(&self, revision: Protocol, base64: bool, out: &mut Vec<u8>) {
        match (self.binary, base64, revision) {
            (false, ..) => frame::write_frame(out, Opcode::Text, &[&self.bytes]),
            (true, true, _) => {
                let encoded = STANDARD.encode(&self.bytes);
                let head = base64_head(revision);
                frame::write_frame(out, Opcode::Text, &[head, encoded.as_bytes()]);
            }
            (true, false, Protocol::Eio3) => {
                frame::write_frame(out, Opcode::Binary, &[&[MESSAGE_TYPE], &self.bytes]);
            }
            (true, false, Protocol::Eio4) => {
                frame::write_frame(out, Opcode::Binary, &[&self.bytes]);
            }
        }
    }
}

/// Start of a text packet that holds a binary message.
pub(crate) fn base64_head(revision: Protocol) -> &'static [u8] {
    match revision {
        Protocol::Eio3 => &[BASE64, MESSAGE],
        Protocol::Eio4 => &[BASE64],
    }
}

/// Decodes as Node's `Buffer.from(text, "base64")` does, which never fails.
///
/// The alphabet may be that for URLs. The first `=` ends the text. All other characters are
/// skipped, and so is a last character that makes no whole byte. Java and Android clients send
/// line breaks.
fn decode_base64(text: &[u8]) -> Bytes {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &ALPHABET,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    if let Ok(bytes) = LENIENT.decode(text) {
        return bytes.into();
    }
    let mut clean: Vec<u8> = text
        .iter()
        .take_while(|character| **character != b'=')
        .filter_map(|character| match character {
            b'-' => Some(b'+'),
            b'_' => Some(b'/'),
            b'+' | b'/' => Some(*character),
            _ => character.is_ascii_alphanumeric().then_some(*character),
        })
        .collect();
    if clean.len() % 4 == 1 {
        clean.pop();
    }
    LENIENT
        .decode(clean)
        .expect("only characters of the alphabet, in a number that is allowed")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Packet {
        Packet::Message(Message::Text(text.to_owned()))
    }

    fn attachment(bytes: &'static [u8]) -> Packet {
        Packet::Message(Message::Binary(Bytes::from_static(bytes)))
    }

    #[test]
    fn reads_text_messages_of_a_websocket() {
        let cases = [
            ("4hello", Ok(message("hello"))),
            ("4", Ok(message(""))),
            ("4€", Ok(message("€"))),
            ("0{}", Ok(Packet::Open)),
            ("1", Ok(Packet::Close)),
            ("2", Ok(Packet::Ping(String::new()))),
            ("2probe", Ok(Packet::Ping("probe".to_owned()))),
            ("3probe", Ok(Packet::Pong("probe".to_owned()))),
            ("5", Ok(Packet::Upgrade)),
            ("6", Ok(Packet::Noop)),
            ("7", Err(PacketError)),
            ("", Err(PacketError)),
            ("é", Err(PacketError)),
        ];
        for (text, expected) in cases {
            for revision in [Protocol::Eio3, Protocol::Eio4] {
                assert_eq!(Packet::from_text(revision, text.to_owned()), expected, "{text:?}");
            }
        }
    }

    #[test]
    fn reads_base64_in_text_messages() {
        let v3 = |text: &str| Packet::from_text(Protocol::Eio3, text.to_owned());
        assert_eq!(v3("b4AQID"), Ok(attachment(&[1, 2, 3])));
        assert_eq!(v3("b2AQID"), Ok(Packet::Ping(String::new())));
        assert_eq!(v3("b"), Err(PacketError));
        assert_eq!(v3("bé"), Err(PacketError));
        let v4 = |text: &str| Packet::from_text(Protocol::Eio4, text.to_owned());
        assert_eq!(v4("bAQID"), Ok(attachment(&[1, 2, 3])));
        assert_eq!(v4("b"), Ok(attachment(&[])));
    }

    #[test]
    fn reads_binary_messages_of_a_websocket() {
        let read = |revision, bytes| Packet::from_binary(revision, Bytes::from_static(bytes));
        assert_eq!(read(Protocol::Eio4, &[4, 5]), Ok(attachment(&[4, 5])));
        assert_eq!(read(Protocol::Eio4, &[]), Ok(attachment(&[])));
        assert_eq!(read(Protocol::Eio3, &[4, 5]), Ok(attachment(&[5])));
        assert_eq!(read(Protocol::Eio3, &[1, 5]), Ok(Packet::Close));
        for malformed in [&[][..], &[7], b"4", &[255]] {
            assert_eq!(read(Protocol::Eio3, malformed), Err(PacketError), "{malformed:?}");
        }
    }

    #[test]
    fn writes_frames() {
        let text = OutPacket { bytes: Bytes::from_static(b"4a"), binary: false };
        let binary = OutPacket { bytes: Bytes::from_static(&[1, 2, 3]), binary: true };
        let frame = |packet: &OutPacket, revision, base64| {
            let mut out = Vec::new();
            packet.write_frame(revision, base64, &mut out);
            out
        };
        for (revision, base64) in [(Protocol::Eio3, true), (Protocol::Eio4, false)] {
            assert_eq!(frame(&text, revision, base64), b"\x81\x024a");
        }
        assert_eq!(frame(&binary, Protocol::Eio3, false), [0x82, 4, 4, 1, 2, 3]);
        assert_eq!(frame(&binary, Protocol::Eio4, false), [0x82, 3, 1, 2, 3]);
        assert_eq!(frame(&binary, Protocol::Eio3, true), b"\x81\x06b4AQID");
        assert_eq!(frame(&binary, Protocol::Eio4, true), b"\x81\x05bAQID");
    }
}
