//! What a request must be before the engine sees it.
//!
//! Every Socket.IO request passes here: bad ones are answered as Node's engine.io answers them
//! (`engine.io/lib/server.ts`, `verify`), origins are checked for WebSocket handshakes too (a
//! browser applies CORS to polling only), and each handshake opens a [`Session`], within the bounds.
//! socketioxide alone would answer an upgrade for an unknown session with `101` and then close.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use antiphon_metrics::{
    GatewayMetrics,
    gateway::{CloseReason, Protocol, Refusal, Transport},
};
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body as _, Frame};
use serde::{Deserialize, Serialize};
use socketioxide::socket::Sid;

use crate::{
    config::{AllowedOrigins, Config},
    eio3,
    net::{Admission, Owner, Peer, client_address},
    server::POLL_ANSWER_BYTES_MAX,
    sessions::{Session, Sessions},
};

/// The content type by which the engine tells binary payloads.
const OCTET_STREAM: &str = "application/octet-stream";

/// How long a refused client should wait before it tries again.
const RETRY_AFTER_SECONDS: &str = "5";

/// Checks requests, and opens sessions.
pub(crate) struct Gate {
    config: Arc<Config>,
    metrics: Arc<GatewayMetrics>,
    sessions: Arc<Sessions>,
    admission: Arc<Admission>,
    leaving: AtomicBool,
    draining: AtomicBool,
}

impl Gate {
    pub(crate) fn new(
        config: Arc<Config>,
        metrics: Arc<GatewayMetrics>,
        sessions: Arc<Sessions>,
    ) -> Self {
        let server = &config.server;
        let admission = Admission::new(server.max_connections, server.max_connections_per_ip);
        let (leaving, draining) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { config, metrics, sessions, admission, leaving, draining }
    }

    /// From here on no balancer should send clients here; those that come are served.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.metrics.draining.set(1);
    }

    /// From here on there are no new sessions: clients are told to try again, which, behind a
    /// balancer, takes them to another node.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Opens a session for a handshake.
    fn open(
        &self,
        query: &Query,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Arc<Session>, Answer> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Answer::Draining);
        }
        if !origin_allowed(&self.config.cors.allowed_origins, headers) {
            return Err(Answer::Forbidden);
        }
        let client = client_address(peer.address, headers, &self.config.proxy);
        let permit = self.admission.admit(Some(client)).map_err(Answer::Full)?;
        let conn = (query.transport == Transport::WebSocket).then(|| Arc::clone(&peer.conn));
        let session = self.sessions.open(client, query.protocol, conn, permit);
        // A drain that began in between either sees it among the sessions, or is seen here.
        if self.draining.load(Ordering::Acquire) {
            return Err(Answer::Draining);
        }
        Ok(session)
    }

    fn refuse(&self, answer: Answer, client: IpAddr) -> Response {
        self.metrics.refusals_total.of(answer.reason()).inc();
        tracing::debug!(%client, ?answer, "request refused");
        answer.into_response()
    }
}

/// The middleware in front of the engine.
pub(crate) async fn gate(
    State(gate): State<Arc<Gate>>,
    mut request: Request,
    next: Next,
) -> Response {
    // Taken out, so that the engine does not keep it with the head of the request.
    let peer = request.extensions_mut().remove::<Peer>();
    if !is_engine_path(request.uri().path(), &gate.config.server.path) {
        return next.run(request).await;
    }
    let Some(peer) = peer else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response(); // Only without our listener.
    };
    match admit(&gate, request, next, &peer).await {
        Ok(response) => response,
        Err(answer) => gate.refuse(answer, peer.address),
    }
}

