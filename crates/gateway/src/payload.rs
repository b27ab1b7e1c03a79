//! The arguments of an event, as text.
//!
//! Payloads are opaque: the JSON that came in is the JSON that goes out, byte for byte. But it is
//! relayed to every recipient, and one bad sender could make all their clients fail. So an event is
//! refused if it would harm a client:
//!
//! * It is not well-formed to the last character: JavaScript clients close their connection.
//! * It nests too deep: parsers recurse.
//! * It has attachments, and an object whose key `_placeholder` is something else than `false`,
//!   `null`, or `true` beside the `num` of an attachment. JavaScript clients close their
//!   connection, Swift apps crash, and Python clients, which take any true value, stop receiving.
//! * It has an integer of more than [`INTEGER_DIGITS_MAX`] digits: Python clients stop receiving.
//!
//! Two placeholders may not name the same attachment: between nodes it would travel twice, and no
//! client sends this. An attachment that no placeholder names is allowed, because clients drop it.
//! Half of a surrogate pair, as a cut-off emoji leaves it, is allowed everywhere.

use std::{borrow::Cow, fmt};

use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Python's `int()` raises for text with more digits (`sys.int_info.default_max_str_digits`).
const INTEGER_DIGITS_MAX: usize = 4300;

/// Names that clients and Node keep for themselves: socket.io-parser refuses packets with them.
const RESERVED_NAMES: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// The data of an event's packet, `["name", argument, …]`, taken apart as far as rules need it.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    text: &'a str,
    name_token: &'a RawValue,
    name: Cow<'a, str>,
    first: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    /// `None` unless the whole text is an array that begins with a string or a number that is not a
    /// reserved name. Node closes the session then.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let text = trim(text);
        let mut json = serde_json::Deserializer::from_str(text);
        let (name_token, first) = json.deserialize_seq(Head).ok()?;
        json.end().ok()?;
        let name = decode_name(name_token.get())?;
        let is_free = !RESERVED_NAMES.contains(&&*name);
        is_free.then_some(Self { text, name_token, name, first })
    }

    /// The event's name, decoded. A number becomes the string that JavaScript makes of it.
    pub(crate) fn name(&self) -> &Cow<'a, str> {
        &self.name
    }

    /// The whole event as it came, without white space around it.
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    /// The first argument, if it is a string that is not empty.
    pub(crate) fn room(&self) -> Option<String> {
        let room: String = serde_json::from_str(self.first?.get()).ok()?;
        (!room.is_empty()).then_some(room)
    }

    /// The same arguments under another name.
    pub(crate) fn renamed(&self, name: &str) -> String {
        let name = serde_json::Value::from(name);
        format!("[{name}{}", self.after(self.name_token))
    }

    /// The same event without its first argument.
    pub(crate) fn without_first(&self) -> String {
        format!("[{}{}", self.name_token, self.after(self.first.unwrap_or(self.name_token)))
    }

    /// What follows `part` in the text: a comma and the next argument, or the closing bracket.
    fn after(&self, part: &RawValue) -> &'a str {
        let start = part.get().as_ptr() as usize - self.text.as_ptr() as usize;
        &self.text[start + part.get().len()..]
    }

    /// Whether the event, with so many attachments, harms no client. It may nest `max_depth` deep;
    /// the array of arguments is not counted.
    pub(crate) fn is_readable(&self, attachments: usize, max_depth: usize) -> bool {
        is_readable(self.text, attachments, max_depth + 1)
    }
}

/// Whether `json` is an object that remote nodes can read, nested no deeper than `max_depth`.
pub(crate) fn is_readable_object(json: &str, max_depth: usize) -> bool {
    let json = trim(json);
    json.starts_with('{') && is_well_formed(json) && is_readable(json, 0, max_depth)
}

/// Whether `json`, the arguments of an acknowledgement, is an array that remote nodes and clients
/// can read. The array itself is not counted in `max_depth`.
pub(crate) fn is_readable_array(json: &str, attachments: usize, max_depth: usize) -> bool {
    let json = trim(json);
    json.starts_with('[') && is_well_formed(json) && is_readable(json, attachments, max_depth + 1)
}

fn is_well_formed(json: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(json).is_ok()
}

/// Without the white space that JSON allows around a value.
fn trim(json: &str) -> &str {
    json.trim_matches([' ', '\t', '\n', '\r'])
}

