//! The adapter itself: whom packets are for, and what socketioxide may ask.

use std::{
    collections::HashSet,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures_util::{StreamExt, future, stream};
use socketioxide_core::{
    Sid, Uid,
    adapter::{
        BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter, DefinedAdapter,
        RemoteSocketData, Room, RoomParam, SocketEmitter,
        errors::{AdapterError, BroadcastError, SocketError},
    },
    packet::Packet,
};

use tokio::time::{Instant, timeout_at};

use crate::{
    acks::{AckStream, LocalAcks, PeersAcks},
    answers::{Asked, rooms_of},
    cluster::{Cluster, Published, Shared},
    delivery::{Admission, Batch, Delivered, Parcel, QueueError, Queues, Turns, payload_bytes},
    peers::{Peers, RequestError},
    trace,
    wire::{Answer, Channels, Command, Flags, Opts, Targets, Whom},
};

/// One namespace, for whoever has packets for it.
#[derive(Clone)]
pub struct Namespace(pub(crate) Arc<dyn Local>);

impl Namespace {
    /// Delivers `packet` to everyone that `opts` selects, on every node, and says whether the peers get
    /// it. Packets from one task arrive in the order in which that task awaited this.
    pub async fn broadcast(&self, packet: Packet, opts: BroadcastOptions) -> Published {
        let mut batch = Batch::default();
        let published = batch.broadcast(self, packet, opts, None).await;
        batch.flush().await;
        published
    }

    /// Sends `packet` to one socket of this node, in order with what is broadcast to it.
    pub fn send(&self, sid: Sid, packet: Packet) {
        self.0.send(sid, packet);
    }

    /// How many rooms sockets of this node are in. Goes over all of them, and keeps nobody waiting.
    pub fn count_rooms(&self) -> usize {
        self.0.count_rooms()
    }

    /// The engine's queues of its sockets on this node.
    pub fn queues(&self) -> &dyn Queues {
        &*self.0
    }

    /// Whether `sid` is a socket of this node, and in the namespace.
    pub fn has(&self, sid: Sid) -> bool {
        self.0.has(sid)
    }

    /// The rooms that `sid` is in.
    pub fn rooms(&self, sid: Sid) -> HashSet<Room> {
        self.0.rooms(sid)
    }

    /// The sockets that `opts` selects, on every node. socketioxide's own call leaves out those of Node.js
    /// servers: their ids are longer than its type for them.
    pub async fn sockets(&self, opts: BroadcastOptions) -> Result<Vec<Member>, RequestError> {
        self.0.sockets(opts).await
    }

    /// How many nodes and servers share the namespace, this one included.
    pub async fn server_count(&self) -> Result<usize, RequestError> {
        self.0.server_count().await
    }
}

/// A socket somewhere in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Of 16 characters, or of 20 if it is a Node.js server's.
    pub id: String,
    /// The rooms that it is in; the first is named by its id.
    pub rooms: Vec<Room>,
}

/// [`ClusterAdapter`] without socketioxide's emitter in its type, which nobody else need know.
pub(crate) trait Local: Queues {
    /// To those meant who are on other nodes.
    fn publish(&self, packet: &Packet, opts: &BroadcastOptions) -> Published;
    /// To sockets of this node.
    fn deliver(&self, packets: Vec<Packet>, volatile: bool, to: Vec<Sid>) -> Soon<'_, ()>;
    /// To one of this node's sockets.
    fn send(&self, sid: Sid, packet: Packet);
    /// The same, asking for acknowledgements.
    fn deliver_with_acks(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Duration,
    ) -> Soon<'_, Asked>;
    /// Whom `opts` selects, on every node.
    fn sockets(&self, opts: BroadcastOptions) -> Soon<'_, Result<Vec<Member>, RequestError>>;
    /// With this node.
    fn server_count(&self) -> Soon<'_, Result<usize, RequestError>>;
    /// Whom `opts` selects, on this node.
    fn members(&self, opts: BroadcastOptions) -> Vec<Sid>;
    fn has(&self, sid: Sid) -> bool;
    /// Whether anybody on this node may be in the room.
    fn has_members(&self, room: &str) -> bool;
    fn rooms(&self, sid: Sid) -> HashSet<Room>;
    /// Without those that are sockets' ids.
    fn count_rooms(&self) -> usize;
    /// Every room on this node; each socket's id is one.
    fn all_rooms(&self) -> Vec<Room>;
    fn join(&self, sids: &[Sid], rooms: &[Room]);
    fn leave(&self, sids: &[Sid], rooms: &[Room]);
    /// Out of this namespace.
    fn disconnect(&self, sid: Sid);
}

