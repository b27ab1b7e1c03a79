//! The node's memory budget: what waits for clients, or from them, all together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use antiphon_metrics::IntGauge;

/// Counts bytes that are held for clients, and knows how many may be.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    max: usize,
    gauge: IntGauge,
}

impl Budget {
    /// A budget of `max` bytes; `gauge` shows how many are held.
    pub fn new(max: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), max, gauge })
    }

    /// Counts `bytes` until the returned value is dropped. Never refuses: whoever can refuse work
    /// asks [`Budget::exceeded`] first.
    pub fn hold(budget: &Arc<Self>, bytes: usize) -> Held {
        budget.add(bytes);
        Held { budget: Arc::clone(budget), bytes }
    }

    /// Whether more is held than may be.
    pub fn exceeded(&self) -> bool {
        self.held.load(Ordering::Relaxed) > self.max
    }

    /// Whether `bytes` more would be too many.
    pub fn would_exceed(&self, bytes: usize) -> bool {
        self.held.load(Ordering::Relaxed).saturating_add(bytes) > self.max
    }

    /// How many bytes are held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How many bytes may be held.
    pub fn max(&self) -> usize {
        self.max
    }

    pub(super) fn add(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.gauge.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    pub(super) fn sub(&self, bytes: usize) {
        let held = self.held.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.gauge.set(i64::try_from(held).unwrap_or(i64::MAX));
    }
}

/// Bytes that count against a [`Budget`] for as long as this lives.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    /// Counts `bytes` from now on.
    pub fn set(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(0) => {}
            Some(more) => self.budget.add(more),
            None => self.budget.sub(self.bytes - bytes),
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.sub(self.bytes);
    }
}
