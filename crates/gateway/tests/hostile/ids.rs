//! The id that clients see of each other opens nothing.

use serde_json::{Value, json};

use crate::{
    attacker::request,
    client::Client,
    harness::{get, open_polling},
    node::{Node, eventually},
};

const RULES: &str = "namespaces = [\"/\", \"/other\"]\n\
    [[event]]\nname = \"join\"\naction = \"join\"\n\
    [[event]]\nname = \"say\"\naction = \"room\"\n\
    [[event]]\nname = \"chat_message\"\naction = \"broadcast\"\n";

/// The id in the answer to a CONNECT packet.
fn socket_id(answer: &str) -> String {
    let at = answer.find('{').unwrap_or_else(|| panic!("connected: {answer}"));
    let body: Value = serde_json::from_str(&answer[at..]).expect("JSON");
    body["sid"].as_str().expect("an id").to_owned()
}

/// Connects a WebSocket to "/": the client and its socket id.
async fn connect(node: &Node) -> (Client, String) {
    let mut client = Client::open(node.address, &[]).await.expect("the handshake succeeds");
    client.send_text("40").await;
    let id = socket_id(&client.raw_text().await);
    (client, id)
}

fn is_public_id(id: &str) -> bool {
    id.len() == 20 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[tokio::test]
async fn a_socket_id_is_not_the_session_id_and_each_namespace_has_its_own() {
    let node = Node::start_with_file(RULES, &[]).await;
    let sid = open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let local = [127, 0, 0, 1].into();
    let mut ids = vec![sid.clone()];
    for packet in ["40", "40/other,"] {
        let posted = request(node.address, local, &format!("POST {path}"), packet).await;
        assert_eq!(posted.0, 200);
        let (status, body) = get(node.address, &path).await;
        assert_eq!(status, 200, "{body}");
        let connected = body.split('\x1e').find(|part| part.starts_with("40"));
        ids.push(socket_id(connected.expect("connected")));
    }
    let (mut other, id) = connect(&node).await;
    ids.push(id);
    other.send_text("40/other,").await;
    ids.push(socket_id(&other.raw_text().await));
    assert!(ids[1..].iter().all(|id| is_public_id(id)), "{ids:?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5, "all different: {ids:?}");
}

#[tokio::test]
async fn a_socket_id_opens_nothing() {
    let node = Node::start_with_file(RULES, &[]).await;
    let local = [127, 0, 0, 1].into();
    // One that polls and one over WebSocket.
    let sid = open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    assert_eq!(request(node.address, local, &format!("POST {path}"), "40").await.0, 200);
    let (_, body) = get(node.address, &path).await;
    let polling =
        socket_id(body.split('\x1e').find(|part| part.starts_with("40")).expect("connected"));
    let (mut victim, websocket) = connect(&node).await;
    for id in [polling, websocket] {
        let path = format!("/socket.io/?EIO=4&transport=polling&sid={id}");
        for (method, body) in [("GET", ""), ("POST", "1"), ("POST", "41"), ("POST", "42[\"x\"]")] {
            let answer = request(node.address, local, &format!("{method} {path}"), body).await;
            assert_eq!(
                (answer.0, answer.2.contains("Session ID unknown")),
                (400, true),
                "{answer:?}"
            );
        }
        assert!(Client::upgrading(node.address, &id).await.is_err(), "no upgrade");
    }
    assert_eq!(node.sockets().await, 2.0);
    assert_eq!(victim.ask(1, json!(["chat_message", 1])).await, json!([{ "ok": true }]));
}

#[tokio::test]
async fn a_room_named_by_a_live_socket_is_that_socket_and_nobody_can_join_it() {
    let node = Node::start_with_file(RULES, &[]).await;
    let (mut victim, id) = connect(&node).await;
    let (mut attacker, _) = connect(&node).await;
    let refused = json!([{ "ok": false, "error": "invalid_room" }]);
    assert_eq!(attacker.ask(1, json!(["join", id])).await, refused);
    assert_eq!(attacker.ask(2, json!(["say", id, "to you"])).await, json!([{ "ok": true }]));
    assert_eq!(victim.event().await, json!(["say", "to you"]));
    assert_eq!(attacker.ask(3, json!(["chat_message", "to all"])).await, json!([{ "ok": true }]));
    assert_eq!(attacker.event().await, json!(["chat_message", "to all"]), "and nothing before");

    // Another node may hold such a socket, so it is no name for a room even after its owner has left.
    victim.leave().await;
    eventually("the victim has left", async || node.sockets().await == 1.0).await;
    assert_eq!(attacker.ask(4, json!(["join", id])).await, refused);
}
