//! What arrives from remote nodes.

use std::sync::Arc;

use antiphon_metrics::adapter::{Ignored, Received};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use crate::{
    batcher::Batch,
    bus::{Message, Receiver},
    log_throttle::LogThrottle,
    namespace::Namespace,
    registry::{Cluster, Registry},
    remote::RemoteNodes,
    requests::IncomingRequests,
    sink::DeliverySink,
    target::Target,
    trace,
    wire::{
        Broadcast, Scope, Traffic, WireError, decode_broadcast, decode_legacy_broadcast,
        decode_request, decode_response, legacy_channel, peek_uid,
    },
};

/// Messages that are taken from the bus, and delivered, before other tasks get their turn.
const MESSAGES_PER_TURN: usize = 128;

/// What arrives from remote nodes, in order of arrival: events for this node's clients, requests,
/// and responses to this node's own requests.
///
/// The task that delivers the node's own events carries it out: both are mostly for the same
/// clients, and go out together.
pub struct Inbound<S: DeliverySink> {
    receiver: Receiver,
    // Of one turn, and when they were taken.
    messages: Vec<Message>,
    taken: Instant,
    handler: Handler<S>,
}

impl<S: DeliverySink> Cluster<S> {
    /// What arrives from remote nodes, for the task that delivers this node's own events; `None` if
    /// the node is by itself.
    pub fn inbound(&self, receiver: Receiver) -> Option<Inbound<S>> {
        let remote = Arc::clone(self.registry().remote()?);
        Some(Inbound::new(receiver, Arc::clone(self.registry()), remote))
    }
}

impl<S: DeliverySink> Inbound<S> {
    fn new(receiver: Receiver, registry: Arc<Registry<S>>, remote: Arc<RemoteNodes>) -> Self {
        let handler = Handler {
            requests: IncomingRequests::new(Arc::clone(&remote)),
            legacy_channel: legacy_channel(&remote.settings.prefix),
            registry,
            remote,
            delivering: false,
            throttle: LogThrottle::default(),
        };
        let messages = Vec::with_capacity(MESSAGES_PER_TURN);
        Self { receiver, messages, taken: Instant::now(), handler }
    }

    /// Waits until something has arrived. Returns how many messages are taken, 128 at most; 0 once
    /// the bus has ended. Dropping the future loses nothing.
    pub async fn arrived(&mut self) -> usize {
        if self.messages.is_empty() {
            self.receiver.receive(&mut self.messages, MESSAGES_PER_TURN).await;
            self.taken = Instant::now();
        }
        self.messages.len()
    }

    /// Takes what else has arrived by now.
    pub fn take_up(&mut self) {
        if self.messages.is_empty() {
            self.taken = Instant::now();
        }
        let room = MESSAGES_PER_TURN - self.messages.len();
        self.receiver.take(&mut self.messages, room);
    }

    /// Carries out what has been taken. Events go into `batch`, and recipients have them when that
    /// is flushed: call [`Inbound::delivered`] then.
    pub async fn carry_out(&mut self, batch: &mut Batch<S>) {
        for message in &self.messages {
            self.handler.take(message, batch).await;
        }
    }

    /// What was carried out has been delivered.
    pub fn delivered(&mut self) {
        self.messages.clear();
        // Mostly this node's own messages come back: without anything to deliver there was no
        // fan-out.
        if std::mem::take(&mut self.handler.delivering) {
            self.handler.remote.metrics().fanout_seconds.observe(self.taken.elapsed());
        }
    }
}

/// Handles one message after another.
struct Handler<S: DeliverySink> {
    registry: Arc<Registry<S>>,
    remote: Arc<RemoteNodes>,
    requests: IncomingRequests,
    legacy_channel: String,
    // Since it was last asked, a broadcast was for this node.
    delivering: bool,
    throttle: LogThrottle,
}

impl<S: DeliverySink> Handler<S> {
    async fn take(&mut self, message: &Message, batch: &mut Batch<S>) {
        // Every second message of a busy node: no namespace is looked up for it.
        if peek_uid(&message.payload) == Some(&*self.remote.settings.uid) {
            self.remote.metrics().broadcasts_received_total.of(Received::Own).inc();
            return;
        }
        let Some((namespace, traffic)) = self.registry.of_channel(&message.channel) else {
            let read = match &*message.channel {
                channel if channel == self.legacy_channel.as_bytes() => self.admit_legacy(message),
                _ => Err(Dropped::Unwanted(Received::OtherNamespace)),
            };
            return self.deliver(&message.channel, read, batch).await;
        };
        match traffic {
            Traffic::Broadcast(scope) => {
                let read = self.admit(message, namespace, scope);
                self.deliver(&message.channel, read, batch).await;
            }
            Traffic::Request => {
                // What was published before it is delivered before it.
                batch.flush().await;
                self.carry_out(message, &namespace).await;
            }
            Traffic::Response => self.take_response(message),
        }
    }

