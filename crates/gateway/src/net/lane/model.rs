//! A lane in any circumstances: a script, which is any bytes, says what the engine, the namespaces, those who send
//! and the kernel do, one step after another. What has got to the client is then read by a parser of its own, and
//! has to be what was sent, in an order that is allowed.

use std::{cell::RefCell, collections::VecDeque, io, io::IoSlice, mem, rc::Rc, slice};

use antiphon_adapter::QueueError;
use antiphon_metrics::IntGauge;
use bytes::Bytes;

use super::{EngineQueue, Lane, Nsp, Segment, Sent, Sink};

const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n";
/// `/` and `/chat`.
const NAMESPACES: [Nsp; 2] = [Nsp(0), Nsp(1)];
const STEPS_MAX: usize = 600;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PONG: u8 = 10;

/// Opcode and payload.
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
        world.check();
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

/// Takes as many bytes as there is room for, and at most so many at a time.
#[derive(Clone)]
struct Kernel(Rc<RefCell<Taken>>);

struct Taken {
    bytes: Vec<u8>,
    room: usize,
    at_a_time: usize,
}

impl Sink for Kernel {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = self.0.borrow_mut();
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = offered.min(taken.room).min(taken.at_a_time);
        assert!(offered > 0, "nothing to write");
        if written == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut left = written;
        for slice in slices {
            let part = &slice[..left.min(slice.len())];
            taken.bytes.extend_from_slice(part);
            left -= part.len();
        }
        taken.room -= written;
        Ok(written)
    }
}

/// What the engine has, as tungstenite writes it: whole frames are appended to what is not yet written.
struct Engine {
    queue: VecDeque<Item>,
    out: Vec<u8>,
    /// Packets, as they were taken out of the queue.
    order: Vec<usize>,
    refuses: Option<QueueError>,
}

struct Item {
    bytes: Vec<u8>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Packet(usize),
    Fence { space: usize },
}

impl Engine {
    fn fence(&mut self, space: usize, number: i64) -> Result<Bytes, QueueError> {
        if let Some(error) = self.refuses.take() {
            return Err(error);
        }
        let bytes = fence(space, number);
        self.queue.push_back(Item { bytes: bytes.clone(), what: What::Fence { space } });
        Ok(bytes.into())
    }

    fn pull(&mut self, most: usize) {
        for _ in 0..most {
            let Some(Item { bytes, what }) = self.queue.pop_front() else { return };
            self.out.extend(bytes);
            if let What::Packet(number) = what {
                self.order.push(number);
            }
        }
    }
}

/// The engine's queue, for a sender.
struct Queue<'a> {
    engine: &'a mut Engine,
    space: usize,
    is_in: bool,
    seems_in: bool,
    packets: Vec<(usize, Vec<u8>)>,
}

impl EngineQueue for Queue<'_> {
    fn enqueue(&mut self) {
        for (number, bytes) in self.packets.drain(..) {
            self.engine.queue.push_back(Item { bytes, what: What::Packet(number) });
        }
    }

    fn fence(&mut self, number: i64) -> Result<Bytes, QueueError> {
        if self.is_in {
            return self.engine.fence(self.space, number);
        }
        // socketioxide does not tell who has left just now.
        if self.seems_in { Ok(fence(self.space, number).into()) } else { Err(QueueError::Gone) }
    }
}

/// A namespace's socket, as far as socketioxide has come with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stay {
    Out,
    Expected,
    ConnectQueued,
    In,
}

#[derive(Clone, Copy)]
struct Space {
    stay: Stay,
    /// How often it has come.
    times: usize,
}

/// Whether a packet reaches the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Due,
    Possible,
    Impossible,
}

struct Packet {
    frames: Vec<Frame>,
    kind: Kind,
    fate: Fate,
    /// The stay of the socket for which it is, and the time since then.
    space: usize,
    times: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only the order among the engine's own matters, if that.
    Other,
    Connect,
    /// Of those who send: in the order of their numbers.
    Event,
}

