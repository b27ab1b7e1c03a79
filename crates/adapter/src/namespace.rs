//! One namespace of a node: its sockets here, and what concerns those of remote nodes.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use socketioxide_core::{Sid, Value, adapter::Room, packet::Packet};
use tokio::time::{Duration, Instant, timeout_at};

use crate::{
    acks::{AckStream, AckTable, LocalAcks, RemoteAcks},
    register::{EngineMembers, Register, Socket},
    remote::{RemoteNodes, RequestError},
    sink::{DeliverySink, PacketBatch},
    socket_id::SocketId,
    target::{Audience, Target},
    trace,
    wire::{Answer, Channels, Command, Flags, Opts, Targets, Whom},
};

/// What became of a broadcast on its way to the remote nodes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is for this node alone, or there are no remote nodes.
    #[default]
    NotNeeded,
    /// The bus has it.
    Yes,
    /// It could not go out: only this node's sockets get it.
    No,
}

/// What became of a client's wish to join a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinResult {
    /// The socket is in the room now.
    Joined,
    /// It was in the room before.
    Already,
    /// The room's name is the id of another socket, which that socket has to itself.
    Reserved,
    /// The socket has left.
    Gone,
}

/// A socket somewhere in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id: 20 characters, unless a Node server is told to make others.
    pub id: String,
    /// The rooms that it is in. The first is named by its id.
    pub rooms: Vec<Room>,
}

/// One namespace of a node. It has the register of the namespace's sockets and rooms.
pub struct Namespace<S: DeliverySink> {
    path: Arc<str>,
    channels: Arc<Channels>,
    sink: Arc<S>,
    remote: Option<Arc<RemoteNodes>>,
    // Read for each batch; written when a socket comes, leaves or changes rooms. Nothing is called
    // while it is held.
    register: RwLock<Register<S::Connection>>,
    acks: Arc<AckTable>,
    engine: RwLock<Option<Weak<dyn EngineRooms>>>,
    expected: Arc<AtomicUsize>,
}

/// The engine's side of a namespace where Rust handlers run: the rooms of sockets with a session
/// there.
///
/// A handler's `Socket::join` and `Socket::leave` do not tell the adapter anything, so these rooms
/// are kept by socketioxide, and only there.
pub(crate) trait EngineRooms: Send + Sync {
    /// The sessions in any of the rooms.
    fn members(&self, rooms: &[Room]) -> Vec<Sid>;
    /// The rooms that a session is in.
    fn rooms(&self, sid: Sid) -> HashSet<Room>;
    /// Puts a session into rooms; `false` if it has ended.
    fn join(&self, sid: Sid, rooms: &[Room]) -> bool;
    /// Takes a session out of a room.
    fn leave(&self, sid: Sid, room: &str);
}

/// A socket is on its way through the engine until this is dropped: the handler may have put it
/// into rooms, and may send to these, before [`Namespace::set_engine`] is called.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct ExpectedEngine(Arc<AtomicUsize>);

impl Drop for ExpectedEngine {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<S: DeliverySink> Namespace<S> {
    /// A namespace without sockets.
    pub(crate) fn new(
        path: &str,
        channels: Channels,
        sink: Arc<S>,
        remote: Option<Arc<RemoteNodes>>,
        acks: AckTable,
    ) -> Self {
        Self {
            path: path.into(),
            channels: Arc::new(channels),
            sink,
            remote,
            register: RwLock::default(),
            acks: Arc::new(acks),
            engine: RwLock::default(),
            expected: Arc::default(),
        }
    }

    /// The namespace's path, which begins with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Adds a socket of this node. From here on it gets what is sent to everyone.
    pub fn insert(&self, id: SocketId, connection: S::Connection) {
        self.write().insert(id, connection);
    }

    /// Removes a socket, which leaves all its rooms. `false` if it was not there.
    pub fn remove(&self, id: SocketId) -> bool {
        self.write().remove(id)
    }

    /// Whether this node holds the socket.
    pub fn has(&self, id: SocketId) -> bool {
        self.read().get(id).is_some()
    }

    /// How many sockets this node holds.
    pub fn len(&self) -> usize {
        self.read().sockets().len()
    }

