//! The fan-out lane: ready-made frames put straight onto a client's connection, between the packets that the
//! engine writes to it.
//!
//! An event is encoded once for all who get it, and what waits for the same sockets goes out in one write. The
//! engine's own way (a queue for each socket, a task to wake, a frame to build) costs more than the write itself.
//!
//! Two write to one connection, then, and this is where they meet. What must always hold:
//!
//! - Never a byte inside another frame, nor between a packet and its attachments: the engine's bytes are
//!   followed ([`EnginePackets`]), and a segment of the lane that was begun is finished first.
//! - Nothing reaches a socket before its CONNECT packet, and nothing overtakes what the engine still has in its
//!   queue: until that is known to be written, a [`Door`] holds back what comes. It is known by a *fence*, a
//!   packet that is put into the engine's queue behind the rest, seen here as it comes out, and taken out.
//! - Nothing after the close frame. What was accepted before goes out before it.
//! - Order: whoever calls [`Lane::send`] twice is served in that order, by the lane or by what it holds back.
//!   The engine's packets wait for what was pending when they came, and no longer: pings get through.
//! - What waits for a client is bounded in bytes. A volatile segment waits alone: a newer one replaces it.
//! - The lock is held for a write that cannot block, never while something is waited for.
//! - No work for a connection that is gone: it takes the write half away with it.

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use antiphon_adapter::QueueError;
use antiphon_metrics::IntGauge;
use bytes::{Buf, Bytes};
use rustix::{io::Errno, net::SendFlags};
use smallvec::SmallVec;
use tokio::net::tcp::OwnedWriteHalf;

use super::frames::EnginePackets;

/// Segments that go into one system call when a client catches up.
const SLICES_MAX: usize = 16;

/// Where bytes go, without waiting.
pub(crate) trait Sink {
    /// Takes some of `slices`, or fails with `WouldBlock`.
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl Sink for OwnedWriteHalf {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let [one] = slices else { return self.try_write_vectored(slices) };
        // tokio would look first whether it knows of room, in memory that nothing else here touches. Only when there
        // is none it has to be asked, so that it learns of it, and says when there is again.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(self.as_ref(), one, flags) {
            Err(Errno::AGAIN) => Self::try_write(self, one),
            result => Ok(result?),
        }
    }
}

/// A namespace, by its number on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nsp(pub(crate) u32);

/// Frames that go out together.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) frames: Bytes,
    /// How many events they are.
    pub(crate) events: u64,
    pub(crate) volatile: bool,
}

/// The engine's queue of one socket, as far as the lane needs it. It is asked under the lane's lock.
pub(crate) trait EngineQueue {
    /// Puts the events themselves into it.
    fn enqueue(&mut self);

    /// Puts a fence with this number behind what is in it; returns how that will look when it comes out.
    fn fence(&mut self, number: i64) -> Result<Bytes, QueueError>;
}

/// What became of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is written as far as it went; the rest waits, and who writes must be woken if nothing waited before.
    Accepted { written: usize, wake: bool },
    /// It waits, and is counted when it is written, because a newer one may replace it; this one replaced so many
    /// events.
    Volatile { wake: bool, replaced: u64 },
    /// It is volatile, and too much waits; so did this many events before it.
    Skipped { replaced: u64 },
    /// It went into the engine's queue, which counts for itself.
    Enqueued,
    /// More would wait than may: here, or in the engine's queue.
    Full,
    /// The connection, or the socket, has ended.
    Gone,
}

/// A connection's outgoing side.
#[derive(Debug)]
pub(crate) struct Lane<S = OwnedWriteHalf>(Mutex<Outgoing<S>>);

impl<S> Lane<S> {
    /// What waits in it is counted in `waiting_bytes` too.
    pub(crate) fn new(waiting_bytes: IntGauge) -> Self {
        Self(Mutex::new(Outgoing::new(waiting_bytes)))
    }
}

/// What was written, of whose.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) bytes: usize,
    /// Volatile events that had waited; nobody has counted them yet.
    pub(crate) volatile_events: u64,
}

impl<S: Sink> Lane<S> {
    /// From here on there is a WebSocket: the response to its handshake is about to be written. It is `ready` unless
    /// the client comes from polling, and may still be polling.
    pub(crate) fn open(&self, sink: S, ready: bool) {
        let mut out = self.out();
        out.sink = Some(sink);
        out.ready = ready;
    }

    /// The client, and the engine with it, has gone over from polling.
    pub(crate) fn ready(&self) {
        self.out().ready = true;
    }

    /// The connection is gone. Returns how many volatile events waited.
    pub(crate) fn end(&self) -> u64 {
        let mut out = self.out();
        let gone = Outgoing { ready: true, ..Outgoing::new(out.waiting.all.clone()) };
        let mut ended = mem::replace(&mut *out, gone);
        drop(out);
        ended.clear();
        ended.volatile_cleared
    }

