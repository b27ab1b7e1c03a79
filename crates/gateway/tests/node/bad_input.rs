//! Bad input gets a clear answer, and costs nobody else anything.
//!
//! One table: what is sent, what comes back, what is counted. During each case another client is
//! connected and must not notice; after it nothing may be left on the node.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite;

use crate::{
    client::{Client, Packet},
    harness::{DEADLINE, TestNode, open_polling},
    rules::RULES,
};

/// Plays a case on a node of its own and checks that `counted` went up by one, nobody else was
/// disturbed, and everything was cleaned up.
async fn check(
    name: &str,
    settings: &[(&str, &str)],
    counted: &str,
    play: impl AsyncFnOnce(SocketAddr),
) {
    let node = TestNode::start(settings).await;
    let mut witness = Client::connect(node.address).await;
    play(node.address).await;
    node.until(counted, 1.0).await;
    assert_eq!(witness.ask(1, json!(["chat_message", name])).await, json!([{ "ok": true }]));
    let event = witness.event().await;
    assert_eq!(event, json!(["chat_message", name]), "the witness saw nothing of it");
    witness.leave().await;
    node.until_empty().await;
}

fn refusal(reason: &str) -> String {
    format!("antiphon_gateway_refusals_total{{reason=\"{reason}\"}}")
}

fn closed(reason: &str) -> String {
    format!(r#"antiphon_gateway_sockets_closed_total{{namespace="/",reason="{reason}"}}"#)
}

fn other(outcome: &str) -> String {
    format!(r#"antiphon_gateway_events_total{{event="other",namespace="/",outcome="{outcome}"}}"#)
}

fn chat(outcome: &str) -> String {
    other(outcome).replace("other", "chat_message")
}

/// Sends these packets from a connected client, which is then closed.
async fn is_closed_after(address: SocketAddr, packets: &[&str]) {
    let mut client = Client::connect(address).await;
    for packet in packets {
        client.send_text(packet).await;
    }
    assert_eq!(client.next().await, Packet::Closed, "{packets:?}");
}

/// Sends this event, which is refused with this reason, once with and once without being asked.
async fn is_refused(address: SocketAddr, event: &str, reason: &str, named: bool) {
    let mut client = Client::connect(address).await;
    client.send_text(&format!("42{event}")).await;
    let mut body = json!({ "ok": false, "error": reason });
    if named {
        body["event"] = json!("chat_message");
    }
    assert_eq!(client.event().await, json!(["error", body]));
    client.leave().await;
}

/// Writes raw bytes and reads whatever comes until the node closes.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the node listens");
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    // A reset after the answer is as good an end as any.
    let read = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the node closes in time");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let url = format!("http://{address}{path}");
    let method = method.parse().expect("a method");
    let request = reqwest::Client::new().request(method, url).body(body.to_owned());
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("a body"))
}

