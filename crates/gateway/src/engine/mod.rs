//! The engine runs the handlers of a Rust application: it is the only place that knows socketioxide.
//!
//! Antiphon speaks to clients itself. A client has an engine session only in namespaces with Rust
//! handlers. Socketioxide sees each engine session as a client that polls over HTTP: it gets requests
//! through its [`tower::Service`], in this process, and nothing of it is changed or bypassed.
//!
//! - [`Engine::open`] is the handshake, [`EngineSession::connect`] the CONNECT packet.
//! - [`EngineSession::forward`] is a POST request. It completes at once, since its body is in memory.
//! - One GET request always waits. Its waker queues the session for the [`Driver`], which hands what
//!   the handlers emitted to the [`EngineClient`].
//!
//! # Order
//!
//! Socketioxide spawns a task for each event. In a runtime with several threads, the handlers of two
//! events of one client may start in the wrong order. So handlers run on threads of their own, each
//! with a runtime for one thread, and all handlers of a session on the same one: they start in the
//! order of [`EngineSession::forward`]. `tokio::task::block_in_place` panics there.
//!
//! The client learns that it is connected only after the connection handler has run up to its first
//! `.await`. So no event can be earlier than the event handlers that were registered up to there.
//!
//! # Dynamic namespaces
//!
//! Socketioxide tells of a namespace from `SocketIo::dyn_ns` only once a client has connected to it:
//! until then [`Engine::handles`] is false for it. Where they must work, open a session for every
//! namespace name that is unknown: the engine refuses it if no pattern matches.

mod codec;
mod driver;
mod session;
mod threads;

use std::{convert::Infallible, future::Ready, io, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, uri::PathAndQuery};
use http_body_util::Full;
use serde::Deserialize;
use socketioxide::{ParserConfig, SocketIo, TransportType, service::SocketIoService, socket::Sid};
use socketioxide_core::adapter::CoreAdapter;
use tower::{Service as _, util::ServiceFn};

pub use self::{
    driver::Driver,
    session::{EngineSession, ForwardError},
};
use crate::config::Config;

use self::{driver::Queue, threads::HandlerThreads};

/// The adapter of the node's namespaces.
pub type Adapter =
    antiphon_adapter::ClusterAdapter<socketioxide::adapter::Emitter, crate::fanout::FanOut>;

type AdapterState = <Adapter as CoreAdapter<socketioxide::adapter::Emitter>>::State;

/// The engine answers every path; what it does not answer is a bug.
type Fallback = ServiceFn<fn(EngineRequest) -> Ready<Result<Response<Full<Bytes>>, Infallible>>>;
type EngineRequest = Request<Full<Bytes>>;
type EngineService = SocketIoService<Fallback, Adapter>;
/// A request that the engine works on.
type Call = <EngineService as tower::Service<EngineRequest>>::Future;

/// Packets that handlers may emit to one client before the driver has its turn.
const EMITTED_PACKETS_MAX: usize = 1024;

/// Events that handlers of one thread may be working on.
const HANDLER_TASKS_MAX: usize = 16_384;

/// How an [`Engine`] is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The number of threads that run handlers, at least 1.
    pub handler_threads: usize,
    /// The most packets that handlers may have emitted to one client, and that wait for the driver.
    /// Beyond it, `emit` fails in the handler.
    pub max_emitted_packets: usize,
    /// The largest packet that can be forwarded, in bytes, with its attachments in base64.
    pub max_packet_bytes: usize,
    /// The most bytes of one client that wait until its CONNECT packet is answered.
    pub max_waiting_bytes: usize,
    /// The most tasks that may exist on a handler thread. Each event that a handler works on is one.
    pub max_tasks: usize,
}

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

/// What an engine session has for its client.
///
/// The calls come in order, never two at a time, and from any thread. They may come from within
/// [`EngineSession::flush`], [`EngineSession::forward`] and [`EngineSession::connect`]: whoever calls
/// these must not hold a lock that the calls here take. All of them may call the session again.
pub trait EngineClient: Send + Sync {
    /// The handlers accept the client: `engine` is the id of its socket in socketioxide.
    fn connected(&self, engine: Sid);

    /// The handlers refuse the client: `data` is the JSON text for its CONNECT_ERROR packet. This is
    /// the last call.
    fn refused(&self, data: &str);

    /// A handler emits, or acknowledges: `text` is a Socket.IO packet with its namespace.
    fn packet(&self, text: &str, attachments: Vec<Bytes>);

    /// A handler disconnects the client from the namespace, or the engine gave the session up. This
    /// is the last call.
    fn disconnected(&self);
}

