//! A client's TCP connection while it speaks HTTP: bytes counted, a deadline for each request's head and for
//! answers that are not taken. Once it is a WebSocket, only the stream is left, and what is counted for it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use antiphon_metrics::GatewayMetrics;
use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use super::admission::Permit;

/// The deadlines of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// For the head of a request, from its first byte; of the first one, from the connection on.
    pub(crate) head: Duration,
    /// For a client that takes nothing although an answer waits.
    pub(crate) stall: Duration,
}

/// What a connection counts for, until it is closed.
#[derive(Debug)]
pub(crate) struct Counted {
    metrics: Arc<GatewayMetrics>,
    _permit: Permit,
}

impl Counted {
    fn new(metrics: Arc<GatewayMetrics>, permit: Permit) -> Self {
        metrics.connections.inc();
        metrics.connections_accepted_total.inc();
        Self { metrics, _permit: permit }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// What others hold of a connection.
#[derive(Debug, Default)]
pub(crate) struct ConnectionHandle {
    /// Requests whose head has come.
    requests: AtomicUsize,
    serving: AtomicBool,
    aborted: AtomicBool,
    writer: AtomicWaker,
}

impl ConnectionHandle {
    /// Cuts the connection, if it is still one for requests.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.writer.wake();
    }

    pub(crate) fn begin_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.serving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn end_request(&self) {
        self.serving.store(false, Ordering::Relaxed);
    }

    pub(crate) fn was_used(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }
}

/// The connection.
pub(crate) struct HttpStream {
    stream: TcpStream,
    counted: Counted,
    deadlines: Deadlines,
    handle: Arc<ConnectionHandle>,
    // Timers are made when there is something to wait for: idle connections do not pay for them.
    /// The deadline of a head, and how many had come before it.
    head: Option<(Pin<Box<Sleep>>, usize)>,
    stall: Option<Pin<Box<Sleep>>>,
}

impl HttpStream {
    pub(crate) fn new(
        stream: TcpStream,
        deadlines: Deadlines,
        handle: Arc<ConnectionHandle>,
        metrics: Arc<GatewayMetrics>,
        permit: Permit,
    ) -> Self {
        let counted = Counted::new(metrics, permit);
        let head = Some((Box::pin(tokio::time::sleep(deadlines.head)), 0));
        Self { stream, counted, deadlines, handle, head, stall: None }
    }

    /// The stream itself, and what is counted for it.
    pub(crate) fn into_stream(self) -> (TcpStream, Counted) {
        (self.stream, self.counted)
    }

    fn late(&self) -> io::Error {
        // What waits in the kernel for a client that takes nothing goes with the connection.
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
        io::ErrorKind::TimedOut.into()
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.handle.writer.register(cx.waker());
        if self.handle.aborted.load(Ordering::Acquire) {
            return Poll::Ready(Err(self.late()));
        }
        let timeout = self.deadlines.stall;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(self.late()))
    }

    fn wrote(
        &mut self,
        result: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = result else { return self.poll_stall(cx) };
        let bytes = *result.as_ref().unwrap_or(&0);
        if bytes > 0 {
            self.stall = None;
            self.counted.metrics.sent_bytes_total.inc_by(bytes as u64);
        }
        Poll::Ready(result)
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let requests = this.handle.requests.load(Ordering::Relaxed);
        if this.head.as_ref().is_some_and(|(_, before)| *before != requests) {
            this.head = None;
        }
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            let read = buf.filled().len() - before;
            this.counted.metrics.received_bytes_total.inc_by(read as u64);
            // What arrives while a request is being answered is its body.
            if read > 0 && this.head.is_none() && !this.handle.serving.load(Ordering::Relaxed) {
                let head = Box::pin(tokio::time::sleep(this.deadlines.head));
                this.head = Some((head, requests));
            }
            return Poll::Ready(result);
        }
        if let Some((head, _)) = &mut this.head {
            ready!(head.as_mut().poll(cx));
            return Poll::Ready(Err(this.late()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.wrote(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.wrote(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // A TcpStream has no buffer of its own.
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
