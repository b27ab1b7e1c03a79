//! What each event does: the rules from the configuration, applied to what clients send.
//!
//! Every event ends in exactly one [`Outcome`], which is counted, and told to the sender: in the
//! acknowledgement if it asked for one, else, if the event was refused, in an `error` event.

use std::{collections::HashMap, sync::Arc, time::Instant};

use antiphon_adapter::{Audience as Recipients, SocketId, Target};
use antiphon_metrics::{Counters, Error, GatewayMetrics, IntCounter, gateway::Outcome};
use bytes::Bytes;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use socketioxide_core::{Str, Value, packet::Packet};
use tracing::{Span, field::Empty};

use crate::{
    config::{Action, Audience, Config, EventRule, Limits},
    dispatcher::{Accepted, Dispatcher, Task},
    namespaces::{Entry, Session, Socket},
    payload::Event,
    reply::Reply,
};

/// A token bucket for each rule that has a rate.
pub(crate) type Limiters = Arc<[DefaultDirectRateLimiter]>;

/// The rules of one namespace.
pub(crate) struct Rules {
    by_name: HashMap<String, Arc<Rule>>,
    // Each rule with a rate has a place of its own in every client's list of limiters.
    quotas: Vec<Quota>,
    other: Counters<Outcome>,
    limits: Limits,
    sample_ratio: f64,
}

/// One rule, ready to apply.
pub(crate) struct Rule {
    pub(crate) name: String,
    action: Action,
    volatile: bool,
    max_bytes: usize,
    limiter: Option<usize>,
    counters: Counters<Outcome>,
    reached: Counters<()>,
}

/// Who sends an event.
pub(crate) struct Sender<'a> {
    pub(crate) session: &'a Arc<Session>,
    pub(crate) socket: &'a Arc<Socket>,
    pub(crate) entry: &'a Arc<Entry>,
}

impl Rules {
    /// The rules for the namespace at `path`.
    pub(crate) fn new(
        config: &Config,
        path: &str,
        metrics: &GatewayMetrics,
    ) -> Result<Self, Error> {
        let mut rules = Self {
            by_name: HashMap::new(),
            quotas: Vec::new(),
            other: metrics.events_total.rule(path, "other")?,
            limits: config.limits.clone(),
            sample_ratio: config
                .traces
                .endpoint
                .as_ref()
                .map_or(0.0, |_| config.traces.sample_ratio),
        };
        for rule in config.events.iter().filter(|rule| rule.namespace == path) {
            let counters = metrics.events_total.rule(path, &rule.name)?;
            let reached = metrics.recipients_total.rule(path, &rule.name)?;
            rules.add(rule, counters, reached);
        }
        Ok(rules)
    }

    fn add(&mut self, rule: &EventRule, counters: Counters<Outcome>, reached: Counters<()>) {
        let limiter = rule.rate.map(|rate| {
            self.quotas.push(Quota::per_second(rate.per_second).allow_burst(rate.burst));
            self.quotas.len() - 1
        });
        let ready = Rule {
            name: rule.name.clone(),
            action: rule.action.clone(),
            volatile: rule.volatile,
            max_bytes: rule.max_bytes.unwrap_or(self.limits.max_message_bytes),
            limiter,
            counters,
            reached,
        };
        self.by_name.insert(rule.name.clone(), Arc::new(ready));
    }

    /// Whether any rule has a rate.
    pub(crate) fn has_rates(&self) -> bool {
        !self.quotas.is_empty()
    }

    /// Full buckets for one client.
    pub(crate) fn limiters(&self) -> Limiters {
        self.quotas.iter().map(|quota| RateLimiter::direct(*quota)).collect()
    }

