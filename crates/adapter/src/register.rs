//! The sockets of a namespace on this node, and the rooms that they are in.
//!
//! Sockets stand next to each other in one list; a slot is a place there. A room is a list of
//! slots. Each membership knows its place on the other side, so that nothing is searched for when a
//! socket leaves. When a socket is removed, the last one takes its slot: slots mean nothing once
//! the register's lock is released.

#[cfg(test)]
mod model;

use std::{collections::HashMap, sync::Arc};

use rustc_hash::FxHashMap;
use socketioxide_core::{Sid, adapter::Room};

use crate::{
    socket_id::SocketId,
    target::{Audience, Target},
};

/// A list with fewer places than this is not worth giving memory back for.
const SHRINK_MIN: usize = 1024;

/// A place in the list of sockets. A node has memory for far fewer than 2^32 of them.
type Slot = u32;

/// A place in the list of rooms.
type RoomIndex = u32;

/// The sockets and rooms of one namespace.
pub(crate) struct Register<C> {
    sockets: Vec<Socket<C>>,
    // The keys are random and the node's own, so that a fast hash is safe.
    slots: FxHashMap<SocketId, Slot>,
    engines: FxHashMap<Sid, Slot>,
    rooms: Vec<RoomEntry>,
    // Rooms without members are free for new ones.
    free_rooms: Vec<RoomIndex>,
    // Clients choose these keys.
    named_rooms: HashMap<Arc<str>, RoomIndex>,
}

/// A socket of this node.
pub(crate) struct Socket<C> {
    /// Its public id.
    pub(crate) id: SocketId,
    /// Its client's session.
    pub(crate) connection: C,
    // Most sockets have none of this.
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    rooms: Vec<Membership>,
    engine: Option<Sid>,
}

/// A room, as one of its sockets knows it.
#[derive(Clone, Copy)]
struct Membership {
    room: RoomIndex,
    // The socket's place among the members.
    member: u32,
}

/// A socket, as one of its rooms knows it.
#[derive(Clone, Copy)]
struct Member {
    slot: Slot,
    // The room's place among the memberships of the socket.
    membership: u32,
}

struct RoomEntry {
    name: Arc<str>,
    members: Vec<Member>,
}

/// The sockets with an engine session that the engine finds in a target's rooms.
#[derive(Debug, Default)]
pub(crate) struct EngineMembers {
    /// In the rooms that are meant.
    pub(crate) to: Vec<Sid>,
    /// In the rooms that are left out.
    pub(crate) except: Vec<Sid>,
}

impl<C> Socket<C> {
    /// Its session at the engine, if it has one.
    pub(crate) fn engine(&self) -> Option<Sid> {
        self.more.as_ref()?.engine
    }

    fn rooms(&self) -> &[Membership] {
        self.more.as_ref().map_or(&[], |more| &more.rooms)
    }

    /// The membership at `place`, which has to be there.
    fn membership(&mut self, place: u32) -> &mut Membership {
        let more = self.more.as_mut().expect("a room lists only sockets that know of it");
        &mut more.rooms[place as usize]
    }
}

impl<C> Default for Register<C> {
    fn default() -> Self {
        Self {
            sockets: Vec::new(),
            slots: HashMap::default(),
            engines: HashMap::default(),
            rooms: Vec::new(),
            free_rooms: Vec::new(),
            named_rooms: HashMap::new(),
        }
    }
}

impl<C> Register<C> {
    /// Adds a socket; one that is there already gets the new connection.
    pub(crate) fn insert(&mut self, id: SocketId, connection: C) {
        if let Some(slot) = self.slot(id) {
            self.sockets[slot as usize].connection = connection;
            return;
        }
        self.slots.insert(id, self.sockets.len() as Slot);
        self.sockets.push(Socket { id, connection, more: None });
    }

    /// Removes a socket from its rooms and from the register.
    pub(crate) fn remove(&mut self, id: SocketId) -> bool {
        let Some(slot) = self.slots.remove(&id) else { return false };
        self.leave_all(slot);
        let removed = self.sockets.swap_remove(slot as usize);
        if let Some(sid) = removed.engine() {
            self.engines.remove(&sid);
        }
        self.moved_to(slot);
        self.shrink();
        true
    }

    /// The socket with this id.
    pub(crate) fn get(&self, id: SocketId) -> Option<&Socket<C>> {
        self.slot(id).map(|slot| self.socket(slot))
    }

    /// The socket that has this session at the engine.
    pub(crate) fn with_engine(&self, sid: Sid) -> Option<&Socket<C>> {
        self.engines.get(&sid).map(|slot| self.socket(*slot))
    }

    /// All sockets.
    pub(crate) fn sockets(&self) -> &[Socket<C>] {
        &self.sockets
    }

