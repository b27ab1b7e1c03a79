//! The loop: takes in what clients sent, and when everyone who had something was heard, hands everyone
//! the batch.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::event::Event;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::{Domain, Socket, Type};

use crate::client::{Client, Gone, Stage};
use crate::websocket::{self, PAYLOAD_BYTES_MAX};

/// A storm of clients overflows the usual 128, and whoever is dropped there comes again a second later. The
/// kernel lowers it to what it allows.
const BACKLOG: i32 = 4096;

/// As Node's `pingInterval` and `pingTimeout`.
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Delivered at once when it has grown so large, even if there is more to take in.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Clients that are heard between two deliveries; a saturated one has fewer senders than that.
const EVENTS_MAX: usize = 1024;

/// One read takes in what a sender has in flight.
const READ_BYTES: usize = 64 * 1024;

const LISTENER: Token = Token(usize::MAX);

pub(crate) struct Server {
    poll: Poll,
    listener: TcpListener,
    clients: Slab<Client>,
    /// Counts connections; also what their ids are made of.
    serial: u64,
    /// When whom is to be sent a ping, soonest first, as the interval is the same for all.
    pings: VecDeque<(Instant, usize, u64)>,
    /// Frames for everyone.
    batch: Vec<u8>,
    /// Read into by all connections, so that an idle one has no buffer.
    buffer: Vec<u8>,
}

impl Server {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let (poll, mut listener) = (Poll::new()?, TcpListener::from_std(socket.into()));
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            clients: Slab::new(),
            serial: 0,
            pings: VecDeque::new(),
            batch: Vec::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    pub(crate) fn run(&mut self) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            let next_ping = self.pings.front().map(|(at, ..)| at.duration_since(Instant::now()));
            match self.poll.poll(&mut events, next_ping) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result.context("epoll")?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept().context("cannot take more clients")?,
                    Token(key) => self.serve(key, event),
                }
            }
            self.deliver();
            self.ping();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let entry = self.clients.vacant_entry();
            // Both at once and for good: what is edge-triggered costs nothing while nothing changes.
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(entry.key()), both)?;
            self.serial += 1;
            entry.insert(Client::new(stream, self.serial));
        }
    }

    fn serve(&mut self, key: usize, event: &Event) {
        // It may have gone since, and another be in its place, to which the event does no harm.
        let Some(client) = self.clients.get_mut(key) else { return };
        let flushed = if event.is_writable() { client.flush() } else { Ok(()) };
        if flushed.and_then(|()| self.hear(key, event)).is_err() {
            self.clients.try_remove(key);
        }
    }

    /// Reads what the client sent.
    fn hear(&mut self, key: usize, event: &Event) -> Result<(), Gone> {
        if !event.is_readable() {
            return Ok(());
        }
        loop {
            let Some(client) = self.clients.get_mut(key) else { return Err(Gone) };
            let Some(length) = client.read(&mut self.buffer)? else { return Ok(()) };
            if client.unread.is_empty() {
                let mut buffer = std::mem::take(&mut self.buffer);
                let used = self.take_in(key, &mut buffer[..length]);
                self.buffer = buffer;
                let rest = &self.buffer[used?..length];
                self.clients[key].unread.extend_from_slice(rest);
            } else {
                client.unread.extend_from_slice(&self.buffer[..length]);
                let mut unread = std::mem::take(&mut client.unread);
                let used = self.take_in(key, &mut unread)?;
                unread.drain(..used);
                // An empty one gives its memory back.
                self.clients[key].unread = if unread.is_empty() { Vec::new() } else { unread };
            }
            if self.batch.len() >= BATCH_BYTES_MAX {
                self.deliver();
            }
            // Less than there was room for was all there is, unless the end has come behind it.
            if length < READ_BYTES && !event.is_read_closed() {
                return Ok(());
            }
        }
    }

    /// Says how many bytes were whole packets.
    fn take_in(&mut self, key: usize, bytes: &mut [u8]) -> Result<usize, Gone> {
        let mut used = 0;
        if self.clients[key].stage == Stage::Request {
            let Some((answer, length)) = websocket::accept(bytes).map_err(|_| Gone)? else {
                return Ok(0);
            };
            used = length;
            self.open(key, answer)?;
        }
        while let Some(payload) = websocket::read_text(&mut bytes[used..]).map_err(|_| Gone)? {
            let end = used + payload.end;
            self.packet(key, &bytes[used + payload.start..end])?;
            used = end;
        }
        Ok(used)
    }

    /// Answers the handshakes of WebSocket and of Engine.IO.
    fn open(&mut self, key: usize, answer: String) -> Result<(), Gone> {
        let client = &mut self.clients[key];
        let packet = format!(
            r#"0{{"sid":"{:020x}","upgrades":[],"pingInterval":{},"pingTimeout":{},"maxPayload":{}}}"#,
            client.serial,
            PING_INTERVAL.as_millis(),
            PING_TIMEOUT.as_millis(),
            PAYLOAD_BYTES_MAX
        );
        let mut bytes = answer.into_bytes();
        websocket::write_text(&mut bytes, packet.as_bytes());
        client.send(&bytes)?;
        client.stage = Stage::Open;
        self.pings.push_back((Instant::now() + PING_INTERVAL, key, client.serial));
        Ok(())
    }

    fn packet(&mut self, key: usize, packet: &[u8]) -> Result<(), Gone> {
        let client = &mut self.clients[key];
        let member = matches!(client.stage, Stage::Member { .. });
        if member && packet.starts_with(br#"42["chat_message","#) {
            websocket::write_text(&mut self.batch, packet);
        } else if !member && (packet == b"40" || packet.starts_with(b"40{")) {
            let mut frame = Vec::new();
            let connected = format!(r#"40{{"sid":"{:020x}"}}"#, client.serial);
            websocket::write_text(&mut frame, connected.as_bytes());
            client.send(&frame)?;
            client.stage = Stage::Member { batch_from: self.batch.len() };
        } else if packet == b"41" {
            client.stage = Stage::Open;
        } else if packet == b"1" {
            return Err(Gone);
        }
        Ok(())
    }

    /// Hands the batch to everyone.
    fn deliver(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = &self.batch;
        self.clients.retain(|_, client| {
            let Stage::Member { batch_from } = &mut client.stage else { return true };
            let due = &batch[std::mem::take(batch_from)..];
            due.is_empty() || client.send(due).is_ok()
        });
        self.batch.clear();
    }

    fn ping(&mut self) {
        let now = Instant::now();
        while let Some((at, key, serial)) = self.pings.pop_front_if(|(at, ..)| *at <= now) {
            let Some(client) = self.clients.get_mut(key) else { continue };
            if client.serial != serial {
                continue;
            }
            let mut frame = Vec::new();
            websocket::write_text(&mut frame, b"2");
            match client.send(&frame) {
                Ok(()) => self.pings.push_back((at + PING_INTERVAL, key, serial)),
                Err(Gone) => drop(self.clients.remove(key)),
            }
        }
    }
}
