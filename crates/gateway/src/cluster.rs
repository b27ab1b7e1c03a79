//! This node's way to its peers: the bus started as configured, and how it is.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use antiphon_adapter::{
    Cluster, ClusterSettings,
    bus::{self, Bus, ClientIdentity, Protocol, Receiver, RedisSettings},
    subscriptions, wire,
};
use antiphon_metrics::{AdapterMetrics, BusMetrics, Registry};
use socketioxide_core::Uid;
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use crate::{
    config::{Config, Redis},
    fanout::FanOut,
};

/// Characters of a node's name in frames, as many as Node's have.
const UID_CHARS: usize = 6;

/// Bytes that a frame may have beyond the message in it: rooms and ids.
const FRAME_OVERHEAD_BYTES: usize = 1 << 20;

/// Bytes of an answer to a peer, unless messages may be larger.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Rooms that a frame may list.
const FRAME_ROOMS_MAX: usize = 10_000;

/// Why the bus cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file that the settings name cannot be read.
    #[error("cannot read {key} = {path:?}")]
    File {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Settings that cannot work.
    #[error(transparent)]
    Setup(#[from] bus::Setup),
    /// Metrics are there already.
    #[error("cannot set up metrics")]
    Metrics(#[from] antiphon_metrics::Error),
}

/// The link to the peers.
pub(crate) struct Link {
    bus: Bus,
    watch: BusWatch,
    _watching: AbortOnDropHandle<()>,
    // The bus' tasks end with the node, even with one that was never served.
    _stop: DropGuard,
}

/// A cluster, and for a node that is not alone its link and what arrives over it.
pub(crate) type Started = (Cluster<FanOut>, Option<(Link, Receiver)>);

/// A cluster of this node alone, or one with a link and what arrives over it.
pub(crate) fn start(
    config: &Config,
    registry: &Registry,
    fan_out: Arc<FanOut>,
) -> Result<Started, ClusterError> {
    let Some(redis) = &config.redis else { return Ok((Cluster::alone(fan_out), None)) };
    let namespaces = config.namespaces.iter().map(String::as_str);
    let uid = &Uid::new().to_string()[..UID_CHARS];
    let stop = CancellationToken::new();
    let (bus, receiver) = Bus::redis(
        &redis_settings(redis)?,
        bus_settings(config, redis),
        subscriptions(&redis.prefix, uid, namespaces),
        Arc::new(BusMetrics::register(registry)?),
        &stop,
    )?;
    let link = Link::new(bus.clone(), redis.degraded_is_ready, stop.drop_guard());
    let settings = ClusterSettings {
        bus,
        uid: uid.to_owned(),
        prefix: redis.prefix.clone(),
        limits: wire_limits(config),
        answer_bytes_max: answer_bytes_max(config),
        request_timeout: redis.request_timeout,
        answer_on_own_channel: redis.answer_on_own_channel,
        metrics: Arc::new(AdapterMetrics::register(registry)?),
    };
    Ok((Cluster::among(fan_out, settings), Some((link, receiver))))
}

impl Link {
    fn new(bus: Bus, degraded_is_ready: bool, stop: DropGuard) -> Self {
        let status = bus.status();
        let watch = BusWatch { status, was_well: Arc::default(), degraded_is_ready };
        let BusWatch { mut status, was_well, .. } = watch.clone();
        let watching = tokio::spawn(async move {
            // An error means that the bus is gone, and the node with it.
            if status.wait_for(bus::Status::ready).await.is_ok() {
                was_well.store(true, Ordering::Relaxed);
            }
        });
        Self { bus, watch, _watching: AbortOnDropHandle::new(watching), _stop: stop }
    }

    /// How the bus is, for `/readyz`.
    pub(crate) fn watch(&self) -> BusWatch {
        self.watch.clone()
    }

    /// Publishes what waits, for as long as there is time, and leaves.
    pub(crate) async fn close(self, deadline: Instant) {
        self.bus.close(deadline).await;
    }
}

/// Knows how the bus is.
#[derive(Clone)]
pub(crate) struct BusWatch {
    status: tokio::sync::watch::Receiver<bus::Status>,
    was_well: Arc<AtomicBool>,
    degraded_is_ready: bool,
}

impl BusWatch {
    /// Looks once, so that what is said about it fits together.
    pub(crate) fn look(&self) -> BusLook {
        let status = *self.status.borrow();
        let was_well = status.ready() || self.was_well.load(Ordering::Relaxed);
        let complaint = match () {
            () if status.ready() => None,
            () if !status.publisher_up => Some("bus: no connection to publish over"),
            () if !status.subscribed => Some("bus: not subscribed to its peers' channels"),
            () if status.receive_overflow => Some("bus: more arrives than can be delivered"),
            () if status.deaf_since.is_some() => Some("bus: what is published does not arrive"),
            () => Some("bus: just connected, not proven yet"),
        };
        let excused = self.degraded_is_ready && was_well && !status.receive_overflow;
        BusLook { complaint, was_well, allows: status.ready() || excused }
    }
}

/// How the bus was when somebody looked.
pub(crate) struct BusLook {
    /// What is wrong, if anything is.
    pub(crate) complaint: Option<&'static str>,
    /// Whether peers have been reached and heard since the node was started.
    pub(crate) was_well: bool,
    /// Whether clients may be sent here: yes if it is well, or if it was and settings say that is enough.
    /// A node that cannot keep up with what arrives has enough clients in any case.
    pub(crate) allows: bool,
}

fn bus_settings(config: &Config, redis: &Redis) -> bus::Settings {
    bus::Settings {
        publish_queue_messages_max: redis.publish_queue_messages,
        publish_queue_bytes_max: redis.publish_queue_bytes,
        receive_queue_messages_max: redis.receive_queue_messages,
        receive_queue_bytes_max: redis.receive_queue_bytes,
        payload_bytes_max: answer_bytes_max(config),
        connect_timeout: redis.connect_timeout,
        probe_interval: redis.probe_interval,
        probe_timeout: redis.probe_timeout,
        ..bus::Settings::default()
    }
}

/// The largest frame for messages of this size: `0.1,` is four bytes of text and nine of MessagePack.
pub(crate) const fn frame_bytes_max(message_bytes_max: usize) -> usize {
    (message_bytes_max / 4 + 1).saturating_mul(9).saturating_add(FRAME_OVERHEAD_BYTES)
}

/// An answer lists all sockets of a node, some 600 bytes each. Far more would not help: Redis cuts a subscriber
/// off for whom more than 32 MB wait (`client-output-buffer-limit`), and each node gets every answer.
fn answer_bytes_max(config: &Config) -> usize {
    frame_bytes_max(config.limits.max_message_bytes).max(ANSWER_BYTES_MAX)
}

fn wire_limits(config: &Config) -> wire::Limits {
    wire::Limits {
        frame_bytes_max: frame_bytes_max(config.limits.max_message_bytes),
        depth_max: config.limits.max_json_depth,
        rooms_max: FRAME_ROOMS_MAX,
        // Peers may allow more than this node does.
        attachments_max: config.limits.max_attachments.max(1000),
    }
}

fn redis_settings(redis: &Redis) -> Result<RedisSettings, ClusterError> {
    let identity = match (&redis.tls_certificate, &redis.tls_key) {
        (Some(certificate), Some(key)) => Some(ClientIdentity {
            certificate: read("redis.tls_certificate", certificate)?,
            key: read("redis.tls_key", key)?,
        }),
        _ => None,
    };
    let authorities = redis.tls_ca.as_deref().map(|path| read("redis.tls_ca", path));
    Ok(RedisSettings {
        username: redis.username.clone(),
        password: redis.password.as_ref().map(|password| password.expose().to_owned()),
        protocol: if redis.resp3 { Protocol::Resp3 } else { Protocol::Resp2 },
        tls_authorities: authorities.transpose()?,
        tls_identity: identity,
        ..RedisSettings::new(redis.url.expose())
    })
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, ClusterError> {
    let path_text = || path.display().to_string();
    fs::read(path).map_err(|source| ClusterError::File { key, path: path_text(), source })
}
