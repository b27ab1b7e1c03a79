//! One client in one namespace, as the engine sees it.
//!
//! Two locks, each with its own direction:
//!
//! - `incoming` guards what goes to the handlers. It is not held while the engine works on a
//!   request, because code of the application may run then.
//! - `outgoing` guards what comes from the handlers. It is held while the client is called, so that
//!   calls come in order.
//!
//! There is no deadlock between sessions, nor of a session with itself: a thread that calls a
//! client waits for no `outgoing` lock. If another thread holds it, that thread or the driver
//! delivers.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Method, Uri, uri::PathAndQuery};
use http_body_util::Full;
use socketioxide::socket::Sid;
use tokio::{
    runtime::Handle,
    task::{coop::unconstrained, yield_now},
};
use tower::Service as _;

use super::{
    Call, EngineClient, EngineRequest, Shared,
    codec::{self, Emitted, Payload},
    driver::Signal,
    incoming::{ForwardError, Incoming, Post},
};

/// GET responses that are delivered before other sessions get their turn. Usually two contain
/// everything: the request that waits returns the first packet, and the next one returns the rest.
const RESPONSES_PER_TURN: usize = 16;

/// A client of a namespace with Rust handlers.
///
/// It ends with [`disconnect`](Self::disconnect),
/// [`disconnect_by_server`](Self::disconnect_by_server) or [`close`](Self::close), or when it is
/// dropped. The client gets no more calls then, except for one that another thread may just have
/// begun.
pub(crate) struct EngineSession {
    shared: Arc<Shared>,
    /// The runtime of the session's handlers.
    thread: Handle,
    sid: Sid,
    namespace: Box<str>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    /// The connection handler has run up to its first `.await` that waits.
    handler_ran: AtomicBool,
    /// The client gets no more calls.
    ended: AtomicBool,
    signal: Arc<Signal>,
    waker: Waker,
}

/// What comes from the handlers.
struct Outgoing {
    client: Option<Arc<dyn EngineClient>>,
    /// The GET request that waits.
    poll: Option<Call>,
    /// Packets from CONNECT on, until the connection handler has run.
    held: Option<Payload>,
}

/// What a thread does if another one delivers packets of the session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contention {
    Wait,
    Leave,
}

thread_local! {
    /// This thread is calling a client.
    static CALLING: Cell<bool> = const { Cell::new(false) };
}

/// Sets [`CALLING`] until it is dropped.
struct Calling {
    before: bool,
}

