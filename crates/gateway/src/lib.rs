//! A node: the server that Socket.IO clients connect to.
//!
//! What it does is configured rather than programmed: [`config`] has the settings and the table of
//! events. `run(config, listeners, shutdown)` is all of it; several nodes may run in one process.

mod admin;
mod cluster;
pub mod config;
mod dispatcher;
mod engine;
mod fanout;
mod handshake;
mod health;
mod healthcheck;
mod lifecycle;
mod log_throttle;
mod namespaces;
mod net;
mod node;
mod packet;
mod payload;
mod reply;
mod rules;
pub mod telemetry;
pub mod transport;

pub use antiphon_adapter::SocketId;
pub use cluster::ClusterError;
pub use engine::Adapter;
pub use fanout::FanOut;
pub use healthcheck::{Question, Unhealthy, healthcheck};
pub use lifecycle::{BindError, Listeners, ServeError, Shutdown};
pub use net::Remote;
pub use node::{BuildError, Node};

use config::Config;

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
