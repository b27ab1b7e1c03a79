//! A node put together: engine, namespaces, stage and HTTP, from a configuration.

use std::{convert::Infallible, sync::Arc, time::Duration};

use antiphon_adapter::{Cluster, Namespace};
use antiphon_metrics::{
    GatewayMetrics, IntGauge, Registry,
    gateway::{Protocol, Transport},
    register_process,
};
use axum::{Router, body::Body, middleware};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use socketioxide::{ParserConfig, SocketIo, TransportType, service::SocketIoService};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tower::{Layer, ServiceExt};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

use crate::{
    cluster::{self, ClusterError, Link},
    config::{AllowedOrigins, Config, Cors},
    door::{Door, Sockets},
    events::{Adapter, Rules},
    fanout::FanOut,
    handshake::{Gate, gate},
    health::{self, Health, Pulse},
    introduction,
    sessions::{PollingSession, Sessions},
    stage::{Stage, stage},
    telemetry::Telemetry,
};

/// What the engine reads of a WebSocket at a time. tungstenite keeps a buffer of this size for each
/// connection; chat messages are smaller, and larger ones only take more reads.
const WEBSOCKET_READ_BUFFER_BYTES: usize = 512;

/// The largest answer to a poll, as far as the engine is concerned. What may wait for a client is bounded elsewhere; were
/// this the bound, the packet that does not fit any more would be lost when the client goes over to a WebSocket: the
/// engine sets it aside for the next poll. It also takes this for the largest request, which `handshake.rs` bounds, and
/// tells clients so, where `handshake.rs` corrects it.
pub(crate) const POLL_ANSWER_BYTES_MAX: u64 = i32::MAX as u64;

/// The commit that the program was built from, if whoever built it says so.
const REVISION: &str = match option_env!("ANTIPHON_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// How often rooms are counted.
const ROOMS_INTERVAL: Duration = Duration::from_secs(15);

/// What a node of a cluster has besides.
pub(crate) struct PeersLink {
    pub(crate) link: Link,
    pub(crate) _counting: AbortOnDropHandle<()>,
}

/// Why a node cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A metric is there already: two event rules clash.
    #[error("cannot set up metrics")]
    Metrics(#[from] antiphon_metrics::Error),
    /// The way to the peers.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// A node, ready to be served.
pub struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) health: Health,
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) app: Router,
    pub(crate) io: SocketIo<Adapter>,
    pub(crate) cluster: Cluster,
    pub(crate) stage: Stage,
    pub(crate) delivering: AbortOnDropHandle<()>,
    pub(crate) closer: AbortOnDropHandle<()>,
    pub(crate) peers: Option<PeersLink>,
    pub(crate) _watching: [AbortOnDropHandle<()>; 2],
}

impl Node {
    /// Assembles a node. Needs a tokio runtime, for the tasks that it starts; listens to nothing yet.
    pub fn new(config: Config) -> Result<Self, BuildError> {
        let nothing = Router::new().fallback(async |uri: Uri| {
            (StatusCode::NOT_FOUND, format!("nothing at {}\n", uri.path()))
        });
        Self::with_routes(config, nothing)
    }

    /// The same, answering requests for other paths than `server.path` with `routes`.
    pub fn with_routes(config: Config, routes: Router) -> Result<Self, BuildError> {
        let config = Arc::new(config);
        let registry = Registry::new();
        register_process(&registry, env!("CARGO_PKG_VERSION"), REVISION)?;
        let metrics = Arc::new(GatewayMetrics::register(&registry)?);
        metrics.connections_max.set(as_gauge(config.server.max_connections));
        metrics.stage_events_max.set(as_gauge(config.stage.max_events));
        metrics.stage_bytes_max.set(as_gauge(config.stage.max_bytes));
        let max_waiting_bytes = config.session.send_queue_bytes;
        metrics.client_waiting_bytes_max.set(as_gauge(max_waiting_bytes));
        metrics.client_waiting_packets_max.set(as_gauge(config.session.send_queue_packets));
        let (sessions, to_close) = Sessions::new(max_waiting_bytes, Arc::clone(&metrics));
        let max_rooms = config.limits.max_rooms_per_socket;
        let window = config.fanout.window;
        let (runtime, stage_task) = (Pulse::new(), Pulse::new());
        let (stage, worker) = stage(&config.stage, window, max_rooms, Arc::clone(&metrics));

        let fan_out = Arc::new(FanOut::new(Arc::clone(&sessions), config.fanout.workers));
        let (cluster, link) = cluster::start(&config, &registry, fan_out)?;
        let (engine, io) = engine(&config, cluster.clone(), routes);
        let mut rooms = Vec::with_capacity(config.namespaces.len());
        for path in &config.namespaces {
            let rules = Rules::new(&config, path, &metrics)?;
            let sockets = Sockets::new(path, &metrics)?;
            rooms.push((path.clone(), metrics.rooms.of(path)?));
            let metrics = Arc::clone(&metrics);
            let door = Door::new(path, rules, cluster.clone(), stage.clone(), sockets, metrics);
            io.ns(path.clone(), door);
        }

        let gate = Gate::new(Arc::clone(&config), Arc::clone(&metrics), Arc::clone(&sessions));
        let gate = Arc::new(gate);
        let path = config.server.path.clone();
        let closer = close_polling_sessions(to_close, engine.clone(), Arc::clone(&sessions), path);
        let counting = tokio::spawn(count_rooms(cluster.clone(), rooms));
        let beating = tokio::spawn(health::beat(Arc::clone(&runtime)));
        let (link, receiver) = link.unzip();
        let inbound = receiver.and_then(|receiver| {
            let io = io.clone();
            let describe = move |path: &str, sid| introduction::handshake(&io, path, sid);
            cluster.inbound(receiver, describe)
        });
        let peers = link.map(|link| {
            let counting = tokio::spawn(cluster.clone().count_peers());
            PeersLink { link, _counting: AbortOnDropHandle::new(counting) }
        });
        let delivering = health::watched(Arc::clone(&stage_task), worker.run(inbound));
        let [delivering, closer] =
            [tokio::spawn(delivering), tokio::spawn(closer)].map(AbortOnDropHandle::new);
        let health = Health {
            runtime,
            stage: stage_task,
            gate: Arc::clone(&gate),
            bus: peers.as_ref().map(|peers| peers.link.watch()),
            metrics: Arc::clone(&metrics),
        };
        let app = app(engine, Arc::clone(&gate), &config.cors);
        Ok(Self {
            config,
            registry,
            metrics,
            sessions,
            gate,
            health,
            telemetry: None,
            app,
            io,
            cluster,
            stage,
            delivering,
            closer,
            peers,
            _watching: [counting, beating].map(AbortOnDropHandle::new),
        })
    }

