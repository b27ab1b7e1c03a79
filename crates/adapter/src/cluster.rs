//! What the adapters of one node's namespaces share: each other, and what arrives from the peers.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};

use antiphon_metrics::adapter::{Ignored, Received};
use socketioxide_core::{
    Sid,
    adapter::{BroadcastFlags, BroadcastOptions},
};
use tokio::time::{Duration, Instant};
use tracing::{Instrument, Span};

use crate::{
    adapter::{Local, Namespace},
    answers::{Answers, Describe},
    bus::{Message, Receiver, Subscription},
    complaints::Complaints,
    delivery::{Batch, Recipients},
    peers::{PeerSettings, Peers},
    trace,
    wire::{
        Broadcast, Channels, Handshake, Opts, Scope, Traffic, WireError, decode_broadcast,
        decode_legacy_broadcast, decode_request, decode_response, legacy_channel, peek_uid,
    },
};

/// Messages taken from the bus, and delivered, before other tasks have their turn: as with the node's own
/// events, those who write to sockets must empty the recipients' queues in between.
const MESSAGES_PER_TURN: usize = 128;

/// How often Redis is asked how many nodes there are.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// What the node that signs with `uid` has to subscribe to, for these namespaces.
pub fn subscriptions<'a>(
    prefix: &str,
    uid: &str,
    namespaces: impl IntoIterator<Item = &'a str>,
) -> Vec<Subscription> {
    let each = |nsp| channels_of(&Channels::new(prefix, nsp, uid));
    let legacy = Subscription::Channel(legacy_channel(prefix));
    namespaces.into_iter().flat_map(each).chain([legacy]).collect()
}

fn channels_of(channels: &Channels) -> impl Iterator<Item = Subscription> + use<> {
    let named = [channels.request(), channels.response(), channels.own_response()];
    let named = named.map(|channel| Subscription::Channel(channel.to_owned()));
    std::iter::once(Subscription::Pattern(channels.pattern())).chain(named)
}

/// What became of a broadcast on its way to the peers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is for this node alone, or there are no peers.
    #[default]
    NotNeeded,
    /// The bus has it.
    Yes,
    /// It could not go out: only this node's sockets get it.
    No,
}

/// What the adapters of one node's namespaces share. Cloning it is cheap.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

pub(crate) struct Shared {
    // Written once for each namespace, when the node starts; read to find one.
    namespaces: RwLock<Vec<Arc<Entry>>>,
    pub(crate) recipients: Arc<dyn Recipients>,
    pub(crate) peers: Option<Arc<Peers>>,
}

struct Entry {
    path: String,
    channels: Arc<Channels>,
    // Weak: the namespace owns its adapter, and this list must not keep either alive.
    local: Weak<dyn Local>,
}

impl Cluster {
    /// A node by itself.
    pub fn alone(recipients: Arc<dyn Recipients>) -> Self {
        Self(Arc::new(Shared { namespaces: RwLock::default(), recipients, peers: None }))
    }

    /// A node among peers.
    pub fn among(recipients: Arc<dyn Recipients>, settings: PeerSettings) -> Self {
        let peers = Some(Arc::new(Peers::new(settings)));
        Self(Arc::new(Shared { namespaces: RwLock::default(), recipients, peers }))
    }

    /// The namespace at `path`, once socketioxide has made it.
    pub fn namespace(&self, path: &str) -> Option<Namespace> {
        self.0.at(path)?.local.upgrade().map(Namespace)
    }

    /// What peers publish, for whoever delivers this node's own events; `None` if it is by itself. `describe` says how
    /// a client of a namespace introduced itself, which peers may ask about.
    pub fn inbound(
        &self,
        receiver: Receiver,
        describe: impl Fn(&str, Sid) -> Option<Handshake> + Send + Sync + 'static,
    ) -> Option<Inbound> {
        let peers = Arc::clone(self.0.peers.as_ref()?);
        Some(Inbound::new(receiver, Arc::clone(&self.0), peers, Arc::new(describe)))
    }

    /// Keeps the number of peers in the metrics, for as long as it runs.
    pub async fn count_peers(self) {
        let Some(peers) = &self.0.peers else { return };
        let mut ticks = tokio::time::interval(COUNT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let first = self.0.read().first().map(|entry| Arc::clone(&entry.channels));
            let Some(channels) = first else { continue };
            let number = peers.number(&channels).await.unwrap_or(0);
            peers.metrics().peers.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.0)
    }
}

impl Shared {
    /// The channels of the namespace at `path`.
    pub(crate) fn channels(&self, path: &str) -> Channels {
        match &self.peers {
            Some(peers) => Channels::new(&peers.settings.prefix, path, &peers.settings.uid),
            None => Channels::new("", path, ""),
        }
    }

