//! What the public protocol test suites expect of a server:
//! the `test-suite` folders of socketio/socket.io-protocol and socketio/engine.io-protocol.
//!
//! ```text
//! cargo run --release --example conformance
//! cargo run --release --example conformance -- --listen 127.0.0.1:0 --set log.filter=debug
//! ```
//!
//! It listens on port 3000, where the suites look for it, unless told otherwise, and prints its
//! address. The tests in `tests/interop` (`protocol-*.test.mjs`) check the same clauses with it.
//!
//! Listener, request checks, engine settings and adapter are the node's own. The handlers are written
//! here, because the suite wants acknowledgements with the arguments of the event, which no rule
//! gives. The Engine.IO suite wants a bare engine that echoes, at `/engine.io/`: it tests the engine
//! under the node, behind the node's listener alone.

use std::sync::Arc;

use antiphon_gateway::{Adapter, Listeners, Node, Shutdown, config::Config, telemetry::Telemetry};
use anyhow::Context;
use axum::Router;
use bytes::Bytes;
use clap::Parser;
use engineioxide::{
    DisconnectReason, Socket, Str, config::EngineIoConfig, handler::EngineIoHandler,
    service::EngineIoService,
};
use rmpv::Value;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
    ser::SerializeTuple,
};
use socketioxide::extract::{AckSender, Data, SocketRef, TryData};

const SETTINGS: [(&str, &str); 7] = [
    ("server.listen", "127.0.0.1:3000"),
    ("admin.listen", ""),
    ("session.ping_interval", "300ms"),
    ("session.ping_timeout", "200ms"),
    ("session.connect_timeout", "1s"),
    ("limits.max_message_bytes", "1000000"),
    ("namespaces", "/,/custom"),
];

/// As the node's own.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    listen: Option<String>,
    #[arg(long)]
    set: Vec<String>,
}

impl Args {
    /// The settings of the suites, and over them those of the command line.
    fn settings(self) -> anyhow::Result<Vec<(String, String)>> {
        let mut settings: Vec<_> =
            SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        for setting in &self.set {
            let (key, value) = setting.split_once('=').context("want KEY=VALUE")?;
            settings.push((key.to_owned(), value.to_owned()));
        }
        settings.extend(self.listen.map(|address| ("server.listen".to_owned(), address)));
        Ok(settings)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Args::parse().settings()?;
    let config = Config::load(None, std::iter::empty(), &settings)?.config;
    Telemetry::start(&config)?;
    let listeners = Listeners::bind(&config).await?;
    println!("http://{}", listeners.public.local_addr()?);
    let routes = Router::new().fallback_service(echo_engine(&config));
    let node = Node::with_routes(config, routes)?;
    for namespace in ["/", "/custom"] {
        node.io().ns(namespace, greet);
    }
    node.serve(listeners, Shutdown::on_signals()?).await?;
    Ok(())
}

async fn greet(socket: SocketRef<Adapter>, TryData(auth): TryData<Value>) {
    let auth = auth.unwrap_or_else(|_| Value::Map(Vec::new()));
    // Whether it is still there to be greeted makes no difference here, nor below.
    let _ = socket.emit("auth", &auth);
    socket.on("message", async |socket: SocketRef<Adapter>, Data(arguments): Data<Arguments>| {
        let _ = socket.emit("message-back", &arguments);
    });
    socket.on(
        "message-with-ack",
        async |Data(arguments): Data<Arguments>, ack: AckSender<Adapter>| {
            let _ = ack.send(&arguments);
        },
    );
}

/// All arguments of an event. socketioxide takes a `Vec` for the first argument alone, and a tuple for
/// as many as it has; this is a tuple of any length.
struct Arguments(Vec<Value>);

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Arguments;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("arguments")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Arguments, A::Error> {
                let mut arguments = Vec::new();
                while let Some(argument) = seq.next_element()? {
                    arguments.push(argument);
                }
                Ok(Arguments(arguments))
            }
        }

        deserializer.deserialize_tuple(1, Each)
    }
}

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for argument in &self.0 {
            tuple.serialize_element(argument)?;
        }
        tuple.end()
    }
}

/// An engine that sends back every message.
fn echo_engine(config: &Config) -> EngineIoService<Echo> {
    let config = EngineIoConfig::builder()
        .req_path("/engine.io")
        .ping_interval(config.session.ping_interval)
        .ping_timeout(config.session.ping_timeout)
        .max_payload(config.limits.max_message_bytes as u64)
        .build();
    EngineIoService::with_config(Arc::new(Echo), config)
}

#[derive(Debug)]
struct Echo;

impl EngineIoHandler for Echo {
    type Data = ();

    fn on_connect(self: Arc<Self>, _: Arc<Socket<()>>) {}

    fn on_disconnect(&self, _: Arc<Socket<()>>, _: DisconnectReason) {}

    fn on_message(self: &Arc<Self>, message: Str, socket: Arc<Socket<()>>) {
        let _ = socket.emit(message);
    }

    fn on_binary(self: &Arc<Self>, bytes: Bytes, socket: Arc<Socket<()>>) {
        let _ = socket.emit_binary(bytes);
    }
}
