//! The outgoing side of a session: the one place that writes to a client, whatever carries it.
//!
//! A batch goes out at once if nothing waits before it: to a WebSocket by whoever delivers, to a
//! waiting poll by waking it. Else it waits here, in order. What must always hold:
//!
//! - Every packet leaves in the order in which it was sent, across an upgrade too.
//! - A frame that was begun is finished before anything else is written.
//! - What waits is bounded in bytes. Beyond the bound the session is to be closed; nothing is left out,
//!   except volatile batches, of which the newest one waits.
//! - After [`Outbound::end`] nothing more is accepted; what waits still goes out, unless it is to be cut.
//! - The lock is held for one write that does not wait, never across an await.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::net::TcpStream;

use super::{Protocol, batch::FrameBatch, packet::OutPacket};

/// Packets in one answer to a poll: clients in Python give up at more (`max_decode_packets`).
const PACKETS_PER_POLL_MAX: usize = 16;

/// A client that polls is behind when more than this waits: volatile batches pass it by.
const POLL_BEHIND_BYTES: usize = 16 * 1024;

/// What one waiting batch costs besides its shared bytes.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// Writes to one WebSocket before other tasks have their turn.
const WRITES_PER_TURN: usize = 16;

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
        /// Volatile events that waited and were replaced by this batch.
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
pub(super) struct Outbound {
    protocol: Protocol,
    state: Mutex<State>,
    /// Wakes what takes packets out: the task of a WebSocket, or the request that polls.
    taker: AtomicWaker,
}

#[derive(Debug)]
struct State {
    carrier: Carrier,
    queue: VecDeque<Entry>,
    waiting_bytes: usize,
    /// Numbers entries since the beginning, so that a volatile one is found again.
    popped: u64,
    volatile: Option<u64>,
    /// A pong that answers a WebSocket ping. The newest is enough (RFC 6455, section 5.5.3).
    pong: Option<Bytes>,
    progress: Instant,
    ending: Option<Ending>,
}

#[derive(Debug)]
enum Carrier {
    Polling { poll_waits: bool, upgrade: Upgrade },
    WebSocket(Arc<TcpStream>),
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

/// A batch that waits.
#[derive(Debug)]
struct Entry {
    // `None` once a newer volatile batch has replaced it.
    batch: Option<FrameBatch>,
    /// The first packet that has not been taken by a poll.
    next_packet: u32,
    /// Bytes of the frames that the kernel has taken.
    written: u32,
}

impl State {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.pong.is_none()
    }

    fn push(&mut self, batch: &FrameBatch, written: usize, protocol: Protocol) {
        if self.queue.is_empty() {
            self.progress = Instant::now();
        }
        if batch.volatile() && written == 0 {
            self.volatile = Some(self.popped + self.queue.len() as u64);
        }
        self.waiting_bytes += batch.frames(protocol).len() - written + ENTRY_BYTES;
        // A batch is far below 4 GiB: messages are bounded, and so is what is batched.
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        self.queue.push_back(Entry { batch: Some(batch.clone()), next_packet: 0, written });
    }

    /// Takes the volatile batch that waits out of the queue. Returns how many events it had.
    fn drop_volatile(&mut self, protocol: Protocol) -> u64 {
        let place = self.volatile.take().and_then(|number| number.checked_sub(self.popped));
        let entry = place.and_then(|place| self.queue.get_mut(place as usize));
        let batch = entry.and_then(|entry| entry.batch.take());
        batch.map_or(0, |batch| {
            self.waiting_bytes -= batch.frames(protocol).len();
            batch.events()
        })
    }

    fn pop(&mut self) {
        self.queue.pop_front();
        self.popped += 1;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(ENTRY_BYTES);
        if self.queue.is_empty() {
            // Most queues are empty most of the time.
            self.queue = VecDeque::new();
        }
    }

    /// Whether a volatile batch should wait for its turn as the newest, or not at all.
    fn is_behind(&self) -> bool {
        match self.carrier {
            Carrier::Polling { .. } => self.waiting_bytes > POLL_BEHIND_BYTES,
            _ => !self.queue.is_empty(),
        }
    }