    /// Whether this node holds no socket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Says that a client's CONNECT packet goes to the engine. Keep the guard until
    /// [`Namespace::set_engine`] is called, or the client is refused.
    pub fn expect_engine(&self) -> ExpectedEngine {
        self.expected.fetch_add(1, Ordering::AcqRel);
        ExpectedEngine(Arc::clone(&self.expected))
    }

    /// Notes the session of a socket at the engine, which keeps its rooms from now on. `false` if
    /// this node does not hold the socket.
    pub fn set_engine(&self, id: SocketId, sid: Sid) -> bool {
        let Some(rooms) = self.write().set_engine(id, sid) else { return false };
        if let Some(engine) = self.engine().filter(|_| !rooms.is_empty()) {
            engine.join(sid, &rooms);
        }
        true
    }

    /// Puts a socket into a room because its client asks for it. The name must not be another
    /// socket's id: whoever sends to that id means that socket alone.
    pub fn join(&self, id: SocketId, room: &str) -> JoinResult {
        let named = self.read().named(room);
        match named {
            Some(own) if own == id => JoinResult::Already,
            Some(_) => JoinResult::Reserved,
            None if SocketId::names_socket(room) => JoinResult::Reserved,
            None => self.put_into(id, room),
        }
    }

    /// The same without a check of the name, as for applications.
    fn put_into(&self, id: SocketId, room: &str) -> JoinResult {
        match self.kept_by_engine(id) {
            Some((engine, sid)) if engine.rooms(sid).contains(room) => JoinResult::Already,
            Some((engine, sid)) => match engine.join(sid, &[Room::Owned(room.to_owned())]) {
                true => JoinResult::Joined,
                false => JoinResult::Gone,
            },
            None => match self.write().join(id, room) {
                Some(true) => JoinResult::Joined,
                Some(false) => JoinResult::Already,
                None => JoinResult::Gone,
            },
        }
    }

    /// Takes a socket out of a room.
    pub fn leave(&self, id: SocketId, room: &str) {
        match self.kept_by_engine(id) {
            Some((engine, sid)) => engine.leave(sid, room),
            None => {
                self.write().leave(id, room);
            }
        }
    }

    /// Whether a socket is in a room. Every socket is in the room that its id names.
    pub fn in_room(&self, id: SocketId, room: &str) -> bool {
        if room == id.as_str() {
            return self.has(id);
        }
        match self.kept_by_engine(id) {
            Some((engine, sid)) => engine.rooms(sid).contains(room),
            None => self.read().in_room(id, room),
        }
    }

    /// How many rooms a socket is in, without the one that its id names.
    pub fn room_count(&self, id: SocketId) -> usize {
        match self.kept_by_engine(id) {
            Some((engine, sid)) => engine.rooms(sid).len(),
            None => self.read().room_count(id),
        }
    }

    /// The rooms that a socket is in, without the one that its id names.
    pub fn rooms(&self, id: SocketId) -> Vec<Room> {
        match self.kept_by_engine(id) {
            Some((engine, sid)) => engine.rooms(sid).into_iter().collect(),
            None => self.read().rooms_of(id),
        }
    }

    /// How many rooms sockets of this node are in, without those that ids name.
    ///
    /// Where Rust handlers run, it goes over all sockets, one at a time: nobody waits for it. Rooms
    /// that are joined or left meanwhile may be counted or not, and two names with one hash count
    /// once.
    pub fn count_rooms(&self) -> usize {
        let Some(engine) = self.engine() else { return self.read().room_names().len() };
        let names = RandomState::new();
        let (mut rooms, sids) = {
            let register = self.read();
            let rooms = register.room_names().map(|room| names.hash_one(room));
            let sids = register.sockets().iter().filter_map(Socket::engine);
            (rooms.collect::<HashSet<u64>>(), sids.collect::<Vec<_>>())
        };
        for sid in sids {
            rooms.extend(engine.rooms(sid).iter().map(|room| names.hash_one(&**room)));
        }
        rooms.len()
    }

    /// Delivers a packet to everyone whom the target means, on every node. Packets of one task
    /// arrive in the order in which that task awaits this.
    pub async fn broadcast(&self, packet: Packet, target: &Target) -> Published {
        let published = self.publish(&packet, target);
        let to = self.connections(target);
        self.deliver(vec![packet], target.volatile, to).await;
        published
    }

