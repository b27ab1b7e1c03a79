//! How a node starts serving, and how it leaves.
//!
//! A deploy must not be a storm: sessions are closed in small batches over a configured time, and by
//! closing their transport, never with a DISCONNECT packet ("io server disconnect"), after which
//! clients stay away. Everything in here has a deadline.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use antiphon_metrics::gateway::CloseReason;
use tokio::{
    net::TcpListener,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    admin::{self, Admin},
    config::{Config, Drain},
    net::{self, Acceptor},
    server::{Node, PeersLink},
    sessions::Sessions,
    telemetry::Telemetry,
};

/// Time between two batches of closed sessions. Short against the times of reconnecting clients
/// (the JavaScript client waits 0.5 to 1.5 s), so that they come back as evenly as they were closed.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// How long connections may take to end after every session has: only idle ones are left.
const LAST_CONNECTIONS: Duration = Duration::from_secs(1);

/// How long events that are still in the stage may take to reach the bus.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// The sockets that a node listens on, bound before anything else is started.
pub struct Listeners {
    /// Clients.
    pub public: TcpListener,
    /// Operators, if they are to be heard.
    pub admin: Option<TcpListener>,
}

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key}): {}", advice(.address, .key, .source))]
pub struct BindError {
    address: SocketAddr,
    key: &'static str,
    source: io::Error,
}

fn advice(address: &SocketAddr, key: &str, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has port {port}. `ss -ltnp sport = :{port}` shows which; stop it, or \
             choose another port with `--set {key}={}:PORT`",
            address.ip()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "not permitted. Ports below 1024 need a privilege; choose a higher one with `--set {key}=…`"
        ),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

impl Listeners {
    /// Binds what `config` names.
    pub async fn bind(config: &Config) -> Result<Self, BindError> {
        let listen = |address, key| {
            let bound = net::listen(address, config.server.backlog);
            bound.map_err(|source| BindError { address, key, source })
        };
        let public = listen(config.server.listen, "server.listen")?;
        let admin = match config.admin.listen {
            Some(address) => Some(listen(address, "admin.listen")?),
            None => None,
        };
        Ok(Self { public, admin })
    }
}

/// How a node is told to leave.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Leave: close sessions at the configured pace.
    pub drain: CancellationToken,
    /// Leave now: close everything at once.
    pub hurry: CancellationToken,
}

impl Shutdown {
    /// SIGTERM or SIGINT drains; a second one hurries.
    pub fn on_signals() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::default();
        let Self { drain, hurry } = shutdown.clone();
        tokio::spawn(async move {
            for (token, message) in [(drain, "stopping"), (hurry, "stopping at once")] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("signal received: {message}");
                token.cancel();
            }
        });
        Ok(shutdown)
    }
}

impl Node {
    /// Serves clients until told to leave, and leaves. A task that the node cannot do without and that
    /// ends (it can only have panicked) makes it leave too, with an error: its clients are better off
    /// elsewhere.
    pub async fn serve(self, listeners: Listeners, shutdown: Shutdown) -> Result<(), ServeError> {
        let stop = CancellationToken::new();
        let connections = TaskTracker::new();
        let acceptor = Acceptor::new(
            Arc::clone(&self.config),
            self.app.clone(),
            Arc::clone(&self.metrics),
            connections.clone(),
            stop.clone(),
        );
        let admin = Admin {
            registries: [Some(&self.registry), self.telemetry.as_ref().map(Telemetry::registry)]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            health: self.health.clone(),
            token: self.config.admin.token.clone(),
            drain: shutdown.drain.clone(),
            log: self.telemetry.as_ref().map(Telemetry::log_filter),
        };
        let Self { config, sessions, gate, stage, mut delivering, mut closer, peers, .. } = self;
        let _watching = self._watching;
        let mut accepting = AbortOnDropHandle::new(tokio::spawn(acceptor.run(listeners.public)));
        let _admin = match listeners.admin {
            Some(listener) => Some(admin::serve(admin, listener).map_err(ServeError::Admin)?),
            None => None,
        };

        let ended = tokio::select! {
            () = shutdown.drain.cancelled() => Ok(()),
            () = shutdown.hurry.cancelled() => Ok(()),
            _ = &mut accepting => Err(ServeError::Ended("accepting connections")),
            _ = &mut delivering => Err(ServeError::Ended("delivering events")),
            _ = &mut closer => Err(ServeError::Ended("closing polling sessions")),
        };
        // Unready from here on; but balancers take a while to notice, and send clients until then.
        gate.leave();
        if ended.is_ok() && !config.drain.delay.is_zero() {
            tracing::info!(delay = ?config.drain.delay, "unready, waiting for balancers to notice");
            let delay = tokio::time::sleep(config.drain.delay);
            shutdown.hurry.run_until_cancelled(delay).await;
        }
        // Clients that poll still need new connections: accepting ends after the sessions do.
        gate.drain();
        drain(&sessions, &config.drain, &shutdown.hurry).await;
        stop.cancel();
        connections.close();
        // What has not ended by now ends with the process.
        let _ = tokio::time::timeout(LAST_CONNECTIONS, connections.wait()).await;
        if let Some(PeersLink { link, .. }) = peers {
            // What was accepted from clients that have gone since is for the peers as well.
            let _ = tokio::time::timeout(LAST_EVENTS, stage.drained()).await;
            link.close().await;
        }
        ended
    }
}

/// Why a node stopped serving, other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A part of it ended.
    #[error("the task {0} ended")]
    Ended(&'static str),
    /// Operators cannot be answered.
    #[error("cannot serve the admin listener")]
    Admin(#[source] io::Error),
}

/// Closes every session, spread over the configured time; what is left at the deadline, or when it
/// has to hurry, is cut.
async fn drain(sessions: &Sessions, drain: &Drain, hurry: &CancellationToken) {
    let started = Instant::now();
    let open = sessions.count();
    tracing::info!(sessions = open, spread = ?drain.spread, deadline = ?drain.deadline, "draining");
    let all_closed = async {
        close_in_batches(sessions, drain.spread).await;
        sessions.empty().await;
    };
    let in_time = hurry
        .run_until_cancelled(tokio::time::timeout(
            drain.deadline.saturating_sub(drain.delay),
            all_closed,
        ))
        .await;
    let left = sessions.all();
    if !matches!(in_time, Some(Ok(()))) {
        for session in &left {
            session.close(CloseReason::ServerShutdown);
            session.abort();
        }
    }
    let elapsed_ms = started.elapsed().as_millis() as u64;
    tracing::info!(closed = open - left.len().min(open), cut = left.len(), elapsed_ms, "drained");
}

async fn close_in_batches(sessions: &Sessions, spread: Duration) {
    let batches = (spread.as_millis() / BATCH_INTERVAL.as_millis()).max(1) as usize;
    let mut ticks = tokio::time::interval(BATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Again, for sessions that were just being opened when the list was made.
    loop {
        let all = sessions.all();
        if all.is_empty() {
            return;
        }
        let size = all.len().div_ceil(batches);
        for batch in all.chunks(size) {
            ticks.tick().await;
            for session in batch {
                session.close(CloseReason::ServerShutdown);
            }
        }
        drop(all);
        ticks.tick().await;
        if sessions.count() == 0 {
            return;
        }
    }
}
