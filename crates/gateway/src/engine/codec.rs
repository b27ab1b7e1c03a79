//! What goes through the engine's HTTP bodies: Engine.IO 4 packets that carry Socket.IO packets.

use std::{borrow::Cow, str};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Response, StatusCode};
use http_body_util::BodyExt;

/// Separates packets in a body. JSON text never contains it, not even in strings.
const SEPARATOR: u8 = 0x1e;

/// No handler can get this packet, or the engine would take it for something else.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// A packet that the engine sends to a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Emitted<'a> {
    /// CONNECT: the handlers accept the client.
    Connected,
    /// CONNECT_ERROR, with its JSON text.
    Refused(&'a str),
    /// DISCONNECT: a handler disconnects the client.
    Disconnected,
    /// An event or an acknowledgement.
    Packet(&'a str, Vec<Bytes>),
    /// The engine closes the session.
    Closed,
}

/// The body of a GET response, read packet by packet.
pub(super) struct Payload {
    body: Bytes,
    /// Where the next packet starts; past the end after the last one.
    next: usize,
}

/// The body of the engine's response; `None` if the engine does not know the session any more.
pub(super) fn body<B>(response: Response<B>) -> Option<Bytes>
where
    B: BodyExt<Data = Bytes> + Unpin,
{
    if response.status() != StatusCode::OK {
        return None;
    }
    let mut body = response.into_body();
    // The engine's bodies are in memory, as one frame; an empty one has none.
    let frame = body.frame().now_or_never()?;
    Some(frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()).unwrap_or_default())
}

impl Payload {
    pub(super) fn new(body: Bytes) -> Self {
        Self { body, next: 0 }
    }

    /// Whether the next packet is CONNECT.
    pub(super) fn begins_with_connect(&self) -> bool {
        self.body.get(self.next..).is_some_and(|rest| rest.starts_with(b"40"))
    }

    /// The next packet, for a session in `namespace`.
    pub(super) fn next(&mut self, namespace: &str) -> Option<Emitted<'_>> {
        loop {
            let rest = self.body.get(self.next..).filter(|rest| !rest.is_empty())?;
            let kind = rest[0];
            let content = self.next + 1..self.next + length(rest);
            self.next = content.end + 1;
            match kind {
                b'4' => {
                    let attachments = self.attachments();
                    let text = str::from_utf8(self.body.get(content)?).ok()?;
                    return Some(emitted(text, attachments, namespace));
                }
                b'1' => return Some(Emitted::Closed),
                // A noop packet.
                _ => {}
            }
        }
    }

    /// The attachments of a packet follow it in the same body.
    fn attachments(&mut self) -> Vec<Bytes> {
        let mut attachments = Vec::new();
        while let Some(rest) = self.body.get(self.next..).filter(|rest| rest.starts_with(b"b")) {
            let end = length(rest);
            attachments.push(BASE64.decode(&rest[1..end]).unwrap_or_default().into());
            self.next += end + 1;
        }
        attachments
    }
}

/// The length of the first packet.
fn length(packets: &[u8]) -> usize {
    packets.iter().position(|&byte| byte == SEPARATOR).unwrap_or(packets.len())
}

fn emitted<'a>(text: &'a str, attachments: Vec<Bytes>, namespace: &str) -> Emitted<'a> {
    match text.as_bytes().first() {
        Some(b'0') => Emitted::Connected,
        Some(b'1') => Emitted::Disconnected,
        Some(b'4') => {
            let data = text[1..].strip_prefix(namespace);
            Emitted::Refused(data.and_then(|data| data.strip_prefix(',')).unwrap_or(&text[1..]))
        }
        _ => Emitted::Packet(text, attachments),
    }
}

