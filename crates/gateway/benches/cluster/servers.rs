//! The processes of one measurement: a Redis, a publisher and a subscriber, which end with it.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::Peer;
use crate::machine::{cpu_time, free_address};

/// The number of the first event. Numbers of one length make events of one size.
pub(crate) const FIRST_NUMBER: u64 = 10_000_000;

/// Longer than any measurement: the driver reads nothing on the connection where it asks.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(3600);

const START_DEADLINE: Duration = Duration::from_secs(10);

/// The npm packages of the Node.js peer: those that the tests with the official clients install.
const NPM_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");
const NPM_INSTALL: &str = "crates/gateway/tests/interop/install";
const NPM_PACKAGES: [&str; 3] = ["socket.io", "@socket.io/redis-adapter", "redis"];
const CRATES: [&str; 3] = ["socketioxide", "socketioxide-redis", "redis"];

/// What the bench is when it starts itself as a peer.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct Role {
    pub(crate) peer: Peer,
    pub(crate) listen: SocketAddr,
    pub(crate) redis: SocketAddr,
    /// Events that may wait for one client.
    pub(crate) window: usize,
}

impl FromStr for Role {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

/// A process that listens; ends with this value.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts `program` and waits until it accepts connections.
    fn start(
        program: impl AsRef<Path>,
        arguments: impl FnOnce(SocketAddr) -> Vec<String>,
    ) -> Result<Self> {
        let address = free_address()?;
        let program = program.as_ref();
        // It replaces itself with the program, which the kernel then ends with the bench, even when that
        // is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(arguments(address));
        // The defaults are measured, not what happens to be set here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANTIPHON__") {
                command.env_remove(name);
            }
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let process = process.context("cannot start setpriv (of util-linux)")?;
        let mut server = Self { process, address };
        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.process.try_wait()? {
                bail!("{} ended at once: {status}", program.display());
            }
            ensure!(Instant::now() < deadline, "{} does not listen", program.display());
            sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn redis() -> Result<Self> {
        Self::start("redis-server", |address| {
            let options = [
                ("--bind", address.ip().to_string()),
                ("--port", address.port().to_string()),
                // Nothing is kept, so nothing is written to this folder.
                ("--save", String::new()),
                ("--appendonly", "no".to_owned()),
                ("--dir", std::env::temp_dir().display().to_string()),
                // The default, said aloud: beyond it Redis cuts a subscriber off.
                ("--client-output-buffer-limit", "pubsub 32mb 8mb 60".to_owned()),
            ];
            options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
        })
        .context("redis-server")
    }

    fn peer(peer: Peer, redis: SocketAddr, window: usize) -> Result<Self> {
        if peer == Peer::Node {
            return Self::start("node", |address| {
                vec![
                    concat!(env!("CARGO_MANIFEST_DIR"), "/benches/cluster/peer.mjs").to_owned(),
                    address.ip().to_string(),
                    address.port().to_string(),
                    format!("redis://{redis}"),
                    PING_INTERVAL.as_millis().to_string(),
                    FIRST_NUMBER.to_string(),
                    NPM_FOLDER.to_owned(),
                ]
            });
        }
        Self::start(std::env::current_exe()?, |listen| {
            let role = serde_json::json!(Role { peer, listen, redis, window });
            vec!["--serve".to_owned(), role.to_string()]
        })
    }

    fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What is measured: two servers of one kind on a Redis of their own, freshly started.
pub(crate) struct Cluster {
    publisher: Server,
    subscriber: Server,
    redis: Server,
}

/// CPU time used so far.
pub(crate) struct CpuTimes {
    pub(crate) publisher: Duration,
    pub(crate) subscriber: Duration,
    pub(crate) redis: Duration,
}

impl Cluster {
    pub(crate) fn start(peer: Peer, window: usize) -> Result<Self> {
        let redis = Server::redis()?;
        let publisher = Server::peer(peer, redis.address, window).context("publisher")?;
        let subscriber = Server::peer(peer, redis.address, window).context("subscriber")?;
        Ok(Self { publisher, subscriber, redis })
    }

    pub(crate) fn publisher(&self) -> SocketAddr {
        self.publisher.address
    }

    pub(crate) fn subscriber(&self) -> SocketAddr {
        self.subscriber.address
    }

    pub(crate) fn cpu_times(&self) -> Result<CpuTimes> {
        Ok(CpuTimes {
            publisher: self.publisher.cpu_time().context("publisher")?,
            subscriber: self.subscriber.cpu_time().context("subscriber")?,
            redis: self.redis.cpu_time().context("redis-server")?,
        })
    }

    /// The connections on which anybody is subscribed. Redis cuts off one whose output piles up.
    pub(crate) fn subscriptions(&self) -> Result<HashSet<String>> {
        let mut stream = TcpStream::connect(self.redis.address)?;
        stream.write_all(b"CLIENT LIST TYPE pubsub\r\nQUIT\r\n")?;
        let mut list = String::new();
        stream.read_to_string(&mut list)?;
        let ids = list.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next());
        Ok(ids.map(str::to_owned).collect())
    }
}

/// Why a peer cannot be measured here, and what to do about it.
pub(crate) fn missing(peer: Peer) -> Option<String> {
    let node = || Command::new("node").arg("--version").output();
    if peer != Peer::Node || node().is_ok() && NPM_PACKAGES.into_iter().all(|one| npm(one).is_ok())
    {
        return None;
    }
    Some(format!("no Node.js, or not its packages; {NPM_INSTALL} installs them"))
}

/// The versions of everything that is measured, and of what it runs on.
pub(crate) fn versions() -> Result<String> {
    let redis = said(Command::new("redis-server").arg("--version"))?;
    let redis = redis.split("v=").nth(1).and_then(|rest| rest.split(' ').next());
    let mut versions = format!("redis-server {}", redis.context("of no version")?);
    let lock = include_str!("../../../../Cargo.lock");
    for name in CRATES {
        let version = lock.split_once(&format!("name = \"{name}\"\nversion = \""));
        let version = version.and_then(|(_, rest)| rest.split('"').next());
        versions += &format!(", {name} {} (crate)", version.context("not in Cargo.lock")?);
    }
    if missing(Peer::Node).is_none() {
        versions += &format!(", node {}", said(Command::new("node").arg("--version"))?);
        for name in NPM_PACKAGES {
            versions += &format!(", {name} {} (npm)", npm(name)?);
        }
    }
    Ok(versions)
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The version of an installed package.
fn npm(name: &str) -> Result<String> {
    let file: PathBuf = [NPM_FOLDER, "node_modules", name, "package.json"].iter().collect();
    let package: serde_json::Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    Ok(package["version"].as_str().context("a package without a version")?.to_owned())
}
