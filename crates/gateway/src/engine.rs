//! The engine runs the handlers of a Rust application. Only this module knows socketioxide.
//!
//! Antiphon speaks to clients itself. A client has an engine session only in namespaces with Rust
//! handlers. For socketioxide, each engine session is a client that polls over HTTP. The requests
//! go to its [`tower::Service`] inside this process, so socketioxide is used as it is.
//!
//! - [`Engine::open`] is the handshake, and [`EngineSession::connect`] sends CONNECT.
//! - [`EngineSession::forward`] is a POST request. It completes at once: its body is in memory.
//! - One GET request always waits. Its waker puts the session into the queue of the [`Driver`],
//!   which delivers what handlers emit to the [`EngineClient`].
//!
//! # Order
//!
//! Socketioxide spawns a task for each event. A runtime with several threads may start the tasks of
//! two events in the wrong order; even on one of its threads, the task spawned last often runs
//! first. So handlers run on threads of their own, each with a single-threaded runtime. A session
//! stays on one thread, and its handlers start in the order of [`EngineSession::forward`]. The
//! price: `tokio::task::block_in_place` panics in handlers.
//!
//! [`EngineClient::connected`] is called only when the connection handler has run up to its first
//! `.await` that waits. So no event of the client misses a listener that was registered up to
//! there.
//!
//! # Dynamic namespaces
//!
//! Socketioxide does not tell whether a name matches a pattern of `SocketIo::dyn_ns`: it creates
//! the namespace when the first client connects, and [`Engine::handles`] is false until then. To
//! support patterns, open a session for every unknown name; the engine refuses it if no pattern
//! matches.

mod codec;
mod driver;
mod incoming;
mod session;
#[cfg(test)]
mod tests;
mod threads;

use std::{convert::Infallible, future::Ready, io, sync::Arc};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode, Uri, uri::PathAndQuery};
use http_body_util::Full;
use serde::Deserialize;
use socketioxide::{ParserConfig, SocketIo, TransportType, service::SocketIoService, socket::Sid};
use socketioxide_core::adapter::CoreAdapter;
use tower::{Service as _, util::ServiceFn};

pub(crate) use self::{driver::Driver, session::EngineSession};
use crate::config::Config;

use self::{driver::Queue, threads::HandlerThreads};

/// The adapter of the node's namespaces.
pub type Adapter =
    antiphon_adapter::ClusterAdapter<socketioxide::adapter::Emitter, crate::fanout::FanOut>;

type AdapterState = <Adapter as CoreAdapter<socketioxide::adapter::Emitter>>::State;
type EngineRequest = Request<Full<Bytes>>;
type EngineService = SocketIoService<Fallback, Adapter>;
type Fallback = ServiceFn<fn(EngineRequest) -> Ready<Result<Response<Full<Bytes>>, Infallible>>>;

/// A request that the engine has taken.
type Call = <EngineService as tower::Service<EngineRequest>>::Future;

/// The bounds of an [`Engine`].
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// How many threads run handlers; at least one does.
    pub(crate) handler_threads: usize,
    /// Packets that handlers may emit to one client before they are delivered. Beyond this, `emit`
    /// returns an error to the handler.
    pub(crate) max_emitted_packets: usize,
    /// Bytes of a forwarded packet, with its attachments in base64. Also limits how much one GET
    /// request returns.
    pub(crate) max_packet_bytes: usize,
    /// Bytes of one client that may wait for the reply to CONNECT.
    pub(crate) max_waiting_bytes: usize,
    /// Tasks on one handler thread. Every event is a task until its handler returns.
    pub(crate) max_tasks: usize,
}

/// Packets that handlers may emit to one client before the driver has its turn.
const EMITTED_PACKETS_MAX: usize = 1024;

/// Events that the handlers of one thread may be working on.
const HANDLER_TASKS_MAX: usize = 16_384;

impl Settings {
    /// The settings of a node.
    pub(crate) fn new(config: &Config) -> Self {
        let max_message_bytes = config.limits.max_message_bytes;
        Self {
            handler_threads: config.fanout.workers,
            max_emitted_packets: EMITTED_PACKETS_MAX,
            // Base64 adds a third, and the packet a little.
            max_packet_bytes: max_message_bytes * 2 + 1024,
            max_waiting_bytes: max_message_bytes * 2,
            max_tasks: HANDLER_TASKS_MAX,
        }
    }
}

/// The client of an engine session.
///
/// Calls come in order and never two at a time, from any thread. They also come from within
/// [`EngineSession::connect`], [`EngineSession::forward`] and [`EngineSession::flush`]: the caller
/// of these must not hold a lock that an `EngineClient` takes. An `EngineClient` may call its
/// session.
pub(crate) trait EngineClient: Send + Sync {
    /// The handlers accept the client. `engine` is the id of its socket in socketioxide.
    fn connected(&self, engine: Sid);

    /// The handlers refuse the client. `data` is the JSON text of CONNECT_ERROR. This call is the
    /// last one.
    fn refused(&self, data: &str);

