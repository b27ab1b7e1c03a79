//! Any text from a client: `crates/adapter/fuzz/run`.
//!
//! Nothing panics; what can be written can be read, and is then written as the same bytes. The first byte
//! is the number of attachments; a NUL, which no JSON has, ends a name, for a room and the like.

#![no_main]

use antiphon_adapter::wire::{
    Answer, Channels, Handshake, Limits, Opts, RemoteSocket, Response, Scope, decode_broadcast,
    decode_response, encode_broadcast, encode_handshake, encode_response,
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use socketioxide_core::{Value, packet::Packet};

const LIMITS: Limits =
    Limits { frame_bytes_max: 1 << 20, depth_max: 100, rooms_max: 100, attachments_max: 10 };

fuzz_target!(|data: &[u8]| {
    let Some((&count, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (name, text) = text.split_once('\0').unwrap_or(("", text));
    let attachments = (0..count).map(|_| Bytes::from_static(b"one")).collect();
    let value = Value::Str(text.to_owned().into(), (count > 0).then_some(attachments));
    event(name, &value);
    acknowledgement(name, value);
    introduction(name, text);
});

/// An event that a client emits, to a room that it names.
fn event(room: &str, value: &Value) {
    let packet = Packet::event("/", value.clone());
    let opts = Opts {
        rooms: vec![room.to_owned().into()],
        except: vec![room.to_owned().into()],
        ..Opts::default()
    };
    let channels = Channels::new("socket.io", "/", "u");
    let channel = channels.for_rooms(&opts.rooms);
    let scope = if room.is_empty() { Scope::Namespace } else { Scope::Room(room) };
    assert_eq!(channels.scope(channel.as_bytes()), Some(scope));

    let Ok(frame) = encode_broadcast("u", &packet, &opts, &LIMITS) else { return };
    let Ok(read) = decode_broadcast(&frame.into(), &LIMITS) else { return };
    assert_eq!(read.opts, opts);
    let again = encode_broadcast("u", &read.packet, &opts, &LIMITS).expect("written").into();
    assert_eq!(decode_broadcast(&again, &LIMITS).expect("read").packet, read.packet);
}

/// An acknowledgement, on its way back to the node that asked.
fn acknowledgement(request_id: &str, value: Value) {
    respond(&Response { request_id: request_id.to_owned(), answer: Answer::Ack(value) });
}

/// What a client says of itself when it connects, as peers are told.
fn introduction(name: &str, text: &str) {
    let pair = || (name.to_owned(), text.to_owned());
    let handshake = Handshake {
        headers: vec![pair(), ("cookie".to_owned(), name.to_owned())],
        issued_ms: text.parse().unwrap_or(0),
        address: name.to_owned(),
        xdomain: false,
        secure: false,
        url: text.to_owned(),
        query: vec![pair()],
        auth: text.to_owned(),
    };
    let Ok(handshake) = encode_handshake(&handshake) else { return };
    let socket = RemoteSocket {
        id: name.to_owned(),
        handshake,
        rooms: vec![name.to_owned().into()],
        data: text.to_owned(),
    };
    let answer = Answer::Sockets(vec![socket]);
    respond(&Response { request_id: name.to_owned(), answer });
}

fn respond(response: &Response) {
    let Ok(frame) = encode_response(response, &LIMITS) else { return };
    let Ok(read) = decode_response(&frame.into(), &LIMITS) else { return };
    let again = encode_response(&read, &LIMITS).expect("written").into();
    assert_eq!(decode_response(&again, &LIMITS), Ok(read));
}
