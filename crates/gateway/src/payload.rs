//! The arguments of an event, as text.
//!
//! Payloads are opaque: the JSON that came in is the JSON that goes out. But it is relayed to every
//! recipient, and a client closes its connection on JSON that it cannot read ("parse error" in
//! JavaScript). So one bad sender could disconnect everybody, and what is relayed is checked first:
//! well-formed to the last character, not nested deeper than the clients' parsers go, and with
//! placeholders that all have their attachment.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
        depth(self.text) <= max_depth + 1
            && (attachments == 0 || placeholders_in_range(self.text, attachments))
    }
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

/// How deep well-formed JSON nests. By hand because serde_json, which skips values in a loop, has no
/// bound on the depth of what it skips and does not tell it.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        if in_string {
            in_string = byte != b'"' || escaped;
            escaped = byte == b'\\' && !escaped;
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether every `{"_placeholder":true,"num":N}` has N below `attachments`: a client reads the
/// attachment that N names, and closes its connection when there is none (socket.io-parser's
/// `reconstructPacket`).
fn placeholders_in_range(json: &str, attachments: usize) -> bool {
    let check = Placeholders { attachments };
    serde_json::Deserializer::from_str(json).deserialize_any(check).is_ok()
}

#[derive(Clone, Copy)]
struct Placeholders {
    attachments: usize,
}

/// What a value is to a placeholder's two fields.
enum Seen {
    True,
    Index(u64),
    Other,
}

impl<'de> serde::de::DeserializeSeed<'de> for Placeholders {
    type Value = Seen;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Seen, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Placeholders {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Seen, E> {
        Ok(if value { Seen::True } else { Seen::Other })
    }

    fn visit_u64<E>(self, value: u64) -> Result<Seen, E> {
        Ok(Seen::Index(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_unit<E>(self) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Seen, A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(Seen::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
        // The last of equal keys counts, as in every client's parser.
        let (mut placeholder, mut index) = (false, None);
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let value = map.next_value_seed(self)?;
            match (&*key, value) {
                ("_placeholder", value) => placeholder = matches!(value, Seen::True),
                ("num", Seen::Index(value)) => index = Some(value),
                ("num", _) => index = None,
                _ => {}
            }
        }
        let in_range = index.is_some_and(|index| index < self.attachments as u64);
        if placeholder && !in_range {
            return Err(A::Error::custom("a placeholder without its attachment"));
        }
        Ok(Seen::Other)
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
            prop_assert_eq!(depth(&text), nesting(&whole));
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
