//! Frames recorded from Node (tests/fixtures/record.mjs), both ways.

use antiphon_adapter::wire::{
    Answer, Broadcast, Channels, Command, Flags, Handshake, Limits, Opts, Request, Scope, Whom,
    WireError, decode_broadcast, decode_legacy_broadcast, decode_request, decode_response,
    encode_broadcast, encode_handshake, encode_request, encode_response, peek_uid,
};
use bytes::Bytes;
use serde_json::Value as Json;
use socketioxide_core::{
    Value,
    packet::{Packet, PacketData},
};

use crate::{LIMITS, payloads::from_hex};

/// Broadcasts that we would write otherwise, and why.
const OTHERWISE: [(&str, &str); 11] = [
    ("io.emit(notNumbers)", "they are null in JSON"),
    ("io.emit(largeIntegers)", "notepack writes their lower 64 bits: they arrive as others"),
    ("io.emit(dates)", "they are strings in JSON"),
    ("io.emit(mixed)", "has a date"),
    ("io.to(number)", "our rooms are strings"),
    ("io.compress(false)", "we know no such flag"),
    ("emitter.emit", "emitters write flags before except"),
    ("emitter.emit(binary)", "emitters write flags before except"),
    ("emitter.to(room1)", "emitters write flags before except"),
    ("emitter.volatile.compress", "emitters write flags before except"),
    ("emitter.of(/admin).to.except.volatile", "emitters write flags before except"),
];

/// Broadcasts with integers beyond 2^53: Node prints the shortest text of the same double, and we print all
/// digits.
const PRINTED_EXACTLY: [&str; 2] = ["io.emit(numbers)", "io.emit(largeIntegers)"];

pub(crate) struct Fixture {
    pub(crate) call: String,
    pub(crate) kind: String,
    channel: String,
    pub(crate) frame: Bytes,
    expect: Json,
}

pub(crate) fn all() -> Vec<Fixture> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fixtures.json");
    let text = std::fs::read_to_string(path).expect("the fixtures are there");
    let file: Json = serde_json::from_str(&text).expect("JSON");
    let text = |json: &Json| json.as_str().expect("a string").to_owned();
    let frames = file["frames"].as_array().expect("an array").iter();
    let frames = frames.map(|frame| Fixture {
        call: text(&frame["call"]),
        kind: text(&frame["kind"]),
        channel: text(&frame["channel"]),
        frame: from_hex(&text(&frame["hex"])).into(),
        expect: frame["expect"].clone(),
    });
    frames.collect()
}

fn of(kind: &str) -> Vec<Fixture> {
    let fixtures: Vec<_> = all().into_iter().filter(|fixture| fixture.kind == kind).collect();
    assert!(fixtures.len() > 10, "{kind}");
    fixtures
}

/// The arguments of an event, of numbers alone, as JavaScript reads them.
fn doubles(text: &str) -> Vec<f64> {
    let arguments: Vec<Json> = serde_json::from_str(text).expect("an array");
    arguments.iter().skip(1).map(|number| number.as_f64().expect("a number")).collect()
}

/// The text and attachments of an event or acknowledgement, against those of a fixture.
fn check_value(call: &str, value: &Value, expect: &Json) {
    let Value::Str(text, attachments) = value else { panic!("{call}: {value:?}") };
    let node = expect["text"].as_str().expect("text");
    if PRINTED_EXACTLY.contains(&call) {
        assert_eq!(doubles(text), doubles(node), "{call}");
    } else {
        assert_eq!(text.as_str(), node, "{call}");
    }
    let expected = expect["attachments"].as_array().expect("an array");
    let attachments: Vec<_> = attachments.iter().flatten().collect();
    assert_eq!(attachments.len(), expected.len(), "{call}");
    for (ours, theirs) in attachments.iter().zip(expected) {
        assert_eq!(**ours, from_hex(theirs.as_str().expect("hex")), "{call}");
    }
}

fn check_packet(call: &str, packet: &Packet, expect: &Json) {
    assert_eq!(packet.ns.as_str(), expect["nsp"], "{call}");
    let has_attachments = !expect["attachments"].as_array().expect("an array").is_empty();
    assert_eq!(packet.inner.is_binary(), has_attachments, "{call}");
    let (PacketData::Event(value, None) | PacketData::BinaryEvent(value, None)) = &packet.inner
    else {
        panic!("{call}: {packet:?}")
    };
    check_value(call, value, expect);
}

fn rooms(list: &Json) -> Vec<String> {
    let plain = |room: &Json| room.as_str().map_or_else(|| room.to_string(), str::to_owned);
    list.as_array().into_iter().flatten().map(plain).collect()
}

