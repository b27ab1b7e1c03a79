//! Clients in namespaces, from CONNECT to DISCONNECT: what Socket.IO is, on top of the transport.
//!
//! A client's session has a [`Socket`] in each namespace that it is connected to. Its packets are parsed
//! here, where they arrive, in the session's own task. Events with a rule go to the dispatcher; events of a
//! namespace with Rust handlers go to the engine; the others are ignored, as in Node.
//!
//! A socket is on its way in until somebody decides: `admit` or `refuse` may be called at once, or later by
//! whoever was asked. Nothing else waits for that.

mod attachments;
mod deferred;
mod link;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use antiphon_adapter::{Cluster, ExpectedEngine, FIRST_ACK_ID, Namespace, SocketId, wire};
use antiphon_metrics::{
    Counters, GatewayMetrics, IntGauge,
    gateway::{CloseReason, Protocol, Transport as TransportName},
};
use bytes::Bytes;
use smallvec::SmallVec;
use socketioxide_core::{Sid, Str, Value};

use crate::{
    config::{Config, Limits},
    dispatcher::{Dispatcher, Pending},
    engine::{Engine, EngineSession},
    fanout::FanOut,
    handshake::HandshakeInfo,
    log_throttle::LogThrottle,
    packet::{self, Kind, Packet},
    payload::{self, Event},
    rules::{Limiters, Rules, Sender},
    transport::{self, Budget, Ending, FrameBatch, FrameBatchBuilder, Handshake, Held, Message},
};
use attachments::Attachments;
use deferred::{DeferredPackets, TooManyError};
use link::EngineLink;

/// A client.
pub(crate) type Session = transport::Session<Namespaces>;

/// What came with a CONNECT packet is kept up to this size. It is there for as long as the socket, and
/// remote nodes get it with each list of sockets.
const AUTH_BYTES_MAX: usize = 4096;

/// Lines that one client can cause in a second by coming and going.
const LOG_LINES_PER_SECOND: u32 = 10;

/// The namespaces of a node, and what to do with the packets of its clients.
pub struct Namespaces {
    entries: RwLock<HashMap<String, Arc<Entry>>>,
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Cluster<FanOut>,
    engine: Arc<Engine>,
    dispatcher: Dispatcher,
    metrics: Arc<GatewayMetrics>,
    budget: Arc<Budget>,
    limits: Limits,
    connect_timeout: Duration,
    config: Arc<Config>,
    other_parsers: LogThrottle,
}

/// One namespace.
pub(crate) struct Entry {
    path: String,
    namespace: Arc<Namespace<FanOut>>,
    rules: Rules,
    open: IntGauge,
    rooms: IntGauge,
    opened: Counters<()>,
    closed: Counters<CloseReason>,
    shared: Arc<Shared>,
}

impl Entry {
    fn new(path: &str, shared: &Arc<Shared>) -> Result<Self, antiphon_metrics::Error> {
        let metrics = &shared.metrics;
        Ok(Self {
            path: path.to_owned(),
            namespace: shared.cluster.create(path),
            rules: Rules::new(&shared.config, path, metrics)?,
            open: metrics.sockets.of(path)?,
            rooms: metrics.rooms.of(path)?,
            opened: metrics.sockets_opened_total.of(path)?,
            closed: metrics.sockets_closed_total.of(path)?,
            shared: Arc::clone(shared),
        })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// What the adapter has of it.
    pub(crate) fn namespace(&self) -> &Arc<Namespace<FanOut>> {
        &self.namespace
    }

    /// Counts bytes of an event against the node's memory budget.
    pub(crate) fn hold(&self, bytes: usize) -> Held {
        Budget::hold(&self.shared.budget, bytes)
    }

    /// Sends a Socket.IO packet without attachments to one client. False if it was not accepted.
    pub(crate) fn send_text(&self, session: &Arc<Session>, text: &str) -> bool {
        session.send_one(&self.encode(text, &[]))
    }

    fn encode(&self, text: &str, attachments: &[Bytes]) -> FrameBatch {
        let mut frames = FrameBatchBuilder::with_capacity(text.len() + 1, 1 + attachments.len());
        frames.message(&[text]);
        for attachment in attachments {
            frames.binary(attachment);
        }
        frames.build(0, false, &self.shared.budget)
    }
}

/// A client in a namespace.
pub(crate) struct Socket {
    entry: Arc<Entry>,
    id: SocketId,
    connected: AtomicBool,
    engine: OnceLock<Arc<EngineSession>>,
    /// Held while the engine decides.
    expected: Mutex<Option<ExpectedEngine>>,
    /// What came with the CONNECT packet, in JSON.
    auth: Option<Box<str>>,
    limiters: Limiters,
}

impl Socket {
    pub(crate) fn id(&self) -> SocketId {
        self.id
    }

