//! Events that clients acknowledge, on this node and on remote nodes.
//!
//! A packet has one ack id for all its recipients, so that it is encoded once. Who has it, and has
//! not acknowledged yet, is in the namespace's [`AckTable`].

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    vec,
};

use futures_util::{Stream, stream::FusedStream};
use socketioxide_core::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    log_throttle::LogThrottle,
    remote::{ACKS_MAX, InFlight, RemoteNodes},
    sink::value_bytes,
    socket_id::SocketId,
    wire::Answer,
};

/// The ids of acknowledgements that the node asks for itself begin here; smaller ones belong to
/// Rust handlers. Clients in C++ and Java read 32 bits.
pub const FIRST_ACK_ID: u64 = 1 << 30;

/// One more than the last of these ids: what follows does not fit into 32 bits.
const END_OF_ACK_IDS: u64 = 1 << 31;

/// Acknowledgements in flight in a namespace. Each takes 20 bytes.
const IN_FLIGHT_MAX: usize = 1 << 20;

/// Bytes of acknowledgements that wait for the callers that asked for them, on a node.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// A client did not acknowledge before the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client did not acknowledge in time")]
pub struct AckTimeoutError;

/// An acknowledgement: from which client of this node, and the array of arguments that came.
/// The ids of remote nodes' clients are unknown.
pub type Acknowledgement = (Option<SocketId>, Result<Value, AckTimeoutError>);

/// Acknowledgements of the whole cluster, as they come.
///
/// A client that misses the deadline appears as an [`AckTimeoutError`]. So does a remote node that
/// does not even say how many clients it asks.
pub struct AckStream {
    local: LocalAcks,
    remote: Option<RemoteAcks>,
    terminated: bool,
}

impl AckStream {
    /// Both kinds in one stream.
    pub(crate) fn new(local: LocalAcks, remote: Option<RemoteAcks>) -> Self {
        Self { local, remote, terminated: false }
    }
}

impl Stream for AckStream {
    type Item = Acknowledgement;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let local = self.local.poll(context);
        if let Poll::Ready(Some((id, result))) = local {
            return Poll::Ready(Some((Some(id), result)));
        }
        if let Some(remote) = &mut self.remote {
            match remote.poll(context) {
                Poll::Ready(Some(result)) => return Poll::Ready(Some((None, result))),
                Poll::Ready(None) => self.remote = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        self.terminated = local.is_ready();
        local.map(|_| None)
    }
}

impl FusedStream for AckStream {
    fn is_terminated(&self) -> bool {
        self.terminated
    }
}

/// The bytes of acknowledgements that may wait on a node, for [`AckTable::new`].
pub(crate) fn waiting_bytes() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(WAITING_BYTES_MAX))
}

/// The events of a namespace that clients of this node have yet to acknowledge.
pub(crate) struct AckTable {
    // Locked for each event, each acknowledgement, and each deadline.
    table: Mutex<Table>,
    waiting_bytes: Arc<Semaphore>,
}

struct Table {
    next_id: u64,
    pending: HashMap<u64, Pending>,
    in_flight: usize,
    throttle: LogThrottle,
}

/// One event.
struct Pending {
    // In order, so that a client is found without another table.
    asked: Vec<SocketId>,
    // A bit for each of them.
    answered: Vec<u64>,
    left: usize,
    received: mpsc::Sender<Received>,
}

/// An acknowledgement, and its share of the bytes that may wait.
struct Received {
    from: SocketId,
    value: Value,
    _bytes: OwnedSemaphorePermit,
}

impl AckTable {
    /// A table without entries. `waiting_bytes` is shared by the node's namespaces.
    pub(crate) fn new(waiting_bytes: Arc<Semaphore>) -> Self {
        let table = Table {
            next_id: FIRST_ACK_ID,
            pending: HashMap::new(),
            in_flight: 0,
            throttle: LogThrottle::default(),
        };
        Self { table: Mutex::new(table), waiting_bytes }
    }

