//! Frame batches: Engine.IO packets that go out together, encoded once for all who get them.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use super::{
    Protocol,
    frame::{Opcode, write_frame},
    memory::Budget,
    page::Run,
};

/// The type byte of a message in a binary frame of Engine.IO 3.
const MESSAGE_TYPE_EIO3: &[u8] = &[4];

/// Packets in order, as WebSocket frames; polls are answered with what is in them. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct FrameBatch(Arc<Content>);

#[derive(Debug)]
struct Content {
    frames: Frames,
    // Only where it differs: binary frames of revision 3 begin with a type byte.
    frames_eio3: Option<Box<Frames>>,
    events: u32,
    volatile: bool,
    // The transport's own packets are always there, and count for nobody.
    budget: Option<Arc<Budget>>,
}

/// The frames of a batch, back to back.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) bytes: Bytes,
    /// Where they are kept for clients for which they wait, once they wait for one.
    pub(super) kept: OnceLock<Run>,
}

impl Frames {
    fn new(mut bytes: Vec<u8>) -> Self {
        bytes.shrink_to_fit();
        Self { bytes: bytes.into(), kept: OnceLock::new() }
    }
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

    /// Whether it is kept for as long as the node runs.
    pub(super) fn permanent(&self) -> bool {
        self.0.budget.is_none()
    }

    /// The frames for clients of this revision.
    pub(super) fn frames(&self, protocol: Protocol) -> &Frames {
        match (&self.0.frames_eio3, protocol) {
            (Some(frames), Protocol::Eio3) => frames,
            _ => &self.0.frames,
        }
    }
}

impl Content {
    fn held_bytes(&self) -> usize {
        let other = self.frames_eio3.as_ref();
        let other = other.map_or(0, |other| size_of::<Frames>() + other.bytes.len());
        size_of::<Self>() + self.frames.bytes.len() + other
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.sub(self.held_bytes());
        }
    }
}

/// The first of some frames, as they stand in a batch: its payload, and whether that is binary.
pub(super) fn first_frame(frames: &[u8]) -> Option<(Range<usize>, bool)> {
    let (start, length) = match frames {
        [_, 126, rest @ ..] => (4, u16::from_be_bytes(*rest.first_chunk()?).into()),
        [_, 127, rest @ ..] => {
            (10, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?)
        }
        [_, length, ..] => (2, usize::from(*length)),
        _ => return None,
    };
    let end = start + frames.get(start..)?.get(..length)?.len();
    Some((start..end, frames[0] & 0x0f == Opcode::Binary as u8))
}

/// Collects the packets of a batch.
#[derive(Debug, Default)]
pub struct FrameBatchBuilder {
    frames: Vec<u8>,
    has_binary: bool,
}

impl FrameBatchBuilder {
    /// A builder with room for `bytes` of payload in `packets` packets.
    pub fn with_capacity(bytes: usize, packets: usize) -> Self {
        // A frame's head has ten bytes at most.
        Self { frames: Vec::with_capacity(bytes + packets * 10), has_binary: false }
    }

    /// Appends a message whose text is the `parts`, one after another.
    pub fn message(&mut self, parts: &[&str]) {
        // Messages of Socket.IO have up to a dozen parts.
        let mut all: smallvec::SmallVec<[&[u8]; 16]> = smallvec::smallvec![b"4".as_slice()];
        all.extend(parts.iter().map(|part| part.as_bytes()));
        write_frame(&mut self.frames, Opcode::Text, &all);
    }

    /// Appends a binary message.
    pub fn binary(&mut self, bytes: &[u8]) {
        self.has_binary = true;
        write_frame(&mut self.frames, Opcode::Binary, &[bytes]);
    }

    /// Appends one of the transport's own packets, with its type digit.
    pub(super) fn packet(&mut self, text: &str) {
        write_frame(&mut self.frames, Opcode::Text, &[text.as_bytes()]);
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
        let eio3 = self.has_binary.then(|| Box::new(Frames::new(eio3_frames(&self.frames))));
        let content = Content {
            frames: Frames::new(self.frames),
            frames_eio3: eio3,
            events: u32::try_from(events).unwrap_or(u32::MAX),
            volatile,
            budget: budget.cloned(),
        };
        if let Some(budget) = budget {
            budget.add(content.held_bytes());
        }
        FrameBatch(Arc::new(content))
    }
}

fn eio3_frames(mut frames: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(frames.len() + frames.len() / 8 + 16);
    while let Some((payload, binary)) = first_frame(frames) {
        let (frame, rest) = frames.split_at(payload.end);
        match binary {
            true => {
                let payload = &frame[payload];
                write_frame(&mut written, Opcode::Binary, &[MESSAGE_TYPE_EIO3, payload]);
            }
            false => written.extend_from_slice(frame),
        }
        frames = rest;
    }
    written
}