#[test]
fn broadcasts_are_read_and_written_as_node_does() {
    for Fixture { call, channel, frame, expect, .. } in of("broadcast") {
        let broadcast = decode_broadcast(&frame, &LIMITS).expect(&call);
        let uid = broadcast.uid.as_deref().expect("signed");
        assert_eq!((uid, peek_uid(&frame)), (expect["uid"].as_str().expect("uid"), Some(uid)));
        check_packet(&call, &broadcast.packet, &expect);
        let opts = &broadcast.opts;
        assert_eq!(opts.rooms, rooms(&expect["opts"]["rooms"]), "{call}");
        assert_eq!(opts.except, rooms(&expect["opts"]["except"]), "{call}");
        assert_eq!(opts.flags.volatile, expect["opts"]["flags"]["volatile"] == true, "{call}");

        let channels = Channels::new("socket.io", &broadcast.packet.ns, uid);
        assert_eq!(&*channels.for_rooms(&opts.rooms), channel, "{call}");
        let scope = match &opts.rooms[..] {
            [room] => Scope::Room(room),
            _ => Scope::Namespace,
        };
        assert_eq!(channels.scope(channel.as_bytes()), Some(scope), "{call}");

        let written = encode_broadcast(uid, &broadcast.packet, opts, &LIMITS).expect(&call);
        let otherwise = OTHERWISE.iter().any(|(other, _)| *other == call);
        assert_eq!(written != frame, otherwise, "{call}: {written:02x?}");
        assert_eq!(decode_broadcast(&written.into(), &LIMITS), Ok(broadcast), "{call}");
    }
}

#[test]
fn requests_are_read_and_written_as_node_does() {
    for Fixture { call, frame, expect, .. } in of("request") {
        let request = decode_request(&frame, &LIMITS).expect(&call);
        assert_eq!(request.uid.as_deref(), expect["uid"].as_str(), "{call}");
        assert_eq!(request.request_id.as_deref(), expect["requestId"].as_str(), "{call}");
        let (kind, orders) = match &request.command {
            Command::Sockets { rooms: asked } => {
                assert_eq!(*asked, rooms(&expect["rooms"]), "{call}");
                (0, None)
            }
            Command::AllRooms => (1, None),
            Command::Join { whom, .. } => (2, Some(whom)),
            Command::Leave { whom, .. } => (3, Some(whom)),
            Command::Disconnect { whom, close } => {
                assert_eq!(*close, expect["close"], "{call}");
                (4, Some(whom))
            }
            Command::Fetch { targets } => {
                assert_eq!(targets.except, rooms(&expect["opts"]["except"]), "{call}");
                (5, None)
            }
            Command::ServerSideEmit { data } => {
                assert_eq!(*data, expect["data"].to_string(), "{call}");
                (6, None)
            }
            Command::Broadcast { packet, opts } => {
                check_packet(&call, packet, &expect["packet"]);
                assert_eq!(opts.flags.timeout_ms, expect["opts"]["flags"]["timeout"].as_u64());
                (7, None)
            }
        };
        assert_eq!(kind, expect["type"], "{call}");
        match orders {
            Some(Whom::Socket(sid)) => assert_eq!(*sid, expect["sid"], "{call}"),
            Some(Whom::Targets(targets)) => {
                assert_eq!(targets.rooms, rooms(&expect["opts"]["rooms"]), "{call}");
                assert_eq!(targets.except, rooms(&expect["opts"]["except"]), "{call}");
            }
            None => {}
        }
        let written = encode_request(&request, &LIMITS).expect(&call);
        assert_eq!(Bytes::from(written), frame, "{call}");
    }
}

#[test]
fn responses_are_read_and_written_as_node_does() {
    for Fixture { call, frame, expect, .. } in of("response") {
        let response = decode_response(&frame, &LIMITS).expect(&call);
        assert_eq!(response.request_id, expect["requestId"], "{call}");
        match &response.answer {
            Answer::Done => assert_eq!(expect.as_object().expect("an object").len(), 1, "{call}"),
            Answer::SocketIds(ids) => assert_eq!(*ids, rooms(&expect["sockets"]), "{call}"),
            Answer::Rooms(all) => assert_eq!(*all, rooms(&expect["rooms"]), "{call}"),
            Answer::Sockets(sockets) => {
                let expected = expect["sockets"].as_array().expect("an array");
                assert_eq!(sockets.len(), expected.len(), "{call}");
                for (socket, expected) in sockets.iter().zip(expected) {
                    assert_eq!(socket.id, expected["id"], "{call}");
                    assert_eq!(socket.rooms, rooms(&expected["rooms"]), "{call}");
                    let json = |text| serde_json::from_str::<Json>(text).expect("JSON");
                    assert_eq!(json(&socket.handshake), expected["handshake"], "{call}");
                    assert_eq!(json(&socket.data), expected["data"], "{call}");
                }
            }
            Answer::Emitted(data) => {
                assert_eq!(data.clone(), expect.get("data").map(Json::to_string), "{call}");
            }
            Answer::ClientCount(count) => assert_eq!(*count, expect["clientCount"], "{call}"),
            Answer::Ack(value) => match expect.get("packet") {
                Some(packet) => check_value(&call, value, packet),
                None => assert_eq!(*value, Value::Str("[]".into(), None), "{call}"),
            },
        }
        let written = encode_response(&response, &LIMITS).expect(&call);
        assert_eq!(Bytes::from(written), frame, "{call}");
    }
}

