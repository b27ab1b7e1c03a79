//! Rooms, ids as rooms, and batches.

use antiphon_adapter::{Audience, Batch, JoinResult, SocketId, Target, bus::memory::Hub};
use antiphon_metrics::IntCounter;

use crate::{
    clients::settle,
    node::{Node, everyone, packet, room},
};

async fn node() -> Node {
    Node::join(&Hub::new().link(), "node_a").await
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_in_rooms_once() {
    let node = node().await;
    let id = node.socket(&["x", "y"]);
    assert_eq!(node.namespace.join(id, "x"), JoinResult::Already);
    assert_eq!(node.namespace.join(id, "z"), JoinResult::Joined);
    assert_eq!(node.namespace.room_count(id), 3);
    node.namespace.leave(id, "z");
    node.namespace.leave(id, "never joined");
    assert_eq!(node.namespace.rooms(id), ["x", "y"]);
    let both = Target { to: Audience::Rooms(vec!["x".into(), "y".into()]), ..everyone() };
    node.emit(both, "once").await;
    assert_eq!(node.received(id), [r#"2["once"]"#]);
    assert!(node.namespace.remove(id) && !node.namespace.remove(id));
    assert_eq!(node.namespace.join(id, "x"), JoinResult::Gone);
    assert_eq!(node.namespace.count_rooms(), 0);
    node.emit(room("x"), "nobody is here").await;
    assert_eq!(node.received(id).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn rooms_are_counted_once_and_without_those_that_have_been_left() {
    let node = node().await;
    assert_eq!(node.namespace.count_rooms(), 0);
    node.socket(&["x", "y"]);
    let second = node.socket(&["y", "z"]);
    node.socket(&[]);
    assert_eq!(node.namespace.count_rooms(), 3);
    node.namespace.leave(second, "y");
    assert_eq!(node.namespace.count_rooms(), 3);
    node.namespace.remove(second);
    assert_eq!((node.namespace.count_rooms(), node.namespace.len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_id_is_a_room_for_those_who_name_it() {
    let node = node().await;
    let [one, two, three] = [node.socket(&["x"]), node.socket(&["x"]), node.socket(&[])];
    let named = |id: SocketId| Target::room(id.to_string());
    node.emit(named(one), "to one").await;
    node.emit(Target { except: vec![one.to_string().into()], ..everyone() }, "but one").await;
    let rooms = vec!["x".into(), one.to_string().into()];
    node.emit(Target { to: Audience::Rooms(rooms), ..everyone() }, "once").await;
    let except_socket = Some(two);
    node.emit(Target { except_socket, ..room("x") }, "but two").await;
    assert_eq!(node.received(one), [r#"2["to one"]"#, r#"2["once"]"#, r#"2["but two"]"#]);
    assert_eq!(node.received(two), [r#"2["but one"]"#, r#"2["once"]"#]);
    assert_eq!(node.received(three), [r#"2["but one"]"#]);
    assert!(node.namespace.in_room(one, one.as_str()));
    assert!(!node.namespace.in_room(one, two.as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_client_cannot_join_a_room_that_is_a_sockets_id() {
    let hub = Hub::new();
    let [a, b] = [Node::join(&hub.link(), "node_a").await, Node::join(&hub.link(), "node_b").await];
    let (own, other, remote) = (a.socket(&[]), a.socket(&[]), b.socket(&[]));
    assert_eq!(a.namespace.join(own, own.as_str()), JoinResult::Already);
    assert_eq!(a.namespace.join(own, other.as_str()), JoinResult::Reserved);
    assert_eq!(a.namespace.join(own, remote.as_str()), JoinResult::Reserved);
    // A room of the application's that only looks like an id.
    assert_eq!(a.namespace.join(own, "abcdefghij0123456789"), JoinResult::Joined);
    a.emit(Target::room(remote.to_string()), "private").await;
    settle().await;
    assert!(a.received(own).is_empty() && b.received(remote).len() == 1);
    // Whose id an application chose to be like that has it to itself, too.
    let chosen: SocketId = "ABCDEFGHIJ0123456789".parse().unwrap();
    let connection = a.clients.client(own);
    a.namespace.insert(chosen, connection);
    assert_eq!(a.namespace.join(other, chosen.as_str()), JoinResult::Reserved);
    // An application may do with rooms what it likes.
    a.namespace.sockets_join(&Target::socket(own), vec![other.to_string().into()]).unwrap();
    a.emit(Target::room(other.to_string()), "both").await;
    assert_eq!((a.received(own).len(), a.received(other).len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn neighbours_with_one_target_are_one_batch() {
    let node = node().await;
    let (both, one) = (node.socket(&["x"]), node.socket(&[]));
    let reached = IntCounter::new("reached", "recipients").unwrap();
    let mut batch = Batch::default();
    let targets = [everyone(), everyone(), room("x"), room("x"), everyone()];
    for (target, event) in targets.into_iter().zip(["1", "2", "3", "4", "5"]) {
        batch.broadcast(&node.namespace, packet(event), target, Some(&reached)).await;
    }
    assert_eq!(node.received(both).len(), 4, "the last waits");
    batch.flush().await;
    let all = ["1", "2", "3", "4", "5"].map(|event| format!(r#"2["{event}"]"#));
    assert_eq!(node.received(both), all);
    assert_eq!(node.received(one), [&all[..2], &all[4..]].concat());
    assert_eq!([both, one].map(|id| node.clients.batches(id)), [3, 2]);
    assert_eq!(reached.get(), 2 + 2 + 1 + 1 + 2);
}

#[tokio::test(start_paused = true)]
async fn batches_are_bounded() {
    let node = node().await;
    let id = node.socket(&[]);
    let mut batch = Batch::default();
    for _ in 0..129 {
        batch.broadcast(&node.namespace, packet("event"), everyone(), None).await;
    }
    assert_eq!((node.received(id).len(), node.clients.batches(id)), (128, 1));
    batch.flush().await;
    let large: &'static str = "x".repeat(100_000).leak();
    for _ in 0..3 {
        batch.broadcast(&node.namespace, packet(large), everyone(), None).await;
    }
    assert_eq!((node.received(id).len(), node.clients.batches(id)), (131, 3));
}