struct World {
    kernel: Kernel,
    lane: Lane<Kernel>,
    waiting: IntGauge,
    engine: Engine,
    spaces: [Space; 2],
    packets: Vec<Packet>,
    bytes_max: usize,
    ready: bool,
    closing: bool,
    /// The largest segment so far.
    segment_bytes: usize,
    engine_bytes: usize,
    /// When the engine came with a packet: what the lane had written, and what was pending.
    waits: Option<(usize, usize)>,
    volatile: Vec<usize>,
    // Volatile events that waited, and what is known to have become of them.
    waited: u64,
    accounted: u64,
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let bytes_max = script.one_of(&[1_000_000, 300, 5_000, 140_000]);
        let ready = script.one_of(&[false, true, true, true]);
        let taken = Taken { bytes: Vec::new(), room: 100, at_a_time: usize::MAX };
        let kernel = Kernel(Rc::new(RefCell::new(taken)));
        let waiting = IntGauge::new("waiting_bytes", "In all lanes.").expect("a name");
        let lane = Lane::new(waiting.clone());
        lane.open(kernel.clone(), ready);
        let engine =
            Engine { queue: VecDeque::new(), out: HEAD.to_vec(), order: Vec::new(), refuses: None };
        Self {
            kernel,
            lane,
            waiting,
            engine,
            spaces: [Space { stay: Stay::Out, times: 0 }; 2],
            packets: Vec::new(),
            bytes_max,
            ready,
            closing: false,
            segment_bytes: 0,
            engine_bytes: 0,
            waits: None,
            volatile: Vec::new(),
            waited: 0,
            accounted: 0,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let step = script.next() % 16;
        let space = (step / 4 + script.next()) % 3 / 2; // Twice as often the first.
        match step {
            0..4 => self.send(space, script),
            // An engine that ends takes nothing more.
            4..9 if self.closing => {}
            4 | 5 => self.come(space),
            6 => match script.next() % 4 {
                0 => self.leave(space),
                _ => self.ask(space),
            },
            7 => self.engine_packet(script),
            8 => self.engine.pull(script.next() % 5),
            9..12 => self.write(),
            12 => self.flush(),
            13 => {
                let room = [1, 2, 7, 60, 130, 700, 66_000, 300_000];
                self.kernel.0.borrow_mut().room += script.one_of(&room);
            }
            14 => {
                let most = [1, 3, 50, 1_000, 70_000, usize::MAX, usize::MAX, usize::MAX];
                self.kernel.0.borrow_mut().at_a_time = script.one_of(&most);
            }
            _ => match script.next() % 16 {
                0 => self.engine.refuses = Some(QueueError::Full),
                1 => self.engine.refuses = Some(QueueError::Gone),
                2 => self.close(script.one_of(&[true, false])),
                _ => {
                    self.lane.ready();
                    self.ready = true;
                }
            },
        }
    }

    /// A new packet, with its number in it. `size` is that of its text, if there is room for so little.
    fn packet(
        &mut self,
        kind: Kind,
        space: usize,
        begins: &str,
        size: usize,
        attachments: &[usize],
    ) -> (usize, Vec<u8>) {
        let number = self.packets.len();
        let text = match attachments.len() {
            0 => format!("{begins}{}[{number}]", prefix(space)),
            count => format!("45{count}-{}[{number}]", prefix(space)),
        };
        let mut text = text.into_bytes();
        text.resize(text.len().max(size), b'x');
        let mut all = vec![(TEXT, text)];
        all.extend(attachments.iter().map(|size| (BINARY, vec![b'y'; *size])));
        let bytes = frames(&all);
        let times = self.spaces[space].times;
        self.packets.push(Packet { frames: all, kind, fate: Fate::Due, space, times });
        (number, bytes)
    }

