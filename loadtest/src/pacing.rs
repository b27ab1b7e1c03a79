//! When each message is due.
//!
//! In an open loop the times are fixed before the run, whatever the server does, and latency counts from them:
//! a server that stalls cannot make its clients send less and so look better. In a closed loop so
//! many messages are on their way at a time, and a new one follows one that is done.

use std::time::Duration;

/// How the messages of a flow follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Open loop: messages a second, of all senders together, rising (or falling) evenly.
    Rate {
        /// At the beginning.
        from: f64,
        /// At the end of [`Rate::over`](Pace::Rate::over), and from then on.
        to: f64,
        /// How long it rises.
        over: Duration,
    },
    /// Closed loop: messages on their way, of all senders together.
    InFlight(u32),
}

impl Pace {
    /// The time from the beginning at which message number `n` of all senders together is due, in
    /// microseconds. `None` in a closed loop.
    pub fn due_us(&self, n: u64) -> Option<u64> {
        let Pace::Rate { from, to, over } = *self else { return None };
        let (n, seconds) = (n as f64, over.as_secs_f64());
        let rise = if seconds > 0.0 { (to - from) / seconds } else { 0.0 };
        // The number of messages by time t is from·t + rise·t²/2, solved for t in the form that does
        // not cancel when the rise is small.
        let by_end_of_rise = (from + to) / 2.0 * seconds;
        let due = if n <= by_end_of_rise || seconds == 0.0 {
            2.0 * n / (from + (from * from + 2.0 * rise * n).max(0.0).sqrt())
        } else {
            seconds + (n - by_end_of_rise) / to
        };
        Some((due * 1e6) as u64)
    }

    /// The place of a sender among `senders`: how many messages it may have on their way.
    pub fn in_flight_of(&self, sender: u32, senders: u32) -> u32 {
        match *self {
            Pace::Rate { .. } => 0,
            Pace::InFlight(all) => all / senders + u32::from(sender < all % senders),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_evenly_spaced() {
        let pace = Pace::Rate { from: 100.0, to: 100.0, over: Duration::from_secs(10) };
        for n in [0, 1, 7, 999, 1_000, 5_000, 1_000_000] {
            assert_eq!(pace.due_us(n), Some(n * 10_000));
        }
    }

    #[test]
    fn a_rising_rate_starts_slow_and_ends_fast() {
        let pace = Pace::Rate { from: 100.0, to: 300.0, over: Duration::from_secs(10) };
        let gap = |n| pace.due_us(n + 1).unwrap() - pace.due_us(n).unwrap();
        assert!((9_890..=10_000).contains(&gap(0)), "{}", gap(0));
        // 2,000 messages in the 10 s of the rise, then 300 a second.
        assert!((9_990_000..=10_000_000).contains(&pace.due_us(2_000).unwrap()));
        assert!((3_333..=3_334).contains(&gap(2_500)), "{}", gap(2_500));
        assert!((0..3_000).all(|n| pace.due_us(n) < pace.due_us(n + 1)));
    }

    #[test]
    fn a_falling_rate_is_fine_too() {
        let pace = Pace::Rate { from: 300.0, to: 100.0, over: Duration::from_secs(10) };
        assert!((0..4_000).all(|n| pace.due_us(n) < pace.due_us(n + 1)));
    }

    #[test]
    fn places_in_flight_are_shared_out() {
        let places: Vec<_> = (0..4).map(|s| Pace::InFlight(10).in_flight_of(s, 4)).collect();
        assert_eq!(places, [3, 3, 2, 2]);
    }
}
