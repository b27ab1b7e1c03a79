//! Clients that talk all through a fault: one that sends numbered messages and asks what became of each, and
//! one that only listens.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Packet};

/// A sender asks no faster: tests run side by side, and their subject is not how much the machine can do.
const PACE: Duration = Duration::from_millis(4);

/// What a sender was told about one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// `{"ok":true}`.
    Everyone,
    /// `{"ok":true,"scope":"local"}`.
    Local,
}

/// A message that was accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) at: Instant,
    pub(crate) told: Told,
}

/// A client of node `number` that sends `["chat_message", number, 0]`, `… 1]` and so on, one at a time.
pub(crate) struct Sender {
    said: Arc<Mutex<Vec<Said>>>,
    stop: CancellationToken,
    task: JoinHandle<Client>,
    // Stays connected when it has stopped.
    silent: Option<Client>,
}

impl Sender {
    pub(crate) async fn start(address: SocketAddr, number: usize) -> Self {
        let client = Client::connect(address).await;
        let (said, stop) = (Arc::default(), CancellationToken::new());
        let task = tokio::spawn(send(client, number, Arc::clone(&said), stop.clone()));
        Self { said, stop, task, silent: None }
    }

    /// What it has said, by number.
    pub(crate) fn said(&self) -> Vec<Said> {
        self.said.lock().expect("no panic").clone()
    }

    /// How many were accepted; the one of this number may be on its way.
    pub(crate) fn count(&self) -> usize {
        self.said.lock().expect("no panic").len()
    }

    /// No more messages.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        let client = (&mut self.task).await;
        self.silent = Some(client.expect("each was accepted, and it stayed connected"));
    }
}

async fn send(
    mut client: Client,
    sender: usize,
    said: Arc<Mutex<Vec<Said>>>,
    stop: CancellationToken,
) -> Client {
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    while !stop.is_cancelled() {
        ticks.tick().await;
        let at = Instant::now();
        let answer = client.ask(number, json!(["chat_message", sender, number])).await;
        let told = if answer == json!([{ "ok": true }]) {
            Told::Everyone
        } else {
            assert_eq!(answer, json!([{ "ok": true, "scope": "local" }]));
            Told::Local
        };
        said.lock().expect("no panic").push(Said { at, told });
        // It gets its own message back, before the answer; the other sender's are not its concern.
        while client.event().await != json!(["chat_message", sender, number]) {}
        number += 1;
    }
    client
}

/// A message that arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) number: usize,
    pub(crate) at: Instant,
}

/// A client that keeps what the two senders say.
pub(crate) struct Listener {
    heard: Arc<Mutex<[Vec<Heard>; 2]>>,
    task: JoinHandle<Packet>,
}

impl Listener {
    pub(crate) async fn start(address: SocketAddr) -> Self {
        let client = Client::connect(address).await;
        let heard = Arc::default();
        let task = tokio::spawn(listen(client, Arc::clone(&heard)));
        Self { heard, task }
    }

    /// What it heard of a sender, in the order of arrival.
    pub(crate) fn heard(&self, sender: usize) -> Vec<Heard> {
        self.heard.lock().expect("no panic")[sender].clone()
    }

    /// The number of what it heard last of a sender.
    pub(crate) fn last(&self, sender: usize) -> Option<usize> {
        self.heard.lock().expect("no panic")[sender].last().map(|heard| heard.number)
    }

    /// Nothing but messages has come.
    pub(crate) fn stayed(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens for as long as messages come; returns what else came.
async fn listen(mut client: Client, heard: Arc<Mutex<[Vec<Heard>; 2]>>) -> Packet {
    loop {
        let event = match client.next().await {
            Packet::Event(event, _) if event.len() == 3 => event,
            other => return other,
        };
        let at = Instant::now();
        let [sender, number] =
            [1, 2].map(|index| event[index].as_u64().expect("a number") as usize);
        heard.lock().expect("no panic")[sender].push(Heard { number, at });
    }
}