    /// Delivers a packet that every recipient is to acknowledge until the timeout.
    pub async fn broadcast_with_ack(
        &self,
        packet: Packet,
        target: Target,
        timeout: Duration,
    ) -> AckStream {
        self.broadcast_with_ack_apart(packet, target, Vec::new(), timeout).await.0
    }

    /// The same, and those of `sessions` that no socket has yet: the packet is not sent to them.
    pub(crate) async fn broadcast_with_ack_apart(
        &self,
        packet: Packet,
        target: Target,
        sessions: Vec<Sid>,
        timeout: Duration,
    ) -> (AckStream, Vec<Sid>) {
        let deadline = Instant::now() + timeout;
        let asked = self.remote_opts(&target).map(|(remote, mut opts)| {
            opts.flags.timeout_ms = Some(timeout.as_millis() as u64);
            (remote, remote.ask_clients(&self.channels, packet.clone(), opts))
        });
        let (to, sessions) = self.select_apart(&target, sessions, recipient);
        let local = self.deliver_with_ack(packet, target.volatile, to, deadline).await;
        let Some((remote, request)) = asked else { return (AckStream::new(local, None), sessions) };
        // A failure does not keep the packet from this node's sockets, and shows in the stream.
        let number = timeout_at(deadline, remote.number(&self.channels)).await;
        let number = number.ok().and_then(Result::ok);
        let remote = RemoteAcks::new(request.ok(), Arc::clone(remote), number, deadline);
        (AckStream::new(local, Some(remote)), sessions)
    }

    /// Takes an ACK packet of a client whose id is [`FIRST_ACK_ID`](crate::FIRST_ACK_ID) or more.
    /// `value` is the array of arguments. One that nobody waits for is ignored.
    pub fn acknowledge(&self, id: SocketId, ack: u64, value: Value) {
        self.acks.acknowledge(id, ack, value);
    }

    /// The sockets that the target means, on every node.
    pub async fn sockets(&self, target: Target) -> Result<Vec<Member>, RequestError> {
        let remote = self.remote_sockets(&target).await?;
        let local = self.ids(&target).into_iter().map(|id| self.member(id));
        Ok(local.chain(remote).collect())
    }

    /// How many nodes and servers share the namespace, this one included.
    pub async fn server_count(&self) -> Result<usize, RequestError> {
        let Some(remote) = &self.remote else { return Ok(1) };
        Ok(remote.number(&self.channels).await? + 1)
    }

    /// Puts the sockets that the target means into rooms, on every node. An application may do that
    /// with rooms of any name. Those of this node are in the rooms even if there is an error.
    pub fn sockets_join(&self, target: &Target, rooms: Vec<Room>) -> Result<(), RequestError> {
        let remote = self.remote_targets(target);
        self.move_into(target, &rooms);
        self.command(remote, |whom| Command::Join { whom, rooms })
    }

    /// Takes the sockets that the target means out of rooms, on every node.
    pub fn sockets_leave(&self, target: &Target, rooms: Vec<Room>) -> Result<(), RequestError> {
        let remote = self.remote_targets(target);
        self.move_out_of(target, &rooms);
        self.command(remote, |whom| Command::Leave { whom, rooms })
    }

    /// Disconnects the sockets that the target means, on every node: from the namespace, or with
    /// `close` from all namespaces and the transport.
    pub fn disconnect_sockets(&self, target: &Target, close: bool) -> Result<(), RequestError> {
        let remote = self.remote_targets(target);
        self.disconnect(target, close);
        self.command(remote, |whom| Command::Disconnect { whom, close })
    }
}

/// What the other modules need: this node's share of the above, and the remote nodes' share.
impl<S: DeliverySink> Namespace<S> {
    pub(crate) fn channels(&self) -> &Arc<Channels> {
        &self.channels
    }

    pub(crate) fn sink(&self) -> &S {
        &self.sink
    }

    /// The way to the engine's rooms, from when socketioxide has made its adapter.
    pub(crate) fn attach_engine(&self, engine: Weak<dyn EngineRooms>) {
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(engine);
    }

    /// Hands a packet to the bus if the target means sockets of remote nodes.
    pub(crate) fn publish(&self, packet: &Packet, target: &Target) -> Published {
        let _span = self.remote.as_ref().map(|_| trace::publishing().entered());
        match self.remote_opts(target) {
            None => Published::NotNeeded,
            Some((remote, opts)) if remote.publish(&self.channels, packet, &opts) => Published::Yes,
            Some(_) => Published::No,
        }
    }

