//! A client's session, from its handshake until nothing is left of it, and the table of all of them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use antiphon_metrics::gateway::{CloseReason, SessionEnd, Transport as TransportName, Undelivered};
use bytes::Bytes;
use rustc_hash::FxBuildHasher;
use tokio::{net::TcpStream, sync::Notify};

use super::{
    Handler, Protocol, Transport,
    batch::FrameBatch,
    memory::{Budget, Held},
    outbound::{Ending, Outbound, Sent},
    sid::SessionId,
    wheel::Alarm,
};
use crate::net::{ConnectionHandle, Permit, group};

/// A polling client that is there comes back with its next poll far sooner.
const LAST_POLL_PATIENCE: Duration = Duration::from_secs(1);

/// Reads stop while more than this waits for the client: whoever does not take answers asks for no more.
const READ_PAUSE_BYTES: usize = 64 * 1024;

/// One client.
pub struct Session<H: Handler> {
    transport: Arc<Transport<H>>,
    id: SessionId,
    number: u64,
    protocol: Protocol,
    address: IpAddr,
    opened: SystemTime,
    outbound: Outbound,
    heartbeat: Mutex<Heartbeat>,
    on_websocket: AtomicBool,
    established: AtomicBool,
    reads_held: AtomicBool,
    posting: AtomicBool,
    /// Bytes of messages that are not whole yet, for the transport and for the application.
    inbound_bytes: [AtomicUsize; 2],
    /// The answer to a poll that is being written, if it is a large one.
    answer: Mutex<Option<Unwritten>>,
    stall_watched: AtomicBool,
    /// Wakes a request whose answer waits until reads are let go.
    let_go: Notify,
    close_reason: OnceLock<CloseReason>,
    state: H::State,
    _permit: Permit,
}

/// A smaller answer costs no more than a connection.
const ANSWER_HELD_MIN: usize = 16 * 1024;

/// An answer that the kernel has not taken yet.
#[derive(Debug)]
struct Unwritten {
    bytes: Arc<AtomicUsize>,
    connection: Weak<ConnectionHandle>,
}

/// The bytes of an answer, which count until the last of them is written.
struct Answer {
    payload: Bytes,
    bytes: Arc<AtomicUsize>,
    _held: Held,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.bytes.store(0, Ordering::Relaxed);
    }
}

/// Where the heartbeat stands.
#[derive(Debug, Clone, Copy)]
enum Heartbeat {
    /// The node sends a ping at this time (revision 4).
    Ping(Instant),
    /// The client must have sent something by then: a pong (revision 4) or a ping (3).
    Expect(Instant),
}

impl<H: Handler> fmt::Debug for Session<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<H: Handler> Session<H> {
    /// Names the client in logs. Its id would not do: whoever knows it can poll for the session.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The Engine.IO revision that the client speaks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Where the client is, proxies left out.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// When it came.
    pub fn opened(&self) -> SystemTime {
        self.opened
    }

    /// What carries packets at the moment.
    pub fn transport(&self) -> TransportName {
        match self.on_websocket.load(Ordering::Acquire) {
            true => TransportName::WebSocket,
            false => TransportName::Polling,
        }
    }

    /// The id of a session of revision 3, whose clients take it for the id of their sockets. Whoever has it can
    /// poll for the session, unless that is on a WebSocket. Other sessions keep theirs to themselves.
    pub fn id_of_eio3(&self) -> Option<&str> {
        (self.protocol == Protocol::Eio3).then(|| self.id.as_str())
    }

    /// What the session is for.
    pub fn handler(&self) -> &H {
        self.transport.handler()
    }

    /// What the application keeps with it.
    pub fn state(&self) -> &H::State {
        &self.state
    }

