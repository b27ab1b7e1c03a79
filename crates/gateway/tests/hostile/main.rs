//! P7: a client that floods, does not read or does not finish costs itself, and nobody else.
//!
//! Each test starts the real binary as a process of its own, so that its memory, its log and its
//! way to end are those of the node alone. One node runs at a time: tests measure memory and time.

mod attacker;
mod budget;
mod flood;
mod http;
mod ids;
mod messages;
mod newcomers;
mod node;
mod unread;

#[expect(dead_code, reason = "the tests of a node need more of it")]
#[path = "../node/client.rs"]
mod client;
#[expect(dead_code, reason = "the tests of a node need more of it")]
#[path = "../node/harness.rs"]
mod harness;
