//! One connection's life: TCP, handshake, Engine.IO, Socket.IO, rooms, open, closed, and back again.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Token};

use super::engineio::{self, Eio, Transport};
use super::intake::{Receiver, Taken};
use super::polling::{self, Polling};
use super::websocket;
use super::worker::{Timer, Worker};
use crate::client::count_reason;
use crate::oracle::{Absence, End};

/// The official client's settings: how long an attempt may take, and how long it waits between two.
const ATTEMPT_US: u64 = 20_000_000;
const BACK_OFF_MIN_US: u64 = 1_000_000;
const BACK_OFF_MAX_US: u64 = 5_000_000;
const BACK_OFF_JITTER: f64 = 0.5;

/// What may wait for a server that does not read. Beyond it messages are not sent, and counted.
const OUT_BYTES_MAX: usize = 1 << 20;

/// Acknowledgements of joins have ids from here on; those of messages are their numbers.
const JOIN_IDS: u64 = 1 << 40;

/// Reads from one connection before the others get their turn.
const READS_IN_A_ROW: usize = 8;

/// Whom a disconnected client was disconnected by.
pub(super) const DROPPED: &str = "dropped by the load test";
const SENT_AWAY: &str = "io server disconnect";
const NOT_YET: &str = "before its first connect";

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not there: before the first attempt, or between two.
    Waiting,
    /// TCP is connecting.
    Connecting,
    /// A WebSocket has been asked for.
    Upgrading,
    /// The session is to be opened.
    Opening,
    /// The namespace is to be joined.
    Joining,
    /// So many rooms are to be joined.
    Entering(u32),
    /// Messages flow.
    Open,
    /// The server sent it away, after which official clients do not come back.
    Gone,
}

/// A time away that is not over.
#[derive(Debug, Clone, Copy)]
struct Away {
    from_us: u64,
    patience_us: u64,
    reason: &'static str,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) receiver: Receiver,
    pub(super) target: u32,
    pub(super) eio: Eio,
    transport: Transport,
    pub(super) state: State,
    /// Timers of earlier connections are void.
    pub(super) generation: u32,
    attempts: u32,
    attempted_us: u64,
    away: Option<Away>,
    arrived: bool,
    pub(super) socket: Option<TcpStream>,
    pub(super) polling: Option<Box<Polling>>,
    /// The beginning of a frame or answer whose rest has not come yet.
    partial: Vec<u8>,
    pub(super) out: Vec<u8>,
    out_at: usize,
    dirty: bool,
    mask: [u8; 4],
    /// When the server was last heard of, as far as heartbeats go.
    heard_us: u64,
    ping_interval_us: u64,
    /// Silence after which the connection is dead.
    silence_us: u64,
    /// When it stopped reading.
    paused_us: Option<u64>,
    /// How long it did not read, earlier on this connection.
    lag_us: u64,
    /// Its place among the worker's senders.
    pub(super) sender: Option<u32>,
}

impl Client {
    pub(super) fn new(
        receiver: Receiver,
        target: u32,
        kind: (Eio, Transport),
        sender: Option<u32>,
    ) -> Self {
        Self {
            receiver,
            target,
            eio: kind.0,
            transport: kind.1,
            state: State::Waiting,
            generation: 0,
            attempts: 0,
            attempted_us: 0,
            away: Some(Away { from_us: 0, patience_us: 0, reason: NOT_YET }),
            arrived: false,
            socket: None,
            polling: None,
            partial: Vec::new(),
            out: Vec::new(),
            out_at: 0,
            dirty: false,
            mask: receiver.index.wrapping_mul(2_654_435_761).to_be_bytes(),
            heard_us: 0,
            ping_interval_us: 0,
            silence_us: 0,
            paused_us: None,
            lag_us: 0,
            sender,
        }
    }

    /// Whether a message of this size would wait behind too much.
    pub(super) fn is_congested(&self) -> bool {
        let body = self.polling.as_ref().map_or(0, |polling| polling.body.len());
        self.out.len() - self.out_at + body > OUT_BYTES_MAX
    }

    /// Whether a goodbye is on its way.
    pub(super) fn is_leaving(&self) -> bool {
        self.state == State::Open && self.polling.as_deref().is_some_and(Polling::is_busy)
    }
}

