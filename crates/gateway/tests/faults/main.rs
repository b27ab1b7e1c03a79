//! What Redis can do to a cluster, as its clients and its operators see it.
//!
//! A row for each fault. Before, during and after, a client of each of two nodes sends numbered messages, one
//! at a time with an acknowledgement, and a client of each listens. Whatever the fault:
//!
//! * On each node, what its clients say reaches its clients: all of it, in order, at once.
//! * Nobody is disconnected.
//! * The nodes it hits say so within five seconds, and are well within five seconds of its end.
//! * What the other node's clients hear is in order and comes once; what they miss is accounted for
//!   ([`Scene::check_between`]).
//!
//! Each test starts a redis-server of its own (Debian: `apt-get install redis-server`).

mod scene;
mod talk;

#[expect(dead_code, reason = "the tests of a node need more of it")]
#[path = "../node/client.rs"]
mod client;
#[expect(dead_code, reason = "the tests of a node need more of it")]
#[path = "../node/harness.rs"]
mod harness;
#[expect(dead_code, reason = "the tests of the bus need more of it")]
#[path = "../../../adapter/tests/bus/proxy.rs"]
mod proxy;
#[expect(dead_code, reason = "the tests of the bus need more of it")]
#[path = "../../../adapter/tests/bus/server.rs"]
mod server;
#[path = "../../../adapter/tests/bus/wait.rs"]
mod wait;

use std::{ops::Range, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    scene::{PASSWORD, Readiness, Scene, Side, USER, WELL},
    talk::Told,
    wait::{SOON, eventually},
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The connections end.
    Cut,
    /// Nothing moves, for a time.
    Stalled,
    /// Nothing moves on the present ones any more; new ones would serve.
    HalfOpen,
    /// Redis closes those that subscribe.
    SubscribersKilled,
    /// Redis closes all others.
    PublishersKilled,
    /// Redis is killed, and started again.
    Restarted,
    /// Redis is started after the nodes.
    DownAtStart,
    /// Redis keeps everybody waiting, for a time.
    Paused,
    /// A message is more than Redis holds for a subscriber.
    OutputBuffer,
    /// The nodes may not use their channels.
    Forbidden,
    /// The connections end, and the password is another.
    WrongPassword,
}

/// Which nodes know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hits {
    /// The one behind the proxy.
    A,
    Both,
}

/// What senders are told while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acks {
    /// That their messages go no further than their node.
    Local,
    /// Nothing: what is published reaches Redis, and peers that hear; or Redis refuses it, which is known after
    /// the acknowledgement.
    AsEver,
}

macro_rules! rows {
    ($($name:ident: $fault:ident, hits $hits:ident, acks $acks:ident;)+) => {$(
        #[tokio::test]
        async fn $name() {
            outlives(Fault::$fault, Hits::$hits, Acks::$acks).await;
        }
    )+};
}

rows! {
    a_cut_connection: Cut, hits A, acks Local;
    a_stalled_connection: Stalled, hits A, acks Local;
    a_half_open_connection: HalfOpen, hits A, acks Local;
    killed_subscribers: SubscribersKilled, hits Both, acks AsEver;
    killed_publishers: PublishersKilled, hits Both, acks Local;
    a_restart: Restarted, hits Both, acks Local;
    a_late_start: DownAtStart, hits Both, acks Local;
    a_pause: Paused, hits Both, acks Local;
    a_small_output_buffer: OutputBuffer, hits Both, acks AsEver;
    withdrawn_permission: Forbidden, hits Both, acks AsEver;
    a_wrong_password: WrongPassword, hits Both, acks Local;
}

impl Fault {
    async fn strike(self, scene: &mut Scene) {
        let redis = &scene.server;
        match self {
            Self::Cut => scene.proxy.cut(),
            Self::Stalled => scene.proxy.stall(),
            Self::HalfOpen => scene.proxy.strand(),
            Self::SubscribersKilled => redis.admin(&["CLIENT", "KILL", "TYPE", "pubsub"]).await,
            Self::PublishersKilled => redis.admin(&["CLIENT", "KILL", "TYPE", "normal"]).await,
            Self::Restarted => scene.server.kill(),
            Self::DownAtStart => {}
            Self::Paused => redis.admin(&["CLIENT", "PAUSE", "5000", "ALL"]).await,
            Self::OutputBuffer => {
                redis.admin(&["PUBLISH", "socket.io#/#", &"x".repeat(1 << 20)]).await;
            }
            Self::Forbidden => redis.admin(&["ACL", "SETUSER", USER, "resetchannels"]).await,
            Self::WrongPassword => {
                redis.admin(&["ACL", "SETUSER", USER, "resetpass", ">another"]).await;
                redis.admin(&["CLIENT", "KILL", "USER", USER]).await;
            }
        }
    }

    /// Whether it is over at once: the nodes may be well before anybody has asked them.
    fn is_a_moment(self) -> bool {
        use Fault::*;
        matches!(self, Cut | SubscribersKilled | PublishersKilled | OutputBuffer)
    }

    /// Whether the nodes cannot be well before its end.
    fn lasts(self) -> bool {
        !self.is_a_moment() && self != Self::HalfOpen
    }