/// A future of a trait's method.
pub type Soon<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// socketioxide's adapter for one namespace.
pub struct ClusterAdapter<E> {
    local: CoreLocalAdapter<E>,
    channels: Arc<Channels>,
    shared: Arc<Shared>,
    // Itself, for parcels that are delivered by several tasks.
    this: OnceLock<Weak<Self>>,
}

impl<E: SocketEmitter> ClusterAdapter<E> {
    /// A parcel for sockets of this namespace; `None` only before there can be any.
    fn parcel(&self, packets: Vec<Packet>, volatile: bool) -> Option<Parcel> {
        let this = self.this.get()?.upgrade()?;
        Some(Parcel::new(packets, volatile, this))
    }

    /// The peers, and whom of their sockets `opts` selects; none if it is about this node alone.
    fn peers_for(&self, opts: &BroadcastOptions) -> Option<(&Arc<Peers>, Opts)> {
        let peers = self.shared.peers.as_ref()?;
        if opts.has_flag(BroadcastFlags::Local) {
            return None;
        }
        let flags = Flags {
            volatile: opts.has_flag(BroadcastFlags::Volatile),
            traceparent: trace::current(),
            ..Flags::default()
        };
        let sid = || opts.sid.map(|sid| Room::Owned(sid.to_string()));
        if is_one_socket(opts) {
            let elsewhere = self.is_elsewhere(opts);
            let rooms = vec![sid().filter(|_| elsewhere)?];
            return Some((peers, Opts { rooms, except: Vec::new(), flags }));
        }
        // As Node writes it: no rooms are everyone, and the sender is one of the exceptions.
        let sender = sid().filter(|_| opts.has_flag(BroadcastFlags::Broadcast));
        let except = opts.except.iter().cloned().chain(sender).collect();
        Some((peers, Opts { rooms: opts.rooms.to_vec(), except, flags }))
    }

    /// Whether it is about a socket that was found on another node.
    fn is_elsewhere(&self, opts: &BroadcastOptions) -> bool {
        opts.server_id.is_some_and(|server| server != self.local.server_id())
    }

    /// Into rooms or out of them: here at once, and for the peers an order.
    fn move_sockets(
        &self,
        opts: BroadcastOptions,
        rooms: impl RoomParam,
        here: impl Fn(&Self, &[Sid], &[Room]),
        order: impl Fn(Whom, Vec<Room>) -> Command,
    ) -> Result<(), RequestError> {
        let rooms: Vec<Room> = rooms.into_room_iter().collect();
        let orders = self.orders_for(&opts);
        here(self, &self.recipients(opts), &rooms);
        orders.map_or(Ok(()), |(peers, whom)| peers.order(&self.channels, order(whom, rooms)))
    }

    fn orders_for(&self, opts: &BroadcastOptions) -> Option<(&Arc<Peers>, Whom)> {
        let (peers, Opts { rooms, except, .. }) = self.peers_for(opts)?;
        Some((peers, Whom::Targets(Targets { rooms, except })))
    }

    /// What peers' sockets there are among those that `opts` selects.
    async fn sockets_elsewhere(
        &self,
        opts: &BroadcastOptions,
    ) -> Result<Vec<Member>, RequestError> {
        let Some((peers, Opts { rooms, except, .. })) = self.peers_for(opts) else {
            return Ok(Vec::new());
        };
        let targets = Targets { rooms, except };
        let answers = peers.ask(&self.channels, Command::Fetch { targets }).await?;
        let sockets = answers.into_iter().filter_map(|answer| match answer {
            Answer::Sockets(sockets) => Some(sockets),
            _ => None,
        });
        Ok(sockets.flatten().map(|one| Member { id: one.id, rooms: one.rooms }).collect())
    }

