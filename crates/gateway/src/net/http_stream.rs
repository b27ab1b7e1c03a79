//! A client's TCP connection while it speaks HTTP: bytes counted, a deadline for each request's head and for
//! answers that are not taken. Once it is a WebSocket, only the stream is left, and what is counted for it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use antiphon_metrics::GatewayMetrics;
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

/// The connection.
pub(crate) struct HttpStream {
    stream: TcpStream,
    counted: Counted,
    deadlines: Deadlines,
    /// Set while a request is being answered: what arrives meanwhile begins no head.
    serving: Arc<AtomicBool>,
    // Timers are made when there is something to wait for: idle connections do not pay for them.
    head: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
}

impl HttpStream {
    pub(crate) fn new(
        stream: TcpStream,
        deadlines: Deadlines,
        serving: Arc<AtomicBool>,
        metrics: Arc<GatewayMetrics>,
        permit: Permit,
    ) -> Self {
        let counted = Counted::new(metrics, permit);
        let head = Some(Box::pin(tokio::time::sleep(deadlines.head)));
        Self { stream, counted, deadlines, serving, head, stall: None }
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
        if this.serving.load(Ordering::Relaxed) {
            this.head = None;
        }
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            let read = buf.filled().len() - before;
            this.counted.metrics.received_bytes_total.inc_by(read as u64);
            if read > 0 && this.head.is_none() && !this.serving.load(Ordering::Relaxed) {
                this.head = Some(Box::pin(tokio::time::sleep(this.deadlines.head)));
            }
            return Poll::Ready(result);
        }
        if let Some(head) = &mut this.head {
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
