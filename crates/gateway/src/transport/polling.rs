//! Sessions over HTTP long-polling: a GET takes packets out, a POST brings some.

use std::{future::poll_fn, sync::Arc, time::Duration};

use antiphon_metrics::gateway::{CloseReason, Transport as TransportName};
use axum::{body::Body, response::Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{sleep, timeout};

use crate::net::Remote;

use super::{
    Handler,
    http::{Answer, Query},
    outbound::{Ending, PollError, Polled},
    packet::{OutPacket, Packet},
    payload::{Packets, encode_payload},
    session::Session,
};

/// How long a poll waits that began after the client's probe: it keeps the client from upgrading, but
/// clients whose probe was not answered poll on (engine.io/lib/socket.ts, `check`).
const PROBED_POLL: Duration = Duration::from_millis(100);

/// A GET that waits for packets.
struct OpenPoll<'a, H: Handler> {
    session: &'a Arc<Session<H>>,
    answered: bool,
}

impl<H: Handler> Drop for OpenPoll<'_, H> {
    fn drop(&mut self) {
        let polls = self.session.outbound().end_poll();
        // The client has gone: what it asked for could not be brought to it.
        if !self.answered && polls {
            self.session.close(CloseReason::TransportError, Ending::Reset);
        }
    }
}

/// Answers a GET with packets, once there are some.
pub(super) async fn get<H: Handler>(
    session: &Arc<Session<H>>,
    query: &Query,
    remote: &Remote,
) -> Result<Response, Answer> {
    match session.outbound().begin_poll() {
        Ok(()) => {}
        Err(PollError::Overlap) => {
            session.close(CloseReason::TransportError, Ending::CloseFrame(None));
            return Err(Answer::BadRequest);
        }
        Err(PollError::Gone) => return Err(Answer::BadRequest),
    }
    let mut open = OpenPoll { session, answered: false };
    let before_probe = !session.outbound().probed();
    let polled = poll_fn(|context| session.outbound().poll(before_probe, context));
    let polled = match before_probe {
        true => polled.await,
        false => timeout(PROBED_POLL, polled).await.unwrap_or(Polled::Noop),
    };
    open.answered = true;
    drop(open);
    let response = match &polled {
        Polled::Packets { packets, volatile_events } => {
            session.hub().metrics.deliveries_total.inc_by(*volatile_events);
            let (status, kind, payload) = payload(session, query, packets);
            let payload = session.hold_answer(payload, &remote.connection);
            response(status, kind, Body::from(payload))
        }
        Polled::Noop => answer(session, query, &[packet(b"6")]),
        Polled::Close => answer(session, query, &[packet(b"1")]),
        // The poll that was there before the probe is to end; there should have been none since.
        Polled::Upgraded if before_probe => answer(session, query, &[packet(b"6")]),
        Polled::Upgraded => return Err(Answer::BadRequest),
    };
    let polls = session.transport() == TransportName::Polling;
    if polls && session.outbound().ending().is_some() && session.outbound().waiting_bytes() == 0 {
        session.finish();
    }
    Ok(response)
}

fn packet(text: &'static [u8]) -> OutPacket {
    OutPacket { bytes: Bytes::from_static(text), binary: false }
}

/// The answer with these packets.
pub(super) fn answer<H: Handler>(
    session: &Session<H>,
    query: &Query,
    packets: &[OutPacket],
) -> Response {
    let (status, kind, payload) = payload(session, query, packets);
    response(status, kind, Body::from(payload))
}

fn payload<H: Handler>(
    session: &Session<H>,
    query: &Query,
    packets: &[OutPacket],
) -> (StatusCode, &'static str, Bytes) {
    let base64 = query.base64 || query.jsonp.is_some();
    let (payload, binary) = encode_payload(session.protocol(), base64, packets);
    let payload = match &query.jsonp {
        Some(callback) => jsonp(callback, &payload),
        None => payload,
    };
    let kind = match binary {
        true => "application/octet-stream",
        false => "text/plain; charset=UTF-8",
    };
    (StatusCode::OK, kind, payload)
}

/// As engine.io's `polling-jsonp.ts`: a call of the client's function, whose argument is a text of
/// JavaScript, in which two more characters end a line than in JSON.
fn jsonp(callback: &str, payload: &[u8]) -> Bytes {
    let text = String::from_utf8_lossy(payload);
    let text = serde_json::Value::from(text.as_ref()).to_string();
    let text = text.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    format!("___eio[{callback}]({text});").into()
}

