//! Bytes of any kind: refused or read, but never a panic, and what is read can be written.

use antiphon_adapter::wire::{
    decode_broadcast, decode_legacy_broadcast, decode_request, decode_response, encode_broadcast,
    encode_request, encode_response, peek_uid,
};
use bytes::Bytes;
use proptest::prelude::*;

use crate::{LIMITS, fixtures};

/// Reads `bytes` as everything; `true` if they were readable as something.
fn read(bytes: Vec<u8>) -> bool {
    let frame = Bytes::from(bytes);
    let uid = peek_uid(&frame).unwrap_or_default();
    let broadcasts = [decode_broadcast(&frame, &LIMITS), decode_legacy_broadcast(&frame, &LIMITS)];
    let mut readable = false;
    for broadcast in broadcasts.into_iter().flatten() {
        readable = true;
        encode_broadcast(uid, &broadcast.packet, &broadcast.opts, &LIMITS).expect("written");
    }
    if let Ok(request) = decode_request(&frame, &LIMITS) {
        readable = true;
        // A single socket goes into or out of a single room.
        let _ = encode_request(&request, &LIMITS);
    }
    if let Ok(response) = decode_response(&frame, &LIMITS) {
        readable = true;
        encode_response(&response, &LIMITS).expect("written");
    }
    readable
}

#[test]
fn cut_off_frames_are_refused() {
    for fixture in fixtures::all() {
        assert!(read(fixture.frame.to_vec()), "{}", fixture.call);
        for end in (0..fixture.frame.len()).step_by(fixture.frame.len() / 200 + 1) {
            assert!(!read(fixture.frame[..end].to_vec()), "{} up to {end}", fixture.call);
        }
    }
}

/// A byte that begins a value of MessagePack, or a part of a request.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let words: [&[u8]; 22] = [
        b"\xa4type",
        b"\xa4data",
        b"\xa3nsp",
        b"\xa5rooms",
        b"\xa6except",
        b"\xa5flags",
        b"\xa4opts",
        b"\xa6packet",
        b"\xa9requestId",
        b"\xa3uid",
        b"\xa7sockets",
        b"\xac_placeholder",
        b"\xa3num",
        b"\xa9__proto__",
        b"\x93\xa1u\x83",
        b"\x92\x83",
        b"\xd6\xff",
        b"\xd7\x00",
        b"\xd4\x00\x00",
        b"{\"type\":",
        b"\"requestId\":\"r\",",
        b"\"sockets\":[",
    ];
    prop_oneof![
        2 => prop::sample::select(words.to_vec()).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..3),
        1 => prop::collection::vec(0x80_u8..0x96, 1..3),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(bytes);
    }

    #[test]
    fn likely_bytes_are_no_panic(parts in prop::collection::vec(part(), 0..60)) {
        read(parts.concat());
    }

    #[test]
    fn damaged_frames_are_no_panic(
        which in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        thread_local!(static ALL: Vec<fixtures::Fixture> = fixtures::all());
        let mut frame = ALL.with(|all| which.get(all).frame.to_vec());
        for (at, byte) in flips {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        read(frame);
    }
}
