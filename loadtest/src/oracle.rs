//! Knows what each receiver should have got: finds what was lost, duplicated or reordered, and what it could
//! not have got.
//!
//! While the run goes on a [`Ledger`] keeps, for each receiver and stream, the number that comes next and the gaps
//! behind it. Afterwards [`judge`] looks at what is missing. It is **lost**, unless
//!
//! * it was *refused*: the sender was told so, and nobody got it;
//! * its receiver was *not connected*: it is among the last messages before a disconnect (nothing of the stream
//!   came after it on that connection, and it was sent no longer before than a dead connection may go unnoticed),
//!   or was sent before the receiver was back;
//! * its *sender's* connection ended, and the missing ones are the last that went out on it.
//!
//! Of what is lost, [`Unheard`] is what may have been lost between servers, which [`crate::books`] compares with what
//! these say of it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Gaps that a ledger keeps, in some 200 MB. One more counts as lost at once, whoever was away, and what fills it later
/// as duplicated; the report says so. A hundred thousand pairs of sender and receiver may be cut off forty times.
const GAPS_MAX: usize = 1 << 22;

/// How exactly a stream remembers when its messages went out. Finer would cost memory in long runs.
const TIMES_EVERY_US: u64 = 5_000;

/// Culprits that are named.
const CULPRITS_MAX: usize = 20;

/// Who hears the senders of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hears {
    /// Every client.
    All,
    /// Every client but the sender.
    Others,
    /// The sender.
    Sender,
    /// The sender's room. Client `c` is in room `c` modulo `rooms`.
    Room {
        /// How many rooms there are.
        rooms: u32,
        /// Whether the sender hears itself.
        sender_too: bool,
    },
}

/// The streams of one flow: one for each sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Who hears them.
    pub hears: Hears,
    /// How many there are.
    pub senders: u32,
    /// The client that is the first sender.
    pub first_client: u32,
    /// The stream of the first sender.
    pub first_stream: u32,
    /// Where the flow's places begin in each receiver's part of the ledger.
    pub offset: u32,
    /// Whether the senders are none of the clients, and connected to no server.
    pub outside: bool,
}

impl Scope {
    /// Places that each receiver needs for the flow.
    pub fn places(&self) -> u32 {
        match self.hears {
            Hears::All | Hears::Others => self.senders,
            Hears::Sender => 1,
            Hears::Room { rooms, .. } => self.senders.div_ceil(rooms),
        }
    }

    /// The place of `sender` (counted within the flow) with `receiver`, or `None`: it is not meant to hear it.
    #[inline]
    pub fn place(&self, receiver: u32, sender: u32) -> Option<u32> {
        let own = self.first_client + sender == receiver;
        match self.hears {
            Hears::All => Some(self.offset + sender),
            Hears::Others => (!own).then_some(self.offset + sender),
            Hears::Sender => own.then_some(self.offset),
            Hears::Room { rooms, sender_too } => {
                let room = (self.first_client + sender) % rooms;
                (room == receiver % rooms && (sender_too || !own))
                    .then_some(self.offset + sender / rooms)
            }
        }
    }

    /// How many of `clients` clients hear `sender`.
    pub fn audience(&self, sender: u32, clients: u32) -> u32 {
        match self.hears {
            Hears::All => clients,
            Hears::Others => clients - 1,
            Hears::Sender => 1,
            Hears::Room { rooms, sender_too } => {
                let room = (self.first_client + sender) % rooms;
                (clients + rooms - 1 - room) / rooms - u32::from(!sender_too)
            }
        }
    }

    /// The senders that `receiver` hears.
    fn heard_by(&self, receiver: u32) -> impl Iterator<Item = u32> {
        let scope = *self;
        let (start, step, count) = match scope.hears {
            Hears::All | Hears::Others => (0, 1, scope.senders),
            Hears::Sender => match receiver.checked_sub(scope.first_client) {
                Some(sender) if sender < scope.senders => (sender, 1, 1),
                _ => (0, 1, 0),
            },
            Hears::Room { rooms, .. } => {
                let start = (receiver % rooms + rooms - scope.first_client % rooms) % rooms;
                (start, rooms, scope.senders.saturating_sub(start).div_ceil(rooms))
            }
        };
        (0..count)
            .map(move |i| start + i * step)
            .filter(move |&s| scope.place(receiver, s).is_some())
    }
}

/// What a number says about its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It is the next one, or there is a gap before it.
    New,
    /// It comes after one that was sent later.
    Reordered,
    /// It was here before.
    Duplicated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    start: u32,
    found_us: u64,
}