impl EngineSession {
    pub(super) fn new(
        shared: Arc<Shared>,
        thread: Handle,
        sid: Sid,
        namespace: &str,
        client: Arc<dyn EngineClient>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|session| {
            let signal = Arc::new(Signal::new(Weak::clone(session), Arc::clone(&shared.queue)));
            let outgoing = Outgoing { client: Some(client), poll: None, held: None };
            Self {
                shared,
                thread,
                sid,
                namespace: namespace.into(),
                incoming: Mutex::default(),
                outgoing: Mutex::new(outgoing),
                handler_ran: AtomicBool::new(false),
                ended: AtomicBool::new(false),
                waker: Waker::from(Arc::clone(&signal)),
                signal,
            }
        })
    }

    /// The id of the client's socket in socketioxide.
    #[cfg(test)]
    pub(crate) fn sid(&self) -> Sid {
        self.sid
    }

    /// Asks the handlers to accept the client. `auth` is a JSON object. Call it once.
    pub(crate) fn connect(&self, auth: Option<&str>) {
        let Ok(body) = codec::connect(&self.namespace, auth) else {
            self.refuse_namespace();
            return;
        };
        if !lock(&self.incoming).connect(body) {
            return;
        }
        self.post_all();
        lock(&self.outgoing).poll = Some(self.get());
        self.deliver(Contention::Leave);
    }

    /// Gives the handlers a packet of the client: an event, or an acknowledgement that a handler
    /// waits for. The packet must be valid and belong to the session's namespace.
    ///
    /// Handlers get packets in the order of these calls.
    pub(crate) fn forward(&self, packet: &str, attachments: &[Bytes]) -> Result<(), ForwardError> {
        let body = codec::packet(packet, attachments).map_err(|_| ForwardError::Unreadable)?;
        let Shared { max_packet_bytes, max_waiting_bytes, max_tasks, .. } = *self.shared;
        if body.len() > max_packet_bytes {
            return Err(ForwardError::TooLarge);
        }
        // If a handler has disconnected the client, the engine closes the session at the next
        // packet and drops what was emitted before. So that must be delivered first.
        self.deliver_emitted(Contention::Leave);
        let tasks = self.thread.metrics().num_alive_tasks();
        lock(&self.incoming).push(body, max_waiting_bytes, tasks, max_tasks)?;
        self.post_all();
        Ok(())
    }

    /// Delivers everything that handlers have emitted before this call. Call it before a broadcast
    /// is written to the client, so that `socket.emit(a)` comes before `io.emit(b)`.
    ///
    /// Waits for another thread that is calling this client. Within a call of an [`EngineClient`]
    /// it does not wait, and packets that another thread is delivering may come later.
    pub(crate) fn flush(&self) {
        self.deliver_emitted(Contention::Wait);
    }

    /// The client has sent DISCONNECT.
    pub(crate) fn disconnect(&self) {
        self.end(Some(codec::disconnect(&self.namespace)));
        self.release();
    }

    /// The server disconnects the client from the namespace, and the gateway tells the client.
    pub(crate) fn disconnect_by_server(&self) {
        self.ended.store(true, Ordering::Release);
        self.disconnect_socket();
        self.close();
    }

    /// The client's transport is closed.
    pub(crate) fn close(&self) {
        self.end(None);
        self.release();
    }

    /// Does what a session that was woken needs. Only the driver calls this.
    pub(super) fn drive(&self) {
        let _busy = self.signal.begin();
        self.signal.dequeued();
        if lock(&self.incoming).is_suspended() {
            self.post_all();
        }
        self.deliver(Contention::Wait);
    }

    /// Disconnects the client's socket in socketioxide, if it is there.
    fn disconnect_socket(&self) {
        let namespace = self.shared.io.of(&*self.namespace);
        if let Some(socket) = namespace.and_then(|namespace| namespace.get_socket(self.sid)) {
            let _runtime = self.thread.enter();
            // It fails if handlers have emitted too much. They see a closed transport then.
            let _ = socket.disconnect();
        }
    }

    fn refuse_namespace(&self) {
        let client = lock(&self.outgoing).client.take();
        self.end(None);
        if let Some(client) = client {
            client.refused(r#"{"message":"Invalid namespace"}"#);
        }
    }

    fn deliver_emitted(&self, contention: Contention) {
        if !self.signal.is_idle() {
            self.deliver(contention);
        }
    }

    fn deliver(&self, contention: Contention) {
        let Some(mut outgoing) = self.lock_outgoing(contention) else { return };
        let busy = self.signal.begin();
        let calling = Calling::begin();
        let more = catch_unwind(AssertUnwindSafe(|| self.read_responses(&mut outgoing)));
        drop(calling);
        if more.is_err() {
            tracing::error!(sid = %self.sid, "panic while calling a client; its session is closed");
            self.end(None);
        }
        let released = self.ended.load(Ordering::Acquire).then(|| outgoing.release());
        drop(outgoing);
        drop(busy);
        // The last reference to a client may own this session.
        drop(released);
        if more.unwrap_or_default() {
            self.waker.wake_by_ref();
        }
    }

    fn lock_outgoing(&self, contention: Contention) -> Option<MutexGuard<'_, Outgoing>> {
        if contention == Contention::Wait && !CALLING.get() {
            return Some(lock(&self.outgoing));
        }
        match self.outgoing.try_lock() {
            Ok(outgoing) => Some(outgoing),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Delivers until nothing is left. Returns whether it stopped before, to let others run.
    fn read_responses(&self, outgoing: &mut Outgoing) -> bool {
        for _ in 0..RESPONSES_PER_TURN {
            let waits = outgoing.held.is_some() && !self.handler_ran.load(Ordering::Acquire);
            if waits || self.ended.load(Ordering::Acquire) {
                return false;
            }
            if let Some(payload) = outgoing.held.take() {
                self.read(outgoing, payload);
                continue;
            }
            let Some(poll) = &mut outgoing.poll else { return false };
            match self.poll(poll) {
                Poll::Pending => return false,
                Poll::Ready(Some(body)) => {
                    outgoing.poll = Some(self.get());
                    self.read(outgoing, Payload::new(body));
                }
                Poll::Ready(None) => {
                    self.end(None);
                    if let Some(client) = &outgoing.client {
                        client.disconnected();
                    }
                }
            }
        }
        true
    }

    fn read(&self, outgoing: &mut Outgoing, mut payload: Payload) {
        while !self.ended.load(Ordering::Acquire) {
            if payload.begins_with_connect() && !self.handler_ran.load(Ordering::Acquire) {
                outgoing.held = Some(payload);
                self.wait_for_handler();
                return;
            }
            let Some(emitted) = payload.next(&self.namespace) else { return };
            let Some(client) = &outgoing.client else { return };
            match emitted {
                Emitted::Packet(text, attachments) => client.packet(text, attachments),
                Emitted::Connected => {
                    lock(&self.incoming).set_connected();
                    client.connected(self.sid);
                    // The events that the client has sent since CONNECT.
                    self.post_all();
                }
                Emitted::Refused(data) => {
                    self.end(None);
                    client.refused(data);
                }
                Emitted::Disconnected => {
                    // The thread that disconnects the socket emits this first, and calls the
                    // disconnect handler then. Closing the session in between would give the
                    // handler a wrong reason.
                    self.disconnect_socket();
                    self.end(None);
                    client.disconnected();
                }
                Emitted::Closed => {
                    self.end(None);
                    client.disconnected();
                }
            }
        }
    }

    /// Wakes the session when the connection handler has run up to its first `.await` that waits.
    ///
    /// One task emits CONNECT and spawns the handler without waiting in between. The handler's
    /// thread runs one task at a time. So when the task below starts, the handler is spawned; when
    /// the task resumes after it yielded, the handler has run.
    fn wait_for_handler(&self) {
        let session = self.signal.session();
        self.thread.spawn(async move {
            yield_now().await;
            if let Some(session) = session.upgrade() {
                session.handler_ran.store(true, Ordering::Release);
                session.waker.wake_by_ref();
            }
        });
    }

    /// Sends the last packets: DISCONNECT, if the client sent it, and the one that closes the
    /// session.
    fn end(&self, disconnect: Option<Bytes>) {
        lock(&self.incoming).close(disconnect);
        self.ended.store(true, Ordering::Release);
        self.post_all();
    }

    /// Drops the client and the GET request. The engine calls disconnect handlers only after the
    /// latter is dropped.
    fn release(&self) {
        match self.lock_outgoing(Contention::Leave) {
            Some(mut outgoing) => {
                let released = outgoing.release();
                drop(outgoing);
                drop(released);
            }
            // The thread that has the lock may already have looked at `ended`; the driver looks
            // again.
            None => self.waker.wake_by_ref(),
        }
    }

    /// Makes POST requests of all bodies that wait, unless another thread does.
    fn post_all(&self) {
        loop {
            let Some(post) = lock(&self.incoming).next() else { return };
            let mut call = match post {
                Post::Body(body) => self.call(Method::POST, body),
                Post::Resumed(call) => call,
            };
            // Extractors and the first part of handlers that are not `async` closures run in here.
            let polled = catch_unwind(AssertUnwindSafe(|| self.poll(&mut call)));
            if polled.is_err() {
                tracing::error!(sid = %self.sid, "panic in an event handler; the event is lost");
            }
            let suspended = matches!(polled, Ok(Poll::Pending)).then_some(call);
            if !lock(&self.incoming).done(suspended) {
                return;
            }
        }
    }

    fn get(&self) -> Call {
        self.call(Method::GET, Bytes::new())
    }

    fn call(&self, method: Method, body: Bytes) -> Call {
        let uri = format!("/?EIO=4&transport=polling&sid={}", self.sid);
        let uri =
            PathAndQuery::from_maybe_shared(uri).expect("an id has only letters of base64url");
        let mut request = EngineRequest::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(uri);
        self.shared.service.clone().call(request)
    }

    /// Polls a request with the session's waker, in the runtime of its handlers. The body is `None`
    /// if the engine has closed the session.
    fn poll(&self, call: &mut Call) -> Poll<Option<Bytes>> {
        let _runtime = self.thread.enter();
        // With the caller's tokio budget used up, the engine's queue would look empty.
        let call = pin!(unconstrained(call));
        let response = call.poll(&mut Context::from_waker(&self.waker));
        response.map(|response| response.ok().and_then(codec::body))
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Outgoing {
    /// Takes out what must be dropped after the lock is released.
    fn release(&mut self) -> (Option<Arc<dyn EngineClient>>, Option<Call>) {
        self.held = None;
        (self.client.take(), self.poll.take())
    }
}

impl Calling {
    fn begin() -> Self {
        Self { before: CALLING.replace(true) }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        CALLING.set(self.before);
    }
}

/// No code that can panic leaves the data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
