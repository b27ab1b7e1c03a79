//! Traces, of nodes as processes of their own, since tracing belongs to the process: an event followed from the client that sent it through two nodes, and a collector that never answers.
//!
//! Needs a redis-server (Debian: `apt-get install redis-server`).

#[expect(dead_code, reason = "the tests of a node need more of it")]
#[path = "node/client.rs"]
mod client;
#[expect(dead_code, reason = "the tests of a node need more of it")]
#[path = "node/harness.rs"]
mod harness;
#[path = "support/process.rs"]
mod process;
#[expect(dead_code, reason = "the tests of the bus need more of it")]
#[path = "../../adapter/tests/bus/server.rs"]
mod server;
#[expect(dead_code, reason = "the tests of the bus need more of it")]
#[path = "../../adapter/tests/bus/wait.rs"]
mod wait;

use std::time::{Duration, Instant};

use axum::{Router, body::Bytes, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as AnyValue,
    trace::v1::Span,
};
use prost::Message;
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc};

use crate::{client::Client, harness::get, process::Node, server::Server, wait::eventually};

/// Spans, each with the node that it is from.
type Spans = mpsc::Receiver<(String, Span)>;

async fn collector() -> (String, Spans) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1/traces", listener.local_addr().expect("bound"));
    let (take, taken) = mpsc::channel(100);
    let export = post(async move |body: Bytes| {
        let request = ExportTraceServiceRequest::decode(body).expect("OTLP in protobuf");
        for of_node in request.resource_spans {
            let attributes = of_node.resource.expect("who it is").attributes;
            let id = attributes.into_iter().find(|one| one.key == "service.instance.id");
            let id = id.and_then(|one| one.value?.value).expect("an id");
            let AnyValue::StringValue(id) = id else { panic!("a text: {id:?}") };
            for span in of_node.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                take.try_send((id.clone(), span)).expect("the test waits");
            }
        }
    });
    tokio::spawn(axum::serve(listener, Router::new().route("/v1/traces", export)).into_future());
    (url, taken)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_followed_through_two_nodes() {
    let redis = Server::start(&[]).await;
    let (url, mut taken) = collector().await;
    let (redis, endpoint) =
        (format!("redis.url={}", redis.url()), format!("traces.endpoint={url}"));
    let settings = ["traces.sample_ratio=1", "log.filter=debug", &redis, &endpoint];
    let start = |id| Node::start(&[&[id], &settings[..]].concat());
    let [a, b] = ["node.id=a", "node.id=b"].map(start);
    a.until_ready().await;
    b.until_ready().await;
    let mut sender = Client::connect(a.address).await;
    let mut listener = Client::connect(b.address).await;
    assert_eq!(sender.ask(1, json!(["chat_message", "hello"])).await, json!([{ "ok": true }]));
    assert_eq!(listener.event().await, json!(["chat_message", "hello"]));
    let [log, _] = tokio::task::spawn_blocking(|| [a, b].map(Node::stop)).await.expect("they end");

    let mut spans = Vec::new();
    while let Ok(span) = taken.try_recv() {
        spans.push(span);
    }
    let find = |node: &str, name: &str, parent: Option<&Span>| {
        let parent = parent.map_or(&[][..], |span| &span.span_id);
        let found = spans
            .iter()
            .find(|(of, span)| of == node && span.name == name && span.parent_span_id == parent);
        &found.unwrap_or_else(|| panic!("no {name} of {node}: {spans:?}")).1
    };
    let event = find("a", "event", None);
    let publish = find("a", "publish", Some(event));
    find("a", "fan out", Some(event));
    let received = find("b", "received from a peer", Some(publish));
    find("b", "fan out", Some(received));
    assert_eq!(spans.len(), 5, "and nothing for each recipient: {spans:?}");
    assert!(spans.iter().all(|(_, span)| span.trace_id == event.trace_id));
    let outcome = event.attributes.iter().find(|one| one.key == "outcome");
    let outcome = outcome.and_then(|one| one.value.clone()?.value);
    assert_eq!(outcome, Some(AnyValue::StringValue("ok".to_owned())));

    let trace_id: String = event.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = log.iter().find(|line| line["message"] == "event").expect("it was logged");
    assert_eq!((&line["node"], &line["openTelemetry"]["traceId"]), (&json!("a"), &json!(trace_id)));
}

/// Each two spans, and more than may wait.
const EVENTS: u64 = 6_000;

/// Spans that wait for a collector, and that it gets at a time.
const QUEUE: u64 = 8_192;
const BATCH: u64 = 512;

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_costs_nothing_but_a_counter() {
    // Whoever connects is taken by the kernel, and hears nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint =
        format!("traces.endpoint=http://{}/v1/traces", silent.local_addr().expect("bound"));
    let node = Node::start(&[&endpoint, "traces.sample_ratio=1"]);
    let mut client = Client::connect(node.address).await;
    for number in 0..EVENTS {
        let answer = client.ask(number, json!(["chat_message", number])).await;
        assert_eq!(answer, json!([{ "ok": true }]));
    }
    // An event's span ends a little after its acknowledgement, and the first export after its deadline.
    let counted = async || {
        let (_, metrics) = get(node.admin, "/metrics").await;
        let value = |name: &str| {
            let mut values = metrics.lines().filter_map(|line| line.strip_prefix(name));
            values.next().expect("it is there").trim().parse::<u64>().expect("a number")
        };
        assert_eq!(value("antiphon_traces_spans_exported_total "), 0);
        let [no_room, failed] = ["queue_full", "export_failed"].map(|reason| {
            value(&format!("antiphon_traces_spans_lost_total{{reason=\"{reason}\"}}"))
        });
        let (spans, failures) = (
            value("antiphon_traces_spans_total "),
            value("antiphon_traces_export_failures_total "),
        );
        // All but a batch that is under way.
        let waiting = spans - no_room - failed;
        assert!(waiting <= QUEUE + BATCH, "{waiting} wait");
        assert!((failures..=failures * BATCH).contains(&failed), "{failed} in {failures}");
        spans == 2 * EVENTS && failures > 0 && waiting >= QUEUE - BATCH
    };
    eventually("every span is lost or waits", harness::DEADLINE, counted).await;
    let told = Instant::now();
    let log = tokio::task::spawn_blocking(|| node.stop()).await.expect("it ends");
    assert!(told.elapsed() < Duration::from_secs(10), "it left after {:?}", told.elapsed());
    for message in
        ["the collector takes no traces", "spans are lost: more come than the collector takes"]
    {
        let said = log.iter().filter(|line| line["message"] == message).count();
        assert_eq!(said, 1, "{message}: {log:?}");
    }
}
