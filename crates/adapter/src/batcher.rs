//! Neighbours with the same target become one batch.

use std::sync::Arc;

use antiphon_metrics::IntCounter;
use socketioxide_core::packet::Packet;
use tracing::{Instrument, Span};

use crate::{
    namespace::{Namespace, Published},
    sink::{DeliverySink, payload_bytes},
    target::Target,
    trace,
};

/// Packets of one batch. More would not be cheaper, and would keep recipients waiting.
const BATCH_PACKETS_MAX: usize = 128;

/// Bytes of one batch. One write of more is no cheaper than two.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Packets on their way to this node's sockets. It holds packets for one target at a time.
pub struct Batch<S: DeliverySink>(Option<Group<S>>);

struct Group<S: DeliverySink> {
    namespace: Arc<Namespace<S>>,
    target: Target,
    packets: Vec<Packet>,
    bytes: usize,
    // Of the packets that are traced.
    spans: Vec<Span>,
    // Of the packets whose recipients are counted.
    reached: Vec<IntCounter>,
}

impl<S: DeliverySink> Default for Batch<S> {
    fn default() -> Self {
        Self(None)
    }
}

impl<S: DeliverySink> Batch<S> {
    /// Takes a packet for everyone whom the target means, on every node. It is published at once;
    /// the result says whether remote nodes get it. This node's sockets have it after
    /// [`Batch::flush`], and are counted in `reached`.
    pub async fn broadcast(
        &mut self,
        namespace: &Arc<Namespace<S>>,
        packet: Packet,
        target: Target,
        reached: Option<&IntCounter>,
    ) -> Published {
        let published = namespace.publish(&packet, &target);
        self.add(namespace, packet, target, reached).await;
        published
    }

    /// Takes a packet for sockets of this node alone.
    pub(crate) async fn add(
        &mut self,
        namespace: &Arc<Namespace<S>>,
        packet: Packet,
        target: Target,
        reached: Option<&IntCounter>,
    ) {
        let bytes = payload_bytes(&packet);
        if self.0.as_ref().is_some_and(|group| !group.takes(namespace, bytes, &target)) {
            self.flush().await;
        }
        let group = self.0.get_or_insert_with(|| Group {
            namespace: Arc::clone(namespace),
            target,
            packets: Vec::new(),
            bytes: 0,
            spans: Vec::new(),
            reached: Vec::new(),
        });
        group.packets.push(packet);
        group.spans.extend(trace::traced().map(|(span, _)| span));
        group.reached.extend(reached.cloned());
        group.bytes += bytes;
    }

    /// Delivers what has been collected. It must be awaited before rooms change.
    pub async fn flush(&mut self) {
        if let Some(Group { namespace, target, packets, spans, reached, .. }) = self.0.take() {
            let span = trace::fanning_out(&spans, packets.len());
            let to = namespace.connections(&target);
            reached.iter().for_each(|counter| counter.inc_by(to.len() as u64));
            namespace.deliver(packets, target.volatile, to).instrument(span).await;
        }
    }
}

impl<S: DeliverySink> Group<S> {
    fn takes(&self, namespace: &Arc<Namespace<S>>, bytes: usize, target: &Target) -> bool {
        self.packets.len() < BATCH_PACKETS_MAX
            && self.bytes + bytes <= BATCH_BYTES_MAX
            && Arc::ptr_eq(&self.namespace, namespace)
            && self.target == *target
    }
}
