//! A node of a cluster, without a gateway and Redis.

use std::{sync::Arc, time::Duration};

use antiphon_adapter::{
    Batch, Cluster, ClusterSettings, Inbound, Namespace, Published, SocketId, Target,
    bus::{Bus, Receiver, Settings, Status, memory::Link},
    subscriptions,
    wire::{Channels, Limits},
};
use antiphon_metrics::{AdapterMetrics, BusMetrics, Registry};
use bytes::Bytes;
use socketioxide_core::{Value, packet::Packet};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::clients::Clients;

pub(crate) const PREFIX: &str = "socket.io";

pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const LIMITS: Limits =
    Limits { frame_bytes_max: 1 << 20, depth_max: 32, rooms_max: 100, attachments_max: 10 };

/// The channels of namespace `/`.
pub(crate) fn channels(uid: &str) -> Channels {
    Channels::new(PREFIX, "/", uid)
}

pub(crate) struct Node {
    pub(crate) namespace: Arc<Namespace<Clients>>,
    pub(crate) cluster: Cluster<Clients>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) metrics: Arc<AdapterMetrics>,
    pub(crate) bus: Bus,
    stop: CancellationToken,
    _receiving: AbortOnDropHandle<()>,
}

impl Node {
    /// Joins the cluster, and waits until it receives.
    pub(crate) async fn join(link: &Link, uid: &str) -> Self {
        Self::with(link, uid, |_| {}).await
    }

    pub(crate) async fn with(
        link: &Link,
        uid: &str,
        change: impl FnOnce(&mut ClusterSettings),
    ) -> Self {
        let (registry, stop) = (Registry::new(), CancellationToken::new());
        let bus_metrics = Arc::new(BusMetrics::register(&registry).expect("new"));
        let metrics = Arc::new(AdapterMetrics::register(&registry).expect("new"));
        let wanted = subscriptions(PREFIX, uid, ["/"]);
        let bus = Bus::memory(link, Settings::default(), wanted, bus_metrics, &stop);
        let (bus, receiver) = bus.expect("valid settings");
        let mut settings = ClusterSettings {
            bus: bus.clone(),
            uid: uid.to_owned(),
            prefix: PREFIX.to_owned(),
            limits: LIMITS,
            answer_bytes_max: 1 << 20,
            request_timeout: REQUEST_TIMEOUT,
            answer_on_own_channel: false,
            metrics: Arc::clone(&metrics),
        };
        change(&mut settings);
        let clients = Arc::new(Clients::default());
        let cluster = Cluster::among(Arc::clone(&clients), settings);
        let namespace = cluster.create("/");
        clients.attach(&namespace);
        let inbound = cluster.inbound(receiver).expect("it has remote nodes");
        let receiving = tokio::spawn(receive(inbound));
        let mut status = bus.status();
        status.wait_for(Status::ready).await.expect("it runs");
        let _receiving = AbortOnDropHandle::new(receiving);
        Self { namespace, cluster, clients, metrics, bus, stop, _receiving }
    }

    /// A socket, in rooms.
    pub(crate) fn socket(&self, rooms: &[&str]) -> SocketId {
        let id = self.clients.connect();
        rooms.iter().for_each(|room| {
            self.namespace.join(id, room);
        });
        id
    }

    pub(crate) fn received(&self, id: SocketId) -> Vec<String> {
        self.clients.received(id)
    }

    /// The node dies, without a word.
    pub(crate) fn die(self) {
        self.stop.cancel();
    }

    pub(crate) async fn emit(&self, target: Target, event: &'static str) -> Published {
        self.namespace.broadcast(packet(event), &target).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn receive(mut inbound: Inbound<Clients>) {
    let mut batch = Batch::default();
    while inbound.arrived().await > 0 {
        inbound.carry_out(&mut batch).await;
        batch.flush().await;
        inbound.delivered();
    }
}

pub(crate) fn packet(event: &'static str) -> Packet {
    Packet::event("/", Value::Str(format!("[\"{event}\"]").into(), None))
}

pub(crate) fn everyone() -> Target {
    Target::everyone()
}

pub(crate) fn room(name: &'static str) -> Target {
    Target::room(name)
}

/// Somebody on the bus that is no node of ours.
pub(crate) struct Stranger {
    pub(crate) bus: Bus,
    pub(crate) receiver: Receiver,
    stop: CancellationToken,
}

impl Stranger {
    pub(crate) async fn join(link: &Link, names: &[&str]) -> Self {
        use antiphon_adapter::bus::Subscription;
        let stop = CancellationToken::new();
        let metrics = Arc::new(BusMetrics::register(&Registry::new()).expect("new"));
        let wanted: Vec<_> =
            names.iter().map(|&name| Subscription::Channel(name.to_owned())).collect();
        let bus = Bus::memory(link, Settings::default(), wanted, metrics, &stop);
        let (bus, receiver) = bus.expect("valid settings");
        bus.status().wait_for(Status::ready).await.expect("it runs");
        Self { bus, receiver, stop }
    }

    pub(crate) fn publish(&self, channel: &str, frame: impl Into<Bytes>) {
        self.bus.publish(channel, frame.into()).expect("the bus is up");
    }

    /// The next frame.
    pub(crate) async fn next_bytes(&mut self) -> Bytes {
        let mut messages = Vec::new();
        let received = timeout(REQUEST_TIMEOUT, self.receiver.receive(&mut messages, 1)).await;
        assert!(received.expect("a frame arrives"), "the bus has ended");
        messages.swap_remove(0).payload
    }

    /// The next frame, if it is text.
    pub(crate) async fn next(&mut self) -> String {
        String::from_utf8_lossy(&self.next_bytes().await).into_owned()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
