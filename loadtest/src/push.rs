//! Notifications from outside: published through Redis as `@socket.io/redis-emitter` writes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use crate::client::{Clock, Control, NEVER, Second, Update};
use crate::oracle::{End, Sent};
use crate::payload::{self, Head, Run};
use crate::scenario::{Flow, Plan, Source};

/// The channel of the emitter for everyone in the namespace `/`.
const CHANNEL: &str = "socket.io#/#";
/// The longest sleep: how late the publisher may notice what it is told.
const SLEEP_MAX_US: u64 = 20_000;
/// Messages published at a time, if more than one is due.
const BATCH_MAX: usize = 256;
/// Time for Redis to take them.
const PATIENCE: Duration = Duration::from_secs(5);

/// One thread that publishes all flows that come through Redis.
#[derive(Debug)]
pub struct Publisher {
    plan: Arc<Plan>,
    control: Arc<Control>,
    updates: SyncSender<Update>,
    clock: Clock,
    run: Run,
    client: redis::Client,
}

/// What the publisher has done.
#[derive(Debug, Default)]
pub struct Published {
    /// By stream.
    pub sent: Vec<(u32, Sent)>,
    /// Messages that were due while Redis did not take them.
    pub unsent: u64,
    /// The last second, which was not over.
    pub second: Second,
}

impl Publisher {
    /// Reaches Redis, or says why it cannot; `None` if nothing is published.
    ///
    /// # Errors
    ///
    /// For people.
    pub fn new(
        plan: Arc<Plan>,
        control: Arc<Control>,
        updates: SyncSender<Update>,
        clock: Clock,
        run: Run,
    ) -> Result<Option<Self>, String> {
        let Some(url) = plan.redis.clone().filter(|_| flows(&plan).next().is_some()) else {
            return Ok(None);
        };
        let say = |error: redis::RedisError| format!("{url}: {error}");
        let client = redis::Client::open(url.as_str()).map_err(say)?;
        client.get_connection_with_timeout(PATIENCE).map_err(say)?;
        Ok(Some(Self { plan, control, updates, clock, run, client }))
    }

    /// Publishes until it is told that the run is over.
    pub fn run(self) -> Published {
        let plan = self.plan.clone();
        let streams =
            flows(&plan).flat_map(|f| f.scope.first_stream..f.scope.first_stream + f.scope.senders);
        let sent = streams.map(|stream| (stream, Sent::default())).collect();
        let mut published = Published { sent, ..Published::default() };
        let mut connection = None;
        let mut next = vec![0u64; flows(&plan).count()];
        let mut update = Update { worker: plan.threads as usize, ..Update::default() };
        let mut next_update_us = 0;
        while !self.control.over.load(Ordering::Relaxed) {
            let now_us = self.clock.now_us();
            let (heads, wake_us) = self.take_due(&mut next, now_us);
            if !heads.is_empty() {
                self.publish(&heads, &mut connection, &mut published, now_us);
            }
            update.seconds.extend(self.end_second(&mut published, now_us));
            if now_us >= next_update_us {
                next_update_us = now_us + SLEEP_MAX_US;
                let sent =
                    published.sent.iter().map(|(_, sent)| u64::from(sent.count)).sum::<u64>();
                update.due = sent * u64::from(plan.clients);
                let until_us = self.control.send_until.load(Ordering::Relaxed);
                update.sent_all = now_us >= until_us && heads.len() < BATCH_MAX;
                // A coordinator that is behind hears it next time.
                if self.updates.try_send(update.clone()).is_ok() {
                    update.seconds.clear();
                }
            }
            let wait_us = wake_us.saturating_sub(self.clock.now_us());
            std::thread::sleep(Duration::from_micros(wait_us));
        }
        // What it did not come to while Redis held it up.
        loop {
            let (heads, _) = self.take_due(&mut next, self.clock.now_us());
            if heads.is_empty() {
                return published;
            }
            self.count_unsent(&heads, &mut published);
        }
    }

    fn count_unsent(&self, heads: &[(&Flow, u32, u64)], published: &mut Published) {
        let count_from_us = self.control.count_from.load(Ordering::Relaxed);
        let counted = heads.iter().filter(|(.., planned_us)| *planned_us >= count_from_us);
        published.unsent += counted.count() as u64;
    }