/// The name that a token stands for, if it is a string or a number.
fn decode_name(token: &str) -> Option<Cow<'_, str>> {
    match token.as_bytes().first()? {
        b'"' if token.contains('\\') => {
            // No rule's name has half of a surrogate pair, so that name stays as it is written.
            Some(serde_json::from_str(token).map_or(Cow::Borrowed(token), Cow::Owned))
        }
        b'"' => Some(Cow::Borrowed(&token[1..token.len() - 1])),
        b'-' | b'0'..=b'9' => {
            let number: f64 = token.parse().ok()?;
            Some(Cow::Owned(ryu_js::Buffer::new().format(number).to_owned()))
        }
        _ => None,
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

/// Goes over well-formed JSON once, in a loop, and tells whether it harms no client.
///
/// serde_json either skips values, and then does not tell their depth, or reads them, and then
/// refuses half of a surrogate pair.
///
/// Without attachments the packet has another type, in which a placeholder means nothing.
fn is_readable(json: &str, attachments: usize, max_depth: usize) -> bool {
    let mut named = vec![false; attachments];
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
                if attachments > 0 && !closed.is_harmless(&mut named) {
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
                if is_huge_integer(token) {
                    return false;
                }
                if let Some(container) = open.last_mut() {
                    container.take(token);
                }
            }
        }
    }
    true
}

