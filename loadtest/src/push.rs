//! Notifications from outside: published through Redis as `@socket.io/redis-emitter` writes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use crate::client::{Clock, Control, NEVER, Second, Update};
use crate::oracle::Sent;
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
        let plan = &self.plan;
        let streams =
            flows(plan).flat_map(|f| f.scope.first_stream..f.scope.first_stream + f.scope.senders);
        let mut published = Published {
            sent: streams.map(|stream| (stream, Sent::default())).collect(),
            unsent: 0,
        };
        let mut connection = None;
        let mut next = vec![0u64; flows(plan).count()];
        let (mut due, mut second) = (0, Second::default());
        while !self.control.over.load(Ordering::Relaxed) {
            let now_us = self.clock.now_us();
            let from_us = self.control.send_from.load(Ordering::Relaxed);
            let until_us = self.control.send_until.load(Ordering::Relaxed);
            let count_from_us = self.control.count_from.load(Ordering::Relaxed);
            let mut wake_us = now_us + SLEEP_MAX_US;
            let mut batch = redis::pipe();
            let mut heads = Vec::new();
            for (at, flow) in flows(plan).enumerate() {
                while heads.len() < BATCH_MAX && from_us != NEVER && flow.scope.senders > 0 {
                    let planned_us =
                        from_us.saturating_add(flow.pace.due_us(next[at]).unwrap_or(NEVER));
                    if planned_us > now_us || planned_us >= until_us {
                        wake_us = wake_us.min(planned_us);
                        break;
                    }
                    let sender = (next[at] % u64::from(flow.scope.senders)) as u32;
                    next[at] += 1;
                    heads.push((flow, flow.scope.first_stream + sender, planned_us));
                }
            }
            if !heads.is_empty() {
                // A number that Redis did not get stays with the sender: it is taken only when all is well.
                let counts = |planned_us| planned_us >= count_from_us;
                if connection.is_none() {
                    connection = self.client.get_connection_with_timeout(PATIENCE).ok();
                }
                let Some(redis) = &mut connection else {
                    published.unsent += heads.iter().filter(|(.., at)| counts(*at)).count() as u64;
                    continue;
                };
                for (flow, stream, planned_us) in &heads {
                    let Some((_, sent)) = published.sent.iter_mut().find(|(s, _)| s == stream)
                    else {
                        continue;
                    };
                    let number = sent.take_number(now_us, counts(*planned_us));
                    let head = Head { stream: *stream, number, planned_us: *planned_us };
                    batch.publish(CHANNEL, frame(self.run, flow, head)).ignore();
                    due += u64::from(plan.clients);
                    second.sent += 1;
                }
                if let Err(error) = batch.exec(redis) {
                    // What Redis has of the batch is not known: the oracle will say what arrived.
                    eprintln!("publishing: {error}");
                    connection = None;
                }
            }
            let index = now_us.saturating_sub(count_from_us) / 1_000_000;
            let mut update = Update { worker: plan.threads as usize, due, ..Update::default() };
            if now_us >= count_from_us && index > second.index {
                update
                    .seconds
                    .push(std::mem::replace(&mut second, Second { index, ..Second::default() }));
            }
            // The coordinator drains quickly; a full channel loses one sum, which the next one repeats.
            let _ = self.updates.try_send(update);
            let wait_us = wake_us.saturating_sub(self.clock.now_us());
            std::thread::sleep(Duration::from_micros(wait_us));
        }
        published
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