/// The body for CONNECT.
pub(super) fn connect(namespace: &str, auth: Option<&str>) -> Result<Bytes, Unreadable> {
    let auth = auth.unwrap_or_default();
    let is_one_packet = |text: &str| !text.as_bytes().contains(&SEPARATOR);
    let readable = is_one_packet(namespace)
        && is_one_packet(auth)
        && namespace.starts_with('/')
        && !namespace.contains(',')
        // The engine could take anything but an object for the name of another namespace.
        && (auth.is_empty() || auth.starts_with('{'));
    readable.then(|| control("40", namespace, auth)).ok_or(Unreadable)
}

/// The body for DISCONNECT.
pub(super) fn disconnect(namespace: &str) -> Bytes {
    control("41", namespace, "")
}

/// The body that closes the session.
pub(super) fn close() -> Bytes {
    Bytes::from_static(b"1")
}

fn control(kind: &str, namespace: &str, data: &str) -> Bytes {
    match namespace {
        "/" => format!("{kind}{data}"),
        _ => format!("{kind}{namespace},{data}"),
    }
    .into()
}

/// The body for an event or an acknowledgement.
pub(super) fn packet(text: &str, attachments: &[Bytes]) -> Result<Bytes, Unreadable> {
    let text = readable(text, attachments.len())?;
    let encoded = |bytes: &Bytes| 2 + bytes.len().div_ceil(3) * 4;
    let length = 1 + text.len() + attachments.iter().map(encoded).sum::<usize>();
    let mut body = String::with_capacity(length);
    body.push('4');
    body.push_str(&text);
    for attachment in attachments {
        body.push(char::from(SEPARATOR));
        body.push('b');
        BASE64.encode_string(attachment, &mut body);
    }
    Ok(body.into())
}

/// The packet as the engine can read it. The engine closes the session for any other packet.
fn readable(text: &str, attachments: usize) -> Result<Cow<'_, str>, Unreadable> {
    if text.as_bytes().contains(&SEPARATOR) {
        return Err(Unreadable);
    }
    let (kind, mut rest) = text.split_at_checked(1).ok_or(Unreadable)?;
    let announced = match kind {
        "2" | "3" => 0,
        "5" | "6" => {
            let (count, behind) = rest.split_once('-').ok_or(Unreadable)?;
            rest = behind;
            count.parse().map_err(|_| Unreadable)?
        }
        _ => return Err(Unreadable),
    };
    if rest.starts_with('/') {
        rest = rest.split_once(',').ok_or(Unreadable)?.1;
    }
    let data = rest.trim_start_matches(|char: char| char.is_ascii_digit());
    let id = &rest[..rest.len() - data.len()];
    let arguments = data.strip_prefix('[').ok_or(Unreadable)?;
    if announced != attachments {
        return Err(Unreadable);
    }
    match kind {
        "3" | "6" => id.parse::<i64>().map(|_| Cow::Borrowed(text)).map_err(|_| Unreadable),
        _ => with_plain_name(text, arguments),
    }
}

/// The engine reads the name of an event only if it has no escapes, so they are resolved here.
/// Names that need escapes have no handlers.
fn with_plain_name<'a>(text: &'a str, arguments: &'a str) -> Result<Cow<'a, str>, Unreadable> {
    let name = arguments.trim_start_matches([' ', '\t', '\n', '\r']);
    let content = name.strip_prefix('"').ok_or(Unreadable)?;
    let end = content.find(['"', '\\']).ok_or(Unreadable)?;
    if content[end..].starts_with('"') {
        return Ok(Cow::Borrowed(text));
    }
    let mut strings = serde_json::Deserializer::from_str(name).into_iter::<String>();
    let plain = strings.next().and_then(Result::ok).ok_or(Unreadable)?;
    if plain.contains(|char: char| char < ' ' || char == '"' || char == '\\') {
        return Err(Unreadable);
    }
    let before = &text[..text.len() - name.len()];
    let after = &name[strings.byte_offset()..];
    Ok(Cow::Owned(format!("{before}\"{plain}\"{after}")))
}
