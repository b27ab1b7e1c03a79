//! Whether the node is alive, and whether clients may be sent to it.
//!
//! A node is alive while it makes progress: the runtime runs tasks, and the dispatcher, through which everything
//! goes that clients get, delivers or waits. A node that is not alive must be restarted. A node is ready if it may
//! get clients; one that is not may well be healthy, and serves those it has.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use antiphon_metrics::GatewayMetrics;
use serde::Serialize;

use crate::cluster::BusWatch;

/// How often the runtime shows that it runs.
const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Without progress for so long the node counts as stuck: far above what a turn of a fan-out takes, far below a
/// user's patience.
const STUCK_AFTER: Duration = Duration::from_secs(15);

/// With less than this part of the dispatch queue free, the node is overloaded: new clients would only add to it.
const SPARE: i64 = 10;

/// When something last made progress.
#[derive(Debug)]
pub(crate) struct Pulse {
    start: Instant,
    last_ms: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), last_ms: AtomicU64::new(0) })
    }

    pub(crate) fn beat(&self) {
        self.last_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }
}

/// Beats for as long as the runtime runs tasks.
pub(crate) async fn beat(pulse: Arc<Pulse>) {
    let mut ticks = tokio::time::interval(BEAT_INTERVAL);
    loop {
        ticks.tick().await;
        pulse.beat();
    }
}

/// Runs a task, which shows each time that it gets on.
pub(crate) async fn watched<T>(pulse: Arc<Pulse>, task: impl Future<Output = T>) -> T {
    let mut task = pin!(task);
    poll_fn(|context| {
        pulse.beat();
        task.as_mut().poll(context)
    })
    .await
}

/// Whether the node is about to leave.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    leaving: AtomicBool,
}

impl NodeState {
    /// From here on no balancer should send clients here; those that come are served.
    pub(crate) fn leave(&self, metrics: &GatewayMetrics) {
        self.leaving.store(true, Ordering::Release);
        metrics.draining.set(1);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }
}

/// What there is to know about the node's health.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) runtime: Arc<Pulse>,
    pub(crate) dispatcher: Arc<Pulse>,
    pub(crate) state: Arc<NodeState>,
    pub(crate) bus: Option<BusWatch>,
    pub(crate) metrics: Arc<GatewayMetrics>,
}

/// Whether a balancer should send clients here, and what speaks against it.
#[derive(Debug, Serialize)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    conditions: Conditions,
    /// One text for each condition that is false.
    why_not: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Conditions {
    /// It takes connections, and once it has been told to join a cluster, it has.
    started: bool,
    not_draining: bool,
    not_overloaded: bool,
    /// What it holds for clients is well within `limits.memory`.
    memory: bool,
    not_stuck: bool,
    /// Peers are reached and heard; not there without peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    bus: Option<bool>,
}

impl Health {
    /// What is stuck, and for how long; `None` if the node is alive.
    pub(crate) fn stuck(&self) -> Option<String> {
        let what = self.makes_no_progress();
        self.metrics.stuck.set(what.is_some().into());
        what
    }

    fn makes_no_progress(&self) -> Option<String> {
        let stuck = |pulse: &Pulse, what: &str| {
            let age = pulse.age();
            (age > STUCK_AFTER).then(|| format!("{what} for {} s", age.as_secs()))
        };
        stuck(&self.runtime, "no task has run")
            .or_else(|| stuck(&self.dispatcher, "no event has been delivered or waited for"))
    }

