//! The ordered stage: every accepted event of the node goes through it, one after another, and what comes from peers.
//!
//! Three things follow from there being one. Order: what a socket sent first is delivered first, to
//! every recipient, and an event sent after a join finds the sender in the room. Fairness: the stage
//! yields often, so that the tasks that write to sockets have their turn, and a burst from many senders waits
//! here, where it is bounded and senders are told (`overloaded`), rather than in every recipient's queue, where it
//! would cost the recipients their connections. And few writes: what has piled up meanwhile goes out together,
//! neighbours with the same recipients in one write for each, wherever they came from.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use antiphon_adapter::{Batch, Inbound, Namespace, Published};
use antiphon_metrics::{GatewayMetrics, gateway::Outcome};
use socketioxide::socket::Socket;
use socketioxide_core::packet::Packet;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tracing::{Instrument, Span};

use crate::{
    config,
    events::{Adapter, Rule},
    reply::Reply,
};

/// Events taken up together, and before the stage lets other tasks run, whatever few recipients they had. Below
/// `session.send_queue_packets`, which is how many may come together for one recipient that polls.
const EVENTS_PER_TURN: usize = 128;

/// How long the stage waits for something to do before it looks around: short against the time after which it counts
/// as stuck.
const IDLE_TURN: Duration = Duration::from_secs(1);

/// An event that will be carried out.
pub(crate) struct Accepted {
    pub(crate) socket: Arc<Socket<Adapter>>,
    pub(crate) namespace: Namespace,
    pub(crate) rule: Arc<Rule>,
    pub(crate) task: Task,
    /// What it holds of the stage's bound.
    pub(crate) bytes: usize,
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

/// The way into the stage.
#[derive(Clone)]
pub(crate) struct Stage {
    queue: mpsc::Sender<Accepted>,
    held: Arc<Held>,
    max_bytes: usize,
    metrics: Arc<GatewayMetrics>,
}

/// The stage itself.
pub(crate) struct Worker {
    queue: mpsc::Receiver<Accepted>,
    held: Arc<Held>,
    window: Duration,
    max_rooms: usize,
    metrics: Arc<GatewayMetrics>,
}

/// Waits, and shows now and then that it does: whoever watches the stage's task sees each time that it gets on.
async fn idle<T>(something: impl Future<Output = T>) -> T {
    let mut something = pin!(something);
    loop {
        if let Ok(done) = timeout(IDLE_TURN, something.as_mut()).await {
            return done;
        }
    }
}

/// What the stage holds.
struct Held {
    bytes: AtomicUsize,
    emptied: Notify,
}

impl Held {
    /// An event of so many bytes is out of the stage.
    fn release(&self, bytes: usize, metrics: &GatewayMetrics) {
        metrics.stage_events.dec();
        metrics.stage_bytes.sub(bytes as i64);
        if self.bytes.fetch_sub(bytes, Ordering::Release) == bytes {
            self.emptied.notify_waiters();
        }
    }
}

/// An event that has been carried out, but for the deliveries that the batch still has to make.
struct Done {
    rule: Arc<Rule>,
    outcome: Outcome,
    bytes: usize,
    // Of what goes to somebody.
    accepted: Option<Instant>,
    span: Span,
    reply: Reply,
}

/// A stage within its bounds; the worker is to be run. It waits for `window` after an event for more to come.
pub(crate) fn stage(
    bounds: &config::Stage,
    window: Duration,
    max_rooms: usize,
    metrics: Arc<GatewayMetrics>,
) -> (Stage, Worker) {
    let (sender, queue) = mpsc::channel(bounds.max_events);
    let held = Arc::new(Held { bytes: AtomicUsize::new(0), emptied: Notify::new() });
    let stage = Stage {
        queue: sender,
        held: Arc::clone(&held),
        max_bytes: bounds.max_bytes,
        metrics: Arc::clone(&metrics),
    };
    (stage, Worker { queue, held, window, max_rooms, metrics })
}

impl Stage {
    /// Takes an event, unless the stage holds as many, or as many bytes, as it may.
    pub(crate) fn push(&self, event: Accepted) -> Result<(), Outcome> {
        let bytes = event.bytes;
        let held = self.held.bytes.fetch_add(bytes, Ordering::Relaxed);
        // One event may always go in, however large: it is within limits.max_message_bytes.
        let fits = held == 0 || held + bytes <= self.max_bytes;
        self.metrics.stage_events.inc();
        self.metrics.stage_bytes.add(bytes as i64);
        if !fits || self.queue.try_send(event).is_err() {
            self.held.release(bytes, &self.metrics);
            return Err(Outcome::Overloaded);
        }
        Ok(())
    }

