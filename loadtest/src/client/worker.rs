//! The event loop of one thread: timers, messages that are due, reads, and what it tells the rest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::conn::{Client, State};
use super::intake::{Intake, Receiver};
use super::{Clock, Control, NEVER, Outcome, Second, Update};
use crate::oracle::{Absence, Sent, server_of};
use crate::pacing::Pace;
use crate::payload::{self, Head, Run};
use crate::scenario::{Plan, Source, Storm};

/// The longest sleep: how late a worker may notice what it is told.
const SLEEP_MAX_US: u64 = 20_000;
/// How often it tells how things are while connecting and at the end; in between it does so each second.
const UPDATE_US: u64 = 50_000;
/// What one read takes. Large, so that a flood costs few system calls; shared, so that idle clients cost none of it.
const BUFFER_BYTES: usize = 256 * 1024;
/// Events that one poll brings.
const EVENTS_MAX: usize = 1024;
/// Messages sent before reading gets its turn.
const SENDS_IN_A_ROW: usize = 256;
/// In a closed loop, a sender of whose messages none was done for so long takes them for lost, and goes on.
const STUCK_US: u64 = 5_000_000;

/// How long sessions that poll may take to end.
const LEAVE_US: u64 = 1_000_000;

const ALARM: Token = Token(usize::MAX);

/// A worker could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot wait for sockets")]
pub struct WorkerError(#[from] io::Error);

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Its next attempt to connect.
    Connect,
    /// The end of the present one.
    Attempt,
    /// Its next ping to the server (Engine.IO 3).
    Ping,
    /// Silence that has lasted too long.
    Silence,
}

#[derive(Debug)]
pub(super) struct Sender {
    client: usize,
    flow: usize,
    stream: u32,
    pub(super) sent: Sent,
    pub(super) in_flight: u32,
    pub(super) in_flight_max: u32,
    /// When one of its messages was done last.
    pub(super) moved_us: u64,
}

/// The open loop of one flow, as far as this worker's senders go.
#[derive(Debug)]
struct Schedule {
    flow: usize,
    /// The worker's senders of this flow: place among all senders, and place among this worker's.
    senders: Vec<(u32, u32)>,
    /// Messages of these senders that have been due so far.
    next: u64,
}

impl Schedule {
    /// The sender of the next message, and when it is due. Senders take turns, those of all workers together.
    fn peek(&self, plan: &Plan) -> Option<(u32, u64)> {
        let count = self.senders.len() as u64;
        let (place, sender) = *self.senders.get((self.next % count.max(1)) as usize)?;
        let flow = &plan.flows[self.flow];
        let number = self.next / count * u64::from(flow.scope.senders) + u64::from(place);
        Some((sender, flow.pace.due_us(number)?))
    }
}

/// One thread's clients.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    pub(super) plan: Arc<Plan>,
    control: Arc<Control>,
    updates: SyncSender<Update>,
    pub(super) clock: Clock,
    run: Run,
    pub(super) poll: Poll,
    alarm: OwnedFd,
    alarm_at_us: u64,
    pub(super) clients: Vec<Client>,
    pub(super) senders: Vec<Sender>,
    schedules: Vec<Schedule>,
    pub(super) intake: Intake,
    timers: BinaryHeap<Reverse<(u64, u32, u32, Timer)>>,
    pub(super) buffer: Vec<u8>,
    /// A packet being put together for polling.
    pub(super) packet: Vec<u8>,
    /// Clients that have something to write.
    pub(super) dirty: Vec<u32>,
    /// Clients that have more to read.
    pub(super) unread: Vec<u32>,
    /// Senders in a closed loop that have a place free.
    pub(super) eager: Vec<u32>,
    pub(super) absences: Vec<Absence>,
    pub(super) connected: u32,
    pub(super) arrived: u32,
    pub(super) gone: u32,
    pub(super) connect_failures: u64,
    due: u64,
    update: Update,
    told_sent_all: bool,
    next_update_us: u64,
    storm_done: bool,
    paused: Option<bool>,
    cpu_from: Option<Duration>,
    cpu_until: Option<Duration>,
    pub(super) rng: fastrand::Rng,
}

