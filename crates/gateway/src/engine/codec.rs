//! Packets as the engine reads and writes them: Engine.IO 4 in HTTP bodies.

use std::{borrow::Cow, str};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::StatusCode;
use http_body_util::BodyExt;

use super::Call;

/// Stands between the Engine.IO packets of a body. JSON text never has it, not even in strings.
const SEPARATOR: u8 = 0x1e;

/// The packet has no meaning for any handler, or would be mistaken for another one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// What the engine says.
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

/// The packets of an answer that are still to be read.
pub(super) struct Answer {
    body: Bytes,
    read: usize,
}

/// The body of an answer that is there at once; `None` if the engine does not know the session (any
/// more).
pub(super) fn answer(call: Call) -> Option<Bytes> {
    body(call.now_or_never()?.ok()?)
}

/// The same, from its response.
pub(super) fn body<B>(response: http::Response<B>) -> Option<Bytes>
where
    B: BodyExt<Data = Bytes> + Unpin,
{
    if response.status() != StatusCode::OK {
        return None;
    }
    let mut body = response.into_body();
    // The engine's answers have one frame, or none if they are empty.
    let frame = body.frame().now_or_never()?;
    Some(frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()).unwrap_or_default())
}

impl Answer {
    pub(super) fn new(body: Bytes) -> Self {
        Self { body, read: 0 }
    }

    /// Whether the next packet is CONNECT.
    pub(super) fn connects(&self) -> bool {
        self.body.get(self.read..).is_some_and(|rest| rest.starts_with(b"40"))
    }

    /// The next packet that means something here. `namespace` is the session's.
    pub(super) fn next<'a>(&'a mut self, namespace: &str) -> Option<Emitted<'a>> {
        loop {
            let (kind, content) = {
                let packet = self.body.get(self.read..).filter(|rest| !rest.is_empty())?;
                let end = packet.iter().position(|&byte| byte == SEPARATOR);
                let range = self.read + 1..self.read + end.unwrap_or(packet.len());
                self.read = range.end + 1;
                (packet[0], range)
            };
            match kind {
                b'4' => {
                    let attachments = self.attachments();
                    let text = self.body.get(content).and_then(|text| str::from_utf8(text).ok());
                    return text.map(|text| emitted(text, attachments, namespace));
                }
                b'1' => return Some(Emitted::Closed),
                // A noop packet, or an attachment of nothing.
                _ => {}
            }
        }
    }

    /// The engine puts the attachments of a packet right behind it, in the same answer.
    fn attachments(&mut self) -> Vec<Bytes> {
        let mut attachments = Vec::new();
        while let Some(packet) = self.body.get(self.read..).and_then(|rest| rest.strip_prefix(b"b"))
        {
            let end = packet.iter().position(|&byte| byte == SEPARATOR).unwrap_or(packet.len());
            self.read += 1 + end + 1;
            attachments.push(BASE64.decode(&packet[..end]).unwrap_or_default().into());
        }
        attachments
    }
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

/// The body of a CONNECT packet.
pub(super) fn connect(namespace: &str, auth: Option<&str>) -> Result<Bytes, Unreadable> {
    let auth = auth.unwrap_or_default();
    let clean = |text: &str| !text.as_bytes().contains(&SEPARATOR);
    // Anything but an object could read as a namespace.
    let readable = clean(namespace)
        && clean(auth)
        && namespace.starts_with('/')
        && !namespace.contains(',')
        && (auth.is_empty() || auth.starts_with('{'));
    readable.then(|| about("40", namespace, auth)).ok_or(Unreadable)
}

/// The body of a DISCONNECT packet.
pub(super) fn disconnect(namespace: &str) -> Bytes {
    about("41", namespace, "")
}

/// The body that says that the client is gone.
pub(super) fn close() -> Bytes {
    Bytes::from_static(b"1")
}

fn about(kind: &str, namespace: &str, data: &str) -> Bytes {
    match namespace {
        "/" => format!("{kind}{data}"),
        _ => format!("{kind}{namespace},{data}"),
    }
    .into()
}

/// The body of an event or an acknowledgement.
pub(super) fn packet(text: &str, attachments: &[Bytes]) -> Result<Bytes, Unreadable> {
    let text = readable(text, attachments.len())?;
    let encoded = |bytes: &Bytes| 2 + bytes.len().div_ceil(3) * 4;
    let bytes = 1 + text.len() + attachments.iter().map(encoded).sum::<usize>();
    let mut body = String::with_capacity(bytes);
    body.push('4');
    body.push_str(&text);
    for attachment in attachments {
        body.push(char::from(SEPARATOR));
        body.push('b');
        BASE64.encode_string(attachment, &mut body);
    }
    Ok(body.into())
}

/// The engine closes a session for a packet that it cannot read: those must not get there. It reads
/// names of events only if they have no escapes, so the name is written without.
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

fn with_plain_name<'a>(text: &'a str, arguments: &'a str) -> Result<Cow<'a, str>, Unreadable> {
    let string = arguments.trim_start_matches([' ', '\t', '\n', '\r']);
    let inside = string.strip_prefix('"').ok_or(Unreadable)?;
    if inside.find(['"', '\\']).is_some_and(|at| inside[at..].starts_with('"')) {
        return Ok(Cow::Borrowed(text));
    }
    let mut names = serde_json::Deserializer::from_str(string).into_iter::<String>();
    let name = names.next().and_then(Result::ok).ok_or(Unreadable)?;
    // No handler can have such a name.
    if name.contains(|char: char| char.is_ascii_control() || char == '"' || char == '\\') {
        return Err(Unreadable);
    }
    let head = &text[..text.len() - string.len()];
    let tail = &string[names.byte_offset()..];
    Ok(Cow::Owned(format!("{head}\"{name}\"{tail}")))
}
