//! Stand-ins for clients: they keep what is sent to them, and acknowledge as told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak},
};

use antiphon_adapter::{
    AckStream, DeliverySink, Namespace, PacketBatch, SocketId, Soon, wire::Handshake,
};
use futures_util::{StreamExt, future};
use socketioxide_core::{Value, packet::PacketData, parser::Parse};
use socketioxide_parser_common::CommonParser;

/// The clients of one node, which are all in namespace `/`.
#[derive(Default)]
pub(crate) struct Clients {
    namespace: OnceLock<Weak<Namespace<Clients>>>,
    all: Mutex<HashMap<SocketId, Arc<Client>>>,
    closed: Mutex<Vec<SocketId>>,
}

/// One client.
pub(crate) struct Client {
    id: SocketId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The packets sent to it, as they go over the wire.
    received: Vec<String>,
    /// How many batches they came in.
    batches: usize,
    /// Its acknowledgement, an array; without one it does not acknowledge.
    acknowledges: Option<&'static str>,
}

impl Client {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics with it")
}

impl Clients {
    pub(crate) fn attach(&self, namespace: &Arc<Namespace<Self>>) {
        assert!(self.namespace.set(Arc::downgrade(namespace)).is_ok(), "once");
    }

    pub(crate) fn connect(&self) -> SocketId {
        let id = SocketId::random();
        let client = Arc::new(Client { id, state: Mutex::default() });
        self.all().insert(id, Arc::clone(&client));
        self.namespace().insert(id, client);
        id
    }

    pub(crate) fn answer_with(&self, id: SocketId, acknowledgement: &'static str) {
        self.client(id).state().acknowledges = Some(acknowledgement);
    }

    pub(crate) fn received(&self, id: SocketId) -> Vec<String> {
        self.client(id).state().received.clone()
    }

    pub(crate) fn batches(&self, id: SocketId) -> usize {
        self.client(id).state().batches
    }

    /// The ack ids of the packets that it has received.
    pub(crate) fn ack_ids(&self, id: SocketId) -> Vec<u64> {
        let received = self.received(id);
        let ids = received.iter().filter_map(|text| text[1..].split('[').next()?.parse().ok());
        ids.collect()
    }

    /// Whose transport was closed.
    pub(crate) fn closed(&self) -> Vec<SocketId> {
        lock(&self.closed).clone()
    }

    pub(crate) fn client(&self, id: SocketId) -> Arc<Client> {
        Arc::clone(self.all().get(&id).expect("it has connected"))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<SocketId, Arc<Client>>> {
        lock(&self.all)
    }

    fn namespace(&self) -> Arc<Namespace<Self>> {
        self.namespace.get().and_then(Weak::upgrade).expect("it is attached")
    }
}

impl DeliverySink for Clients {
    type Connection = Arc<Client>;

    fn deliver(&self, batch: PacketBatch, to: Vec<Arc<Client>>) -> Soon<'_, ()> {
        assert!(!to.is_empty() && !batch.packets().is_empty(), "nothing is no batch");
        for client in to {
            client.state().batches += 1;
            for packet in batch.packets() {
                assert_eq!(&*packet.ns, batch.namespace());
                let Value::Str(text, _) = CommonParser.encode(packet.clone()) else {
                    panic!("text: {packet:?}")
                };
                client.state().received.push(text.to_string());
                let answer = client.state().acknowledges;
                if let (PacketData::Event(_, Some(ack)), Some(answer)) = (&packet.inner, answer) {
                    let value = Value::Str(answer.into(), None);
                    self.namespace().acknowledge(client.id, *ack as u64, value);
                }
            }
        }
        Box::pin(future::ready(()))
    }

    fn disconnect(&self, namespace: &str, id: SocketId, connection: &Arc<Client>, close: bool) {
        assert_eq!((namespace, id), ("/", connection.id));
        assert!(self.namespace().remove(id));
        if close {
            lock(&self.closed).push(id);
        }
    }

    fn handshake(&self, _: &str, id: SocketId, connection: &Arc<Client>) -> Option<Handshake> {
        assert_eq!(id, connection.id);
        Some(Handshake {
            headers: vec![("user-agent".to_owned(), "x".repeat(500))],
            issued_ms: 0,
            address: "127.0.0.1".to_owned(),
            xdomain: false,
            secure: false,
            url: "/socket.io/?EIO=4".to_owned(),
            query: Vec::new(),
            auth: "{}".to_owned(),
        })
    }
}

/// What a stream of acknowledgements yields, until its end: the answers, and how many are missing.
pub(crate) async fn all(acks: AckStream) -> (Vec<String>, usize) {
    let items: Vec<_> = acks.collect().await;
    let missing = items.iter().filter(|(_, answer)| answer.is_err()).count();
    let answers = items.into_iter().filter_map(|(_, answer)| match answer {
        Ok(Value::Str(text, _)) => Some(text.to_string()),
        _ => None,
    });
    let mut answers: Vec<_> = answers.collect();
    answers.sort();
    (answers, missing)
}

/// Lets every task do what it can without time passing.
pub(crate) async fn settle() {
    for _ in 0..1000 {
        future::ready(()).await;
        tokio::task::yield_now().await;
    }
}
