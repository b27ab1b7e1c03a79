//! The node's settings: typed, and valid once they exist.
//!
//! Four layers, each over the one before: `config/default.toml` (embedded in the binary; also the
//! manual), the file given with `--config`, `ANTIPHON__…` environment variables, and flags. They are
//! merged as text, then read key by key into [`Config`] in one step which reports every mistake
//! at once, with its key, where it came from and what would be right.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use ipnet::IpNet;

mod errors;
mod load;
mod read;
mod settings;
#[cfg(test)]
mod tests;

pub use errors::ConfigErrors;
pub use load::{Loaded, environment};

/// Everything a node can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this node is.
    pub node: Node,
    /// The public listener and what it takes from a connection.
    pub server: Server,
    /// Which proxies may say who the client is.
    pub proxy: Proxy,
    /// Which web pages may connect.
    pub cors: Cors,
    /// The life of one Socket.IO session.
    pub session: Session,
    /// The largest a client can make things.
    pub limits: Limits,
    /// The queue between accepting an event and delivering it.
    pub stage: Stage,
    /// How events get to many clients.
    pub fanout: FanOut,
    /// How a node leaves.
    pub drain: Drain,
    /// The listener for operators.
    pub admin: Admin,
    /// The way to other nodes; `None`: this node is by itself.
    pub redis: Option<Redis>,
    /// What is written to standard error.
    pub log: Log,
    /// Which events are traced, and where to.
    pub traces: Traces,
    /// The namespaces that clients may connect to; `/` is always one of them.
    pub namespaces: Vec<String>,
    /// What each event does.
    pub events: Vec<EventRule>,
}

/// `[node]`
#[derive(Debug, Clone)]
pub struct Node {
    /// Names the node in logs and to its peers.
    pub id: String,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The path of Socket.IO requests, without a trailing slash.
    pub path: String,
    /// Whether clients may use HTTP long-polling.
    pub polling: bool,
    /// Whether clients may use WebSocket.
    pub websocket: bool,
    /// Whether clients may speak Engine.IO 3.
    pub allow_eio3: bool,
    /// Handshakes the kernel keeps for us while the accept loop is busy.
    pub backlog: u32,
    /// Connections (and, counted apart, sessions) at a time, in all.
    pub max_connections: usize,
    /// The same from one client address (an IPv6 /64 counts as one address).
    pub max_connections_per_ip: usize,
    /// How long a request's head may take to arrive.
    pub request_head_timeout: Duration,
    /// How long the body of a polling POST may take to arrive.
    pub request_body_timeout: Duration,
    /// How long a connection may be idle between two requests.
    pub keep_alive_timeout: Duration,
}

/// `[proxy]`
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Peers whose forwarding header is believed.
    pub trusted: Vec<IpNet>,
    /// The header those peers set.
    pub header: ForwardingHeader,
}

/// The header in which a proxy names its client. One is chosen, never both: a proxy that sets one
/// passes the other through as the client wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardingHeader {
    /// `X-Forwarded-For: client, proxy1, proxy2`
    XForwardedFor,
    /// `Forwarded: for=client;proto=https, for=proxy1` (RFC 7239)
    Forwarded,
}

/// `[cors]`
#[derive(Debug, Clone)]
pub struct Cors {
    /// Which origins may connect.
    pub allowed_origins: AllowedOrigins,
    /// Whether browsers may send cookies along (needs a list of origins).
    pub credentials: bool,
}

/// The origins that web pages may connect from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Any (`["*"]`).
    Any,
    /// These, each `scheme://host[:port]` in lower case.
    List(Vec<String>),
}

/// `[session]`
#[derive(Debug, Clone)]
pub struct Session {
    /// Time between two pings.
    pub ping_interval: Duration,
    /// How long a client may take to answer one.
    pub ping_timeout: Duration,
    /// How long a client may take to connect to a namespace.
    pub connect_timeout: Duration,
    /// How long the upgrade from polling to WebSocket may take.
    pub upgrade_timeout: Duration,
    /// Bytes that may wait for one client before it is closed as too slow.
    pub send_queue_bytes: usize,
    /// How long a client may take nothing from a full socket before it is closed.
    pub write_stall_timeout: Duration,
    /// The name of a cookie with the session's id, for load balancers; `None`: there is none.
    pub cookie: Option<String>,
}

/// `[limits]`
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest message, with its attachments, on every transport.
    pub max_message_bytes: usize,
    /// Binary attachments of one message.
    pub max_attachments: usize,
    /// How long the attachments of a message may take to follow it.
    pub attachment_timeout: Duration,
    /// How deep the arguments of an event may nest.
    pub max_json_depth: usize,
    /// Rooms one socket may be in.
    pub max_rooms_per_socket: usize,
    /// The longest name of a room.
    pub max_room_name_bytes: usize,
    /// Bytes that the node may hold for clients and from them, all together.
    pub memory: usize,
    /// Sessions that have connected to no namespace yet.
    pub max_unconnected_sessions: usize,
    /// The same from one client address.
    pub max_unconnected_sessions_per_ip: usize,
}

