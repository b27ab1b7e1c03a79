//! Sessions over WebSocket: one small task for each, which reads, and writes what could not be written
//! at once. An idle connection has no buffer: what is read goes through one that its thread shares.

use std::{
    cell::RefCell,
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use antiphon_metrics::gateway::CloseReason;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Handler, Transport,
    frame::{Frame, FrameError, FrameReader, Opcode, write_close, write_frame},
    outbound::{Ending, Upgrade},
    packet::Packet,
    session::{Newcomer, Session},
};
use crate::net::{Counted, HttpStream};

/// Bytes read at a time. Larger messages take more reads; more than this is never kept for later.
const READ_BYTES: usize = 16 * 1024;

/// Frames from one connection before other tasks have their turn: a flood of tiny ones takes no longer
/// than a few messages.
const FRAMES_PER_TURN: usize = 64;

/// How long a connection that has been ended from this side may take to end from the other, so that no
/// reset destroys what is on its way.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A connection after its `101` response.
struct Connection {
    stream: Arc<TcpStream>,
    reader: FrameReader,
    /// Read, and not used yet: what came with the handshake, or when reads were held.
    unread: Vec<u8>,
}

/// Turns an upgraded HTTP connection into one for frames.
async fn connection(upgraded: OnUpgrade, max_bytes: usize) -> Option<(Connection, Counted)> {
    let upgraded: Upgraded = upgraded.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<HttpStream>>().ok()?;
    let (stream, counted) = parts.io.into_inner().into_stream();
    let connection = Connection {
        stream: Arc::new(stream),
        reader: FrameReader::new(max_bytes),
        unread: parts.read_buf.to_vec(),
    };
    Some((connection, counted))
}

/// Serves a session that begins with a WebSocket.
pub(super) async fn serve<H: Handler>(
    transport: Arc<Transport<H>>,
    upgraded: OnUpgrade,
    newcomer: Newcomer<H::State>,
) {
    let max_bytes = transport.settings.max_message_bytes;
    let Some((connection, _http)) = connection(upgraded, max_bytes).await else { return };
    let session = transport.open(newcomer, Some(Arc::clone(&connection.stream)));
    session.send_one(&transport.open_packet(&session));
    transport.handler.opened(&session);
    connection.run(session).await;
}

/// Serves the WebSocket to which a polling session may go over. Whatever becomes of it before the client's
/// last packet on the old way (`5`), the session stays where it is.
pub(super) async fn serve_upgrade<H: Handler>(session: Arc<Session<H>>, upgraded: OnUpgrade) {
    let settings = &session.hub().settings;
    let probed = async {
        let (mut connection, http) = connection(upgraded, settings.max_message_bytes).await?;
        let probed = connection.probe(&session).await;
        Some((connection, http, probed))
    };
    let probed = timeout(settings.upgrade_timeout, probed).await.ok().flatten();
    match probed {
        Some((connection, _http, true)) if session.upgrade(Arc::clone(&connection.stream)) => {
            connection.run(session).await;
        }
        other => {
            session.outbound().set_upgrade(Upgrade::None);
            if let Some((connection, ..)) = other {
                connection.refuse().await;
            }
        }
    }
}

/// Ends the second WebSocket of a session, as Node does: after the `101`.
pub(super) async fn refuse(upgraded: OnUpgrade, max_bytes: usize, patience: Duration) {
    let refused = async {
        if let Some((connection, _http)) = connection(upgraded, max_bytes).await {
            connection.refuse().await;
        }
    };
    // Nothing depends on whether it could still be told.
    let _ = timeout(patience, refused).await;
}

/// What a read from the connection gave.
enum Read {
    Some(usize),
    End,
    Failed,
}

impl Connection {
    async fn refuse(self) {
        let _ = self.stream.try_write(&close_frame(None));
        self.linger().await;
    }

