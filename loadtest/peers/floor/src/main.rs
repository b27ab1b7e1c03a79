//! The floor: what it costs at least to hand a message to everyone, so that the figures of real servers
//! have something to stand on. One thread, one epoll loop, no runtime; a `chat_message` is encoded once,
//! appended to a batch, and each recipient gets the batch in one `write(2)`.
//!
//! It speaks just enough for the load test's clients: Engine.IO 4 over WebSocket, the namespace `/`,
//! that one event. It is no server for anything else: it does not parse JSON, does not know rooms or
//! acknowledgements, and takes no notice of clients that leave its pings unanswered.

mod client;
mod server;
mod websocket;

use anyhow::{Context, Result};
use clap::Parser;

/// The least that delivering a message to everyone can cost.
#[derive(Parser)]
struct Args {
    /// Where it listens, on 127.0.0.1; 0 takes any free port
    #[arg(long, default_value_t = 5000)]
    port: u16,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // Most systems give a process 1,024 until it asks.
    rlimit::increase_nofile_limit(u64::MAX).context("cannot raise the limit of descriptors")?;
    let address = (std::net::Ipv4Addr::LOCALHOST, args.port).into();
    let mut server =
        server::Server::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("listening {}", server.port()?);
    server.run()
}
