//! Fan-out: the same events to many clients.
//!
//! Events are encoded once, into the frames that every WebSocket client gets. Large fan-outs are split among as
//! many tasks as there are workers, each with recipients of its own; an event is with all of them before the next
//! one begins, so that every recipient gets its events in one order.

use std::sync::Arc;

use antiphon_adapter::{Admission, Delivered, Parcel, QueueError, Queues, Recipients, Soon};
use antiphon_metrics::gateway::{CloseReason, Protocol};
use bytes::Bytes;
use socketioxide_core::{
    Sid, Value,
    packet::{Packet, PacketData},
    parser::Parse,
};
use socketioxide_parser_common::CommonParser;

use crate::{
    net::{EngineQueue, Nsp, Segment, Sent, write_frame},
    sessions::Sessions,
};

/// Fewer recipients are not worth a task of their own.
const RECIPIENTS_PER_WORKER_MIN: usize = 64;

/// `4`, an Engine.IO message. In binary frames, Engine.IO 3 writes it as a byte.
const MESSAGE_TEXT: &[u8] = b"4";
const MESSAGE_BINARY_EIO3: &[u8] = &[4];

/// Where the adapter's parcels go. Cloning it is cheap.
#[derive(Clone)]
pub(crate) struct FanOut {
    sessions: Arc<Sessions>,
    workers: usize,
}

impl FanOut {
    pub(crate) fn new(sessions: Arc<Sessions>, workers: usize) -> Self {
        Self { sessions, workers }
    }

    fn encode(&self, parcel: Parcel) -> Encoded {
        let namespace = self.sessions.namespace(parcel.queues().path());
        Encoded::new(parcel, namespace)
    }

    /// Serves some of the recipients, one after another.
    async fn serve(&self, events: &Encoded, to: &[Sid]) {
        let mut way = Way::new(self, events);
        let mut turns = to.chunks(events.parcel.recipients_per_turn());
        while let Some(turn) = turns.next() {
            way.serve(turn);
            if turns.len() > 0 {
                tokio::task::yield_now().await;
            }
        }
        self.sessions.delivered(&way.delivered, way.written);
    }
}

impl Recipients for FanOut {
    fn deliver(&self, parcel: Parcel, to: Vec<Sid>) -> Soon<'_, ()> {
        Box::pin(async move {
            let events = self.encode(parcel);
            let workers = self.workers.min(to.len() / RECIPIENTS_PER_WORKER_MIN).max(1);
            let mut shares = to.chunks(to.len().div_ceil(workers).max(1));
            let mine = shares.next().unwrap_or_default();
            let others: Vec<_> = shares
                .map(|share| {
                    let (fan_out, events, share) = (self.clone(), events.clone(), share.to_vec());
                    tokio::spawn(async move { fan_out.serve(&events, &share).await })
                })
                .collect();
            self.serve(&events, mine).await;
            for other in others {
                // Its recipients would miss events without knowing: whoever delivers ends with it.
                if let Err(error) = other.await
                    && let Ok(panic) = error.try_into_panic()
                {
                    std::panic::resume_unwind(panic);
                }
            }
        })
    }

    fn send(&self, parcel: Parcel, to: Sid) {
        let events = self.encode(parcel);
        let mut way = Way::new(self, &events);
        way.serve(&[to]);
        self.sessions.delivered(&way.delivered, way.written);
    }

    fn admit(&self, sid: Sid, bytes: usize, volatile: bool) -> Admission {
        self.sessions.admit(sid, bytes, volatile)
    }

    fn queued(&self, sid: Sid, queues: &dyn Queues) {
        if let Some(session) = self.sessions.find(sid) {
            session.follow(sid, queues);
        }
    }

    fn queue_full(&self, sid: Sid) {
        self.sessions.close(sid, CloseReason::SlowConsumer);
    }

    fn disconnected(&self, sid: Sid) {
        self.sessions.close(sid, CloseReason::ServerDisconnect);
    }

    fn delivered(&self, delivered: &Delivered) {
        self.sessions.delivered(delivered, 0);
    }
}

/// Events on their way to recipients.
struct Way<'a> {
    fan_out: &'a FanOut,
    events: &'a Encoded,
    delivered: Delivered,
    written: usize,
}

