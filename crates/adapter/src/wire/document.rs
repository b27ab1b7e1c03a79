//! What requests and responses have in common: an object in JSON, or the same in MessagePack.

use std::{borrow::Cow, collections::VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use socketioxide_core::{Value, adapter::Room};

use super::{Limits, WireError, broadcast::checked_size, msgpack::Reader, text, to_json};

/// Containers around the array of arguments of an event in a request.
const ENVELOPE_DEPTH: usize = 2;

/// A frame as JSON text, with attachments aside if it was MessagePack.
pub(super) struct Document<'a> {
    text: Cow<'a, str>,
    attachments: VecDeque<Bytes>,
}

impl<'a> Document<'a> {
    /// As Node does, tells the two apart by the first byte.
    pub(super) fn read(frame: &'a Bytes, limits: &Limits) -> Result<Self, WireError> {
        checked_size(frame, limits)?;
        if frame.first() == Some(&b'{') {
            // Parts are skipped in a loop, however deep they are; `value` looks at what is used of them.
            let text = String::from_utf8_lossy(frame);
            return Ok(Self { text, attachments: VecDeque::new() });
        }
        let mut reader = Reader::new(frame);
        let depth = limits.containers_max() + ENVELOPE_DEPTH;
        let (text, attachments) = to_json::read_json(&mut reader, frame, depth, limits)?;
        reader.end()?;
        Ok(Self { text: Cow::Owned(text), attachments })
    }

    pub(super) fn fields<F: Deserialize<'a>>(&'a self) -> Result<F, WireError> {
        if self.text.starts_with('{') { parse(&self.text) } else { Err(WireError::Shape) }
    }

    /// `data`, a part of this document, with all its attachments.
    pub(super) fn value(&self, data: String, limits: &Limits) -> Result<Value, WireError> {
        if !text::nests_within(&data, limits.containers_max()) {
            return Err(WireError::TooDeep);
        }
        // Attachments are numbered throughout the document: all must belong to this part.
        let placeholders = data.matches(to_json::PLACEHOLDER).count();
        if !self.attachments.is_empty() && placeholders != self.attachments.len() {
            return Err(WireError::Shape);
        }
        Ok(to_json::to_value((data, self.attachments.clone())))
    }
}

/// Reads JSON into fields. What serde refuses is malformed, or not of the expected types.
pub(super) fn parse<'a, F: Deserialize<'a>>(json: &'a str) -> Result<F, WireError> {
    serde_json::from_str(json).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => WireError::Shape,
        serde_json::error::Category::Eof => WireError::Truncated,
        _ => WireError::Syntax,
    })
}

/// For fields in which `null` is not the same as nothing.
pub(super) fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The string that JavaScript's `String()` makes of a simple value.
pub(super) fn simple_text(value: &RawValue) -> Result<String, WireError> {
    let json = value.get();
    match json.as_bytes() {
        [b'"', .., b'"'] => text::unescape(&json[1..json.len() - 1]).map(Cow::into_owned),
        [b'-' | b'0'..=b'9', ..] => {
            let number = json.parse::<f64>().map_err(|_| WireError::Syntax)?;
            Ok(ryu_js::Buffer::new().format(number).to_owned())
        }
        [b'[' | b'{', ..] => Err(WireError::Shape),
        _ => Ok(json.to_owned()),
    }
}

/// A list of rooms. Missing, it is empty; what is no room at all does not vanish from it, because an
/// empty list means everyone.
pub(super) fn rooms(list: Option<&RawValue>, max: usize) -> Result<Vec<Room>, WireError> {
    let Some(list) = list.filter(|list| list.get() != "\"\"") else { return Ok(Vec::new()) };
    let items: Vec<&RawValue> = parse(list.get())?;
    if items.len() > max {
        return Err(WireError::TooManyRooms);
    }
    items.into_iter().map(|item| simple_text(item).map(Room::Owned)).collect()
}

/// JSON text from outside of this module, checked before it becomes a part of a frame.
pub(super) fn raw(json: &str) -> Result<&RawValue, WireError> {
    parse(json)
}

/// Prints fields. They hold nothing that JSON cannot express.
pub(super) fn print(fields: &impl serde::Serialize) -> Result<Vec<u8>, WireError> {
    serde_json::to_vec(fields).map_err(|_| WireError::Shape)
}
