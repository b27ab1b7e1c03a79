//! The dispatcher: every accepted event of the node goes through it, and what comes from remote nodes.
//!
//! Three things follow from there being one. Order: what a socket sent first is delivered first, to
//! every recipient, and an event sent after a join finds the sender in the room. Fairness: senders have their turns
//! one after another, a sender with its share waiting is not read from, and the dispatcher yields often. And few
//! writes: what has piled up meanwhile goes out together, neighbours with the same target in one write for each
//! recipient, wherever they came from.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use antiphon_adapter::{Batch, Inbound, JoinResult, Published, SocketId};
use antiphon_metrics::{GatewayMetrics, gateway::Outcome};
use socketioxide_core::packet::Packet;
use tokio::{sync::Notify, time::timeout};
use tracing::{Instrument, Span};

use crate::{
    config,
    fanout::FanOut,
    namespaces::{Entry, Session},
    reply::Reply,
    rules::Rule,
    transport::Held,
};

/// Events taken up together, and before the dispatcher lets other tasks run, however few recipients they have.
const EVENTS_PER_TURN: usize = 128;

/// Events of one sender that are taken up before the next sender has its turn.
const EVENTS_PER_SENDER: usize = 16;

/// What one sender may have waiting before it is not read from, as long as there is room enough.
const SENDER_EVENTS_MAX: usize = 256;
const SENDER_BYTES_MAX: usize = 1024 * 1024;

/// The part of the free room that one sender may fill. However many senders there are, together they never
/// fill all of it, so that a newcomer's event finds room.
const SHARE_OF_FREE: usize = 8;

/// How long the dispatcher waits for something to do before it looks around: short against the time after which
/// it counts as stuck.
const IDLE_TURN: Duration = Duration::from_secs(1);

/// An event that will be carried out.
pub(crate) struct Accepted {
    pub(crate) session: Arc<Session>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) socket: SocketId,
    pub(crate) rule: Arc<Rule>,
    pub(crate) task: Task,
    /// What it holds of the queue's bound.
    pub(crate) bytes: usize,
    /// The same, of the node's memory budget.
    pub(crate) held: Held,
    pub(crate) accepted: Instant,
    /// Of its trace, if it has one.
    pub(crate) span: Span,
    pub(crate) reply: Reply,
}

/// What there is to do.
pub(crate) enum Task {
    /// Hand a packet to its recipients: the members of the room, if there is one.
    Deliver { packet: Packet, room: Option<String> },
    /// The sender joins a room.
    Join(String),
    /// The sender leaves a room.
    Leave(String),
}

/// The events of one sender that wait.
#[derive(Default)]
pub(crate) struct Pending {
    events: VecDeque<Accepted>,
    bytes: usize,
    /// The sender is not read from.
    held: bool,
}

/// The way into the dispatch queue. Cloning it is cheap.
#[derive(Clone)]
pub(crate) struct Dispatcher(Arc<Queue>);

struct Queue {
    /// Senders with events that wait, each once, in the order of their turns.
    ring: Mutex<VecDeque<Arc<Session>>>,
    filled: Notify,
    events: AtomicUsize,
    bytes: AtomicUsize,
    emptied: Notify,
    max_events: usize,
    max_bytes: usize,
    metrics: Arc<GatewayMetrics>,
}

impl Queue {
    fn ring(&self) -> MutexGuard<'_, VecDeque<Arc<Session>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sender with so much waiting has its share.
    fn is_share(&self, pending: &Pending) -> bool {
        let free = self.max_events.saturating_sub(self.events.load(Ordering::Relaxed));
        let free_bytes = self.max_bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
        pending.events.len() >= (free / SHARE_OF_FREE).clamp(1, SENDER_EVENTS_MAX)
            || pending.bytes >= (free_bytes / SHARE_OF_FREE).clamp(1, SENDER_BYTES_MAX)
    }

