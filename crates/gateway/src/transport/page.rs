//! Small batches that wait, kept once for all the clients for which they wait.
//!
//! Bytes that wait for one client mostly wait for others too, and in the same order. So the first
//! client for which a batch waits writes it to a [`Page`], and all of them refer to it there. A client
//! whose last [`Run`] ends where the batch begins only makes that run longer: then the batch costs it
//! nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::memory::Budget;

/// A run is this long at most, so that 28-byte messages cost a client a tenth of a byte each. A run
/// keeps its whole page: with longer pages, a client that gets few of the messages would keep more
/// that are not for it.
const PAGE_BYTES: usize = 4096;

/// A larger batch has an entry of its own in every queue, which is less than two in a hundred of it.
pub(super) const KEPT_BATCH_BYTES_MAX: usize = 1024;

/// Frames of batches, one after another. Bytes are only appended, and never change.
#[derive(Debug)]
struct Page {
    bytes: Mutex<Vec<u8>>,
    budget: Arc<Budget>,
}

impl Page {
    /// A page that begins with these bytes, of which it has [`KEPT_BATCH_BYTES_MAX`] at most.
    fn begin(bytes: &[u8], budget: &Arc<Budget>) -> Run {
        budget.add(size_of::<Self>());
        let page = Arc::new(Self { bytes: Mutex::default(), budget: Arc::clone(budget) });
        let run = Self::append(&page, bytes);
        debug_assert!(run.is_some(), "a page has room for more than one batch");
        run.unwrap_or(Run { page, from: 0, to: 0 })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the bytes are now, or `None` if there is no room for them.
    fn append(page: &Arc<Self>, bytes: &[u8]) -> Option<Run> {
        let mut all = page.lock();
        let (before, from, to) = (all.capacity(), all.len(), all.len() + bytes.len());
        if to > PAGE_BYTES {
            return None;
        }
        if to > before {
            all.reserve_exact((2 * before).clamp(to, PAGE_BYTES) - from);
            page.budget.add(all.capacity() - before);
        }
        all.extend_from_slice(bytes);
        drop(all);
        Some(Run { page: Arc::clone(page), from: from.try_into().ok()?, to: to.try_into().ok()? })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let bytes = size_of::<Self>() + self.lock().capacity();
        self.budget.sub(bytes);
    }
}

/// Part of a page: batches that follow each other.
#[derive(Debug, Clone)]
pub(super) struct Run {
    page: Arc<Page>,
    from: u16,
    to: u16,
}

impl Run {
    /// Writes the frames of a batch down: after `last`, if that page has room.
    pub(super) fn keep(bytes: &[u8], last: Option<&Self>, budget: &Arc<Budget>) -> Self {
        last.and_then(|last| Page::append(&last.page, bytes))
            .unwrap_or_else(|| Page::begin(bytes, budget))
    }

    /// Makes this run longer by the next one. False if that does not begin where this one ends.
    pub(super) fn extend(&mut self, next: &Self) -> bool {
        let follows = Arc::ptr_eq(&self.page, &next.page) && self.to == next.from;
        if follows {
            self.to = next.to;
        }
        follows
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.to - self.from)
    }

    /// Looks at the bytes. Nobody can append to the page meanwhile.
    pub(super) fn read<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.page.lock()[usize::from(self.from)..usize::from(self.to)])
    }
}
