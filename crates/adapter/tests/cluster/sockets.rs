//! Stand-ins for socketioxide's sockets: what is sent to them is kept, and they acknowledge as told.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use antiphon_adapter::{Admission, Delivered, Recipients};
use futures_util::{StreamExt, future, stream};
use serde::{Deserialize, Serialize};
use socketioxide_core::{
    Sid, Str, Uid, Value,
    adapter::{AckStreamItem, BroadcastIter, RemoteSocketData, SocketEmitter, errors::SocketError},
    packet::Packet,
    parser::Parse,
};
use socketioxide_parser_common::CommonParser;

/// The sockets of one node's namespace `/`. Cloning it is cheap.
#[derive(Clone)]
pub(crate) struct Sockets {
    path: Str,
    server: Uid,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    sockets: HashMap<Sid, Socket>,
    closed: Vec<Sid>,
}

#[derive(Default)]
pub(crate) struct Socket {
    /// The packets sent to it, as they go over the wire.
    pub(crate) received: Vec<String>,
    /// Its acknowledgement, an array; without one it does not acknowledge.
    pub(crate) acknowledges: Option<&'static str>,
    /// Nothing more fits into its queue.
    pub(crate) full: bool,
}

impl Sockets {
    pub(crate) fn new() -> Self {
        Self { path: "/".into(), server: Uid::new(), inner: Arc::default() }
    }

    pub(crate) fn connect(&self) -> Sid {
        let sid = Sid::new();
        self.inner().sockets.insert(sid, Socket::default());
        sid
    }

    pub(crate) fn has(&self, sid: Sid) -> bool {
        self.inner().sockets.contains_key(&sid)
    }

    pub(crate) fn with<T>(&self, sid: Sid, change: impl FnOnce(&mut Socket) -> T) -> T {
        change(self.inner().sockets.get_mut(&sid).expect("it is connected"))
    }

    pub(crate) fn received(&self, sid: Sid) -> Vec<String> {
        self.with(sid, |socket| socket.received.clone())
    }

    /// Whose connection was closed, for whatever reason.
    pub(crate) fn closed(&self) -> Vec<Sid> {
        self.inner().closed.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic")
    }
}

impl Recipients for Sockets {
    fn admit(&self, sid: Sid, _: usize, _: bool) -> Admission {
        if self.has(sid) { Admission::Queue } else { Admission::Gone }
    }

    fn queue_full(&self, sid: Sid) {
        self.inner().closed.push(sid);
    }

    fn disconnected(&self, sid: Sid) {
        self.inner().closed.push(sid);
    }

    fn delivered(&self, _: &Delivered) {}
}

/// As socketioxide's, as far as the adapter can see.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum AckError {
    #[error("timeout")]
    Timeout,
    #[error("socket")]
    Socket(#[from] SocketError),
}

impl SocketEmitter for Sockets {
    type AckError = AckError;
    type AckStream =
        stream::Fuse<Pin<Box<dyn stream::Stream<Item = AckStreamItem<AckError>> + Send>>>;

    fn get_all_sids(&self, filter: impl Fn(&Sid) -> bool) -> Vec<Sid> {
        self.inner().sockets.keys().copied().filter(|sid| filter(sid)).collect()
    }

    fn get_remote_sockets(&self, sids: BroadcastIter<'_>) -> Vec<RemoteSocketData> {
        let here = sids.filter(|sid| self.has(*sid));
        here.map(|id| RemoteSocketData { id, server_id: self.server, ns: self.path.clone() })
            .collect()
    }

    fn send_many(&self, sids: BroadcastIter<'_>, data: Value) -> Result<(), Vec<SocketError>> {
        let Value::Str(text, _) = data else { panic!("text") };
        let refused = sids.filter(|sid| {
            self.with(*sid, |socket| {
                if !socket.full {
                    socket.received.push(text.to_string());
                }
                socket.full
            })
        });
        let refused: Vec<_> = refused.map(|_| SocketError::InternalChannelFull).collect();
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }

    fn send_many_volatile(&self, _: BroadcastIter<'_>, _: Value) {
        unreachable!("volatile events take the same way");
    }

    fn send_many_with_ack(
        &self,
        sids: BroadcastIter<'_>,
        packet: Packet,
        timeout: Option<Duration>,
    ) -> (Self::AckStream, u32) {
        let timeout = timeout.expect("the adapter says how long");
        let answers = sids.map(|sid| {
            let sent = self.with(sid, |socket| {
                if socket.full {
                    return Err(AckError::Socket(SocketError::InternalChannelFull));
                }
                let Value::Str(text, _) = self.parser().encode(packet.clone()) else {
                    panic!("text")
                };
                socket.received.push(text.to_string());
                Ok(socket.acknowledges)
            });
            async move {
                let answer = match sent {
                    Ok(Some(answer)) => Ok(Value::Str(answer.into(), None)),
                    Err(full) => Err(full),
                    Ok(None) => {
                        tokio::time::sleep(timeout).await;
                        Err(AckError::Timeout)
                    }
                };
                (sid, answer)
            }
        });
        let answers: stream::FuturesUnordered<_> = answers.collect();
        let count = answers.len() as u32;
        let stream: Pin<Box<dyn stream::Stream<Item = _> + Send>> = Box::pin(answers);
        (stream.fuse(), count)
    }

    fn disconnect_many(&self, sids: Vec<Sid>) -> Result<(), Vec<SocketError>> {
        for sid in sids {
            self.inner().sockets.remove(&sid);
        }
        Ok(())
    }

    fn path(&self) -> &Str {
        &self.path
    }

    fn parser(&self) -> impl Parse {
        CommonParser
    }

    fn server_id(&self) -> Uid {
        self.server
    }

    fn ack_timeout(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// What a stream of acknowledgements yields, until its end: the answers, and how many are missing.
pub(crate) async fn all(
    acks: impl stream::Stream<Item = AckStreamItem<AckError>>,
) -> (Vec<String>, usize) {
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
