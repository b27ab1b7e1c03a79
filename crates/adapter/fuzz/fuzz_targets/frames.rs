//! Any bytes from Redis: `crates/adapter/fuzz/run`.
//!
//! Nothing panics; what can be read can be written, and then stays the same.

#![no_main]

use antiphon_adapter::wire::{
    Broadcast, Channels, Limits, decode_broadcast, decode_legacy_broadcast, decode_request,
    decode_response, encode_broadcast, encode_request, encode_response, peek_uid,
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits =
    Limits { frame_bytes_max: 1 << 20, depth_max: 100, rooms_max: 100, attachments_max: 10 };
/// What was read may be longer when it is written again: numbers, for one.
const WIDER: Limits = Limits { frame_bytes_max: 1 << 30, ..LIMITS };

fuzz_target!(|data: &[u8]| {
    let frame = Bytes::copy_from_slice(data);
    let uid = peek_uid(&frame).unwrap_or_default();
    Channels::new("socket.io", "/", "abcdef").scope(&frame);
    if let Ok(read) = decode_broadcast(&frame, &LIMITS) {
        let write = |broadcast: &Broadcast| {
            encode_broadcast(uid, &broadcast.packet, &broadcast.opts, &WIDER)
                .expect("written")
                .into()
        };
        let again = decode_broadcast(&write(&read), &WIDER).expect("read");
        assert_eq!(again.opts, read.opts);
        assert_eq!(decode_broadcast(&write(&again), &WIDER), Ok(again));
    }
    let _ = decode_legacy_broadcast(&frame, &LIMITS);
    if let Ok(request) = decode_request(&frame, &LIMITS)
        && let Ok(again) = encode_request(&request, &WIDER)
    {
        let again = decode_request(&again.into(), &WIDER).expect("read");
        let third = encode_request(&again, &WIDER).expect("written").into();
        assert_eq!(decode_request(&third, &WIDER), Ok(again));
    }
    if let Ok(response) = decode_response(&frame, &LIMITS) {
        let again = encode_response(&response, &WIDER).expect("written").into();
        let again = decode_response(&again, &WIDER).expect("read");
        let third = encode_response(&again, &WIDER).expect("written").into();
        assert_eq!(decode_response(&third, &WIDER), Ok(again));
    }
});
