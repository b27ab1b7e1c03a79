//! The probe: a message to oneself, through both connections.
//!
//! A connection can be up and yet nothing arrive: a half-open TCP connection, a proxy that lost its other
//! side, a server that hangs. Only a message that was published and has arrived proves the contrary. One
//! probe is on its way at a time. Other messages that arrive meanwhile extend its time: under load it is
//! behind them in the same queue, and a subscriber that hears them is not deaf.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep, sleep_until},
};

use super::{
    Status,
    link::{Outgoing, random},
    shared::Shared,
};

/// The number of a probe that nobody waits for: it shows whether the publisher's connection is alive.
const NUDGE: u64 = 0;

/// Where a probe's return and the server's answer to it are told.
pub(super) struct Echo {
    channel: Arc<str>,
    returned: watch::Sender<u64>,
    answered: watch::Sender<(u64, bool)>,
}

impl Echo {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            channel: format!("{prefix}{:016x}", random()).into(),
            returned: watch::Sender::new(0),
            answered: watch::Sender::new((0, true)),
        }
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// A message arrived on the probe channel; whatever is not a number did not come from here.
    pub(super) fn returned(&self, payload: &[u8]) {
        let text = std::str::from_utf8(payload).ok();
        if let Some(number) = text.and_then(|text| text.parse().ok()) {
            self.returned.send_replace(number);
        }
    }

    /// The server took a probe, or refused it.
    pub(super) fn answered(&self, number: u64, accepted: bool) {
        self.answered.send_replace((number, accepted));
    }
}

impl Shared {
    fn send_probe(&self, number: u64) -> bool {
        let message = Outgoing {
            channel: Arc::clone(&self.echo.channel),
            payload: Bytes::from(number.to_string()),
            since: Instant::now(),
            probe: Some(number),
        };
        // One at a time, so it need not find the queue below its bounds.
        self.queue.push_beyond(message).is_ok()
    }

    /// Makes the publisher write something, so that it notices when its connection is gone as well.
    pub(super) fn nudge_publisher(&self) {
        self.send_probe(NUDGE);
    }
}

/// Adds to the time of deafness while nothing else changes.
pub(super) async fn account(shared: Arc<Shared>) {
    let mut ticks = interval(Duration::from_secs(1));
    let forever = async {
        loop {
            ticks.tick().await;
            shared.update(|_| ());
        }
    };
    shared.stop.run_until_cancelled(forever).await;
}

/// Sends probes while both connections are up, and judges by their return.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut prober = Prober { shared: Arc::clone(&shared), number: NUDGE, heard: Instant::now() };
    let forever = async {
        loop {
            prober.round().await;
        }
    };
    shared.leaving.run_until_cancelled(forever).await;
}

struct Prober {
    shared: Arc<Shared>,
    number: u64,
    heard: Instant,
}

/// What became of a probe.
enum Outcome {
    Returned,
    Refused,
    Lost,
    LinkDown,
}

impl Prober {
    async fn round(&mut self) {
        self.links(true).await;
        self.number += 1;
        let sent = Instant::now();
        if !self.shared.send_probe(self.number) {
            // The link went down this very moment, and the status is about to say so.
            return sleep(self.shared.settings.backoff_min).await;
        }
        match self.outcome(sent).await {
            Outcome::Returned => {
                self.returned(sent);
                self.pause().await;
            }
            Outcome::Refused => {
                self.not_heard(sent);
                self.pause().await;
            }
            Outcome::Lost => self.lost(sent),
            Outcome::LinkDown => {}
        }
    }

    /// Waits until both connections are up, or until they are not.
    async fn links(&self, up: bool) {
        let both = |status: &Status| status.subscribed && status.publisher_up;
        // The sender is in `shared`, so waiting cannot fail.
        let _ = self.shared.status.subscribe().wait_for(|status| both(status) == up).await;
    }

    async fn pause(&self) {
        tokio::select! {
            () = sleep(self.shared.settings.probe_interval) => {}
            () = self.links(false) => {}
        }
    }

    async fn outcome(&self, sent: Instant) -> Outcome {
        let number = self.number;
        let echo = &self.shared.echo;
        let (mut returned, mut answered) = (echo.returned.subscribe(), echo.answered.subscribe());
        tokio::select! {
            biased;
            _ = returned.wait_for(|last| *last == number) => Outcome::Returned,
            _ = answered.wait_for(|last| *last == (number, false)) => Outcome::Refused,
            () = self.links(false) => Outcome::LinkDown,
            () = self.silence(sent) => Outcome::Lost,
        }
    }

    /// Resolves when nothing has arrived for as long as a probe may take.
    async fn silence(&self, sent: Instant) {
        let deadline = || sent.max(self.shared.last_arrival()) + self.shared.settings.probe_timeout;
        while Instant::now() < deadline() {
            sleep_until(deadline()).await;
        }
    }

    fn returned(&mut self, sent: Instant) {
        self.heard = Instant::now();
        self.shared.metrics.probe_seconds.observe(self.heard - sent);
        let was_deaf = self.shared.status.borrow().deaf_since;
        self.shared.update(|status| {
            status.deaf_since = None;
            // One that was lost meanwhile is followed by another, about which this probe says nothing.
            status.probed = status.subscribed && status.publisher_up;
        });
        if let Some(since) = was_deaf {
            let duration_ms = since.elapsed().as_millis();
            tracing::info!(duration_ms, "the bus hears what is published again");
        }
    }

    fn not_heard(&self, sent: Instant) {
        self.shared.metrics.probes_lost_total.inc();
        let since = self.heard.max(self.shared.last_arrival()).min(sent);
        self.shared.update(|status| {
            status.deaf_since.get_or_insert(since);
        });
    }

    fn lost(&self, sent: Instant) {
        self.not_heard(sent);
        let answered = self.shared.echo.answered.borrow().0 == self.number;
        tracing::warn!(answered, "a probe through the bus did not come back in time");
        if answered {
            // The server has it and the subscriber does not. An unanswered one is the publisher's
            // to judge.
            self.shared.deaf.notify_one();
        }
    }
}
