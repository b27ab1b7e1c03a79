//! The arguments of an event, as text.
//!
//! Payloads are opaque: the JSON that came in is the JSON that goes out. But it is relayed to every
//! recipient, and a client closes its connection on JSON that it cannot read ("parse error" in
//! JavaScript). So one bad sender could disconnect everybody, and what is relayed is checked first:
//! well-formed to the last character, not nested deeper than the clients' parsers go, and with
//! placeholders that all have their attachment.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The text of an event's packet, `["name", argument, …]`, taken apart as far as rules need it.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    text: &'a str,
    name: &'a RawValue,
    first: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    /// `None` unless the whole text is an array that begins with a name.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let (name, first) = json.deserialize_seq(Head).ok()?;
        json.end().ok()?;
        name.get().starts_with('"').then_some(Self { text, name, first })
    }

    /// The event's name. Names with escapes in them never get here: socketioxide refuses them.
    pub(crate) fn name(&self) -> &'a str {
        self.name.get().trim_matches('"')
    }

    /// The first argument, if it is a string that is not empty.
    pub(crate) fn room(&self) -> Option<String> {
        let room: String = serde_json::from_str(self.first?.get()).ok()?;
        (!room.is_empty()).then_some(room)
    }

    /// The same arguments under another name.
    pub(crate) fn renamed(&self, name: &str) -> String {
        let name = serde_json::Value::from(name);
        format!("[{name}{}", self.after(self.name))
    }

    /// The same event without its first argument.
    pub(crate) fn without_first(&self) -> String {
        format!("[{}{}", self.name, self.after(self.first.unwrap_or(self.name)))
    }

    /// What follows `part` in the text: a comma and the next argument, or the closing bracket.
    fn after(&self, part: &RawValue) -> &'a str {
        let start = part.get().as_ptr() as usize - self.text.as_ptr() as usize;
        &self.text[start + part.get().len()..]
    }

    /// Whether clients can read it: not nested deeper than `max_depth` (the array of arguments is
    /// not counted), and every placeholder names one of `attachments`.
    pub(crate) fn is_readable(&self, attachments: usize, max_depth: usize) -> bool {
        is_readable(self.text, attachments, max_depth + 1)
    }
}

/// Whether `json` is an object that clients and peers can read, nested no deeper than `max_depth`.
pub(crate) fn is_readable_object(json: &str, max_depth: usize) -> bool {
    serde_json::from_str::<IgnoredAny>(json).is_ok()
        && json.trim_ascii_start().starts_with('{')
        && is_readable(json, 0, max_depth)
}

struct Head;

impl<'de> Visitor<'de> for Head {
    type Value = (&'de RawValue, Option<&'de RawValue>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an event and its arguments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let name = seq.next_element()?.ok_or_else(|| A::Error::custom("no name"))?;
        let first = seq.next_element()?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok((name, first))
    }
}

/// Goes over well-formed JSON once, in a loop: serde_json either skips values, and then tells nothing of
/// their depth, or reads them, and then refuses what clients may well send (half a surrogate pair, as
/// a cut-off emoji leaves it).
///
/// A placeholder is `{"_placeholder":true,"num":N}`: a client reads the attachment that N names, and
/// closes its connection when there is none (socket.io-parser, `reconstructPacket`). Without attachments
/// the packet is of another type, in which a placeholder is an object like any other.
fn is_readable(json: &str, attachments: usize, max_depth: usize) -> bool {
    let mut open: Vec<Container> = Vec::new();
    let mut rest = json;
    while let Some(first) = rest.bytes().next() {
        let token = &rest[..token_length(rest)];
        rest = &rest[token.len()..];
        match first {
            b'[' | b'{' => {
                if open.len() == max_depth {
                    return false;
                }
                if let Some(parent) = open.last_mut() {
                    parent.take(token);
                }
                open.push(Container { expects_key: first == b'{', ..Container::default() });
            }
            b']' | b'}' => {
                let closed = open.pop().unwrap_or_default();
                let names_one = closed.index.is_some_and(|index| index < attachments as u64);
                if attachments > 0 && closed.placeholder && !names_one {
                    return false;
                }
            }
            b',' => {
                if let Some(object) = open.last_mut().filter(|container| container.key.is_some()) {
                    object.expects_key = true;
                }
            }
            b':' | b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => {
                if let Some(container) = open.last_mut() {
                    container.take(token);
                }
            }
        }
    }
    true
}

