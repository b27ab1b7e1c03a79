//! One measurement: starts the servers and the load test, each on its core, and ends them whatever happens.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::measurement::Measurement;
use super::results::Outcome;
use super::{Args, Peer};

/// A cold start of the slowest of them takes a second or two.
const START_DEADLINE: Duration = Duration::from_secs(15);

/// The longest measurement takes half a minute where servers keep up; one that does not is waited for, within
/// reason.
const RUN_DEADLINE: Duration = Duration::from_secs(300);

/// How often is looked whether something has happened.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A peer's `start` exits so if the peer is not installed (`EX_UNAVAILABLE` of sysexits.h).
const EXIT_NOT_INSTALLED: i32 = 69;

/// The load test exits so when it ran, and when it ran but something that was expected did not hold. Servers
/// that lose messages are what is looked for here.
const EXITS_WITH_REPORT: [i32; 2] = [0, 1];

const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Why there is no measurement.
#[derive(Debug)]
pub(super) enum Failure {
    Interrupted,
    /// The server is not installed, for this reason.
    Missing(String),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) struct Bench {
    loadtest: PathBuf,
    antiphon: PathBuf,
    /// Starts any of the others.
    start: PathBuf,
    redis: Option<String>,
    quick: bool,
    /// Why servers and load are not pinned, if they are not.
    not_pinned: Option<&'static str>,
    /// Reports, and what the children say on standard error.
    scratch: TempDir,
    interrupted: Arc<AtomicBool>,
}

impl Bench {
    pub(super) fn new(args: &Args, interrupted: Arc<AtomicBool>) -> Result<Self> {
        let this = std::env::current_exe().context("cannot find this program")?;
        let start = args.peers_dir.join("start");
        let others = args.peers.iter().any(|peer| *peer != Peer::Antiphon);
        ensure!(
            start.exists() || !others,
            "there is no {}: run this in the repository, or give --peers-dir",
            start.display()
        );
        Ok(Self {
            antiphon: args.antiphon.clone().unwrap_or_else(|| this.with_file_name("antiphon")),
            loadtest: args.loadtest.clone().unwrap_or(this),
            start,
            redis: args.redis.clone(),
            quick: args.quick,
            not_pinned: not_pinned(),
            scratch: TempDir::new().context("cannot create a directory for temporary files")?,
            interrupted,
        })
    }

