//! What the adapters of one node's namespaces share: each other, and the way to the peers.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use antiphon_metrics::{
    AdapterMetrics,
    adapter::{Received, Unsent},
};
use bytes::Bytes;
use socketioxide_core::{
    adapter::{BroadcastFlags, BroadcastOptions},
    packet::Packet,
};
use tokio::time::{Duration, Instant};

use crate::{
    adapter::{Local, Namespace, Recipients},
    bus::{Bus, Message, Receiver, Subscription},
    wire::{
        Channels, Flags, Limits, Opts, Scope, WireError, decode_broadcast, encode_broadcast,
        peek_uid,
    },
};

/// Messages taken from the bus, and delivered, before other tasks have their turn: as with the node's own
/// events, those who write to sockets must empty the recipients' queues in between.
const BATCH_MAX: usize = 32;

/// Bad frames are logged at most this often: whoever sends one sends many.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// The way to the peers.
pub struct Peers {
    /// Carries the frames.
    pub bus: Bus,
    /// This node's name in frames. Node's have six characters.
    pub uid: String,
    /// What the channels' names begin with (Node: the adapter's option `key`).
    pub prefix: String,
    /// What a frame may contain.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<AdapterMetrics>,
}

/// What to subscribe to for the broadcasts of these namespaces.
pub fn subscriptions<'a>(
    prefix: &str,
    namespaces: impl IntoIterator<Item = &'a str>,
) -> Vec<Subscription> {
    let pattern = |nsp| Subscription::Pattern(Channels::new(prefix, nsp, "").pattern());
    namespaces.into_iter().map(pattern).collect()
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
    peers: Option<Peers>,
}

struct Entry {
    path: String,
    channels: Channels,
    // Weak: the namespace owns its adapter, and this list must not keep either alive.
    local: Weak<dyn Local>,
}

impl Cluster {
    /// A node by itself.
    pub fn alone(recipients: Arc<dyn Recipients>) -> Self {
        Self(Arc::new(Shared { namespaces: RwLock::default(), recipients, peers: None }))
    }

    /// A node among peers.
    pub fn among(recipients: Arc<dyn Recipients>, peers: Peers) -> Self {
        Self(Arc::new(Shared { namespaces: RwLock::default(), recipients, peers: Some(peers) }))
    }

    /// The namespace at `path`, once socketioxide has made it.
    pub fn namespace(&self, path: &str) -> Option<Namespace> {
        self.0.at(path)?.local.upgrade().map(Namespace)
    }

    /// Delivers what peers publish, in the order in which it arrives, until the bus has ended.
    pub async fn receive(self, mut receiver: Receiver) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut complaints = Complaints::default();
        while receiver.receive(&mut batch, BATCH_MAX).await {
            for message in batch.drain(..) {
                self.0.take(message, &mut complaints).await;
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.0)
    }
}

