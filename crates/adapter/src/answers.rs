//! What peers and emitters ask of this node.
//!
//! Who subscribes to the channel of requests must answer every question there, or the one who asks waits until
//! its deadline. What each request means is in [`Command`].

use std::{pin::Pin, sync::Arc};

use antiphon_metrics::adapter::Ignored;
use futures_util::{Stream, StreamExt};
use socketioxide_core::{
    Sid, Value,
    adapter::{BroadcastOptions, Room},
};
use tokio::{task::JoinSet, time::Duration};

use crate::{
    adapter::Local,
    cluster::{Shared, local_opts},
    peers::{Asker, Peers, kind},
    wire::{
        Answer, Channels, Command, Handshake, Opts, RemoteSocket, Request, Targets, Whom,
        encode_handshake,
    },
};

/// Peers' events whose acknowledgements are passed on at a time. Beyond it an event is delivered, and the peer
/// that asked waits in vain until its own deadline.
const ACK_STREAMS_MAX: usize = 1024;

/// How long clients may take to acknowledge, if the one who asks does not say. (Then Node itself waits for 1 ms.)
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest that anybody may ask for.
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// A handshake in an answer: far more than a browser's. Clients choose how large theirs is.
const HANDSHAKE_BYTES_MAX: usize = 8 << 10;

/// Sockets described before other tasks have their turn.
const SOCKETS_PER_TURN: usize = 256;

/// Who knows how clients introduced themselves: of a socket in a namespace, what its handshake was.
pub(crate) type Describe = dyn Fn(&str, Sid) -> Option<Handshake> + Send + Sync;

/// The acknowledgements of this node's clients to an event of a peer; those who do not answer are left out.
pub(crate) struct Asked {
    /// How many are asked.
    pub(crate) clients: u32,
    /// What they answer.
    pub(crate) acks: Pin<Box<dyn Stream<Item = Value> + Send>>,
}

/// Answers requests, one after another.
pub(crate) struct Answers {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    describe: Arc<Describe>,
    // They end with this node's receiving.
    acks: JoinSet<()>,
}

impl Answers {
    pub(crate) fn new(shared: Arc<Shared>, peers: Arc<Peers>, describe: Arc<Describe>) -> Self {
        Self { shared, peers, describe, acks: JoinSet::new() }
    }

    /// Does what is asked, in the order of arrival: a broadcast that follows finds sockets in the rooms that they
    /// were told to join.
    pub(crate) async fn obey(
        &mut self,
        request: Request,
        path: &str,
        channels: &Arc<Channels>,
        local: &dyn Local,
    ) -> Result<(), Ignored> {
        let Request { uid, request_id, command } = request;
        // What this node orders it has carried out itself, at once.
        if uid.as_deref() == Some(&*self.peers.settings.uid) {
            return Err(Ignored::Own);
        }
        let kind = kind(&command);
        let asker = Asker { uid, request_id };
        let answer = match command {
            Command::Sockets { rooms } => {
                let sids = local.members(targets(rooms, Vec::new()));
                Some(Answer::SocketIds(sids.iter().map(Sid::to_string).collect()))
            }
            Command::AllRooms => Some(Answer::Rooms(local.all_rooms())),
            Command::Join { whom, rooms } => {
                self.order(local, whom, |sids| local.join(sids, &rooms))
            }
            Command::Leave { whom, rooms } => {
                self.order(local, whom, |sids| local.leave(sids, &rooms))
            }
            Command::Disconnect { whom, close } => {
                self.order(local, whom, |sids| self.disconnect(local, sids, close))
            }
            Command::Fetch { targets } => {
                let sids = local.members(self::targets(targets.rooms, targets.except));
                Some(self.sockets(path, local, &sids).await)
            }
            // No application code runs here that could listen; who waits hears so.
            Command::ServerSideEmit { .. } => {
                asker.request_id.is_some().then_some(Answer::Emitted(None))
            }
            Command::Broadcast { packet, opts } => {
                if *packet.ns != *path {
                    return Err(Ignored::OtherNamespace);
                }
                let timeout = ack_timeout(&opts);
                let asked = local.deliver_with_acks(packet, local_opts(opts), timeout).await;
                let clients = asked.clients;
                self.peers.answer(channels, &asker, Answer::ClientCount(clients));
                self.relay(asked, channels, asker);
                self.peers.metrics().requests_received_total.of(kind).inc();
                return Ok(());
            }
        };
        self.peers.metrics().requests_received_total.of(kind).inc();
        if let Some(answer) = answer {
            self.peers.answer(channels, &asker, answer);
        }
        Ok(())
    }

