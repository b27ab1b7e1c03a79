//! Delivers what handlers emit: a queue of sessions with packets, and the task that works it off.

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

/// Sessions that the driver serves before it lets other tasks of its runtime run.
const SESSIONS_PER_TURN: usize = 32;

/// The sessions that were woken. A session is in it at most once, which bounds it.
#[derive(Default)]
pub(super) struct Queue {
    woken: Mutex<VecDeque<Arc<Signal>>>,
    pushed: Notify,
}

/// The waker of a session. Handlers may keep it alive, so it owns nothing of the session.
pub(super) struct Signal {
    session: Weak<EngineSession>,
    queue: Arc<Queue>,
    /// The session is in the queue.
    queued: AtomicBool,
    /// How many threads deliver the session's packets, or wait for their turn.
    busy: AtomicUsize,
}

/// One of those that [`Signal::busy`] counts.
pub(super) struct Busy<'a>(&'a Signal);

/// Delivers packets that handlers emit.
#[derive(Clone)]
pub(crate) struct Driver {
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

    /// Whether everything emitted so far has been delivered. `queued` must be read first: the
    /// driver is busy before it resets `queued`.
    pub(super) fn is_idle(&self) -> bool {
        !self.queued.load(Ordering::Acquire) && self.busy.load(Ordering::Acquire) == 0
    }

    pub(super) fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(self)
    }

    /// Allows the session to be queued again. Only the driver calls this, after it took the session
    /// out of the queue.
    pub(super) fn dequeued(&self) {
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

    /// Runs inside `emit` of a handler, so it takes no lock of the session.
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

    /// Runs until it is aborted. Clones may run at the same time, to use several cores.
    pub(crate) async fn run(self) {
        loop {
            let mut sessions = 0;
            while let Some(signal) = self.queue.pop() {
                match signal.session.upgrade() {
                    Some(session) => session.drive(),
                    None => signal.dequeued(),
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