/// What the receivers of one worker have got.
#[derive(Debug)]
pub struct Ledger {
    /// By receiver and place: the number that comes next.
    next: Vec<u32>,
    /// By slot and end.
    gaps: BTreeMap<(u32, u32), Gap>,
    gaps_max: usize,
    /// Numbers in gaps at present.
    missing: u64,
    /// Numbers in gaps that were one too many.
    given_up: u64,
}

impl Ledger {
    /// For so many receivers and places of each.
    pub fn new(receivers: usize, places: usize) -> Self {
        let next = vec![0; receivers * places];
        Self { next, gaps: BTreeMap::new(), gaps_max: GAPS_MAX, missing: 0, given_up: 0 }
    }

    /// A message is here. `slot` is receiver × places + place.
    #[inline]
    pub fn note(&mut self, slot: usize, number: u32, now_us: u64) -> Finding {
        let next = self.next[slot];
        if number == next {
            self.next[slot] = number.saturating_add(1);
            return Finding::New;
        }
        self.note_odd(slot, number, now_us)
    }

    #[cold]
    fn note_odd(&mut self, slot: usize, number: u32, now_us: u64) -> Finding {
        let next = self.next[slot];
        if number > next {
            self.next[slot] = number.saturating_add(1);
            if self.gaps.len() == self.gaps_max {
                self.given_up += u64::from(number - next);
            } else {
                let gap = Gap { start: next, found_us: now_us };
                self.gaps.insert((slot as u32, number), gap);
                self.missing += u64::from(number - next);
            }
            return Finding::New;
        }
        let slot = slot as u32;
        let mut behind = self.gaps.range((slot, number + 1)..=(slot, u32::MAX));
        let Some((&(_, end), &gap)) = behind.next().filter(|(_, gap)| gap.start <= number) else {
            return Finding::Duplicated;
        };
        self.gaps.remove(&(slot, end));
        if gap.start < number {
            self.gaps.insert((slot, number), gap);
        }
        if number + 1 < end {
            self.gaps.insert((slot, end), Gap { start: number + 1, ..gap });
        }
        self.missing -= 1;
        Finding::Reordered
    }

    /// Messages that are missing although later ones are here.
    pub fn missing(&self) -> u64 {
        self.missing + self.given_up
    }
}

/// Why a stream broke off at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// When this was noticed.
    pub at_us: u64,
    /// How long it may have gone unnoticed.
    pub patience_us: u64,
    /// The last number that went out before.
    pub last: u32,
}

/// What one sender has sent.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// How many messages, warm-up included.
    pub count: u32,
    /// The first that counts; `None` if none does.
    pub first_counted: Option<u32>,
    /// How many the server refused.
    pub refused: u64,
    /// Where its connection ended.
    pub ends: Vec<End>,
    /// From which number on messages went out no earlier than this.
    times: Vec<(u64, u32)>,
}

impl Sent {
    /// The next number, which goes out now.
    pub fn take_number(&mut self, now_us: u64, counts: bool) -> u32 {
        let number = self.count;
        if self.times.last().is_none_or(|(at, _)| now_us >= at + TIMES_EVERY_US) {
            self.times.push((now_us, number));
        }
        if counts && self.first_counted.is_none() {
            self.first_counted = Some(number);
        }
        self.count += 1;
        number
    }

    /// How many count.
    pub fn counted(&self) -> u32 {
        self.first_counted.map_or(0, |first| self.count - first)
    }

    /// The first number that was sent at that time or later, as exactly as is known: those in doubt are included.
    fn first_since(&self, us: u64) -> u32 {
        let after = self.times.partition_point(|(at, _)| *at <= us);
        self.times.get(after.saturating_sub(1)).map_or(self.count, |(_, number)| *number)
    }

    /// The first number that was surely sent after that time.
    fn first_after(&self, us: u64) -> u32 {
        let after = self.times.partition_point(|(at, _)| *at <= us);
        self.times.get(after).map_or(self.count, |(_, number)| *number)
    }

    /// About when a number was sent.
    fn sent_at(&self, number: u32) -> u64 {
        let after = self.times.partition_point(|(_, first)| *first <= number);
        self.times.get(after.saturating_sub(1)).map_or(0, |(at, _)| *at)
    }
}

/// A time during which a client was not connected.
#[derive(Debug, Clone, Copy)]
pub struct Absence {
    /// Which client.
    pub client: u32,
    /// When its disconnect was noticed.
    pub from_us: u64,
    /// How long that may have gone unnoticed.
    pub patience_us: u64,
    /// When it was back.
    pub until_us: u64,
    /// Why it was disconnected.
    pub reason: &'static str,
}

