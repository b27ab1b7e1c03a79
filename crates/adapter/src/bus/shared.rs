//! What the bus's tasks share: queues, wanted subscriptions, status, and the signals to end.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use antiphon_metrics::{
    BusMetrics,
    bus::{ReceiveDrop, Unpublished as Reason},
};
use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Message, Receiver, Settings, Status, Subscription, TooManySubscriptions, Unpublished,
    link::Outgoing, probe::Echo, queue::Full, queue::Queue,
};

pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) metrics: Arc<BusMetrics>,
    /// Messages to publish; shut while there is no link.
    pub(super) queue: Queue<Outgoing>,
    /// Messages that arrived.
    pub(super) inbox: Queue<Message>,
    pub(super) subscriptions: Subscriptions,
    pub(super) status: watch::Sender<Status>,
    pub(super) echo: Echo,
    /// Tells the subscriber that its connection is up and deaf.
    pub(super) deaf: Notify,
    /// No more messages are taken; the publisher drains.
    pub(super) closing: CancellationToken,
    /// The publisher has ended.
    pub(super) drained: CancellationToken,
    /// The subscriber unsubscribes and ends.
    pub(super) leaving: CancellationToken,
    /// The subscriber has ended: nothing more will arrive.
    pub(super) ended: CancellationToken,
    /// Everything ends at once. `closing` and `leaving` follow from it.
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    // Until when deafness has been added to its counter. Locked with the status, once a second.
    accounted: Mutex<Instant>,
    // When something arrived last, in microseconds after `started`: written for every message.
    arrived_us: AtomicU64,
    started: Instant,
}

impl Shared {
    pub(super) fn new(
        settings: Settings,
        metrics: Arc<BusMetrics>,
        stop: &CancellationToken,
    ) -> (Arc<Self>, Receiver) {
        let now = Instant::now();
        let bounds = [
            (&metrics.publish_queue_messages_max, settings.publish_queue_messages_max),
            (&metrics.publish_queue_bytes_max, settings.publish_queue_bytes_max),
            (&metrics.receive_queue_messages_max, settings.receive_queue_messages_max),
            (&metrics.receive_queue_bytes_max, settings.receive_queue_bytes_max),
        ];
        for (gauge, bound) in bounds {
            gauge.set(i64::try_from(bound).unwrap_or(i64::MAX));
        }
        let queue = Queue::new(
            (settings.publish_queue_messages_max, settings.publish_queue_bytes_max),
            (&metrics.publish_queue_messages, &metrics.publish_queue_bytes),
            false,
        );
        let inbox = Queue::new(
            (settings.receive_queue_messages_max, settings.receive_queue_bytes_max),
            (&metrics.receive_queue_messages, &metrics.receive_queue_bytes),
            true,
        );
        let echo = Echo::new(&settings.probe_channel_prefix);
        let subscriptions = Subscriptions::new(echo.channel(), settings.subscriptions_max);
        let stop = stop.child_token();
        let shared = Arc::new(Self {
            settings,
            metrics,
            queue,
            inbox,
            subscriptions,
            status: watch::Sender::new(Status {
                subscribed: false,
                deaf_since: Some(now),
                publisher_up: false,
                probed: false,
                receive_overflow: false,
            }),
            echo,
            deaf: Notify::new(),
            closing: stop.child_token(),
            drained: CancellationToken::new(),
            leaving: stop.child_token(),
            ended: CancellationToken::new(),
            stop,
            tasks: TaskTracker::new(),
            accounted: Mutex::new(now),
            arrived_us: AtomicU64::new(0),
            started: now,
        });
        let receiver = Receiver(Arc::clone(&shared));
        (shared, receiver)
    }

    pub(super) fn publish(&self, channel: Arc<str>, payload: Bytes) -> Result<(), Unpublished> {
        let bytes = channel.len() + payload.len();
        let refused = if payload.len() > self.settings.payload_bytes_max {
            (Unpublished::TooLarge, Reason::TooLarge)
        } else {
            let message = Outgoing { channel, payload, since: Instant::now(), probe: None };
            match self.queue.push(message, bytes) {
                Ok(()) => return Ok(()),
                Err(Full::Shut) => (Unpublished::Down, Reason::Down),
                Err(Full::Count | Full::Bytes) => (Unpublished::QueueFull, Reason::QueueFull),
            }
        };
        self.metrics.unpublished_total.of(refused.1).inc();
        Err(refused.0)
    }

