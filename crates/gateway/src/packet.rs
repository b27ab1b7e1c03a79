//! Socket.IO packets as text: what one Engine.IO message carries, in both protocol revisions.
//!
//! A packet is `TYPE[ATTACHMENTS-][NAMESPACE[?QUERY],][ACK ID][DATA]`. [`parse`] takes the head
//! apart and checks how the data begins; `payload` checks the rest. Writers print what Node prints.
//! The Engine.IO type digit `4` before a packet is neither read nor written here.
//!
//! # Revisions
//!
//! Socket.IO 2 (protocol 4) uses Engine.IO 3; Socket.IO 3 and 4 (protocol 5) use Engine.IO 4.
//! Events and acknowledgements are the same in both. The differences:
//!
//! | packet | Socket.IO 2 | Socket.IO 3 and 4 |
//! |---|---|---|
//! | CONNECT from a client | `0/chat?token=1,` with a query | `0/chat,{"token":1}` with an object |
//! | CONNECT to a client | `0/chat,` | `0/chat,{"sid":"..."}` |
//! | type 4 to a client | ERROR: `4/chat,"message"` | CONNECT_ERROR: `4/chat,{"message":"..."}` |
//!
//! # Compared with Node
//!
//! A [`PacketError`] is what socket.io-parser calls a parse error: Node closes the session. Some
//! packets are not read as Node reads them:
//!
//! * White space before the data is dropped. Node takes it for the ack id 0, and so do JavaScript
//!   clients that get the event; C++ clients throw.
//! * An attachment count and an ack id are decimal digits. Node takes all that `Number()` reads.
//! * An ack id above [`ACK_ID_MAX`] is an error. Smaller ids are answered as they came. Node rounds
//!   those above 2^53, and so answers an id that nobody waits for.
//! * An event without data is an error. Node emits an event without a name, which has no listener.
//! * A binary packet without attachments is an ordinary one. Socket.IO 2 clients send it for
//!   `binary(true)`, and Dart's for `emitWithBinary`. Node 4.8 refuses it or the packet after it.
//! * A namespace or query beyond its bound is an error. Node repeats such a name in its answer.
//! * A query is no part of the namespace in either revision. Only Socket.IO 2 clients send one.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::transport::Protocol;

/// The largest ack id: socketioxide holds them as signed 64-bit integers. Dart's have 12 digits.
pub(crate) const ACK_ID_MAX: u64 = i64::MAX as u64;

/// The longest namespace: it is repeated in answers and logs.
pub(crate) const NAMESPACE_BYTES_MAX: usize = 256;

/// The longest query in a namespace: it carries tokens, as the query of a URL does.
pub(crate) const QUERY_BYTES_MAX: usize = 8192;

/// The namespace of packets that name none.
const ROOT: &str = "/";

/// The type of a packet. A binary one has at least one attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Connect,
    Disconnect,
    Event,
    Ack,
    /// CONNECT_ERROR, and ERROR in Socket.IO 2. Clients never send it; Node closes those that do.
    ConnectError,
    BinaryEvent,
    BinaryAck,
}

/// A packet from a client. Attachments follow in binary messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) kind: Kind,
    /// How many binary messages follow.
    pub(crate) attachments: usize,
    /// Without its query, and `/` by default.
    pub(crate) namespace: &'a str,
    /// What follows `?` in the namespace, still percent-encoded.
    pub(crate) query: Option<&'a str>,
    /// The id of the acknowledgement that an event asks for, or that an acknowledgement answers.
    pub(crate) ack: Option<u64>,
    /// JSON without white space around it; only its first byte has been checked.
    ///
    /// Empty or an object for CONNECT, an array for events and acknowledgements.
    pub(crate) data: &'a str,
}

/// Why a packet is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum PacketError {
    #[error("the packet type is unknown")]
    UnknownType,
    #[error("the attachment count is malformed")]
    Attachments,
    #[error("the packet has too many attachments")]
    TooManyAttachments,
    #[error("the namespace is too long")]
    NamespaceTooLong,
    #[error("the ack id is too large")]
    AckId,
    #[error("the data does not fit the packet type")]
    Data,
}

