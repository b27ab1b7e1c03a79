//! Sockets coming to a namespace and leaving it.

use std::{
    fmt::Display,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use antiphon_adapter::Cluster;
use antiphon_metrics::{
    Counters, Error, GatewayMetrics, IntGauge,
    gateway::{CloseReason, Protocol, Transport},
};
use socketioxide::{
    handler::{ConnectHandler, DisconnectHandler},
    socket::{DisconnectReason, Socket},
};
use socketioxide_core::Value;

use crate::{
    events::{Adapter, Direct, Inbox, Rules},
    introduction,
    sessions::Session,
    stage::Stage,
};

/// One namespace's door.
#[derive(Clone)]
pub(crate) struct Door(Arc<Inner>);

struct Inner {
    path: String,
    rules: Arc<Rules>,
    cluster: Cluster,
    stage: Stage,
    sockets: Sockets,
    metrics: Arc<GatewayMetrics>,
}

/// What is counted of a namespace's sockets.
#[derive(Clone)]
pub(crate) struct Sockets(Arc<Counted>);

struct Counted {
    open: IntGauge,
    opened: Counters<()>,
    closed: Counters<CloseReason>,
}

impl Sockets {
    /// Of the namespace at `path`.
    pub(crate) fn new(path: &str, metrics: &GatewayMetrics) -> Result<Self, Error> {
        Ok(Self(Arc::new(Counted {
            open: metrics.sockets.of(path)?,
            opened: metrics.sockets_opened_total.of(path)?,
            closed: metrics.sockets_closed_total.of(path)?,
        })))
    }
}

impl Door {
    pub(crate) fn new(
        path: &str,
        rules: Rules,
        cluster: Cluster,
        stage: Stage,
        sockets: Sockets,
        metrics: Arc<GatewayMetrics>,
    ) -> Self {
        let (path, rules) = (path.to_owned(), Arc::new(rules));
        Self(Arc::new(Inner { path, rules, cluster, stage, sockets, metrics }))
    }

    /// Readies a socket for the namespace. Before it is in there: a client may send its first event
    /// as soon as it has its CONNECT packet, and an event without a handler is lost.
    fn prepare(&self, socket: &Socket<Adapter>, auth: Option<&Value>) -> Result<(), &'static str> {
        let door = &*self.0;
        let session = session(socket).ok_or("no session")?;
        session.identify(socket.id);
        session.connecting(&door.path);
        introduction::keep_auth(socket, auth, door.rules.max_json_depth());
        let rules = Arc::clone(&door.rules);
        let stage = door.stage.clone();
        let inbox = Inbox::new(rules, &door.cluster, &door.path, stage, Arc::clone(&session));
        socket.on_fallback(inbox.ok_or("no namespace")?);
        socket.on_disconnect(Presence::new(session, door.sockets.clone()));
        Ok(())
    }
}

/// The session that the gate put into the handshake request.
fn session(socket: &Socket<Adapter>) -> Option<Arc<Session>> {
    socket.req_parts().extensions.get::<Arc<Session>>().cloned()
}

type Middleware<'a> =
    Pin<Box<dyn Future<Output = Result<(), Box<dyn Display + Send>>> + Send + 'a>>;

impl ConnectHandler<Adapter, Direct> for Door {
    fn call_middleware<'a>(
        &'a self,
        socket: Arc<Socket<Adapter>>,
        auth: &'a Option<Value>,
    ) -> Middleware<'a> {
        let ready = self.prepare(&socket, auth.as_ref());
        Box::pin(std::future::ready(ready.map_err(|error| Box::new(error) as _)))
    }

    fn call(&self, socket: Arc<Socket<Adapter>>, _auth: Option<Value>) {
        let Some(session) = session(&socket) else { return };
        if let Some(time) = session.first_connected() {
            self.0.metrics.handshake_seconds.observe(time);
        }
        if let Some(namespace) = self.0.cluster.namespace(&self.0.path) {
            session.connected(socket.id, namespace.queues());
        }
        tracing::info!(
            client = session.number,
            address = %session.client,
            namespace = self.0.path,
            transport = Transport::as_str(session.transport()),
            protocol = Protocol::as_str(session.protocol),
            "connected"
        );
    }
}

/// A socket's stay in its namespace: counted from before its CONNECT packet until it is gone.
struct Presence {
    session: Arc<Session>,
    sockets: Sockets,
    closed: AtomicBool,
}

impl Presence {
    fn new(session: Arc<Session>, sockets: Sockets) -> Self {
        sockets.0.open.inc();
        sockets.0.opened.of(()).inc();
        Self { session, sockets, closed: AtomicBool::new(false) }
    }

    fn close(&self, reason: CloseReason) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            self.sockets.0.closed.of(reason).inc();
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.sockets.0.open.dec();
        // Without its CONNECT packet, for which there was no room, a socket leaves without a word.
        self.close(self.session.close_reason().unwrap_or(CloseReason::TransportError));
    }
}

impl DisconnectHandler<Adapter, Direct> for Presence {
    fn call_with_defer(
        &self,
        socket: Arc<Socket<Adapter>>,
        reason: DisconnectReason,
        remove: fn(Arc<Socket<Adapter>>),
    ) {
        let own = || self.session.close_reason();
        let reason = match reason {
            // Closing a transport ends in one of these, whoever closed it.
            DisconnectReason::TransportClose => own().unwrap_or(CloseReason::TransportClose),
            DisconnectReason::TransportError => own().unwrap_or(CloseReason::TransportError),
            DisconnectReason::HeartbeatTimeout => own().unwrap_or(CloseReason::PingTimeout),
            DisconnectReason::PacketParsingError | DisconnectReason::MultipleHttpPollingError => {
                CloseReason::ParseError
            }
            DisconnectReason::ClientNSDisconnect => CloseReason::ClientDisconnect,
            DisconnectReason::ServerNSDisconnect => CloseReason::ServerDisconnect,
            DisconnectReason::ClosingServer => CloseReason::ServerShutdown,
        };
        self.close(reason);
        self.session.left(socket.ns());
        tracing::info!(
            client = self.session.number,
            namespace = socket.ns(),
            reason = reason.as_str(),
            "disconnected"
        );
        remove(socket);
    }
}