    /// A socket is about to come into the namespace: what is sent to it waits for its CONNECT packet.
    pub(crate) fn expect(&self, namespace: Nsp) {
        self.out().door_or_new(namespace).held.push(Held::default());
    }

    /// Its CONNECT packet is in the engine's queue. `put` puts a fence into it ([`EngineQueue::fence`]).
    pub(crate) fn connected(
        &self,
        namespace: Nsp,
        put: impl FnOnce(i64) -> Result<Bytes, QueueError>,
    ) -> Result<(), QueueError> {
        let mut out = self.out();
        let Some(at) = out.position(namespace) else { return Ok(()) };
        match &out.doors[at].held[..] {
            // Nothing waits: the fence can come with the first event.
            [Held { fence: None, segments }] if segments.is_empty() => {
                out.doors.swap_remove(at);
                Ok(())
            }
            _ => out.fence(namespace, put),
        }
    }

    /// The socket has left the namespace.
    pub(crate) fn left(&self, namespace: Nsp) {
        let mut out = self.out();
        let Some(at) = out.position(namespace) else { return };
        // What waits for a fence goes out when that comes, which it will: it was accepted before.
        let (held, unfenced): (Vec<_>, Vec<_>) =
            mem::take(&mut out.doors[at].held).into_iter().partition(|held| held.fence.is_some());
        let segments = unfenced.iter().flat_map(|held| &held.segments);
        out.waiting.sub(segments.map(|segment| segment.frames.len()).sum::<usize>());
        if held.is_empty() {
            out.doors.swap_remove(at);
        } else {
            out.doors[at].held = held;
        }
    }

    /// Something has been put into the engine's queue for the socket in `namespace` that nothing may overtake.
    pub(crate) fn follow(
        &self,
        namespace: Nsp,
        put: impl FnOnce(i64) -> Result<Bytes, QueueError>,
    ) -> Result<(), QueueError> {
        let mut out = self.out();
        // Where the lane knows nothing yet, there will be a fence before the first segment; and after the CONNECT
        // packet, while that is not in the queue.
        let Some(at) = out.position(namespace) else { return Ok(()) };
        match out.doors[at].held.last() {
            Some(Held { fence: None, .. }) => Ok(()),
            _ => out.fence(namespace, put),
        }
    }

    /// Sends to the socket in `namespace`; no more than `bytes_max` may wait, but for a first segment.
    pub(crate) fn send(
        &self,
        namespace: Nsp,
        segment: Segment,
        bytes_max: usize,
        engine: &mut impl EngineQueue,
    ) -> Sent {
        self.out().send(namespace, segment, bytes_max, engine)
    }

    /// Writes what the engine has to write, or a part of it, after what goes before it.
    pub(crate) fn write(&self, bytes: &[u8]) -> (io::Result<usize>, Progress) {
        let mut out = self.out();
        let result = out.write(bytes);
        (result, mem::take(&mut out.progress))
    }

    /// Writes what is pending, unless the engine is in the middle of a packet; of what came after one that waits for
    /// its turn, nothing. `WouldBlock` if the client does not take it.
    pub(crate) fn flush(&self) -> (io::Result<()>, Progress) {
        let mut out = self.out();
        let limit = out.before_engine.unwrap_or(usize::MAX);
        let result = if out.packets.between() { out.flush(limit) } else { Ok(()) };
        (result, mem::take(&mut out.progress))
    }

    /// Whether something is pending that could be written now.
    pub(crate) fn can_flush(&self) -> bool {
        let out = self.out();
        !out.pending.is_empty() && out.packets.between()
    }

    fn out(&self) -> MutexGuard<'_, Outgoing<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Outgoing<S> {
    // None before there is a WebSocket, and after it.
    sink: Option<S>,
    ready: bool,
    packets: EnginePackets,
    pending: VecDeque<Segment>,
    // The first of them has been written in part.
    begun: bool,
    // Where the volatile one is, counted from the first segment ever.
    volatile: Option<u64>,
    taken: u64,
    // Of everything that waits, pending or held.
    waiting: Waiting,
    // What was pending when the engine came with a packet that waits to be written, and still is.
    before_engine: Option<usize>,
    // Namespaces that the lane knows; few clients have more than one.
    doors: SmallVec<[Door; 1]>,
    fences: u32,
    progress: Progress,
    // Volatile events that came too late for the close frame: nobody has counted them.
    volatile_cleared: u64,
}

/// Bytes that wait.
#[derive(Debug)]
struct Waiting {
    bytes: usize,
    // Those of every lane.
    all: IntGauge,
}

