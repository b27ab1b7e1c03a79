//! Keeps one connection: makes it again for ever, with backoff, and says so in log and metrics.

use std::{future::Future, sync::Arc};

use antiphon_metrics::bus::Connection;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::log_throttle::LogThrottle;

use super::{
    link::{Backoff, LinkError},
    shared::Shared,
};

pub(super) struct Keeper {
    connection: Connection,
    shared: Arc<Shared>,
    until: CancellationToken,
    backoff: Backoff,
    throttle: LogThrottle,
    /// When the present or the last connection was made.
    connected: Option<Instant>,
    attempted: bool,
}

impl Keeper {
    /// Keeps `connection` until `until` is cancelled.
    pub(super) fn new(
        connection: Connection,
        shared: &Arc<Shared>,
        until: CancellationToken,
    ) -> Self {
        Self {
            connection,
            shared: Arc::clone(shared),
            until,
            backoff: Backoff::new(&shared.settings),
            throttle: LogThrottle::default(),
            connected: None,
            attempted: false,
        }
    }

    /// The next connection, however long it takes; `None` when it is no longer wanted.
    pub(super) async fn connect<L, F>(&mut self, make: impl Fn() -> F) -> Option<L>
    where
        F: Future<Output = Result<L, LinkError>>,
    {
        let until = self.until.clone();
        loop {
            if std::mem::replace(&mut self.attempted, true) {
                until.run_until_cancelled(sleep(self.backoff.wait())).await?;
            }
            let attempt = timeout(self.shared.settings.connect_timeout, make());
            let made = until.run_until_cancelled(attempt).await?;
            let late = |_| Err(LinkError::Broken("not connected in time".to_owned()));
            match made.unwrap_or_else(late) {
                Ok(link) => {
                    self.made();
                    return Some(link);
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    fn made(&mut self) {
        let connection = self.connection.as_str();
        self.shared.metrics.connected.of(self.connection).set(1);
        if self.connected.replace(Instant::now()).is_some() {
            self.shared.metrics.reconnects_total.of(self.connection).inc();
        }
        tracing::info!(connection, "the bus is connected");
    }

    fn failed(&mut self, error: &LinkError) {
        self.shared.metrics.connect_failures_total.of(self.connection).inc();
        if let Some(suppressed) = self.throttle.admit() {
            let connection = self.connection.as_str();
            if let LinkError::Refused(_) = error {
                tracing::error!(connection, %error, suppressed, "the bus is not let in, and tries again");
            } else {
                tracing::warn!(connection, %error, suppressed, "the bus cannot connect, and tries again");
            }
        }
    }

    /// The connection has ended, and `messages` with it.
    pub(super) fn lost(&mut self, error: &LinkError, messages: u64) {
        self.shared.metrics.connected.of(self.connection).set(0);
        let lasted = self.connected.map_or_else(Default::default, |since| since.elapsed());
        self.backoff.lasted(lasted);
        if let Some(suppressed) = self.throttle.admit() {
            let (connection, lasted_ms) = (self.connection.as_str(), lasted.as_millis());
            tracing::warn!(
                connection, %error, messages, lasted_ms, suppressed, "the bus lost its connection"
            );
        }
    }

    /// The server refuses something on a connection that stays.
    pub(super) fn refused(&mut self, error: &LinkError) {
        if let Some(suppressed) = self.throttle.admit() {
            let connection = self.connection.as_str();
            tracing::error!(connection, %error, suppressed, "the server refuses a subscription");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.metrics.connected.of(self.connection).set(0);
    }
}
