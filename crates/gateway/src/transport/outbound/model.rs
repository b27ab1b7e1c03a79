//! What goes out to some clients, in any circumstances. A script, which is any bytes, says what those who
//! send, the clients and the kernel do, one step after another. What has got to each client has to be what
//! was sent to it, in that order; and nobody may sleep for whom there is something to do.

use std::{
    mem, slice,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use antiphon_metrics::IntGauge;

use super::{
    Ending, Flushed, Outbound, PACKETS_PER_POLL_MAX, PollError, Polled, Sent, Upgrade,
    kernel::{Kernel, Task},
};
use crate::transport::{
    Protocol,
    batch::{FrameBatch, FrameBatchBuilder},
    frame::{Opcode, write_frame},
    memory::Budget,
    queue::ENTRY_BYTES,
};

const STEPS_MAX: usize = 600;
const PONG: u8 = Opcode::Pong as u8;

/// Opcode and payload. The payload of a binary frame is without the type byte of revision 3.
type Frame = (u8, Vec<u8>);

/// Plays a script, and checks what comes of it.
pub(crate) fn play(script: &[u8]) {
    let mut script = Script(script.iter());
    let mut world = World::new(&mut script);
    for _ in 0..STEPS_MAX {
        if script.0.len() == 0 {
            break;
        }
        world.step(&mut script);
        world.clients.iter_mut().for_each(|client| client.check());
    }
    world.finish();
}

struct Script<'a>(slice::Iter<'a, u8>);

impl Script<'_> {
    /// Zeros after its end, so that its last step is a whole one.
    fn next(&mut self) -> usize {
        self.0.next().copied().unwrap_or(0).into()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() % all.len()]
    }
}

/// A request that polls.
struct OpenPoll {
    before_probe: bool,
    task: Arc<Task>,
    /// Whether it has begun to wait.
    waits: bool,
}

/// The task of a WebSocket, and how it was left.
struct Writer {
    task: Arc<Task>,
    /// It waits for room, too.
    blocked: bool,
    ending: Option<Ending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Polling(Upgrade),
    WebSocket,
    Closed,
}

/// A batch that was accepted for a client.
struct Due {
    frames: Vec<Frame>,
    events: u64,
}

struct Client {
    protocol: Protocol,
    kernel: Arc<Kernel>,
    outbound: Outbound<Kernel>,
    carrier: Carrier,
    poll: Option<OpenPoll>,
    writer: Option<Writer>,
    ending: Option<Ending>,
    /// It is not certain that everything gets there.
    cut: bool,
    due: Vec<Due>,
    /// The batch that may be replaced, among those.
    replaceable: Option<usize>,
    received: Vec<Frame>,
    /// Bytes that the kernel has taken in whole frames, which have been received.
    parsed: usize,
    pongs: Vec<Vec<u8>>,
    pongs_received: Vec<Vec<u8>>,
    /// What may wait, and the largest batch so far.
    bytes_max: usize,
    largest: usize,
    // Events that could have been replaced, and what is known to have become of them.
    waited: u64,
    accounted: u64,
    /// If something waits for a WebSocket: what it has taken, and when.
    progress: Option<(usize, Instant)>,
}