    /// Takes up events, sender after sender.
    fn take(&self, events: &mut Vec<Accepted>) {
        while events.len() < EVENTS_PER_TURN {
            let Some(session) = self.ring().pop_front() else { return };
            let mut pending = session.state().pending();
            let count = pending.events.len().min(EVENTS_PER_SENDER);
            let bytes: usize = pending.events.range(..count).map(|event| event.bytes).sum();
            pending.bytes -= bytes;
            events.extend(pending.events.drain(..count));
            let let_go = pending.held && !self.is_share(&pending);
            if let_go {
                pending.held = false;
                session.release_reads();
            }
            if pending.events.is_empty() {
                pending.events = VecDeque::new();
                drop(pending);
            } else {
                drop(pending);
                self.ring().push_back(session);
            }
        }
    }

    /// An event of so many bytes has been carried out.
    fn release(&self, bytes: usize) {
        self.metrics.stage_events.dec();
        self.metrics.stage_bytes.sub(bytes as i64);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.events.fetch_sub(1, Ordering::Release) == 1 {
            self.emptied.notify_waiters();
        }
    }
}

impl Dispatcher {
    /// A queue within its bounds, and what empties it.
    pub(crate) fn new(
        bounds: &config::Stage,
        window: Duration,
        max_rooms: usize,
        metrics: Arc<GatewayMetrics>,
    ) -> (Self, Worker) {
        let queue = Arc::new(Queue {
            ring: Mutex::default(),
            filled: Notify::new(),
            events: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            emptied: Notify::new(),
            max_events: bounds.max_events,
            max_bytes: bounds.max_bytes,
            metrics,
        });
        (Self(Arc::clone(&queue)), Worker { queue, window, max_rooms })
    }

    /// Takes an event, unless as many, or as many bytes, wait as may. A sender that has its share waiting is not
    /// read from until it has less.
    pub(crate) fn push(&self, event: Accepted) -> Result<(), Outcome> {
        let queue = &*self.0;
        let (bytes, session) = (event.bytes, Arc::clone(&event.session));
        let waiting = queue.events.fetch_add(1, Ordering::Relaxed);
        let waiting_bytes = queue.bytes.fetch_add(bytes, Ordering::Relaxed);
        queue.metrics.stage_events.inc();
        queue.metrics.stage_bytes.add(bytes as i64);
        // One event may always wait, however large: it is within limits.max_message_bytes.
        let fits =
            waiting == 0 || waiting < queue.max_events && waiting_bytes + bytes <= queue.max_bytes;
        if !fits {
            queue.release(bytes);
            return Err(Outcome::Overloaded);
        }
        let mut pending = session.state().pending();
        let is_first = pending.events.is_empty();
        pending.events.push_back(event);
        pending.bytes += bytes;
        if !pending.held && queue.is_share(&pending) {
            pending.held = true;
            session.hold_reads();
        }
        drop(pending);
        if is_first {
            queue.ring().push_back(session);
            queue.filled.notify_one();
        }
        Ok(())
    }

    /// The session has ended: whoever waits for its reads need not wait any more.
    pub(crate) fn forget_holds(&self, session: &Session) {
        session.release_reads();
    }

