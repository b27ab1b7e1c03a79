//! Frame batches: Engine.IO packets that go out together, encoded once for all who get them.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Protocol,
    frame::{Opcode, write_frame},
    memory::{Budget, Held},
    packet::OutPacket,
};

/// The type byte of a message in a binary frame of Engine.IO 3.
const MESSAGE_TYPE_EIO3: &[u8] = &[4];

/// Packets in order, as WebSocket frames and as polling packets. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct FrameBatch(Arc<Content>);

#[derive(Debug)]
struct Content {
    frames: Bytes,
    // Only where it differs: binary frames of revision 3 begin with a type byte.
    frames_eio3: Option<(Bytes, Box<[usize]>)>,
    packets: Box<[Span]>,
    events: u32,
    volatile: bool,
    // The transport's own packets are always there, and count for nobody.
    _held: Option<Held>,
}

/// Where the payload of a frame stands in `frames`.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    binary: bool,
}

impl FrameBatch {
    /// How many application events it carries; the transport's own packets carry none.
    pub fn events(&self) -> u64 {
        u64::from(self.0.events)
    }

    /// Whether a recipient that is behind may miss it.
    pub fn volatile(&self) -> bool {
        self.0.volatile
    }

    /// The frames, back to back, for clients of this revision.
    pub(super) fn frames(&self, protocol: Protocol) -> &Bytes {
        match (&self.0.frames_eio3, protocol) {
            (Some((frames, _)), Protocol::Eio3) => frames,
            _ => &self.0.frames,
        }
    }

    /// Where the frame of packet `index` begins in [`FrameBatch::frames`].
    pub(super) fn frame_start(&self, protocol: Protocol, index: usize) -> usize {
        let Some(before) = index.checked_sub(1) else { return 0 };
        match (&self.0.frames_eio3, protocol) {
            (Some((_, ends)), Protocol::Eio3) => ends.get(before).copied().unwrap_or(0),
            _ => self.0.packets.get(before).map_or(0, |span| span.end),
        }
    }

    /// How many packets it has; an attachment counts as one.
    pub(super) fn packets(&self) -> usize {
        self.0.packets.len()
    }

    /// One of its packets, for a poll. The bytes are shared.
    pub(super) fn packet(&self, index: usize) -> Option<OutPacket> {
        let Span { start, end, binary } = *self.0.packets.get(index)?;
        Some(OutPacket { bytes: self.0.frames.slice(start..end), binary })
    }
}

/// Collects the packets of a batch.
#[derive(Debug, Default)]
pub struct FrameBatchBuilder {
    frames: Vec<u8>,
    spans: Vec<Span>,
    has_binary: bool,
}

impl FrameBatchBuilder {
    /// A builder with room for `bytes` of payload in `packets` packets.
    pub fn with_capacity(bytes: usize, packets: usize) -> Self {
        // A frame's head has ten bytes at most.
        let frames = Vec::with_capacity(bytes + packets * 10);
        Self { frames, spans: Vec::with_capacity(packets), has_binary: false }
    }

    /// Appends a message whose text is the `parts`, one after another.
    pub fn message(&mut self, parts: &[&str]) {
        // Messages of Socket.IO have up to a dozen parts.
        let mut all: smallvec::SmallVec<[&[u8]; 16]> = smallvec::smallvec![b"4".as_slice()];
        all.extend(parts.iter().map(|part| part.as_bytes()));
        self.append(Opcode::Text, &all);
    }

    /// Appends a binary message.
    pub fn binary(&mut self, bytes: &[u8]) {
        self.has_binary = true;
        self.append(Opcode::Binary, &[bytes]);
    }

    /// Appends one of the transport's own packets, with its type digit.
    pub(super) fn packet(&mut self, text: &str) {
        self.append(Opcode::Text, &[text.as_bytes()]);
    }

    fn append(&mut self, opcode: Opcode, parts: &[&[u8]]) {
        write_frame(&mut self.frames, opcode, parts);
        let end = self.frames.len();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.spans.push(Span { start: end - length, end, binary: opcode == Opcode::Binary });
    }

    /// The batch. Its bytes count against `budget` until the last recipient has it.
    pub fn build(self, events: usize, volatile: bool, budget: &Arc<Budget>) -> FrameBatch {
        self.finish(events, volatile, Some(budget))
    }

    /// A batch of the transport's own packets, kept for as long as the node runs.
    pub(super) fn build_forever(self) -> FrameBatch {
        self.finish(0, false, None)
    }

    fn finish(self, events: usize, volatile: bool, budget: Option<&Arc<Budget>>) -> FrameBatch {
        let frames = Bytes::from(self.frames);
        let frames_eio3 = self.has_binary.then(|| eio3_frames(&frames, &self.spans));
        let other = frames_eio3.as_ref().map_or(0, |(frames, _)| frames.len());
        let bytes = frames.len() + other + size_of::<Content>();
        let held = budget.map(|budget| Budget::hold(budget, bytes));
        FrameBatch(Arc::new(Content {
            frames,
            frames_eio3,
            packets: self.spans.into_boxed_slice(),
            events: u32::try_from(events).unwrap_or(u32::MAX),
            volatile,
            _held: held,
        }))
    }
}

fn eio3_frames(frames: &Bytes, spans: &[Span]) -> (Bytes, Box<[usize]>) {
    let mut written = Vec::with_capacity(frames.len() + 4 * spans.len());
    let mut ends = Vec::with_capacity(spans.len());
    for Span { start, end, binary } in spans {
        let payload = &frames[*start..*end];
        match binary {
            true => write_frame(&mut written, Opcode::Binary, &[MESSAGE_TYPE_EIO3, payload]),
            false => write_frame(&mut written, Opcode::Text, &[payload]),
        }
        ends.push(written.len());
    }
    (written.into(), ends.into_boxed_slice())
}
