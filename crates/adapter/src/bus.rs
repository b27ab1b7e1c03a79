//! The bus: bytes from one node to its peers, through Redis pub/sub or, in tests, through memory.
//!
//! It knows channels and payloads and nothing of Socket.IO. Whoever publishes never waits: a message
//! goes into a bounded queue, and one task empties it through one connection. Another connection
//! only reads, and what arrives goes into a second bounded queue.
//!
//! # What is promised
//!
//! - **Order.** Messages reach the server in the order of [`Bus::publish`], and [`Receiver`] yields what
//!   arrived in the order in which it arrived.
//! - **At most once.** A message is written to one connection, once. When that connection breaks, whatever
//!   waited or was unanswered is counted as lost ([`Unpublished`], `link_lost`), never replayed: it
//!   might arrive twice, and late.
//! - **Never silent.** What is not published, or arrives and is dropped, is counted by reason.
//!   [`Bus::publish`] fails at once, with the reason, while there is no link.
//! - **Never gives up.** Both connections are made again for ever, with jittered backoff, and every wanted
//!   subscription with them. A node starts when its Redis is down.
//! - **Knows when it is deaf.** Three watches, each within [`Settings::probe_interval`] plus
//!   [`Settings::probe_timeout`]: answers that the publisher waits for; pings on the subscriber's
//!   connection; and a message to oneself (the probe) which shows that what is published does arrive.
//!   Whichever fails throws its connection away. The bus is [`Status::ready`] only after a probe
//!   came back through both of the present connections.
//! - **Bounded.** Queues by count and bytes, batches on their way, subscriptions, payloads, waits.
//!
//! # How it works
//!
//! ```text
//! publish() → queue → publisher task ──PUBLISH──▶ server ──▶ subscriber task → queue → Receiver
//!                        ▲                                        │
//!                        └──────────── prober: a nonce ◀──────────┘
//! ```
//!
//! The tasks, the queues and the status are the same for Redis and memory
//! ([`memory`]); only the two connections differ (`link.rs`). So the twin has the same contract because it
//! runs the same code, and the tests of the contract run against both.
//!
//! Locks guard queues and sets for a few instructions; none is held across an await.

mod keeper;
mod link;
pub mod memory;
mod probe;
mod publisher;
mod queue;
mod reader;
mod redis;
mod shared;
mod subscriber;

use std::{sync::Arc, time::Duration};

use antiphon_metrics::BusMetrics;
use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::{link::Transport, shared::Shared};
pub use self::{
    link::{Question, Setup},
    queue::Receiver,
    redis::{ClientIdentity, Protocol, RedisSettings},
};

/// How long ending the subscriptions may take when the bus closes; the server forgets them with the
/// connection anyway.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// The bounds of a bus.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Messages that may wait to be published.
    pub publish_queue_messages_max: usize,
    /// Bytes that may wait to be published; each message counts with a little more than it holds.
    pub publish_queue_bytes_max: usize,
    /// Messages that may wait to be handled.
    pub receive_queue_messages_max: usize,
    /// Bytes that may wait to be handled.
    pub receive_queue_bytes_max: usize,
    /// The largest payload that is published or accepted.
    pub payload_bytes_max: usize,
    /// Channels and patterns that may be subscribed at a time.
    pub subscriptions_max: usize,
    /// How long making a connection may take, with authentication.
    pub connect_timeout: Duration,
    /// The shortest wait before a connection is made again.
    pub backoff_min: Duration,
    /// The longest.
    pub backoff_max: Duration,
    /// Time between one probe's return and the next.
    pub probe_interval: Duration,
    /// How long a probe, a ping or the answer to a publication may take while nothing else moves.
    pub probe_timeout: Duration,
    /// What the probe channel's name begins with; the rest is random. ACLs must allow it. It must match no
    /// pattern that a peer subscribes to: Node crashes on what is not its own.
    pub probe_channel_prefix: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // About a second of the largest load, or of an outage before it is noticed.
            publish_queue_messages_max: 65_536,
            publish_queue_bytes_max: 32 << 20,
            // Larger, since a fan-out that falls behind has as many publishers as there are peers.
            receive_queue_messages_max: 131_072,
            receive_queue_bytes_max: 64 << 20,
            // Socket.IO's own limit is 1 MB; encoding adds little.
            payload_bytes_max: 4 << 20,
            subscriptions_max: 4096,
            connect_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            probe_interval: Duration::from_secs(2),
            probe_timeout: Duration::from_secs(2),
            probe_channel_prefix: "antiphon-probe#".to_owned(),
        }
    }
}

/// What is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subscription {
    /// One channel.
    Channel(String),
    /// Every channel that matches a pattern as Redis understands it.
    Pattern(String),
}

/// A message that arrived. One that matches several subscriptions arrives once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The channel on which it was published.
    pub channel: Bytes,
    /// What was published.
    pub payload: Bytes,
}

/// Why a message was not taken for publication. Nothing of it has left the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unpublished {
    /// There is no link to the server, or the bus is closing.
    #[error("there is no link to the server")]
    Down,
    /// Too much is waiting already.
    #[error("too much is waiting to be published")]
    QueueFull,
    /// Larger than a message may be.
    #[error("the message is too large")]
    TooLarge,
}

