//! What waits for one client: frames, in order, and how far the first of them are out.
//!
//! Polls and WebSockets take from the same bytes. A poll takes whole frames, of which it wants the
//! payloads; a kernel takes bytes. So a client that upgrades goes on where its last poll ended.

use std::{collections::VecDeque, io, mem, sync::Arc};

use bytes::Bytes;

use super::{
    Protocol,
    batch::{FrameBatch, Frames, first_frame},
    memory::Budget,
    packet::OutPacket,
    page::{KEPT_BATCH_BYTES_MAX, Run},
};

/// What an entry costs besides the bytes, which it shares with other clients.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();

/// Short entries are written together, up to so many bytes.
const TOGETHER_BYTES_MAX: usize = 16 * 1024;

/// The frames that wait for one client.
#[derive(Debug)]
pub(super) struct Queue {
    protocol: Protocol,
    entries: VecDeque<Entry>,
    /// Bytes of the first entry that are out.
    done: usize,
    /// Where the frame ends of which a part is out. If none is, this is `done`.
    boundary: usize,
    bytes: usize,
    /// The entry whose place a newer volatile batch may take. It is the only one, and nothing of it is out.
    replaceable: Option<usize>,
    budget: Arc<Budget>,
}

#[derive(Debug)]
enum Entry {
    Run(Run),
    Batch(FrameBatch),
}

impl Entry {
    fn read<T>(&self, protocol: Protocol, look: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Run(run) => run.read(look),
            Self::Batch(batch) => look(&batch.frames(protocol).bytes),
        }
    }

    fn len(&self, protocol: Protocol) -> usize {
        match self {
            Self::Run(run) => run.len(),
            Self::Batch(batch) => batch.frames(protocol).bytes.len(),
        }
    }

    /// The packet whose frame begins at `start`, and where that ends.
    fn packet(&self, protocol: Protocol, start: usize) -> Option<(OutPacket, usize)> {
        self.read(protocol, |frames| {
            let (payload, binary) = first_frame(frames.get(start..)?)?;
            let end = start + payload.end;
            // Binary frames of revision 3 begin with a type byte, of which the payload of a poll has its own.
            let type_bytes = usize::from(binary && protocol == Protocol::Eio3);
            let payload = start + payload.start + type_bytes..end;
            let bytes = match self {
                Self::Run(_) => Bytes::copy_from_slice(frames.get(payload)?),
                Self::Batch(batch) => batch.frames(protocol).bytes.slice(payload),
            };
            Some((OutPacket { bytes, binary }, end))
        })
    }
}

impl Queue {
    pub(super) fn new(protocol: Protocol, budget: &Arc<Budget>) -> Self {
        Self {
            protocol,
            entries: VecDeque::new(),
            done: 0,
            boundary: 0,
            bytes: 0,
            replaceable: None,
            budget: Arc::clone(budget),
        }
    }

    /// The revision that the client speaks.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that wait, with what this client's entries cost.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many of them are of the batch that may be replaced.
    pub(super) fn replaceable_bytes(&self) -> usize {
        let entry = self.replaceable.and_then(|index| self.entries.get(index));
        entry.map_or(0, |entry| entry.len(self.protocol) + ENTRY_BYTES)
    }

    /// Whether no frame is out in part.
    pub(super) fn at_boundary(&self) -> bool {
        self.done == self.boundary
    }

    /// Whether its counts are those of its entries.
    #[cfg(any(test, fuzzing))]
    pub(super) fn is_consistent(&self) -> bool {
        let bytes = self.entries.iter().map(|entry| entry.len(self.protocol) + ENTRY_BYTES);
        let replaceable = self.replaceable.and_then(|index| self.entries.get(index));
        self.bytes + self.done == bytes.sum::<usize>()
            && self.done <= self.boundary
            && self.replaceable.is_some() == replaceable.is_some()
            && replaceable.is_none_or(|entry| matches!(entry, Entry::Batch(_)))
            && (self.replaceable != Some(0) || self.done == 0)
    }

    /// Appends a batch of which `written` bytes are out already; some can be only if nothing waits.
    pub(super) fn push(&mut self, batch: &FrameBatch, written: usize) {
        let frames = batch.frames(self.protocol);
        self.bytes += frames.bytes.len();
        // What lasts would keep its page for as long.
        match batch.permanent() || frames.bytes.len() > KEPT_BATCH_BYTES_MAX {
            true => self.append(Entry::Batch(batch.clone())),
            false => self.keep(frames),
        }
        if written > 0 {
            self.take(written);
        }
    }

    /// Appends a volatile batch whose place a newer one may take: that of the one before, if one waits.
    /// Returns how many events that had.
    pub(super) fn replace(&mut self, batch: &FrameBatch) -> u64 {
        let replaced = self.drop_replaceable();
        self.replaceable = Some(self.entries.len());
        self.bytes += batch.frames(self.protocol).bytes.len();
        self.append(Entry::Batch(batch.clone()));
        replaced
    }

    /// The first client for which it waits writes it down; then all refer to it there.
    fn keep(&mut self, frames: &Frames) {
        let kept = frames.kept.get_or_init(|| {
            // Between two runs there may be a volatile batch, which may be gone soon.
            let last = self.entries.iter().rev().take(2).find_map(|entry| match entry {
                Entry::Run(run) => Some(run),
                Entry::Batch(_) => None,
            });
            Run::keep(&frames.bytes, last, &self.budget)
        });
        if let Some(Entry::Run(last)) = self.entries.back_mut()
            && last.extend(kept)
        {
            return;
        }
        self.append(Entry::Run(kept.clone()));
    }

