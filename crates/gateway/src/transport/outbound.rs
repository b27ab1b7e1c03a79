//! The outgoing side of a session: the one place that writes to a client, whatever carries it.
//!
//! A batch goes out at once if nothing waits before it: to a WebSocket by whoever delivers, to a
//! waiting poll by waking it. Else it waits here, in order. What must always hold:
//!
//! - Every packet leaves in the order in which it was sent, across an upgrade too.
//! - A frame that was begun is finished before anything else is written.
//! - What waits is bounded in bytes. Beyond the bound the session is to be closed; nothing is left out,
//!   except volatile batches, of which the newest one waits that is within the bound.
//! - After [`Outbound::end`] nothing more is accepted; what waits still goes out, unless it is to be cut.
//! - The lock is held for one write that does not wait, never across an await.

#[cfg(any(test, fuzzing))]
mod kernel;
#[cfg(any(test, fuzzing))]
mod model;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use tokio::net::TcpStream;

use super::{Protocol, batch::FrameBatch, memory::Budget, packet::OutPacket, queue::Queue};

#[cfg(fuzzing)]
pub(crate) use model::play;

/// Packets in one answer to a poll: clients in Python give up at more (`max_decode_packets`).
const PACKETS_PER_POLL_MAX: usize = 16;

/// A client that polls is behind when more than this waits: volatile batches pass it by.
const POLL_BEHIND_BYTES: usize = 16 * 1024;

/// Writes to one WebSocket before other tasks have their turn.
const WRITES_PER_TURN: usize = 16;

/// A connection that takes what it can at once. Tests have their own.
pub(super) trait TryWrite {
    /// Writes some of the bytes, or fails with [`io::ErrorKind::WouldBlock`].
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl TryWrite for TcpStream {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::try_write(self, bytes)
    }
}

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// What waits goes out, then the stream ends without a close frame: clients take that for a
    /// network error and come back, whereas some take a close frame for an orderly end and stay away.
    Flush,
    /// The same, with a close frame (over polling a close packet) before the end: the client broke the protocol.
    CloseFrame(Option<u16>),
    /// At once; what waits is lost and the kernel drops what it holds.
    Reset,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Written, or waiting; `written` bytes went to the kernel at once.
    Accepted {
        /// Bytes that the kernel took.
        written: usize,
        /// Volatile events that are skipped: those that waited until now, or those of this batch, if
        /// there is no room for it.
        replaced: u64,
        /// Whether the batch is the first that waits: somebody must see to it that it gets out.
        waits: bool,
        /// Whether a newer volatile batch may still take its place: it counts as delivered later.
        replaceable: bool,
    },
    /// More waits than may.
    Full,
    /// The session is ending.
    Gone,
}

/// Why no packets can be polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PollError {
    /// Another poll waits already.
    Overlap,
    /// The session does not poll any more.
    Gone,
}

/// What a poll gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Polled {
    /// Packets, in order.
    Packets {
        /// The packets.
        packets: Vec<OutPacket>,
        /// Events of a volatile batch among them that could have been replaced until now.
        volatile_events: u64,
    },
    /// Nothing, but the client should send its next request: it is upgrading, or the session ends.
    Noop,
    /// The session ends because the client broke the protocol.
    Close,
    /// The session has gone over to a WebSocket.
    Upgraded,
}

/// How far a flush got.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flushed {
    /// Bytes that the kernel took.
    pub(super) bytes: usize,
    /// Events of a volatile batch that could have been replaced until now.
    pub(super) volatile_events: u64,
    /// Bytes that still wait.
    pub(super) waiting: usize,
    /// The stream is to be ended: the session ends, and nothing waits any more or it is to be cut.
    pub(super) end: bool,
}

/// The outgoing side of one session.
#[derive(Debug)]
pub(super) struct Outbound<S = TcpStream> {
    state: Mutex<State<S>>,
    /// Wakes what takes packets out: the task of a WebSocket, or the request that polls.
    taker: AtomicWaker,
}

#[derive(Debug)]
struct State<S> {
    carrier: Carrier<S>,
    queue: Queue,
    pongs: Pongs,
    progress: Instant,
    ending: Option<Ending>,
}

