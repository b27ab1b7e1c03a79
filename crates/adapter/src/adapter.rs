//! socketioxide's adapter: what Rust handlers ask of a namespace.
//!
//! Handlers know sockets by their sessions at the engine ([`Sid`], 16 characters); the register and
//! remote nodes know them by their public ids ([`SocketId`], 20 characters). Here they are
//! translated.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    stream::{FusedStream, SelectAll},
};
use serde::de::{DeserializeOwned, IntoDeserializer, value::StrDeserializer};
use socketioxide_core::{
    Sid, Uid,
    adapter::{
        AckStreamItem, BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter,
        DefinedAdapter, RemoteSocketData, Room, RoomParam, SocketEmitter,
        errors::{AdapterError, BroadcastError},
    },
    packet::Packet,
};

use crate::{
    acks::AckStream,
    namespace::{EngineRooms, Namespace},
    registry::Cluster,
    remote::RequestError,
    sink::DeliverySink,
    socket_id::SocketId,
    target::{Audience, Target},
};

/// Follows the last 4 characters of a public id where socketioxide wants the id of a server. The
/// first 16 stand where it wants the id of a socket.
const PUBLIC_ID_MARKER: &str = "_public_id__";

/// socketioxide's adapter for one namespace.
pub struct ClusterAdapter<E, S: DeliverySink> {
    local: CoreLocalAdapter<E>,
    namespace: Arc<Namespace<S>>,
}

impl<E: SocketEmitter, S: DeliverySink> ClusterAdapter<E, S> {
    /// Whom a handler means.
    fn target(&self, opts: &BroadcastOptions) -> Target {
        let volatile = opts.has_flag(BroadcastFlags::Volatile);
        let local = opts.has_flag(BroadcastFlags::Local);
        let broadcast = opts.has_flag(BroadcastFlags::Broadcast);
        if opts.rooms.is_empty() && !broadcast {
            let one = self.one_socket(opts).unwrap_or_else(Target::nobody);
            return Target { volatile, local: local || one.local, ..one };
        }
        let to = match &*opts.rooms {
            [] => Audience::Everyone,
            rooms => Audience::Rooms(rooms.to_vec()),
        };
        let sender = opts.sid.filter(|_| broadcast);
        let except_socket = sender.and_then(|sid| self.namespace.id_of_session(sid));
        Target { to, except: opts.except.to_vec(), except_socket, volatile, local }
    }

    /// A socket of this node by its session, or one that [`CoreAdapter::fetch_sockets`] has found.
    fn one_socket(&self, opts: &BroadcastOptions) -> Option<Target> {
        let sid = opts.sid?;
        match opts.server_id.filter(|_| self.is_remote(opts)) {
            None => {
                let id = self.namespace.id_of_session(sid)?;
                Some(Target { local: true, ..Target::socket(id) })
            }
            Some(server) => join_public_id(sid, server).map(Target::socket),
        }
    }

    fn is_remote(&self, opts: &BroadcastOptions) -> bool {
        opts.server_id.is_some_and(|server| server != self.local.server_id())
    }

    /// The sessions whom a handler means, as far as there may be some that have no socket yet:
    /// those of sockets that are on their way in.
    fn expected_sessions(&self, opts: &BroadcastOptions) -> Vec<Sid> {
        if !self.namespace.expects_engine() || self.is_remote(opts) {
            return Vec::new();
        }
        let named = |rooms: &[Room]| -> Vec<Sid> {
            rooms.iter().filter_map(|room| room.parse().ok()).filter(|sid| self.has(*sid)).collect()
        };
        let mut except = named(&opts.except);
        except.extend(opts.sid.filter(|_| opts.has_flag(BroadcastFlags::Broadcast)));
        let found = self.local.sockets(opts.clone()).into_iter().chain(named(&opts.rooms));
        let found: HashSet<Sid> = found.filter(|sid| !except.contains(sid)).collect();
        found.into_iter().collect()
    }

    /// The same, without those that have a socket.
    fn sessions_without_socket(&self, opts: &BroadcastOptions) -> Vec<Sid> {
        let mut sessions = self.expected_sessions(opts);
        sessions.retain(|sid| self.namespace.id_of_session(*sid).is_none());
        sessions
    }

    fn has(&self, sid: Sid) -> bool {
        !self.local.fetch_sockets(BroadcastOptions::new(sid)).is_empty()
    }
}

