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
    Sid,
    adapter::{
        BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter, DefinedAdapter, Room,
        SocketEmitter,
        errors::{BroadcastError, SocketError},
    },
    packet::Packet,
};

/// Recipients served before the delivering task lets others run. Large enough that the switch
/// (about a microsecond) is lost among the deliveries (about a third of one each).
pub const DELIVERIES_PER_TURN: usize = 256;

/// Is told of recipients that do not keep up.
pub trait Lagging: Send + Sync + 'static {
    /// The queue of `sid` was full, so a packet was not put into it: from here on the client would
    /// miss events without knowing. The callee closes its connection. Called from the delivering
    /// task, and again for every packet until the socket is gone: it must be quick.
    fn lagging(&self, sid: Sid);
}

/// What became of one packet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Recipients whose queue took it.
    pub queued: u64,
    /// Recipients whose queue was full.
    pub lagging: u64,
    /// Recipients that left in the meantime.
    pub gone: u64,
}

/// What the adapters of one node's namespaces share. Cloning it is cheap.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

struct Shared {
    // Written once for each namespace, when the node starts; read to find one.
    namespaces: RwLock<HashMap<String, Weak<dyn Local>>>,
    lagging: Arc<dyn Lagging>,
}

impl Cluster {
    /// A node by itself.
    pub fn new(lagging: Arc<dyn Lagging>) -> Self {
        Self(Arc::new(Shared { namespaces: RwLock::default(), lagging }))
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
        let mut delivered = Delivered::default();
        for (served, sid) in self.local.sockets(opts).into_iter().enumerate() {
            if served % DELIVERIES_PER_TURN == DELIVERIES_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            let mut only = BroadcastOptions::new(sid);
            if volatile {
                only.add_flag(BroadcastFlags::Volatile);
            }
            match self.local.broadcast(packet.clone(), only) {
                Ok(()) => delivered.queued += 1,
                Err(errors) if matches!(errors[..], [SocketError::InternalChannelFull]) => {
                    delivered.lagging += 1;
                    self.shared.lagging.lagging(sid);
                }
                Err(_) => delivered.gone += 1,
            }
        }
        delivered
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
