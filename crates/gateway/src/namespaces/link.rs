//! What the engine has for a client goes to its session.

use std::sync::{Arc, Weak};

use antiphon_metrics::gateway::CloseReason;
use bytes::Bytes;
use socketioxide_core::Sid;

use super::{Session, Shared, Socket};
use crate::{engine::EngineClient, packet};

/// The way from an engine session to the socket that it is for. Neither keeps the other alive.
pub(super) struct EngineLink {
    session: Weak<Session>,
    socket: Weak<Socket>,
    shared: Arc<Shared>,
}

impl EngineLink {
    pub(super) fn new(session: &Arc<Session>, socket: &Arc<Socket>, shared: &Arc<Shared>) -> Self {
        let (session, socket) = (Arc::downgrade(session), Arc::downgrade(socket));
        Self { session, socket, shared: Arc::clone(shared) }
    }

    fn ends(&self) -> Option<(Arc<Session>, Arc<Socket>)> {
        Some((self.session.upgrade()?, self.socket.upgrade()?))
    }
}

impl EngineClient for EngineLink {
    fn connected(&self, engine: Sid) {
        if let Some((session, socket)) = self.ends() {
            self.shared.admit(&session, &socket, Some(engine));
        }
    }

    fn refused(&self, data: &str) {
        if let Some((session, socket)) = self.ends() {
            self.shared.refuse(&session, &socket, data);
        }
    }

    fn packet(&self, text: &str, attachments: Vec<Bytes>) {
        if let Some((session, socket)) = self.ends() {
            session.send_one(&socket.entry.encode(text, &attachments));
        }
    }

    fn disconnected(&self) {
        if let Some((session, socket)) = self.ends()
            && session.state().leave(&session, &socket, CloseReason::ServerDisconnect)
        {
            let packet = packet::write_disconnect(&socket.entry.path);
            socket.entry.send_text(&session, &packet);
        }
    }
}
