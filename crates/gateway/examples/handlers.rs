//! A node with an application in Rust: socketioxide's handlers in every namespace of the node.
//!
//! ```text
//! cargo run --example handlers -- --config FILE --set redis.url=redis://127.0.0.1:6379
//! ```
//!
//! A client joins the room "lobby" and gets a `welcome` with the id of its socket. It may emit:
//!
//! - `say` with a text: everyone in the lobby, on every node, gets `said` with `{from, text}`. The
//!   acknowledgement is the length of the text.
//! - `join` or `leave` with a room's name: the acknowledgement is the list of its rooms.
//! - `tell` with a room's name and a text: everyone else in that room gets `told`.
//!
//! With `--silent`, the handlers do nothing. Tests use this to show that a node with handlers
//! behaves like one without.

use std::path::PathBuf;

use antiphon_gateway::{
    Adapter, Listeners, Node, Shutdown, SocketId,
    config::{Config, environment},
    telemetry::Telemetry,
};
use anyhow::Context;
use clap::Parser;
use serde::Serialize;
use socketioxide::{extract::Data, socket::DisconnectReason};

type SocketRef = socketioxide::extract::SocketRef<Adapter>;
type AckSender = socketioxide::extract::AckSender<Adapter>;

const LOBBY: &str = "lobby";

/// The node's own arguments, and one for the handlers.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    listen: Option<String>,
    #[arg(long)]
    admin_listen: Option<String>,
    #[arg(long)]
    set: Vec<String>,
    /// Register handlers that do nothing
    #[arg(long)]
    silent: bool,
}

/// The argument of `said` and `told`.
#[derive(Debug, Serialize)]
struct Message<'a> {
    from: &'a str,
    text: &'a str,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let config = config(&args)?;
    let telemetry = Telemetry::start(&config)?;
    let listeners = Listeners::bind(&config).await?;
    let namespaces = config.namespaces.clone();
    let node = Node::new(config)?.with_telemetry(telemetry);
    for namespace in namespaces {
        if args.silent {
            node.io().ns(namespace, async || ());
        } else {
            node.io().ns(namespace, greet);
        }
    }
    node.serve(listeners, Shutdown::on_signals()?).await?;
    Ok(())
}

fn config(args: &Args) -> anyhow::Result<Config> {
    let named =
        [("server.listen", args.listen.clone()), ("admin.listen", args.admin_listen.clone())];
    let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let set = args.set.iter().map(|setting| {
        let (key, value) = setting.split_once('=').context("expected KEY=VALUE")?;
        Ok((key.to_owned(), value.to_owned()))
    });
    let settings = set.collect::<anyhow::Result<Vec<_>>>()?.into_iter().chain(named);
    let settings: Vec<_> = settings.collect();
    Ok(Config::load(args.config.as_deref(), environment(), &settings)?.config)
}

/// The id by which clients and other servers know the socket; `socket.id` is the engine's own.
fn public_id(socket: &SocketRef) -> &str {
    socket.req_parts().extensions.get::<SocketId>().map_or("", SocketId::as_str)
}

/// Runs for each client that connects. Listeners come first: the client learns that it is connected
/// when this function first waits, or returns.
async fn greet(socket: SocketRef) {
    socket.on("say", say);
    socket.on("join", join);
    socket.on("leave", leave);
    socket.on("tell", tell);
    socket.on_disconnect(log_disconnect);
    socket.join(LOBBY);
    tracing::info!(id = public_id(&socket), namespace = socket.ns(), "connected");
    // It fails if the client has left already.
    let _ = socket.emit("welcome", public_id(&socket));
}

async fn say(socket: SocketRef, Data(text): Data<String>, ack: AckSender) {
    let message = Message { from: public_id(&socket), text: &text };
    if let Err(error) = socket.within(LOBBY).emit("said", &message).await {
        tracing::warn!(%error, "cannot tell everyone in the lobby");
    }
    let _ = ack.send(&text.len());
}

async fn tell(socket: SocketRef, Data((room, text)): Data<(String, String)>) {
    let message = Message { from: public_id(&socket), text: &text };
    if let Err(error) = socket.to(room).emit("told", &message).await {
        tracing::warn!(%error, "cannot tell everyone in the room");
    }
}

async fn join(socket: SocketRef, Data(room): Data<String>, ack: AckSender) {
    socket.join(room);
    let _ = ack.send(&rooms(&socket));
}

async fn leave(socket: SocketRef, Data(room): Data<String>, ack: AckSender) {
    socket.leave(room);
    let _ = ack.send(&rooms(&socket));
}

/// Sorted, and as one argument: an array would become several.
fn rooms(socket: &SocketRef) -> (Vec<String>,) {
    let mut rooms: Vec<_> = socket.rooms().iter().map(ToString::to_string).collect();
    rooms.sort();
    (rooms,)
}

async fn log_disconnect(socket: SocketRef, reason: DisconnectReason) {
    tracing::info!(id = public_id(&socket), namespace = socket.ns(), %reason, "disconnected");
}