/// The engine has no session to give: it is shut down.
#[derive(Debug, thiserror::Error)]
#[error("the engine opens no session")]
pub struct OpenError;

/// Socketioxide, and the threads that its handlers run on.
pub struct Engine {
    io: SocketIo<Adapter>,
    shared: Arc<Shared>,
    threads: HandlerThreads,
}

/// What all sessions use.
struct Shared {
    service: EngineService,
    queue: Arc<Queue>,
    max_packet_bytes: usize,
    max_waiting_bytes: usize,
    max_tasks: usize,
}

/// The engine's answer to a handshake.
#[derive(Deserialize)]
struct Handshake {
    sid: Sid,
}

impl Engine {
    /// Starts the handler threads. [`Driver::run`] must run for as long as there are sessions.
    pub fn new(settings: &Settings, adapter: AdapterState) -> io::Result<(Self, Driver)> {
        // Attachments are counted and weighed where they arrive.
        let parser = ParserConfig::common()
            .max_incoming_binaries(usize::MAX)
            .max_incoming_binary_buf_size(usize::MAX);
        // The engine also cuts the answers to GET requests at `max_payload`. It sets the packet that
        // does not fit aside for the next GET request, which follows at once.
        let (service, io) = SocketIo::builder()
            .req_path("/")
            .transports([TransportType::Polling])
            .max_buffer_size(settings.max_emitted_packets)
            .max_payload(settings.max_packet_bytes as u64)
            .with_parser(parser)
            .with_adapter::<Adapter>(adapter)
            .build_with_inner_svc(tower::service_fn(not_found as fn(_) -> _));
        let queue = Arc::new(Queue::default());
        let shared = Shared {
            service,
            queue: Arc::clone(&queue),
            max_packet_bytes: settings.max_packet_bytes,
            max_waiting_bytes: settings.max_waiting_bytes,
            max_tasks: settings.max_tasks,
        };
        let threads = HandlerThreads::start(settings.handler_threads)?;
        Ok((Self { io, shared: Arc::new(shared), threads }, Driver::new(queue)))
    }

    /// Socketioxide itself: where an application registers its handlers.
    pub fn io(&self) -> &SocketIo<Adapter> {
        &self.io
    }

    /// Whether a Rust handler is registered for `namespace`.
    pub fn handles(&self, namespace: &str) -> bool {
        self.io.of(namespace).is_some()
    }

    /// Opens a session for a client of `namespace`. Nothing happens in it until
    /// [`EngineSession::connect`], and `client` hears nothing before that.
    ///
    /// `head` is the request that the client's own session began with: handlers see its headers and
    /// extensions, and its query except for Engine.IO's part.
    pub fn open(
        &self,
        head: Request<()>,
        namespace: &str,
        client: Arc<dyn EngineClient>,
    ) -> Result<Arc<EngineSession>, OpenError> {
        let (mut head, ()) = head.into_parts();
        head.method = http::Method::GET;
        head.uri = handshake_uri(&head.uri);
        let request = Request::from_parts(head, Full::default());
        let call = {
            // The engine would start two tasks for each session: one sends pings, and one closes
            // sessions that do not connect. Here they would cost memory, and the second one keeps a
            // refused session for a while. In this context tasks end before they start.
            let _no_tasks = self.threads.enter_without_tasks();
            self.shared.service.clone().call(request)
        };
        let body = codec::answer(call).ok_or(OpenError)?;
        let json = body.strip_prefix(b"0").ok_or(OpenError)?;
        let Handshake { sid } = serde_json::from_slice(json).map_err(|_| OpenError)?;
        let thread = self.threads.next();
        Ok(EngineSession::new(Arc::clone(&self.shared), thread, sid, namespace, client))
    }
}

/// The client's own query, but as a first request of Engine.IO 4 by polling.
fn handshake_uri(uri: &Uri) -> Uri {
    let mut path_and_query = format!("{}?EIO=4&transport=polling", uri.path());
    let ours = ["EIO=", "transport=", "sid="];
    let pairs = uri.query().into_iter().flat_map(|query| query.split('&'));
    for pair in pairs.filter(|pair| !ours.iter().any(|key| pair.starts_with(key))) {
        path_and_query.push('&');
        path_and_query.push_str(pair);
    }
    let fallback = PathAndQuery::from_static("/?EIO=4&transport=polling");
    PathAndQuery::try_from(path_and_query).unwrap_or(fallback).into()
}

fn not_found(_: EngineRequest) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NOT_FOUND;
    std::future::ready(Ok(response))
}