impl<'a> Way<'a> {
    fn new(fan_out: &'a FanOut, events: &'a Encoded) -> Self {
        Self { fan_out, events, delivered: Delivered::default(), written: 0 }
    }

    fn serve(&mut self, to: &[Sid]) {
        let FanOut { sessions, .. } = self.fan_out;
        let open = sessions.recipients(to);
        let packets = self.events.parcel.packets().len();
        self.delivered.count(Admission::Gone, ((to.len() - open.len()) * packets) as u64);
        for recipient in open {
            let mut engine = Engine { sid: recipient.sid, way: self };
            let sent = sessions.send(&recipient, engine.way.events, &mut engine);
            let count = packets as u64;
            match sent {
                Sent::Accepted { written, .. } => {
                    self.written += written;
                    self.delivered.count(Admission::Queue, count);
                }
                Sent::Volatile { replaced, .. } => self.delivered.count(Admission::Skip, replaced),
                Sent::Skipped { replaced } => {
                    self.delivered.count(Admission::Skip, replaced + count);
                }
                Sent::Enqueued => {}
                Sent::Full => self.delivered.count(Admission::TooSlow, count),
                Sent::Gone => self.delivered.count(Admission::Gone, count),
            }
        }
    }
}

/// The engine's queue of one recipient.
struct Engine<'a, 'b> {
    sid: Sid,
    way: &'a mut Way<'b>,
}

impl EngineQueue for Engine<'_, '_> {
    fn enqueue(&mut self) {
        let Way { fan_out, events, delivered, .. } = &mut *self.way;
        events.parcel.enqueue(self.sid, *fan_out, delivered);
    }

    fn fence(&mut self, number: i64) -> Result<Bytes, QueueError> {
        put_fence(self.way.events.parcel.queues(), self.sid, number)
    }
}

/// Puts a fence into the engine's queue of a socket: an acknowledgement that nobody asked for, and that never gets to
/// the client. Returns how it looks when it comes out.
pub(crate) fn put_fence(queues: &dyn Queues, sid: Sid, number: i64) -> Result<Bytes, QueueError> {
    let inner = PacketData::EventAck(Value::Str("[]".into(), None), number);
    let fence = Packet { inner, ns: queues.path().to_owned().into() };
    let mut frame = Vec::new();
    write_packet(&mut frame, fence.clone(), Protocol::Eio4);
    queues.put(sid, fence)?;
    Ok(frame.into())
}

/// Packets as WebSocket clients get them.
#[derive(Clone)]
pub(crate) struct Encoded {
    parcel: Parcel,
    pub(crate) namespace: Nsp,
    eio4: Bytes,
    // Differs only in binary frames.
    eio3: Bytes,
}

impl Encoded {
    fn new(parcel: Parcel, namespace: Nsp) -> Self {
        let write = |protocol| {
            let mut frames = Vec::with_capacity(parcel.bytes() + 16 * parcel.packets().len());
            for packet in parcel.packets() {
                write_packet(&mut frames, packet.clone(), protocol);
            }
            Bytes::from(frames)
        };
        let is_binary = |packet: &Packet| matches!(packet.inner, PacketData::BinaryEvent(..));
        let eio4 = write(Protocol::Eio4);
        let eio3 = match parcel.packets().iter().any(is_binary) {
            true => write(Protocol::Eio3),
            false => eio4.clone(),
        };
        Self { parcel, namespace, eio4, eio3 }
    }

    /// What a client of this protocol gets.
    pub(crate) fn segment(&self, protocol: Protocol) -> Segment {
        let frames = match protocol {
            Protocol::Eio3 => &self.eio3,
            Protocol::Eio4 => &self.eio4,
        };
        Segment {
            frames: frames.clone(),
            events: self.parcel.packets().len() as u64,
            volatile: self.parcel.volatile(),
        }
    }
}

/// Appends a packet, and the attachments that follow it, as frames.
fn write_packet(frames: &mut Vec<u8>, packet: Packet, protocol: Protocol) {
    let Value::Str(text, attachments) = CommonParser.encode(packet) else { return };
    write_frame(frames, false, &[MESSAGE_TEXT, text.as_bytes()]);
    for attachment in attachments.iter().flatten() {
        let kind = match protocol {
            Protocol::Eio3 => MESSAGE_BINARY_EIO3,
            Protocol::Eio4 => &[],
        };
        write_frame(frames, true, &[kind, attachment]);
    }
}