/// Parses one text message of a client: what follows Engine.IO's `4`.
pub(crate) fn parse(text: &str, max_attachments: usize) -> Result<Packet<'_>, PacketError> {
    let (kind, rest) = read_kind(text)?;
    let (kind, attachments, rest) = read_attachments(kind, rest, max_attachments)?;
    let (namespace, query, rest) = read_namespace(rest)?;
    let (ack, rest) = read_ack(rest)?;
    let data = check_data(kind, rest.trim_matches([' ', '\t', '\n', '\r']))?;
    Ok(Packet { kind, attachments, namespace, query, ack, data })
}

fn read_kind(text: &str) -> Result<(Kind, &str), PacketError> {
    let kind = match text.as_bytes().first() {
        Some(b'0') => Kind::Connect,
        Some(b'1') => Kind::Disconnect,
        Some(b'2') => Kind::Event,
        Some(b'3') => Kind::Ack,
        Some(b'4') => Kind::ConnectError,
        Some(b'5') => Kind::BinaryEvent,
        Some(b'6') => Kind::BinaryAck,
        _ => return Err(PacketError::UnknownType),
    };
    Ok((kind, &text[1..]))
}

fn read_attachments(
    kind: Kind,
    text: &str,
    max: usize,
) -> Result<(Kind, usize, &str), PacketError> {
    let plain = match kind {
        Kind::BinaryEvent => Kind::Event,
        Kind::BinaryAck => Kind::Ack,
        _ => return Ok((kind, 0, text)),
    };
    let (digits, rest) = split_digits(text);
    let rest = rest.strip_prefix('-').filter(|_| !digits.is_empty());
    let rest = rest.ok_or(PacketError::Attachments)?;
    // Too many digits for a number are too many attachments.
    let count = digits.parse().ok().filter(|count| *count <= max);
    let count = count.ok_or(PacketError::TooManyAttachments)?;
    Ok((if count == 0 { plain } else { kind }, count, rest))
}

/// The namespace, its query, and what follows them.
fn read_namespace(text: &str) -> Result<(&str, Option<&str>, &str), PacketError> {
    const LONGEST: usize = NAMESPACE_BYTES_MAX + 1 + QUERY_BYTES_MAX;
    if !text.starts_with('/') {
        return Ok((ROOT, None, text));
    }
    // No more is searched than may be found.
    let searched = &text.as_bytes()[..text.len().min(LONGEST + 1)];
    let end = searched.iter().position(|byte| *byte == b',');
    let (whole, rest) = match end {
        Some(end) => (&text[..end], &text[end + 1..]),
        None if text.len() <= LONGEST => (text, ""),
        None => return Err(PacketError::NamespaceTooLong),
    };
    let (namespace, query) = match whole.split_once('?') {
        Some((namespace, query)) => (namespace, Some(query)),
        None => (whole, None),
    };
    if namespace.len() > NAMESPACE_BYTES_MAX || query.unwrap_or_default().len() > QUERY_BYTES_MAX {
        return Err(PacketError::NamespaceTooLong);
    }
    Ok((namespace, query, rest))
}

fn read_ack(text: &str) -> Result<(Option<u64>, &str), PacketError> {
    let (digits, rest) = split_digits(text);
    if digits.is_empty() {
        return Ok((None, rest));
    }
    let id = digits.parse().ok().filter(|id| *id <= ACK_ID_MAX).ok_or(PacketError::AckId)?;
    Ok((Some(id), rest))
}

/// The data that the type of the packet allows, by its first byte.
fn check_data(kind: Kind, data: &str) -> Result<&str, PacketError> {
    let fits = match kind {
        Kind::Connect => data.is_empty() || data.starts_with('{'),
        Kind::Disconnect => data.is_empty(),
        Kind::Event | Kind::BinaryEvent => data.starts_with('['),
        // Node calls back without arguments.
        Kind::Ack | Kind::BinaryAck if data.is_empty() => return Ok("[]"),
        Kind::Ack | Kind::BinaryAck => data.starts_with('['),
        Kind::ConnectError => true,
    };
    fits.then_some(data).ok_or(PacketError::Data)
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit());
    text.split_at(end.unwrap_or(text.len()))
}

/// Whether a binary message that no packet has announced is a packet of socket.io-msgpack-parser.
///
/// Clients with that parser send MessagePack in place of text: a map that begins with `type`.
pub(crate) fn is_msgpack(message: &[u8]) -> bool {
    const KEYS: [&[u8]; 4] = [b"\xa4type", b"\xa3nsp", b"\xa4data", b"\xa2id"];
    match message {
        [0x82..=0x8f, first_key @ ..] => KEYS.iter().any(|key| first_key.starts_with(key)),
        _ => false,
    }
}

