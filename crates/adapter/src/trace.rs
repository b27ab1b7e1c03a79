//! Traces, and how they cross nodes. What is recorded of an event: that it was published, that a
//! node received it, and that it was fanned out, once for all recipients and for all events that go
//! out together.
//!
//! Between nodes goes the W3C `traceparent` (<https://www.w3.org/TR/trace-context/>) of the span in
//! which a broadcast is published, among its flags. Node passes over it.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The span of a broadcast that goes to the bus, if what it belongs to is traced.
pub(crate) fn publishing() -> Span {
    traced().map_or(Span::none(), |_| tracing::info_span!("publish"))
}

/// The span under way, if it is part of a trace that is recorded. One that is only logged, as an
/// application's may be, is not: a span within it would begin a trace of its own, whatever the
/// share of events that is to be traced.
pub(crate) fn traced() -> Option<(Span, SpanContext)> {
    let span = Span::current();
    if span.is_disabled() {
        return None;
    }
    let context = span.context().span().span_context().clone();
    (context.is_valid() && context.is_sampled()).then_some((span, context))
}

/// The span of a fan-out: of the first of these, and following from the others.
pub(crate) fn fanning_out(spans: &[Span], events: usize) -> Span {
    let [first, others @ ..] = spans else { return Span::none() };
    let span = tracing::info_span!(parent: first, "fan out", events);
    others.iter().for_each(|other| {
        span.follows_from(other);
    });
    span
}

/// The trace that is under way, if there is one and it is recorded.
pub(crate) fn current() -> Option<String> {
    let (_, context) = traced()?;
    let (trace, id, flags) = (context.trace_id(), context.span_id(), context.trace_flags());
    Some(format!("00-{trace}-{id}-{:02x}", flags.to_u8()))
}

/// A span for what a remote node published, in that node's trace.
pub(crate) fn received(traceparent: &str) -> Span {
    let Some(parent) = parse(traceparent) else { return Span::none() };
    let span = tracing::info_span!("received from a peer");
    let context = opentelemetry::Context::new().with_remote_span_context(parent);
    // An error means that nobody records traces.
    let _ = span.set_parent(context);
    span
}

fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut fields = traceparent.split('-');
    let (version, trace, span, flags) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    // A later version may have more fields, but begins with these.
    let known =
        version.len() == 2 && version != "ff" && (version != "00" || fields.next().is_none());
    if !known || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_traceparent_is_no_parent() {
        let whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = parse(whole).expect("it is one");
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(context.is_sampled() && context.is_remote());
        assert!(parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-x").is_some());
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00-éaf7651916cd43dd8448eb211c8031-b7ad6b7169203331-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