    /// Lets operators change what the process logs, and see its own metrics, through the admin listener.
    pub fn with_telemetry(self, telemetry: Telemetry) -> Self {
        Self { telemetry: Some(telemetry), ..self }
    }

    /// The Socket.IO server inside, for programs that add handlers of their own.
    pub fn io(&self) -> &SocketIo<Adapter> {
        &self.io
    }

    /// What the adapter offers beyond socketioxide, for the namespace at `path`.
    pub fn namespace(&self, path: &str) -> Option<Namespace> {
        self.cluster.namespace(path)
    }
}

/// Keeps the number of rooms in the metrics. Going over them takes 0.2 s of a core for 100,000 sockets in ten
/// rooms each, on a thread of its own: seldom.
async fn count_rooms(cluster: Cluster, namespaces: Vec<(String, IntGauge)>) {
    let mut ticks = tokio::time::interval(ROOMS_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (path, gauge) in &namespaces {
            let Some(namespace) = cluster.namespace(path) else { continue };
            let counted = tokio::task::spawn_blocking(move || namespace.count_rooms()).await;
            gauge.set(as_gauge(counted.unwrap_or_default()));
        }
    }
}

fn as_gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

type Engine = SocketIoService<Router, Adapter>;

fn engine(config: &Config, cluster: Cluster, routes: Router) -> (Engine, SocketIo<Adapter>) {
    let Config { server, session, limits, .. } = config;
    let parser = ParserConfig::common()
        .max_incoming_binaries(limits.max_attachments)
        .max_incoming_binary_buf_size(limits.max_message_bytes)
        .packet_completion_timeout(limits.attachment_timeout);
    let builder = SocketIo::builder()
        .req_path(server.path.clone())
        .ping_interval(session.ping_interval)
        .ping_timeout(session.ping_timeout)
        .connect_timeout(session.connect_timeout)
        .upgrade_timeout(session.upgrade_timeout)
        .max_buffer_size(session.send_queue_packets)
        .max_payload(POLL_ANSWER_BYTES_MAX)
        .ws_max_message_size(limits.max_message_bytes)
        .ws_max_frame_size(limits.max_message_bytes)
        .ws_read_buffer_size(WEBSOCKET_READ_BUFFER_BYTES)
        .with_parser(parser);
    let builder = match (server.polling, server.websocket) {
        (true, false) => builder.transports([TransportType::Polling]),
        (false, true) => builder.transports([TransportType::Websocket]),
        _ => builder.transports([TransportType::Polling, TransportType::Websocket]),
    };
    builder.with_adapter::<Adapter>(cluster).build_with_inner_svc(routes)
}

/// CORS outside, so that its headers are on refusals too; then the gate; then the engine.
fn app(engine: Engine, state: Arc<Gate>, cors: &Cors) -> Router {
    let gated = middleware::from_fn_with_state(state, gate).layer(engine);
    Router::new().fallback_service(cors_layer(cors).layer(gated))
}

fn cors_layer(cors: &Cors) -> CorsLayer {
    // What Express's `cors()` allows, and every header that is asked for.
    let methods =
        [Method::GET, Method::HEAD, Method::PUT, Method::PATCH, Method::POST, Method::DELETE];
    let layer = CorsLayer::new()
        .allow_methods(methods)
        .allow_headers(AllowHeaders::mirror_request())
        .allow_credentials(cors.credentials);
    match &cors.allowed_origins {
        AllowedOrigins::Any => layer.allow_origin(Any),
        AllowedOrigins::List(list) => {
            let values = list.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
            layer.allow_origin(values.collect::<Vec<_>>())
        }
    }
}

/// Closes polling sessions, which have no connection that could be closed: the engine gets the close
/// packet that the client would send.
async fn close_polling_sessions(
    mut to_close: mpsc::Receiver<PollingSession>,
    engine: Engine,
    sessions: Arc<Sessions>,
    path: String,
) {
    while let Some(PollingSession { sid, protocol, .. }) = to_close.recv().await {
        let (revision, body) = match protocol {
            Protocol::Eio3 => (3, "1:1"), // Engine.IO 3 puts the length before each packet.
            Protocol::Eio4 => (4, "1"),
        };
        let uri = format!("{path}/?EIO={revision}&transport=polling&sid={sid}");
        let Ok(request) = Request::post(uri).body(Body::from(body)) else { continue };
        let _: Result<_, Infallible> = engine.clone().oneshot(request).await;
        // Either the engine has closed it now, or it had before; unless it has gone over to a
        // WebSocket, which is closed in another way.
        let session = sessions.find(sid);
        if let Some(session) = session.filter(|one| one.transport() == Transport::Polling) {
            session.end();
        }
    }
}
