//! Any text in an event: `cargo +nightly fuzz run texts -- -max_total_time=60`.
//!
//! Nothing panics; what can be written can be read, and is then written as the same bytes.

#![no_main]

use antiphon_adapter::wire::{Limits, Opts, decode_broadcast, encode_broadcast};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use socketioxide_core::{Value, packet::Packet};

const LIMITS: Limits =
    Limits { frame_bytes_max: 1 << 20, depth_max: 100, rooms_max: 100, attachments_max: 10 };

fuzz_target!(|input: (&str, bool)| {
    let (text, binary) = input;
    let attachments = binary.then(|| [Bytes::from_static(b"one"), Bytes::new()].into());
    let packet = Packet::event("/", Value::Str(text.to_owned().into(), attachments));
    let opts = Opts::default();
    let Ok(frame) = encode_broadcast("u", &packet, &opts, &LIMITS) else { return };
    let frame = frame.into();
    let Ok(read) = decode_broadcast(&frame, &LIMITS) else { return };
    let again = encode_broadcast("u", &read.packet, &opts, &LIMITS).expect("written").into();
    assert_eq!(decode_broadcast(&again, &LIMITS).expect("read").packet, read.packet);
});