    pub(crate) fn limiters(&self) -> &Limiters {
        &self.limiters
    }

    fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }
}

/// What the node keeps of a client besides its connection.
pub struct Client {
    info: HandshakeInfo,
    sockets: Mutex<Sockets>,
    /// How many of its sockets have an engine session.
    engines: AtomicUsize,
    attachments: Mutex<Option<Box<Attachments>>>,
    deferred: DeferredPackets,
    pending: Mutex<Pending>,
    /// By namespace. They outlive its sockets, so that leaving and coming back does not refill them.
    limiters: Mutex<SmallVec<[(usize, Limiters); 1]>>,
    log_lines: Mutex<(Option<Instant>, u32)>,
}

#[derive(Default)]
struct Sockets {
    closed: bool,
    all: SmallVec<[Arc<Socket>; 1]>,
}

impl Sockets {
    fn find(&self, path: &str) -> Option<&Arc<Socket>> {
        self.all.iter().find(|socket| socket.entry.path == path)
    }

    /// Whether it was there.
    fn remove(&mut self, socket: &Arc<Socket>) -> bool {
        let place = self.all.iter().position(|one| Arc::ptr_eq(one, socket));
        place.map(|place| self.all.swap_remove(place)).is_some()
    }
}

impl Client {
    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody still has to decide about its socket in this namespace.
    fn is_on_its_way(&self, path: &str) -> bool {
        self.lock().find(path).is_some_and(|socket| !socket.is_connected())
    }

    /// Events that wait to be dispatched.
    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the client what Rust handlers have emitted to it until now, so that nothing overtakes it.
    pub(crate) fn flush_engines(&self) {
        if self.engines.load(Ordering::Acquire) == 0 {
            return;
        }
        let sockets: SmallVec<[Arc<Socket>; 4]> = self.lock().all.iter().cloned().collect();
        for engine in sockets.iter().filter_map(|socket| socket.engine.get()) {
            engine.flush();
        }
    }

    /// How the client introduced itself, if `id` is one of its sockets.
    pub(crate) fn describe(
        &self,
        session: &Session,
        namespace: &str,
        id: SocketId,
    ) -> Option<wire::Handshake> {
        let sockets = self.lock();
        let socket = sockets.find(namespace).filter(|socket| socket.id == id)?;
        Some(self.info.describe(session.address(), session.opened(), socket.auth.as_deref()))
    }

    /// A server sends the client away: out of a namespace, or out of all and off the node.
    pub(crate) fn disconnected(
        &self,
        session: &Arc<Session>,
        namespace: &str,
        id: SocketId,
        close: bool,
    ) {
        let sockets: SmallVec<[Arc<Socket>; 4]> = self.lock().all.iter().cloned().collect();
        let is_meant =
            |socket: &&Arc<Socket>| close || socket.id == id && socket.entry.path == namespace;
        for socket in sockets.iter().filter(is_meant) {
            if self.leave(session, socket, CloseReason::ServerDisconnect) {
                let packet = packet::write_disconnect(&socket.entry.path);
                socket.entry.send_text(session, &packet);
            }
        }
        if close {
            session.close(CloseReason::ServerDisconnect, Ending::Flush);
        }
    }

    /// The socket leaves its namespace. False if it has already.
    fn leave(&self, session: &Session, socket: &Arc<Socket>, reason: CloseReason) -> bool {
        if !self.lock().remove(socket) {
            return false;
        }
        self.left(session, socket, reason);
        true
    }

