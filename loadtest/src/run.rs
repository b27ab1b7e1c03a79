//! One run from its beginning to its report.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::books::{self, Counters};
use crate::client::{self, Clock, Control, Counts, NEVER, Outcome, Update, Worker, WorkerError};
use crate::faults::Faults;
use crate::live::{Glance, Live};
use crate::oracle::{self, Evidence, Judgement, Sent};
use crate::pacing::Pace;
use crate::payload::Run;
use crate::procs::{self, Usage};
use crate::push::{Published, Publisher};
use crate::report::{
    Book, ClientCost, ConnectRecord, CulpritRecord, FORMAT, LatencyRecord, Machine, PlanRecord,
    ReconnectRecord, Report, ServerCost, ServerSecond, Totals,
};
use crate::scenario::Plan;
use crate::seconds::Seconds;

/// Updates of workers that may wait; a worker that finds no place tells it next time.
const UPDATES_MAX: usize = 1024;
/// How often it looks around.
const TURN: Duration = Duration::from_millis(20);
/// How long commands may go on after the end.
const FAULTS_PATIENCE: Duration = Duration::from_secs(5);

/// It could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system does not let it have so many connections.
    #[error(
        "{needed} file descriptors are needed, and the limit is {limit}: raise it with `ulimit -n {needed}`"
    )]
    Descriptors {
        /// For the plan.
        needed: u64,
        /// What there is at most.
        limit: u64,
    },
    /// A server, a node's admin address or Redis cannot be used.
    #[error("{0}")]
    Target(String),
    /// Not everybody got in.
    #[error("only {arrived} of {clients} clients could connect: {reasons}")]
    Connect {
        /// How many did.
        arrived: u32,
        /// How many should.
        clients: u32,
        /// Why attempts failed.
        reasons: String,
    },
    /// The system failed.
    #[error("a worker ended")]
    Worker(#[from] WorkerError),
}

/// Runs a plan. `stop` ends it early, with a report; `command` is what the report says it was.
///
/// # Errors
///
/// It could not be run at all.
///
/// # Panics
///
/// When a worker did.
pub fn run(
    plan: Plan,
    command: &str,
    stop: &AtomicBool,
    live: &mut Live,
) -> Result<Report, RunError> {
    let plan = Arc::new(plan);
    raise_descriptors(&plan)?;
    client::probe(&plan).map_err(RunError::Target)?;
    let mut course = Course::begin(plan)?;
    let arrived = course.follow(stop, live);
    live.done();
    let seen = course.finish()?;
    match arrived {
        Ok(()) => Ok(seen.report(command)),
        Err(NotAll { arrived }) => {
            let clients = seen.course.plan.clients;
            let reasons =
                seen.counts.connect_failures.iter().map(|(reason, n)| format!("{reason} ({n}×)"));
            let reasons: Vec<_> = reasons.collect();
            Err(RunError::Connect { arrived, clients, reasons: reasons.join(", ") })
        }
    }
}

fn raise_descriptors(plan: &Plan) -> Result<(), RunError> {
    let needed = plan.descriptors();
    // Where there is no such limit, connecting will tell.
    let limit = rlimit::increase_nofile_limit(needed).unwrap_or(needed);
    if limit < needed { Err(RunError::Descriptors { needed, limit }) } else { Ok(()) }
}

/// A server's process as it was seen at certain times.
#[derive(Debug, Default)]
struct Watched {
    pid: u32,
    name: String,
    at_start: Usage,
    at_count: Usage,
    at_end: Usage,
    last: Usage,
    rss_max_bytes: u64,
}

impl Watched {
    /// A process that has gone uses nothing any more, and keeps what it has used.
    fn usage(&self) -> Usage {
        procs::usage(self.pid).unwrap_or(Usage { rss_bytes: 0, ..self.last })
    }
}

/// Not all clients could connect.
struct NotAll {
    arrived: u32,
}

/// A run that goes on.
struct Course {
    plan: Arc<Plan>,
    control: Arc<Control>,
    clock: Clock,
    updates: Receiver<Update>,
    workers: Vec<JoinHandle<Result<Outcome, WorkerError>>>,
    publisher: Option<JoinHandle<Published>>,
    /// The last update of each worker, its seconds taken out.
    known: Vec<Update>,
    seconds: Seconds,
    watched: Vec<Watched>,
    own: Usage,
    sampled_us: u64,
    sample_due_us: u64,
    last_sample: Vec<(f64, u64)>,
    books_before: Vec<Counters>,
    books_after: Vec<Result<Counters, String>>,
    faults: Faults,
    ended_early: bool,
    all_connected_after_s: f64,
    started: SystemTime,
    measured_us: u64,
}