struct World {
    gauge: IntGauge,
    budget: Arc<Budget>,
    clients: Vec<Client>,
    /// So many batches have been made.
    batches: usize,
    lasting: FrameBatch,
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let gauge = IntGauge::new("held", "Bytes").expect("a name");
        let budget = Budget::new(usize::MAX, gauge.clone());
        let bytes_max = script.one_of(&[1_000_000, 300, 5_000, 140_000]);
        let kinds = script.next();
        let client = |number: usize| Client::new(kinds >> (2 * number), bytes_max, &budget);
        let clients = (0..3).map(client).collect();
        let mut lasting = FrameBatchBuilder::default();
        lasting.packet("2");
        Self { gauge, budget, clients, batches: 0, lasting: lasting.build_forever() }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let step = script.next() % 16;
        if step < 5 {
            return self.send(script);
        }
        let which = script.next() % self.clients.len();
        let client = &mut self.clients[which];
        match step {
            5 => {
                let frames = vec![(Opcode::Text as u8, b"2".to_vec())];
                client.send(&self.lasting, frames);
            }
            6..8 => client.poll(),
            8 => client.poll = client.poll.take().filter(|_| !client.abandon(script)),
            9..11 => client.run(),
            11 => client.make_room(script.one_of(&[1, 2, 7, 60, 130, 700, 66_000, 300_000])),
            12 => {
                let most = [1, 3, 50, 1_000, 70_000, usize::MAX, usize::MAX, usize::MAX];
                client.kernel.lock().at_a_time = script.one_of(&most);
            }
            13 => client.go_over(script),
            14 => client.ping(script.next()),
            _ => match script.next() % 16 {
                0 => client.end(Ending::Flush),
                1 => client.end(Ending::CloseFrame(Some(1002))),
                2 => client.end(Ending::Reset),
                3 => client.close(),
                4 => client.break_off(script.one_of(&[0, 1, 100, 20_000])),
                _ => client.go_over(script),
            },
        }
    }

    /// A batch, to one client or to several.
    fn send(&mut self, script: &mut Script<'_>) {
        let (how, to) = (script.next(), script.next());
        let (volatile, several) = (how & 1 == 1, [1, 1, 1, 3, 3, 20, 0, 1][how >> 1 & 7]);
        let mut builder = FrameBatchBuilder::default();
        let mut frames = Vec::new();
        for _ in 0..several {
            let text = format!("2[{}.{}]", self.batches, frames.len());
            let text = text.clone() + &"x".repeat(size(script));
            builder.message(&[&text[..1], &text[1..]]);
            frames.push((Opcode::Text as u8, format!("4{text}").into_bytes()));
            let attachments =
                if how & 48 == 48 { &[0, 126, 1][..1 + script.next() % 3] } else { &[] };
            for size in attachments {
                builder.binary(&vec![b'y'; *size]);
                frames.push((Opcode::Binary as u8, vec![b'y'; *size]));
            }
        }
        self.batches += 1;
        // No other batch has as many, so that they tell which one it was.
        let batch = builder.build(self.batches, volatile, &self.budget);
        for (number, client) in self.clients.iter_mut().enumerate() {
            if to % 4 == 0 || to >> (2 + number) & 1 == 1 {
                client.send(&batch, frames.clone());
            }
        }
    }

    /// Lets everything go its way, and looks at what has come of it.
    fn finish(mut self) {
        for client in &mut self.clients {
            client.finish();
        }
        drop(mem::take(&mut self.clients));
        assert_eq!(self.gauge.get(), 0, "bytes that nobody holds");
    }
}

fn size(script: &mut Script<'_>) -> usize {
    let size = script.next();
    match size {
        0..3 => [65_535, 65_536, 100_000][size],
        3..100 => size,
        100..110 => 2_000,
        110..120 => 900,
        _ => 0,
    }
}

impl Client {
    fn new(kind: usize, bytes_max: usize, budget: &Arc<Budget>) -> Self {
        let protocol = if kind & 1 == 1 { Protocol::Eio3 } else { Protocol::Eio4 };
        let kernel = Kernel::new(100);
        let polls = kind & 2 == 2;
        let outbound = match polls {
            true => Outbound::polling(protocol, budget),
            false => Outbound::websocket(protocol, Arc::clone(&kernel), budget),
        };
        let mut client = Self {
            protocol,
            kernel,
            outbound,
            carrier: if polls { Carrier::Polling(Upgrade::None) } else { Carrier::WebSocket },
            poll: None,
            writer: None,
            ending: None,
            cut: false,
            due: Vec::new(),
            replaceable: None,
            received: Vec::new(),
            parsed: 0,
            pongs: Vec::new(),
            pongs_received: Vec::new(),
            bytes_max,
            largest: 0,
            waited: 0,
            accounted: 0,
            progress: None,
        };
        client.run();
        client
    }

    fn send(&mut self, batch: &FrameBatch, frames: Vec<Frame>) {
        let bytes = batch.frames(self.protocol).bytes.len();
        let before = self.outbound.waiting_bytes();
        let sent = self.outbound.send(batch, self.bytes_max);
        match sent {
            Sent::Gone => {
                assert!(self.ending.is_some() || self.kernel.lock().is_broken(), "it is there");
            }
            Sent::Full => {
                assert!(!batch.volatile() || before > 0);
                assert!(before > 0 && before + bytes > self.bytes_max, "there is room");
            }
            Sent::Accepted { replaced, replaceable, written, .. } => {
                assert!(self.ending.is_none(), "accepted after the end");
                assert!(written <= bytes);
                assert!(!replaceable || batch.volatile() && written == 0);
                self.accepted(batch, Due { frames, events: batch.events() }, replaced, replaceable);
                self.largest = self.largest.max(bytes);
                if replaced == batch.events() && replaceable {
                    assert!(before + bytes > self.bytes_max, "there is room");
                }
            }
        }
    }

