//! From a packet and its recipients to what waits for each of them.
//!
//! Who recipients are the adapter knows; what is behind a socket, and how it gets its packets, the node
//! ([`Recipients`]). The engine's own queue ([`Queues`]) is the way that there always is.

use std::{ptr, sync::Arc};

use antiphon_metrics::IntCounter;
use socketioxide_core::{
    Sid, Value,
    adapter::{BroadcastFlags, BroadcastOptions},
    packet::{Packet, PacketData},
};

use tracing::{Instrument, Span};

use crate::{
    adapter::{Local, Namespace, Soon},
    cluster::Published,
    trace,
};

/// Packets that go out together. Well below what an engine's queue holds: a client that polls takes them
/// one by one.
const BATCH_PACKETS_MAX: usize = 128;

/// The same in bytes: beyond it there is nothing to be gained from going together.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Recipients served before the delivering task lets others run. Large enough that the switch is lost
/// among the deliveries.
const DELIVERIES_PER_TURN: usize = 256;

/// The same in bytes: in an engine's queue every delivery is a copy until it is written, and a large packet
/// for many recipients should not exist once for each of them at a time.
const BYTES_PER_TURN: usize = 1024 * 1024;

/// What the node knows of the connections behind the sockets.
pub trait Recipients: Send + Sync + 'static {
    /// Hands a parcel to every one of `to`; when this is ready, they all have it. What one task awaits,
    /// recipients get in the order in which it did. Unless the node knows a better way, it goes into the engine's
    /// queues, one recipient after another.
    fn deliver(&self, parcel: Parcel, to: Vec<Sid>) -> Soon<'_, ()> {
        Box::pin(async move {
            let mut delivered = Delivered::default();
            let mut turns = Turns::new(parcel.bytes());
            for sid in to {
                turns.next().await;
                parcel.enqueue(sid, self, &mut delivered);
            }
            self.delivered(&delivered);
        })
    }

    /// Hands a parcel to one socket, in order with what it gets otherwise.
    fn send(&self, parcel: Parcel, to: Sid) {
        let mut delivered = Delivered::default();
        parcel.enqueue(to, self, &mut delivered);
        self.delivered(&delivered);
    }

    /// Asked before a packet is put into an engine's queue: may `bytes` more wait there for `sid`?
    /// [`Admission::Queue`] takes note of them.
    fn admit(&self, sid: Sid, bytes: usize, volatile: bool) -> Admission;

    /// A packet that only the engine can send (it numbers acknowledgements) has been put into the queue of `sid`:
    /// what is delivered to it from here on must not overtake that.
    fn queued(&self, sid: Sid, queues: &dyn Queues) {
        let _ = (sid, queues);
    }

    /// The engine's queue for `sid` was full all the same, so a packet was not put into it: from here
    /// on the client would miss events without knowing. The callee closes its connection.
    fn queue_full(&self, sid: Sid);

    /// `sid` has been sent away by a server, with its connection. The callee closes that once what waits for
    /// the client is written.
    fn disconnected(&self, sid: Sid);

    /// Packets have been handed to those for whom they are, or not.
    fn delivered(&self, delivered: &Delivered);
}

/// The engine's queues of one namespace's sockets.
pub trait Queues: Send + Sync {
    /// The namespace.
    fn path(&self) -> &str;

    /// Puts a packet behind what waits for `sid`.
    fn put(&self, sid: Sid, packet: Packet) -> Result<(), QueueError>;
}

/// Why a packet is not in an engine's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueError {
    /// As many packets as may wait there do.
    Full,
    /// The socket has left.
    Gone,
}

/// Whether a packet may be put into a recipient's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Queue,
    /// The recipient is behind and the packet is volatile: it goes without.
    Skip,
    /// Too much is waiting for the recipient, and its connection is being closed for that.
    TooSlow,
    /// It has left.
    Gone,
}

/// What became of packets on this node, each counted once for each recipient.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// On their way to their recipients.
    pub queued: u64,
    /// Volatile, and left out because the recipient was behind.
    pub skipped: u64,
    /// For recipients that are being closed because too much was waiting for them.
    pub too_slow: u64,
    /// For recipients that left in the meantime.
    pub gone: u64,
}

impl Delivered {
    /// Counts what became of so many packets.
    pub fn count(&mut self, admission: Admission, packets: u64) {
        *match admission {
            Admission::Queue => &mut self.queued,
            Admission::Skip => &mut self.skipped,
            Admission::TooSlow => &mut self.too_slow,
            Admission::Gone => &mut self.gone,
        } += packets;
    }
}

/// Packets of one namespace that the same sockets get, in this order. Cloning it is cheap.
#[derive(Clone)]
pub struct Parcel(Arc<Content>);

struct Content {
    packets: Vec<Packet>,
    volatile: bool,
    queues: Arc<dyn Queues>,
}

impl Parcel {
    pub(crate) fn new(packets: Vec<Packet>, volatile: bool, queues: Arc<dyn Queues>) -> Self {
        Self(Arc::new(Content { packets, volatile, queues }))
    }

