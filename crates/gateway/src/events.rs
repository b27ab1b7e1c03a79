//! What each event does: the rules from the configuration, applied to what clients send.
//!
//! socketioxide runs a handler's *future* on a task of its own, so two events of one socket may
//! overtake each other there. Handlers here are not futures: [`Inbox`] implements the handler
//! trait itself, does its checks where the packet arrives, in the connection's own task, and hands
//! the event to the [`Stage`], which keeps the order.
//!
//! Every event ends in exactly one [`Outcome`], which is counted, and told to the sender: in the
//! acknowledgement if it asked for one, else, if the event was refused, in an `error` event.

use std::{collections::HashMap, sync::Arc};

use antiphon_adapter::{Cluster, Namespace};
use antiphon_metrics::{Error, EventCounters, GatewayMetrics, gateway::Outcome};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use socketioxide::{handler::MessageHandler, socket::Socket};
use socketioxide_core::{
    Value,
    adapter::{BroadcastFlags, BroadcastOptions},
    packet::Packet,
};

use crate::{
    config::{Action, Audience, Config, EventRule, Limits},
    payload::Event,
    reply::Reply,
    sessions::Session,
    stage::{Accepted, Stage, Task},
};

/// The adapter that every namespace of a node has.
pub type Adapter = antiphon_adapter::ClusterAdapter<socketioxide::adapter::Emitter>;

/// The rules of one namespace.
pub(crate) struct Rules {
    by_name: HashMap<String, Arc<Rule>>,
    // Each rule with a rate has a place of its own in every socket's list of limiters.
    quotas: Vec<Quota>,
    other: EventCounters<Outcome>,
    limits: Limits,
}

/// One rule, ready to apply.
pub(crate) struct Rule {
    action: Action,
    volatile: bool,
    max_bytes: usize,
    limiter: Option<usize>,
    counters: EventCounters<Outcome>,
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
        };
        for rule in config.events.iter().filter(|rule| rule.namespace == path) {
            let counters = metrics.events_total.rule(path, &rule.name)?;
            rules.add(rule, counters);
        }
        Ok(rules)
    }

    fn add(&mut self, rule: &EventRule, counters: EventCounters<Outcome>) {
        let limiter = rule.rate.map(|rate| {
            self.quotas.push(Quota::per_second(rate.per_second).allow_burst(rate.burst));
            self.quotas.len() - 1
        });
        let ready = Rule {
            action: rule.action.clone(),
            volatile: rule.volatile,
            max_bytes: rule.max_bytes.unwrap_or(usize::MAX),
            limiter,
            counters,
        };
        self.by_name.insert(rule.name.clone(), Arc::new(ready));
    }
}

impl Rule {
    /// Counts what became of an event.
    pub(crate) fn count(&self, outcome: Outcome) {
        self.counters.of(outcome).inc();
    }

    /// Whom a packet of this rule goes to; `room` for those that name one.
    fn recipients(&self, sender: &Socket<Adapter>, room: Option<String>) -> BroadcastOptions {
        let mut opts = BroadcastOptions::default();
        match &self.action {
            Action::Broadcast { to } | Action::Room { to, .. } => {
                opts.rooms.extend(room.map(Into::into));
                if *to == Audience::Others {
                    opts.sid = Some(sender.id);
                }
                if *to == Audience::Others || opts.rooms.is_empty() {
                    opts.add_flag(BroadcastFlags::Broadcast);
                }
            }
            Action::Echo { .. } | Action::Join | Action::Leave => opts.sid = Some(sender.id),
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
    limiters: Box<[DefaultDirectRateLimiter]>,
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
        let limiters = rules.quotas.iter().map(|quota| RateLimiter::direct(*quota)).collect();
        let namespace = cluster.namespace(path)?;
        Some(Self { rules, namespace, stage, session, limiters })
    }

    fn receive(&self, socket: Arc<Socket<Adapter>>, value: Value, ack: Option<i64>) {
        let Value::Str(text, attachments) = &value else { return }; // Only with another parser.
        let bytes = text.len() + attachments.iter().flatten().map(|one| one.len()).sum::<usize>();
        let event = Event::parse(text);
        let name = event.as_ref().map_or("", Event::name).to_owned();
        let reply = Reply::new(Arc::clone(&socket), Arc::clone(&self.session), ack, name);
        let Some(event) = event else {
            self.rules.other.of(Outcome::Malformed).inc();
            return reply.send(Outcome::Malformed);
        };
        let Some(rule) = self.rules.by_name.get(event.name()) else {
            return self.without_rule(ack, reply);
        };
        let name = event.name().to_owned();
        let admitted = self.admit(rule, &event, bytes, attachments.as_ref().map_or(0, |a| a.len()));
        let staged = admitted.and_then(|room| {
            let task = task(rule, &socket, &event, room, &value);
            let accepted = Accepted {
                socket,
                namespace: self.namespace.clone(),
                rule: Arc::clone(rule),
                task,
                bytes,
                reply: reply.clone(),
            };
            self.stage.push(accepted)
        });
        let client = self.session.number;
        match staged {
            Ok(()) => tracing::debug!(client, event = name, bytes, "event"),
            Err(outcome) => {
                tracing::debug!(
                    client,
                    event = name,
                    bytes,
                    reason = outcome.as_str(),
                    "event refused"
                );
                rule.count(outcome);
                reply.send(outcome);
            }
        }
    }

    fn without_rule(&self, ack: Option<i64>, reply: Reply) {
        // Nobody listens, as on a Node server; but who waits for an answer is told.
        let outcome = if ack.is_some() { Outcome::UnknownEvent } else { Outcome::Ignored };
        self.rules.other.of(outcome).inc();
        reply.send(outcome);
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

fn task(
    rule: &Rule,
    sender: &Socket<Adapter>,
    event: &Event<'_>,
    room: Option<String>,
    value: &Value,
) -> Task {
    let with_text = |text: String| match value {
        Value::Str(_, attachments) => Value::Str(text.into(), attachments.clone()),
        Value::Bytes(_) => value.clone(),
    };
    let value = match (&rule.action, room) {
        (Action::Join, Some(room)) => return Task::Join(room),
        (Action::Leave, Some(room)) => return Task::Leave(room),
        (Action::Room { require_joined, .. }, Some(room)) => {
            let packet = Packet::event(sender.ns().to_owned(), with_text(event.without_first()));
            let member_of = require_joined.then(|| room.clone());
            return Task::Deliver { packet, opts: rule.recipients(sender, Some(room)), member_of };
        }
        (Action::Echo { rename: Some(name) }, _) => with_text(event.renamed(name)),
        _ => value.clone(),
    };
    let packet = Packet::event(sender.ns().to_owned(), value);
    Task::Deliver { packet, opts: rule.recipients(sender, None), member_of: None }
}

/// Tells socketioxide's traits that this type implements them itself: its blanket implementations are
/// for functions.
pub(crate) struct Direct;

impl MessageHandler<Adapter, Direct> for Inbox {
    fn call(&self, socket: Arc<Socket<Adapter>>, value: Value, ack: Option<i64>) {
        self.receive(socket, value, ack);
    }
}