    /// Who is meant, on this node. In Node a socket is in a room named by its own id; here such a name
    /// is taken for the socket itself, so that nobody has to keep a room for every socket.
    fn recipients(&self, opts: BroadcastOptions) -> Vec<Sid> {
        if is_one_socket(&opts) && self.is_elsewhere(&opts) {
            return Vec::new();
        }
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

    /// To those on this node, asking for acknowledgements: how many are asked, and what they answer.
    async fn ask_clients(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> (u32, LocalAcks<E>) {
        let volatile = opts.has_flag(BroadcastFlags::Volatile);
        let bytes = payload_bytes(&packet);
        let mut acks = LocalAcks::new(Arc::clone(&self.shared.recipients));
        let mut asked = 0;
        let mut delivered = Delivered::default();
        let mut turns = Turns::new(bytes);
        for sid in self.recipients(opts) {
            turns.next().await;
            let admission = self.shared.recipients.admit(sid, bytes, volatile);
            if admission == Admission::Queue {
                let one = BroadcastOptions::new(sid);
                let (stream, count) = self.local.broadcast_with_ack(packet.clone(), one, timeout);
                acks.push(stream);
                asked += count;
                self.shared.recipients.queued(sid, self);
            }
            delivered.count(admission, 1);
        }
        self.shared.recipients.delivered(&delivered);
        (asked, acks)
    }
}

/// Whether `opts` means a single socket, or nobody, rather than rooms or everyone.
fn is_one_socket(opts: &BroadcastOptions) -> bool {
    opts.rooms.is_empty() && !opts.has_flag(BroadcastFlags::Broadcast)
}

fn everyone() -> BroadcastOptions {
    let mut opts = BroadcastOptions::default();
    opts.add_flag(BroadcastFlags::Broadcast);
    opts
}

/// socketioxide's own queues. Volatile packets go into them too: its slot for those keeps the newest of all
/// senders and events, and does not keep their order with other packets.
impl<E: SocketEmitter> Queues for ClusterAdapter<E> {
    fn path(&self) -> &str {
        self.local.path()
    }

    fn put(&self, sid: Sid, packet: Packet) -> Result<(), QueueError> {
        // Sending to a socket that is not there is no error to the engine.
        if !self.has(sid) {
            return Err(QueueError::Gone);
        }
        self.local.broadcast(packet, BroadcastOptions::new(sid)).map_err(
            |errors| match errors[..] {
                [SocketError::InternalChannelFull] => QueueError::Full,
                _ => QueueError::Gone,
            },
        )
    }
}

impl<E: SocketEmitter> Local for ClusterAdapter<E> {
    fn publish(&self, packet: &Packet, opts: &BroadcastOptions) -> Published {
        let _span = self.shared.peers.as_ref().map(|_| trace::publishing().entered());
        match self.peers_for(opts) {
            None => Published::NotNeeded,
            Some((peers, opts)) if peers.publish(&self.channels, packet, &opts) => Published::Yes,
            Some(_) => Published::No,
        }
    }

    fn deliver(&self, packets: Vec<Packet>, volatile: bool, to: Vec<Sid>) -> Soon<'_, ()> {
        match self.parcel(packets, volatile).filter(|_| !to.is_empty()) {
            Some(parcel) => self.shared.recipients.deliver(parcel, to),
            None => Box::pin(future::ready(())),
        }
    }

    fn send(&self, sid: Sid, packet: Packet) {
        if let Some(parcel) = self.parcel(vec![packet], false) {
            self.shared.recipients.send(parcel, sid);
        }
    }

    fn deliver_with_acks(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Duration,
    ) -> Soon<'_, Asked> {
        Box::pin(async move {
            let (clients, mut acks) = self.ask_clients(packet, opts, Some(timeout)).await;
            let acks = stream::poll_fn(move |context| acks.poll(context));
            let answered = acks.filter_map(|(_, answer)| future::ready(answer.ok()));
            Asked { clients, acks: Box::pin(answered) }
        })
    }