/// As many subscriptions as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are as many subscriptions as there may be")]
pub struct TooManySubscriptions;

/// How the bus is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The subscriber is connected and every wanted subscription is confirmed.
    pub subscribed: bool,
    /// Since when peers have not been heard: the subscriber is not connected, or it is and what is
    /// published does not arrive. `None` once a probe has come back.
    pub deaf_since: Option<Instant>,
    /// The publisher is connected.
    pub publisher_up: bool,
    /// A probe has come back through both of the present connections.
    pub probed: bool,
    /// Something that arrived was dropped because too much was waiting, and not all of that has
    /// been taken since.
    pub receive_overflow: bool,
}

impl Status {
    /// Whether all is well: what is published reaches the peers, and what they publish arrives.
    pub fn ready(&self) -> bool {
        let connected = self.subscribed && self.publisher_up && self.probed;
        connected && self.deaf_since.is_none() && !self.receive_overflow
    }
}

/// A node's bus. Cloning it is cheap.
#[derive(Clone)]
pub struct Bus {
    shared: Arc<Shared>,
    questions: Arc<dyn link::Questions>,
}

impl Bus {
    /// Starts a bus on Redis. It connects in the background; only settings that cannot work are an
    /// error. Cancelling `stop` ends every task at once; [`Bus::close`] ends them in order.
    pub fn redis(
        redis: &RedisSettings,
        settings: Settings,
        subscriptions: impl IntoIterator<Item = Subscription>,
        metrics: Arc<BusMetrics>,
        stop: &CancellationToken,
    ) -> Result<(Self, Receiver), Setup> {
        let transport = redis::RedisTransport::new(redis, &settings)?;
        let questions = Arc::new(redis::Pool::new(redis, &transport)?);
        Ok(Self::start(transport, questions, settings, subscriptions, metrics, stop)?)
    }

    /// Starts a bus on memory, over one node's link to a [`memory::Hub`].
    pub fn memory(
        link: &memory::Link,
        settings: Settings,
        subscriptions: impl IntoIterator<Item = Subscription>,
        metrics: Arc<BusMetrics>,
        stop: &CancellationToken,
    ) -> Result<(Self, Receiver), Setup> {
        let questions = Arc::new(link.clone());
        Ok(Self::start(link.clone(), questions, settings, subscriptions, metrics, stop)?)
    }

    fn start<T: Transport>(
        transport: T,
        questions: Arc<dyn link::Questions>,
        settings: Settings,
        subscriptions: impl IntoIterator<Item = Subscription>,
        metrics: Arc<BusMetrics>,
        stop: &CancellationToken,
    ) -> Result<(Self, Receiver), TooManySubscriptions> {
        let (shared, receiver) = Shared::new(settings, metrics, stop);
        for subscription in subscriptions {
            shared.want(subscription)?;
        }
        let transport = Arc::new(transport);
        shared.tasks.spawn(publisher::run(Arc::clone(&shared), Arc::clone(&transport)));
        shared.tasks.spawn(subscriber::run(Arc::clone(&shared), transport));
        shared.tasks.spawn(probe::run(Arc::clone(&shared)));
        shared.tasks.spawn(probe::account(Arc::clone(&shared)));
        shared.tasks.close();
        Ok((Self { shared, questions }, receiver))
    }

    /// Queues a message for publication, after all that was queued before. Never waits. Success means
    /// that it will be written while the present link lasts; what is lost with the link is counted.
    pub fn publish(&self, channel: impl Into<Arc<str>>, payload: Bytes) -> Result<(), Unpublished> {
        self.shared.publish(channel.into(), payload)
    }

    /// Wants a channel or a pattern from now on. It is asked for in the background, again after every
    /// reconnect; [`Status::subscribed`] is false until it is confirmed.
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), TooManySubscriptions> {
        self.shared.want(subscription)
    }

    /// Wants it no longer. A message that is on its way may still arrive.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        self.shared.unwant(subscription);
    }

    /// How the bus is, and a way to wait until that changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Whether all is well: see [`Status::ready`].
    pub fn ready(&self) -> bool {
        self.shared.status.borrow().ready()
    }

    /// How many connections are subscribed to the very `channel` (patterns do not count), peers' and
    /// this node's own: `PUBSUB NUMSUB`.
    pub async fn subscribers(&self, channel: &str) -> Result<u64, Question> {
        self.questions.subscribers(channel).await
    }

    /// Whether the server answers, and after how long.
    pub async fn ping(&self) -> Result<Duration, Question> {
        let asked = Instant::now();
        self.questions.ping().await?;
        Ok(asked.elapsed())
    }

    /// Takes no more messages, publishes what waits until the deadline, unsubscribes, and ends every task. What is left
    /// then is counted as lost.
    pub async fn close(&self, deadline: Instant) {
        self.shared.closing.cancel();
        // Whether it was drained in time shows in the counters.
        let _ = timeout_at(deadline, self.shared.drained.cancelled()).await;
        self.shared.leaving.cancel();
        let _ = timeout(LEAVE_TIMEOUT, self.shared.tasks.wait()).await;
        self.shared.stop.cancel();
        self.shared.tasks.wait().await;
        self.questions.close();
    }
}
