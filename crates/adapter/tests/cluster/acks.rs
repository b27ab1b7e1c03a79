//! Events that clients acknowledge.

use std::{collections::HashSet, time::Duration};

use antiphon_adapter::{
    AckStream, AckTimeoutError, FIRST_ACK_ID, Target,
    bus::{Status, memory::Hub},
};
use futures_util::StreamExt;
use socketioxide_core::Value;
use tokio::time::Instant;

use crate::{
    clients::{all, settle},
    node::{Node, Stranger, channels, everyone, packet, room},
};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Clients on three nodes that answer with their node's name.
async fn cluster(hub: &Hub) -> [Node; 3] {
    let mut nodes = Vec::new();
    for (uid, answer) in [("node_a", r#"["a"]"#), ("node_b", r#"["b"]"#), ("node_c", r#"["c"]"#)] {
        let node = Node::join(&hub.link(), uid).await;
        let id = node.socket(&[]);
        node.clients.answer_with(id, answer);
        nodes.push(node);
    }
    nodes.try_into().ok().expect("three")
}

async fn ask(node: &Node, target: Target) -> AckStream {
    node.namespace.broadcast_with_ack(packet("q"), target, TIMEOUT).await
}

#[tokio::test(start_paused = true)]
async fn everybody_answers_at_once() {
    let hub = Hub::new();
    let [a, _b, c] = cluster(&hub).await;
    let silent = c.socket(&["quiet"]);
    let asked = Instant::now();
    let acks = ask(&a, Target { except: vec!["quiet".into()], ..everyone() }).await;
    assert_eq!(
        all(acks).await,
        ([r#"["a"]"#, r#"["b"]"#, r#"["c"]"#].map(str::to_owned).into(), 0)
    );
    assert!(asked.elapsed() < Duration::from_millis(10), "nobody is waited for");
    assert!(c.received(silent).is_empty());
    assert_eq!(all(ask(&a, room("nobody")).await).await, (vec![], 0));
    assert!(asked.elapsed() < Duration::from_millis(10), "that nobody is there is said at once");
    assert_eq!(a.metrics.requests_pending.get(), 0);
    settle().await;
    assert_eq!(c.metrics.ack_streams.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_misses_the_deadline_is_missing_and_counted() {
    let hub = Hub::new();
    let [a, b, _c] = cluster(&hub).await;
    let here = a.socket(&[]);
    b.socket(&[]);
    b.socket(&[]);
    let asked = Instant::now();
    let items: Vec<_> = ask(&a, everyone()).await.collect().await;
    let missing: Vec<_> = items.iter().filter(|(_, answer)| answer.is_err()).collect();
    assert_eq!((items.len(), missing.len()), (6, 3));
    assert!(missing.contains(&&(Some(here), Err(AckTimeoutError))), "{missing:?}");
    assert!(asked.elapsed() >= TIMEOUT && asked.elapsed() < 2 * TIMEOUT);
    assert_eq!(a.metrics.acks_missing_total.get(), 2, "those of remote nodes");
}

#[tokio::test(start_paused = true)]
async fn all_recipients_get_one_ack_id_and_each_event_another() {
    let hub = Hub::new();
    let node = Node::join(&hub.link(), "node_a").await;
    let ids = [node.socket(&[]), node.socket(&[])];
    let (first, second) = (ask(&node, everyone()).await, ask(&node, everyone()).await);
    for id in ids {
        assert_eq!(node.clients.ack_ids(id), [FIRST_ACK_ID, FIRST_ACK_ID + 1]);
    }
    assert!(FIRST_ACK_ID < i32::MAX as u64);
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn only_who_was_asked_can_acknowledge_and_only_once() {
    let hub = Hub::new();
    let node = Node::join(&hub.link(), "node_a").await;
    let (asked, other) = (node.socket(&["room"]), node.socket(&[]));
    let acks = ask(&node, room("room")).await;
    let ack = node.clients.ack_ids(asked)[0];
    let say = |id, ack, text: &'static str| {
        node.namespace.acknowledge(id, ack, Value::Str(text.into(), None));
    };
    say(other, ack, r#"["of another"]"#);
    say(asked, ack + 1, r#"["of another event"]"#);
    say(asked, 1, r#"["of a handler's"]"#);
    say(asked, ack, r#"["first"]"#);
    say(asked, ack, r#"["second"]"#);
    assert_eq!(all(acks).await, (vec![r#"["first"]"#.to_owned()], 0));
    say(asked, ack, r#"["too late"]"#);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_times_out() {
    let hub = Hub::new();
    let node = Node::join(&hub.link(), "node_a").await;
    let id = node.socket(&[]);
    let asked = Instant::now();
    let acks = ask(&node, everyone()).await;
    node.namespace.remove(id);
    assert_eq!(all(acks).await, (vec![], 1));
    assert!(asked.elapsed() >= TIMEOUT, "as in Node");
}

#[tokio::test(start_paused = true)]
async fn bytes_of_acknowledgements_that_wait_are_bounded() {
    const WAITING_BYTES_MAX: usize = 64 << 20;
    let hub = Hub::new();
    let node = Node::join(&hub.link(), "node_a").await;
    let ids: Vec<_> = (0..65).map(|_| node.socket(&[])).collect();
    let acks = ask(&node, everyone()).await;
    let large = format!("[\"{}\"]", "x".repeat((1 << 20) - 4));
    for id in &ids {
        let value = Value::Str(large.clone().into(), None);
        node.namespace.acknowledge(*id, FIRST_ACK_ID, value);
    }
    let (answers, missing) = all(acks).await;
    assert_eq!((answers.len() * large.len(), missing), (WAITING_BYTES_MAX, 1));
    let acks = ask(&node, everyone()).await;
    node.namespace.acknowledge(ids[0], FIRST_ACK_ID + 1, Value::Str(large.into(), None));
    assert_eq!(all(acks).await.0.len(), 1, "what has been taken waits no longer");
}

#[tokio::test(start_paused = true)]
async fn a_remote_node_that_says_nothing_is_missing() {
    let hub = Hub::new();
    let [a, _b, _c] = cluster(&hub).await;
    let _silent = Stranger::join(&hub.link(), &[channels("").request()]).await;
    let (answers, missing) = all(ask(&a, everyone()).await).await;
    assert_eq!((answers.len(), missing), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_remote_node_that_exaggerates_is_not_believed() {
    const ACKS_MAX: usize = 16_384;
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let mut stranger = Stranger::join(&hub.link(), &[channels("").request()]).await;
    let acks = ask(&a, everyone()).await;
    assert!(stranger.next().await.contains("node_a0"), "its first request");
    let count = r#"{"type":8,"requestId":"node_a0","clientCount":4294967295}"#;
    stranger.publish(channels("").response(), count);
    assert_eq!(all(acks).await, (vec![], ACKS_MAX));
}

#[tokio::test(start_paused = true)]
async fn without_the_bus_those_here_answer_and_the_rest_is_missing() {
    let hub = Hub::new();
    let link = hub.link();
    let a = Node::join(&link, "node_a").await;
    let id = a.socket(&[]);
    a.clients.answer_with(id, r#"["a"]"#);
    link.down();
    a.bus.status().wait_for(|status: &Status| !status.publisher_up).await.unwrap();
    let asked = Instant::now();
    let acks = ask(&a, everyone()).await;
    assert_eq!(all(acks).await, (vec![r#"["a"]"#.to_owned()], 1));
    assert!(asked.elapsed() < Duration::from_millis(100), "at once");
}

#[tokio::test(start_paused = true)]
async fn events_with_and_without_acknowledgement_keep_their_order() {
    let hub = Hub::new();
    let [a, b, _c] = cluster(&hub).await;
    let id = b.socket(&["room"]);
    a.emit(room("room"), "1").await;
    let acks = a.namespace.broadcast_with_ack(packet("2"), room("room"), TIMEOUT).await;
    a.emit(room("room"), "3").await;
    settle().await;
    let second = format!(r#"2{FIRST_ACK_ID}["2"]"#);
    assert_eq!(b.received(id), [r#"2["1"]"#, &second, r#"2["3"]"#]);
    drop(acks);
    assert_eq!(a.metrics.requests_pending.get(), 0, "nobody waits any more");
}

#[tokio::test(start_paused = true)]
async fn one_remote_socket_is_asked_and_no_other() {
    let hub = Hub::new();
    let [a, b, _c] = cluster(&hub).await;
    let id = b.socket(&[]);
    b.clients.answer_with(id, r#"["it"]"#);
    let acks = ask(&a, Target::socket(id)).await;
    assert_eq!(all(acks).await, (vec![r#"["it"]"#.to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn streams_of_acknowledgements_for_remote_nodes_are_bounded() {
    const ACK_STREAMS_MAX: u64 = 1024;
    let hub = Hub::new();
    let b = Node::join(&hub.link(), "node_b").await;
    let id = b.socket(&[]);
    let a = Node::join(&hub.link(), "node_a").await;
    let mut kept = Vec::new();
    // One client that never answers; the requests of one node are fewer than the streams of
    // another.
    let c = Node::join(&hub.link(), "node_c").await;
    for number in 0..=ACK_STREAMS_MAX {
        let asker = if number.is_multiple_of(2) { &a } else { &c };
        kept.push(ask(asker, everyone()).await);
    }
    settle().await;
    let ids: HashSet<u64> = b.clients.ack_ids(id).into_iter().collect();
    assert_eq!(ids.len() as u64, ACK_STREAMS_MAX + 1, "all are delivered");
    assert_eq!(b.metrics.ack_streams.get() as u64, ACK_STREAMS_MAX);
    assert_eq!(b.metrics.ack_streams_refused_total.get(), 1);
    tokio::time::sleep(TIMEOUT).await;
    settle().await;
    assert_eq!(b.metrics.ack_streams.get(), 0);
}