    /// What runs where, in words.
    pub(super) fn placement(&self) -> &'static str {
        self.not_pinned.unwrap_or("servers on core 0, load on core 1")
    }

    pub(super) fn measure(
        &self,
        measurement: &Measurement,
        peer: Peer,
    ) -> Result<Outcome, Failure> {
        let mut servers = Vec::new();
        for node in 0..measurement.nodes {
            servers.push(self.serve(peer, node, measurement.nodes > 1)?);
        }
        let mut rss_before_bytes = 0;
        for server in &servers {
            rss_before_bytes += resident_bytes(server.process.id())?;
        }
        let report = self.load(measurement, &servers)?;
        for server in &mut servers {
            if let Some(status) = server.process.ended()? {
                return Err(self.ended(peer, status, &server.log).into());
            }
        }
        let figures = measurement.figures(&report, rss_before_bytes)?;
        Ok(Outcome::Measured { figures, rss_before_bytes, report })
    }

    /// Starts a server and waits until it accepts connections.
    fn serve(&self, peer: Peer, node: usize, cluster: bool) -> Result<Server, Failure> {
        let port = free_port().context("no free port")?;
        let mut command = match peer {
            Peer::Antiphon => self.antiphon(port)?,
            _ => {
                let mut command = self.pinned(SERVER_CORE, &self.start);
                command.args([peer.name(), "--port", &port.to_string()]);
                command
            }
        };
        if let Some(url) = self.redis.as_ref().filter(|_| cluster) {
            match peer {
                Peer::Antiphon => command.arg("--set").arg(format!("redis.url={url}")),
                _ => command.arg("--redis").arg(url),
            };
        }
        let log = self.scratch.path().join(format!("server-{node}.log"));
        let process = Process::start(command, &log).context(peer.name())?;
        let mut server = Server { process, port, log };

        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = server.process.ended()? {
                let said = reason(&server.log);
                return Err(match status.code() {
                    Some(EXIT_NOT_INSTALLED) => Failure::Missing(said),
                    _ => self.ended(peer, status, &server.log).into(),
                });
            }
            if Instant::now() > deadline {
                let (name, said) = (peer.name(), reason(&server.log));
                return Err(
                    anyhow!("{name} does not listen after {START_DEADLINE:?}. {said}").into()
                );
            }
            self.look_again()?;
        }
        Ok(server)
    }

    fn antiphon(&self, port: u16) -> Result<Command, Failure> {
        if !self.antiphon.exists() {
            let path = self.antiphon.display();
            return Err(Failure::Missing(format!("no {path}: run cargo build --release")));
        }
        let mut command = self.pinned(SERVER_CORE, &self.antiphon);
        command.args(["--listen", &format!("{}:{port}", Ipv4Addr::LOCALHOST)]);
        command.args(["--set", "admin.listen=", "--set", "log.filter=warn"]);
        // The defaults are measured, not what happens to be set here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANTIPHON__") {
                command.env_remove(name);
            }
        }
        Ok(command)
    }

    /// Runs the load test, and returns its report.
    fn load(&self, measurement: &Measurement, servers: &[Server]) -> Result<Value, Failure> {
        let report = self.scratch.path().join("report.json");
        // One of an earlier run must not pass for this one's.
        if report.exists() {
            fs::remove_file(&report).context("cannot remove the last report")?;
        }
        let mut command = self.pinned(LOAD_CORE, &self.loadtest);
        command.arg("run").args(measurement.load(self.quick)).arg("--quiet");
        if self.not_pinned.is_none() {
            command.args(["--threads", "1"]);
        }
        for server in servers {
            command.args(["--url", &format!("http://{}:{}", Ipv4Addr::LOCALHOST, server.port)]);
            command.args(["--pid", &server.process.id().to_string()]);
        }
        command.arg("--json").arg(&report);

        let log = self.scratch.path().join("load.log");
        let mut load = Process::start(command, &log).context("load test")?;
        let deadline = Instant::now() + RUN_DEADLINE;
        let status = loop {
            if let Some(status) = load.ended()? {
                break status;
            }
            if Instant::now() > deadline {
                return Err(anyhow!("the load test was not done after {RUN_DEADLINE:?}").into());
            }
            self.look_again()?;
        };
        if !status.code().is_some_and(|code| EXITS_WITH_REPORT.contains(&code)) {
            return Err(anyhow!("the load test ended with {status}: {}", reason(&log)).into());
        }
        let text = fs::read(&report).context("the load test wrote no report")?;
        let mut report: Value = serde_json::from_slice(&text).context("the report is no JSON")?;
        if let Some(report) = report.as_object_mut() {
            report.remove("command");
        }
        Ok(report)
    }

    fn ended(&self, peer: Peer, status: ExitStatus, log: &Path) -> anyhow::Error {
        anyhow!("{} ended by itself ({status}): {}", peer.name(), reason(log))
    }

    /// A command on one core, whose process is in the end the program's own.
    fn pinned(&self, core: &str, program: &Path) -> Command {
        if self.not_pinned.is_some() {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["-c", core]).arg(OsString::from(program));
        command
    }

    fn look_again(&self) -> Result<(), Failure> {
        sleep(LOOK_INTERVAL);
        if self.interrupted.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
    }
}

/// A running server; ends with this value.
struct Server {
    process: Process,
    port: u16,
    log: PathBuf,
}

/// A child that does not outlive this value.
struct Process(Child);

impl Process {
    /// Starts it; what it says on standard error goes to `log`.
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::create(log).context("cannot write a temporary file")?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let program = command.get_program().to_owned();
        let child = command.spawn();
        Ok(Self(child.with_context(|| format!("cannot start {}", program.display()))?))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0.try_wait().context("cannot tell whether a child has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why servers and load cannot each have a core, if so.
fn not_pinned() -> Option<&'static str> {
    let taskset = |core| {
        let mut command = Command::new("taskset");
        command.args(["-c", core, "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status()
    };
    match (taskset(SERVER_CORE), taskset(LOAD_CORE)) {
        (Ok(one), Ok(other)) if one.success() && other.success() => None,
        (Err(_), _) => Some("not pinned to cores: there is no taskset (util-linux)"),
        _ => Some("not pinned to cores: this machine does not let it have cores 0 and 1"),
    }
}

/// Free a moment ago, and the kernel does not hand it out again at once.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("the server has ended")?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        rss.context("the server has ended")?.trim().trim_end_matches(" kB").parse::<u64>();
    Ok(kilobytes.context("malformed /proc/PID/status")? * 1024)
}

/// Why a program ended, by what it said: the line that speaks of an error, as Node.js has more behind it, or
/// else the last.
fn reason(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let error = text.lines().rfind(|line| line.contains("Error: "));
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    error.or(last).unwrap_or("it said nothing").trim().to_owned()
}
