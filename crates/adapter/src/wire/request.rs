//! What nodes ask of one another.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use socketioxide_core::{adapter::Room, packet::Packet};

use super::{
    Limits, WireError,
    broadcast::{self, Flags, Opts, few, within},
    document::{self, Document},
    msgpack,
};

/// A question or an order to all nodes of a namespace.
///
/// A node passes over its own, which it tells by `request_id`, and [`Command::ServerSideEmit`] by `uid`. It
/// does not pass over its own [`Command::Join`], [`Command::Leave`] and [`Command::Disconnect`]: a Node
/// server obeys these only when they come back from Redis.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Who asks. Emitters do not always say.
    pub uid: Option<String>,
    /// What the answers refer to. Where it is missing, none is expected.
    pub request_id: Option<String>,
    /// What is asked.
    pub command: Command,
}

/// What is asked. The comments name Node's types, and the answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// 0, from adapters before version 8: which sockets are in these rooms? [`Answer::SocketIds`].
    ///
    /// [`Answer::SocketIds`]: super::Answer::SocketIds
    Sockets {
        /// Of none: in all.
        rooms: Vec<Room>,
    },
    /// 1: which rooms are there? [`Answer::Rooms`](super::Answer::Rooms).
    AllRooms,
    /// 2: into the rooms. No answer; for a single socket [`Answer::Done`](super::Answer::Done).
    Join {
        /// Which sockets.
        whom: Whom,
        /// Into which rooms.
        rooms: Vec<Room>,
    },
    /// 3: out of the rooms. Answered as 2 is.
    Leave {
        /// Which sockets.
        whom: Whom,
        /// Out of which rooms.
        rooms: Vec<Room>,
    },
    /// 4: disconnect. Answered as 2 is.
    Disconnect {
        /// Which sockets.
        whom: Whom,
        /// The connection too, not only the namespace.
        close: bool,
    },
    /// 5: which sockets are there, with all about them? [`Answer::Sockets`](super::Answer::Sockets).
    Fetch {
        /// Which sockets.
        targets: Targets,
    },
    /// 6: an event for the nodes themselves. Answered with [`Answer::Emitted`](super::Answer::Emitted)
    /// only if there is a `request_id`.
    ServerSideEmit {
        /// The event and its arguments, a JSON array.
        data: String,
    },
    /// 7: an event for clients that acknowledge it. [`Answer::ClientCount`](super::Answer::ClientCount) from
    /// each node, even if it is 0, then an [`Answer::Ack`](super::Answer::Ack) for each client.
    Broadcast {
        /// The event.
        packet: Packet,
        /// Who gets it.
        opts: Opts,
    },
}

/// Sockets, by the rooms that they are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// The members of these rooms; of none: all.
    pub rooms: Vec<Room>,
    /// But not the members of these.
    pub except: Vec<Room>,
}

/// The sockets that an order is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// Those in rooms.
    Targets(Targets),
    /// This one: the form of adapters before version 7. Who has it answers.
    Socket(String),
}

/// Writes a request.
pub fn encode_request(request: &Request, limits: &Limits) -> Result<Vec<u8>, WireError> {
    let Request { uid, request_id, command } = request;
    let mut fields =
        Written { uid: uid.as_deref(), request_id: request_id.as_deref(), ..Written::default() };
    match command {
        Command::Broadcast { packet, opts } => {
            return encode_acknowledged(&fields, packet, opts, limits);
        }
        Command::Sockets { rooms } => fields.rooms = Some(few(rooms, limits)?),
        Command::AllRooms => fields.kind = 1,
        Command::Join { whom, rooms } => {
            fields = fields.order(2, whom, limits)?.about(whom, rooms, limits)?
        }
        Command::Leave { whom, rooms } => {
            fields = fields.order(3, whom, limits)?.about(whom, rooms, limits)?
        }
        Command::Disconnect { whom, close } => {
            fields = fields.order(4, whom, limits)?;
            fields.close = Some(*close);
        }
        Command::Fetch { targets } => {
            (fields.kind, fields.opts) = (5, Some(WrittenTargets::new(targets, limits)?));
        }
        Command::ServerSideEmit { data } => {
            (fields.kind, fields.data) = (6, Some(document::raw(data)?));
        }
    }
    within(limits, document::print(&fields)?)
}

