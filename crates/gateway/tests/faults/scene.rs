//! Two nodes on one Redis, a client that sends and one that listens on each.

use std::ops::Range;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::{
    harness::{TestNode, get},
    proxy::Proxy,
    server::Server,
    talk::{Listener, Sender, Told},
    wait::{SOON, eventually},
};

/// The user that the nodes are, in Redis.
pub(crate) const USER: &str = "node";
pub(crate) const PASSWORD: &str = "right";

/// Within which a message reaches its own node's clients, whatever Redis does. It takes about a millisecond, but
/// a busy machine may stand still for one of the hundreds that are sent; who waits for Redis waits two seconds.
const LOCALLY: Duration = Duration::from_millis(1800);

/// What a message may take to the other node: as much longer than the node is deaf may messages be missing.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// Messages after which something is taken to go on.
const SOME: usize = 20;

/// How a node says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// The condition `bus`.
    pub(crate) bus: bool,
    /// What the balancer sees.
    pub(crate) ready: bool,
}

pub(crate) const WELL: Readiness = Readiness { bus: true, ready: true };

/// A node and its clients.
pub(crate) struct Side {
    pub(crate) node: TestNode,
    pub(crate) sender: Sender,
    pub(crate) listener: Listener,
}

impl Side {
    async fn start(number: usize, node: TestNode, listener: Listener) -> Self {
        let sender = Sender::start(node.address, number).await;
        Self { node, sender, listener }
    }

    pub(crate) async fn readiness(&self) -> Readiness {
        readiness(&self.node).await
    }

    async fn counted(&self, metrics: &[&str]) -> usize {
        let mut sum = 0.0;
        for metric in metrics {
            sum += self.node.metric(metric).await;
        }
        sum as usize
    }

    /// How many of its messages a sender was told this about.
    pub(crate) fn told(&self, what: Told) -> usize {
        self.sender.said().iter().filter(|said| said.told == what).count()
    }
}

/// Everything.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    /// Node A, which reaches Redis through the proxy and is to be unready without; and node B.
    pub(crate) sides: [Side; 2],
}

impl Scene {
    /// All is well, and everybody hears everybody.
    pub(crate) async fn start() -> Self {
        let mut server = server();
        server.run().await;
        let (proxy, nodes) = nodes(&server).await;
        for node in &nodes {
            // Before anybody says anything, or it would be lost on the way here.
            eventually("well", SOON, async || readiness(node).await == WELL).await;
        }
        let scene = Self::with_clients(server, proxy, nodes).await;
        scene.recovers().await;
        scene
    }

    /// Redis is down.
    pub(crate) async fn without_redis() -> Self {
        let server = server();
        let (proxy, nodes) = nodes(&server).await;
        Self::with_clients(server, proxy, nodes).await
    }

    async fn with_clients(server: Server, proxy: Proxy, [a, b]: [TestNode; 2]) -> Self {
        // Nobody talks before both listen.
        let at_a = Listener::start(a.address).await;
        let at_b = Listener::start(b.address).await;
        let sides = [Side::start(0, a, at_a).await, Side::start(1, b, at_b).await];
        Self { server, proxy, sides }
    }

    /// The numbers after what each listener heard last of each sender: `[listener][sender]`.
    pub(crate) fn heard_up_to(&self) -> [[usize; 2]; 2] {
        let next = |side: &Side, sender| side.listener.last(sender).map_or(0, |last| last + 1);
        self.sides.each_ref().map(|side| [next(side, 0), next(side, 1)])
    }

    /// On each node, what its clients say goes on reaching its clients.
    pub(crate) async fn goes_on_locally(&self) {
        for (number, side) in self.sides.iter().enumerate() {
            let beyond = side.sender.count() + SOME;
            let heard = async || side.listener.last(number) >= Some(beyond);
            eventually("local messages arrive", SOON, heard).await;
        }
    }

    /// Waits until the nodes have tried to connect so often that they wait for longest between two attempts.
    pub(crate) async fn tries_for_long(&self) {
        for side in &self.sides {
            let failures = "antiphon_bus_connect_failures_total{connection=\"publisher\"}";
            let often = async || side.counted(&[failures]).await >= 8;
            eventually("attempts to connect", 3 * SOON, often).await;
        }
    }

    /// Within five seconds both nodes are well, and from then on everybody hears everybody. Returns the numbers
    /// of the messages that were said, at the earliest, when both were well.
    pub(crate) async fn recovers(&self) -> [usize; 2] {
        let cured = Instant::now();
        for side in &self.sides {
            let is_well = async || side.readiness().await == WELL;
            eventually("well again", SOON.saturating_sub(cured.elapsed()), is_well).await;
        }
        // One more, since the one of that number may have been under way all the time.
        let from = self.sides.each_ref().map(|side| side.sender.count() + 1);
        for side in &self.sides {
            let all =
                || (0..2).all(|sender| side.listener.last(sender) >= Some(from[sender] + SOME));
            let within = SOON.saturating_sub(cured.elapsed());
            eventually("everybody hears everybody", within, async || all()).await;
        }
        from
    }

    /// Nobody says more, and what is said arrives.
    pub(crate) async fn falls_silent(&mut self) {
        for side in &mut self.sides {
            side.sender.stop().await;
        }
        let last = self.sides.each_ref().map(|side| side.sender.count() - 1);
        for side in &self.sides {
            let all = || (0..2).all(|sender| side.listener.last(sender) == Some(last[sender]));
            eventually("the last messages arrive", SOON, async || all()).await;
        }
    }