/// How many bytes the token at the start of well-formed JSON has.
fn token_length(json: &str) -> usize {
    let mut bytes = json.bytes().enumerate();
    match bytes.next() {
        Some((_, b'"')) => {
            let mut escaped = false;
            let end = bytes.find(|(_, byte)| {
                let ends = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                ends
            });
            end.map_or(json.len(), |(at, _)| at + 1)
        }
        Some((_, b'[' | b']' | b'{' | b'}' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r')) => 1,
        _ => json.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(json.len()),
    }
}

/// An array or object that is open, and what a placeholder consists of.
#[derive(Default)]
struct Container {
    expects_key: bool,
    key: Option<Key>,
    placeholder: bool,
    index: Option<u64>,
}

#[derive(Clone, Copy)]
enum Key {
    Placeholder,
    Index,
    Other,
}

impl Container {
    /// A key or a value. The last of equal keys counts, as in every client's parser.
    fn take(&mut self, token: &str) {
        if self.expects_key {
            self.expects_key = false;
            self.key = Some(Key::of(token));
            return;
        }
        match self.key {
            Some(Key::Placeholder) => self.placeholder = token == "true",
            Some(Key::Index) => self.index = token.parse().ok(),
            Some(Key::Other) | None => {}
        }
    }
}

impl Key {
    fn of(token: &str) -> Self {
        let escaped = token.contains('\\').then(|| serde_json::from_str::<String>(token));
        let name = match &escaped {
            Some(Ok(name)) => name,
            Some(Err(_)) => return Self::Other, // Half a surrogate pair.
            None => token.trim_matches('"'),
        };
        match name {
            "_placeholder" => Self::Placeholder,
            "num" => Self::Index,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_whole_text_must_be_an_event() {
        for good in [r#"["a"]"#, r#" [ "a" , 1 , {"b":[]} ] "#, r#"["a","\ud83d"]"#] {
            assert!(Event::parse(good).is_some(), "{good}");
        }
        for bad in ["", "[]", "{}", "[1]", r#"["a"]x"#, r#"["a",]"#, r#"["a""#, r#"["a",tru]"#] {
            assert!(Event::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn parts_are_taken_as_they_stand() {
        let check = |text, room: Option<&str>, renamed, without| {
            let event = Event::parse(text).expect("well-formed");
            assert_eq!(event.name(), "e");
            assert_eq!(event.room().as_deref(), room, "{text}");
            assert_eq!(event.renamed("n\"ew"), renamed, "{text}");
            assert_eq!(event.without_first(), without, "{text}");
        };
        check(r#"["e"]"#, None, r#"["n\"ew"]"#, r#"["e"]"#);
        check(r#"["e","r"]"#, Some("r"), r#"["n\"ew","r"]"#, r#"["e"]"#);
        check(
            r#"[ "e" , "\u0072" , 1.0e0 ]"#,
            Some("r"),
            r#"["n\"ew" , "\u0072" , 1.0e0 ]"#,
            r#"["e" , 1.0e0 ]"#,
        );
        check(r#"["e",{"b": 2},[]]"#, None, r#"["n\"ew",{"b": 2},[]]"#, r#"["e",[]]"#);
        check(r#"["e",""]"#, None, r#"["n\"ew",""]"#, r#"["e"]"#);
    }

    #[test]
    fn depth_and_placeholders_are_bounded() {
        let check = |text: &str, attachments, readable| {
            let event = Event::parse(text).expect("well-formed");
            assert_eq!(event.is_readable(attachments, 3), readable, "{text}");
        };
        check(r#"["e",[[[]]]]"#, 0, true);
        check(r#"["e",[[[[]]]]]"#, 0, false);
        check(r#"["e","[[[[[\"[[["]"#, 0, true);
        check(r#"["e","\\",[[[[]]]]]"#, 0, false);
        let placeholder = r#"["e",{"_placeholder":true,"num":1}]"#;
        check(placeholder, 2, true);
        check(placeholder, 1, false);
        check(r#"["e",{"num":7,"_placeholder":true}]"#, 1, false);
        check(r#"["e",{"_pl\u0061ceholder":true,"num":7}]"#, 1, false);
        check(r#"["e",{"_placeholder":true}]"#, 1, false);
        check(r#"["e",{"_placeholder":true,"num":-1}]"#, 1, false);
        check(r#"["e",{"_placeholder":false,"num":7}]"#, 1, true);
        check(r#"["e",{"a":[{"_placeholder":true,"num":0}]}]"#, 1, true);
        check(r#"["e",{"a":[{"_placeholder":true,"num":1}]}]"#, 1, false);
        check(r#"["e",{"_placeholder":true,"num":0,"a":{"num":9},"b":[9,"num",9]}]"#, 1, true);
        check(r#"["e",{"_placeholder":true,"num":0,"num":9}]"#, 1, false);
        check(r#"["e",{"_placeholder":true,"num":0.5}]"#, 1, false);
        check(r#"["e",{"_placeholder":true,"num":7}]"#, 0, true);
        // What serde_json itself would refuse to read, and clients send.
        check(r#"["e","\ud83d",1e999,{"\ud83d":{"_placeholder":true,"num":0}}]"#, 1, true);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".*".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::hash_map(".*", inner, 0..5)
                    .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    fn nesting(value: &serde_json::Value) -> usize {
        let deepest = match value {
            serde_json::Value::Array(items) => items.iter().map(nesting).max(),
            serde_json::Value::Object(map) => map.values().map(nesting).max(),
            _ => return 0,
        };
        1 + deepest.unwrap_or(0)
    }

    proptest! {
        #[test]
        fn any_arguments_survive(args in prop::collection::vec(json(), 0..4)) {
            let mut parts = vec![serde_json::Value::from("e")];
            parts.extend(args.clone());
            let whole = serde_json::Value::from(parts);
            let text = whole.to_string();
            let event = Event::parse(&text).expect("well-formed");
            let parse = |text: &str| serde_json::from_str::<Vec<serde_json::Value>>(text).expect("JSON");
            let deepest = nesting(&whole);
            prop_assert!(is_readable(&text, 1, deepest) && !is_readable(&text, 1, deepest - 1));
            prop_assert_eq!(&parse(&event.renamed("n"))[1..], &args[..]);
            let rest = args.get(1..).unwrap_or_default();
            prop_assert_eq!(&parse(&event.without_first())[1..], rest);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            if let Some(event) = Event::parse(&text) {
                event.is_readable(1, 3);
                event.without_first();
            }
        }
    }
}