impl Waiting {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.all.add(bytes as i64);
    }

    fn sub(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.all.sub(bytes as i64);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.sub(self.bytes as i64);
    }
}

impl<S> Outgoing<S> {
    fn new(waiting_bytes: IntGauge) -> Self {
        Self {
            sink: None,
            ready: false,
            packets: EnginePackets::default(),
            pending: VecDeque::new(),
            begun: false,
            volatile: None,
            taken: 0,
            waiting: Waiting { bytes: 0, all: waiting_bytes },
            before_engine: None,
            doors: SmallVec::new(),
            fences: 0,
            progress: Progress::default(),
            volatile_cleared: 0,
        }
    }
}

/// The way to the socket in a namespace. It is open while nothing is held.
#[derive(Debug)]
struct Door {
    namespace: Nsp,
    held: Vec<Held>,
}

/// What waits for a fence to come out of the engine's queue.
#[derive(Debug, Default)]
struct Held {
    // As it comes out; none while the CONNECT packet is not in the queue.
    fence: Option<Bytes>,
    segments: Vec<Segment>,
}

impl<S: Sink> Outgoing<S> {
    fn position(&self, namespace: Nsp) -> Option<usize> {
        self.doors.iter().position(|door| door.namespace == namespace)
    }

    fn door_or_new(&mut self, namespace: Nsp) -> &mut Door {
        let at = self.position(namespace).unwrap_or_else(|| {
            self.doors.push(Door { namespace, held: Vec::new() });
            self.doors.len() - 1
        });
        &mut self.doors[at]
    }

    /// What is sent from here on waits until all that is in the engine's queue now has come out.
    fn fence(
        &mut self,
        namespace: Nsp,
        put: impl FnOnce(i64) -> Result<Bytes, QueueError>,
    ) -> Result<(), QueueError> {
        self.fences = self.fences.wrapping_add(1);
        // Acknowledgements that clients ask for have numbers from 0.
        let fence = Some(put(-1 - i64::from(self.fences))?);
        let held = &mut self.door_or_new(namespace).held;
        match held.last_mut() {
            // The CONNECT packet that it waited for is among them.
            Some(last) if last.fence.is_none() => last.fence = fence,
            _ => held.push(Held { fence, segments: Vec::new() }),
        }
        Ok(())
    }

    fn send(
        &mut self,
        namespace: Nsp,
        mut segment: Segment,
        bytes_max: usize,
        engine: &mut impl EngineQueue,
    ) -> Sent {
        if !self.ready {
            engine.enqueue();
            return Sent::Enqueued;
        }
        if self.sink.is_none() || self.packets.closed() {
            return Sent::Gone;
        }
        let at = match self.position(namespace) {
            Some(at) => at,
            None => match self.fence(namespace, |number| engine.fence(number)) {
                Ok(()) => self.doors.len() - 1,
                Err(QueueError::Full) => return Sent::Full,
                Err(QueueError::Gone) => return Sent::Gone,
            },
        };
        let held = !self.doors[at].held.is_empty();
        let engine_waits = self.before_engine.is_some();
        if !held && self.pending.is_empty() && self.packets.between() && !engine_waits {
            return self.write_through(segment);
        }
        let replaced = if segment.volatile && !held { self.drop_volatile() } else { 0 };
        let bytes = segment.frames.len();
        if self.waiting.bytes > 0 && self.waiting.bytes + bytes > bytes_max {
            return if segment.volatile { Sent::Skipped { replaced } } else { Sent::Full };
        }
        match self.doors[at].held.last_mut() {
            Some(held) => {
                segment.volatile = false;
                held.segments.push(segment);
                self.waiting.add(bytes);
                Sent::Accepted { written: 0, wake: false }
            }
            None => {
                let wake = self.pending.is_empty();
                self.wait(segment, wake, replaced)
            }
        }
    }

    /// Puts a segment behind what is pending, none of it written yet.
    fn wait(&mut self, segment: Segment, wake: bool, replaced: u64) -> Sent {
        let volatile = segment.volatile;
        self.push(segment);
        match volatile {
            true => Sent::Volatile { wake, replaced },
            false => Sent::Accepted { written: 0, wake },
        }
    }

