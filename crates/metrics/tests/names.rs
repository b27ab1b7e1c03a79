//! Every metric keeps to the naming rules (<https://prometheus.io/docs/practices/naming/>), whether it has been
//! counted yet or not: prefix, unit, `_total`, help text, few label values.

use std::collections::BTreeMap;

use antiphon_metrics::{
    AdapterMetrics, BusMetrics, Description, GatewayMetrics, LogMetrics, Registry, TraceMetrics,
    gateway::Outcome, render,
};

/// What is counted or measured, the last word of a name: base units, and things.
const UNITS: &[&str] = &[
    // Base units.
    "seconds",
    "bytes",
    // Things, in the plural.
    "acks",
    "broadcasts",
    "connections",
    "deliveries",
    "errors",
    "events",
    "failures",
    "lines",
    "messages",
    "packets",
    "peers",
    "probes",
    "recipients",
    "reconnects",
    "refusals",
    "requests",
    "rooms",
    "sessions",
    "sockets",
    "spans",
    "streams",
    "answers",
];

/// What may follow the thing: what became of it. Without any, it is how many there are.
const PARTICIPLES: &[&str] = &[
    "accepted",
    "closed",
    "deferred",
    "dropped",
    "exported",
    "failed",
    "ignored",
    "lost",
    "missing",
    "opened",
    "pending",
    "published",
    "received",
    "refused",
    "sent",
    "unsent",
];

/// Counters of messages and events whose thing is left out, and gauges that are 1 or 0.
const WITHOUT_UNIT: &[&str] = &[
    "antiphon_bus_published_total",
    "antiphon_bus_unpublished_total",
    "antiphon_bus_received_total",
    "antiphon_bus_receive_dropped_total",
    "antiphon_bus_connected",
    "antiphon_bus_subscribed",
    "antiphon_gateway_undelivered_total",
    "antiphon_gateway_draining",
    "antiphon_gateway_ready",
    "antiphon_gateway_stuck",
];

fn described() -> Vec<Description> {
    [
        GatewayMetrics::describe(),
        AdapterMetrics::describe(),
        BusMetrics::describe(),
        TraceMetrics::describe(),
        LogMetrics::describe(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn names_and_help_follow_the_rules() {
    for Description { name, help, kind, .. } in described() {
        assert!(name.starts_with("antiphon_"), "{name}: prefix");
        assert!(
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{name}: letters"
        );
        assert!(help.ends_with('.') && !help.contains('\n'), "{name}: help is a sentence");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}: counters end in _total");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}: all are of durations");
        let measured = name.trim_end_matches("_total").trim_end_matches("_max");
        let words: Vec<_> = measured.split('_').skip(2).collect();
        let thing = words.iter().rev().find(|word| !PARTICIPLES.contains(word));
        let has_unit = thing.is_some_and(|thing| UNITS.contains(thing));
        assert_ne!(has_unit, WITHOUT_UNIT.contains(&name), "{name}: unit");
    }
}

#[test]
fn a_bound_stands_beside_what_it_bounds() {
    let names: Vec<_> = described().iter().map(|metric| metric.name).collect();
    for name in &names {
        let Some(bounded) = name.strip_suffix("_max") else { continue };
        // Of one client, and what waits for each of them is nobody's metric.
        let of_each = bounded.starts_with("antiphon_gateway_client_waiting_");
        assert!(of_each || names.contains(&bounded), "{name}");
    }
}

#[test]
fn label_values_are_known_and_few() {
    for Description { name, labels, .. } in described() {
        let mut children = 1;
        for (label, values) in labels {
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase()), "{name}: {label}");
            // Those that the configuration names.
            assert_eq!(
                values.is_empty(),
                ["namespace", "event"].contains(&label),
                "{name}: {label}"
            );
            children *= values.len().max(1);
            for (value, meaning) in values {
                let plain = |byte: u8| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte);
                assert!(value.bytes().all(plain), "{name}: {label}={value}");
                assert!(meaning.ends_with('.'), "{name}: {label}={value} is explained");
            }
        }
        assert!(children <= 24, "{name}: {children} children");
    }
}

/// Those with labels from the configuration are gathered only when they have children.
#[test]
fn what_is_gathered_is_what_is_described() {
    let registry = Registry::new();
    let gateway = GatewayMetrics::register(&registry).expect("names are free in a new registry");
    AdapterMetrics::register(&registry).expect("names are free in a new registry");
    BusMetrics::register(&registry).expect("names are free in a new registry");
    TraceMetrics::register(&registry).expect("names are free in a new registry");
    LogMetrics::register(&registry).expect("names are free in a new registry");
    let rule = gateway.events_total.rule("/", "chat_message").expect("values match the labels");
    rule.of(Outcome::Ok).inc();
    gateway.recipients_total.rule("/", "chat_message").expect("values match the labels");
    gateway.sockets.of("/").expect("values match the labels");
    gateway.rooms.of("/").expect("values match the labels");
    gateway.sockets_opened_total.of("/").expect("values match the labels");
    gateway.sockets_closed_total.of("/").expect("values match the labels");

    let families = registry.gather().into_iter();
    let gathered = families.map(|family| {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let of_one = &family.get_metric()[0];
        let mut labels: Vec<_> =
            of_one.get_label().iter().map(|pair| pair.name().to_owned()).collect();
        labels.sort();
        let children: usize = family.get_metric().len();
        (family.name().to_owned(), (family.help().to_owned(), kind, labels, children))
    });
    let described = described().into_iter().map(|metric| {
        let children = metric.labels.iter().map(|(_, values)| values.len().max(1)).product();
        let mut labels: Vec<_> = metric.labels.iter().map(|(label, _)| label.to_string()).collect();
        labels.sort();
        (metric.name.to_owned(), (metric.help.to_owned(), metric.kind.to_owned(), labels, children))
    });
    let (gathered, described): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (gathered.collect(), described.collect());
    assert_eq!(gathered, described);

    let text = render([&registry]).expect("renders");
    let line =
        r#"antiphon_gateway_events_total{event="chat_message",namespace="/",outcome="ok"} 1"#;
    assert!(text.contains(line), "{text}");
}

#[test]
fn two_nodes_in_one_process_count_apart() {
    let (one, two) = (Registry::new(), Registry::new());
    let a = GatewayMetrics::register(&one).expect("first");
    let _b = GatewayMetrics::register(&two).expect("second");
    a.deliveries_total.inc();
    assert!(render([&one]).expect("renders").contains("deliveries_total 1"));
    assert!(render([&two]).expect("renders").contains("deliveries_total 0"));
    assert!(GatewayMetrics::register(&one).is_err(), "twice into one registry is an error");
}