/// Whether a token is a number without fraction or exponent that has too many digits.
fn is_huge_integer(token: &str) -> bool {
    let digits = token.strip_prefix('-').unwrap_or(token);
    digits.len() > INTEGER_DIGITS_MAX && digits.bytes().all(|byte| byte.is_ascii_digit())
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

/// An array or object that is open, and what it says of an attachment.
#[derive(Default)]
struct Container {
    expects_key: bool,
    key: Option<Key>,
    placeholder: Placeholder,
    index: Index,
}

#[derive(Clone, Copy)]
enum Key {
    Placeholder,
    Index,
    Other,
}

/// The value of the key `_placeholder`.
#[derive(Default)]
enum Placeholder {
    #[default]
    Missing,
    /// `false` or `null`: for every client an object like any other.
    Off,
    /// `true`.
    On,
    /// Another value, or more than one: clients differ in what they do.
    Ambiguous,
}

/// The value of the key `num`.
#[derive(Default)]
enum Index {
    #[default]
    Missing,
    Valid(usize),
    /// Another value, or more than one.
    Ambiguous,
}

impl Container {
    /// A key or a value.
    fn take(&mut self, token: &str) {
        if self.expects_key {
            self.expects_key = false;
            self.key = Some(Key::of(token));
            return;
        }
        match self.key {
            Some(Key::Placeholder) => {
                self.placeholder = match (&self.placeholder, token) {
                    (Placeholder::Missing, "false" | "null") => Placeholder::Off,
                    (Placeholder::Missing, "true") => Placeholder::On,
                    _ => Placeholder::Ambiguous,
                };
            }
            Some(Key::Index) => {
                self.index = match (&self.index, token.parse()) {
                    (Index::Missing, Ok(index)) => Index::Valid(index),
                    _ => Index::Ambiguous,
                };
            }
            Some(Key::Other) | None => {}
        }
    }

    /// Whether it is no placeholder, or the first one for its attachment. `named` keeps which
    /// attachments had one.
    fn is_harmless(&self, named: &mut [bool]) -> bool {
        match (&self.placeholder, &self.index) {
            (Placeholder::Missing | Placeholder::Off, _) => true,
            (Placeholder::On, Index::Valid(index)) => {
                named.get_mut(*index).is_some_and(|named| !std::mem::replace(named, true))
            }
            (Placeholder::On | Placeholder::Ambiguous, _) => false,
        }
    }
}

impl Key {
    fn of(token: &str) -> Self {
        let escaped = token.contains('\\').then(|| serde_json::from_str::<String>(token));
        let name = match &escaped {
            Some(Ok(name)) => name,
            Some(Err(_)) => return Self::Other, // Half a surrogate pair.
            None => &token[1..token.len() - 1],
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
        for good in
            [r#"["a"]"#, r#" [ "a" , 1 , {"b":[]} ] "#, r#"["a","\ud83d"]"#, "[1]", "[-0.5e3]"]
        {
            assert!(Event::parse(good).is_some(), "{good}");
        }
        for bad in
            ["", "[]", "{}", r#"["a"]x"#, r#"["a",]"#, r#"["a""#, r#"["a",tru]"#, "[01]", "[1"]
        {
            assert!(Event::parse(bad).is_none(), "{bad}");
        }
        // socket.io-parser: `isPayloadValid`.
        for bad in ["[true]", "[null,\"a\"]", "[[\"a\"]]", "[{\"toString\":\"a\"}]"] {
            assert!(Event::parse(bad).is_none(), "{bad}");
        }
        for bad in RESERVED_NAMES.map(|name| format!("[\"{name}\",1]")) {
            assert!(Event::parse(&bad).is_none(), "{bad}");
        }
        assert!(Event::parse(r#"["\u0063onnect"]"#).is_none());
        assert!(Event::parse(r#"["error"]"#).is_some());
    }

    #[test]
    fn names_are_what_the_json_stands_for() {
        let check = |json: &str, name: &str| {
            let text = format!("[{json},1]");
            assert_eq!(Event::parse(&text).expect("well-formed").name(), name, "{json}");
        };
        check(r#""chat_message""#, "chat_message");
        check(r#""chat\/message""#, "chat/message");
        check(r#""caf\u00e9""#, "café");
        check(r#""café""#, "café");
        check(r#""a\"b\\""#, r#"a"b\"#);
        check(r#""\ud83e\udd80""#, "🦀");
        check(r#""""#, "");
        check(r#""\ud83e""#, r#""\ud83e""#);
        // As JavaScript makes property names of numbers.
        check("1", "1");
        check("1.0", "1");
        check("-0", "0");
        check("1e3", "1000");
        check("0.10", "0.1");
        check("1e21", "1e+21");
        check("1e400", "Infinity");
    }

    #[test]
    fn parts_are_taken_as_they_stand() {
        let check = |text, room: Option<&str>, renamed, without| {
            let event = Event::parse(text).expect("well-formed");
            assert_eq!(event.name(), "e");
            assert_eq!(event.text(), text.trim_ascii());
            assert_eq!(event.room().as_deref(), room, "{text}");
            assert_eq!(event.renamed("n\"ew"), renamed, "{text}");
            assert_eq!(event.without_first(), without, "{text}");
        };
        check(r#"["e"]"#, None, r#"["n\"ew"]"#, r#"["e"]"#);
        check(r#"["e","r"]"#, Some("r"), r#"["n\"ew","r"]"#, r#"["e"]"#);
        check(
            " \t\r\n[ \"e\" , \"\\u0072\" , 1.0e0 ]\n",
            Some("r"),
            r#"["n\"ew" , "\u0072" , 1.0e0 ]"#,
            r#"["e" , 1.0e0 ]"#,
        );
        check(r#"["\u0065","r"]"#, Some("r"), r#"["n\"ew","r"]"#, r#"["\u0065"]"#);
        check(r#"["e",{"b": 2},[]]"#, None, r#"["n\"ew",{"b": 2},[]]"#, r#"["e",[]]"#);
        check(r#"["e",""]"#, None, r#"["n\"ew",""]"#, r#"["e"]"#);
        let numbered = Event::parse("[7,1]").expect("well-formed");
        assert_eq!(
            (numbered.renamed("e"), numbered.without_first()),
            ("[\"e\",1]".into(), "[7]".into())
        );
    }

    fn check_readable(text: &str, attachments: usize, readable: bool) {
        let event = Event::parse(text).expect("well-formed");
        assert_eq!(event.is_readable(attachments, 3), readable, "{text}");
    }

    #[test]
    fn depth_is_bounded() {
        check_readable(r#"["e",[[[]]]]"#, 0, true);
        check_readable(r#"["e",[[[[]]]]]"#, 0, false);
        check_readable(r#"["e",[{"a":{}}]]"#, 0, true);
        check_readable(r#"["e",[{"a":{"b":{}}}]]"#, 0, false);
        check_readable(r#"["e","[[[[[\"[[["]"#, 0, true);
        check_readable(r#"["e","\\",[[[[]]]]]"#, 0, false);
        let deep = |depth| format!("[\"e\",{}{}]", "[".repeat(depth), "]".repeat(depth));
        check_readable(&deep(100_000), 0, false);
    }

    #[test]
    fn placeholders_name_attachments() {
        let placeholder = r#"["e",{"_placeholder":true,"num":1}]"#;
        check_readable(placeholder, 2, true);
        check_readable(placeholder, 1, false);
        for (good, attachments) in [
            (r#"["e",{"a":[{"_placeholder":true,"num":0}]}]"#, 1),
            (r#"["e",{"_placeholder":true,"num":0,"a":{"num":9},"b":[9,"num",9]}]"#, 1),
            (r#"["e",{ "num" : 0 , "_placeholder" : true }]"#, 1),
            (r#"["e",{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}]"#, 2),
            // An attachment that is not named.
            (r#"["e",1]"#, 1),
            (r#"["e",{"_placeholder":false,"num":7}]"#, 1),
            (r#"["e",{"_placeholder":null,"num":7}]"#, 1),
            (r#"["e",{"num":7,"num":8}]"#, 1),
            (r#"["e","_placeholder",{"a":"_placeholder"},{"_placeholder\ud83d":1}]"#, 1),
            // Without attachments an object like any other.
            (r#"["e",{"_placeholder":true,"num":7}]"#, 0),
            (r#"["e",{"_placeholder":1,"num":"x"}]"#, 0),
            // What serde_json itself would refuse to read, and clients send.
            (r#"["e","\ud83d",1e999,{"\ud83d":{"_placeholder":true,"num":0}}]"#, 1),
        ] {
            check_readable(good, attachments, true);
        }
    }

    #[test]
    fn what_clients_would_take_for_a_placeholder_is_refused() {
        let beside = |object: &str| format!(r#"["e",{{"_placeholder":true,"num":0}},{object}]"#);
        for num in ["1", "-1", "-0", "0.5", "1.0", "1e0", "7", "\"1\"", "true", "null", "[1]", "{}"]
        {
            check_readable(&beside(&format!(r#"{{"_placeholder":true,"num":{num}}}"#)), 1, false);
        }
        check_readable(&beside(r#"{"_placeholder":true,"num":18446744073709551616}"#), 1, false);
        for value in ["1", "0", "\"true\"", "\"\"", "[]", "[true]", "{}", "1e0"] {
            check_readable(&beside(&format!(r#"{{"_placeholder":{value},"num":1}}"#)), 2, false);
            check_readable(&beside(&format!(r#"{{"num":1,"_placeholder":{value}}}"#)), 2, false);
            check_readable(&beside(&format!(r#"{{"_placeholder":{value}}}"#)), 2, false);
        }
        for object in [
            r#"{"_placeholder":true}"#,
            r#"{"num":7,"_placeholder":true}"#,
            r#"{"_pl\u0061ceholder":true,"num":7}"#,
            r#"{"_pl\u0061ceholder":1,"num":1}"#,
            // Equal keys: most clients use the last one, C++ the first.
            r#"{"_placeholder":true,"num":1,"num":9}"#,
            r#"{"_placeholder":true,"num":9,"num":1}"#,
            r#"{"_placeholder":false,"_placeholder":true,"num":1}"#,
            r#"{"_placeholder":true,"_placeholder":false,"num":9}"#,
            // Twice the same attachment.
            r#"{"_placeholder":true,"num":0}"#,
            r#"{"__proto__":{"_placeholder":true,"num":7}}"#,
            r#"[[{"_placeholder":true,"num":7}]]"#,
        ] {
            check_readable(&beside(object), 2, false);
        }
    }

    #[test]
    fn huge_integers_are_refused() {
        let digits = "1".repeat(INTEGER_DIGITS_MAX);
        for fine in
            [&*digits, &format!("-{digits}"), &format!("{digits}1.0"), &format!("{digits}1e0")]
        {
            check_readable(&format!("[\"e\",{fine}]"), 0, true);
        }
        for huge in [format!("{digits}1"), format!("-{digits}1")] {
            check_readable(&format!("[\"e\",{huge}]"), 0, false);
            check_readable(&format!("[\"e\",{{\"a\":[{huge} ]}}]"), 0, false);
            check_readable(&format!("[{huge}]"), 0, false);
            check_readable(&format!("[\"e\",\"{huge}\",{{\"{huge}\":1}}]"), 0, true);
            assert!(!is_readable_object(&format!("{{\"a\":{huge}}}"), 3));
            assert!(!is_readable_array(&format!("[{huge}]"), 0, 3));
        }
    }

    #[test]
    fn other_data_is_checked_likewise() {
        for good in ["{}", " {\"a\":[{}]}\n", r#"{"_placeholder":true,"a":"\ud83d"}"#] {
            assert!(is_readable_object(good, 3), "{good}");
        }
        for bad in ["", "[]", "null", "{", "{}x", "{\"a\":}", r#"{"a":[[[]]]}"#] {
            assert!(!is_readable_object(bad, 3), "{bad}");
        }
        for good in ["[]", " [1,[[[]]]]", r#"[{"_placeholder":true,"num":0}]"#] {
            assert!(is_readable_array(good, 1, 3), "{good}");
        }
        for bad in ["", "{}", "[", "[1]2", "[[[[[]]]]]", r#"[{"_placeholder":true,"num":1}]"#] {
            assert!(!is_readable_array(bad, 1, 3), "{bad}");
        }
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

    fn read_all(text: &str) {
        if let Some(event) = Event::parse(text) {
            let readable = event.is_readable(1, 3);
            assert_eq!(is_readable_array(text, 1, 3), readable);
            assert!(event.text().starts_with('['));
            for relayed in [event.without_first(), event.renamed("n\"")] {
                let relayed = Event::parse(&relayed).expect("still an event");
                assert!(!readable || relayed.is_readable(1, 3));
            }
        }
        is_readable_object(text, 3);
    }

    fn token() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "[",
            "]",
            "{",
            "}",
            ",",
            ":",
            "\"e\"",
            "\"_placeholder\"",
            "\"num\"",
            "true",
            "null",
            "0",
            "1.5",
            " ",
            "\\",
            "\"",
            "\"\\u00e9\"",
            "\"\\ud83d\"",
            "é",
            "-",
        ])
    }

    fn lookalike() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec!["_placeholder", "num", "_placeholde\\u0072", "x"]);
        let value = prop::sample::select(vec![
            "true", "false", "null", "0", "1", "2", "-1", "0.5", "\"0\"", "{}",
        ]);
        let members = prop::collection::vec((key, value), 0..5);
        members.prop_map(|members| {
            let members = members.iter().map(|(key, value)| format!("\"{key}\":{value}"));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        })
    }

    fn escape_all(text: &str) -> String {
        let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
        format!("\"{}\"", units.collect::<String>())
    }

    proptest! {
        #[test]
        fn any_arguments_survive(args in prop::collection::vec(json(), 0..4)) {
            let mut parts = vec![serde_json::Value::from("e")];
            parts.extend(args.clone());
            let whole = serde_json::Value::from(parts);
            let text = whole.to_string();
            let event = Event::parse(&text).expect("well-formed");
            let parse = |text: &str| -> Vec<serde_json::Value> {
                serde_json::from_str(text).expect("JSON")
            };
            let deepest = nesting(&whole);
            prop_assert!(is_readable(&text, 1, deepest) && !is_readable(&text, 1, deepest - 1));
            prop_assert_eq!(&parse(&event.renamed("n"))[1..], &args[..]);
            let rest = args.get(1..).unwrap_or_default();
            prop_assert_eq!(&parse(&event.without_first())[1..], rest);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            read_all(&text);
        }

        #[test]
        fn no_event_makes_it_panic(tokens in prop::collection::vec(token(), 0..40)) {
            read_all(&tokens.concat());
            read_all(&format!("[\"e\",{}]", tokens.concat()));
        }

        #[test]
        fn names_survive_any_escape(name in ".*", escaped in any::<bool>()) {
            let plain = serde_json::to_string(&name).expect("JSON");
            let text = format!("[{}]", if escaped { escape_all(&name) } else { plain });
            let event = Event::parse(&text);
            let expected = (!RESERVED_NAMES.contains(&&*name)).then_some(&*name);
            prop_assert_eq!(event.as_ref().map(|event| &**event.name()), expected);
        }

        /// JavaScript, Python and Swift all find what they look for behind accepted placeholders.
        #[test]
        fn accepted_placeholders_are_exact(
            objects in prop::collection::vec(lookalike(), 1..4),
            attachments in 1..3_u64,
        ) {
            let text = format!("[\"e\",{}]", objects.join(","));
            let event = Event::parse(&text).expect("well-formed");
            let parsed: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
            let exact = parsed[1..].iter().all(|object| match &object["_placeholder"] {
                serde_json::Value::Bool(true) => {
                    object["num"].as_u64().is_some_and(|num| num < attachments)
                }
                value => value.is_null() || value == false,
            });
            if event.is_readable(attachments as usize, 3) {
                prop_assert!(exact, "{}", text);
            }
        }
    }
}