impl<E: SocketEmitter, S: DeliverySink> EngineRooms for ClusterAdapter<E, S> {
    fn members(&self, rooms: &[Room]) -> Vec<Sid> {
        let mut opts = BroadcastOptions::default();
        opts.rooms = rooms.into();
        self.local.sockets(opts)
    }

    fn rooms(&self, sid: Sid) -> HashSet<Room> {
        self.local.socket_rooms(sid)
    }

    fn join(&self, sid: Sid, rooms: &[Room]) -> bool {
        self.local.add_all(sid, rooms.to_vec());
        // The session may have ended in the meantime. The engine removes it before it clears its
        // rooms: either that clears these too, or this sees that it has ended.
        let here = self.has(sid);
        if !here {
            self.local.del_all(sid);
        }
        here
    }

    fn leave(&self, sid: Sid, room: &str) {
        self.local.del(sid, room.to_owned());
    }
}

impl<E: SocketEmitter, S: DeliverySink> CoreAdapter<E> for ClusterAdapter<E, S> {
    type Error = RequestError;
    type State = Cluster<S>;
    type AckStream = HandlerAcks<E, S>;
    type InitRes = ();

    fn new(state: &Cluster<S>, local: CoreLocalAdapter<E>) -> Self {
        let namespace = state.create(local.path());
        Self { local, namespace }
    }

    fn init(self: Arc<Self>, on_success: impl FnOnce() + Send + 'static) {
        let rooms: Arc<dyn EngineRooms> = Arc::clone(&self) as Arc<dyn EngineRooms>;
        let rooms: Weak<dyn EngineRooms> = Arc::downgrade(&rooms);
        self.namespace.attach_engine(rooms);
        on_success();
    }

    async fn server_count(&self) -> Result<u16, Self::Error> {
        Ok(u16::try_from(self.namespace.server_count().await?).unwrap_or(u16::MAX))
    }

    async fn broadcast(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
    ) -> Result<(), BroadcastError> {
        let target = self.target(&opts);
        // A bus that is down is no error here: it is counted. Remote nodes come first, as the bus
        // can work while this node delivers.
        self.namespace.publish(&packet, &target);
        let expected = self.expected_sessions(&opts);
        let (to, expected) =
            self.namespace.select_apart(&target, expected, |one| one.connection.clone());
        for sid in expected {
            let sent = self.local.broadcast(packet.clone(), BroadcastOptions::new(sid));
            if sent.is_err() {
                // Only a handler that fills the queue before its client is connected sees this.
                tracing::warn!(namespace = self.namespace.path(), "an engine's queue is full");
            }
        }
        self.namespace.deliver(vec![packet], target.volatile, to).await;
        Ok(())
    }

