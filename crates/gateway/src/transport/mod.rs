//! Engine.IO, both revisions, over HTTP long-polling and WebSocket, server side: the one owner of a client's
//! connection from its first byte to its last. Nothing in here knows Socket.IO: an application is a [`Handler`].
//!
//! A [`Session`] is one client, whatever connections it uses. It begins with a handshake (`http.rs`), is
//! carried by requests (`polling.rs`) or by a WebSocket (`websocket.rs`), may go over from the first to the
//! second, and ends once, for one [`CloseReason`]. What goes out goes through its `Outbound`, and through
//! nothing else.
//!
//! Promises:
//!
//! - Messages reach the handler in the order sent, one at a time for each session.
//! - Batches reach the client in the order in which they were sent, or the session is closed for a reason.
//! - A client that does not read is not read from; what waits for it is bounded.
//! - [`Handler::closed`] is called once for each session that was opened.
//!
//! Specifications: <https://github.com/socketio/engine.io-protocol> (revision 4, and its branch for 3), RFC 6455.

mod batch;
pub mod frame;
mod http;
mod memory;
mod origin;
mod outbound;
pub mod packet;
mod page;
pub mod payload;
mod polling;
mod queue;
mod session;
mod sid;
mod websocket;
mod wheel;

use std::sync::atomic::{AtomicBool, Ordering};
use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::{HeaderMap, Uri};
use antiphon_metrics::{GatewayMetrics, gateway::CloseReason};
use serde::Serialize;
use tokio_util::task::TaskTracker;

pub use antiphon_metrics::gateway::Protocol;
pub use batch::{FrameBatch, FrameBatchBuilder};
pub use memory::{Budget, Held};
pub use origin::Origins;
#[cfg(fuzzing)]
pub(crate) use outbound::play as play_outbound;
pub use outbound::{Ending, Sent};
pub use packet::Message;
pub use session::Session;

use crate::{
    config::{Config, Proxy},
    log_throttle::LogThrottle,
    net::Admission,
};
use session::Table;
use wheel::{TICK, Wheel};

/// What sessions are for.
pub trait Handler: Send + Sync + Sized + 'static {
    /// What it keeps with each session.
    type State: Send + Sync + 'static;

    /// A client introduces itself; the session will have this state.
    fn open(&self, handshake: &Handshake<'_>) -> Self::State;

    /// The session is open, and the client has been told so.
    fn opened(&self, session: &Arc<Session<Self>>);

    /// The client has sent a message.
    fn message(&self, session: &Arc<Session<Self>>, message: Message);

    /// A time that was set with [`Session::set_alarm`] is over.
    fn alarm(&self, session: &Arc<Session<Self>>);

    /// The session ends. Nothing more is accepted from the client or for it.
    fn closed(&self, session: &Arc<Session<Self>>, reason: CloseReason);
}

/// How a client introduces itself.
#[derive(Debug)]
pub struct Handshake<'a> {
    /// Where it is, proxies left out.
    pub address: IpAddr,
    /// The revision that it speaks.
    pub protocol: Protocol,
    /// What it asked for.
    pub uri: &'a Uri,
    /// The request's header.
    pub headers: &'a HeaderMap,
}

/// What a transport is told.
#[derive(Debug, Clone)]
pub struct Settings {
    polling: bool,
    websocket: bool,
    allow_eio3: bool,
    ping_interval: Duration,
    ping_timeout: Duration,
    upgrade_timeout: Duration,
    body_timeout: Duration,
    write_stall_timeout: Duration,
    send_queue_bytes: usize,
    max_message_bytes: usize,
    max_sessions: usize,
    max_sessions_per_ip: usize,
    max_unconnected_sessions: usize,
    max_unconnected_sessions_per_ip: usize,
    cookie: Option<String>,
    origins: Origins,
    proxy: Proxy,
}

impl Settings {
    /// The settings of a node.
    pub fn new(config: &Config) -> Self {
        let Config { server, session, limits, cors, proxy, .. } = config;
        Self {
            polling: server.polling,
            websocket: server.websocket,
            allow_eio3: server.allow_eio3,
            ping_interval: session.ping_interval,
            ping_timeout: session.ping_timeout,
            upgrade_timeout: session.upgrade_timeout,
            body_timeout: server.request_body_timeout,
            write_stall_timeout: session.write_stall_timeout,
            send_queue_bytes: session.send_queue_bytes,
            max_message_bytes: limits.max_message_bytes,
            max_sessions: server.max_connections,
            max_sessions_per_ip: server.max_connections_per_ip,
            max_unconnected_sessions: limits.max_unconnected_sessions,
            max_unconnected_sessions_per_ip: limits.max_unconnected_sessions_per_ip,
            cookie: session.cookie.clone(),
            origins: Origins::new(&cors.allowed_origins),
            proxy: proxy.clone(),
        }
    }
}

