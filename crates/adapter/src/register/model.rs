//! The register beside a simple one: the same changes, and every answer compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*};

use super::*;

/// Few of each, so that they meet.
const SOCKETS: usize = 8;
const ROOMS: usize = 5;

#[derive(Debug, Clone)]
enum Change {
    Insert(usize),
    Remove(usize),
    Join(usize, usize),
    Leave(usize, usize),
    SetEngine(usize, usize),
}

/// A room by its number, or one that is named by a socket's id, here or at the engine.
#[derive(Debug, Clone)]
enum Name {
    Room(usize),
    Socket(usize),
    Session(usize),
}

#[derive(Debug, Clone)]
enum Whom {
    Everyone,
    Rooms(Vec<Name>),
    Socket(usize),
}

#[derive(Debug, Clone)]
struct Question {
    to: Whom,
    except: Vec<Name>,
    except_socket: Option<usize>,
    engine_to: Vec<usize>,
    engine_except: Vec<usize>,
}

#[derive(Debug, Default)]
struct Simple {
    rooms: BTreeSet<String>,
    sid: Option<Sid>,
    connection: usize,
}

struct Names {
    ids: Vec<SocketId>,
    sids: Vec<Sid>,
}

impl Names {
    fn new() -> Self {
        Self {
            ids: (0..SOCKETS).map(|_| SocketId::random()).collect(),
            sids: (0..SOCKETS).map(|_| Sid::new()).collect(),
        }
    }

    fn room(&self, name: &Name) -> Room {
        Room::Owned(match name {
            Name::Room(number) => room(*number),
            Name::Socket(socket) => self.ids[*socket].to_string(),
            Name::Session(session) => self.sids[*session].to_string(),
        })
    }

    fn rooms(&self, names: &[Name]) -> Vec<Room> {
        names.iter().map(|name| self.room(name)).collect()
    }

    fn sids(&self, sessions: &[usize]) -> Vec<Sid> {
        sessions.iter().map(|session| self.sids[*session]).collect()
    }

    fn question(&self, question: &Question) -> (Target, EngineMembers) {
        let to = match &question.to {
            Whom::Everyone => Audience::Everyone,
            Whom::Rooms(names) => Audience::Rooms(self.rooms(names)),
            Whom::Socket(socket) => Audience::Socket(self.ids[*socket]),
        };
        let except_socket = question.except_socket.map(|socket| self.ids[socket]);
        let except = self.rooms(&question.except);
        let engine = EngineMembers {
            to: self.sids(&question.engine_to),
            except: self.sids(&question.engine_except),
        };
        (Target { to, except, except_socket, ..Target::default() }, engine)
    }
}

fn room(number: usize) -> String {
    format!("room {number}")
}

type Model = BTreeMap<SocketId, Simple>;

fn change(names: &Names, register: &mut Register<usize>, model: &mut Model, change: &Change) {
    match *change {
        Change::Insert(socket) => {
            let connection = register.sockets().len() + 100;
            register.insert(names.ids[socket], connection);
            model.entry(names.ids[socket]).or_default().connection = connection;
        }
        Change::Remove(socket) => {
            let removed = register.remove(names.ids[socket]);
            assert_eq!(removed, model.remove(&names.ids[socket]).is_some());
        }
        Change::Join(socket, number) => {
            let joined = register.join(names.ids[socket], &room(number));
            let simple = model.get_mut(&names.ids[socket]);
            assert_eq!(joined, simple.map(|simple| simple.rooms.insert(room(number))));
        }
        Change::Leave(socket, number) => {
            let left = register.leave(names.ids[socket], &room(number));
            let simple = model.get_mut(&names.ids[socket]);
            assert_eq!(left, simple.is_some_and(|simple| simple.rooms.remove(&room(number))));
        }
        Change::SetEngine(socket, session) => {
            let (id, sid) = (names.ids[socket], names.sids[session]);
            // A session belongs to one socket.
            if model.iter().any(|(other, simple)| *other != id && simple.sid == Some(sid)) {
                return;
            }
            let rooms = register.set_engine(id, sid);
            let rooms: Option<BTreeSet<String>> =
                rooms.map(|rooms| rooms.into_iter().map(Room::into_owned).collect());
            let simple = model.get_mut(&id).map(|simple| {
                simple.sid = Some(sid);
                std::mem::take(&mut simple.rooms)
            });
            assert_eq!(rooms, simple);
        }
    }
}

/// Whether a simple socket is in one of the rooms, or in one at the engine.
fn is_in(id: SocketId, simple: &Simple, rooms: &[Room], sids: &[Sid]) -> bool {
    let named = |room: &Room| {
        simple.rooms.contains(&**room)
            || **room == *id.as_str()
            || simple.sid.is_some_and(|sid| **room == *sid.as_str())
    };
    rooms.iter().any(named) || simple.sid.is_some_and(|sid| sids.contains(&sid))
}

fn select(model: &Model, target: &Target, engine: &EngineMembers) -> Vec<usize> {
    let meant = |id: SocketId, simple: &Simple| match &target.to {
        Audience::Everyone => true,
        Audience::Rooms(rooms) => is_in(id, simple, rooms, &engine.to),
        Audience::Socket(one) => *one == id,
    };
    let excepted = |id: SocketId, simple: &Simple| {
        target.except_socket == Some(id) || is_in(id, simple, &target.except, &engine.except)
    };
    let mut found: Vec<_> = model
        .iter()
        .filter(|(id, simple)| meant(**id, simple) && !excepted(**id, simple))
        .map(|(_, simple)| simple.connection)
        .collect();
    found.sort_unstable();
    found
}

