//! What the gateway implements: how packets reach the clients of this node.

use std::{future::Future, pin::Pin, sync::Arc};

use socketioxide_core::{
    Value,
    packet::{Packet, PacketData},
};

use crate::{socket_id::SocketId, wire::Handshake};

/// A future that a trait's method returns.
pub type Soon<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Delivers packets to clients, and ends their sockets.
///
/// No method is called under a lock of the adapter.
pub trait DeliverySink: Send + Sync + 'static {
    /// What the register keeps for each socket: the gateway's handle of the client's session.
    type Connection: Clone + Send + Sync + 'static;

    /// Hands a batch to every one of `to`. When the future is ready, all of them have the batch, or
    /// are being closed, or skipped it; the sink counts which. A recipient gets the batches that
    /// one task awaits in the order in which that task awaits them.
    fn deliver(&self, batch: PacketBatch, to: Vec<Self::Connection>) -> Soon<'_, ()>;

    /// Takes a socket out of its namespace with a DISCONNECT packet. With `close`, the client
    /// leaves every namespace and its transport ends. The sink's own close path calls
    /// [`Namespace::remove`](crate::Namespace::remove).
    fn disconnect(&self, namespace: &str, id: SocketId, connection: &Self::Connection, close: bool);

    /// The handshake info of a client, for remote nodes that ask; `None` if the client has left.
    fn handshake(
        &self,
        namespace: &str,
        id: SocketId,
        connection: &Self::Connection,
    ) -> Option<Handshake>;
}

/// Packets of one namespace for the same sockets, in order. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct PacketBatch(Arc<Content>);

#[derive(Debug)]
struct Content {
    namespace: Arc<str>,
    packets: Vec<Packet>,
    volatile: bool,
    bytes: usize,
}

impl PacketBatch {
    /// A batch for sockets of `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, packets: Vec<Packet>, volatile: bool) -> Self {
        let bytes = packets.iter().map(payload_bytes).sum();
        Self(Arc::new(Content { namespace: namespace.into(), packets, volatile, bytes }))
    }

    /// The namespace of the packets.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The packets: events whose arguments are text. An event of
    /// [`Namespace::broadcast_with_ack`](crate::Namespace::broadcast_with_ack) has the ack id that
    /// every recipient gets.
    pub fn packets(&self) -> &[Packet] {
        &self.0.packets
    }

    /// Whether a recipient that does not keep up may skip the batch.
    pub fn volatile(&self) -> bool {
        self.0.volatile
    }

    /// Bytes of all texts and attachments.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }
}

/// Bytes of an event's text and attachments.
pub(crate) fn payload_bytes(packet: &Packet) -> usize {
    match &packet.inner {
        PacketData::Event(value, _) | PacketData::BinaryEvent(value, _) => value_bytes(value),
        _ => 0,
    }
}

/// Bytes of a text and its attachments.
pub(crate) fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Str(text, attachments) => {
            text.len() + attachments.iter().flatten().map(|one| one.len()).sum::<usize>()
        }
        Value::Bytes(bytes) => bytes.len(),
    }
}
