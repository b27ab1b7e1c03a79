//! The threads that run handlers.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tokio::{
    runtime::{Builder, EnterGuard, Handle},
    sync::oneshot,
};

/// Threads with a single-threaded runtime each, which starts tasks in the order of their spawns.
pub(super) struct HandlerThreads {
    threads: Vec<HandlerThread>,
    next: AtomicUsize,
    /// A runtime that is shut down: it drops every task that is spawned in it.
    no_tasks: Handle,
}

struct HandlerThread {
    handle: Handle,
    /// The thread and all its tasks end when this is dropped.
    _stop: oneshot::Sender<()>,
}

impl HandlerThreads {
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let no_tasks = runtime.handle().clone();
        // Dropping a runtime panics if a task does it; this does not.
        runtime.shutdown_background();
        let threads = (0..count.max(1)).map(HandlerThread::start).collect::<io::Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0), no_tasks })
    }

    /// The runtime for the next session.
    pub(super) fn next(&self) -> Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        self.threads[next].handle.clone()
    }

    /// While the guard lives, tasks that are spawned on this thread are dropped.
    pub(super) fn enter_without_tasks(&self) -> EnterGuard<'_> {
        self.no_tasks.enter()
    }
}

impl HandlerThread {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name(format!("handlers-{index}")).spawn(move || {
            // The sender never sends: this returns once it is dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop })
    }
}