    /// Returns how many volatile events were waiting that have not been counted as delivered.
    fn clear(&mut self, protocol: Protocol) -> u64 {
        let events = self.drop_volatile(protocol);
        self.popped += self.queue.len() as u64;
        self.queue = VecDeque::new();
        self.waiting_bytes = 0;
        self.pong = None;
        events
    }

    /// Up to as many packets as one answer may have.
    fn take_packets(&mut self, protocol: Protocol) -> (Vec<OutPacket>, u64) {
        let mut packets = Vec::new();
        let mut volatile_events = 0;
        while let Some(entry) = self.queue.front_mut() {
            let Some(batch) = &entry.batch else {
                self.pop();
                continue;
            };
            if packets.len() == PACKETS_PER_POLL_MAX {
                break;
            }
            if self.volatile == Some(self.popped) {
                self.volatile = None;
                volatile_events += batch.events();
            }
            while packets.len() < PACKETS_PER_POLL_MAX
                && let Some(packet) = batch.packet(entry.next_packet as usize)
            {
                let next = entry.next_packet as usize + 1;
                let bytes =
                    batch.frame_start(protocol, next) - batch.frame_start(protocol, next - 1);
                self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
                entry.next_packet += 1;
                packets.push(packet);
            }
            if (entry.next_packet as usize) < batch.packets() {
                break;
            }
            self.pop();
        }
        (packets, volatile_events)
    }

