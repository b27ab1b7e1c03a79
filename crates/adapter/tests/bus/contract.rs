//! What every bus does, on Redis (both protocols) and in memory.

use std::time::Duration;

use tokio::time::Instant;

use antiphon_adapter::bus::{
    Protocol, Settings, Status, Subscription, Unpublished,
    memory::{Hub, Link},
};
use antiphon_metrics::bus::{Connection, ReceiveDrop, Unpublished as Reason};
use bytes::Bytes;

use crate::{
    node::{Node, number, redis, settings},
    proxy::Proxy,
    server::Server,
    wait::{SOON, eventually},
};

/// Where nodes meet. `node`'s link can fail, `peer`'s cannot.
enum World {
    Redis { server: Server, proxy: Proxy, protocol: Protocol },
    Memory { hub: Hub, link: Link },
}

impl World {
    async fn redis(protocol: Protocol) -> Self {
        let server = Server::start(&[]).await;
        let proxy = Proxy::start(server.port).await;
        Self::Redis { server, proxy, protocol }
    }

    async fn memory() -> Self {
        let hub = Hub::new();
        Self::Memory { link: hub.link(), hub }
    }

    fn node(&self, settings: Settings, names: &[&str]) -> Node {
        match self {
            Self::Redis { proxy, protocol, .. } => {
                Node::redis(&redis(proxy.url(), *protocol), settings, names)
            }
            Self::Memory { link, .. } => Node::memory(link, settings, names),
        }
    }

    fn peer(&self, names: &[&str]) -> Node {
        match self {
            Self::Redis { server, protocol, .. } => {
                Node::redis(&redis(server.url(), *protocol), settings(), names)
            }
            Self::Memory { hub, .. } => Node::memory(&hub.link(), settings(), names),
        }
    }

    fn cut(&self) {
        match self {
            Self::Redis { proxy, .. } => proxy.cut(),
            Self::Memory { link, .. } => link.cut(),
        }
    }

    fn down(&self) {
        match self {
            Self::Redis { proxy, .. } => proxy.down(),
            Self::Memory { link, .. } => link.down(),
        }
    }

    fn stall(&self) {
        match self {
            Self::Redis { proxy, .. } => proxy.stall(),
            Self::Memory { link, .. } => link.stall(),
        }
    }

    fn heal(&self) {
        match self {
            Self::Redis { proxy, .. } => proxy.heal(),
            Self::Memory { link, .. } => link.heal(),
        }
    }
}

