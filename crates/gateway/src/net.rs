//! The public listener: our own accept loop in place of `axum::serve`, for what that one leaves open.
//!
//! - The kernel's queue of handshakes is as long as configured: `TcpListener::bind` takes 128, and in a
//!   reconnect storm every connection over that costs its client a second.
//! - Connections are bounded in all and by client address; what is over the bound is refused, quickly.
//! - The head of a request has a deadline.
//! - Request heads are copied before anything keeps them ([`unpin_head`]).
//! - Each connection is a [`Conn`]: counted, with a deadline for stalled writes, closable from outside, and with
//!   a [`Lane`] for what is sent to many.

mod admission;
mod conn;
mod forwarded;
mod frames;
mod lane;

pub(crate) use admission::{Admission, Permit};
pub(crate) use conn::{ConnHandle, Owner};
pub(crate) use forwarded::client_address;
pub(crate) use frames::write_frame;
#[cfg(fuzzing)]
pub(crate) use lane::model::play as play_lane;
pub(crate) use lane::{EngineQueue, Lane, Nsp, Segment, Sent};

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use antiphon_metrics::{GatewayMetrics, gateway::Refusal};
use axum::{Router, body::Body};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::config::Config;
use conn::Conn;

/// hyper's read buffer for one request head: the largest head it takes, and what a connection costs
/// until it is upgraded. Browsers with cookies send 1–4 kB; 16 kB is what Node takes.
const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;
const REQUEST_HEADERS_MAX: usize = 64;

/// Refusals that are being written at a time; over it, connections are closed without a word.
const REFUSALS_MAX: usize = 256;
/// How long a refused client may take to send its request and read the answer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\
    Content-Type: text/plain\r\nContent-Length: 21\r\nConnection: close\r\n\r\ntoo many connections\n";

/// How long to wait after a failure to accept that would come back at once (no descriptors left).
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who sent a request, in its extensions until the session takes it out.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    pub(crate) conn: Arc<ConnHandle>,
}

/// Opens a listening socket.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// The public listener at work.
pub(crate) struct Acceptor {
    config: Arc<Config>,
    app: Router,
    metrics: Arc<GatewayMetrics>,
    admission: Arc<Admission>,
    refusals: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Acceptor {
    /// Requests go to `app`. Once `stop` is cancelled nothing is accepted, and open connections end
    /// after the request that they are serving; `tasks` has one task for each.
    pub(crate) fn new(
        config: Arc<Config>,
        app: Router,
        metrics: Arc<GatewayMetrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let server = &config.server;
        let admission = Admission::new(server.max_connections, server.max_connections_per_ip);
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        Self { config, app, metrics, admission, refusals, tasks, stop }
    }

    /// Accepts until stopped.
    pub(crate) async fn run(self, listener: TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => self.accept(stream, peer.ip().to_canonical()),
                Err(error) => self.accept_failed(&error).await,
            }
        }
    }

    async fn accept_failed(&self, error: &io::Error) {
        self.metrics.accept_errors_total.inc();
        // The client gave up before its turn came: nothing is wrong here.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        tracing::error!(%error, "cannot accept connections");
        self.stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
    }

    fn accept(&self, stream: TcpStream, peer: IpAddr) {
        let proxied = forwarded::trusted(peer, &self.config.proxy);
        match self.admission.admit((!proxied).then_some(peer)) {
            Ok(permit) => {
                // Without it a small packet waits for the ACK of the one before (Nagle).
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                let stall_timeout = self.config.session.write_stall_timeout;
                let conn = Conn::new(stream, stall_timeout, Arc::clone(&self.metrics), permit);
                self.serve(conn, peer);
            }
            Err(reason) => self.refuse(stream, reason),
        }
    }

    fn refuse(&self, stream: TcpStream, reason: Refusal) {
        self.metrics.refusals_total.of(reason).inc();
        let Ok(turn) = Arc::clone(&self.refusals).try_acquire_owned() else { return };
        self.tasks.spawn(async move {
            // Nothing depends on how it ends: the client may have gone already.
            let _ = tokio::time::timeout(REFUSAL_TIME, write_refusal(stream)).await;
            drop(turn);
        });
    }

    fn serve(&self, conn: Conn, address: IpAddr) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.config.server.request_head_timeout)
            .max_buf_size(REQUEST_HEAD_BYTES_MAX)
            .max_headers(REQUEST_HEADERS_MAX);
        let peer = Peer { address, conn: conn.handle() };
        let app = self.app.clone();
        let used = Arc::new(AtomicBool::new(false));
        let serving = Arc::clone(&used);
        let service = service_fn(move |request: Request<Incoming>| {
            serving.store(true, Ordering::Relaxed);
            let mut request = unpin_head(request).map(Body::new);
            request.extensions_mut().insert(peer.clone());
            app.clone().oneshot(request)
        });
        let metrics = Arc::clone(&self.metrics);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let served = http.serve_connection(TokioIo::new(conn), service).with_upgrades();
            let mut served = std::pin::pin!(served);
            let result = match stop.run_until_cancelled(served.as_mut()).await {
                Some(result) => result,
                None => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            };
            // The deadline for a head also ends connections that idle after a request: no refusal.
            let head_late =
                |error: &hyper::Error| error.is_timeout() && !used.load(Ordering::Relaxed);
            if let Err(error) = result
                && (error.is_parse() || head_late(&error))
            {
                metrics.refusals_total.of(Refusal::BadHead).inc();
                tracing::debug!(client = %address, %error, "request head refused");
            }
        });
    }
}

/// Answers and closes so that the client gets to see the answer: a socket closed with unread bytes
/// in it sends a reset, which may overtake what was written.
async fn write_refusal(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).await?;
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;
    while stream.read(&mut request).await? > 0 {}
    Ok(())
}

/// Copies what hyper's request head borrows from its 8 kB read buffer. The engine keeps the head as
/// long as the session lives, and with it the buffer that any of its header values points into.
fn unpin_head<B>(request: Request<B>) -> Request<B> {
    let (mut head, body) = request.into_parts();
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for (name, value) in &head.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes());
        let value = HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    head.headers = headers;
    if let Ok(uri) = head.uri.to_string().parse() {
        head.uri = uri;
    }
    Request::from_parts(head, body)
}