    /// Why it was closed, once it was.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.close_reason.get().copied()
    }

    /// Bytes that the node holds for this client alone, or from it.
    pub fn held_bytes(&self) -> usize {
        let inbound = self.inbound_bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed));
        let answer = self.lock_answer();
        let answer = answer.as_ref().map_or(0, |answer| answer.bytes.load(Ordering::Relaxed));
        self.outbound.waiting_bytes() + inbound.sum::<usize>() + answer
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    pub(super) fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    pub(super) fn hub(&self) -> &Arc<Transport<H>> {
        &self.transport
    }

    /// Sends a batch, after everything that was sent before. What becomes of it is counted by the caller,
    /// who may have many; a client for which too much waits is closed here.
    pub fn send(self: &Arc<Self>, batch: &FrameBatch) -> Sent {
        let sent = self.offer(batch);
        self.settle(sent);
        sent
    }

    /// The first half of [`Session::send`], which calls nobody: for those who hold a lock.
    pub fn offer(&self, batch: &FrameBatch) -> Sent {
        self.outbound.send(batch, self.transport.settings.send_queue_bytes)
    }

    /// The first half, after `prepare`: what others send to the session because of that comes after the batch.
    /// `prepare` must send nothing itself.
    pub fn offer_after(&self, prepare: impl FnOnce(), batch: &FrameBatch) -> Sent {
        self.outbound.send_after(prepare, batch, self.transport.settings.send_queue_bytes)
    }

    /// The second half.
    pub fn settle(self: &Arc<Self>, sent: Sent) {
        match sent {
            Sent::Accepted { waits: true, .. } => self.watch_stall(),
            Sent::Full => self.close(CloseReason::SlowConsumer, Ending::Reset),
            Sent::Accepted { .. } | Sent::Gone => {}
        }
    }

    /// The same for what only this client gets. False if it has not been accepted.
    pub fn send_one(self: &Arc<Self>, batch: &FrameBatch) -> bool {
        let sent = self.send(batch);
        if let Sent::Accepted { written, .. } = sent {
            self.transport.metrics.sent_bytes_total.inc_by(written as u64);
            return true;
        }
        false
    }

    /// Sees to it that a client that takes nothing is noticed.
    pub(super) fn watch_stall(&self) {
        if !self.stall_watched.swap(true, Ordering::AcqRel) {
            let timeout = self.transport.settings.write_stall_timeout;
            self.transport.wheel.schedule(self.id, Alarm::Stall, timeout);
        }
    }

    fn lock_answer(&self) -> MutexGuard<'_, Option<Unwritten>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the answer to a poll until it is written to `connection`.
    pub(super) fn hold_answer(&self, payload: Bytes, connection: &Arc<ConnectionHandle>) -> Bytes {
        if payload.len() < ANSWER_HELD_MIN {
            return payload;
        }
        let bytes = Arc::new(AtomicUsize::new(payload.len()));
        let connection = Arc::downgrade(connection);
        *self.lock_answer() = Some(Unwritten { bytes: Arc::clone(&bytes), connection });
        let held = Budget::hold(&self.transport.budget, payload.len());
        Bytes::from_owner(Answer { payload, bytes, _held: held })
    }

    /// Cuts the connection on which an answer is being written.
    fn abort_answer(&self) {
        let answer = self.lock_answer().take();
        let unwritten = answer.filter(|answer| answer.bytes.load(Ordering::Relaxed) > 0);
        if let Some(connection) = unwritten.and_then(|answer| answer.connection.upgrade()) {
            connection.abort();
        }
    }

    /// Stops reading from the client, until [`Session::release_reads`]: its messages wait in the network.
    pub fn hold_reads(&self) {
        self.reads_held.store(true, Ordering::Release);
    }

    /// Goes on reading.
    pub fn release_reads(&self) {
        if self.reads_held.swap(false, Ordering::AcqRel) {
            self.outbound.wake();
            self.let_go.notify_waiters();
        }
    }

    /// Begins to take the packets of a POST, unless another one is at it.
    pub(super) fn begin_post(&self) -> Option<Posting<'_>> {
        let first = !self.posting.swap(true, Ordering::AcqRel);
        first.then_some(Posting(&self.posting))
    }

    /// Whether the client is to be read from.
    pub(super) fn may_read(&self, waiting_bytes: usize) -> bool {
        waiting_bytes <= READ_PAUSE_BYTES && !self.reads_held.load(Ordering::Acquire)
    }

    /// Returns once reads are not held, or the session ends.
    pub(super) async fn reads_released(&self) {
        loop {
            let let_go = self.let_go.notified();
            if !self.reads_held.load(Ordering::Acquire) || self.outbound.ending().is_some() {
                return;
            }
            let_go.await;
        }
    }

    /// The transport holds so many bytes of a message that is not whole.
    pub(super) fn set_inbound_bytes(self: &Arc<Self>, bytes: usize) {
        self.grow(0, bytes);
    }

    /// The application holds so many bytes of what the client has not finished sending.
    pub fn set_unfinished_bytes(self: &Arc<Self>, bytes: usize) {
        self.grow(1, bytes);
    }

    /// Whoever asks for more when next to nothing is left goes, however little it holds: those that hold most
    /// may not have let go yet.
    fn grow(self: &Arc<Self>, whose: usize, bytes: usize) {
        if self.charge(whose, bytes) && self.transport.budget.is_exhausted() {
            self.close(CloseReason::Memory, Ending::Reset);
        }
    }

    /// Counts what is held. Returns whether it is more than before.
    fn charge(&self, whose: usize, bytes: usize) -> bool {
        let before = self.inbound_bytes[whose].swap(bytes, Ordering::Relaxed);
        match bytes.checked_sub(before) {
            Some(0) => {}
            Some(more) => self.transport.budget.add(more),
            None => self.transport.budget.sub(before - bytes),
        }
        bytes > before
    }

    /// Calls [`Handler::alarm`] after a while; at most some milliseconds late, never early unless `after`
    /// is above 80 s.
    pub fn set_alarm(&self, after: Duration) {
        self.transport.wheel.schedule(self.id, Alarm::Application, after);
    }

    /// The application has accepted the client: it is not among those that are closed when too many
    /// have not said what they want.
    /// Returns whether this is the first time.
    pub fn establish(&self) -> bool {
        let first = !self.established.swap(true, Ordering::AcqRel);
        if first {
            self.transport.table.established(self.id, self.address);
        }
        first
    }

    /// Whether the application has accepted the client.
    pub fn is_established(&self) -> bool {
        self.established.load(Ordering::Acquire)
    }

    /// Closes the session; what waits for the client goes out as `ending` says. The first reason counts.
    pub fn close(self: &Arc<Self>, reason: CloseReason, ending: Ending) {
        if !self.outbound.end(ending) {
            self.finish_if_cut();
            return;
        }
        let _ = self.close_reason.set(reason);
        tracing::debug!(client = self.number, reason = reason.as_str(), "session closed");
        self.let_go.notify_waiters();
        self.transport.handler.closed(self, reason);
        if reason == CloseReason::Memory {
            self.abort_answer();
        }
        if self.transport() == TransportName::WebSocket {
            self.watch_stall();
        } else if ending == Ending::Reset || self.outbound.waiting_bytes() == 0 {
            self.finish();
        } else {
            self.transport.wheel.schedule(self.id, Alarm::LastPoll, LAST_POLL_PATIENCE);
        }
    }

    /// Cuts the connection; what waits is lost.
    pub fn abort(self: &Arc<Self>, reason: CloseReason) {
        self.close(reason, Ending::Reset);
    }

    fn finish_if_cut(self: &Arc<Self>) {
        let cut = self.outbound.ending() == Some(Ending::Reset);
        if cut && self.transport() == TransportName::Polling {
            self.finish();
        }
    }

    /// Takes the session out of the table. Everything that is counted for it ends here.
    pub(super) fn finish(self: &Arc<Self>) {
        let lost = self.outbound.close();
        if !self.transport.table.remove(self) {
            return;
        }
        let metrics = &self.transport.metrics;
        metrics.undelivered_total.of(Undelivered::Gone).inc_by(lost);
        let kind = (self.transport(), self.protocol);
        metrics.sessions.of(kind).dec();
        let end = self.end_of();
        metrics.sessions_closed_total.of((kind.0, end)).inc();
    }

    fn end_of(&self) -> SessionEnd {
        let named = match self.close_reason() {
            Some(CloseReason::ParseError) => Some(SessionEnd::ParseError),
            Some(CloseReason::TooLarge) => Some(SessionEnd::TooLarge),
            Some(CloseReason::ServerDisconnect) => Some(SessionEnd::ServerDisconnect),
            Some(CloseReason::SlowConsumer) => Some(SessionEnd::SlowConsumer),
            Some(CloseReason::WriteStalled) => Some(SessionEnd::WriteStalled),
            Some(CloseReason::ServerShutdown) => Some(SessionEnd::ServerShutdown),
            Some(CloseReason::Memory) => Some(SessionEnd::Memory),
            _ => None,
        };
        let other = match self.established.load(Ordering::Acquire) {
            true => SessionEnd::Transport,
            false => SessionEnd::NeverConnected,
        };
        named.unwrap_or(other)
    }

    /// The client goes on over a WebSocket. False if it cannot any more.
    pub(super) fn upgrade(self: &Arc<Self>, stream: Arc<TcpStream>) -> bool {
        if !self.outbound.upgrade(stream) {
            return false;
        }
        let sessions = &self.transport.metrics.sessions;
        sessions.of((TransportName::Polling, self.protocol)).dec();
        sessions.of((TransportName::WebSocket, self.protocol)).inc();
        self.on_websocket.store(true, Ordering::Release);
        self.watch_stall();
        true
    }

    /// A sign of life that counts as one: a pong (revision 4) or a ping (3).
    pub(super) fn heard(&self) {
        let Transport { settings, .. } = &*self.transport;
        *self.lock_heartbeat() = match self.protocol {
            Protocol::Eio4 => Heartbeat::Ping(Instant::now() + settings.ping_interval),
            Protocol::Eio3 => {
                Heartbeat::Expect(Instant::now() + settings.ping_interval + settings.ping_timeout)
            }
        };
    }

    fn lock_heartbeat(&self) -> MutexGuard<'_, Heartbeat> {
        self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wheel has come round.
    pub(super) fn look(self: &Arc<Self>, alarm: Alarm, now: Instant) {
        match alarm {
            Alarm::Heartbeat => self.look_at_heartbeat(now),
            Alarm::Stall => self.look_at_stall(now),
            Alarm::LastPoll => self.finish(),
            Alarm::Application => self.transport.handler.alarm(self),
        }
    }

    fn look_at_heartbeat(self: &Arc<Self>, now: Instant) {
        if self.outbound.ending().is_some() {
            return;
        }
        let Transport { settings, .. } = &*self.transport;
        let (interval, timeout) = (settings.ping_interval, settings.ping_timeout);
        let heartbeat = *self.lock_heartbeat();
        let next = match heartbeat {
            Heartbeat::Ping(at) if at <= now => {
                *self.lock_heartbeat() = Heartbeat::Expect(at + timeout);
                self.send_one(&self.transport.packets.ping);
                timeout.min(interval)
            }
            Heartbeat::Ping(at) => at - now,
            // The answer may be there long before, and then the next ping is due before that, too.
            Heartbeat::Expect(at) if at > now => (at - now).min(interval),
            // While reads are held, an answer may have come that nobody has read.
            Heartbeat::Expect(_) if self.is_held_but_alive(now) => timeout,
            Heartbeat::Expect(_) => {
                self.close(CloseReason::PingTimeout, Ending::Flush);
                return;
            }
        };
        self.transport.wheel.schedule(self.id, Alarm::Heartbeat, next);
    }

    /// Closes the session if the client is overdue: the wheel may be a little late. Whether it is.
    pub(super) fn is_overdue(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let overdue = matches!(*self.lock_heartbeat(), Heartbeat::Expect(at) if at <= now);
        if overdue && !self.is_held_but_alive(now) {
            self.close(CloseReason::PingTimeout, Ending::Flush);
            return true;
        }
        false
    }

    fn is_held_but_alive(&self, now: Instant) -> bool {
        let waiting = self.outbound.waiting_bytes();
        let takes = now - self.outbound.last_progress() < self.transport.settings.ping_timeout;
        let held = self.reads_held.load(Ordering::Acquire);
        held || waiting > READ_PAUSE_BYTES && takes && self.transport() == TransportName::WebSocket
    }

    fn look_at_stall(self: &Arc<Self>, now: Instant) {
        self.stall_watched.store(false, Ordering::Release);
        let Some(stalled) = self.outbound.stalled_for(now) else { return };
        let timeout = self.transport.settings.write_stall_timeout;
        match timeout.checked_sub(stalled) {
            None | Some(Duration::ZERO) => self.abort(CloseReason::WriteStalled),
            Some(left) if !self.stall_watched.swap(true, Ordering::AcqRel) => {
                self.transport.wheel.schedule(self.id, Alarm::Stall, left);
            }
            Some(_) => {}
        }
    }
}

