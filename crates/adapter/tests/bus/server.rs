//! A redis-server for one test.

use std::{
    net::TcpListener,
    ops::Range,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tempfile::TempDir;

use crate::wait::eventually;

pub(crate) struct Server {
    dir: TempDir,
    pub(crate) port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts a server on a free port and waits until it answers.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let mut server = Self::not_started(arguments);
        server.run().await;
        server
    }

    /// A server that is to be started later.
    pub(crate) fn not_started(arguments: &[&str]) -> Self {
        let port = free_port();
        let dir = TempDir::new().expect("a temporary directory");
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { dir, port, arguments, child: None }
    }

    /// Starts it, or starts it again on the same port.
    pub(crate) async fn run(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--unixsocket", &self.unix_socket()])
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect(
            "redis-server cannot be started: these tests need it (Debian: apt-get install redis-server)",
        ));
        let answers = async || self.answers().await;
        eventually("redis-server answers", Duration::from_secs(10), answers).await;
    }

    /// Whether it answers, and soon.
    pub(crate) async fn answers(&self) -> bool {
        let client = redis::Client::open(self.url()).expect("a valid url");
        client.get_multiplexed_async_connection().await.is_ok()
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn unix_socket(&self) -> String {
        self.dir.path().join("redis.sock").display().to_string()
    }

    /// Runs a command as the administrator, on a connection of its own.
    pub(crate) async fn admin(&self, command: &[&str]) {
        let client = redis::Client::open(self.url()).expect("a valid url");
        let mut connection =
            client.get_multiplexed_async_connection().await.expect("the server is up");
        let mut asked = redis::Cmd::new();
        command.iter().for_each(|word| {
            asked.arg(word);
        });
        asked.query_async::<redis::Value>(&mut connection).await.expect("the command succeeds");
    }
}

/// A port that was free a moment ago. Not one of those that the system gives to outgoing connections: it
/// may give it away while the server is down, even to who is looking for the server, and finds itself.
pub(crate) fn free_port() -> u16 {
    const RANGE: Range<u32> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Tests in other processes look elsewhere.
        let number = std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = RANGE.start + number % (RANGE.end - RANGE.start);
        let port = u16::try_from(port).expect("within the range");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