/// One test of the contract, in every world.
macro_rules! contract {
    ($($name:ident,)+) => {$(
        mod $name {
            use super::World;
            use antiphon_adapter::bus::Protocol;

            #[tokio::test]
            async fn resp2() {
                super::$name(World::redis(Protocol::Resp2).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn resp3() {
                super::$name(World::redis(Protocol::Resp3).await).await;
            }

            #[tokio::test(start_paused = true)]
            async fn memory() {
                super::$name(World::memory().await).await;
            }
        }
    )+};
}

contract! {
    ten_thousand_messages_arrive_in_order,
    subscriptions_change_at_run_time,
    a_cut_connection_is_made_again,
    a_half_open_connection_is_noticed,
    an_outage_is_counted_and_ends_by_itself,
    a_node_starts_without_a_server,
    a_full_receive_queue_is_counted_and_not_ready,
    a_full_publish_queue_refuses_at_once,
    closing_publishes_what_waits,
    cancelling_ends_everything,
}

async fn ten_thousand_messages_arrive_in_order(world: World) {
    const COUNT: u64 = 10_000;
    let (mut node, mut peer) = (world.node(settings(), &["room"]), world.peer(&["room"]));
    node.ready().await;
    peer.ready().await;
    for number in 0..COUNT {
        node.bus.publish("room", Bytes::from(number.to_string())).expect("the queue has room");
    }
    for receiver in [&mut node, &mut peer] {
        let messages = receiver.receive(COUNT as usize).await;
        assert!(messages.iter().all(|message| &message.channel[..] == b"room"));
        let numbers = messages.iter().map(|message| number(&message.payload));
        assert!(numbers.eq(0..COUNT));
    }
    eventually("all are answered", SOON, async || node.published() == COUNT).await;
    assert_eq!(node.metrics.publish_seconds.count(), COUNT);
    assert_eq!(node.metrics.publish_queue_messages.get(), 0);
    assert_eq!(peer.metrics.receive_queue_bytes.get(), 0);
    assert_eq!(peer.metrics.received_total.get(), COUNT);
    assert!(node.metrics.probe_seconds.count() > 0);
}

async fn subscriptions_change_at_run_time(world: World) {
    let mut node = world.node(Settings { subscriptions_max: 3, ..settings() }, &["fixed"]);
    let peer = world.peer(&["fixed"]);
    node.ready().await;
    peer.ready().await;
    assert_eq!(node.bus.subscribers("fixed").await.expect("answers"), 2);
    node.bus.ping().await.expect("answers");

    let pattern = Subscription::Pattern("io#/#*".to_owned());
    let channel = Subscription::Channel("later".to_owned());
    node.bus.subscribe(pattern.clone()).expect("has room");
    node.bus.subscribe(channel.clone()).expect("has room");
    assert!(!node.bus.ready(), "not before they are confirmed");
    assert!(node.bus.subscribe(Subscription::Channel("too many".to_owned())).is_err());
    node.ready().await;
    for name in ["io#/#", "io#/chat#", "io#/#room#", "later", "fixed"] {
        peer.bus.publish(name, Bytes::from_static(b"1")).expect("is up");
    }
    let names = |messages: Vec<_>| -> Vec<_> {
        messages
            .into_iter()
            .map(|message: antiphon_adapter::bus::Message| message.channel)
            .collect()
    };
    assert_eq!(names(node.receive(4).await), ["io#/#", "io#/#room#", "later", "fixed"]);

    world.cut();
    node.not_ready().await;
    node.ready().await;
    node.bus.unsubscribe(&channel);
    eventually("it is unsubscribed", SOON, async || {
        node.bus.subscribers("later").await.is_ok_and(|count| count == 0)
    })
    .await;
    for name in ["later", "io#/#room#", "fixed"] {
        peer.bus.publish(name, Bytes::from_static(b"2")).expect("is up");
    }
    assert_eq!(names(node.receive(2).await), ["io#/#room#", "fixed"]);
}

async fn a_cut_connection_is_made_again(world: World) {
    outage(&world, World::cut, None).await;
}

async fn a_half_open_connection_is_noticed(world: World) {
    outage(&world, World::stall, Some(World::heal)).await;
}

async fn an_outage_is_counted_and_ends_by_itself(world: World) {
    outage(&world, World::down, Some(World::heal)).await;
}

/// Publishes all through a fault of the node's link; then everything must add up.
async fn outage(world: &World, fault: fn(&World), cure: Option<fn(&World)>) {
    let (mut node, mut peer) = (world.node(settings(), &["room"]), world.peer(&["room"]));
    node.ready().await;
    peer.ready().await;
    let (own, heard) = (node.collect(), peer.collect());
    let chatter = node.chatter("room");
    heard.beyond(50).await;

    fault(world);
    node.not_ready().await;
    if let Some(cure) = cure {
        let noticed = |status: &Status| !status.publisher_up && !status.subscribed;
        node.status("both connections are given up", noticed).await;
        cure(world);
    }
    node.ready().await;
    let after = chatter.next();
    heard.beyond(after + 50).await;
    own.beyond(after + 50).await;

    let (accepted, refused) = chatter.stop().await;
    let lost = || node.unpublished(Reason::LinkLost);
    eventually("all is accounted for", SOON, async || node.published() + lost() == accepted).await;
    assert_eq!(node.unpublished(Reason::Down), refused);
    own.in_order();
    heard.in_order();
    // What was lost with the link may have arrived; what was confirmed has.
    eventually("the peer heard all", SOON, async || {
        let count = heard.numbers().len() as u64;
        (node.published()..=accepted).contains(&count)
    })
    .await;
    assert_eq!(node.metrics.reconnects_total.of(Connection::Publisher).get(), 1);
    assert_eq!(node.metrics.reconnects_total.of(Connection::Subscriber).get(), 1);
    assert!(node.metrics.deaf_seconds_total.get() > 0.0);
    assert!(peer.bus.ready(), "only the node was cut off");
}

async fn a_node_starts_without_a_server(world: World) {
    world.down();
    let mut node = world.node(settings(), &["room"]);
    let refused = node.bus.publish("room", Bytes::from_static(b"1"));
    assert_eq!(refused, Err(Unpublished::Down));
    assert_eq!(node.unpublished(Reason::Down), 1);
    eventually("it tries again", SOON, async || {
        node.metrics.connect_failures_total.of(Connection::Subscriber).get() >= 3
    })
    .await;
    assert!(node.bus.ping().await.is_err());
    assert!(!node.bus.ready());
    world.heal();
    node.ready().await;
    node.bus.publish("room", Bytes::from_static(b"2")).expect("is up");
    assert_eq!(&node.receive(1).await[0].payload[..], b"2");
}

async fn a_full_receive_queue_is_counted_and_not_ready(world: World) {
    let small = Settings { receive_queue_messages_max: 10, payload_bytes_max: 100, ..settings() };
    let (mut node, peer) = (world.node(small, &["room"]), world.peer(&[]));
    node.ready().await;
    peer.ready().await;
    for number in 0..25 {
        peer.bus.publish("room", Bytes::from(number.to_string())).expect("is up");
    }
    peer.bus.publish("room", Bytes::from(vec![0; 101])).expect("not too large for the peer");
    let dropped = |reason| node.metrics.receive_dropped_total.of(reason).get();
    eventually("all arrived", SOON, async || dropped(ReceiveDrop::TooLarge) == 1).await;
    assert_eq!(dropped(ReceiveDrop::QueueCount), 15);
    assert!(!node.bus.ready());
    node.status("overflow", |status| status.receive_overflow).await;
    let numbers: Vec<_> = node.receive(10).await.iter().map(|one| number(&one.payload)).collect();
    assert!(numbers.into_iter().eq(0..10), "the oldest are kept");
    node.ready().await;
}

async fn a_full_publish_queue_refuses_at_once(world: World) {
    let small = Settings { publish_queue_messages_max: 5, payload_bytes_max: 9, ..settings() };
    let node = world.node(small, &["room"]);
    node.ready().await;
    assert_eq!(node.bus.publish("room", Bytes::from(vec![0; 10])), Err(Unpublished::TooLarge));
    let mut accepted = 0;
    let refused = loop {
        match node.bus.publish("room", Bytes::from_static(b"1")) {
            Ok(()) => accepted += 1,
            Err(refused) => break refused,
        }
        assert!(accepted < 1_000_000, "faster than it can be published");
    };
    assert_eq!(refused, Unpublished::QueueFull);
    assert_eq!(node.unpublished(Reason::QueueFull), 1);
    eventually("the others are", SOON, async || node.published() == accepted).await;
}

async fn closing_publishes_what_waits(world: World) {
    let (mut node, mut peer) = (world.node(settings(), &["room"]), world.peer(&["room"]));
    node.ready().await;
    peer.ready().await;
    for number in 0..5000 {
        node.bus.publish("room", Bytes::from(number.to_string())).expect("the queue has room");
    }
    node.bus.close(Instant::now() + SOON).await;
    assert_eq!(node.published(), 5000);
    assert_eq!(node.bus.publish("room", Bytes::new()), Err(Unpublished::Down));
    assert_eq!(peer.receive(5000).await.len(), 5000);
    assert_eq!(peer.bus.subscribers("room").await.expect("answers"), 1);
    let mut receiver = node.receiver.take().expect("not collecting");
    let mut left = Vec::new();
    while receiver.receive(&mut left, 1000).await {}
    assert!(!node.bus.ready());

    // With a link that does not move, patience ends and what is left is counted.
    let node = world.node(settings(), &["room"]);
    node.ready().await;
    world.stall();
    node.bus.publish("room", Bytes::from_static(b"1")).expect("not noticed yet");
    node.bus.close(Instant::now() + Duration::from_millis(100)).await;
    assert_eq!(node.unpublished(Reason::LinkLost), 1);
}

async fn cancelling_ends_everything(world: World) {
    let mut node = world.node(settings(), &["room"]);
    node.ready().await;
    node.stop.cancel();
    let mut receiver = node.receiver.take().expect("not collecting");
    assert!(!receiver.receive(&mut Vec::new(), 1).await);
    node.status("all down", |status: &Status| !status.subscribed && !status.publisher_up).await;
    assert_eq!(node.bus.publish("room", Bytes::new()), Err(Unpublished::Down));
    node.bus.close(Instant::now()).await;
}
