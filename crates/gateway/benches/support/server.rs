//! The servers that are measured: each a child process, observed through /proc.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use socketioxide::SocketIo;
use socketioxide::extract::{Data, SocketRef};
use tokio::time::sleep;

use crate::machine::{cpu_time, free_address};

const START_DEADLINE: Duration = Duration::from_secs(10);
const SETTLE_DEADLINE: Duration = Duration::from_secs(30);
const SETTLE_WINDOW: Duration = Duration::from_secs(1);
/// A server that still works on what was is not settled, even if its memory stands still.
const SETTLED_CPU: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// `axum::serve` and socketioxide, as most would write it.
    Plain,
    Antiphon,
}

/// A running server; ends with this value.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server and waits until it accepts connections.
    pub(crate) async fn start(kind: Kind, pinned: bool) -> Result<Self> {
        let address = free_address()?;
        let (program, arguments) = match kind {
            Kind::Plain => (std::env::current_exe()?, format!("--plain-server {}", address.port())),
            Kind::Antiphon => (
                env!("CARGO_BIN_EXE_antiphon").into(),
                format!("--listen {address} --set admin.listen= --set log.filter=warn"),
            ),
        };
        let mut command = Command::new(&program);
        if pinned {
            // It replaces itself with the program, so the child's pid is the server's.
            command = Command::new("taskset");
            command.args(["-c", "0"]).arg(&program);
        }
        command.args(arguments.split(' '));
        // The defaults are measured, not what happens to be set here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANTIPHON__") {
                command.env_remove(name);
            }
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let process = process.with_context(|| format!("cannot start the {kind:?} server"))?;
        let mut server = Self { process, address };

        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.process.try_wait()? {
                bail!("the {kind:?} server ended at once: {status}");
            }
            ensure!(Instant::now() < deadline, "the {kind:?} server does not listen on {address}");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Resident memory in kB, once it has stopped changing and the server has nothing left to do.
    pub(crate) async fn settled_rss_kb(&self) -> Result<f64> {
        let deadline = Instant::now() + SETTLE_DEADLINE;
        loop {
            let (rss, cpu) = (self.rss_kb()?, self.cpu_time()?);
            sleep(SETTLE_WINDOW).await;
            let rss_now = self.rss_kb()?;
            let stable = (rss_now - rss).abs() <= rss * 0.005;
            if stable && self.cpu_time()? - cpu < SETTLED_CPU {
                return Ok(rss_now);
            }
            if Instant::now() > deadline {
                eprintln!("  memory has not settled within {SETTLE_DEADLINE:?}");
                return Ok(rss_now);
            }
        }
    }

    fn rss_kb(&self) -> Result<f64> {
        let status = self.proc_file("status")?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.context("no VmRSS: the server has ended")?;
        Ok(rss.trim().trim_end_matches(" kB").parse()?)
    }

    /// CPU time that the server has used so far, in user space and in the kernel.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.process.id())
    }

    fn proc_file(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.process.id());
        fs::read_to_string(path).context("the server has ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Moves this process to core 1, if core 0 can be left to the servers. Call it before there are
/// threads: each has its own affinity.
pub(crate) fn pin() -> bool {
    let taskset = |args: &[&str]| {
        let mut command = Command::new("taskset");
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    taskset(&["-c", "0", "true"]) && taskset(&["-c", "-p", "1", &std::process::id().to_string()])
}

/// How often the kernel has dropped a SYN or the last ACK of a handshake because a listener's
/// accept queue was full; of all listeners on this machine.
pub(crate) fn listen_overflows() -> Result<u64> {
    let netstat = fs::read_to_string("/proc/net/netstat")?;
    let mut rows = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let rows = rows.next().zip(rows.next());
    let (names, values) = rows.context("no TcpExt in /proc/net/netstat")?;
    let mut columns = names.split_whitespace().zip(values.split_whitespace());
    let column = columns.find(|(name, _)| *name == "ListenOverflows");
    let (_, value) = column.context("no ListenOverflows in /proc/net/netstat")?;
    Ok(value.parse()?)
}

/// The server to compare with: defaults throughout, and the runtime of `#[tokio::main]`.
pub(crate) fn serve_plain(port: u16) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let (layer, io) = SocketIo::new_layer();
        io.ns("/", async |socket: SocketRef| {
            socket.on("chat_message", async |io: SocketIo, Data::<Value>(text)| {
                if let Err(error) = io.emit("chat_message", &text).await {
                    eprintln!("broadcast: {error}");
                }
            });
        });
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        axum::serve(listener, axum::Router::new().layer(layer)).await?;
        Ok(())
    })
}
