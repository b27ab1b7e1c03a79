//! The bus: one contract for Redis and memory, and what happens when Redis fails.
//!
//! Each test starts a redis-server of its own (Debian: `apt-get install redis-server`).

mod contract;
mod faults;
mod memory;
mod node;
mod proxy;
mod server;
mod wait;
