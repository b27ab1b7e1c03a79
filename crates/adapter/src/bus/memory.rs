//! The bus in memory: a [`Hub`] in the place of Redis, for tests of many nodes in one process.
//!
//! Nothing in it waits for the outside world, so time may be paused. Each node has a [`Link`] to the hub,
//! which can be cut, stalled, deafened or refused, and healed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{
    Message, Subscription,
    link::{
        Answers, Asked, Commands, LinkError, Messages, Outgoing, Publishing, Question, Questions,
        Transport,
    },
};

/// Messages that the hub holds for one subscriber; who does not fetch them is cut off, as Redis does with
/// `client-output-buffer-limit`.
const OUTPUT_MAX: usize = 65_536;

/// What stands in the place of Redis. Cloning it is cheap.
#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    subscribers: HashMap<u64, Subscriber>,
    connections: u64,
}

struct Subscriber {
    subscriptions: BTreeSet<Subscription>,
    output: mpsc::Sender<Message>,
    link: Link,
}

impl Hub {
    /// A hub without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node's link to the hub.
    pub fn link(&self) -> Link {
        Link { hub: self.clone(), faults: Arc::new(watch::Sender::new(Faults::default())) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, batch: &[(Arc<str>, Bytes)]) {
        let mut inner = self.inner();
        for (channel, payload) in batch {
            let message = Message {
                channel: Bytes::copy_from_slice(channel.as_bytes()),
                payload: payload.clone(),
            };
            inner.subscribers.retain(|_, subscriber| subscriber.offer(channel, &message));
        }
    }
}

impl Subscriber {
    /// False when it has to be cut off.
    fn offer(&self, channel: &str, message: &Message) -> bool {
        if self.link.faults.borrow().deaf {
            return true;
        }
        let mut matching = self.subscriptions.iter().filter(|one| one.matches(channel));
        matching.all(|_| self.output.try_send(message.clone()).is_ok())
    }
}

impl Subscription {
    fn matches(&self, channel: &str) -> bool {
        match self {
            Self::Channel(name) => name == channel,
            Self::Pattern(pattern) => glob(pattern.as_bytes(), channel.as_bytes()),
        }
    }
}

/// Redis' patterns without `[...]`: `*`, `?` and `\` before what stands for itself.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        ([b'?', rest @ ..], [_, text @ ..]) => glob(rest, text),
        ([b'\\', literal, rest @ ..], [first, text @ ..]) => literal == first && glob(rest, text),
        ([literal, rest @ ..], [first, text @ ..]) => literal == first && glob(rest, text),
        _ => false,
    }
}

/// One node's link to the hub, and the faults on it. Cloning it is cheap; clones are the same link.
#[derive(Clone)]
pub struct Link {
    hub: Hub,
    faults: Arc<watch::Sender<Faults>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    /// Connections of an earlier generation are gone.
    generation: u64,
    down: bool,
    stalled: bool,
    deaf: bool,
    refused: bool,
}

impl Link {
    /// Breaks the present connections; new ones can be made.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.generation += 1);
    }

    /// Breaks the present connections; no new ones can be made until [`Link::heal`].
    pub fn down(&self) {
        self.faults.send_modify(|faults| {
            faults.generation += 1;
            faults.down = true;
        });
    }

    /// Nothing moves in either direction, and no error tells.
    pub fn stall(&self) {
        self.faults.send_modify(|faults| faults.stalled = true);
    }

    /// What is published to this node is dropped without a trace.
    pub fn deafen(&self) {
        self.faults.send_modify(|faults| faults.deaf = true);
    }

    /// The hub refuses whatever is published or subscribed.
    pub fn refuse(&self) {
        self.faults.send_modify(|faults| faults.refused = true);
    }

    /// Ends every fault.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| {
            *faults = Faults { generation: faults.generation, ..Faults::default() };
        });
    }

    fn connection(&self) -> Connection {
        Connection { link: self.clone(), generation: self.faults.borrow().generation }
    }
}

/// One connection over a link.
#[derive(Clone)]
struct Connection {
    link: Link,
    generation: u64,
}

impl Connection {
    /// Waits until something can move. An error when the connection is gone.
    async fn moving(&self) -> Result<Faults, LinkError> {
        let mut faults = self.link.faults.subscribe();
        let gone = |faults: &Faults| faults.generation != self.generation || faults.down;
        let moving = faults.wait_for(|faults| gone(faults) || !faults.stalled).await;
        match moving.map(|faults| *faults) {
            Ok(faults) if !gone(&faults) => Ok(faults),
            _ => Err(LinkError::Broken("cut".to_owned())),
        }
    }

    async fn allowed(&self) -> Result<(), LinkError> {
        match self.moving().await?.refused {
            true => Err(LinkError::Refused("refused by the test".to_owned())),
            false => Ok(()),
        }
    }

