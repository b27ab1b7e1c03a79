//! Requests and broadcasts among healthy nodes.

use std::collections::HashSet;

use antiphon_adapter::{
    Member, Published, Target,
    bus::memory::Hub,
    wire::{Opts, decode_broadcast, decode_response},
};
use antiphon_metrics::adapter::{Ignored, Received, Request};

use crate::{
    clients::settle,
    node::{LIMITS, Node, Stranger, channels, everyone, room},
};

fn ids(members: &[Member]) -> HashSet<&str> {
    members.iter().map(|member| &*member.id).collect()
}

#[tokio::test(start_paused = true)]
async fn every_node_responds() {
    let hub = Hub::new();
    let nodes = [
        Node::join(&hub.link(), "node_a").await,
        Node::join(&hub.link(), "node_b").await,
        Node::join(&hub.link(), "node_c").await,
    ];
    let sockets: Vec<_> =
        nodes.iter().zip(["x", "y", "x"]).map(|(node, room)| node.socket(&[room])).collect();
    for node in &nodes {
        assert_eq!(node.namespace.server_count().await.unwrap(), 3);
        let found = node.namespace.sockets(everyone()).await.unwrap();
        assert_eq!(ids(&found), sockets.iter().map(|id| id.as_str()).collect());
        let found = node.namespace.sockets(room("x")).await.unwrap();
        assert_eq!(ids(&found), [sockets[0].as_str(), sockets[2].as_str()].into());
        let found = node.namespace.sockets(room("y")).await.unwrap();
        let own = sockets[1].to_string();
        let rooms = vec![own.clone().into(), "y".into()];
        assert_eq!(found, [Member { id: own, rooms }]);
        assert_eq!(node.metrics.requests_pending.get(), 0);
    }
    assert_eq!(nodes[1].metrics.requests_received_total.of(Request::Fetch).get(), 6);
    assert_eq!(nodes[1].metrics.requests_sent_total.of(Request::Fetch).get(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_is_no_fan_out() {
    let hub = Hub::new();
    let [a, b] = [Node::join(&hub.link(), "node_a").await, Node::join(&hub.link(), "node_b").await];
    b.socket(&[]);
    assert_eq!(a.emit(everyone(), "event").await, Published::Yes);
    settle().await;
    assert_eq!(a.metrics.broadcasts_received_total.of(Received::Own).get(), 1);
    assert_eq!(b.metrics.broadcasts_received_total.of(Received::Delivered).get(), 1);
    assert_eq!([&a, &b].map(|node| node.metrics.fanout_seconds.count()), [0, 1]);
    assert_eq!([&a, &b].map(|node| node.metrics.recipients_total.get()), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_for_a_room_that_nobody_is_in_is_not_decoded() {
    let hub = Hub::new();
    let [a, b] = [Node::join(&hub.link(), "node_a").await, Node::join(&hub.link(), "node_b").await];
    let id = b.socket(&["here"]);
    a.emit(room("elsewhere"), "1").await;
    a.emit(room("here"), "2").await;
    a.emit(Target::socket(id), "3").await;
    settle().await;
    assert_eq!(b.received(id), [r#"2["2"]"#, r#"2["3"]"#]);
    assert_eq!(b.metrics.broadcasts_received_total.of(Received::NobodyHere).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn changes_of_rooms_and_broadcasts_keep_their_order() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let (here, there) = (a.socket(&[]), b.socket(&[]));
    a.namespace.sockets_join(&everyone(), vec!["room".into()]).unwrap();
    a.emit(room("room"), "in").await;
    a.namespace.sockets_leave(&everyone(), vec!["room".into()]).unwrap();
    a.emit(room("room"), "out").await;
    a.namespace.sockets_join(&everyone(), vec!["room".into()]).unwrap();
    a.emit(room("room"), "in again").await;
    settle().await;
    for (node, id) in [(&a, here), (&b, there)] {
        assert_eq!(node.received(id), [r#"2["in"]"#, r#"2["in again"]"#]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_passes_over_its_own_commands_when_they_come_back() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let id = a.socket(&[]);
    a.namespace.sockets_join(&everyone(), vec!["room".into()]).unwrap();
    a.namespace.leave(id, "room");
    settle().await;
    assert_eq!(a.metrics.requests_ignored_total.of(Ignored::Own).get(), 1);
    assert!(!a.namespace.in_room(id, "room"));
}

#[tokio::test(start_paused = true)]
async fn a_remote_socket_can_be_reached_by_its_id_and_only_that() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let (here, one, other) = (a.socket(&[]), b.socket(&["room"]), b.socket(&["another"]));
    let target = Target::socket(one);
    assert_eq!(a.emit(target.clone(), "to one").await, Published::Yes);
    a.namespace.sockets_join(&target, vec!["joined".into()]).unwrap();
    let [found] = &a.namespace.sockets(target.clone()).await.unwrap()[..] else { panic!("one") };
    assert_eq!(found.rooms, [one.as_str(), "room", "joined"]);
    assert_eq!(b.received(one), [r#"2["to one"]"#]);
    a.namespace.disconnect_sockets(&target, false).unwrap();
    settle().await;
    assert!(!b.namespace.has(one) && b.namespace.has(other) && a.namespace.has(here));
    assert!(b.received(other).is_empty() && a.received(here).is_empty());
    assert!(b.clients.closed().is_empty(), "out of the namespace, and no further");
    assert!(a.namespace.sockets(target.clone()).await.unwrap().is_empty());
    a.namespace.disconnect_sockets(&Target::socket(other), true).unwrap();
    settle().await;
    assert_eq!(b.clients.closed(), [other]);
}

#[tokio::test(start_paused = true)]
async fn a_nodes_own_socket_is_no_business_of_remote_nodes() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let id = a.socket(&[]);
    assert_eq!(a.emit(Target::socket(id), "to one").await, Published::NotNeeded);
    let target = Target { local: true, ..everyone() };
    assert_eq!(a.emit(target, "to all here").await, Published::NotNeeded);
    a.namespace.sockets_join(&Target::socket(id), vec!["room".into()]).unwrap();
    settle().await;
    assert_eq!(a.received(id), [r#"2["to one"]"#, r#"2["to all here"]"#]);
    assert!(a.namespace.in_room(id, "room"));
    assert_eq!(a.metrics.broadcasts_sent_total.get(), 0);
    assert_eq!(b.metrics.requests_received_total.of(Request::Join).get(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_sender_is_an_exception_by_its_id_as_node_writes_it() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let (id, other) = (a.socket(&[]), a.socket(&[]));
    let mut stranger = Stranger::join(&hub.link(), &[channels("").broadcast()]).await;
    let target = Target { except_socket: Some(id), volatile: true, ..everyone() };
    a.emit(target, "event").await;
    let Opts { rooms, except, flags } =
        decode_broadcast(&stranger.next_bytes().await, &LIMITS).unwrap().opts;
    assert!(rooms.is_empty() && flags.volatile);
    assert_eq!(except, [id.as_str()]);
    assert_eq!((a.received(id).len(), a.received(other).len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_old_form_for_one_socket_is_answered_by_the_node_that_has_it() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let id = b.socket(&[]);
    let names = channels("");
    let mut old = Stranger::join(&hub.link(), &[names.response()]).await;
    let request = format!(r#"{{"requestId":"r1","type":2,"sid":"{id}","room":"room"}}"#);
    old.publish(names.request(), request);
    assert_eq!(old.next().await, r#"{"requestId":"r1"}"#);
    assert!(b.namespace.in_room(id, "room"));
    old.publish(names.request(), r#"{"requestId":"r2","type":0,"rooms":["room"]}"#);
    for _ in 0..2 {
        old.next().await;
    }
    old.publish(names.request(), r#"{"requestId":"r3","type":1}"#);
    let mut rooms = HashSet::new();
    for _ in 0..2 {
        let frame = old.next_bytes().await;
        let answer = decode_response(&frame, &LIMITS).unwrap().answer;
        let antiphon_adapter::wire::Answer::Rooms(found) = answer else { panic!("{answer:?}") };
        rooms.extend(found.into_iter().map(|room| room.into_owned()));
    }
    assert_eq!(rooms, [id.to_string(), "room".to_owned()].into());
    assert!(a.namespace.is_empty());
}

#[tokio::test(start_paused = true)]
async fn responses_go_where_they_are_wanted() {
    let hub = Hub::new();
    let _shared = Node::join(&hub.link(), "node_a").await;
    let _own = Node::with(&hub.link(), "node_b", |it| it.answer_on_own_channel = true).await;
    let names = channels("asks_1");
    let mut all = Stranger::join(&hub.link(), &[names.response()]).await;
    let mut own = Stranger::join(&hub.link(), &[names.own_response()]).await;
    let request = r#"{"uid":"asks_1","requestId":"r1","type":1}"#;
    own.publish(names.request(), request);
    for stranger in [&mut all, &mut own] {
        assert_eq!(stranger.next().await, r#"{"requestId":"r1","rooms":[]}"#);
    }
    // Node hears this answer on the channel of all alone.
    own.publish(names.request(), r#"{"uid":"asks_1","requestId":"r2","type":6,"data":["x"]}"#);
    for _ in 0..2 {
        assert_eq!(all.next().await, r#"{"type":6,"requestId":"r2"}"#);
    }
    // An emitter without a name cannot have a channel.
    own.publish(names.request(), r#"{"requestId":"r3","type":0,"rooms":["nobody"]}"#);
    for _ in 0..2 {
        assert_eq!(all.next().await, r#"{"requestId":"r3","sockets":[]}"#);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_without_a_subscription_of_its_own_gets_one() {
    let hub = Hub::new();
    let node = Node::join(&hub.link(), "node_a").await;
    assert!(node.cluster.namespace("/").is_some() && node.cluster.namespace("/other").is_none());
    let made = node.cluster.create("/other");
    assert_eq!(made.path(), "/other");
    assert!(std::sync::Arc::ptr_eq(&made, &node.cluster.create("/other")), "and only once");
    settle().await;
    assert_eq!(node.bus.subscribers("socket.io-request#/other#").await.unwrap(), 1);
}
