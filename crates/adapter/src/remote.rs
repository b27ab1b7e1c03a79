//! The way to the remote nodes: what this node publishes, what it requests, and who waits for
//! responses.

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

/// Requests in flight. Each waits for a few seconds at most: more come only from a caller that asks
/// faster than remote nodes respond.
const REQUESTS_IN_FLIGHT_MAX: usize = 1024;

/// Acknowledgements that may wait for a caller that does not take them, and the most that are
/// waited for, whatever remote nodes say.
pub(crate) const ACKS_MAX: usize = 16_384;

/// Bytes of responses that may wait for callers. Every remote node may list all its sockets at
/// once.
const RESPONSE_BYTES_MAX: usize = 128 << 20;

/// How a node communicates with the remote nodes.
pub struct ClusterSettings {
    /// Carries the frames.
    pub bus: Bus,
    /// This node's name in frames. Node's have six characters.
    pub uid: String,
    /// The prefix of all channel names (Node: the adapter's option `key`).
    pub prefix: String,
    /// What a frame may contain.
    pub limits: Limits,
    /// Bytes of a response, written or read: it lists all the sockets of a node.
    pub answer_bytes_max: usize,
    /// How long a request waits for responses (Node: `requestsTimeout`).
    pub request_timeout: Duration,
    /// Whether responses go to the channel of the node that asked, instead of to all (Node:
    /// `publishOnSpecificResponseChannel`).
    pub answer_on_own_channel: bool,
    /// Counts what is sent, received and dropped.
    pub metrics: Arc<AdapterMetrics>,
}

impl ClusterSettings {
    /// What a response may contain.
    pub(crate) fn response_limits(&self) -> Limits {
        Limits { frame_bytes_max: self.answer_bytes_max, ..self.limits }
    }
}

