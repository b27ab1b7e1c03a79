//! What becomes of log lines.

use crate::declare::subsystem;
use prometheus::IntCounter;

subsystem! {
    /// The metrics of logging. They belong to the process.
    "antiphon_log_" LogMetrics {
        /// Lines that were left out because whoever reads the log does not keep up.
        lines_dropped_total: IntCounter,
    }
}