/// Two clients between whom something went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// The client that should have heard.
    pub receiver: u32,
    /// The client that sent (for `push`: the publisher's stream).
    pub sender: u32,
    /// What went wrong.
    pub what: &'static str,
    /// How often.
    pub count: u64,
    /// The number of the first message concerned.
    pub first_number: u32,
}

/// Collects culprits, each pair once.
#[derive(Debug, Default)]
pub struct Culprits(HashMap<(u32, u32, &'static str), (u64, u32)>);

impl Culprits {
    /// Pairs that are kept; later ones are only counted in the totals.
    const PAIRS_MAX: usize = 10_000;

    /// Something went wrong between these two.
    pub fn add(&mut self, receiver: u32, sender: u32, what: &'static str, count: u64, first: u32) {
        let full = self.0.len() >= Self::PAIRS_MAX;
        let key = (receiver, sender, what);
        if full && !self.0.contains_key(&key) {
            return;
        }
        let entry = self.0.entry(key).or_insert((0, first));
        entry.0 += count;
        entry.1 = entry.1.min(first);
    }

    /// All of the other's.
    pub fn merge(&mut self, other: Self) {
        for ((receiver, sender, what), (count, first)) in other.0 {
            self.add(receiver, sender, what, count, first);
        }
    }

    /// The worst of them, worst first.
    pub fn worst(self) -> Vec<Culprit> {
        let all = self.0.into_iter();
        let mut all: Vec<_> = all
            .map(|((receiver, sender, what), (count, first_number))| Culprit {
                receiver,
                sender,
                what,
                count,
                first_number,
            })
            .collect();
        all.sort_by_key(|c| (u64::MAX - c.count, c.what, c.receiver, c.sender));
        all.truncate(CULPRITS_MAX);
        all
    }
}

/// Which of several servers a client connects to: the sum of its number's digits, in their base. Of any such many
/// neighbours each has another one, and so have those that share a room, which are as far apart as there are rooms:
/// their remainder by the number of servers may be the same for all.
pub fn server_of(client: u32, servers: usize) -> usize {
    let (mut rest, mut sum) = (client as usize, 0);
    while servers > 1 && rest > 0 {
        sum += rest % servers;
        rest /= servers;
    }
    sum % servers
}

/// All that was seen in a run.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The flows.
    pub scopes: &'a [Scope],
    /// How many clients there are.
    pub clients: u32,
    /// What went out, by stream.
    pub sent: &'a [Sent],
    /// Of each worker: its ledger, and its clients in the order of the ledger.
    pub ledgers: &'a [(Ledger, Vec<u32>)],
    /// When clients were away.
    pub absences: &'a [Absence],
    /// How many servers there are; which client is where says [`server_of`].
    pub targets: usize,
    /// When sending that counts began; seconds are counted from there.
    pub counted_from_us: u64,
}

/// What became of the messages that did not arrive. Only messages that count are in here.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Deliveries that there should have been.
    pub expected: u64,
    /// Deliveries that nobody can account for.
    pub lost: u64,
    /// Those of them that were missing when there were too many gaps to keep.
    pub given_up: u64,
    /// What is lost, but for these, by the second in which the message was sent.
    pub lost_by_second: BTreeMap<u64, u64>,
    /// Deliveries to clients that were not connected, by reason.
    pub not_connected: BTreeMap<String, u64>,
    /// The same by target, and of all messages, the warm-up's too.
    pub not_connected_ever: Vec<u64>,
    /// By target: what may be lost because that server did not hear of it.
    pub unheard: Vec<Vec<Unheard>>,
    /// Messages that the server refused.
    pub refused: u64,
    /// Numbers that arrived and that nobody has sent.
    pub never_sent: u64,
    /// Who missed what.
    pub culprits: Culprits,
}

/// Messages in a row that came to none of one server's clients, although some of these should have got them, and whose
/// sender is not one of them. What only some of them missed, their server has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unheard {
    /// How many messages, the warm-up's too.
    pub messages: u32,
    /// Deliveries of each that are lost; 0 if it does not count.
    pub lost_each: u32,
}

/// A part of a stream that one receiver has not got.
struct Missing {
    receiver: u32,
    scope: usize,
    sender: u32,
    numbers: Range<u32>,
    found_us: u64,
}