/// What Node reads as well, though its packages of today do not write it (WIRE, section 1).
#[test]
fn broadcasts_of_other_authors_are_read() {
    const PACKET: &[u8] = b"\x83\xa4type\x02\xa4data\x91\xa1e\xa3nsp\xa2/a";
    let read = |parts: &[&[u8]]| {
        let broadcast = decode_broadcast(&parts.concat().into(), &LIMITS);
        broadcast.map(|Broadcast { uid, packet, opts }| (uid, packet.ns, opts))
    };
    let check = |parts: &[&[u8]], uid: Option<&str>, ns: &str, rooms: &[&str], volatile| {
        let (got_uid, got_ns, opts) = read(parts).expect("readable");
        assert_eq!((got_uid.as_deref(), &*got_ns, opts.flags.volatile), (uid, ns, volatile));
        assert_eq!(opts.rooms, rooms);
    };
    check(&[b"\x93\xa1u", PACKET, b"\x80"], Some("u"), "/a", &[], false);
    check(&[b"\x93\xc0", PACKET, b"\x90"], None, "/a", &[], false);
    check(&[b"\x93\x92\x81\x01\x02\x03", PACKET, b"\x80"], None, "/a", &[], false);
    check(&[b"\x94\x07", PACKET, b"\x80\x91\x91\xc0"], None, "/a", &[], false);
    check(&[b"\x93\xc0\x82\xa4data\x91\xa1e\xa4type\x02\x80"], None, "/", &[], false);
    check(
        &[b"\x93\xc0\x83\xa4data\x91\xa1e\xa3nsp\xd4\0\0\xa4type\x05\x80"],
        None,
        "/",
        &[],
        false,
    );
    check(
        &[b"\x93\xc0", PACKET, b"\x82\xa5flags\x90\xa5rooms\x92\x05\xa1r"],
        None,
        "/a",
        &["5", "r"],
        false,
    );
    check(
        &[b"\x93\xc0", PACKET, b"\x82\xa5flags\x82\xa1x\x81\xc0\x90\xa8volatile\x01\xa5rooms\xa0"],
        None,
        "/a",
        &[],
        true,
    );
    let refused = |parts: &[&[u8]], error| assert_eq!(read(parts), Err(error), "{parts:?}");
    refused(&[b"{}"], WireError::Shape);
    refused(&[b"\x92\xc0", PACKET], WireError::Shape);
    refused(&[b"\x93\xc0", PACKET, b"\xc0"], WireError::Shape);
    refused(&[b"\x93\xc0", PACKET, b"\x81\xa5rooms\xa1r"], WireError::Shape);
    refused(&[b"\x93\xc0", PACKET, b"\x81\xa5rooms\x91\x90"], WireError::Shape);
    refused(&[b"\x93\xc0", PACKET, b"\x80\xc0"], WireError::Trailing);
    refused(&[b"\x93\xc0\x82\xa4type\x02\xa4data\x80\x80"], WireError::Shape);
    refused(&[b"\x93\xc0\x82\xa4type\x03\xa4data\x90\x80"], WireError::PacketType);
    refused(&[b"\x93\xc0\x81\xa4data\x90\x80"], WireError::PacketType);
    refused(&[b"\x93\xc0", PACKET, b"\x81\xa5rooms\xdd\xff\xff\xff\xff"], WireError::TooManyRooms);
}

#[test]
fn the_old_form_of_emitters_is_read() {
    let frame =
        b"\x92\x83\xa4type\x02\xa4data\x92\xa1e\x01\xa3nsp\xa1/\x82\xa5rooms\xa0\xa5flags\xa0";
    let broadcast = decode_legacy_broadcast(&Bytes::from_static(frame), &LIMITS).expect("readable");
    assert_eq!(broadcast.packet, Packet::event("/", Value::Str("[\"e\",1]".into(), None)));
    assert_eq!((broadcast.uid, broadcast.opts), (None, Opts::default()));
}