    /// Writes what waits until the kernel takes no more.
    fn write(&mut self, stream: &TcpStream, protocol: Protocol) -> io::Result<(usize, u64)> {
        let mut total = 0;
        let mut volatile_events = 0;
        for _ in 0..WRITES_PER_TURN {
            let at_boundary = self.queue.front().is_none_or(|entry| entry.written == 0);
            if at_boundary && let Some(pong) = &self.pong {
                match stream.try_write(pong) {
                    Ok(written) if written == pong.len() => self.pong = None,
                    // A pong that is cut in two would have to be finished first: make it the front.
                    Ok(written) => self.pong = Some(pong.slice(written..)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
                if self.pong.is_some() {
                    break;
                }
                continue;
            }
            let Some(entry) = self.queue.front_mut() else { break };
            let Some(batch) = &entry.batch else {
                self.pop();
                continue;
            };
            let frames = batch.frames(protocol);
            match stream.try_write(&frames[entry.written as usize..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    entry.written += u32::try_from(written).unwrap_or(u32::MAX);
                    let done = entry.written as usize >= frames.len();
                    total += written;
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(written);
                    if self.volatile == Some(self.popped) {
                        self.volatile = None;
                        volatile_events += batch.events();
                    }
                    if done {
                        self.pop();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if total > 0 {
            self.progress = Instant::now();
        }
        Ok((total, volatile_events))
    }
}

impl Outbound {
    pub(super) fn polling(protocol: Protocol) -> Self {
        Self::new(protocol, Carrier::Polling { poll_waits: false, upgrade: Upgrade::None })
    }

    pub(super) fn websocket(protocol: Protocol, stream: Arc<TcpStream>) -> Self {
        Self::new(protocol, Carrier::WebSocket(stream))
    }

    fn new(protocol: Protocol, carrier: Carrier) -> Self {
        let state = State {
            carrier,
            queue: VecDeque::new(),
            waiting_bytes: 0,
            popped: 0,
            volatile: None,
            pong: None,
            progress: Instant::now(),
            ending: None,
        };
        Self { protocol, state: Mutex::new(state), taker: AtomicWaker::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a batch after everything that was sent before. With more than `max_bytes` waiting it is
    /// not accepted, but one batch may always wait.
    pub(super) fn send(&self, batch: &FrameBatch, max_bytes: usize) -> Sent {
        let mut state = self.lock();
        if state.ending.is_some() {
            return Sent::Gone;
        }
        let frames = batch.frames(self.protocol);
        let mut written = 0;
        match &state.carrier {
            Carrier::Closed => return Sent::Gone,
            Carrier::WebSocket(stream) if state.is_empty() => match stream.try_write(frames) {
                Ok(all) if all == frames.len() => {
                    return Sent::Accepted {
                        written: all,
                        replaced: 0,
                        waits: false,
                        replaceable: false,
                    };
                }
                Ok(part) => written = part,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The task that reads from the connection finds out, too, and ends the session.
                Err(_) => return Sent::Gone,
            },
            Carrier::WebSocket(_) | Carrier::Polling { .. } => {}
        }
        let mut replaced = 0;
        if batch.volatile() && written == 0 && state.is_behind() {
            replaced = state.drop_volatile(self.protocol);
        }
        let is_first = state.queue.is_empty();
        if !is_first && state.waiting_bytes + frames.len() - written > max_bytes {
            return Sent::Full;
        }
        state.push(batch, written, self.protocol);
        let waits = is_first && matches!(state.carrier, Carrier::WebSocket(_));
        drop(state);
        if is_first {
            self.taker.wake();
        }
        Sent::Accepted { written, replaced, waits, replaceable: batch.volatile() && written == 0 }
    }

    /// Answers a WebSocket ping.
    pub(super) fn send_pong(&self, frame: Bytes) {
        let mut state = self.lock();
        if state.ending.is_none() {
            // A pong whose beginning is out must be finished; then the ping goes unanswered.
            let begun = state.pong.as_ref().is_some_and(|pong| !is_frame_start(pong));
            if !begun {
                if state.is_empty() {
                    state.progress = Instant::now();
                }
                state.pong = Some(frame);
            }
        }
    }

    /// Ends the session: nothing more is accepted. Returns false if it was ending already, unless this
    /// cuts short what was to be flushed.
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
        self.lock().waiting_bytes
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
        let mut state = self.lock();
        let Carrier::WebSocket(stream) = &state.carrier else {
            return Ok(Flushed { end: state.ending.is_some(), ..Flushed::default() });
        };
        let stream = Arc::clone(stream);
        if state.ending == Some(Ending::Reset) {
            return Ok(Flushed { end: true, ..Flushed::default() });
        }
        let (bytes, volatile_events) = match state.is_empty() {
            true => (0, 0),
            false => state.write(&stream, self.protocol)?,
        };
        let end = state.ending.is_some() && state.is_empty();
        let waiting = if state.is_empty() { 0 } else { state.waiting_bytes.max(1) };
        Ok(Flushed { bytes, volatile_events, waiting, end })
    }

    /// Gives up the connection. Returns how many volatile events waited: those that count as delivered when
    /// they go out. All others have been counted.
    pub(super) fn close(&self) -> u64 {
        let mut state = self.lock();
        state.carrier = Carrier::Closed;
        state.ending.get_or_insert(Ending::Reset);
        let events = state.clear(self.protocol);
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
        let (packets, volatile_events) = match state.carrier {
            Carrier::Polling { .. } => state.take_packets(self.protocol),
            // The task of the WebSocket is to be woken from now on, and nobody else.
            Carrier::WebSocket(_) => return Poll::Ready(Polled::Upgraded),
            Carrier::Closed => (Vec::new(), 0),
        };
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

    /// Ends a poll, answered or not.
    pub(super) fn end_poll(&self) {
        if let Carrier::Polling { poll_waits, .. } = &mut self.lock().carrier {
            *poll_waits = false;
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
    pub(super) fn upgrade(&self, stream: Arc<TcpStream>) -> bool {
        let mut state = self.lock();
        if !matches!(state.carrier, Carrier::Polling { .. }) {
            return false;
        }
        state.carrier = Carrier::WebSocket(stream);
        state.progress = Instant::now();
        if let Some(entry) = state.queue.front_mut()
            && let Some(batch) = &entry.batch
        {
            let start = batch.frame_start(self.protocol, entry.next_packet as usize);
            entry.written = u32::try_from(start).unwrap_or(u32::MAX);
        }
        drop(state);
        // The poll that waits, if one does; then the task of the WebSocket registers itself.
        self.taker.wake();
        true
    }
}

/// Whether these are the bytes of a whole pong frame, and not of the rest of one.
fn is_frame_start(frame: &[u8]) -> bool {
    matches!(frame, [0x8a, length, rest @ ..] if rest.len() == usize::from(*length))
}
