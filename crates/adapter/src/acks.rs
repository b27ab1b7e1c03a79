//! Events that clients acknowledge, on this node and on others.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{
    Stream, StreamExt,
    stream::{FusedStream, SelectAll},
};
use serde::de::{DeserializeOwned, IntoDeserializer, value::StrDeserializer};
use socketioxide_core::{
    Sid, Value,
    adapter::{AckStreamItem, SocketEmitter, errors::SocketError},
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    delivery::Recipients,
    peers::{ACKS_MAX, Peers, Question},
    wire::Answer,
};

/// The acknowledgements of this node's clients. A client that does not answer in time, or has left, is an error
/// among them.
pub(crate) struct LocalAcks<E: SocketEmitter> {
    // One for each client: to serve each by itself is to know whose queue is full.
    streams: SelectAll<Pin<Box<E::AckStream>>>,
    recipients: Arc<dyn Recipients>,
}

impl<E: SocketEmitter> LocalAcks<E> {
    pub(crate) fn new(recipients: Arc<dyn Recipients>) -> Self {
        Self { streams: SelectAll::new(), recipients }
    }

    pub(crate) fn push(&mut self, stream: E::AckStream) {
        self.streams.push(Box::pin(stream));
    }

    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<AckStreamItem<E::AckError>>> {
        let next = self.streams.poll_next_unpin(context);
        if let Poll::Ready(Some((sid, Err(error)))) = &next
            && let Some(SocketError::InternalChannelFull) =
                error.source().and_then(|source| source.downcast_ref())
        {
            self.recipients.queue_full(*sid);
        }
        next
    }
}

/// The acknowledgements of peers' clients, as they come; then, for each that did not come in time, nothing.
pub(crate) struct PeersAcks {
    question: Option<Question>,
    peers: Arc<Peers>,
    // Peers that have not said yet how many clients they ask. Unknown, there may always be one more.
    peers_left: Option<usize>,
    clients: usize,
    answered: usize,
    deadline: Pin<Box<Sleep>>,
}

impl PeersAcks {
    /// Without a question, or without a number of peers, at least one answer will be missing.
    pub(crate) fn new(
        question: Option<Question>,
        peers: Arc<Peers>,
        number: Option<usize>,
        deadline: Instant,
    ) -> Self {
        let deadline = Box::pin(sleep_until(deadline));
        Self { question, peers, peers_left: number, clients: 0, answered: 0, deadline }
    }

    fn missing(&self) -> usize {
        // An acknowledgement may arrive before another peer's count.
        self.peers_left.unwrap_or(1) + self.clients.saturating_sub(self.answered)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Option<Value>>> {
        while self.missing() > 0 {
            match self.question.as_mut().map(|question| question.poll_answer(context)) {
                Some(Poll::Ready(Some(Answer::ClientCount(clients)))) => {
                    self.peers_left = self.peers_left.map(|left| left.saturating_sub(1));
                    self.clients = (self.clients + clients as usize).min(ACKS_MAX);
                }
                Some(Poll::Ready(Some(Answer::Ack(value)))) => {
                    self.answered += 1;
                    return Poll::Ready(Some(Some(value)));
                }
                Some(Poll::Ready(Some(_))) => {}
                Some(Poll::Pending) if self.deadline.as_mut().poll(context).is_pending() => {
                    return Poll::Pending;
                }
                Some(Poll::Pending | Poll::Ready(None)) => self.question = None,
                None => {
                    self.peers.metrics().acks_missing_total.inc();
                    match self.peers_left.get_or_insert(1) {
                        0 => self.answered += 1,
                        left => *left -= 1,
                    }
                    return Poll::Ready(Some(None));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// Acknowledgements from the whole cluster.
///
/// Whoever did not answer in time is an error among them: a client of this node by its id, a client of a peer, or a
/// peer that did not even say how many it asks, as [`Sid::ZERO`]. So are the answers of peers' clients, whose ids
/// do not travel.
pub struct AckStream<E: SocketEmitter> {
    here: LocalAcks<E>,
    elsewhere: Option<PeersAcks>,
}

/// socketioxide's `AckError::Timeout`, of which an adapter knows only how it is written.
fn timed_out<E: DeserializeOwned>() -> Option<E> {
    let name: StrDeserializer<'_, serde::de::value::Error> = "Timeout".into_deserializer();
    E::deserialize(name).ok()
}

impl<E: SocketEmitter> AckStream<E> {
    pub(crate) fn new(here: LocalAcks<E>, elsewhere: Option<PeersAcks>) -> Self {
        Self { here, elsewhere }
    }
}

impl<E: SocketEmitter> Stream for AckStream<E> {
    type Item = AckStreamItem<E::AckError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let here = self.here.poll(context);
        if let Poll::Ready(Some(item)) = here {
            return Poll::Ready(Some(item));
        }
        while let Some(acks) = &mut self.elsewhere {
            let answer = match acks.poll(context) {
                Poll::Ready(Some(answer)) => answer.map(Ok).or(timed_out().map(Err)),
                Poll::Ready(None) => {
                    self.elsewhere = None;
                    break;
                }
                Poll::Pending => return Poll::Pending,
            };
            if let Some(answer) = answer {
                return Poll::Ready(Some((Sid::ZERO, answer)));
            }
        }
        here
    }
}

impl<E: SocketEmitter> FusedStream for AckStream<E> {
    fn is_terminated(&self) -> bool {
        self.here.streams.is_terminated() && self.elsewhere.is_none()
    }
}
