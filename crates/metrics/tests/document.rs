//! METRICS.md is what the code says.
//!
//! `UPDATE_METRICS=1 cargo test -p antiphon-metrics` writes it anew.

use std::fmt::Write;

use antiphon_metrics::{
    AdapterMetrics, BusMetrics, Description, GatewayMetrics, LogMetrics, Registry, TraceMetrics,
    register_process,
};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md");

const INTRODUCTION: &str = "# Metrics

What a node shows at `/metrics` of its admin listener, in the Prometheus text format. Written by
`crates/metrics/tests/document.rs` from the code. A histogram `x_seconds` is scraped as `x_seconds_bucket`,
`x_seconds_sum` and `x_seconds_count`.
";

#[test]
fn it_lists_every_metric() {
    let mut text = INTRODUCTION.to_owned();
    section(&mut text, "Gateway: connections, sessions, events", &GatewayMetrics::describe());
    section(
        &mut text,
        "Adapter: broadcasts and requests between nodes",
        &AdapterMetrics::describe(),
    );
    section(&mut text, "Bus: the connections to Redis", &BusMetrics::describe());
    section(&mut text, "Traces", &TraceMetrics::describe());
    section(&mut text, "Log", &LogMetrics::describe());
    process(&mut text);
    if std::env::var_os("UPDATE_METRICS").is_some() {
        std::fs::write(PATH, &text).expect("METRICS.md is writable");
    }
    let written = std::fs::read_to_string(PATH).expect("METRICS.md is there");
    assert!(
        written == text,
        "METRICS.md is out of date: UPDATE_METRICS=1 cargo test -p antiphon-metrics"
    );
}

fn section(text: &mut String, title: &str, metrics: &[Description]) {
    heading(text, title);
    for Description { name, help, kind, labels } in metrics {
        let names: Vec<_> = labels.iter().map(|(label, _)| format!("`{label}`")).collect();
        row(text, name, kind, &names.join(", "), help);
    }
    let mut labels: Vec<_> = metrics
        .iter()
        .flat_map(|metric| {
            metric.labels.iter().map(move |(label, values)| (metric.name, label, values))
        })
        .filter(|(_, _, values)| !values.is_empty())
        .collect();
    labels.dedup_by(|(_, label, values), (_, first, others)| (label, values) == (first, others));
    for (metric, label, values) in labels {
        writeln!(text, "\n`{label}` of `{metric}`:\n").expect("text");
        for (value, meaning) in values {
            writeln!(text, "- `{value}`: {meaning}").expect("text");
        }
    }
}

fn process(text: &mut String) {
    heading(text, "Process");
    let registry = Registry::new();
    register_process(&registry, "0", "0").expect("once");
    for family in registry.gather() {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let label =
            if family.name() == "antiphon_build_info" { "`version`, `revision`" } else { "" };
        row(text, family.name(), &kind, label, family.help());
    }
}

fn heading(text: &mut String, title: &str) {
    writeln!(text, "\n## {title}\n\n| name | type | labels | |\n|---|---|---|---|").expect("text");
}

fn row(text: &mut String, name: &str, kind: &str, labels: &str, help: &str) {
    writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").expect("text");
}