    /// An ack id for a packet to these sockets, and their acknowledgements until `deadline`. Beyond
    /// the bound they are not waited for: all of them time out at once.
    pub(crate) fn expect(
        self: &Arc<Self>,
        mut asked: Vec<SocketId>,
        deadline: Instant,
    ) -> (u64, LocalAcks) {
        asked.sort_unstable();
        let clients = asked.len();
        let mut table = self.table();
        let id = table.unused_id();
        let (received, missing) = match table.in_flight + clients {
            _ if asked.is_empty() => (None, Vec::new()),
            more if more > IN_FLIGHT_MAX => {
                if let Some(suppressed) = table.throttle.admit() {
                    let events = suppressed + 1;
                    tracing::warn!(events, "too many acknowledgements in flight: not waited for");
                }
                (None, asked)
            }
            more => {
                table.in_flight = more;
                let (sender, received) = mpsc::channel(clients.min(Semaphore::MAX_PERMITS));
                let answered = vec![0; clients.div_ceil(64)];
                let pending = Pending { asked, answered, left: clients, received: sender };
                table.pending.insert(id, pending);
                (Some(received), Vec::new())
            }
        };
        drop(table);
        let deadline = Box::pin(sleep_until(deadline));
        let missing = missing.into_iter();
        (id, LocalAcks { table: Arc::clone(self), id, clients, received, missing, deadline })
    }

    /// A client has acknowledged a packet. What nobody asked for, or has been given up, is ignored.
    pub(crate) fn acknowledge(&self, from: SocketId, id: u64, value: Value) {
        let mut table = self.table();
        let table = &mut *table;
        let Some(pending) = table.pending.get_mut(&id) else { return };
        let Ok(place) = pending.asked.binary_search(&from) else { return };
        let (word, bit) = (&mut pending.answered[place / 64], 1 << (place % 64));
        if *word & bit != 0 {
            return;
        }
        let bytes = u32::try_from(value_bytes(&value)).unwrap_or(u32::MAX);
        let Ok(held) = Arc::clone(&self.waiting_bytes).try_acquire_many_owned(bytes) else {
            // It times out, as if it had not come.
            if let Some(suppressed) = table.throttle.admit() {
                tracing::warn!(acks = suppressed + 1, "too many bytes of acknowledgements wait");
            }
            return;
        };
        *word |= bit;
        pending.left -= 1;
        // There is room for one from each client. An error means that the caller has just left.
        let _ = pending.received.try_send(Received { from, value, _bytes: held });
        if pending.left == 0 {
            table.remove(id);
        }
    }