/// A POST whose packets are being taken.
pub(super) struct Posting<'a>(&'a AtomicBool);

impl Drop for Posting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<H: Handler> Drop for Session<H> {
    fn drop(&mut self) {
        self.charge(0, 0);
        self.charge(1, 0);
    }
}

/// All sessions of a node.
#[derive(Debug)]
pub(super) struct Table<H: Handler> {
    sessions: RwLock<HashMap<SessionId, Arc<Session<H>>, FxBuildHasher>>,
    next_number: AtomicU64,
    emptied: Notify,
    newcomers: Mutex<Newcomers>,
}

/// Sessions that have not been established, the oldest first.
#[derive(Debug, Default)]
struct Newcomers {
    order: VecDeque<(SessionId, IpAddr)>,
    waiting: HashSet<SessionId>,
    by_address: HashMap<IpAddr, usize>,
}

impl Newcomers {
    fn remove(&mut self, id: SessionId, address: IpAddr) {
        if !self.waiting.remove(&id) {
            return;
        }
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
        // Those that have gone stay in `order` until they come to the front, or are half of it.
        while self.order.front().is_some_and(|(id, _)| !self.waiting.contains(id)) {
            self.order.pop_front();
        }
        if self.order.len() > 2 * self.waiting.len() + 64 {
            let waiting = &self.waiting;
            self.order.retain(|(id, _)| waiting.contains(id));
        }
    }
}

