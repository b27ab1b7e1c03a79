//! Who gets a broadcast, and how it reaches them.
//!
//! socketioxide asks an adapter for everything that concerns more than one socket. This one keeps
//! to the promise that an accepted event reaches every connected recipient, *or* that recipient is
//! closed for a reason that is counted: socketioxide's own broadcast puts a packet into each
//! recipient's bounded queue and, where a queue is full, reports an error without saying whose. The
//! packet is gone and the client stays connected. Here every recipient is served by itself, so that
//! a full queue has a name, and so that what waits
//! for each is bounded in bytes as well ([`Recipients`]).
//!
//! # How it works
//!
//! One [`ClusterAdapter`] exists for each namespace; socketioxide makes them. [`Cluster`] is what
//! they share, and where the gateway finds them by path, to hand over packets whose arguments are
//! still the JSON text that came in: socketioxide's own `emit` would print them anew.
//!
//! A broadcast is delivered in the order in which it is asked for, by the task that asks. It yields
//! every few hundred recipients, sooner for large packets, so that the tasks which write to the recipients' sockets
//! get their turn and queues stay short while the processor is the bottleneck.
//!
//! # Between nodes
//!
//! Nodes and Node.js servers with `@socket.io/redis-adapter` share one Redis: [`bus`] moves bytes through
//! its pub/sub channels, [`wire`] is what the bytes mean. A broadcast is published and delivered here; a bus
//! that is down never keeps it from this node's own sockets ([`Published`]). Delivery between nodes is
//! at most once.
//!
//! What nodes ask of one another (who is in a room; join these sockets; an event that clients acknowledge) is
//! published to all: every node that hears it must answer, and who asked waits until all that Redis counts
//! have, or a few seconds are over. Peers' questions are answered as Node answers them; this node asks through
//! socketioxide's own calls, and [`Namespace`].

mod acks;
mod adapter;
mod answers;
pub mod bus;
mod cluster;
mod complaints;
mod delivery;
mod peers;
mod trace;
pub mod wire;

pub use acks::AckStream;
pub use adapter::{ClusterAdapter, Member, Namespace, Soon};
pub use cluster::{Cluster, Inbound, Published, subscriptions};
pub use delivery::{Admission, Batch, Delivered, Parcel, QueueError, Queues, Recipients};
pub use peers::{PeerSettings, RequestError};