impl Worker {
    /// Begins an attempt to connect.
    pub(super) fn connect(&mut self, at: usize, now_us: u64) {
        let client = &mut self.clients[at];
        client.generation += 1;
        client.attempted_us = now_us;
        let target = self.plan.targets[client.target as usize].address;
        let source = match self.plan.sources.len() {
            0 => None,
            count => Some(self.plan.sources[client.receiver.index as usize % count]),
        };
        let socket = open_socket(target, source).and_then(|mut socket| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, Token(at * 2), interest)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                let client = &mut self.clients[at];
                client.socket = Some(socket);
                client.state = State::Connecting;
                self.set_timer(at, now_us + ATTEMPT_US, Timer::Attempt);
            }
            Err(error) => self.fail(at, &describe(&error), now_us),
        }
    }

    /// One of a client's sockets has something to say.
    pub(super) fn ready(&mut self, token: usize, event: &mio::event::Event) {
        let at = token / 2;
        if at >= self.clients.len() {
            return;
        }
        if token % 2 == 1 {
            return self.post_ready(at);
        }
        if self.clients[at].state == State::Connecting && !self.connected(at) {
            return;
        }
        if event.is_writable() && self.clients[at].out_at < self.clients[at].out.len() {
            self.flush(at);
        }
        if event.is_readable() {
            self.read(at, event.is_read_closed() || event.is_error());
        }
    }

    /// Whether TCP is connected by now; then the handshake goes out.
    fn connected(&mut self, at: usize) -> bool {
        let client = &mut self.clients[at];
        let Some(socket) = &client.socket else { return false };
        let error = match socket.take_error() {
            Ok(Some(error)) | Err(error) => Some(error),
            Ok(None) => match socket.peer_addr() {
                Ok(_) => None,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return false,
                Err(error) => Some(error),
            },
        };
        if let Some(error) = error {
            let now_us = self.clock.now_us();
            self.fail(at, &describe(&error), now_us);
            return false;
        }
        let target = &self.plan.targets[client.target as usize];
        let transport = client.transport.as_str();
        let query = format!("{}?EIO={}&transport={transport}", target.path, client.eio.number());
        match client.transport {
            Transport::WebSocket => {
                client.out = websocket::upgrade_request(&target.host, &query);
                client.state = State::Upgrading;
            }
            Transport::Polling => {
                client.polling = Some(Box::default());
                client.out = polling::get_request(&target.host, &query);
                client.state = State::Opening;
            }
        }
        client.out_at = 0;
        self.flush(at);
        true
    }

    /// Writes what waits, as far as the system takes it.
    pub(super) fn flush(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.dirty = false;
        if client.transport == Transport::Polling && client.state != State::Opening {
            self.post(at);
        }
        let client = &mut self.clients[at];
        let Some(socket) = &mut client.socket else { return };
        if client.state == State::Connecting {
            return;
        }
        match write_all(socket, &client.out, &mut client.out_at) {
            Ok(true) => {
                // Most clients write once in their life: they keep nothing.
                if client.sender.is_some() {
                    client.out.clear()
                } else {
                    client.out = Vec::new()
                }
                client.out_at = 0;
            }
            Ok(false) => {}
            Err(error) => {
                let now_us = self.clock.now_us();
                self.ended(at, transport_reason(&error), now_us);
            }
        }
    }

    /// Appends a packet to what goes out next.
    pub(super) fn send(&mut self, at: usize, fill: impl FnOnce(&mut Vec<u8>)) {
        let client = &mut self.clients[at];
        match &mut client.polling {
            None => websocket::write(&mut client.out, websocket::TEXT, client.mask, fill),
            Some(polling) => {
                self.packet.clear();
                fill(&mut self.packet);
                engineio::append_packet(client.eio, &mut polling.body, &self.packet);
            }
        }
        self.mark_dirty(at);
    }

    pub(super) fn mark_dirty(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if !client.dirty {
            client.dirty = true;
            self.dirty.push(at as u32);
        }
    }

    /// Reads until there is nothing left, or it is the others' turn.
    pub(super) fn read(&mut self, at: usize, to_the_end: bool) {
        if self.clients[at].paused_us.is_some() {
            return;
        }
        // The buffer is the worker's, and lent to one connection at a time.
        let mut buffer = std::mem::take(&mut self.buffer);
        for turn in 0.. {
            if turn == READS_IN_A_ROW {
                self.unread.push(at as u32);
                break;
            }
            let client = &mut self.clients[at];
            let Some(socket) = &mut client.socket else { break };
            let kept = client.partial.len();
            if kept + kept / 2 >= buffer.len() {
                buffer.resize(buffer.len() * 2, 0);
            }
            buffer[..kept].copy_from_slice(&client.partial);
            let room = buffer.len() - kept;
            let count = match socket.read(&mut buffer[kept..]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let now_us = self.clock.now_us();
                    self.ended(at, transport_reason(&error), now_us);
                    break;
                }
            };
            let now_us = self.clock.now_us();
            if count == 0 {
                self.ended(at, "transport close", now_us);
                break;
            }
            let generation = client.generation;
            let end = kept + count;
            let used = self.consume(at, &buffer[..end], now_us);
            let client = &mut self.clients[at];
            if client.generation != generation || client.socket.is_none() {
                break;
            }
            if used == end {
                if kept > 0 {
                    client.partial = Vec::new();
                }
            } else {
                client.partial.clear();
                client.partial.extend_from_slice(&buffer[used..end]);
            }
            // A read that did not fill the buffer has emptied the socket: the next event says when there is more.
            if count < room && !to_the_end {
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Takes what is whole; how many bytes that was.
    fn consume(&mut self, at: usize, bytes: &[u8], now_us: u64) -> usize {
        let client = &self.clients[at];
        if client.transport == Transport::Polling {
            return self.consume_answer(at, bytes, now_us);
        }
        let mut used = 0;
        if client.state == State::Upgrading {
            used = self.consume_upgrade(at, bytes, now_us);
            if self.clients[at].state == State::Upgrading {
                return used;
            }
        }
        let generation = self.clients[at].generation;
        let receiver = self.clients[at].receiver;
        let received = self.intake.received;
        while used < bytes.len() {
            match websocket::read(&bytes[used..]) {
                websocket::Step::Frame { kind, payload, length } => {
                    used += length;
                    if kind == websocket::TEXT {
                        match self.intake.take(receiver, payload, now_us) {
                            Taken::Message => continue,
                            Taken::Own => {
                                self.message_done(at, now_us);
                                continue;
                            }
                            Taken::NotOurs => self.packet(at, payload, now_us),
                        }
                    } else {
                        self.frame(at, kind, payload, now_us);
                    }
                    let client = &self.clients[at];
                    if client.generation != generation || client.socket.is_none() {
                        break;
                    }
                }
                websocket::Step::Partial { .. } => break,
                websocket::Step::Bad => {
                    self.ended(at, "parse error", now_us);
                    break;
                }
            }
        }
        let target = self.clients[at].target as usize;
        self.intake.counts.received_by_target[target] += self.intake.received - received;
        used
    }

    /// A frame that is no text.
    fn frame(&mut self, at: usize, kind: u8, payload: &[u8], now_us: u64) {
        match kind {
            websocket::CLOSE => self.ended(at, "transport close", now_us),
            websocket::PING => {
                let client = &mut self.clients[at];
                let fill = |out: &mut Vec<u8>| out.extend_from_slice(payload);
                websocket::write(&mut client.out, websocket::PONG, client.mask, fill);
                self.mark_dirty(at);
            }
            websocket::PONG => {}
            _ => self.intake.counts.foreign += 1,
        }
    }

    fn consume_upgrade(&mut self, at: usize, bytes: &[u8], now_us: u64) -> usize {
        match engineio::read_answer(bytes) {
            Ok(None) => 0,
            Ok(Some(answer)) if answer.status == 101 => {
                if websocket::accepts(answer.accept.as_deref()) {
                    self.clients[at].state = State::Opening;
                } else {
                    self.fail(at, "not a WebSocket: its Sec-WebSocket-Accept is wrong", now_us);
                }
                answer.length
            }
            Ok(Some(answer)) => {
                self.fail(at, &format!("HTTP {}", answer.status), now_us);
                answer.length
            }
            Err(()) => {
                self.fail(at, "not HTTP", now_us);
                0
            }
        }
    }

    /// A packet that is no message.
    pub(super) fn packet(&mut self, at: usize, packet: &[u8], now_us: u64) {
        let state = self.clients[at].state;
        match (packet, state) {
            ([b'0', open @ ..], State::Opening) => self.session_opened(at, open, now_us),
            ([b'2', rest @ ..], _) if self.clients[at].eio == Eio::V4 => {
                self.clients[at].heard_us = now_us;
                self.send(at, |out| {
                    out.push(b'3');
                    out.extend_from_slice(rest);
                });
            }
            ([b'3', ..], _) => self.clients[at].heard_us = now_us,
            ([b'6', ..], _) => {}
            ([b'1', ..], _) => self.ended(at, "transport close", now_us),
            ([b'4', b'0', ..], State::Joining) => self.namespace_joined(at, now_us),
            ([b'4', b'1', ..], _) => self.ended(at, SENT_AWAY, now_us),
            ([b'4', b'4', why @ ..], State::Joining) => {
                let why = String::from_utf8_lossy(&why[..why.len().min(100)]);
                self.fail(at, &format!("refused: {why}"), now_us);
            }
            ([b'4', b'3', ack @ ..], _) => self.acknowledged(at, ack, now_us),
            ([b'4', b'2', event @ ..], _) if event.starts_with(b"[\"error\",") => {
                self.refused(at, event, now_us);
            }
            ([b'4', b'2', ..], _) => {
                let client = self.clients[at].receiver.index;
                self.intake.counts.foreign += 1;
                self.intake.counts.culprits.add(client, client, "foreign", 1, 0);
            }
            _ => self.ended(at, "parse error", now_us),
        }
    }

    fn session_opened(&mut self, at: usize, open: &[u8], now_us: u64) {
        let Some(open) = engineio::read_open(open) else {
            return self.fail(at, "its open packet cannot be read", now_us);
        };
        let client = &mut self.clients[at];
        client.heard_us = now_us;
        client.ping_interval_us = open.ping_interval_ms * 1000;
        client.silence_us = (open.ping_interval_ms + open.ping_timeout_ms) * 1000;
        client.state = State::Joining;
        if let Some(polling) = &mut client.polling {
            polling.sid = open.sid;
        }
        let (eio, silence_us, ping_us) = (client.eio, client.silence_us, client.ping_interval_us);
        self.set_timer(at, now_us + silence_us, Timer::Silence);
        match eio {
            // A server of the older protocol joins its clients to the namespace by itself.
            Eio::V3 => self.set_timer(at, now_us + ping_us, Timer::Ping),
            Eio::V4 => self.send(at, |out| out.extend_from_slice(b"40")),
        }
    }

    fn namespace_joined(&mut self, at: usize, now_us: u64) {
        let plan = self.plan.clone();
        let index = self.clients[at].receiver.index;
        let mut joins = 0;
        for flow in plan.flows.iter().filter(|flow| flow.rooms() > 0) {
            let (event, room) = (&flow.join_event, index % flow.rooms());
            let id = JOIN_IDS + u64::from(joins);
            let join = format!("42{id}[\"{event}\",\"room-{room}\"]");
            self.send(at, |out| out.extend_from_slice(join.as_bytes()));
            joins += 1;
        }
        self.clients[at].state = State::Entering(joins);
        if joins == 0 {
            self.opened(at, now_us);
        }
    }

    /// Messages flow from now on.
    fn opened(&mut self, at: usize, now_us: u64) {
        let client = &mut self.clients[at];
        client.state = State::Open;
        client.attempts = 0;
        client.lag_us = 0;
        self.connected += 1;
        self.intake.counts.connects += 1;
        self.intake.counts.connect_latencies.record(now_us - client.attempted_us);
        if let Some(away) = client.away.take() {
            let client_index = client.receiver.index;
            self.absences.push(Absence {
                client: client_index,
                from_us: away.from_us,
                patience_us: away.patience_us,
                until_us: now_us,
                reason: away.reason,
            });
            if client.arrived {
                self.intake.counts.away.record(now_us - away.from_us);
            }
        }
        if !client.arrived {
            client.arrived = true;
            self.arrived += 1;
        }
        if let Some(sender) = client.sender {
            self.eager.push(sender);
        }
    }

    /// `<id>[…]`
    fn acknowledged(&mut self, at: usize, ack: &[u8], now_us: u64) {
        let digits = ack.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let id = std::str::from_utf8(&ack[..digits]).ok().and_then(|id| id.parse::<u64>().ok());
        let reason = refusal(&ack[digits..]);
        match (id, self.clients[at].state) {
            (Some(id), State::Entering(joins)) if id >= JOIN_IDS => {
                if let Some(reason) = reason {
                    return self.fail(at, &format!("cannot join its room: {reason}"), now_us);
                }
                self.clients[at].state = State::Entering(joins - 1);
                if joins == 1 {
                    self.opened(at, now_us);
                }
            }
            (Some(_), State::Open) => match reason {
                Some(_) => self.refused(at, &ack[digits..], now_us),
                None => self.message_done(at, now_us),
            },
            _ => self.intake.counts.foreign += 1,
        }
    }

    /// The server did not take a message.
    fn refused(&mut self, at: usize, text: &[u8], now_us: u64) {
        let reason = refusal(text).unwrap_or_else(|| "without a reason".into());
        count_reason(&mut self.intake.counts.refusals, &reason);
        if let Some(sender) = self.clients[at].sender {
            self.senders[sender as usize].sent.refused += 1;
            self.message_done(at, now_us);
        }
    }

    /// A message is done: another may follow.
    pub(super) fn message_done(&mut self, at: usize, now_us: u64) {
        let Some(index) = self.clients[at].sender else { return };
        let sender = &mut self.senders[index as usize];
        if sender.in_flight > 0 {
            sender.in_flight -= 1;
            sender.moved_us = now_us;
            if sender.in_flight + 1 == sender.in_flight_max {
                self.eager.push(index);
            }
        }
    }

    /// An attempt failed; there will be another.
    pub(super) fn fail(&mut self, at: usize, reason: &str, now_us: u64) {
        count_reason(&mut self.intake.counts.connect_failures, reason);
        self.connect_failures += 1;
        self.drop_connection(at);
        self.back_off(at, now_us);
    }

    /// A connection ended, whoever ended it.
    pub(super) fn ended(&mut self, at: usize, reason: &'static str, now_us: u64) {
        if !self.end_of_open(at, reason, now_us) {
            return self.fail(at, reason, now_us);
        }
        self.drop_connection(at);
        if reason == SENT_AWAY {
            self.clients[at].state = State::Gone;
            self.gone += 1;
        } else {
            self.back_off(at, now_us);
        }
    }

    /// Drops a connection, and comes back: at once, or as if it had been lost.
    pub(super) fn storm(&mut self, at: usize, back_off: bool, now_us: u64) {
        if !self.end_of_open(at, DROPPED, now_us) {
            return;
        }
        self.drop_connection(at);
        if back_off { self.back_off(at, now_us) } else { self.connect(at, now_us) }
    }

    /// Keeps the books of a connection on which messages flowed; `false` if none did.
    fn end_of_open(&mut self, at: usize, reason: &'static str, now_us: u64) -> bool {
        let client = &mut self.clients[at];
        if client.state != State::Open {
            return false;
        }
        self.connected -= 1;
        count_reason(&mut self.intake.counts.disconnects, reason);
        // A client that did not read may have been cut off any time since.
        let lag_us = client.paused_us.map_or(client.lag_us, |paused_us| now_us - paused_us);
        let patience_us = client.silence_us + lag_us;
        client.away = Some(Away { from_us: now_us, patience_us, reason });
        if let Some(sender) = client.sender {
            let sender = &mut self.senders[sender as usize];
            sender.in_flight = 0;
            if let Some(last) = sender.sent.count.checked_sub(1) {
                sender.sent.ends.push(End { at_us: now_us, patience_us, last });
            }
        }
        true
    }

    fn drop_connection(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.generation += 1;
        client.state = State::Waiting;
        client.socket = None;
        client.polling = None;
        client.partial = Vec::new();
        client.out = Vec::new();
        client.out_at = 0;
    }

    /// As the official client waits: longer each time, up to a limit, and never in step with the others.
    fn back_off(&mut self, at: usize, now_us: u64) {
        let client = &mut self.clients[at];
        let doubled = BACK_OFF_MIN_US.saturating_mul(1 << client.attempts.min(10));
        let jitter = 1.0 + BACK_OFF_JITTER * (self.rng.f64() * 2.0 - 1.0);
        let wait_us = ((doubled as f64 * jitter) as u64).min(BACK_OFF_MAX_US);
        client.attempts += 1;
        self.set_timer(at, now_us + wait_us, Timer::Connect);
    }

    /// A timer of the present connection went off.
    pub(super) fn timer(&mut self, at: usize, timer: Timer, now_us: u64) {
        let client = &mut self.clients[at];
        match timer {
            Timer::Connect => self.connect(at, now_us),
            Timer::Attempt => {
                if !matches!(client.state, State::Open | State::Gone) {
                    self.fail(at, "timeout", now_us);
                }
            }
            Timer::Ping => {
                let next = now_us + client.ping_interval_us;
                self.send(at, |out| out.push(b'2'));
                self.set_timer(at, next, Timer::Ping);
            }
            Timer::Silence => {
                let dead_us = client.heard_us + client.silence_us;
                if client.paused_us.is_some() {
                    let later = now_us + client.silence_us;
                    self.set_timer(at, later, Timer::Silence);
                } else if now_us >= dead_us {
                    self.ended(at, "ping timeout", now_us);
                } else {
                    self.set_timer(at, dead_us, Timer::Silence);
                }
            }
        }
    }

    /// Stops reading.
    pub(super) fn pause(&mut self, at: usize, now_us: u64) {
        self.clients[at].paused_us = Some(now_us);
    }

    /// Reads again.
    pub(super) fn resume(&mut self, at: usize, now_us: u64) {
        let client = &mut self.clients[at];
        let Some(paused_us) = client.paused_us.take() else { return };
        client.lag_us = now_us - paused_us;
        client.heard_us = now_us;
        self.unread.push(at as u32);
    }

    /// At the end: who has not come back.
    pub(super) fn finish_absences(&mut self) {
        for client in &self.clients {
            let Some(away) = client.away else { continue };
            self.intake.counts.still_away += u64::from(client.arrived);
            self.absences.push(Absence {
                client: client.receiver.index,
                from_us: away.from_us,
                patience_us: away.patience_us,
                until_us: u64::MAX,
                reason: away.reason,
            });
        }
    }

    /// Says goodbye, if the session would not end otherwise.
    pub(super) fn close_session(&mut self, at: usize) {
        if self.clients[at].polling.is_some() && self.clients[at].state == State::Open {
            self.send(at, |out| out.push(b'1'));
        }
    }
}

/// The reason in `{"ok":false,"error":"reason"…}`, wherever in the text that is.
fn refusal(text: &[u8]) -> Option<String> {
    let find = |what: &[u8]| text.windows(what.len()).position(|part| part == what);
    find(b"\"ok\":false")?;
    const KEY: &[u8] = b"\"error\":\"";
    let start = find(KEY)? + KEY.len();
    let end = text[start..].iter().position(|byte| *byte == b'"')?;
    Some(String::from_utf8_lossy(&text[start..start + end.min(60)]).into_owned())
}

pub(super) fn open_socket(
    target: SocketAddr,
    source: Option<std::net::IpAddr>,
) -> io::Result<TcpStream> {
    let domain = socket2::Domain::for_address(target);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// Whether all is written by now.
pub(super) fn write_all(socket: &mut TcpStream, bytes: &[u8], at: &mut usize) -> io::Result<bool> {
    while *at < bytes.len() {
        match socket.write(&bytes[*at..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => *at += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// As the official client calls it.
pub(super) fn transport_reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::InvalidData => "parse error",
        io::ErrorKind::UnexpectedEof => "transport close",
        _ => "transport error",
    }
}

/// An error without what differs from time to time.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
