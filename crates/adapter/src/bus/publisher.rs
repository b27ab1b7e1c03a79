//! The publisher: empties the queue, in order, through one connection.
//!
//! What waits goes out as one batch; several batches are on their way at a time, so that the distance to
//! the server does not bound the rate. Answers come in the order of the batches. Progress is judged by
//! them alone: when the oldest is overdue and none has come meanwhile, the connection is thrown away.

use std::{
    collections::VecDeque,
    future::{poll_fn, ready},
    sync::Arc,
    task::Poll,
};

use antiphon_metrics::bus::{Connection, Unpublished as Reason};
use tokio::{
    task::unconstrained,
    time::{Instant, sleep_until},
};

use crate::log_throttle::LogThrottle;

use super::{
    keeper::Keeper,
    link::{Answer, Answers, LinkError, Outgoing, Publishing, Transport},
    shared::Shared,
};

/// Batches on their way, and what is lost with a link. At a round trip of 10 ms it still allows 400 MB/s.
pub(super) const FLYING_MAX: usize = 16;
/// Messages in a batch: enough that the costs of a write are shared by many.
const BATCH_MESSAGES_MAX: usize = 512;
/// Bytes in a batch, exceeded by one message at most.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes on their way, exceeded by one batch at most: answers to peers may be much larger than a batch should be.
const FLYING_BYTES_MAX: usize = FLYING_MAX * BATCH_BYTES_MAX;

/// Keeps a publishing connection for as long as the bus takes messages, then drains.
pub(super) async fn run<T: Transport>(shared: Arc<Shared>, transport: Arc<T>) {
    let _drained = shared.drained.clone().drop_guard();
    let mut keeper = Keeper::new(Connection::Publisher, &shared, shared.closing.clone());
    while let Some(link) = keeper.connect(|| transport.publishing()).await {
        shared.queue.open();
        shared.update(|status| status.publisher_up = true);
        let mut session = Session::new(&shared, link);
        let end = session.run().await;
        let lost = session.lost();
        shared.update(|status| (status.publisher_up, status.probed) = (false, false));
        shared.metrics.unpublished_total.of(Reason::LinkLost).inc_by(lost);
        let Err(error) = end else { break };
        keeper.lost(&error, lost);
    }
}

struct Flying {
    batch: Vec<Outgoing>,
    bytes: usize,
    sent: Instant,
    answers: Answers,
}

struct Session<'a, P> {
    shared: &'a Shared,
    link: P,
    flying: VecDeque<Flying>,
    // When an answer came last.
    moved: Instant,
    sealed: bool,
    throttle: LogThrottle,
}

impl<'a, P: Publishing> Session<'a, P> {
    fn new(shared: &'a Shared, link: P) -> Self {
        let flying = VecDeque::with_capacity(FLYING_MAX);
        let moved = Instant::now();
        Self { shared, link, flying, moved, sealed: false, throttle: LogThrottle::default() }
    }

    /// Publishes until the link breaks, or until all is published after the bus has begun to close.
    async fn run(&mut self) -> Result<(), LinkError> {
        let shared = self.shared;
        loop {
            let idle = self.flying.is_empty();
            if self.sealed && idle && shared.queue.is_empty() {
                return Ok(());
            }
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Err(broken("stopped")),
                answers = first_answers(&mut self.flying), if !idle => self.settle(answers?)?,
                () = sleep_until(deadline), if !idle => {
                    return Err(broken("no answer to a publication in time"));
                }
                () = shared.queue.filled(), if self.has_room() => self.send().await,
                () = shared.closing.cancelled(), if !self.sealed => {
                    self.sealed = true;
                    shared.queue.shut();
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        let bytes: usize = self.flying.iter().map(|flying| flying.bytes).sum();
        self.flying.len() < FLYING_MAX && bytes < FLYING_BYTES_MAX
    }

    fn deadline(&self) -> Instant {
        let oldest = self.flying.front().map_or(self.moved, |flying| flying.sent);
        oldest.max(self.moved) + self.shared.settings.probe_timeout
    }

    async fn send(&mut self) {
        let mut batch = Vec::new();
        self.shared.queue.take(&mut batch, BATCH_MESSAGES_MAX, BATCH_BYTES_MAX);
        let mut answers = self.link.send(&batch);
        // The first poll hands the batch over, and only the foremost is polled from then on, so batches
        // cannot overtake each other. Outside tokio's cooperative budget, or that poll may do nothing.
        let first = poll_fn(|context| Poll::Ready(answers.as_mut().poll(context)));
        if let Poll::Ready(early) = unconstrained(first).await {
            answers = Box::pin(ready(early));
        }
        let bytes = batch.iter().map(|message| message.payload.len()).sum();
        self.flying.push_back(Flying { batch, bytes, sent: Instant::now(), answers });
    }

    /// Counts what became of the oldest batch.
    fn settle(&mut self, answers: Vec<Answer>) -> Result<(), LinkError> {
        self.moved = Instant::now();
        if self.flying.front().is_none_or(|oldest| oldest.batch.len() != answers.len()) {
            return Err(broken("as many answers as publications were expected"));
        }
        let batch = self.flying.pop_front().map(|oldest| oldest.batch).unwrap_or_default();
        let (mut count, mut bytes) = (0, 0);
        for (message, answer) in batch.iter().zip(answers) {
            if let Some(number) = message.probe {
                self.shared.echo.answered(number, answer.is_ok());
            }
            match answer {
                Ok(()) if message.probe.is_none() => {
                    count += 1;
                    bytes += message.payload.len() as u64;
                    self.shared.metrics.publish_seconds.observe(self.moved - message.since);
                }
                Ok(()) => {}
                Err(error) => self.rejected(message, &error),
            }
        }
        self.shared.metrics.published_total.inc_by(count);
        self.shared.metrics.published_bytes_total.inc_by(bytes);
        Ok(())
    }

    fn rejected(&mut self, message: &Outgoing, error: &str) {
        if message.probe.is_none() {
            self.shared.metrics.unpublished_total.of(Reason::Rejected).inc();
        }
        if let Some(suppressed) = self.throttle.admit() {
            let probe = message.probe.is_some();
            tracing::error!(error, probe, suppressed, "the server refuses what the bus publishes");
        }
    }

    /// How many messages are lost if the link is; none is taken from now on.
    fn lost(&mut self) -> u64 {
        let waiting = self.shared.queue.shut_and_empty();
        let flying = self.flying.iter().flat_map(|flying| &flying.batch);
        let lost = flying.chain(&waiting).filter(|message| message.probe.is_none());
        lost.count() as u64
    }
}

async fn first_answers(flying: &mut VecDeque<Flying>) -> Result<Vec<Answer>, LinkError> {
    match flying.front_mut() {
        Some(oldest) => oldest.answers.as_mut().await,
        None => std::future::pending().await,
    }
}

fn broken(reason: &str) -> LinkError {
    LinkError::Broken(reason.to_owned())
}
