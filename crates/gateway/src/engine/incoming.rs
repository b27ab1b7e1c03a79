//! What waits to go to the handlers of a session: bodies of POST requests, in order.

use std::{collections::VecDeque, mem};

use bytes::Bytes;

use super::{Call, codec};

/// Why a packet is not forwarded. Later packets are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The session has ended.
    #[error("the engine session has ended")]
    Closed,
    /// Too much waits for the reply to CONNECT, or the handler thread has too many tasks. The same
    /// packet may be accepted later.
    #[error("the engine session is full")]
    Full,
    /// The packet exceeds [`Settings::max_packet_bytes`](super::Settings::max_packet_bytes).
    #[error("the packet is too large for the engine")]
    TooLarge,
    /// No handler can get this packet: it is neither an event nor an acknowledgement with an id, or
    /// the event's name is no string, or one that JSON cannot write without escapes. Node.js
    /// ignores an event without a listener; ignore this one too.
    #[error("the engine cannot read the packet")]
    Unreadable,
}

/// The bodies, and who makes requests of them.
#[derive(Default)]
pub(super) struct Incoming {
    phase: Phase,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    posting: Posting,
}

#[derive(Default)]
enum Phase {
    #[default]
    Opened,
    /// CONNECT goes first; all else waits for the reply.
    Connecting {
        connect: Option<Bytes>,
    },
    Connected,
    /// The last bodies are in `waiting`.
    Closed,
}

/// Requests are made one after the other, by the first thread that wants one.
#[derive(Default)]
enum Posting {
    #[default]
    Idle,
    /// A thread makes requests. It looks again if another thread missed its turn meanwhile.
    Running { missed: bool },
    /// A request did not complete at once. As of engineioxide 0.17, none does this.
    Suspended(Box<Call>),
}

/// What a thread has to do next.
pub(super) enum Post {
    Body(Bytes),
    Resumed(Call),
}

impl Incoming {
    /// Begins with CONNECT. Returns false if that was done before, or the session has ended.
    pub(super) fn connect(&mut self, connect: Bytes) -> bool {
        let opened = matches!(self.phase, Phase::Opened);
        if opened {
            self.phase = Phase::Connecting { connect: Some(connect) };
        }
        opened
    }

    /// The handlers have accepted the client.
    pub(super) fn set_connected(&mut self) {
        if matches!(self.phase, Phase::Connecting { .. }) {
            self.phase = Phase::Connected;
        }
    }

    /// Adds a packet of the client. `tasks` and `max_tasks` are those of the handler thread.
    pub(super) fn push(
        &mut self,
        body: Bytes,
        max_bytes: usize,
        tasks: usize,
        max_tasks: usize,
    ) -> Result<(), ForwardError> {
        let bytes = self.waiting_bytes + body.len();
        let too_many_tasks = match self.phase {
            Phase::Closed => return Err(ForwardError::Closed),
            Phase::Connected => tasks + self.waiting.len() >= max_tasks,
            Phase::Opened | Phase::Connecting { .. } => false,
        };
        // A single packet may be larger than the bound.
        let too_many_bytes = bytes > max_bytes && !self.waiting.is_empty();
        if too_many_tasks || too_many_bytes {
            return Err(ForwardError::Full);
        }
        self.waiting_bytes = bytes;
        self.waiting.push_back(body);
        Ok(())
    }

    /// Ends with DISCONNECT, if the client has sent it, and the packet that closes the session.
    pub(super) fn close(&mut self, disconnect: Option<Bytes>) {
        match self.phase {
            Phase::Closed => return,
            Phase::Connected => {}
            // Events of a client that does not know whether it is accepted.
            Phase::Opened | Phase::Connecting { .. } => self.waiting.clear(),
        }
        if !matches!(self.phase, Phase::Opened) {
            self.waiting.extend(disconnect);
        }
        self.waiting.push_back(codec::close());
        self.phase = Phase::Closed;
    }

    /// Whether a request waits to be resumed.
    pub(super) fn is_suspended(&self) -> bool {
        matches!(self.posting, Posting::Suspended(_))
    }

    /// Takes the next request. Until [`done`](Self::done), no other thread gets one.
    pub(super) fn next(&mut self) -> Option<Post> {
        let post = match mem::take(&mut self.posting) {
            Posting::Running { .. } => {
                self.posting = Posting::Running { missed: true };
                return None;
            }
            Posting::Suspended(call) => Post::Resumed(*call),
            Posting::Idle => Post::Body(self.pop()?),
        };
        self.posting = Posting::Running { missed: false };
        Some(post)
    }

    /// Takes back a request that did not complete. Returns whether the thread must go on.
    pub(super) fn done(&mut self, suspended: Option<Call>) -> bool {
        let missed = matches!(self.posting, Posting::Running { missed: true });
        let completed = suspended.is_none();
        self.posting = suspended.map(Box::new).map_or(Posting::Idle, Posting::Suspended);
        completed || missed
    }

    fn pop(&mut self) -> Option<Bytes> {
        match &mut self.phase {
            Phase::Opened => return None,
            Phase::Connecting { connect } => return connect.take(),
            Phase::Connected | Phase::Closed => {}
        }
        let body = self.waiting.pop_front()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(body.len());
        if self.waiting.is_empty() {
            // Most sessions are idle and should not keep memory for a queue.
            self.waiting = VecDeque::new();
            self.waiting_bytes = 0;
        }
        Some(body)
    }
}
