//! A node: the server that Socket.IO clients connect to.
//!
//! What it does is configured rather than programmed: [`config`] has the settings and the table of
//! events. `run(config, listeners, shutdown)` is all of it; several nodes may run in one process.

mod admin;
mod cluster;
pub mod config;
mod door;
mod eio3;
mod events;
mod fanout;
mod handshake;
mod health;
mod healthcheck;
mod introduction;
mod lifecycle;
mod net;
mod payload;
mod reply;
mod server;
mod sessions;
mod stage;
pub mod telemetry;

pub use cluster::ClusterError;
pub use events::Adapter;
pub use healthcheck::{Question, Unhealthy, healthcheck};
pub use lifecycle::{BindError, Listeners, ServeError, Shutdown};
pub use server::{BuildError, Node};

use config::Config;

/// Plays a script on a connection's lane: for `fuzz/`, which sees nothing that is private.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn play_lane(script: &[u8]) {
    net::play_lane(script);
}

/// Why a node ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be put together.
    #[error("cannot start")]
    Build(#[from] BuildError),
    /// It could not go on.
    #[error("cannot go on serving")]
    Serve(#[from] ServeError),
}

/// Runs a node on `listeners` until `shutdown`.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<(), RunError> {
    let node = Node::new(config)?;
    node.serve(listeners, shutdown).await?;
    Ok(())
}