    async fn cure(self, scene: &mut Scene) {
        let redis = &scene.server;
        match self {
            Self::Cut | Self::SubscribersKilled | Self::PublishersKilled | Self::OutputBuffer => {}
            // The old connections stay as they are.
            Self::HalfOpen => {}
            Self::Stalled => scene.proxy.heal(),
            Self::Restarted => {
                scene.tries_for_long().await;
                scene.server.run().await;
            }
            Self::DownAtStart => scene.server.run().await,
            // It ends by itself.
            Self::Paused => {
                eventually("the end of the pause", SOON, async || redis.answers().await).await
            }
            Self::Forbidden => redis.admin(&["ACL", "SETUSER", USER, "allchannels"]).await,
            Self::WrongPassword => {
                let password = format!(">{PASSWORD}");
                redis.admin(&["ACL", "SETUSER", USER, "resetpass", &password]).await;
            }
        }
    }
}

async fn outlives(fault: Fault, hits: Hits, acks: Acks) {
    let mut scene = if fault == Fault::DownAtStart {
        Scene::without_redis().await
    } else {
        Scene::start().await
    };
    let before = scene.heard_up_to();
    let hit = match hits {
        Hits::A => 0..1,
        Hits::Both => 0..2,
    };
    reports(&mut scene, fault, hit.clone(), acks).await;
    let told_before = scene.sides.each_ref().map(|side| side.told(Told::Everyone));
    scene.goes_on_locally().await;
    if fault.lasts() {
        for (side, told_before) in scene.sides[hit.clone()].iter().zip(told_before) {
            assert!(!side.readiness().await.bus, "not well before the end of {fault:?}");
            let told = side.told(Told::Everyone);
            assert!(acks == Acks::AsEver || told == told_before, "{told} of {told_before}");
        }
    }

    fault.cure(&mut scene).await;
    let well = scene.recovers().await;
    scene.falls_silent().await;
    for number in 0..2 {
        scene.check_node(number).await;
        let told_local = scene.sides[number].told(Told::Local);
        let may_be_local = acks == Acks::Local && hit.contains(&number);
        assert!(may_be_local || told_local == 0, "{told_local} were local on node {number}");
        let receiver_hit = hit.contains(&(1 - number));
        let cut_off = receiver_hit.then(|| before[1 - number][number]..well[number]);
        scene.check_between(number, cut_off).await;
    }
}

/// Strikes. Within five seconds those hit say that they are not well, and A is not ready; and their senders are
/// told.
async fn reports(scene: &mut Scene, fault: Fault, hit: Range<usize>, acks: Acks) {
    let told_before = scene.sides.each_ref().map(|side| side.told(Told::Local));
    let (mut reported, mut told) = ([false; 2], [false; 2]);
    let deadline = Instant::now() + SOON;
    fault.strike(scene).await;
    loop {
        for number in hit.clone() {
            let side = &scene.sides[number];
            reported[number] |= not_well(side, number, fault).await;
            told[number] |= acks == Acks::AsEver || side.told(Told::Local) > told_before[number];
        }
        if hit.clone().all(|number| reported[number] && told[number]) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not within {SOON:?}: reported {reported:?}, told {told:?}"
        );
        if fault.is_a_moment() {
            fault.strike(scene).await;
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// Whether a node says that it is not well; if so, A is not ready. B may be: it was well, once.
async fn not_well(side: &Side, number: usize, fault: Fault) -> bool {
    let readiness = side.readiness().await;
    let was_well = fault != Fault::DownAtStart;
    let degraded = Readiness { bus: false, ready: number == 1 && was_well };
    assert!(readiness.bus || readiness == degraded, "{readiness:?} of node {number}");
    !readiness.bus
}

/// Every batch of bytes is late, by far less than what makes a node suspicious: nothing but time is lost.
#[tokio::test]
async fn a_slow_redis() {
    const DELAY: Duration = Duration::from_millis(300);
    let mut scene = Scene::start().await;
    let (a, b) = (&scene.sides[0], &scene.sides[1]);
    let probes = async || a.node.metric("antiphon_bus_probe_seconds_count").await;
    let probes_before = probes().await;
    scene.proxy.delay(DELAY);
    let delayed = Instant::now();
    // One may have been under way; each takes two delays and comes two seconds after the other.
    eventually("probes come back", 2 * SOON, async || {
        for side in [a, b] {
            assert_eq!(side.readiness().await, WELL, "it is late, not lost");
        }
        probes().await >= probes_before + 3.0
    })
    .await;
    scene.falls_silent().await;
    for number in 0..2 {
        let (from, to) = (&scene.sides[number], &scene.sides[1 - number]);
        scene.check_node(number).await;
        scene.check_between(number, None).await;
        assert_eq!(from.told(Told::Local), 0);
        let (said, heard) = (from.sender.said(), to.listener.heard(number));
        assert_eq!(heard.len(), said.len(), "nothing is missed");
        let late = said.iter().zip(&heard).filter(|(said, _)| said.at > delayed);
        let least = late.map(|(said, heard)| heard.at - said.at).min();
        assert!(least >= Some(DELAY), "the delay was there: {least:?}");
        for metric in ["antiphon_bus_reconnects_total", "antiphon_bus_probes_lost_total"] {
            assert_eq!(from.node.metric(metric).await, 0.0, "{metric}");
        }
    }
}