/// Why a request did not reach the remote nodes, or not all of them responded.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The subscription receives nothing at present, so no response would arrive.
    #[error("the node is not subscribed to the cluster's channels at present")]
    Down,
    /// The number of responses to wait for is unknown.
    #[error("Redis does not say how many remote nodes there are")]
    Uncounted(#[source] bus::Question),
    /// The limit of requests in flight is reached.
    #[error("too many requests are in flight")]
    TooMany,
    /// The request cannot be written in a form that remote nodes read.
    #[error("the request cannot be encoded")]
    Unencodable(#[source] WireError),
    /// The bus did not accept the request.
    #[error("the request was not published")]
    Unpublished(#[source] bus::Unpublished),
    /// Some remote nodes did not respond before the deadline.
    #[error("{answered} of {expected} remote nodes responded in time")]
    Timeout {
        /// How many responded.
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

/// The remote nodes, as far as this node is concerned.
pub(crate) struct RemoteNodes {
    pub(crate) settings: ClusterSettings,
    // Locked for each request, and for each response while there are requests.
    in_flight: Mutex<HashMap<String, mpsc::Sender<Held>>>,
    response_bytes: Arc<Semaphore>,
    next_request: AtomicU64,
}

/// Who sent a request, as far as the response is concerned.
pub(crate) struct Requester {
    pub(crate) uid: Option<String>,
    pub(crate) request_id: Option<String>,
}

/// A request that waits for responses, until it is dropped.
pub(crate) struct InFlight {
    id: String,
    responses: mpsc::Receiver<Held>,
    nodes: Arc<RemoteNodes>,
}

impl InFlight {
    /// The next response.
    pub(crate) fn poll_response(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.responses.poll_recv(context).map(|held| Some(held?.answer))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.nodes.in_flight().remove(&self.id);
        self.nodes.metrics().requests_pending.dec();
    }
}

/// A response, and its share of the bytes that may wait.
struct Held {
    answer: Answer,
    _bytes: OwnedSemaphorePermit,
}

impl RemoteNodes {
    /// The remote nodes that these settings lead to.
    pub(crate) fn new(settings: ClusterSettings) -> Self {
        Self {
            settings,
            in_flight: Mutex::default(),
            response_bytes: Arc::new(Semaphore::new(RESPONSE_BYTES_MAX)),
            next_request: AtomicU64::new(0),
        }
    }

    /// The adapter's metrics.
    pub(crate) fn metrics(&self) -> &AdapterMetrics {
        &self.settings.metrics
    }

    /// Hands an event to the bus. A failure is counted.
    pub(crate) fn publish(&self, channels: &Channels, packet: &Packet, opts: &Opts) -> bool {
        let ClusterSettings { uid, limits, bus, metrics, .. } = &self.settings;
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

    /// Publishes a command that nobody responds to.
    pub(crate) fn command(
        &self,
        channels: &Channels,
        command: Command,
    ) -> Result<(), RequestError> {
        self.count(self.send(channels, None, command))
    }

    /// Asks every remote node, and returns their responses once all have responded.
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
        let mut responses = Vec::new();
        let mut request = self.request(expected)?;
        self.send(channels, Some(request.id.clone()), command)?;
        while responses.len() < expected {
            match timeout_at(deadline, request.responses.recv()).await {
                Ok(Some(held)) => responses.push(held),
                Ok(None) | Err(_) => {
                    return Err(RequestError::Timeout { answered: responses.len(), expected });
                }
            }
        }
        Ok(responses.into_iter().map(|held| held.answer).collect())
    }

    /// Publishes an event that clients of remote nodes acknowledge. Nobody waits here: the
    /// responses come through what is returned.
    pub(crate) fn ask_clients(
        self: &Arc<Self>,
        channels: &Channels,
        packet: Packet,
        opts: Opts,
    ) -> Result<InFlight, RequestError> {
        let asked = self.request(ACKS_MAX).and_then(|request| {
            self.send(channels, Some(request.id.clone()), Command::Broadcast { packet, opts })?;
            Ok(request)
        });
        self.count(asked)
    }

    /// How many remote nodes there are: every subscriber to the channel of requests responds.
    pub(crate) async fn number(&self, channels: &Channels) -> Result<usize, RequestError> {
        // This node is one of those whom Redis counts, if it is subscribed itself.
        if !self.settings.bus.status().borrow().subscribed {
            return Err(RequestError::Down);
        }
        let nodes = self.settings.bus.subscribers(channels.request()).await;
        let nodes = nodes.map_err(RequestError::Uncounted)?;
        Ok(usize::try_from(nodes).unwrap_or(usize::MAX).saturating_sub(1))
    }

    /// Publishes a response.
    pub(crate) fn respond(&self, channels: &Channels, to: &Requester, answer: Answer) {
        let ClusterSettings { bus, metrics, .. } = &self.settings;
        let Some(request_id) = to.request_id.clone() else { return };
        // Node hears this kind on the common channel alone.
        let for_all = matches!(answer, Answer::Emitted(_));
        let channel = match &to.uid {
            Some(uid) if self.settings.answer_on_own_channel && !for_all => {
                channels.response_to(uid)
            }
            _ => channels.response().to_owned(),
        };
        let sent =
            encode_response(&Response { request_id, answer }, &self.settings.response_limits())
                .map_err(|_| Unsent::Unencodable)
                .and_then(|frame| bus.publish(channel, frame.into()).map_err(|_| Unsent::Bus));
        if let Err(reason) = sent {
            metrics.answers_unsent_total.of(reason).inc();
        }
    }

    /// Whether a request waits for this response. If not, the frame need not be decoded: responses
    /// to other nodes are as large and as frequent as those to this one.
    pub(crate) fn awaits(&self, frame: &[u8]) -> bool {
        if self.in_flight().is_empty() {
            return false;
        }
        // Without the lock: this reads all of a frame that may be large.
        peek_request_id(frame).is_none_or(|id| self.in_flight().contains_key(&*id))
    }

    /// Gives a response of `bytes` to the request that waits for it.
    pub(crate) fn take(&self, response: Response, bytes: usize) -> Result<(), Ignored> {
        let in_flight = self.in_flight();
        let request = in_flight.get(&response.request_id).ok_or(Ignored::Unasked)?;
        let bytes = u32::try_from(bytes).map_err(|_| Ignored::Overflow)?;
        let held = Arc::clone(&self.response_bytes).try_acquire_many_owned(bytes);
        let held = held.map_err(|_| Ignored::Overflow)?;
        let held = Held { answer: response.answer, _bytes: held };
        request.try_send(held).map_err(|refused| match refused {
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
        let ClusterSettings { uid, limits, bus, metrics, .. } = &self.settings;
        let kind = kind(&command);
        let request = Request { uid: Some(uid.clone()), request_id, command };
        let frame = encode_request(&request, limits).map_err(RequestError::Unencodable)?;
        let sent = bus.publish(channels.request(), frame.into());
        sent.map_err(RequestError::Unpublished)?;
        metrics.requests_sent_total.of(kind).inc();
        Ok(())
    }

    fn request(self: &Arc<Self>, responses_max: usize) -> Result<InFlight, RequestError> {
        let mut in_flight = self.in_flight();
        if in_flight.len() >= REQUESTS_IN_FLIGHT_MAX {
            return Err(RequestError::TooMany);
        }
        // Unique in the cluster, as the node's name is.
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{number}", self.settings.uid);
        let (sender, responses) = mpsc::channel(responses_max.min(ACKS_MAX));
        in_flight.insert(id.clone(), sender);
        self.metrics().requests_pending.inc();
        Ok(InFlight { id, responses, nodes: Arc::clone(self) })
    }

    fn count<T>(&self, result: Result<T, RequestError>) -> Result<T, RequestError> {
        result.inspect_err(|error| {
            self.metrics().requests_failed_total.of(error.reason()).inc();
        })
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Held>>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The label of a request in metrics.
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