    fn sockets(&self, opts: BroadcastOptions) -> Soon<'_, Result<Vec<Member>, RequestError>> {
        Box::pin(async move {
            let elsewhere = self.sockets_elsewhere(&opts).await?;
            let here = self.members(opts).into_iter();
            let here = here.map(|sid| Member { id: sid.to_string(), rooms: rooms_of(self, sid) });
            Ok(here.chain(elsewhere).collect())
        })
    }

    fn server_count(&self) -> Soon<'_, Result<usize, RequestError>> {
        Box::pin(async move {
            let Some(peers) = &self.shared.peers else { return Ok(1) };
            Ok(peers.number(&self.channels).await? + 1)
        })
    }

    fn members(&self, opts: BroadcastOptions) -> Vec<Sid> {
        self.recipients(opts)
    }

    fn has(&self, sid: Sid) -> bool {
        !self.local.fetch_sockets(BroadcastOptions::new(sid)).is_empty()
    }

    fn has_members(&self, room: &str) -> bool {
        let mut opts = BroadcastOptions::default();
        opts.rooms.push(room.to_owned().into());
        room.parse().is_ok_and(|sid| self.has(sid)) || !self.local.sockets(opts).is_empty()
    }

    fn rooms(&self, sid: Sid) -> HashSet<Room> {
        self.local.socket_rooms(sid)
    }

    /// Socket by socket. The adapter's own call for it keeps the locks that joins and leaves need for as long as it
    /// takes to copy the name of every room of every socket, and who looks for recipients waits behind the join that
    /// waits. Here the longest time under a lock is a list of ids, and then one socket's rooms. What sockets join or
    /// leave meanwhile may be counted or not. Cost: 10 to 20 bytes a room while it counts; two names with one hash count
    /// once, which among a million rooms happens once in 30 million times.
    fn count_rooms(&self) -> usize {
        let names = RandomState::new();
        let mut rooms: HashSet<u64> = HashSet::new();
        for sid in self.local.sockets(everyone()) {
            rooms.extend(self.local.socket_rooms(sid).iter().map(|room| names.hash_one(room)));
        }
        rooms.len()
    }

    fn all_rooms(&self) -> Vec<Room> {
        let sids = self.local.sockets(everyone()).into_iter();
        let named = sids.map(|sid| Room::Owned(sid.to_string()));
        self.local.rooms(everyone()).into_iter().chain(named).collect()
    }

    fn join(&self, sids: &[Sid], rooms: &[Room]) {
        for sid in sids {
            self.local.add_all(*sid, rooms.to_vec());
            // It may have left in the meantime. Leaving removes the socket before it clears the rooms: either
            // that clears these too, or this sees that it has left.
            if !self.has(*sid) {
                self.local.del_all(*sid);
            }
        }
    }

    fn leave(&self, sids: &[Sid], rooms: &[Room]) {
        sids.iter().for_each(|sid| self.local.del(*sid, rooms.to_vec()));
    }

    fn disconnect(&self, sid: Sid) {
        let outcome = self.local.disconnect_socket(BroadcastOptions::new(sid));
        // Without the packet the client would never know: it gets the connection's end instead.
        if outcome.is_err_and(|errors| matches!(errors[..], [SocketError::InternalChannelFull])) {
            self.shared.recipients.queue_full(sid);
        }
    }
}

impl<E: SocketEmitter> CoreAdapter<E> for ClusterAdapter<E> {
    type Error = RequestError;
    type State = Cluster;
    type AckStream = AckStream<E>;
    type InitRes = ();

    fn new(state: &Cluster, local: CoreLocalAdapter<E>) -> Self {
        let shared = state.shared();
        let channels = Arc::new(shared.channels(local.path()));
        Self { local, channels, shared, this: OnceLock::new() }
    }

    fn init(self: Arc<Self>, on_success: impl FnOnce() + Send + 'static) {
        let path = self.local.path().to_string();
        let first = self.this.set(Arc::downgrade(&self));
        debug_assert!(first.is_ok(), "an adapter is initialised once");
        let adapter: Arc<dyn Local> = Arc::clone(&self) as Arc<dyn Local>;
        self.shared.register(path, Arc::clone(&self.channels), Arc::downgrade(&adapter));
        on_success();
    }

    async fn server_count(&self) -> Result<u16, Self::Error> {
        Ok(u16::try_from(Local::server_count(self).await?).unwrap_or(u16::MAX))
    }