    /// On node `number`, everything said there arrived in order and soon, nobody was disconnected, and what
    /// senders were told is what was counted.
    pub(crate) async fn check_node(&self, number: usize) {
        let side = &self.sides[number];
        let (said, heard) = (side.sender.said(), side.listener.heard(number));
        assert!(heard.iter().map(|heard| heard.number).eq(0..said.len()), "{heard:?}");
        for (said, heard) in said.iter().zip(&heard) {
            let took = heard.at - said.at;
            assert!(took < LOCALLY, "number {} took {took:?}", heard.number);
        }
        assert!(side.listener.stayed());
        assert_eq!(side.counted(&["antiphon_gateway_sockets_closed_total"]).await, 0);

        let unpublished = |reason| format!("antiphon_bus_unpublished_total{{reason=\"{reason}\"}}");
        let [down, full, large] = ["down", "queue_full", "too_large"].map(unpublished);
        let unsent = "antiphon_adapter_broadcasts_unsent_total";
        assert_eq!(side.counted(&[unsent]).await, side.told(Told::Local));
        assert_eq!(side.counted(&[&down, &full, &large]).await, side.told(Told::Local));
        let sent = "antiphon_adapter_broadcasts_sent_total ";
        assert_eq!(side.counted(&[sent]).await, side.told(Told::Everyone));
        let [lost, rejected] = ["link_lost", "rejected"].map(unpublished);
        let known = [&*lost, &*rejected, "antiphon_bus_published_total "];
        eventually("all is accounted for", SOON, async || {
            side.counted(&known).await == side.told(Told::Everyone)
        })
        .await;
    }

    /// What the listener of one node heard of the other's sender: in order and once. What it missed:
    ///
    /// * All that the sender was told is local, and it heard none of it.
    /// * As many more, at most, as the sender's node counts as lost or rejected after it took them (some of
    ///   those may have arrived), and as the listener's node counts as dropped.
    /// * And, if the fault hit the listener's node too, some of those said while that was cut off: from after
    ///   what it heard last before the fault to when it was well again. Redis tells nobody about a subscriber
    ///   that is not there, so no counter can know their number; `deaf_seconds_total` has the time.
    pub(crate) async fn check_between(&self, sender: usize, cut_off: Option<Range<usize>>) {
        let (from, to) = (&self.sides[sender], &self.sides[1 - sender]);
        let heard: Vec<_> =
            to.listener.heard(sender).into_iter().map(|heard| heard.number).collect();
        assert!(heard.is_sorted_by(|a, b| a < b), "out of order or twice: {heard:?}");
        let dropped = "antiphon_bus_receive_dropped_total";
        let received = "antiphon_adapter_broadcasts_received_total";
        let delivered = format!("{received}{{outcome=\"delivered\"}}");
        eventually("all that came in went out", SOON, async || {
            let taken = to.counted(&[received, dropped]).await;
            to.counted(&["antiphon_bus_received_total "]).await == taken
                && to.counted(&[&delivered]).await == heard.len()
        })
        .await;

        let mut missed = Vec::new();
        for (number, said) in from.sender.said().iter().enumerate() {
            match (said.told, heard.binary_search(&number).is_ok()) {
                (Told::Everyone, true) | (Told::Local, false) => {}
                (Told::Everyone, false) => missed.push(number),
                (Told::Local, true) => panic!("{number} was local, and arrived elsewhere"),
            }
        }
        let lost = ["link_lost", "rejected"]
            .map(|reason| format!("antiphon_bus_unpublished_total{{reason=\"{reason}\"}}"));
        let counted = from.counted(&[&lost[0], &lost[1]]).await + to.counted(&[dropped]).await;
        let range = cut_off.unwrap_or_default();
        let excused = missed.iter().filter(|number| range.contains(number)).count();
        assert!(
            missed.len() - excused <= counted,
            "missed {missed:?}, of which {counted} are counted and those in {range:?} excused"
        );
        if let ([first, .., last], true) = (&missed[..], missed.len() > counted) {
            let deaf = to.node.metric("antiphon_bus_deaf_seconds_total").await;
            let said = from.sender.said();
            let missing = (said[*last].at - said[*first].at).as_secs_f64();
            assert!(deaf > missing - UNDER_WAY.as_secs_f64(), "deaf for {deaf} s of {missing} s");
        }
    }
}

fn server() -> Server {
    let user = ["--user", USER, "on", &format!(">{PASSWORD}"), "~*", "&*", "+@all"];
    // Enough for what is said here, and little enough to be exceeded by one message.
    let limit = ["--client-output-buffer-limit", "pubsub", "256kb", "0", "0"];
    Server::not_started(&[&user[..], &limit].concat())
}

async fn nodes(server: &Server) -> (Proxy, [TestNode; 2]) {
    let proxy = Proxy::start(server.port).await;
    let start = async |url: &str, degraded_is_ready: &str| {
        let redis = [("redis.url", url), ("redis.username", USER), ("redis.password", PASSWORD)];
        let degraded = [("redis.degraded_is_ready", degraded_is_ready)];
        TestNode::start(&[&redis[..], &degraded].concat()).await
    };
    let nodes = [start(&proxy.url(), "false").await, start(&server.url(), "true").await];
    (proxy, nodes)
}

async fn readiness(node: &TestNode) -> Readiness {
    let (status, body) = get(node.admin, "/readyz").await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let ready = status == 200;
    let bus = body["conditions"]["bus"].as_bool().expect("there is a bus");
    let others = ["not_draining", "not_overloaded"].map(|name| body["conditions"][name].as_bool());
    assert_eq!((&body["ready"], others), (&json!(ready), [Some(true); 2]), "{status} {body}");
    let why_not = body["why_not"].as_array().expect("a list");
    assert_eq!(why_not.is_empty(), bus, "{body}");
    assert!(ready || status == 503, "{status}");
    Readiness { bus, ready }
}
