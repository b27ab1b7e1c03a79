//! One client in one namespace, as the engine sees it.
//!
//! Two locks, and none is held while another is taken, except that packets are handed over under
//! `outgoing`:
//!
//! - `incoming` guards what goes to the handlers. It is never held while a handler may run.
//! - `outgoing` guards what comes from them. It is held while the client is called, which keeps the
//!   calls in order. A thread that holds it for any session never waits for that of another one, nor
//!   for its own: so there is no deadlock, whatever the client calls.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
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
    codec::{self, Answer, Emitted},
    driver::Signal,
};

/// So many answers are handed over before other sessions get their turn. Two are enough for all that
/// is there: the request that waits gets the first packet, and the next one gets all others, unless
/// they are larger than an answer may be.
const ANSWERS_PER_TURN: usize = 16;

/// A client with handlers. When it is dropped, the handlers hear that the client is gone.
pub struct EngineSession {
    shared: Arc<Shared>,
    /// Where the session's handlers run.
    thread: Handle,
    sid: Sid,
    namespace: Box<str>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    /// The connection handler has run up to its first `.await`.
    handler_ran: AtomicBool,
    /// The client is not called any more.
    ended: AtomicBool,
    signal: Arc<Signal>,
    waker: Waker,
}

/// Why a packet is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The client has left the namespace.
    #[error("the engine session is closed")]
    Closed,
    /// Too much waits: for the CONNECT packet's answer, or for the handler thread. It may be tried
    /// again.
    #[error("the engine session is full")]
    Full,
    /// The packet is larger than [`Settings::max_packet_bytes`](super::Settings::max_packet_bytes).
    #[error("the packet is too large for the engine")]
    TooLarge,
    /// No handler could get this packet: it is not an event, nor an acknowledgement with an id, or
    /// the event's name is not a string that JSON writes without escapes. Ignore it, as Node.js
    /// ignores an event without a handler.
    #[error("the engine cannot read the packet")]
    Unreadable,
}

/// What goes to the handlers: bodies of POST requests.
#[derive(Default)]
struct Incoming {
    phase: Phase,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// Somebody makes requests; whoever comes meanwhile leaves its own to him.
    posting: bool,
    /// Somebody came meanwhile.
    again: bool,
    /// A request that did not complete at once. As of engineioxide 0.17 there is none.
    pending: Option<Box<Call>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    New,
    /// CONNECT is sent: what the client sends has to wait for the answer.
    Connecting,
    Connected,
    /// The last packets are in `waiting`.
    Closed,
}

/// What comes from the handlers.
struct Outgoing {
    /// The GET request that waits.
    poll: Option<Call>,
    client: Option<Arc<dyn EngineClient>>,
    /// The answer with CONNECT in it, until the connection handler has run.
    held: Option<Answer>,
}

