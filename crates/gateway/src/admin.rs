//! The listener for operators: health, readiness, metrics, and what can be told to a running node. Never reachable
//! through the public port.
//!
//! It has a thread and a runtime of its own, so that it answers even when the node's is stuck, and says so.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use antiphon_metrics::{CONTENT_TYPE, Registry, render};
use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode, header, uri::Authority};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use crate::{config::Secret, health::Health, net::ACCEPT_PAUSE, telemetry::LogFilter};

/// The longest filter that is read.
const FILTER_BYTES_MAX: usize = 4096;

/// Connections at a time; who comes then waits. A balancer, a kubelet and Prometheus need one each.
const CONNECTIONS_MAX: usize = 64;

/// For a request, from the connection to the end of the answer; there is one in each.
const REQUEST_TIME: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) registries: Vec<Registry>,
    pub(crate) health: Health,
    pub(crate) token: Option<Secret>,
    /// Cancelled to make the node leave.
    pub(crate) drain: CancellationToken,
    /// What is logged, if this process lets it be changed.
    pub(crate) log: Option<LogFilter>,
}

/// Answers on `listener`, in a thread of its own, for as long as the guard is there.
pub(crate) fn serve(admin: Admin, listener: TcpListener) -> io::Result<DropGuard> {
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    stop.run_until_cancelled(accept(listener, routes(admin))).await;
                }
                Err(error) => tracing::error!(%error, "the admin listener cannot be used"),
            }
        });
    })?;
    Ok(guard)
}

/// Answers whoever connects. Strangers who only connect must not keep a probe from its answer for long: a node that
/// does not answer is taken for dead.
async fn accept(listener: TcpListener, routes: Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    // How it ends concerns the one who asked.
                    let _ = timeout(REQUEST_TIME, answer(stream, routes)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin listener");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, routes: Router) -> hyper::Result<()> {
    let service = service_fn(move |request: http::Request<Incoming>| {
        routes.clone().oneshot(request.map(Body::new))
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).serve_connection(TokioIo::new(stream), service).await
}

fn routes(admin: Admin) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/drain", post(drain))
        .route("/log", get(log).put(set_log))
        .layer(axum::extract::DefaultBodyLimit::max(FILTER_BYTES_MAX))
        .layer(middleware::from_fn_with_state(admin.clone(), authorize));
    // Balancers and Kubernetes ask these, and have no token.
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .merge(guarded)
        .with_state(admin)
}

async fn alive(State(admin): State<Admin>) -> Response {
    match admin.health.stuck() {
        None => "ok\n".into_response(),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("stuck: {what}\n")).into_response(),
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let readiness = admin.health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    // Its gauges, and those of what is stuck, are as old as the last look.
    admin.health.readiness();
    if let Some(log) = &admin.log {
        log.count();
    }
    match render(&admin.registries) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn drain(State(admin): State<Admin>) -> Response {
    tracing::info!("told to leave");
    admin.drain.cancel();
    (StatusCode::ACCEPTED, "draining\n").into_response()
}

async fn log(State(admin): State<Admin>) -> Response {
    match admin.log {
        Some(log) => format!("{}\n", log.get()).into_response(),
        None => no_log(),
    }
}

async fn set_log(State(admin): State<Admin>, filter: String) -> Response {
    match admin.log.map(|log| log.set(filter.trim())) {
        Some(Ok(())) => "changed\n".into_response(),
        Some(Err(error)) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        None => no_log(),
    }
}

fn no_log() -> Response {
    (StatusCode::NOT_FOUND, "logging belongs to the program that this node runs in\n")
        .into_response()
}

async fn authorize(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if authorized(admin.token.as_ref(), request.headers()) {
        return next.run(request).await;
    }
    if admin.token.is_none() {
        return (StatusCode::FORBIDDEN, "not for web pages\n").into_response();
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, "a bearer token is needed\n").into_response()
}

fn authorized(token: Option<&Secret>, headers: &HeaderMap) -> bool {
    let Some(token) = token.map(Secret::expose) else { return !from_web_page(headers) };
    let given = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    let Some(given) = given.strip_prefix(b"Bearer ") else { return false };
    // Every byte is looked at, so that the time taken tells nothing about where they differ.
    let differing = token.bytes().zip(given).fold(0, |sum, (a, b)| sum | (a ^ b));
    differing == 0 && token.len() == given.len()
}

/// Whether a browser on this machine may have been made to ask, which needs no token: by a form or script of another
/// site, or under a name that has been pointed here (DNS rebinding).
fn from_web_page(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    let is_ours = |host: Authority| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || name.parse::<IpAddr>().is_ok()
    };
    headers.contains_key(header::ORIGIN) || !host.is_none_or(is_ours)
}
