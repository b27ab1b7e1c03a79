//! One client's connection: what of a frame has come so far, and what it has not taken yet.

use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;

/// Beyond it a client is too slow, and is closed.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The connection is over, for whatever reason.
#[derive(Debug)]
pub(crate) struct Gone;

/// As far as a connection has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    /// The head of its request is to come.
    Request,
    /// It speaks Engine.IO, and is not in the namespace.
    Open,
    /// It gets what the batch holds from this byte on: what stood before is from before its time.
    Member { batch_from: usize },
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    /// Tells it from one that had its place in the table before.
    pub(crate) serial: u64,
    pub(crate) stage: Stage,
    /// The beginning of a frame, or of the request.
    pub(crate) unread: Vec<u8>,
    /// What the kernel has not taken, behind `written` bytes that it has.
    waiting: Vec<u8>,
    written: usize,
}

impl Client {
    pub(crate) fn new(stream: TcpStream, serial: u64) -> Self {
        let (unread, waiting) = (Vec::new(), Vec::new());
        Self { stream, serial, stage: Stage::Request, unread, waiting, written: 0 }
    }

    /// How many bytes came; `None` if there are none now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Gone> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(Gone),
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Sends, or keeps for later, what of `bytes` cannot be sent now.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        let taken = if self.waiting.is_empty() { write(&mut self.stream, bytes)? } else { 0 };
        let rest = &bytes[taken..];
        if self.waiting.len() - self.written + rest.len() > WAITING_BYTES_MAX {
            return Err(Gone);
        }
        self.waiting.extend_from_slice(rest);
        Ok(())
    }

    /// Sends what waits, once the kernel takes more.
    pub(crate) fn flush(&mut self) -> Result<(), Gone> {
        self.written += write(&mut self.stream, &self.waiting[self.written..])?;
        if self.written == self.waiting.len() {
            // Gives the memory back: most clients never wait.
            (self.waiting, self.written) = (Vec::new(), 0);
        } else if self.written > self.waiting.len() / 2 {
            self.waiting.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}

/// How much the kernel took; less than all only if it takes no more now.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize, Gone> {
    let mut taken = 0;
    while taken < bytes.len() {
        match stream.write(&bytes[taken..]) {
            Ok(0) => return Err(Gone),
            Ok(length) => taken += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Gone),
        }
    }
    Ok(taken)
}