impl<H: Handler> Table<H> {
    pub(super) fn new() -> Self {
        Self {
            sessions: RwLock::default(),
            next_number: AtomicU64::new(1),
            emptied: Notify::new(),
            newcomers: Mutex::default(),
        }
    }

    fn read(
        &self,
    ) -> std::sync::RwLockReadGuard<'_, HashMap<SessionId, Arc<Session<H>>, FxBuildHasher>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, id: SessionId) -> Option<Arc<Session<H>>> {
        self.read().get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Session<H>>> {
        let mut all: Vec<_> = self.read().values().cloned().collect();
        all.sort_unstable_by_key(|session| session.number);
        all
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    pub(super) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.len() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn newcomers(&self) -> MutexGuard<'_, Newcomers> {
        self.newcomers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, session: &Arc<Session<H>>) {
        let mut newcomers = self.newcomers();
        let address = group(session.address);
        newcomers.order.push_back((session.id, address));
        newcomers.waiting.insert(session.id);
        *newcomers.by_address.entry(address).or_default() += 1;
        drop(newcomers);
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(session.id, Arc::clone(session));
    }

    /// The newcomer that has to yield, if there are too many: the oldest of the address that has more
    /// than its share, else the oldest of all.
    fn surplus(
        &self,
        address: IpAddr,
        max: usize,
        max_per_address: usize,
    ) -> Option<Arc<Session<H>>> {
        let newcomers = self.newcomers();
        let of_address = newcomers.by_address.get(&group(address)).copied().unwrap_or(0);
        let too_many = newcomers.waiting.len() > max;
        drop(newcomers);
        match of_address > max_per_address {
            true => self.oldest_newcomer(Some(address)),
            false if too_many => self.oldest_newcomer(None),
            false => None,
        }
    }

