//! A TCP proxy that can cut, stall, refuse and heal.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};

#[derive(Debug, Clone, Copy, Default)]
struct Mode {
    generation: u64,
    stalled: bool,
    refusing: bool,
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

    pub(crate) fn heal(&self) {
        self.mode.send_modify(|mode| (mode.stalled, mode.refusing) = (false, false));
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
        let generation = mode.borrow().generation;
        let up = copy(client_read, server_write, mode.subscribe());
        let down = copy(server_read, client_write, mode.subscribe());
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

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if mode.wait_for(|mode| !mode.stalled).await.is_err() {
            return;
        }
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        if mode.wait_for(|mode| !mode.stalled).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
