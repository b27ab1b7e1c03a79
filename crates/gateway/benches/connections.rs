//! What a connection costs: how fast a server takes them in, and how much memory each holds when
//! idle. Antiphon beside `axum::serve` + socketioxide with default settings.
//!
//! ```text
//! cargo bench -p antiphon-gateway --bench connections -- [--connections N] [--rounds R] [--json FILE]
//! ```
//!
//! Linux only. Servers run one at a time, each on core 0 and freshly started, the clients on core
//! 1. Per round and server, there are two runs:
//!
//! - *paced*: a bounded number of clients are on their way in at any time; then everyone stays,
//!   idle, and the server's resident memory is read once it has settled, and again after
//!   everyone has left;
//! - *burst*: all connect at once, as after a restart. It shows whether the listen queue
//!   overflows: a client whose SYN was dropped tries again after a second.
//!
//! Without `--bench`, which `cargo bench` passes, it is a smoke test: few connections, one round.

#[path = "support/client.rs"]
mod client;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/server.rs"]
mod server;
#[path = "support/websocket.rs"]
mod websocket;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use client::{Crowd, Sources};
use server::{Kind, Server};

/// Connection rate and idle memory: antiphon beside plain socketioxide.
#[derive(Parser)]
#[command(name = "connections")]
struct Args {
    /// Clients that connect in each run [default: 10000; 200 in a smoke test]
    #[arg(long)]
    connections: Option<usize>,
    /// Clients on their way in at a time, in the paced run
    #[arg(long, default_value_t = 512)]
    in_flight: usize,
    /// How often each server is measured [default: 3; 1 in a smoke test]
    #[arg(long)]
    rounds: Option<usize>,
    /// How long to let the connections idle before memory is read, beyond settling: Engine.IO pings
    /// every 25 s, and the first round of them costs a little
    #[arg(long, default_value_t = 0)]
    idle_seconds: u64,
    /// Where to write the raw figures (relative to crates/gateway, where cargo runs this)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be the server to compare with
    #[arg(long, value_name = "PORT", hide = true)]
    plain_server: Option<u16>,
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Report {
    date: String,
    commit: String,
    machine: String,
    pinned: bool,
    smoke: bool,
    connections: usize,
    in_flight: usize,
    idle_seconds: u64,
    rounds: Vec<Round>,
}

/// One server's figures in one round.
#[derive(Serialize)]
struct Round {
    server: Kind,
    paced: Run,
    burst: Run,
    rss_start_kb: f64,
    rss_idle_kb: f64,
    rss_left_kb: f64,
    kb_per_connection: f64,
}

/// All floating-point, so that one table can walk them.
#[derive(Serialize)]
struct Run {
    per_second: f64,
    all_in_seconds: f64,
    slow_connects: f64,
    overflows: f64,
    cpu_us: f64,
    failed: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(port) = args.plain_server {
        return server::serve_plain(port);
    }
    let smoke = !args.bench;
    let connections = args.connections.unwrap_or(if smoke { 200 } else { 10_000 });
    let rounds = args.rounds.unwrap_or(if smoke { 1 } else { 3 });
    let counts = [connections, rounds, args.in_flight];
    ensure!(!counts.contains(&0), "all counts must be at least 1");
    raise_descriptor_limit(connections as u64 + 256)?;

    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn")?;
    let mut report = Report {
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        commit: machine::commit(),
        // Counts the cores, so it comes before this process is confined to one.
        machine: format!("{}, somaxconn {}", machine::machine()?, somaxconn.trim()),
        pinned: server::pin(),
        smoke,
        connections,
        in_flight: args.in_flight,
        idle_seconds: args.idle_seconds,
        rounds: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Whichever way this ends, dropping the measurement ends its server.
        tokio::select! {
            outcome = measure_all(&mut report, rounds) => outcome,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    print!("{}", report.table());
    if let Some(file) = args.json {
        fs::write(&file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

async fn measure_all(report: &mut Report, rounds: usize) -> Result<()> {
    let mut sources = Sources::default();
    for round in 1..=rounds {
        let mut order = [Kind::Plain, Kind::Antiphon];
        // Neither is always first.
        order.rotate_left((round - 1) % 2);
        for kind in order {
            eprintln!("round {round} of {rounds}: {kind:?}");
            let figures = measure(kind, report, &mut sources).await;
            report.rounds.push(figures.with_context(|| format!("{kind:?}"))?);
        }
    }
    Ok(())
}

async fn measure(kind: Kind, report: &Report, sources: &mut Sources) -> Result<Round> {
    let count = report.connections;
    let server = Server::start(kind, report.pinned).await?;
    let rss_start_kb = server.settled_rss_kb().await?;
    let (mut crowd, mut paced) = connect(&server, sources, count, report.in_flight).await?;
    sleep(Duration::from_secs(report.idle_seconds)).await;
    let rss_idle_kb = server.settled_rss_kb().await?;
    // Only now: one that was let in and then thrown out is no idle connection either.
    paced.failed = crowd.failed() as f64;
    crowd.leave().await;
    let rss_left_kb = server.settled_rss_kb().await?;
    drop(server);

    // A fresh one: what the first run left behind in the allocator would help the second.
    let server = Server::start(kind, report.pinned).await?;
    let (mut crowd, mut burst) = connect(&server, sources, count, count).await?;
    burst.failed = crowd.failed() as f64;
    crowd.leave().await;

    let kb_per_connection = (rss_idle_kb - rss_start_kb) / (count as f64 - paced.failed);
    eprintln!(
        "  paced {:.0}/s, {kb_per_connection:.1} kB a connection; burst: all in after {:.2} s",
        paced.per_second, burst.all_in_seconds
    );
    Ok(Round {
        server: kind,
        paced,
        burst,
        rss_start_kb,
        rss_idle_kb,
        rss_left_kb,
        kb_per_connection,
    })
}

async fn connect(
    server: &Server,
    sources: &mut Sources,
    count: usize,
    in_flight: usize,
) -> Result<(Crowd, Run)> {
    let (cpu, overflows) = (server.cpu_time()?, server::listen_overflows()?);
    let (mut crowd, arrival) = Crowd::gather(server.address, sources, count, in_flight).await;
    if arrival.connected == 0 {
        crowd.failed();
        bail!("no client could connect");
    }
    let (connected, all_in_seconds) = (arrival.connected as f64, arrival.all_in.as_secs_f64());
    let cpu = server.cpu_time()? - cpu;
    let run = Run {
        per_second: connected / all_in_seconds,
        all_in_seconds,
        slow_connects: arrival.slow_connects as f64,
        overflows: (server::listen_overflows()? - overflows) as f64,
        cpu_us: cpu.as_secs_f64() * 1e6 / connected,
        failed: 0.0,
    };
    Ok((crowd, run))
}

impl Report {
    fn table(&self) -> String {
        type Row = (&'static str, usize, fn(&Round) -> f64);
        const ROWS: [Row; 16] = [
            ("paced: connections/s", 0, |r| r.paced.per_second),
            ("paced: all in after, s", 2, |r| r.paced.all_in_seconds),
            ("paced: server CPU, µs/connection", 0, |r| r.paced.cpu_us),
            ("paced: connects over 900 ms", 0, |r| r.paced.slow_connects),
            ("paced: listen queue overflows", 0, |r| r.paced.overflows),
            ("paced: clients failed", 0, |r| r.paced.failed),
            ("burst: connections/s", 0, |r| r.burst.per_second),
            ("burst: all in after, s", 2, |r| r.burst.all_in_seconds),
            ("burst: server CPU, µs/connection", 0, |r| r.burst.cpu_us),
            ("burst: connects over 900 ms", 0, |r| r.burst.slow_connects),
            ("burst: listen queue overflows", 0, |r| r.burst.overflows),
            ("burst: clients failed", 0, |r| r.burst.failed),
            ("RSS at start, kB", 0, |r| r.rss_start_kb),
            ("RSS, all connected and idle, kB", 0, |r| r.rss_idle_kb),
            ("RSS, kB/connection", 1, |r| r.kb_per_connection),
            ("RSS after all have left, kB", 0, |r| r.rss_left_kb),
        ];
        let pinned = match self.pinned {
            true => "server on core 0, clients on core 1",
            false => "NOT PINNED (no taskset, or no second core)",
        };
        let smoke = match self.smoke {
            true => "\nSMOKE TEST: the figures mean nothing",
            false => "",
        };
        let rounds = self.rounds.len() / 2;
        let mut out = format!(
            "\n{}; {pinned}\ncommit {}, {}\n{} connections, {} in flight when paced, {} s idle; \
             median of {rounds} (lowest to highest){smoke}\n\n",
            self.machine,
            self.commit,
            self.date,
            self.connections,
            self.in_flight,
            self.idle_seconds
        );
        out += &row("", "antiphon", "plain", "ratio");
        out += &format!("|{:-<34}|{:->26}:|{:->26}:|{:->6}:|\n", "", "", "", "");
        for (name, decimals, figure) in ROWS {
            let (antiphon, ours) = self.summary(Kind::Antiphon, figure, decimals);
            let (plain, theirs) = self.summary(Kind::Plain, figure, decimals);
            let ratio = format!("{:.2}", antiphon / plain);
            let ratio = if plain == 0.0 { "-" } else { &ratio };
            out += &row(name, &ours, &theirs, ratio);
        }
        out
    }

    /// The median over all rounds, and the cell that shows it with its spread.
    fn summary(&self, kind: Kind, figure: fn(&Round) -> f64, decimals: usize) -> (f64, String) {
        let of_kind = self.rounds.iter().filter(|round| round.server == kind);
        machine::summary(of_kind.map(figure).collect(), decimals)
    }
}

fn row(name: &str, antiphon: &str, plain: &str, ratio: &str) -> String {
    format!("| {name:<32} | {antiphon:>25} | {plain:>25} | {ratio:>5} |\n")
}

/// The servers inherit the limit: both ends of every connection need a descriptor, in two processes.
fn raise_descriptor_limit(needed: u64) -> Result<()> {
    let limit =
        rlimit::increase_nofile_limit(needed).context("cannot raise the descriptor limit")?;
    ensure!(
        limit >= needed,
        "{needed} open files are needed but the hard limit is {limit}: raise it (`ulimit -Hn {needed}` \
         as root, or LimitNOFILE=) or lower --connections"
    );
    Ok(())
}
