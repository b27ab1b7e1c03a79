//! The open Engine.IO sessions: one for each client, whatever connections it uses.
//!
//! The engine keeps its own sessions to itself, so a [`Session`] travels in the extensions of the
//! handshake request, which the engine keeps as long as it keeps anything of its session. When that is
//! gone, the `Session` is dropped, and with it everything counted for it: nothing can be forgotten.
//!
//! The engine keeps a session that never connected to a namespace until `session.connect_timeout`,
//! even when its client has left. Such a session *ends* with its WebSocket, so that nobody waits for
//! it; its place among `server.max_connections` is free only when its memory is.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use antiphon_adapter::{Admission, Delivered, QueueError, Queues};
use antiphon_metrics::{
    GatewayMetrics, IntGauge,
    gateway::{CloseReason, Protocol, SessionEnd, Transport, Undelivered},
};
use futures_util::task::AtomicWaker;
use governor::DefaultDirectRateLimiter;
use rustc_hash::FxHashMap;
use socketioxide::socket::Sid;
use tokio::{
    sync::{Notify, mpsc},
    task::coop::unconstrained,
};

use crate::{
    fanout::{Encoded, put_fence},
    net::{ConnHandle, EngineQueue, Lane, Nsp, Owner, Permit, Sent},
};

/// Polling sessions that wait to be closed. When it is full, the next poll or the next batch of a drain asks again.
const CLOSING_MAX: usize = 1024;

/// A client for which more than this is waiting is behind: volatile events pass it by. Some messages may
/// be waiting for no other reason than that the task which writes them has not had its turn yet.
const BEHIND_BYTES: usize = 16 * 1024;

/// A polling client that is there comes back with its next poll far sooner.
const POLL_PATIENCE: Duration = Duration::from_secs(1);

/// All sessions of the node.
pub(crate) struct Sessions {
    metrics: Arc<GatewayMetrics>,
    next_number: AtomicU64,
    max_waiting_bytes: usize,
    // Read for every delivery, written when a session comes or goes.
    open: RwLock<Open>,
    emptied: Notify,
    close_polling: mpsc::Sender<PollingSession>,
    // Their places are their numbers. Clients cannot make namespaces.
    namespaces: RwLock<Vec<String>>,
}

#[derive(Default)]
struct Open {
    by_number: HashMap<u64, Weak<Session>>,
    // The same once their id is known. Ids are random, so that a weak hash will do.
    by_sid: FxHashMap<Sid, Entry>,
}

struct Entry {
    session: Weak<Session>,
    // Of the session's, what a delivery needs.
    protocol: Protocol,
    lane: Arc<Lane>,
}

/// What a delivery needs of a session, and no more: what it costs beside the write is the memory that is touched for
/// each recipient.
pub(crate) struct Recipient {
    pub(crate) sid: Sid,
    protocol: Protocol,
    lane: Arc<Lane>,
}

/// A session without a connection of its own, to be closed through the engine. Counted until it is.
#[derive(Debug)]
pub(crate) struct PollingSession {
    pub(crate) sid: Sid,
    pub(crate) protocol: Protocol,
    waiting: IntGauge,
}

impl PollingSession {
    fn new(sid: Sid, protocol: Protocol, waiting: IntGauge) -> Self {
        waiting.inc();
        Self { sid, protocol, waiting }
    }
}

impl Drop for PollingSession {
    fn drop(&mut self) {
        self.waiting.dec();
    }
}

/// A token bucket for each rule that has a rate.
pub(crate) type Limiters = Arc<[DefaultDirectRateLimiter]>;

/// One client.
pub(crate) struct Session {
    /// Names the client in logs. Its id would not do: whoever knows it can poll for the session.
    pub(crate) number: u64,
    pub(crate) client: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) opened: SystemTime,
    has_connected: AtomicBool,
    sid: OnceLock<Sid>,
    // Set when the session begins with a WebSocket or is upgraded to one; never unset.
    websocket: OnceLock<Arc<ConnHandle>>,
    // What is sent to the client takes it, unless the client polls.
    lane: Arc<Lane>,
    // Why the node itself closes it, and since when.
    closing: OnceLock<(CloseReason, Instant)>,
    // A poll that waits for something to be sent.
    poll_waits: AtomicWaker,
    asked_engine: AtomicBool,
    ended: AtomicBool,
    // Payload handed to the engine and not yet to the kernel. A little less than there really is: what
    // the engine adds (headers, pings) is subtracted when it is written, but was never added.
    waiting_bytes: AtomicUsize,
    // By namespace. They outlive its sockets, so that leaving and coming back does not refill them.
    limiters: Mutex<Vec<(String, Limiters)>>,
    sessions: Arc<Sessions>,
    _permit: Permit,
}

