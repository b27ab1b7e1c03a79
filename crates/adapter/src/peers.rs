//! The way to the peers: what this node publishes, what it asks, and who waits for answers.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use antiphon_metrics::{
    AdapterMetrics,
    adapter::{Ignored, Request as Kind, RequestFailure, Unsent},
};
use bytes::Bytes;
use socketioxide_core::{adapter::errors::AdapterError, packet::Packet};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Duration, Instant, timeout_at},
};

use crate::{
    bus::{self, Bus},
    wire::{
        Answer, Channels, Command, Limits, Opts, Request, Response, WireError, encode_broadcast,
        encode_request, encode_response, peek_request_id,
    },
};

/// Questions that may wait for answers at a time. Each waits for a few seconds at most; who asks more
/// than this asks faster than peers answer.
const QUESTIONS_MAX: usize = 1024;

/// Acknowledgements that may wait for one who asked for them and does not take them; and the most that are waited
/// for, whatever peers say.
pub(crate) const ACKS_MAX: usize = 16_384;

/// Bytes of answers that may wait for those who asked. Every peer may list all its sockets at once.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// How a node speaks with its peers.
pub struct PeerSettings {
    /// Carries the frames.
    pub bus: Bus,
    /// This node's name in frames. Node's have six characters.
    pub uid: String,
    /// What the channels' names begin with (Node: the adapter's option `key`).
    pub prefix: String,
    /// What a frame may contain.
    pub limits: Limits,
    /// Bytes of an answer, written or read: it lists all the sockets of a node.
    pub answer_bytes_max: usize,
    /// How long answers are waited for (Node: `requestsTimeout`).
    pub request_timeout: Duration,
    /// Whether answers go to the channel of the node that asked, instead of to all (Node:
    /// `publishOnSpecificResponseChannel`).
    pub answer_on_own_channel: bool,
    /// What is counted.
    pub metrics: Arc<AdapterMetrics>,
}

impl PeerSettings {
    /// What an answer may contain.
    pub(crate) fn answer_limits(&self) -> Limits {
        Limits { frame_bytes_max: self.answer_bytes_max, ..self.limits }
    }
}

