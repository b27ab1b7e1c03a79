//! A queue bounded by count and by bytes: pushing never waits, and one reader waits for something to come.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use antiphon_metrics::IntGauge;
use tokio::sync::Notify;

use super::{Message, shared::Shared};

/// Counted for each item beside its content, so that empty messages are not free.
pub(super) const ITEM_BYTES: usize = 64;

/// Why an item was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The queue is shut.
    Shut,
    /// As many items as it may hold.
    Count,
    /// As many bytes as it may hold.
    Bytes,
}

pub(super) struct Queue<T> {
    // Pushed to by any thread, for a few instructions: a channel cannot be bounded by bytes, nor emptied
    // and shut in one step.
    inner: Mutex<Inner<T>>,
    // One reader waits here. It keeps one permit, so a push between a look and a wait is not missed.
    changed: Notify,
    count_max: usize,
    bytes_max: usize,
    count_gauge: IntGauge,
    bytes_gauge: IntGauge,
}

struct Inner<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    open: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(
        (count_max, bytes_max): (usize, usize),
        (count_gauge, bytes_gauge): (&IntGauge, &IntGauge),
        open: bool,
    ) -> Self {
        Self {
            inner: Mutex::new(Inner { items: VecDeque::new(), bytes: 0, open }),
            changed: Notify::new(),
            count_max,
            bytes_max,
            count_gauge: count_gauge.clone(),
            bytes_gauge: bytes_gauge.clone(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        // Nothing panics while it is held; and what a panic left would still be a queue.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an item at the end, or says why not.
    pub(super) fn push(&self, item: T, content_bytes: usize) -> Result<(), Full> {
        let bytes = content_bytes + ITEM_BYTES;
        let mut inner = self.inner();
        if !inner.open {
            return Err(Full::Shut);
        }
        if inner.items.len() >= self.count_max {
            return Err(Full::Count);
        }
        if inner.bytes + bytes > self.bytes_max {
            return Err(Full::Bytes);
        }
        self.put(&mut inner, item, bytes);
        Ok(())
    }

    /// Puts an item at the end even when the queue is full: for what is rare and bounded elsewhere.
    pub(super) fn push_beyond(&self, item: T) -> Result<(), Full> {
        let mut inner = self.inner();
        if !inner.open {
            return Err(Full::Shut);
        }
        self.put(&mut inner, item, ITEM_BYTES);
        Ok(())
    }

    fn put(&self, inner: &mut Inner<T>, item: T, bytes: usize) {
        inner.items.push_back((item, bytes));
        inner.bytes += bytes;
        self.show(inner);
        // Whoever reads does not wait while there is something.
        if inner.items.len() == 1 {
            self.changed.notify_one();
        }
    }

    fn show(&self, inner: &Inner<T>) {
        self.count_gauge.set(i64::try_from(inner.items.len()).unwrap_or(i64::MAX));
        self.bytes_gauge.set(i64::try_from(inner.bytes).unwrap_or(i64::MAX));
    }

    /// Moves items to `into`: at most `count_max`, and no more once they have `bytes_max`. Returns how
    /// many are left.
    pub(super) fn take(&self, into: &mut Vec<T>, count_max: usize, bytes_max: usize) -> usize {
        let mut inner = self.inner();
        let mut taken = 0;
        for _ in 0..count_max {
            if taken >= bytes_max {
                break;
            }
            let Some((item, bytes)) = inner.items.pop_front() else { break };
            inner.bytes -= bytes;
            taken += bytes;
            into.push(item);
        }
        self.show(&inner);
        inner.items.len()
    }

    /// Waits until there is something to take.
    pub(super) async fn filled(&self) {
        while self.is_empty() {
            self.changed.notified().await;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inner().items.is_empty()
    }

    /// Takes items from now on.
    pub(super) fn open(&self) {
        self.inner().open = true;
    }

    /// Takes no more items; those in it stay.
    pub(super) fn shut(&self) {
        self.inner().open = false;
        self.changed.notify_one();
    }

    /// Takes no more items, and hands out those in it.
    pub(super) fn shut_and_empty(&self) -> Vec<T> {
        let mut inner = self.inner();
        inner.open = false;
        inner.bytes = 0;
        let items = std::mem::take(&mut inner.items);
        self.show(&inner);
        drop(inner);
        items.into_iter().map(|(item, _)| item).collect()
    }
}

/// Where messages arrive, in the order in which they did.
pub struct Receiver(pub(super) Arc<Shared>);

impl Receiver {
    /// Waits until something has arrived and moves it to `into`, at most `count_max` messages. Returns
    /// false when the bus has ended and nothing is left. Dropping the future loses nothing.
    pub async fn receive(&mut self, into: &mut Vec<Message>, count_max: usize) -> bool {
        let shared = &self.0;
        tokio::select! {
            biased;
            () = shared.inbox.filled() => {}
            () = shared.ended.cancelled() => if shared.inbox.is_empty() { return false },
        }
        self.take(into, count_max);
        true
    }

    /// The same for what has arrived by now.
    pub fn take(&mut self, into: &mut Vec<Message>, count_max: usize) {
        if self.0.inbox.take(into, count_max, usize::MAX) == 0 {
            self.0.receive_queue_drained();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(count_max: usize, bytes_max: usize) -> Queue<u32> {
        let gauge = |name| IntGauge::new(name, "help").expect("a valid name");
        Queue::new((count_max, bytes_max), (&gauge("count"), &gauge("bytes")), true)
    }

    #[test]
    fn bounds_hold_and_order_stays() {
        let queue = queue(3, 2 * ITEM_BYTES + 10);
        assert_eq!(queue.push(1, 4), Ok(()));
        assert_eq!(queue.push(2, 7), Err(Full::Bytes));
        assert_eq!(queue.push(2, 6), Ok(()));
        assert_eq!(queue.push_beyond(3), Ok(()));
        assert_eq!(queue.push(4, 0), Err(Full::Count));
        assert_eq!(queue.bytes_gauge.get(), 3 * 64 + 10);
        let mut taken = Vec::new();
        assert_eq!(queue.take(&mut taken, 10, 1), 2, "the first item reaches the bound");
        assert_eq!(queue.take(&mut taken, 10, usize::MAX), 0);
        assert_eq!(taken, [1, 2, 3]);
        assert_eq!((queue.count_gauge.get(), queue.bytes_gauge.get()), (0, 0));
    }

    #[test]
    fn a_shut_queue_takes_nothing_until_it_is_opened() {
        let queue = queue(3, 1000);
        assert_eq!(queue.push(1, 1), Ok(()));
        assert_eq!(queue.shut_and_empty(), [1]);
        assert_eq!(queue.push(2, 1), Err(Full::Shut));
        queue.open();
        assert_eq!(queue.push(3, 1), Ok(()));
    }

    #[tokio::test]
    async fn a_push_wakes_the_reader() {
        let queue = Arc::new(queue(3, 1000));
        let reader = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.filled().await }
        });
        tokio::task::yield_now().await;
        queue.push(1, 1).expect("has room");
        reader.await.expect("ends");
    }
}