    /// Returns once everything that was pushed has been carried out: several are taken up at a time.
    pub(crate) async fn drained(&self) {
        loop {
            let emptied = self.held.emptied.notified();
            if self.held.bytes.load(Ordering::Acquire) == 0 {
                return;
            }
            emptied.await;
        }
    }
}

impl Worker {
    /// Carries out events, and what arrives from peers if there are any, until there is nobody left who could send
    /// an event, or the way to the peers has ended.
    pub(crate) async fn run(mut self, mut inbound: Option<Inbound>) {
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
                self.answer(event);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until there is something to do, and takes up what there is by then of either kind.
    async fn something(
        &mut self,
        events: &mut Vec<Accepted>,
        inbound: &mut Option<Inbound>,
    ) -> bool {
        let mut peers = inbound.as_mut();
        let arrived = async {
            match &mut peers {
                Some(inbound) => inbound.arrived().await,
                None => std::future::pending().await,
            }
        };
        let taken = idle(async {
            tokio::select! {
                taken = self.queue.recv_many(events, EVENTS_PER_TURN) => taken,
                arrived = arrived => arrived,
            }
        });
        match taken.await {
            0 => return false,
            // Enough for a turn waits for nothing.
            EVENTS_PER_TURN.. => {}
            _ if self.window.is_zero() => {}
            _ => tokio::time::sleep(self.window).await,
        }
        while events.len() < EVENTS_PER_TURN
            && let Ok(event) = self.queue.try_recv()
        {
            events.push(event);
        }
        if let Some(inbound) = inbound {
            inbound.take_up();
        }
        true
    }

    async fn carry_out(&self, event: Accepted, batch: &mut Batch) -> Done {
        let Accepted { socket, namespace, rule, task, bytes, accepted, span, reply } = event;
        let (outcome, accepted) = match task {
            Task::Deliver { packet, room } => {
                if rule.admits(room.as_deref(), || namespace.rooms(socket.id)) {
                    let recipients = rule.recipients(socket.id, room);
                    let reached = Some(rule.reached());
                    let published = batch.broadcast(&namespace, packet, recipients, reached).await;
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
                (self.join(&namespace, &socket, room), None)
            }
            Task::Leave(room) => {
                batch.flush().await;
                socket.leave(room);
                (Outcome::Ok, None)
            }
        };
        Done { rule, outcome, bytes, accepted, span, reply }
    }

    fn answer(&self, Done { rule, outcome, bytes, accepted, span, reply }: Done) {
        span.record("outcome", outcome.as_str());
        rule.count(outcome);
        if let Some(accepted) = accepted {
            self.metrics.fanout_seconds.observe(accepted.elapsed());
        }
        reply.send(outcome, &rule.name);
        self.held.release(bytes, &self.metrics);
    }

    fn join(&self, namespace: &Namespace, socket: &Socket<Adapter>, room: String) -> Outcome {
        let rooms = namespace.rooms(socket.id);
        if rooms.contains(room.as_str()) {
            return Outcome::Ok;
        }
        if rooms.len() >= self.max_rooms {
            return Outcome::TooManyRooms;
        }
        socket.join(room);
        // The socket may have left while this was waiting. Leaving takes it out of the namespace before it
        // clears the rooms, so either it sees the new room, or this sees that it has left. (`Socket::connected`
        // would not do: a client may join before the engine has set it, which is after the CONNECT packet.)
        if !namespace.has(socket.id) {
            socket.leave_all();
        }
        Outcome::Ok
    }
}
