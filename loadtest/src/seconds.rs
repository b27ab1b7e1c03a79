//! Second by second, in a bounded amount of memory.
//!
//! A distribution takes some 200 kB. Only the last few seconds keep theirs, because workers may still tell of them;
//! what is left of older ones is a few percentiles, and their part of the whole.

use std::collections::BTreeMap;

use crate::client::Second;
use crate::histogram::Latencies;
use crate::report::{SecondRecord, ServerSecond};

/// Seconds that keep their distribution. What a worker tells later than that is in the sums, and not in its second's
/// percentiles.
const OPEN_MAX: u64 = 5;

#[derive(Debug, Default)]
struct Entry {
    record: SecondRecord,
    latencies: Option<Box<Latencies>>,
    sampled: bool,
}

/// The seconds of a run.
#[derive(Debug, Default)]
pub struct Seconds {
    entries: BTreeMap<u64, Entry>,
    /// Of the whole run.
    pub latencies: Latencies,
}

impl Seconds {
    /// What a worker did in one second.
    pub fn add(&mut self, second: &Second) {
        self.latencies.add(&second.latencies);
        let newest = self.entries.last_key_value().map_or(0, |(index, _)| *index);
        let entry = self.entries.entry(second.index).or_default();
        entry.record.sent += second.sent;
        entry.record.delivered += second.delivered;
        if second.index + OPEN_MAX > newest {
            let latencies = entry.latencies.get_or_insert_default();
            latencies.add(&second.latencies);
            entry.record.p50_us = latencies.percentile(50.0);
            entry.record.p99_us = latencies.percentile(99.0);
            entry.record.max_us = latencies.max();
        }
        let closed = newest.max(second.index).saturating_sub(OPEN_MAX);
        for (_, entry) in self.entries.range_mut(..closed).rev() {
            // What is before one that is closed is closed already.
            if entry.latencies.take().is_none() {
                break;
            }
        }
    }

    /// How things were at the end of one second.
    pub fn sample(
        &mut self,
        index: u64,
        connected: u32,
        servers: Vec<ServerSecond>,
        client_cpu: f64,
    ) {
        let entry = self.entries.entry(index).or_default();
        entry.sampled = true;
        let record = &mut entry.record;
        (record.connected, record.servers, record.client_cpu) = (connected, servers, client_cpu);
    }

    /// The last one in which something happened, of the last few.
    pub fn last(&self) -> Option<&SecondRecord> {
        let last = self.entries.values().rev().take(3).map(|entry| &entry.record);
        last.into_iter().find(|record| record.sent > 0 || record.delivered > 0)
    }

    /// All up to the last in which something happened or that was measured, with what was lost of the messages sent
    /// in each.
    pub fn records(&self, lost: &BTreeMap<u64, u64>, measured_s: u64) -> Vec<SecondRecord> {
        let happened = |entry: &Entry| entry.record.sent > 0 || entry.record.delivered > 0;
        let last = self.entries.iter().rev().find(|(_, entry)| happened(entry));
        let end = last.map_or(0, |(index, _)| index + 1).max(measured_s);
        let mut connected = 0;
        let record = |(&t, entry): (&u64, &Entry)| {
            // A second without a sample is as the one before.
            connected = if entry.sampled { entry.record.connected } else { connected };
            let lost = lost.get(&t).copied().unwrap_or(0);
            SecondRecord { t, lost, connected, ..entry.record.clone() }
        };
        self.entries.range(..end).map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(index: u64, us: u64) -> Second {
        let mut second = Second { index, sent: 1, delivered: 1, ..Second::default() };
        second.latencies.record(us);
        second
    }

    #[test]
    fn old_seconds_keep_their_percentiles_and_not_their_distributions() {
        let mut seconds = Seconds::default();
        for index in 0..100 {
            seconds.add(&second(index, 100));
            seconds.add(&second(index, 900));
        }
        assert!(seconds.entries.values().filter(|entry| entry.latencies.is_some()).count() <= 6);
        // One that comes late is in the sums.
        seconds.add(&second(3, 5000));
        let records = seconds.records(&[(3, 7)].into(), 10);
        assert_eq!(
            (records[3].sent, records[3].p50_us, records[3].max_us, records[3].lost),
            (3, 100, 900, 7)
        );
        assert_eq!((records[98].sent, records[98].p50_us, records[98].max_us), (2, 100, 900));
        assert_eq!((seconds.latencies.count(), records.len()), (201, 100));
        assert!(seconds.latencies.max() >= 5000);
    }
}