    /// What follows once a socket is not among those of its client any more.
    fn left(&self, session: &Session, socket: &Arc<Socket>, reason: CloseReason) {
        drop(socket.expected.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(engine) = socket.engine.get() {
            self.engines.fetch_sub(1, Ordering::AcqRel);
            match reason {
                CloseReason::ClientDisconnect => engine.disconnect(),
                CloseReason::ServerDisconnect => engine.disconnect_by_server(),
                _ => engine.close(),
            }
        }
        if !socket.is_connected() {
            return;
        }
        let entry = &socket.entry;
        entry.namespace.remove(socket.id);
        entry.open.dec();
        entry.closed.of(reason).inc();
        if self.may_log() {
            tracing::info!(
                client = session.number(),
                namespace = entry.path,
                reason = reason.as_str(),
                "disconnected"
            );
        }
    }

    fn may_log(&self) -> bool {
        let mut lines = self.log_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.0.is_none_or(|second| second.elapsed() >= Duration::from_secs(1)) {
            *lines = (Some(Instant::now()), 0);
        }
        lines.1 += 1;
        lines.1 <= LOG_LINES_PER_SECOND
    }

    fn limiters(&self, entry: &Arc<Entry>) -> Limiters {
        if !entry.rules.has_rates() {
            return Limiters::default();
        }
        let key = Arc::as_ptr(entry) as usize;
        let mut all = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, limiters)) = all.iter().find(|(one, _)| *one == key) {
            return limiters.clone();
        }
        let limiters = entry.rules.limiters();
        all.push((key, limiters.clone()));
        limiters
    }

    fn attachments(&self) -> MutexGuard<'_, Option<Box<Attachments>>> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Namespaces {
    /// The namespaces of `config`.
    pub(crate) fn new(
        config: &Arc<Config>,
        cluster: Cluster<FanOut>,
        engine: Arc<Engine>,
        dispatcher: Dispatcher,
        budget: Arc<Budget>,
        metrics: Arc<GatewayMetrics>,
    ) -> Result<Self, antiphon_metrics::Error> {
        let shared = Arc::new(Shared {
            cluster,
            engine,
            dispatcher,
            metrics,
            budget,
            limits: config.limits.clone(),
            connect_timeout: config.session.connect_timeout,
            config: Arc::clone(config),
            other_parsers: LogThrottle::default(),
        });
        let mut entries = HashMap::new();
        for path in &config.namespaces {
            entries.insert(path.clone(), Arc::new(Entry::new(path, &shared)?));
        }
        Ok(Self { entries: RwLock::new(entries), shared })
    }

    /// The namespace at `path`: a configured one, or one with Rust handlers.
    fn entry(&self, path: &str) -> Option<Arc<Entry>> {
        let known = self.entries.read().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if known.is_some() || !self.shared.engine.handles(path) {
            return known;
        }
        // As many as the application has: clients cannot make namespaces.
        let entry = Arc::new(Entry::new(path, &self.shared).ok()?);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(entries.entry(path.to_owned()).or_insert(entry)))
    }

    fn text(&self, session: &Arc<Session>, text: &str) {
        let client = session.state();
        let unfinished = client.attachments().is_some();
        let parsed = packet::parse(text, self.shared.limits.max_attachments);
        let packet = match parsed {
            Ok(packet) if !unfinished => packet,
            _ => return broken(session),
        };
        if packet.attachments > 0 {
            let deadline = self.shared.limits.attachment_timeout;
            let held = text.len();
            *client.attachments() = Some(Box::new(Attachments::new(text, &packet)));
            session.set_unfinished_bytes(held);
            session.set_alarm(deadline);
            return;
        }
        self.packet(session, text, &packet, Vec::new());
    }

    fn binary(&self, session: &Arc<Session>, bytes: Bytes) {
        let mut unfinished = session.state().attachments();
        let Some(attachments) = unfinished.as_mut() else {
            drop(unfinished);
            if packet::is_msgpack(&bytes)
                && let Some(suppressed) = self.shared.other_parsers.may_log()
            {
                tracing::warn!(
                    client = session.number(),
                    suppressed,
                    "closed: the client uses another parser (socket.io-msgpack-parser?); Antiphon speaks the default one"
                );
            }
            return broken(session);
        };
        let whole = attachments.add(bytes);
        let held = attachments.bytes();
        if attachments.attachment_bytes() > self.shared.limits.max_message_bytes {
            drop(unfinished);
            session.close(CloseReason::TooLarge, Ending::CloseFrame(Some(1009)));
            return;
        }
        if !whole {
            drop(unfinished);
            session.set_unfinished_bytes(held);
            return;
        }
        let Some(whole) = unfinished.take().map(|whole| *whole) else { return };
        drop(unfinished);
        session.set_unfinished_bytes(0);
        let (text, attachments) = whole.into_parts();
        match packet::parse(&text, self.shared.limits.max_attachments) {
            Ok(packet) => self.packet(session, &text, &packet, attachments),
            // It was parsed when it came.
            Err(_) => broken(session),
        }
    }

    /// A packet, with all of its attachments. It waits while its socket is on its way in.
    fn packet(
        &self,
        session: &Arc<Session>,
        text: &str,
        packet: &Packet<'_>,
        attachments: Vec<Bytes>,
    ) {
        let client = session.state();
        let socket = client.lock().find(packet.namespace).cloned();
        let at_once = socket.as_ref().is_none_or(|socket| socket.is_connected());
        if at_once && !client.deferred.any() {
            return self.carry_out(session, socket, packet, attachments);
        }
        let is_on_its_way = || client.is_on_its_way(packet.namespace);
        match client.deferred.defer(packet.namespace, text, attachments, is_on_its_way) {
            Ok(None) => {}
            Ok(Some(attachments)) => {
                let socket = client.lock().find(packet.namespace).cloned();
                self.carry_out(session, socket, packet, attachments);
            }
            Err(TooManyError) => broken(session),
        }
    }

    fn carry_out(
        &self,
        session: &Arc<Session>,
        socket: Option<Arc<Socket>>,
        packet: &Packet<'_>,
        attachments: Vec<Bytes>,
    ) {
        match (packet.kind, socket) {
            (Kind::Connect, None) => self.connect(session, packet),
            // Clients of Socket.IO 2 are connected to "/" from the beginning.
            (Kind::Connect, Some(_)) if session.protocol() == Protocol::Eio3 => {}
            (Kind::Disconnect, Some(socket)) => {
                session.state().leave(session, &socket, CloseReason::ClientDisconnect);
            }
            (Kind::Event | Kind::BinaryEvent, Some(socket)) if socket.is_connected() => {
                self.event(session, &socket, packet, attachments);
            }
            (Kind::Ack | Kind::BinaryAck, Some(socket)) if socket.is_connected() => {
                self.acknowledged(session, &socket, packet, attachments);
            }
            // Of another namespace, or at the wrong time: Node closes the client (client.ts, `ondecoded`).
            _ => broken(session),
        }
    }

    /// Carries out what waited for a decision in this namespace. What comes meanwhile waits behind it.
    fn resume(&self, session: &Arc<Session>, path: &str) {
        let client = session.state();
        let (is_undecided, mut ours) = (|| client.is_on_its_way(path), false);
        while let Some(next) = client.deferred.next(path, is_undecided, &mut ours) {
            // It was parsed when it came.
            if let Ok(packet) = packet::parse(&next.text, self.shared.limits.max_attachments) {
                let socket = client.lock().find(path).cloned();
                self.carry_out(session, socket, &packet, next.attachments);
            }
        }
    }

    fn event(
        &self,
        session: &Arc<Session>,
        socket: &Arc<Socket>,
        packet: &Packet<'_>,
        attachments: Vec<Bytes>,
    ) {
        let entry = &socket.entry;
        // What is no event is a parse error in Node.
        let Some(event) = Event::parse(packet.data) else { return broken(session) };
        let rule = entry.rules.find(event.name());
        if let (None, Some(engine)) = (rule, socket.engine.get()) {
            return forward(engine, packet, &attachments);
        }
        let sender = Sender { session, socket, entry };
        entry.rules.receive(
            &self.shared.dispatcher,
            &sender,
            packet.ack,
            &event,
            rule,
            attachments,
        );
    }

    fn acknowledged(
        &self,
        session: &Arc<Session>,
        socket: &Socket,
        packet: &Packet<'_>,
        attachments: Vec<Bytes>,
    ) {
        let Some(id) = packet.ack else { return };
        let max_depth = self.shared.limits.max_json_depth;
        if !payload::is_readable_array(packet.data, attachments.len(), max_depth) {
            return broken(session);
        }
        if id >= FIRST_ACK_ID {
            let attachments = (!attachments.is_empty()).then(|| attachments.into());
            let value = Value::Str(Str::from(packet.data.to_owned()), attachments);
            socket.entry.namespace.acknowledge(socket.id, id, value);
        } else if let Some(engine) = socket.engine.get() {
            forward(engine, packet, &attachments);
        }
    }

    fn connect(&self, session: &Arc<Session>, packet: &Packet<'_>) {
        let client = session.state();
        let path = packet.namespace;
        let Some(entry) = self.entry(path) else {
            let error = r#"{"message":"Invalid namespace"}"#;
            let refusal = packet::write_connect_error(path, error, session.protocol());
            let mut frames = FrameBatchBuilder::default();
            frames.message(&[&refusal]);
            session.send_one(&frames.build(0, false, &self.shared.budget));
            return;
        };
        let auth = auth(packet, self.shared.limits.max_json_depth);
        let socket = Arc::new(Socket {
            limiters: client.limiters(&entry),
            entry,
            id: socket_id(session),
            connected: AtomicBool::new(false),
            engine: OnceLock::new(),
            expected: Mutex::default(),
            auth: auth
                .clone()
                .filter(|auth| auth.len() <= AUTH_BYTES_MAX)
                .map(String::into_boxed_str),
        });
        let mut sockets = client.lock();
        if sockets.closed || sockets.find(path).is_some() {
            return;
        }
        sockets.all.push(Arc::clone(&socket));
        drop(sockets);
        if self.shared.engine.handles(path) {
            self.ask_engine(session, &socket, auth.as_deref());
        } else {
            self.shared.admit(session, &socket, None);
        }
    }

    /// Has the application's connection handler decide.
    fn ask_engine(&self, session: &Arc<Session>, socket: &Arc<Socket>, auth: Option<&str>) {
        let mut head = session.state().info.request();
        head.extensions_mut().insert(socket.id);
        head.extensions_mut().insert(session.address());
        let link = EngineLink::new(session, socket, &self.shared);
        let path = &socket.entry.path;
        let Ok(engine) = self.shared.engine.open(head, path, Arc::new(link)) else {
            self.shared.refuse(session, socket, r#"{"message":"unavailable"}"#);
            return;
        };
        let expected = socket.entry.namespace.expect_engine();
        *socket.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(expected);
        session.state().engines.fetch_add(1, Ordering::AcqRel);
        let engine = socket.engine.get_or_init(|| engine);
        engine.connect(auth);
    }

    /// Keeps the number of rooms in the metrics. Takes 0.2 s for 100,000 sockets in ten rooms each.
    pub(crate) fn count_rooms(&self) {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entries: Vec<_> = entries.values().cloned().collect();
        for entry in entries {
            let rooms = entry.namespace.count_rooms();
            entry.rooms.set(i64::try_from(rooms).unwrap_or(i64::MAX));
        }
    }
}