    /// Resolves when the connection is gone.
    async fn gone(&self) {
        let mut faults = self.link.faults.subscribe();
        let _ = faults.wait_for(|faults| faults.generation != self.generation || faults.down).await;
    }
}

impl Transport for Link {
    type Publishing = Publisher;
    type Commands = Desk;
    type Messages = Output;

    async fn publishing(&self) -> Result<Publisher, LinkError> {
        let connection = self.connection();
        connection.moving().await?;
        // Batches of one connection reach the hub in the order in which they were sent.
        let (applied, _) = watch::channel(0);
        Ok(Publisher { connection, sent: 0, applied: Arc::new(applied) })
    }

    async fn receiving(&self) -> Result<(Desk, Output), LinkError> {
        let connection = self.connection();
        connection.moving().await?;
        let (output, messages) = mpsc::channel(OUTPUT_MAX);
        let mut inner = self.hub.inner();
        inner.connections += 1;
        let id = inner.connections;
        let subscriptions = BTreeSet::new();
        inner.subscribers.insert(id, Subscriber { subscriptions, output, link: self.clone() });
        let registration = Registration { hub: self.hub.clone(), id };
        Ok((
            Desk { connection: connection.clone(), id },
            Output { connection, messages, _registration: registration },
        ))
    }
}

/// A publishing connection.
pub(super) struct Publisher {
    connection: Connection,
    sent: u64,
    applied: Arc<watch::Sender<u64>>,
}

impl Publishing for Publisher {
    fn send(&mut self, batch: &[Outgoing]) -> Answers {
        let (turn, applied) = (self.sent, Arc::clone(&self.applied));
        self.sent += 1;
        let connection = self.connection.clone();
        let copy = |message: &Outgoing| (Arc::clone(&message.channel), message.payload.clone());
        let batch: Vec<_> = batch.iter().map(copy).collect();
        Box::pin(async move {
            let _ = applied.subscribe().wait_for(|next| *next == turn).await;
            let allowed = match connection.allowed().await {
                Ok(()) => {
                    connection.link.hub.publish(&batch);
                    Ok(())
                }
                Err(LinkError::Refused(reason)) => Err(reason),
                Err(broken) => return Err(broken),
            };
            applied.send_replace(turn + 1);
            Ok(batch.iter().map(|_| allowed.clone()).collect())
        })
    }
}

/// Where a receiving connection asks for subscriptions.
pub(super) struct Desk {
    connection: Connection,
    id: u64,
}

impl Desk {
    fn change(&self, change: impl FnOnce(&mut BTreeSet<Subscription>)) -> Result<(), LinkError> {
        let mut inner = self.connection.link.hub.inner();
        let cut_off = || LinkError::Broken("cut off by the hub".to_owned());
        let subscriber = inner.subscribers.get_mut(&self.id).ok_or_else(cut_off)?;
        change(&mut subscriber.subscriptions);
        Ok(())
    }
}

impl Commands for Desk {
    async fn subscribe(&mut self, what: &[Subscription]) -> Result<(), LinkError> {
        self.connection.allowed().await?;
        self.change(|subscriptions| subscriptions.extend(what.iter().cloned()))
    }

    async fn unsubscribe(&mut self, what: &[Subscription]) -> Result<(), LinkError> {
        self.connection.moving().await?;
        self.change(|subscriptions| subscriptions.retain(|one| !what.contains(one)))
    }

    async fn ping(&mut self) -> Result<(), LinkError> {
        self.connection.moving().await.map(drop)
    }
}

/// What the hub sends to one receiving connection.
pub(super) struct Output {
    connection: Connection,
    messages: mpsc::Receiver<Message>,
    _registration: Registration,
}

impl Messages for Output {
    async fn next(&mut self) -> Option<Message> {
        self.connection.moving().await.ok()?;
        tokio::select! {
            biased;
            () = self.connection.gone() => None,
            message = self.messages.recv() => message,
        }
    }
}

/// Takes a subscriber off the hub when its connection is thrown away.
struct Registration {
    hub: Hub,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.hub.inner().subscribers.remove(&self.id);
    }
}

impl Questions for Link {
    fn subscribers<'a>(&'a self, channel: &'a str) -> Asked<'a, u64> {
        Box::pin(async move {
            Questions::ping(self).await?;
            let wanted = Subscription::Channel(channel.to_owned());
            let inner = self.hub.inner();
            let subscribed = inner.subscribers.values();
            Ok(subscribed.filter(|one| one.subscriptions.contains(&wanted)).count() as u64)
        })
    }

    fn ping(&self) -> Asked<'_, ()> {
        Box::pin(async move {
            let moving = self.connection().moving().await;
            moving.map(drop).map_err(|error| Question::Unanswered(error.to_string()))
        })
    }

    fn close(&self) {}
}
