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
//! Listener, transport, namespaces and adapter are the node's own. The handlers are written here, because
//! the suite wants acknowledgements with the arguments of the event, which no rule gives. The Engine.IO
//! suite wants an echo, at `/engine.io/`: it tests the node's transport with nothing on top of it.

use std::{convert::Infallible, sync::Arc};

use antiphon_gateway::{
    Adapter, Listeners, Node, Remote, Shutdown,
    config::Config,
    telemetry::Telemetry,
    transport::{
        Budget, FrameBatchBuilder, Handler, Handshake, Message, Session, Settings, Transport,
    },
};
use antiphon_metrics::{GatewayMetrics, Registry, gateway::CloseReason};
use anyhow::Context;
use axum::{Router, body::Body};
use clap::Parser;
use http::{Request, StatusCode};
use rmpv::Value;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
    ser::SerializeTuple,
};
use socketioxide::extract::{AckSender, Data, SocketRef, TryData};
use tokio_util::task::TaskTracker;

const SETTINGS: [(&str, &str); 8] = [
    ("server.listen", "127.0.0.1:3000"),
    ("admin.listen", ""),
    // The suites are of revision 4 alone.
    ("server.allow_eio3", "false"),
    ("session.ping_interval", "300ms"),
    ("session.ping_timeout", "200ms"),
    ("session.connect_timeout", "1500ms"),
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
    let telemetry = Telemetry::start(&config)?;
    let listeners = Listeners::bind(&config).await?;
    println!("http://{}", listeners.public.local_addr()?);
    let routes = echo(&config)?;
    let node = Node::with_routes(config, routes)?.with_telemetry(telemetry);
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

/// A transport that sends back every message.
fn echo(config: &Config) -> anyhow::Result<Router> {
    let metrics = Arc::new(GatewayMetrics::register(&Registry::new())?);
    let budget = Budget::new(config.limits.memory, metrics.memory_bytes.clone());
    let echo = Echo(Arc::clone(&budget));
    let transport =
        Transport::new(Settings::new(config), budget, metrics, TaskTracker::new(), echo);
    tokio::spawn(Arc::clone(&transport).run());
    let service = tower::service_fn(move |request: Request<Body>| {
        let transport = Arc::clone(&transport);
        async move {
            let remote = request.extensions().get::<Remote>().cloned();
            Ok::<_, Infallible>(match remote {
                Some(remote) => transport.handle(request, &remote).await,
                None => {
                    let mut response = axum::response::Response::default();
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    response
                }
            })
        }
    });
    Ok(Router::new().nest_service("/engine.io", service))
}

struct Echo(Arc<Budget>);

impl Handler for Echo {
    type State = ();

    fn open(&self, _: &Handshake<'_>) {}

    fn opened(&self, session: &Arc<Session<Self>>) {
        session.establish();
    }

    fn message(&self, session: &Arc<Session<Self>>, message: Message) {
        let mut frames = FrameBatchBuilder::default();
        match message {
            Message::Text(text) => frames.message(&[&text]),
            Message::Binary(bytes) => frames.binary(&bytes),
        }
        session.send_one(&frames.build(1, false, &self.0));
    }

    fn alarm(&self, _: &Arc<Session<Self>>) {}

    fn closed(&self, _: &Arc<Session<Self>>, _: CloseReason) {}
}
