//! Incoming requests: what remote nodes and emitters ask of this node.
//!
//! A node that subscribes to the channel of requests must respond to every request there, or the
//! requester waits until its deadline. [`Command`] says what each request means.

use std::{future::poll_fn, sync::Arc};

use antiphon_metrics::adapter::Ignored;
use socketioxide_core::{adapter::Room, packet::Packet};
use tokio::{
    task::JoinSet,
    time::{Duration, Instant},
};

use crate::{
    acks::LocalAcks,
    namespace::Namespace,
    remote::{RemoteNodes, Requester, kind},
    sink::DeliverySink,
    socket_id::SocketId,
    target::Target,
    wire::{
        Answer, Channels, Command, Opts, RemoteSocket, Request, Targets, Whom, encode_handshake,
    },
};

/// Remote nodes' events whose acknowledgements are passed on at a time. Beyond that an event is
/// delivered, and the requester waits until its own deadline.
const ACK_STREAMS_MAX: usize = 1024;

/// How long clients may take to acknowledge, if the requester does not say. (Node then waits 1 ms.)
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest timeout that a requester gets.
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Bytes of one handshake in a response: far more than a browser's. Clients choose the size of
/// theirs.
const HANDSHAKE_BYTES_MAX: usize = 8 << 10;

/// Sockets that are described before other tasks get their turn.
const SOCKETS_PER_TURN: usize = 256;

/// Carries out requests, one after another.
pub(crate) struct IncomingRequests {
    remote: Arc<RemoteNodes>,
    // They end with this node's receiving.
    ack_streams: JoinSet<()>,
}

impl IncomingRequests {
    /// Responses go to `remote`.
    pub(crate) fn new(remote: Arc<RemoteNodes>) -> Self {
        Self { remote, ack_streams: JoinSet::new() }
    }

    /// Carries out a request before the next message is looked at: a broadcast that follows finds
    /// sockets in the rooms that they were told to join.
    pub(crate) async fn carry_out<S: DeliverySink>(
        &mut self,
        request: Request,
        namespace: &Namespace<S>,
    ) -> Result<(), Ignored> {
        let Request { uid, request_id, command } = request;
        // This node has carried out its own requests when it sent them.
        if uid.as_deref() == Some(&*self.remote.settings.uid) {
            return Err(Ignored::Own);
        }
        let kind = kind(&command);
        let requester = Requester { uid, request_id };
        match command {
            Command::Broadcast { packet, .. } if *packet.ns != *namespace.path() => {
                return Err(Ignored::OtherNamespace);
            }
            Command::Broadcast { packet, opts } => {
                self.broadcast(packet, opts, namespace, requester).await;
            }
            command => {
                if let Some(answer) = self.answer(command, namespace, &requester).await {
                    self.remote.respond(namespace.channels(), &requester, answer);
                }
            }
        }
        self.remote.metrics().requests_received_total.of(kind).inc();
        Ok(())
    }

    /// Delivers an event, and responds with how many clients are asked, then with what they answer.
    async fn broadcast<S: DeliverySink>(
        &mut self,
        packet: Packet,
        opts: Opts,
        namespace: &Namespace<S>,
        requester: Requester,
    ) {
        let deadline = Instant::now() + ack_timeout(&opts);
        let volatile = opts.flags.volatile;
        let to = namespace.recipients(&target(opts.rooms, opts.except));
        let acks = namespace.deliver_with_ack(packet, volatile, to, deadline).await;
        let clients = u32::try_from(acks.clients()).unwrap_or(u32::MAX);
        let channels = namespace.channels();
        self.remote.respond(channels, &requester, Answer::ClientCount(clients));
        self.pass_on(acks, channels, requester);
    }

    /// Carries out anything but a broadcast; `None` where no response is expected.
    async fn answer<S: DeliverySink>(
        &self,
        command: Command,
        namespace: &Namespace<S>,
        requester: &Requester,
    ) -> Option<Answer> {
        match command {
            Command::Sockets { rooms } => {
                let ids = namespace.ids(&target(rooms, Vec::new()));
                Some(Answer::SocketIds(ids.iter().map(SocketId::to_string).collect()))
            }
            Command::AllRooms => Some(Answer::Rooms(namespace.all_rooms().into_iter().collect())),
            Command::Join { whom, rooms } => {
                change(namespace, whom, |target| namespace.move_into(target, &rooms))
            }
            Command::Leave { whom, rooms } => {
                change(namespace, whom, |target| namespace.move_out_of(target, &rooms))
            }
            Command::Disconnect { whom, close } => {
                change(namespace, whom, |target| namespace.disconnect(target, close))
            }
            Command::Fetch { targets: Targets { rooms, except } } => {
                Some(self.sockets(namespace, &target(rooms, except)).await)
            }
            // No application code on this node listens; the requester hears so.
            Command::ServerSideEmit { .. } => {
                requester.request_id.is_some().then_some(Answer::Emitted(None))
            }
            // It has more than one response.
            Command::Broadcast { .. } => None,
        }
    }

