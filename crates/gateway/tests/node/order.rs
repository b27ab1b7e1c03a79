//! P2 and P3: what one socket sent arrives at every recipient, in the order sent.

use std::collections::HashMap;

use serde_json::json;

use crate::{client::Client, harness::TestNode};

const SENDERS: u64 = 100;
const RECEIVERS: u64 = 200;
const MESSAGES: u64 = 50;

/// The same event name and, in between, another rule, so that rules do not overtake each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_out_of_order_among_many() {
    let node = TestNode::start(&[]).await;
    let mut receivers = Vec::new();
    for _ in 0..RECEIVERS {
        receivers.push(Client::connect(node.address).await);
    }
    let mut senders = Vec::new();
    for _ in 0..SENDERS {
        senders.push(Client::connect(node.address).await);
    }

    let mut tasks = tokio::task::JoinSet::new();
    for mut receiver in receivers {
        tasks.spawn(async move {
            receive_all(&mut receiver, None).await;
            receiver.leave().await;
        });
    }
    for (number, mut sender) in (0..SENDERS).zip(senders) {
        tasks.spawn(async move {
            for message in 0..MESSAGES {
                sender.emit(json!(["chat_message", number, message])).await;
                sender.emit(json!(["server_message", message])).await;
            }
            receive_all(&mut sender, Some(number)).await;
            sender.leave().await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("every client got everything in order");
    }
    node.until_empty().await;
    let deliveries = SENDERS * MESSAGES * (SENDERS + RECEIVERS + 1);
    assert_eq!(node.metric("antiphon_gateway_deliveries_total").await, deliveries as f64);
    assert_eq!(node.metric("antiphon_gateway_undelivered_total").await, 0.0);
}

/// Every message of every sender, each sender's in order; for a sender also its own echoes, each
/// after the broadcast that was sent before it.
async fn receive_all(client: &mut Client, own: Option<u64>) {
    let mut next: HashMap<u64, u64> = HashMap::new();
    let mut echoed = 0;
    let expected = SENDERS * MESSAGES + own.map_or(0, |_| MESSAGES);
    for _ in 0..expected {
        let event = client.event().await;
        if event[0] == "server_message" {
            let sender = own.expect("only senders get echoes");
            assert_eq!(event[1], echoed, "echoes in order");
            echoed += 1;
            assert_eq!(next.get(&sender), Some(&echoed), "echo after the broadcast before it");
            continue;
        }
        assert_eq!(event[0], "chat_message");
        let sender = event[1].as_u64().expect("a sender");
        let position = next.entry(sender).or_default();
        assert_eq!(event[2], *position, "sender {sender} in order");
        *position += 1;
    }
}