impl Shared {
    /// Lets a socket in: its CONNECT packet goes out, and from then on it is in the register.
    fn admit(&self, session: &Arc<Session>, socket: &Arc<Socket>, engine: Option<Sid>) {
        let entry = &socket.entry;
        let id = socket.id.to_string();
        let connect = packet::write_connect(&entry.path, &id, session.protocol());
        let connect = entry.encode(&connect, &[]);
        let client = session.state();
        let sockets = client.lock();
        let is_wanted =
            !sockets.closed && sockets.find(&entry.path).is_some_and(|one| one.id == socket.id);
        if !is_wanted || socket.connected.swap(true, Ordering::AcqRel) {
            return;
        }
        // Nothing that is for the namespace comes before the CONNECT packet, and nothing is missed after it.
        let enter = || {
            entry.namespace.insert(socket.id, Arc::clone(session));
            if let Some(engine) = engine {
                entry.namespace.set_engine(socket.id, engine);
            }
        };
        let sent = session.offer_after(enter, &connect);
        entry.open.inc();
        entry.opened.of(()).inc();
        drop(sockets);
        drop(socket.expected.lock().unwrap_or_else(PoisonError::into_inner).take());
        session.settle(sent);
        if session.establish()
            && let Ok(time) = session.opened().elapsed()
        {
            self.metrics.handshake_seconds.observe(time);
        }
        session.handler().resume(session, &socket.entry.path);
        if client.may_log() {
            tracing::info!(
                client = session.number(),
                address = %session.address(),
                namespace = entry.path,
                transport = TransportName::as_str(session.transport()),
                protocol = Protocol::as_str(session.protocol()),
                "connected"
            );
        }
    }