    /// Notes the session of a socket at the engine. Returns the rooms that the socket has left
    /// here, as the engine keeps them from now on; `None` if the socket is not here.
    pub(crate) fn set_engine(&mut self, id: SocketId, sid: Sid) -> Option<Vec<Room>> {
        let slot = self.slot(id)?;
        let rooms = self.rooms_of(id);
        self.leave_all(slot);
        let more = self.sockets[slot as usize].more.get_or_insert_default();
        if let Some(former) = more.engine.replace(sid) {
            self.engines.remove(&former);
        }
        self.engines.insert(sid, slot);
        Some(rooms)
    }

    /// Puts a socket into a room; `None` if the socket is not here, `false` if it is in the room.
    pub(crate) fn join(&mut self, id: SocketId, room: &str) -> Option<bool> {
        let slot = self.slot(id)?;
        if self.find_membership(slot, room).is_some() {
            return Some(false);
        }
        let room = self.room_or_new(room);
        let members = &mut self.rooms[room as usize].members;
        let more = self.sockets[slot as usize].more.get_or_insert_default();
        let member = members.len() as u32;
        members.push(Member { slot, membership: more.rooms.len() as u32 });
        more.rooms.push(Membership { room, member });
        Some(true)
    }

    /// Takes a socket out of a room.
    pub(crate) fn leave(&mut self, id: SocketId, room: &str) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        let Some(place) = self.find_membership(slot, room) else { return false };
        self.leave_at(slot, place);
        true
    }

    /// Whether a socket is in a room.
    pub(crate) fn in_room(&self, id: SocketId, room: &str) -> bool {
        self.slot(id).is_some_and(|slot| self.find_membership(slot, room).is_some())
    }

    /// How many rooms a socket is in.
    pub(crate) fn room_count(&self, id: SocketId) -> usize {
        self.get(id).map_or(0, |socket| socket.rooms().len())
    }

    /// The rooms that a socket is in.
    pub(crate) fn rooms_of(&self, id: SocketId) -> Vec<Room> {
        let rooms = self.get(id).map_or(&[][..], Socket::rooms).iter();
        rooms.map(|one| Room::Owned(self.rooms[one.room as usize].name.to_string())).collect()
    }

    /// The names of all rooms with members.
    pub(crate) fn room_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.named_rooms.keys().map(|name| &**name)
    }

    /// The socket whose id, here or at the engine, is the room's name.
    pub(crate) fn named(&self, room: &str) -> Option<SocketId> {
        self.named_slot(room).map(|slot| self.socket(slot).id)
    }

    /// Whether anybody would get what is for this room.
    pub(crate) fn has_members(&self, room: &str) -> bool {
        self.named_rooms.contains_key(room) || self.named_slot(room).is_some()
    }

    /// What `pick` takes of each socket that a target means.
    pub(crate) fn select<T>(
        &self,
        target: &Target,
        engine: &EngineMembers,
        pick: impl Fn(&Socket<C>) -> T,
    ) -> Vec<T> {
        let mut left_out = self.left_out(target, engine);
        match &target.to {
            Audience::Everyone => {
                let mut found = Vec::with_capacity(self.sockets.len());
                let admitted =
                    self.sockets.iter().zip(0..).filter(|(_, slot)| left_out.admits(*slot));
                found.extend(admitted.map(|(socket, _)| pick(socket)));
                found
            }
            Audience::Socket(id) => {
                let slot = self.slot(*id).filter(|slot| left_out.admits(*slot));
                slot.into_iter().map(|slot| pick(self.socket(slot))).collect()
            }
            Audience::Rooms(rooms) => self.select_members(rooms, &engine.to, &mut left_out, pick),
        }
    }

    fn select_members<T>(
        &self,
        rooms: &[Room],
        engine: &[Sid],
        left_out: &mut LeftOut,
        pick: impl Fn(&Socket<C>) -> T,
    ) -> Vec<T> {
        let members = || rooms.iter().filter_map(|room| self.room(room));
        let named = rooms.iter().filter_map(|room| self.named_slot(room));
        let named = named.chain(engine.iter().filter_map(|sid| self.engines.get(sid).copied()));
        let mut found = Vec::with_capacity(members().map(<[_]>::len).sum::<usize>() + engine.len());
        // The members of one room are different sockets. What comes from several lists may not be.
        let mut each = |slot: Slot, once: bool| {
            if left_out.admits(slot) {
                if once {
                    left_out.add(slot);
                }
                found.push(pick(self.socket(slot)));
            }
        };
        let named: Vec<Slot> = named.collect();
        let once = rooms.len() > 1 || !named.is_empty();
        members().flatten().for_each(|member| each(member.slot, once));
        named.into_iter().for_each(|slot| each(slot, true));
        found
    }

    /// The sockets that a target excepts.
    fn left_out(&self, target: &Target, engine: &EngineMembers) -> LeftOut {
        let one = target.except_socket.and_then(|id| self.slot(id));
        let mut left_out = LeftOut { one, many: Vec::new() };
        for room in &target.except {
            let members = self.room(room).unwrap_or_default().iter().map(|member| member.slot);
            members.chain(self.named_slot(room)).for_each(|slot| left_out.add(slot));
        }
        let engine = engine.except.iter().filter_map(|sid| self.engines.get(sid));
        engine.for_each(|slot| left_out.add(*slot));
        left_out
    }

    fn slot(&self, id: SocketId) -> Option<Slot> {
        self.slots.get(&id).copied()
    }

    fn socket(&self, slot: Slot) -> &Socket<C> {
        &self.sockets[slot as usize]
    }

    fn room(&self, name: &str) -> Option<&[Member]> {
        self.named_rooms.get(name).map(|room| &*self.rooms[*room as usize].members)
    }

    fn named_slot(&self, room: &str) -> Option<Slot> {
        let by_id = room.parse().ok().and_then(|id| self.slot(id));
        by_id.or_else(|| {
            let sid = (!self.engines.is_empty()).then(|| room.parse().ok())?;
            self.engines.get(&sid?).copied()
        })
    }

    fn room_or_new(&mut self, name: &str) -> RoomIndex {
        if let Some(room) = self.named_rooms.get(name) {
            return *room;
        }
        let entry = RoomEntry { name: name.into(), members: Vec::new() };
        let name = Arc::clone(&entry.name);
        let room = match self.free_rooms.pop() {
            Some(free) => {
                self.rooms[free as usize] = entry;
                free
            }
            None => {
                self.rooms.push(entry);
                (self.rooms.len() - 1) as RoomIndex
            }
        };
        self.named_rooms.insert(name, room);
        room
    }

    /// Where the room stands among those of a socket.
    fn find_membership(&self, slot: Slot, room: &str) -> Option<usize> {
        let rooms = self.socket(slot).rooms();
        let room = (!rooms.is_empty()).then(|| self.named_rooms.get(room))??;
        rooms.iter().position(|one| one.room == *room)
    }

    /// Ends a membership; the last one of the socket, and of the room, takes its place.
    fn leave_at(&mut self, slot: Slot, place: usize) {
        let Some(more) = &mut self.sockets[slot as usize].more else { return };
        let Membership { room, member } = more.rooms.swap_remove(place);
        if let Some(moved) = more.rooms.get(place) {
            let members = &mut self.rooms[moved.room as usize].members;
            members[moved.member as usize].membership = place as u32;
        }
        if more.rooms.is_empty() && more.engine.is_none() {
            self.sockets[slot as usize].more = None;
        }
        let members = &mut self.rooms[room as usize].members;
        members.swap_remove(member as usize);
        if members.capacity() > SHRINK_MIN && members.len() < members.capacity() / 4 {
            members.shrink_to(members.len() * 2);
        }
        if let Some(moved) = members.get(member as usize) {
            self.sockets[moved.slot as usize].membership(moved.membership).member = member;
        } else if members.is_empty() {
            self.free_room(room);
        }
    }

    fn leave_all(&mut self, slot: Slot) {
        while let Some(last) = self.socket(slot).rooms().len().checked_sub(1) {
            self.leave_at(slot, last);
        }
    }

    /// The socket that now has this slot, if any has, came there from another.
    fn moved_to(&mut self, slot: Slot) {
        let Some(socket) = self.sockets.get(slot as usize) else { return };
        self.slots.insert(socket.id, slot);
        if let Some(sid) = socket.engine() {
            self.engines.insert(sid, slot);
        }
        for Membership { room, member } in socket.rooms() {
            self.rooms[*room as usize].members[*member as usize].slot = slot;
        }
    }

    fn free_room(&mut self, room: RoomIndex) {
        let entry = &mut self.rooms[room as usize];
        self.named_rooms.remove(&entry.name);
        (entry.name, entry.members) = (Arc::default(), Vec::new());
        self.free_rooms.push(room);
        if self.named_rooms.is_empty() {
            (self.rooms, self.free_rooms, self.named_rooms) = Default::default();
        }
    }

    /// Gives memory back after many sockets have left.
    fn shrink(&mut self) {
        let (used, reserved) = (self.sockets.len(), self.sockets.capacity());
        if reserved > SHRINK_MIN && used < reserved / 4 {
            self.sockets.shrink_to(used * 2);
            self.slots.shrink_to(used * 2);
            self.engines.shrink_to(self.engines.len() * 2);
            self.named_rooms.shrink_to(self.named_rooms.len() * 2);
        }
    }
}

/// Sockets that are not meant, or are found already.
struct LeftOut {
    one: Option<Slot>,
    // A bit for each slot, as far as there is one to set.
    many: Vec<u64>,
}

impl LeftOut {
    fn add(&mut self, slot: Slot) {
        let (word, bit) = (slot as usize / 64, slot % 64);
        if word >= self.many.len() {
            self.many.resize(word + 1, 0);
        }
        self.many[word] |= 1 << bit;
    }

    fn admits(&self, slot: Slot) -> bool {
        let word = self.many.get(slot as usize / 64);
        self.one != Some(slot) && word.is_none_or(|word| word & (1 << (slot % 64)) == 0)
    }
}
