//! The driver: asks the publisher for events and watches them arrive.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use crate::client::Client;
use crate::peers::CONTROL;
use crate::servers::{Cluster, CpuTimes, FIRST_NUMBER};

/// Events asked for at a time in a flood: enough that asking costs nothing.
const CREDIT_MAX: u64 = 500;

/// When nothing has arrived for so long, nothing more will. Longer than a node of Antiphon needs to find
/// back to Redis.
const SILENCE: Duration = Duration::from_secs(2);

/// The same after the events of the start, of which few are on their way.
const SHORT_SILENCE: Duration = Duration::from_millis(300);

const START_DEADLINE: Duration = Duration::from_secs(10);

/// Times on the driver's clock start here, so that all have as many digits.
const FIRST_STAMP_US: u64 = 1_000_000_000_000_000;

/// As many as can be while one waits for another. All floating-point, so that one table can walk them.
#[derive(Serialize)]
pub(crate) struct Flood {
    pub(crate) events: f64,
    pub(crate) per_second: f64,
    pub(crate) publisher_cpu_us: f64,
    pub(crate) subscriber_cpu_us: f64,
    pub(crate) redis_cpu_us: f64,
    /// Of publisher and subscriber.
    pub(crate) per_cpu_second: f64,
    pub(crate) lost: f64,
    pub(crate) reordered: f64,
    /// Subscribers whose connection Redis has cut off.
    pub(crate) cut_off: f64,
}

/// Events at a rate far below what is possible.
#[derive(Serialize)]
pub(crate) struct Paced {
    pub(crate) publisher_p50_us: f64,
    pub(crate) publisher_p99_us: f64,
    pub(crate) subscriber_p50_us: f64,
    pub(crate) subscriber_p99_us: f64,
    /// The difference of the medians.
    pub(crate) hop_us: f64,
    pub(crate) publisher_cpu_us: f64,
    pub(crate) subscriber_cpu_us: f64,
    pub(crate) lost: f64,
    pub(crate) reordered: f64,
}

/// Connected to both sides of a cluster.
pub(crate) struct Driver<'a> {
    cluster: &'a Cluster,
    control: Client,
    listener: Client,
    /// Events that were asked for and that the publisher has numbered.
    asked: u64,
    started: Instant,
}

impl<'a> Driver<'a> {
    /// Connects, and waits until events get through.
    pub(crate) fn connect(cluster: &'a Cluster) -> Result<Self> {
        let control = Client::connect(cluster.publisher(), CONTROL).context("publisher")?;
        let listener = Client::connect(cluster.subscriber(), "/").context("subscriber")?;
        let mut driver = Self { cluster, control, listener, asked: 0, started: Instant::now() };
        driver.listener.patience(SHORT_SILENCE)?;
        let deadline = Instant::now() + START_DEADLINE;
        // The first may come before the publisher is ready to be asked, or to publish.
        let mut arrived = None;
        while arrived.is_none() {
            ensure!(Instant::now() < deadline, "nothing published reaches the subscriber");
            driver.ask(1)?;
            while let Some(event) = driver.listener.event()? {
                arrived = Some(event.number);
            }
        }
        driver.asked = arrived.map_or(0, |last| last + 1 - FIRST_NUMBER);
        Ok(driver)
    }

    /// Keeps `window` events on their way for a time, and waits for the last.
    pub(crate) fn flood(&mut self, time: Duration, window: u64) -> Result<Flood> {
        self.listener.patience(SILENCE)?;
        let credit = (window / 4).clamp(1, CREDIT_MAX);
        let first = self.next();
        let mut arrivals = Arrivals::new(first);
        let mut waited_in_vain = Duration::ZERO;
        let subscriptions = self.cluster.subscriptions()?;
        let cpu = self.cluster.cpu_times()?;
        let start = Instant::now();
        loop {
            while start.elapsed() < time && self.next() + credit <= arrivals.next + window {
                self.ask(credit)?;
            }
            let all = self.next();
            if arrivals.next == all {
                break;
            }
            // Until there is room to ask again, or nothing more to wait for.
            let enough = all.min(arrivals.next + credit);
            while arrivals.next < enough {
                if let Some(event) = self.listener.event()? {
                    arrivals.note(event.number);
                } else {
                    arrivals.give_up(all);
                    waited_in_vain += SILENCE;
                }
            }
        }
        let seconds = start.elapsed().saturating_sub(waited_in_vain).as_secs_f64();
        let events = (self.next() - first - arrivals.lost) as f64;
        ensure!(events > 0.0, "nothing arrived");
        let [publisher_cpu_us, subscriber_cpu_us, redis_cpu_us] =
            self.cluster.cpu_times()?.us_each_since(&cpu, events);
        Ok(Flood {
            events,
            per_second: events / seconds,
            publisher_cpu_us,
            subscriber_cpu_us,
            redis_cpu_us,
            per_cpu_second: 1e6 / (publisher_cpu_us + subscriber_cpu_us),
            lost: arrivals.lost as f64,
            reordered: arrivals.reordered as f64,
            cut_off: subscriptions.difference(&self.cluster.subscriptions()?).count() as f64,
        })
    }