async fn admit(
    gate: &Gate,
    mut request: Request,
    next: Next,
    peer: &Peer,
) -> Result<Response, Answer> {
    let query = Query::parse(&request, &gate.config)?;
    let session = match query.sid {
        Some(sid) => gate.sessions.find(sid).ok_or(Answer::UnknownSession)?,
        None => gate.open(&query, request.headers(), peer)?,
    };
    if session.protocol != query.protocol {
        return Err(Answer::BadRequest);
    }
    if query.sid.is_none() {
        // The engine keeps it with the head of the handshake.
        request.extensions_mut().insert(Arc::clone(&session));
    }
    if query.transport == Transport::WebSocket {
        // The engine would answer 101 and then close, and with that connection the session would end.
        if query.sid.is_some() && session.transport() == Transport::WebSocket {
            return Err(Answer::BadRequest);
        }
        return Ok(websocket(&query, request, next, peer, session).await);
    }
    if query.sid.is_none() {
        let max_bytes = gate.config.limits.max_message_bytes;
        return Ok(identify(&session, next.run(request).await, max_bytes).await);
    }
    if request.method() == Method::POST {
        let request = with_whole_body(gate, request, &session).await?;
        return Ok(next.run(request).await);
    }
    let polled = session.poll(next.run(request)).await;
    session.wrote(polled.body().size_hint().lower() as usize);
    Ok(if query.protocol == Protocol::Eio3 { repaired(polled).await } else { polled })
}

/// Reads the body of a polling POST before the engine does, with a deadline, and in the pieces that the
/// engine reads in linear time: one chunk, or one for each packet (see [`eio3`]).
async fn with_whole_body(
    gate: &Gate,
    request: Request,
    session: &Session,
) -> Result<Request, Answer> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, gate.config.limits.max_message_bytes).collect();
    let body = tokio::time::timeout(gate.config.server.request_body_timeout, body).await;
    let body = match body.map_err(|_| Answer::BodyTimeout)? {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            session.close(CloseReason::ParseError);
            return Err(Answer::TooLarge);
        }
        Err(_) => return Err(Answer::BadRequest), // The client has gone.
    };
    let binary = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == OCTET_STREAM);
    let body = if session.protocol == Protocol::Eio3 && !binary {
        let Some(packets) = eio3::packets(&body) else {
            session.close(CloseReason::ParseError);
            return Err(Answer::BadRequest);
        };
        let frames = packets.into_iter().map(|packet| Ok::<_, Infallible>(Frame::data(packet)));
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    } else {
        Body::from(body)
    };
    Ok(Request::from_parts(head, body))
}

async fn websocket(
    query: &Query,
    request: Request,
    next: Next,
    peer: &Peer,
    session: Arc<Session>,
) -> Response {
    let response = next.run(request).await;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let owner: Weak<Session> = Arc::downgrade(&session);
        peer.conn.upgraded(owner, session.lane(), query.sid.is_some());
        if query.sid.is_some() {
            session.upgrade(Arc::clone(&peer.conn));
        }
    }
    response
}

/// Reads the session's id out of the engine's answer to a polling handshake: the client may come
/// back with it before it has connected to any namespace. And puts into it how much the client may send at a time.
async fn identify(session: &Arc<Session>, response: Response, max_bytes: usize) -> Response {
    #[derive(Deserialize)]
    struct Open {
        sid: Sid,
    }
    with_body(response, |body| {
        // `0{…}`, or `97:0{…}` in Engine.IO 3.
        let json = body.iter().position(|byte| *byte == b'{').map(|at| &body[at..]);
        if let Some(Ok(open)) = json.map(serde_json::from_slice::<Open>) {
            session.identify(open.sid);
        }
        // In the room of the number that is there, because Engine.IO 3 puts the packet's length before it.
        let key = br#""maxPayload":"#;
        let number = POLL_ANSWER_BYTES_MAX.to_string();
        let at = body.windows(key.len()).position(|part| part == key)? + key.len();
        let mut body = body.to_vec();
        let place = body.get_mut(at..at + number.len())?;
        place.copy_from_slice(format!("{max_bytes:<width$}", width = number.len()).as_bytes());
        Some(body)
    })
    .await
}

async fn repaired(response: Response) -> Response {
    with_body(response, eio3::repair).await
}

/// Lets `look` see the body of an engine's answer, which is in memory, and replace it.
async fn with_body(response: Response, look: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Response {
    let (mut head, body) = response.into_parts();
    let Ok(body) = body.collect().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response(); // It has no way to fail.
    };
    let body = body.to_bytes();
    let Some(other) = look(&body) else { return Response::from_parts(head, Body::from(body)) };
    head.headers.insert(header::CONTENT_LENGTH, other.len().into());
    Response::from_parts(head, Body::from(other))
}