    fn send(&mut self, space: usize, script: &mut Script<'_>) {
        if !self.ready && self.spaces[space].stay == Stay::Expected {
            return; // Into the engine's queue before the CONNECT packet: only the engine could tell.
        }
        let how = script.next();
        let (volatile, binary, several) = (how & 1 == 1, how & 6 == 6, how & 24 == 24);
        let seems_in = how & 224 == 224;
        let is_in = self.spaces[space].stay != Stay::Out;
        // Who comes too late does not mind where it goes.
        let kind = if is_in { Kind::Event } else { Kind::Other };
        let mut parts = Vec::new();
        for _ in 0..if several { 3 } else { 1 } {
            let size = sizes(script);
            let attachments = if binary { &[0, 126, 1][..1 + script.next() % 3] } else { &[] };
            parts.push(self.packet(kind, space, "42", size, attachments));
        }
        let frames: Bytes =
            parts.iter().map(|(_, bytes)| &bytes[..]).collect::<Vec<_>>().concat().into();
        self.segment_bytes = self.segment_bytes.max(frames.len());
        let numbers: Vec<usize> = parts.iter().map(|(number, _)| *number).collect();
        let segment = Segment { frames, events: numbers.len() as u64, volatile };
        let waited = mem::take(&mut self.volatile);
        let mut queue = Queue { engine: &mut self.engine, space, is_in, seems_in, packets: parts };
        let sent = self.lane.send(NAMESPACES[space], segment, self.bytes_max, &mut queue);
        let fate = match sent {
            Sent::Accepted { .. } | Sent::Volatile { .. } | Sent::Enqueued => {
                // After a leave it may still get there, and after a close too.
                if self.closing || !is_in { Fate::Possible } else { Fate::Due }
            }
            Sent::Skipped { .. } | Sent::Full | Sent::Gone => Fate::Impossible,
        };
        assert_eq!(sent == Sent::Enqueued, !self.ready, "{sent:?}");
        let replaced = match sent {
            Sent::Volatile { replaced, .. } | Sent::Skipped { replaced } => replaced,
            _ => 0,
        };
        self.accounted += replaced;
        if replaced > 0 {
            assert_eq!(replaced, waited.len() as u64);
            waited.iter().for_each(|number| self.packets[*number].fate = Fate::Impossible);
        } else {
            self.volatile = waited;
        }
        if let Sent::Volatile { .. } = sent {
            assert!(volatile);
            self.waited += numbers.len() as u64;
            self.volatile = numbers.clone();
        }
        numbers.iter().for_each(|number| self.packets[*number].fate = fate);
    }

    /// One step further into a namespace.
    fn come(&mut self, space: usize) {
        let path = NAMESPACES[space];
        self.spaces[space].stay = match self.spaces[space].stay {
            Stay::Out => {
                self.spaces[space].times += 1;
                self.lane.expect(path);
                Stay::Expected
            }
            Stay::Expected => {
                let (number, bytes) = self.packet(Kind::Connect, space, "40", 0, &[]);
                self.engine.queue.push_back(Item { bytes, what: What::Packet(number) });
                Stay::ConnectQueued
            }
            Stay::ConnectQueued => {
                // That the queue is full closes the connection.
                self.engine.refuses = None;
                let engine = &mut self.engine;
                let result = self.lane.connected(path, |number| engine.fence(space, number));
                assert_eq!(result, Ok(()));
                Stay::In
            }
            Stay::In => Stay::In,
        }
    }

    fn leave(&mut self, space: usize) {
        let Space { stay, times } = self.spaces[space];
        self.spaces[space].stay = Stay::Out;
        if stay == Stay::Out {
            return;
        }
        self.lane.left(NAMESPACES[space]);
        if stay != Stay::In {
            // What waited for the CONNECT packet does so no more.
            let waited = |packet: &&mut Packet| {
                (packet.kind, packet.space, packet.times) == (Kind::Event, space, times)
                    && packet.fate == Fate::Due
            };
            let packets = self.packets.iter_mut().filter(waited);
            packets.for_each(|packet| packet.fate = Fate::Possible);
        }
    }

    /// An event that only the engine can send.
    fn ask(&mut self, space: usize) {
        let stay = self.spaces[space].stay;
        if stay == Stay::Out {
            return;
        }
        // Before the client is in, this is in nobody's order.
        let kind = if stay == Stay::In { Kind::Event } else { Kind::Other };
        let (number, bytes) = self.packet(kind, space, "42", 0, &[]);
        self.engine.queue.push_back(Item { bytes, what: What::Packet(number) });
        self.engine.refuses = None;
        let engine = &mut self.engine;
        let result = self.lane.follow(NAMESPACES[space], |number| engine.fence(space, number));
        assert_eq!(result, Ok(()));
    }

    fn engine_packet(&mut self, script: &mut Script<'_>) {
        let kind = script.next() % 5;
        let size = sizes(script);
        let attachments = if kind == 3 { &[0, 65_536, 3][..1 + size % 3] } else { &[] };
        let begins = ["2", "43", "6"].get(kind).copied().unwrap_or("43");
        let (number, mut bytes) = self.packet(Kind::Other, 0, begins, size, attachments);
        let pong = (PONG, format!("[{number}]").into_bytes());
        let packet = &mut self.packets[number];
        match kind {
            // The answer to a client's ping may come in between.
            3 => packet.frames.insert(1, pong),
            4 => packet.frames = vec![pong],
            _ => {}
        }
        if kind >= 3 {
            bytes = frames(&packet.frames);
        }
        self.engine.queue.push_back(Item { bytes, what: What::Packet(number) });
    }