    pub(crate) fn readiness(&self) -> Readiness {
        let bus = self.bus.as_ref().map(BusWatch::look);
        let stuck = self.stuck().is_some();
        let conditions = Conditions {
            started: bus.as_ref().is_none_or(|bus| bus.was_well),
            not_draining: !self.state.is_leaving(),
            not_overloaded: !self.is_overloaded(),
            memory: !self.is_out_of_memory(),
            not_stuck: !stuck,
            bus: bus.as_ref().map(|bus| bus.complaint.is_none()),
        };
        let why_not = [
            (!conditions.started).then_some("it has not reached its peers since it was started"),
            (!conditions.not_draining).then_some("it is shutting down"),
            (!conditions.not_overloaded).then_some("it holds nearly as many events as it may"),
            (!conditions.memory)
                .then_some("it holds nearly as much for its clients as limits.memory allows"),
            (!conditions.not_stuck).then_some("it is stuck: /healthz says where"),
            bus.as_ref().and_then(|bus| bus.complaint),
        ];
        let ready = conditions.not_draining
            && conditions.not_overloaded
            && conditions.memory
            && conditions.not_stuck
            && bus.is_none_or(|bus| bus.allows);
        self.metrics.ready.set(ready.into());
        Readiness { ready, conditions, why_not: why_not.into_iter().flatten().collect() }
    }

    fn is_out_of_memory(&self) -> bool {
        // As the transport, which refuses new clients from there on.
        self.metrics.memory_bytes.get() > self.metrics.memory_bytes_max.get() / 8 * 5
    }

    fn is_overloaded(&self) -> bool {
        let metrics = &self.metrics;
        let near = |held: i64, max: i64| held >= max - max / SPARE;
        near(metrics.stage_events.get(), metrics.stage_events_max.get())
            || near(metrics.stage_bytes.get(), metrics.stage_bytes_max.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon_metrics::Registry;

    fn long_ago() -> Arc<Pulse> {
        let start =
            Instant::now().checked_sub(STUCK_AFTER * 2).expect("the machine is up for longer");
        Arc::new(Pulse { start, last_ms: AtomicU64::new(0) })
    }

    fn health() -> Health {
        let metrics = Arc::new(GatewayMetrics::register(&Registry::new()).expect("new"));
        metrics.stage_events_max.set(1000);
        metrics.stage_bytes_max.set(1000);
        metrics.memory_bytes_max.set(1000);
        Health {
            runtime: Pulse::new(),
            dispatcher: Pulse::new(),
            state: Arc::default(),
            bus: None,
            metrics,
        }
    }

    #[test]
    fn what_makes_no_progress_is_stuck() {
        let health = health();
        assert_eq!(health.stuck(), None);
        let runtime = Health { runtime: long_ago(), ..health.clone() };
        assert!(runtime.stuck().is_some_and(|what| what.contains("no task has run")));
        runtime.runtime.beat();
        assert_eq!(runtime.stuck(), None);
        let stage = Health { dispatcher: long_ago(), ..health };
        assert!(stage.stuck().is_some_and(|what| what.contains("delivered")));
        assert_eq!(stage.metrics.stuck.get(), 1);
        assert!(!stage.readiness().ready, "nobody should be sent to it");
    }

    #[tokio::test]
    async fn a_task_that_gets_on_shows_it() {
        let pulse = long_ago();
        watched(Arc::clone(&pulse), async {
            assert!(pulse.age() < STUCK_AFTER);
            pulse.last_ms.store(0, Ordering::Relaxed);
            tokio::task::yield_now().await;
            assert!(pulse.age() < STUCK_AFTER);
        })
        .await;
    }

    #[test]
    fn a_node_that_holds_nearly_all_it_may_wants_no_more_clients() {
        let health = health();
        assert!(health.readiness().ready);
        health.metrics.stage_bytes.set(899);
        assert!(health.readiness().ready);
        health.metrics.stage_bytes.set(900);
        let readiness = health.readiness();
        assert!(!readiness.ready && readiness.why_not.len() == 1, "{readiness:?}");
        assert_eq!(health.metrics.ready.get(), 0);
        health.metrics.stage_bytes.set(0);
        health.metrics.stage_events_max.set(4);
        assert!(health.readiness().ready, "an empty stage is not full, however small");
        health.metrics.memory_bytes.set(626);
        assert!(!health.readiness().ready && !health.readiness().conditions.memory);
        health.metrics.memory_bytes.set(625);
        health.state.leave(&health.metrics);
        assert!(!health.readiness().ready && !health.readiness().conditions.not_draining);
    }
}
