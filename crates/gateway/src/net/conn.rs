//! A client's TCP connection, as the HTTP server and the engine see it: bytes counted, a deadline for
//! clients that take nothing, a way to close it from outside, and another way in for what goes out ([`Lane`]).
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
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use antiphon_metrics::{GatewayMetrics, gateway::Undelivered};
use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Sleep,
};

use super::{
    admission::Permit,
    frames::ClientMessages,
    lane::{Lane, Progress},
};

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
    // Set once the connection is one.
    websocket: OnceLock<WebSocket>,
    stalled: AtomicBool,
    // Reading and writing happen in two tasks once the engine has split the WebSocket.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

struct WebSocket {
    owner: Weak<dyn Owner>,
    lane: Arc<Lane>,
    /// Messages that the client sends before it has gone over from polling. They belong to the engine's upgrade,
    /// and ending the session in between would lose what is queued.
    probes: u8,
}

/// Those who read and write, woken together: the kernel's readiness to take bytes has room for one waker only,
/// and two tasks may wait for it.
impl Wake for ConnHandle {
    fn wake(self: Arc<Self>) {
        self.wake_tasks();
    }
}

impl ConnHandle {
    /// From here on the client speaks WebSocket: the `101` response is on its way.
    pub(crate) fn upgraded(&self, owner: Weak<dyn Owner>, lane: Arc<Lane>, from_polling: bool) {
        let probes = if from_polling { UPGRADE_PROBES } else { 0 };
        let first = self.websocket.set(WebSocket { owner, lane, probes });
        debug_assert!(first.is_ok(), "a connection is upgraded once");
    }

    /// Something waits in the lane that did not before.
    pub(crate) fn wake_reader(&self) {
        self.reader.wake();
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
        self.websocket.get().and_then(|websocket| websocket.owner.upgrade())
    }

    fn raise(&self, state: u8) {
        self.state.fetch_max(state, Ordering::AcqRel);
        self.wake_tasks();
    }

    fn wake_tasks(&self) {
        self.reader.wake();
        self.writer.wake();
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }
}

/// The connection itself.
pub(crate) struct Conn {
    read: OwnedReadHalf,
    // The lane has it once there is a WebSocket.
    write: Option<OwnedWriteHalf>,
    handle: Arc<ConnHandle>,
    messages: ClientMessages,
    lane_ready: bool,
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
        let (read, write) = stream.into_split();
        Self {
            read,
            write: Some(write),
            handle: Arc::default(),
            messages: ClientMessages::default(),
            lane_ready: false,
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

    /// The lane, once there is a WebSocket; it writes from then on.
    fn lane(&mut self) -> Option<Arc<Lane>> {
        let WebSocket { lane, probes, .. } = self.handle.websocket.get()?;
        if let Some(write) = self.write.take() {
            self.lane_ready = *probes == 0;
            lane.open(write, self.lane_ready);
        }
        Some(Arc::clone(lane))
    }

    /// Whether the client has gone over from polling, and the engine with it; true if there was no polling.
    fn is_upgraded(&mut self, cx: &mut Context<'_>) -> bool {
        let probes = self.handle.websocket.get().map_or(0, |websocket| websocket.probes);
        if probes == 0 {
            return true;
        }
        let start = || Box::pin(tokio::time::sleep(WRITER_START));
        self.messages.messages() >= probes
            && self.writer_start.get_or_insert_with(start).as_mut().poll(cx).is_ready()
    }

    /// Waits until the kernel takes bytes again, for no longer than a client may take none.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let both = Waker::from(Arc::clone(&self.handle));
        if let Poll::Ready(result) =
            self.read.as_ref().poll_write_ready(&mut Context::from_waker(&both))
        {
            return Poll::Ready(result);
        }
        self.poll_stall(cx)
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let timeout = self.stall_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(cx));
        self.handle.stalled.store(true, Ordering::Release);
        self.handle.abort();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// What to do before any write.
    fn before_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.handle.writer.register(cx.waker());
        if self.handle.state() == ABORTED {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn wrote(&mut self, progress: Progress) {
        if progress.bytes > 0 {
            self.stall = None;
            self.metrics.sent_bytes_total.inc_by(progress.bytes as u64);
            self.metrics.deliveries_total.inc_by(progress.volatile_events);
        }
    }

    /// The same for what the HTTP server writes.
    fn wrote_http(
        &mut self,
        result: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = result else {
            ready!(self.poll_stall(cx))?;
            return Poll::Pending;
        };
        let bytes = *result.as_ref().unwrap_or(&0);
        self.wrote(Progress { bytes, volatile_events: 0 });
        Poll::Ready(result)
    }

    fn end_lane(&self) {
        if let Some(websocket) = self.handle.websocket.get() {
            let volatile_events = websocket.lane.end();
            self.metrics.undelivered_total.of(Undelivered::Gone).inc_by(volatile_events);
        }
    }

    fn poll_engine_write(
        &mut self,
        lane: &Lane,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let (result, progress) = lane.write(bytes);
            self.wrote(progress);
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_writable(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
                Ok(written) => {
                    if let Some(owner) = self.handle.owner() {
                        owner.wrote(written);
                    }
                    if lane.can_flush() {
                        self.handle.wake_reader();
                    }
                    return Poll::Ready(Ok(written));
                }
            }
        }
    }

    /// Writes what waits in the lane, and sees to it that this is called again when more can be written.
    fn poll_flush_lane(&mut self, lane: &Lane, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let (result, progress) = lane.flush();
            self.wrote(progress);
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.poll_writable(cx) {
                        Poll::Ready(result) => result?,
                        Poll::Pending => return Ok(()),
                    }
                }
                result => return result,
            }
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.metrics.connections.dec();
        self.end_lane();
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
        let lane = this.lane();
        let state = this.handle.state();
        if state == ABORTED {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Some(lane) = &lane {
            this.poll_flush_lane(lane, cx)?;
        }
        let closing = state == CLOSING && this.is_upgraded(cx);
        if closing {
            if lane.is_none() {
                return Poll::Ready(Ok(())); // End of stream: no further request.
            }
            if this.close_packet_read {
                return Poll::Pending; // The engine is about to drop the connection.
            }
            if this.messages.between() && buf.remaining() >= CLOSE_PACKET.len() {
                this.close_packet_read = true;
                buf.put_slice(&CLOSE_PACKET);
                return Poll::Ready(Ok(()));
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.read).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        this.metrics.received_bytes_total.inc_by(read as u64);
        if let Some(lane) = &lane {
            let message_end = this.messages.advance(&buf.filled()[before..]);
            if !this.lane_ready && this.messages.messages() >= UPGRADE_PROBES {
                this.lane_ready = true;
                lane.ready();
            }
            if closing && let Some(end) = message_end {
                // What the client sent after the message that was under way is not accepted any more.
                buf.set_filled(before + end);
                this.messages = ClientMessages::default();
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
        if let Some(lane) = this.lane() {
            return this.poll_engine_write(&lane, bytes, cx);
        }
        let write = this.write.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let result = Pin::new(write).poll_write(cx, bytes);
        this.wrote_http(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.before_write(cx)?;
        if let Some(lane) = this.lane() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return this.poll_engine_write(&lane, first.map_or(&[], |slice| slice), cx);
        }
        let write = this.write.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let result = Pin::new(write).poll_write_vectored(cx, slices);
        this.wrote_http(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.write.is_some()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // A TcpStream has no buffer of its own.
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.write {
            Some(write) => Pin::new(write).poll_shutdown(cx),
            None => {
                this.end_lane();
                Poll::Ready(Ok(()))
            }
        }
    }
}
