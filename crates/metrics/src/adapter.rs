//! What travels between nodes, as far as Socket.IO is concerned.

use crate::{
    declare::{Counters, Seconds, label, subsystem},
    gateway::Passing,
};

label! {
    /// What became of a broadcast that came from the bus.
    "outcome" Received {
        /// Handed to the recipients on this node, of which there may be none.
        Delivered = "delivered",
        /// This node's own, back from Redis.
        Own = "own",
        /// For a room that nobody on this node is in: not even decoded.
        NobodyHere = "nobody_here",
        /// On a channel of one namespace, for another.
        OtherNamespace = "other_namespace",
        /// Larger than a frame may be.
        TooLarge = "too_large",
        /// Nested deeper than arguments may be.
        TooDeep = "too_deep",
        /// More rooms than a frame may list.
        TooManyRooms = "too_many_rooms",
        /// More attachments than an event may have.
        TooManyAttachments = "too_many_attachments",
        /// Cut off, not MessagePack, or not what a peer sends.
        Malformed = "malformed",
    }
}

label! {
    /// Why a broadcast did not go to the peers.
    "reason" Unsent {
        /// It has no form that peers can read, or is larger than they take.
        Unencodable = "unencodable",
        /// The bus did not take it; its own metrics say why.
        Bus = "bus",
    }
}

label! {
    /// A question or an order that nodes send one another.
    "kind" Request {
        /// Which sockets are in these rooms, from old adapters.
        Sockets = "sockets",
        /// Which rooms there are.
        AllRooms = "all_rooms",
        /// Sockets join rooms.
        Join = "join",
        /// Sockets leave rooms.
        Leave = "leave",
        /// Sockets are disconnected.
        Disconnect = "disconnect",
        /// Which sockets there are, with all about them.
        Fetch = "fetch",
        /// An event for the nodes themselves.
        ServerSideEmit = "server_side_emit",
        /// An event that clients acknowledge.
        Broadcast = "broadcast",
    }
}

label! {
    /// Why a frame on a channel of requests or answers was passed over.
    "reason" Ignored {
        /// This node's own request, back from Redis.
        Own = "own",
        /// An answer to somebody else, or to a question that has been given up.
        Unasked = "unasked",
        /// More answers, or bytes of them, than may wait for one who asked.
        Overflow = "overflow",
        /// For another namespace than the channel's.
        OtherNamespace = "other_namespace",
        /// A request of a type that this version does not know.
        UnknownRequest = "unknown_request",
        /// Larger than a frame may be.
        TooLarge = "too_large",
        /// Nested deeper than arguments may be.
        TooDeep = "too_deep",
        /// More rooms than a frame may list.
        TooManyRooms = "too_many_rooms",
        /// More attachments than an event may have.
        TooManyAttachments = "too_many_attachments",
        /// Neither JSON nor MessagePack, or not what a peer sends.
        Malformed = "malformed",
    }
}

label! {
    /// Why a question to the peers failed, or an order did not reach them.
    "reason" RequestFailure {
        /// This node does not hear its peers at present, or Redis did not say how many there are.
        Down = "down",
        /// As many questions waiting for answers as may wait.
        TooMany = "too_many",
        /// It has no form that peers can read, or is larger than they take.
        Unencodable = "unencodable",
        /// The bus did not take it; its own metrics say why.
        Bus = "bus",
        /// Not every peer had answered when the time was over.
        Timeout = "timeout",
    }
}

subsystem! {
    /// The adapter's metrics.
    "antiphon_adapter_" AdapterMetrics {
        /// Broadcasts handed to the bus.
        broadcasts_sent_total: prometheus::IntCounter,
        /// Broadcasts delivered on this node only, although they were meant for all.
        broadcasts_unsent_total: Counters<Unsent>,
        /// Broadcasts that came from the bus.
        broadcasts_received_total: Counters<Received>,
        /// Sockets of this node that peers' broadcasts were for, each counted for each broadcast.
        recipients_total: prometheus::IntCounter,
        /// Time from when broadcasts of peers are taken from the bus, together, until they are written to all on this
        /// node who take them at once. What is not for this node is not in it.
        fanout_seconds: Seconds<Passing>,
        /// Requests of peers and emitters that were carried out, and answered where an answer is due.
        requests_received_total: Counters<Request>,
        /// Frames on the channels of requests and answers that were passed over.
        requests_ignored_total: Counters<Ignored>,
        /// Answers that peers wait for and do not get.
        answers_unsent_total: Counters<Unsent>,
        /// Requests handed to the bus.
        requests_sent_total: Counters<Request>,
        /// Requests of this node that failed.
        requests_failed_total: Counters<RequestFailure>,
        /// Requests of this node that wait for answers.
        requests_pending: prometheus::IntGauge,
        /// Peers' events whose acknowledgements are being passed on.
        ack_streams: prometheus::IntGauge,
        /// Peers' events that were delivered without passing acknowledgements on: too many at a time.
        ack_streams_refused_total: prometheus::IntCounter,
        /// Acknowledgements of peers' clients that did not come in time.
        acks_missing_total: prometheus::IntCounter,
        /// Other nodes in the cluster, as Redis counts them; 0 while it does not answer.
        peers: prometheus::IntGauge,
    }
}