    /// A handler emits or acknowledges. `text` is a Socket.IO packet with its namespace.
    fn packet(&self, text: &str, attachments: Vec<Bytes>);

    /// A handler disconnects the client, or the engine ends the session. This call is the last one.
    fn disconnected(&self);
}

/// The engine did not open a session. It always does, as of engineioxide 0.17.
#[derive(Debug, thiserror::Error)]
#[error("the engine opens no session")]
pub(crate) struct OpenError;

/// Socketioxide, and the threads that run its handlers.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    threads: HandlerThreads,
}

/// What every session needs.
struct Shared {
    service: EngineService,
    io: SocketIo<Adapter>,
    queue: Arc<Queue>,
    max_packet_bytes: usize,
    max_waiting_bytes: usize,
    max_tasks: usize,
}

/// The engine's reply to a handshake.
#[derive(Deserialize)]
struct Handshake {
    sid: Sid,
}

impl Engine {
    /// Starts the handler threads. Sessions need [`Driver::run`] to run as long as they exist.
    pub(crate) fn new(settings: &Settings, adapter: AdapterState) -> io::Result<(Self, Driver)> {
        // The gateway limits attachments before they get here.
        let parser = ParserConfig::common()
            .max_incoming_binaries(usize::MAX)
            .max_incoming_binary_buf_size(usize::MAX);
        let (service, io) = SocketIo::builder()
            .req_path("/")
            .transports([TransportType::Polling])
            .max_buffer_size(settings.max_emitted_packets)
            // A packet that exceeds this for a GET request is not lost: the engine returns it to
            // the next one, which always follows.
            .max_payload(settings.max_packet_bytes as u64)
            .with_parser(parser)
            .with_adapter::<Adapter>(adapter)
            .build_with_inner_svc(tower::service_fn(not_found as fn(_) -> _));
        let queue = Arc::new(Queue::default());
        let driver = Driver::new(Arc::clone(&queue));
        let shared = Shared {
            service,
            io,
            queue,
            max_packet_bytes: settings.max_packet_bytes,
            max_waiting_bytes: settings.max_waiting_bytes,
            max_tasks: settings.max_tasks,
        };
        let threads = HandlerThreads::start(settings.handler_threads)?;
        Ok((Self { shared: Arc::new(shared), threads }, driver))
    }

    /// Socketioxide itself, for the application to register its handlers.
    pub(crate) fn io(&self) -> &SocketIo<Adapter> {
        &self.shared.io
    }

    /// Whether a Rust handler is registered for exactly this namespace.
    pub(crate) fn handles(&self, namespace: &str) -> bool {
        self.io().of(namespace).is_some()
    }

    /// Opens a session for a client of `namespace`. The client gets no calls before
    /// [`EngineSession::connect`].
    ///
    /// `head` is the request that began the client's own session. Handlers see its path, headers
    /// and extensions, and its query without the part that belongs to Engine.IO.
    pub(crate) fn open(
        &self,
        head: Request<()>,
        namespace: &str,
        client: Arc<dyn EngineClient>,
    ) -> Result<Arc<EngineSession>, OpenError> {
        let (mut head, ()) = head.into_parts();
        head.method = Method::GET;
        head.uri = handshake_uri(&head.uri);
        let request = Request::from_parts(head, Full::default());
        let call = {
            // The engine spawns two tasks for a session: one pings the client, the other closes a
            // session that does not connect in time. Both cost memory, and the second keeps a
            // refused session in memory until then. The gateway does both jobs itself.
            let _guard = self.threads.enter_without_tasks();
            self.shared.service.clone().call(request)
        };
        let response = call.now_or_never().and_then(Result::ok).ok_or(OpenError)?;
        let body = codec::body(response).ok_or(OpenError)?;
        let json = body.strip_prefix(b"0").ok_or(OpenError)?;
        let Handshake { sid } = serde_json::from_slice(json).map_err(|_| OpenError)?;
        let thread = self.threads.next();
        Ok(EngineSession::new(Arc::clone(&self.shared), thread, sid, namespace, client))
    }
}

/// The client's own path and query, with the query of an Engine.IO 4 handshake by polling.
fn handshake_uri(uri: &Uri) -> Uri {
    let mut path_and_query = format!("{}?EIO=4&transport=polling", uri.path());
    let replaced = ["EIO=", "transport=", "sid="];
    let pairs = uri.query().into_iter().flat_map(|query| query.split('&'));
    for pair in pairs.filter(|pair| !replaced.iter().any(|key| pair.starts_with(key))) {
        path_and_query.push('&');
        path_and_query.push_str(pair);
    }
    let bare = PathAndQuery::from_static("/?EIO=4&transport=polling");
    PathAndQuery::try_from(path_and_query).unwrap_or(bare).into()
}

/// Socketioxide asks for an inner service; with "/" as its path, no request gets here.
fn not_found(_: EngineRequest) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NOT_FOUND;
    std::future::ready(Ok(response))
}