    /// The session that has been without an answer from the application for longest; of one address, or of all.
    pub(super) fn oldest_newcomer(&self, address: Option<IpAddr>) -> Option<Arc<Session<H>>> {
        let address = address.map(group);
        let newcomers = self.newcomers();
        let is_meant = |(id, whose): &&(SessionId, IpAddr)| {
            address.is_none_or(|address| *whose == address) && newcomers.waiting.contains(id)
        };
        let (id, _) = *newcomers.order.iter().find(is_meant)?;
        drop(newcomers);
        self.find(id)
    }

    fn established(&self, id: SessionId, address: IpAddr) {
        self.newcomers().remove(id, group(address));
    }

    /// Whether the session was there.
    fn remove(&self, session: &Session<H>) -> bool {
        self.newcomers().remove(session.id, group(session.address));
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        let removed = sessions.remove(&session.id);
        let empty = sessions.is_empty();
        if sessions.capacity() > 1024 && sessions.len() < sessions.capacity() / 8 {
            sessions.shrink_to_fit();
        }
        drop(sessions);
        if empty {
            self.emptied.notify_waiters();
        }
        // Dropped without the lock: it may be the last of it.
        removed.is_some()
    }
}

/// Who a new session is for.
#[derive(Debug)]
pub(super) struct Newcomer<S> {
    pub(super) protocol: Protocol,
    pub(super) address: IpAddr,
    pub(super) state: S,
    pub(super) permit: Permit,
}