    async fn broadcast_with_ack(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> Result<Self::AckStream, Self::Error> {
        let timeout = timeout.unwrap_or(self.local.ack_timeout());
        let (target, expected) = (self.target(&opts), self.expected_sessions(&opts));
        let (acks, expected) = self
            .namespace
            .broadcast_with_ack_apart(packet.clone(), target, expected, timeout)
            .await;
        let engine = expected.into_iter().map(|sid| {
            let one = BroadcastOptions::new(sid);
            Box::pin(self.local.broadcast_with_ack(packet.clone(), one, Some(timeout)).0)
        });
        Ok(HandlerAcks { namespace: Arc::clone(&self.namespace), acks, engine: engine.collect() })
    }

    async fn add_sockets(
        &self,
        opts: BroadcastOptions,
        rooms: impl RoomParam,
    ) -> Result<(), Self::Error> {
        let rooms: Vec<Room> = rooms.into_room_iter().collect();
        for sid in self.sessions_without_socket(&opts) {
            self.local.add_all(sid, rooms.clone());
        }
        self.namespace.sockets_join(&self.target(&opts), rooms)
    }

    async fn del_sockets(
        &self,
        opts: BroadcastOptions,
        rooms: impl RoomParam,
    ) -> Result<(), Self::Error> {
        let rooms: Vec<Room> = rooms.into_room_iter().collect();
        for sid in self.sessions_without_socket(&opts) {
            self.local.del(sid, rooms.clone());
        }
        self.namespace.sockets_leave(&self.target(&opts), rooms)
    }

    async fn disconnect_socket(&self, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        for sid in self.sessions_without_socket(&opts) {
            self.local.disconnect_socket(BroadcastOptions::new(sid))?;
        }
        let done = self.namespace.disconnect_sockets(&self.target(&opts), false);
        done.map_err(|error| AdapterError::from(error).into())
    }

    /// The rooms of the sockets that `opts` selects, on every node. Each socket's public id is one.
    async fn rooms(&self, opts: BroadcastOptions) -> Result<Vec<Room>, Self::Error> {
        let mut rooms = self.namespace.rooms_of_target(&self.target(&opts)).await?;
        for sid in self.sessions_without_socket(&opts) {
            rooms.extend(self.local.socket_rooms(sid));
        }
        Ok(rooms.into_iter().collect())
    }

    /// Sockets of this node have their session's id. For others, the public id is split between
    /// both fields, and is put together again when something is sent to the socket. Sockets of Node
    /// servers that make ids of another length are left out: [`Namespace::sockets`] has them.
    async fn fetch_sockets(
        &self,
        opts: BroadcastOptions,
    ) -> Result<Vec<RemoteSocketData>, Self::Error> {
        let target = self.target(&opts);
        let remote = self.namespace.remote_sockets(&target).await?;
        let expected = self.expected_sessions(&opts);
        let (local, expected) =
            self.namespace.select_apart(&target, expected, |one| (one.id, one.engine()));
        let server = self.local.server_id();
        let remote =
            remote.into_iter().filter_map(|member| split_public_id(member.id.parse().ok()?));
        let local = local.into_iter().filter_map(|(id, session)| match session {
            Some(sid) => Some((sid, server)),
            None => split_public_id(id),
        });
        let expected = expected.into_iter().filter(|sid| self.has(*sid)).map(|sid| (sid, server));
        let ns = self.local.path();
        let data = |(id, server_id)| RemoteSocketData { id, server_id, ns: ns.clone() };
        Ok(local.chain(expected).chain(remote).map(data).collect())
    }

    fn get_local(&self) -> &CoreLocalAdapter<E> {
        &self.local
    }
}

impl<E, S: DeliverySink> DefinedAdapter for ClusterAdapter<E, S> {}

fn split_public_id(id: SocketId) -> Option<(Sid, Uid)> {
    let (head, tail) = id.as_str().split_at(16);
    Some((head.parse().ok()?, format!("{tail}{PUBLIC_ID_MARKER}").parse().ok()?))
}

fn join_public_id(head: Sid, tail: Uid) -> Option<SocketId> {
    let tail = tail.as_str().strip_suffix(PUBLIC_ID_MARKER)?;
    format!("{head}{tail}").parse().ok()
}

/// Acknowledgements of the whole cluster, for a Rust handler.
///
/// Those of remote nodes' clients come from [`Sid::ZERO`], as their ids do not travel.
pub struct HandlerAcks<E: SocketEmitter, S: DeliverySink> {
    namespace: Arc<Namespace<S>>,
    acks: AckStream,
    // Of sockets that were on their way in.
    engine: SelectAll<Pin<Box<E::AckStream>>>,
}

/// socketioxide's `AckError::Timeout`, of which an adapter knows only how it is serialized.
fn timed_out<E: DeserializeOwned>() -> Option<E> {
    let name: StrDeserializer<'_, serde::de::value::Error> = "Timeout".into_deserializer();
    E::deserialize(name).ok()
}

impl<E: SocketEmitter, S: DeliverySink> HandlerAcks<E, S> {
    /// As handlers know the socket. One that has left is known by the first part of its public id.
    fn sid(&self, id: Option<SocketId>) -> Sid {
        let sid = id.and_then(|id| {
            self.namespace.session_of(id).or_else(|| split_public_id(id).map(|(head, _)| head))
        });
        sid.unwrap_or(Sid::ZERO)
    }
}

impl<E: SocketEmitter, S: DeliverySink> Stream for HandlerAcks<E, S> {
    type Item = AckStreamItem<E::AckError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(Some(item)) = self.engine.poll_next_unpin(context) {
            return Poll::Ready(Some(item));
        }
        while let Poll::Ready(next) = self.acks.poll_next_unpin(context) {
            let Some((id, result)) = next else {
                // Not before those of the engine have ended as well.
                let ended = self.engine.is_empty();
                return if ended { Poll::Ready(None) } else { Poll::Pending };
            };
            let result = result.map_or_else(|_| timed_out().map(Err), |value| Some(Ok(value)));
            if let Some(result) = result {
                return Poll::Ready(Some((self.sid(id), result)));
            }
        }
        Poll::Pending
    }
}

impl<E: SocketEmitter, S: DeliverySink> FusedStream for HandlerAcks<E, S> {
    fn is_terminated(&self) -> bool {
        self.engine.is_empty() && self.acks.is_terminated()
    }
}
