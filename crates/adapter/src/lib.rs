//! One node's part in the cluster: the sockets and rooms of its namespaces, who gets a broadcast,
//! and what nodes tell each other.
//!
//! # How it works
//!
//! A [`Cluster`] has a [`Namespace`] for each path. A namespace has a register of its sockets and
//! rooms on this node. A packet goes to a [`Target`]: the register yields the connections of the
//! recipients, and the gateway writes to them ([`DeliverySink`]). [`Batch`] makes one batch of
//! neighbours with the same target. The adapter counts no deliveries: only the sink knows what
//! became of them.
//!
//! A packet keeps its arguments as the JSON text that came in. It is delivered in the order in
//! which it is asked for, by the task that asks.
//!
//! # Between nodes
//!
//! Nodes and Node.js servers with `@socket.io/redis-adapter` share one Redis: [`bus`] moves bytes
//! through its pub/sub channels, [`wire`] is what the bytes mean. A broadcast is published and
//! delivered here. A bus that is down never keeps it from this node's own sockets ([`Published`]).
//! Delivery between nodes is at most once.
//!
//! Requests (who is in a room; join these sockets; an event that clients acknowledge) are published
//! to all nodes. Every node that hears a request must respond; the requester waits until all that
//! Redis counts have responded, or for a few seconds. [`Inbound`] is what arrives.
//!
//! # Rust handlers
//!
//! [`ClusterAdapter`] is socketioxide's adapter on top of a namespace. Handlers join and leave
//! rooms without telling the adapter, in a table of socketioxide's. So the rooms of a socket that
//! has a session at the engine are kept there and only there, those of all others in the register.
//! Each target looks into both.

mod acks;
mod adapter;
mod batcher;
pub mod bus;
mod inbound;
mod log_throttle;
mod namespace;
mod register;
mod registry;
mod remote;
mod requests;
mod sink;
mod socket_id;
mod target;
mod trace;
pub mod wire;

pub use acks::{AckStream, AckTimeoutError, Acknowledgement, FIRST_ACK_ID};
pub use adapter::{ClusterAdapter, HandlerAcks};
pub use batcher::Batch;
pub use inbound::Inbound;
pub use namespace::{ExpectedEngine, JoinResult, Member, Namespace, Published};
pub use registry::{Cluster, subscriptions};
pub use remote::{ClusterSettings, RequestError};
pub use sink::{DeliverySink, PacketBatch, Soon};
pub use socket_id::{SocketId, SocketIdError};
pub use target::{Audience, Target};
