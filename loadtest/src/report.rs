//! What a run found, as data: what `--json` writes, and what the table and the page show.

pub mod html;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::histogram::Latencies;

/// The version of the format.
pub const FORMAT: u32 = 1;

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The scenario's name.
    pub scenario: String,
    /// The same in words.
    pub title: String,
    /// When measuring began, in RFC 3339.
    pub started: String,
    /// Whether somebody did not want to wait for the end.
    pub ended_early: bool,
    /// Where the clients ran.
    pub machine: Machine,
    /// The commit of the working directory.
    pub commit: Option<String>,
    /// The command line.
    pub command: String,
    /// What was asked for.
    pub plan: PlanRecord,
    /// The sums.
    pub totals: Totals,
    /// From planned to received.
    pub latency_us: LatencyRecord,
    /// From the attempt to connect to being connected.
    pub connect_us: ConnectRecord,
    /// From a disconnect to being connected again.
    pub reconnect_us: ReconnectRecord,
    /// Second by second, since measuring began.
    pub seconds: Vec<SecondRecord>,
    /// What was done to the server.
    pub faults: Vec<FaultRecord>,
    /// What the server cost.
    pub servers: Vec<ServerCost>,
    /// What the load test cost.
    pub client: ClientCost,
    /// The nodes' counters against what arrived.
    pub books: Vec<Book>,
    /// Between whom things went wrong; the worst.
    pub culprits: Vec<CulpritRecord>,
    /// What had to hold.
    pub expectations: Vec<Expected>,
    /// Whether all of it did.
    pub passed: bool,
}

/// Where the clients ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The name of its CPU.
    pub cpu: String,
    /// Cores that the load test could use.
    pub cores: usize,
    /// Its memory.
    pub memory_bytes: u64,
    /// Its kernel.
    pub kernel: String,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanRecord {
    /// The servers.
    pub urls: Vec<String>,
    /// Clients in all.
    pub clients: u32,
    /// Clients, or publishers, that send, all kinds of messages together.
    pub senders: u32,
    /// Open loop: messages a second, of all kinds together.
    pub rate: Option<f64>,
    /// To which that rises, or falls, by the end.
    #[serde(default)]
    pub rate_to: Option<f64>,
    /// Closed loop: messages on their way, of all kinds together.
    pub in_flight: Option<u32>,
    /// Size of the payload of the first kind of messages.
    pub bytes: usize,
    /// How long was measured, as planned.
    pub duration_s: f64,
    /// How long was sent before.
    pub warm_up_s: f64,
    /// The transport of most clients.
    pub transport: String,
    /// The protocol of most clients.
    pub eio: u8,
    /// Threads of clients.
    pub threads: u32,
}

/// The sums. Messages of the warm-up are not in them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Messages sent.
    pub sent: u64,
    /// Messages that were due while their sender was not connected or could not write.
    pub unsent: u64,
    /// Deliveries that there should have been, to whoever was connected or not.
    pub expected: u64,
    /// Deliveries that there were, each once.
    pub delivered: u64,
    /// Deliveries that there should have been and were not, to clients that were connected.
    pub lost: u64,
    /// Those of them that were missing when the load test could keep no more gaps: some may have come later, or have
    /// been meant for clients that were away.
    #[serde(default)]
    pub given_up: u64,
    /// Those of the lost that the nodes' counters do not account for either.
    #[serde(default)]
    pub unaccounted: u64,
    /// Deliveries to clients that were not connected at the time.
    pub not_connected: u64,
    /// The same by why they were not.
    pub not_connected_by: BTreeMap<String, u64>,
    /// Deliveries that came again.
    pub duplicated: u64,
    /// Deliveries that came after later ones.
    pub reordered: u64,
    /// Deliveries that took longer than the scenario's `late_after`.
    pub late: u64,
    /// Events that nobody sent, or not to who got them.
    pub foreign: u64,
    /// Messages that the server refused.
    pub refused: u64,
    /// Refusals by reason; the warm-up's too.
    pub refusals: BTreeMap<String, u64>,
    /// Times a client was connected.
    pub connects: u64,
    /// Attempts that failed.
    pub connect_failures: u64,
    /// The same by reason.
    pub connect_failures_by: BTreeMap<String, u64>,
    /// Connections that ended, by reason.
    pub disconnects: BTreeMap<String, u64>,
    /// Times a client was connected again.
    pub reconnects: u64,
    /// Deliveries a second, while measuring.
    pub deliveries_per_s: f64,
    /// Messages sent a second, while measuring.
    pub messages_per_s: f64,
}

/// From planned to received.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LatencyRecord {
    /// How many deliveries.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 90 % of them.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// Points of the distribution: percentile and latency.
    pub percentiles: Vec<(f64, u64)>,
}

