//! A node of a cluster, without clients and Redis.

use std::{sync::Arc, time::Duration};

use antiphon_adapter::{
    Batch, Cluster, ClusterAdapter, Inbound, PeerSettings,
    bus::{Bus, Settings, Status, memory::Link},
    subscriptions,
    wire::{Channels, Handshake, Limits},
};
use antiphon_metrics::{AdapterMetrics, BusMetrics, Registry};
use bytes::Bytes;
use socketioxide_core::{
    Sid, Value,
    adapter::{
        BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter, RemoteSocketData, Room,
    },
    packet::Packet,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::sockets::Sockets;

pub(crate) const PREFIX: &str = "socket.io";

pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const LIMITS: Limits =
    Limits { frame_bytes_max: 1 << 20, depth_max: 32, rooms_max: 100, attachments_max: 10 };

/// The channels of namespace `/`.
pub(crate) fn channels(uid: &str) -> Channels {
    Channels::new(PREFIX, "/", uid)
}

pub(crate) struct Node {
    pub(crate) adapter: Arc<ClusterAdapter<Sockets>>,
    pub(crate) cluster: Cluster,
    pub(crate) sockets: Sockets,
    pub(crate) metrics: Arc<AdapterMetrics>,
    pub(crate) bus: Bus,
    stop: CancellationToken,
    _receiving: AbortOnDropHandle<()>,
}

impl Node {
    /// Joins the cluster, and waits until it hears it.
    pub(crate) async fn join(link: &Link, uid: &str) -> Self {
        Self::with(link, uid, |_| {}).await
    }

    pub(crate) async fn with(
        link: &Link,
        uid: &str,
        change: impl FnOnce(&mut PeerSettings),
    ) -> Self {
        let (registry, stop) = (Registry::new(), CancellationToken::new());
        let bus_metrics = Arc::new(BusMetrics::register(&registry).expect("new"));
        let metrics = Arc::new(AdapterMetrics::register(&registry).expect("new"));
        let wanted = subscriptions(PREFIX, uid, ["/"]);
        let bus = Bus::memory(link, Settings::default(), wanted, bus_metrics, &stop);
        let (bus, receiver) = bus.expect("valid settings");
        let mut settings = PeerSettings {
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
        let sockets = Sockets::new();
        let cluster = Cluster::among(Arc::new(sockets.clone()), settings);
        let local = CoreLocalAdapter::new(sockets.clone());
        let adapter = Arc::new(ClusterAdapter::new(&cluster, local));
        Arc::clone(&adapter).init(|| {});
        let inbound = cluster.inbound(receiver, |_, _| Some(handshake())).expect("it has peers");
        let receiving = tokio::spawn(receive(inbound));
        let mut status = bus.status();
        status.wait_for(Status::ready).await.expect("it runs");
        let _receiving = AbortOnDropHandle::new(receiving);
        Self { adapter, cluster, sockets, metrics, bus, stop, _receiving }
    }

    /// A socket, in rooms.
    pub(crate) fn socket(&self, rooms: &[&'static str]) -> Sid {
        let sid = self.sockets.connect();
        self.adapter
            .get_local()
            .add_all(sid, rooms.iter().map(|&room| room.into()).collect::<Vec<Room>>());
        sid
    }

    pub(crate) fn in_room(&self, sid: Sid, room: &str) -> bool {
        self.adapter.get_local().socket_rooms(sid).contains(room)
    }

    /// The node dies, without a word.
    pub(crate) fn die(self) {
        self.stop.cancel();
    }

    pub(crate) async fn emit(&self, opts: BroadcastOptions, event: &'static str) {
        self.adapter.broadcast(packet(event), opts).await.expect("never an error");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn receive(mut inbound: Inbound) {
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

pub(crate) fn everyone() -> BroadcastOptions {
    let mut opts = BroadcastOptions::default();
    opts.add_flag(BroadcastFlags::Broadcast);
    opts
}

pub(crate) fn room(name: &'static str) -> BroadcastOptions {
    let mut opts = everyone();
    opts.rooms.push(name.into());
    opts
}

pub(crate) fn found(socket: &RemoteSocketData) -> BroadcastOptions {
    BroadcastOptions::new_remote(socket)
}

fn handshake() -> Handshake {
    Handshake {
        headers: vec![("user-agent".to_owned(), "x".repeat(500))],
        issued_ms: 0,
        address: "127.0.0.1".to_owned(),
        xdomain: false,
        secure: false,
        url: "/socket.io/?EIO=4".to_owned(),
        query: Vec::new(),
        auth: "{}".to_owned(),
    }
}

/// Somebody on the bus that is no node of ours.
pub(crate) struct Stranger {
    pub(crate) bus: Bus,
    pub(crate) receiver: antiphon_adapter::bus::Receiver,
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

    /// The next frame, if it is text.
    pub(crate) async fn next(&mut self) -> String {
        let mut messages = Vec::new();
        let received = timeout(REQUEST_TIMEOUT, self.receiver.receive(&mut messages, 1)).await;
        assert!(received.expect("a frame arrives"), "the bus has ended");
        String::from_utf8_lossy(&messages[0].payload).into_owned()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
