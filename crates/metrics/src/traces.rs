//! What becomes of spans.

use crate::declare::{Counters, label, subsystem};
use prometheus::IntCounter;

label! {
    /// Why a collector does not get a span.
    "reason" SpanLoss {
        /// As many spans waited for the collector as may wait.
        QueueFull = "queue_full",
        /// The collector did not take it, or not in time. It is not sent again.
        ExportFailed = "export_failed",
    }
}

subsystem! {
    /// The metrics of tracing. They belong to the process.
    "antiphon_traces_" TraceMetrics {
        /// Spans that ended, of sampled events.
        spans_total: IntCounter,
        /// Spans that the collector took. Those that are neither among these nor lost wait, 8,192 at most, or are on
        /// their way.
        spans_exported_total: IntCounter,
        /// Spans that the collector will never get.
        spans_lost_total: Counters<SpanLoss>,
        /// Attempts to hand spans to the collector that failed.
        export_failures_total: IntCounter,
    }
}