/// What the workers know of it all, summed up.
#[derive(Default)]
struct Sum {
    connected: u32,
    arrived: u32,
    gone: u32,
    sent_all: bool,
    due: u64,
    delivered: u64,
    missing: u64,
    connect_failures: u64,
}

impl Course {
    fn begin(plan: Arc<Plan>) -> Result<Self, RunError> {
        let clock = Clock::start();
        let run = Run::new(fastrand::u32(..));
        let control = Arc::new(Control::default());
        let (sender, updates) = sync_channel(UPDATES_MAX);
        let watched = plan.pids.iter().map(|&pid| {
            let usage = procs::usage(pid);
            let usage =
                usage.ok_or_else(|| RunError::Target(format!("--pid {pid}: no such process")))?;
            let name = procs::name(pid).unwrap_or_default();
            let (at_start, at_count, last) = (usage, usage, usage);
            Ok(Watched { pid, name, at_start, at_count, last, ..Watched::default() })
        });
        let watched = watched.collect::<Result<_, RunError>>()?;
        let publisher = Publisher::new(plan.clone(), control.clone(), sender.clone(), clock, run)
            .map_err(RunError::Target)?;
        let mut course = Self {
            known: vec![Update::default(); plan.threads as usize + 1],
            faults: Faults::new(clock, plan.faults.clone()),
            control,
            clock,
            updates,
            workers: Vec::new(),
            publisher: None,
            seconds: Seconds::default(),
            watched,
            own: Usage::default(),
            sampled_us: 0,
            sample_due_us: 0,
            last_sample: Vec::new(),
            books_before: Vec::new(),
            books_after: Vec::new(),
            ended_early: false,
            all_connected_after_s: 0.0,
            started: SystemTime::now(),
            measured_us: 0,
            plan,
        };
        for admin in &course.plan.admin {
            let counters = Counters::read(admin, course.plan.admin_token.as_deref());
            course.books_before.push(counters.map_err(RunError::Target)?);
        }
        for index in 0..course.plan.threads as usize {
            let (plan, control) = (course.plan.clone(), course.control.clone());
            let worker = Worker::new(index, plan, control, sender.clone(), clock, run)?;
            let name = format!("clients-{index}");
            let thread = std::thread::Builder::new().name(name).spawn(|| worker.run());
            course.workers.push(thread.map_err(WorkerError::from)?);
        }
        if let Some(publisher) = publisher {
            let thread =
                std::thread::Builder::new().name("publisher".into()).spawn(|| publisher.run());
            course.publisher = Some(thread.map_err(WorkerError::from)?);
        }
        Ok(course)
    }

    fn follow(&mut self, stop: &AtomicBool, live: &mut Live) -> Result<(), NotAll> {
        self.connect(stop, live)?;
        let count_from_us = self.measure(stop, live);
        self.wait_for_the_last(count_from_us, stop, live);
        Ok(())
    }

    /// Until all clients have been connected.
    fn connect(&mut self, stop: &AtomicBool, live: &mut Live) -> Result<(), NotAll> {
        let ramp = Duration::from_secs_f64(f64::from(self.plan.clients) / self.plan.ramp);
        let deadline_us = (ramp + self.plan.connect_within).as_micros() as u64;
        loop {
            self.take_updates();
            let sum = self.sum();
            if sum.arrived == self.plan.clients {
                self.all_connected_after_s = self.clock.now_us() as f64 / 1e6;
                return Ok(());
            }
            if stop.load(Ordering::Relaxed) {
                self.ended_early = true;
                return Ok(());
            }
            if self.clock.now_us() > deadline_us {
                return Err(NotAll { arrived: sum.arrived });
            }
            self.sample();
            live.show(&self.glance("connecting", None));
        }
    }