    /// To sockets of this node.
    pub(crate) async fn deliver(
        &self,
        packets: Vec<Packet>,
        volatile: bool,
        to: Vec<S::Connection>,
    ) {
        if !to.is_empty() {
            let batch = PacketBatch::new(Arc::clone(&self.path), packets, volatile);
            self.sink.deliver(batch, to).await;
        }
    }

    /// To sockets of this node, asking for acknowledgements.
    pub(crate) async fn deliver_with_ack(
        &self,
        mut packet: Packet,
        volatile: bool,
        to: Vec<(SocketId, S::Connection)>,
        deadline: Instant,
    ) -> LocalAcks {
        let (asked, to) = to.into_iter().unzip();
        let (id, acks) = self.acks.expect(asked, deadline);
        packet.inner.set_ack_id(id as i64);
        self.deliver(vec![packet], volatile, to).await;
        acks
    }

    /// The connections of this node's sockets that a target means.
    pub(crate) fn connections(&self, target: &Target) -> Vec<S::Connection> {
        self.select(target, |socket| socket.connection.clone())
    }

    /// The ids and connections of this node's sockets that a target means.
    pub(crate) fn recipients(&self, target: &Target) -> Vec<(SocketId, S::Connection)> {
        self.select(target, recipient)
    }

    /// The ids of this node's sockets that a target means.
    pub(crate) fn ids(&self, target: &Target) -> Vec<SocketId> {
        self.select(target, |socket| socket.id)
    }

    fn select<T>(&self, target: &Target, pick: impl Fn(&Socket<S::Connection>) -> T) -> Vec<T> {
        self.select_apart(target, Vec::new(), pick).0
    }

    /// The same, and those of `sessions` that no socket has yet, at one moment: none is in both.
    pub(crate) fn select_apart<T>(
        &self,
        target: &Target,
        mut sessions: Vec<Sid>,
        pick: impl Fn(&Socket<S::Connection>) -> T,
    ) -> (Vec<T>, Vec<Sid>) {
        let members = self.engine_members(target);
        let register = self.read();
        sessions.retain(|sid| register.with_engine(*sid).is_none());
        (register.select(target, &members, pick), sessions)
    }

    fn engine_members(&self, target: &Target) -> EngineMembers {
        let Some(engine) = self.engine() else { return EngineMembers::default() };
        let members = |rooms: &[Room]| match rooms {
            [] => Vec::new(),
            rooms => engine.members(rooms),
        };
        let to = match &target.to {
            Audience::Rooms(rooms) => members(rooms),
            Audience::Everyone | Audience::Socket(_) => Vec::new(),
        };
        EngineMembers { to, except: members(&target.except) }
    }

    /// Whether a socket is on its way through the engine.
    pub(crate) fn expects_engine(&self) -> bool {
        self.expected.load(Ordering::Acquire) > 0
    }

    /// The session of a socket at the engine.
    pub(crate) fn session_of(&self, id: SocketId) -> Option<Sid> {
        self.read().get(id)?.engine()
    }

    /// The socket of a session at the engine.
    pub(crate) fn id_of_session(&self, sid: Sid) -> Option<SocketId> {
        Some(self.read().with_engine(sid)?.id)
    }

    /// The socket's session, and the engine that keeps its rooms, if it has one.
    fn kept_by_engine(&self, id: SocketId) -> Option<(Arc<dyn EngineRooms>, Sid)> {
        let engine = self.engine()?;
        Some((engine, self.session_of(id)?))
    }

    fn engine(&self) -> Option<Arc<dyn EngineRooms>> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.as_ref()?.upgrade()
    }

    /// Whether anybody on this node may get what is for the room.
    pub(crate) fn has_members(&self, room: &str) -> bool {
        self.read().has_members(room)
            || self
                .engine()
                .is_some_and(|engine| !engine.members(&[Room::Owned(room.to_owned())]).is_empty())
    }

    /// A socket of this node, as remote nodes know it.
    pub(crate) fn member(&self, id: SocketId) -> Member {
        let own = Room::Owned(id.to_string());
        Member { id: id.to_string(), rooms: [own].into_iter().chain(self.rooms(id)).collect() }
    }

