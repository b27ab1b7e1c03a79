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
use socketioxide_core::{
    Sid, Value,
    adapter::{AckStreamItem, SocketEmitter, errors::SocketError},
};
use tokio::time::{Duration, Sleep, sleep};

use crate::{
    adapter::Recipients,
    peers::{Peers, Question},
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

/// The acknowledgements of peers' clients, as they come.
pub(crate) struct PeersAcks {
    question: Question,
    peers: Arc<Peers>,
    // Peers that have not said yet how many clients they ask.
    peers_left: usize,
    clients: usize,
    answered: usize,
    deadline: Pin<Box<Sleep>>,
}

impl PeersAcks {
    pub(crate) fn new(
        question: Question,
        peers: Arc<Peers>,
        number: usize,
        timeout: Duration,
    ) -> Self {
        let deadline = Box::pin(sleep(timeout));
        Self { question, peers, peers_left: number, clients: 0, answered: 0, deadline }
    }

    fn complete(&self) -> bool {
        // An acknowledgement may arrive before another peer's count.
        self.peers_left == 0 && self.answered >= self.clients
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Value>> {
        while !self.complete() {
            match self.question.poll_answer(context) {
                Poll::Ready(Some(Answer::ClientCount(clients))) => {
                    self.peers_left = self.peers_left.saturating_sub(1);
                    self.clients = self.clients.saturating_add(clients as usize);
                }
                Poll::Ready(Some(Answer::Ack(value))) => {
                    self.answered += 1;
                    return Poll::Ready(Some(value));
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => break,
                Poll::Pending if self.deadline.as_mut().poll(context).is_pending() => {
                    return Poll::Pending;
                }
                Poll::Pending => {
                    let missing = self.clients.saturating_sub(self.answered);
                    self.peers.metrics().acks_missing_total.inc_by(missing as u64);
                    break;
                }
            }
        }
        Poll::Ready(None)
    }
}

/// Acknowledgements from the whole cluster.
///
/// Those of peers' clients come without the clients' ids, which peers do not send: as [`Sid::ZERO`]. A client of
/// this node that does not answer is an error among them; one of a peer is missing.
pub struct AckStream<E: SocketEmitter> {
    here: LocalAcks<E>,
    elsewhere: Option<PeersAcks>,
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
        let elsewhere = self.elsewhere.as_mut().map(|acks| acks.poll(context));
        match elsewhere {
            Some(Poll::Ready(Some(value))) => return Poll::Ready(Some((Sid::ZERO, Ok(value)))),
            Some(Poll::Ready(None)) => self.elsewhere = None,
            Some(Poll::Pending) => return Poll::Pending,
            None => {}
        }
        here
    }
}

impl<E: SocketEmitter> FusedStream for AckStream<E> {
    fn is_terminated(&self) -> bool {
        self.here.streams.is_terminated() && self.elsewhere.is_none()
    }
}
