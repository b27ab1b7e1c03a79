//! Many nodes in one process, on the bus in memory: what they ask of each other, and what becomes of it when a
//! peer is silent, deaf, gone, or writes nonsense. Time is paused.

mod acks;
mod faults;
mod node;
mod requests;
mod sockets;
mod trace;