    /// Keeps a socket out: `error` is the JSON object of its CONNECT_ERROR packet.
    fn refuse(&self, session: &Arc<Session>, socket: &Arc<Socket>, error: &str) {
        if session.state().leave(session, socket, CloseReason::ServerDisconnect) {
            let path = &socket.entry.path;
            let refusal = packet::write_connect_error(path, error, session.protocol());
            socket.entry.send_text(session, &refusal);
        }
        session.handler().resume(session, &socket.entry.path);
    }
}

/// The id of a new socket. Clients of Socket.IO 2 are not told one: they take the session's (Node does, too).
fn socket_id(session: &Session) -> SocketId {
    let own = session.id_of_eio3().and_then(|id| id.parse().ok());
    own.unwrap_or_else(SocketId::random)
}

/// The client sent what has no meaning: Node closes it.
fn broken(session: &Arc<Session>) {
    session.close(CloseReason::ParseError, Ending::CloseFrame(None));
}

/// What came with a CONNECT packet, as JSON: an object of Socket.IO 3, or the query of Socket.IO 2.
fn auth(packet: &Packet<'_>, max_depth: usize) -> Option<String> {
    if let Some(query) = packet.query {
        let pairs = form_urlencoded::parse(query.as_bytes());
        let object: serde_json::Map<_, _> =
            pairs.map(|(name, value)| (name.into_owned(), value.into())).collect();
        return Some(serde_json::Value::Object(object).to_string());
    }
    payload::is_readable_object(packet.data, max_depth).then(|| packet.data.to_owned())
}