thread_local! {
    /// This thread is calling a client.
    static CALLING: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one that calls a client, until it is dropped.
struct Calling {
    nested: bool,
}

/// Whether to wait for another thread that calls this session's client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Wait,
    Leave,
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
            Self {
                shared,
                thread,
                sid,
                namespace: namespace.into(),
                incoming: Mutex::default(),
                outgoing: Mutex::new(Outgoing { poll: None, client: Some(client), held: None }),
                handler_ran: AtomicBool::new(false),
                ended: AtomicBool::new(false),
                waker: Waker::from(Arc::clone(&signal)),
                signal,
            }
        })
    }

    /// The id of the client's socket in socketioxide.
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// Asks the handlers to let the client in. `auth` is a JSON object. Call it once.
    pub fn connect(&self, auth: Option<&str>) {
        let body = codec::connect(&self.namespace, auth);
        {
            let mut incoming = lock(&self.incoming);
            if incoming.phase != Phase::New {
                return;
            }
            incoming.phase = Phase::Connecting;
            incoming.pending = body.as_ref().ok().map(|body| Box::new(self.post(body.clone())));
        }
        self.post_all();
        let mut outgoing = lock(&self.outgoing);
        if body.is_ok() {
            outgoing.poll = Some(self.get());
            drop(outgoing);
            self.deliver(Patience::Leave);
        } else {
            let client = outgoing.client.take();
            drop(outgoing);
            self.end(None);
            if let Some(client) = client {
                client.refused(r#"{"message":"Invalid namespace"}"#);
            }
        }
    }

    /// Gives a packet of the client to the handlers: an event, or an acknowledgement that a handler
    /// asked for. `packet` is valid, and its namespace is the session's.
    ///
    /// Handlers get packets in the order of calls. An error concerns this packet alone.
    pub fn forward(&self, packet: &str, attachments: &[Bytes]) -> Result<(), ForwardError> {
        let body = codec::packet(packet, attachments).map_err(|_| ForwardError::Unreadable)?;
        if body.len() > self.shared.max_packet_bytes {
            return Err(ForwardError::TooLarge);
        }
        // Should a handler have disconnected the client, the engine closes the session at the next
        // packet, and forgets what was emitted before. So that is handed over first.
        self.hand_over(Patience::Leave);
        {
            let mut incoming = lock(&self.incoming);
            let bytes = incoming.waiting_bytes + body.len();
            let tasks = self.thread.metrics().num_alive_tasks();
            match incoming.phase {
                Phase::Closed => return Err(ForwardError::Closed),
                Phase::Connected if tasks >= self.shared.max_tasks => {
                    return Err(ForwardError::Full);
                }
                _ if incoming.waiting_bytes > 0 && bytes > self.shared.max_waiting_bytes => {
                    return Err(ForwardError::Full);
                }
                _ => {}
            }
            incoming.waiting_bytes = bytes;
            incoming.waiting.push_back(body);
        }
        self.post_all();
        Ok(())
    }

    /// Hands over all that handlers have emitted before this call. So `socket.emit(a)` reaches the
    /// client before what a broadcast is about to send it.
    ///
    /// Waits while another thread calls this session's client, but not within a call of
    /// [`EngineClient`]: there, what another thread is handing over may come later.
    pub fn flush(&self) {
        self.hand_over(Patience::Wait);
    }

    /// The client has sent DISCONNECT.
    pub fn disconnect(&self) {
        self.end(Some(codec::disconnect(&self.namespace)));
        self.release();
    }

    /// The client's transport is gone. Like after [`disconnect`](Self::disconnect), no call of the
    /// client begins any more; one that has begun in another thread may still go on.
    pub fn close(&self) {
        self.end(None);
        self.release();
    }

    /// What the driver does for a session that was woken.
    pub(super) fn drive(&self) {
        let _busy = self.signal.begin();
        self.signal.taken_up();
        self.post_all();
        self.deliver(Patience::Wait);
    }

    fn hand_over(&self, patience: Patience) {
        if !self.signal.is_idle() {
            self.deliver(patience);
        }
    }

    /// Hands over what is there, unless somebody else is at it and `patience` does not allow to wait.
    fn deliver(&self, patience: Patience) {
        let Some(mut outgoing) = self.lock_outgoing(patience) else { return };
        let busy = self.signal.begin();
        let calling = Calling::begin();
        let more = catch_unwind(AssertUnwindSafe(|| self.read_answers(&mut outgoing)));
        drop(calling);
        if more.is_err() {
            tracing::error!(sid = %self.sid, "panic while calling a client; closing its session");
            self.end(None);
        }
        let left = self.ended.load(Ordering::Acquire).then(|| outgoing.clear());
        drop(outgoing);
        drop(busy);
        // Dropping the client may drop much more, and that may call this session.
        drop(left);
        if more.unwrap_or_default() {
            self.waker.wake_by_ref();
        }
    }

    fn lock_outgoing(&self, patience: Patience) -> Option<MutexGuard<'_, Outgoing>> {
        if patience == Patience::Wait && !CALLING.get() {
            return Some(lock(&self.outgoing));
        }
        match self.outgoing.try_lock() {
            Ok(outgoing) => Some(outgoing),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Reads answers until there is none, and says whether there may be more.
    fn read_answers(&self, outgoing: &mut Outgoing) -> bool {
        for _ in 0..ANSWERS_PER_TURN {
            if self.ended.load(Ordering::Acquire) {
                return false;
            }
            if outgoing.held.is_some() && !self.handler_ran.load(Ordering::Acquire) {
                return false;
            }
            if let Some(answer) = outgoing.held.take() {
                self.read(outgoing, answer);
                continue;
            }
            let Some(poll) = &mut outgoing.poll else { return false };
            match self.poll(poll) {
                Poll::Pending => return false,
                Poll::Ready(Some(body)) => {
                    outgoing.poll = Some(self.get());
                    self.read(outgoing, Answer::new(body));
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

    fn read(&self, outgoing: &mut Outgoing, mut answer: Answer) {
        while !self.ended.load(Ordering::Acquire) {
            if answer.connects() && !self.handler_ran.load(Ordering::Acquire) {
                outgoing.held = Some(answer);
                self.wait_for_handler();
                return;
            }
            let Some(emitted) = answer.next(&self.namespace) else { return };
            let Some(client) = &outgoing.client else { return };
            match emitted {
                Emitted::Packet(text, attachments) => client.packet(text, attachments),
                Emitted::Connected => {
                    client.connected(self.sid);
                    self.let_through();
                }
                Emitted::Refused(data) => {
                    self.end(None);
                    client.refused(data);
                }
                Emitted::Disconnected | Emitted::Closed => {
                    self.end(None);
                    client.disconnected();
                }
            }
        }
    }

    /// Wakes the session when its connection handler has run up to its first `.await`.
    ///
    /// The engine emits CONNECT and spawns the handler in one go, on a thread that runs one task at a
    /// time. So when a task runs there, the handler's task has been spawned before; when it has
    /// yielded, the handler has run.
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

    /// What the client has sent since CONNECT goes to the handlers.
    fn let_through(&self) {
        {
            let mut incoming = lock(&self.incoming);
            if incoming.phase == Phase::Connecting {
                incoming.phase = Phase::Connected;
            }
        }
        self.post_all();
    }

    /// The last packets of the client: DISCONNECT, if it sent one, and the close packet of Engine.IO.
    fn end(&self, disconnect: Option<Bytes>) {
        {
            let mut incoming = lock(&self.incoming);
            match incoming.phase {
                Phase::Closed => return,
                Phase::Connected => incoming.waiting.extend(disconnect),
                // Whatever came with it was meant for handlers that did not let the client in.
                Phase::New | Phase::Connecting => incoming.waiting.clear(),
            }
            incoming.waiting.push_back(codec::close());
            incoming.phase = Phase::Closed;
        }
        self.ended.store(true, Ordering::Release);
        self.post_all();
    }

    /// Lets go of the client and of the request that waits. The engine needs the latter to be gone
    /// before it tells the handlers.
    fn release(&self) {
        match self.lock_outgoing(Patience::Leave) {
            Some(mut outgoing) => {
                let left = outgoing.clear();
                drop(outgoing);
                drop(left);
            }
            // Whoever holds the lock may have looked already, so the driver looks again.
            None => self.waker.wake_by_ref(),
        }
    }

    /// Makes the POST requests that wait, unless somebody else does.
    fn post_all(&self) {
        while let Some(mut call) = self.next_post() {
            // Extractors, and closures that are not async all through, run in here.
            let polled = catch_unwind(AssertUnwindSafe(|| self.poll(&mut call)));
            if polled.is_err() {
                tracing::error!(sid = %self.sid, "panic in a handler; its packet is lost");
            }
            let mut incoming = lock(&self.incoming);
            incoming.posting = false;
            if matches!(polled, Ok(Poll::Pending)) {
                incoming.pending = Some(Box::new(call));
                if !incoming.again {
                    return;
                }
            }
        }
    }

    fn next_post(&self) -> Option<Call> {
        let mut incoming = lock(&self.incoming);
        if incoming.posting {
            incoming.again = true;
            return None;
        }
        let call = match incoming.pending.take() {
            Some(call) => *call,
            None => self.post(incoming.next_body()?),
        };
        incoming.posting = true;
        incoming.again = false;
        Some(call)
    }

    fn get(&self) -> Call {
        self.call(Method::GET, Bytes::new())
    }

    fn post(&self, body: Bytes) -> Call {
        self.call(Method::POST, body)
    }

    fn call(&self, method: Method, body: Bytes) -> Call {
        let uri = format!("/?EIO=4&transport=polling&sid={}", self.sid);
        let uri = PathAndQuery::from_maybe_shared(uri).expect("ids are made for URLs");
        let mut request = EngineRequest::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(uri);
        self.shared.service.clone().call(request)
    }

    /// Polls a request, with the session's waker, where its handlers run. `None`: the engine has
    /// closed the session.
    fn poll(&self, call: &mut Call) -> Poll<Option<Bytes>> {
        let _runtime = self.thread.enter();
        // The caller's task may have used up its budget, and would be told that nothing is there.
        let call = unconstrained(call);
        let response = std::pin::pin!(call).poll(&mut Context::from_waker(&self.waker));
        response.map(|response| response.ok().and_then(codec::body))
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Incoming {
    fn next_body(&mut self) -> Option<Bytes> {
        if !matches!(self.phase, Phase::Connected | Phase::Closed) {
            return None;
        }
        let body = self.waiting.pop_front()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(body.len());
        if self.waiting.is_empty() {
            // Sessions are many, and most wait for nothing.
            self.waiting = VecDeque::new();
            self.waiting_bytes = 0;
        }
        Some(body)
    }
}

impl Outgoing {
    /// What must be dropped after the lock.
    fn clear(&mut self) -> (Option<Arc<dyn EngineClient>>, Option<Call>) {
        self.held = None;
        (self.client.take(), self.poll.take())
    }
}

impl Calling {
    fn begin() -> Self {
        Self { nested: CALLING.replace(true) }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        CALLING.set(self.nested);
    }
}

/// A panic leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
