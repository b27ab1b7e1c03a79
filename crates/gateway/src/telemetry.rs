//! Logs, to standard error: standard output belongs to `print-config`.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Registry, filter::ParseError, fmt, prelude::*, reload, util::TryInitError,
};

use crate::config::{Log, LogFormat};

/// What is logged, while the program runs.
#[derive(Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

/// A filter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is not one.
    #[error("want a level or directives, such as \"info,antiphon_gateway=debug\": {0}")]
    Syntax(#[from] ParseError),
    /// Logging has ended.
    #[error(transparent)]
    Gone(#[from] reload::Error),
}

impl LogFilter {
    /// The filter in use.
    pub fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Puts another in its place.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        self.0.reload(EnvFilter::try_new(filter)?)?;
        Ok(())
    }
}

/// Starts logging for the process.
pub fn init(log: &Log) -> Result<LogFilter, TryInitError> {
    // The configuration has checked the filter; what it could not check is better logged too much
    // than not at all.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry.with(lines.with_ansi(colours).with_target(false)).try_init()?;
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(LogFilter(handle))
}
