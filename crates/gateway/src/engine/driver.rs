//! Which sessions have something to do, and the task that does it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Wake,
};

use tokio::{sync::Notify, task::yield_now};

use super::session::EngineSession;

/// After so many sessions, other tasks of the runtime get their turn.
const SESSIONS_PER_TURN: usize = 32;

/// The sessions that were woken. Each is in it at most once, so it is as long as there are sessions.
#[derive(Default)]
pub(super) struct Queue {
    woken: Mutex<VecDeque<Arc<Signal>>>,
    pushed: Notify,
}

/// The waker of a session: it outlives the session without holding anything of it.
pub(super) struct Signal {
    session: Weak<EngineSession>,
    queue: Arc<Queue>,
    /// The session is in the queue.
    queued: AtomicBool,
    /// How many threads are handing packets of the session to its client, or waiting to.
    busy: AtomicUsize,
}

/// Counts as one of [`Signal::busy`] until it is dropped.
pub(super) struct Busy<'a>(&'a Signal);

/// Hands what handlers emit to clients.
#[derive(Clone)]
pub struct Driver {
    queue: Arc<Queue>,
}

impl Queue {
    fn push(&self, signal: Arc<Signal>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(signal);
        self.pushed.notify_one();
    }

    fn pop(&self) -> Option<Arc<Signal>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Signal {
    pub(super) fn new(session: Weak<EngineSession>, queue: Arc<Queue>) -> Self {
        Self { session, queue, queued: AtomicBool::new(false), busy: AtomicUsize::new(0) }
    }

    pub(super) fn session(&self) -> Weak<EngineSession> {
        Weak::clone(&self.session)
    }

    /// Whether all that was emitted before has been handed over. The order of the two loads matters:
    /// the driver is busy before it resets `queued`.
    pub(super) fn is_idle(&self) -> bool {
        !self.queued.load(Ordering::Acquire) && self.busy.load(Ordering::Acquire) == 0
    }

    pub(super) fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(self)
    }

    /// From here on the session may be queued again.
    pub(super) fn taken_up(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// The engine calls this while a handler emits: no session is locked or dropped here.
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.queue.push(Arc::clone(self));
        }
    }
}

impl Driver {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        Self { queue }
    }

    /// Runs until it is aborted. Several may run at once: each works on another session.
    pub async fn run(self) {
        loop {
            let mut sessions = 0;
            while let Some(signal) = self.queue.pop() {
                match signal.session.upgrade() {
                    Some(session) => session.drive(),
                    None => signal.taken_up(),
                }
                sessions += 1;
                if sessions % SESSIONS_PER_TURN == 0 {
                    yield_now().await;
                }
            }
            self.queue.pushed.notified().await;
        }
    }
}
