//! What log lines for people begin with: when, on which node, and, of an event that is traced, in which trace.

use std::fmt;

use opentelemetry::trace::TraceContextExt;
use tracing::{Span, dispatcher};
use tracing_opentelemetry::get_otel_context;
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime, SystemTime},
};

pub(super) struct Stamp {
    node: String,
}

impl Stamp {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned() }
    }
}

impl FormatTime for Stamp {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(writer)?;
        write!(writer, " {}", self.node)?;
        let context = Span::current()
            .id()
            .and_then(|span| dispatcher::get_default(|dispatch| get_otel_context(&span, dispatch)));
        match context {
            Some(context) => write!(writer, " {}", context.span().span_context().trace_id()),
            None => Ok(()),
        }
    }
}