/// A polling session that has connected to `/`: its id.
async fn polling_session(address: SocketAddr) -> String {
    let sid = open_polling(address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    assert_eq!(http(address, "POST", &path, "40").await.0, 200);
    let (_, connected) = http(address, "GET", &path, "").await;
    assert!(connected.contains("40{"), "{connected}");
    sid
}

const HEAD: &str = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\n";

#[tokio::test]
async fn packets() {
    check("malformed packet", &[], &closed("parse_error"), async |a| {
        is_closed_after(a, &["4x"]).await;
    })
    .await;
    check("broken JSON", &[], &closed("parse_error"), async |a| {
        is_closed_after(a, &["42[\"chat_message\","]).await;
    })
    .await;
    check("text after the event", &[], &closed("parse_error"), async |a| {
        is_closed_after(a, &[r#"42["chat_message",1]]"#]).await;
    })
    .await;
    check("an event without a name", &[], &closed("parse_error"), async |a| {
        is_closed_after(a, &["42[]"]).await;
    })
    .await;
    check("a server's packet", &[], &closed("parse_error"), async |a| {
        is_closed_after(a, &["44{\"message\":\"x\"}"]).await;
    })
    .await;
    check("an unknown Engine.IO packet", &[], &closed("parse_error"), async |a| {
        is_closed_after(a, &["9"]).await;
    })
    .await;
    check("too many attachments", &[], &closed("parse_error"), async |a| {
        is_closed_after(a, &["4511-[\"chat_message\"]"]).await;
    })
    .await;
    check("an attachment that does not come", &[], &closed("parse_error"), async |a| {
        // What comes in its place ends the connection; until then it costs what it has sent.
        is_closed_after(
            a,
            &["451-[\"chat_message\",{\"_placeholder\":true,\"num\":0}]", "42[\"x\"]"],
        )
        .await;
    })
    .await;
    check("an attachment out of nowhere", &[], &closed("parse_error"), async |a| {
        let mut client = Client::connect(a).await;
        client.send_binary(b"x").await;
        assert_eq!(client.next().await, Packet::Closed);
    })
    .await;
    check("a message and attachment over the limit together", &[], &chat("too_large"), async |a| {
        let mut client = Client::connect(a).await;
        let filler = "x".repeat(600_000);
        let placeholder = r#"{"_placeholder":true,"num":0}"#;
        client.send_text(&format!("451-[\"chat_message\",\"{filler}\",{placeholder}]")).await;
        client.send_binary(&vec![0; 600_000]).await;
        let body = json!({"ok": false, "error": "too_large", "event": "chat_message"});
        assert_eq!(client.event().await, json!(["error", body]));
        client.leave().await;
    })
    .await;
    check("attachments heavier than a message", &[], &closed("too_large"), async |a| {
        let mut client = Client::connect(a).await;
        client.send_text("452-[\"chat_message\"]").await;
        client.send_binary(&vec![0; 600_000]).await;
        client.send_binary(&vec![0; 600_000]).await;
        assert_eq!(client.next().await, Packet::Closed);
    })
    .await;
    check("a message over the limit", &[], &closed("too_large"), async |a| {
        let text = format!("42[\"chat_message\",\"{}\"]", "x".repeat(1_000_000));
        is_closed_after(a, &[&text]).await;
    })
    .await;
    check("an unknown namespace", &[], "antiphon_gateway_sockets{", async |a| {
        let mut client = Client::open(a, &[]).await.expect("the handshake succeeds");
        client.send_text("40/nowhere,").await;
        assert_eq!(client.next().await, Packet::Refused(json!({"message": "Invalid namespace"})));
    })
    .await;
    check("an event before CONNECT", &[], "antiphon_gateway_sockets{", async |a| {
        let mut client = Client::open(a, &[]).await.expect("the handshake succeeds");
        client.send_text("42[\"chat_message\"]").await;
        assert_eq!(client.next().await, Packet::Closed);
    })
    .await;
    let settings = [("session.connect_timeout", "100ms")];
    check("no CONNECT at all", &settings, "antiphon_gateway_sockets{", async |a| {
        let mut client = Client::open(a, &[]).await.expect("the handshake succeeds");
        assert_eq!(client.next().await, Packet::Closed);
    })
    .await;
}

#[tokio::test]
async fn events() {
    check("an event without a rule", &[], &other("ignored"), async |a| {
        let mut client = Client::connect(a).await;
        client.emit(json!(["nobody listens", 1])).await;
        client.emit(json!(["server_message"])).await;
        assert_eq!(client.event().await, json!(["server_message"]), "no answer, no error");
        client.leave().await;
    })
    .await;
    check("arguments too deep", &[], &chat("malformed"), async |a| {
        let event = format!("[\"chat_message\",{}{}]", "[".repeat(129), "]".repeat(129));
        is_refused(a, &event, "malformed", true).await;
    })
    .await;
    check("a placeholder without attachment", &[], &chat("malformed"), async |a| {
        let mut client = Client::connect(a).await;
        client.send_text(r#"451-["chat_message",{"_placeholder":true,"num":1}]"#).await;
        client.send_binary(b"x").await;
        let body = json!({"ok": false, "error": "malformed", "event": "chat_message"});
        assert_eq!(client.event().await, json!(["error", body]));
        client.leave().await;
    })
    .await;
}

/// What breaks a rule, and what is answered; `rules.rs` has the same with acknowledgements.
#[tokio::test]
async fn broken_rules() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut client = Client::connect(node.address).await;
    let nine = "123456789";
    for (event, outcome) in [
        (json!(["join", 5]), "invalid_room"),
        (json!(["join", ""]), "invalid_room"),
        (json!(["say"]), "invalid_room"),
        (json!(["join", nine]), "room_name_too_long"),
        (json!(["say", nine, 1]), "room_name_too_long"),
        (json!(["say_others", "r", 1]), "not_joined"),
        (json!(["small", "x".repeat(30)]), "too_large"),
    ] {
        client.emit(event.clone()).await;
        let body = json!({"ok": false, "error": outcome, "event": event[0]});
        assert_eq!(client.event().await, json!(["error", body]), "{event}");
    }
    for room in ["one", "two"] {
        client.emit(json!(["join", room])).await;
    }
    client.emit(json!(["join", "three"])).await;
    let body = json!({"ok": false, "error": "too_many_rooms", "event": "join"});
    assert_eq!(client.event().await, json!(["error", body]));
    // Far beyond a burst of three: each of the rest is refused, and none is lost on the way.
    let mut answers = (0, 0);
    for _ in 0..50 {
        client.emit(json!(["seldom"])).await;
    }
    for _ in 0..50 {
        let event = client.event().await;
        match event[0].as_str() {
            Some("seldom") => answers.0 += 1,
            _ => {
                assert_eq!(event[1]["error"], "rate_limited");
                answers.1 += 1;
            }
        }
    }
    assert!(answers.0 >= 3 && answers.1 > 0, "{answers:?}");
    client.leave().await;
    node.until_empty().await;
}

#[tokio::test]
async fn requests() {
    check("an unknown path", &[], "antiphon_gateway_sockets{", async |a| {
        assert_eq!(http(a, "GET", "/admin", "").await, (404, "nothing at /admin\n".to_owned()));
    })
    .await;
    check("the admin paths", &[], "antiphon_gateway_sockets{", async |a| {
        assert_eq!(http(a, "GET", "/metrics", "").await.0, 404);
    })
    .await;
    for (name, method, query, body) in [
        ("no transport", "GET", "EIO=4", r#"{"code":0,"message":"Transport unknown"}"#),
        (
            "an unknown transport",
            "GET",
            "EIO=4&transport=x",
            r#"{"code":0,"message":"Transport unknown"}"#,
        ),
        (
            "an unknown session",
            "GET",
            "EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAA",
            r#"{"code":1,"message":"Session ID unknown"}"#,
        ),
        (
            "no session at all",
            "GET",
            "EIO=4&transport=polling&sid=x",
            r#"{"code":1,"message":"Session ID unknown"}"#,
        ),
        (
            "a POST to an unknown session",
            "POST",
            "EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAA",
            r#"{"code":1,"message":"Session ID unknown"}"#,
        ),
        (
            "a handshake by POST",
            "POST",
            "EIO=4&transport=polling",
            r#"{"code":2,"message":"Bad handshake method"}"#,
        ),
        (
            "a WebSocket without upgrade",
            "GET",
            "EIO=4&transport=websocket",
            r#"{"code":3,"message":"Bad request"}"#,
        ),
    ] {
        let unknown = body.contains("Session ID unknown");
        let reason = if unknown { "unknown_session" } else { "bad_request" };
        check(name, &[], &refusal(reason), async |a| {
            let answer = http(a, method, &format!("/socket.io/?{query}"), "").await;
            assert_eq!(answer, (400, body.to_owned()));
        })
        .await;
    }
    check("an upgrade of an unknown session", &[], &refusal("unknown_session"), async |a| {
        let head = HEAD.replace("websocket HTTP", "websocket&sid=AAAAAAAAAAAAAAAA HTTP");
        let request = format!(
            "{head}Connection: Upgrade, close\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let answer = raw(a, request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("Session ID unknown"),
            "{answer}"
        );
    })
    .await;
    check("a second WebSocket of a session", &[], &refusal("bad_request"), async |a| {
        let sid = open_polling(a).await;
        let mut first = Client::upgrade(a, &sid).await.expect("the upgrade");
        let mut second = Client::upgrading(a, &sid).await.expect("the handshake");
        assert_eq!(second.next().await, Packet::Closed);
        first.send_text("40").await;
        assert_eq!(first.next().await, Packet::Connected, "the first goes on");
        assert_eq!(first.ask(1, json!(["server_message"])).await, json!([{ "ok": true }]));
        first.leave().await;
    })
    .await;
    let settings = [("cors.allowed_origins", "https://app.example.com")];
    check("a page of another origin", &settings, &refusal("origin"), async |a| {
        let refused = Client::open(a, &[("origin", "https://evil.example.com")]).await;
        let Err(tungstenite::Error::Http(answer)) = refused else { panic!("it got in") };
        assert_eq!(answer.status().as_u16(), 403);
        let body = answer.body().as_deref().unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(body), r#"{"code":4,"message":"Forbidden"}"#);
        let allowed = Client::open(a, &[("origin", "https://App.example.com")]).await;
        allowed.expect("its own origin may").leave().await;
    })
    .await;
    for counted in [closed("too_large"), refusal("too_large")] {
        check("a polling message over the limit", &[], &counted, async |a| {
            let sid = polling_session(a).await;
            let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
            let body = format!("42[\"chat_message\",\"{}\"]", "x".repeat(1_000_000));
            assert_eq!(http(a, "POST", &path, &body).await.0, 413);
            assert_eq!(http(a, "GET", &path, "").await.0, 400, "the session is gone");
        })
        .await;
    }
    // A length that ends inside a surrogate pair: a decoder may never come back.
    check("a packet that ends inside a character", &[], &refusal("bad_request"), async |a| {
        let (_, open) = http(a, "GET", "/socket.io/?EIO=3&transport=polling", "").await;
        let sid = open.split('"').nth(3).expect("an id");
        let path = format!("/socket.io/?EIO=3&transport=polling&sid={sid}");
        assert_eq!(http(a, "POST", &path, "1:\u{1f600}x").await.0, 400);
    })
    .await;
    let settings = [("server.request_body_timeout", "100ms")];
    check("a body that never ends", &settings, &refusal("body_timeout"), async |a| {
        let sid = polling_session(a).await;
        let request = format!(
            "POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\n\
            Host: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\n42["
        );
        let answer = raw(a, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
        assert_eq!(http(a, "POST", &path, "1").await.0, 200, "it may still leave");
    })
    .await;
}

#[tokio::test]
async fn connections() {
    let settings = [("server.request_head_timeout", "100ms")];
    check("a head that never ends", &settings, &refusal("bad_head"), async |a| {
        raw(a, HEAD.as_bytes()).await;
    })
    .await;
    check("garbage instead of HTTP", &[], &refusal("bad_head"), async |a| {
        let answer = raw(a, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    })
    .await;
    check("a head over the limit", &[], &refusal("bad_head"), async |a| {
        let answer = raw(a, format!("{HEAD}X: {}\r\n\r\n", "x".repeat(100_000)).as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    })
    .await;
    let settings = [("server.keep_alive_timeout", "100ms")];
    check(
        "an idle connection after a request",
        &settings,
        "antiphon_gateway_sockets{",
        async |a| {
            let answer = raw(a, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 404"), "closed at its deadline: {answer}");
        },
    )
    .await;
    let settings = [("server.max_connections", "2")];
    check("one connection too many", &settings, &refusal("total_limit"), async |a| {
        let second = Client::connect(a).await; // The witness is the first.
        let answer = raw(a, format!("{HEAD}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("\r\nRetry-After: 5\r\n"), "{answer}");
        second.leave().await;
    })
    .await;
    let settings = [("server.max_connections_per_ip", "2")];
    check("one too many of an address", &settings, &refusal("address_limit"), async |a| {
        let second = Client::connect(a).await;
        let answer = raw(a, format!("{HEAD}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        second.leave().await;
    })
    .await;
}
