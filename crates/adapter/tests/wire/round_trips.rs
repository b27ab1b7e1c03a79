//! What is written and read again is the same, as a JavaScript value.

use std::collections::VecDeque;

use antiphon_adapter::wire::{
    Answer, Command, Handshake, Opts, RemoteSocket, Request, Response, decode_broadcast,
    decode_request, decode_response, encode_broadcast, encode_handshake, encode_request,
    encode_response, peek_request_id,
};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value as Json;
use socketioxide_core::{
    Value,
    packet::{Packet, PacketData},
};

use crate::{
    LIMITS,
    payloads::{ATTACHMENTS, event},
};

/// The event as a reader sees it: attachments in place, integers and doubles apart.
fn seen(text: &str, attachments: &[Bytes]) -> Json {
    // serde_json refuses these two, which JavaScript reads.
    let text = text.replace("1e400", "null");
    let mut json = serde_json::from_str(&text).expect("JSON");
    see(&mut json, attachments);
    json
}

fn see(json: &mut Json, attachments: &[Bytes]) {
    match json {
        Json::Array(items) => items.iter_mut().for_each(|item| see(item, attachments)),
        Json::Object(members) => {
            if !attachments.is_empty() && members.get("_placeholder") == Some(&Json::Bool(true)) {
                let index = members["num"].as_u64().expect("an index") as usize;
                *json = format!("attachment {:?}", attachments[index]).into();
                return;
            }
            if !attachments.is_empty() {
                members.remove("__proto__");
            }
            members.values_mut().for_each(|value| see(value, attachments));
        }
        _ => {}
    }
}

fn parts(packet: &Packet) -> (&str, Vec<Bytes>) {
    let (PacketData::Event(value, _) | PacketData::BinaryEvent(value, _)) = &packet.inner else {
        panic!("no event")
    };
    let Value::Str(text, attachments) = value else { panic!("no text") };
    (text, attachments.iter().flatten().cloned().collect())
}

fn packet(text: &str, with_attachments: bool) -> Packet {
    let attachments: VecDeque<_> =
        ATTACHMENTS.iter().map(|bytes| Bytes::from_static(bytes)).collect();
    Packet::event("/n", Value::Str(text.to_owned().into(), with_attachments.then_some(attachments)))
}

/// A number is the same text on every node, so long as that is the shortest one for it.
#[test]
fn numbers_stay_what_they_are() {
    let check = |sent: &str, printed: &str| {
        let packet = packet(&format!("[\"e\",{sent}]"), false);
        let frame = encode_broadcast("u", &packet, &Opts::default(), &LIMITS).expect("written");
        let read = decode_broadcast(&frame.into(), &LIMITS).expect("read").packet;
        assert_eq!(parts(&read).0, format!("[\"e\",{printed}]"));
    };
    let exact = r#"{"id":7203948571029384756,"price":10.0}"#;
    check(exact, exact);
    let integers = [
        i128::from(i64::MIN),
        -(1 << 53) - 1,
        -1,
        0,
        (1 << 53) + 1,
        i64::MAX.into(),
        1 << 63,
        u64::MAX.into(),
    ];
    integers.iter().for_each(|integer| check(&integer.to_string(), &integer.to_string()));
    ["-0", "-0.0", "0.0", "0.1", "1e+21", "5e-324"].iter().for_each(|text| check(text, text));
    // The same double in another text.
    check("1e3", "1000.0");
    check("1.50", "1.5");
    check("1E-7", "1e-7");
    check("1e-400", "0.0");
    check("-1e-400", "-0.0");
    // Rounded, as the documentation of `wire` says.
    check("18446744073709551616", "18446744073709552000.0");
    check("-9223372036854775809", "-9223372036854776000.0");
    check("0.12345678901234567890", "0.12345678901234568");
    check("1e400", "null");
}

