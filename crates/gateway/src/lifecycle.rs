//! How a node starts serving, and how it leaves.
//!
//! A deploy must not be a storm: sessions are closed in small batches over a configured time, and by
//! closing their transport, never with a DISCONNECT packet ("io server disconnect"), after which
//! clients stay away. Everything in here has a deadline.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use antiphon_metrics::gateway::CloseReason;
use tokio::{
    net::TcpListener,
    time::{Instant, MissedTickBehavior, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin::{self, Admin},
    config::{Config, Drain},
    namespaces::Namespaces,
    net::{self, Acceptor},
    node::{Node, RemoteLink},
    telemetry::Telemetry,
    transport::{Ending, Transport},
};

/// Time between two batches of closed sessions. Short against the times of reconnecting clients
/// (the JavaScript client waits 0.5 to 1.5 s), so that they come back as evenly as they were closed.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// How much of the deadline is for what follows the last session: connections end, accepted events reach the peers.
/// Little is left to do by then, so with a short deadline a fifth will do.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_WORDS_PART: u32 = 5;

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
        let connections = self.connections.clone();
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
        let Self {
            config, transport, state, dispatcher, mut dispatching, mut timing, remote, ..
        } = self;
        let metrics = self.metrics;
        let _engine = self.engine;
        let _watching = self._watching;
        let mut accepting = AbortOnDropHandle::new(tokio::spawn(acceptor.run(listeners.public)));
        let _admin = match listeners.admin {
            Some(listener) => Some(admin::serve(admin, listener).map_err(ServeError::Admin)?),
            None => None,
        };

        let mut part_ends = Box::pin(async {
            tokio::select! {
                _ = &mut accepting => ServeError::Ended("accepting connections"),
                _ = &mut dispatching => ServeError::Ended("dispatching events"),
                _ = &mut timing => ServeError::Ended("watching deadlines"),
            }
        });
        let mut ended = tokio::select! {
            () = shutdown.drain.cancelled() => Ok(()),
            () = shutdown.hurry.cancelled() => Ok(()),
            error = &mut part_ends => Err(error),
        };
        let deadline = Instant::now() + config.drain.deadline;
        let told = ended.is_ok();
        let mut leaving = pin!(async {
            // Unready from here on; but balancers take a while to notice, and send clients until then.
            state.leave(&metrics);
            if told && !config.drain.delay.is_zero() {
                tracing::info!(delay = ?config.drain.delay, "unready, waiting for balancers to notice");
                let delay = tokio::time::sleep(config.drain.delay);
                shutdown.hurry.run_until_cancelled(delay).await;
            }
            // Clients that poll still need new connections: accepting ends after the sessions do.
            transport.stop_accepting();
            drain(&transport, &config.drain, deadline, &shutdown.hurry).await;
        });
        tokio::select! {
            () = &mut leaving => {}
            error = &mut part_ends, if told => {
                ended = Err(error);
                leaving.await;
            }
        }
        // The parts themselves go on: what has been accepted is still to be delivered.
        drop(part_ends);
        stop.cancel();
        connections.close();
        // What has not ended by then ends with the process.
        let _ = timeout_at(deadline - last_words(&config.drain) / 2, connections.wait()).await;
        // What was accepted from clients that have gone since is for the peers as well.
        let delivered =
            !dispatching.is_finished() && timeout_at(deadline, dispatcher.drained()).await.is_ok();
        let events = metrics.stage_events.get();
        if !delivered && events > 0 {
            tracing::warn!(events, "accepted events are lost");
        }
        if let Some(RemoteLink { link, .. }) = remote {
            link.close(deadline).await;
        }
        tracing::info!("stopped");
        ended
    }
}

/// What is kept of the deadline for what follows the last session.
fn last_words(drain: &Drain) -> Duration {
    LAST_WORDS.min(drain.deadline / LAST_WORDS_PART)
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

/// Closes every session, spread over the configured time; what is left shortly before the deadline, or when it
/// has to hurry, is cut.
async fn drain(
    transport: &Transport<Namespaces>,
    drain: &Drain,
    deadline: Instant,
    hurry: &CancellationToken,
) {
    let started = Instant::now();
    let open = transport.count();
    tracing::info!(sessions = open, spread = ?drain.spread, deadline = ?drain.deadline, "draining");
    let all_closed = async {
        close_in_batches(transport, drain.spread).await;
        transport.empty().await;
    };
    let in_time = timeout_at(deadline - last_words(drain), all_closed);
    let in_time = hurry.run_until_cancelled(in_time).await;
    let left = transport.sessions();
    if !matches!(in_time, Some(Ok(()))) {
        for session in &left {
            session.abort(CloseReason::ServerShutdown);
        }
    }
    let elapsed_ms = started.elapsed().as_millis() as u64;
    tracing::info!(closed = open - left.len().min(open), cut = left.len(), elapsed_ms, "drained");
}

async fn close_in_batches(transport: &Transport<Namespaces>, spread: Duration) {
    let batches = (spread.as_millis() / BATCH_INTERVAL.as_millis()).max(1) as usize;
    let mut ticks = tokio::time::interval(BATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Again, for sessions that were just being opened when the list was made.
    loop {
        let all = transport.sessions();
        if all.is_empty() {
            return;
        }
        for batch in 0..batches {
            let part = |number: usize| number * all.len() / batches;
            ticks.tick().await;
            for session in &all[part(batch)..part(batch + 1)] {
                session.close(CloseReason::ServerShutdown, Ending::Flush);
            }
        }
        drop(all);
        ticks.tick().await;
        if transport.count() == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(delay: Duration) -> Config {
        let mut config = Config::embedded();
        config.server.listen = ([127, 0, 0, 1], 0).into();
        config.admin.listen = None;
        config.drain = Drain { delay, spread: Duration::ZERO, deadline: Duration::from_secs(20) };
        config
    }

    async fn serve(node: Node, shutdown: Shutdown) -> Result<(), ServeError> {
        let listeners = Listeners::bind(&node.config).await.expect("a free port");
        let served = node.serve(listeners, shutdown);
        tokio::time::timeout(Duration::from_secs(20), served).await.expect("it ends")
    }

    #[tokio::test]
    async fn a_part_that_ends_ends_the_node() {
        let node = Node::new(config(Duration::from_secs(3600))).expect("valid");
        node.timing.abort();
        let shutdown = Shutdown::default();
        let ended = serve(node, shutdown.clone()).await;
        assert!(matches!(ended, Err(ServeError::Ended("watching deadlines"))), "{ended:?}");
        assert!(!shutdown.hurry.is_cancelled(), "nor are its clients closed at once");
    }

    #[tokio::test]
    async fn a_part_that_ends_while_the_node_leaves_is_an_error() {
        let node = Node::new(config(Duration::from_millis(100))).expect("valid");
        let (state, part) = (Arc::clone(&node.state), node.dispatching.abort_handle());
        let shutdown = Shutdown::default();
        shutdown.drain.cancel();
        let serving = tokio::spawn(serve(node, shutdown));
        while !state.is_leaving() {
            tokio::task::yield_now().await;
        }
        part.abort();
        let ended = serving.await.expect("no panic");
        assert!(matches!(ended, Err(ServeError::Ended("dispatching events"))), "{ended:?}");
    }
}
