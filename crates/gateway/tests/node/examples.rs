//! Every file in `deploy/examples` does for its users what it says.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{client::Client, harness::TestNode};

fn example(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../deploy/examples").join(name)
}

async fn node(name: &str) -> TestNode {
    TestNode::start_with(Some(&example(name)), &[]).await
}

fn ok() -> Value {
    json!([{ "ok": true }])
}

#[test]
fn there_is_a_test_for_each() {
    let files = std::fs::read_dir(example(".")).expect("the folder");
    let mut names: Vec<_> = files.map(|file| file.expect("a file").file_name()).collect();
    names.sort();
    assert_eq!(names, ["chat.toml", "collaboration.toml", "game.toml", "notifications.toml"]);
}

#[tokio::test]
async fn chat() {
    let node = node("chat.toml").await;
    let mut a = Client::connect(node.address).await;
    let mut b = Client::connect(node.address).await;
    a.emit(json!(["chat_message", "hello"])).await;
    a.emit(json!(["server_message", 1])).await;
    assert_eq!(a.event().await, json!(["chat_message", "hello"]));
    assert_eq!(a.event().await, json!(["server_message", 1]));
    assert_eq!(b.event().await, json!(["chat_message", "hello"]));
}

#[tokio::test]
async fn notifications() {
    let node = node("notifications.toml").await;
    let mut phone = Client::connect(node.address).await;
    let mut laptop = Client::connect(node.address).await;
    let mut stranger = Client::connect(node.address).await;
    let mut backend = Client::connect(node.address).await;
    assert_eq!(phone.ask(1, json!(["subscribe", "user:1"])).await, ok());
    assert_eq!(laptop.ask(1, json!(["subscribe", "user:1"])).await, ok());
    assert_eq!(stranger.ask(1, json!(["subscribe", "user:2"])).await, ok());
    backend.emit(json!(["message", "user:1", {"title": "Order shipped"}])).await;
    backend.emit(json!(["message", "user:2", {"title": "Welcome"}])).await;
    for client in [&mut phone, &mut laptop] {
        assert_eq!(client.event().await, json!(["message", {"title": "Order shipped"}]));
    }
    assert_eq!(stranger.event().await, json!(["message", {"title": "Welcome"}]));
    assert_eq!(phone.ask(2, json!(["unsubscribe", "user:1"])).await, ok());
    backend.emit(json!(["message", "user:1", 2])).await;
    assert_eq!(laptop.event().await, json!(["message", 2]));
    assert_eq!(phone.ask(3, json!(["subscribe", "user:3"])).await, ok());
    backend.emit(json!(["message", "user:3", 3])).await;
    assert_eq!(phone.event().await, json!(["message", 3]), "nothing came after it had left");
}

#[tokio::test]
async fn collaboration() {
    let node = node("collaboration.toml").await;
    let mut a = Client::connect(node.address).await;
    let mut b = Client::connect(node.address).await;
    let not_joined = json!([{ "ok": false, "error": "not_joined" }]);
    assert_eq!(a.ask(1, json!(["edit", "doc", {"insert": "x"}])).await, not_joined);
    assert_eq!(a.ask(2, json!(["join_document", "doc"])).await, ok());
    assert_eq!(b.ask(2, json!(["join_document", "doc"])).await, ok());
    assert_eq!(a.ask(3, json!(["edit", "doc", {"insert": "x"}])).await, ok());
    assert_eq!(b.event().await, json!(["edit", {"insert": "x"}]));
    assert_eq!(a.ask(4, json!(["cursor", "doc", 1, 2])).await, ok());
    assert_eq!(b.event().await, json!(["cursor", 1, 2]));
    assert_eq!(b.ask(5, json!(["leave_document", "doc"])).await, ok());
    assert_eq!(b.ask(6, json!(["cursor", "doc", 1, 2])).await, not_joined);
}

#[tokio::test]
async fn game() {
    let node = node("game.toml").await;
    let mut host = Client::connect(node.address).await;
    let mut player = Client::connect(node.address).await;
    assert_eq!(host.ask(1, json!(["join_match", "m"])).await, ok());
    assert_eq!(player.ask(1, json!(["join_match", "m"])).await, ok());
    assert_eq!(host.ask(2, json!(["state", "m", {"tick": 1}])).await, ok());
    assert_eq!(player.event().await, json!(["state", {"tick": 1}]));
    // Far more input than anybody can give: the burst passes, the rest is refused.
    let limited = json!([{ "ok": false, "error": "rate_limited" }]);
    let mut answers = Vec::new();
    for id in 10..300 {
        answers.push(player.ask(id, json!(["input", "m", "left"])).await);
    }
    assert!(answers[..60].iter().all(|answer| *answer == ok()), "a burst passes");
    assert!(answers.contains(&limited), "a flood does not");
    assert_eq!(host.event().await, json!(["input", "left"]));
    assert_eq!(host.ask(3, json!(["leave_match", "m"])).await, ok());
}