    fn accepted(&mut self, batch: &FrameBatch, due: Due, replaced: u64, replaceable: bool) {
        self.accounted += replaced;
        if replaceable {
            self.waited += due.events;
        }
        if replaced > 0 && replaced == due.events {
            assert!(replaceable, "skipped");
            return;
        }
        if replaced > 0 {
            let old = self.replaceable.take().expect("one waits");
            assert_eq!(self.due.remove(old).events, replaced);
        }
        if replaceable {
            assert!(batch.volatile() && self.replaceable.is_none(), "the newest one only");
            self.replaceable = Some(self.due.len());
        }
        self.due.push(due);
    }

    /// So many events can be replaced no more.
    fn went_out(&mut self, events: u64) {
        if events > 0 {
            let index = self.replaceable.take().expect("one waits");
            assert_eq!(self.due[index].events, events);
            self.accounted += events;
        }
    }

    /// Begins a poll, or goes on with it.
    fn poll(&mut self) {
        if self.poll.is_none() {
            match self.outbound.begin_poll() {
                Ok(()) => assert!(matches!(self.carrier, Carrier::Polling(_))),
                Err(error) => {
                    assert_eq!(error, PollError::Gone);
                    assert!(!matches!(self.carrier, Carrier::Polling(_)));
                    return;
                }
            }
            let before_probe = self.carrier != Carrier::Polling(Upgrade::Probed);
            assert_eq!(before_probe, !self.outbound.probed());
            self.poll = Some(OpenPoll { before_probe, task: Arc::default(), waits: false });
        } else if matches!(self.carrier, Carrier::Polling(_)) {
            assert_eq!(self.outbound.begin_poll(), Err(PollError::Overlap));
        }
        let Some(poll) = &mut self.poll else { return };
        let waker = poll.task.begin();
        poll.waits = true;
        let Poll::Ready(polled) =
            self.outbound.poll(poll.before_probe, &Context::from_waker(&waker))
        else {
            return;
        };
        let before_probe = poll.before_probe;
        self.poll = None;
        self.outbound.end_poll();
        self.answered(polled, before_probe);
    }

    fn answered(&mut self, polled: Polled, before_probe: bool) {
        match polled {
            Polled::Packets { packets, volatile_events } => {
                assert!(matches!(self.carrier, Carrier::Polling(_)));
                assert!(packets.len() <= PACKETS_PER_POLL_MAX && !packets.is_empty());
                let opcode = |binary| if binary { Opcode::Binary } else { Opcode::Text };
                let frames = packets.into_iter();
                let frames = frames.map(|one| (opcode(one.binary) as u8, one.bytes.to_vec()));
                self.received.extend(frames);
                self.went_out(volatile_events);
            }
            Polled::Noop => {
                let probed = self.carrier == Carrier::Polling(Upgrade::Probed) && before_probe;
                assert!(probed || self.ending.is_some(), "it could wait");
            }
            Polled::Upgraded => assert_eq!(self.carrier, Carrier::WebSocket),
            Polled::Close => assert!(matches!(self.ending, Some(Ending::CloseFrame(_)))),
        }
    }

    /// The client's request goes, before there is an answer.
    fn abandon(&mut self, script: &mut Script<'_>) -> bool {
        let abandons = script.one_of(&[true, false]);
        if abandons {
            self.outbound.end_poll();
        }
        abandons
    }

    /// The task of the WebSocket has its turn.
    fn run(&mut self) {
        if self.carrier != Carrier::WebSocket {
            return;
        }
        let task = self.writer.take().map_or_else(Arc::default, |writer| writer.task);
        self.outbound.register(&Context::from_waker(&task.begin()));
        loop {
            let flushed = match self.outbound.flush() {
                Ok(flushed) => flushed,
                Err(_) => return self.failed(),
            };
            let Flushed { bytes, volatile_events, waiting, end } = flushed;
            self.went_out(volatile_events);
            if end {
                assert!(self.ending.is_some());
                assert!(self.ending != Some(Ending::Reset) || bytes == 0, "it is reset");
                assert!(self.ending == Some(Ending::Reset) || waiting == 0, "something waits");
                return self.close();
            }
            let room = self.kernel.lock().room;
            if waiting == 0 || room == 0 {
                self.writer = Some(Writer { task, blocked: waiting > 0, ending: self.ending });
                return;
            }
        }
    }

