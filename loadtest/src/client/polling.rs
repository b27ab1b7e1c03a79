//! A client that polls: one connection waits for packets, the other posts them.

use std::io::{self, Read};

use mio::net::TcpStream;
use mio::{Interest, Token};

use super::conn::{State, open_socket, transport_reason, write_all};
use super::engineio;
use super::intake::Taken;
use super::worker::Worker;

/// The second connection, and what else polling needs.
#[derive(Debug, Default)]
pub(super) struct Polling {
    pub(super) sid: String,
    post: Option<TcpStream>,
    /// TCP of `post` is connected.
    post_ready: bool,
    /// A POST is on its way.
    post_busy: bool,
    post_answer: Vec<u8>,
    post_out: Vec<u8>,
    /// Packets for the next POST.
    pub(super) body: Vec<u8>,
}

impl Polling {
    /// Whether packets are on their way, or wait for it.
    pub(super) fn is_busy(&self) -> bool {
        self.post_busy || !self.body.is_empty()
    }
}

impl Worker {
    pub(super) fn consume_answer(&mut self, at: usize, bytes: &[u8], now_us: u64) -> usize {
        let answer = match engineio::read_answer(bytes) {
            Ok(None) => return 0,
            Ok(Some(answer)) => answer,
            Err(()) => {
                self.ended(at, "parse error", now_us);
                return 0;
            }
        };
        if answer.status != 200 {
            let opening = self.clients[at].state == State::Opening;
            let reason = format!("HTTP {}", answer.status);
            if opening {
                self.fail(at, &reason, now_us)
            } else {
                self.ended(at, "transport error", now_us)
            }
            return answer.length;
        }
        let generation = self.clients[at].generation;
        let (eio, receiver) = (self.clients[at].eio, self.clients[at].receiver);
        let target = self.clients[at].target as usize;
        let received = self.intake.received;
        let mut rest = &answer.body[..];
        while !rest.is_empty() {
            let Some((packet, length)) = engineio::first_packet(eio, rest) else {
                self.ended(at, "parse error", now_us);
                break;
            };
            match self.intake.take(receiver, &rest[packet.clone()], now_us) {
                Taken::Message => {}
                Taken::Own => self.message_done(at, now_us),
                Taken::NotOurs => self.packet(at, &rest[packet], now_us),
            }
            if self.clients[at].generation != generation {
                break;
            }
            rest = &rest[length..];
        }
        self.intake.counts.received_by_target[target] += self.intake.received - received;
        if self.clients[at].generation != generation {
            return answer.length;
        }
        if !answer.keep_alive {
            self.ended(at, "transport close", now_us);
            return answer.length;
        }
        let client = &mut self.clients[at];
        let target = &self.plan.targets[target];
        if let Some(polling) = &client.polling {
            let query = format!(
                "{}?EIO={}&transport=polling&sid={}",
                target.path,
                eio.number(),
                polling.sid
            );
            client.out.extend_from_slice(&get_request(&target.host, &query));
            self.mark_dirty(at);
        }
        answer.length
    }

    /// Posts what waits, unless a POST is on its way.
    pub(super) fn post(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let target = &self.plan.targets[client.target as usize];
        let Some(polling) = &mut client.polling else { return };
        if polling.post_busy || polling.body.is_empty() {
            return;
        }
        let head = format!(
            "POST {}?EIO={}&transport=polling&sid={} HTTP/1.1\r\nHost: {}\r\n\
             Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {}\r\n\r\n",
            target.path,
            client.eio.number(),
            polling.sid,
            target.host,
            polling.body.len()
        );
        polling.post_out = head.into_bytes();
        polling.post_out.append(&mut polling.body);
        polling.post_busy = true;
        if polling.post.is_none() {
            polling.post_ready = false;
            let source = client.socket.as_ref().and_then(|s| s.local_addr().ok()).map(|a| a.ip());
            let registry = self.poll.registry();
            let socket = open_socket(target.address, source).and_then(|mut socket| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                registry.register(&mut socket, Token(at * 2 + 1), interest)?;
                Ok(socket)
            });
            match socket {
                Ok(socket) => polling.post = Some(socket),
                Err(_) => {
                    let now_us = self.clock.now_us();
                    return self.ended(at, "transport error", now_us);
                }
            }
        }
        self.post_ready(at);
    }

    /// The connection that posts can write, or has an answer.
    pub(super) fn post_ready(&mut self, at: usize) {
        match self.drive_post(at) {
            Ok(false) => {}
            // The answer is here: what came up in the meantime goes next.
            Ok(true) => self.post(at),
            Err(error) => {
                let now_us = self.clock.now_us();
                self.ended(at, transport_reason(&error), now_us);
            }
        }
    }

    fn drive_post(&mut self, at: usize) -> io::Result<bool> {
        let Some(polling) = &mut self.clients[at].polling else { return Ok(false) };
        let Some(socket) = &mut polling.post else { return Ok(false) };
        if !polling.post_ready {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            if socket.peer_addr().is_err() {
                return Ok(false);
            }
            polling.post_ready = true;
        }
        let mut written = 0;
        write_all(socket, &polling.post_out, &mut written)?;
        polling.post_out.drain(..written);
        loop {
            let mut chunk = [0; 4096];
            match socket.read(&mut chunk) {
                Ok(0) => {
                    // Between two requests a server may close; the next POST opens another.
                    polling.post = None;
                    let busy = std::mem::take(&mut polling.post_busy);
                    return if busy { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(false) };
                }
                Ok(count) => polling.post_answer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let Some(answer) = engineio::read_answer(&polling.post_answer).map_err(|()| bad())? else {
            return Ok(false);
        };
        polling.post_answer = Vec::new();
        if answer.status != 200 {
            return Err(io::Error::other("the server refuses what is posted"));
        }
        polling.post_busy = false;
        if !answer.keep_alive {
            polling.post = None;
        }
        Ok(true)
    }
}

/// The request that waits for packets.
pub(super) fn get_request(host: &str, path_and_query: &str) -> Vec<u8> {
    format!("GET {path_and_query} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}
