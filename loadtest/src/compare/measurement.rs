//! What is measured: the load, and what of its report is compared.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::results::Outcome;

/// A load, and what is read from its report.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(super) name: &'static str,
    /// In words.
    pub(super) title: &'static str,
    /// Arguments of `antiphon-loadtest run`.
    load: &'static str,
    /// The same with few clients and little time.
    quick_load: &'static str,
    /// Servers that are one, through Redis if several.
    pub(super) nodes: usize,
    /// The first is the one that it is done for.
    pub(super) metrics: &'static [Metric],
}

/// A figure of a report.
#[derive(Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    /// Not a number if there is none.
    read: fn(&Figures) -> f64,
    pub(super) form: Form,
}

/// How a figure is written, and whether it makes sense to divide it by another server's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    Number,
    /// Of all that were due: shown in percent.
    Share,
}

/// Those parts of a report that are compared. The rest is kept as it is.
#[derive(Debug, Deserialize)]
struct Report {
    plan: Plan,
    totals: Totals,
    latency_us: Latency,
    connect_us: Connect,
    servers: Vec<Server>,
}

#[derive(Debug, Deserialize)]
struct Plan {
    clients: u32,
}

#[derive(Debug, Deserialize)]
struct Totals {
    expected: u64,
    delivered: u64,
    lost: u64,
    reordered: u64,
    connect_failures: u64,
    deliveries_per_s: f64,
}

#[derive(Debug, Deserialize)]
struct Latency {
    count: u64,
    p50: u64,
    p99: u64,
}

impl Latency {
    /// Nothing arrived: that is not the same as at once.
    fn ms(&self, us: u64) -> f64 {
        if self.count == 0 { f64::NAN } else { us as f64 / 1e3 }
    }
}

#[derive(Debug, Deserialize)]
struct Connect {
    p99: u64,
    all_connected_after_s: f64,
}

#[derive(Debug, Deserialize)]
struct Server {
    cpu_us_per_delivery: f64,
    rss_end_bytes: u64,
}

struct Figures {
    report: Report,
    rss_before_bytes: u64,
}

const DELIVERIES: Metric =
    Metric { name: "deliveries/s", read: |f| f.report.totals.deliveries_per_s, form: Form::Number };
const CPU: Metric = Metric {
    name: "CPU µs a delivery",
    read: |f| f.report.servers.iter().map(|server| server.cpu_us_per_delivery).sum(),
    form: Form::Number,
};
const P50: Metric = Metric {
    name: "p50 ms",
    read: |f| f.report.latency_us.ms(f.report.latency_us.p50),
    form: Form::Number,
};
const P99: Metric = Metric {
    name: "p99 ms",
    read: |f| f.report.latency_us.ms(f.report.latency_us.p99),
    form: Form::Number,
};
const LOST: Metric = Metric {
    name: "lost",
    read: |f| share(f.report.totals.lost, f.report.totals.expected),
    form: Form::Share,
};
const REORDERED: Metric = Metric {
    name: "out of order",
    read: |f| share(f.report.totals.reordered, f.report.totals.delivered),
    form: Form::Share,
};
const RSS: Metric = Metric {
    name: "kB a connection",
    read: |f| {
        let after: u64 = f.report.servers.iter().map(|server| server.rss_end_bytes).sum();
        after.saturating_sub(f.rss_before_bytes) as f64 / 1e3 / f64::from(f.report.plan.clients)
    },
    form: Form::Number,
};
const ALL_IN: Metric = Metric {
    name: "s until all are connected",
    read: |f| f.report.connect_us.all_connected_after_s,
    form: Form::Number,
};
const CONNECT_P99: Metric = Metric {
    name: "p99 of connecting, ms",
    read: |f| f.report.connect_us.p99 as f64 / 1e3,
    form: Form::Number,
};
const CONNECT_FAILURES: Metric = Metric {
    name: "failures to connect",
    read: |f| f.report.totals.connect_failures as f64,
    form: Form::Number,
};

const STEADY: &[Metric] = &[P50, P99, CPU, LOST, REORDERED];

