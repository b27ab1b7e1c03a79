//! A client's TCP connection, as the HTTP server and the engine see it: bytes counted, a deadline for
//! clients that take nothing, and a way to close it from outside.
//!
//! socketioxide has no way to end one client's transport without a DISCONNECT packet, after which
//! clients do not come back. The connection can, because it sees every byte: between two WebSocket
//! frames of the client it lets the engine read one frame more, an Engine.IO close packet that the
//! client never sent. The engine then ends the session as if the client had asked for it: it flushes
//! what is queued, closes the WebSocket, and the client reconnects.
//!
//! Invariants: the close packet is never put inside a frame of the client; after it, nothing more is
//! read; after [`ConnHandle::abort`], nothing is written either.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
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

use super::{admission::Permit, frames::ClientFrames};

/// `1`, the Engine.IO close packet, as a client would send it: final text frame, one byte long,
/// masked (with zeros).
const CLOSE_PACKET: [u8; 7] = [0x81, 0x81, 0, 0, 0, 0, b'1'];

/// `2probe` and `5`, with which a client goes over from polling.
const UPGRADE_PROBES: u8 = 2;

/// How long the engine gets to start its writer after an upgrade, in a task of its own: a session that is closed before
/// loses its queue, and nothing tells when that task runs.
const WRITER_START: Duration = Duration::from_millis(100);

// States, each past the one before; a connection begins with 0, open.
const CLOSING: u8 = 1;
const ABORTED: u8 = 2;

/// Who has to know what becomes of a WebSocket's connection.
pub(crate) trait Owner: Send + Sync {
    /// The kernel took this many bytes.
    fn wrote(&self, bytes: usize);
    /// The connection has been dropped.
    fn connection_gone(&self);
}

/// What others hold of a connection.
#[derive(Default)]
pub(crate) struct ConnHandle {
    state: AtomicU8,
    // Set once the connection is a WebSocket.
    owner: OnceLock<Weak<dyn Owner>>,
    // Messages that the client sends before it may be closed.
    probes: AtomicU8,
    stalled: AtomicBool,
    // Reading and writing happen in two tasks once the engine has split the WebSocket.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl ConnHandle {
    /// From here on the client speaks WebSocket: the `101` response is on its way.
    /// If it comes from polling, its first messages belong to the engine's upgrade, and ending the session in
    /// between would lose what is queued.
    pub(crate) fn upgraded(&self, owner: Weak<dyn Owner>, from_polling: bool) {
        self.probes.store(if from_polling { UPGRADE_PROBES } else { 0 }, Ordering::Release);
        let first = self.owner.set(owner);
        debug_assert!(first.is_ok(), "a connection is upgraded once");
    }

    /// Ends the session: what is queued for the client still goes out, then the transport closes.
    pub(crate) fn close(&self) {
        self.raise(CLOSING);
    }

    /// Cuts the connection: nothing more is read or written.
    pub(crate) fn abort(&self) {
        self.raise(ABORTED);
    }

    /// Whether it was cut because the client took nothing for too long.
    pub(crate) fn stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    fn owner(&self) -> Option<Arc<dyn Owner>> {
        self.owner.get().and_then(Weak::upgrade)
    }

    fn raise(&self, state: u8) {
        self.state.fetch_max(state, Ordering::AcqRel);
        self.reader.wake();
        self.writer.wake();
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }
}

/// The connection itself.
pub(crate) struct Conn {
    stream: TcpStream,
    handle: Arc<ConnHandle>,
    frames: ClientFrames,
    close_packet_read: bool,
    // Made when a connection that came from polling is closed.
    writer_start: Option<Pin<Box<Sleep>>>,
    // Made when a write cannot go on, gone when it can: idle connections do not pay for it.
    stall: Option<Pin<Box<Sleep>>>,
    stall_timeout: Duration,
    metrics: Arc<GatewayMetrics>,
    _permit: Permit,
}

impl Conn {
    pub(crate) fn new(
        stream: TcpStream,
        stall_timeout: Duration,
        metrics: Arc<GatewayMetrics>,
        permit: Permit,
    ) -> Self {
        metrics.connections.inc();
        metrics.connections_accepted_total.inc();
        Self {
            stream,
            handle: Arc::default(),
            frames: ClientFrames::default(),
            close_packet_read: false,
            writer_start: None,
            stall: None,
            stall_timeout,
            metrics,
            _permit: permit,
        }
    }

    pub(crate) fn handle(&self) -> Arc<ConnHandle> {
        Arc::clone(&self.handle)
    }

    /// Whether the client has gone over from polling, and the engine with it; true if there was no polling.
    fn is_upgraded(&mut self, cx: &mut Context<'_>) -> bool {
        let probes = self.handle.probes.load(Ordering::Acquire);
        if probes == 0 {
            return true;
        }
        let start = || Box::pin(tokio::time::sleep(WRITER_START));
        self.frames.messages() >= probes
            && self.writer_start.get_or_insert_with(start).as_mut().poll(cx).is_ready()
    }

    /// What to do before any write; afterwards [`Conn::wrote`].
    fn before_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.handle.writer.register(cx.waker());
        if self.handle.state() == ABORTED {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn wrote(
        &mut self,
        result: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = result {
            self.stall = None;
            if let Ok(bytes) = result {
                self.metrics.sent_bytes_total.inc_by(bytes as u64);
                if let Some(owner) = self.handle.owner() {
                    owner.wrote(bytes);
                }
            }
            return Poll::Ready(result);
        }
        let timeout = self.stall_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(cx));
        self.handle.stalled.store(true, Ordering::Release);
        self.handle.abort();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.metrics.connections.dec();
        if let Some(owner) = self.handle.owner() {
            owner.connection_gone();
        }
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.handle.reader.register(cx.waker());
        let websocket = this.handle.owner.get().is_some();
        let state = this.handle.state();
        if state == ABORTED {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let closing = state == CLOSING && this.is_upgraded(cx);
        if closing {
            if !websocket {
                return Poll::Ready(Ok(())); // End of stream: no further request.
            }
            if this.close_packet_read {
                return Poll::Pending; // The engine is about to drop the connection.
            }
            if this.frames.between() && buf.remaining() >= CLOSE_PACKET.len() {
                this.close_packet_read = true;
                buf.put_slice(&CLOSE_PACKET);
                return Poll::Ready(Ok(()));
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        this.metrics.received_bytes_total.inc_by(read as u64);
        if websocket {
            let frames_end = this.frames.advance(&buf.filled()[before..]);
            if closing && let Some(end) = frames_end {
                // What the client sent after the frame that was under way is not accepted any more.
                buf.set_filled(before + end);
                this.frames = ClientFrames::default();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.before_write(cx)?;
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.wrote(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.before_write(cx)?;
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