#[test]
fn the_trace_travels_in_the_flags() {
    let packet = Packet::event("/", Value::Str("[\"e\"]".into(), None));
    let flags = Flags {
        volatile: true,
        timeout_ms: Some(5000),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    };
    let opts = Opts { rooms: vec!["r".into()], except: vec!["x".into(), "y".into()], flags };
    let frame = encode_broadcast("u", &packet, &opts, &LIMITS).expect("written").into();
    assert_eq!(decode_broadcast(&frame, &LIMITS).expect("read").opts, opts);

    let command = Command::Broadcast { packet, opts };
    let request = Request { uid: Some("u".into()), request_id: Some("r".into()), command };
    let frame = encode_request(&request, &LIMITS).expect("written").into();
    assert_eq!(decode_request(&frame, &LIMITS), Ok(request));
}

#[test]
fn handshakes_are_written_as_node_does() {
    let fixtures = of("response");
    let recorded = fixtures.iter().find(|fixture| fixture.call == "fetchSockets").expect("one");
    let theirs = &recorded.expect["sockets"][0]["handshake"];
    let pairs = |map: &Json| {
        let pairs = map.as_object().expect("an object").iter();
        pairs.map(|(key, value)| (key.clone(), value.as_str().expect("text").to_owned())).collect()
    };
    let handshake = Handshake {
        headers: pairs(&theirs["headers"]),
        issued_ms: theirs["issued"].as_i64().expect("a number"),
        address: theirs["address"].as_str().expect("text").to_owned(),
        xdomain: theirs["xdomain"] == true,
        secure: theirs["secure"] == true,
        url: theirs["url"].as_str().expect("text").to_owned(),
        query: pairs(&theirs["query"]),
        auth: theirs["auth"].to_string(),
    };
    let ours = encode_handshake(&handshake).expect("written");
    let keys = |json: &str| {
        let parts = json.split('"').map(str::to_owned).collect::<Vec<_>>();
        let names = ["headers", "time", "address", "xdomain", "secure", "issued", "url", "query"];
        parts.into_iter().filter(|part| names.contains(&part.as_str())).collect::<Vec<_>>()
    };
    let text = String::from_utf8_lossy(&recorded.frame);
    assert_eq!(keys(&ours), keys(&text)[..8]);
    assert_eq!(serde_json::from_str::<Json>(&ours).expect("JSON"), *theirs);
}

#[test]
fn limits_hold() {
    let one = of("broadcast").swap_remove(0).frame;
    let read = |change: fn(&mut Limits), frame: &Bytes| {
        let mut limits = LIMITS;
        change(&mut limits);
        decode_broadcast(frame, &limits).err()
    };
    assert_eq!(read(|limits| limits.frame_bytes_max = 10, &one), Some(WireError::TooLarge));
    let many = |call| all().into_iter().find(|fixture| fixture.call == call).expect("one").frame;
    let (rooms, nested, binary) =
        (many("io.to(many)"), many("io.emit(nested)"), many("io.emit(binaries)"));
    assert_eq!(read(|limits| limits.rooms_max = 19, &rooms), Some(WireError::TooManyRooms));
    assert_eq!(read(|limits| limits.rooms_max = 20, &rooms), None);
    assert_eq!(read(|limits| limits.depth_max = 7, &nested), Some(WireError::TooDeep));
    assert_eq!(read(|limits| limits.depth_max = 9, &nested), None);
    assert_eq!(
        read(|limits| limits.attachments_max = 3, &binary),
        Some(WireError::TooManyAttachments)
    );
}

/// The deepest that limits can allow must fit the stack of a thread.
#[test]
fn a_thousand_levels_fit_the_stack() {
    let limits = Limits { depth_max: usize::MAX, ..LIMITS };
    let nested = |depth| format!("[\"e\",{}{}]", "[".repeat(depth), "]".repeat(depth));
    let encode = |depth| {
        let packet = Packet::event("/", Value::Str(nested(depth).into(), None));
        encode_broadcast("u", &packet, &Opts::default(), &limits)
    };
    let frame = encode(1000).expect("written").into();
    let read = decode_broadcast(&frame, &limits).expect("read");
    assert_eq!(read.packet, Packet::event("/", Value::Str(nested(1000).into(), None)));
    assert_eq!(encode(1001), Err(WireError::TooDeep));
}

#[test]
fn every_reason_has_its_own_label() {
    let labels: std::collections::HashSet<_> = WireError::ALL.map(WireError::label).into();
    assert_eq!(labels.len(), WireError::ALL.len());
}
