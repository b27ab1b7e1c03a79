//! What the sender of an event is told.

use std::sync::Arc;

use antiphon_metrics::gateway::Outcome;
use serde::Serialize;

use crate::{
    namespaces::{Entry, Session},
    packet::{write_ack, write_event},
};

/// The body of an acknowledgement, and of an `error` event.
#[derive(Debug, Serialize)]
struct Body<'a> {
    ok: bool,
    /// Whom it reached, if not everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
}

/// The way back to the sender of one event.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) session: Arc<Session>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) ack: Option<u64>,
}

impl Reply {
    /// Acknowledges the event if the sender asked for that; else, if it was refused, says so with
    /// the event's name (empty when it has none).
    pub(crate) fn send(&self, outcome: Outcome, event: &str) {
        let done = |scope| Body { ok: true, scope, error: None, event: None };
        let body = match outcome {
            Outcome::Ignored => return,
            Outcome::Ok => done(None),
            Outcome::OkLocal => done(Some("local")),
            refused => {
                let event = Some(event).filter(|name| self.ack.is_none() && !name.is_empty());
                Body { ok: false, scope: None, error: Some(refused.as_str()), event }
            }
        };
        let path = self.entry.path();
        let text = match self.ack {
            Some(ack) => to_json(&[&body]).map(|json| write_ack(path, ack, &json, 0)),
            None if body.ok => return,
            None => to_json(&("error", &body)).map(|json| write_event(path, None, &json, 0)),
        };
        if let Some(text) = text {
            self.entry.send_text(&self.session, &text);
        }
    }
}

fn to_json(value: &impl Serialize) -> Option<String> {
    serde_json::to_string(value).ok()
}
