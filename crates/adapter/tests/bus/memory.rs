//! What only the hub in memory can do to a bus: time is paused, and the faults are exact.

use std::time::Duration;

use antiphon_adapter::bus::{Settings, Status, memory::Hub};
use antiphon_metrics::bus::{Connection, Unpublished as Reason};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    node::{Node, settings},
    wait::{SOON, eventually},
};

#[tokio::test(start_paused = true)]
async fn a_deaf_node_knows_and_makes_its_subscriber_anew() {
    let hub = Hub::new();
    let link = hub.link();
    let mut node = Node::memory(&link, settings(), &["room"]);
    let peer = Node::memory(&hub.link(), settings(), &[]);
    node.ready().await;
    peer.ready().await;
    let before = Instant::now();
    link.deafen();
    peer.bus.publish("room", Bytes::from_static(b"1")).expect("is up");
    node.status("deaf", |status| status.deaf_since.is_some()).await;
    let since = node.bus.status().borrow().deaf_since.expect("it is");
    assert!(since <= before + Duration::from_millis(10), "since it heard last");
    let reconnects = || node.metrics.reconnects_total.of(Connection::Subscriber).get();
    eventually("the subscriber is made anew", SOON, async || reconnects() > 0).await;
    assert!(node.bus.status().borrow().publisher_up, "the publisher is not to blame");
    assert!(node.metrics.probes_lost_total.get() > 0);
    node.status("connected, and still deaf", |status| status.subscribed).await;
    assert!(!node.bus.ready());

    link.heal();
    node.ready().await;
    let (passed, counted) = (before.elapsed(), node.metrics.deaf_seconds_total.get());
    assert!((counted - passed.as_secs_f64()).abs() < 0.5, "{counted} of {passed:?}");
    peer.bus.publish("room", Bytes::from_static(b"2")).expect("is up");
    assert_eq!(&node.receive(1).await[0].payload[..], b"2", "the first is lost, not replayed");
}

#[tokio::test(start_paused = true)]
async fn a_refusing_server_is_asked_again() {
    let hub = Hub::new();
    let link = hub.link();
    let node = Node::memory(&link, settings(), &["room"]);
    node.ready().await;
    link.refuse();
    node.bus.publish("room", Bytes::from_static(b"1")).expect("is up");
    eventually("it is rejected", SOON, async || node.unpublished(Reason::Rejected) == 1).await;
    node.not_ready().await;
    assert!(node.bus.status().borrow().publisher_up, "a refusal is no reason to reconnect");
    link.heal();
    node.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_under_load_is_late_and_not_lost() {
    let hub = Hub::new();
    let link = hub.link();
    let small = Settings { probe_timeout: Duration::from_millis(100), ..settings() };
    let node = Node::memory(&link, small, &["room"]);
    node.ready().await;
    let deaf = |status: &Status| status.deaf_since.is_some();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        node.bus.publish("room", Bytes::new()).expect("has room");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!deaf(&node.bus.status().borrow()));
    }
    assert_eq!(node.metrics.probes_lost_total.get(), 0);
}
