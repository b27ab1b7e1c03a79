//! A TCP proxy that can cut, stall, strand, delay, refuse and heal.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Batches of bytes that may be on their way in one direction; what does not fit waits with its sender.
const BATCHES_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, Default)]
struct Mode {
    generation: u64,
    stalled: bool,
    refusing: bool,
    delay: Duration,
    /// Connections made so far, which is the next one's number.
    made: u64,
    /// Those with lower numbers are stalled for ever.
    stranded: u64,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let mode = watch::Sender::new(Mode::default());
        let task = tokio::spawn(accept(listener, to, mode.clone()));
        Self { port, mode, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Closes the present connections.
    pub(crate) fn cut(&self) {
        self.mode.send_modify(|mode| mode.generation += 1);
    }

    /// Closes the present connections, and new ones at once.
    pub(crate) fn down(&self) {
        self.mode.send_modify(|mode| {
            mode.generation += 1;
            mode.refusing = true;
        });
    }

    /// Moves nothing in either direction.
    pub(crate) fn stall(&self) {
        self.mode.send_modify(|mode| mode.stalled = true);
    }

    /// Moves nothing on the present connections, ever again; new ones work.
    pub(crate) fn strand(&self) {
        self.mode.send_modify(|mode| mode.stranded = mode.made);
    }

    /// Passes on everything, but later: each batch by this much, in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        self.mode.send_modify(|mode| mode.delay = delay);
    }

    pub(crate) fn heal(&self) {
        self.mode.send_modify(|mode| {
            (mode.stalled, mode.refusing, mode.delay) = (false, false, Duration::ZERO);
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, to: u16, mode: watch::Sender<Mode>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        if mode.borrow().refusing {
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let Mode { generation, made: number, .. } = *mode.borrow();
        mode.send_modify(|mode| mode.made += 1);
        let traffic = || Traffic { mode: mode.subscribe(), number };
        let up = copy(client_read, server_write, traffic());
        let down = copy(server_read, client_write, traffic());
        let mut cut = mode.subscribe();
        connections.spawn(async move {
            tokio::select! {
                _ = cut.wait_for(|mode| mode.generation != generation) => {}
                () = up => {}
                () = down => {}
            }
        });
    }
}

/// Moves bytes one way. What is delayed waits in a queue, so that it is late and not slow: a sleep between
/// reading and writing would let through one batch in each such time.
async fn copy(from: OwnedReadHalf, to: OwnedWriteHalf, traffic: Traffic) {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    tokio::join!(read(from, sender, traffic.clone()), write(receiver, to, traffic));
}

async fn read(
    mut from: OwnedReadHalf,
    into: mpsc::Sender<(Instant, Vec<u8>)>,
    mut traffic: Traffic,
) {
    let mut buffer = vec![0; 64 << 10];
    while traffic.moves().await.is_some() {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        // Asked now: it may have changed while there was nothing to read.
        let Some(delay) = traffic.moves().await else { return };
        let batch = (Instant::now() + delay, buffer[..count].to_vec());
        if into.send(batch).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut batches: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    mut traffic: Traffic,
) {
    while let Some((due, bytes)) = batches.recv().await {
        sleep_until(due).await;
        if traffic.moves().await.is_none() || to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What is to happen to one connection's bytes.
#[derive(Clone)]
struct Traffic {
    mode: watch::Receiver<Mode>,
    number: u64,
}

impl Traffic {
    /// Waits while the connection is stalled, and tells the delay of what is moved now. `None` once the
    /// proxy is gone.
    async fn moves(&mut self) -> Option<Duration> {
        let number = self.number;
        let mode = self.mode.wait_for(|mode| !mode.stalled && number >= mode.stranded).await;
        mode.ok().map(|mode| mode.delay)
    }
}