/// Says what became of everything that is missing.
pub fn judge(evidence: &Evidence<'_>) -> Judgement {
    let mut judgement =
        Judgement { not_connected_ever: vec![0; evidence.targets], ..Judgement::default() };
    let missing = find_missing(evidence, &mut judgement);
    let refused = find_refused(evidence, &missing);
    for (scope, sender, stream) in streams(evidence) {
        let sent = &evidence.sent[stream];
        let counted = sent.first_counted.unwrap_or(sent.count)..sent.count;
        let refused: u32 = refused
            .get(&stream)
            .map_or(0, |parts| parts.iter().map(|part| clip(part, &counted).len() as u32).sum());
        let audience = u64::from(scope.audience(sender, evidence.clients));
        judgement.refused += u64::from(refused);
        judgement.expected += u64::from(counted.len() as u32 - refused) * audience;
    }
    let mut absences: HashMap<u32, Vec<&Absence>> = HashMap::new();
    for absence in evidence.absences {
        absences.entry(absence.client).or_default().push(absence);
    }
    let mut lost: HashMap<Audience, Vec<Range<u32>>> = HashMap::new();
    for missing in &missing {
        let absences = absences.get(&missing.receiver).map_or(&[][..], |list| list);
        let stream = (evidence.scopes[missing.scope].first_stream + missing.sender) as usize;
        let refused = refused.get(&stream).map_or(&[][..], |list| list);
        let parts = classify(evidence, missing, absences, refused, &mut judgement);
        if !parts.is_empty() {
            lost.entry(missing.audience(evidence)).or_default().extend(parts);
        }
    }
    judgement.given_up = evidence.ledgers.iter().map(|(ledger, _)| ledger.given_up).sum();
    judgement.lost += judgement.given_up;
    judgement.unheard = find_unheard(evidence, &missing, &lost);
    judgement
}

/// The clients of one target, as far as they hear one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Audience {
    scope: usize,
    sender: u32,
    target: usize,
}

impl Audience {
    /// How many they are; 0 if the sender is a client of the same target.
    fn of_strangers(&self, evidence: &Evidence<'_>) -> i64 {
        let scope = &evidence.scopes[self.scope];
        let is_there = |client: u32| server_of(client, evidence.targets) == self.target;
        if is_there(scope.first_client + self.sender) && !scope.outside {
            return 0;
        }
        let hears = |client: &u32| scope.place(*client, self.sender).is_some() && is_there(*client);
        (0..evidence.clients).filter(hears).count() as i64
    }
}

impl Missing {
    fn audience(&self, evidence: &Evidence<'_>) -> Audience {
        let target = server_of(self.receiver, evidence.targets);
        Audience { scope: self.scope, sender: self.sender, target }
    }
}

/// Of what is lost, what nobody got of a whole audience that is not connected to the sender's server.
fn find_unheard(
    evidence: &Evidence<'_>,
    missing: &[Missing],
    lost: &HashMap<Audience, Vec<Range<u32>>>,
) -> Vec<Vec<Unheard>> {
    // Where, in the numbers of a stream, one more or one less has it missing, and lost.
    let mut edges: HashMap<Audience, Vec<(u32, i64, i64)>> = HashMap::new();
    for (audience, parts) in lost {
        let both = parts.iter().flat_map(|part| [(part.start, 0, 1), (part.end, 0, -1)]);
        edges.entry(*audience).or_default().extend(both);
    }
    for missing in missing {
        if let Some(edges) = edges.get_mut(&missing.audience(evidence)) {
            edges.extend([(missing.numbers.start, 1, 0), (missing.numbers.end, -1, 0)]);
        }
    }
    let mut unheard = vec![Vec::new(); evidence.targets];
    for (audience, mut edges) in edges {
        let strangers = audience.of_strangers(evidence);
        let stream = evidence.scopes[audience.scope].first_stream + audience.sender;
        let sent = &evidence.sent[stream as usize];
        let first_counted = sent.first_counted.unwrap_or(sent.count);
        edges.push((first_counted, 0, 0));
        edges.sort_unstable();
        let (mut missing, mut lost) = (0, 0);
        for pair in edges.windows(2) {
            let (from, until) = (pair[0].0, pair[1].0);
            missing += pair[0].1;
            lost += pair[0].2;
            if from < until && lost > 0 && missing == strangers {
                let lost_each = if from < first_counted { 0 } else { lost as u32 };
                let messages = until - from;
                unheard[audience.target].push(Unheard { messages, lost_each });
            }
        }
    }
    unheard
}

fn streams<'a>(evidence: &'a Evidence<'_>) -> impl Iterator<Item = (&'a Scope, u32, usize)> {
    let of = |scope: &'a Scope| {
        (0..scope.senders)
            .map(move |sender| (scope, sender, (scope.first_stream + sender) as usize))
    };
    evidence.scopes.iter().flat_map(of)
}