    /// Warm-up and measuring; when the latter began.
    fn measure(&mut self, stop: &AtomicBool, live: &mut Live) -> u64 {
        let plan = self.plan.clone();
        // A moment, so that all workers know of it before it is there.
        let send_from_us = self.clock.now_us() + 2 * TURN.as_micros() as u64;
        let count_from_us = send_from_us + plan.warm_up.as_micros() as u64;
        let until_us = count_from_us + plan.duration.as_micros() as u64;
        self.control.send_until.store(until_us, Ordering::Relaxed);
        self.control.count_from.store(count_from_us, Ordering::Relaxed);
        self.control.send_from.store(send_from_us, Ordering::Relaxed);
        let mut counting = false;
        loop {
            self.take_updates();
            let now_us = self.clock.now_us();
            if stop.load(Ordering::Relaxed) && !self.ended_early {
                self.ended_early = true;
            }
            if now_us >= count_from_us && !counting {
                counting = true;
                self.started = SystemTime::now();
                self.sample_due_us = now_us;
                self.sample();
                self.sample_due_us = count_from_us + 1_000_000;
                self.own = procs::usage(std::process::id()).unwrap_or_default();
                self.watched.iter_mut().for_each(|watched| watched.at_count = watched.last);
            }
            if counting {
                self.faults.step(now_us - count_from_us);
                self.sample_second(count_from_us);
            }
            if now_us >= until_us || self.ended_early {
                self.control.send_until.store(now_us.min(until_us), Ordering::Relaxed);
                self.measured_us = now_us.min(until_us).saturating_sub(count_from_us);
                self.watched.iter_mut().for_each(|watched| watched.at_end = watched.usage());
                return count_from_us;
            }
            if counting {
                let progress = ((now_us - count_from_us) as f64 / 1e6, plan.duration.as_secs_f64());
                live.show(&self.glance("measuring", Some(progress)));
            } else {
                self.sample();
                let over_us = now_us.saturating_sub(send_from_us);
                let progress = (over_us as f64 / 1e6, plan.warm_up.as_secs_f64());
                live.show(&self.glance("warming up", Some(progress)));
            }
        }
    }

    /// Until all that was sent has arrived, everybody is back and no command is running, or the grace is over.
    fn wait_for_the_last(&mut self, count_from_us: u64, stop: &AtomicBool, live: &mut Live) {
        let ended_us = self.clock.now_us();
        let deadline_us = ended_us + self.plan.grace.as_micros() as u64;
        let faults_deadline_us = ended_us + FAULTS_PATIENCE.as_micros() as u64;
        let interrupted = self.ended_early;
        // What comes twice may come a moment after all is there.
        let settled_us = ended_us + 6 * TURN.as_micros() as u64;
        loop {
            self.take_updates();
            let now_us = self.clock.now_us();
            let sum = self.sum();
            let back = sum.connected + sum.gone == self.plan.clients;
            let arrived = sum.sent_all && sum.delivered >= sum.due;
            let complete = (arrived && back) || now_us >= deadline_us;
            let quiet = !self.faults.are_running() || now_us >= faults_deadline_us;
            let impatient = stop.load(Ordering::Relaxed) && !interrupted;
            self.ended_early |= impatient;
            if (complete && quiet && now_us >= settled_us) || impatient {
                return;
            }
            self.sample_second(count_from_us);
            live.show(&self.glance("waiting for the last", None));
        }
    }

    /// Takes what the workers have told, or waits a moment for it.
    fn take_updates(&mut self) {
        let mut wait = TURN;
        loop {
            match self.updates.recv_timeout(wait) {
                Ok(mut update) => {
                    for second in update.seconds.drain(..) {
                        self.seconds.add(&second);
                    }
                    let worker = update.worker;
                    self.known[worker] = update;
                    wait = Duration::ZERO;
                }
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => return std::thread::sleep(wait),
            }
        }
    }

    fn sum(&self) -> Sum {
        let (publisher, workers) = self.known.split_last().expect("there is one for the publisher");
        let mut sum = Sum {
            sent_all: workers.iter().all(|worker| worker.sent_all)
                && (publisher.sent_all || self.publisher.is_none()),
            ..Sum::default()
        };
        for update in &self.known {
            sum.connected += update.connected;
            sum.arrived += update.arrived;
            sum.gone += update.gone;
            sum.due += update.due;
            sum.delivered += update.delivered;
            sum.missing += update.missing;
            sum.connect_failures += update.connect_failures;
        }
        sum
    }

    /// CPU and memory, if it is time; whether it was.
    fn sample(&mut self) -> bool {
        let now_us = self.clock.now_us();
        let Some(behind_us) = now_us.checked_sub(self.sample_due_us) else { return false };
        // Counted from when it was due, so that it does not drift past a whole second in a long run.
        self.sample_due_us += (behind_us / 1_000_000 + 1) * 1_000_000;
        let over_us = now_us - self.sampled_us;
        self.sampled_us = now_us;
        self.last_sample.clear();
        for watched in &mut self.watched {
            let usage = watched.usage();
            let cpu = (usage.cpu_s - watched.last.cpu_s) * 1e6 / over_us as f64;
            watched.last = usage;
            let highest = procs::rss_max_bytes(watched.pid).unwrap_or(0);
            watched.rss_max_bytes = watched.rss_max_bytes.max(highest);
            self.last_sample.push((cpu, usage.rss_bytes));
        }
        true
    }