    fn failed(&mut self) {
        assert!(self.kernel.lock().is_broken());
        self.end(Ending::Reset);
        self.close();
    }

    fn make_room(&mut self, room: usize) {
        self.kernel.lock().room += room;
        if let Some(writer) = self.writer.as_mut().filter(|writer| writer.blocked) {
            Arc::clone(&writer.task).wake();
        }
    }

    /// The connection ends, some bytes later. Whoever reads from it finds out.
    fn break_off(&mut self, bytes: usize) {
        if self.carrier == Carrier::WebSocket {
            let mut taken = self.kernel.lock();
            taken.breaks_after = taken.bytes.len() + bytes;
            drop(taken);
            self.cut = true;
            self.make_room(0);
        }
    }

    /// One step further on the way to a WebSocket, or back.
    fn go_over(&mut self, script: &mut Script<'_>) {
        let Carrier::Polling(upgrade) = self.carrier else {
            assert!(!self.outbound.begin_upgrade());
            return;
        };
        let next = match upgrade {
            Upgrade::None => {
                assert!(self.outbound.begin_upgrade());
                Upgrade::Opened
            }
            Upgrade::Opened | Upgrade::Probed if script.next() < 32 => Upgrade::None,
            Upgrade::Opened => Upgrade::Probed,
            Upgrade::Probed => {
                assert!(self.outbound.upgrade(Arc::clone(&self.kernel)));
                self.carrier = Carrier::WebSocket;
                return self.run();
            }
        };
        if upgrade != Upgrade::None {
            self.outbound.set_upgrade(next);
        }
        assert!(!self.outbound.begin_upgrade() || next == Upgrade::None);
        if next == Upgrade::None {
            self.outbound.set_upgrade(Upgrade::None);
        }
        self.carrier = Carrier::Polling(next);
    }

    /// A ping has been read by the WebSocket's task, which goes on with what waits.
    fn ping(&mut self, kind: usize) {
        if self.carrier != Carrier::WebSocket {
            return;
        }
        // Parts of it look like pongs, too.
        let mut payload = (self.pongs.len() as u32).to_be_bytes().to_vec();
        payload.extend_from_slice(&[PONG | 0x80, 2, PONG | 0x80, 0][..2 * (kind % 3)]);
        payload.resize(payload.len() + kind / 3, 0);
        let mut frame = Vec::new();
        write_frame(&mut frame, Opcode::Pong, &[&payload]);
        self.outbound.send_pong(&frame);
        if self.ending.is_none() {
            self.pongs.push(payload);
        }
        if let Some(writer) = &self.writer {
            Arc::clone(&writer.task).wake();
        }
    }

    fn end(&mut self, ending: Ending) {
        assert_eq!(self.outbound.end(ending), self.ending.is_none());
        if self.ending.is_none() || ending == Ending::Reset {
            self.ending = Some(ending);
        }
        self.cut |= ending == Ending::Reset;
        assert_eq!(self.outbound.ending(), self.ending);
    }

    fn close(&mut self) {
        self.cut |= !self.outbound.lock().is_empty() || self.ending.is_none();
        let lost = self.outbound.close();
        if let Some(index) = self.replaceable.take() {
            assert_eq!(self.due.remove(index).events, lost);
            self.accounted += lost;
        } else {
            assert_eq!(lost, 0);
        }
        self.ending.get_or_insert(Ending::Reset);
        self.carrier = Carrier::Closed;
        self.writer = None;
        assert_eq!(self.outbound.waiting_bytes(), 0);
        assert!(!self.outbound.upgrade(Arc::clone(&self.kernel)));
    }

