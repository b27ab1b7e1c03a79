//! The adapter itself: recipients, their queues, and what happens when one is full.

use std::{
    collections::HashSet, convert::Infallible, future::Future, pin::Pin, sync::Arc, time::Duration,
};

use socketioxide_core::{
    Sid, Value,
    adapter::{
        BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter, DefinedAdapter, Room,
        SocketEmitter,
        errors::{BroadcastError, SocketError},
    },
    packet::{Packet, PacketData},
};

use crate::cluster::{Cluster, Published, Shared};

/// Recipients served before the delivering task lets others run. Large enough that the switch is lost
/// among the deliveries.
const DELIVERIES_PER_TURN: usize = 256;

/// The same in bytes: every delivery is a copy until it is written, and a large packet for many
/// recipients should not exist once for each of them at a time.
const BYTES_PER_TURN: usize = 1024 * 1024;

/// What the node knows of the connections behind the sockets.
pub trait Recipients: Send + Sync + 'static {
    /// Asked before each delivery: may `bytes` more wait for `sid`? [`Admission::Queue`] takes note of
    /// them. Called for every recipient of every packet: it must be quick.
    fn admit(&self, sid: Sid, bytes: usize, volatile: bool) -> Admission;

    /// The engine's queue for `sid` was full all the same, so a packet was not put into it: from here
    /// on the client would miss events without knowing. The callee closes its connection.
    fn queue_full(&self, sid: Sid);

    /// A packet has been handed to everybody on this node for whom it is.
    fn delivered(&self, delivered: &Delivered);
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

/// What became of one packet on this node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Recipients whose queue took it.
    pub queued: u64,
    /// Recipients that went without because they were behind and the packet was volatile.
    pub skipped: u64,
    /// Recipients that are being closed because too much was waiting for them.
    pub too_slow: u64,
    /// Recipients that left in the meantime.
    pub gone: u64,
}

/// One namespace, for whoever has packets for it.
#[derive(Clone)]
pub struct Namespace(pub(crate) Arc<dyn Local>);

impl Namespace {
    /// Delivers `packet` to everyone that `opts` selects, on every node, and says whether the peers get
    /// it. Packets from one task arrive in the order in which that task awaited this.
    pub async fn broadcast(&self, packet: Packet, opts: BroadcastOptions) -> Published {
        self.0.broadcast(packet, opts).await
    }

    /// The rooms that `sid` is in.
    pub fn rooms(&self, sid: Sid) -> HashSet<Room> {
        self.0.rooms(sid)
    }
}

/// [`ClusterAdapter`] without socketioxide's emitter in its type, which nobody else need know.
pub(crate) trait Local: Send + Sync {
    /// To everyone meant, on every node.
    fn broadcast(&self, packet: Packet, opts: BroadcastOptions) -> Delivering<'_, Published>;
    /// To those on this node, for a peer that has published it.
    fn deliver_for_peer(&self, packet: Packet, opts: BroadcastOptions) -> Delivering<'_, ()>;
    /// Whether anybody on this node may be in the room.
    fn has_members(&self, room: &str) -> bool;
    fn rooms(&self, sid: Sid) -> HashSet<Room>;
}

type Delivering<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// socketioxide's adapter for one namespace.
pub struct ClusterAdapter<E> {
    local: CoreLocalAdapter<E>,
    shared: Arc<Shared>,
}

impl<E: SocketEmitter> ClusterAdapter<E> {
    /// The peers first: what the bus does with it takes time that delivery here can use.
    async fn publish_and_deliver(&self, packet: Packet, opts: BroadcastOptions) -> Published {
        let published = self.shared.publish(&packet, &opts);
        self.deliver(packet, opts).await;
        published
    }

    /// Who is meant, on this node. In Node a socket is in a room named by its own id; here such a name
    /// is taken for the socket itself, so that nobody has to keep a room for every socket.
    fn recipients(&self, opts: BroadcastOptions) -> Vec<Sid> {
        let named = self.named(&opts.rooms);
        let mut spared: HashSet<Sid> = self.named(&opts.except).into_iter().collect();
        if named.is_empty() && spared.is_empty() {
            return self.local.sockets(opts);
        }
        if !opts.except.is_empty() {
            let mut except = BroadcastOptions::default();
            except.rooms = opts.except.clone();
            spared.extend(self.local.sockets(except));
        }
        spared.extend(opts.sid.filter(|_| opts.has_flag(BroadcastFlags::Broadcast)));
        let mut seen = HashSet::new();
        let all = self.local.sockets(opts).into_iter().chain(named);
        all.filter(|sid| !spared.contains(sid) && seen.insert(*sid)).collect()
    }