    /// Waits no longer. Returns who has not acknowledged.
    fn give_up(&self, id: u64) -> Vec<SocketId> {
        let Some(Pending { asked, answered, .. }) = self.table().remove(id) else {
            return Vec::new();
        };
        let missing = |place: usize| answered[place / 64] & 1 << (place % 64) == 0;
        asked
            .into_iter()
            .enumerate()
            .filter_map(|(place, id)| missing(place).then_some(id))
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn unused_id(&mut self) -> u64 {
        loop {
            let id = self.next_id;
            self.next_id = if id + 1 == END_OF_ACK_IDS { FIRST_ACK_ID } else { id + 1 };
            if !self.pending.contains_key(&id) {
                return id;
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.in_flight -= pending.asked.len();
        Some(pending)
    }
}

/// The acknowledgements of this node's clients to one event.
pub(crate) struct LocalAcks {
    table: Arc<AckTable>,
    id: u64,
    clients: usize,
    received: Option<mpsc::Receiver<Received>>,
    missing: vec::IntoIter<SocketId>,
    deadline: Pin<Box<Sleep>>,
}

impl LocalAcks {
    /// How many clients are asked.
    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    /// The next acknowledgement, or after the deadline the next client without one.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(SocketId, Result<Value, AckTimeoutError>)>> {
        while let Some(received) = &mut self.received {
            match received.poll_recv(context) {
                Poll::Ready(Some(Received { from, value, .. })) => {
                    return Poll::Ready(Some((from, Ok(value))));
                }
                Poll::Ready(None) => self.received = None,
                Poll::Pending if self.deadline.as_mut().poll(context).is_pending() => {
                    return Poll::Pending;
                }
                // What has been received until now still comes, and then the end.
                Poll::Pending => self.missing = self.table.give_up(self.id).into_iter(),
            }
        }
        Poll::Ready(self.missing.next().map(|id| (id, Err(AckTimeoutError))))
    }
}

impl Drop for LocalAcks {
    fn drop(&mut self) {
        if self.received.is_some() {
            self.table.give_up(self.id);
        }
    }
}

/// The acknowledgements of remote nodes' clients, as they come; then a timeout for each that did
/// not come.
pub(crate) struct RemoteAcks {
    request: Option<InFlight>,
    nodes: Arc<RemoteNodes>,
    // Nodes that have not said yet how many clients they ask. If the number of nodes is unknown,
    // there may always be one more.
    nodes_left: Option<usize>,
    clients: usize,
    answered: usize,
    deadline: Pin<Box<Sleep>>,
}

impl RemoteAcks {
    /// Without a request, or without the number of nodes, at least one acknowledgement is missing.
    pub(crate) fn new(
        request: Option<InFlight>,
        nodes: Arc<RemoteNodes>,
        number: Option<usize>,
        deadline: Instant,
    ) -> Self {
        let deadline = Box::pin(sleep_until(deadline));
        Self { request, nodes, nodes_left: number, clients: 0, answered: 0, deadline }
    }

    fn missing(&self) -> usize {
        // An acknowledgement may arrive before the count of another node.
        self.nodes_left.unwrap_or(1) + self.clients.saturating_sub(self.answered)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Value, AckTimeoutError>>> {
        while self.missing() > 0 {
            match self.request.as_mut().map(|request| request.poll_response(context)) {
                Some(Poll::Ready(Some(Answer::ClientCount(clients)))) => {
                    self.nodes_left = self.nodes_left.map(|left| left.saturating_sub(1));
                    self.clients = (self.clients + clients as usize).min(ACKS_MAX);
                }
                Some(Poll::Ready(Some(Answer::Ack(value)))) => {
                    self.answered += 1;
                    return Poll::Ready(Some(Ok(value)));
                }
                Some(Poll::Ready(Some(_))) => {}
                Some(Poll::Pending) if self.deadline.as_mut().poll(context).is_pending() => {
                    return Poll::Pending;
                }
                Some(Poll::Pending | Poll::Ready(None)) => self.request = None,
                None => {
                    self.nodes.metrics().acks_missing_total.inc();
                    match self.nodes_left.get_or_insert(1) {
                        0 => self.answered += 1,
                        left => *left -= 1,
                    }
                    return Poll::Ready(Some(Err(AckTimeoutError)));
                }
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    async fn all(mut acks: LocalAcks) -> Vec<(SocketId, bool)> {
        let mut all = Vec::new();
        while let Some((id, result)) = poll_fn(|context| acks.poll(context)).await {
            all.push((id, result.is_ok()));
        }
        all.sort_unstable();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn acknowledgements_in_flight_are_bounded() {
        let table = Arc::new(AckTable::new(waiting_bytes()));
        let mut ids: Vec<_> = (0..1024).map(|_| SocketId::random()).collect();
        ids.sort_unstable();
        let deadline = Instant::now() + TIMEOUT;
        let mut kept: Vec<_> =
            (0..IN_FLIGHT_MAX / ids.len()).map(|_| table.expect(ids.clone(), deadline)).collect();
        let (_, refused) = table.expect(ids[..1].to_vec(), deadline);
        assert_eq!(all(refused).await, [(ids[0], false)]);
        assert!(Instant::now() < deadline, "it says so at once");
        kept.pop();
        let (id, acks) = table.expect(ids[..2].to_vec(), deadline);
        table.acknowledge(ids[1], id, Value::Str("[]".into(), None));
        assert_eq!(all(acks).await, [(ids[0], false), (ids[1], true)], "there is room again");
        assert_eq!(Instant::now(), deadline);
        drop(kept);
        let table = table.table();
        assert_eq!((table.in_flight, table.pending.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn ids_fit_into_32_bits_and_are_used_again_only_when_they_are_free() {
        let table = Arc::new(AckTable::new(waiting_bytes()));
        let deadline = Instant::now() + TIMEOUT;
        let one = || vec![SocketId::random()];
        let (first, _kept) = table.expect(one(), deadline);
        assert_eq!(first, FIRST_ACK_ID);
        table.table().next_id = END_OF_ACK_IDS - 1;
        let (last, _) = table.expect(one(), deadline);
        assert_eq!(i32::try_from(last), Ok(i32::MAX));
        assert_eq!(table.expect(one(), deadline).0, FIRST_ACK_ID + 1);
        assert_eq!(table.expect(Vec::new(), deadline).1.clients(), 0);
    }
}
