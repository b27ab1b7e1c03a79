//! The clients: worker threads, each with its own poll and its share of the connections.
//!
//! No lock and no channel is on the way of a message: a worker counts for itself and hands what it
//! counted over about once a second.

mod conn;
mod engineio;
mod intake;
mod polling;
mod probe;
mod websocket;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

pub use engineio::{Eio, Transport};
pub use probe::probe;
pub use worker::{Worker, WorkerError};

use crate::histogram::Latencies;
use crate::oracle::{Absence, Culprits, Ledger, Sent};

/// Time since the run began, the same in all threads.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// The run begins.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since then.
    #[inline]
    pub fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

/// A time that has not been set.
pub const NEVER: u64 = u64::MAX;

/// What the workers are told: times in microseconds since the run began.
#[derive(Debug)]
pub struct Control {
    /// When sending begins.
    pub send_from: AtomicU64,
    /// From when on messages count.
    pub count_from: AtomicU64,
    /// When sending ends.
    pub send_until: AtomicU64,
    /// The run is over.
    pub over: AtomicBool,
}

impl Default for Control {
    fn default() -> Self {
        let never = || AtomicU64::new(NEVER);
        Self { send_from: never(), count_from: never(), send_until: never(), over: false.into() }
    }
}

/// What happened in one second.
#[derive(Debug, Clone, Default)]
pub struct Second {
    /// Which one, since counting began.
    pub index: u64,
    /// Messages sent.
    pub sent: u64,
    /// Messages received, whenever they were sent.
    pub delivered: u64,
    /// How long those took that count.
    pub latencies: Latencies,
}

/// What a worker says now and then.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Which worker.
    pub worker: usize,
    /// Clients that are connected.
    pub connected: u32,
    /// Clients that have been connected at least once.
    pub arrived: u32,
    /// Clients that the server sent away for good.
    pub gone: u32,
    /// Deliveries that there should be, of all messages sent so far.
    pub due: u64,
    /// Whether all that was due until the end of sending has been sent, so that `due` will not rise any more.
    pub sent_all: bool,
    /// Deliveries that there were, each once.
    pub delivered: u64,
    /// Messages missing before ones that are here.
    pub missing: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Seconds that are over.
    pub seconds: Vec<Second>,
}

/// What a worker has seen and done in the whole run.
#[derive(Debug)]
pub struct Outcome {
    /// What its clients have got, and which clients those are.
    pub ledger: (Ledger, Vec<u32>),
    /// What its senders sent, by stream.
    pub sent: Vec<(u32, Sent)>,
    /// When its clients were away.
    pub absences: Vec<Absence>,
    /// The last second, which was not over.
    pub second: Second,
    /// Counts.
    pub counts: Counts,
}

/// What is only counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages that count and arrived, each once.
    pub delivered: u64,
    /// Messages that arrived, by target; all of them, warm-up, repeated ones and refusals included.
    pub received_by_target: Vec<u64>,
    /// Messages that count and came again.
    pub duplicated: u64,
    /// Messages that count and came after later ones.
    pub reordered: u64,
    /// Messages that count and took too long.
    pub late: u64,
    /// Events of nobody's, or not meant for who got them.
    pub foreign: u64,
    /// Messages that were due while their sender was not connected, or could not take more.
    pub unsent: u64,
    /// Refused events, by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Times a client was connected.
    pub connects: u64,
    /// Attempts that failed, by reason.
    pub connect_failures: BTreeMap<String, u64>,
    /// Connections that ended, by reason.
    pub disconnects: BTreeMap<String, u64>,
    /// How long connecting took.
    pub connect_latencies: Latencies,
    /// How long clients were away.
    pub away: Latencies,
    /// Clients that had been connected and were not at the end.
    pub still_away: u64,
    /// CPU time of the worker while messages counted.
    pub cpu: Duration,
    /// Between whom things went wrong.
    pub culprits: Culprits,
}

/// Counts by reasons that a server makes up are bounded: beyond it they are one.
pub(crate) const REASONS_MAX: usize = 50;

/// One more for this reason.
pub(crate) fn count_reason(counts: &mut BTreeMap<String, u64>, reason: &str) {
    let known = counts.len() < REASONS_MAX || counts.contains_key(reason);
    *counts.entry(if known { reason } else { "others" }.to_owned()).or_default() += 1;
}