    /// Takes note of a message that arrived.
    pub(super) fn arrived(&self, message: Message) {
        let elapsed = self.started.elapsed().as_micros();
        self.arrived_us.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
        if message.channel == self.echo.channel().as_bytes() {
            return self.echo.returned(&message.payload);
        }
        self.metrics.received_total.inc();
        self.metrics.received_bytes_total.inc_by(message.payload.len() as u64);
        let bytes = message.channel.len() + message.payload.len();
        let reason = if message.payload.len() > self.settings.payload_bytes_max {
            ReceiveDrop::TooLarge
        } else {
            match self.inbox.push(message, bytes) {
                Ok(()) => return,
                Err(Full::Bytes) => self.overflowed(ReceiveDrop::QueueBytes),
                Err(Full::Count | Full::Shut) => self.overflowed(ReceiveDrop::QueueCount),
            }
        };
        self.metrics.receive_dropped_total.of(reason).inc();
    }

    fn overflowed(&self, reason: ReceiveDrop) -> ReceiveDrop {
        self.update(|status| status.receive_overflow = true);
        // The reader may have emptied the queue in between, and would not look again.
        if self.inbox.is_empty() {
            self.receive_queue_drained();
        }
        reason
    }

    pub(super) fn receive_queue_drained(&self) {
        if self.status.borrow().receive_overflow {
            self.update(|status| status.receive_overflow = false);
        }
    }

    /// When something arrived last; the bus's start if nothing has.
    pub(super) fn last_arrival(&self) -> Instant {
        self.started + Duration::from_micros(self.arrived_us.load(Ordering::Relaxed))
    }

    /// Changes the status, and adds to the time of deafness what has passed of it.
    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            let before = *status;
            change(status);
            if let Some(since) = before.deaf_since {
                let mut accounted = self.accounted.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let passed = now.saturating_duration_since(since.max(*accounted));
                self.metrics.deaf_seconds_total.inc_by(passed.as_secs_f64());
                *accounted = now;
            }
            self.metrics.subscribed.set(i64::from(status.subscribed));
            before != *status
        });
    }

    /// Wants a subscription.
    pub(super) fn want(&self, subscription: Subscription) -> Result<(), TooManySubscriptions> {
        let mut wanted = self.subscriptions.lock();
        if wanted.set.contains(&subscription) {
            return Ok(());
        }
        if wanted.set.len() > self.subscriptions.max {
            return Err(TooManySubscriptions);
        }
        wanted.set.insert(subscription);
        wanted.version += 1;
        self.update(|status| status.subscribed = false);
        drop(wanted);
        self.subscriptions.changed.notify_one();
        Ok(())
    }

    /// Wants a subscription no longer.
    pub(super) fn unwant(&self, subscription: &Subscription) {
        let mut wanted = self.subscriptions.lock();
        if wanted.set.remove(subscription) {
            wanted.version += 1;
            drop(wanted);
            self.subscriptions.changed.notify_one();
        }
    }

    /// Every subscription of a version is confirmed. False if others are wanted by now.
    pub(super) fn confirmed(&self, version: u64) -> bool {
        let wanted = self.subscriptions.lock();
        let current = wanted.version == version;
        if current {
            self.update(|status| status.subscribed = true);
        }
        current
    }
}

/// What is wanted, which is not always what is.
pub(super) struct Subscriptions {
    // Changed by callers, read by the subscriber's task when told so.
    wanted: Mutex<Wanted>,
    pub(super) changed: Notify,
    max: usize,
}

#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) set: BTreeSet<Subscription>,
    pub(super) version: u64,
}

impl Subscriptions {
    fn new(probe_channel: &str, max: usize) -> Self {
        let set = BTreeSet::from([Subscription::Channel(probe_channel.to_owned())]);
        Self { wanted: Mutex::new(Wanted { set, version: 0 }), changed: Notify::new(), max }
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wanted(&self) -> Wanted {
        self.lock().clone()
    }
}