    /// Delivers a broadcast, if it is for this node.
    async fn deliver(
        &mut self,
        channel: &[u8],
        read: Result<Admitted<S>, Dropped>,
        batch: &mut Batch<S>,
    ) {
        let outcome = match read {
            Ok((namespace, Broadcast { packet, opts, .. })) => {
                let span = opts.flags.traceparent.as_deref().map_or(Span::none(), trace::received);
                let target = Target::of_remote(opts.rooms, opts.except, opts.flags.volatile);
                let reached = Some(&self.remote.metrics().recipients_total);
                batch.add(&namespace, packet, target, reached).instrument(span).await;
                self.delivering = true;
                Received::Delivered
            }
            Err(Dropped::Unwanted(outcome)) => outcome,
            Err(Dropped::Bad(error)) => {
                self.log(channel, error);
                received(error)
            }
        };
        self.remote.metrics().broadcasts_received_total.of(outcome).inc();
    }

    /// What a broadcast is and whom it is for; the cheapest questions first.
    fn admit(
        &self,
        message: &Message,
        namespace: Arc<Namespace<S>>,
        scope: Scope<'_>,
    ) -> Result<Admitted<S>, Dropped> {
        if let Scope::Room(room) = scope
            && !namespace.has_members(room)
        {
            return Err(Dropped::Unwanted(Received::NobodyHere));
        }
        let limits = &self.remote.settings.limits;
        let broadcast = decode_broadcast(&message.payload, limits).map_err(Dropped::Bad)?;
        if *broadcast.packet.ns != *namespace.path() {
            return Err(Dropped::Unwanted(Received::OtherNamespace));
        }
        Ok((namespace, broadcast))
    }

    /// The same for an old emitter, which has one channel for all namespaces.
    fn admit_legacy(&self, message: &Message) -> Result<Admitted<S>, Dropped> {
        let limits = &self.remote.settings.limits;
        let broadcast = decode_legacy_broadcast(&message.payload, limits).map_err(Dropped::Bad)?;
        let namespace = self.registry.at(&broadcast.packet.ns);
        Ok((namespace.ok_or(Dropped::Unwanted(Received::OtherNamespace))?, broadcast))
    }

    async fn carry_out(&mut self, message: &Message, namespace: &Arc<Namespace<S>>) {
        let outcome = match decode_request(&message.payload, &self.remote.settings.limits) {
            Err(error) => Err(self.bad(message, error)),
            Ok(request) => self.requests.carry_out(request, namespace).await,
        };
        self.count(outcome);
    }

    /// Gives a response to the request that waits for it.
    fn take_response(&mut self, message: &Message) {
        let outcome = if self.remote.awaits(&message.payload) {
            match decode_response(&message.payload, &self.remote.settings.response_limits()) {
                Err(error) => Err(self.bad(message, error)),
                Ok(response) => self.remote.take(response, message.payload.len()),
            }
        } else {
            Err(Ignored::Unasked)
        };
        self.count(outcome);
    }

    fn bad(&mut self, message: &Message, error: WireError) -> Ignored {
        self.log(&message.channel, error);
        ignored(error)
    }

    fn log(&mut self, channel: &[u8], error: WireError) {
        if let Some(suppressed) = self.throttle.admit() {
            let channel = String::from_utf8_lossy(channel);
            tracing::warn!(%channel, %error, frames = suppressed + 1, "bad frames from the bus");
        }
    }

    fn count(&self, outcome: Result<(), Ignored>) {
        if let Err(reason) = outcome {
            self.remote.metrics().requests_ignored_total.of(reason).inc();
        }
    }
}

/// A broadcast, and the namespace that it is for.
type Admitted<S> = (Arc<Namespace<S>>, Broadcast);

/// Why a message goes no further.
enum Dropped {
    Unwanted(Received),
    Bad(WireError),
}

fn received(error: WireError) -> Received {
    match error {
        WireError::TooLarge => Received::TooLarge,
        WireError::TooDeep => Received::TooDeep,
        WireError::TooManyRooms => Received::TooManyRooms,
        WireError::TooManyAttachments => Received::TooManyAttachments,
        WireError::Truncated
        | WireError::Syntax
        | WireError::Trailing
        | WireError::Shape
        | WireError::Placeholder
        | WireError::PacketType
        | WireError::UnknownRequest => Received::Malformed,
    }
}

fn ignored(error: WireError) -> Ignored {
    match error {
        WireError::TooLarge => Ignored::TooLarge,
        WireError::TooDeep => Ignored::TooDeep,
        WireError::TooManyRooms => Ignored::TooManyRooms,
        WireError::TooManyAttachments => Ignored::TooManyAttachments,
        WireError::UnknownRequest => Ignored::UnknownRequest,
        WireError::Truncated
        | WireError::Syntax
        | WireError::Trailing
        | WireError::Shape
        | WireError::Placeholder
        | WireError::PacketType => Ignored::Malformed,
    }
}
