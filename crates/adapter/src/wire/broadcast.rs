//! Events for many: `[uid, {type, data, nsp}, {rooms, except, flags}]` in MessagePack.

use std::collections::VecDeque;

use bytes::Bytes;
use socketioxide_core::{
    Value,
    adapter::Room,
    packet::{Packet, PacketData},
};

use super::{
    Limits, WireError, from_json,
    msgpack::{self, Reader, Token},
    to_json,
};

/// The type of an event. Binary ones have it too: with 5 on the bus, Node disconnects clients.
const EVENT: i64 = 2;

/// An event from a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Broadcast {
    /// Who sent it, if it says so.
    pub uid: Option<String>,
    /// The event, in its namespace.
    pub packet: Packet,
    /// Who gets it.
    pub opts: Opts,
}

/// Who gets a broadcast, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opts {
    /// The members of these rooms; of none: everyone.
    pub rooms: Vec<Room>,
    /// But not the members of these.
    pub except: Vec<Room>,
    /// What else the sender said.
    pub flags: Flags,
}

/// The flags that this server knows. All others are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// Who is behind may go without.
    pub volatile: bool,
    /// How long acknowledgements are waited for.
    pub timeout_ms: Option<u64>,
    /// The trace that this is part of. Ours alone: Node passes over it.
    pub traceparent: Option<String>,
}

/// Writes an event as the node that signs with `uid`.
pub fn encode_broadcast(
    uid: &str,
    packet: &Packet,
    opts: &Opts,
    limits: &Limits,
) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(capacity(packet, opts));
    msgpack::write_array(&mut out, 3);
    msgpack::write_str(&mut out, uid);
    write_packet(&mut out, packet, limits)?;
    write_opts(&mut out, opts, limits)?;
    within(limits, out)
}

/// Reads an event.
///
/// It is as tolerant as Node: `except`, `flags` and the namespace may be missing, the sender's id may be
/// anything, and what is not known is passed over. [`peek_uid`] and [`Channels::scope`](super::Channels::scope)
/// come first.
pub fn decode_broadcast(frame: &Bytes, limits: &Limits) -> Result<Broadcast, WireError> {
    let mut reader = Reader::new(checked_size(frame, limits)?);
    let size = reader.array()?;
    if size < 3 {
        return Err(WireError::Shape);
    }
    let uid = read_uid(&mut reader)?;
    let packet = read_packet(&mut reader, frame, limits)?;
    let opts = read_opts(&mut reader, limits)?;
    for _ in 3..size {
        reader.skip()?;
    }
    reader.end()?;
    Ok(Broadcast { uid, packet, opts })
}

/// Reads an event in the form of emitters from before 2021, `[packet, opts]`, which have no ids and publish on
/// the channel `socket.io#emitter`.
pub fn decode_legacy_broadcast(frame: &Bytes, limits: &Limits) -> Result<Broadcast, WireError> {
    let mut reader = Reader::new(checked_size(frame, limits)?);
    if reader.array()? != 2 {
        return Err(WireError::Shape);
    }
    let packet = read_packet(&mut reader, frame, limits)?;
    let opts = read_opts(&mut reader, limits)?;
    reader.end()?;
    Ok(Broadcast { uid: None, packet, opts })
}

/// Who signed this broadcast, at the cost of reading its first few bytes: a node drops its own.
pub fn peek_uid(frame: &[u8]) -> Option<&str> {
    let mut reader = Reader::new(frame);
    reader.array().ok()?;
    match reader.token().ok()? {
        Token::Str(uid) => std::str::from_utf8(uid).ok(),
        _ => None,
    }
}

/// Refuses frames that are too large, before they are looked at.
pub(super) fn checked_size<'a>(frame: &'a [u8], limits: &Limits) -> Result<&'a [u8], WireError> {
    if frame.len() > limits.frame_bytes_max { Err(WireError::TooLarge) } else { Ok(frame) }
}

/// Refuses to publish what peers with the same limits would refuse to read.
pub(super) fn within(limits: &Limits, frame: Vec<u8>) -> Result<Vec<u8>, WireError> {
    checked_size(&frame, limits)?;
    Ok(frame)
}

/// Refuses lists of rooms that peers would refuse.
pub(super) fn few<'a>(rooms: &'a [Room], limits: &Limits) -> Result<&'a [Room], WireError> {
    if rooms.len() > limits.rooms_max { Err(WireError::TooManyRooms) } else { Ok(rooms) }
}

pub(super) fn write_packet(
    out: &mut Vec<u8>,
    packet: &Packet,
    limits: &Limits,
) -> Result<(), WireError> {
    let (text, attachments) = event(packet)?;
    if !text.trim_ascii_start().starts_with('[') {
        return Err(WireError::Shape);
    }
    msgpack::write_map(out, 3);
    msgpack::write_str(out, "type");
    msgpack::write_integer(out, EVENT);
    msgpack::write_str(out, "data");
    from_json::write_json(out, text, attachments, limits)?;
    msgpack::write_str(out, "nsp");
    msgpack::write_str(out, &packet.ns);
    Ok(())
}