/// Why peers could not be asked, or did not all answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nothing that peers publish arrives here, so no answer would.
    #[error("this node does not hear its peers at present")]
    Down,
    /// Nobody knows how many answers there will be.
    #[error("Redis does not say how many peers there are")]
    Uncounted(#[source] bus::Question),
    /// As many questions wait for answers as may wait.
    #[error("too many questions are waiting for answers")]
    TooMany,
    /// It cannot be written so that peers would read it.
    #[error("the request has no form that peers can read")]
    Unencodable(#[source] WireError),
    /// The bus did not take it.
    #[error("the request was not published")]
    Unpublished(#[source] bus::Unpublished),
    /// Some peers were not heard.
    #[error("{answered} of {expected} peers answered in time")]
    Timeout {
        /// How many answered.
        answered: usize,
        /// How many were asked.
        expected: usize,
    },
}

impl From<RequestError> for AdapterError {
    fn from(error: RequestError) -> Self {
        Self(Box::new(error))
    }
}

impl RequestError {
    fn reason(&self) -> RequestFailure {
        match self {
            Self::Down | Self::Uncounted(_) => RequestFailure::Down,
            Self::TooMany => RequestFailure::TooMany,
            Self::Unencodable(_) => RequestFailure::Unencodable,
            Self::Unpublished(_) => RequestFailure::Bus,
            Self::Timeout { .. } => RequestFailure::Timeout,
        }
    }
}

/// The peers, as far as this node is concerned.
pub(crate) struct Peers {
    pub(crate) settings: PeerSettings,
    // Taken for a question, and for an answer while there are questions.
    waiting: Mutex<HashMap<String, mpsc::Sender<Held>>>,
    answer_bytes: Arc<Semaphore>,
    next_question: AtomicU64,
}

/// A request of a peer, as far as its answer is concerned.
pub(crate) struct Asker {
    pub(crate) uid: Option<String>,
    pub(crate) request_id: Option<String>,
}

/// A question that waits for answers, until it is dropped.
pub(crate) struct Question {
    id: String,
    answers: mpsc::Receiver<Held>,
    peers: Arc<Peers>,
}

impl Question {
    /// The next answer.
    pub(crate) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.answers.poll_recv(context).map(|held| Some(held?.answer))
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.peers.waiting().remove(&self.id);
        self.peers.metrics().requests_pending.dec();
    }
}

/// An answer, and its share of the bytes that may wait.
struct Held {
    answer: Answer,
    _bytes: OwnedSemaphorePermit,
}

impl Peers {
    pub(crate) fn new(settings: PeerSettings) -> Self {
        Self {
            settings,
            waiting: Mutex::default(),
            answer_bytes: Arc::new(Semaphore::new(ANSWER_BYTES_MAX)),
            next_question: AtomicU64::new(0),
        }
    }

    pub(crate) fn metrics(&self) -> &AdapterMetrics {
        &self.settings.metrics
    }

    /// Hands an event for many to the bus; what keeps it from going out is counted.
    pub(crate) fn publish(&self, channels: &Channels, packet: &Packet, opts: &Opts) -> bool {
        let PeerSettings { uid, limits, bus, metrics, .. } = &self.settings;
        let sent = encode_broadcast(uid, packet, opts, limits)
            .map_err(|_| Unsent::Unencodable)
            .and_then(|frame| {
                let channel = channels.for_rooms(&opts.rooms);
                bus.publish(channel, Bytes::from(frame)).map_err(|_| Unsent::Bus)
            });
        match sent {
            Ok(()) => metrics.broadcasts_sent_total.inc(),
            Err(reason) => metrics.broadcasts_unsent_total.of(reason).inc(),
        }
        sent.is_ok()
    }

    /// Publishes an order, which nobody answers.
    pub(crate) fn order(&self, channels: &Channels, command: Command) -> Result<(), RequestError> {
        self.count(self.send(channels, None, command))
    }

    /// Asks every peer, and returns their answers once all have answered.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        channels: &Channels,
        command: Command,
    ) -> Result<Vec<Answer>, RequestError> {
        self.count(self.ask_all(channels, command).await)
    }

    async fn ask_all(
        self: &Arc<Self>,
        channels: &Channels,
        command: Command,
    ) -> Result<Vec<Answer>, RequestError> {
        let deadline = Instant::now() + self.settings.request_timeout;
        let expected = timeout_at(deadline, self.number(channels)).await;
        let expected = expected.unwrap_or(Err(RequestError::Down))?;
        if expected == 0 {
            return Ok(Vec::new());
        }
        // Each keeps its share of the bytes until all are there.
        let mut answers = Vec::new();
        let mut question = self.question(expected)?;
        self.send(channels, Some(question.id.clone()), command)?;
        while answers.len() < expected {
            match timeout_at(deadline, question.answers.recv()).await {
                Ok(Some(held)) => answers.push(held),
                Ok(None) | Err(_) => {
                    return Err(RequestError::Timeout { answered: answers.len(), expected });
                }
            }
        }
        Ok(answers.into_iter().map(|held| held.answer).collect())
    }

    /// Publishes an event that clients of peers acknowledge. Nobody waits here: the answers come through the
    /// [`Question`].
    pub(crate) fn ask_clients(
        self: &Arc<Self>,
        channels: &Channels,
        packet: Packet,
        opts: Opts,
    ) -> Result<Question, RequestError> {
        let asked = self.question(ACKS_MAX).and_then(|question| {
            self.send(channels, Some(question.id.clone()), Command::Broadcast { packet, opts })?;
            Ok(question)
        });
        self.count(asked)
    }

    /// How many peers there are: who subscribes to the requests answers them.
    pub(crate) async fn number(&self, channels: &Channels) -> Result<usize, RequestError> {
        // This node is one of those whom Redis counts, if it is subscribed itself.
        if !self.settings.bus.status().borrow().subscribed {
            return Err(RequestError::Down);
        }
        let nodes = self.settings.bus.subscribers(channels.request()).await;
        let nodes = nodes.map_err(RequestError::Uncounted)?;
        Ok(usize::try_from(nodes).unwrap_or(usize::MAX).saturating_sub(1))
    }

    /// Publishes an answer to `request`.
    pub(crate) fn answer(&self, channels: &Channels, to: &Asker, answer: Answer) {
        let PeerSettings { bus, metrics, .. } = &self.settings;
        let Some(request_id) = to.request_id.clone() else { return };
        // Node publishes this kind on the channel of all alone.
        let for_all = matches!(answer, Answer::Emitted(_));
        let channel = match &to.uid {
            Some(uid) if self.settings.answer_on_own_channel && !for_all => {
                channels.response_to(uid)
            }
            _ => channels.response().to_owned(),
        };
        let sent =
            encode_response(&Response { request_id, answer }, &self.settings.answer_limits())
                .map_err(|_| Unsent::Unencodable)
                .and_then(|frame| bus.publish(channel, frame.into()).map_err(|_| Unsent::Bus));
        if let Err(reason) = sent {
            metrics.answers_unsent_total.of(reason).inc();
        }
    }

    /// Whether anybody waits for this answer: if not, it need not be read. Answers to others are as large as those
    /// to this node, and come as often.
    pub(crate) fn awaits(&self, frame: &[u8]) -> bool {
        if self.waiting().is_empty() {
            return false;
        }
        // Without the lock: it goes over all of a frame that may be large.
        peek_request_id(frame).is_none_or(|id| self.waiting().contains_key(&*id))
    }

    /// Gives an answer of `bytes` to whoever waits for it.
    pub(crate) fn take(&self, response: Response, bytes: usize) -> Result<(), Ignored> {
        let waiting = self.waiting();
        let asked = waiting.get(&response.request_id).ok_or(Ignored::Unasked)?;
        let bytes = u32::try_from(bytes).map_err(|_| Ignored::Overflow)?;
        let held = Arc::clone(&self.answer_bytes).try_acquire_many_owned(bytes);
        let held = held.map_err(|_| Ignored::Overflow)?;
        let held = Held { answer: response.answer, _bytes: held };
        asked.try_send(held).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Ignored::Overflow,
            mpsc::error::TrySendError::Closed(_) => Ignored::Unasked,
        })
    }

    fn send(
        &self,
        channels: &Channels,
        request_id: Option<String>,
        command: Command,
    ) -> Result<(), RequestError> {
        let PeerSettings { uid, limits, bus, metrics, .. } = &self.settings;
        let kind = kind(&command);
        let request = Request { uid: Some(uid.clone()), request_id, command };
        let frame = encode_request(&request, limits).map_err(RequestError::Unencodable)?;
        let sent = bus.publish(channels.request(), frame.into());
        sent.map_err(RequestError::Unpublished)?;
        metrics.requests_sent_total.of(kind).inc();
        Ok(())
    }

    fn question(self: &Arc<Self>, answers_max: usize) -> Result<Question, RequestError> {
        let mut waiting = self.waiting();
        if waiting.len() >= QUESTIONS_MAX {
            return Err(RequestError::TooMany);
        }
        // Unique in the cluster, as the node's name is.
        let number = self.next_question.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{number}", self.settings.uid);
        let (sender, answers) = mpsc::channel(answers_max.min(ACKS_MAX));
        waiting.insert(id.clone(), sender);
        self.metrics().requests_pending.inc();
        Ok(Question { id, answers, peers: Arc::clone(self) })
    }

    fn count<T>(&self, result: Result<T, RequestError>) -> Result<T, RequestError> {
        result.inspect_err(|error| {
            self.metrics().requests_failed_total.of(error.reason()).inc();
        })
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Held>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request's name in metrics.
pub(crate) fn kind(command: &Command) -> Kind {
    match command {
        Command::Sockets { .. } => Kind::Sockets,
        Command::AllRooms => Kind::AllRooms,
        Command::Join { .. } => Kind::Join,
        Command::Leave { .. } => Kind::Leave,
        Command::Disconnect { .. } => Kind::Disconnect,
        Command::Fetch { .. } => Kind::Fetch,
        Command::ServerSideEmit { .. } => Kind::ServerSideEmit,
        Command::Broadcast { .. } => Kind::Broadcast,
    }
}
