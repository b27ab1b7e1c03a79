//! A trace goes on at remote nodes.

use antiphon_adapter::{
    bus::memory::Hub,
    wire::{Flags, Opts, decode_broadcast},
};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::Instrument;
use tracing_subscriber::{filter::FilterFn, prelude::*};

use crate::{
    clients::settle,
    node::{LIMITS, Node, Stranger, channels, everyone},
};

#[tokio::test(start_paused = true)]
async fn a_trace_crosses_nodes() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    b.socket(&[]);
    a.emit(everyone(), "without a trace").await;
    settle().await;
    assert!(exporter.get_finished_spans().unwrap().is_empty(), "nobody asked for one");
    a.emit(everyone(), "with one").instrument(tracing::info_span!("accepted")).await;
    settle().await;
    let spans = exporter.get_finished_spans().unwrap();
    let name = |span: &SpanData| span.name.to_string();
    let mut names: Vec<_> = spans.iter().map(name).collect();
    names.sort();
    assert_eq!(names, ["accepted", "fan out", "publish", "received from a peer"]);
    let find = |name: &str, parent: &str| {
        let parent = spans.iter().find(|span| span.name == parent).expect("it ended");
        let is = |span: &&SpanData| {
            span.name == name && span.parent_span_id == parent.span_context.span_id()
        };
        let span = spans.iter().find(is).unwrap_or_else(|| panic!("{name} in {}", parent.name));
        assert_eq!(span.span_context.trace_id(), parent.span_context.trace_id());
        span
    };
    find("publish", "accepted");
    assert!(find("received from a peer", "publish").parent_span_is_remote);
    find("fan out", "received from a peer");
}

#[tokio::test(start_paused = true)]
async fn a_span_that_is_only_logged_begins_no_trace() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    // As a node has it: its own spans are traced, and whoever logs sees the application's as well.
    let ours = FilterFn::new(|metadata| metadata.target().starts_with("antiphon"));
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(ours)).with(logs);
    let _guard = tracing::subscriber::set_default(subscriber);
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    a.socket(&[]);
    let applications = tracing::info_span!(target: "application", "order");
    assert!(!applications.is_disabled());
    a.emit(everyone(), "event").instrument(applications).await;
    settle().await;
    assert!(exporter.get_finished_spans().unwrap().is_empty(), "nobody asked for one");
}

#[tokio::test(start_paused = true)]
async fn without_tracing_a_broadcast_has_no_flags() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let mut stranger = Stranger::join(&hub.link(), &[channels("").broadcast()]).await;
    a.emit(everyone(), "event").await;
    let frame = stranger.next_bytes().await;
    let Opts { flags, .. } = decode_broadcast(&frame, &LIMITS).unwrap().opts;
    assert_eq!(flags, Flags::default());
}
