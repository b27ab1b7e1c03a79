//! Latencies in microseconds, to three digits, in a fixed amount of memory.

use hdrhistogram::Histogram;

/// Beyond it a latency is recorded as this: an hour.
const HIGHEST_US: u64 = 3_600_000_000;

/// The percentiles that a distribution is drawn from.
const DRAWN: [f64; 17] = [
    0.0, 10.0, 25.0, 50.0, 60.0, 70.0, 75.0, 80.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95,
    99.99, 100.0,
];

/// How many took how long.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, HIGHEST_US, 3).expect("the bounds are constants"))
    }
}

impl Latencies {
    /// One more.
    #[inline]
    pub fn record(&mut self, us: u64) {
        self.0.saturating_record(us);
    }

    /// All of the other's.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Their mean.
    pub fn mean(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.mean() }
    }

    /// What `percent` of them did not exceed.
    pub fn percentile(&self, percent: f64) -> u64 {
        // 99.9 / 100 is a little above 0.999, and would be one sample too far.
        let quantile = (percent * 1000.0).round() / 100_000.0;
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(quantile) }
    }

    /// The highest.
    pub fn max(&self) -> u64 {
        self.percentile(100.0)
    }

    /// The points a distribution is drawn from: percentile and latency.
    pub fn distribution(&self) -> Vec<(f64, u64)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        DRAWN.iter().map(|&percent| (percent, self.percentile(percent))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three digits: a value may be off by a thousandth.
    #[track_caller]
    fn check(latencies: &Latencies, percent: f64, expected: u64) {
        let (actual, expected) = (latencies.percentile(percent) as f64, expected as f64);
        assert!((actual - expected).abs() <= 1.0 + expected / 1000.0, "p{percent}: {actual}");
    }

    #[test]
    fn uniform() {
        let mut latencies = Latencies::default();
        (1..=100_000).for_each(|us| latencies.record(us));
        for (percent, expected) in
            [(0.0, 1), (50.0, 50_000), (90.0, 90_000), (99.0, 99_000), (99.9, 99_900)]
        {
            check(&latencies, percent, expected);
        }
        check(&latencies, 100.0, 100_000);
        assert_eq!(latencies.count(), 100_000);
        assert!((latencies.mean() - 50_000.5).abs() < 50.0);
    }

    #[test]
    fn a_few_slow_ones_show_in_the_tail_only() {
        let mut latencies = Latencies::default();
        (0..9_990).for_each(|_| latencies.record(100));
        (0..10).for_each(|_| latencies.record(1_000_000));
        check(&latencies, 50.0, 100);
        check(&latencies, 99.9, 100);
        check(&latencies, 99.91, 1_000_000);
        check(&latencies, 100.0, 1_000_000);
    }

    #[test]
    fn exponential() {
        let mut latencies = Latencies::default();
        let steps = 100_000;
        for step in 0..steps {
            let quantile = (f64::from(step) + 0.5) / f64::from(steps);
            latencies.record((-(1.0 - quantile).ln() * 10_000.0) as u64);
        }
        for percent in [50.0, 90.0, 99.0, 99.9] {
            let expected = -(1.0f64 - percent / 100.0).ln() * 10_000.0;
            check(&latencies, percent, expected as u64);
        }
    }

    #[test]
    fn adding_two_is_recording_all() {
        let (mut a, mut b) = (Latencies::default(), Latencies::default());
        (1..=500).for_each(|us| a.record(us));
        (501..=1000).for_each(|us| b.record(us));
        a.add(&b);
        check(&a, 50.0, 500);
        check(&a, 100.0, 1000);
    }

    #[test]
    fn nothing_is_zero_and_too_much_is_the_highest() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.percentile(99.0), latencies.max()), (0, 0));
        assert!(latencies.distribution().is_empty());
        latencies.record(u64::MAX);
        check(&latencies, 100.0, HIGHEST_US);
    }
}