impl Worker {
    /// The worker of this index among `plan.threads`.
    ///
    /// # Errors
    ///
    /// The system does not give it what it needs.
    pub fn new(
        index: usize,
        plan: Arc<Plan>,
        control: Arc<Control>,
        updates: SyncSender<Update>,
        clock: Clock,
        run: Run,
    ) -> Result<Self, WorkerError> {
        let poll = Poll::new()?;
        let alarm = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)
            .map_err(io::Error::from)?;
        poll.registry().register(&mut SourceFd(&alarm.as_raw_fd()), ALARM, Interest::READABLE)?;
        let mine: Vec<u32> = (index as u32..plan.clients).step_by(plan.threads as usize).collect();
        let mut schedules: Vec<Schedule> = (0..plan.flows.len())
            .map(|flow| Schedule { flow, senders: Vec::new(), next: 0 })
            .collect();
        let (mut clients, mut senders) = (Vec::new(), Vec::new());
        let mut timers = BinaryHeap::new();
        let slow_from = plan.clients - plan.slow.map_or(0, |slow| slow.clients);
        for (local, &client) in mine.iter().enumerate() {
            let sends = plan.flows.iter().position(|flow| {
                flow.source == Source::Clients
                    && client
                        .checked_sub(flow.scope.first_client)
                        .is_some_and(|s| s < flow.scope.senders)
            });
            let sender = sends.map(|flow| {
                let scope = plan.flows[flow].scope;
                let place = client - scope.first_client;
                let at = senders.len() as u32;
                schedules[flow].senders.push((place, at));
                senders.push(Sender {
                    client: local,
                    flow,
                    stream: scope.first_stream + place,
                    sent: Sent::default(),
                    in_flight: 0,
                    in_flight_max: plan.flows[flow].pace.in_flight_of(place, scope.senders),
                    moved_us: 0,
                });
                at
            });
            let receiver = Receiver {
                index: client,
                local: local as u32,
                own_stream: sender.map_or(u32::MAX, |at: u32| senders[at as usize].stream),
                slow: client >= slow_from,
            };
            let target = server_of(client, plan.targets.len()) as u32;
            clients.push(Client::new(receiver, target, plan.kind_of(client), sender));
            let due_us = (f64::from(client) / plan.ramp * 1e6) as u64;
            timers.push(Reverse((due_us, local as u32, 0, Timer::Connect)));
        }
        Ok(Self {
            index,
            control,
            updates,
            clock,
            run,
            poll,
            alarm,
            alarm_at_us: NEVER,
            intake: Intake::new(&plan, run, clients.len()),
            clients,
            senders,
            schedules,
            timers,
            buffer: vec![0; BUFFER_BYTES],
            packet: Vec::new(),
            dirty: Vec::new(),
            unread: Vec::new(),
            eager: Vec::new(),
            absences: Vec::new(),
            connected: 0,
            arrived: 0,
            gone: 0,
            connect_failures: 0,
            due: 0,
            update: Update { worker: index, ..Update::default() },
            told_sent_all: false,
            next_update_us: 0,
            storm_done: false,
            paused: None,
            cpu_from: None,
            cpu_until: None,
            rng: fastrand::Rng::with_seed(plan.seed ^ index as u64),
            plan,
        })
    }

    /// Runs until it is told that the run is over.
    ///
    /// # Errors
    ///
    /// The system does not wait for sockets any more.
    pub fn run(mut self) -> Result<Outcome, WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.control.over.load(Ordering::Relaxed) {
            let now_us = self.clock.now_us();
            self.follow_the_script(now_us);
            self.timers_due(now_us);
            let late = self.send_due(now_us);
            self.flush_all();
            self.tell(now_us, late);
            let timeout = self.sleep(late || !self.unread.is_empty())?;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(error.into());
                }
                _ => {}
            }
            for at in std::mem::take(&mut self.unread) {
                self.read(at as usize, true);
            }
            for event in &events {
                if event.token() == ALARM {
                    // Setting it again makes it unread; it needs no reading.
                    self.alarm_at_us = NEVER;
                } else {
                    self.ready(event.token().0, event);
                }
            }
        }
        self.finish_absences();
        self.count_unsent();
        self.take_leave(&mut events)?;
        Ok(self.outcome())
    }

    /// A WebSocket that ends is the end of its session; one that polls has to say so, or the server would keep
    /// it, and serve it in the next run.
    fn take_leave(&mut self, events: &mut Events) -> Result<(), WorkerError> {
        let deadline_us = self.clock.now_us() + LEAVE_US;
        (0..self.clients.len()).for_each(|at| self.close_session(at));
        self.flush_all();
        while self.clients.iter().any(Client::is_leaving) && self.clock.now_us() < deadline_us {
            match self.poll.poll(events, Some(Duration::from_micros(SLEEP_MAX_US))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(error.into());
                }
                _ => {}
            }
            for event in events.iter().filter(|event| event.token() != ALARM) {
                self.ready(event.token().0, event);
            }
        }
        Ok(())
    }

    fn outcome(mut self) -> Outcome {
        let receivers = self.clients.iter().map(|client| client.receiver.index).collect();
        if let Some(from) = self.cpu_from {
            self.intake.counts.cpu = self.cpu_until.unwrap_or_else(thread_cpu) - from;
        }
        Outcome {
            ledger: (self.intake.ledger, receivers),
            sent: self.senders.into_iter().map(|sender| (sender.stream, sender.sent)).collect(),
            absences: self.absences,
            second: self.intake.second,
            counts: self.intake.counts,
        }
    }

    pub(super) fn set_timer(&mut self, at: usize, when_us: u64, timer: Timer) {
        let generation = self.clients[at].generation;
        self.timers.push(Reverse((when_us, at as u32, generation, timer)));
    }

    fn timers_due(&mut self, now_us: u64) {
        while let Some(&Reverse((due_us, at, generation, timer))) = self.timers.peek() {
            if due_us > now_us {
                break;
            }
            self.timers.pop();
            if self.clients[at as usize].generation == generation {
                self.timer(at as usize, timer, now_us);
            }
        }
    }

    /// What happens at set times of the run.
    fn follow_the_script(&mut self, now_us: u64) {
        let count_from_us = self.control.count_from.load(Ordering::Relaxed);
        self.intake.count_from_us = count_from_us;
        if now_us < count_from_us {
            return;
        }
        if self.cpu_from.is_none() {
            self.cpu_from = Some(thread_cpu());
            // What came before was the warm-up.
            self.intake.second = Second::default();
        }
        if self.cpu_until.is_none() && now_us >= self.control.send_until.load(Ordering::Relaxed) {
            self.cpu_until = Some(thread_cpu());
        }
        let since_us = now_us - count_from_us;
        let plan = self.plan.clone();
        let due = |storm: &Storm| !self.storm_done && since_us >= storm.at.as_micros() as u64;
        if let Some(storm) = plan.storm.filter(due) {
            self.storm_done = true;
            for at in 0..self.clients.len() {
                self.storm(at, storm.back_off, now_us);
            }
        }
        if let Some(slow) = plan.slow {
            let from_us = slow.from.as_micros() as u64;
            let pause = (from_us..from_us + slow.lasting.as_micros() as u64).contains(&since_us);
            if pause != self.paused.unwrap_or(false) {
                self.paused = Some(pause);
                for at in 0..self.clients.len() {
                    match (self.clients[at].receiver.slow, pause) {
                        (true, true) => self.pause(at, now_us),
                        (true, false) => self.resume(at, now_us),
                        (false, _) => {}
                    }
                }
            }
        }
    }

    /// Sends what is due; whether there is more of it than fits into one turn.
    fn send_due(&mut self, now_us: u64) -> bool {
        let from_us = self.control.send_from.load(Ordering::Relaxed);
        let until_us = self.control.send_until.load(Ordering::Relaxed);
        if now_us < from_us || from_us == NEVER {
            return false;
        }
        let plan = self.plan.clone();
        let mut sent = 0;
        for at in 0..self.schedules.len() {
            while let Some((sender, due_us)) = self.schedules[at].peek(&plan) {
                let due_us = from_us + due_us;
                if due_us > now_us || due_us >= until_us {
                    break;
                }
                if sent == SENDS_IN_A_ROW {
                    return true;
                }
                self.schedules[at].next += 1;
                sent += 1;
                if !self.emit(sender as usize, due_us, now_us)
                    && due_us >= self.intake.count_from_us
                {
                    self.intake.counts.unsent += 1;
                }
            }
        }
        if now_us >= until_us {
            self.eager.clear();
            return false;
        }
        while let Some(at) = self.eager.pop() {
            let at = at as usize;
            while self.senders[at].in_flight < self.senders[at].in_flight_max {
                if !self.emit(at, now_us, now_us) {
                    break;
                }
                let sender = &mut self.senders[at];
                if sender.in_flight == 0 {
                    // Nothing is stuck before it has been sent.
                    sender.moved_us = now_us;
                }
                sender.in_flight += 1;
            }
        }
        false
    }

    /// What was due, and could not be sent in time because there was too much of it.
    fn count_unsent(&mut self) {
        let from_us = self.control.send_from.load(Ordering::Relaxed);
        let until_us = self.control.send_until.load(Ordering::Relaxed);
        if from_us == NEVER {
            return;
        }
        for schedule in &mut self.schedules {
            while let Some((_, due_us)) = schedule.peek(&self.plan)
                && from_us + due_us < until_us
            {
                schedule.next += 1;
                self.intake.counts.unsent +=
                    u64::from(from_us + due_us >= self.intake.count_from_us);
            }
        }
    }

    /// Sends one message, unless its sender cannot.
    fn emit(&mut self, at: usize, planned_us: u64, now_us: u64) -> bool {
        let plan = self.plan.clone();
        let sender = &mut self.senders[at];
        let client = &self.clients[sender.client];
        if client.state != State::Open || client.is_congested() {
            return false;
        }
        let counts = planned_us >= self.intake.count_from_us;
        let number = sender.sent.take_number(now_us, counts);
        let flow = &plan.flows[sender.flow];
        let place = sender.stream - flow.scope.first_stream;
        self.due += u64::from(flow.scope.audience(place, plan.clients));
        self.intake.second.sent += 1;
        let head = Head { stream: sender.stream, number, planned_us };
        let wants_ack = matches!(flow.pace, Pace::InFlight(_)) && !flow.sender_hears();
        let (client, room) = (sender.client, client.receiver.index % flow.rooms().max(1));
        let run = self.run;
        self.send(client, |out| {
            use std::io::Write as _;
            // Writing to memory does not fail.
            let _ = if wants_ack { write!(out, "42{number}") } else { write!(out, "42") };
            let _ = write!(out, "[\"{}\",\"", flow.event);
            if flow.rooms() > 0 {
                let _ = write!(out, "room-{room}\",\"");
            }
            payload::write(out, run, head, flow.bytes);
            out.extend_from_slice(b"\"]");
        });
        true
    }

    fn flush_all(&mut self) {
        while let Some(at) = self.dirty.pop() {
            self.flush(at as usize);
        }
    }

    /// Tells how things are, when it is time. A coordinator that is behind hears it later, with what came up since.
    /// `late`: there is more to send than there was time for.
    fn tell(&mut self, now_us: u64, late: bool) {
        let count_from_us = self.intake.count_from_us;
        if now_us >= count_from_us {
            let index = (now_us - count_from_us) / 1_000_000;
            if index > self.intake.second.index {
                self.update.seconds.push(self.intake.next_second(index));
                self.next_update_us = now_us;
            }
        }
        let until_us = self.control.send_until.load(Ordering::Relaxed);
        let sent_all = now_us >= until_us && !late;
        // That nothing more is sent is waited for.
        if now_us < self.next_update_us && sent_all == self.told_sent_all {
            return;
        }
        let sending = (self.control.send_from.load(Ordering::Relaxed)..until_us).contains(&now_us);
        self.next_update_us = now_us + if sending { 1_000_000 } else { UPDATE_US };
        if sending {
            self.wake_the_stuck(now_us);
        }
        self.update.connected = self.connected;
        self.update.arrived = self.arrived;
        self.update.gone = self.gone;
        self.update.due = self.due;
        self.update.sent_all = sent_all;
        self.update.delivered = self.intake.unique;
        self.update.missing = self.intake.ledger.missing();
        self.update.connect_failures = self.connect_failures;
        let next = Update { worker: self.index, ..Update::default() };
        match self.updates.try_send(std::mem::replace(&mut self.update, next)) {
            Ok(()) => self.told_sent_all = sent_all,
            Err(TrySendError::Full(update) | TrySendError::Disconnected(update)) => {
                self.update = update;
            }
        }
    }

    fn wake_the_stuck(&mut self, now_us: u64) {
        for (at, sender) in self.senders.iter_mut().enumerate() {
            if sender.in_flight > 0 && now_us >= sender.moved_us + STUCK_US {
                sender.in_flight = 0;
                sender.moved_us = now_us;
            }
            if sender.in_flight < sender.in_flight_max {
                self.eager.push(at as u32);
            }
        }
    }

    /// How long to sleep. Messages wake to the microsecond, by an alarm; for the rest, milliseconds will do.
    fn sleep(&mut self, not_at_all: bool) -> io::Result<Option<Duration>> {
        if not_at_all || !self.dirty.is_empty() {
            return Ok(Some(Duration::ZERO));
        }
        let now_us = self.clock.now_us();
        let from_us = self.control.send_from.load(Ordering::Relaxed);
        let until_us = self.control.send_until.load(Ordering::Relaxed);
        let plan = &self.plan;
        let due = self.schedules.iter().filter_map(|schedule| schedule.peek(plan));
        let due_us = due.map(|(_, due_us)| from_us.saturating_add(due_us)).min();
        if let Some(due_us) = due_us.filter(|due_us| *due_us < until_us && from_us != NEVER) {
            if due_us <= now_us {
                return Ok(Some(Duration::ZERO));
            }
            if due_us != self.alarm_at_us {
                self.alarm_at_us = due_us;
                let wait_us = (due_us - now_us) as i64;
                let it_value =
                    Timespec { tv_sec: wait_us / 1_000_000, tv_nsec: wait_us % 1_000_000 * 1_000 };
                let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
                let time = Itimerspec { it_interval, it_value };
                timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &time)?;
            }
        }
        let timer_us = self.timers.peek().map_or(NEVER, |Reverse((due_us, ..))| *due_us);
        let wake_us = timer_us.min(self.next_update_us).saturating_sub(now_us).min(SLEEP_MAX_US);
        Ok(Some(Duration::from_micros(wake_us)))
    }
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
