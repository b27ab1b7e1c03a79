//! What nodes answer one another.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;
use socketioxide_core::{Value, adapter::Room};

use super::{
    Limits, WireError,
    broadcast::within,
    date,
    document::{self, Document},
    from_json, msgpack,
};

/// An answer to a [`Request`](super::Request).
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// What it answers.
    pub request_id: String,
    /// The answer.
    pub answer: Answer,
}

/// An answer. What it means depends on the question: an empty list of sockets is the same for all that ask for
/// sockets, and is read as [`Answer::Sockets`].
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Of type 2 to 4, for a single socket.
    Done,
    /// Of type 0.
    SocketIds(Vec<String>),
    /// Of type 1.
    Rooms(Vec<Room>),
    /// Of type 5.
    Sockets(Vec<RemoteSocket>),
    /// Of type 6: one value in JSON, or nothing.
    Emitted(Option<String>),
    /// To type 7, at once (in Node: type 8): how many clients are asked.
    ClientCount(u32),
    /// To type 7, for each client (in Node: type 9): its acknowledgement as socketioxide holds it, an array of
    /// arguments, of which only the first travels.
    Ack(Value),
}

/// A socket of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSocket {
    /// 20 characters, unless a Node server is told to make others.
    pub id: String,
    /// JSON; [`encode_handshake`] writes it.
    pub handshake: String,
    /// The rooms that it is in.
    pub rooms: Vec<Room>,
    /// What the application attached to it, in JSON.
    pub data: String,
}

/// How a client introduced itself, as Node tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// Names in lower case. They may hold cookies and tokens, which every node gets to see.
    pub headers: Vec<(String, String)>,
    /// When, in milliseconds since 1970.
    pub issued_ms: i64,
    /// The client's address.
    pub address: String,
    /// Whether it came from another origin.
    pub xdomain: bool,
    /// Whether it came over TLS.
    pub secure: bool,
    /// Path and query of the request.
    pub url: String,
    /// The query's parameters.
    pub query: Vec<(String, String)>,
    /// What came with the CONNECT packet, in JSON.
    pub auth: String,
}

impl Handshake {
    /// Without what the client chooses.
    pub fn bare(self) -> Self {
        let auth = "{}".to_owned();
        let url = self.url.split('?').next().unwrap_or_default().to_owned();
        let url = if url.len() > 256 { String::new() } else { url };
        Self { headers: Vec::new(), query: Vec::new(), url, auth, ..self }
    }
}

/// Writes a response.
pub fn encode_response(response: &Response, limits: &Limits) -> Result<Vec<u8>, WireError> {
    let mut fields = Written { request_id: &response.request_id, kind: None, ..Written::default() };
    match &response.answer {
        Answer::Done => {}
        Answer::SocketIds(ids) => fields.sockets = Some(WrittenSockets::Ids(ids)),
        Answer::Rooms(rooms) => fields.rooms = Some(rooms),
        Answer::Sockets(sockets) => {
            let sockets = sockets.iter().map(WrittenSocket::new).collect::<Result<_, _>>()?;
            fields.sockets = Some(WrittenSockets::Full(sockets));
        }
        Answer::Emitted(data) => {
            fields.kind = Some(6);
            fields.data = data.as_deref().map(document::raw).transpose()?;
        }
        Answer::ClientCount(count) => {
            (fields.kind, fields.client_count) = (Some(8), Some(*count));
        }
        Answer::Ack(value) => return encode_ack(&response.request_id, value, limits),
    }
    within(limits, document::print(&fields)?)
}

/// Reads a response, which may be JSON or MessagePack. How much it lists is bounded by its size alone.
pub fn decode_response(frame: &Bytes, limits: &Limits) -> Result<Response, WireError> {
    let document = Document::read(frame, limits)?;
    let fields: Read<'_> = document.fields()?;
    let request_id = document::simple_text(fields.request_id.ok_or(WireError::Shape)?)?;
    let answer = match (fields.kind.map(RawValue::get), fields.sockets, fields.rooms) {
        (Some("6"), ..) => Answer::Emitted(fields.data.map(|data| data.get().to_owned())),
        (Some("8"), ..) => {
            let count = fields.client_count.and_then(|count| count.get().parse().ok());
            Answer::ClientCount(count.ok_or(WireError::Shape)?)
        }
        (Some("9"), ..) => {
            let argument = fields.packet.map_or("", RawValue::get);
            Answer::Ack(document.value(format!("[{argument}]"), limits)?)
        }
        (_, Some(sockets), _) => read_sockets(sockets)?,
        (_, None, Some(rooms)) => Answer::Rooms(document::rooms(Some(rooms), usize::MAX)?),
        (_, None, None) => Answer::Done,
    };
    Ok(Response { request_id, answer })
}