impl From<&Latencies> for LatencyRecord {
    fn from(latencies: &Latencies) -> Self {
        Self {
            count: latencies.count(),
            mean: latencies.mean(),
            p50: latencies.percentile(50.0),
            p90: latencies.percentile(90.0),
            p99: latencies.percentile(99.0),
            p999: latencies.percentile(99.9),
            max: latencies.max(),
            percentiles: latencies.distribution(),
        }
    }
}

/// From the attempt to connect to being connected.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ConnectRecord {
    /// How many.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// When all clients had been connected, since the first attempt; 0 if it ended before that.
    pub all_connected_after_s: f64,
}

/// From a disconnect to being connected again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReconnectRecord {
    /// How many.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// Clients that were not connected at the end, and had been.
    pub still_away: u64,
}

/// One second.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SecondRecord {
    /// Which one, since measuring began.
    pub t: u64,
    /// Clients connected at its end.
    pub connected: u32,
    /// Messages sent.
    pub sent: u64,
    /// Deliveries received.
    pub delivered: u64,
    /// Deliveries lost, of the messages sent in it.
    pub lost: u64,
    /// Half of its deliveries took no longer.
    pub p50_us: u64,
    /// 99 % of them.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
    /// What the servers used.
    pub servers: Vec<ServerSecond>,
    /// Cores that the load test used.
    pub client_cpu: f64,
}

/// What one server used in one second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerSecond {
    /// Its process.
    pub pid: u32,
    /// Cores.
    pub cpu: f64,
    /// Memory at the end of it.
    pub rss_bytes: u64,
}

/// Something done to the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FaultRecord {
    /// When, in seconds since measuring began.
    pub t: f64,
    /// What.
    pub command: String,
    /// Its exit code; none if it was still running at the end, or ended by a signal.
    pub exit: Option<i32>,
    /// How long it took.
    pub took_s: f64,
}

/// What a server cost while it was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerCost {
    /// Its process.
    pub pid: u32,
    /// What that is called.
    pub name: String,
    /// CPU time while measuring.
    pub cpu_s: f64,
    /// The same for each delivery of the whole run.
    pub cpu_us_per_delivery: f64,
    /// Memory before the first client.
    pub rss_start_bytes: u64,
    /// Memory when measuring ended.
    pub rss_end_bytes: u64,
    /// The most memory that the process ever had.
    pub rss_max_bytes: u64,
}

/// What the load test cost while it measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientCost {
    /// CPU time of the threads with the clients.
    pub cpu_s: f64,
    /// The same for each delivery.
    pub cpu_us_per_delivery: f64,
}

/// A node's counters against what its clients got, warm-up included.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Book {
    /// Which node.
    pub admin: String,
    /// Deliveries as the node counts them.
    pub delivered: i64,
    /// What it could not deliver, by reason.
    pub undelivered: BTreeMap<String, i64>,
    /// Broadcasts that were lost between it and other nodes, by counter and reason.
    pub between_nodes: BTreeMap<String, i64>,
    /// Broadcasts of the others that did not come to it, or that it refused; 0 if its books do not balance.
    #[serde(default)]
    pub unheard: u64,
    /// Deliveries that its clients lost with those.
    #[serde(default)]
    pub accounted: u64,
    /// Sockets that it closed, by reason.
    pub closed: BTreeMap<String, i64>,
    /// Whether everything is accounted for.
    pub balanced: bool,
    /// Why the node could not be asked at the end.
    pub error: Option<String>,
    /// Deliveries that the node counts and that did not arrive.
    pub difference: i64,
}

/// Two clients between whom something went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CulpritRecord {
    /// The client that should have heard.
    pub receiver: u32,
    /// The client that sent.
    pub sender: u32,
    /// `lost`, `duplicated`, `reordered` or `foreign`.
    pub what: String,
    /// How often.
    pub count: u64,
    /// The number of the first message concerned.
    pub first_number: u32,
}

/// Something that had to hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expected {
    /// What.
    pub what: String,
    /// Whether it did.
    pub held: bool,
    /// What was found.
    pub actual: String,
}

