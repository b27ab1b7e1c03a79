//! One timer wheel for all deadlines of all sessions, in place of a timer or a task for each.
//!
//! An entry is a session's id and what to look at; the session itself says whether the time has come.
//! So deadlines that move (a heartbeat that is answered) cost nothing: the session is looked at when the
//! first one would have come, and again later.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::sid::SessionId;

/// How late a deadline may be noticed.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// A power of two: the wheel turns once in 82 s. What is due later is looked at early, and waits again.
const SLOTS: u64 = 4096;

/// What a session is to be looked at for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alarm {
    /// Its heartbeat.
    Heartbeat,
    /// Whether it takes what is written to it.
    Stall,
    /// A polling session that ends may have been polled for the last time.
    LastPoll,
    /// A deadline of the application.
    Application,
}

/// Who is to be looked at in one tick, and for what.
type Slot = Vec<(SessionId, Alarm)>;

/// Sessions by the time at which they are to be looked at.
#[derive(Debug)]
pub(super) struct Wheel {
    start: Instant,
    turned: AtomicU64,
    slots: Box<[Mutex<Slot>]>,
}

impl Wheel {
    pub(super) fn new() -> Self {
        let slots = (0..SLOTS).map(|_| Mutex::default()).collect();
        Self { start: Instant::now(), turned: AtomicU64::new(0), slots }
    }

    /// Has `session` looked at when `after` is over, or once before if that is far away.
    pub(super) fn schedule(&self, session: SessionId, alarm: Alarm, after: Duration) {
        let due = self.start.elapsed() + after;
        let mut tick = (due.as_millis() / TICK.as_millis()) as u64 + 1;
        loop {
            let turned = self.turned.load(Ordering::Acquire);
            tick = tick.clamp(turned + 1, turned + SLOTS - 1);
            let mut slot = self.slot(tick);
            // The wheel says where it is before it takes a slot: what it has passed comes too late.
            if self.turned.load(Ordering::Acquire) < tick {
                slot.push((session, alarm));
                return;
            }
        }
    }

    fn slot(&self, tick: u64) -> std::sync::MutexGuard<'_, Slot> {
        let slot = &self.slots[(tick % SLOTS) as usize];
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is to be looked at by now.
    pub(super) fn due(&self) -> Slot {
        let now = (self.start.elapsed().as_millis() / TICK.as_millis()) as u64;
        let turned = self.turned.load(Ordering::Acquire);
        // After a pause of the whole process one turn covers every slot.
        let until = now.min(turned + SLOTS);
        let mut due = Vec::new();
        for tick in turned + 1..=until {
            self.turned.store(tick, Ordering::Release);
            due.append(&mut std::mem::take(&mut *self.slot(tick)));
        }
        self.turned.fetch_max(now, Ordering::Release);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_found_once_and_not_before() {
        let wheel = Wheel::new();
        let session = SessionId::random();
        wheel.schedule(session, Alarm::Heartbeat, Duration::ZERO);
        wheel.schedule(session, Alarm::Stall, Duration::from_secs(3600));
        let mut found = Vec::new();
        while found.is_empty() {
            found = wheel.due();
            std::thread::yield_now();
        }
        assert_eq!(found, [(session, Alarm::Heartbeat)]);
        assert!(wheel.start.elapsed() >= TICK, "not in the tick in which it was scheduled");
    }
}
