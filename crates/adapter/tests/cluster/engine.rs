//! Rust handlers: their sockets' rooms are at the engine, and they ask through socketioxide's
//! adapter.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use antiphon_adapter::{ClusterAdapter, FIRST_ACK_ID, JoinResult, SocketId, bus::memory::Hub};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use socketioxide_core::{
    Sid, Str, Uid, Value,
    adapter::{
        AckStreamItem, BroadcastFlags, BroadcastIter, BroadcastOptions, CoreAdapter,
        CoreLocalAdapter, RemoteSocketData, Room, SocketEmitter, errors::SocketError,
    },
    packet::Packet,
    parser::Parse,
};
use socketioxide_parser_common::CommonParser;

use crate::{
    clients::{Clients, settle},
    node::{Node, everyone, packet, room},
};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Stands in for socketioxide's sockets of one namespace: sessions, and what goes into their
/// queues.
#[derive(Clone)]
struct Sessions {
    path: Str,
    server: Uid,
    queues: Arc<Mutex<HashMap<Sid, Vec<String>>>>,
}

impl Sessions {
    fn queues(&self) -> MutexGuard<'_, HashMap<Sid, Vec<String>>> {
        self.queues.lock().expect("no test panics with it")
    }

    fn begin(&self) -> Sid {
        let sid = Sid::new();
        self.queues().insert(sid, Vec::new());
        sid
    }

    fn queue(&self, sid: Sid) -> Vec<String> {
        self.queues()[&sid].clone()
    }

    fn push(&self, sid: Sid, text: &str) {
        if let Some(queue) = self.queues().get_mut(&sid) {
            queue.push(text.to_owned());
        }
    }
}

/// As socketioxide's, as far as the adapter can see.
#[derive(Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
enum AckError {
    #[error("timeout")]
    Timeout,
}

impl SocketEmitter for Sessions {
    type AckError = AckError;
    type AckStream = stream::Fuse<Pin<Box<dyn Stream<Item = AckStreamItem<AckError>> + Send>>>;

    fn get_all_sids(&self, filter: impl Fn(&Sid) -> bool) -> Vec<Sid> {
        self.queues().keys().copied().filter(|sid| filter(sid)).collect()
    }

    fn get_remote_sockets(&self, sids: BroadcastIter<'_>) -> Vec<RemoteSocketData> {
        let here = sids.filter(|sid| self.queues().contains_key(sid));
        here.map(|id| RemoteSocketData { id, server_id: self.server, ns: self.path.clone() })
            .collect()
    }

    fn send_many(&self, sids: BroadcastIter<'_>, data: Value) -> Result<(), Vec<SocketError>> {
        let Value::Str(text, _) = data else { panic!("text") };
        sids.for_each(|sid| self.push(sid, &text));
        Ok(())
    }

    fn send_many_volatile(&self, _: BroadcastIter<'_>, _: Value) {
        unreachable!("a packet to a session is never volatile");
    }