/// Half surrogate pairs become U+FFFD, which serde_json cannot tell us: tests/fixtures/check does.
fn has_half_pair(text: &str) -> bool {
    text.contains(r"\ud") || text.contains(r"\uD")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn events_survive(
        (with_attachments, text) in any::<bool>().prop_flat_map(|with| (Just(with), event(with))),
        rooms in prop::collection::vec(".*", 0..20),
        except in prop::collection::vec(".*", 0..20),
        uid in ".*",
    ) {
        let packet = packet(&text, with_attachments);
        let opts = Opts {
            rooms: rooms.into_iter().map(Into::into).collect(),
            except: except.into_iter().map(Into::into).collect(),
            ..Opts::default()
        };
        let frame = encode_broadcast(&uid, &packet, &opts, &LIMITS).expect("written").into();
        let read = decode_broadcast(&frame, &LIMITS).expect("read");
        prop_assert_eq!((read.uid, read.opts), (Some(uid.clone()), opts.clone()));
        if !has_half_pair(&text) {
            let ((sent, attached), (got, got_attached)) = (parts(&packet), parts(&read.packet));
            prop_assert_eq!(seen(got, &got_attached), seen(sent, &attached));
        }
        // What was read once stays as it is.
        let again = encode_broadcast(&uid, &read.packet, &opts, &LIMITS).expect("written").into();
        prop_assert_eq!(&decode_broadcast(&again, &LIMITS).expect("read").packet, &read.packet);

        let request = Request {
            uid: Some(uid),
            request_id: Some("id".to_owned()),
            command: Command::Broadcast { packet: read.packet, opts },
        };
        let frame = encode_request(&request, &LIMITS).expect("written").into();
        prop_assert_eq!(decode_request(&frame, &LIMITS), Ok(request));
    }

    #[test]
    fn acknowledgements_survive(text in event(true)) {
        // The first argument travels; the event's name is one that shows nothing.
        let text = text.replacen("\"e\",", "", 1);
        let answer = |text: &str, attachments: Vec<Bytes>| {
            let attachments = (!attachments.is_empty()).then(|| attachments.into());
            let answer = Answer::Ack(Value::Str(text.to_owned().into(), attachments));
            Response { request_id: "id".to_owned(), answer }
        };
        let attachments = ATTACHMENTS.map(Bytes::from_static).to_vec();
        let frame = encode_response(&answer(&text, attachments), &LIMITS).expect("written").into();
        let first = decode_response(&frame, &LIMITS).expect("read");
        let frame = encode_response(&first, &LIMITS).expect("written").into();
        prop_assert_eq!(decode_response(&frame, &LIMITS), Ok(first));
    }

    #[test]
    fn answers_survive(
        ids in prop::collection::vec(".*", 0..4),
        rooms in prop::collection::vec(".*", 0..200),
        data in event(false),
    ) {
        let socket = |id: &String| RemoteSocket {
            id: id.clone(),
            handshake: data.clone(),
            rooms: rooms.iter().cloned().map(Into::into).collect(),
            data: data.clone(),
        };
        let answers = [
            Answer::Sockets(ids.iter().map(socket).collect()),
            Answer::Rooms(rooms.iter().cloned().map(Into::into).collect()),
            Answer::Emitted(Some(data.clone())),
        ];
        for answer in answers {
            let response = Response { request_id: "id".to_owned(), answer };
            let frame = encode_response(&response, &LIMITS).expect("written").into();
            prop_assert_eq!(decode_response(&frame, &LIMITS), Ok(response));
        }
    }
}

/// Clients may nest what they connect with as deep as events, and a peer's limits may be others.
#[test]
fn what_clients_say_of_themselves_may_be_deep() {
    let depth = 10 * LIMITS.depth_max;
    let auth = format!("{}{}", r#"{"a":"#.repeat(depth), "{}") + &"}".repeat(depth);
    let handshake = Handshake {
        headers: Vec::new(),
        issued_ms: 0,
        address: String::new(),
        xdomain: false,
        secure: false,
        url: String::new(),
        query: Vec::new(),
        auth,
    };
    let handshake = encode_handshake(&handshake).expect("written");
    let socket =
        RemoteSocket { id: "x".to_owned(), handshake, rooms: vec![], data: "{}".to_owned() };
    let response = Response { request_id: "r".to_owned(), answer: Answer::Sockets(vec![socket]) };
    let frame = encode_response(&response, &LIMITS).expect("written");
    assert_eq!(peek_request_id(&frame).as_deref(), Some("r"));
    assert_eq!(decode_response(&frame.into(), &LIMITS), Ok(response));
}