    /// The same at the end of each second that is measured, kept for the report.
    fn sample_second(&mut self, count_from_us: u64) {
        if !self.sample() {
            return;
        }
        let own = procs::usage(std::process::id()).unwrap_or_default();
        let client_cpu = own.cpu_s - self.own.cpu_s;
        self.own = own;
        // The sample is of the second that has just ended. Who ends it in the warm-up has none.
        let seconds = self.clock.now_us().checked_sub(count_from_us).map(|us| us / 1_000_000);
        let Some(index) = seconds.and_then(|seconds| seconds.checked_sub(1)) else { return };
        let connected = self.sum().connected;
        let of = self.watched.iter().zip(&self.last_sample);
        let servers =
            of.map(|(w, &(cpu, rss_bytes))| ServerSecond { pid: w.pid, cpu, rss_bytes }).collect();
        self.seconds.sample(index, connected, servers, client_cpu);
    }

    fn glance(&self, phase: &'static str, progress: Option<(f64, f64)>) -> Glance {
        let sum = self.sum();
        let last = self.seconds.last();
        Glance {
            phase,
            progress,
            connected: sum.connected,
            clients: self.plan.clients,
            connect_failures: sum.connect_failures,
            sent: last.map_or(0, |second| second.sent),
            delivered: last.map_or(0, |second| second.delivered),
            p50_us: last.map_or(0, |second| second.p50_us),
            p99_us: last.map_or(0, |second| second.p99_us),
            missing: sum.missing,
            servers: self.last_sample.clone(),
        }
    }

    /// Ends the workers and collects what they know.
    fn finish(mut self) -> Result<Seen, RunError> {
        // Before the clients leave: what the nodes close from now on is not theirs to answer for.
        let token = self.plan.admin_token.as_deref();
        self.books_after =
            self.plan.admin.iter().map(|admin| Counters::read(admin, token)).collect();
        self.control.over.store(true, Ordering::Relaxed);
        let mut outcomes = Vec::new();
        for worker in std::mem::take(&mut self.workers) {
            outcomes.push(worker.join().expect("a worker does not panic")?);
        }
        let publisher = self.publisher.take();
        let published =
            publisher.map(|thread| thread.join().expect("the publisher does not panic"));
        self.take_updates();
        Ok(Seen::new(self, outcomes, published.unwrap_or_default()))
    }
}

/// A run that is over.
struct Seen {
    course: Course,
    counts: Counts,
    /// By stream.
    sent: Vec<Sent>,
    judgement: Judgement,
}

impl Seen {
    fn new(mut course: Course, outcomes: Vec<Outcome>, published: Published) -> Self {
        let scopes = course.plan.scopes();
        // Without measuring, all that there is belongs to the warm-up.
        if course.measured_us > 0 {
            outcomes.iter().for_each(|outcome| course.seconds.add(&outcome.second));
            course.seconds.add(&published.second);
        }
        let streams = scopes.iter().map(|scope| scope.senders as usize).sum();
        let mut seen = Self {
            counts: Counts {
                received_by_target: vec![0; course.plan.targets.len()],
                unsent: published.unsent,
                ..Counts::default()
            },
            sent: vec![Sent::default(); streams],
            judgement: Judgement::default(),
            course,
        };
        let (mut ledgers, mut absences) = (Vec::new(), Vec::new());
        for (stream, sent) in published.sent {
            seen.sent[stream as usize] = sent;
        }
        for outcome in outcomes {
            for (stream, sent) in outcome.sent {
                seen.sent[stream as usize] = sent;
            }
            ledgers.push(outcome.ledger);
            absences.extend(outcome.absences);
            seen.counts.add(outcome.counts);
        }
        seen.judgement = oracle::judge(&Evidence {
            scopes: &scopes,
            clients: seen.course.plan.clients,
            sent: &seen.sent,
            ledgers: &ledgers,
            absences: &absences,
            targets: seen.course.plan.targets.len(),
            counted_from_us: match seen.course.control.count_from.load(Ordering::Relaxed) {
                NEVER => 0,
                count_from_us => count_from_us,
            },
        });
        seen
    }

