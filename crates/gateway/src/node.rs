//! A node put together: transport, namespaces, dispatcher, adapter and HTTP, from a configuration.

use std::{io, sync::Arc, time::Duration};

use antiphon_adapter::{Cluster, Namespace};
use antiphon_metrics::{GatewayMetrics, Registry, register_process};
use axum::{Router, body::Body, response::IntoResponse};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use socketioxide::SocketIo;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::{Layer, ServiceExt};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

use crate::{
    cluster::{self, ClusterError, Link},
    config::{AllowedOrigins, Config, Cors},
    dispatcher::Dispatcher,
    engine::{self, Adapter, Engine},
    fanout::FanOut,
    health::{self, Health, NodeState, Pulse},
    namespaces::Namespaces,
    net::Remote,
    telemetry::Telemetry,
    transport::{Budget, Settings, Transport},
};

/// The commit that the program was built from, if whoever built it says so.
const REVISION: &str = match option_env!("ANTIPHON_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// How often rooms are counted.
const ROOMS_INTERVAL: Duration = Duration::from_secs(15);

/// What a node of a cluster has besides.
pub(crate) struct RemoteLink {
    pub(crate) link: Link,
    pub(crate) _counting: AbortOnDropHandle<()>,
}

/// Why a node cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A metric is there already: two event rules clash.
    #[error("cannot set up metrics")]
    Metrics(#[from] antiphon_metrics::Error),
    /// The way to the remote nodes.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The threads of the application's handlers.
    #[error("cannot start the threads for handlers")]
    Threads(#[from] io::Error),
}

/// A node, ready to be served.
pub struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) transport: Arc<Transport<Namespaces>>,
    pub(crate) state: Arc<NodeState>,
    pub(crate) health: Health,
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) app: Router,
    pub(crate) engine: Arc<Engine>,
    pub(crate) cluster: Cluster<FanOut>,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) connections: TaskTracker,
    pub(crate) dispatching: AbortOnDropHandle<()>,
    pub(crate) timing: AbortOnDropHandle<()>,
    pub(crate) remote: Option<RemoteLink>,
    pub(crate) _watching: [AbortOnDropHandle<()>; 3],
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
        let metrics = metrics(&config, &registry)?;
        let budget = Budget::new(config.limits.memory, metrics.memory_bytes.clone());
        let (runtime, dispatched) = (Pulse::new(), Pulse::new());
        let max_rooms = config.limits.max_rooms_per_socket;
        let window = config.fanout.window;
        let (dispatcher, worker) =
            Dispatcher::new(&config.stage, window, max_rooms, Arc::clone(&metrics));
        let workers = config.fanout.workers;
        let fan_out = FanOut::new(workers, Arc::clone(&budget), Arc::clone(&metrics));
        let (cluster, link) = cluster::start(&config, &registry, Arc::new(fan_out))?;
        let (engine, driver) = Engine::new(&engine::Settings::new(&config), cluster.clone())?;
        let engine = Arc::new(engine);
        let namespaces = Namespaces::new(
            &config,
            cluster.clone(),
            Arc::clone(&engine),
            dispatcher.clone(),
            Arc::clone(&budget),
            Arc::clone(&metrics),
        )?;
        let connections = TaskTracker::new();
        let transport = Transport::new(
            Settings::new(&config),
            Arc::clone(&budget),
            Arc::clone(&metrics),
            connections.clone(),
            namespaces,
        );
        let counting = tokio::spawn(count_rooms(Arc::clone(&transport)));
        let beating = tokio::spawn(health::beat(Arc::clone(&runtime)));
        let driving = tokio::spawn(driver.run());
        let (link, receiver) = link.unzip();
        let inbound = receiver.and_then(|receiver| cluster.inbound(receiver));
        let remote = link.map(|link| {
            let counting = tokio::spawn(cluster.clone().count_remote_nodes());
            RemoteLink { link, _counting: AbortOnDropHandle::new(counting) }
        });
        let dispatching = health::watched(Arc::clone(&dispatched), worker.run(inbound));
        let dispatching = AbortOnDropHandle::new(tokio::spawn(dispatching));
        let timing = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&transport).run()));
        let state = Arc::new(NodeState::default());
        let health = Health {
            runtime,
            dispatcher: dispatched,
            state: Arc::clone(&state),
            bus: remote.as_ref().map(|remote| remote.link.watch()),
            metrics: Arc::clone(&metrics),
        };
        let app = app(&config, Arc::clone(&transport), routes);
        Ok(Self {
            config,
            registry,
            metrics,
            transport,
            state,
            health,
            telemetry: None,
            app,
            engine,
            cluster,
            dispatcher,
            connections,
            dispatching,
            timing,
            remote,
            _watching: [counting, beating, driving].map(AbortOnDropHandle::new),
        })
    }

    /// Lets operators change what the process logs, and see its own metrics, through the admin listener.
    pub fn with_telemetry(self, telemetry: Telemetry) -> Self {
        Self { telemetry: Some(telemetry), ..self }
    }

    /// The Socket.IO server inside, for programs that add handlers of their own.
    pub fn io(&self) -> &SocketIo<Adapter> {
        self.engine.io()
    }

    /// What the adapter offers beyond socketioxide, for the namespace at `path`.
    pub fn namespace(&self, path: &str) -> Option<Arc<Namespace<FanOut>>> {
        self.cluster.namespace(path)
    }
}

fn metrics(config: &Config, registry: &Registry) -> Result<Arc<GatewayMetrics>, BuildError> {
    let metrics = GatewayMetrics::register(registry)?;
    metrics.connections_max.set(as_gauge(config.server.max_connections));
    metrics.stage_events_max.set(as_gauge(config.stage.max_events));
    metrics.stage_bytes_max.set(as_gauge(config.stage.max_bytes));
    metrics.client_waiting_bytes_max.set(as_gauge(config.session.send_queue_bytes));
    metrics.memory_bytes_max.set(as_gauge(config.limits.memory));
    Ok(Arc::new(metrics))
}

/// Keeps the number of rooms in the metrics, on a thread of its own: going over many takes a while.
async fn count_rooms(transport: Arc<Transport<Namespaces>>) {
    let mut ticks = tokio::time::interval(ROOMS_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let transport = Arc::clone(&transport);
        // An error means that the process ends.
        let _ = tokio::task::spawn_blocking(move || transport.handler().count_rooms()).await;
    }
}

fn as_gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// CORS outside, so that its headers are on refusals too; then the transport, or the application's routes.
fn app(config: &Config, transport: Arc<Transport<Namespaces>>, routes: Router) -> Router {
    let path = config.server.path.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (transport, routes) = (Arc::clone(&transport), routes.clone());
        let is_ours = is_below(request.uri().path(), &path);
        async move {
            if !is_ours {
                return routes.oneshot(request).await;
            }
            Ok(match request.extensions().get::<Remote>().cloned() {
                Some(remote) => transport.handle(request, &remote).await,
                // Only without our listener.
                None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            })
        }
    });
    Router::new().fallback_service(cors_layer(&config.cors).layer(service))
}

/// Whether `path` is `parent`, or below it.
fn is_below(path: &str, parent: &str) -> bool {
    let rest = path.strip_prefix(parent);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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