impl Sessions {
    /// The polling sessions that have to be closed come out of the receiver.
    pub(crate) fn new(
        max_waiting_bytes: usize,
        metrics: Arc<GatewayMetrics>,
    ) -> (Arc<Self>, mpsc::Receiver<PollingSession>) {
        let (close_polling, closing) = mpsc::channel(CLOSING_MAX);
        metrics.closing_sessions_max.set(CLOSING_MAX as i64);
        let sessions = Self {
            metrics,
            next_number: AtomicU64::new(1),
            max_waiting_bytes,
            open: RwLock::default(),
            emptied: Notify::new(),
            close_polling,
            namespaces: RwLock::default(),
        };
        (Arc::new(sessions), closing)
    }

    /// A new client; with its connection if it starts with a WebSocket.
    pub(crate) fn open(
        self: &Arc<Self>,
        client: IpAddr,
        protocol: Protocol,
        websocket: Option<Arc<ConnHandle>>,
        permit: Permit,
    ) -> Arc<Session> {
        let session = Arc::new(Session {
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            client,
            protocol,
            opened: SystemTime::now(),
            has_connected: AtomicBool::new(false),
            sid: OnceLock::new(),
            websocket: websocket.map(OnceLock::from).unwrap_or_default(),
            lane: Arc::new(Lane::new(self.metrics.lanes_waiting_bytes.clone())),
            closing: OnceLock::new(),
            poll_waits: AtomicWaker::new(),
            asked_engine: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            waiting_bytes: AtomicUsize::new(0),
            limiters: Mutex::default(),
            sessions: Arc::clone(self),
            _permit: permit,
        });
        let kind = (session.transport(), protocol);
        self.metrics.sessions.of(kind).inc();
        self.metrics.sessions_opened_total.of(kind).inc();
        self.write().by_number.insert(session.number, Arc::downgrade(&session));
        session
    }

    /// The session with this id, if it is open.
    pub(crate) fn find(&self, sid: Sid) -> Option<Arc<Session>> {
        self.read().by_sid.get(&sid)?.session.upgrade()
    }

    /// The sessions with these ids: those that are not open are left out.
    pub(crate) fn recipients(&self, sids: &[Sid]) -> Vec<Recipient> {
        let open = self.read();
        let recipient = |sid: &Sid| {
            let Entry { protocol, lane, .. } = open.by_sid.get(sid)?;
            Some(Recipient { sid: *sid, protocol: *protocol, lane: Arc::clone(lane) })
        };
        sids.iter().filter_map(recipient).collect()
    }

    /// The number of a namespace.
    pub(crate) fn namespace(&self, path: &str) -> Nsp {
        let find = |all: &[String]| all.iter().position(|one| one == path);
        let known = find(&self.namespaces.read().unwrap_or_else(PoisonError::into_inner));
        let place = known.unwrap_or_else(|| {
            let mut all = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
            find(&all).unwrap_or_else(|| {
                all.push(path.to_owned());
                all.len() - 1
            })
        });
        Nsp(place as u32)
    }