    /// Carries an order out. The old form, for one socket, is answered by the node that has it.
    fn order(&self, local: &dyn Local, whom: Whom, carry_out: impl Fn(&[Sid])) -> Option<Answer> {
        match whom {
            Whom::Targets(Targets { rooms, except }) => {
                carry_out(&local.members(targets(rooms, except)));
                None
            }
            Whom::Socket(sid) => {
                let sid = sid.parse().ok().filter(|sid| local.has(*sid))?;
                carry_out(&[sid]);
                Some(Answer::Done)
            }
        }
    }

    fn disconnect(&self, local: &dyn Local, sids: &[Sid], close: bool) {
        for sid in sids {
            local.disconnect(*sid);
            if close {
                // As in Node: out of every namespace, and the connection after it.
                self.shared.locals().iter().for_each(|other| other.disconnect(*sid));
                self.shared.recipients.disconnected(*sid);
            }
        }
    }

    /// All about these sockets; about so many that an answer cannot hold it, what clients do not choose themselves:
    /// a few hundred with large heads must not make a node's answers fail.
    async fn sockets(&self, path: &str, local: &dyn Local, sids: &[Sid]) -> Answer {
        let (mut sockets, complete) = self.described(path, local, sids, HANDSHAKE_BYTES_MAX).await;
        if !complete {
            // Should this not be all either, it is too large to be sent, and counted as that.
            (sockets, _) = self.described(path, local, sids, 0).await;
        }
        Answer::Sockets(sockets)
    }

    /// Sockets, with handshakes of up to so many bytes each, and whether that is all of them. If not, it is a little
    /// more than an answer can hold.
    async fn described(
        &self,
        path: &str,
        local: &dyn Local,
        sids: &[Sid],
        handshake_bytes_max: usize,
    ) -> (Vec<RemoteSocket>, bool) {
        let mut bytes = 0;
        let mut sockets = Vec::new();
        for (described, sid) in sids.iter().copied().enumerate() {
            if described % SOCKETS_PER_TURN == SOCKETS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            let Some(handshake) = (self.describe)(path, sid) else { continue }; // It has left.
            let whole = encode_handshake(&handshake).ok();
            let whole = whole.filter(|whole| whole.len() <= handshake_bytes_max);
            let handshake = whole.or_else(|| encode_handshake(&handshake.bare()).ok());
            let Some(handshake) = handshake else { continue }; // It has no time that Node could tell.
            let rooms = rooms_of(local, sid);
            bytes += handshake.len() + rooms.iter().map(|room| room.len() + 3).sum::<usize>();
            let data = "{}".to_owned();
            sockets.push(RemoteSocket { id: sid.to_string(), handshake, rooms, data });
            if bytes > self.peers.settings.answer_bytes_max {
                return (sockets, false);
            }
        }
        (sockets, true)
    }

    /// Passes acknowledgements on to the peer that asked, while other messages are handled.
    fn relay(&mut self, mut asked: Asked, channels: &Arc<Channels>, asker: Asker) {
        while self.acks.try_join_next().is_some() {}
        if asked.clients == 0 {
            return;
        }
        let metrics = self.peers.metrics();
        if self.acks.len() >= ACK_STREAMS_MAX {
            metrics.ack_streams_refused_total.inc();
            return;
        }
        let (peers, channels) = (Arc::clone(&self.peers), Arc::clone(channels));
        self.acks.spawn(async move {
            let _counted = Counted::new(&peers);
            while let Some(value) = asked.acks.next().await {
                peers.answer(&channels, &asker, Answer::Ack(value));
            }
        });
    }
}

/// As in Node, where the first room of every socket is its own id.
pub(crate) fn rooms_of(local: &dyn Local, sid: Sid) -> Vec<Room> {
    std::iter::once(sid.to_string().into()).chain(local.rooms(sid)).collect()
}

fn targets(rooms: Vec<Room>, except: Vec<Room>) -> BroadcastOptions {
    local_opts(Opts { rooms, except, ..Opts::default() })
}

fn ack_timeout(opts: &Opts) -> Duration {
    let asked = opts.flags.timeout_ms.map(Duration::from_millis);
    asked.unwrap_or(ACK_TIMEOUT).min(ACK_TIMEOUT_MAX)
}

/// A stream of acknowledgements, while it runs.
struct Counted<'a>(&'a Peers);

impl<'a> Counted<'a> {
    fn new(peers: &'a Peers) -> Self {
        peers.metrics().ack_streams.inc();
        Self(peers)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.metrics().ack_streams.dec();
    }
}