/// Passes a packet on to the handlers.
fn forward(engine: &EngineSession, packet: &Packet<'_>, attachments: &[Bytes]) {
    let text = match (packet.kind, packet.ack) {
        (Kind::Ack | Kind::BinaryAck, Some(id)) => {
            packet::write_ack(packet.namespace, id, packet.data, attachments.len())
        }
        (_, ack) => packet::write_event(packet.namespace, ack, packet.data, attachments.len()),
    };
    if let Err(error) = engine.forward(&text, attachments) {
        tracing::debug!(%error, "the engine does not take a packet");
    }
}

impl transport::Handler for Namespaces {
    type State = Client;

    fn open(&self, handshake: &Handshake<'_>) -> Client {
        Client {
            info: HandshakeInfo::new(handshake.uri, handshake.headers),
            sockets: Mutex::default(),
            engines: AtomicUsize::new(0),
            attachments: Mutex::default(),
            deferred: DeferredPackets::default(),
            pending: Mutex::default(),
            limiters: Mutex::default(),
            log_lines: Mutex::default(),
        }
    }

    fn opened(&self, session: &Arc<Session>) {
        session.set_alarm(self.shared.connect_timeout);
        // Socket.IO 2 connects to "/" without asking.
        if session.protocol() == Protocol::Eio3
            && let Ok(packet) = packet::parse("0", 0)
        {
            self.connect(session, &packet);
        }
    }

    fn message(&self, session: &Arc<Session>, message: Message) {
        match message {
            Message::Text(text) => self.text(session, &text),
            Message::Binary(bytes) => self.binary(session, bytes),
        }
    }

    fn alarm(&self, session: &Arc<Session>) {
        let overdue = session.state().attachments().as_ref().is_some_and(|unfinished| {
            unfinished.since().elapsed() >= self.shared.limits.attachment_timeout
        });
        if overdue {
            return broken(session);
        }
        let age = session.opened().elapsed().unwrap_or_default();
        if age >= self.shared.connect_timeout && !session.is_established() {
            session.close(CloseReason::TransportClose, Ending::Flush);
        }
    }

    fn closed(&self, session: &Arc<Session>, reason: CloseReason) {
        let client = session.state();
        let mut sockets = client.lock();
        sockets.closed = true;
        let all = std::mem::take(&mut sockets.all);
        drop(sockets);
        for socket in &all {
            client.left(session, socket, reason);
        }
        drop(client.attachments().take());
        client.deferred.clear();
        session.set_unfinished_bytes(0);
        self.shared.dispatcher.forget_holds(session);
    }
}