fn compare(names: &Names, register: &Register<usize>, model: &Model) {
    assert_eq!(register.sockets().len(), model.len());
    for id in &names.ids {
        let simple = model.get(id);
        let rooms: BTreeSet<String> =
            register.rooms_of(*id).into_iter().map(Room::into_owned).collect();
        assert_eq!(
            register.get(*id).map(|socket| socket.connection),
            simple.map(|it| it.connection)
        );
        assert_eq!(register.get(*id).and_then(Socket::engine), simple.and_then(|it| it.sid));
        assert_eq!(register.room_count(*id), rooms.len());
        assert_eq!(rooms, simple.map(|it| it.rooms.clone()).unwrap_or_default());
        for number in 0..ROOMS {
            let is_in = simple.is_some_and(|it| it.rooms.contains(&room(number)));
            assert_eq!(register.in_room(*id, &room(number)), is_in);
        }
        assert_eq!(register.has_members(id.as_str()), simple.is_some());
    }
    for sid in &names.sids {
        let id = model.iter().find(|(_, it)| it.sid == Some(*sid)).map(|(id, _)| *id);
        assert_eq!(register.with_engine(*sid).map(|socket| socket.id), id);
        assert_eq!(register.named(sid.as_str()), id);
    }
    let rooms: BTreeSet<&str> = register.room_names().collect();
    let all = model.values().flat_map(|it| it.rooms.iter().map(|room| &**room)).collect();
    assert_eq!(rooms, all);
    assert_eq!(register.room_names().len(), rooms.len());
    assert!(rooms.iter().all(|room| register.has_members(room)));
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let one = prop_oneof![
        3 => (0..SOCKETS).prop_map(Change::Insert),
        2 => (0..SOCKETS).prop_map(Change::Remove),
        8 => (0..SOCKETS, 0..ROOMS).prop_map(|(socket, room)| Change::Join(socket, room)),
        4 => (0..SOCKETS, 0..ROOMS).prop_map(|(socket, room)| Change::Leave(socket, room)),
        1 => (0..SOCKETS, 0..SOCKETS).prop_map(|(socket, sid)| Change::SetEngine(socket, sid)),
    ];
    vec(one, 1..60)
}

fn names() -> impl Strategy<Value = Vec<Name>> {
    let one = prop_oneof![
        4 => (0..ROOMS).prop_map(Name::Room),
        1 => (0..SOCKETS).prop_map(Name::Socket),
        1 => (0..SOCKETS).prop_map(Name::Session),
    ];
    vec(one, 0..4)
}

fn questions() -> impl Strategy<Value = Question> {
    let to = prop_oneof![
        Just(Whom::Everyone),
        names().prop_map(Whom::Rooms),
        (0..SOCKETS).prop_map(Whom::Socket),
    ];
    let sessions = || vec(0..SOCKETS, 0..3);
    let except_socket = prop::option::of(0..SOCKETS);
    (to, names(), except_socket, sessions(), sessions()).prop_map(
        |(to, except, except_socket, engine_to, engine_except)| Question {
            to,
            except,
            except_socket,
            engine_to,
            engine_except,
        },
    )
}

proptest! {
    #[test]
    fn it_is_as_the_simple_one(changes in changes(), questions in vec(questions(), 1..8)) {
        let names = Names::new();
        let (mut register, mut model) = (Register::default(), Model::new());
        for one in &changes {
            change(&names, &mut register, &mut model, one);
            compare(&names, &register, &model);
            for question in &questions {
                let (target, engine) = names.question(question);
                let mut found = register.select(&target, &engine, |socket| socket.connection);
                found.sort_unstable();
                prop_assert_eq!(found, select(&model, &target, &engine), "{:?}", target);
            }
        }
        for id in &names.ids {
            register.remove(*id);
        }
        prop_assert!(register.sockets().is_empty() && register.engines.is_empty());
        prop_assert!(register.rooms.is_empty() && register.free_rooms.is_empty());
    }
}

#[test]
fn an_idle_socket_costs_less_than_150_bytes() {
    // Of a hash table's places, seven of eight are used before it grows. Each has a byte more.
    const PLACE: usize = size_of::<(SocketId, Slot)>() + 1;
    let mut register = Register::default();
    let connection = Arc::new(());
    for number in 1..=100_000 {
        register.insert(SocketId::random(), Arc::clone(&connection));
        let bytes = register.sockets.capacity() * size_of::<Socket<Arc<()>>>()
            + register.slots.capacity() * 8 / 7 * PLACE;
        assert!(number < 1000 || bytes / number < 150, "{} at {number}", bytes / number);
    }
    let ids: Vec<_> = register.sockets().iter().map(|socket| socket.id).collect();
    ids[1000..].iter().for_each(|id| assert!(register.remove(*id)));
    assert!(register.sockets.capacity() < 10_000, "memory is given back");
    assert!(register.slots.capacity() < 10_000, "memory is given back");
}

#[test]
fn a_room_that_was_large_gives_memory_back() {
    let mut register = Register::default();
    let ids: Vec<_> = (0..10_000).map(|_| SocketId::random()).collect();
    for id in &ids {
        register.insert(*id, ());
        register.join(*id, "room");
    }
    ids[10..].iter().for_each(|id| assert!(register.leave(*id, "room")));
    assert_eq!(register.room("room").map(<[_]>::len), Some(10));
    assert!(register.rooms[0].members.capacity() < 2 * SHRINK_MIN);
}
