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

/// Threads with a runtime each. A runtime for one thread starts tasks in the order they are spawned
/// from outside; one for several threads does not.
pub(super) struct HandlerThreads {
    threads: Vec<HandlerThread>,
    next: AtomicUsize,
    /// A runtime that is shut down: tasks spawned in it are dropped at once.
    no_tasks: Handle,
}

struct HandlerThread {
    handle: Handle,
    /// The thread ends when this is dropped, and with it every task in its runtime.
    _stop: oneshot::Sender<()>,
}

impl HandlerThreads {
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let no_tasks = Builder::new_current_thread().enable_time().build()?;
        let handle = Handle::current();
        // Dropping it would panic if this is called in a task.
        no_tasks.shutdown_background();
        let threads = (0..count.max(1)).map(start_thread).collect::<io::Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0), no_tasks: handle })
    }

    /// The thread for the next session.
    pub(super) fn next(&self) -> Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        self.threads[next].handle.clone()
    }

    /// Until the guard is dropped, what is spawned on this thread is dropped instead.
    pub(super) fn enter_without_tasks(&self) -> EnterGuard<'_> {
        self.no_tasks.enter()
    }
}

fn start_thread(index: usize) -> io::Result<HandlerThread> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    thread::Builder::new().name(format!("handlers-{index}")).spawn(move || {
        // An error means that the sender was dropped.
        let _ = runtime.block_on(stopped);
        runtime.shutdown_background();
    })?;
    Ok(HandlerThread { handle, _stop: stop })
}
