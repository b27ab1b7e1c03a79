//! A node's bus under test.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use antiphon_adapter::bus::{
    Bus, Message, Protocol, Receiver, RedisSettings, Settings, Status, Subscription, memory::Link,
};
use antiphon_metrics::{BusMetrics, Registry, bus::Unpublished as Reason};
use bytes::Bytes;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::wait::{SOON, eventually};

pub(crate) fn channels(names: &[&str]) -> Vec<Subscription> {
    names.iter().map(|&name| Subscription::Channel(name.to_owned())).collect()
}

pub(crate) struct Node {
    pub(crate) bus: Bus,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) metrics: Arc<BusMetrics>,
    pub(crate) stop: CancellationToken,
}

impl Node {
    pub(crate) fn redis(redis: &RedisSettings, settings: Settings, names: &[&str]) -> Self {
        let (metrics, stop) = parts();
        let started = Bus::redis(redis, settings, channels(names), Arc::clone(&metrics), &stop);
        let (bus, receiver) = started.expect("valid settings");
        Self { bus, receiver: Some(receiver), metrics, stop }
    }

    pub(crate) fn memory(link: &Link, settings: Settings, names: &[&str]) -> Self {
        let (metrics, stop) = parts();
        let started = Bus::memory(link, settings, channels(names), Arc::clone(&metrics), &stop);
        let (bus, receiver) = started.expect("valid settings");
        Self { bus, receiver: Some(receiver), metrics, stop }
    }

    pub(crate) async fn status(&self, what: &str, is: impl Fn(&Status) -> bool) {
        let mut status = self.bus.status();
        let reached = timeout(SOON, status.wait_for(|status| is(status))).await.is_ok();
        assert!(reached, "not within {SOON:?}: {what}; it is {:?}", *self.bus.status().borrow());
    }

    pub(crate) async fn ready(&self) {
        self.status("ready", Status::ready).await;
    }

    pub(crate) async fn not_ready(&self) {
        self.status("not ready", |status| !status.ready()).await;
    }

    /// The next `count` messages.
    pub(crate) async fn receive(&mut self, count: usize) -> Vec<Message> {
        let receiver = self.receiver.as_mut().expect("not collecting");
        let mut messages = Vec::new();
        while messages.len() < count {
            let left = count - messages.len();
            let more = timeout(SOON, receiver.receive(&mut messages, left)).await;
            let more = more.unwrap_or_else(|_| panic!("{} of {count} arrived", messages.len()));
            assert!(more, "the bus ended after {} of {count}", messages.len());
        }
        messages
    }

    /// Collects the numbers that arrive from now on.
    pub(crate) fn collect(&mut self) -> Collected {
        let mut receiver = self.receiver.take().expect("not collecting yet");
        let numbers = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&numbers);
        let task = tokio::spawn(async move {
            let mut messages = Vec::new();
            while receiver.receive(&mut messages, 1000).await {
                let batch = messages.drain(..).map(|message| number(&message.payload));
                into.lock().expect("no panic").extend(batch);
            }
        });
        Collected { numbers, task }
    }

    /// Publishes rising numbers, one a millisecond, until stopped.
    pub(crate) fn chatter(&self, channel: &'static str) -> Chatter {
        let (bus, stop, next) =
            (self.bus.clone(), CancellationToken::new(), Arc::new(Mutex::new(0)));
        let (stopped, counter) = (stop.clone(), Arc::clone(&next));
        let task = tokio::spawn(async move {
            let (mut accepted, mut refused) = (0, 0);
            while !stopped.is_cancelled() {
                let number: u64 = *counter.lock().expect("no panic");
                match bus.publish(channel, Bytes::from(number.to_string())) {
                    Ok(()) => accepted += 1,
                    Err(_) => refused += 1,
                }
                *counter.lock().expect("no panic") += 1;
                sleep(Duration::from_millis(1)).await;
            }
            (accepted, refused)
        });
        Chatter { task, stop, next }
    }

    pub(crate) fn unpublished(&self, reason: Reason) -> u64 {
        self.metrics.unpublished_total.of(reason).get()
    }

    pub(crate) fn published(&self) -> u64 {
        self.metrics.published_total.get()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn parts() -> (Arc<BusMetrics>, CancellationToken) {
    let metrics = BusMetrics::register(&Registry::new()).expect("a new registry");
    (Arc::new(metrics), CancellationToken::new())
}

pub(crate) fn number(payload: &[u8]) -> u64 {
    std::str::from_utf8(payload).expect("a number").parse().expect("a number")
}

pub(crate) struct Chatter {
    task: JoinHandle<(u64, u64)>,
    stop: CancellationToken,
    next: Arc<Mutex<u64>>,
}

impl Chatter {
    /// The number to be published next.
    pub(crate) fn next(&self) -> u64 {
        *self.next.lock().expect("no panic")
    }

    /// Ends it: how many were accepted and refused.
    pub(crate) async fn stop(self) -> (u64, u64) {
        self.stop.cancel();
        self.task.await.expect("no panic")
    }
}

pub(crate) struct Collected {
    numbers: Arc<Mutex<Vec<u64>>>,
    task: JoinHandle<()>,
}

impl Collected {
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.numbers.lock().expect("no panic").clone()
    }

    /// Waits for a number as high as `number`.
    pub(crate) async fn beyond(&self, number: u64) {
        let last = || self.numbers.lock().expect("no panic").last().copied();
        eventually("later messages arrive", SOON, async || last() >= Some(number)).await;
    }

    pub(crate) fn in_order(&self) {
        let numbers = self.numbers();
        assert!(numbers.is_sorted_by(|a, b| a < b), "out of order or twice: {numbers:?}");
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn settings() -> Settings {
    Settings { connect_timeout: Duration::from_secs(1), ..Settings::default() }
}

pub(crate) fn redis(url: impl Into<String>, protocol: Protocol) -> RedisSettings {
    RedisSettings { protocol, ..RedisSettings::new(url) }
}