/// CONNECT: the client is in the namespace, under this socket id.
pub(crate) fn write_connect(namespace: &str, socket_id: &str, revision: Protocol) -> String {
    match revision {
        Protocol::Eio3 => write('0', 0, namespace, None, ""),
        Protocol::Eio4 => write('0', 0, namespace, None, &format!("{{\"sid\":\"{socket_id}\"}}")),
    }
}

/// CONNECT_ERROR: the client is not let into the namespace.
///
/// `error` is a JSON object as Node sends it: a `message`, and maybe `data`. Socket.IO 2 clients
/// get only the data, or else only the message.
pub(crate) fn write_connect_error(namespace: &str, error: &str, revision: Protocol) -> String {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
        data: Option<&'a RawValue>,
    }
    let error = match revision {
        Protocol::Eio4 => error,
        Protocol::Eio3 => serde_json::from_str::<Parts<'_>>(error)
            .map_or(error, |parts| parts.data.unwrap_or(parts.message).get()),
    };
    write('4', 0, namespace, None, error)
}

/// DISCONNECT: the client is out of the namespace. JavaScript clients then do not reconnect.
pub(crate) fn write_disconnect(namespace: &str) -> String {
    write('1', 0, namespace, None, "")
}

/// EVENT, or BINARY_EVENT with attachments. `data` is the JSON array of its name and arguments.
pub(crate) fn write_event(
    namespace: &str,
    ack: Option<u64>,
    data: &str,
    attachments: usize,
) -> String {
    write(if attachments == 0 { '2' } else { '5' }, attachments, namespace, ack, data)
}

/// ACK, or BINARY_ACK with attachments. `data` is the JSON array of its arguments.
pub(crate) fn write_ack(namespace: &str, id: u64, data: &str, attachments: usize) -> String {
    write(if attachments == 0 { '3' } else { '6' }, attachments, namespace, Some(id), data)
}