impl<H: Handler> Transport<H> {
    /// Opens a session; with its connection if it begins with a WebSocket.
    pub(super) fn open(
        self: &Arc<Self>,
        newcomer: Newcomer<H::State>,
        stream: Option<Arc<TcpStream>>,
    ) -> Arc<Session<H>> {
        let Newcomer { protocol, address, state, permit } = newcomer;
        let settings = &self.settings;
        let now = Instant::now();
        let heartbeat = match protocol {
            Protocol::Eio4 => Heartbeat::Ping(now + settings.ping_interval),
            Protocol::Eio3 => {
                Heartbeat::Expect(now + settings.ping_interval + settings.ping_timeout)
            }
        };
        let on_websocket = AtomicBool::new(stream.is_some());
        let outbound = match stream {
            Some(stream) => Outbound::websocket(protocol, stream, &self.budget),
            None => Outbound::polling(protocol, &self.budget),
        };
        let session = Arc::new(Session {
            transport: Arc::clone(self),
            id: SessionId::random(),
            number: self.table.next_number.fetch_add(1, Ordering::Relaxed),
            protocol,
            address,
            opened: SystemTime::now(),
            outbound,
            heartbeat: Mutex::new(heartbeat),
            on_websocket,
            established: AtomicBool::new(false),
            reads_held: AtomicBool::new(false),
            posting: AtomicBool::new(false),
            inbound_bytes: Default::default(),
            answer: Mutex::default(),
            stall_watched: AtomicBool::new(false),
            let_go: Notify::new(),
            close_reason: OnceLock::new(),
            state,
            _permit: permit,
        });
        let kind = (session.transport(), protocol);
        self.metrics.sessions.of(kind).inc();
        self.metrics.sessions_opened_total.of(kind).inc();
        self.table.insert(&session);
        self.wheel.schedule(session.id, Alarm::Heartbeat, settings.ping_interval);
        let (max, max_per_address) =
            (settings.max_unconnected_sessions, settings.max_unconnected_sessions_per_ip);
        if let Some(oldest) = self.table.surplus(address, max, max_per_address) {
            oldest.close(CloseReason::TransportClose, Ending::Reset);
        }
        session
    }
}
