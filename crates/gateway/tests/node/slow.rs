//! P3 and P7: a client that does not read costs itself, and loses nothing in silence.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{
    client::Client,
    harness::{TestNode, get, open_polling},
};

/// A client that connects to `/` and then reads nothing more, with as small a receive buffer as the
/// kernel gives it.
async fn silent(node: &TestNode) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(2048).expect("a size");
    let mut stream = socket.connect(node.address).await.expect("the node listens");
    let head = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    stream.write_all(b"\x81\x82\0\0\0\x0040").await.expect("written");
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("40{") {
        stream.read_buf(&mut answer).await.expect("an answer");
    }
    stream
}

fn closed(reason: &str) -> String {
    format!(r#"antiphon_gateway_sockets_closed_total{{namespace="/",reason="{reason}"}}"#)
}

#[tokio::test]
async fn what_waits_is_bounded_and_who_reads_gets_everything() {
    let node = TestNode::start(&[("session.send_queue_bytes", "2000000")]).await;
    let _silent = silent(&node).await;
    let mut reader = Client::connect(node.address).await;
    let mut sender = Client::connect(node.address).await;
    let filler = "x".repeat(50_000);
    let mut sent = 0;
    // Until the kernel's buffers and the two megabytes are full: how much the former are depends on the machine.
    while node.metric(&closed("slow_consumer")).await == 0.0 {
        assert!(sent < 2000, "100 MB went to a client that does not read");
        let ok = json!([{ "ok": true }]);
        assert_eq!(sender.ask(sent, json!(["chat_message", sent, filler])).await, ok);
        assert_eq!(sender.event().await[1], sent);
        assert_eq!(reader.event().await[1], sent, "the others get everything, in order");
        sent += 1;
    }
    assert!(
        node.metric(r#"antiphon_gateway_undelivered_total{reason="slow_consumer"}"#).await > 0.0
    );
    reader.leave().await;
    sender.leave().await;
    node.until_empty().await;
}

#[tokio::test]
async fn volatile_events_pass_by_a_client_that_is_behind() {
    let rules = "[[event]]\nname = \"cursor\"\naction = \"broadcast\"\nvolatile = true\n";
    let node = TestNode::start_with_file(rules, &[]).await;
    let _silent = silent(&node).await;
    let mut sender = Client::connect(node.address).await;
    let filler = "x".repeat(500_000);
    for sent in 0..100 {
        sender.ask(sent, json!(["cursor", sent, filler])).await;
        assert_eq!(sender.event().await[1], sent);
    }
    let skipped = r#"antiphon_gateway_undelivered_total{reason="volatile"}"#;
    assert!(node.metric(skipped).await > 50.0, "most of them passed it by");
    assert_eq!(node.metric(&closed("slow_consumer")).await, 0.0, "and cost it nothing");
    sender.leave().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_closed_at_its_deadline() {
    let node = TestNode::start(&[
        ("session.write_stall_timeout", "200ms"),
        ("session.send_queue_bytes", "100MB"),
    ])
    .await;
    let _silent = silent(&node).await;
    let mut sender = Client::connect(node.address).await;
    let filler = "x".repeat(900_000);
    // More than the kernel's buffers take, far less than the queue does.
    for sent in 0..20 {
        sender.emit(json!(["chat_message", sent, filler])).await;
        assert_eq!(sender.event().await[1], sent);
    }
    node.until(&closed("write_stalled"), 1.0).await;
    sender.leave().await;
    node.until_empty().await;
}

#[tokio::test]
async fn a_polling_client_that_does_not_poll_is_closed_too() {
    let node = TestNode::start(&[("session.send_queue_bytes", "5000")]).await;
    let sid = open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let url = format!("http://{}{path}", node.address);
    reqwest::Client::new().post(url).body("40").send().await.expect("an answer");
    node.until("antiphon_gateway_sockets{", 1.0).await;

    let mut sender = Client::connect(node.address).await;
    for sent in 0..260 {
        sender.ask(sent, json!(["chat_message", sent])).await;
    }
    node.until(&closed("slow_consumer"), 1.0).await;
    assert_eq!(get(node.address, &path).await.0, 400, "its session is gone");
    sender.leave().await;
    node.until_empty().await;
}

#[tokio::test]
async fn a_client_that_vanishes_is_noticed_by_its_missing_pongs() {
    let settings = [("session.ping_interval", "200ms"), ("session.ping_timeout", "100ms")];
    let node = TestNode::start(&settings).await;
    let vanished = silent(&node).await;
    node.until(&closed("ping_timeout"), 1.0).await;
    drop(vanished);
    node.until_empty().await;
    tokio::time::timeout(Duration::from_secs(5), node_ends(node)).await.expect("in time");
}

async fn node_ends(node: TestNode) {
    node.shutdown.drain.cancel();
    node.ended().await;
}