    fn append(&mut self, entry: Entry) {
        let before = self.entries.capacity();
        self.entries.push_back(entry);
        let more = self.entries.capacity() - before;
        if more > 0 {
            self.budget.add(more * ENTRY_BYTES);
        }
        self.bytes += ENTRY_BYTES;
    }

    fn drop_replaceable(&mut self) -> u64 {
        // It is near the end, or was once: what moves up has come since then.
        let entry = self.replaceable.take().and_then(|index| self.entries.remove(index));
        let Some(Entry::Batch(batch)) = entry else { return 0 };
        self.bytes -= batch.frames(self.protocol).bytes.len() + ENTRY_BYTES;
        batch.events()
    }

    /// Offers what comes next to `write`, in one piece, which says how much of it is taken. `to_boundary`: no
    /// more than the rest of the frame of which a part is out. Returns the bytes, and the events of a
    /// volatile batch that could have been replaced until now.
    pub(super) fn write(
        &mut self,
        to_boundary: bool,
        write: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> io::Result<(usize, u64)> {
        let Some(first) = self.entries.front() else { return Ok((0, 0)) };
        let length = first.len(self.protocol);
        let end = if to_boundary { self.boundary } else { length };
        let alone = to_boundary || self.entries.len() == 1 || length > TOGETHER_BYTES_MAX;
        let written = match first {
            Entry::Batch(batch) if alone => {
                write(&batch.frames(self.protocol).bytes[self.done..end])
            }
            _ => write(&self.gather(end)),
        }?;
        Ok((written, self.take(written)))
    }

    /// A copy of the first entry, up to `end`, and of as many whole ones after it as are written together.
    fn gather(&self, end: usize) -> Vec<u8> {
        let mut entries = self.entries.iter();
        let mut gathered = Vec::with_capacity(self.bytes.min(TOGETHER_BYTES_MAX));
        if let Some(first) = entries.next() {
            first.read(self.protocol, |bytes| gathered.extend_from_slice(&bytes[self.done..end]));
            if end < first.len(self.protocol) {
                return gathered;
            }
        }
        for entry in entries {
            if gathered.len() + entry.len(self.protocol) > TOGETHER_BYTES_MAX {
                break;
            }
            entry.read(self.protocol, |bytes| gathered.extend_from_slice(bytes));
        }
        gathered
    }

    /// Takes up to `max` packets, and returns the events of a volatile batch among them that could have
    /// been replaced until now.
    pub(super) fn take_packets(&mut self, max: usize) -> (Vec<OutPacket>, u64) {
        let mut packets = Vec::new();
        let mut events = 0;
        while packets.len() < max
            && let Some(first) = self.entries.front()
        {
            let packet = first.packet(self.protocol, self.done);
            debug_assert!(packet.is_some(), "an entry is whole frames");
            let end = packet.as_ref().map_or_else(|| first.len(self.protocol), |(_, end)| *end);
            packets.extend(packet.map(|(packet, _)| packet));
            events += self.take(end - self.done);
        }
        (packets, events)
    }

    /// So many bytes are out. Returns the events of a volatile batch that could have been replaced.
    fn take(&mut self, mut bytes: usize) -> u64 {
        self.bytes -= bytes;
        let mut events = 0;
        while bytes > 0
            && let Some(first) = self.entries.front()
        {
            if self.replaceable == Some(0)
                && let Entry::Batch(batch) = first
            {
                self.replaceable = None;
                events += batch.events();
            }
            let left = first.len(self.protocol) - self.done;
            if bytes < left {
                self.done += bytes;
                self.boundary = boundary_after(first, self.protocol, self.boundary, self.done);
                break;
            }
            bytes -= left;
            self.pop();
        }
        events
    }

    fn pop(&mut self) {
        self.entries.pop_front();
        self.bytes -= ENTRY_BYTES;
        self.replaceable = self.replaceable.and_then(|index| index.checked_sub(1));
        (self.done, self.boundary) = (0, 0);
        if self.entries.is_empty() {
            self.free();
        }
    }

    /// Most queues are empty most of the time: they need no memory then.
    fn free(&mut self) {
        let entries = mem::take(&mut self.entries);
        if entries.capacity() > 0 {
            self.budget.sub(entries.capacity() * ENTRY_BYTES);
        }
    }

    /// Lets go of everything. Returns the events of a volatile batch that could have been replaced.
    pub(super) fn clear(&mut self) -> u64 {
        let events = self.drop_replaceable();
        self.free();
        (self.done, self.boundary, self.bytes) = (0, 0, 0);
        events
    }
}

/// The first boundary between frames at `done` or after it; `from` is one before.
fn boundary_after(entry: &Entry, protocol: Protocol, from: usize, done: usize) -> usize {
    entry.read(protocol, |frames| {
        let mut boundary = from;
        while boundary < done {
            let frame = frames.get(boundary..).and_then(first_frame);
            boundary = frame.map_or(frames.len(), |(payload, _)| boundary + payload.end);
        }
        boundary
    })
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.clear();
    }
}