impl Report {
    /// The short form for a terminal.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            // Writing to memory does not fail.
            let _ = writeln!(text, "  {name:<15} {value}");
        };
        let (plan, totals) = (&self.plan, &self.totals);
        row("clients", format!("{} on {}", plan.clients, plan.urls.join(", ")));
        row(
            "connected",
            format!(
                "{}; p50 {}, p99 {}",
                all_after(self.connect_us.all_connected_after_s),
                time(self.connect_us.p50),
                time(self.connect_us.p99)
            ),
        );
        row(
            "messages",
            format!(
                "{} sent, {:.1}/s{}",
                count(totals.sent),
                totals.messages_per_s,
                some(", unsent ", totals.unsent)
            ),
        );
        row(
            "deliveries",
            format!(
                "{} of {}, {}/s",
                count(totals.delivered),
                count(totals.expected),
                count(totals.deliveries_per_s as u64)
            ),
        );
        let latency = &self.latency_us;
        row(
            "latency",
            format!(
                "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
                time(latency.p50),
                time(latency.p90),
                time(latency.p99),
                time(latency.p999),
                time(latency.max)
            ),
        );
        row(
            "oracle",
            format!(
                "lost {}{}, duplicated {}, reordered {}, late {}, foreign {}, refused {}",
                count(totals.lost),
                unaccounted(totals),
                count(totals.duplicated),
                count(totals.reordered),
                count(totals.late),
                count(totals.foreign),
                count(totals.refused)
            ),
        );
        if totals.given_up > 0 {
            let given_up = count(totals.given_up);
            row(
                "not followed",
                format!("{given_up} of the lost: too many gaps; they may be excused"),
            );
        }
        if totals.not_connected > 0 {
            row(
                "not connected",
                format!("{} ({})", count(totals.not_connected), reasons(&totals.not_connected_by)),
            );
        }
        if !totals.refusals.is_empty() {
            row("refusals", reasons(&totals.refusals));
        }
        if !totals.disconnects.is_empty() {
            row("disconnects", reasons(&totals.disconnects));
            let again = &self.reconnect_us;
            row(
                "reconnects",
                format!(
                    "{}; p50 {}, p99 {}, max {}{}",
                    count(totals.reconnects),
                    time(again.p50),
                    time(again.p99),
                    time(again.max),
                    some("; still away ", again.still_away)
                ),
            );
        }
        if totals.connect_failures > 0 {
            row(
                "failed connects",
                format!(
                    "{} ({})",
                    count(totals.connect_failures),
                    reasons(&totals.connect_failures_by)
                ),
            );
        }
        for server in &self.servers {
            let grown = server.rss_end_bytes.saturating_sub(server.rss_start_bytes);
            row(
                "server",
                format!(
                    "{} ({}): CPU {:.2} s{}; memory {:.1} MB, {:.1} kB a client",
                    server.name,
                    server.pid,
                    server.cpu_s,
                    per_delivery(totals.delivered, server.cpu_us_per_delivery),
                    server.rss_end_bytes as f64 / 1e6,
                    grown as f64 / 1e3 / f64::from(plan.clients)
                ),
            );
        }
        row(
            "load test",
            format!(
                "CPU {:.2} s{}",
                self.client.cpu_s,
                per_delivery(totals.delivered, self.client.cpu_us_per_delivery)
            ),
        );
        for book in &self.books {
            let state = if book.balanced { "balanced" } else { "NOT BALANCED" };
            let counts = book.closed.iter().chain(&book.undelivered).chain(&book.between_nodes);
            if let Some(error) = &book.error {
                row("books", format!("{error}: {state}"));
                continue;
            }
            let counts: Vec<_> = counts.map(|(what, count)| format!("; {what}: {count}")).collect();
            let between = match (book.unheard, book.accounted) {
                (0, 0) => String::new(),
                (unheard, accounted) => {
                    format!(
                        "; {} of other nodes not heard, with them lost: {}",
                        count(unheard),
                        count(accounted)
                    )
                }
            };
            row(
                "books",
                format!(
                    "{}: {} delivered, {} of them not received: {state}{}{between}",
                    book.admin,
                    book.delivered,
                    book.difference,
                    counts.concat()
                ),
            );
        }
        for fault in &self.faults {
            let exit = fault.exit.map_or("no exit code".into(), |code| format!("exit {code}"));
            row(
                "command",
                format!("at {:.1} s, {exit}, {:.2} s: {}", fault.t, fault.took_s, fault.command),
            );
        }
        for culprit in self.culprits.iter().take(5) {
            row(
                "culprit",
                format!(
                    "client {} from {}: {} {}, first number {}",
                    culprit.receiver,
                    culprit.sender,
                    culprit.count,
                    culprit.what,
                    culprit.first_number
                ),
            );
        }
        for expected in &self.expectations {
            let name = if expected.held { "held" } else { "NOT HELD" };
            row(name, format!("{} (is {})", expected.what, expected.actual));
        }
        let end = if self.ended_early { " (ended early)" } else { "" };
        format!(
            "{}: {}{end}\n{text}{}\n",
            self.scenario,
            self.title,
            if self.passed { "PASSED" } else { "FAILED" }
        )
    }
}

/// What the nodes' counters say of what is lost, if they say anything.
fn unaccounted(totals: &Totals) -> String {
    if totals.unaccounted == totals.lost {
        return String::new();
    }
    format!(" (of which unaccounted for: {})", count(totals.unaccounted))
}

fn all_after(seconds: f64) -> String {
    if seconds > 0.0 { format!("all after {seconds:.2} s") } else { "not all".into() }
}

fn per_delivery(delivered: u64, us: f64) -> String {
    if delivered == 0 { String::new() } else { format!(", {us:.2} µs a delivery") }
}

fn some(name: &str, count: u64) -> String {
    if count == 0 { String::new() } else { format!("{name}{count}") }
}

fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let each: Vec<_> = counts.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
    each.join(", ")
}

/// With a separator at the thousands.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds in the unit that suits them.
pub(crate) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}