/// Whether the engine takes requests for this path.
fn is_engine_path(path: &str, engine: &str) -> bool {
    let rest = path.strip_prefix(engine);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Browsers always name the page's origin in a cross-origin request; other clients need not.
fn origin_allowed(allowed: &AllowedOrigins, headers: &HeaderMap) -> bool {
    let AllowedOrigins::List(list) = allowed else { return true };
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    list.iter().any(|one| origin.as_bytes().eq_ignore_ascii_case(one.as_bytes()))
}

/// What a Socket.IO request asks for.
#[derive(Debug)]
struct Query {
    protocol: Protocol,
    transport: Transport,
    sid: Option<Sid>,
}

impl Query {
    fn parse(request: &Request, config: &Config) -> Result<Self, Answer> {
        let query = request.uri().query().unwrap_or_default();
        let field = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let transport = match field("transport") {
            Some("polling") if config.server.polling => Transport::Polling,
            Some("websocket") if config.server.websocket => Transport::WebSocket,
            _ => return Err(Answer::UnknownTransport),
        };
        let protocol = match field("EIO") {
            Some("3") => Protocol::Eio3,
            Some("4") => Protocol::Eio4,
            _ => return Err(Answer::UnsupportedProtocol),
        };
        let sid = match field("sid") {
            Some(sid) => Some(sid.parse().map_err(|_| Answer::UnknownSession)?),
            None => None,
        };
        if sid.is_none() && request.method() != Method::GET {
            return Err(Answer::BadMethod);
        }
        let websocket = transport == Transport::WebSocket;
        let polling_methods = [Method::GET, Method::POST];
        if websocket && !is_websocket_handshake(request)
            || !websocket && !polling_methods.contains(request.method())
        {
            return Err(Answer::BadRequest);
        }
        Ok(Self { protocol, transport, sid })
    }
}

/// RFC 6455, section 4.2.1, as far as the engine leaves it open.
fn is_websocket_handshake(request: &Request) -> bool {
    let names = |header, token: &str| {
        let values =
            request.headers().get_all(header).iter().filter_map(|value| value.to_str().ok());
        let mut tokens = values.flat_map(|value| value.split(','));
        tokens.any(|each| each.trim().eq_ignore_ascii_case(token))
    };
    request.method() == Method::GET
        && names(header::CONNECTION, "upgrade")
        && names(header::UPGRADE, "websocket")
        && names(header::SEC_WEBSOCKET_VERSION, "13")
        && request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
}

/// Why a request goes no further.
#[derive(Debug, Clone, Copy)]
enum Answer {
    UnknownTransport,
    UnknownSession,
    BadMethod,
    BadRequest,
    Forbidden,
    UnsupportedProtocol,
    Full(Refusal),
    Draining,
    BodyTimeout,
    TooLarge,
}

impl Answer {
    fn reason(self) -> Refusal {
        match self {
            Self::Full(reason) => reason,
            Self::Draining => Refusal::Draining,
            Self::Forbidden => Refusal::Origin,
            Self::BodyTimeout => Refusal::BodyTimeout,
            Self::TooLarge => Refusal::TooLarge,
            Self::UnknownTransport
            | Self::UnknownSession
            | Self::BadMethod
            | Self::BadRequest
            | Self::UnsupportedProtocol => Refusal::BadRequest,
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        /// The body of an engine.io error: codes and messages are `engine.io/lib/server.ts`'s.
        #[derive(Serialize)]
        struct EngineError {
            code: u8,
            message: &'static str,
        }
        let engine = |status: StatusCode, code, message| {
            (status, Json(EngineError { code, message })).into_response()
        };
        let later = |status: StatusCode, message: &'static str| {
            (status, [(header::RETRY_AFTER, RETRY_AFTER_SECONDS)], message).into_response()
        };
        let bad = StatusCode::BAD_REQUEST;
        match self {
            Self::UnknownTransport => engine(bad, 0, "Transport unknown"),
            Self::UnknownSession => engine(bad, 1, "Session ID unknown"),
            Self::BadMethod => engine(bad, 2, "Bad handshake method"),
            Self::BadRequest => engine(bad, 3, "Bad request"),
            Self::Forbidden => engine(StatusCode::FORBIDDEN, 4, "Forbidden"),
            Self::UnsupportedProtocol => engine(bad, 5, "Unsupported protocol version"),
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            Self::Full(_) => later(StatusCode::SERVICE_UNAVAILABLE, "too many connections\n"),
            Self::Draining => later(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
            Self::BodyTimeout => later(StatusCode::REQUEST_TIMEOUT, "request body took too long\n"),
        }
    }
}
