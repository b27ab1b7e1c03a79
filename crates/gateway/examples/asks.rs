//! A node that asks: the cluster as a program sees it, through socketioxide's own calls and the adapter's. The
//! tests of mixed clusters run it beside Node.js servers.
//!
//! ```text
//! cargo run --example asks -- --config FILE --set redis.url=redis://127.0.0.1:6379
//! ```
//!
//! A client of its namespace `/ask` emits `ask` with what it wants to know of, or done in, namespace `/`:
//! "rooms", "sockets", "join", "leave", "disconnect", "server_count" or "emit_with_ack", and [`Options`]. The
//! acknowledgement is `{"ok": …}` or `{"error": …}`.

use std::{fmt::Display, path::PathBuf, time::Duration};

use antiphon_adapter::{Audience, Member, Namespace, Target};
use antiphon_gateway::{
    Adapter, FanOut, Listeners, Node, Shutdown,
    config::{Config, environment},
    telemetry::Telemetry,
};
use anyhow::{Context, anyhow, bail};
use clap::Parser;
use futures_util::StreamExt;
use rmpv::{Value, ext::to_value};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeTuple};
use socketioxide::{
    SocketIo,
    extract::{AckSender, Data, SocketRef},
    operators::BroadcastOperators,
};
use socketioxide_core::adapter::Room;

/// As the node's own.
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
}

/// Whom, and what.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Options {
    rooms: Vec<String>,
    except: Vec<String>,
    /// The rooms to join or leave.
    into: Vec<String>,
    event: String,
    args: Vec<Value>,
    timeout_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let named = [("server.listen", args.listen), ("admin.listen", args.admin_listen)];
    let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let set = args.set.iter().map(|setting| {
        let (key, value) = setting.split_once('=').context("want KEY=VALUE")?;
        Ok((key.to_owned(), value.to_owned()))
    });
    let settings = set.collect::<anyhow::Result<Vec<_>>>()?.into_iter().chain(named);
    let settings: Vec<_> = settings.collect();
    let config = Config::load(args.config.as_deref(), environment(), &settings)?.config;
    let telemetry = Telemetry::start(&config)?;
    let listeners = Listeners::bind(&config).await?;
    let node = Node::new(config)?.with_telemetry(telemetry);
    let namespace = node.namespace("/").context("the node has no namespace \"/\"")?;
    let io = node.io().clone();
    // socketioxide knows the namespaces that have a handler.
    node.io().ns("/", async || {});
    node.io().ns("/ask", async move |socket: SocketRef<Adapter>| {
        socket.on(
            "ask",
            async move |Data((what, options)): Data<(String, Options)>, ack: AckSender<Adapter>| {
                let answer = match answer(&io, &namespace, &what, options).await {
                    Ok(value) => ("ok", value),
                    Err(error) => ("error", format!("{error:#}").into()),
                };
                // Whoever asked may have left.
                let _ = ack.send(&map([answer]));
            },
        );
    });
    node.serve(listeners, Shutdown::on_signals()?).await?;
    Ok(())
}

async fn answer(
    io: &SocketIo<Adapter>,
    namespace: &Namespace<FanOut>,
    what: &str,
    options: Options,
) -> anyhow::Result<Value> {
    let whom = whom(io, &options)?;
    Ok(match what {
        "rooms" => to_value(whom.rooms().await?)?,
        "sockets" => sockets(namespace, &options).await?,
        "join" => done(whom.join(options.into).await?),
        "leave" => done(whom.leave(options.into).await?),
        "disconnect" => done(whom.disconnect().await.map_err(text)?),
        "server_count" => to_value(namespace.server_count().await?)?,
        "emit_with_ack" => {
            let whom = whom.timeout(Duration::from_millis(options.timeout_ms));
            let arguments = Arguments(options.args);
            let acks = whom.emit_with_ack::<_, Value>(options.event, &arguments).await;
            let acks = acks.map_err(text)?;
            let acks: Vec<_> = acks.map(|(_, ack)| ack).collect().await;
            let acks = acks.into_iter().collect::<Result<_, _>>();
            Value::Array(acks.context("not everybody answered")?)
        }
        _ => bail!("nobody knows {what:?}"),
    })
}

/// socketioxide's errors are not `Sync`, as anyhow wants them.
fn text(error: impl Display) -> anyhow::Error {
    anyhow!("{error}")
}

fn done((): ()) -> Value {
    Value::Boolean(true)
}

/// With an empty list of rooms: everybody.
fn whom(io: &SocketIo<Adapter>, options: &Options) -> anyhow::Result<BroadcastOperators<Adapter>> {
    let all = io.of("/").context("there is no namespace \"/\"")?.broadcast();
    Ok(all.to(options.rooms.clone()).except(options.except.clone()))
}

/// With those of Node.js servers, whose ids socketioxide's own call has no type for.
async fn sockets(namespace: &Namespace<FanOut>, options: &Options) -> anyhow::Result<Value> {
    let rooms = |names: &[String]| names.iter().cloned().map(Room::Owned).collect::<Vec<_>>();
    let to = match rooms(&options.rooms) {
        none if none.is_empty() => Audience::Everyone,
        rooms => Audience::Rooms(rooms),
    };
    let target = Target { to, except: rooms(&options.except), ..Target::default() };
    let sockets = namespace.sockets(target).await?.into_iter();
    let listed = sockets.map(|Member { id, rooms }| {
        let rooms = rooms.iter().map(|room| Value::from(&**room)).collect();
        map([("id", id.into()), ("rooms", Value::Array(rooms))])
    });
    Ok(Value::Array(listed.collect()))
}

/// A map in rmpv's own type: binary would become a list of numbers in the variant of an enum.
fn map<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Map(fields.map(|(name, value)| (name.into(), value)).into())
}

/// Arguments of an event, each by itself: socketioxide takes a `Vec` for one argument, and a tuple for many.
struct Arguments(Vec<Value>);

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|argument| tuple.serialize_element(argument))?;
        tuple.end()
    }
}