    fn send_many_with_ack(
        &self,
        sids: BroadcastIter<'_>,
        _: Packet,
        _: Option<Duration>,
    ) -> (Self::AckStream, u32) {
        let answers: Vec<_> =
            sids.map(|sid| (sid, Ok(Value::Str(r#"["engine"]"#.into(), None)))).collect();
        let count = answers.len() as u32;
        let answers: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(stream::iter(answers));
        (answers.fuse(), count)
    }

    fn disconnect_many(&self, sids: Vec<Sid>) -> Result<(), Vec<SocketError>> {
        sids.iter().for_each(|sid| drop(self.queues().remove(sid)));
        Ok(())
    }

    fn path(&self) -> &Str {
        &self.path
    }

    fn parser(&self) -> impl Parse {
        CommonParser
    }

    fn server_id(&self) -> Uid {
        self.server
    }

    fn ack_timeout(&self) -> Duration {
        TIMEOUT
    }
}

/// A node with handlers in namespace `/`.
struct Handlers {
    node: Node,
    sessions: Sessions,
    adapter: Arc<ClusterAdapter<Sessions, Clients>>,
}

impl Handlers {
    async fn join(hub: &Hub, uid: &str) -> Self {
        let node = Node::join(&hub.link(), uid).await;
        let (path, server, queues) = ("/".into(), Uid::new(), Arc::default());
        let sessions = Sessions { path, server, queues };
        let local = CoreLocalAdapter::new(sessions.clone());
        let adapter = Arc::new(ClusterAdapter::new(&node.cluster, local));
        Arc::clone(&adapter).init(|| {});
        Self { node, sessions, adapter }
    }

    /// A socket that has been let in by a handler, which put it into these rooms.
    fn socket(&self, rooms: &[&'static str]) -> (SocketId, Sid) {
        let (expected, sid) = (self.node.namespace.expect_engine(), self.sessions.begin());
        self.handler_joins(sid, rooms);
        let id = self.node.socket(&[]);
        assert!(self.node.namespace.set_engine(id, sid));
        drop(expected);
        (id, sid)
    }

    fn handler_joins(&self, sid: Sid, rooms: &[&'static str]) {
        self.adapter.get_local().add_all(sid, rooms.to_vec());
    }

    fn rooms_at_engine(&self, sid: Sid) -> HashSet<Room> {
        self.adapter.get_local().socket_rooms(sid)
    }

    async fn emit(&self, opts: BroadcastOptions, event: &'static str) {
        self.adapter.broadcast(packet(event), opts).await.expect("never an error");
    }

    /// What a socket received, as names of events.
    fn events(&self, id: SocketId) -> Vec<String> {
        let received = self.node.received(id);
        received.iter().map(|text| text[3..text.len() - 2].to_owned()).collect()
    }
}

fn rooms(names: &[&'static str]) -> HashSet<Room> {
    names.iter().map(|name| Room::Borrowed(name)).collect()
}

/// As `io.to(rooms)` and `io.emit` make them.
fn to(rooms: &[&str]) -> BroadcastOptions {
    let mut opts = BroadcastOptions::default();
    opts.add_flag(BroadcastFlags::Broadcast);
    opts.rooms = rooms.iter().map(|room| Room::Owned((*room).to_owned())).collect();
    opts
}

/// As `socket.to(rooms)` and `socket.broadcast()` make them.
fn from(sid: Sid, rooms: &[&str]) -> BroadcastOptions {
    let mut opts = to(rooms);
    opts.sid = Some(sid);
    opts
}

#[tokio::test(start_paused = true)]
async fn rooms_are_one_thing_to_handlers_and_rules() {
    let handlers = Handlers::join(&Hub::new(), "node_a").await;
    let namespace = &handlers.node.namespace;
    let (id, sid) = handlers.socket(&["of handler"]);
    assert_eq!(namespace.join(id, "of rule"), JoinResult::Joined);
    assert_eq!(namespace.join(id, "of handler"), JoinResult::Already);
    assert_eq!(handlers.rooms_at_engine(sid), rooms(&["of handler", "of rule"]));
    assert!(namespace.in_room(id, "of handler") && namespace.in_room(id, "of rule"));
    assert_eq!((namespace.room_count(id), namespace.count_rooms()), (2, 2));
    for (number, name) in ["of handler", "of rule"].into_iter().enumerate() {
        handlers.node.emit(room(name), "rule").await;
        handlers.emit(to(&[name]), "handler").await;
        assert_eq!(handlers.events(id).len(), 2 * number + 2);
    }
    namespace.leave(id, "of handler");
    assert_eq!(handlers.rooms_at_engine(sid), rooms(&["of rule"]));
    handlers.emit(to(&["of handler"]), "left").await;
    assert_eq!(handlers.events(id).len(), 4);
    assert!(handlers.sessions.queue(sid).is_empty(), "nothing takes the engine's queue");
}

#[tokio::test(start_paused = true)]
async fn rooms_go_over_to_the_engine_with_the_socket() {
    let handlers = Handlers::join(&Hub::new(), "node_a").await;
    let (id, sid) = (handlers.node.socket(&["x", "y"]), handlers.sessions.begin());
    assert!(handlers.node.namespace.set_engine(id, sid));
    assert_eq!(handlers.rooms_at_engine(sid), rooms(&["x", "y"]));
    assert_eq!(handlers.node.namespace.room_count(id), 2);
    handlers.node.emit(room("x"), "once").await;
    assert_eq!(handlers.events(id), ["once"]);
    assert!(!handlers.node.namespace.set_engine(SocketId::random(), Sid::new()));
}

#[tokio::test(start_paused = true)]
async fn both_kinds_of_members_are_found_once() {
    let handlers = Handlers::join(&Hub::new(), "node_a").await;
    let (with, sid) = handlers.socket(&["x", "y"]);
    let without = handlers.node.socket(&["x", "quiet"]);
    handlers.emit(to(&["x", "y"]), "1").await;
    handlers.emit(to(&["x", &sid.to_string(), with.as_str()]), "2").await;
    let mut but_quiet = to(&["x"]);
    but_quiet.except.push("quiet".into());
    handlers.emit(but_quiet, "3").await;
    let mut but_y = to(&[]);
    but_y.except.push("y".into());
    handlers.emit(but_y, "4").await;
    handlers.emit(from(sid, &[]), "5").await;
    handlers.emit(BroadcastOptions::new(sid), "6").await;
    handlers.emit(BroadcastOptions::default(), "to nobody").await;
    assert_eq!(handlers.events(with), ["1", "2", "3", "6"]);
    assert_eq!(handlers.events(without), ["1", "2", "4", "5"]);
    assert_eq!(
        handlers.node.namespace.join(without, sid.as_str()),
        JoinResult::Reserved,
        "handlers know sockets by their sessions"
    );
}

#[tokio::test(start_paused = true)]
async fn a_socket_on_its_way_in_gets_what_its_handler_sends() {
    let handlers = Handlers::join(&Hub::new(), "node_a").await;
    let (here, here_sid) = handlers.socket(&["x"]);
    let (expected, sid) = (handlers.node.namespace.expect_engine(), handlers.sessions.begin());
    handlers.handler_joins(sid, &["x"]);
    handlers.emit(to(&["x"]), "to its room").await;
    handlers.emit(to(&[]), "to all").await;
    handlers.emit(to(&[&sid.to_string()]), "to it").await;
    handlers.emit(BroadcastOptions::new(sid), "to it alone").await;
    handlers.emit(from(sid, &["x"]), "to others").await;
    handlers.node.emit(everyone(), "of a rule: it is not connected").await;
    let its = ["to its room", "to all", "to it", "to it alone"];
    assert_eq!(handlers.sessions.queue(sid), its.map(|event| format!(r#"2["{event}"]"#)));
    assert_eq!(handlers.events(here).len(), 4);
    // It joins before it is there, and is found.
    handlers.adapter.add_sockets(BroadcastOptions::new(sid), "y").await.unwrap();
    let found = handlers.adapter.fetch_sockets(to(&["y"])).await.unwrap();
    assert_eq!(found.iter().map(|one| one.id).collect::<Vec<_>>(), [sid]);
    assert_eq!(
        handlers
            .adapter
            .rooms(BroadcastOptions::new(sid))
            .await
            .unwrap()
            .into_iter()
            .collect::<HashSet<_>>(),
        rooms(&["x", "y"])
    );
    handlers.adapter.del_sockets(BroadcastOptions::new(sid), "y").await.unwrap();
    let id = handlers.node.socket(&[]);
    handlers.node.namespace.set_engine(id, sid);
    handlers.emit(to(&["x"]), "directly").await;
    drop(expected);
    handlers.emit(to(&[]), "directly too").await;
    assert_eq!(handlers.events(id), ["directly", "directly too"]);
    assert_eq!(handlers.sessions.queue(sid).len(), 4);
    assert!(handlers.sessions.queue(here_sid).is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_is_not_expected_is_not_looked_for() {
    let handlers = Handlers::join(&Hub::new(), "node_a").await;
    let sid = handlers.sessions.begin();
    handlers.emit(to(&[]), "event").await;
    assert!(handlers.sessions.queue(sid).is_empty(), "its client has left");
    drop(handlers.node.namespace.expect_engine());
    handlers.emit(to(&[]), "event").await;
    assert!(handlers.sessions.queue(sid).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_ended_joins_nothing() {
    let handlers = Handlers::join(&Hub::new(), "node_a").await;
    let (id, sid) = handlers.socket(&[]);
    handlers.sessions.disconnect_many(vec![sid]).unwrap();
    assert_eq!(handlers.node.namespace.join(id, "x"), JoinResult::Gone);
    assert!(handlers.rooms_at_engine(sid).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_remote_broadcast_finds_members_at_the_engine() {
    let hub = Hub::new();
    let handlers = Handlers::join(&hub, "node_a").await;
    let remote = Node::join(&hub.link(), "node_b").await;
    let (id, sid) = handlers.socket(&["x"]);
    remote.emit(room("x"), "to the room").await;
    remote.emit(antiphon_adapter::Target::room(sid.to_string()), "to the session").await;
    settle().await;
    assert_eq!(handlers.events(id), ["to the room", "to the session"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_finds_sockets_and_reaches_them() {
    let hub = Hub::new();
    let handlers = Handlers::join(&hub, "node_a").await;
    let remote = Node::join(&hub.link(), "node_b").await;
    let (here, sid) = handlers.socket(&["x"]);
    let plain = handlers.node.socket(&["x"]);
    let (there, other) = (remote.socket(&["x"]), remote.socket(&[]));
    let found = handlers.adapter.fetch_sockets(to(&["x"])).await.unwrap();
    assert_eq!(found.len(), 3);
    let own = found.iter().filter(|one| one.server_id == handlers.sessions.server);
    assert_eq!(own.map(|one| one.id).collect::<Vec<_>>(), [sid], "as handlers know them");
    for one in &found {
        let opts = || BroadcastOptions::new_remote(one);
        handlers.emit(opts(), "to one").await;
        handlers.adapter.add_sockets(opts(), "joined").await.unwrap();
        handlers.adapter.del_sockets(opts(), "x").await.unwrap();
        let rooms = handlers.adapter.rooms(opts()).await.unwrap();
        assert!(rooms.contains(&Room::Borrowed("joined")) && rooms.len() == 2, "{rooms:?}");
    }
    settle().await;
    assert_eq!([here, plain].map(|id| handlers.events(id).len()), [1, 1]);
    assert_eq!((remote.received(there).len(), remote.received(other).len()), (1, 0));
    assert_eq!(handlers.adapter.server_count().await.unwrap(), 2);
    let all: HashSet<Room> = handlers.adapter.rooms(to(&[])).await.unwrap().into_iter().collect();
    assert_eq!(all.len(), 5, "{all:?}");
    for one in &found {
        handlers.adapter.disconnect_socket(BroadcastOptions::new_remote(one)).await.unwrap();
    }
    settle().await;
    assert!(handlers.node.namespace.is_empty());
    assert!(!remote.namespace.has(there) && remote.namespace.has(other));
}

#[tokio::test(start_paused = true)]
async fn a_handler_gets_acknowledgements_from_sockets_as_it_knows_them() {
    let hub = Hub::new();
    let handlers = Handlers::join(&hub, "node_a").await;
    let remote = Node::join(&hub.link(), "node_b").await;
    let (here, sid) = handlers.socket(&[]);
    let (silent, silent_sid) = handlers.socket(&[]);
    let there = remote.socket(&[]);
    handlers.node.clients.answer_with(here, r#"["here"]"#);
    remote.clients.answer_with(there, r#"["there"]"#);
    let (_expected, coming) = (handlers.node.namespace.expect_engine(), handlers.sessions.begin());
    let acks = handlers.adapter.broadcast_with_ack(packet("q"), to(&[]), None).await.unwrap();
    let acks: HashMap<Sid, _> = acks.collect().await;
    let text = |text: &'static str| Ok(Value::Str(text.into(), None));
    let wanted = [
        (sid, text(r#"["here"]"#)),
        (silent_sid, Err(AckError::Timeout)),
        (Sid::ZERO, text(r#"["there"]"#)),
        (coming, text(r#"["engine"]"#)),
    ];
    assert_eq!(acks, HashMap::from(wanted));
    assert_eq!(handlers.node.clients.ack_ids(silent), [FIRST_ACK_ID]);
}