/// The transport's own packets, encoded once.
#[derive(Debug)]
struct Packets {
    ping: FrameBatch,
    pong: FrameBatch,
}

/// All sessions, and what they share.
pub struct Transport<H: Handler> {
    settings: Settings,
    handler: H,
    metrics: Arc<GatewayMetrics>,
    budget: Arc<Budget>,
    admission: Arc<Admission>,
    table: Table<H>,
    wheel: Wheel,
    packets: Packets,
    accepting: AtomicBool,
    tasks: TaskTracker,
    unknown_sessions: LogThrottle,
    refused_origins: LogThrottle,
    closed_for_memory: LogThrottle,
}

impl<H: Handler> fmt::Debug for Transport<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<H: Handler> Transport<H> {
    /// A transport for `handler`. [`Transport::run`] must run beside it. Each connection is a task of
    /// `tasks`.
    pub fn new(
        settings: Settings,
        budget: Arc<Budget>,
        metrics: Arc<GatewayMetrics>,
        tasks: TaskTracker,
        handler: H,
    ) -> Arc<Self> {
        let packet = |text: &str| {
            let mut builder = FrameBatchBuilder::default();
            builder.packet(text);
            builder.build_forever()
        };
        let packets = Packets { ping: packet("2"), pong: packet("3") };
        Arc::new(Self {
            handler,
            metrics,
            budget,
            admission: Admission::new(settings.max_sessions, settings.max_sessions_per_ip),
            settings,
            table: Table::new(),
            wheel: Wheel::new(),
            packets,
            accepting: AtomicBool::new(true),
            tasks,
            unknown_sessions: LogThrottle::default(),
            refused_origins: LogThrottle::default(),
            closed_for_memory: LogThrottle::default(),
        })
    }

    /// What the sessions are for.
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// The node's memory budget.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Looks after deadlines and the memory budget, for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.budget.spent() => {
                    self.keep_budget();
                    // Whoever was closed lets go of what is held in a task of its own.
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            let now = Instant::now();
            for (looked_at, (id, alarm)) in self.wheel.due().into_iter().enumerate() {
                if let Some(session) = self.table.find(id) {
                    session.look(alarm, now);
                }
                if looked_at % 256 == 255 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Closes the largest holders if the budget is spent.
    fn keep_budget(&self) {
        if !self.budget.is_spent() {
            return;
        }
        let mut holders: Vec<_> =
            self.table.all().into_iter().map(|session| (session.held_bytes(), session)).collect();
        holders.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        // Those that are being closed already let go of what they hold in tasks of their own.
        let (closing, open): (Vec<_>, Vec<_>) =
            holders.into_iter().partition(|(_, session)| session.outbound().ending().is_some());
        let released: usize = closing.iter().map(|(bytes, _)| bytes).sum();
        let mut excess = self.budget.excess().saturating_sub(released);
        for (bytes, session) in open {
            if excess == 0 || bytes == 0 {
                return;
            }
            if let Some(suppressed) = self.closed_for_memory.may_log() {
                tracing::warn!(
                    client = session.number(),
                    bytes,
                    suppressed,
                    "closed the session that held most: limits.memory is spent"
                );
            }
            session.close(CloseReason::Memory, Ending::Reset);
            excess = excess.saturating_sub(bytes);
        }
    }

    /// From here on there are no new sessions: clients are told to try again, which, behind a
    /// balancer, takes them to another node.
    pub fn stop_accepting(&self) {
        self.accepting.store(false, Ordering::Release);
    }

    fn accepting(&self) -> bool {
        self.accepting.load(Ordering::Acquire)
    }

    /// Every session, the oldest first.
    pub fn sessions(&self) -> Vec<Arc<Session<H>>> {
        self.table.all()
    }

    /// How many sessions there are.
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// Returns once there is no session.
    pub async fn empty(&self) {
        self.table.empty().await;
    }

    /// The open packet of a session: what the client must know (engine.io, socket.ts, `onOpen`).
    fn open_text(&self, session: &Session<H>) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Open<'a> {
            sid: &'a str,
            upgrades: &'a [&'static str],
            ping_interval: u64,
            ping_timeout: u64,
            max_payload: usize,
        }
        let id = session.id();
        let polls = session.transport() == antiphon_metrics::gateway::Transport::Polling;
        let upgrades: &[_] = if polls && self.settings.websocket { &["websocket"] } else { &[] };
        let open = Open {
            sid: id.as_str(),
            upgrades,
            ping_interval: self.settings.ping_interval.as_millis() as u64,
            ping_timeout: self.settings.ping_timeout.as_millis() as u64,
            max_payload: self.settings.max_message_bytes,
        };
        format!("0{}", serde_json::to_string(&open).unwrap_or_default())
    }

    fn open_packet(&self, session: &Session<H>) -> FrameBatch {
        let mut builder = FrameBatchBuilder::default();
        builder.packet(&self.open_text(session));
        builder.build(0, false, &self.budget)
    }
}