    /// Every room on this node. Each socket's id is one.
    pub(crate) fn all_rooms(&self) -> HashSet<Room> {
        let (mut rooms, sids) = {
            let register = self.read();
            let ids = register.sockets().iter().map(|socket| socket.id.to_string());
            let rooms = register.room_names().map(str::to_owned).chain(ids).map(Room::Owned);
            let sids = register.sockets().iter().filter_map(Socket::engine);
            (rooms.collect::<HashSet<_>>(), sids.collect::<Vec<_>>())
        };
        if let Some(engine) = self.engine() {
            rooms.extend(sids.into_iter().flat_map(|sid| engine.rooms(sid)));
        }
        rooms
    }

    /// On this node.
    pub(crate) fn move_into(&self, target: &Target, rooms: &[Room]) {
        for id in self.ids(target) {
            for room in rooms.iter().filter(|room| **room != id.as_str()) {
                self.put_into(id, room);
            }
        }
    }

    /// On this node.
    pub(crate) fn move_out_of(&self, target: &Target, rooms: &[Room]) {
        for id in self.ids(target) {
            rooms.iter().for_each(|room| self.leave(id, room));
        }
    }

    /// On this node.
    pub(crate) fn disconnect(&self, target: &Target, close: bool) {
        for (id, connection) in self.recipients(target) {
            self.sink.disconnect(&self.path, id, &connection, close);
        }
    }

    /// The sockets of remote nodes that the target means.
    pub(crate) async fn remote_sockets(
        &self,
        target: &Target,
    ) -> Result<Vec<Member>, RequestError> {
        let Some((remote, targets)) = self.remote_targets(target) else { return Ok(Vec::new()) };
        let answers = remote.ask(&self.channels, Command::Fetch { targets }).await?;
        let sockets = answers.into_iter().filter_map(|answer| match answer {
            Answer::Sockets(sockets) => Some(sockets),
            _ => None,
        });
        Ok(sockets.flatten().map(|one| Member { id: one.id, rooms: one.rooms }).collect())
    }

    /// The rooms of the sockets that the target means, on every node. Each socket's id is one.
    pub(crate) async fn rooms_of_target(
        &self,
        target: &Target,
    ) -> Result<HashSet<Room>, RequestError> {
        let all = target.to == Audience::Everyone
            && (target.except.is_empty() && target.except_socket.is_none());
        if !all {
            let members = self.sockets(target.clone()).await?;
            return Ok(members.into_iter().flat_map(|member| member.rooms).collect());
        }
        let mut rooms = HashSet::new();
        if let Some((remote, _)) = self.remote_targets(target) {
            for answer in remote.ask(&self.channels, Command::AllRooms).await? {
                if let Answer::Rooms(theirs) = answer {
                    rooms.extend(theirs);
                }
            }
        }
        rooms.extend(self.all_rooms());
        Ok(rooms)
    }

    /// The remote nodes, and whom of their sockets the target means; none if it is about this node.
    fn remote_targets(&self, target: &Target) -> Option<(&Arc<RemoteNodes>, Targets)> {
        let remote = self.remote.as_ref()?;
        if matches!(target.to, Audience::Socket(id) if self.has(id)) {
            return None;
        }
        Some((remote, target.to_wire()?))
    }

    fn remote_opts(&self, target: &Target) -> Option<(&Arc<RemoteNodes>, Opts)> {
        let (remote, Targets { rooms, except }) = self.remote_targets(target)?;
        let traceparent = trace::current();
        let flags = Flags { volatile: target.volatile, traceparent, ..Flags::default() };
        Some((remote, Opts { rooms, except, flags }))
    }

    fn command(
        &self,
        remote: Option<(&Arc<RemoteNodes>, Targets)>,
        command: impl FnOnce(Whom) -> Command,
    ) -> Result<(), RequestError> {
        let Some((remote, targets)) = remote else { return Ok(()) };
        remote.command(&self.channels, command(Whom::Targets(targets)))
    }

    fn read(&self) -> RwLockReadGuard<'_, Register<S::Connection>> {
        self.register.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Register<S::Connection>> {
        self.register.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn recipient<C: Clone>(socket: &Socket<C>) -> (SocketId, C) {
    (socket.id, socket.connection.clone())
}