fn find_missing(evidence: &Evidence<'_>, judgement: &mut Judgement) -> Vec<Missing> {
    let places: u32 = evidence.scopes.iter().map(Scope::places).sum();
    let mut missing = Vec::new();
    for (ledger, receivers) in evidence.ledgers {
        for (local, &receiver) in receivers.iter().enumerate() {
            for (scope_at, scope) in evidence.scopes.iter().enumerate() {
                for sender in scope.heard_by(receiver) {
                    let place = scope.place(receiver, sender).expect("it is heard");
                    let slot = local * places as usize + place as usize;
                    let count = evidence.sent[(scope.first_stream + sender) as usize].count;
                    let next = ledger.next[slot];
                    judgement.never_sent += u64::from(next.saturating_sub(count).min(1));
                    let mut note = |numbers: Range<u32>, found_us| {
                        let numbers = clip(&numbers, &(0..count));
                        if !numbers.is_empty() {
                            let scope = scope_at;
                            missing.push(Missing { receiver, scope, sender, numbers, found_us });
                        }
                    };
                    let slot = slot as u32;
                    for ((_, end), gap) in ledger.gaps.range((slot, 0)..=(slot, u32::MAX)) {
                        note(gap.start..*end, gap.found_us);
                    }
                    note(next..count, u64::MAX);
                }
            }
        }
    }
    missing
}

/// The numbers of each stream that nobody got, as many as its sender was refused, the earliest first.
fn find_refused(evidence: &Evidence<'_>, missing: &[Missing]) -> HashMap<usize, Vec<Range<u32>>> {
    let mut edges: HashMap<usize, Vec<(u32, i64)>> = HashMap::new();
    for part in missing {
        let stream = (evidence.scopes[part.scope].first_stream + part.sender) as usize;
        if evidence.sent[stream].refused > 0 {
            let edges = edges.entry(stream).or_default();
            edges.extend([(part.numbers.start, 1), (part.numbers.end, -1)]);
        }
    }
    let mut refused = HashMap::new();
    for (scope, sender, stream) in streams(evidence) {
        let Some(mut edges) = edges.remove(&stream) else { continue };
        edges.sort_unstable();
        let audience = i64::from(scope.audience(sender, evidence.clients));
        let (mut left, mut depth) = (evidence.sent[stream].refused, 0);
        let mut parts: Vec<Range<u32>> = Vec::new();
        for pair in edges.windows(2) {
            depth += pair[0].1;
            let take = u64::from(pair[1].0 - pair[0].0).min(left) as u32;
            if depth == audience && take > 0 {
                parts.push(pair[0].0..pair[0].0 + take);
                left -= u64::from(take);
            }
        }
        refused.insert(stream, parts);
    }
    refused
}

/// What is lost of it, the warm-up's too.
fn classify(
    evidence: &Evidence<'_>,
    missing: &Missing,
    absences: &[&Absence],
    refused: &[Range<u32>],
    judgement: &mut Judgement,
) -> Vec<Range<u32>> {
    let scope = &evidence.scopes[missing.scope];
    let sent = &evidence.sent[(scope.first_stream + missing.sender) as usize];
    let counted = sent.first_counted.unwrap_or(sent.count)..sent.count;
    let mut rest = vec![missing.numbers.clone()];
    for part in refused {
        subtract(&mut rest, part);
    }
    let mut excuse = |numbers: Range<u32>, reason: &str, rest: &mut Vec<Range<u32>>| {
        let excused = subtract(rest, &numbers);
        let target = server_of(missing.receiver, evidence.targets);
        judgement.not_connected_ever[target] += total(&excused);
        let count: u64 = excused.iter().map(|part| clip(part, &counted).len() as u64).sum();
        if count > 0 {
            *judgement.not_connected.entry(reason.to_owned()).or_default() += count;
        }
    };
    // A gap that was found while connected is no excuse of a later absence.
    for absence in absences.iter().filter(|absence| absence.until_us <= missing.found_us) {
        let from = sent.first_since(absence.from_us.saturating_sub(absence.patience_us));
        excuse(from..sent.first_after(absence.until_us), absence.reason, &mut rest);
    }
    for end in sent.ends.iter().filter(|end| missing.numbers.contains(&end.last)) {
        let from = sent.first_since(end.at_us.saturating_sub(end.patience_us));
        excuse(from..end.last + 1, "its sender's connection ended", &mut rest);
    }
    for part in rest.iter().map(|part| clip(part, &counted)).filter(|part| !part.is_empty()) {
        let count = part.len() as u64;
        judgement.lost += count;
        let sender = scope.first_client + missing.sender;
        judgement.culprits.add(missing.receiver, sender, "lost", count, part.start);
        let mut at = part.start;
        while at < part.end {
            let second = sent.sent_at(at).saturating_sub(evidence.counted_from_us) / 1_000_000;
            let end = evidence.counted_from_us + (second + 1) * 1_000_000 - 1;
            let next = sent.first_after(end).clamp(at + 1, part.end);
            *judgement.lost_by_second.entry(second).or_default() += u64::from(next - at);
            at = next;
        }
    }
    rest
}

