//! What each event does: the rules from the configuration, applied to what clients send.
//!
//! socketioxide runs a handler's *future* on a task of its own, so two events of one socket may
//! overtake each other there. Handlers here are not futures: [`Inbox`] implements the handler
//! trait itself, does its checks where the packet arrives, in the connection's own task, and hands
//! the event to the [`Stage`], which keeps the order.
//!
//! Every event ends in exactly one [`Outcome`], which is counted, and told to the sender: in the
//! acknowledgement if it asked for one, else, if the event was refused, in an `error` event.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use antiphon_adapter::{Cluster, Namespace};
use antiphon_metrics::{Counters, Error, GatewayMetrics, IntCounter, gateway::Outcome};
use bytes::Bytes;
use governor::{Quota, RateLimiter};
use socketioxide::{handler::MessageHandler, socket::Socket};
use socketioxide_core::{
    Sid, Value,
    adapter::{BroadcastFlags, BroadcastOptions, Room},
    packet::Packet,
};
use tracing::{Span, field::Empty};

use crate::{
    config::{Action, Audience, Config, EventRule, Limits},
    payload::Event,
    reply::Reply,
    sessions::{Limiters, Session},
    stage::{Accepted, Stage, Task},
};

/// The adapter that every namespace of a node has.
pub type Adapter = antiphon_adapter::ClusterAdapter<socketioxide::adapter::Emitter>;

/// The rules of one namespace.
pub(crate) struct Rules {
    by_name: HashMap<String, Arc<Rule>>,
    // Each rule with a rate has a place of its own in every socket's list of limiters.
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

    /// How deep what clients send may nest.
    pub(crate) fn max_json_depth(&self) -> usize {
        self.limits.max_json_depth
    }

    /// The span of an event, if it is one of those that are traced.
    fn span(&self, namespace: &str, event: &str, bytes: usize) -> Span {
        if self.sample_ratio > 0.0 && fastrand::f64() < self.sample_ratio {
            tracing::info_span!("event", namespace, event, bytes, outcome = Empty)
        } else {
            Span::none()
        }
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

    /// Whether a sender who is in `rooms` may send to this one.
    pub(crate) fn admits(&self, room: Option<&str>, rooms: impl FnOnce() -> HashSet<Room>) -> bool {
        match (&self.action, room) {
            (Action::Room { require_joined: true, .. }, Some(room)) => rooms().contains(room),
            _ => true,
        }
    }

    /// Whom a packet of this rule goes to; `room` for those that name one.
    pub(crate) fn recipients(&self, sender: Sid, room: Option<String>) -> BroadcastOptions {
        let mut opts = BroadcastOptions::default();
        match self.action {
            Action::Broadcast { to } | Action::Room { to, .. } => {
                opts.rooms.extend(room.map(Into::into));
                if to == Audience::Others {
                    opts.sid = Some(sender);
                }
                // socketioxide's flag for "all but the sender, if one is named".
                if to == Audience::Others || opts.rooms.is_empty() {
                    opts.add_flag(BroadcastFlags::Broadcast);
                }
            }
            Action::Echo { .. } | Action::Join | Action::Leave => opts.sid = Some(sender),
        }
        if self.volatile {
            opts.add_flag(BroadcastFlags::Volatile);
        }
        opts
    }
}

/// Where the events of one socket arrive.
pub(crate) struct Inbox {
    rules: Arc<Rules>,
    namespace: Namespace,
    stage: Stage,
    session: Arc<Session>,
    limiters: Limiters,
}

impl Inbox {
    /// `None` while the namespace is not there, which it is before any socket.
    pub(crate) fn new(
        rules: Arc<Rules>,
        cluster: &Cluster,
        path: &str,
        stage: Stage,
        session: Arc<Session>,
    ) -> Option<Self> {
        let full = || rules.quotas.iter().map(|quota| RateLimiter::direct(*quota)).collect();
        let limiters = if rules.quotas.is_empty() { full() } else { session.limiters(path, full) };
        let namespace = cluster.namespace(path)?;
        Some(Self { rules, namespace, stage, session, limiters })
    }