#[derive(Debug)]
enum Carrier<S> {
    Polling { poll_waits: bool, upgrade: Upgrade },
    WebSocket(Arc<S>),
    Closed,
}

/// How far a client that polls has got on its way to a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// It has not begun, or has given up.
    None,
    /// It has opened a WebSocket.
    Opened,
    /// Its probe came over that WebSocket: polls are answered, so that it can send the last packet.
    Probed,
}

/// Pongs that answer WebSocket pings. The newest is enough (RFC 6455, section 5.5.3), but one that is
/// out in part is finished first.
#[derive(Debug, Default)]
struct Pongs {
    bytes: Vec<u8>,
    /// How many of the bytes are the rest of a pong that is out in part.
    begun: usize,
}

impl Pongs {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn set(&mut self, frame: &[u8]) {
        self.bytes.truncate(self.begun);
        self.bytes.extend_from_slice(frame);
    }

    fn take(&mut self, written: usize) {
        self.bytes.drain(..written);
        self.begun = match self.begun.checked_sub(written) {
            Some(left) => left,
            None => self.bytes.len(),
        };
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }
}

impl<S: TryWrite> State<S> {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.pongs.is_empty()
    }

    /// Whether a volatile batch that cannot go out now should wait for its turn as the newest.
    fn is_behind(&self) -> bool {
        match self.carrier {
            Carrier::Polling { .. } => self.queue.bytes() > POLL_BEHIND_BYTES,
            Carrier::WebSocket(_) | Carrier::Closed => true,
        }
    }

    /// Puts a batch, of which `written` bytes are out, at the end of what waits.
    fn wait(&mut self, batch: &FrameBatch, written: usize, max_bytes: usize) -> Sent {
        let first = self.queue.is_empty();
        let replaceable = batch.volatile() && written == 0 && self.is_behind();
        let stays = match replaceable {
            true => self.queue.bytes() - self.queue.replaceable_bytes(),
            false => self.queue.bytes(),
        };
        let bytes = batch.frames(self.queue.protocol()).bytes.len();
        if stays > 0 && stays + bytes - written > max_bytes {
            return match replaceable {
                true => {
                    Sent::Accepted { written, replaced: batch.events(), waits: false, replaceable }
                }
                false => Sent::Full,
            };
        }
        if self.is_empty() || written > 0 {
            self.progress = Instant::now();
        }
        let replaced = match replaceable {
            true => self.queue.replace(batch),
            false => {
                self.queue.push(batch, written);
                0
            }
        };
        let waits = first && matches!(self.carrier, Carrier::WebSocket(_));
        Sent::Accepted { written, replaced, waits, replaceable }
    }

    /// Writes to the WebSocket once. False if there is nothing to write, or the kernel takes no more.
    fn write(&mut self, flushed: &mut Flushed) -> io::Result<bool> {
        let Carrier::WebSocket(stream) = &self.carrier else { return Ok(false) };
        if self.ending == Some(Ending::Reset) || self.is_empty() {
            return Ok(false);
        }
        let pong_waits = !self.pongs.is_empty();
        let pong_is_next = pong_waits && self.queue.at_boundary();
        let written = match pong_is_next {
            true => stream.try_write(&self.pongs.bytes).map(|bytes| (bytes, 0)),
            false => self.queue.write(pong_waits, |bytes| stream.try_write(bytes)),
        };
        let (bytes, volatile_events) = match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Ok((0, _)) => return Err(io::ErrorKind::WriteZero.into()),
            written => written?,
        };
        if pong_is_next {
            self.pongs.take(bytes);
        }
        self.progress = Instant::now();
        flushed.bytes += bytes;
        flushed.volatile_events += volatile_events;
        Ok(true)
    }

    /// How things stand after a write.
    fn report(&self, flushed: &mut Flushed) {
        let is_empty = match self.carrier {
            Carrier::WebSocket(_) => self.is_empty(),
            Carrier::Polling { .. } | Carrier::Closed => true,
        };
        flushed.waiting = if is_empty { 0 } else { self.queue.bytes().max(1) };
        flushed.end = match self.ending {
            None => false,
            Some(Ending::Reset) => true,
            Some(Ending::Flush | Ending::CloseFrame(_)) => is_empty,
        };
    }
}

