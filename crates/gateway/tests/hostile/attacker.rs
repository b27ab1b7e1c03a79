//! Clients that write what they like and read only when they like, and one that suffers from them.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{client::Client, harness::DEADLINE};

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const PING: u8 = 0x89;
/// The first frame of a message that goes on.
pub(crate) const TEXT_BEGINS: u8 = 0x01;
/// The last frame of such a message.
pub(crate) const ENDS: u8 = 0x80;

/// Time in which a node that reads at all reads something.
const STALLED: Duration = Duration::from_secs(2);

/// A WebSocket frame as a client sends it, masked with zeros.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ ..126 => frame.push(0x80 | length as u8),
        length @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// A WebSocket in "/" from which nothing is read after the CONNECT answer, with as small a receive
/// buffer as the kernel gives it.
pub(crate) async fn silent(address: SocketAddr) -> TcpStream {
    try_silent(address, 4, Some(2048)).await.expect("the node takes clients")
}

/// The same for a revision of Engine.IO and a size of the buffer; None if the node refuses.
pub(crate) async fn try_silent(
    address: SocketAddr,
    revision: u8,
    buffer: Option<u32>,
) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(buffer) = buffer {
        socket.set_recv_buffer_size(buffer).expect("a size");
    }
    let mut stream = socket.connect(address).await.ok()?;
    let head = format!(
        "GET /socket.io/?EIO={revision}&transport=websocket HTTP/1.1\r\nHost: x\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    if revision == 4 {
        stream.write_all(&frame(TEXT, b"40")).await.ok()?;
    }
    let connected: &[u8] = if revision == 4 { b"40{" } else { b"\x81\x0240" };
    let mut answer = Vec::new();
    while !answer.windows(connected.len()).any(|part| part == connected) {
        let read = timeout(DEADLINE, stream.read_buf(&mut answer)).await.expect("in time");
        if read.ok()? == 0 {
            return None;
        }
    }
    Some(stream)
}

/// What became of bytes that were written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Written {
    /// The node, or the kernel, took them all.
    All,
    /// The node does not read.
    Stalled,
    /// The node has closed the connection.
    Closed,
}

pub(crate) async fn write(stream: &mut TcpStream, bytes: &[u8]) -> Written {
    match timeout(STALLED, stream.write_all(bytes)).await {
        Ok(Ok(())) => Written::All,
        Ok(Err(_)) => Written::Closed,
        Err(_) => Written::Stalled,
    }
}

/// The same connection, for a thread of its own.
pub(crate) fn blocking(stream: TcpStream) -> std::net::TcpStream {
    let stream = stream.into_std().expect("a socket");
    stream.set_nonblocking(false).expect("set");
    stream
}

/// Writes these bytes again and again, in a thread of its own, until the node closes.
pub(crate) fn flood(mut stream: std::net::TcpStream, bytes: Vec<u8>) {
    std::thread::spawn(move || while stream.write_all(&bytes).is_ok() {});
}

/// Reads until the node closes.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset is as good an end as any.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("it closes in time");
    answer
}

/// An HTTP request over a connection of its own, from an address of this machine: status, head and
/// body.
pub(crate) async fn request(
    address: SocketAddr,
    from: Ipv4Addr,
    method_and_path: &str,
    body: &str,
) -> (u16, String, String) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("an address of this machine");
    let mut stream = socket.connect(address).await.expect("the node listens");
    let length = body.len();
    let request = format!(
        "{method_and_path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let answer = String::from_utf8(read_to_end(&mut stream).await).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), head.to_owned(), body.to_owned())
}

/// Somebody who chats while others attack.
pub(crate) struct Bystander {
    client: Client,
    event: &'static str,
    sent: u64,
}

impl Bystander {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { client: Client::connect(address).await, event: "chat_message", sent: 0 }
    }

    /// One that talks to the node alone, and hears nobody else.
    pub(crate) async fn echoing(address: SocketAddr) -> Self {
        Self { event: "server_message", ..Self::connect(address).await }
    }

    /// Sends so many messages, one after another: the time that 99 of 100 took at most to be
    /// acknowledged and to come back.
    pub(crate) async fn p99(&mut self, messages: usize) -> Duration {
        let mut times = Vec::new();
        for _ in 0..messages {
            let event = json!([self.event, self.sent]);
            let started = Instant::now();
            let answer = self.client.ask(self.sent, event.clone()).await;
            assert_eq!(answer, json!([{ "ok": true }]));
            assert_eq!(self.client.event().await, event);
            times.push(started.elapsed());
            self.sent += 1;
        }
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }

    /// Checks that messages take at most twice as long as `before`. Below 40 ms times are those of
    /// a machine that does other things, too.
    pub(crate) async fn is_undisturbed(&mut self, messages: usize, before: Duration) {
        let p99 = self.p99(messages).await;
        let most = (before * 2).max(Duration::from_millis(40));
        assert!(p99 <= most, "p99 of a bystander: {p99:?}, {before:?} before");
    }
}