fn response(status: StatusCode, kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Takes the packets of a POST.
pub(super) async fn post<H: Handler>(
    session: &Arc<Session<H>>,
    query: &Query,
    request: Request<Body>,
) -> Result<Response, Answer> {
    // Two at a time would have no order.
    let Some(_posting) = session.begin_post() else {
        session.close(CloseReason::TransportError, Ending::CloseFrame(None));
        return Err(Answer::BadRequest);
    };
    let (head, body) = request.into_parts();
    let binary = head.headers.get(header::CONTENT_TYPE);
    let binary = binary.is_some_and(|kind| kind == "application/octet-stream");
    let body = whole(session, body).await?;
    let body = match query.jsonp {
        Some(_) => form_data(&body),
        None => body,
    };
    let broken = || {
        session.close(CloseReason::ParseError, Ending::Reset);
        Answer::BadRequest
    };
    let packets = Packets::new(session.protocol(), binary, &body).map_err(|_| broken())?;
    for packet in packets {
        // A sender that has its share of the dispatch queue waits here, and for its answer.
        session.reads_released().await;
        if session.transport() != TransportName::Polling || session.outbound().ending().is_some() {
            break;
        }
        session.take(packet.map_err(|_| broken())?);
    }
    session.reads_released().await;
    // text/html keeps some browsers from offering the answer as a download (engine.io, polling.ts).
    Ok(response(StatusCode::OK, "text/html", Body::from("ok")))
}

/// What a form of JSON-P has in its field `d`, without what the client's escaping adds to line breaks
/// (engine.io, polling-jsonp.ts).
fn form_data(body: &[u8]) -> Bytes {
    let mut fields = form_urlencoded::parse(body);
    let data = fields.find_map(|(name, value)| (name == "d").then(|| value.into_owned()));
    let data = data.unwrap_or_default();
    let data = data.replace("\\\\n", "\u{0}").replace("\\n", "\n").replace('\u{0}', "\\n");
    data.into()
}

/// The part of a body that has come counts until it is whole, or given up.
struct Unfinished<'a, H: Handler>(&'a Arc<Session<H>>);

impl<H: Handler> Drop for Unfinished<'_, H> {
    fn drop(&mut self) {
        self.0.set_inbound_bytes(0);
    }
}

/// The body of a request, within the bound of a message and its deadline.
async fn whole<H: Handler>(session: &Arc<Session<H>>, mut body: Body) -> Result<Bytes, Answer> {
    let settings = &session.hub().settings;
    let max = settings.max_message_bytes;
    let too_large = || {
        session.close(CloseReason::TooLarge, Ending::Reset);
        Answer::TooLarge
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let mut read = BytesMut::new();
    let mut deadline = std::pin::pin!(sleep(settings.body_timeout));
    let _held = Unfinished(session);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = &mut deadline => return Err(Answer::BodyTimeout),
        };
        let data = match frame {
            None => return Ok(read.freeze()),
            // The client has gone.
            Some(Err(_)) => {
                session.close(CloseReason::TransportError, Ending::Reset);
                return Err(Answer::BadRequest);
            }
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        if read.len() + data.len() > max {
            return Err(too_large());
        }
        read.extend_from_slice(&data);
        session.set_inbound_bytes(read.capacity());
        if session.outbound().ending().is_some() {
            return Err(Answer::BadRequest);
        }
    }
}

impl<H: Handler> Session<H> {
    /// A packet has arrived.
    pub(super) fn take(self: &Arc<Self>, packet: Packet) {
        let eio3 = self.protocol() == super::Protocol::Eio3;
        match packet {
            Packet::Message(message) => self.hub().handler.message(self, message),
            Packet::Pong(_) if !eio3 => self.heard(),
            Packet::Ping(_) if eio3 => {
                self.heard();
                self.send_one(&self.hub().packets.pong);
            }
            // The other side's part of the heartbeat.
            Packet::Ping(_) | Packet::Pong(_) => {
                self.close(CloseReason::TransportError, Ending::CloseFrame(None));
            }
            Packet::Close => self.close(CloseReason::TransportClose, Ending::Flush),
            Packet::Open | Packet::Upgrade | Packet::Noop => {}
        }
    }
}
