//! Events that clients acknowledge.

use std::time::Duration;

use antiphon_adapter::bus::{Status, memory::Hub};
use socketioxide_core::adapter::CoreAdapter;
use tokio::time::Instant;

use crate::{
    node::{Node, Stranger, channels, everyone, packet, room},
    sockets::{all, settle},
};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Clients on three nodes that answer with their node's name.
async fn cluster(hub: &Hub) -> [Node; 3] {
    let mut nodes = Vec::new();
    for (uid, answer) in [("node_a", r#"["a"]"#), ("node_b", r#"["b"]"#), ("node_c", r#"["c"]"#)] {
        let node = Node::join(&hub.link(), uid).await;
        let sid = node.socket(&[]);
        node.sockets.with(sid, |socket| socket.acknowledges = Some(answer));
        nodes.push(node);
    }
    nodes.try_into().ok().expect("three")
}

#[tokio::test(start_paused = true)]
async fn everybody_answers_at_once() {
    let hub = Hub::new();
    let [a, _b, c] = cluster(&hub).await;
    let silent_elsewhere = c.socket(&["quiet"]);
    let mut opts = everyone();
    opts.except.push("quiet".into());
    let asked = Instant::now();
    let acks = a.adapter.broadcast_with_ack(packet("q"), opts, Some(TIMEOUT)).await.unwrap();
    assert_eq!(
        all(acks).await,
        ([r#"["a"]"#, r#"["b"]"#, r#"["c"]"#].map(str::to_owned).into(), 0)
    );
    assert!(asked.elapsed() < Duration::from_millis(10), "nobody is waited for");
    assert!(c.sockets.received(silent_elsewhere).is_empty());
    let acks = a.adapter.broadcast_with_ack(packet("q"), room("nobody"), Some(TIMEOUT)).await;
    assert_eq!(all(acks.unwrap()).await, (vec![], 0));
    assert!(asked.elapsed() < Duration::from_millis(10), "that nobody is there is said at once");
    assert_eq!(a.metrics.requests_pending.get(), 0);
    settle().await;
    assert_eq!(c.metrics.ack_streams.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_missing_and_counted() {
    let hub = Hub::new();
    let [a, b, _c] = cluster(&hub).await;
    a.socket(&[]);
    b.socket(&[]);
    b.socket(&[]);
    let asked = Instant::now();
    let acks = a.adapter.broadcast_with_ack(packet("q"), everyone(), Some(TIMEOUT)).await.unwrap();
    let (answers, missing) = all(acks).await;
    assert_eq!((answers.len(), missing), (3, 3));
    assert!(asked.elapsed() >= TIMEOUT && asked.elapsed() < 2 * TIMEOUT);
    assert_eq!(a.metrics.acks_missing_total.get(), 2, "those of peers");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_missing() {
    let hub = Hub::new();
    let [a, _b, _c] = cluster(&hub).await;
    let _silent = Stranger::join(&hub.link(), &[channels("").request()]).await;
    let acks = a.adapter.broadcast_with_ack(packet("q"), everyone(), Some(TIMEOUT)).await.unwrap();
    let (answers, missing) = all(acks).await;
    assert_eq!((answers.len(), missing), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_exaggerates_is_not_believed() {
    const ACKS_MAX: usize = 16_384;
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let mut stranger = Stranger::join(&hub.link(), &[channels("").request()]).await;
    let acks = a.adapter.broadcast_with_ack(packet("q"), everyone(), Some(TIMEOUT)).await.unwrap();
    assert!(stranger.next().await.contains("node_a0"), "its first question");
    let count = r#"{"type":8,"requestId":"node_a0","clientCount":4294967295}"#;
    stranger.publish(channels("").response(), count);
    assert_eq!(all(acks).await, (vec![], ACKS_MAX));
}

#[tokio::test(start_paused = true)]
async fn without_the_bus_those_here_answer_and_the_rest_is_missing() {
    let hub = Hub::new();
    let link = hub.link();
    let a = Node::join(&link, "node_a").await;
    let sid = a.socket(&[]);
    a.sockets.with(sid, |socket| socket.acknowledges = Some(r#"["a"]"#));
    link.down();
    a.bus.status().wait_for(|status: &Status| !status.publisher_up).await.unwrap();
    let asked = Instant::now();
    let acks = a.adapter.broadcast_with_ack(packet("q"), everyone(), Some(TIMEOUT)).await.unwrap();
    assert_eq!(all(acks).await, (vec![r#"["a"]"#.to_owned()], 1));
    assert!(asked.elapsed() < Duration::from_millis(100), "at once");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_closes_its_client_here_and_there() {
    let hub = Hub::new();
    let [a, b, _c] = cluster(&hub).await;
    let (here, there) = (a.socket(&[]), b.socket(&[]));
    for (node, sid) in [(&a, here), (&b, there)] {
        node.sockets.with(sid, |socket| socket.full = true);
    }
    let acks = a.adapter.broadcast_with_ack(packet("q"), everyone(), Some(TIMEOUT)).await.unwrap();
    let (answers, missing) = all(acks).await;
    assert_eq!((answers.len(), missing), (3, 2));
    assert_eq!((a.sockets.closed(), b.sockets.closed()), (vec![here], vec![there]));
}

#[tokio::test(start_paused = true)]
async fn events_with_and_without_acknowledgement_keep_their_order() {
    let hub = Hub::new();
    let [a, b, _c] = cluster(&hub).await;
    let sid = b.socket(&["room"]);
    a.emit(room("room"), "1").await;
    let acks = a.adapter.broadcast_with_ack(packet("2"), room("room"), Some(TIMEOUT)).await;
    a.emit(room("room"), "3").await;
    settle().await;
    assert_eq!(b.sockets.received(sid), [r#"2["1"]"#, r#"2["2"]"#, r#"2["3"]"#]);
    drop(acks);
    assert_eq!(a.metrics.requests_pending.get(), 0, "nobody waits any more");
}

#[tokio::test(start_paused = true)]
async fn so_many_streams_of_acknowledgements_run_and_no_more() {
    const ACK_STREAMS_MAX: u64 = 1024;
    let hub = Hub::new();
    let b = Node::join(&hub.link(), "node_b").await;
    let sid = b.socket(&[]);
    let a = Node::join(&hub.link(), "node_a").await;
    let mut kept = Vec::new();
    // One client that never answers; the questions of one node are fewer than the streams of another.
    let c = Node::join(&hub.link(), "node_c").await;
    for number in 0..=ACK_STREAMS_MAX {
        let asker = if number.is_multiple_of(2) { &a } else { &c };
        let acks = asker.adapter.broadcast_with_ack(packet("q"), everyone(), Some(TIMEOUT)).await;
        kept.push(acks.unwrap());
    }
    settle().await;
    assert_eq!(b.sockets.received(sid).len() as u64, ACK_STREAMS_MAX + 1, "all are delivered");
    assert_eq!(b.metrics.ack_streams.get() as u64, ACK_STREAMS_MAX);
    assert_eq!(b.metrics.ack_streams_refused_total.get(), 1);
    tokio::time::sleep(TIMEOUT).await;
    settle().await;
    assert_eq!(b.metrics.ack_streams.get(), 0);
}