    /// Returns once everything that was pushed has been carried out: several are taken up at a time.
    pub(crate) async fn drained(&self) {
        loop {
            let emptied = self.0.emptied.notified();
            if self.0.events.load(Ordering::Acquire) == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// Empties the dispatch queue.
pub(crate) struct Worker {
    queue: Arc<Queue>,
    window: Duration,
    max_rooms: usize,
}

/// Waits, and shows now and then that it does: whoever watches the dispatcher's task sees each time that it runs.
async fn idle<T>(something: impl Future<Output = T>) -> T {
    let mut something = pin!(something);
    loop {
        if let Ok(done) = timeout(IDLE_TURN, something.as_mut()).await {
            return done;
        }
    }
}

/// An event that has been carried out, but for the deliveries that the batch still has to make.
struct Done {
    rule: Arc<Rule>,
    outcome: Outcome,
    bytes: usize,
    _held: Held,
    // Of what goes to somebody.
    accepted: Option<Instant>,
    span: Span,
    reply: Reply,
}

impl Worker {
    /// Carries out events, and what arrives from remote nodes if there are any, until the way to the remote
    /// nodes has ended.
    pub(crate) async fn run(self, mut inbound: Option<Inbound<FanOut>>) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut done = Vec::with_capacity(EVENTS_PER_TURN);
        let mut batch = Batch::default();
        while self.something(&mut events, &mut inbound).await {
            for event in events.drain(..) {
                let span = event.span.clone();
                done.push(self.carry_out(event, &mut batch).instrument(span).await);
            }
            if let Some(inbound) = &mut inbound {
                inbound.carry_out(&mut batch).await;
            }
            batch.flush().await;
            if let Some(inbound) = &mut inbound {
                inbound.delivered();
            }
            for event in done.drain(..) {
                self.reply(event);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until there is something to do, and takes up what there is by then of either kind.
    async fn something(
        &self,
        events: &mut Vec<Accepted>,
        inbound: &mut Option<Inbound<FanOut>>,
    ) -> bool {
        self.queue.take(events);
        if events.is_empty() {
            let mut remote = inbound.as_mut();
            let arrived = async {
                match &mut remote {
                    Some(inbound) => inbound.arrived().await > 0,
                    None => std::future::pending().await,
                }
            };
            let filled = async {
                self.queue.filled.notified().await;
                true
            };
            let goes_on = idle(async {
                tokio::select! {
                    goes_on = filled => goes_on,
                    goes_on = arrived => goes_on,
                }
            });
            if !goes_on.await {
                return false;
            }
            self.queue.take(events);
        }
        // Enough for a turn waits for nothing.
        if !self.window.is_zero() && events.len() < EVENTS_PER_TURN {
            tokio::time::sleep(self.window).await;
            self.queue.take(events);
        }
        if let Some(inbound) = inbound {
            inbound.take_up();
        }
        true
    }

    async fn carry_out(&self, event: Accepted, batch: &mut Batch<FanOut>) -> Done {
        let Accepted { entry, socket, rule, task, bytes, held, accepted, span, reply, .. } = event;
        let namespace = entry.namespace();
        let (outcome, accepted) = match task {
            Task::Deliver { packet, room } => {
                let joined = || room.as_deref().is_none_or(|room| namespace.in_room(socket, room));
                if !rule.requires_joined() || joined() {
                    let target = rule.target(socket, room);
                    let reached = Some(rule.reached());
                    let published = batch.broadcast(namespace, packet, target, reached).await;
                    let outcome = match published {
                        Published::No => Outcome::OkLocal,
                        Published::Yes | Published::NotNeeded => Outcome::Ok,
                    };
                    (outcome, Some(accepted))
                } else {
                    (Outcome::NotJoined, None)
                }
            }
            // Those who were in the room when an event came get it, and nobody else.
            Task::Join(room) => {
                batch.flush().await;
                (self.join(&entry, socket, &room), None)
            }
            Task::Leave(room) => {
                batch.flush().await;
                namespace.leave(socket, &room);
                (Outcome::Ok, None)
            }
        };
        Done { rule, outcome, bytes, _held: held, accepted, span, reply }
    }

    fn join(&self, entry: &Entry, socket: SocketId, room: &str) -> Outcome {
        let namespace = entry.namespace();
        if namespace.in_room(socket, room) {
            return Outcome::Ok;
        }
        if namespace.room_count(socket) >= self.max_rooms {
            return Outcome::TooManyRooms;
        }
        match namespace.join(socket, room) {
            // Who has left since asks for nothing any more.
            JoinResult::Joined | JoinResult::Already | JoinResult::Gone => Outcome::Ok,
            JoinResult::Reserved => Outcome::InvalidRoom,
        }
    }

    fn reply(&self, Done { rule, outcome, bytes, accepted, span, reply, .. }: Done) {
        span.record("outcome", outcome.as_str());
        rule.count(outcome);
        if let Some(accepted) = accepted {
            self.queue.metrics.fanout_seconds.observe(accepted.elapsed());
        }
        reply.send(outcome, &rule.name);
        self.queue.release(bytes);
    }
}
