//! What a node's listener, sessions and events do.

use crate::declare::{
    Buckets, Counters, EventFamily, Gauges, NamespaceCounters, NamespaceGauges, Seconds, label,
    subsystem,
};
use prometheus::{IntCounter, IntGauge};

label! {
    /// How packets travel between a session and the node.
    "transport" Transport {
        /// HTTP long-polling.
        Polling = "polling",
        /// WebSocket, from the start or after an upgrade.
        WebSocket = "websocket",
    }
}

label! {
    /// The Engine.IO protocol of a session.
    "protocol" Protocol {
        /// Revision 3: JavaScript clients 1.x and 2.x, Dart clients up to 1.x.
        Eio3 = "eio3",
        /// Revision 4: JavaScript clients since 3.0, Dart clients since 2.0.
        Eio4 = "eio4",
    }
}

label! {
    /// Why a connection or a handshake was turned away.
    "reason" Refusal {
        /// As many connections or sessions as the node takes in all.
        TotalLimit = "total_limit",
        /// As many as it takes from one address.
        AddressLimit = "address_limit",
        /// The node is shutting down.
        Draining = "draining",
        /// The page's origin is not allowed.
        Origin = "origin",
        /// The head of a request did not arrive in time, or was not HTTP.
        BadHead = "bad_head",
        /// The body of a polling request did not arrive in time.
        BodyTimeout = "body_timeout",
        /// The body of a polling request is larger than a message may be.
        TooLarge = "too_large",
        /// A request for a session that is not on this node: the load balancer lacks sticky sessions, the node was
        /// restarted, or the session has ended.
        UnknownSession = "unknown_session",
        /// The node holds as much for its clients as it may (`limits.memory`).
        Memory = "memory",
        /// A request that names no transport, or is otherwise not one of Engine.IO.
        BadRequest = "bad_request",
    }
}

label! {
    /// Why a socket left its namespace.
    "reason" CloseReason {
        /// The client closed its transport, or the network did.
        TransportClose = "transport_close",
        /// The transport failed.
        TransportError = "transport_error",
        /// No answer to a ping in time.
        PingTimeout = "ping_timeout",
        /// The client sent what cannot be parsed.
        ParseError = "parse_error",
        /// The client sent a message that is larger than it may be.
        TooLarge = "too_large",
        /// The node held more for its clients than it may, and for this one most.
        Memory = "memory",
        /// The client left the namespace.
        ClientDisconnect = "client_namespace_disconnect",
        /// The node took the socket out of the namespace.
        ServerDisconnect = "server_namespace_disconnect",
        /// The client read too slowly and its queue was full.
        SlowConsumer = "slow_consumer",
        /// The client took nothing from a full socket for too long.
        WriteStalled = "write_stalled",
        /// The node is shutting down.
        ServerShutdown = "server_shutting_down",
    }
}

label! {
    /// Why a session ended.
    "reason" SessionEnd {
        /// It never came to a namespace: its client left before, or took too long (`session.connect_timeout`).
        NeverConnected = "never_connected",
        /// Its transport ended for none of the other reasons, and then the closed sockets' say which it was.
        Transport = "transport",
        /// The client sent what cannot be read.
        ParseError = "parse_error",
        /// The client sent a message that is larger than it may be.
        TooLarge = "too_large",
        /// The node held more for its clients than it may, and for this one most.
        Memory = "memory",
        /// A server sent the client away.
        ServerDisconnect = "server_disconnect",
        /// The client read too slowly and its queue was full.
        SlowConsumer = "slow_consumer",
        /// The client took nothing from a full socket for too long.
        WriteStalled = "write_stalled",
        /// The node is shutting down.
        ServerShutdown = "server_shutting_down",
    }
}

label! {
    /// What became of an event that a client sent.
    "outcome" Outcome {
        /// Done as its rule says.
        Ok = "ok",
        /// Done, but for this node's sockets alone: its peers could not be reached.
        OkLocal = "ok_local",
        /// No rule, and nobody waiting for an answer.
        Ignored = "ignored",
        /// No rule, and the sender was told so.
        UnknownEvent = "unknown_event",
        /// Sent more often than its rule allows.
        RateLimited = "rate_limited",
        /// Larger than its rule allows.
        TooLarge = "too_large",
        /// Arguments that no client could read.
        Malformed = "malformed",
        /// The first argument does not name a room.
        InvalidRoom = "invalid_room",
        /// The room's name is too long.
        RoomNameTooLong = "room_name_too_long",
        /// The socket is in as many rooms as it may be.
        TooManyRooms = "too_many_rooms",
        /// Only members may send to the room.
        NotJoined = "not_joined",
        /// The node has more to deliver than it may hold.
        Overloaded = "overloaded",
    }
}

