//! Random events, written here and read by the real Node packages (tests/fixtures/check.mjs).

use std::{io::Write, process::Command};

use antiphon_adapter::wire::{Opts, decode_broadcast, encode_broadcast};
use bytes::Bytes;
use proptest::{strategy::Strategy, strategy::ValueTree, test_runner::TestRunner};
use serde_json::json;
use socketioxide_core::{
    Value,
    packet::{Packet, PacketData},
};

use crate::{
    LIMITS,
    payloads::{ATTACHMENTS, event, to_hex},
};

const CASES: usize = 2000;

/// Needs Node.js, and the packages of tests/fixtures/package.json.
#[test]
fn node_reads_what_we_write() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let cases = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut file = std::io::BufWriter::new(cases.reopen().expect("the same file"));
    let mut runner = TestRunner::deterministic();
    for case in 0..CASES {
        let with_attachments = case % 2 == 0;
        let text = event(with_attachments).new_tree(&mut runner).expect("a value").current();
        writeln!(file, "{}", line(&text, with_attachments)).expect("written");
    }
    for size in [65_535, 65_536] {
        let text = format!("[\"e\",[{}],\"{}\"]", vec!["7"; size].join(","), "x".repeat(size));
        writeln!(file, "{}", line(&text, false)).expect("written");
    }
    file.flush().expect("written");
    let mut node = Command::new("node");
    let checked = node.arg("check.mjs").arg(cases.path()).current_dir(fixtures).output();
    let checked = checked.expect("node is installed");
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&said));
}

fn line(text: &str, with_attachments: bool) -> serde_json::Value {
    let attachments: &[&'static [u8]] = if with_attachments { &ATTACHMENTS } else { &[] };
    let attached = attachments.iter().map(|bytes| Bytes::from_static(bytes)).collect();
    let packet = Packet::event("/x", Value::Str(text.to_owned().into(), Some(attached)));
    let opts = Opts { rooms: vec!["a".into(), "é".into()], ..Opts::default() };
    let frame = Bytes::from(encode_broadcast("abcdef", &packet, &opts, &LIMITS).expect(text));
    let back = decode_broadcast(&frame, &LIMITS).expect(text).packet.inner;
    let (PacketData::Event(Value::Str(back, back_attached), _)
    | PacketData::BinaryEvent(Value::Str(back, back_attached), _)) = back
    else {
        panic!("{text}")
    };
    json!({
        "uid": "abcdef",
        "text": text,
        "attachments": attachments.iter().map(|bytes| to_hex(bytes)).collect::<Vec<_>>(),
        "opts": { "rooms": ["a", "é"], "except": [], "flags": {} },
        "hex": to_hex(&frame),
        "back": back.as_str(),
        "backAttachments": back_attached.iter().flatten().map(|bytes| to_hex(bytes)).collect::<Vec<_>>(),
    })
}