    /// The common case: nobody waits for anything.
    fn write_through(&mut self, mut segment: Segment) -> Sent {
        let Some(sink) = &self.sink else { return Sent::Gone };
        match sink.try_write(&[IoSlice::new(&segment.frames)]) {
            Ok(written) if written == segment.frames.len() => {
                Sent::Accepted { written, wake: false }
            }
            Ok(written) => {
                segment.frames.advance(written);
                self.begun = true;
                // What has begun is delivered, volatile or not.
                segment.volatile = false;
                self.push(segment);
                Sent::Accepted { written, wake: true }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(segment, true, 0),
            Err(_) => Sent::Gone,
        }
    }

    fn push(&mut self, segment: Segment) {
        if segment.volatile {
            self.volatile = Some(self.taken + self.pending.len() as u64);
        }
        self.waiting.add(segment.frames.len());
        self.pending.push_back(segment);
    }

    /// Takes the volatile segment that waits out of the queue. Returns how many events it is.
    fn drop_volatile(&mut self) -> u64 {
        let at = self.volatile.take().and_then(|at| usize::try_from(at - self.taken).ok());
        let Some(dropped) = at.and_then(|at| self.pending.remove(at)) else { return 0 };
        self.waiting.sub(dropped.frames.len());
        dropped.events
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.packets.between() && !bytes.is_empty() {
            if let Some(length) = self.take_fence(bytes) {
                return Ok(length);
            }
            let before = self.before_engine.unwrap_or_else(|| self.pending_bytes());
            self.before_engine = Some(before);
            self.flush(before)?;
        }
        let mut until = bytes.len();
        if !self.pending.is_empty() {
            // What is behind this packet came later, and may not overtake what is pending.
            until = self.packets.packet_end(bytes).unwrap_or(until);
        }
        if self.doors.iter().any(|door| !door.held.is_empty()) {
            let fence = self.packets.find(&bytes[..until], |rest| self.is_fence(rest).is_some());
            until = fence.unwrap_or(until);
        }
        let sink = self.sink.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let written = sink.try_write(&[IoSlice::new(&bytes[..until])])?;
        self.before_engine = None;
        self.progress.bytes += written;
        self.packets.advance(&bytes[..written]);
        if self.packets.closed() {
            self.clear();
        }
        Ok(written)
    }

    /// Drops what waits: it can not be written any more.
    fn clear(&mut self) {
        self.volatile_cleared += self.drop_volatile();
        self.pending.clear();
        self.doors.clear();
        self.waiting.sub(self.waiting.bytes);
    }

    /// Which door a fence belongs to that comes next out of the engine, how much of what is held there waits for no
    /// later one, and how long it is.
    fn is_fence(&self, bytes: &[u8]) -> Option<(usize, usize, usize)> {
        self.doors.iter().enumerate().find_map(|(door, Door { held, .. })| {
            let (last, length) = held.iter().enumerate().find_map(|(at, held)| {
                let fence = held.fence.as_ref()?;
                bytes.starts_with(fence).then_some((at, fence.len()))
            })?;
            Some((door, last + 1, length))
        })
    }

    /// Takes a fence out of what the engine writes, and lets go what waited for it.
    fn take_fence(&mut self, bytes: &[u8]) -> Option<usize> {
        let (door, count, length) = self.is_fence(bytes)?;
        // A fence before it that has not come out never will: the engine drops, without a word, what it gets for a
        // socket that leaves just then.
        let held: Vec<_> = self.doors[door].held.drain(..count).collect();
        for segment in held.into_iter().flat_map(|held| held.segments) {
            self.waiting.sub(segment.frames.len());
            self.push(segment);
        }
        Some(length)
    }

    fn pending_bytes(&self) -> usize {
        self.pending.iter().map(|segment| segment.frames.len()).sum()
    }

    /// Writes up to `limit` bytes of what is pending, and then to the end of the segment.
    fn flush(&mut self, limit: usize) -> io::Result<()> {
        let mut left = limit;
        while !self.pending.is_empty() && (left > 0 || self.begun) {
            let sink = self.sink.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            let mut bytes = 0;
            for segment in self.pending.iter().take(SLICES_MAX) {
                if bytes >= left.max(1) {
                    break;
                }
                slices[count] = IoSlice::new(&segment.frames);
                bytes += segment.frames.len();
                count += 1;
            }
            let written = sink.try_write(&slices[..count])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.progress.bytes += written;
            self.take(written);
            left = left.saturating_sub(written);
            self.before_engine = self.before_engine.map(|before| before.saturating_sub(written));
        }
        Ok(())
    }

    /// So much of what is pending is written.
    fn take(&mut self, mut written: usize) {
        self.waiting.sub(written);
        while written > 0
            && let Some(front) = self.pending.front_mut()
        {
            let bytes = front.frames.len();
            if front.volatile {
                // Once begun it cannot be replaced any more.
                front.volatile = false;
                self.progress.volatile_events += front.events;
                self.volatile = None;
            }
            self.begun = written < bytes;
            if self.begun {
                front.frames.advance(written);
                return;
            }
            written -= bytes;
            self.pending.pop_front();
            self.taken += 1;
        }
    }
}