    /// Every open session, the oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.read().by_number.values().filter_map(Weak::upgrade).collect();
        all.sort_unstable_by_key(|session| session.number);
        all
    }

    /// How many sessions are open.
    pub(crate) fn count(&self) -> usize {
        self.read().by_number.len()
    }

    /// Returns once no session is open.
    pub(crate) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Open> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// Whether `bytes` more may wait in the engine's queue for `sid`, and notes that they do.
    pub(crate) fn admit(&self, sid: Sid, bytes: usize, volatile: bool) -> Admission {
        let Some(session) = self.find(sid) else { return Admission::Gone };
        // What came before it was closed still goes out (`poll`); what comes after would keep it open.
        if session.websocket.get().is_none() && session.closing.get().is_some() {
            return Admission::Gone;
        }
        let waiting = session.waiting_bytes.load(Ordering::Relaxed);
        if volatile && waiting > BEHIND_BYTES {
            return Admission::Skip;
        }
        // One packet may always wait, however large: it is within limits.max_message_bytes.
        if waiting > 0 && waiting + bytes > self.max_waiting_bytes {
            session.close(CloseReason::SlowConsumer);
            return Admission::TooSlow;
        }
        session.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.queues_waiting_bytes.add(bytes as i64);
        Admission::Queue
    }

    /// Sends events to a client's socket in their namespace, on its lane.
    pub(crate) fn send(
        &self,
        Recipient { sid, protocol, lane }: &Recipient,
        events: &Encoded,
        engine: &mut impl EngineQueue,
    ) -> Sent {
        let segment = events.segment(*protocol);
        let sent = lane.send(events.namespace, segment, self.max_waiting_bytes, engine);
        match sent {
            Sent::Accepted { wake: true, .. } | Sent::Volatile { wake: true, .. } => {
                if let Some(session) = self.find(*sid)
                    && let Some(conn) = session.websocket.get()
                {
                    conn.wake_reader();
                }
            }
            Sent::Full => self.close(*sid, CloseReason::SlowConsumer),
            _ => {}
        }
        sent
    }

    /// Closes a session, if it is open.
    pub(crate) fn close(&self, sid: Sid, reason: CloseReason) {
        if let Some(session) = self.find(sid) {
            session.close(reason);
        }
    }

    /// Counts deliveries, and the bytes that were written for them at once.
    pub(crate) fn delivered(&self, delivered: &Delivered, written: usize) {
        self.metrics.sent_bytes_total.inc_by(written as u64);
        let undelivered = &self.metrics.undelivered_total;
        self.metrics.deliveries_total.inc_by(delivered.queued);
        for (reason, events) in [
            (Undelivered::SlowConsumer, delivered.too_slow),
            (Undelivered::Volatile, delivered.skipped),
            (Undelivered::Gone, delivered.gone),
        ] {
            if events > 0 {
                undelivered.of(reason).inc_by(events);
            }
        }
    }
}

impl Session {
    /// The engine's id for it, as soon as somebody has seen it.
    pub(crate) fn identify(self: &Arc<Self>, sid: Sid) {
        if self.sid.set(sid).is_ok() {
            let mut open = self.sessions.write();
            if !self.ended.load(Ordering::Acquire) {
                let entry = Entry {
                    session: Arc::downgrade(self),
                    protocol: self.protocol,
                    lane: Arc::clone(&self.lane),
                };
                open.by_sid.insert(sid, entry);
            }
        }
    }

    /// The client goes over from polling to this WebSocket.
    pub(crate) fn upgrade(&self, conn: Arc<ConnHandle>) {
        // Under the lock that the end of the session takes, so that it is counted off where it is.
        let open = self.sessions.write();
        if !self.ended.load(Ordering::Acquire) && self.websocket.set(Arc::clone(&conn)).is_ok() {
            let gauges = &self.sessions.metrics.sessions;
            gauges.of((Transport::Polling, self.protocol)).dec();
            gauges.of((Transport::WebSocket, self.protocol)).inc();
        }
        drop(open);
        if self.closing.get().is_some() {
            conn.close();
        }
    }

    /// Waits for the answer to a client's poll. A session that is being closed ends with the first poll for which
    /// nothing is queued: the engine drops what is queued when it closes a session.
    pub(crate) async fn poll<T>(&self, answer: impl Future<Output = T>) -> T {
        // Outside tokio's cooperative budget: pending must mean that nothing is queued.
        let mut answer = pin!(unconstrained(answer));
        poll_fn(|context| {
            self.poll_waits.register(context.waker());
            let answer = answer.as_mut().poll(context);
            if answer.is_pending() && self.closing.get().is_some() {
                self.ask_engine();
            }
            answer
        })
        .await
    }

    /// How long the client took to come into its first namespace; `None` if this is not the first.
    pub(crate) fn first_connected(&self) -> Option<Duration> {
        let first = !self.has_connected.swap(true, Ordering::Relaxed);
        // A clock that was set in between says nothing.
        first.then(|| self.opened.elapsed().ok()).flatten()
    }

    /// The connection's lane, there from the start.
    pub(crate) fn lane(&self) -> Arc<Lane> {
        Arc::clone(&self.lane)
    }

