//! What the publisher and the subscriber are in Rust: a node of Antiphon, or socketioxide with the
//! adapter of socketioxide-redis. `peer.mjs` is the same in Node.js.
//!
//! Publisher and subscriber are the same program. Both let clients into "/", where events are broadcast,
//! and into [`CONTROL`], where the driver asks for them.

use std::pin::pin;

use antiphon_gateway::{Listeners, Node, Shutdown, config::Config, telemetry::Telemetry};
use anyhow::{Context, Result};
use axum::serve::ListenerExt;
use futures_util::{StreamExt, stream};
use socketioxide::SocketIo;
use socketioxide::adapter::Adapter;
use socketioxide::extract::{Data, SocketRef};
use socketioxide_core::adapter::DefinedAdapter;
use socketioxide_redis::{RedisAdapter, RedisAdapterConfig, RedisAdapterCtr};
use tokio::sync::mpsc;
use tokio::task::unconstrained;

use crate::Peer;
use crate::servers::{FIRST_NUMBER, PING_INTERVAL, Role};

/// The namespace in which the driver asks: events in "/" must not reach it.
pub(crate) const CONTROL: &str = "/control";

/// An event's arguments as JSON, its name included.
pub(crate) const EVENT_BYTES: usize = 128;

/// What fills an event up: `["event",` and a number of 8 and a time of 16 digits go before it.
const PADDING: &str = "................................................................\
                       ..........................";

/// Broadcasts of socketioxide-redis that the publisher awaits at a time. It waits for Redis in each of them,
/// so that one at a time would measure the round trip; beyond the 50 that the redis crate queues, they would
/// overtake each other.
const BROADCASTS_IN_FLIGHT: usize = 48;

/// Questions of the driver that may wait.
const QUESTIONS_MAX: usize = 1000;

/// Events that the driver asks for.
struct Go {
    count: u64,
    stamp_us: u64,
}

/// Serves until the process is ended.
pub(crate) fn serve(role: &Role) -> Result<()> {
    // As `#[tokio::main]` has it, and so Antiphon.
    tokio::runtime::Runtime::new()?.block_on(async {
        match role.peer {
            Peer::Antiphon => antiphon(role).await,
            Peer::SocketioxideRedis => socketioxide_redis(role).await,
            Peer::Node => anyhow::bail!("Node.js has a program of its own"),
        }
    })
}

async fn antiphon(role: &Role) -> Result<()> {
    let (listen, window) = (role.listen.to_string(), role.window);
    let ping_interval = format!("{}s", PING_INTERVAL.as_secs());
    // Beyond them, a client is closed or events are dropped. The default of each is enough for most windows.
    let waiting = |at_least: usize| at_least.max(window).to_string();
    let waiting_bytes = |at_least: usize| at_least.max(window * 4 * EVENT_BYTES).to_string();
    let settings = [
        ("server.listen", listen),
        ("admin.listen", String::new()),
        ("log.filter", "warn".to_owned()),
        ("session.ping_interval", ping_interval),
        ("session.send_queue_bytes", waiting_bytes(4 << 20)),
        ("redis.url", format!("redis://{}", role.redis)),
        ("redis.publish_queue_messages", waiting(65_536)),
        ("redis.publish_queue_bytes", waiting_bytes(32 << 20)),
        ("redis.receive_queue_messages", waiting(131_072)),
        ("redis.receive_queue_bytes", waiting_bytes(64 << 20)),
    ];
    let settings = settings.map(|(key, value)| (key.to_owned(), value));
    let config = Config::load(None, std::iter::empty(), &settings)?.config;
    Telemetry::start(&config)?;
    let listeners = Listeners::bind(&config).await?;
    let node = Node::new(config)?;
    // socketioxide knows the namespaces that have a handler.
    node.io().ns("/", async || {});
    // Its broadcasts wait for nothing.
    control(node.io(), 1);
    node.serve(listeners, Shutdown::on_signals()?).await?;
    Ok(())
}

async fn socketioxide_redis(role: &Role) -> Result<()> {
    let client = redis::Client::open(format!("redis://{}?protocol=resp3", role.redis))?;
    let mut config = RedisAdapterConfig::new();
    // Beyond it, events that arrive are dropped.
    config.stream_buffer = config.stream_buffer.max(role.window);
    let adapter = RedisAdapterCtr::new_with_redis_config(&client, config).await?;
    let (layer, io) = SocketIo::builder()
        .ping_interval(PING_INTERVAL)
        // Beyond it, events for a client are dropped.
        .max_buffer_size(role.window.max(1024))
        .with_adapter::<RedisAdapter<_>>(adapter)
        .build_layer();
    io.ns("/", async |_: SocketRef<RedisAdapter<_>>| {}).await.context("namespace /")?;
    control(&io, BROADCASTS_IN_FLIGHT).await.context("namespace of control")?;
    let listener = tokio::net::TcpListener::bind(role.listen).await?;
    // The other peers have it by themselves, and without it the client's delayed acknowledgements are measured.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    axum::serve(listener, axum::Router::new().layer(layer)).await?;
    Ok(())
}

/// Lets the driver ask for events. One task numbers and broadcasts them: handlers' futures run on tasks of
/// their own, in any order.
fn control<A: Adapter + DefinedAdapter>(io: &SocketIo<A>, in_flight: usize) -> A::InitRes {
    let (ask, asked) = mpsc::channel(QUESTIONS_MAX);
    tokio::spawn(broadcast(io.clone(), in_flight, asked));
    io.ns(CONTROL, async move |socket: SocketRef<A>| {
        socket.on("go", async move |Data((count, stamp_us)): Data<(u64, u64)>| {
            if ask.send(Go { count, stamp_us }).await.is_err() {
                eprintln!("nobody broadcasts");
            }
        });
    })
}

async fn broadcast<A: Adapter>(io: SocketIo<A>, in_flight: usize, mut asked: mpsc::Receiver<Go>) {
    let events = stream::poll_fn(|context| asked.poll_recv(context))
        .flat_map(|go| stream::iter((0..go.count).map(move |_| go.stamp_us)))
        .zip(stream::iter(FIRST_NUMBER..));
    let broadcasts = events.map(|(stamp_us, number)| {
        let io = &io;
        // Outside tokio's cooperative budget, where one that is put off is overtaken by the next.
        unconstrained(async move { io.emit("event", &(number, stamp_us, PADDING)).await })
    });
    let outcomes = match in_flight {
        1 => broadcasts.then(|broadcast| broadcast).left_stream(),
        _ => broadcasts.buffered(in_flight).right_stream(),
    };
    let mut outcomes = pin!(outcomes);
    while let Some(outcome) = outcomes.next().await {
        if let Err(error) = outcome {
            eprintln!("a broadcast failed: {error}");
        }
    }
}
