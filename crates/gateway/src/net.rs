//! The public listener: our own accept loop in place of `axum::serve`, for what that one leaves open.
//!
//! - The kernel's queue of handshakes is as long as configured: `TcpListener::bind` takes 128, and in a
//!   reconnect storm every connection over that costs its client a second.
//! - Connections are bounded in all and by client address; what is over the bound is refused, quickly.
//! - The head of a request has a deadline.
//! - Each connection is an [`HttpStream`]: counted, with deadlines, until it is a WebSocket.

mod admission;
mod forwarded;
mod http_stream;

pub(crate) use admission::{Admission, Permit, group};
pub(crate) use forwarded::client_address;
pub(crate) use http_stream::{ConnectionHandle, Counted, HttpStream};

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use antiphon_metrics::{GatewayMetrics, gateway::Refusal};
use axum::{Router, body::Body};
use http::Request;
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
use http_stream::Deadlines;

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

/// What the kernel may hold of what is written to one client. It would go up to 4 MB by itself; what waits
/// beyond this waits in the node, where it is shared and counted.
const SEND_BUFFER_BYTES: u32 = 256 * 1024;

/// Who is at the other end of the connection on which a request came, in its extensions.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The client, or the nearest proxy.
    pub address: IpAddr,
    pub(crate) connection: Arc<ConnectionHandle>,
}

/// Opens a listening socket.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Connections that are accepted inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
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
                self.serve(stream, peer, permit);
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

    fn serve(&self, stream: TcpStream, address: IpAddr, permit: Permit) {
        let mut http = http1::Builder::new();
        // The head has a deadline of its own: this one is for connections between two requests.
        http.timer(TokioTimer::new())
            .header_read_timeout(self.config.server.keep_alive_timeout)
            .max_buf_size(REQUEST_HEAD_BYTES_MAX)
            .max_headers(REQUEST_HEADERS_MAX);
        let deadlines = Deadlines {
            head: self.config.server.request_head_timeout,
            stall: self.config.session.write_stall_timeout,
        };
        let handle = Arc::new(ConnectionHandle::default());
        let metrics = Arc::clone(&self.metrics);
        let stream = HttpStream::new(stream, deadlines, Arc::clone(&handle), metrics, permit);
        let app = self.app.clone();
        let remote = Remote { address, connection: Arc::clone(&handle) };
        let service = service_fn(move |request: Request<Incoming>| {
            remote.connection.begin_request();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(remote.clone());
            let answered = app.clone().oneshot(request);
            let connection = Arc::clone(&remote.connection);
            async move {
                let response = answered.await;
                connection.end_request();
                response
            }
        });
        let metrics = Arc::clone(&self.metrics);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let served = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
            let mut served = std::pin::pin!(served);
            let result = match stop.run_until_cancelled(served.as_mut()).await {
                Some(result) => result,
                None => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            };
            let Err(error) = result else { return };
            // A connection that ends between two requests is no refusal.
            let late = || is_late(&error) && !handle.was_used();
            if error.is_parse() || late() {
                metrics.refusals_total.of(Refusal::BadHead).inc();
                tracing::debug!(%address, %error, "request head refused");
            }
        });
    }
}

fn is_late(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<io::Error>());
    error.is_timeout() || source.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
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
