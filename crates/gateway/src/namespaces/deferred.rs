//! Packets that a client sends to a namespace before anybody has decided whether it may come.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

/// Packets that may wait for one namespace. Clients wait for the answer to CONNECT before they send more.
const PACKETS_MAX: usize = 1024;

/// More packets than may wait.
#[derive(Debug)]
pub(super) struct TooManyError;

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Deferred {
    pub(super) text: String,
    pub(super) attachments: Vec<Bytes>,
}

/// What waits, by namespace. Each is carried out by one thread at a time, so that the order holds.
#[derive(Debug, Default)]
pub(super) struct DeferredPackets {
    /// How many namespaces there are below: nearly always none.
    count: AtomicUsize,
    queues: Mutex<Vec<Queue>>,
}

#[derive(Debug)]
struct Queue {
    namespace: String,
    packets: VecDeque<Deferred>,
    /// One of its packets is being carried out.
    busy: bool,
}

impl DeferredPackets {
    fn lock(&self) -> MutexGuard<'_, Vec<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything waits.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Puts a packet behind those that wait for the namespace. It comes back if there are none and, as `is_undecided`
    /// says, it need not wait.
    pub(super) fn defer(
        &self,
        namespace: &str,
        text: &str,
        attachments: Vec<Bytes>,
        is_undecided: impl FnOnce() -> bool,
    ) -> Result<Option<Vec<Bytes>>, TooManyError> {
        let mut queues = self.lock();
        let place = queues.iter().position(|queue| queue.namespace == namespace);
        let place = match place {
            Some(place) => place,
            None if !is_undecided() => return Ok(Some(attachments)),
            None => {
                let (namespace, packets) = (namespace.to_owned(), VecDeque::new());
                queues.push(Queue { namespace, packets, busy: false });
                self.count.store(queues.len(), Ordering::Release);
                queues.len() - 1
            }
        };
        let queue = &mut queues[place];
        if queue.packets.len() >= PACKETS_MAX {
            return Err(TooManyError);
        }
        queue.packets.push_back(Deferred { text: text.to_owned(), attachments });
        Ok(None)
    }

    /// The next packet to carry out, once the one before has been: ask again after each, until there is none.
    /// There is none while another thread is at it, or while, as `is_undecided` says, it must wait.
    pub(super) fn next(
        &self,
        namespace: &str,
        is_undecided: impl FnOnce() -> bool,
        ours: &mut bool,
    ) -> Option<Deferred> {
        let mut queues = self.lock();
        let place = queues.iter().position(|queue| queue.namespace == namespace)?;
        let queue = &mut queues[place];
        if queue.busy && !*ours {
            return None;
        }
        let next = if is_undecided() { None } else { queue.packets.pop_front() };
        *ours = next.is_some();
        queue.busy = *ours;
        if queue.packets.is_empty() && next.is_none() {
            queues.swap_remove(place);
            self.count.store(queues.len(), Ordering::Release);
        }
        next
    }

    /// Forgets them all.
    pub(super) fn clear(&self) {
        let mut queues = self.lock();
        queues.clear();
        self.count.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(deferred: &DeferredPackets, undecided: bool) -> Vec<String> {
        let (mut all, mut ours) = (Vec::new(), false);
        while let Some(next) = deferred.next("/a", || undecided, &mut ours) {
            all.push(next.text);
        }
        all
    }

    #[test]
    fn packets_wait_for_a_decision_and_for_those_before_them() {
        let deferred = DeferredPackets::default();
        let defer = |text: &str, undecided| {
            deferred.defer("/a", text, Vec::new(), || undecided).expect("few").is_none()
        };
        assert!(!defer("0", false) && !deferred.any(), "it need not wait");
        assert!(defer("1", true) && defer("2", false), "behind the first");
        assert!(texts(&deferred, true).is_empty() && deferred.any());
        let mut ours = false;
        assert!(deferred.next("/a", || false, &mut ours).is_some_and(|next| next.text == "1"));
        assert!(texts(&deferred, false).is_empty(), "another thread has not finished");
        assert!(defer("3", false), "and what comes now waits");
        let next = |ours: &mut bool| deferred.next("/a", || false, ours).map(|next| next.text);
        assert_eq!(next(&mut ours).as_deref(), Some("2"));
        assert_eq!(next(&mut ours).as_deref(), Some("3"));
        assert_eq!(next(&mut ours), None);
        assert!(!deferred.any() && !defer("4", false));
    }

    #[test]
    fn no_more_wait_than_may() {
        let deferred = DeferredPackets::default();
        for _ in 0..PACKETS_MAX {
            assert!(deferred.defer("/a", "x", Vec::new(), || true).is_ok_and(|it| it.is_none()));
        }
        assert!(deferred.defer("/a", "x", Vec::new(), || true).is_err());
        deferred.clear();
        assert!(!deferred.any());
    }
}
