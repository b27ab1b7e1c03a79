//! What came out: every report, and the table of medians and ratios.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::to_raw_value;

use super::measurement::{Form, Measurement, digits};
use super::{Peer, picture};

/// Of the file with the reports.
pub(super) const FORMAT: u32 = 1;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    pub(super) format: u32,
    /// RFC 3339.
    pub(super) started: String,
    pub(super) commit: String,
    /// Of this machine. A load test that is pinned sees only its own.
    pub(super) cores: usize,
    /// What ran where.
    pub(super) placement: String,
    pub(super) quick: bool,
    pub(super) rounds: u32,
    pub(super) ended_early: bool,
    pub(super) peers: Vec<Peer>,
    #[serde(skip)]
    pub(super) measurements: Vec<&'static Measurement>,
    #[serde(serialize_with = "a_line_each")]
    pub(super) runs: Vec<Run>,
}

/// One measurement of one server.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) measurement: &'static str,
    pub(super) peer: Peer,
    pub(super) round: u32,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Measured {
        /// One for each metric of the measurement.
        figures: Vec<f64>,
        /// Resident memory before there were clients.
        rss_before_bytes: u64,
        /// As the load test wrote it, but for its command: paths of this machine are nobody's business.
        report: Value,
    },
    /// There is no such server here, for this reason.
    Missing(String),
    Failed(String),
}

/// What a table says of a server.
#[derive(Debug, PartialEq)]
pub(super) enum Entry {
    Figures(Vec<Figure>),
    /// Why there are none.
    None(String),
}

/// A metric over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Run {
    pub(super) fn is_measured(&self) -> bool {
        matches!(self.outcome, Outcome::Measured { .. })
    }

    pub(super) fn is_missing(&self) -> bool {
        matches!(self.outcome, Outcome::Missing(_))
    }
}

/// A report over hundreds of lines would be more to scroll and no more to read.
fn a_line_each<S: Serializer>(runs: &[Run], serializer: S) -> Result<S::Ok, S::Error> {
    let lines: Result<Vec<_>, _> = runs.iter().map(to_raw_value).collect();
    lines.map_err(S::Error::custom)?.serialize(serializer)
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = match self {
            // The figures can be had from the report.
            Self::Measured { rss_before_bytes, report, .. } => {
                serde_json::json!({ "rss_before_bytes": rss_before_bytes, "report": report })
            }
            Self::Missing(reason) => serde_json::json!({ "missing": reason }),
            Self::Failed(reason) => serde_json::json!({ "failed": reason }),
        };
        fields.serialize(serializer)
    }
}

impl Figure {
    /// Of the rounds that have one.
    fn of(mut figures: Vec<f64>) -> Self {
        figures.retain(|figure| !figure.is_nan());
        if figures.is_empty() {
            return Self { median: f64::NAN, least: f64::NAN, most: f64::NAN };
        }
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = if figures.len().is_multiple_of(2) {
            f64::midpoint(figures[middle - 1], figures[middle])
        } else {
            figures[middle]
        };
        Self { median, least: figures[0], most: figures[figures.len() - 1] }
    }
}

impl Results {
    /// Writes the reports, the table and the picture; returns where.
    pub(super) fn write(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let date = self.started.split('T').next().unwrap_or_default();
        // A trial does not replace results.
        let name = format!("{date}-{}{}", self.commit, if self.quick { "-quick" } else { "" });
        let mut files = vec![("json", self.to_json()?), ("md", self.to_markdown(&name))];
        files.extend(picture::draw(self).map(|picture| ("svg", picture)));
        let mut paths = Vec::new();
        for (extension, text) in files {
            // Not `with_extension`: a name may contain dots.
            let path = directory.join(format!("{name}.{extension}"));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            paths.push(path);
        }
        Ok(paths)
    }

    fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        text.push('\n');
        Ok(text)
    }

    fn to_markdown(&self, name: &str) -> String {
        let mut text = format!("# Servers compared, {}, commit {}\n\n", self.date(), self.commit);
        let _ = writeln!(text, "{}; {}.", self.machine(), self.placement);
        let _ = writeln!(
            text,
            "Medians of {}, the servers in turn, a fresh process for each measurement; × is the ratio to \
             antiphon.\nWhat had not arrived a few seconds after the last message was sent counts as lost: with \
             a server that is\noverloaded also what still waited. The reports are in \
             [{name}.json]({name}.json).",
            rounds(self.rounds)
        );
        if self.quick {
            text.push_str("\n**A quick run, with few clients: the figures mean little.**\n");
        }
        if self.ended_early {
            text.push_str("\n**Ended early: not every server had its turn in every round.**\n");
        }
        if self.done("saturated").is_some() {
            let _ = writeln!(text, "\n![Deliveries a second, and CPU time of each]({name}.svg)");
        }
        for measurement in &self.measurements {
            self.table(measurement, &mut text);
        }
        text
    }

    fn table(&self, measurement: &Measurement, text: &mut String) {
        let (name, title) = (measurement.name, measurement.title);
        let load = measurement.load(self.quick).collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "\n## {name}\n\n{title} (`run {load}`).\n");
        if !self.runs.iter().any(|run| run.measurement == name) {
            let needs_redis = measurement.nodes > 1 && !self.ended_early;
            let why = if needs_redis { ": it needs a Redis (`--redis`)" } else { "" };
            let _ = writeln!(text, "Not measured{why}.");
            return;
        }
        let (metrics, entries) = (measurement.metrics, self.entries(measurement));
        let mut header = String::from("| |");
        for metric in metrics {
            let _ = write!(header, " {} |", metric.name);
            if metric.form == Form::Number {
                header.push_str(" × |");
            }
        }
        if self.rounds > 1 {
            let _ = write!(header, " {}, least–most |", metrics[0].name);
        }
        let columns = header.matches('|').count() - 2;
        let _ = writeln!(text, "{header}\n|---|{}", "---:|".repeat(columns));

        let of_antiphon = entries.iter().find_map(|(peer, entry)| match entry {
            Entry::Figures(figures) if *peer == Peer::Antiphon => Some(figures.clone()),
            _ => None,
        });
        for (peer, entry) in &entries {
            let _ = write!(text, "| {} |", peer.name());
            match entry {
                Entry::None(why) => {
                    let _ =
                        write!(text, " {} |{}", why.replace('|', "\\|"), " |".repeat(columns - 1));
                }
                Entry::Figures(figures) => {
                    for (at, (metric, figure)) in metrics.iter().zip(figures).enumerate() {
                        let _ = write!(text, " {} |", metric.form.show(figure.median));
                        if metric.form == Form::Number {
                            let base = of_antiphon.as_ref().map(|figures| figures[at].median);
                            let _ = write!(text, " {} |", ratio(figure.median, base));
                        }
                    }
                    if self.rounds > 1 {
                        let show = |figure| metrics[0].form.show(figure);
                        let (least, most) = (show(figures[0].least), show(figures[0].most));
                        let _ = write!(text, " {least} – {most} |");
                    }
                }
            }
            text.push('\n');
        }
        self.failures(name, text);
    }

    /// Of those that have figures of other rounds, too.
    fn failures(&self, name: &str, text: &mut String) {
        for run in self.runs.iter().filter(|run| run.measurement == name) {
            let Outcome::Failed(why) = &run.outcome else { continue };
            let _ = write!(text, "\n{} failed in round {}: {why}\n", run.peer.name(), run.round);
        }
    }

    /// A measurement that was done for at least one server.
    pub(super) fn done(&self, name: &str) -> Option<&'static Measurement> {
        let any = self.runs.iter().any(|run| run.measurement == name && run.is_measured());
        self.measurements.iter().copied().find(|measurement| any && measurement.name == name)
    }

    /// What there is of a measurement for each server.
    pub(super) fn entries(&self, measurement: &Measurement) -> Vec<(Peer, Entry)> {
        self.peers.iter().map(|&peer| (peer, self.entry(measurement, peer))).collect()
    }

    fn entry(&self, measurement: &Measurement, peer: Peer) -> Entry {
        let of_peer = || self.runs.iter().filter(|run| run.peer == peer);
        let of_both = || of_peer().filter(|run| run.measurement == measurement.name);
        let all: Vec<_> = of_both()
            .filter_map(|run| match &run.outcome {
                Outcome::Measured { figures, .. } => Some(figures),
                _ => None,
            })
            .collect();
        if !all.is_empty() {
            let metric = |at: usize| Figure::of(all.iter().map(|figures| figures[at]).collect());
            return Entry::Figures((0..measurement.metrics.len()).map(metric).collect());
        }
        if measurement.nodes > 1 && !peer.has_cluster() {
            return Entry::None("has no cluster here".to_owned());
        }
        let missing = of_peer().find_map(|run| match &run.outcome {
            Outcome::Missing(why) => Some(format!("missing: {why}")),
            _ => None,
        });
        let failed = of_both().any(|run| matches!(run.outcome, Outcome::Failed(_)));
        let why = if failed { "failed: see below" } else { "not measured" };
        Entry::None(missing.unwrap_or_else(|| why.to_owned()))
    }

    pub(super) fn date(&self) -> &str {
        self.started.get(..10).unwrap_or(&self.started)
    }

    /// As a report describes it.
    pub(super) fn machine(&self) -> String {
        let machine = self.runs.iter().find_map(|run| match &run.outcome {
            Outcome::Measured { report, .. } => report.get("machine"),
            _ => None,
        });
        let Some(machine) = machine else { return "An unknown machine".to_owned() };
        let text = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
        let memory = machine["memory_bytes"].as_f64().unwrap_or_default() / 1e9;
        let (cpu, cores, kernel) = (text("cpu"), self.cores, text("kernel"));
        format!("{cpu} ({cores} cores, {memory:.0} GB), Linux {kernel}")
    }
}