impl Shared {
    pub(crate) fn register(&self, path: String, local: Weak<dyn Local>) {
        let (prefix, uid) = match &self.peers {
            Some(peers) => (&*peers.prefix, &*peers.uid),
            None => ("", ""),
        };
        let channels = Channels::new(prefix, &path, uid);
        let mut namespaces = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|entry| entry.path != path);
        namespaces.push(Arc::new(Entry { path, channels, local }));
    }

    fn at(&self, path: &str) -> Option<Arc<Entry>> {
        self.find(|entry| (entry.path == path).then_some(())).map(|(entry, ())| entry)
    }

    /// The first namespace about which there is something to say, with that.
    fn find<T>(&self, say: impl Fn(&Entry) -> Option<T>) -> Option<(Arc<Entry>, T)> {
        let namespaces = self.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        namespaces.iter().find_map(|entry| Some((Arc::clone(entry), say(entry)?)))
    }

    /// Hands a broadcast to the bus, unless it is for this node alone.
    pub(crate) fn publish(&self, packet: &Packet, opts: &BroadcastOptions) -> Published {
        let everyone = opts.has_flag(BroadcastFlags::Broadcast);
        let one_socket = opts.rooms.is_empty() && !everyone;
        let Some(peers) = &self.peers else { return Published::NotNeeded };
        if one_socket || opts.has_flag(BroadcastFlags::Local) {
            return Published::NotNeeded;
        }
        let Some(entry) = self.at(&packet.ns) else {
            return Published::NotNeeded; // Closed in the meantime.
        };
        match peers.publish(&entry.channels, packet, wire_opts(opts)) {
            Ok(()) => {
                peers.metrics.broadcasts_sent_total.inc();
                Published::Yes
            }
            Err(reason) => {
                peers.metrics.broadcasts_unsent_total.of(reason).inc();
                Published::No
            }
        }
    }

    async fn take(&self, message: Message, complaints: &mut Complaints) {
        let Some(peers) = &self.peers else { return };
        let outcome = match self.admit(peers, &message) {
            Ok((local, packet, opts)) => {
                local.deliver_for_peer(packet, opts).await;
                Received::Delivered
            }
            Err(Dropped::Unwanted(outcome)) => outcome,
            Err(Dropped::Bad(error)) => {
                complaints.about(&message.channel, error);
                received(error)
            }
        };
        peers.metrics.broadcasts_received_total.of(outcome).inc();
    }

    /// What a message is and whom it is for; the cheapest questions first.
    fn admit(
        &self,
        peers: &Peers,
        message: &Message,
    ) -> Result<(Arc<dyn Local>, Packet, BroadcastOptions), Dropped> {
        let addressed = self.find(|entry| entry.channels.scope(&message.channel));
        let (entry, scope) = addressed.ok_or(Dropped::Unwanted(Received::OtherNamespace))?;
        let nobody = Dropped::Unwanted(Received::NobodyHere);
        let Some(local) = entry.local.upgrade() else { return Err(nobody) };
        if peek_uid(&message.payload) == Some(&*peers.uid) {
            return Err(Dropped::Unwanted(Received::Own));
        }
        if let Scope::Room(room) = scope
            && !local.has_members(room)
        {
            return Err(nobody);
        }
        let broadcast = decode_broadcast(&message.payload, &peers.limits).map_err(Dropped::Bad)?;
        if *broadcast.packet.ns != *entry.path {
            return Err(Dropped::Unwanted(Received::OtherNamespace));
        }
        Ok((local, broadcast.packet, local_opts(broadcast.opts)))
    }
}

impl Peers {
    fn publish(&self, channels: &Channels, packet: &Packet, opts: Opts) -> Result<(), Unsent> {
        let frame = encode_broadcast(&self.uid, packet, &opts, &self.limits);
        let frame = frame.map_err(|_| Unsent::Unencodable)?;
        let channel = channels.for_rooms(&opts.rooms);
        self.bus.publish(channel, Bytes::from(frame)).map_err(|_| Unsent::Bus)
    }
}

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

/// As Node writes it: no rooms are everyone, and the sender is one of the exceptions.
fn wire_opts(opts: &BroadcastOptions) -> Opts {
    let sender = opts.sid.filter(|_| opts.has_flag(BroadcastFlags::Broadcast));
    let sender = sender.map(|sid| sid.to_string().into());
    Opts {
        rooms: opts.rooms.to_vec(),
        except: opts.except.iter().cloned().chain(sender).collect(),
        flags: Flags { volatile: opts.has_flag(BroadcastFlags::Volatile), ..Flags::default() },
    }
}

/// As socketioxide wants it: everyone is a flag.
fn local_opts(opts: Opts) -> BroadcastOptions {
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

/// Logs bad frames, seldom.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    since: u64,
}

impl Complaints {
    fn about(&mut self, channel: &[u8], error: WireError) {
        self.since += 1;
        if self.last.is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL) {
            return;
        }
        let channel = String::from_utf8_lossy(channel);
        tracing::warn!(%channel, %error, frames = self.since, "bad frames from the bus");
        *self = Self { last: Some(Instant::now()), since: 0 };
    }
}