/// In the order in which they are done.
pub(super) static MEASUREMENTS: [Measurement; 8] = [
    Measurement {
        name: "saturated",
        title: "As many messages as it can take, each to everyone: 100 are always on their way",
        load: "chat --clients 1000 --senders 10 --bytes 128 --in-flight 100 --duration 10s --warm-up 2s",
        quick_load: "chat --clients 100 --senders 10 --bytes 128 --in-flight 100 --duration 2s --warm-up 1s",
        nodes: 1,
        metrics: &[DELIVERIES, CPU, P99, LOST, REORDERED],
    },
    Measurement {
        name: "steady-50",
        title: "50 messages a second, each to everyone",
        load: "chat --clients 1000 --senders 10 --bytes 128 --rate 50 --duration 10s --warm-up 2s",
        quick_load: "chat --clients 100 --senders 10 --bytes 128 --rate 50 --duration 2s --warm-up 1s",
        nodes: 1,
        metrics: STEADY,
    },
    Measurement {
        name: "steady-300",
        title: "300 messages a second, each to everyone",
        load: "chat --clients 1000 --senders 10 --bytes 128 --rate 300 --duration 10s --warm-up 2s",
        quick_load: "chat --clients 100 --senders 10 --bytes 128 --rate 300 --duration 2s --warm-up 1s",
        nodes: 1,
        metrics: STEADY,
    },
    Measurement {
        name: "steady-2000",
        title: "2,000 messages a second, each to everyone",
        load: "chat --clients 1000 --senders 10 --bytes 128 --rate 2000 --duration 10s --warm-up 2s",
        quick_load: "chat --clients 100 --senders 10 --bytes 128 --rate 2000 --duration 2s --warm-up 1s",
        nodes: 1,
        metrics: STEADY,
    },
    Measurement {
        name: "idle",
        title: "Clients that say nothing: memory beyond that of a server without clients",
        load: "idle --clients 10000 --duration 10s",
        quick_load: "idle --clients 1000 --duration 2s",
        nodes: 1,
        metrics: &[RSS],
    },
    Measurement {
        name: "storm",
        title: "Everyone connects at once",
        load: "idle --clients 10000 --ramp 1000000/s --duration 5s",
        quick_load: "idle --clients 1000 --ramp 1000000/s --duration 2s",
        nodes: 1,
        metrics: &[ALL_IN, CONNECT_P99, CONNECT_FAILURES],
    },
    Measurement {
        name: "crowd",
        title: "10 messages a second, each to a great many",
        load: "chat --clients 10000 --senders 10 --bytes 128 --rate 10 --duration 10s --warm-up 2s",
        quick_load: "chat --clients 1000 --senders 10 --bytes 128 --rate 10 --duration 2s --warm-up 1s",
        nodes: 1,
        metrics: STEADY,
    },
    Measurement {
        name: "through-redis",
        title: "As `saturated`, on two nodes that share a core and talk through Redis, half of the clients each",
        load: "chat --clients 1000 --senders 10 --bytes 128 --in-flight 100 --duration 10s --warm-up 2s",
        quick_load: "chat --clients 100 --senders 10 --bytes 128 --in-flight 100 --duration 2s --warm-up 1s",
        nodes: 2,
        metrics: &[DELIVERIES, CPU, P99, LOST, REORDERED],
    },
];

/// For the command line.
pub(super) fn named(name: &str) -> Result<&'static Measurement, String> {
    MEASUREMENTS.iter().find(|measurement| measurement.name == name).ok_or_else(|| {
        let names: Vec<_> = MEASUREMENTS.iter().map(|measurement| measurement.name).collect();
        format!("there are {}", names.join(", "))
    })
}

impl Measurement {
    /// Arguments of `antiphon-loadtest run`.
    pub(super) fn load(&self, quick: bool) -> impl Iterator<Item = &'static str> {
        if quick { self.quick_load } else { self.load }.split(' ')
    }

    /// What its metrics are in a report.
    ///
    /// # Errors
    ///
    /// It is no report.
    pub(super) fn figures(&self, report: &Value, rss_before_bytes: u64) -> Result<Vec<f64>> {
        let report = Report::deserialize(report).context("not a report as it should be")?;
        let figures = Figures { report, rss_before_bytes };
        Ok(self.metrics.iter().map(|metric| (metric.read)(&figures)).collect())
    }

    /// For who waits.
    pub(super) fn summary(&self, outcome: &Outcome) -> String {
        match outcome {
            Outcome::Missing(why) => format!("missing: {why}"),
            Outcome::Failed(why) => format!("failed: {why}"),
            Outcome::Measured { figures, .. } => {
                let named = self.metrics.iter().zip(figures);
                let shown =
                    named.map(|(m, figure)| format!("{}: {}", m.name, m.form.show(*figure)));
                shown.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

impl Form {
    /// With three digits that count, and of the thousands no more than needed.
    pub(super) fn show(self, figure: f64) -> String {
        match self {
            _ if figure.is_nan() => "–".to_owned(),
            Self::Share if figure == 0.0 => "0 %".to_owned(),
            // Not to be mistaken for none.
            Self::Share if figure < 0.0001 => "< 0.01 %".to_owned(),
            Self::Share => format!("{} %", digits(figure * 100.0)),
            Self::Number if figure >= 999_500.0 => format!("{} M", digits(figure / 1e6)),
            Self::Number if figure >= 9_995.0 => format!("{} k", digits(figure / 1e3)),
            Self::Number => digits(figure),
        }
    }
}

/// Three digits that count.
pub(super) fn digits(figure: f64) -> String {
    let decimals = match figure.abs() {
        0.0 => 0,
        ..0.0995 => 4,
        ..0.995 => 3,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{figure:.decimals$}")
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_that_count() {
        let cases = [
            (f64::NAN, "–"),
            (0.0, "0"),
            (0.0107, "0.0107"),
            (0.1634, "0.163"),
            (0.9996, "1.00"),
            (8.66, "8.66"),
            (43.21, "43.2"),
            (5452.1, "5452"),
            (34_120.0, "34.1 k"),
            (142_000.0, "142 k"),
            (999_600.0, "1.00 M"),
            (4_312_000.0, "4.31 M"),
        ];
        for (figure, shown) in cases {
            assert_eq!(Form::Number.show(figure), shown);
        }
        for (figure, shown) in
            [(0.0, "0 %"), (1e-7, "< 0.01 %"), (0.0123, "1.23 %"), (0.79, "79.0 %")]
        {
            assert_eq!(Form::Share.show(figure), shown);
        }
    }

    #[test]
    fn every_load_is_a_scenario_and_flags_with_values() {
        for measurement in &MEASUREMENTS {
            for quick in [false, true] {
                let words: Vec<_> = measurement.load(quick).collect();
                let (scenario, flags) = words.split_first().unwrap();
                assert!(!scenario.starts_with('-'), "{words:?}");
                for flag in flags.chunks(2) {
                    assert!(flag[0].starts_with("--") && !flag[1].starts_with('-'), "{flag:?}");
                }
            }
        }
    }
}
