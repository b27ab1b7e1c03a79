//! `antiphon-loadtest compare`: the same measurements of several servers, one after the other on the same
//! core, in turns: what else the machine does meanwhile meets all of them.
//!
//! Each measurement has a fresh server, and a load test of its own: this executable once more, as a child,
//! because a process can be pinned to a core only as a whole.

mod bench;
mod measurement;
mod picture;
mod results;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use self::bench::{Bench, Failure};
use self::measurement::{MEASUREMENTS, Measurement};
use self::results::{Outcome, Results, Run};

/// What a shell says of a command that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// What `compare` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The servers
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::value_variants().to_vec())]
    peers: Vec<Peer>,
    /// The measurements, such as saturated,idle [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = measurement::named)]
    only: Vec<&'static Measurement>,
    /// How often each is done [default: 3; 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Few clients and seconds, to try it out: the figures mean little
    #[arg(long)]
    quick: bool,
    /// The node [default: `antiphon` beside this program]
    #[arg(long, value_name = "PATH")]
    antiphon: Option<PathBuf>,
    /// The other servers, as their `install` left them
    #[arg(long, value_name = "DIR", default_value = "loadtest/peers")]
    peers_dir: PathBuf,
    /// A Redis to measure two nodes with: redis://host:6379
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Where the reports, the table and the picture go
    #[arg(long, value_name = "DIR", default_value = "loadtest/results")]
    out: PathBuf,
    /// Another program to measure with; tests have one
    #[arg(long, value_name = "PATH", hide = true)]
    loadtest: Option<PathBuf>,
}

/// A server to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    Antiphon,
    Floor,
    Socketioxide,
    NodeWs,
    NodeUws,
    Bun,
}

impl Peer {
    /// As arguments and results have it; also the directory of its `server`.
    fn name(self) -> &'static str {
        match self {
            Self::Antiphon => "antiphon",
            Self::Floor => "floor",
            Self::Socketioxide => "socketioxide",
            Self::NodeWs => "node-ws",
            Self::NodeUws => "node-uws",
            Self::Bun => "bun",
        }
    }

    /// Whether several of it can be one server, by Redis.
    fn has_cluster(self) -> bool {
        matches!(self, Self::Antiphon | Self::Socketioxide | Self::NodeWs)
    }
}

/// Measures, and writes what came out. Ctrl-C ends it early, with what there is by then.
///
/// # Errors
///
/// If nothing could be measured, or the results cannot be written. That single servers are missing or fail
/// is no error but part of the results.
pub fn run(args: &Args) -> Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("cannot listen to signals")?;
    }
    // For the children: not all of them ask for more than most systems give, and 10,000 clients need it.
    rlimit::increase_nofile_limit(u64::MAX).context("cannot raise the limit of descriptors")?;
    let bench = Bench::new(args, interrupted)?;
    eprintln!("compare: {}", bench.placement());
    let turns = turns(args);
    ensure!(
        !turns.is_empty(),
        "nothing to measure: through-redis needs --redis, and a server that has a cluster"
    );
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot write to {}", args.out.display()))?;
    let mut results = Results {
        format: results::FORMAT,
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        commit: commit(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        placement: bench.placement().to_owned(),
        quick: args.quick,
        rounds: rounds(args),
        ended_early: false,
        peers: args.peers.clone(),
        measurements: measurements(args),
        runs: Vec::new(),
    };
    results.ended_early = measure(&bench, &turns, &mut results.runs);
    if !results.runs.iter().any(Run::is_measured) {
        ensure!(results.ended_early, "nothing was measured");
        return Ok(EXIT_INTERRUPTED.into());
    }
    for path in results.write(&args.out)? {
        eprintln!("compare: wrote {}", path.display());
    }
    Ok(if results.ended_early { EXIT_INTERRUPTED.into() } else { ExitCode::SUCCESS })
}

struct Turn {
    round: u32,
    measurement: &'static Measurement,
    peer: Peer,
}

fn rounds(args: &Args) -> u32 {
    args.rounds.unwrap_or(if args.quick { 1 } else { 3 })
}

fn measurements(args: &Args) -> Vec<&'static Measurement> {
    let asked_for =
        |m: &&Measurement| args.only.is_empty() || args.only.iter().any(|one| one.name == m.name);
    MEASUREMENTS.iter().filter(asked_for).collect()
}

/// Who is measured when. The servers follow each other within a measurement, so that those that are compared
/// are close in time, and each round begins with another one.
fn turns(args: &Args) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut peers = args.peers.clone();
    for round in 1..=rounds(args) {
        for measurement in measurements(args) {
            let cluster = measurement.nodes > 1;
            let able =
                peers.iter().filter(|peer| !cluster || args.redis.is_some() && peer.has_cluster());
            turns.extend(able.map(|&peer| Turn { round, measurement, peer }));
        }
        peers.rotate_left(1);
    }
    turns
}

/// Whether it was ended early.
fn measure(bench: &Bench, turns: &[Turn], runs: &mut Vec<Run>) -> bool {
    let start = Instant::now();
    for (done, &Turn { round, measurement, peer }) in turns.iter().enumerate() {
        // What is not there now will not be there in the next round.
        if runs.iter().any(|run| run.peer == peer && run.is_missing()) {
            continue;
        }
        let left = match u32::try_from(done) {
            Ok(done @ 1..) => {
                let left = start.elapsed() / done * (turns.len() as u32 - done);
                format!(", {} min left", left.as_secs().div_ceil(60))
            }
            _ => String::new(),
        };
        let (name, peer_name) = (measurement.name, peer.name());
        eprintln!(
            "compare: {}/{}{left}: round {round}, {name}, {peer_name}",
            done + 1,
            turns.len()
        );
        let outcome = match bench.measure(measurement, peer) {
            Ok(measured) => measured,
            Err(Failure::Interrupted) => {
                eprintln!("compare: interrupted");
                return true;
            }
            Err(Failure::Missing(reason)) => Outcome::Missing(reason),
            Err(Failure::Failed(error)) => Outcome::Failed(format!("{error:#}")),
        };
        eprintln!("compare:   {}", measurement.summary(&outcome));
        runs.push(Run { measurement: name, peer, round, outcome });
    }
    false
}

/// What is checked out, in short.
fn commit() -> String {
    let git = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    let commit = git.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let commit = commit.and_then(|text| String::from_utf8(text).ok());
    commit.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}
