//! The listener for operators: health, readiness, metrics. Never reachable through the public port.

use std::sync::Arc;

use antiphon_metrics::{CONTENT_TYPE, Registry, render};
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;

use crate::{cluster::BusWatch, config::Secret, handshake::Gate, server::Node};

#[derive(Clone)]
struct Admin {
    registry: Registry,
    gate: Arc<Gate>,
    bus: Option<BusWatch>,
    token: Option<Secret>,
}

/// The routes of the admin listener.
pub(crate) fn routes(node: &Node) -> Router {
    let admin = Admin {
        registry: node.registry.clone(),
        gate: Arc::clone(&node.gate),
        bus: node.peers.as_ref().map(|peers| peers.link.watch()),
        token: node.config.admin.token.clone(),
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

/// Whether a balancer should send clients here, and what speaks against it.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    conditions: Conditions,
}

#[derive(Serialize)]
struct Conditions {
    not_draining: bool,
    /// Peers are reached and heard; not there without peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    bus: Option<bool>,
}

impl Admin {
    fn readiness(&self) -> Readiness {
        let not_draining = !self.gate.is_draining();
        let bus = self.bus.as_ref().map(BusWatch::is_well);
        let ready = not_draining && self.bus.as_ref().is_none_or(BusWatch::allows);
        Readiness { ready, conditions: Conditions { not_draining, bus } }
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let readiness = admin.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    if !authorized(admin.token.as_ref(), &headers) {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, "a bearer token is needed\n").into_response();
    }
    match render(&admin.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn authorized(token: Option<&Secret>, headers: &HeaderMap) -> bool {
    let Some(token) = token.map(Secret::expose) else { return true };
    let given = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    let Some(given) = given.strip_prefix(b"Bearer ") else { return false };
    // Every byte is looked at, so that the time taken tells nothing about where they differ.
    let differing = token.bytes().zip(given).fold(0, |sum, (a, b)| sum | (a ^ b));
    differing == 0 && token.len() == given.len()
}
