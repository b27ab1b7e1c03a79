//! What is done with each event that arrives. Millions a second pass through [`Intake::take`].

use crate::client::{Counts, NEVER, Second};
use crate::histogram::Latencies;
use crate::oracle::{Finding, Ledger, Scope};
use crate::payload::{self, Run};
use crate::scenario::Plan;

/// What is known about a receiver.
#[derive(Debug, Clone, Copy)]
pub(super) struct Receiver {
    /// Which client it is.
    pub(super) index: u32,
    /// Its place in the worker.
    pub(super) local: u32,
    /// The stream that it sends itself; `u32::MAX` if it does not.
    pub(super) own_stream: u32,
    /// Whether it does not read at times: then its latencies say nothing of the server.
    pub(super) slow: bool,
}

/// What an event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// A message.
    Message,
    /// A message that the receiver sent itself.
    Own,
    /// Not one of ours.
    NotOurs,
}

/// A flow as receivers see it.
#[derive(Debug)]
struct Heard {
    /// How the packet begins, up to the payload.
    prefix: Vec<u8>,
    /// How long it is.
    length: usize,
    scope: Scope,
}

#[derive(Debug)]
pub(super) struct Intake {
    run: Run,
    flows: Vec<Heard>,
    /// The flow of the last message: the next one is likely to be of the same.
    likely: usize,
    places: usize,
    pub(super) ledger: Ledger,
    /// From when on messages count; `NEVER` as long as it is not known.
    pub(super) count_from_us: u64,
    late_after_us: u64,
    /// Messages that arrived, each once.
    pub(super) unique: u64,
    /// All of them, repeated ones too.
    pub(super) received: u64,
    pub(super) second: Second,
    pub(super) counts: Counts,
}

impl Intake {
    pub(super) fn new(plan: &Plan, run: Run, receivers: usize) -> Self {
        let heard = |flow: &crate::scenario::Flow| {
            let prefix = format!("42[\"{}\",\"", flow.heard_as).into_bytes();
            Heard { length: prefix.len() + flow.bytes + 2, prefix, scope: flow.scope }
        };
        let places = plan.flows.iter().map(|flow| flow.scope.places() as usize).sum();
        let counts =
            Counts { received_by_target: vec![0; plan.targets.len()], ..Counts::default() };
        Self {
            run,
            flows: plan.flows.iter().map(heard).collect(),
            likely: 0,
            places,
            ledger: Ledger::new(receivers, places),
            count_from_us: NEVER,
            late_after_us: plan.late_after.as_micros() as u64,
            unique: 0,
            received: 0,
            second: Second::default(),
            counts,
        }
    }

    /// An event packet, whole.
    #[inline]
    pub(super) fn take(&mut self, receiver: Receiver, packet: &[u8], now_us: u64) -> Taken {
        let flow = match self.flows.get(self.likely) {
            Some(flow) if packet.starts_with(&flow.prefix) => flow,
            _ => match self.flows.iter().position(|flow| packet.starts_with(&flow.prefix)) {
                Some(other) => {
                    self.likely = other;
                    &self.flows[other]
                }
                None => return Taken::NotOurs,
            },
        };
        let scope = &flow.scope;
        let Some(head) = payload::read(self.run, &packet[flow.prefix.len()..])
            .filter(|_| packet.len() == flow.length && packet.ends_with(b"\"]"))
        else {
            return Taken::NotOurs;
        };
        let sender = head.stream.wrapping_sub(scope.first_stream);
        let place = if sender < scope.senders { scope.place(receiver.index, sender) } else { None };
        let Some(place) = place else { return Taken::NotOurs };
        let slot = receiver.local as usize * self.places + place as usize;
        self.received += 1;
        self.second.delivered += 1;
        let counts = head.planned_us >= self.count_from_us;
        match self.ledger.note(slot, head.number, now_us) {
            Finding::New => self.unique += 1,
            odd => {
                let sender = scope.first_client + sender;
                self.note_odd(odd, receiver.index, sender, head.number, counts);
                if odd == Finding::Duplicated {
                    return Taken::Message;
                }
            }
        }
        if counts {
            let latency = now_us.saturating_sub(head.planned_us);
            self.counts.delivered += 1;
            if !receiver.slow {
                self.counts.late += u64::from(latency > self.late_after_us);
                self.second.latencies.record(latency);
            }
        }
        if head.stream == receiver.own_stream { Taken::Own } else { Taken::Message }
    }

    #[cold]
    fn note_odd(&mut self, odd: Finding, receiver: u32, sender: u32, number: u32, counts: bool) {
        let what = if odd == Finding::Duplicated {
            self.counts.duplicated += u64::from(counts);
            "duplicated"
        } else {
            self.unique += 1;
            self.counts.reordered += u64::from(counts);
            "reordered"
        };
        if counts {
            self.counts.culprits.add(receiver, sender, what, 1, number);
        }
    }

    /// The second is over; what happened in it.
    pub(super) fn next_second(&mut self, index: u64) -> Second {
        let next = Second { index, latencies: Latencies::default(), ..Second::default() };
        std::mem::replace(&mut self.second, next)
    }
}
