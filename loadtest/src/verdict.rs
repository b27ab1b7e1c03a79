//! What must hold, and whether it did.

use std::time::Duration;

use crate::report::{Expected, Report, ServerCost};

/// What can be asked about a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A count or a rate.
    Number,
    /// A time.
    Time,
}

type Read = fn(&Report) -> f64;

/// Every metric: its name, its unit, whether more of it is better, and where it is in the report. Times are in
/// microseconds there and here.
const METRICS: [(&str, Unit, bool, Read); 25] = [
    ("lost", Unit::Number, false, |r| r.totals.lost as f64),
    ("unaccounted", Unit::Number, false, |r| r.totals.unaccounted as f64),
    ("duplicated", Unit::Number, false, |r| r.totals.duplicated as f64),
    ("reordered", Unit::Number, false, |r| r.totals.reordered as f64),
    ("foreign", Unit::Number, false, |r| r.totals.foreign as f64),
    ("late", Unit::Number, false, |r| r.totals.late as f64),
    ("refused", Unit::Number, false, |r| r.totals.refused as f64),
    ("unsent", Unit::Number, false, |r| r.totals.unsent as f64),
    ("not_connected", Unit::Number, false, |r| r.totals.not_connected as f64),
    ("disconnects", Unit::Number, false, |r| r.totals.disconnects.values().sum::<u64>() as f64),
    ("connect_failures", Unit::Number, false, |r| r.totals.connect_failures as f64),
    ("unbalanced_books", Unit::Number, false, |r| {
        r.books.iter().filter(|book| !book.balanced).count() as f64
    }),
    ("failed_commands", Unit::Number, false, |r| {
        r.faults.iter().filter(|fault| fault.exit != Some(0)).count() as f64
    }),
    ("deliveries_per_s", Unit::Number, true, |r| r.totals.deliveries_per_s),
    ("messages_per_s", Unit::Number, true, |r| r.totals.messages_per_s),
    ("delivered", Unit::Number, true, |r| r.totals.delivered as f64),
    ("cpu_us_per_delivery", Unit::Number, false, |r| {
        r.servers.iter().map(|server| server.cpu_us_per_delivery).sum()
    }),
    ("bytes_per_connection", Unit::Number, false, |r| {
        let grown = |s: &ServerCost| s.rss_end_bytes.saturating_sub(s.rss_start_bytes);
        r.servers.iter().map(grown).sum::<u64>() as f64 / f64::from(r.plan.clients)
    }),
    ("p50", Unit::Time, false, |r| arrived_within(r, r.latency_us.p50)),
    ("p90", Unit::Time, false, |r| arrived_within(r, r.latency_us.p90)),
    ("p99", Unit::Time, false, |r| arrived_within(r, r.latency_us.p99)),
    ("p999", Unit::Time, false, |r| arrived_within(r, r.latency_us.p999)),
    ("max", Unit::Time, false, |r| arrived_within(r, r.latency_us.max)),
    ("connect_p99", Unit::Time, false, |r| r.connect_us.p99 as f64),
    // Who is not back at the end has not been back within any time.
    ("reconnected_within", Unit::Time, false, |r| {
        if r.reconnect_us.still_away > 0 { f64::INFINITY } else { r.reconnect_us.max as f64 }
    }),
];

/// Where nothing arrived, nothing arrived within any time.
fn arrived_within(report: &Report, us: u64) -> f64 {
    if report.latency_us.count == 0 { f64::INFINITY } else { us as f64 }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Below,
    AtMost,
    Equal,
    AtLeast,
    Above,
}

impl Comparison {
    /// Longer signs first: `<=` begins with `<`.
    const SIGNS: [(&'static str, Self); 6] = [
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("==", Self::Equal),
        ("=", Self::Equal),
        ("<", Self::Below),
        (">", Self::Above),
    ];

    fn sign(self) -> &'static str {
        match self {
            Self::Below => "<",
            Self::AtMost => "<=",
            Self::Equal => "=",
            Self::AtLeast => ">=",
            Self::Above => ">",
        }
    }

    fn holds(self, actual: f64, limit: f64) -> bool {
        match self {
            Self::Below => actual < limit,
            Self::AtMost => actual <= limit,
            Self::Equal => actual == limit,
            Self::AtLeast => actual >= limit,
            Self::Above => actual > limit,
        }
    }
}

