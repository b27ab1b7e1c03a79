//! The node's memory budget: what waits for clients, or from them, all together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use antiphon_metrics::IntGauge;
use tokio::sync::Notify;

/// Counts bytes that are held for clients, and knows how many may be.
///
/// From five eighths on, new clients are refused. At seven eighths the largest holders are closed until a quarter
/// is free: what they hold is let go a moment later, and more comes meanwhile.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    max: usize,
    gauge: IntGauge,
    crossed: Notify,
}

impl Budget {
    /// A budget of `max` bytes; `gauge` shows how many are held.
    pub fn new(max: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), max, gauge, crossed: Notify::new() })
    }

    /// Counts `bytes` until the returned value is dropped. Never refuses.
    pub fn hold(budget: &Arc<Self>, bytes: usize) -> Held {
        budget.add(bytes);
        Held { budget: Arc::clone(budget), bytes }
    }

    /// Whether so much is held that there should be no more clients.
    pub(super) fn is_tight(&self) -> bool {
        self.held() > self.max / 8 * 5
    }

    /// Whether so much is held that somebody has to go.
    pub(super) fn is_spent(&self) -> bool {
        self.held() > self.max / 8 * 7
    }

    /// Whether next to nothing is left.
    pub(super) fn is_exhausted(&self) -> bool {
        self.held() > self.max - self.max / 16
    }

    /// How many bytes must go until a quarter is free.
    pub(super) fn excess(&self) -> usize {
        self.held().saturating_sub(self.max / 4 * 3)
    }

    /// Returns once the budget is spent.
    pub(super) async fn spent(&self) {
        while !self.is_spent() {
            self.crossed.notified().await;
        }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.gauge.set(i64::try_from(held).unwrap_or(i64::MAX));
        if self.is_spent() {
            self.crossed.notify_one();
        }
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

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.sub(self.bytes);
    }
}