    /// A socket of the client is about to come into the namespace at `path`: what is sent to it waits for its
    /// CONNECT packet.
    pub(crate) fn connecting(&self, path: &str) {
        self.lane.expect(self.sessions.namespace(path));
    }

    /// The client's socket has left the namespace at `path`.
    pub(crate) fn left(&self, path: &str) {
        self.lane.left(self.sessions.namespace(path));
    }

    /// Its socket in this namespace has its CONNECT packet in the engine's queue.
    pub(crate) fn connected(&self, sid: Sid, queues: &dyn Queues) {
        let fence = |number| put_fence(queues, sid, number);
        self.fenced(self.lane.connected(self.sessions.namespace(queues.path()), fence));
    }

    /// The engine's queue has something for this socket that nothing may overtake.
    pub(crate) fn follow(&self, sid: Sid, queues: &dyn Queues) {
        let fence = |number| put_fence(queues, sid, number);
        self.fenced(self.lane.follow(self.sessions.namespace(queues.path()), fence));
    }

    fn fenced(&self, result: Result<(), QueueError>) {
        if result == Err(QueueError::Full) {
            self.close(CloseReason::SlowConsumer);
        }
    }

    /// The namespace's limiters, made when its first socket comes.
    pub(crate) fn limiters(&self, namespace: &str, make: impl FnOnce() -> Limiters) -> Limiters {
        let mut all = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, limiters)) = all.iter().find(|(path, _)| path == namespace) {
            return Arc::clone(limiters);
        }
        let limiters = make();
        all.push((namespace.to_owned(), Arc::clone(&limiters)));
        limiters
    }

    /// How packets travel now.
    pub(crate) fn transport(&self) -> Transport {
        match self.websocket.get() {
            Some(_) => Transport::WebSocket,
            None => Transport::Polling,
        }
    }

    /// Closes the transport, without the DISCONNECT packet after which clients do not come back.
    pub(crate) fn close(&self, reason: CloseReason) {
        let (reason, since) = *self.closing.get_or_init(|| (reason, Instant::now()));
        match self.websocket.get() {
            // Its queue is full because it does not read: there is no point in flushing it.
            Some(conn) if reason == CloseReason::SlowConsumer => conn.abort(),
            Some(conn) => conn.close(),
            // What is queued is not owed to a client that does not read or breaks the protocol.
            None if matches!(reason, CloseReason::SlowConsumer | CloseReason::ParseError) => {
                self.ask_engine();
            }
            // Who asks again, as a drain does, has waited long enough.
            None if since.elapsed() > POLL_PATIENCE => self.ask_engine(),
            // The poll that waits ends it, or the next one; a client that does not poll again, the heartbeat.
            None => self.poll_waits.wake(),
        }
    }

    /// Has the engine close a session that has no connection of its own.
    fn ask_engine(&self) {
        let Some(sid) = self.sid.get() else { return }; // It is just being made.
        if self.asked_engine.swap(true, Ordering::AcqRel) {
            return;
        }
        let Sessions { metrics, close_polling, .. } = &*self.sessions;
        let session = PollingSession::new(*sid, self.protocol, metrics.closing_sessions.clone());
        if close_polling.try_send(session).is_err() {
            metrics.closing_sessions_deferred_total.inc();
            self.asked_engine.store(false, Ordering::Release);
        }
    }

    /// Cuts the connection, if there is one.
    pub(crate) fn abort(&self) {
        if let Some(conn) = self.websocket.get() {
            conn.abort();
        }
    }

    /// Its client has gone: from here on it is neither counted nor found.
    pub(crate) fn end(&self) {
        let mut open = self.sessions.write();
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let Sessions { metrics, .. } = &*self.sessions;
        metrics.sessions.of((self.transport(), self.protocol)).dec();
        metrics.sessions_closed_total.of((self.transport(), self.end_reason())).inc();
        open.by_number.remove(&self.number);
        if let Some(sid) = self.sid.get() {
            open.by_sid.remove(sid);
        }
        if open.by_number.is_empty() {
            self.sessions.emptied.notify_waiters();
        }
    }

    fn end_reason(&self) -> SessionEnd {
        match self.close_reason() {
            Some(CloseReason::ParseError) => SessionEnd::ParseError,
            Some(CloseReason::ServerDisconnect) => SessionEnd::ServerDisconnect,
            Some(CloseReason::SlowConsumer) => SessionEnd::SlowConsumer,
            Some(CloseReason::WriteStalled) => SessionEnd::WriteStalled,
            Some(CloseReason::ServerShutdown) => SessionEnd::ServerShutdown,
            _ if !self.has_connected.load(Ordering::Relaxed) => SessionEnd::NeverConnected,
            _ => SessionEnd::Transport,
        }
    }

    /// Why the node closed it, if it did.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        let stalled = self.websocket.get().is_some_and(|conn| conn.stalled());
        self.closing
            .get()
            .map(|(reason, _)| *reason)
            .or(stalled.then_some(CloseReason::WriteStalled))
    }
}