pub(super) fn write_opts(
    out: &mut Vec<u8>,
    Opts { rooms, except, flags }: &Opts,
    limits: &Limits,
) -> Result<(), WireError> {
    msgpack::write_map(out, 3);
    for (name, rooms) in [("rooms", rooms), ("except", except)] {
        msgpack::write_str(out, name);
        msgpack::write_array(out, few(rooms, limits)?.len());
        rooms.iter().for_each(|room| msgpack::write_str(out, room));
    }
    msgpack::write_str(out, "flags");
    let count = usize::from(flags.volatile)
        + usize::from(flags.timeout_ms.is_some())
        + usize::from(flags.traceparent.is_some());
    msgpack::write_map(out, count);
    if flags.volatile {
        msgpack::write_str(out, "volatile");
        msgpack::write_bool(out, true);
    }
    if let Some(ms) = flags.timeout_ms {
        msgpack::write_str(out, "timeout");
        msgpack::write_unsigned(out, ms);
    }
    if let Some(traceparent) = &flags.traceparent {
        msgpack::write_str(out, "traceparent");
        msgpack::write_str(out, traceparent);
    }
    Ok(())
}

fn event(packet: &Packet) -> Result<(&str, Option<&VecDeque<Bytes>>), WireError> {
    match &packet.inner {
        PacketData::Event(Value::Str(text, attachments), _)
        | PacketData::BinaryEvent(Value::Str(text, attachments), _) => {
            Ok((text, attachments.as_ref()))
        }
        _ => Err(WireError::PacketType),
    }
}

/// Enough in most cases: MessagePack is mostly shorter than the JSON.
pub(super) fn capacity(packet: &Packet, opts: &Opts) -> usize {
    const AROUND: usize = 128;
    let rooms = opts.rooms.iter().chain(&opts.except).map(|room| room.len() + 5).sum::<usize>();
    let (text, attachments) = event(packet).unwrap_or_default();
    let attached = attachments.into_iter().flatten().map(|bytes| bytes.len() + 5).sum::<usize>();
    AROUND + packet.ns.len() + text.len() + attached + rooms
}

fn read_uid(reader: &mut Reader<'_>) -> Result<Option<String>, WireError> {
    let token = reader.token()?;
    reader.skip_content(token)?;
    Ok(match token {
        Token::Str(uid) => Some(String::from_utf8_lossy(uid).into_owned()),
        _ => None,
    })
}

fn read_packet(
    reader: &mut Reader<'_>,
    frame: &Bytes,
    limits: &Limits,
) -> Result<Packet, WireError> {
    let Token::Map(size) = reader.token()? else { return Err(WireError::Shape) };
    let (mut kind, mut data, mut nsp) = (None, None, None);
    for _ in 0..size {
        match &*reader.key()? {
            "type" => {
                kind = Some(reader.token()?);
                kind.map_or(Ok(()), |kind| reader.skip_content(kind))?;
            }
            "data" if matches!(reader.clone().token()?, Token::Array(_)) => {
                data = Some(to_json::read_json(reader, frame, limits.containers_max(), limits)?);
            }
            "nsp" => nsp = read_nsp(reader)?,
            _ => reader.skip()?,
        }
    }
    // 5, a binary event, came from emitters before 2021.
    if !matches!(kind, Some(Token::Integer(EVENT | 5))) {
        return Err(WireError::PacketType);
    }
    let data = to_json::to_value(data.ok_or(WireError::Shape)?);
    Ok(Packet::event(nsp.unwrap_or_else(|| "/".to_owned()), data))
}

fn read_nsp(reader: &mut Reader<'_>) -> Result<Option<String>, WireError> {
    match reader.token()? {
        Token::Str(nsp) => Ok(Some(String::from_utf8_lossy(nsp).into_owned())),
        Token::Undefined => Ok(None),
        _ => Err(WireError::Shape),
    }
}

fn read_opts(reader: &mut Reader<'_>, limits: &Limits) -> Result<Opts, WireError> {
    let mut opts = Opts::default();
    let size = match reader.token()? {
        Token::Map(size) => size,
        Token::Array(0) => 0, // An empty array is what PHP makes of an empty map.
        _ => return Err(WireError::Shape),
    };
    for _ in 0..size {
        match &*reader.key()? {
            "rooms" => opts.rooms = read_rooms(reader, limits)?,
            "except" => opts.except = read_rooms(reader, limits)?,
            "flags" => opts.flags = read_flags(reader)?,
            _ => reader.skip()?,
        }
    }
    Ok(opts)
}

/// Rooms may be numbers in Node. What is no room at all must not vanish from the list: an empty one
/// means everyone.
fn read_rooms(reader: &mut Reader<'_>, limits: &Limits) -> Result<Vec<Room>, WireError> {
    let size = match reader.token()? {
        Token::Array(size) => size as usize,
        Token::Nil | Token::Undefined | Token::Str([]) => 0,
        _ => return Err(WireError::Shape),
    };
    if size > limits.rooms_max {
        return Err(WireError::TooManyRooms);
    }
    let mut rooms = Vec::new();
    for _ in 0..size {
        rooms.push(Room::Owned(reader.token()?.to_text()?.into_owned()));
    }
    Ok(rooms)
}

fn read_flags(reader: &mut Reader<'_>) -> Result<Flags, WireError> {
    let mut flags = Flags::default();
    let token = reader.token()?;
    let Token::Map(size) = token else {
        reader.skip_content(token)?;
        return Ok(flags);
    };
    for _ in 0..size {
        let key = reader.key()?;
        let token = reader.token()?;
        reader.skip_content(token)?;
        match (&*key, token) {
            ("volatile", token) => flags.volatile = token.is_truthy(),
            ("timeout", Token::Integer(ms)) => flags.timeout_ms = u64::try_from(ms).ok(),
            ("traceparent", Token::Str(text)) => {
                flags.traceparent = std::str::from_utf8(text).ok().map(str::to_owned);
            }
            _ => {}
        }
    }
    Ok(flags)
}
