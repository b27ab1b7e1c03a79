//! What the bus needs of a transport: two connections and a few answers.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Message, Settings, Subscription, TooManySubscriptions};

/// Settings with which no bus can be started. Never shows a password.
#[derive(Debug, thiserror::Error)]
pub enum Setup {
    /// The URL, the certificates or the key cannot be used.
    #[error("the settings for Redis cannot be used: {0}")]
    Redis(String),
    /// More subscriptions than there may be.
    #[error(transparent)]
    Subscriptions(#[from] TooManySubscriptions),
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Question {
    /// No connection, or no answer, in time.
    #[error("no answer in time: {0}")]
    Unanswered(String),
    /// The server refused to answer.
    #[error("the server refused: {0}")]
    Refused(String),
}

/// Why a connection could not be made, or does not serve.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum LinkError {
    /// It is gone, or was never there.
    #[error("{0}")]
    Broken(String),
    /// It is there and the server refuses: wrong password, no permission.
    #[error("the server refuses: {0}")]
    Refused(String),
}

/// A message on its way out.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) channel: Arc<str>,
    pub(super) payload: Bytes,
    /// When it was queued.
    pub(super) since: Instant,
    /// Its number if it is a probe.
    pub(super) probe: Option<u64>,
}

/// What the server said to one publication; the error is its text.
pub(super) type Answer = Result<(), String>;

/// The answers to one batch, in its order.
pub(super) type Answers = Pin<Box<dyn Future<Output = Result<Vec<Answer>, LinkError>> + Send>>;

/// Makes connections. A connection is thrown away by dropping it.
pub(super) trait Transport: Send + Sync + 'static {
    /// The publishing connection.
    type Publishing: Publishing;
    /// The receiving connection's way in.
    type Commands: Commands;
    /// The receiving connection's way out.
    type Messages: Messages;

    /// Connects the publisher.
    fn publishing(&self) -> impl Future<Output = Result<Self::Publishing, LinkError>> + Send;

    /// Connects the subscriber.
    fn receiving(
        &self,
    ) -> impl Future<Output = Result<(Self::Commands, Self::Messages), LinkError>> + Send;
}

/// A connection that publishes.
pub(super) trait Publishing: Send + 'static {
    /// Sends a batch: it is on its way, behind all earlier ones, after the *first* poll of what is
    /// returned, which must not depend on anything else being polled.
    fn send(&mut self, batch: &[Outgoing]) -> Answers;
}

/// Asks the server on a connection that receives.
pub(super) trait Commands: Send + 'static {
    /// Subscribes; all or nothing, as far as is known.
    fn subscribe(
        &mut self,
        what: &[Subscription],
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Unsubscribes.
    fn unsubscribe(
        &mut self,
        what: &[Subscription],
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Resolves when the server has answered.
    fn ping(&mut self) -> impl Future<Output = Result<(), LinkError>> + Send;
}

/// What arrives on a connection that receives.
pub(super) trait Messages: Send + 'static {
    /// The next one; `None` when the connection is gone. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Message>> + Send;
}

/// The boxed future of an answer to a question.
pub(super) type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, Question>> + Send + 'a>>;

/// Questions outside the two connections.
pub(super) trait Questions: Send + Sync + 'static {
    /// How many connections are subscribed to a channel.
    fn subscribers<'a>(&'a self, channel: &'a str) -> Asked<'a, u64>;

    /// Whether the server answers.
    fn ping(&self) -> Asked<'_, ()>;

    /// No more questions.
    fn close(&self);
}

/// How long to wait before the next attempt.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(settings: &Settings) -> Self {
        let (min, max) = (settings.backoff_min, settings.backoff_max);
        Self { min, max: max.max(min), next: min }
    }

    /// The next wait: twice the last, up to the longest, less a random part of up to half, so that
    /// nodes which lost the same server do not come back in step.
    pub(super) fn wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        whole - whole.mul_f64(fraction() / 2.0)
    }

    /// To be called when a connection ends: one that lasted longer than the longest wait was a
    /// success, and the waits begin anew. One that is killed again and again is not retried in a rush.
    pub(super) fn lasted(&mut self, time: Duration) {
        if time > self.max {
            self.next = self.min;
        }
    }
}

/// A random number. Good enough for jitter and names: std's hash keys are random, and differ each time.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

fn fraction() -> f64 {
    f64::from(u32::try_from(random() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_bound_with_jitter_and_starts_anew_after_success() {
        let mut backoff = Backoff::new(&Settings::default());
        let waits: Vec<_> = (0..12).map(|_| backoff.wait()).collect();
        assert!((25..=50).contains(&waits[0].as_millis()), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(2)), "{waits:?}");
        assert!(waits[9..].iter().all(|wait| *wait >= Duration::from_secs(1)), "{waits:?}");
        assert!(waits[9] != waits[10] || waits[10] != waits[11], "no jitter: {waits:?}");
        backoff.lasted(Duration::from_millis(100));
        assert!(backoff.wait() >= Duration::from_secs(1), "a short life is no success");
        backoff.lasted(Duration::from_secs(3));
        assert!(backoff.wait() <= Duration::from_millis(50));
    }
}