impl<S: TryWrite> Outbound<S> {
    pub(super) fn polling(protocol: Protocol, budget: &Arc<Budget>) -> Self {
        let carrier = Carrier::Polling { poll_waits: false, upgrade: Upgrade::None };
        Self::new(protocol, carrier, budget)
    }

    pub(super) fn websocket(protocol: Protocol, stream: Arc<S>, budget: &Arc<Budget>) -> Self {
        Self::new(protocol, Carrier::WebSocket(stream), budget)
    }

    fn new(protocol: Protocol, carrier: Carrier<S>, budget: &Arc<Budget>) -> Self {
        let state = State {
            carrier,
            queue: Queue::new(protocol, budget),
            pongs: Pongs::default(),
            progress: Instant::now(),
            ending: None,
        };
        Self { state: Mutex::new(state), taker: AtomicWaker::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a batch after everything that was sent before. With more than `max_bytes` waiting it is
    /// not accepted, but one batch may always wait.
    pub(super) fn send(&self, batch: &FrameBatch, max_bytes: usize) -> Sent {
        self.send_after(|| (), batch, max_bytes)
    }

    /// The same, after `prepare`: nothing is sent in between, and what others send because of `prepare` comes
    /// after the batch. It is called under the lock, and must send nothing itself.
    pub(super) fn send_after(
        &self,
        prepare: impl FnOnce(),
        batch: &FrameBatch,
        max_bytes: usize,
    ) -> Sent {
        let mut state = self.lock();
        prepare();
        if state.ending.is_some() {
            return Sent::Gone;
        }
        let frames = &batch.frames(state.queue.protocol()).bytes;
        let mut written = 0;
        match &state.carrier {
            Carrier::Closed => return Sent::Gone,
            Carrier::WebSocket(stream) if state.is_empty() => match stream.try_write(frames) {
                Ok(bytes) => written = bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The task that reads from the connection finds out, too, and ends the session.
                Err(_) => return Sent::Gone,
            },
            Carrier::WebSocket(_) | Carrier::Polling { .. } => {}
        }
        // Nothing waits of a batch that is empty, either.
        if written == frames.len() {
            return Sent::Accepted { written, replaced: 0, waits: false, replaceable: false };
        }
        let first = state.queue.is_empty();
        let sent = state.wait(batch, written, max_bytes);
        drop(state);
        if first {
            self.taker.wake();
        }
        sent
    }

    /// Answers a WebSocket ping, once whoever takes frames out gets to it.
    pub(super) fn send_pong(&self, frame: &[u8]) {
        let mut state = self.lock();
        if state.ending.is_none() {
            if state.is_empty() {
                state.progress = Instant::now();
            }
            state.pongs.set(frame);
        }
    }

    /// Ends the session: nothing more is accepted. Returns false if it was ending already; a reset then still
    /// cuts short what was to go out.
    pub(super) fn end(&self, ending: Ending) -> bool {
        let mut state = self.lock();
        match state.ending {
            None => {}
            Some(Ending::Reset) => return false,
            Some(_) if ending != Ending::Reset => return false,
            Some(_) => {}
        }
        let first = state.ending.is_none();
        state.ending = Some(ending);
        drop(state);
        self.taker.wake();
        first
    }

    /// How the session ends, if it does.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.lock().ending
    }

    /// Bytes that wait for the client.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.lock().queue.bytes()
    }

    /// For how long the client has taken nothing although something waits.
    pub(super) fn stalled_for(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let waits = matches!(state.carrier, Carrier::WebSocket(_)) && !state.is_empty();
        waits.then(|| now.saturating_duration_since(state.progress))
    }

    /// When the client last took something.
    pub(super) fn last_progress(&self) -> Instant {
        self.lock().progress
    }

    /// Whoever takes packets out is woken through this.
    pub(super) fn register(&self, context: &Context<'_>) {
        self.taker.register(context.waker());
    }

    /// Wakes whoever takes packets out.
    pub(super) fn wake(&self) {
        self.taker.wake();
    }

    /// Writes what waits to the WebSocket.
    pub(super) fn flush(&self) -> io::Result<Flushed> {
        let mut flushed = Flushed::default();
        for _ in 0..WRITES_PER_TURN {
            // Locked anew for each write, so that those who send need not wait for all of them.
            let mut state = self.lock();
            let more = match state.write(&mut flushed) {
                // What went out before has to be counted; the next write fails as well.
                Err(_) if flushed.bytes > 0 => false,
                more => more?,
            };
            state.report(&mut flushed);
            if !more {
                break;
            }
        }
        Ok(flushed)
    }

