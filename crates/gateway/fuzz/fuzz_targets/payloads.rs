//! Any body of a polling request: `crates/gateway/fuzz/run`.
//!
//! Nothing panics. Packets take no more memory than their body, by a factor. What is read can be
//! written, and is then read as the same packets. The first byte says which revision and form.

#![no_main]

use antiphon_gateway::transport::{
    Protocol,
    packet::{Message, OutPacket, Packet},
    payload::{Packets, decode_payload, encode_payload},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&form, body)) = data.split_first() else { return };
    let revision = if form & 1 == 0 { Protocol::Eio3 } else { Protocol::Eio4 };
    let Ok(packets) = Packets::new(revision, form & 2 != 0, body) else { return };
    let read: Vec<_> = packets.collect();
    let errors = read.iter().filter(|packet| packet.is_err()).count();
    assert!(errors == 0 || errors == 1 && read.last().is_some_and(Result::is_err));
    let packets: Vec<_> = read.into_iter().flatten().collect();
    assert!(packets.len() <= body.len().max(1));
    // An invalid byte becomes a character of three.
    assert!(packets.iter().map(content_bytes).sum::<usize>() <= 3 * body.len());
    if packets.is_empty() {
        return;
    }
    let sent: Vec<_> = packets.iter().map(as_sent).collect();
    for base64 in [false, true] {
        let (body, binary) = encode_payload(revision, base64, &sent);
        let again = decode_payload(revision, binary, &body, packets.len());
        assert_eq!(again.as_deref(), Ok(&packets[..]));
    }
});

fn content_bytes(packet: &Packet) -> usize {
    match packet {
        Packet::Ping(text) | Packet::Pong(text) | Packet::Message(Message::Text(text)) => {
            text.len()
        }
        Packet::Message(Message::Binary(bytes)) => bytes.len(),
        Packet::Open | Packet::Close | Packet::Upgrade | Packet::Noop => 0,
    }
}

/// A packet as the server would send it.
fn as_sent(packet: &Packet) -> OutPacket {
    let text = match packet {
        Packet::Open => "0".to_owned(),
        Packet::Close => "1".to_owned(),
        Packet::Ping(content) => format!("2{content}"),
        Packet::Pong(content) => format!("3{content}"),
        Packet::Message(Message::Text(content)) => format!("4{content}"),
        Packet::Message(Message::Binary(bytes)) => {
            return OutPacket { bytes: bytes.clone(), binary: true };
        }
        Packet::Upgrade => "5".to_owned(),
        Packet::Noop => "6".to_owned(),
    };
    OutPacket { bytes: text.into(), binary: false }
}
