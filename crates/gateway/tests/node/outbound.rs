//! The outgoing side of sessions, over real sockets: every client gets its events whole, once and in order, however it reads,
//! leaves, comes back or goes over from polling, and whatever the others do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use antiphon_adapter::Target;
use antiphon_gateway::{Listeners, Node, Shutdown, config::Config};
use bytes::Bytes;
use serde_json::{Value, json};
use socketioxide_core::{Value as Text, packet::Packet as Outgoing};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    client::{Client, Packet},
    harness::{DEADLINE, TestNode, get, open_polling},
    rules::RULES,
};

const PONG: [u8; 7] = [0x81, 0x81, 0, 0, 0, 0, b'3'];

/// A client that reads its frames itself, with as small a receive buffer as the kernel gives it.
struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How much it reads at a time.
    at_a_time: usize,
}

impl Raw {
    /// Connects to `/`.
    async fn connect(address: SocketAddr, revision: u8) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(2048).expect("a size");
        let mut stream = socket.connect(address).await.expect("the node listens");
        let head = format!(
            "GET /socket.io/?EIO={revision}&transport=websocket HTTP/1.1\r\nHost: x\r\n\
            Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut raw = Self { stream, buffer: Vec::new(), at_a_time: 65_536 };
        while !raw.buffer.windows(4).any(|end| end == b"\r\n\r\n") {
            raw.read().await;
        }
        let end = raw.buffer.windows(4).position(|end| end == b"\r\n\r\n").expect("seen") + 4;
        raw.buffer.drain(..end);
        assert!(raw.text().await.starts_with("0{"));
        if revision == 4 {
            raw.stream.write_all(b"\x81\x82\0\0\0\x0040").await.expect("written");
        }
        assert!(raw.text().await.starts_with("40"));
        raw
    }

    async fn read(&mut self) {
        let mut part = vec![0; self.at_a_time];
        let read = timeout(DEADLINE, self.stream.read(&mut part)).await;
        let read = read.expect("the node sends something in time").expect("still open");
        assert!(read > 0, "still open");
        self.buffer.extend_from_slice(&part[..read]);
    }

    /// The next frame: opcode and payload.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            if let Some((head, length)) = frame_length(&self.buffer)
                && self.buffer.len() >= head + length
            {
                assert_eq!(self.buffer[0] & 0xf0, 0x80, "a final frame");
                let opcode = self.buffer[0] & 0x0f;
                let payload = self.buffer[head..head + length].to_vec();
                self.buffer.drain(..head + length);
                return (opcode, payload);
            }
            self.read().await;
        }
    }

    /// The next frame that is not a ping; it must be a text.
    async fn text(&mut self) -> String {
        loop {
            let (opcode, payload) = self.frame().await;
            assert_eq!(opcode, 1);
            if payload == b"2" {
                self.stream.write_all(&PONG).await.expect("still open");
                continue;
            }
            return String::from_utf8(payload).expect("UTF-8");
        }
    }

    /// The arguments of the next packet, which must be an event.
    async fn event(&mut self) -> Value {
        let text = self.text().await;
        let event = text.strip_prefix("42").unwrap_or_else(|| panic!("an event, not {text:.40}"));
        serde_json::from_str(event).expect("JSON")
    }
}

/// Of the first frame in these bytes: how long its header is, and its payload.
fn frame_length(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes.get(1)? {
        126 => {
            let length = bytes.get(2..4)?.try_into().expect("two");
            Some((4, usize::from(u16::from_be_bytes(length))))
        }
        127 => {
            let length = bytes.get(2..10)?.try_into().expect("eight");
            Some((10, u64::from_be_bytes(length) as usize))
        }
        short => Some((2, usize::from(*short))),
    }
}