    pub(crate) fn register(&self, path: String, channels: Arc<Channels>, local: Weak<dyn Local>) {
        if let Some(peers) = &self.peers {
            // Those that were there when the bus started are wanted already.
            let wanted =
                channels_of(&channels).try_for_each(|one| peers.settings.bus.subscribe(one));
            if let Err(error) = wanted {
                tracing::error!(namespace = path, %error, "this namespace does not hear its peers");
            }
        }
        let mut namespaces = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|entry| entry.path != path);
        namespaces.push(Arc::new(Entry { path, channels, local }));
    }

    /// Every namespace that there is.
    pub(crate) fn locals(&self) -> Vec<Arc<dyn Local>> {
        self.read().iter().filter_map(|entry| entry.local.upgrade()).collect()
    }

    fn at(&self, path: &str) -> Option<Arc<Entry>> {
        self.find(|entry| (entry.path == path).then_some(())).map(|(entry, ())| entry)
    }

    /// The first namespace about which there is something to say, with that.
    fn find<T>(&self, say: impl Fn(&Entry) -> Option<T>) -> Option<(Arc<Entry>, T)> {
        self.read().iter().find_map(|entry| Some((Arc::clone(entry), say(entry)?)))
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Entry>>> {
        self.namespaces.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What arrives from peers, in the order in which it does: their events for this node's clients, what they ask, and
/// what they answer.
///
/// It is carried out by who delivers the node's own events, as both are mostly for the same clients and can
/// go out together.
pub struct Inbound {
    receiver: Receiver,
    // Of one turn, and since when they are here.
    messages: Vec<Message>,
    taken: Instant,
    hands: Hands,
}

impl Inbound {
    fn new(
        receiver: Receiver,
        shared: Arc<Shared>,
        peers: Arc<Peers>,
        describe: Arc<Describe>,
    ) -> Self {
        let hands = Hands {
            answers: Answers::new(Arc::clone(&shared), Arc::clone(&peers), describe),
            legacy_channel: legacy_channel(&peers.settings.prefix),
            shared,
            peers,
            delivering: false,
            complaints: Complaints::default(),
        };
        Self {
            receiver,
            messages: Vec::with_capacity(MESSAGES_PER_TURN),
            taken: Instant::now(),
            hands,
        }
    }

    /// Waits until something has arrived. Returns how many messages are taken up, 128 at most; none once the bus has
    /// ended. Dropping the future loses nothing.
    pub async fn arrived(&mut self) -> usize {
        if self.messages.is_empty() {
            self.receiver.receive(&mut self.messages, MESSAGES_PER_TURN).await;
            self.taken = Instant::now();
        }
        self.messages.len()
    }

    /// Takes up what else has arrived by now.
    pub fn take_up(&mut self) {
        if self.messages.is_empty() {
            self.taken = Instant::now();
        }
        let room = MESSAGES_PER_TURN - self.messages.len();
        self.receiver.take(&mut self.messages, room);
    }

    /// Does what has arrived asks for. Events come into `batch`, and their recipients have them when that is flushed:
    /// [`Inbound::delivered`] is to be called then.
    pub async fn carry_out(&mut self, batch: &mut Batch) {
        for message in &self.messages {
            self.hands.take(message, batch).await;
        }
    }

    /// What was carried out has been delivered.
    pub fn delivered(&mut self) {
        self.messages.clear();
        // Mostly this node's own come back: without anything to deliver there was no fan-out.
        if std::mem::take(&mut self.hands.delivering) {
            self.hands.peers.metrics().fanout_seconds.observe(self.taken.elapsed());
        }
    }
}

/// Handles one message after another.
struct Hands {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    answers: Answers,
    legacy_channel: String,
    // Since it was last asked, a broadcast was for this node.
    delivering: bool,
    complaints: Complaints,
}

impl Hands {
    async fn take(&mut self, message: &Message, batch: &mut Batch) {
        // Every second message of a busy node: no namespace is looked up for it.
        if peek_uid(&message.payload) == Some(&*self.peers.settings.uid) {
            self.peers.metrics().broadcasts_received_total.of(Received::Own).inc();
            return;
        }
        let addressed = self.shared.find(|entry| entry.channels.traffic(&message.channel));
        let Some((entry, traffic)) = addressed else {
            let read = match &*message.channel {
                channel if channel == self.legacy_channel.as_bytes() => self.admit_legacy(message),
                _ => Err(Dropped::Unwanted(Received::OtherNamespace)),
            };
            return self.deliver(&message.channel, read, batch).await;
        };
        match traffic {
            Traffic::Broadcast(scope) => {
                let read = self.admit(message, &entry, scope);
                self.deliver(&message.channel, read, batch).await;
            }
            Traffic::Request => {
                // What was published before it is delivered before it.
                batch.flush().await;
                self.obey(message, &entry).await;
            }
            Traffic::Response => self.hear(message),
        }
    }

    /// Delivers a broadcast, if it is one for this node.
    async fn deliver(
        &mut self,
        channel: &[u8],
        read: Result<Admitted, Dropped>,
        batch: &mut Batch,
    ) {
        let outcome = match read {
            Ok((local, Broadcast { packet, opts, .. })) => {
                let span = opts.flags.traceparent.as_deref().map_or(Span::none(), trace::received);
                let reached = Some(&self.peers.metrics().recipients_total);
                batch.add(&local, packet, local_opts(opts), reached).instrument(span).await;
                self.delivering = true;
                Received::Delivered
            }
            Err(Dropped::Unwanted(outcome)) => outcome,
            Err(Dropped::Bad(error)) => {
                self.complain(channel, error);
                received(error)
            }
        };
        self.peers.metrics().broadcasts_received_total.of(outcome).inc();
    }

    /// What a broadcast is and whom it is for; the cheapest questions first.
    fn admit(
        &self,
        message: &Message,
        entry: &Entry,
        scope: Scope<'_>,
    ) -> Result<Admitted, Dropped> {
        let nobody = Dropped::Unwanted(Received::NobodyHere);
        let Some(local) = entry.local.upgrade() else { return Err(nobody) };
        if let Scope::Room(room) = scope
            && !local.has_members(room)
        {
            return Err(nobody);
        }
        let limits = &self.peers.settings.limits;
        let broadcast = decode_broadcast(&message.payload, limits).map_err(Dropped::Bad)?;
        if *broadcast.packet.ns != *entry.path {
            return Err(Dropped::Unwanted(Received::OtherNamespace));
        }
        Ok((local, broadcast))
    }

    /// The same for an old emitter, which has one channel for all namespaces.
    fn admit_legacy(&self, message: &Message) -> Result<Admitted, Dropped> {
        let limits = &self.peers.settings.limits;
        let broadcast = decode_legacy_broadcast(&message.payload, limits).map_err(Dropped::Bad)?;
        let entry = self.shared.at(&broadcast.packet.ns);
        let local = entry.and_then(|entry| entry.local.upgrade());
        Ok((local.ok_or(Dropped::Unwanted(Received::OtherNamespace))?, broadcast))
    }

    async fn obey(&mut self, message: &Message, entry: &Entry) {
        let outcome = match decode_request(&message.payload, &self.peers.settings.limits) {
            Err(error) => Err(self.bad(message, error)),
            Ok(request) => match entry.local.upgrade() {
                None => Err(Ignored::OtherNamespace),
                Some(local) => {
                    self.answers.obey(request, &entry.path, &entry.channels, &*local).await
                }
            },
        };
        self.count(outcome);
    }

    /// Gives an answer to whoever waits for it.
    fn hear(&mut self, message: &Message) {
        let outcome = if self.peers.awaits(&message.payload) {
            match decode_response(&message.payload, &self.peers.settings.answer_limits()) {
                Err(error) => Err(self.bad(message, error)),
                Ok(response) => self.peers.take(response, message.payload.len()),
            }
        } else {
            Err(Ignored::Unasked)
        };
        self.count(outcome);
    }

    fn bad(&mut self, message: &Message, error: WireError) -> Ignored {
        self.complain(&message.channel, error);
        ignored(error)
    }

    fn complain(&mut self, channel: &[u8], error: WireError) {
        if let Some(kept_back) = self.complaints.may() {
            let channel = String::from_utf8_lossy(channel);
            tracing::warn!(%channel, %error, frames = kept_back + 1, "bad frames from the bus");
        }
    }

    fn count(&self, outcome: Result<(), Ignored>) {
        if let Err(reason) = outcome {
            self.peers.metrics().requests_ignored_total.of(reason).inc();
        }
    }
}

/// A broadcast, and the namespace that it is for.
type Admitted = (Arc<dyn Local>, Broadcast);

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

/// As socketioxide wants it: everyone is a flag.
pub(crate) fn local_opts(opts: Opts) -> BroadcastOptions {
    let mut local = BroadcastOptions::default();
    if opts.rooms.is_empty() {
        local.add_flag(BroadcastFlags::Broadcast);
    }
    if opts.flags.volatile {
        local.add_flag(BroadcastFlags::Volatile);
    }
    local.rooms = opts.rooms.into();
    local.except = opts.except.into();
    local
}
