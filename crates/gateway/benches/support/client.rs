//! Clients that cost next to nothing, so that the server is what gets measured: a bare TCP stream,
//! a hand-written upgrade request and frames of a few bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::websocket::{text_frame, upgrade_request};

/// Far more than any server needed; whoever is not in by then has failed.
const ALL_IN_DEADLINE: Duration = Duration::from_secs(60);

/// A client whose SYN was dropped sends it again after one second.
const DROPPED_SYN: Duration = Duration::from_millis(900);

/// Few enough for a server's limit per client address, and for the local ports of one address,
/// which stay taken for a minute after their connection ended.
const CLIENTS_PER_SOURCE: usize = 200;

/// Holds any frame of a handshake. The default, 8 kB, would be 80 MB for clients that do nothing.
const READ_BUFFER_BYTES: usize = 256;

/// Hands out loopback addresses to connect from: all of 127.0.0.0/8 is ours on Linux.
#[derive(Default)]
pub(crate) struct Sources {
    handed_out: usize,
}

impl Sources {
    fn next(&mut self) -> Ipv4Addr {
        // Skips 127.0.x.x, where people let things listen. Wraps round after 65,536 addresses.
        let [.., high, low] = (self.handed_out / CLIENTS_PER_SOURCE).to_be_bytes();
        self.handed_out += 1;
        Ipv4Addr::new(127, 1, high, low)
    }
}

/// How it went until everyone was in.
#[derive(Default)]
pub(crate) struct Arrival {
    pub(crate) connected: usize,
    /// TCP connects that took as long as one whose first SYN was dropped.
    pub(crate) slow_connects: usize,
    /// From the first connect to the last `40{…}`.
    pub(crate) all_in: Duration,
}

/// Clients that are connected and idle. Dropping it closes their connections.
pub(crate) struct Crowd {
    clients: JoinSet<Result<()>>,
}

impl Crowd {
    /// Connects `count` clients as fast as they can, `in_flight` of them at a time.
    pub(crate) async fn gather(
        server: SocketAddr,
        sources: &mut Sources,
        count: usize,
        in_flight: usize,
    ) -> (Self, Arrival) {
        let gate = Arc::new(Semaphore::new(in_flight));
        let (report, mut reports) = mpsc::channel(count);
        let mut clients = JoinSet::new();
        let start = Instant::now();
        let deadline = start + ALL_IN_DEADLINE;
        for _ in 0..count {
            let (source, gate, report) = (sources.next(), Arc::clone(&gate), report.clone());
            clients.spawn(async move {
                let permit = gate.acquire_owned().await?;
                let connecting = timeout_at(deadline.into(), Client::connect(source, server));
                let (client, connect_time) = connecting.await.context("no time left")??;
                drop(permit);
                report.send(connect_time).await?;
                // The channel closes when everyone is in or has failed.
                drop(report);
                client.idle().await
            });
        }
        drop(report);

        let mut arrival = Arrival::default();
        while let Some(connect_time) = reports.recv().await {
            arrival.connected += 1;
            arrival.slow_connects += usize::from(connect_time > DROPPED_SYN);
            arrival.all_in = start.elapsed();
        }
        (Self { clients }, arrival)
    }

    /// How many have failed or lost their connection; says why the first did.
    pub(crate) fn failed(&mut self) -> usize {
        let mut failed = 0;
        while let Some(ended) = self.clients.try_join_next() {
            if let (0, Ok(Err(error))) = (failed, ended) {
                eprintln!("  a client failed: {error:#}");
            }
            failed += 1;
        }
        failed
    }

    /// Disconnects everyone; returns when every connection is closed.
    pub(crate) async fn leave(mut self) {
        self.clients.shutdown().await;
    }
}

/// One Socket.IO client, connected to the namespace `/`.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Also tells how long the TCP connect took.
    async fn connect(source: Ipv4Addr, server: SocketAddr) -> Result<(Self, Duration)> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into()).context("no local port")?;
        let start = Instant::now();
        let stream = socket.connect(server).await.context("TCP connect")?;
        let connect_time = start.elapsed();
        stream.set_nodelay(true)?;

        let stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
        let mut client = Self { stream };
        client.upgrade(server).await.context("WebSocket upgrade")?;
        client.packet("0{").await.context("Engine.IO handshake")?;
        client.send("40").await?;
        client.packet("40{").await.context("Socket.IO connect")?;
        Ok((client, connect_time))
    }

    async fn upgrade(&mut self, server: SocketAddr) -> Result<()> {
        self.stream.write_all(upgrade_request(server).as_bytes()).await?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(self.stream.read_line(&mut head).await? > 0, "no answer");
        }
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 101 "), "{status}");
        Ok(())
    }

    /// Answers pings until the connection ends.
    async fn idle(mut self) -> Result<()> {
        loop {
            self.packet("").await?;
        }
    }

    /// Waits for a packet that starts so; answers the pings that come before it.
    async fn packet(&mut self, start: &str) -> Result<()> {
        loop {
            let frame = self.stream.read_u8().await?;
            ensure!(frame == 0x81, "not a text frame: {frame:#04x}");
            let length = match self.stream.read_u8().await? {
                126 => self.stream.read_u16().await?,
                length => length.into(),
            };
            let mut packet = vec![0; length.into()];
            self.stream.read_exact(&mut packet).await?;
            if packet == b"2" {
                self.send("3").await?;
            } else {
                let packet = String::from_utf8_lossy(&packet);
                ensure!(packet.starts_with(start), "unexpected {packet:?}");
                return Ok(());
            }
        }
    }

    async fn send(&mut self, packet: &str) -> Result<()> {
        Ok(self.stream.write_all(&text_frame(packet)).await?)
    }
}
