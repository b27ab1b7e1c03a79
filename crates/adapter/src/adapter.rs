//! The adapter itself: recipients, their queues, and what happens when one is full.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
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

/// Recipients served before the delivering task lets others run. Large enough that the switch is lost
/// among the deliveries.
pub const DELIVERIES_PER_TURN: usize = 256;

/// The same in bytes: every delivery is a copy until it is written, and a large packet for many
/// recipients should not exist once for each of them at a time.
pub const BYTES_PER_TURN: usize = 1024 * 1024;

/// What the node knows of the connections behind the sockets.
pub trait Recipients: Send + Sync + 'static {
    /// Asked before each delivery: may `bytes` more wait for `sid`? [`Admission::Queue`] takes note of
    /// them. Called for every recipient of every packet: it must be quick.
    fn admit(&self, sid: Sid, bytes: usize, volatile: bool) -> Admission;

    /// The engine's queue for `sid` was full all the same, so a packet was not put into it: from here
    /// on the client would miss events without knowing. The callee closes its connection.
    fn queue_full(&self, sid: Sid);
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

/// What became of one packet.
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

/// What the adapters of one node's namespaces share. Cloning it is cheap.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

struct Shared {
    // Written once for each namespace, when the node starts; read to find one.
    namespaces: RwLock<HashMap<String, Weak<dyn Local>>>,
    recipients: Arc<dyn Recipients>,
}

impl Cluster {
    /// A node by itself.
    pub fn new(recipients: Arc<dyn Recipients>) -> Self {
        Self(Arc::new(Shared { namespaces: RwLock::default(), recipients }))
    }

    /// The namespace at `path`, once socketioxide has made it.
    pub fn namespace(&self, path: &str) -> Option<Namespace> {
        let namespaces = self.0.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        namespaces.get(path)?.upgrade().map(Namespace)
    }
}

/// One namespace, for whoever has packets for it.
#[derive(Clone)]
pub struct Namespace(Arc<dyn Local>);

impl Namespace {
    /// Delivers `packet` to everyone that `opts` selects. Packets from one task arrive in the order
    /// in which that task awaited this.
    pub async fn broadcast(&self, packet: Packet, opts: BroadcastOptions) -> Delivered {
        self.0.broadcast(packet, opts).await
    }

    /// The rooms that `sid` is in.
    pub fn rooms(&self, sid: Sid) -> HashSet<Room> {
        self.0.rooms(sid)
    }
}

/// [`ClusterAdapter`] without socketioxide's emitter in its type, which the gateway need not know.
trait Local: Send + Sync {
    fn broadcast(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
    ) -> Pin<Box<dyn Future<Output = Delivered> + Send + '_>>;
    fn rooms(&self, sid: Sid) -> HashSet<Room>;
}

/// socketioxide's adapter for one namespace.
pub struct ClusterAdapter<E> {
    local: CoreLocalAdapter<E>,
    shared: Arc<Shared>,
}

impl<E: SocketEmitter> ClusterAdapter<E> {
    async fn deliver(&self, packet: Packet, opts: BroadcastOptions) -> Delivered {
        let volatile = opts.has_flag(BroadcastFlags::Volatile);
        let bytes = payload_bytes(&packet);
        let mut delivered = Delivered::default();
        let turn = (BYTES_PER_TURN / bytes.max(1)).clamp(1, DELIVERIES_PER_TURN);
        for (served, sid) in self.local.sockets(opts).into_iter().enumerate() {
            if served % turn == turn - 1 {
                tokio::task::yield_now().await;
            }
            let count = match self.shared.recipients.admit(sid, bytes, volatile) {
                Admission::Queue => match self.enqueue(sid, packet.clone()) {
                    Admission::Queue => &mut delivered.queued,
                    Admission::TooSlow => &mut delivered.too_slow,
                    Admission::Skip | Admission::Gone => &mut delivered.gone,
                },
                Admission::Skip => &mut delivered.skipped,
                Admission::TooSlow => &mut delivered.too_slow,
                Admission::Gone => &mut delivered.gone,
            };
            *count += 1;
        }
        delivered
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
    fn broadcast(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
    ) -> Pin<Box<dyn Future<Output = Delivered> + Send + '_>> {
        Box::pin(self.deliver(packet, opts))
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
        let shared = Arc::clone(&state.0);
        Self { local, shared }
    }

    fn init(self: Arc<Self>, on_success: impl FnOnce() + Send + 'static) {
        let path = self.local.path().to_string();
        // Weak: the namespace owns its adapter, and this map must not keep either alive.
        let adapter: Arc<dyn Local> = Arc::clone(&self) as Arc<dyn Local>;
        let adapter = Arc::downgrade(&adapter);
        let namespaces = &self.shared.namespaces;
        namespaces.write().unwrap_or_else(PoisonError::into_inner).insert(path, adapter);
        on_success();
    }

    async fn broadcast(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
    ) -> Result<(), BroadcastError> {
        // A full queue is no error for the sender: it has been dealt with.
        self.deliver(packet, opts).await;
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