/// Something that must hold, such as `p99 < 50ms`.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// What it is about.
    pub metric: &'static str,
    unit: Unit,
    read: Read,
    comparison: Comparison,
    limit: f64,
}

impl Expectation {
    /// From a flag: `p99 < 50ms`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let at = text.find(['<', '>', '=']);
        let (metric, condition) = text.split_at(
            at.ok_or_else(|| format!("{text:?} is not a condition such as \"p99 < 50ms\""))?,
        );
        Self::of(metric.trim(), condition)
    }

    /// From a file: the key, and a limit, which may have its sign: `lost = 0`, `p99 = "50ms"`, `lost = "< 5"`. Without
    /// a sign: 0 is 0, other counts and times are what may not be exceeded, and of what is better when
    /// higher, what must be reached.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn of(metric: &str, condition: &str) -> Result<Self, String> {
        let Some(&(metric, unit, more_is_better, read)) =
            METRICS.iter().find(|(name, ..)| *name == metric)
        else {
            let names: Vec<_> = METRICS.iter().map(|(name, ..)| *name).collect();
            return Err(format!(
                "{metric}: nothing that is measured; there are {}",
                names.join(", ")
            ));
        };
        let condition = condition.trim();
        let sign = Comparison::SIGNS.iter().find(|(sign, _)| condition.starts_with(sign));
        let limit = condition[sign.map_or(0, |(sign, _)| sign.len())..].trim();
        let value = match unit {
            Unit::Number => {
                limit.parse::<f64>().map_err(|_| format!("{metric}: {limit:?} is not a number"))
            }
            Unit::Time => humantime::parse_duration(limit)
                .map(|time| time.as_secs_f64() * 1e6)
                .map_err(|_| format!("{metric}: {limit:?} is not a time such as \"50ms\"")),
        }?;
        let comparison = match sign {
            Some((_, comparison)) => *comparison,
            None if more_is_better => Comparison::AtLeast,
            None if value == 0.0 => Comparison::Equal,
            None => Comparison::AtMost,
        };
        Ok(Self { metric, unit, read, comparison, limit: value })
    }

    /// Whether it held.
    pub fn check(&self, report: &Report) -> Expected {
        let actual = (self.read)(report);
        Expected {
            what: format!("{} {} {}", self.metric, self.comparison.sign(), self.show(self.limit)),
            held: self.comparison.holds(actual, self.limit),
            actual: self.show(actual),
        }
    }

    fn show(&self, value: f64) -> String {
        match self.unit {
            Unit::Number if value.fract() == 0.0 => format!("{value:.0}"),
            Unit::Number => format!("{value:.2}"),
            Unit::Time if value.is_finite() => {
                humantime::format_duration(Duration::from_micros(value as u64)).to_string()
            }
            Unit::Time => "never".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, comparison: Comparison, limit: f64) {
        let expectation = Expectation::parse(text).unwrap();
        assert_eq!((expectation.comparison, expectation.limit), (comparison, limit), "{text}");
    }

    #[test]
    fn conditions() {
        check("lost = 0", Comparison::Equal, 0.0);
        check("p99<50ms", Comparison::Below, 50_000.0);
        check("p999 <= 1s 500ms", Comparison::AtMost, 1_500_000.0);
        check("deliveries_per_s >= 1000000", Comparison::AtLeast, 1e6);
        let of = |metric, limit| Expectation::of(metric, limit).unwrap().comparison;
        assert_eq!(of("lost", "0"), Comparison::Equal);
        assert_eq!(of("lost", "5"), Comparison::AtMost);
        assert_eq!(of("lost", "> 5"), Comparison::Above);
        assert_eq!(of("p99", "50ms"), Comparison::AtMost);
        assert_eq!(of("deliveries_per_s", "5"), Comparison::AtLeast);
    }

    #[test]
    fn mistakes_say_what_is_wrong() {
        for (text, part) in [
            ("p99", "not a condition"),
            ("p98 < 5ms", "nothing that is measured"),
            ("p99 < 5", "not a time"),
            ("lost = many", "not a number"),
        ] {
            let mistake = Expectation::parse(text).unwrap_err();
            assert!(mistake.contains(part), "{mistake}");
        }
    }
}
