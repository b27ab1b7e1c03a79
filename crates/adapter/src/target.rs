//! Whom a packet is for.

use socketioxide_core::adapter::Room;

use crate::{socket_id::SocketId, wire};

/// Whom a packet, or a change of rooms, is for. Neighbours with equal targets become one batch.
///
/// A room that is named by the id of a live socket holds that socket, as in Node, in
/// [`Audience::Rooms`] and in `except` alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The sockets that are meant.
    pub to: Audience,
    /// The members of these rooms are left out.
    pub except: Vec<Room>,
    /// This socket is left out: mostly the sender.
    pub except_socket: Option<SocketId>,
    /// A recipient that does not keep up may go without.
    pub volatile: bool,
    /// Only the sockets of this node.
    pub local: bool,
}

/// The sockets that a [`Target`] means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Audience {
    /// All sockets of the namespace.
    #[default]
    Everyone,
    /// The members of these rooms, each once; of none: nobody.
    Rooms(Vec<Room>),
    /// One socket. If this node does not hold it, the packet goes to the remote nodes, unless the
    /// target is `local`.
    Socket(SocketId),
}

impl Target {
    /// All sockets of the namespace.
    pub fn everyone() -> Self {
        Self::default()
    }

    /// The members of a room.
    pub fn room(room: impl Into<Room>) -> Self {
        Self { to: Audience::Rooms(vec![room.into()]), ..Self::default() }
    }

    /// One socket.
    pub fn socket(id: SocketId) -> Self {
        Self { to: Audience::Socket(id), ..Self::default() }
    }

    /// Nobody.
    pub(crate) fn nobody() -> Self {
        Self { to: Audience::Rooms(Vec::new()), ..Self::default() }
    }

    /// What a remote node asks of this one: no rooms are everyone.
    pub(crate) fn of_remote(rooms: Vec<Room>, except: Vec<Room>, volatile: bool) -> Self {
        let to = match rooms {
            rooms if rooms.is_empty() => Audience::Everyone,
            rooms => Audience::Rooms(rooms),
        };
        Self { to, except, volatile, local: true, except_socket: None }
    }

    /// As remote nodes read it, where no rooms are everyone; `None` if it means nobody there.
    pub(crate) fn to_wire(&self) -> Option<wire::Targets> {
        let rooms = match &self.to {
            _ if self.local => return None,
            Audience::Everyone => Vec::new(),
            Audience::Rooms(rooms) if rooms.is_empty() => return None,
            Audience::Rooms(rooms) => rooms.clone(),
            Audience::Socket(id) => vec![Room::Owned(id.to_string())],
        };
        let sender = self.except_socket.map(|id| Room::Owned(id.to_string()));
        Some(wire::Targets { rooms, except: self.except.iter().cloned().chain(sender).collect() })
    }
}
