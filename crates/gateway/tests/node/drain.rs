//! P5: a deploy is not a storm.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::{
    client::{Client, Packet},
    harness::{TestNode, get, open_polling},
};

#[tokio::test]
async fn sessions_are_closed_in_batches_and_without_a_disconnect_packet() {
    let spread = Duration::from_millis(600);
    let node = TestNode::start(&[("drain.spread", "600ms")]).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(Client::connect(node.address).await);
    }
    assert_eq!(get(node.admin, "/readyz").await.0, 200);
    let started = Instant::now();
    node.shutdown.drain.cancel();
    let mut closed = Vec::new();
    for client in &mut clients {
        // Anything but the end of the transport, a DISCONNECT packet above all, is wrong.
        assert_eq!(client.next().await, Packet::Closed);
        closed.push(started.elapsed());
    }
    node.ended().await;
    let last = closed.iter().max().expect("twelve");
    assert!(*last >= spread / 2, "spread over the time, not at once: {closed:?}");
    assert!(closed[0] < spread / 2, "beginning at the start: {closed:?}");
}

#[tokio::test]
async fn what_was_acknowledged_is_delivered_first() {
    let settings = [("drain.spread", "0s"), ("session.send_queue_bytes", "100MB")];
    let node = TestNode::start(&settings).await;
    let mut reader = Client::connect(node.address).await;
    let mut sender = Client::connect(node.address).await;
    // More than the kernel's buffers take: some of it waits in the engine's queue.
    let filler = "x".repeat(900_000);
    for number in 0..30 {
        sender.ask(number, json!(["chat_message", number, filler])).await;
    }
    node.shutdown.drain.cancel();
    for number in 0..30 {
        assert_eq!(reader.event().await[1], number);
    }
    assert_eq!(reader.next().await, Packet::Closed);
    node.ended().await;
}

#[tokio::test]
async fn a_draining_node_is_unready_and_sends_newcomers_elsewhere() {
    let node = TestNode::start(&[("drain.spread", "10s"), ("drain.deadline", "15s")]).await;
    let polling = get(node.address, "/socket.io/?EIO=4&transport=polling").await;
    assert_eq!(polling.0, 200);
    let mut oldest = Client::connect(node.address).await;
    let mut youngest = Client::connect(node.address).await;
    node.shutdown.drain.cancel();
    node.until("antiphon_gateway_draining ", 1.0).await;
    let (status, body) = get(node.admin, "/readyz").await;
    assert!(status == 503 && body.contains(r#""not_draining":false"#), "{status} {body}");
    assert_eq!(get(node.admin, "/healthz").await.0, 200, "unready is not dead");

    let url = format!("http://{}/socket.io/?EIO=4&transport=polling", node.address);
    let refused = reqwest::get(url).await.expect("an answer");
    assert_eq!(refused.status().as_u16(), 503);
    assert_eq!(refused.headers()["retry-after"], "5");
    // Those who are still connected are served until their turn comes.
    let answer = youngest.ask(1, json!(["server_message"])).await;
    assert_eq!(answer, json!([{ "ok": true }]));

    node.shutdown.hurry.cancel();
    let hurried = Instant::now();
    assert_eq!(youngest.next().await, Packet::Event(vec![json!("server_message")], vec![]));
    assert_eq!(youngest.next().await, Packet::Closed);
    assert_eq!(oldest.next().await, Packet::Closed);
    node.ended().await;
    assert!(hurried.elapsed() < Duration::from_secs(5), "a second signal hurries");
}

#[tokio::test]
async fn polling_sessions_end_and_their_clients_come_back() {
    let node = TestNode::start(&[("drain.spread", "100ms")]).await;
    let sid = open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    assert_eq!(get(node.address, &path).await, (200, "2".to_owned()), "the first ping");
    let (address, waiting) = (node.address, path.clone());
    let received = node.metric("antiphon_gateway_received_bytes_total").await;
    let poll = tokio::spawn(async move { get(address, &waiting).await });
    while node.metric("antiphon_gateway_received_bytes_total").await == received {}
    node.shutdown.drain.cancel();
    let (status, body) = poll.await.expect("an answer to the poll that was waiting");
    assert_eq!(status, 200);
    assert!(!body.contains("41"), "no DISCONNECT packet: {body}");
    node.ended().await;
}

#[tokio::test]
async fn a_polling_client_takes_what_waits_for_it_along() {
    let node = TestNode::start(&[("drain.spread", "0s")]).await;
    let sid = open_polling(node.address).await;
    // One that never polls holds nobody up.
    open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    assert_eq!(get(node.address, &path).await, (200, "2".to_owned()), "the first ping");
    let url = format!("http://{}{path}", node.address);
    let connect = reqwest::Client::new().post(&url).body("40").send().await.expect("an answer");
    assert_eq!(connect.status().as_u16(), 200);
    assert!(get(node.address, &path).await.1.starts_with("40"), "connected");
    let mut sender = Client::connect(node.address).await;
    sender.ask(1, json!(["chat_message", "last words"])).await;
    let draining = Instant::now();
    node.shutdown.drain.cancel();
    assert_eq!(sender.event().await, json!(["chat_message", "last words"]));
    assert_eq!(sender.next().await, Packet::Closed);
    assert_eq!(
        get(node.address, &path).await,
        (200, r#"42["chat_message","last words"]"#.to_owned())
    );
    node.ended().await;
    assert!(draining.elapsed() < Duration::from_secs(5), "{:?}", draining.elapsed());
}

#[tokio::test]
async fn an_upgrade_that_is_under_way_is_finished_first() {
    let node = TestNode::start(&[("drain.spread", "0s")]).await;
    let sid = open_polling(node.address).await;
    let url = format!("http://{}/socket.io/?EIO=4&transport=polling&sid={sid}", node.address);
    let connect = reqwest::Client::new().post(&url).body("40").send().await.expect("an answer");
    assert_eq!(connect.status().as_u16(), 200);
    let polled = reqwest::get(&url).await.expect("an answer").text().await.expect("a body");
    assert!(polled.contains("40{"), "connected: {polled}");
    let mut client = Client::upgrading(node.address, &sid).await.expect("the handshake");
    let mut sender = Client::connect(node.address).await;
    sender.ask(1, json!(["chat_message", "last words"])).await;
    node.shutdown.drain.cancel();
    assert_eq!(sender.event().await, json!(["chat_message", "last words"]));
    // Then all have been told to close, this client's connection too.
    assert_eq!(sender.next().await, Packet::Closed);
    client.probe().await;
    assert_eq!(client.event().await, json!(["chat_message", "last words"]));
    assert_eq!(client.next().await, Packet::Closed);
    node.ended().await;
}
