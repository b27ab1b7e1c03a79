//! Requests to the transport's path: what each must be, and where it goes.
//!
//! Codes and messages of refusals are those of engine.io's `server.ts`, so that clients take them as they
//! take Node's.

use std::{net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use antiphon_metrics::gateway::{CloseReason, Protocol, Refusal, Transport as TransportName};
use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;
use serde::Serialize;

use super::{
    Handler, Handshake, Transport,
    frame::accept_key,
    outbound::Ending,
    packet::OutPacket,
    polling,
    session::{Newcomer, Session},
    sid::SessionId,
    websocket,
};
use crate::net::{Permit, Remote, client_address};

/// How long a refused client should wait before it tries again.
const RETRY_AFTER_SECONDS: &str = "5";

/// How long a WebSocket that is not wanted may take to be told so.
const REFUSAL_TIME: Duration = Duration::from_secs(5);

impl<H: Handler> Transport<H> {
    /// Answers a request to the transport's path. `remote` is the connection on which it came.
    pub async fn handle(self: &Arc<Self>, request: Request<Body>, remote: &Remote) -> Response {
        let address = client_address(remote.address, request.headers(), &self.settings.proxy);
        let origin = request.headers().get(header::ORIGIN).map(origin_for_log);
        match self.answer(request, address, remote).await {
            Ok(response) => response,
            Err(answer) => self.refuse(answer, address, origin.as_deref()),
        }
    }

    fn refuse(&self, answer: Answer, address: IpAddr, origin: Option<&str>) -> Response {
        self.metrics.refusals_total.of(answer.reason()).inc();
        tracing::debug!(%address, ?answer, "request refused");
        match answer {
            Answer::UnknownSession => {
                if let Some(suppressed) = self.unknown_sessions.may_log() {
                    tracing::warn!(
                        %address,
                        suppressed,
                        "Session ID unknown: the node was restarted, or the load balancer lacks sticky sessions"
                    );
                }
            }
            Answer::Forbidden => {
                if let Some(suppressed) = self.refused_origins.may_log() {
                    tracing::warn!(
                        %address,
                        origin,
                        suppressed,
                        "Origin refused: it is not in cors.allowed_origins, nor the server's own"
                    );
                }
            }
            _ => {}
        }
        answer.into_response()
    }

    async fn answer(
        self: &Arc<Self>,
        request: Request<Body>,
        address: IpAddr,
        remote: &Remote,
    ) -> Result<Response, Answer> {
        let query = Query::parse(&request, self)?;
        match query.sid.as_deref() {
            None => self.handshake(&query, request, address),
            Some(sid) => {
                let id = SessionId::from_str(sid).map_err(|()| Answer::UnknownSession)?;
                let session = self.table.find(id).ok_or(Answer::UnknownSession)?;
                self.of_session(session, &query, request, remote).await
            }
        }
    }

    async fn of_session(
        self: &Arc<Self>,
        session: Arc<Session<H>>,
        query: &Query,
        mut request: Request<Body>,
        remote: &Remote,
    ) -> Result<Response, Answer> {
        if session.protocol() != query.protocol {
            return Err(Answer::BadRequest);
        }
        if query.transport == TransportName::WebSocket {
            let handshake = WebSocketHandshake::of(&mut request).ok_or(Answer::BadRequest)?;
            let (response, upgraded) = handshake.accept()?;
            if session.outbound().begin_upgrade() {
                self.tasks.spawn(websocket::serve_upgrade(session, upgraded));
            } else {
                self.metrics.refusals_total.of(Refusal::BadRequest).inc();
                let max_bytes = self.settings.max_message_bytes;
                self.tasks.spawn(websocket::refuse(upgraded, max_bytes, REFUSAL_TIME));
            }
            return Ok(response);
        }
        if session.transport() != TransportName::Polling {
            return Err(Answer::BadRequest);
        }
        if session.is_overdue() {
            return Err(Answer::UnknownSession);
        }
        match *request.method() {
            Method::GET => polling::get(&session, query, remote).await,
            Method::POST => polling::post(&session, query, request).await,
            _ => Err(Answer::BadRequest),
        }
    }

    /// Opens a session.
    fn handshake(
        self: &Arc<Self>,
        query: &Query,
        mut request: Request<Body>,
        address: IpAddr,
    ) -> Result<Response, Answer> {
        if query.protocol == Protocol::Eio3 && !self.settings.allow_eio3 {
            return Err(Answer::UnsupportedProtocol);
        }
        if request.method() != Method::GET {
            return Err(Answer::BadMethod);
        }
        let websocket = match query.transport {
            TransportName::WebSocket => {
                Some(WebSocketHandshake::of(&mut request).ok_or(Answer::BadRequest)?)
            }
            TransportName::Polling => None,
        };
        let permit = self.admit(request.headers(), address)?;
        let handshake = Handshake {
            address,
            protocol: query.protocol,
            uri: request.uri(),
            headers: request.headers(),
        };
        let state = self.handler.open(&handshake);
        let newcomer = Newcomer { protocol: query.protocol, address, state, permit };
        if let Some(handshake) = websocket {
            let (response, upgraded) = handshake.accept()?;
            self.tasks.spawn(websocket::serve(Arc::clone(self), upgraded, newcomer));
            return Ok(response);
        }
        let session = self.open(newcomer, None);
        // A drain that began in between either sees it among the sessions, or is seen here.
        if !self.accepting() {
            session.finish();
            return Err(Answer::Draining);
        }
        let open = OutPacket { bytes: self.open_text(&session).into(), binary: false };
        let mut response = polling::answer(&session, query, &[open]);
        if let Some(name) = &self.settings.cookie
            && let Ok(cookie) = HeaderValue::from_str(&format!(
                "{name}={}; Path=/; HttpOnly; SameSite=Lax",
                session.id().as_str()
            ))
        {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        self.handler.opened(&session);
        Ok(response)
    }

    /// A place for one more client, if it may come.
    fn admit(&self, headers: &HeaderMap, address: IpAddr) -> Result<Permit, Answer> {
        if !self.accepting() {
            return Err(Answer::Draining);
        }
        if !self.settings.origins.allow(headers) {
            return Err(Answer::Forbidden);
        }
        if self.budget.is_tight() {
            return Err(Answer::Full(Refusal::Memory));
        }
        let permit = self.admission.admit(Some(address)).or_else(|full| {
            // Who has not said yet what it came for makes room for who may.
            let of_address = (full == Refusal::AddressLimit).then_some(address);
            let oldest = self.table.oldest_newcomer(of_address).ok_or(full)?;
            oldest.close(CloseReason::TransportClose, Ending::Reset);
            drop(oldest);
            self.admission.admit(Some(address))
        });
        permit.map_err(Answer::Full)
    }
}

/// What is logged of an origin: whoever sends it chooses it.
fn origin_for_log(origin: &HeaderValue) -> String {
    const BYTES_MAX: usize = 128;
    let bytes = origin.as_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(BYTES_MAX)]).into_owned()
}

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Query {
    protocol: Protocol,
    transport: TransportName,
    sid: Option<String>,
    /// The client takes no binary payloads (`b64`).
    pub(super) base64: bool,
    /// The number of the client's function, if it polls by script tags (`j`).
    pub(super) jsonp: Option<String>,
}