fn write(kind: char, attachments: usize, namespace: &str, ack: Option<u64>, data: &str) -> String {
    // Type, count, commas and ack id.
    const AROUND: usize = 48;
    let mut packet = String::with_capacity(AROUND + namespace.len() + data.len());
    packet.push(kind);
    if attachments > 0 {
        packet.push_str(&attachments.to_string());
        packet.push('-');
    }
    if namespace != ROOT {
        packet.push_str(namespace);
        packet.push(',');
    }
    if let Some(id) = ack {
        packet.push_str(&id.to_string());
    }
    packet.push_str(data);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ATTACHMENTS_MAX: usize = 10;

    fn read(text: &str) -> Result<Packet<'_>, PacketError> {
        parse(text, ATTACHMENTS_MAX)
    }

    fn plain(kind: Kind, namespace: &'static str, data: &'static str) -> Packet<'static> {
        Packet { kind, attachments: 0, namespace, query: None, ack: None, data }
    }

    #[test]
    fn packets_are_read() {
        let check = |text, packet| assert_eq!(read(text), Ok(packet), "{text}");
        check("0", plain(Kind::Connect, "/", ""));
        check("0/", plain(Kind::Connect, "/", ""));
        check("0/,", plain(Kind::Connect, "/", ""));
        check("0{\"token\":\"123\"}", plain(Kind::Connect, "/", "{\"token\":\"123\"}"));
        check("0/chat", plain(Kind::Connect, "/chat", ""));
        check("0/chat,", plain(Kind::Connect, "/chat", ""));
        check("0/chat, {}\n", plain(Kind::Connect, "/chat", "{}"));
        check("1", plain(Kind::Disconnect, "/", ""));
        check("1/chat,", plain(Kind::Disconnect, "/chat", ""));
        check("2[\"a,b/?-1\"]", plain(Kind::Event, "/", "[\"a,b/?-1\"]"));
        check("2/é,[]", plain(Kind::Event, "/é", "[]"));
        check("4\"no\"", plain(Kind::ConnectError, "/", "\"no\""));
        let ack = |ack, packet| Packet { ack: Some(ack), ..packet };
        check("2456[\"a\"]", ack(456, plain(Kind::Event, "/", "[\"a\"]")));
        check(
            "2/chat,000123456789012[1]",
            ack(123_456_789_012, plain(Kind::Event, "/chat", "[1]")),
        );
        check("3/chat,5[]", ack(5, plain(Kind::Ack, "/chat", "[]")));
        check("35", ack(5, plain(Kind::Ack, "/", "[]")));
        check("3[]", plain(Kind::Ack, "/", "[]"));
        let binary = |attachments, packet| Packet { attachments, ..packet };
        check("52-/chat,7[{}]", ack(7, binary(2, plain(Kind::BinaryEvent, "/chat", "[{}]"))));
        check("61-7[{}]", ack(7, binary(1, plain(Kind::BinaryAck, "/", "[{}]"))));
        check("50-[\"a\"]", plain(Kind::Event, "/", "[\"a\"]"));
        check("60-1", ack(1, plain(Kind::Ack, "/", "[]")));
    }

    #[test]
    fn a_query_is_not_part_of_the_namespace() {
        let check = |text, namespace, query| {
            let packet = read(text).expect("well-formed");
            assert_eq!((packet.namespace, packet.query), (namespace, query), "{text}");
        };
        check("0/chat?token=1,", "/chat", Some("token=1"));
        check("0/chat?token=1", "/chat", Some("token=1"));
        check("0/chat?a=%2C&b=?,", "/chat", Some("a=%2C&b=?"));
        check("0/?token=1,", "/", Some("token=1"));
        check("0/chat?,", "/chat", Some(""));
    }

    /// socket.io-parser takes the white space for the ack id 0.
    #[test]
    fn white_space_around_the_data_is_dropped() {
        for text in ["2 [\"a\", 1]", "2\t\r\n[\"a\", 1] ", "2\n [\"a\", 1]\n"] {
            assert_eq!(read(text), Ok(plain(Kind::Event, "/", "[\"a\", 1]")), "{text:?}");
        }
        assert_eq!(read("212 [1]").map(|packet| (packet.ack, packet.data)), Ok((Some(12), "[1]")));
        assert_eq!(read("2 12[1]"), Err(PacketError::Data));
        assert_eq!(read("21 2[1]"), Err(PacketError::Data));
    }

    #[test]
    fn what_node_calls_a_parse_error_is_refused() {
        let check = |text, error| assert_eq!(read(text), Err(error), "{text}");
        for text in ["", "7", "999", "abc", " 2[]", "é", "-1"] {
            check(text, PacketError::UnknownType);
        }
        for text in ["5", "51", "5a-", "51.23-", "5-[]", "5+1-[]", "5 1-[]", "6[\"a-b\"]"] {
            check(text, PacketError::Attachments);
        }
        for text in ["511-[]", "599999999999999999999999-[]"] {
            check(text, PacketError::TooManyAttachments);
        }
        for text in
            ["2{}", "2abc[\"a\"]", "2", "2/chat", "2/chat[\"a\"]", "2/chat,", "2\"a\"", "51-"]
        {
            check(text, PacketError::Data);
        }
        for text in ["0[]", "0null", "0/admin,\"invalid\"", "1{}", "1/admin,{}", "3{}", "31null"] {
            check(text, PacketError::Data);
        }
        check("29223372036854775808[]", PacketError::AckId);
        check(&format!("2{}[]", "9".repeat(100_000)), PacketError::AckId);
        assert_eq!(read("29223372036854775807[]").map(|packet| packet.ack), Ok(Some(ACK_ID_MAX)));
    }

    #[test]
    fn long_namespaces_are_refused() {
        let check = |name: usize, query: usize, fits| {
            let (name, query) = ("n".repeat(name - 1), "q".repeat(query));
            for after in ["", ",", ",{}"] {
                let read = read(&format!("0/{name}?{query}{after}")).map(|packet| packet.kind);
                let expected =
                    if fits { Ok(Kind::Connect) } else { Err(PacketError::NamespaceTooLong) };
                assert_eq!(read, expected);
            }
        };
        check(NAMESPACE_BYTES_MAX, QUERY_BYTES_MAX, true);
        check(NAMESPACE_BYTES_MAX + 1, 0, false);
        check(2, QUERY_BYTES_MAX + 1, false);
        check(1_000_000, 0, false);
        // The end of what is searched may be within a character.
        for padding in 0..4 {
            let name = format!("0/{}{}", "x".repeat(padding), "🦀".repeat(10_000));
            assert_eq!(read(&name), Err(PacketError::NamespaceTooLong));
        }
    }

    #[test]
    fn packets_of_another_parser_are_recognised() {
        // What socket.io-msgpack-parser 3.0.2 makes of CONNECT and of an event.
        assert!(is_msgpack(b"\x83\xa4type\x00\xa4data\x80\xa3nsp\xa1/"));
        assert!(is_msgpack(b"\x84\xa4type\x02\xa4data\x91\xa1a\xa7options\x80\xa3nsp\xa1/"));
        for other in [&b""[..], b"\x83", b"\x83\xa4typ", b"\x80\xa4type", b"\x93\xa4type", b"2[]"] {
            assert!(!is_msgpack(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn packets_are_written_as_node_writes_them() {
        use Protocol::{Eio3 as V3, Eio4 as V4};
        let check = |packet: String, text| assert_eq!(packet, text);
        check(write_connect("/", "id", V4), "0{\"sid\":\"id\"}");
        check(write_connect("/chat", "id", V4), "0/chat,{\"sid\":\"id\"}");
        check(write_connect("/", "id", V3), "0");
        check(write_connect("/chat", "id", V3), "0/chat,");
        let error = r#"{"message":"Invalid \"namespace\""}"#;
        check(write_connect_error("/x", error, V4), r#"4/x,{"message":"Invalid \"namespace\""}"#);
        check(write_connect_error("/x", error, V3), r#"4/x,"Invalid \"namespace\"""#);
        let error = r#"{"message":"no","data":{"code":1}}"#;
        check(write_connect_error("/", error, V4), r#"4{"message":"no","data":{"code":1}}"#);
        check(write_connect_error("/", error, V3), r#"4{"code":1}"#);
        check(write_connect_error("/", r#"{"message":"no","data":null}"#, V3), r#"4"no""#);
        check(write_connect_error("/", "\"no\"", V3), "4\"no\"");
        check(write_disconnect("/"), "1");
        check(write_disconnect("/chat"), "1/chat,");
        check(write_event("/", None, "[\"a\"]", 0), "2[\"a\"]");
        check(write_event("/chat", Some(0), "[\"a\"]", 0), "2/chat,0[\"a\"]");
        check(write_event("/chat", Some(12), "[{}]", 3), "53-/chat,12[{}]");
        check(write_ack("/", 7, "[]", 0), "37[]");
        check(write_ack("/chat", 7, "[{}]", 1), "61-/chat,7[{}]");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            namespace in prop::sample::select(vec!["/", "/chat", "/é?", "/a-b/c"]),
            id in prop::option::of(0..=ACK_ID_MAX),
            attachments in 0..=ATTACHMENTS_MAX,
        ) {
            let (namespace, query) = match namespace.strip_suffix('?') {
                Some(namespace) => (namespace, Some("a=1")),
                None => (namespace, None),
            };
            let query_text = query.map(|query| format!("?{query}")).unwrap_or_default();
            let named = format!("{namespace}{query_text}");
            let data = "[\"a\",{\"b\":[1,\"2,/-\"]}]";
            let of = |plain, binary| Packet {
                kind: if attachments == 0 { plain } else { binary },
                attachments, namespace, query, ack: id, data,
            };
            let event = write_event(&named, id, data, attachments);
            prop_assert_eq!(read(&event), Ok(of(Kind::Event, Kind::BinaryEvent)));
            if let Some(id) = id {
                let ack = write_ack(&named, id, data, attachments);
                prop_assert_eq!(read(&ack), Ok(of(Kind::Ack, Kind::BinaryAck)));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*", likely in "[0-6][0-9é,/?{\\[\\- ]{0,12}") {
            let _ = read(&text);
            if let Ok(packet) = read(&likely) {
                prop_assert!(packet.namespace.starts_with('/'));
                prop_assert_eq!(packet.data.trim_ascii(), packet.data);
                let binary = matches!(packet.kind, Kind::BinaryEvent | Kind::BinaryAck);
                prop_assert_eq!(binary, packet.attachments > 0);
            }
        }

        #[test]
        fn no_message_makes_it_panic(message in prop::collection::vec(any::<u8>(), 0..12)) {
            is_msgpack(&message);
        }
    }
}