    fn receive(&self, socket: Arc<Socket<Adapter>>, value: Value, ack: Option<i64>) {
        let (namespace, session) = (self.namespace.clone(), Arc::clone(&self.session));
        let reply = Reply::new(Arc::clone(&socket), namespace, session, ack);
        let Value::Str(text, attachments) = &value else { return }; // Only with another parser.
        let Some(event) = Event::parse(text) else {
            return self.without_rule(Outcome::Malformed, reply);
        };
        let Some(rule) = self.rules.by_name.get(event.name()) else {
            // Nobody listens, as on a Node server; but who waits for an answer is told.
            let asked = if ack.is_some() { Outcome::UnknownEvent } else { Outcome::Ignored };
            return self.without_rule(asked, reply);
        };
        let sizes = || attachments.iter().flatten().map(Bytes::len);
        let bytes = text.len() + sizes().sum::<usize>();
        let (client, name) = (self.session.number, &rule.name);
        let span = self.rules.span(socket.ns(), name, bytes);
        let _span = span.clone().entered();
        let staged = self.admit(rule, &event, bytes, sizes().count()).and_then(|room| {
            self.stage.push(Accepted {
                task: task(rule, socket.ns(), &event, room, value.clone()),
                namespace: self.namespace.clone(),
                rule: Arc::clone(rule),
                bytes,
                accepted: Instant::now(),
                span: span.clone(),
                reply: reply.clone(),
                socket,
            })
        });
        match staged {
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

    fn without_rule(&self, outcome: Outcome, reply: Reply) {
        self.rules.other.of(outcome).inc();
        reply.send(outcome, "");
    }

    /// The room that the event names, if its rule wants one, or why the event is refused.
    fn admit(
        &self,
        rule: &Rule,
        event: &Event<'_>,
        bytes: usize,
        attachments: usize,
    ) -> Result<Option<String>, Outcome> {
        let limits = &self.rules.limits;
        let limiter = rule.limiter.and_then(|at| self.limiters.get(at));
        if limiter.is_some_and(|limiter| limiter.check().is_err()) {
            return Err(Outcome::RateLimited);
        }
        if bytes > rule.max_bytes {
            return Err(Outcome::TooLarge);
        }
        if !event.is_readable(attachments, limits.max_json_depth) {
            return Err(Outcome::Malformed);
        }
        match rule.action {
            Action::Broadcast { .. } | Action::Echo { .. } => Ok(None),
            Action::Room { .. } | Action::Join | Action::Leave => {
                let room = event.room().ok_or(Outcome::InvalidRoom)?;
                if room.len() > limits.max_room_name_bytes {
                    return Err(Outcome::RoomNameTooLong);
                }
                Ok(Some(room))
            }
        }
    }
}

/// What the stage has to do for an event.
fn task(
    rule: &Rule,
    namespace: &str,
    event: &Event<'_>,
    room: Option<String>,
    value: Value,
) -> Task {
    let text = match (&rule.action, &room) {
        (Action::Room { .. }, Some(_)) => Some(event.without_first()),
        (Action::Echo { rename: Some(name) }, _) => Some(event.renamed(name)),
        _ => None,
    };
    match (&rule.action, room) {
        (Action::Join, Some(room)) => Task::Join(room),
        (Action::Leave, Some(room)) => Task::Leave(room),
        (_, room) => {
            let value = match (value, text) {
                (Value::Str(_, attachments), Some(text)) => Value::Str(text.into(), attachments),
                (value, _) => value,
            };
            Task::Deliver { packet: Packet::event(namespace.to_owned(), value), room }
        }
    }
}

/// Tells socketioxide's traits that this type implements them itself: its blanket implementations are
/// for functions.
pub(crate) struct Direct;

impl MessageHandler<Adapter, Direct> for Inbox {
    fn call(&self, socket: Arc<Socket<Adapter>>, value: Value, ack: Option<i64>) {
        self.receive(socket, value, ack);
    }
}