impl Query {
    fn parse<H: Handler>(
        request: &Request<Body>,
        transport: &Transport<H>,
    ) -> Result<Self, Answer> {
        let settings = &transport.settings;
        let mut query = Self {
            protocol: Protocol::Eio3,
            transport: TransportName::Polling,
            sid: None,
            base64: false,
            jsonp: None,
        };
        let mut named = None;
        let text = request.uri().query().unwrap_or_default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*name {
                "transport" => named = named.or(Some(value)),
                // Anything but 4 is revision 3 (server.ts): old clients send nothing at all.
                "EIO" if value == "4" => query.protocol = Protocol::Eio4,
                // An empty one is none.
                "sid" if !value.is_empty() => query.sid = Some(value.into_owned()),
                "b64" => query.base64 = true,
                "j" => query.jsonp = Some(value.chars().filter(char::is_ascii_digit).collect()),
                _ => {}
            }
        }
        query.transport = match named.as_deref() {
            Some("polling") if settings.polling => TransportName::Polling,
            Some("websocket") if settings.websocket => TransportName::WebSocket,
            _ => return Err(Answer::UnknownTransport),
        };
        // Dart opens a WebSocket whatever it calls its transport.
        let opens_websocket = query.sid.is_none() && is_websocket_handshake(request);
        if opens_websocket && settings.websocket {
            query.transport = TransportName::WebSocket;
        }
        Ok(query)
    }
}

/// Whether the client asks for a WebSocket (RFC 6455, section 4.2.1).
fn is_websocket_handshake(request: &Request<Body>) -> bool {
    let names = |header, token: &str| {
        let values =
            request.headers().get_all(header).iter().filter_map(|value| value.to_str().ok());
        let mut tokens = values.flat_map(|value| value.split(','));
        tokens.any(|each| each.trim().eq_ignore_ascii_case(token))
    };
    request.method() == Method::GET
        // A proxy that speaks HTTP/1.0 to us does not pass the 101 on.
        && request.version() == Version::HTTP_11
        && names(header::CONNECTION, "upgrade")
        && names(header::UPGRADE, "websocket")
        && names(header::SEC_WEBSOCKET_VERSION, "13")
        && request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
}

/// A client's side of a WebSocket handshake.
struct WebSocketHandshake {
    upgraded: OnUpgrade,
    accept: String,
    protocol: Option<HeaderValue>,
}

impl WebSocketHandshake {
    fn of(request: &mut Request<Body>) -> Option<Self> {
        if !is_websocket_handshake(request) {
            return None;
        }
        let headers = request.headers();
        let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
        let accept = accept_key(key.as_bytes());
        // The first one that is offered, as Node's `ws` does.
        let offered =
            headers.get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|list| list.to_str().ok());
        let first = offered.and_then(|list| list.split(',').next()).map(str::trim);
        let protocol = first.and_then(|first| HeaderValue::from_str(first).ok());
        let upgraded = hyper::upgrade::on(request);
        Some(Self { upgraded, accept, protocol })
    }

    fn accept(self) -> Result<(Response, OnUpgrade), Answer> {
        let accept = HeaderValue::from_str(&self.accept).map_err(|_| Answer::BadRequest)?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        Ok((response, self.upgraded))
    }
}

/// Why a request goes no further.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
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
            Self::UnknownSession => Refusal::UnknownSession,
            Self::UnknownTransport
            | Self::BadMethod
            | Self::BadRequest
            | Self::UnsupportedProtocol => Refusal::BadRequest,
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        /// The body of an engine.io error.
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
            Self::Full(Refusal::Memory) => {
                later(StatusCode::SERVICE_UNAVAILABLE, "out of memory for new clients\n")
            }
            Self::Full(_) => later(StatusCode::SERVICE_UNAVAILABLE, "too many connections\n"),
            Self::Draining => later(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
            Self::BodyTimeout => later(StatusCode::REQUEST_TIMEOUT, "request body took too long\n"),
        }
    }
}