fn clip(part: &Range<u32>, to: &Range<u32>) -> Range<u32> {
    let start = part.start.max(to.start);
    start..part.end.min(to.end).max(start)
}

fn total(parts: &[Range<u32>]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

/// Takes `part` out of `from`; what was taken.
fn subtract(from: &mut Vec<Range<u32>>, part: &Range<u32>) -> Vec<Range<u32>> {
    let mut taken = Vec::new();
    let mut rest = Vec::with_capacity(from.len() + 1);
    for whole in from.drain(..) {
        let middle = clip(part, &whole);
        if middle.is_empty() {
            rest.push(whole);
            continue;
        }
        rest.extend(
            [whole.start..middle.start, middle.end..whole.end]
                .into_iter()
                .filter(|r| !r.is_empty()),
        );
        taken.push(middle);
    }
    *from = rest;
    taken
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SECOND_US: u64 = 1_000_000;

    /// One sender (client 0) that everybody hears; a message every 10 ms.
    struct World {
        scopes: [Scope; 1],
        clients: u32,
        sent: Sent,
        ledger: Ledger,
        absences: Vec<Absence>,
        targets: usize,
    }

    impl World {
        fn new(clients: u32, messages: u32) -> Self {
            let scope = Scope {
                hears: Hears::All,
                senders: 1,
                first_client: 0,
                first_stream: 0,
                offset: 0,
                outside: false,
            };
            let mut sent = Sent::default();
            (0..messages).for_each(|number| {
                sent.take_number(Self::sent_us(number), true);
            });
            let ledger = Ledger::new(clients as usize, 1);
            Self { scopes: [scope], clients, sent, ledger, absences: Vec::new(), targets: 1 }
        }

        fn sent_us(number: u32) -> u64 {
            u64::from(number) * 10_000
        }

        fn deliver(
            &mut self,
            receiver: usize,
            numbers: impl IntoIterator<Item = u32>,
        ) -> Vec<Finding> {
            let note = |number| self.ledger.note(receiver, number, Self::sent_us(number) + 1_000);
            numbers.into_iter().map(note).collect()
        }

        fn away(&mut self, client: u32, from: u32, until_us: u64) {
            let from_us = Self::sent_us(from);
            self.absences.push(Absence {
                client,
                from_us,
                patience_us: SECOND_US,
                until_us,
                reason: "transport close",
            });
        }

        fn judge(self) -> Judgement {
            judge(&Evidence {
                scopes: &self.scopes,
                clients: self.clients,
                sent: &[self.sent],
                ledgers: &[(self.ledger, (0..self.clients).collect())],
                absences: &self.absences,
                targets: self.targets,
                counted_from_us: 0,
            })
        }
    }

    fn count(findings: &[Finding], what: Finding) -> usize {
        findings.iter().filter(|finding| **finding == what).count()
    }

    proptest! {
        #[test]
        fn random_mischief_is_found_with_the_right_number(
            // For each message: is it dropped, is it repeated, does it change places with the next?
            mischief in vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..200),
        ) {
            let messages = mischief.len() as u32;
            let mut stream: Vec<u32> =
                (0..messages).filter(|number| !mischief[*number as usize].0).collect();
            let mut swaps = 0;
            let mut at = 0;
            while at + 1 < stream.len() {
                if mischief[stream[at] as usize].2 {
                    stream.swap(at, at + 1);
                    swaps += 1;
                    at += 1;
                }
                at += 1;
            }
            let repeated: Vec<u32> =
                stream.iter().copied().filter(|number| mischief[*number as usize].1).collect();
            let duplicates = repeated.len();
            let dropped = messages as usize - stream.len();
            stream.extend(repeated);

            let mut world = World::new(1, messages);
            let findings = world.deliver(0, stream);
            prop_assert_eq!(count(&findings, Finding::Duplicated), duplicates);
            prop_assert_eq!(count(&findings, Finding::Reordered), swaps);
            let judgement = world.judge();
            prop_assert_eq!(judgement.lost, dropped as u64);
            prop_assert_eq!(judgement.lost_by_second.values().sum::<u64>(), dropped as u64);
            prop_assert_eq!(judgement.expected, u64::from(messages));
        }

        #[test]
        fn any_order_at_all_is_complete(numbers in Just((0u32..100).collect::<Vec<_>>()).prop_shuffle()) {
            let mut world = World::new(1, 100);
            let late: usize = (1..100).filter(|at| numbers[..*at].iter().any(|n| *n > numbers[*at])).count();
            let findings = world.deliver(0, numbers);
            prop_assert_eq!(count(&findings, Finding::Reordered), late);
            prop_assert_eq!(count(&findings, Finding::Duplicated), 0);
            prop_assert_eq!(world.ledger.missing(), 0);
            prop_assert_eq!(world.judge().lost, 0);
        }

        #[test]
        fn every_sender_has_a_place_of_its_own_with_all_who_hear_it(
            clients in 1u32..40, first in 0u32..20, senders in 0u32..40, rooms in 1u32..12, kind in 0..5,
        ) {
            let first_client = first % clients;
            let senders = senders.min(clients - first_client);
            let hears = match kind {
                0 => Hears::All,
                1 => Hears::Others,
                2 => Hears::Sender,
                3 => Hears::Room { rooms, sender_too: true },
                _ => Hears::Room { rooms, sender_too: false },
            };
            let scope =
                Scope { hears, senders, first_client, first_stream: 0, offset: 3, outside: false };
            let mut audience = vec![0; senders as usize];
            for receiver in 0..clients {
                let heard: Vec<u32> =
                    (0..senders).filter(|sender| scope.place(receiver, *sender).is_some()).collect();
                prop_assert_eq!(&scope.heard_by(receiver).collect::<Vec<_>>(), &heard);
                let mut places: Vec<u32> = heard.iter().filter_map(|s| scope.place(receiver, *s)).collect();
                prop_assert!(places.iter().all(|place| (3..3 + scope.places()).contains(place)));
                places.sort_unstable();
                places.dedup();
                prop_assert_eq!(places.len(), heard.len());
                heard.iter().for_each(|sender| audience[*sender as usize] += 1);
            }
            for sender in 0..senders {
                prop_assert_eq!(scope.audience(sender, clients), audience[sender as usize]);
            }
        }
    }

    #[test]
    fn the_last_messages_are_missed_too() {
        let mut world = World::new(2, 100);
        world.deliver(0, 0..100);
        world.deliver(1, 0..90);
        let judgement = world.judge();
        assert_eq!((judgement.lost, judgement.expected), (10, 200));
        let culprit = &judgement.culprits.worst()[0];
        assert_eq!(
            (culprit.receiver, culprit.sender, culprit.count, culprit.first_number),
            (1, 0, 10, 90)
        );
    }

    #[test]
    fn who_was_away_has_lost_nothing() {
        let mut world = World::new(1, 300);
        // Away from 100 to 200; the last five before were still on their way.
        world.away(0, 100, World::sent_us(200));
        world.deliver(0, (0..95).chain(201..300));
        let judgement = world.judge();
        assert_eq!(judgement.lost, 0);
        assert_eq!(judgement.not_connected, [("transport close".to_owned(), 106)].into());
    }

    #[test]
    fn what_was_sent_after_the_return_is_lost() {
        let mut world = World::new(1, 300);
        world.away(0, 100, World::sent_us(200));
        world.deliver(0, (0..100).chain(210..300));
        let judgement = world.judge();
        assert_eq!((judgement.lost, judgement.not_connected_ever[0]), (9, 101));
    }

    #[test]
    fn a_gap_before_a_disconnect_is_lost_if_later_ones_came_before_it() {
        let mut world = World::new(1, 300);
        world.away(0, 100, World::sent_us(200));
        world.deliver(0, (0..90).chain(95..100).chain(201..300));
        let judgement = world.judge();
        assert_eq!((judgement.lost, judgement.not_connected_ever[0]), (5, 101));
    }

    #[test]
    fn silence_for_longer_than_a_dead_connection_goes_unnoticed_is_loss() {
        let mut world = World::new(1, 400);
        // The patience is a second, a hundred messages; two hundred were silent.
        world.away(0, 300, u64::MAX);
        world.deliver(0, 0..100);
        let judgement = world.judge();
        assert_eq!((judgement.lost, judgement.not_connected_ever[0]), (100, 200));
    }

    #[test]
    fn what_the_server_refused_is_nobodys_loss_as_often_as_it_said_so() {
        let mut world = World::new(2, 100);
        world.sent.refused = 3;
        // 50 to 52 reached nobody, 60 and 61 neither; 70 reached one.
        let reached = |number: &u32| !matches!(number, 50..=52 | 60 | 61);
        world.deliver(0, (0..100).filter(reached));
        world.deliver(1, (0..100).filter(reached).filter(|number| *number != 70));
        let judgement = world.judge();
        assert_eq!((judgement.refused, judgement.lost, judgement.expected), (3, 5, 194));
    }

    #[test]
    fn the_last_messages_of_a_connection_that_ended_may_not_have_arrived() {
        let mut world = World::new(1, 100);
        world.sent.ends.push(End { at_us: World::sent_us(50), patience_us: SECOND_US, last: 49 });
        // 10 is lost; 47 to 49 were the last on the sender's first connection.
        world.deliver(0, (0..10).chain(11..47).chain(50..100));
        let judgement = world.judge();
        assert_eq!((judgement.lost, judgement.not_connected_ever[0]), (1, 3));
    }

    #[test]
    fn clients_of_a_room_are_not_all_on_one_server() {
        for servers in 1..=5usize {
            for client in (0..1000).step_by(servers) {
                let mut there: Vec<_> =
                    (client..client + servers as u32).map(|c| server_of(c, servers)).collect();
                there.sort_unstable();
                assert_eq!(there, (0..servers).collect::<Vec<_>>());
            }
            for (rooms, room) in [(10, 0), (100, 7), (200, 130), (64, 1), (60, 59)] {
                let there = (0..40).map(|k| server_of(room + rooms * k, servers));
                let there: std::collections::HashSet<_> = there.collect();
                assert_eq!(there.len() > 1, servers > 1, "{rooms} rooms on {servers} servers");
            }
        }
    }

    /// Six clients on two servers: 0 (which sends), 3 and 5 on one, 1, 2 and 4 on the other.
    #[track_caller]
    fn check_unheard(missed: [&[u32]; 6], away: bool, outside: bool, expected: [&[(u32, u32)]; 2]) {
        let mut world = World::new(6, 100);
        world.targets = 2;
        world.scopes[0].outside = outside;
        world.sent.first_counted = Some(20);
        for (client, missed) in missed.iter().enumerate() {
            world.deliver(client, (0..100).filter(|number| !missed.contains(number)));
        }
        if away {
            world.away(2, 48, World::sent_us(52));
        }
        let mut unheard = world.judge().unheard;
        for (unheard, expected) in unheard.iter_mut().zip(expected) {
            unheard.sort_by_key(|unheard| (unheard.lost_each, unheard.messages));
            let found: Vec<_> = unheard.iter().map(|u| (u.messages, u.lost_each)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_none_of_another_servers_clients_got_may_be_lost_between_servers() {
        let (none, two): (&[u32], &[u32]) = (&[], &[50, 51]);
        check_unheard([none, two, two, none, two, none], false, false, [&[], &[(2, 3)]]);
        // One of them got 51; and the warm-up's does not count, but was not heard either.
        let (most, all): (&[u32], &[u32]) = (&[10, 50], &[10, 50, 51]);
        check_unheard([none, all, most, none, all, none], false, false, [&[], &[(1, 0), (1, 3)]]);
        // Who was away lost nothing.
        let (one, gone): (&[u32], &[u32]) = (&[50], &[48, 49, 50, 51, 52]);
        check_unheard([none, one, gone, none, one, none], true, false, [&[], &[(1, 2)]]);
    }

    #[test]
    fn what_is_lost_at_the_senders_own_server_is_not_lost_between_servers() {
        let one: &[u32] = &[50];
        check_unheard([one; 6], false, false, [&[], &[(1, 3)]]);
        check_unheard([one; 6], false, true, [&[(1, 3)], &[(1, 3)]]);
    }

    #[test]
    fn the_warm_up_does_not_count() {
        let mut world = World::new(1, 100);
        world.sent.first_counted = Some(50);
        world.deliver(0, (0..40).chain(45..60).chain(62..100));
        let judgement = world.judge();
        assert_eq!((judgement.lost, judgement.expected), (2, 50));
    }

    #[test]
    fn gaps_that_are_too_many_to_keep_are_lost_and_told_apart() {
        let mut world = World::new(1, 100);
        world.ledger.gaps_max = 3;
        // 10, 20, 30, and no more; 20 comes after all, and makes room for 60.
        world.deliver(0, (0..51).filter(|number| number % 10 != 0 || *number == 0).chain([20]));
        world.deliver(0, (51..100).filter(|number| *number != 60));
        let judgement = world.judge();
        assert_eq!((judgement.lost, judgement.given_up), (5, 2));
        assert_eq!(judgement.lost_by_second.values().sum::<u64>(), 3);
    }

    #[test]
    fn numbers_that_were_never_sent_are_noticed() {
        let mut world = World::new(1, 10);
        world.deliver(0, (0..10).chain([500]));
        let judgement = world.judge();
        assert_eq!((judgement.never_sent, judgement.lost), (1, 0));
    }
}
