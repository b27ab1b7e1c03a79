//! What the sender of an event is told.

use std::sync::Arc;

use antiphon_adapter::Namespace;
use antiphon_metrics::gateway::{CloseReason, Outcome};
use serde::Serialize;
use socketioxide::{
    SendError, SocketError, extract::AckSender, handler::FromMessageParts, socket::Socket,
};
use socketioxide_core::{Value, packet::Packet};

use crate::{events::Adapter, sessions::Session};

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
    socket: Arc<Socket<Adapter>>,
    namespace: Namespace,
    session: Arc<Session>,
    ack: Option<i64>,
}

impl Reply {
    pub(crate) fn new(
        socket: Arc<Socket<Adapter>>,
        namespace: Namespace,
        session: Arc<Session>,
        ack: Option<i64>,
    ) -> Self {
        Self { socket, namespace, session, ack }
    }

    /// Acknowledges the event if the sender asked for that; else, if it was refused, says so with
    /// the event's name (empty when it has none).
    pub(crate) fn send(self, outcome: Outcome, event: &str) {
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
        if self.ack.is_some() {
            let sent = self.acknowledge(&body);
            // A client that does not read its answers is as slow as one that does not read events.
            if let Err(SendError::Socket(SocketError::InternalChannelFull)) = sent {
                self.session.close(CloseReason::SlowConsumer);
            }
        } else if !body.ok
            && let Ok(arguments) = serde_json::to_string(&("error", &body))
        {
            let event =
                Packet::event(self.socket.ns().to_owned(), Value::Str(arguments.into(), None));
            self.namespace.send(self.socket.id, event);
        }
    }

    fn acknowledge(&self, body: &Body<'_>) -> Result<(), SendError> {
        // An AckSender cannot be made directly, only extracted; this extraction has no way to fail.
        let mut unused = Value::Str("".into(), None);
        let Ok(sender) = AckSender::from_message_parts(&self.socket, &mut unused, &self.ack);
        sender.send(body)
    }
}
