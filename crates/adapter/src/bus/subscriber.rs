//! The subscriber: a connection of its own that only reads, and keeps the wanted subscriptions.
//!
//! Two things happen on it at a time: what arrives is moved to the receive queue at once, whatever else goes
//! on, since the server cuts off a client whose output piles up; and subscriptions are brought in line
//! with what is wanted. A ping between them notices a connection that is gone without a word.

use std::{collections::BTreeSet, future::Future, pin::pin, sync::Arc};

use antiphon_metrics::bus::Connection;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Subscription,
    keeper::Keeper,
    link::{Backoff, Commands, LinkError, Messages, Transport},
    shared::Shared,
};

/// Subscriptions asked for in one command.
const CHUNK: usize = 256;

/// Keeps a receiving connection until the bus leaves.
pub(super) async fn run<T: Transport>(shared: Arc<Shared>, transport: Arc<T>) {
    let _ended = shared.ended.clone().drop_guard();
    let mut keeper = Keeper::new(Connection::Subscriber, &shared, shared.leaving.clone());
    while let Some((commands, messages)) = keeper.connect(|| transport.receiving()).await {
        let end = session(&shared, &mut keeper, commands, messages).await;
        shared.update(|status| {
            (status.subscribed, status.probed) = (false, false);
            status.deaf_since.get_or_insert_with(Instant::now);
        });
        let Err(error) = end else { break };
        keeper.lost(&error, 0);
        // What took this connection may have taken the other.
        shared.nudge_publisher();
    }
}

async fn session(
    shared: &Shared,
    keeper: &mut Keeper,
    commands: impl Commands,
    mut messages: impl Messages,
) -> Result<(), LinkError> {
    // A verdict on an earlier connection must not hit this one.
    tokio::select! { biased; () = shared.deaf.notified() => {} () = async {} => {} }
    let drain = async {
        while let Some(message) = messages.next().await {
            shared.arrived(message);
        }
    };
    let mut desk = Desk { shared, commands, confirmed: BTreeSet::new() };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => Ok(()),
        end = desk.keep(keeper) => end,
        () = shared.deaf.notified() => {
            Err(LinkError::Broken("up, but what is published does not arrive".to_owned()))
        }
        // Last: in a flood it uses the task's whole turn, and the others would get none.
        () = drain => Err(LinkError::Broken("closed by the server".to_owned())),
    }
}

/// Where subscriptions are asked for.
struct Desk<'a, C> {
    shared: &'a Shared,
    commands: C,
    confirmed: BTreeSet<Subscription>,
}

impl<C: Commands> Desk<'_, C> {
    /// Keeps what is confirmed in line with what is wanted, until the bus leaves.
    async fn keep(&mut self, keeper: &mut Keeper) -> Result<(), LinkError> {
        let shared = self.shared;
        let mut backoff = Backoff::new(&shared.settings);
        // Who hears questions should be able to answer. But not for long: to hear alone is worth something.
        let mut status = shared.status.subscribe();
        let publisher = status.wait_for(|status| status.publisher_up);
        let _ = timeout(shared.settings.connect_timeout, publisher).await;
        loop {
            let wanted = shared.subscriptions.wanted();
            let pause = match self.reconcile(&wanted.set).await {
                Ok(()) if shared.confirmed(wanted.version) => shared.settings.probe_interval,
                Ok(()) => continue,
                Err(refusal @ LinkError::Refused(_)) => {
                    shared.update(|status| status.subscribed = false);
                    keeper.refused(&refusal);
                    backoff.wait()
                }
                Err(broken) => return Err(broken),
            };
            tokio::select! {
                biased;
                () = shared.leaving.cancelled() => return self.leave().await,
                () = shared.subscriptions.changed.notified() => {}
                () = sleep(pause) => self.ping().await?,
            }
        }
    }

    async fn reconcile(&mut self, wanted: &BTreeSet<Subscription>) -> Result<(), LinkError> {
        let extra: Vec<_> = self.confirmed.difference(wanted).cloned().collect();
        if !extra.is_empty() {
            answer(self.shared, self.commands.unsubscribe(&extra)).await?;
            self.confirmed.retain(|subscription| wanted.contains(subscription));
        }
        let mut refusal = None;
        let missing: Vec<_> = wanted.difference(&self.confirmed).cloned().collect();
        for chunk in missing.chunks(CHUNK) {
            match self.subscribe(chunk).await {
                // One that is forbidden must not keep the others out.
                Err(LinkError::Refused(_)) => self.one_by_one(chunk, &mut refusal).await?,
                other => other?,
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    async fn one_by_one(
        &mut self,
        chunk: &[Subscription],
        refusal: &mut Option<LinkError>,
    ) -> Result<(), LinkError> {
        for one in chunk {
            match self.subscribe(std::slice::from_ref(one)).await {
                Err(refused @ LinkError::Refused(_)) => *refusal = Some(refused),
                other => other?,
            }
        }
        Ok(())
    }

    async fn subscribe(&mut self, chunk: &[Subscription]) -> Result<(), LinkError> {
        answer(self.shared, self.commands.subscribe(chunk)).await?;
        self.confirmed.extend(chunk.iter().cloned());
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), LinkError> {
        answer(self.shared, self.commands.ping()).await
    }

    async fn leave(&mut self) -> Result<(), LinkError> {
        let all: Vec<_> = std::mem::take(&mut self.confirmed).into_iter().collect();
        // Whatever the answer, the connection ends with this task.
        let _ = answer(self.shared, self.commands.unsubscribe(&all)).await;
        Ok(())
    }
}

/// Waits for an answer: not for ever, but for as long as messages keep coming, which the server
/// may have put before it.
async fn answer<A>(
    shared: &Shared,
    asked: impl Future<Output = Result<A, LinkError>>,
) -> Result<A, LinkError> {
    let started = Instant::now();
    let deadline = || started.max(shared.last_arrival()) + shared.settings.probe_timeout;
    let mut asked = pin!(asked);
    loop {
        let until = deadline();
        tokio::select! {
            biased;
            answer = &mut asked => return answer,
            () = sleep_until(until) => if Instant::now() >= deadline() {
                // Nobody knows when the connection died; nothing that came after this was heard.
                shared.update(|status| {
                    status.deaf_since.get_or_insert(shared.last_arrival());
                });
                return Err(LinkError::Broken("no answer to a subscriber's command in time".to_owned()));
            },
        }
    }
}
