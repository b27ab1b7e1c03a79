//! Fan-out: the same events to many clients.
//!
//! Events are encoded once, into the frames that every WebSocket client gets and the packets that polling
//! clients get. Large fan-outs are split among as many tasks as there are workers, each with recipients of
//! its own; an event is with all of them before the next one begins, so that every recipient gets its events in
//! one order.

use std::sync::Arc;

use antiphon_adapter::{DeliverySink, PacketBatch, SocketId, Soon, wire};
use antiphon_metrics::{GatewayMetrics, gateway::Undelivered};
use socketioxide_core::{
    Value,
    packet::{Packet, PacketData},
};

use crate::{
    namespaces::Session,
    packet::write_event,
    transport::{Budget, FrameBatch, FrameBatchBuilder, Sent},
};

/// Fewer recipients are not worth a task of their own.
const RECIPIENTS_PER_WORKER_MIN: usize = 64;

/// Recipients served before other tasks have their turn.
const RECIPIENTS_PER_TURN: usize = 256;

/// The same in bytes written.
const BYTES_PER_TURN: usize = 1024 * 1024;

/// Type, ack id and number of attachments of a packet, and the heads of its frames.
const PACKET_HEAD_BYTES: usize = 48;

/// Delivers the adapter's batches to sessions. Cloning it is cheap.
#[derive(Clone)]
pub struct FanOut(Arc<Shared>);

struct Shared {
    workers: usize,
    metrics: Arc<GatewayMetrics>,
    budget: Arc<Budget>,
}

/// What became of events on their way to recipients, each counted once for each recipient.
#[derive(Debug, Default)]
struct Delivered {
    accepted: u64,
    skipped: u64,
    too_slow: u64,
    gone: u64,
    written: u64,
}

impl Delivered {
    fn count(&mut self, sent: Sent, events: u64) {
        match sent {
            Sent::Accepted { written, replaced, replaceable, .. } => {
                // What may still be replaced counts when it goes out.
                self.accepted += if replaceable { 0 } else { events };
                self.skipped += replaced;
                self.written += written as u64;
            }
            Sent::Full => self.too_slow += events,
            Sent::Gone => self.gone += events,
        }
    }

    fn record(&self, metrics: &GatewayMetrics) {
        metrics.deliveries_total.inc_by(self.accepted);
        metrics.undelivered_total.of(Undelivered::Volatile).inc_by(self.skipped);
        metrics.undelivered_total.of(Undelivered::SlowConsumer).inc_by(self.too_slow);
        metrics.undelivered_total.of(Undelivered::Gone).inc_by(self.gone);
        metrics.sent_bytes_total.inc_by(self.written);
    }
}

impl FanOut {
    pub(crate) fn new(workers: usize, budget: Arc<Budget>, metrics: Arc<GatewayMetrics>) -> Self {
        Self(Arc::new(Shared { workers, metrics, budget }))
    }

    fn encode(&self, batch: &PacketBatch) -> FrameBatch {
        encode(batch, &self.0.budget)
    }

    /// Serves some of the recipients, one after another.
    async fn serve(&self, frames: &FrameBatch, bytes: usize, to: &[Arc<Session>]) {
        let mut delivered = Delivered::default();
        let per_turn = (BYTES_PER_TURN / bytes.max(1)).clamp(1, RECIPIENTS_PER_TURN);
        let mut turns = to.chunks(per_turn);
        while let Some(turn) = turns.next() {
            for session in turn {
                session.state().flush_engines();
                delivered.count(session.send(frames), frames.events());
            }
            if turns.len() > 0 {
                tokio::task::yield_now().await;
            }
        }
        delivered.record(&self.0.metrics);
    }
}

/// A batch as clients get it.
pub(crate) fn encode(batch: &PacketBatch, budget: &Arc<Budget>) -> FrameBatch {
    let packets = batch.packets();
    // A packet's head is short, and so are those of its frames.
    let heads = packets.len() * (PACKET_HEAD_BYTES + batch.namespace().len());
    let mut frames = FrameBatchBuilder::with_capacity(batch.bytes() + heads, packets.len());
    for packet in packets {
        append(&mut frames, packet);
    }
    frames.build(packets.len(), batch.volatile(), budget)
}

fn append(frames: &mut FrameBatchBuilder, packet: &Packet) {
    let (PacketData::Event(value, ack) | PacketData::BinaryEvent(value, ack)) = &packet.inner
    else {
        return;
    };
    let Value::Str(text, attachments) = value else { return };
    let attachments = attachments.iter().flatten();
    let ack = ack.and_then(|ack| u64::try_from(ack).ok());
    let head = write_event(&packet.ns, ack, "", attachments.clone().count());
    frames.message(&[&head, text]);
    for attachment in attachments {
        frames.binary(attachment);
    }
}

impl DeliverySink for FanOut {
    type Connection = Arc<Session>;

    fn deliver(&self, batch: PacketBatch, to: Vec<Arc<Session>>) -> Soon<'_, ()> {
        Box::pin(async move {
            let frames = self.encode(&batch);
            let bytes = batch.bytes();
            let workers = self.0.workers.min(to.len() / RECIPIENTS_PER_WORKER_MIN).max(1);
            let mut shares = to.chunks(to.len().div_ceil(workers).max(1));
            let mine = shares.next().unwrap_or_default();
            let others: Vec<_> = shares
                .map(|share| {
                    let (fan_out, frames, share) = (self.clone(), frames.clone(), share.to_vec());
                    tokio::spawn(async move { fan_out.serve(&frames, bytes, &share).await })
                })
                .collect();
            self.serve(&frames, bytes, mine).await;
            for other in others {
                // Its recipients would miss events without knowing: whoever delivers ends with it.
                if let Err(error) = other.await
                    && let Ok(panic) = error.try_into_panic()
                {
                    std::panic::resume_unwind(panic);
                }
            }
        })
    }

    fn disconnect(&self, namespace: &str, id: SocketId, session: &Arc<Session>, close: bool) {
        session.state().disconnected(session, namespace, id, close);
    }

    fn handshake(
        &self,
        namespace: &str,
        id: SocketId,
        session: &Arc<Session>,
    ) -> Option<wire::Handshake> {
        session.state().describe(session, namespace, id)
    }
}
