//! A node: the server that Socket.IO clients connect to.
//!
//! What it does is configured rather than programmed: [`config`] has the settings and the table of
//! events. [`run`] is all of it; several nodes may run in one process.
//!
//! # How it works
//!
//! ```text
//! net ─▶ transport ─▶ namespaces ─▶ rules ─▶ dispatcher ─▶ Batch ─▶ fanout ─▶ transport::outbound
//!                                     └────▶ engine          └────▶ bus
//! ```
//!
//! - [`transport`] owns a client's connection from the first byte to the last. It speaks Engine.IO
//!   and knows nothing of Socket.IO.
//! - `namespaces` parses packets. Events with a rule go through the one dispatcher, which keeps
//!   their order, to the adapter. The adapter publishes them and knows their recipients.
//! - `engine` runs the handlers of a Rust application. Only there socketioxide is at work.
//!
//! # An application in Rust
//!
//! A program may register socketioxide's handlers before it serves a node. An event with a rule
//! follows the rule; other events go to the handlers of their namespace. `examples/handlers.rs` is
//! a whole program.
//!
//! ```no_run
//! use antiphon_gateway::{Adapter, Listeners, Node, Shutdown, SocketId, config::Config};
//! use socketioxide::extract::SocketRef;
//!
//! # async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
//! let listeners = Listeners::bind(&config).await?;
//! let node = Node::new(config)?;
//! node.io().ns("/", async |socket: SocketRef<Adapter>| {
//!     // By this id, clients and other servers know the socket. `socket.id` is the engine's own.
//!     let id = socket.req_parts().extensions.get::<SocketId>().map(SocketId::to_string);
//!     socket.join("lobby");
//!     let _ = socket.emit("welcome", &id);
//! });
//! node.serve(listeners, Shutdown::on_signals()?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! - Handlers run on threads of their own and start in the order of the client's events.
//!   `tokio::task::block_in_place` panics there.
//! - [`Node::io`] knows only namespaces with a handler. [`Node::namespace`] knows all.

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

/// Plays a script for what goes out to clients: for `fuzz/`, which sees nothing that is private.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn play_outbound(script: &[u8]) {
    transport::play_outbound(script);
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