    /// What must hold after every step.
    fn check(&mut self) {
        let pong_left = self.receive();
        let state = self.outbound.lock();
        assert!(state.queue.is_consistent(), "{:?}", state.queue);
        if self.carrier == Carrier::WebSocket {
            assert_eq!(state.pongs.begun, pong_left, "the rest of the one that is out in part");
        }
        let (empty, waiting) = (state.is_empty(), state.queue.bytes());
        drop(state);
        // However much it is, one batch may wait.
        assert!(waiting <= self.bytes_max.max(self.largest) + self.largest + 2 * ENTRY_BYTES);
        if let Some(poll) = self.poll.as_mut().filter(|poll| poll.waits && !poll.task.is_woken()) {
            let waker = Waker::from(Arc::clone(&poll.task));
            let polled = self.outbound.poll(poll.before_probe, &Context::from_waker(&waker));
            assert_eq!(polled, Poll::Pending, "it should have been woken");
        }
        if let Some(writer) = self.writer.as_ref().filter(|writer| !writer.task.is_woken()) {
            assert_eq!(self.ending, writer.ending, "it should have been woken to end");
            assert!(empty || writer.blocked, "it should have been woken to write");
        }
        let progress = (self.kernel.lock().bytes.len(), self.outbound.last_progress());
        let progress = (!empty && self.carrier == Carrier::WebSocket).then_some(progress);
        if let (Some(before), Some(now)) = (self.progress, progress) {
            assert!(before == now || before.0 < now.0, "nothing but what is taken is progress");
        }
        self.progress = progress;
    }

    fn finish(&mut self) {
        {
            let mut taken = self.kernel.lock();
            (taken.room, taken.at_a_time) = (usize::MAX, usize::MAX);
        }
        while let Carrier::Polling(_) = self.carrier {
            self.poll();
            let ends = self.ending.is_some() && self.outbound.waiting_bytes() == 0;
            if self.poll.is_some() || ends || self.ending == Some(Ending::Reset) {
                break;
            }
            self.check();
        }
        self.run();
        assert!(self.outbound.waiting_bytes() == 0 || self.cut, "everything is out");
        if !self.cut {
            assert!(self.outbound.lock().is_empty());
        }
        let cut = self.cut;
        self.close();
        assert_eq!(self.accounted, self.waited, "volatile events");
        self.judge(cut);
    }

    /// Takes the frames that are whole. Returns how much is left to write of a pong that is not.
    fn receive(&mut self) -> usize {
        let taken = self.kernel.lock();
        while let Some(((opcode, mut payload), rest)) = parse_one(&taken.bytes[self.parsed..]) {
            if opcode == Opcode::Binary as u8 && self.protocol == Protocol::Eio3 {
                assert_eq!(payload.remove(0), 4, "the type of a message");
            }
            match opcode {
                PONG => self.pongs_received.push(payload),
                _ => self.received.push((opcode, payload)),
            }
            self.parsed = taken.bytes.len() - rest.len();
        }
        match taken.bytes[self.parsed..] {
            [first, length, ref rest @ ..] if first & 0x0f == PONG => {
                usize::from(length) - rest.len()
            }
            // Its length is not out.
            [first] if first & 0x0f == PONG => self.outbound.lock().pongs.begun,
            _ => 0,
        }
    }

    fn judge(&mut self, cut: bool) {
        self.receive();
        let whole = self.parsed == self.kernel.lock().bytes.len();
        assert!(cut || whole, "half a frame is left");
        let mut due = self.due.iter().flat_map(|due| &due.frames);
        for frame in &self.received {
            assert!(due.next() == Some(frame), "the next one");
        }
        assert!(cut || due.next().is_none(), "something is missing");
        let mut sent = self.pongs.iter();
        for pong in &self.pongs_received {
            assert!(sent.any(|one| one == pong), "pongs, in order");
        }
        assert!(cut || sent.next().is_none(), "the newest ping is answered");
    }
}

/// The first frame that the client gets, if it is whole: final and not masked.
fn parse_one(stream: &[u8]) -> Option<(Frame, &[u8])> {
    let [first, second, rest @ ..] = stream else { return None };
    assert_eq!(first & 0xf0, 0x80, "a final frame");
    assert!([1, 2, PONG].contains(&(first & 0x0f)), "an opcode");
    let (length, rest) = match second {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*length) as usize, rest)
        }
        short => (usize::from(*short), rest),
    };
    assert!(second & 0x80 == 0, "not masked");
    let (payload, rest) = rest.split_at_checked(length)?;
    Some(((first & 0x0f, payload.to_vec()), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 500, ..Default::default() })]
        #[test]
        fn whatever_is_sent_arrives_whole_and_in_order(
            script in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            play(&script);
        }
    }
}