label! {
    /// Why a recipient did not get an event.
    "reason" Undelivered {
        /// Too much was waiting for the recipient: it is being closed.
        SlowConsumer = "slow_consumer",
        /// The recipient was behind and the event volatile.
        Volatile = "volatile",
        /// The recipient left in the meantime.
        Gone = "gone",
    }
}

/// Bounds for what a client waits for when it connects: from a client on the same machine to one that is about
/// to give up.
#[derive(Debug)]
pub struct Connecting;

impl Buckets for Connecting {
    const BOUNDS: &'static [f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
}

/// Bounds for how long an event is on its way through a node: from a few recipients of an idle one to what nobody
/// would call live.
#[derive(Debug)]
pub struct Passing;

impl Buckets for Passing {
    const BOUNDS: &'static [f64] = &[
        0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    ];
}

subsystem! {
    /// The gateway's metrics.
    "antiphon_gateway_" GatewayMetrics {
        /// Open TCP connections of the public listener.
        connections: IntGauge,
        /// TCP connections, and sessions, that the node takes at most (`server.max_connections`).
        connections_max: IntGauge,
        /// TCP connections accepted by the public listener.
        connections_accepted_total: IntCounter,
        /// Failures to accept a connection, such as no descriptors left.
        accept_errors_total: IntCounter,
        /// Connections, handshakes and requests turned away.
        refusals_total: Counters<Refusal>,
        /// Open Engine.IO sessions; a session is one client, whatever connections it uses.
        sessions: Gauges<(Transport, Protocol)>,
        /// Engine.IO sessions opened, by the transport they began with.
        sessions_opened_total: Counters<(Transport, Protocol)>,
        /// Engine.IO sessions that ended, by the transport they ended with.
        sessions_closed_total: Counters<(Transport, SessionEnd)>,
        /// Time from a client's handshake request to its first socket in a namespace.
        handshake_seconds: Seconds<Connecting>,
        /// Sockets connected to a namespace.
        sockets: NamespaceGauges,
        /// Sockets that came to their namespace.
        sockets_opened_total: NamespaceCounters<()>,
        /// Rooms that sockets of this node are in, counted every 15 s.
        rooms: NamespaceGauges,
        /// Sockets that left their namespace.
        sockets_closed_total: NamespaceCounters<CloseReason>,
        /// Bytes read from clients, all of them: HTTP heads, frames and payloads.
        received_bytes_total: IntCounter,
        /// Bytes written to clients, all of them.
        sent_bytes_total: IntCounter,
        /// Events that clients sent, by rule; `other` has no rule.
        events_total: EventFamily<Outcome>,
        /// Sockets of this node that its clients' events were for, by rule, each counted for each event. What became of
        /// these and of those of `antiphon_adapter_recipients_total` is in the two that follow, for all rules together.
        recipients_total: EventFamily<()>,
        /// Events written to recipients' connections or waiting for them, each counted for each recipient.
        deliveries_total: IntCounter,
        /// The same for events that a recipient did not get.
        undelivered_total: Counters<Undelivered>,
        /// Time from the acceptance of an event that goes to somebody until it is written to all who take it at once.
        fanout_seconds: Seconds<Passing>,
        /// Bytes held for clients and from them: events that wait for delivery, what waits to be written, and messages
        /// and request bodies that are not whole. What waits for many clients counts once.
        memory_bytes: IntGauge,
        /// The most bytes that may be held (`limits.memory`).
        memory_bytes_max: IntGauge,
        /// The most bytes that may wait for one client (`session.send_queue_bytes`).
        client_waiting_bytes_max: IntGauge,
        /// Events accepted and not yet delivered.
        stage_events: IntGauge,
        /// As many as may wait (`stage.max_events`); up to 128 more have been taken up and are being delivered.
        stage_events_max: IntGauge,
        /// Payload of the events accepted and not yet delivered, in bytes.
        stage_bytes: IntGauge,
        /// As many as there may be (`stage.max_bytes`).
        stage_bytes_max: IntGauge,
        /// 1 while the node is shutting down, else 0.
        draining: IntGauge,
        /// 1 if a balancer may send clients here (`/readyz`), else 0.
        ready: IntGauge,
        /// 1 if the node makes no progress (`/healthz`), else 0.
        stuck: IntGauge,
    }
}