    fn report(mut self, command: &str) -> Report {
        let plan = self.course.plan.clone();
        let books = self.books();
        let accounted = books.iter().map(|book| book.accounted).sum::<u64>();
        let mut culprits = std::mem::take(&mut self.counts.culprits);
        culprits.merge(std::mem::take(&mut self.judgement.culprits));
        let measured_s = (self.course.measured_us as f64 / 1e6).max(1e-6);
        let seconds = self
            .course
            .seconds
            .records(&self.judgement.lost_by_second, self.course.measured_us.div_ceil(1_000_000));
        let while_measuring = seconds.iter().filter(|second| (second.t as f64) < measured_s);
        let delivered: u64 = while_measuring.map(|second| second.delivered).sum();
        let sent: u64 = self.sent.iter().map(|sent| u64::from(sent.counted())).sum();
        let totals = Totals {
            unaccounted: self.judgement.lost - accounted,
            ..self.totals(sent, delivered as f64 / measured_s, sent as f64 / measured_s)
        };
        let (counts, judgement) = (&self.counts, &self.judgement);
        let cpu_us = counts.cpu.as_secs_f64() * 1e6;
        let (cpu, memory_bytes, kernel) = procs::machine();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut report = Report {
            format: FORMAT,
            scenario: plan.name.clone(),
            title: plan.title.clone(),
            started: humantime::format_rfc3339_seconds(self.course.started).to_string(),
            ended_early: self.course.ended_early,
            machine: Machine { cpu, cores, memory_bytes, kernel },
            commit: commit(),
            command: command.to_owned(),
            plan: plan_record(&plan),
            latency_us: LatencyRecord::from(&self.course.seconds.latencies),
            connect_us: ConnectRecord {
                count: counts.connect_latencies.count(),
                p50: counts.connect_latencies.percentile(50.0),
                p99: counts.connect_latencies.percentile(99.0),
                max: counts.connect_latencies.max(),
                all_connected_after_s: self.course.all_connected_after_s,
            },
            reconnect_us: ReconnectRecord {
                count: counts.away.count(),
                p50: counts.away.percentile(50.0),
                p99: counts.away.percentile(99.0),
                max: counts.away.max(),
                still_away: counts.still_away,
            },
            seconds,
            servers: self.servers(delivered),
            client: ClientCost {
                cpu_s: counts.cpu.as_secs_f64(),
                cpu_us_per_delivery: cpu_us / (delivered.max(1) as f64),
            },
            books,
            culprits: culprits.worst().into_iter().map(culprit_record).collect(),
            expectations: Vec::new(),
            passed: judgement.lost == 0,
            totals,
            faults: self.course.faults.records(),
        };
        report.expectations = plan.expect.iter().map(|expect| expect.check(&report)).collect();
        report.passed = report.expectations.iter().all(|expected| expected.held);
        report
    }

    fn totals(&self, sent: u64, deliveries_per_s: f64, messages_per_s: f64) -> Totals {
        let (counts, judgement) = (&self.counts, &self.judgement);
        Totals {
            sent,
            unsent: counts.unsent,
            expected: judgement.expected,
            delivered: counts.delivered,
            lost: judgement.lost,
            given_up: judgement.given_up,
            unaccounted: judgement.lost,
            not_connected: judgement.not_connected.values().sum(),
            not_connected_by: judgement.not_connected.clone(),
            duplicated: counts.duplicated,
            reordered: counts.reordered,
            late: counts.late,
            foreign: counts.foreign + judgement.never_sent,
            refused: judgement.refused,
            refusals: counts.refusals.clone(),
            connects: counts.connects,
            connect_failures: counts.connect_failures.values().sum(),
            connect_failures_by: counts.connect_failures.clone(),
            disconnects: counts.disconnects.clone(),
            reconnects: counts.away.count(),
            deliveries_per_s,
            messages_per_s,
        }
    }

    fn servers(&self, delivered: u64) -> Vec<ServerCost> {
        let cost = |watched: &Watched| {
            let cpu_s = watched.at_end.cpu_s - watched.at_count.cpu_s;
            ServerCost {
                pid: watched.pid,
                name: watched.name.clone(),
                cpu_s,
                cpu_us_per_delivery: cpu_s * 1e6 / (delivered.max(1) as f64),
                rss_start_bytes: watched.at_start.rss_bytes,
                rss_end_bytes: watched.at_end.rss_bytes,
                rss_max_bytes: watched.rss_max_bytes,
            }
        };
        self.course.watched.iter().map(cost).collect()
    }

