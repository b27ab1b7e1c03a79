//! Questions and orders among healthy nodes.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use antiphon_adapter::bus::memory::Hub;
use antiphon_metrics::adapter::{Ignored, Received, Request};
use socketioxide_core::{
    Sid,
    adapter::{CoreAdapter, Room},
};

use crate::{
    node::{Node, Stranger, channels, everyone, found, room},
    sockets::settle,
};

fn names(rooms: Vec<Room>) -> HashSet<String> {
    rooms.into_iter().map(Room::into_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn every_node_answers() {
    let hub = Hub::new();
    let nodes = [
        Node::join(&hub.link(), "node_a").await,
        Node::join(&hub.link(), "node_b").await,
        Node::join(&hub.link(), "node_c").await,
    ];
    let sids: Vec<Sid> =
        nodes.iter().zip(["x", "y", "x"]).map(|(node, room)| node.socket(&[room])).collect();
    for node in &nodes {
        assert_eq!(node.adapter.server_count().await.unwrap(), 3);
        let rooms = names(node.adapter.rooms(everyone()).await.unwrap());
        let own = sids.iter().map(Sid::to_string);
        assert_eq!(rooms, own.chain(["x".to_owned(), "y".to_owned()]).collect());
        let found = node.adapter.fetch_sockets(room("x")).await.unwrap();
        let found: HashSet<Sid> = found.iter().map(|socket| socket.id).collect();
        assert_eq!(found, HashSet::from([sids[0], sids[2]]));
        let rooms = names(node.adapter.rooms(room("y")).await.unwrap());
        assert_eq!(rooms, HashSet::from([sids[1].to_string(), "y".to_owned()]));
        assert_eq!(node.metrics.requests_pending.get(), 0);
    }
    assert_eq!(nodes[1].metrics.requests_received_total.of(Request::Fetch).get(), 4);
    assert_eq!(nodes[1].metrics.requests_received_total.of(Request::AllRooms).get(), 2);
}

#[tokio::test(start_paused = true)]
async fn rooms_are_counted_once_and_without_those_that_have_been_left() {
    let hub = Hub::new();
    let [a, b] = [Node::join(&hub.link(), "node_a").await, Node::join(&hub.link(), "node_b").await];
    let namespace = a.cluster.namespace("/").expect("it is there");
    assert_eq!(namespace.count_rooms(), 0);
    a.socket(&["x", "y"]);
    let second = a.socket(&["y", "z"]);
    a.socket(&[]);
    b.socket(&["elsewhere"]);
    assert_eq!(namespace.count_rooms(), 3);
    a.adapter.get_local().del(second, "y");
    assert_eq!(namespace.count_rooms(), 3);
    a.adapter.get_local().del_all(second);
    assert_eq!(namespace.count_rooms(), 2);
}

#[tokio::test(start_paused = true)]
async fn counting_rooms_holds_nobody_up() {
    let hub = Hub::new();
    let node = Node::join(&hub.link(), "node_a").await;
    let namespace = node.cluster.namespace("/").expect("it is there");
    let local = node.adapter.get_local();
    for number in 0..10_000 {
        let rooms: Vec<Room> = (0..10).map(|room| format!("{number}/{room}").into()).collect();
        local.add_all(node.socket(&[]), rooms);
    }
    let joining = node.socket(&[]);
    // How long the join that waited longest took, of the time that counting took.
    let waited = || {
        let counting = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let joins = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while counting.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    local.add_all(joining, "room");
                    longest = longest.max(asked.elapsed());
                }
                longest
            });
            let started = Instant::now();
            let rooms = namespace.count_rooms();
            let took = started.elapsed();
            counting.store(false, Ordering::Relaxed);
            assert!((100_000..=100_001).contains(&rooms), "{rooms}");
            joins.join().expect("no panic").as_secs_f64() / took.as_secs_f64()
        })
    };
    // Other programs on the machine may hold a join up once or twice.
    let shares: Vec<_> = (0..5).map(|_| waited()).collect();
    assert!(shares.iter().any(|share| *share < 0.2), "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_is_no_fan_out() {
    let hub = Hub::new();
    let [a, b] = [Node::join(&hub.link(), "node_a").await, Node::join(&hub.link(), "node_b").await];
    b.socket(&[]);
    a.emit(everyone(), "event").await;
    settle().await;
    assert_eq!(a.metrics.broadcasts_received_total.of(Received::Own).get(), 1);
    assert_eq!(b.metrics.broadcasts_received_total.of(Received::Delivered).get(), 1);
    assert_eq!([&a, &b].map(|node| node.metrics.fanout_seconds.count()), [0, 1]);
    assert_eq!([&a, &b].map(|node| node.metrics.recipients_total.get()), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn orders_and_broadcasts_keep_their_order() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let (here, there) = (a.socket(&[]), b.socket(&[]));
    a.adapter.add_sockets(everyone(), "room").await.unwrap();
    a.emit(room("room"), "in").await;
    a.adapter.del_sockets(everyone(), "room").await.unwrap();
    a.emit(room("room"), "out").await;
    a.adapter.add_sockets(everyone(), "room").await.unwrap();
    a.emit(room("room"), "in again").await;
    settle().await;
    for (node, sid) in [(&a, here), (&b, there)] {
        assert_eq!(node.sockets.received(sid), [r#"2["in"]"#, r#"2["in again"]"#]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_orders_it_does_not_do_again_when_it_comes_back() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let sid = a.socket(&[]);
    a.adapter.add_sockets(everyone(), "room").await.unwrap();
    a.adapter.get_local().del(sid, "room");
    settle().await;
    assert_eq!(a.metrics.requests_ignored_total.of(Ignored::Own).get(), 1);
    assert!(!a.in_room(sid, "room"));
}

#[tokio::test(start_paused = true)]
async fn a_found_socket_can_be_reached_and_only_that() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let (here, one, other) = (a.socket(&[]), b.socket(&["room"]), b.socket(&["another"]));
    let sockets = a.adapter.fetch_sockets(room("room")).await.unwrap();
    let [socket] = &sockets[..] else { panic!("one socket: {sockets:?}") };
    assert_eq!(socket.id, one);
    a.emit(found(socket), "to one").await;
    a.adapter.add_sockets(found(socket), "joined").await.unwrap();
    let rooms = names(a.adapter.rooms(found(socket)).await.unwrap());
    assert_eq!(rooms, ["room", "joined", &one.to_string()].map(str::to_owned).into());
    assert_eq!(b.sockets.received(one), [r#"2["to one"]"#]);
    a.adapter.disconnect_socket(found(socket)).await.unwrap();
    settle().await;
    assert!(!b.sockets.has(one) && b.sockets.has(other) && a.sockets.has(here));
    assert!(b.sockets.received(other).is_empty() && a.sockets.received(here).is_empty());
    assert!(b.sockets.closed().is_empty(), "out of the namespace, and no further");
    let gone = a.adapter.fetch_sockets(found(socket)).await.unwrap();
    assert!(gone.is_empty(), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_nodes_own_socket_is_nobody_elses_business() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let sid = a.socket(&[]);
    let sockets = a.adapter.fetch_sockets(everyone()).await.unwrap();
    a.emit(found(&sockets[0]), "to one").await;
    a.adapter.add_sockets(found(&sockets[0]), "room").await.unwrap();
    settle().await;
    assert_eq!(a.sockets.received(sid), [r#"2["to one"]"#]);
    assert!(a.in_room(sid, "room"));
    assert_eq!(a.metrics.broadcasts_sent_total.get(), 0);
    assert_eq!(b.metrics.requests_received_total.of(Request::Join).get(), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_go_where_they_are_wanted() {
    let hub = Hub::new();
    let _shared = Node::join(&hub.link(), "node_a").await;
    let _own = Node::with(&hub.link(), "node_b", |it| it.answer_on_own_channel = true).await;
    let names = channels("asks_1");
    let mut all = Stranger::join(&hub.link(), &[names.response()]).await;
    let mut own = Stranger::join(&hub.link(), &[names.own_response()]).await;
    let question = r#"{"uid":"asks_1","requestId":"r1","type":1}"#;
    own.publish(names.request(), question);
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
    assert_eq!(node.bus.subscribers("socket.io-request#/#").await.unwrap(), 1);
    assert!(node.cluster.namespace("/").is_some() && node.cluster.namespace("/other").is_none());
}