fn rounds(rounds: u32) -> String {
    if rounds == 1 { "one round".to_owned() } else { format!("{rounds} rounds") }
}

fn ratio(figure: f64, base: Option<f64>) -> String {
    match base {
        Some(base) if base != 0.0 && (figure / base).is_finite() => digits(figure / base),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::measurement::MEASUREMENTS;
    use super::*;

    const METRICS: usize = 5;

    fn run(peer: Peer, round: u32, deliveries: f64, cpu: f64) -> Run {
        let machine = serde_json::json!({
            "cpu": "Some CPU", "cores": 1, "memory_bytes": 8_000_000_000_u64, "kernel": "6.1",
        });
        let mut figures = vec![0.0; METRICS];
        figures[..2].copy_from_slice(&[deliveries, cpu]);
        let report = serde_json::json!({ "machine": machine });
        let outcome = Outcome::Measured { figures, rss_before_bytes: 0, report };
        Run { measurement: "saturated", peer, round, outcome }
    }

    fn failed(peer: Peer, round: u32, outcome: Outcome) -> Run {
        Run { measurement: "saturated", peer, round, outcome }
    }

    fn results() -> Results {
        let runs = vec![
            run(Peer::Antiphon, 1, 4.0e6, 0.25),
            run(Peer::Antiphon, 2, 4.4e6, 0.2),
            run(Peer::Antiphon, 3, 4.2e6, 0.22),
            run(Peer::Socketioxide, 1, 1.05e6, 0.99),
            failed(Peer::Socketioxide, 2, Outcome::Failed("it ended".to_owned())),
            failed(Peer::Bun, 1, Outcome::Missing("no | binary".to_owned())),
            failed(Peer::NodeUws, 1, Outcome::Failed("broken".to_owned())),
        ];
        Results {
            format: FORMAT,
            started: "2026-11-22T18:00:00Z".to_owned(),
            commit: "abc1234".to_owned(),
            cores: 4,
            placement: "servers on core 0, load on core 1".to_owned(),
            quick: false,
            rounds: 3,
            ended_early: false,
            peers: vec![Peer::Antiphon, Peer::Socketioxide, Peer::NodeUws, Peer::Bun],
            measurements: vec![&MEASUREMENTS[0], &MEASUREMENTS[7]],
            runs,
        }
    }

    #[test]
    fn a_figure_is_the_median_of_the_rounds() {
        let odd = Figure { median: 2.0, least: 1.0, most: 9.0 };
        assert_eq!(Figure::of(vec![9.0, 1.0, 2.0]), odd);
        let even = Figure { median: 2.5, least: 1.0, most: 9.0 };
        assert_eq!(Figure::of(vec![9.0, 1.0, 2.0, 3.0]), even);
        let one = Figure { median: 4.0, least: 4.0, most: 4.0 };
        assert_eq!(Figure::of(vec![4.0]), one);
        assert_eq!(Figure::of(vec![f64::NAN, 4.0]), one);
        assert!(Figure::of(vec![f64::NAN]).median.is_nan());
    }

    #[test]
    fn the_table_has_a_line_for_every_server() {
        let text = results().to_markdown("name");
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        let expected = [
            "| | deliveries/s | × | CPU µs a delivery | × | p99 ms | × | lost | out of order | \
             deliveries/s, least–most |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            "| antiphon | 4.20 M | 1.00 | 0.220 | 1.00 | 0 |  | 0 % | 0 % | 4.00 M – 4.40 M |",
            "| socketioxide | 1.05 M | 0.250 | 0.990 | 4.50 | 0 |  | 0 % | 0 % | 1.05 M – 1.05 M |",
            "| node-uws | failed: see below | | | | | | | | |",
            "| bun | missing: no \\| binary | | | | | | | | |",
        ];
        assert_eq!(lines, expected);
        for said in [
            "2026-11-22, commit abc1234",
            "Some CPU (4 cores, 8 GB), Linux 6.1; servers on core 0",
            "socketioxide failed in round 2: it ended",
            "node-uws failed in round 1: broken",
            "Not measured: it needs a Redis",
        ] {
            assert!(text.contains(said), "{said}:\n{text}");
        }
    }

    #[test]
    fn without_antiphon_there_are_no_ratios() {
        let mut results = results();
        results.peers.retain(|peer| *peer == Peer::Socketioxide);
        let text = results.to_markdown("name");
        assert!(text.contains("| socketioxide | 1.05 M |  | 0.990 |  |"), "{text}");
    }

    #[test]
    fn the_file_of_reports_is_json() {
        let json: Value = serde_json::from_str(&results().to_json().unwrap()).unwrap();
        assert_eq!(json["runs"].as_array().unwrap().len(), 7);
        assert_eq!(json["runs"][0]["report"]["machine"]["cores"], 1);
        assert_eq!(json["runs"][5]["missing"], "no | binary");
        assert_eq!(json["runs"][6]["failed"], "broken");
        assert_eq!(json["runs"][0]["peer"], "antiphon");
    }
}