    /// The nodes' counters against what arrived: node by node if there is one for each target, in their order, and
    /// with what was lost between them; else all nodes against all clients.
    fn books(&self) -> Vec<Book> {
        let plan = &self.course.plan;
        let (received, cut_off) =
            (&self.counts.received_by_target, &self.judgement.not_connected_ever);
        let nodes: Vec<_> = self.course.books_before.iter().zip(&self.course.books_after).collect();
        let readable =
            nodes.iter().map(|(before, after)| after.as_ref().map(|after| (*before, after)));
        let readable: Result<Vec<_>, _> = readable.collect();
        if plan.admin.len() == received.len() {
            let book = |(at, (before, after)): (usize, &(&Counters, &Result<Counters, String>))| {
                let admin = &plan.admin[at];
                match after {
                    Ok(after) => books::balance(admin, before, after, received[at], cut_off[at]),
                    Err(error) => books::unreadable(admin, error),
                }
            };
            let mut books: Vec<_> = nodes.iter().enumerate().map(book).collect();
            if let Ok(counters) = &readable {
                let outside = plan.flows.iter().filter(|flow| flow.scope.outside);
                let streams = outside.flat_map(|flow| {
                    let first = flow.scope.first_stream as usize;
                    &self.sent[first..first + flow.scope.senders as usize]
                });
                let published = streams.map(|sent| u64::from(sent.count)).sum();
                books::account(&mut books, counters, published, &self.judgement.unheard);
            }
            return books;
        }
        let admin = plan.admin.join(", ");
        match readable {
            _ if plan.admin.is_empty() => Vec::new(),
            Ok(counters) => {
                let before = Counters::sum(counters.iter().map(|(before, _)| *before));
                let after = Counters::sum(counters.iter().map(|(_, after)| *after));
                let (received, cut_off) = (received.iter().sum(), cut_off.iter().sum());
                vec![books::balance(&admin, &before, &after, received, cut_off)]
            }
            Err(error) => vec![books::unreadable(&admin, error)],
        }
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.delivered += other.delivered;
        let of_target = self.received_by_target.iter_mut().zip(other.received_by_target);
        of_target.for_each(|(sum, received)| *sum += received);
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.late += other.late;
        self.foreign += other.foreign;
        self.unsent += other.unsent;
        for (sum, other) in [
            (&mut self.refusals, other.refusals),
            (&mut self.connect_failures, other.connect_failures),
            (&mut self.disconnects, other.disconnects),
        ] {
            other.into_iter().for_each(|(reason, count)| *sum.entry(reason).or_default() += count);
        }
        self.connects += other.connects;
        self.connect_latencies.add(&other.connect_latencies);
        self.away.add(&other.away);
        self.still_away += other.still_away;
        self.cpu += other.cpu;
        self.culprits.merge(other.culprits);
    }
}

fn plan_record(plan: &Plan) -> PlanRecord {
    let (mut rate, mut rate_to, mut in_flight) = (None, None, None);
    for flow in plan.flows.iter().filter(|flow| flow.scope.senders > 0) {
        match flow.pace {
            Pace::Rate { from, to, .. } => {
                *rate.get_or_insert(0.0) += from;
                *rate_to.get_or_insert(0.0) += to;
            }
            Pace::InFlight(places) => *in_flight.get_or_insert(0) += places,
        }
    }
    PlanRecord {
        urls: plan.targets.iter().map(|target| target.url.clone()).collect(),
        clients: plan.clients,
        senders: plan.flows.iter().map(|flow| flow.scope.senders).sum(),
        rate,
        rate_to: rate_to.filter(|_| rate != rate_to),
        in_flight,
        bytes: plan.flows[0].bytes,
        duration_s: plan.duration.as_secs_f64(),
        warm_up_s: plan.warm_up.as_secs_f64(),
        transport: plan.transport.as_str().to_owned(),
        eio: plan.eio.number(),
        threads: plan.threads,
    }
}

fn culprit_record(culprit: oracle::Culprit) -> CulpritRecord {
    let oracle::Culprit { receiver, sender, what, count, first_number } = culprit;
    CulpritRecord { receiver, sender, what: what.to_owned(), count, first_number }
}

/// The commit of the working directory, if it is one.
fn commit() -> Option<String> {
    let git =
        std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    git.status.success().then(|| String::from_utf8_lossy(&git.stdout).trim().to_owned())
}
