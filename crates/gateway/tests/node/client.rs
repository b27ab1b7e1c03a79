//! A Socket.IO client that shows every packet, and sends what no real client would.

use std::{collections::VecDeque, net::SocketAddr};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::Request},
};

use crate::harness::DEADLINE;

/// What came from the node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Packet {
    /// `0`: connected to a namespace.
    Connected,
    /// `1`: taken out of a namespace. Clients do not come back after it.
    Disconnect,
    /// `2` or `5`: name and arguments, with the attachments that followed.
    Event(Vec<Value>, Vec<Vec<u8>>),
    /// `3` or `6`.
    Ack(u64, Value),
    /// `4`.
    Refused(Value),
    /// The transport is gone.
    Closed,
}

/// A client over WebSocket, in one namespace.
pub(crate) struct Client {
    socket: WebSocketStream<TcpStream>,
    prefix: String,
    attachments_due: usize,
    partial: Option<(Vec<Value>, Vec<Vec<u8>>)>,
    seen: VecDeque<Packet>,
}

impl Client {
    /// Connects to `/` with Engine.IO 4.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut client = Self::open(address, &[]).await.expect("the handshake succeeds");
        client.send_text("40").await;
        assert_eq!(client.next().await, Packet::Connected);
        client
    }

    /// Connects to another namespace.
    pub(crate) async fn connect_to(address: SocketAddr, namespace: &str) -> Self {
        let mut client = Self::open(address, &[]).await.expect("the handshake succeeds");
        client.prefix = format!("{namespace},");
        client.send_text(&format!("40{namespace},")).await;
        assert_eq!(client.next().await, Packet::Connected);
        client
    }

    /// The Engine.IO handshake alone, with more headers.
    pub(crate) async fn open(
        address: SocketAddr,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let stream = TcpStream::connect(address).await.expect("the node listens");
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let mut request: Request<()> = url.into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header value"));
        }
        let (socket, _) = client_async(request, stream).await?;
        let mut client = Self::new(socket);
        let open = client.message().await.expect("an open packet");
        assert!(open.to_text().expect("text").starts_with('0'), "{open:?}");
        Ok(client)
    }

    /// Takes over a polling session that has not connected to a namespace yet.
    pub(crate) async fn upgrade(
        address: SocketAddr,
        sid: &str,
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let mut client = Self::upgrading(address, sid).await?;
        client.probe().await;
        Ok(client)
    }

    /// Begins to: [`Client::probe`] is still to come.
    pub(crate) async fn upgrading(
        address: SocketAddr,
        sid: &str,
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let stream = TcpStream::connect(address).await.expect("the node listens");
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket&sid={sid}");
        let (socket, _) = client_async(url, stream).await?;
        Ok(Self::new(socket))
    }

    /// Ends the polling.
    pub(crate) async fn probe(&mut self) {
        self.send_text("2probe").await;
        assert_eq!(self.raw_text().await, "3probe");
        self.send_text("5").await;
    }

    fn new(socket: WebSocketStream<TcpStream>) -> Self {
        Self {
            socket,
            prefix: String::new(),
            attachments_due: 0,
            partial: None,
            seen: VecDeque::new(),
        }
    }

    /// Sends an Engine.IO packet as it is; whether the node still takes it shows later.
    pub(crate) async fn send_text(&mut self, text: &str) {
        let _ = self.socket.send(Message::text(text)).await;
    }

    pub(crate) async fn send_binary(&mut self, bytes: &[u8]) {
        let _ = self.socket.send(Message::binary(bytes.to_vec())).await;
    }

    /// Emits `["name", …]`.
    pub(crate) async fn emit(&mut self, event: Value) {
        let text = format!("42{}{event}", self.prefix);
        self.send_text(&text).await;
    }

    /// Emits and waits for the acknowledgement; other packets are kept for [`Client::next`].
    pub(crate) async fn ask(&mut self, id: u64, event: Value) -> Value {
        let text = format!("42{}{id}{event}", self.prefix);
        self.send_text(&text).await;
        let mut others = VecDeque::new();
        loop {
            match self.next().await {
                Packet::Ack(answered, body) if answered == id => {
                    others.append(&mut self.seen);
                    self.seen = others;
                    return body;
                }
                Packet::Closed => panic!("closed before the answer to {event}"),
                other => others.push_back(other),
            }
        }
    }

    /// The next packet that is not a ping.
    pub(crate) async fn next(&mut self) -> Packet {
        if let Some(packet) = self.seen.pop_front() {
            return packet;
        }
        loop {
            match self.message().await {
                None | Some(Message::Close(_)) => return Packet::Closed,
                Some(Message::Text(text)) if text.as_str() == "2" => self.send_text("3").await,
                Some(Message::Text(text)) => {
                    if let Some(packet) = self.parse(text.as_str()) {
                        return packet;
                    }
                }
                Some(Message::Binary(bytes)) => {
                    if let Some(packet) = self.attach(bytes.to_vec()) {
                        return packet;
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// The next text message as it is.
    pub(crate) async fn raw_text(&mut self) -> String {
        loop {
            match self.message().await.expect("still open") {
                Message::Text(text) if text.as_str() == "2" => self.send_text("3").await,
                Message::Text(text) => return text.to_string(),
                other => panic!("expected text, got {other:?}"),
            }
        }
    }

    /// The next packet, which must be an event without attachments.
    pub(crate) async fn event(&mut self) -> Value {
        match self.next().await {
            Packet::Event(event, attachments) if attachments.is_empty() => json!(event),
            other => panic!("expected an event, got {other:?}"),
        }
    }

    /// Leaves like a client that was closed.
    pub(crate) async fn leave(mut self) {
        let _ = self.socket.close(None).await;
    }

    async fn message(&mut self) -> Option<Message> {
        let message = timeout(DEADLINE, self.socket.next()).await;
        message.expect("the node sends something in time")?.ok()
    }

    fn parse(&mut self, text: &str) -> Option<Packet> {
        let packet = text.strip_prefix('4')?;
        let (kind, rest) = packet.split_at(1);
        let (attachments, rest) = match kind {
            "5" | "6" => rest.split_once('-').expect("the number of attachments"),
            _ => ("0", rest),
        };
        let namespace = rest.starts_with('/').then(|| rest.split_once(',')).flatten();
        let rest = namespace.map_or(rest, |(_, rest)| rest);
        let at = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (id, data) = rest.split_at(at);
        let data: Value = serde_json::from_str(data).unwrap_or(Value::Null);
        match kind {
            "0" => Some(Packet::Connected),
            "1" => Some(Packet::Disconnect),
            "2" => Some(Packet::Event(data.as_array().expect("an event").clone(), Vec::new())),
            "3" => Some(Packet::Ack(id.parse().expect("an id"), data)),
            "4" => Some(Packet::Refused(data)),
            "5" => {
                self.attachments_due = attachments.parse().expect("a number");
                self.partial = Some((data.as_array().expect("an event").clone(), Vec::new()));
                None
            }
            other => panic!("packet type {other}"),
        }
    }

    fn attach(&mut self, bytes: Vec<u8>) -> Option<Packet> {
        let (event, mut attachments) = self.partial.take().expect("an event that has attachments");
        attachments.push(bytes);
        if attachments.len() < self.attachments_due {
            self.partial = Some((event, attachments));
            return None;
        }
        Some(Packet::Event(event, attachments))
    }
}
