//! What an event costs between two nodes: from a broadcast on one, through Redis, to a client of the
//! other. Antiphon beside what it replaces, Node.js with `@socket.io/redis-adapter`, and beside
//! socketioxide with `socketioxide-redis`.
//!
//! ```text
//! cargo bench -p antiphon-gateway --bench cluster -- [--rounds R] [--seconds S] [--window N]
//!     [--rate N] [--peers antiphon,node,socketioxide-redis] [--json FILE]
//! ```
//!
//! Linux only; needs redis-server 7, and for Node.js what `crates/gateway/tests/interop/install` installs: a
//! peer that is not there is reported as missing. For each round and peer it starts a Redis, a publisher and
//! a subscriber, and after a warm-up measures
//!
//! - *flood*: the publisher broadcasts as fast as it can while at most a window of events is on its way.
//!   The client of the subscriber sees whether all of them arrive, in order. CPU time is that of the
//!   processes, threads and kernel included;
//! - *paced*: events at a rate far below that, each timed from when it was due, to a client of the publisher
//!   and to one of the subscriber. The difference of the medians is what the hop through Redis takes (not
//!   with socketioxide-redis: it serves the publisher's clients only after Redis has answered).
//!
//! The broadcasts are the public `io.emit` of each peer, with the same three arguments. Processes are not
//! pinned: with two cores they share them. Bounds behind which a server drops events or closes a client
//! are raised to the window where there are settings for it, since not they are measured. Ends with exit
//! code 1 if an event was lost or overtaken between nodes of Antiphon.
//!
//! Without `--bench`, which `cargo bench` passes, it is a smoke test: one short round.

#[path = "cluster/client.rs"]
mod client;
#[path = "support/machine.rs"]
mod machine;
#[path = "cluster/measure.rs"]
mod measure;
#[path = "cluster/peers.rs"]
mod peers;
#[path = "cluster/servers.rs"]
mod servers;
#[path = "support/websocket.rs"]
mod websocket;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use measure::{Driver, Flood, Paced};
use servers::{Cluster, Role};

/// The first second of a process: connections are new, and Node.js has not compiled its hot paths.
const WARM_UP: Duration = Duration::from_secs(1);

/// An event's number must keep its eight digits.
const SECONDS_MAX: f64 = 60.0;

/// Events through Redis: antiphon beside Node.js and socketioxide-redis.
#[derive(Parser)]
#[command(name = "cluster")]
struct Args {
    /// How often each peer is measured [default: 3; 1 in a smoke test]
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each of the two measurements takes [default: 4; 0.5 in a smoke test]
    #[arg(long)]
    seconds: Option<f64>,
    /// Events on their way at a time, in the flood
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    window: u32,
    /// Events a second, when paced
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Whom to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// Where to write the raw figures (relative to crates/gateway, where cargo runs this)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be a peer
    #[arg(long, value_name = "ROLE", hide = true)]
    serve: Option<Role>,
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Peer {
    Antiphon,
    Node,
    SocketioxideRedis,
}

impl Peer {
    const ALL: [Self; 3] = [Self::Antiphon, Self::Node, Self::SocketioxideRedis];

    fn name(self) -> &'static str {
        match self {
            Self::Antiphon => "antiphon",
            Self::Node => "node",
            Self::SocketioxideRedis => "socketioxide-redis",
        }
    }
}

#[derive(Serialize)]
struct Report {
    date: String,
    commit: String,
    machine: String,
    versions: String,
    smoke: bool,
    seconds: f64,
    window: u32,
    rate: u32,
    missing: Vec<(Peer, String)>,
    rounds: Vec<Round>,
}

/// One peer's figures in one round.
#[derive(Serialize)]
struct Round {
    peer: Peer,
    flood: Flood,
    paced: Paced,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(role) = args.serve {
        peers::serve(&role)?;
        return Ok(ExitCode::SUCCESS);
    }
    let smoke = !args.bench;
    let rounds = args.rounds.unwrap_or(if smoke { 1 } else { 3 });
    let seconds = args.seconds.unwrap_or(if smoke { 0.5 } else { 4.0 });
    ensure!(rounds > 0, "at least one round");
    ensure!((0.1..=SECONDS_MAX).contains(&seconds), "--seconds from 0.1 to {SECONDS_MAX}");