    /// Gives up the connection. Returns how many volatile events waited: those that count as delivered when
    /// they go out. All others have been counted.
    pub(super) fn close(&self) -> u64 {
        let mut state = self.lock();
        state.carrier = Carrier::Closed;
        state.ending.get_or_insert(Ending::Reset);
        state.pongs = Pongs::default();
        let events = state.queue.clear();
        drop(state);
        self.taker.wake();
        events
    }

    /// Begins a poll. It must end in [`Outbound::end_poll`].
    pub(super) fn begin_poll(&self) -> Result<(), PollError> {
        let mut state = self.lock();
        match &mut state.carrier {
            Carrier::Polling { poll_waits, .. } if !*poll_waits => {
                *poll_waits = true;
                Ok(())
            }
            Carrier::Polling { .. } => Err(PollError::Overlap),
            Carrier::WebSocket(_) | Carrier::Closed => Err(PollError::Gone),
        }
    }

    /// The next packets for the poll that waits. `before_probe`: the poll began before the client's
    /// probe, and so keeps the client from upgrading.
    pub(super) fn poll(&self, before_probe: bool, context: &Context<'_>) -> Poll<Polled> {
        let mut state = self.lock();
        match state.carrier {
            Carrier::Polling { .. } | Carrier::Closed => {}
            // The task of the WebSocket is to be woken from now on, and nobody else.
            Carrier::WebSocket(_) => return Poll::Ready(Polled::Upgraded),
        }
        let max = if state.ending == Some(Ending::Reset) { 0 } else { PACKETS_PER_POLL_MAX };
        let (packets, volatile_events) = state.queue.take_packets(max);
        if !packets.is_empty() {
            state.progress = Instant::now();
            return Poll::Ready(Polled::Packets { packets, volatile_events });
        }
        let probed = matches!(state.carrier, Carrier::Polling { upgrade: Upgrade::Probed, .. });
        match state.ending {
            Some(Ending::CloseFrame(_)) => Poll::Ready(Polled::Close),
            Some(Ending::Flush | Ending::Reset) => Poll::Ready(Polled::Noop),
            None if probed && before_probe => Poll::Ready(Polled::Noop),
            None => {
                // Under the lock: whoever sends, or upgrades, does it after this and wakes it.
                self.register(context);
                Poll::Pending
            }
        }
    }

    /// Ends a poll, answered or not. Returns whether the session still polls.
    pub(super) fn end_poll(&self) -> bool {
        match &mut self.lock().carrier {
            Carrier::Polling { poll_waits, .. } => {
                *poll_waits = false;
                true
            }
            Carrier::WebSocket(_) | Carrier::Closed => false,
        }
    }

    /// Whether the client's probe has come.
    pub(super) fn probed(&self) -> bool {
        matches!(self.lock().carrier, Carrier::Polling { upgrade: Upgrade::Probed, .. })
    }

    /// The client opens a WebSocket. False if it has one, or is about to.
    pub(super) fn begin_upgrade(&self) -> bool {
        match &mut self.lock().carrier {
            Carrier::Polling { upgrade: upgrade @ Upgrade::None, .. } => {
                *upgrade = Upgrade::Opened;
                true
            }
            _ => false,
        }
    }

    /// The client has got further, or has given up: a poll that waits has a look.
    pub(super) fn set_upgrade(&self, now: Upgrade) {
        if let Carrier::Polling { upgrade, .. } = &mut self.lock().carrier {
            *upgrade = now;
        }
        self.taker.wake();
    }

    /// Moves to a WebSocket: what waits goes there. False if the session polls no more.
    pub(super) fn upgrade(&self, stream: Arc<S>) -> bool {
        let mut state = self.lock();
        if !matches!(state.carrier, Carrier::Polling { .. }) {
            return false;
        }
        state.carrier = Carrier::WebSocket(stream);
        state.progress = Instant::now();
        drop(state);
        // The poll that waits, if one does; then the task of the WebSocket registers itself.
        self.taker.wake();
        true
    }
}
