//! What becomes of spans.

use crate::declare::subsystem;
use prometheus::IntCounter;

subsystem! {
    /// The metrics of tracing. They belong to the process.
    "antiphon_traces_" TraceMetrics {
        /// Spans that ended, of sampled events.
        spans_total: IntCounter,
        /// Spans that the collector took. The others wait, or were dropped because too many waited.
        spans_exported_total: IntCounter,
        /// Attempts to hand spans to the collector that failed.
        export_failures_total: IntCounter,
    }
}
