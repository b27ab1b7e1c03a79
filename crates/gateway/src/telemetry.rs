//! Logs, to standard error: standard output belongs to `print-config`.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, prelude::*, util::TryInitError};

use crate::config::{Log, LogFormat};

/// Starts logging for the process.
pub fn init(log: &Log) -> Result<(), TryInitError> {
    // The configuration has checked the filter; what it could not check is better logged too much
    // than not at all.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry.with(lines.with_ansi(colours).with_target(false)).try_init()
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
}