/// Reads a request, which may be JSON or MessagePack.
pub fn decode_request(frame: &Bytes, limits: &Limits) -> Result<Request, WireError> {
    let document = Document::read(frame, limits)?;
    let fields: Read<'_> = document.fields()?;
    let kind = fields.kind.ok_or(WireError::Shape)?.get();
    let command = match kind {
        "0" => Command::Sockets { rooms: document::rooms(fields.rooms, limits.rooms_max)? },
        "1" => Command::AllRooms,
        "2" => Command::Join { whom: fields.whom(limits)?, rooms: fields.rooms(limits)? },
        "3" => Command::Leave { whom: fields.whom(limits)?, rooms: fields.rooms(limits)? },
        "4" => Command::Disconnect { whom: fields.whom(limits)?, close: fields.close() },
        "5" => Command::Fetch { targets: fields.targets(limits)?.unwrap_or_default() },
        "6" => Command::ServerSideEmit { data: array(fields.data)? },
        "7" => {
            let packet = read_packet(fields.packet, &document, limits)?;
            Command::Broadcast { packet, opts: fields.opts(limits)? }
        }
        _ => return Err(WireError::UnknownRequest),
    };
    let uid = fields.uid.and_then(|uid| document::simple_text(uid).ok());
    let request_id = fields.request_id.map(document::simple_text).transpose()?;
    Ok(Request { uid, request_id, command })
}

/// The only request in MessagePack: its event may have attachments.
fn encode_acknowledged(
    fields: &Written<'_>,
    packet: &Packet,
    opts: &Opts,
    limits: &Limits,
) -> Result<Vec<u8>, WireError> {
    let ids = [("uid", fields.uid), ("requestId", fields.request_id)];
    let ids = ids.into_iter().filter_map(|(name, id)| Some((name, id?)));
    let mut out = Vec::with_capacity(broadcast::capacity(packet, opts));
    msgpack::write_map(&mut out, 3 + ids.clone().count());
    for (name, id) in ids {
        msgpack::write_str(&mut out, name);
        msgpack::write_str(&mut out, id);
    }
    msgpack::write_str(&mut out, "type");
    msgpack::write_integer(&mut out, 7);
    msgpack::write_str(&mut out, "packet");
    broadcast::write_packet(&mut out, packet, limits)?;
    msgpack::write_str(&mut out, "opts");
    broadcast::write_opts(&mut out, opts, limits)?;
    within(limits, out)
}

/// The fields of a request, in Node's order.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    opts: Option<WrittenTargets<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<&'a [Room]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<bool>,
}

#[derive(Serialize)]
struct WrittenTargets<'a> {
    rooms: &'a [Room],
    except: &'a [Room],
}

impl<'a> WrittenTargets<'a> {
    fn new(Targets { rooms, except }: &'a Targets, limits: &Limits) -> Result<Self, WireError> {
        Ok(Self { rooms: few(rooms, limits)?, except: few(except, limits)? })
    }
}

impl<'a> Written<'a> {
    fn order(mut self, kind: u8, whom: &'a Whom, limits: &Limits) -> Result<Self, WireError> {
        self.kind = kind;
        match whom {
            Whom::Targets(targets) => self.opts = Some(WrittenTargets::new(targets, limits)?),
            Whom::Socket(sid) => self.sid = Some(sid),
        }
        Ok(self)
    }

    /// The rooms of an order; the form for a single socket has room for one.
    fn about(mut self, whom: &Whom, rooms: &'a [Room], limits: &Limits) -> Result<Self, WireError> {
        match (whom, rooms) {
            (Whom::Targets(_), rooms) => self.rooms = Some(few(rooms, limits)?),
            (Whom::Socket(_), [room]) => self.room = Some(room),
            (Whom::Socket(_), _) => return Err(WireError::Shape),
        }
        Ok(self)
    }
}

