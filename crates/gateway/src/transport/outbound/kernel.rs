//! A kernel and tasks for tests, which see what is written and who is woken.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use super::TryWrite;

/// Takes as many bytes as there is room for, and at most so many at a time.
#[derive(Debug)]
pub(super) struct Kernel(Mutex<Taken>);

#[derive(Debug)]
pub(super) struct Taken {
    pub(super) bytes: Vec<u8>,
    pub(super) room: usize,
    pub(super) at_a_time: usize,
    /// After so many bytes there are only errors.
    pub(super) breaks_after: usize,
}

impl Kernel {
    pub(super) fn new(room: usize) -> Arc<Self> {
        let (bytes, most) = (Vec::new(), usize::MAX);
        let taken = Taken { bytes, room, at_a_time: most, breaks_after: most };
        Arc::new(Self(Mutex::new(taken)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    pub(super) fn is_broken(&self) -> bool {
        self.bytes.len() >= self.breaks_after
    }
}

impl TryWrite for Kernel {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self.lock();
        if taken.is_broken() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = bytes.len().min(taken.room).min(taken.at_a_time);
        if written < bytes.len().min(1) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        taken.bytes.extend_from_slice(&bytes[..written]);
        taken.room -= written;
        Ok(written)
    }
}

/// A task, as far as it can be woken.
#[derive(Default)]
pub(super) struct Task(AtomicBool);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Task {
    pub(super) fn is_woken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn begin(self: &Arc<Self>) -> Waker {
        self.0.store(false, Ordering::Relaxed);
        Arc::clone(self).into()
    }
}