    /// Waits for the probe, answers it, and waits for the upgrade packet. False if something else came.
    async fn probe<H: Handler>(&mut self, session: &Session<H>) -> bool {
        let Some(Frame::Text(text)) = self.next_frame().await else { return false };
        if text != "2probe" {
            return false;
        }
        let mut frame = Vec::new();
        write_frame(&mut frame, Opcode::Text, &[b"3probe"]);
        if !matches!(self.stream.try_write(&frame), Ok(written) if written == frame.len()) {
            return false;
        }
        session.outbound().set_upgrade(Upgrade::Probed);
        matches!(self.next_frame().await, Some(Frame::Text(text)) if text == "5")
    }

    /// The next data frame, if one comes.
    async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            let mut input = self.unread.as_slice();
            let next = self.reader.next(&mut input);
            let left = input.len();
            self.unread.drain(..self.unread.len() - left);
            match next.ok()? {
                Some(Frame::Ping(payload)) => {
                    let _ = self.stream.try_write(&pong(&payload));
                }
                Some(Frame::Pong(_)) => {}
                Some(Frame::Close(_)) => return None,
                Some(frame) => return Some(frame),
                None => {
                    self.stream.readable().await.ok()?;
                    let read = with_buffer(|buffer| {
                        let read = self.stream.try_read(buffer);
                        if let Ok(bytes) = &read {
                            self.unread.extend_from_slice(&buffer[..*bytes]);
                        }
                        read
                    });
                    match read {
                        Ok(0) => return None,
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return None,
                    }
                }
            }
        }
    }

    /// Serves the session until it or the connection ends.
    async fn run<H: Handler>(mut self, session: Arc<Session<H>>) {
        // Sized for many: the future of a connection is all that it has besides its session.
        let failed = std::future::poll_fn(|context| self.poll(&session, context)).await.is_err();
        let ending = session.outbound().ending();
        session.finish();
        match ending {
            _ if failed => {}
            Some(Ending::Flush) => self.linger().await,
            Some(Ending::CloseFrame(code)) => {
                let _ = self.stream.try_write(&close_frame(code));
                self.linger().await;
            }
            Some(Ending::Reset) | None => reset(&self.stream),
        }
    }

    fn poll<H: Handler>(
        &mut self,
        session: &Arc<Session<H>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        session.outbound().register(context);
        let mut frames = FRAMES_PER_TURN;
        while frames > 0 {
            let waiting = match self.flush(session, context) {
                Ok(Some(waiting)) => waiting,
                Ok(None) => return Poll::Ready(Ok(())),
                Err(error) => {
                    session.close(CloseReason::TransportError, Ending::Reset);
                    return Poll::Ready(Err(error));
                }
            };
            if !session.may_read(waiting) || session.outbound().ending().is_some() {
                return Poll::Pending;
            }
            if self.unread.is_empty() {
                match ready!(self.poll_read(session, &mut frames, context)) {
                    Read::Some(bytes) => {
                        session.hub().metrics.received_bytes_total.inc_by(bytes as u64);
                    }
                    Read::End => session.close(CloseReason::TransportClose, Ending::Reset),
                    Read::Failed => session.close(CloseReason::TransportError, Ending::Reset),
                }
            } else {
                let unread = std::mem::take(&mut self.unread);
                self.take(session, &unread, &mut frames);
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what waits. Returns how much waits still, or `None` if the connection is to be ended.
    fn flush<H: Handler>(
        &self,
        session: &Session<H>,
        context: &mut Context<'_>,
    ) -> io::Result<Option<usize>> {
        loop {
            let flushed = session.outbound().flush()?;
            let metrics = &session.hub().metrics;
            metrics.sent_bytes_total.inc_by(flushed.bytes as u64);
            metrics.deliveries_total.inc_by(flushed.volatile_events);
            if flushed.end {
                return Ok(None);
            }
            if flushed.waiting == 0 {
                return Ok(Some(0));
            }
            match self.stream.poll_write_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    session.watch_stall();
                    return Ok(Some(flushed.waiting));
                }
            }
        }
    }

    fn poll_read<H: Handler>(
        &mut self,
        session: &Arc<Session<H>>,
        frames: &mut usize,
        context: &mut Context<'_>,
    ) -> Poll<Read> {
        loop {
            if ready!(self.stream.poll_read_ready(context)).is_err() {
                return Poll::Ready(Read::Failed);
            }
            let stream = Arc::clone(&self.stream);
            let read = with_buffer(|buffer| {
                let bytes = stream.try_read(buffer)?;
                *frames = frames.saturating_sub(1);
                self.take(session, &buffer[..bytes], frames);
                Ok::<_, io::Error>(bytes)
            });
            return Poll::Ready(match read {
                Ok(0) => Read::End,
                Ok(bytes) => Read::Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => Read::Failed,
            });
        }
    }

    /// Takes what was read apart, until it is used up, reads are held, or it has been enough for a turn.
    fn take<H: Handler>(
        &mut self,
        session: &Arc<Session<H>>,
        mut input: &[u8],
        frames: &mut usize,
    ) {
        // The newest is the one that must be answered (RFC 6455, section 5.5.3).
        let mut ping = None;
        loop {
            if session.outbound().ending().is_some() {
                return;
            }
            if !session.may_read(0) || *frames == 0 {
                self.unread = input.to_vec();
                break;
            }
            *frames -= 1;
            match self.reader.next(&mut input) {
                Ok(Some(Frame::Ping(payload))) => ping = Some(payload),
                Ok(Some(frame)) => take_frame(session, frame),
                Ok(None) => break,
                Err(error) => {
                    let reason = match error {
                        FrameError::TooLarge => CloseReason::TooLarge,
                        FrameError::Protocol | FrameError::Utf8 => CloseReason::ParseError,
                    };
                    session.close(reason, Ending::CloseFrame(Some(error.close_code())));
                    return;
                }
            }
        }
        if let Some(payload) = ping {
            session.outbound().send_pong(&pong(&payload));
        }
        session.set_inbound_bytes(self.reader.held_bytes() + self.unread.len());
    }

    /// Ends the stream from this side, and reads on for a moment.
    async fn linger(self) {
        use rustix::net::{Shutdown, shutdown};
        if shutdown(&*self.stream, Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut ended = pin!(async {
            while self.stream.readable().await.is_ok() {
                match with_buffer(|buffer| self.stream.try_read(buffer)) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        if timeout_at(deadline, ended.as_mut()).await.is_err() {
            reset(&self.stream);
        }
    }
}

/// What the kernel holds for the connection goes with it: for clients that read nothing it would keep
/// megabytes for minutes.
fn reset(stream: &TcpStream) {
    // An error means that the connection is gone already.
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

fn with_buffer<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    READ_BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => read(&mut buffer),
        // Somebody further up on this thread is reading: it costs an allocation, and nothing else.
        Err(_) => read(&mut vec![0; READ_BYTES]),
    })
}

fn close_frame(code: Option<u16>) -> Vec<u8> {
    let mut frame = Vec::new();
    write_close(&mut frame, code, "");
    frame
}

fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 2);
    write_frame(&mut frame, Opcode::Pong, &[payload]);
    frame
}

fn take_frame<H: Handler>(session: &Arc<Session<H>>, frame: Frame) {
    let packet = match frame {
        Frame::Text(text) => Packet::from_text(session.protocol(), text),
        Frame::Binary(bytes) => Packet::from_binary(session.protocol(), bytes),
        // Pings are answered by whoever takes frames out.
        Frame::Ping(_) | Frame::Pong(_) => return,
        Frame::Close(_) => {
            return session.close(CloseReason::TransportClose, Ending::CloseFrame(None));
        }
    };
    match packet {
        Ok(packet) => session.take(packet),
        Err(_) => session.close(CloseReason::ParseError, Ending::CloseFrame(None)),
    }
}
