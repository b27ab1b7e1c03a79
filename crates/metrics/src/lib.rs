//! What Antiphon measures.
//!
//! Every metric is declared once, as a field whose doc comment is its help text, in the struct of
//! its subsystem ([`gateway`], [`adapter`], [`bus`]). A struct is registered into a [`Registry`] that the caller owns:
//! several nodes in one process keep their figures apart, and nothing is global.
//!
//! Labels are Rust enums, so their values are few and known; the one exception is the name of an
//! event rule, which comes from the node's own configuration and is as bounded as that. Never a
//! room, a socket, a user or the text of an error. Label children are made when the struct is, so
//! counting is one atomic addition.
//!
//! `METRICS.md` beside this crate's manifest lists them all; `tests/document.rs` writes it, and fails when it is
//! not what the code says.

pub mod adapter;
pub mod bus;
mod declare;
pub mod gateway;
pub mod log;
mod process;
pub mod traces;

pub use adapter::AdapterMetrics;
pub use bus::BusMetrics;
pub use declare::{
    Buckets, Configured, ConfiguredCounters, Counters, Description, EventFamily, Family, Gauges,
    Label, LabelDescription, NamespaceCounters, NamespaceGauges, OfNamespace, OfRule, Seconds,
};
pub use gateway::GatewayMetrics;
pub use log::LogMetrics;
pub use process::register_process;
pub use prometheus::{Counter, Error, IntCounter, IntGauge, Registry};

pub use traces::TraceMetrics;

use prometheus::{Encoder, TextEncoder};

/// The registries' figures in the Prometheus text format, version 0.0.4. They have no metric in common.
pub fn render<'a>(registries: impl IntoIterator<Item = &'a Registry>) -> Result<String, Error> {
    let mut text = Vec::new();
    let families: Vec<_> = registries.into_iter().flat_map(Registry::gather).collect();
    TextEncoder::new().encode(&families, &mut text)?;
    String::from_utf8(text).map_err(|error| Error::Msg(error.to_string()))
}

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;
