//! The driver's connections: Socket.IO over WebSocket on blocking sockets, which cost the machine that
//! is measured as little as can be.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::websocket::{text_frame, upgrade_request};

/// Holds a few hundred events, so that reading them is not what costs.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// How long any answer to a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// What every event begins with, as all peers write it.
const EVENT_START: &[u8] = b"42[\"event\",";

/// A packet of Socket.IO around the arguments, of which [`crate::peers::event`] has the sizes.
const EVENT_BYTES: usize = 2 + crate::peers::EVENT_BYTES;

/// A client of one namespace.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Box<[u8]>,
    unread: Range<usize>,
}

/// An event as it arrives.
pub(crate) struct Event {
    /// Its number: one more than that of the event before it.
    pub(crate) number: u64,
    /// The time that its [`Client::ask`] carried.
    pub(crate) stamp_us: u64,
}

impl Client {
    pub(crate) fn connect(server: SocketAddr, namespace: &str) -> Result<Self> {
        let stream = TcpStream::connect(server).context("TCP connect")?;
        stream.set_nodelay(true)?;
        let buffer = vec![0; READ_BUFFER_BYTES].into_boxed_slice();
        let mut client = Self { stream, buffer, unread: 0..0 };
        client.patience(HANDSHAKE_PATIENCE)?;
        client.stream.write_all(upgrade_request(server).as_bytes())?;
        client.switched().context("WebSocket upgrade")?;
        client.expect("0{").context("Engine.IO handshake")?;
        let namespace = if namespace == "/" { String::new() } else { format!("{namespace},") };
        client.send(&format!("40{namespace}"))?;
        client.expect(&format!("40{namespace}{{")).context("Socket.IO connect")?;
        Ok(client)
    }

    /// How long to wait for anything to arrive.
    pub(crate) fn patience(&self, patience: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(patience))?)
    }

    /// Asks the publisher for `count` events that carry `stamp_us`.
    pub(crate) fn ask(&mut self, count: u64, stamp_us: u64) -> Result<()> {
        self.send(&format!("42{},[\"go\",{count},{stamp_us}]", crate::peers::CONTROL))
    }

    /// The next event; none when nothing arrives in time.
    pub(crate) fn event(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(packet) = self.packet()? else { return Ok(None) };
            let packet = &self.buffer[packet];
            if packet == b"2" {
                self.send("3")?;
                continue;
            }
            let event = parse(packet);
            let text = || format!("unexpected {:?}", String::from_utf8_lossy(packet));
            return Ok(Some(event.with_context(text)?));
        }
    }

    fn expect(&mut self, start: &str) -> Result<()> {
        loop {
            let packet = self.packet()?.context("no answer in time")?;
            let packet = &self.buffer[packet];
            if packet == b"2" {
                self.send("3")?;
                continue;
            }
            let text = String::from_utf8_lossy(packet);
            ensure!(text.starts_with(start), "unexpected {text:?}");
            return Ok(());
        }
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        Ok(self.stream.write_all(&text_frame(packet))?)
    }

    fn switched(&mut self) -> Result<()> {
        const END: &[u8] = b"\r\n\r\n";
        loop {
            let head = &self.buffer[self.unread.clone()];
            if let Some(end) = head.windows(END.len()).position(|window| window == END) {
                ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(head));
                self.unread.start += end + END.len();
                return Ok(());
            }
            ensure!(self.fill()?, "no answer in time");
        }
    }

    /// Where the next packet is in the buffer; none when nothing arrives in time.
    fn packet(&mut self) -> Result<Option<Range<usize>>> {
        loop {
            if let Some((payload, end)) = frame(&self.buffer[self.unread.clone()])? {
                let start = self.unread.start;
                self.unread.start += end;
                return Ok(Some(start + payload.start..start + payload.end));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads more; false when nothing arrives in time.
    fn fill(&mut self) -> Result<bool> {
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        ensure!(self.unread.end < self.buffer.len(), "a packet larger than any that was asked for");
        match self.stream.read(&mut self.buffer[self.unread.end..]) {
            Ok(0) => bail!("closed by the server"),
            Ok(read) => self.unread.end += read,
            // The same, on different systems.
            Err(late) if matches!(late.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }
}

/// Where the payload of the first frame is, and where the frame ends, once it is there as a whole.
fn frame(bytes: &[u8]) -> Result<Option<(Range<usize>, usize)>> {
    let (start, length): (usize, usize) = match *bytes {
        [0x81, 126, high, low, ..] => (4, u16::from_be_bytes([high, low]).into()),
        [0x81, 126, ..] | [] | [_] => return Ok(None),
        [0x81, length @ ..126, ..] => (2, length.into()),
        [kind, ..] => bail!("not a short text frame: {kind:#04x}"),
    };
    let end = start + length;
    Ok((bytes.len() >= end).then_some((start..end, end)))
}

fn parse(packet: &[u8]) -> Option<Event> {
    let arguments = packet.strip_prefix(EVENT_START).filter(|_| packet.len() == EVENT_BYTES)?;
    let mut numbers = arguments.split(|byte| *byte == b',').map(|number| {
        let text = std::str::from_utf8(number).ok()?;
        text.parse().ok()
    });
    Some(Event { number: numbers.next()??, stamp_us: numbers.next()?? })
}