    /// What is due: flow, stream, planned time. And when to look again.
    fn take_due(&self, next: &mut [u64], now_us: u64) -> (Vec<(&Flow, u32, u64)>, u64) {
        let from_us = self.control.send_from.load(Ordering::Relaxed);
        let until_us = self.control.send_until.load(Ordering::Relaxed);
        let (mut heads, mut wake_us) = (Vec::new(), now_us + SLEEP_MAX_US);
        if from_us == NEVER {
            return (heads, wake_us);
        }
        for (flow, next) in flows(&self.plan).zip(next).filter(|(flow, _)| flow.scope.senders > 0) {
            while heads.len() < BATCH_MAX {
                let planned_us = from_us.saturating_add(flow.pace.due_us(*next).unwrap_or(NEVER));
                if planned_us > now_us || planned_us >= until_us {
                    wake_us = wake_us.min(planned_us);
                    break;
                }
                let sender = (*next % u64::from(flow.scope.senders)) as u32;
                heads.push((flow, flow.scope.first_stream + sender, planned_us));
                *next += 1;
            }
        }
        (heads, wake_us)
    }

    fn publish(
        &self,
        heads: &[(&Flow, u32, u64)],
        connection: &mut Option<redis::Connection>,
        published: &mut Published,
        now_us: u64,
    ) {
        let count_from_us = self.control.count_from.load(Ordering::Relaxed);
        if connection.is_none() {
            *connection = self.connect().ok();
        }
        let Some(redis) = connection else { return self.count_unsent(heads, published) };
        let mut batch = redis::pipe();
        for &(flow, stream, planned_us) in heads {
            let Some((_, sent)) = published.sent.iter_mut().find(|(s, _)| *s == stream) else {
                continue;
            };
            let counts = planned_us >= count_from_us;
            let number = sent.take_number(now_us, counts);
            published.second.sent += u64::from(counts);
            let head = Head { stream, number, planned_us };
            batch.publish(CHANNEL, frame(self.run, flow, head)).ignore();
        }
        if let Err(error) = batch.exec(redis) {
            // What Redis has of the batch is not known; what does not arrive of it is no silent loss.
            eprintln!("publishing: {error}");
            *connection = None;
            let at_us = self.clock.now_us();
            for (stream, sent) in &mut published.sent {
                let last = sent.count.checked_sub(1);
                if let Some(last) = last.filter(|_| heads.iter().any(|head| head.1 == *stream)) {
                    sent.ends.push(End { at_us, patience_us: at_us - now_us, last });
                }
            }
        }
    }

    /// Neither connecting nor publishing waits for ever.
    fn connect(&self) -> redis::RedisResult<redis::Connection> {
        let connection = self.client.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    fn end_second(&self, published: &mut Published, now_us: u64) -> Option<Second> {
        let count_from_us = self.control.count_from.load(Ordering::Relaxed);
        let index = now_us.checked_sub(count_from_us)? / 1_000_000;
        let next = Second { index, ..Second::default() };
        (index > published.second.index).then(|| std::mem::replace(&mut published.second, next))
    }
}

fn flows(plan: &Plan) -> impl Iterator<Item = &Flow> {
    plan.flows.iter().filter(|flow| flow.source == Source::Redis)
}

/// `["emitter", {type: 2, data: [event, payload], nsp: "/"}, {rooms: [], flags: {}, except: []}]`
fn frame(run: Run, flow: &Flow, head: Head) -> Vec<u8> {
    let mut text = Vec::new();
    payload::write(&mut text, run, head, flow.bytes);
    let mut out = Vec::with_capacity(text.len() + 128);
    let written = write_frame(&mut out, &flow.heard_as, &String::from_utf8_lossy(&text));
    written.expect("writing to memory does not fail");
    out
}

fn write_frame(
    out: &mut Vec<u8>,
    event: &str,
    payload: &str,
) -> Result<(), rmp::encode::ValueWriteError> {
    use rmp::encode::{write_array_len, write_map_len, write_str, write_uint};
    write_array_len(out, 3)?;
    write_str(out, "emitter")?;
    write_map_len(out, 3)?;
    write_str(out, "type")?;
    write_uint(out, 2)?;
    write_str(out, "data")?;
    write_array_len(out, 2)?;
    write_str(out, event)?;
    write_str(out, payload)?;
    write_str(out, "nsp")?;
    write_str(out, "/")?;
    write_map_len(out, 3)?;
    write_str(out, "rooms")?;
    write_array_len(out, 0)?;
    write_str(out, "flags")?;
    write_map_len(out, 0)?;
    write_str(out, "except")?;
    write_array_len(out, 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What @socket.io/redis-emitter 5.1.0 published for `emitter.emit("chat_message", "hi")`, but for
    /// the payload, which was an object when that was recorded.
    #[test]
    fn frames_are_the_emitters() {
        let recorded = "93a7656d697474657283a47479706502a46461746192ac636861745f6d657373616765a26869\
                        a36e7370a12f83a5726f6f6d7390a5666c61677380a665786365707490";
        let mut out = Vec::new();
        write_frame(&mut out, "chat_message", "hi").unwrap();
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, recorded.replace(char::is_whitespace, ""));
    }
}