fn closed(reason: &str) -> String {
    format!(r#"antiphon_gateway_sockets_closed_total{{namespace="/",reason="{reason}"}}"#)
}

/// Sends a message and waits until it has come back: how long that took.
async fn round(sender: &mut Client, number: u64, filler: &str) -> Duration {
    let sent = Instant::now();
    sender.emit(json!(["chat_message", number, filler])).await;
    assert_eq!(sender.event().await[1], number);
    sent.elapsed()
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

/// A client that gets `["chat_message", number, …]` with every number from 0 on, until "end".
async fn gets_all(mut client: Client) -> u64 {
    for expected in 0.. {
        let event = client.event().await;
        if event[1] == "end" {
            client.leave().await;
            return expected;
        }
        assert_eq!(event[1], expected);
    }
    unreachable!("there is an end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_or_vanishes_disturbs_nobody_and_is_closed() {
    let settings =
        [("session.write_stall_timeout", "500ms"), ("session.send_queue_bytes", "100MB")];
    let node = TestNode::start(&settings).await;
    let mut others = JoinSet::new();
    for _ in 0..5 {
        others.spawn(gets_all(Client::connect(node.address).await));
    }
    let mut sender = Client::connect(node.address).await;
    let filler = "x".repeat(20_000);
    let mut undisturbed = Vec::new();
    for number in 0..100 {
        undisturbed.push(round(&mut sender, number, &filler).await);
    }

    let stopped = Raw::connect(node.address, 4).await;
    let mut reset = Some(Raw::connect(node.address, 4).await);
    let (mut disturbed, mut number) = (Vec::new(), 100);
    // Until the kernel takes nothing more for the one that has stopped, and its time is up.
    let started = Instant::now();
    while node.metric(&closed("write_stalled")).await == 0.0 {
        assert!(started.elapsed() < DEADLINE, "{number} messages went to a client that stopped");
        disturbed.push(round(&mut sender, number, &filler).await);
        number += 1;
        if number == 110 {
            // In the middle of a message, and with more in its buffer: a reset.
            let mut one = reset.take().expect("there");
            one.stream.set_zero_linger().expect("set");
            one.read().await;
        }
    }
    let (undisturbed, disturbed) = (median(undisturbed), median(disturbed));
    assert!(disturbed < undisturbed * 10 + Duration::from_millis(20), "{disturbed:?}");

    let reset = r#"antiphon_gateway_sockets_closed_total{namespace="/",reason="transport_"#;
    node.until(reset, 1.0).await;
    drop(stopped);
    sender.emit(json!(["chat_message", "end"])).await;
    while let Some(got) = others.join_next().await {
        assert_eq!(got.expect("everything, in order"), number);
    }
    sender.leave().await;
    node.until_empty().await;
    assert_eq!(node.metric(&closed("write_stalled")).await, 1.0);
    assert_eq!(node.metric(&closed("slow_consumer")).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_byte_by_byte_gets_everything() {
    let node = TestNode::start(&[]).await;
    let mut slow = Raw::connect(node.address, 4).await;
    slow.at_a_time = 1;
    let other = tokio::spawn(gets_all(Client::connect(node.address).await));
    let mut sender = Client::connect(node.address).await;
    // Lengths of all three kinds; all of it far more than the buffers of this client.
    let lengths = [0, 100, 101, 102, 120, 65_500, 65_510, 70_000];
    let count = 40;
    for (number, length) in (0..count).zip(lengths.into_iter().cycle()) {
        round(&mut sender, number, &"x".repeat(length)).await;
    }
    sender.emit(json!(["chat_message", "end"])).await;
    assert_eq!(other.await.expect("everything"), count);
    for (number, length) in (0..count).zip(lengths.into_iter().cycle()) {
        assert_eq!(slow.event().await, json!(["chat_message", number, "x".repeat(length)]));
    }
    assert_eq!(slow.event().await, json!(["chat_message", "end"]));
}

#[tokio::test]
async fn of_volatile_events_the_newest_arrives() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut late = Raw::connect(node.address, 4).await;
    let mut sender = Client::connect(node.address).await;
    let filler = "x".repeat(200_000);
    let count = 100;
    for number in 0..count {
        sender.emit(json!(["cursor", number, filler])).await;
        assert_eq!(sender.event().await[1], number);
    }
    // Now it reads again.
    let mut got = vec![late.event().await[1].as_u64().expect("a number")];
    while got.last() != Some(&(count - 1)) {
        got.push(late.event().await[1].as_u64().expect("a number"));
    }
    assert!(got.is_sorted_by(|a, b| a < b), "{got:?}");
    assert!(got.len() < count as usize, "it was behind");
    let skipped = node.metric(r#"antiphon_gateway_undelivered_total{reason="volatile"}"#).await;
    assert_eq!(skipped, (count as usize - got.len()) as f64);
    // What is not volatile goes on as ever.
    sender.emit(json!(["to_all", 1])).await;
    assert_eq!(late.event().await, json!(["to_all", 1]));
    assert_eq!(
        node.metric("antiphon_gateway_deliveries_total ").await,
        (count as usize + got.len() + 2) as f64
    );
    drop(late);
    sender.leave().await;
    node.until_empty().await;
}

async fn post(address: SocketAddr, path: &str, packet: &'static str) {
    let url = format!("http://{address}{path}");
    let posted = reqwest::Client::new().post(url).body(packet).send().await.expect("an answer");
    assert_eq!(posted.status().as_u16(), 200);
}

/// The events in the answer to a poll.
async fn poll(address: SocketAddr, path: &str, events: &mut Vec<u64>) {
    let (status, body) = get(address, path).await;
    assert_eq!(status, 200, "{body}");
    for packet in body.split('\x1e') {
        if let Some(event) = packet.strip_prefix("42") {
            let event: Value = serde_json::from_str(event).expect("JSON");
            events.push(event[1].as_u64().expect("a number"));
        } else if packet == "2" {
            post(address, path, "3").await;
        } else {
            assert!(packet.starts_with("40{") || packet == "6", "{packet}");
        }
    }
}

/// Polls, goes over to a WebSocket, and gets the rest there; returns all numbers that came.
async fn upgrades(address: SocketAddr, polls: usize, upgraded: Arc<AtomicUsize>) -> Vec<u64> {
    let mut events = Vec::new();
    let sid = open_polling(address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    post(address, &path, "40").await;
    for _ in 0..polls {
        poll(address, &path, &mut events).await;
    }
    // One poll is under way when the WebSocket comes, as with real clients; they go over once it is answered.
    let (mut client, ()) =
        tokio::join!(Client::upgrading(address, &sid), poll(address, &path, &mut events));
    let client = client.as_mut().expect("the handshake");
    client.probe().await;
    upgraded.fetch_add(1, Ordering::Relaxed);
    loop {
        match client.next().await {
            Packet::Event(event, _) if event[1] == "end" => return events,
            Packet::Event(event, _) => events.push(event[1].as_u64().expect("a number")),
            Packet::Connected => assert!(events.is_empty(), "its first packet"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn going_over_from_polling_in_a_flood_loses_and_repeats_nothing() {
    const CLIENTS: usize = 60;
    let settings = [("session.send_queue_bytes", "100MB")];
    let node = TestNode::start(&settings).await;
    let mut sender = Client::connect(node.address).await;
    let witness = tokio::spawn(gets_all(Client::connect(node.address).await));
    let upgraded = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(upgrades(node.address, number % 4, Arc::clone(&upgraded)));
    }
    let mut sent = 0;
    while upgraded.load(Ordering::Relaxed) < CLIENTS {
        // Several at a time, so that there is always something on its way.
        for number in sent..sent + 8 {
            sender.emit(json!(["chat_message", number])).await;
        }
        for number in sent..sent + 8 {
            assert_eq!(sender.event().await[1], number);
        }
        sent += 8;
        assert!(clients.try_join_next().is_none(), "nobody ends before the end");
    }
    sender.emit(json!(["chat_message", "end"])).await;
    while let Some(events) = clients.join_next().await {
        let events = events.expect("no panic");
        let first = events.first().copied().unwrap_or(sent);
        assert_eq!(events, (first..sent).collect::<Vec<_>>(), "each once, in order");
    }
    assert_eq!(witness.await.expect("no panic"), sent);
    sender.leave().await;
    node.until_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leaving_and_coming_back_in_a_flood_keeps_order_in_both_namespaces() {
    const TIMES: usize = 50;
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut client = Client::connect(node.address).await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut floods = JoinSet::new();
    for namespace in ["/", "/other"] {
        let mut sender = match namespace {
            "/" => Client::connect(node.address).await,
            other => Client::connect_to(node.address, other).await,
        };
        let done = Arc::clone(&done);
        floods.spawn(async move {
            let mut sent = 0;
            while done.load(Ordering::Relaxed) == 0 {
                for number in sent..sent + 4 {
                    sender.emit(json!(["to_all", number])).await;
                }
                for number in sent..sent + 4 {
                    assert_eq!(sender.event().await[1], number);
                }
                sent += 4;
            }
            sender.emit(json!(["to_all", "end"])).await;
            assert_eq!(sender.event().await[1], "end");
            sent
        });
    }
    client.send_text("40/other,").await;
    let (mut root, mut other, mut times) = (None, None, 0);
    let mut since = 0;
    let mut ended = [false; 2];
    while ended != [true; 2] {
        let text = client.raw_text().await;
        if text.starts_with("40/other,") {
            (times, since) = (times + 1, 0);
        } else if let Some(event) = text.strip_prefix("42/other,") {
            assert!(times > 0, "before its CONNECT packet");
            let number = &serde_json::from_str::<Value>(event).expect("JSON")[1];
            ended[1] |= number == "end";
            let Some(number) = number.as_u64() else { continue };
            // Only between two stays are some left out.
            if let Some(last) = other {
                assert!(number == last + 1 || since == 0 && number > last, "{number} after {last}");
            }
            other = Some(number);
            since += 1;
            if since == 3 && times < TIMES {
                client.send_text("41/other,").await;
                client.send_text("40/other,").await;
            } else if since == 3 {
                done.store(1, Ordering::Relaxed);
            }
        } else {
            let event = text.strip_prefix("42").unwrap_or_else(|| panic!("unexpected {text}"));
            let number = &serde_json::from_str::<Value>(event).expect("JSON")[1];
            ended[0] |= number == "end";
            let Some(number) = number.as_u64() else { continue };
            assert!(root.is_none_or(|last| number == last + 1), "{number} after {root:?}");
            root = Some(number);
        }
    }
    assert_eq!(times, TIMES);
    let sent: u64 = floods.join_all().await.into_iter().max().expect("two");
    assert!(root < Some(sent) && other < Some(sent));
    client.leave().await;
    node.until_empty().await;
}

#[tokio::test]
async fn attachments_follow_their_event_in_both_protocols() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut old = Raw::connect(node.address, 3).await;
    let mut new = Raw::connect(node.address, 4).await;
    let mut sender = Client::connect(node.address).await;
    let large = vec![7; 70_000];
    for number in 0..50 {
        let holes = r#"{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}"#;
        sender.send_text(&format!(r#"452-["to_all",{number},{holes}]"#)).await;
        sender.send_binary(&large[..number * 1000]).await;
        sender.send_binary(&[1]).await;
        sender.emit(json!(["to_all", number])).await;
    }
    // They begin to read when all of that waits for them.
    for number in 0..50 {
        let Packet::Event(event, attachments) = sender.next().await else { panic!("no event") };
        assert_eq!((&event[1], attachments.len()), (&json!(number), 2));
        assert_eq!(sender.event().await, json!(["to_all", number]));
    }
    for (client, prefix) in [(&mut old, &[4][..]), (&mut new, &[])] {
        for number in 0..50 {
            let text = client.text().await;
            assert!(text.starts_with(&format!(r#"452-["to_all",{number},"#)), "{text}");
            let expected = [prefix, &large[..number * 1000]].concat();
            assert!(client.frame().await == (2, expected), "the first attachment");
            assert_eq!(client.frame().await, (2, [prefix, &[1]].concat()));
            assert_eq!(client.event().await, json!(["to_all", number]));
        }
    }
}

/// The next event of a client in two namespaces: whether it is of the second, and its number.
async fn numbered(client: &mut Raw) -> (bool, u64) {
    let text = client.text().await;
    let (event, attached) = match text.strip_prefix("451-") {
        Some(event) => (event, true),
        None => (text.strip_prefix("42").unwrap_or_else(|| panic!("{text:.40}")), false),
    };
    let (event, other) = match event.strip_prefix("/other,") {
        Some(event) => (event, true),
        None => (event, false),
    };
    if attached {
        assert!(client.frame().await == (2, vec![7; ATTACHMENT_BYTES]), "what belongs to it");
    }
    let event = event.trim_start_matches(|c: char| c.is_ascii_digit());
    let event: Value = serde_json::from_str(event).expect("JSON");
    (other, event[1].as_u64().expect("a number"))
}

/// More than the kernel takes at once.
const ATTACHMENT_BYTES: usize = 3_000_000;

/// Both go the same way, in one order.
#[tokio::test]
async fn what_asks_for_acknowledgements_keeps_its_place() {
    const ROUNDS: u64 = 12;
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    std::fs::write(file.path(), RULES).expect("the file is writable");
    let pairs = [
        ("server.listen", "127.0.0.1:0"),
        ("admin.listen", "127.0.0.1:0"),
        ("session.send_queue_bytes", "100MB"),
    ];
    let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config = Config::load(Some(file.path()), std::iter::empty(), &pairs);
    let config = config.expect("valid").config;
    let listeners = Listeners::bind(&config).await.expect("free ports");
    let address = listeners.public.local_addr().expect("bound");
    let node = Node::new(config).expect("a node");
    let [namespace, other] = ["/", "/other"].map(|path| node.namespace(path).expect("there"));
    let shutdown = Shutdown::default();
    let serving = tokio::spawn(node.serve(listeners, shutdown.clone()));

    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Raw::connect(address, 4).await;
        client.stream.write_all(b"\x81\x89\0\0\0\x0040/other,").await.expect("written");
        assert!(client.text().await.starts_with("40/other,"));
        clients.push(client);
    }
    // One reads from the start, the others when the kernel takes nothing more for them.
    let mut early = clients.pop().expect("three");
    let reading = tokio::spawn(async move {
        for _ in 0..3 * ROUNDS + ROUNDS / 2 {
            numbered(&mut early).await;
        }
    });
    let event = |number: u64, length| {
        let text = json!(["event", number, "x".repeat(length)]).to_string();
        Outgoing::event("/", Text::Str(text.into(), None))
    };
    let everyone = Target::everyone();
    let ask = async |path: &'static str, number: u64| {
        let asked = if path == "/" { &namespace } else { &other };
        let text = json!(["event", number, { "_placeholder": true, "num": 0 }]).to_string();
        let attachment = Bytes::from(vec![7; ATTACHMENT_BYTES]);
        let packet = Outgoing::event(path, Text::Str(text.into(), Some(vec![attachment].into())));
        drop(asked.broadcast_with_ack(packet, Target::everyone(), DEADLINE).await);
    };
    let mut sent = [0, 0];
    let mut next = |space: usize| {
        sent[space] += 1;
        sent[space] - 1
    };
    for round in 0..ROUNDS {
        namespace.broadcast(event(next(0), 50_000), &everyone).await;
        ask("/other", next(1)).await;
        // From half way on, also where the events are.
        if round >= ROUNDS / 2 {
            ask("/", next(0)).await;
        }
        namespace.broadcast(event(next(0), 0), &everyone).await;
    }
    reading.await.expect("all of it");
    for mut client in clients {
        let mut next = [0, 0];
        while next != sent {
            let (other, number) = numbered(&mut client).await;
            assert_eq!(number, next[usize::from(other)], "in order");
            next[usize::from(other)] += 1;
        }
    }
    shutdown.drain.cancel();
    let ended = timeout(DEADLINE, serving).await.expect("in time");
    ended.expect("no panic").expect("no error");
}

#[tokio::test]
async fn who_has_its_share_waiting_is_not_read_from_and_not_refused() {
    // In this test everything runs on one thread, so events that arrive together pile up.
    let node = TestNode::start(&[("stage.max_events", "4")]).await;
    let mut client = Client::connect(node.address).await;
    for number in 0..40 {
        client.send_text(&format!(r#"42{number}["chat_message",{number}]"#)).await;
    }
    let (mut arrived, mut ok) = (Vec::new(), Vec::new());
    while ok.len() < 40 || arrived.len() < 40 {
        match client.next().await {
            Packet::Ack(id, answer) if answer == json!([{ "ok": true }]) => ok.push(id),
            Packet::Event(event, _) => arrived.push(event[1].as_u64().expect("a number")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(arrived, ok, "all of it, in order");
    client.leave().await;
    node.until_empty().await;
}

#[tokio::test]
async fn more_senders_than_events_may_wait_are_refused() {
    let node = TestNode::start(&[("stage.max_events", "4")]).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(Client::connect(node.address).await);
    }
    // All of it is there before the node reads any: it runs on this thread.
    let sending = clients.iter_mut().map(|client| client.send_text(r#"421["server_message"]"#));
    futures_util::future::join_all(sending).await;
    let mut overloaded = 0;
    for client in &mut clients {
        let answer = loop {
            if let Packet::Ack(_, answer) = client.next().await {
                break answer;
            }
        };
        match answer[0]["error"].as_str() {
            None => assert_eq!(answer, json!([{ "ok": true }])),
            Some(error) => {
                assert_eq!(error, "overloaded");
                overloaded += 1;
            }
        }
    }
    assert!((1..=8).contains(&overloaded), "four at a time are taken: {overloaded}");
    let counted = r#"antiphon_gateway_events_total{event="server_message",namespace="/",outcome="#;
    assert_eq!(node.metric(&format!(r#"{counted}"overloaded""#)).await, f64::from(overloaded));
    for client in clients {
        client.leave().await;
    }
    node.until_empty().await;
}

#[tokio::test]
async fn going_over_from_polling_loses_nothing_of_what_is_more_than_one_answer() {
    let node = TestNode::start(&[("limits.max_message_bytes", "1024")]).await;
    let (_, open) = get(node.address, "/socket.io/?EIO=4&transport=polling").await;
    let open: Value = serde_json::from_str(&open[1..]).expect("an open packet");
    assert_eq!(open["maxPayload"], 1024, "what the client may send at a time");
    let sid = open["sid"].as_str().expect("an id");
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    post(node.address, &path, "40").await;
    let mut sender = Client::connect(node.address).await;
    // The CONNECT packet is in the first answer, and more events than fit into a message wait behind it.
    let filler = "x".repeat(500);
    for number in 0..6 {
        sender.ask(number, json!(["chat_message", number, filler])).await;
    }
    let mut events = Vec::new();
    poll(node.address, &path, &mut events).await;
    let mut client = Client::upgrading(node.address, sid).await.expect("the handshake");
    client.probe().await;
    sender.ask(6, json!(["chat_message", 6, "the last"])).await;
    while events.last() != Some(&6) {
        if let Packet::Event(event, _) = client.next().await {
            events.push(event[1].as_u64().expect("a number"));
        }
    }
    assert_eq!(events, [0, 1, 2, 3, 4, 5, 6]);
}