/// What a response in JSON answers, without reading the rest; nothing if it is in MessagePack or no response.
pub fn peek_request_id(frame: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Peek<'a> {
        #[serde(borrow)]
        request_id: Cow<'a, str>,
    }
    let frame = frame.starts_with(b"{").then_some(frame)?;
    serde_json::from_slice::<Peek<'_>>(frame).ok().map(|peek| peek.request_id)
}

/// Writes a handshake with the keys, in the order, and in the types that Node gives them.
pub fn encode_handshake(handshake: &Handshake) -> Result<String, WireError> {
    #[derive(Serialize)]
    struct Written<'a> {
        headers: Pairs<'a>,
        time: String,
        address: &'a str,
        xdomain: bool,
        secure: bool,
        issued: i64,
        url: &'a str,
        query: Pairs<'a>,
        auth: &'a RawValue,
    }
    let written = Written {
        headers: Pairs(&handshake.headers),
        time: date::long(handshake.issued_ms).ok_or(WireError::Shape)?,
        address: &handshake.address,
        xdomain: handshake.xdomain,
        secure: handshake.secure,
        issued: handshake.issued_ms,
        url: &handshake.url,
        query: Pairs(&handshake.query),
        auth: document::raw(&handshake.auth)?,
    };
    serde_json::to_string(&written).map_err(|_| WireError::Shape)
}

struct Pairs<'a>(&'a [(String, String)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// An acknowledgement may have attachments, so it travels in MessagePack.
fn encode_ack(request_id: &str, value: &Value, limits: &Limits) -> Result<Vec<u8>, WireError> {
    let Value::Str(text, attachments) = value else { return Err(WireError::PacketType) };
    let arguments: Vec<&RawValue> = document::parse(text)?;
    let first = arguments.first();
    let mut out = Vec::with_capacity(text.len() + 64);
    msgpack::write_map(&mut out, 2 + usize::from(first.is_some()));
    msgpack::write_str(&mut out, "type");
    msgpack::write_integer(&mut out, 9);
    msgpack::write_str(&mut out, "requestId");
    msgpack::write_str(&mut out, request_id);
    if let Some(first) = first {
        msgpack::write_str(&mut out, "packet");
        from_json::write_json(&mut out, first.get(), attachments.as_ref(), limits)?;
    }
    within(limits, out)
}

/// The fields of a response, in Node's order.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<u8>,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sockets: Option<WrittenSockets<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<&'a [Room]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_count: Option<u32>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WrittenSockets<'a> {
    Ids(&'a [String]),
    Full(Vec<WrittenSocket<'a>>),
}

#[derive(Serialize)]
struct WrittenSocket<'a> {
    id: &'a str,
    handshake: &'a RawValue,
    rooms: &'a [Room],
    data: &'a RawValue,
}

impl<'a> WrittenSocket<'a> {
    fn new(socket: &'a RemoteSocket) -> Result<Self, WireError> {
        let RemoteSocket { id, handshake, rooms, data } = socket;
        Ok(Self { id, handshake: document::raw(handshake)?, rooms, data: document::raw(data)? })
    }
}

/// The fields of a response, as far as there are any.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read<'a> {
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
    #[serde(rename = "type")]
    kind: Option<&'a RawValue>,
    sockets: Option<&'a RawValue>,
    rooms: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "document::present")]
    data: Option<&'a RawValue>,
    client_count: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "document::present")]
    packet: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ReadSocket<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    handshake: Option<&'a RawValue>,
    rooms: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
}

fn read_sockets(sockets: &RawValue) -> Result<Answer, WireError> {
    let sockets: Vec<&RawValue> = document::parse(sockets.get())?;
    if sockets.first().is_some_and(|first| !first.get().starts_with('{')) {
        let ids = sockets.into_iter().map(document::simple_text);
        return Ok(Answer::SocketIds(ids.collect::<Result<_, _>>()?));
    }
    let sockets = sockets.into_iter().map(|socket| {
        let socket: ReadSocket<'_> = document::parse(socket.get())?;
        let json = |field: Option<&RawValue>| field.map_or("null", RawValue::get).to_owned();
        Ok(RemoteSocket {
            id: document::simple_text(socket.id)?,
            handshake: json(socket.handshake),
            rooms: document::rooms(socket.rooms, usize::MAX)?,
            data: json(socket.data),
        })
    });
    sockets.collect::<Result<_, _>>().map(Answer::Sockets)
}
