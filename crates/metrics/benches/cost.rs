//! What counting costs: all that a node counts for one event, again and again.
//!
//! ```text
//! cargo bench -p antiphon-metrics --bench cost
//! ```
//!
//! Put beside what a node needs for an event altogether (`antiphon-loadtest compare`), it is the share of the metrics.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use antiphon_metrics::{GatewayMetrics, Registry, gateway::Outcome};

const ROUNDS: usize = 9;
const EVENTS: u32 = 1_000_000;

fn main() {
    let metrics = GatewayMetrics::register(&Registry::new()).expect("a registry of its own");
    let rule = metrics.events_total.rule("/", "chat_message").expect("a rule");
    let mut rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            for _ in 0..EVENTS {
                one_event(black_box(&metrics), |outcome| rule.of(outcome).inc());
            }
            started.elapsed() / EVENTS
        })
        .collect();
    rounds.sort_unstable();
    let [lowest, .., highest] = rounds[..] else { return };
    println!(
        "all that is counted for an event: {:?} (median of {ROUNDS} rounds of {EVENTS}; {lowest:?} to {highest:?})",
        rounds[ROUNDS / 2]
    );
}

/// What `net/conn.rs`, `events.rs`, `stage.rs` and `fanout.rs` count for an event that goes out by itself. In a batch,
/// the last part is counted once for all.
fn one_event(metrics: &GatewayMetrics, count: impl Fn(Outcome)) {
    metrics.received_bytes_total.inc_by(160);
    metrics.stage_events.inc();
    metrics.stage_bytes.add(128);
    let accepted = Instant::now();
    count(Outcome::Ok);
    metrics.fanout_seconds.observe(accepted.elapsed().max(Duration::from_micros(700)));
    metrics.stage_events.dec();
    metrics.stage_bytes.sub(128);
    metrics.sent_bytes_total.inc_by(160_000);
    metrics.deliveries_total.inc_by(1000);
}
