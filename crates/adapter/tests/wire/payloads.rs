//! Arbitrary events: JSON texts as clients may write them, with placeholders for two attachments.

use proptest::prelude::*;

/// The attachments that the placeholders of [`event`] name.
pub(crate) const ATTACHMENTS: [&[u8]; 2] = [b"", b"\x00\xffsecond"];

/// The text of an event.
pub(crate) fn event(with_attachments: bool) -> impl Strategy<Value = String> {
    let arguments = prop::collection::vec(json(with_attachments), 0..4);
    arguments.prop_map(|arguments| {
        let arguments = arguments.iter().map(|argument| format!(",{argument}"));
        format!("[\"e\"{}]", arguments.collect::<String>())
    })
}

fn json(with_attachments: bool) -> impl Strategy<Value = String> {
    let attachment = if with_attachments {
        (0..2).prop_map(|num| format!(r#"{{"_placeholder":true,"num":{num}}}"#)).boxed()
    } else {
        Just("{}".to_owned()).boxed()
    };
    let leaf = prop_oneof![
        2 => prop::sample::select(vec![
            "null", "true", "false", "-0", "-0.0", "10.0", "1e400", "1E+2", "0.10",
            "9223372036854775808", "18446744073709551615", "18446744073709551616",
            "-9223372036854775808", "-9223372036854775809",
        ])
            .prop_map(str::to_owned),
        2 => number(),
        3 => string(),
        2 => attachment,
    ];
    leaf.prop_recursive(5, 60, 20, |inner| {
        let members = prop::collection::vec((key(), inner.clone()), 0..20);
        prop_oneof![
            prop::collection::vec(inner, 0..20).prop_map(|items| format!("[{}]", items.join(","))),
            members.prop_map(|members| {
                let members = members.into_iter().map(|(key, value)| format!("{key} :{value}"));
                format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
            }),
        ]
    })
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        any::<i16>().prop_map(|number| number.to_string()),
        prop::num::f64::NORMAL.prop_map(|number| number.to_string()),
        prop::num::f64::ANY
            .prop_filter("finite", |number| number.is_finite())
            .prop_map(|number| format!("{number:e}")),
        (-1e6..1e6).prop_map(|number: f64| format!("{number:.3}")),
    ]
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => ".*".prop_map(|text| serde_json::to_string(&text).expect("JSON")),
        1 => prop::collection::vec(
            prop::sample::select(vec![r"\ud83d", r"\ude00", r"\u00e9", "é", "x", r"\/", r"\n", "漢"]),
            0..50,
        ).prop_map(|parts| format!("\"{}\"", parts.concat())),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-zé]{0,12}".prop_map(|text| format!("\"{text}\"")),
        1 => string(),
        1 => prop::sample::select(vec!["\"__proto__\"", "\"7\"", "\"toJSON\"", "\"num\"", "\"length\""])
            .prop_map(str::to_owned),
    ]
}

#[cfg(feature = "external-tests")]
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("ASCII"));
    digits.map(|two| u8::from_str_radix(two, 16).expect("hex")).collect()
}
