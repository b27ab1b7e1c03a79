//! Every metric keeps to the naming rules: prefix, unit, `_total`, help text, few label values.

use antiphon_metrics::{
    AdapterMetrics, BusMetrics, GatewayMetrics, Registry, gateway::Outcome, render,
};

#[test]
fn names_help_and_labels_follow_the_rules() {
    let registry = Registry::new();
    let metrics = GatewayMetrics::register(&registry).expect("names are free in a new registry");
    BusMetrics::register(&registry).expect("names are free in a new registry");
    AdapterMetrics::register(&registry).expect("names are free in a new registry");
    let rule = metrics.events_total.rule("/", "chat_message").expect("values match the labels");
    rule.of(Outcome::Ok).inc();

    let families = registry.gather();
    assert!(families.len() >= 15, "every field is gathered");
    for family in families {
        let name = family.name();
        assert!(name.starts_with("antiphon_"), "{name}: prefix");
        assert!(family.help().ends_with('.'), "{name}: help is a sentence");
        let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
        assert_eq!(name.ends_with("_total"), counter, "{name}: counters end in _total");
        assert!(family.get_metric().len() <= 16, "{name}: label values are bounded");
    }
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
