//! The chat server on socketioxide and `axum::serve`, as most would write it: nothing tuned but the
//! allocator. With `--redis` one node of a cluster.

use anyhow::{Context, Result};
use axum::Router;
use clap::Parser;
use mimalloc::MiMalloc;
use serde_json::Value;
use socketioxide::SocketIo;
use socketioxide::adapter::Adapter;
use socketioxide::extract::{Data, SocketRef};
use socketioxide::layer::SocketIoLayer;
use socketioxide_redis::{RedisAdapter, RedisAdapterCtr};
use tokio::net::TcpListener;
use tower_http::cors::CorsLayer;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The chat server on plain socketioxide.
#[derive(Parser)]
struct Args {
    /// Where it listens, on 127.0.0.1; 0 takes any free port
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// The Redis that connects it with other nodes: redis://host:6379
    #[arg(long)]
    redis: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    // Node.js and Bun do this by themselves; without, it ends at 1,024 clients on most systems.
    rlimit::increase_nofile_limit(u64::MAX).context("cannot raise the limit of descriptors")?;
    match args.redis {
        None => {
            let (layer, io) = SocketIo::new_layer();
            io.ns("/", on_connect);
            serve(layer, args.port).await
        }
        Some(url) => {
            // The adapter asks for RESP3, which the client speaks only if its URL says so.
            let client = redis::Client::open(format!("{url}?protocol=resp3"))?;
            let adapter = RedisAdapterCtr::new_with_redis(&client).await?;
            let (layer, io) =
                SocketIo::builder().with_adapter::<RedisAdapter<_>>(adapter).build_layer();
            io.ns("/", on_connect).await?;
            serve(layer, args.port).await
        }
    }
}

async fn on_connect<A: Adapter>(socket: SocketRef<A>) {
    socket.on("chat_message", async |io: SocketIo<A>, Data::<Value>(text)| {
        io.emit("chat_message", &text).await.ok();
    });
    socket.on("server_message", async |socket: SocketRef<A>, Data::<Value>(text)| {
        socket.emit("server_message", &text).ok();
    });
    socket.on("join", async |socket: SocketRef<A>, Data::<String>(room)| socket.join(room));
    socket.on("room_message", async |io: SocketIo<A>, Data::<(String, Value)>((room, text))| {
        io.to(room).emit("room_message", &text).await.ok();
    });
}

async fn serve<A: Adapter>(layer: SocketIoLayer<A>, port: u16) -> Result<()> {
    let app = Router::new().layer(layer).layer(CorsLayer::permissive());
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening {}", listener.local_addr()?.port());
    axum::serve(listener, app).await?;
    Ok(())
}