    let mut report = Report {
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        commit: machine::commit(),
        machine: machine::machine()?,
        versions: servers::versions()?,
        smoke,
        seconds,
        window: args.window,
        rate: args.rate,
        missing: Vec::new(),
        rounds: Vec::new(),
    };
    let mut peers = args.peers;
    peers.retain(|peer| {
        let missing = servers::missing(*peer);
        report.missing.extend(missing.clone().map(|why| (*peer, why)));
        missing.is_none()
    });
    for round in 1..=rounds {
        for peer in &peers {
            eprintln!("round {round} of {rounds}: {}", peer.name());
            let figures = report.measure(*peer);
            report.rounds.push(figures.with_context(|| peer.name())?);
        }
        // None is always first.
        let first = 1.min(peers.len());
        peers.rotate_left(first);
    }
    print!("{}", report.table());
    if let Some(file) = args.json {
        fs::write(&file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(if report.intact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Report {
    fn measure(&self, peer: Peer) -> Result<Round> {
        let cluster = Cluster::start(peer, self.window as usize)?;
        let mut driver = Driver::connect(&cluster)?;
        let (time, window) = (Duration::from_secs_f64(self.seconds), self.window.into());
        driver.flood(WARM_UP.min(time), window).context("warm-up")?;
        let flood = driver.flood(time, window).context("flood")?;
        eprintln!(
            "  {:.0} events/s, {:.0} for each second of CPU; {} lost, {} reordered",
            flood.per_second, flood.per_cpu_second, flood.lost, flood.reordered
        );
        let paced = driver.paced(time, self.rate).context("paced")?;
        eprintln!("  at {}/s: a hop of {:.0} µs", self.rate, paced.hop_us);
        Ok(Round { peer, flood, paced })
    }

    /// Whether every event reached its client between nodes of Antiphon, in order.
    fn intact(&self) -> bool {
        let ours = self.rounds.iter().filter(|round| round.peer == Peer::Antiphon);
        ours.flat_map(|Round { flood, paced, .. }| {
            [flood.lost, flood.reordered, paced.lost, paced.reordered]
        })
        .all(|events| events == 0.0)
    }

    fn table(&self) -> String {
        type Row = (&'static str, usize, fn(&Round) -> f64);
        const ROWS: [Row; 17] = [
            ("flood: events/s", 0, |r| r.flood.per_second),
            ("flood: publisher CPU, µs/event", 2, |r| r.flood.publisher_cpu_us),
            ("flood: subscriber CPU, µs/event", 2, |r| r.flood.subscriber_cpu_us),
            ("flood: Redis CPU, µs/event", 2, |r| r.flood.redis_cpu_us),
            ("flood: events/CPU second", 0, |r| r.flood.per_cpu_second),
            ("flood: lost", 0, |r| r.flood.lost),
            ("flood: reordered", 0, |r| r.flood.reordered),
            ("flood: cut off by Redis", 0, |r| r.flood.cut_off),
            ("paced: publisher's client p50, µs", 0, |r| r.paced.publisher_p50_us),
            ("paced: publisher's client p99, µs", 0, |r| r.paced.publisher_p99_us),
            ("paced: subscriber's client p50, µs", 0, |r| r.paced.subscriber_p50_us),
            ("paced: subscriber's client p99, µs", 0, |r| r.paced.subscriber_p99_us),
            ("paced: hop, µs", 0, |r| r.paced.hop_us),
            ("paced: publisher CPU, µs/event", 0, |r| r.paced.publisher_cpu_us),
            ("paced: subscriber CPU, µs/event", 0, |r| r.paced.subscriber_cpu_us),
            ("paced: lost", 0, |r| r.paced.lost),
            ("paced: reordered", 0, |r| r.paced.reordered),
        ];
        let smoke = match self.smoke {
            true => "\nSMOKE TEST: the figures mean nothing",
            false => "",
        };
        let rounds = self.rounds.len() / (Peer::ALL.len() - self.absent()).max(1);
        let mut out = format!(
            "\n{}\ncommit {}, {}\n{}\nflood: {} events of {} bytes in flight; paced: {}/s; {} s each; median of \
             {rounds} (lowest to highest); ratios are antiphon's{smoke}\n",
            self.machine,
            self.commit,
            self.date,
            self.versions,
            self.window,
            peers::EVENT_BYTES,
            self.rate,
            self.seconds
        );
        for (peer, why) in &self.missing {
            out += &format!("MISSING: {}: {why}\n", peer.name());
        }
        let names = Peer::ALL.map(Peer::name);
        let ratios = ["to node", "to s.-redis"];
        out += "\n";
        out += &row("", names.map(str::to_owned), ratios.map(str::to_owned));
        out += &format!("|{:-<36}|", "");
        out += &format!("{:->27}:|", "").repeat(names.len());
        out += &format!("{:->12}:|", "").repeat(ratios.len());
        out += "\n";
        for (name, decimals, figure) in ROWS {
            let [ours, theirs @ ..] = Peer::ALL.map(|peer| self.summary(peer, figure, decimals));
            let ratios = theirs.clone().map(|theirs| match (&ours, theirs) {
                (Some((ours, _)), Some((theirs, _))) if theirs != 0.0 => {
                    format!("{:.2}", ours / theirs)
                }
                _ => "-".to_owned(),
            });
            let [node, socketioxide_redis] = theirs;
            let cells = [ours, node, socketioxide_redis];
            out += &row(
                name,
                cells.map(|cell| cell.map_or_else(|| "-".to_owned(), |(_, text)| text)),
                ratios,
            );
        }
        out
    }

    /// How many peers have no figures.
    fn absent(&self) -> usize {
        let measured = |peer: &Peer| self.rounds.iter().any(|round| round.peer == *peer);
        Peer::ALL.iter().filter(|peer| !measured(peer)).count()
    }

    /// The median over all rounds, and the cell that shows it with its spread; none without rounds.
    fn summary(
        &self,
        peer: Peer,
        figure: fn(&Round) -> f64,
        decimals: usize,
    ) -> Option<(f64, String)> {
        let of_peer = self.rounds.iter().filter(|round| round.peer == peer);
        let figures: Vec<f64> = of_peer.map(figure).collect();
        (!figures.is_empty()).then(|| machine::summary(figures, decimals))
    }
}

fn row(name: &str, cells: [String; 3], ratios: [String; 2]) -> String {
    let cells = cells.map(|cell| format!(" {cell:>26} |")).concat();
    let ratios = ratios.map(|ratio| format!(" {ratio:>11} |")).concat();
    format!("| {name:<34} |{cells}{ratios}\n")
}