/// `[stage]`
#[derive(Debug, Clone)]
pub struct Stage {
    /// Events accepted and not yet delivered; beyond it senders are refused (`overloaded`).
    pub max_events: usize,
    /// The same, in bytes of payload.
    pub max_bytes: usize,
}

/// `[fanout]`
#[derive(Debug, Clone)]
pub struct FanOut {
    /// Tasks among which a large fan-out is split.
    pub workers: usize,
    /// How long an event waits for others to go out with.
    pub window: Duration,
}

/// `[drain]`
#[derive(Debug, Clone)]
pub struct Drain {
    /// How long the node is unready before it closes sessions.
    pub delay: Duration,
    /// The time over which open sessions are closed.
    pub spread: Duration,
    /// When a drain ends whatever is left.
    pub deadline: Duration,
}

/// `[admin]`
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where operators ask; `None` turns the listener off.
    pub listen: Option<SocketAddr>,
    /// What `/metrics` wants as a bearer token; `None`: nothing.
    pub token: Option<Secret>,
}

/// `[redis]`
#[derive(Debug, Clone)]
pub struct Redis {
    /// `redis://`, `rediss://` or `unix://`; it may hold a password.
    pub url: Secret,
    /// Goes before the user in the URL.
    pub username: Option<String>,
    /// Goes before the password in the URL.
    pub password: Option<Secret>,
    /// What the channels' names begin with.
    pub prefix: String,
    /// Whether RESP3 is spoken, instead of RESP2.
    pub resp3: bool,
    /// Certificates of the authorities to trust, instead of the system's: a PEM file.
    pub tls_ca: Option<PathBuf>,
    /// This node's certificate: a PEM file.
    pub tls_certificate: Option<PathBuf>,
    /// The key that belongs to it: a PEM file.
    pub tls_key: Option<PathBuf>,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// Time between two messages to itself, by which a node knows that it hears its peers.
    pub probe_interval: Duration,
    /// How long one may take.
    pub probe_timeout: Duration,
    /// Broadcasts that may wait to be published.
    pub publish_queue_messages: usize,
    /// The same in bytes.
    pub publish_queue_bytes: usize,
    /// Broadcasts that may wait to be delivered.
    pub receive_queue_messages: usize,
    /// The same in bytes.
    pub receive_queue_bytes: usize,
    /// How long answers of peers are waited for.
    pub request_timeout: Duration,
    /// Whether answers go to the node that asked alone.
    pub answer_on_own_channel: bool,
    /// Whether a node that has lost Redis is still ready.
    pub degraded_is_ready: bool,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// Which lines: a level, or `tracing` directives such as `info,antiphon_gateway=debug`.
    pub filter: String,
    /// How they look.
    pub format: LogFormat,
}

/// `[traces]`
#[derive(Debug, Clone)]
pub struct Traces {
    /// Where an OpenTelemetry collector takes them (OTLP over HTTP); `None`: there are none.
    pub endpoint: Option<String>,
    /// The share of events that are traced, from 0 to 1.
    pub sample_ratio: f64,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself, for the one place that compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// One `[[event]]`: what happens when a client sends it.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRule {
    /// The event's name.
    pub name: String,
    /// The namespace in which it is sent.
    pub namespace: String,
    /// What it does.
    pub action: Action,
    /// Whether a recipient that is behind may miss it.
    pub volatile: bool,
    /// The largest payload (text and attachments); `None`: `limits.max_message_bytes` alone.
    pub max_bytes: Option<usize>,
    /// How often one connection may send it.
    pub rate: Option<Rate>,
}

/// What an event does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To every socket of the namespace, on every node.
    Broadcast {
        /// With or without the sender.
        to: Audience,
    },
    /// Back to its sender.
    Echo {
        /// Under this name instead of its own.
        rename: Option<String>,
    },
    /// To the members of the room named by the first argument; they get the other arguments.
    Room {
        /// With or without the sender.
        to: Audience,
        /// Whether the sender must be a member itself.
        require_joined: bool,
    },
    /// The sender joins the room named by the first argument.
    Join,
    /// The sender leaves the room named by the first argument.
    Leave,
}

/// Who of those addressed gets an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// All, the sender included.
    All,
    /// All but the sender.
    Others,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back in a second.
    pub per_second: NonZeroU32,
    /// Tokens it holds.
    pub burst: NonZeroU32,
}