    /// What is in it: events, with their arguments as text.
    pub fn packets(&self) -> &[Packet] {
        &self.0.packets
    }

    /// Whether a recipient that is behind may go without.
    pub fn volatile(&self) -> bool {
        self.0.volatile
    }

    /// The engine's queues of the namespace.
    pub fn queues(&self) -> &dyn Queues {
        &*self.0.queues
    }

    /// Puts the packets into the engine's queue of one recipient, and counts what became of each.
    pub fn enqueue<R: Recipients + ?Sized>(
        &self,
        sid: Sid,
        recipients: &R,
        delivered: &mut Delivered,
    ) {
        for packet in self.packets() {
            let admission = recipients.admit(sid, payload_bytes(packet), self.volatile());
            let admission = match admission {
                Admission::Queue => match self.queues().put(sid, packet.clone()) {
                    Ok(()) => Admission::Queue,
                    Err(QueueError::Full) => {
                        recipients.queue_full(sid);
                        Admission::TooSlow
                    }
                    Err(QueueError::Gone) => Admission::Gone,
                },
                other => other,
            };
            delivered.count(admission, 1);
        }
    }

    /// Texts and attachments in all.
    pub fn bytes(&self) -> usize {
        self.packets().iter().map(payload_bytes).sum()
    }

    /// How many recipients to serve before other tasks have their turn.
    pub fn recipients_per_turn(&self) -> usize {
        per_turn(self.bytes())
    }
}

/// Packets on their way to this node's sockets: neighbours for the same ones make one [`Parcel`].
#[derive(Default)]
pub struct Batch(Option<Group>);

struct Group {
    local: Arc<dyn Local>,
    opts: BroadcastOptions,
    packets: Vec<Packet>,
    bytes: usize,
    // Of those that are traced.
    spans: Vec<Span>,
    // Of those whose recipients are counted.
    reached: Vec<IntCounter>,
}

impl Batch {
    /// For everyone that `opts` selects, on every node: publishes it at once, and says whether the peers get it.
    /// The sockets here have it after [`Batch::flush`], and are counted in `reached`.
    pub async fn broadcast(
        &mut self,
        namespace: &Namespace,
        packet: Packet,
        opts: BroadcastOptions,
        reached: Option<&IntCounter>,
    ) -> Published {
        let published = namespace.0.publish(&packet, &opts);
        self.add(&namespace.0, packet, opts, reached).await;
        published
    }

    /// For those on this node alone.
    pub(crate) async fn add(
        &mut self,
        local: &Arc<dyn Local>,
        packet: Packet,
        opts: BroadcastOptions,
        reached: Option<&IntCounter>,
    ) {
        let bytes = payload_bytes(&packet);
        if self.0.as_ref().is_some_and(|group| !group.takes(local, bytes, &opts)) {
            self.flush().await;
        }
        let group = self.0.get_or_insert_with(|| Group {
            local: Arc::clone(local),
            opts,
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

    /// Delivers what has been collected. Who changes rooms does this first.
    pub async fn flush(&mut self) {
        if let Some(Group { local, opts, packets, spans, reached, .. }) = self.0.take() {
            let span = trace::fanning_out(&spans, packets.len());
            let volatile = opts.has_flag(BroadcastFlags::Volatile);
            let to = local.members(opts);
            reached.iter().for_each(|counter| counter.inc_by(to.len() as u64));
            local.deliver(packets, volatile, to).instrument(span).await;
        }
    }
}

impl Group {
    fn takes(&self, local: &Arc<dyn Local>, bytes: usize, opts: &BroadcastOptions) -> bool {
        let mine = &self.opts;
        self.packets.len() < BATCH_PACKETS_MAX
            && self.bytes + bytes <= BATCH_BYTES_MAX
            && ptr::addr_eq(Arc::as_ptr(&self.local), Arc::as_ptr(local))
            && mine.flags() == opts.flags()
            && (mine.sid, mine.server_id) == (opts.sid, opts.server_id)
            && (&mine.rooms, &mine.except) == (&opts.rooms, &opts.except)
    }
}

/// What a packet adds to a queue: its text and attachments.
pub(crate) fn payload_bytes(packet: &Packet) -> usize {
    match &packet.inner {
        PacketData::Event(value, _) | PacketData::BinaryEvent(value, _) => match value {
            Value::Str(text, attachments) => {
                text.len() + attachments.iter().flatten().map(|one| one.len()).sum::<usize>()
            }
            Value::Bytes(bytes) => bytes.len(),
        },
        _ => 0,
    }
}

fn per_turn(bytes: usize) -> usize {
    (BYTES_PER_TURN / bytes.max(1)).clamp(1, DELIVERIES_PER_TURN)
}

/// Lets other tasks run, every so many deliveries.
pub(crate) struct Turns {
    size: usize,
    served: usize,
}

impl Turns {
    pub(crate) fn new(packet_bytes: usize) -> Self {
        Self { size: per_turn(packet_bytes), served: 0 }
    }

    pub(crate) async fn next(&mut self) {
        self.served += 1;
        if self.served.is_multiple_of(self.size) {
            tokio::task::yield_now().await;
        }
    }
}