impl Owner for Session {
    fn wrote(&self, bytes: usize) {
        let less = |waiting: usize| Some(waiting.saturating_sub(bytes));
        let waited = self.waiting_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let gone = waited.unwrap_or_default().min(bytes);
        if gone > 0 {
            self.sessions.metrics.queues_waiting_bytes.sub(gone as i64);
        }
    }

    fn connection_gone(&self) {
        self.end();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
        let left = *self.waiting_bytes.get_mut();
        self.sessions.metrics.queues_waiting_bytes.sub(left as i64);
    }
}

#[cfg(test)]
mod tests {
    use antiphon_metrics::Registry;

    use super::*;
    use crate::net::Admission as Places;

    fn sessions(metrics: &Arc<GatewayMetrics>) -> (Arc<Sessions>, mpsc::Receiver<PollingSession>) {
        Sessions::new(1000, Arc::clone(metrics))
    }

    fn metrics() -> Arc<GatewayMetrics> {
        Arc::new(GatewayMetrics::register(&Registry::new()).expect("new"))
    }

    fn polling(sessions: &Arc<Sessions>) -> Arc<Session> {
        let permit = Places::new(1, 1).admit(None).expect("a place");
        let session = sessions.open([127, 0, 0, 1].into(), Protocol::Eio4, None, permit);
        session.identify(Sid::new());
        session
    }

    #[test]
    fn what_waits_for_polling_clients_is_counted_until_it_is_written_or_they_are_gone() {
        let metrics = metrics();
        let (sessions, _closing) = sessions(&metrics);
        let [one, other] = [polling(&sessions), polling(&sessions)];
        let waiting = || metrics.queues_waiting_bytes.get();
        for session in [&one, &other] {
            let sid = *session.sid.get().expect("identified");
            assert_eq!(sessions.admit(sid, 100, false), Admission::Queue);
        }
        assert_eq!(waiting(), 200);
        one.wrote(60);
        assert_eq!(waiting(), 140);
        one.wrote(60);
        assert_eq!(waiting(), 100, "headers were never added");
        drop(other);
        assert_eq!(waiting(), 0);
    }

    #[test]
    fn who_cannot_be_closed_at_once_is_counted_and_asked_for_again() {
        let metrics = metrics();
        let (sessions, mut closing) = sessions(&metrics);
        let open: Vec<_> = (0..=CLOSING_MAX).map(|_| polling(&sessions)).collect();
        open.iter().for_each(|session| session.close(CloseReason::SlowConsumer));
        let counted =
            || (metrics.closing_sessions.get(), metrics.closing_sessions_deferred_total.get());
        assert_eq!(counted(), (CLOSING_MAX as i64, 1));
        assert_eq!(metrics.closing_sessions_max.get(), CLOSING_MAX as i64);
        drop(closing.try_recv().expect("the first"));
        assert_eq!(counted(), (CLOSING_MAX as i64 - 1, 1));
        open[CLOSING_MAX].close(CloseReason::SlowConsumer);
        assert_eq!(counted(), (CLOSING_MAX as i64, 1));
    }

    #[test]
    fn every_end_of_a_session_has_a_reason() {
        let metrics = metrics();
        let (sessions, _closing) = sessions(&metrics);
        let ended = |reason| metrics.sessions_closed_total.of((Transport::Polling, reason)).get();
        drop(polling(&sessions));
        assert_eq!(ended(SessionEnd::NeverConnected), 1);
        let connected = polling(&sessions);
        connected.first_connected();
        connected.end();
        drop(connected);
        assert_eq!(ended(SessionEnd::Transport), 1, "and once");
        let drained = polling(&sessions);
        drained.close(CloseReason::ServerShutdown);
        drop(drained);
        assert_eq!(ended(SessionEnd::ServerShutdown), 1);
    }
}