    /// The rule for an event.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Rule>> {
        self.by_name.get(name)
    }

    /// The span of an event, if it is one of those that are traced.
    fn span(&self, namespace: &str, event: &str, bytes: usize) -> Span {
        if self.sample_ratio > 0.0 && fastrand::f64() < self.sample_ratio {
            tracing::info_span!("event", namespace, event, bytes, outcome = Empty)
        } else {
            Span::none()
        }
    }

    /// Takes an event: it is checked, and waits for the dispatcher, or is refused. `rule` is the one for it.
    pub(crate) fn receive(
        &self,
        dispatcher: &Dispatcher,
        sender: &Sender<'_>,
        ack: Option<u64>,
        event: &Event<'_>,
        rule: Option<&Arc<Rule>>,
        attachments: Vec<Bytes>,
    ) {
        let Sender { session, socket, entry } = *sender;
        let reply = Reply { session: Arc::clone(session), entry: Arc::clone(entry), ack };
        let Some(rule) = rule else {
            // Nobody listens, as on a Node server; but who waits for an answer is told.
            let asked = if ack.is_some() { Outcome::UnknownEvent } else { Outcome::Ignored };
            self.other.of(asked).inc();
            return reply.send(asked, "");
        };
        let bytes = event.text().len() + attachments.iter().map(Bytes::len).sum::<usize>();
        let (client, name) = (session.number(), &rule.name);
        let span = self.span(entry.path(), name, bytes);
        let _span = span.clone().entered();
        let checked = self.check(rule, socket, event, bytes, attachments.len());
        let accepted = checked.and_then(|room| {
            dispatcher.push(Accepted {
                task: task(rule, entry.path(), event, room, attachments),
                session: Arc::clone(session),
                entry: Arc::clone(entry),
                socket: socket.id(),
                rule: Arc::clone(rule),
                bytes,
                held: entry.hold(bytes),
                accepted: Instant::now(),
                span: span.clone(),
                reply: reply.clone(),
            })
        });
        match accepted {
            Ok(()) => tracing::debug!(client, event = name, bytes, "event"),
            Err(outcome) => {
                let reason = outcome.as_str();
                span.record("outcome", reason);
                tracing::debug!(client, event = name, bytes, reason, "event refused");
                rule.count(outcome);
                reply.send(outcome, name);
            }
        }
    }

    /// The room that the event names, if its rule wants one, or why the event is refused.
    fn check(
        &self,
        rule: &Rule,
        socket: &Socket,
        event: &Event<'_>,
        bytes: usize,
        attachments: usize,
    ) -> Result<Option<String>, Outcome> {
        let limiter = rule.limiter.and_then(|at| socket.limiters().get(at));
        if limiter.is_some_and(|limiter| limiter.check().is_err()) {
            return Err(Outcome::RateLimited);
        }
        if bytes > rule.max_bytes {
            return Err(Outcome::TooLarge);
        }
        if !event.is_readable(attachments, self.limits.max_json_depth) {
            return Err(Outcome::Malformed);
        }
        match rule.action {
            Action::Broadcast { .. } | Action::Echo { .. } => Ok(None),
            Action::Room { .. } | Action::Join | Action::Leave => {
                let room = event.room().ok_or(Outcome::InvalidRoom)?;
                if room.len() > self.limits.max_room_name_bytes {
                    return Err(Outcome::RoomNameTooLong);
                }
                Ok(Some(room))
            }
        }
    }
}

impl Rule {
    /// Counts what became of an event.
    pub(crate) fn count(&self, outcome: Outcome) {
        self.counters.of(outcome).inc();
    }

    /// Counts the sockets of this node that its events go to.
    pub(crate) fn reached(&self) -> &IntCounter {
        self.reached.of(())
    }

    /// Whether a sender must be in the room that it sends to.
    pub(crate) fn requires_joined(&self) -> bool {
        matches!(self.action, Action::Room { require_joined: true, .. })
    }

    /// Whom a packet of this rule goes to; `room` for those that name one.
    pub(crate) fn target(&self, sender: SocketId, room: Option<String>) -> Target {
        let mut target = Target { volatile: self.volatile, ..Target::default() };
        match self.action {
            Action::Broadcast { to } | Action::Room { to, .. } => {
                if let Some(room) = room {
                    target.to = Recipients::Rooms(vec![room.into()]);
                }
                target.except_socket = (to == Audience::Others).then_some(sender);
            }
            Action::Echo { .. } | Action::Join | Action::Leave => {
                target.to = Recipients::Socket(sender);
                target.local = true;
            }
        }
        target
    }
}

/// What the dispatcher has to do for an event.
fn task(
    rule: &Rule,
    namespace: &str,
    event: &Event<'_>,
    room: Option<String>,
    attachments: Vec<Bytes>,
) -> Task {
    let text = match (&rule.action, room) {
        (Action::Join, Some(room)) => return Task::Join(room),
        (Action::Leave, Some(room)) => return Task::Leave(room),
        (Action::Room { .. }, Some(room)) => (event.without_first(), Some(room)),
        (Action::Echo { rename: Some(name) }, _) => (event.renamed(name), None),
        _ => (event.text().to_owned(), None),
    };
    let (text, room) = text;
    let attachments = (!attachments.is_empty()).then(|| attachments.into());
    let value = Value::Str(Str::from(text), attachments);
    Task::Deliver { packet: Packet::event(namespace.to_owned(), value), room }
}