    /// The sockets that a target means, with their handshake info. A response is capped: above the
    /// limit, client-supplied fields are dropped, so that a few hundred clients with large headers
    /// do not make a node's responses fail.
    async fn sockets<S: DeliverySink>(&self, namespace: &Namespace<S>, target: &Target) -> Answer {
        let found = namespace.recipients(target);
        let (mut sockets, complete) = self.described(namespace, &found, HANDSHAKE_BYTES_MAX).await;
        if !complete {
            // If this is incomplete too, it is too large to be sent, and counted as that.
            (sockets, _) = self.described(namespace, &found, 0).await;
        }
        Answer::Sockets(sockets)
    }

    /// Sockets with handshakes up to a size, and whether that is all of them. If not, it is a
    /// little more than a response can hold.
    async fn described<S: DeliverySink>(
        &self,
        namespace: &Namespace<S>,
        found: &[(SocketId, S::Connection)],
        handshake_bytes_max: usize,
    ) -> (Vec<RemoteSocket>, bool) {
        let mut bytes = 0;
        let mut sockets = Vec::new();
        for (described, (id, connection)) in found.iter().enumerate() {
            if described % SOCKETS_PER_TURN == SOCKETS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            let handshake = namespace.sink().handshake(namespace.path(), *id, connection);
            let Some(handshake) = handshake else { continue }; // The client has left.
            let whole = encode_handshake(&handshake).ok();
            let whole = whole.filter(|whole| whole.len() <= handshake_bytes_max);
            let handshake = whole.or_else(|| encode_handshake(&handshake.bare()).ok());
            let Some(handshake) = handshake else { continue }; // Its time is out of Node's range.
            let member = namespace.member(*id);
            bytes +=
                handshake.len() + member.rooms.iter().map(|room| room.len() + 3).sum::<usize>();
            let data = "{}".to_owned();
            sockets.push(RemoteSocket { id: member.id, handshake, rooms: member.rooms, data });
            if bytes > self.remote.settings.answer_bytes_max {
                return (sockets, false);
            }
        }
        (sockets, true)
    }

    /// Passes acknowledgements on to the requester, while other messages are handled.
    fn pass_on(&mut self, mut acks: LocalAcks, channels: &Arc<Channels>, requester: Requester) {
        while self.ack_streams.try_join_next().is_some() {}
        if acks.clients() == 0 {
            return;
        }
        if self.ack_streams.len() >= ACK_STREAMS_MAX {
            self.remote.metrics().ack_streams_refused_total.inc();
            return;
        }
        let (remote, channels) = (Arc::clone(&self.remote), Arc::clone(channels));
        self.ack_streams.spawn(async move {
            let _counted = CountedStream::new(&remote);
            // The requester counts for itself who is missing.
            while let Some((_, result)) = poll_fn(|context| acks.poll(context)).await {
                if let Ok(value) = result {
                    remote.respond(&channels, &requester, Answer::Ack(value));
                }
            }
        });
    }
}

/// Carries out a command about sockets. The old form, for one socket, is answered by the node that
/// has it.
fn change<S: DeliverySink>(
    namespace: &Namespace<S>,
    whom: Whom,
    carry_out: impl FnOnce(&Target),
) -> Option<Answer> {
    match whom {
        Whom::Targets(Targets { rooms, except }) => {
            carry_out(&target(rooms, except));
            None
        }
        Whom::Socket(id) => {
            let id = id.parse().ok().filter(|id| namespace.has(*id))?;
            carry_out(&Target { local: true, ..Target::socket(id) });
            Some(Answer::Done)
        }
    }
}

fn target(rooms: Vec<Room>, except: Vec<Room>) -> Target {
    Target::of_remote(rooms, except, false)
}

fn ack_timeout(opts: &Opts) -> Duration {
    let asked = opts.flags.timeout_ms.map(Duration::from_millis);
    asked.unwrap_or(ACK_TIMEOUT).min(ACK_TIMEOUT_MAX)
}

/// Counts a stream of acknowledgements while it runs.
struct CountedStream<'a>(&'a RemoteNodes);

impl<'a> CountedStream<'a> {
    fn new(remote: &'a RemoteNodes) -> Self {
        remote.metrics().ack_streams.inc();
        Self(remote)
    }
}

impl Drop for CountedStream<'_> {
    fn drop(&mut self) {
        self.0.metrics().ack_streams.dec();
    }
}