    async fn broadcast(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
    ) -> Result<(), BroadcastError> {
        // Neither a full queue nor a bus that is down is an error here: both have been dealt with. The peers
        // first: what the bus does with it takes time that delivery here can use.
        self.publish(&packet, &opts);
        let volatile = opts.has_flag(BroadcastFlags::Volatile);
        self.deliver(vec![packet], volatile, self.recipients(opts)).await;
        Ok(())
    }

    async fn broadcast_with_ack(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> Result<Self::AckStream, Self::Error> {
        let timeout = timeout.unwrap_or(self.local.ack_timeout());
        let asked = self.peers_for(&opts).map(|(peers, mut opts)| {
            opts.flags.timeout_ms = Some(timeout.as_millis() as u64);
            (peers, peers.ask_clients(&self.channels, packet.clone(), opts))
        });
        let deadline = Instant::now() + timeout;
        let (_, here) = self.ask_clients(packet, opts, Some(timeout)).await;
        let Some((peers, question)) = asked else { return Ok(AckStream::new(here, None)) };
        // What keeps it from the peers keeps it from nobody here, and shows among the answers.
        let number = timeout_at(deadline, peers.number(&self.channels)).await;
        let number = number.ok().and_then(Result::ok);
        let elsewhere = PeersAcks::new(question.ok(), Arc::clone(peers), number, deadline);
        Ok(AckStream::new(here, Some(elsewhere)))
    }

    async fn add_sockets(
        &self,
        opts: BroadcastOptions,
        rooms: impl RoomParam,
    ) -> Result<(), Self::Error> {
        self.move_sockets(opts, rooms, Self::join, |whom, rooms| Command::Join { whom, rooms })
    }

    async fn del_sockets(
        &self,
        opts: BroadcastOptions,
        rooms: impl RoomParam,
    ) -> Result<(), Self::Error> {
        self.move_sockets(opts, rooms, Self::leave, |whom, rooms| Command::Leave { whom, rooms })
    }

    async fn disconnect_socket(&self, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        let order = self.orders_for(&opts);
        self.recipients(opts).into_iter().for_each(|sid| self.disconnect(sid));
        let Some((peers, whom)) = order else { return Ok(()) };
        let ordered = peers.order(&self.channels, Command::Disconnect { whom, close: false });
        ordered.map_err(|error| AdapterError::from(error).into())
    }

    /// The rooms of the sockets that `opts` selects, everywhere. Each socket's id is one, as in Node.
    async fn rooms(&self, opts: BroadcastOptions) -> Result<Vec<Room>, Self::Error> {
        let all = opts == everyone();
        let mut rooms: HashSet<Room> = HashSet::new();
        match self.peers_for(&opts) {
            Some((peers, _)) if all => {
                for answer in peers.ask(&self.channels, Command::AllRooms).await? {
                    if let Answer::Rooms(theirs) = answer {
                        rooms.extend(theirs);
                    }
                }
            }
            Some(_) => {
                let members = self.sockets_elsewhere(&opts).await?;
                rooms.extend(members.into_iter().flat_map(|member| member.rooms));
            }
            None => {}
        }
        let here = self.recipients(opts);
        rooms.extend(here.into_iter().flat_map(|sid| rooms_of(self, sid)));
        Ok(rooms.into_iter().collect())
    }

    /// Sockets of peers have [`Uid::ZERO`] for their server, as peers do not say who they are; those of Node.js
    /// servers are left out ([`Namespace::sockets`] has them).
    async fn fetch_sockets(
        &self,
        opts: BroadcastOptions,
    ) -> Result<Vec<RemoteSocketData>, Self::Error> {
        let elsewhere = self.sockets_elsewhere(&opts).await?.into_iter();
        let ids = elsewhere.filter_map(|member| member.id.parse().ok());
        let ns = self.local.path();
        let elsewhere = ids.map(|id| RemoteSocketData { id, server_id: Uid::ZERO, ns: ns.clone() });
        let here = self.recipients(opts).into_iter();
        let here = here.flat_map(|sid| self.local.fetch_sockets(BroadcastOptions::new(sid)));
        Ok(here.chain(elsewhere).collect())
    }

    fn get_local(&self) -> &CoreLocalAdapter<E> {
        &self.local
    }
}

impl<E> DefinedAdapter for ClusterAdapter<E> {}