/// The fields of a request, as far as there are any.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read<'a> {
    #[serde(borrow)]
    uid: Option<&'a RawValue>,
    request_id: Option<&'a RawValue>,
    #[serde(rename = "type")]
    kind: Option<&'a RawValue>,
    opts: Option<&'a RawValue>,
    sid: Option<&'a RawValue>,
    room: Option<&'a RawValue>,
    rooms: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    close: Option<&'a RawValue>,
    packet: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ReadOpts<'a> {
    #[serde(borrow)]
    rooms: Option<&'a RawValue>,
    except: Option<&'a RawValue>,
    flags: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ReadFlags<'a> {
    #[serde(borrow)]
    volatile: Option<&'a RawValue>,
    timeout: Option<&'a RawValue>,
    traceparent: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ReadPacket<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    nsp: Option<&'a RawValue>,
}

impl Read<'_> {
    fn targets(&self, limits: &Limits) -> Result<Option<Targets>, WireError> {
        let Some(opts) = self.opts else { return Ok(None) };
        let opts: ReadOpts<'_> = document::parse(opts.get())?;
        let rooms = document::rooms(opts.rooms, limits.rooms_max)?;
        Ok(Some(Targets { rooms, except: document::rooms(opts.except, limits.rooms_max)? }))
    }

    fn whom(&self, limits: &Limits) -> Result<Whom, WireError> {
        match (self.targets(limits)?, self.sid) {
            (Some(targets), _) => Ok(Whom::Targets(targets)),
            (None, Some(sid)) => Ok(Whom::Socket(document::simple_text(sid)?)),
            (None, None) => Err(WireError::Shape),
        }
    }

    /// Those of an order: `rooms`, or `room` in the form for a single socket.
    fn rooms(&self, limits: &Limits) -> Result<Vec<Room>, WireError> {
        match (self.rooms, self.room) {
            (None, Some(room)) => Ok(vec![Room::Owned(document::simple_text(room)?)]),
            (rooms, _) => document::rooms(rooms, limits.rooms_max),
        }
    }

    fn close(&self) -> bool {
        self.close.is_some_and(is_true)
    }

    fn opts(&self, limits: &Limits) -> Result<Opts, WireError> {
        let Targets { rooms, except } = self.targets(limits)?.unwrap_or_default();
        let opts = self.opts.map(|opts| document::parse::<ReadOpts<'_>>(opts.get())).transpose()?;
        let flags = opts.and_then(|opts| opts.flags).filter(|flags| flags.get().starts_with('{'));
        let Some(flags) = flags else { return Ok(Opts { rooms, except, ..Opts::default() }) };
        let flags: ReadFlags<'_> = document::parse(flags.get())?;
        let flags = Flags {
            volatile: flags.volatile.is_some_and(is_true),
            timeout_ms: flags.timeout.and_then(milliseconds),
            traceparent: flags.traceparent.and_then(|text| document::simple_text(text).ok()),
        };
        Ok(Opts { rooms, except, flags })
    }
}

fn is_true(value: &RawValue) -> bool {
    value.get() == "true"
}

/// A duration, which authors without integers write as `1000.0`.
fn milliseconds(value: &RawValue) -> Option<u64> {
    document::simple_text(value).ok()?.parse().ok()
}

fn array(data: Option<&RawValue>) -> Result<String, WireError> {
    let data = data.filter(|data| data.get().starts_with('['));
    data.map(|data| data.get().to_owned()).ok_or(WireError::Shape)
}

fn read_packet(
    packet: Option<&RawValue>,
    document: &Document<'_>,
    limits: &Limits,
) -> Result<Packet, WireError> {
    let packet: ReadPacket<'_> = document::parse(packet.ok_or(WireError::Shape)?.get())?;
    let nsp = packet.nsp.map_or(Ok("/".to_owned()), document::simple_text)?;
    Ok(Packet::event(nsp, document.value(array(packet.data)?, limits)?))
}