    /// The engine ends, with or without what is in its queue.
    fn close(&mut self, drains: bool) {
        if mem::replace(&mut self.closing, true) {
            return;
        }
        if drains {
            self.engine.pull(usize::MAX);
        }
        for Item { what, .. } in self.engine.queue.drain(..) {
            match what {
                What::Packet(number) => self.packets[number].fate = Fate::Impossible,
                What::Fence { space } => lose(&mut self.packets, space),
            }
        }
        for (space, Space { stay, .. }) in self.spaces.into_iter().enumerate() {
            if matches!(stay, Stay::Expected | Stay::ConnectQueued) {
                lose(&mut self.packets, space);
            }
        }
        self.engine.out.extend(frames(&[(CLOSE, Vec::new())]));
    }

    fn write(&mut self) {
        if self.engine.out.is_empty() {
            return;
        }
        let (between, pending) = {
            let lane = self.lane.out();
            (lane.packets.between(), lane.pending_bytes())
        };
        let lane_bytes = self.lane_bytes();
        if between {
            self.waits.get_or_insert((lane_bytes, pending));
        }
        let before = self.kernel.0.borrow().bytes.len();
        let (result, progress) = self.lane.write(&self.engine.out);
        self.accounted += progress.volatile_events;
        match result {
            Ok(length) => {
                assert!(length > 0, "tungstenite takes that for the end");
                self.engine.out.drain(..length);
                let fence = self.kernel.0.borrow().bytes.len() == before;
                self.engine_bytes += if fence { 0 } else { length };
                if let Some((then, pending)) = self.waits.take() {
                    let others = self.lane_bytes() - then;
                    let most = pending + self.segment_bytes;
                    assert!(others <= most, "the engine waited for {others} bytes, not {pending}");
                }
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }

    fn flush(&mut self) {
        let (result, progress) = self.lane.flush();
        self.accounted += progress.volatile_events;
        match result {
            Ok(()) => {
                assert!(self.waits.is_some() || !self.lane.can_flush(), "something is left");
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }

    fn lane_bytes(&self) -> usize {
        self.kernel.0.borrow().bytes.len() - self.engine_bytes
    }

    /// What must hold after every step.
    fn check(&self) {
        let lane = self.lane.out();
        let held = lane.doors.iter().flat_map(|door| &door.held).flat_map(|held| &held.segments);
        let held: usize = held.map(|segment| segment.frames.len()).sum();
        assert_eq!(lane.waiting.bytes, lane.pending_bytes() + held);
        assert_eq!(lane.waiting.bytes as i64, self.waiting.get());
        // However much it is, one segment may be held, and one pending.
        let most = self.bytes_max.max(self.segment_bytes) + self.segment_bytes;
        assert!(lane.waiting.bytes <= most, "{} bytes wait", lane.waiting.bytes);
        assert!(lane.pending.iter().filter(|segment| segment.volatile).count() <= 1);
        assert!(!lane.begun || !lane.pending.is_empty());
    }

    /// Lets everything go its way, and looks at what has come of it.
    fn finish(mut self) {
        for space in 0..NAMESPACES.len() {
            while !self.closing && self.spaces[space].stay != Stay::In {
                self.come(space);
            }
        }
        {
            let mut taken = self.kernel.0.borrow_mut();
            (taken.room, taken.at_a_time) = (usize::MAX, usize::MAX);
        }
        if !self.closing {
            self.engine.pull(usize::MAX);
        }
        while !self.engine.out.is_empty() {
            self.write();
            self.check();
        }
        self.flush();
        self.check();
        assert_eq!(self.lane.out().waiting.bytes, 0, "everything is written");
        assert_eq!(self.waiting.get(), 0);
        let undelivered = self.lane.end();
        assert!(undelivered == 0 || self.closing);
        assert_eq!(self.accounted + undelivered, self.waited, "volatile events");
        self.judge();
    }

    fn judge(&self) {
        let taken = self.kernel.0.borrow();
        let stream = taken.bytes.strip_prefix(HEAD).expect("the head comes first");
        let mut frames = parse(stream).into_iter();
        let mut arrived = Vec::new();
        while let Some(first) = frames.next() {
            if first.0 == CLOSE {
                assert!(self.closing);
                assert_eq!(frames.len(), 0, "after the close frame");
                break;
            }
            let number = number(&first.1).expect("a packet, and not a fence");
            let packet = &self.packets[number];
            assert!(packet.frames[0] == first, "packet {number}");
            for expected in &packet.frames[1..] {
                assert!(frames.next().as_ref() == Some(expected), "an attachment of {number}");
            }
            arrived.push(number);
        }
        let is_engines = |number: &usize| self.engine.order.contains(number);
        let engines: Vec<_> = arrived.iter().copied().filter(is_engines).collect();
        assert_eq!(engines, self.engine.order, "the engine's packets, in their order");
        for (number, packet) in self.packets.iter().enumerate() {
            let times = arrived.iter().filter(|one| **one == number).count();
            match packet.fate {
                Fate::Due => assert_eq!(times, 1, "packet {number} of {:?}", packet.kind),
                Fate::Possible => assert!(times <= 1, "packet {number}"),
                Fate::Impossible => assert_eq!(times, 0, "packet {number}"),
            }
        }
        for space in 0..NAMESPACES.len() {
            self.judge_space(space, &arrived);
        }
    }

    fn judge_space(&self, space: usize, arrived: &[usize]) {
        let (mut last, mut connected) = (None, 0);
        for number in arrived {
            let packet = &self.packets[*number];
            match packet.kind {
                _ if packet.space != space => {}
                Kind::Other => {}
                Kind::Connect => connected = packet.times,
                Kind::Event => {
                    assert_eq!(packet.times, connected, "event {number}, its CONNECT packet");
                    assert!(last < Some(number), "event {number} after {last:?}");
                    last = Some(number);
                }
            }
        }
    }
}

fn fence(space: usize, number: i64) -> Vec<u8> {
    frames(&[(TEXT, format!("43{}{number}[]", prefix(space)).into())])
}

/// What waits for a fence in this namespace may never get there.
fn lose(packets: &mut [Packet], space: usize) {
    let due = packets.iter_mut().filter(|one| one.fate == Fate::Due && one.space == space);
    due.filter(|one| one.kind == Kind::Event).for_each(|one| one.fate = Fate::Possible);
}

fn prefix(space: usize) -> &'static str {
    ["", "/chat,"][space]
}

fn sizes(script: &mut Script<'_>) -> usize {
    let size = script.next();
    match size {
        0..3 => [65_535, 65_536, 100_000][size],
        3..100 => size + 30,
        100..110 => 2_000,
        _ => 0,
    }
}

fn frames(all: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (opcode, payload) in all {
        bytes.push(0x80 | opcode);
        match payload.len() {
            length @ 0..=125 => bytes.push(length as u8),
            length @ 126..=65_535 => {
                bytes.push(126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
    }
    bytes
}

/// The client's side: whole, final and unmasked frames, and nothing else.
fn parse(mut stream: &[u8]) -> Vec<Frame> {
    let mut all = Vec::new();
    while let [first, second, rest @ ..] = stream {
        assert_eq!(first & 0xf0, 0x80, "a final frame");
        let (length, rest) = match second {
            126 => {
                let (length, rest) = rest.split_first_chunk().expect("a length");
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk().expect("a length");
                (u64::from_be_bytes(*length) as usize, rest)
            }
            short => (usize::from(*short), rest),
        };
        assert!(second & 0x80 == 0, "not masked");
        let (payload, rest) = rest.split_at_checked(length).expect("a whole frame");
        all.push((first & 0x0f, payload.to_vec()));
        stream = rest;
    }
    assert!(stream.is_empty(), "half a frame is left");
    all
}

/// The number of a packet.
fn number(payload: &[u8]) -> Option<usize> {
    let from = payload.iter().position(|byte| *byte == b'[')? + 1;
    let to = from + payload[from..].iter().position(|byte| *byte == b']')?;
    std::str::from_utf8(&payload[from..to]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, max_shrink_iters: 500, ..Default::default() })]
        #[test]
        fn whatever_is_sent_arrives_whole_and_in_order(
            script in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            play(&script);
        }
    }
}
