//! What a node's bus does: the connections that carry bytes between nodes.

use crate::declare::{Buckets, Counters, Gauges, Seconds, label, subsystem};
use prometheus::{Counter, IntCounter, IntGauge};

label! {
    /// Why a message was not published, as far as this node knows.
    "reason" Unpublished {
        /// There was no link when it was to be published.
        Down = "down",
        /// As many messages or bytes waiting as may wait.
        QueueFull = "queue_full",
        /// Larger than a message may be.
        TooLarge = "too_large",
        /// The link broke while it waited, or before it was answered: it may have arrived.
        LinkLost = "link_lost",
        /// The server refused it, such as an ACL that forbids the channel.
        Rejected = "rejected",
    }
}

label! {
    /// Why a message that arrived was dropped.
    "reason" ReceiveDrop {
        /// As many messages waiting to be handled as may wait.
        QueueCount = "queue_count",
        /// As many bytes waiting to be handled as may wait.
        QueueBytes = "queue_bytes",
        /// Larger than a message may be.
        TooLarge = "too_large",
    }
}

label! {
    /// One of the bus's two connections.
    "connection" Connection {
        /// The one that publishes.
        Publisher = "publisher",
        /// The one that receives.
        Subscriber = "subscriber",
    }
}

/// Bounds for what is answered by a Redis nearby: from well below a round trip on the same machine to
/// the default deadline of two seconds, so that the last bucket is what nearly failed.
#[derive(Debug)]
pub struct RoundTrip;

impl Buckets for RoundTrip {
    const BOUNDS: &'static [f64] = &[
        0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
    ];
}

subsystem! {
    /// The bus's metrics.
    "antiphon_bus_" BusMetrics {
        /// Messages published and confirmed by the server.
        published_total: IntCounter,
        /// Payload of the messages published and confirmed, in bytes.
        published_bytes_total: IntCounter,
        /// Messages not published, or not known to be.
        unpublished_total: Counters<Unpublished>,
        /// Messages waiting to be published.
        publish_queue_messages: IntGauge,
        /// As many as may wait (`redis.publish_queue_messages`).
        publish_queue_messages_max: IntGauge,
        /// Size of the messages waiting to be published, in bytes.
        publish_queue_bytes: IntGauge,
        /// As many as may wait (`redis.publish_queue_bytes`).
        publish_queue_bytes_max: IntGauge,
        /// Time from a message's entry into the publish queue to the server's answer.
        publish_seconds: Seconds<RoundTrip>,
        /// Messages that arrived.
        received_total: IntCounter,
        /// Payload of the messages that arrived, in bytes.
        received_bytes_total: IntCounter,
        /// Messages that arrived and were dropped.
        receive_dropped_total: Counters<ReceiveDrop>,
        /// Messages waiting to be handled.
        receive_queue_messages: IntGauge,
        /// As many as may wait (`redis.receive_queue_messages`).
        receive_queue_messages_max: IntGauge,
        /// Size of the messages waiting to be handled, in bytes.
        receive_queue_bytes: IntGauge,
        /// As many as may wait (`redis.receive_queue_bytes`).
        receive_queue_bytes_max: IntGauge,
        /// Time a probe takes through the publish queue, the server and back.
        probe_seconds: Seconds<RoundTrip>,
        /// Probes that did not come back in time.
        probes_lost_total: IntCounter,
        /// Time during which this node did not hear its peers, for whatever cause.
        deaf_seconds_total: Counter,
        /// Connections established after the first one.
        reconnects_total: Counters<Connection>,
        /// Attempts to connect that failed.
        connect_failures_total: Counters<Connection>,
        /// 1 while the connection is established, else 0.
        connected: Gauges<Connection>,
        /// 1 while every subscription is confirmed, else 0.
        subscribed: IntGauge,
    }
}