    /// Asks for `rate` events a second, one at a time, each when it is due.
    pub(crate) fn paced(&mut self, time: Duration, rate: u32) -> Result<Paced> {
        let mut neighbour = Client::connect(self.cluster.publisher(), "/").context("publisher")?;
        neighbour.patience(SILENCE)?;
        self.listener.patience(SILENCE)?;
        let (first, count) = (self.next(), (time.as_secs_f64() * f64::from(rate)).ceil() as u32);
        ensure!(count > 0, "no time for a single event");
        let Self { cluster, control, listener, asked, started } = self;
        let started = *started;
        let cpu = cluster.cpu_times()?;
        let (near, far) = scope(|scope| {
            let near = scope.spawn(|| watch(&mut neighbour, first, count.into(), started));
            let far = scope.spawn(|| watch(listener, first, count.into(), started));
            let start = Instant::now();
            for tick in 0..count {
                let due = start + Duration::from_secs(1) * tick / rate;
                sleep(due.saturating_duration_since(Instant::now()));
                // When it was due, not when it was sent: a late one has waited.
                control.ask(1, stamp_us(due.duration_since(started)))?;
            }
            *asked += u64::from(count);
            let ended = |_| anyhow!("a client's thread panicked");
            anyhow::Ok((near.join().map_err(ended)??, far.join().map_err(ended)??))
        })?;
        let arrived = f64::from(count) - far.arrivals.lost as f64;
        let [publisher_cpu_us, subscriber_cpu_us, _] =
            cluster.cpu_times()?.us_each_since(&cpu, arrived);
        Ok(Paced {
            publisher_p50_us: near.quantile_us(0.5)?,
            publisher_p99_us: near.quantile_us(0.99)?,
            subscriber_p50_us: far.quantile_us(0.5)?,
            subscriber_p99_us: far.quantile_us(0.99)?,
            hop_us: far.quantile_us(0.5)? - near.quantile_us(0.5)?,
            publisher_cpu_us,
            subscriber_cpu_us,
            lost: (near.arrivals.lost + far.arrivals.lost) as f64,
            reordered: (near.arrivals.reordered + far.arrivals.reordered) as f64,
        })
    }

    fn ask(&mut self, count: u64) -> Result<()> {
        self.control.ask(count, stamp_us(self.started.elapsed())).context("publisher")?;
        self.asked += count;
        Ok(())
    }

    /// The number that the next event to be asked for will have.
    fn next(&self) -> u64 {
        FIRST_NUMBER + self.asked
    }
}

fn stamp_us(since_start: Duration) -> u64 {
    FIRST_STAMP_US + since_start.as_micros() as u64
}

/// What arrived at one client, and after how long.
struct Watched {
    arrivals: Arrivals,
    delays_us: Vec<u64>,
}

fn watch(client: &mut Client, first: u64, count: u64, started: Instant) -> Result<Watched> {
    let mut arrivals = Arrivals::new(first);
    let mut delays_us = Vec::new();
    while arrivals.next < first + count {
        let Some(event) = client.event()? else {
            arrivals.give_up(first + count);
            break;
        };
        arrivals.note(event.number);
        delays_us.push(stamp_us(started.elapsed()).saturating_sub(event.stamp_us));
    }
    delays_us.sort_unstable();
    Ok(Watched { arrivals, delays_us })
}

impl Watched {
    fn quantile_us(&self, quantile: f64) -> Result<f64> {
        let last = self.delays_us.len().checked_sub(1).context("nothing arrived")?;
        Ok(self.delays_us[(last as f64 * quantile).round() as usize] as f64)
    }
}

/// What has become of events that must arrive one after the other.
struct Arrivals {
    /// The number that the next one should have.
    next: u64,
    lost: u64,
    reordered: u64,
}

impl Arrivals {
    fn new(next: u64) -> Self {
        Self { next, lost: 0, reordered: 0 }
    }

    fn note(&mut self, number: u64) {
        if number < self.next {
            // It was counted as lost when a later one overtook it, unless it comes twice.
            self.lost = self.lost.saturating_sub(1);
            self.reordered += 1;
        } else {
            self.lost += number - self.next;
            self.next = number + 1;
        }
    }

    /// Nothing comes any more of those before `next`.
    fn give_up(&mut self, next: u64) {
        self.lost += next - self.next;
        self.next = next;
    }
}

impl CpuTimes {
    /// Microseconds for each event: of publisher, subscriber and Redis.
    fn us_each_since(&self, before: &Self, events: f64) -> [f64; 3] {
        [
            self.publisher - before.publisher,
            self.subscriber - before.subscriber,
            self.redis - before.redis,
        ]
        .map(|used| used.as_secs_f64() * 1e6 / events)
    }
}