    /// Those of the rooms that are sockets of this namespace.
    fn named(&self, rooms: &[Room]) -> Vec<Sid> {
        rooms.iter().filter_map(|room| room.parse().ok()).filter(|sid| self.has(*sid)).collect()
    }

    fn has(&self, sid: Sid) -> bool {
        !self.local.fetch_sockets(BroadcastOptions::new(sid)).is_empty()
    }

    async fn deliver(&self, packet: Packet, opts: BroadcastOptions) {
        let volatile = opts.has_flag(BroadcastFlags::Volatile);
        let bytes = payload_bytes(&packet);
        let mut delivered = Delivered::default();
        let turn = (BYTES_PER_TURN / bytes.max(1)).clamp(1, DELIVERIES_PER_TURN);
        for (served, sid) in self.recipients(opts).into_iter().enumerate() {
            if served % turn == turn - 1 {
                tokio::task::yield_now().await;
            }
            let mut admission = self.shared.recipients.admit(sid, bytes, volatile);
            if admission == Admission::Queue {
                admission = self.enqueue(sid, packet.clone());
            }
            *match admission {
                Admission::Queue => &mut delivered.queued,
                Admission::Skip => &mut delivered.skipped,
                Admission::TooSlow => &mut delivered.too_slow,
                Admission::Gone => &mut delivered.gone,
            } += 1;
        }
        self.shared.recipients.delivered(&delivered);
    }

    /// Puts a packet into one socket's queue. Volatile packets too: socketioxide's own slot for them
    /// keeps the newest of all senders and events, and does not keep their order with other packets.
    fn enqueue(&self, sid: Sid, packet: Packet) -> Admission {
        match self.local.broadcast(packet, BroadcastOptions::new(sid)) {
            Ok(()) => Admission::Queue,
            Err(errors) if matches!(errors[..], [SocketError::InternalChannelFull]) => {
                self.shared.recipients.queue_full(sid);
                Admission::TooSlow
            }
            Err(_) => Admission::Gone,
        }
    }
}

/// What a packet adds to a queue: its text and attachments.
fn payload_bytes(packet: &Packet) -> usize {
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

impl<E: SocketEmitter> Local for ClusterAdapter<E> {
    fn broadcast(&self, packet: Packet, opts: BroadcastOptions) -> Delivering<'_, Published> {
        Box::pin(self.publish_and_deliver(packet, opts))
    }

    fn deliver_for_peer(&self, packet: Packet, opts: BroadcastOptions) -> Delivering<'_, ()> {
        Box::pin(self.deliver(packet, opts))
    }

    fn has_members(&self, room: &str) -> bool {
        let mut opts = BroadcastOptions::default();
        opts.rooms.push(room.to_owned().into());
        room.parse().is_ok_and(|sid| self.has(sid)) || !self.local.sockets(opts).is_empty()
    }

    fn rooms(&self, sid: Sid) -> HashSet<Room> {
        self.local.socket_rooms(sid)
    }
}

impl<E: SocketEmitter> CoreAdapter<E> for ClusterAdapter<E> {
    type Error = Infallible;
    type State = Cluster;
    type AckStream = E::AckStream;
    type InitRes = ();

    fn new(state: &Cluster, local: CoreLocalAdapter<E>) -> Self {
        Self { local, shared: state.shared() }
    }

    fn init(self: Arc<Self>, on_success: impl FnOnce() + Send + 'static) {
        let path = self.local.path().to_string();
        let adapter: Arc<dyn Local> = Arc::clone(&self) as Arc<dyn Local>;
        self.shared.register(path, Arc::downgrade(&adapter));
        on_success();
    }

    async fn broadcast(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
    ) -> Result<(), BroadcastError> {
        // Neither a full queue nor a bus that is down is an error here: both have been dealt with.
        self.publish_and_deliver(packet, opts).await;
        Ok(())
    }

    async fn broadcast_with_ack(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> Result<Self::AckStream, Self::Error> {
        Ok(self.local.broadcast_with_ack(packet, opts, timeout).0)
    }

    fn get_local(&self) -> &CoreLocalAdapter<E> {
        &self.local
    }
}

impl<E> DefinedAdapter for ClusterAdapter<E> {}
