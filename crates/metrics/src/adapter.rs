//! What travels between nodes, as far as Socket.IO is concerned.

use crate::declare::{Counters, label, subsystem};

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

subsystem! {
    /// The adapter's metrics.
    "antiphon_adapter_" AdapterMetrics {
        /// Broadcasts handed to the bus.
        broadcasts_sent_total: prometheus::IntCounter,
        /// Broadcasts delivered on this node only, although they were meant for all.
        broadcasts_unsent_total: Counters<Unsent>,
        /// Broadcasts that came from the bus.
        broadcasts_received_total: Counters<Received>,
    }
}
