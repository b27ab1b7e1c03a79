//! Messages that harm those who receive them, or that never end.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    attacker::{BINARY, Bystander, TEXT, frame, read_to_end, request, silent, write},
    client::{Client, Packet},
    harness::{DEADLINE, open_polling},
    node::{Node, eventually},
};

const ROOM_RULE: &str = "[[event]]\nname = \"say\"\naction = \"room\"\n\
    [[event]]\nname = \"join\"\naction = \"join\"\n\
    [[event]]\nname = \"chat_message\"\naction = \"broadcast\"\n\
    [[event]]\nname = \"server_message\"\naction = \"echo\"\n";

/// The longest run of digits that are not in a string.
fn longest_integer(text: &str) -> usize {
    let outside = text.split('"').step_by(2);
    let runs = outside.flat_map(|part| part.split(|c: char| !c.is_ascii_digit()));
    runs.map(str::len).max().unwrap_or(0)
}

#[tokio::test]
async fn an_integer_that_python_cannot_read_is_refused_or_arrives_as_node_sends_it() {
    let node = Node::start_with_file(ROOM_RULE, &[]).await;
    let mut sender = Client::connect(node.address).await;
    let mut reader = Client::connect(node.address).await;
    assert_eq!(sender.ask(0, json!(["join", "r"])).await, json!([{ "ok": true }]));
    assert_eq!(reader.ask(0, json!(["join", "r"])).await, json!([{ "ok": true }]));
    let integer = "7".repeat(4301);
    // The arguments before and after it.
    for (before, after) in [("", ""), ("-", ""), (r#"{"a":[1,"#, "]}"), (r#""x","#, r#","y""#)] {
        for event in ["\"chat_message\"", "\"say\",\"r\""] {
            sender.send_text(&format!("42[{event},{before}{integer}{after}]")).await;
            sender.emit(json!(["chat_message", "next"])).await;
            let mut texts = vec![reader.raw_text().await];
            while !texts.last().expect("one").contains("next") {
                texts.push(reader.raw_text().await);
            }
            let refused = sender.raw_text().await.contains("malformed");
            assert_eq!(texts.len(), if refused { 1 } else { 2 }, "refused: {refused}");
            // In Node it is Infinity, which JSON cannot write.
            assert!(refused || texts[0].contains("null"), "{:.60}", texts[0]);
            assert!(longest_integer(&texts[0]) <= 4300, "{:.60}", texts[0]);
            assert!(sender.raw_text().await.contains("next"));
        }
    }
}

#[tokio::test]
async fn long_numbers_that_everybody_can_read_arrive() {
    let node = Node::start(&[]).await;
    let mut client = Client::connect(node.address).await;
    let digits = "7".repeat(5000);
    for argument in
        [format!("\"{digits}\""), format!("0.{digits}"), format!("[\"\\\"\",\"{digits}\"]")]
    {
        client.send_text(&format!("42[\"server_message\",{argument}]")).await;
        let text = client.raw_text().await;
        assert!(text.starts_with("42[\"server_message\",") && text.len() > 5000, "{text:.60}");
    }
    // The longest integer that Python reads. Node writes null for it.
    let integer = &digits[..4300];
    client.send_text(&format!("42[\"server_message\",{integer}]")).await;
    let text = client.raw_text().await;
    let event = text.strip_prefix("42[\"server_message\",").expect("the event");
    assert!(event == format!("{integer}]") || event == "null]", "{text:.60}");
}

const TIMEOUT: Duration = Duration::from_millis(300);

/// Two attachments are due after it.
const HEADER: &str =
    r#"452-["chat_message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;

#[tokio::test]
async fn attachments_that_never_come_close_a_websocket() {
    let node = Node::start(&["limits.attachment_timeout=300ms"]).await;
    let mut bystander = Bystander::connect(node.address).await;
    let (header, first) = (frame(TEXT, HEADER.as_bytes()), frame(BINARY, &[0; 1000]));
    for sent in [header.clone(), [header, first].concat()] {
        let mut client = silent(node.address).await;
        let started = Instant::now();
        write(&mut client, &sent).await;
        read_to_end(&mut client).await;
        let closed = started.elapsed();
        assert!(closed >= TIMEOUT && closed < TIMEOUT * 10, "{closed:?}");
    }
    eventually("only the bystander is left", async || node.sockets().await == 1.0).await;
    bystander.p99(10).await;
}

#[tokio::test]
async fn attachments_that_never_come_close_a_polling_session() {
    let node = Node::start(&["limits.attachment_timeout=300ms"]).await;
    let sid = open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let local = [127, 0, 0, 1].into();
    let post = format!("POST {path}");
    assert_eq!(request(node.address, local, &post, "40").await.0, 200);
    let connected = request(node.address, local, &format!("GET {path}"), "").await;
    assert!(connected.2.contains("40{"), "{connected:?}");
    let started = Instant::now();
    assert_eq!(request(node.address, local, &post, HEADER).await.0, 200);
    eventually("the session is closed", async || node.sockets().await == 0.0).await;
    let closed = started.elapsed();
    assert!(closed >= TIMEOUT && closed < TIMEOUT * 10, "{closed:?}");
    let (status, _, body) = request(node.address, local, &post, "3").await;
    assert_eq!((status, body.contains("Session ID unknown")), (400, true), "{body}");
}

#[tokio::test]
async fn attachments_that_come_in_time_close_nobody() {
    let node = Node::start(&["limits.attachment_timeout=300ms"]).await;
    let mut client = Client::connect(node.address).await;
    let started = Instant::now();
    let mut messages = 0;
    // Each time the deadline is another one.
    while started.elapsed() < TIMEOUT * 3 {
        client.send_text(HEADER).await;
        client.send_binary(b"one").await;
        client.send_binary(b"two").await;
        let received = tokio::time::timeout(DEADLINE, client.next()).await.expect("in time");
        let Packet::Event(_, attachments) = received else { panic!("{received:?}") };
        assert_eq!(attachments, [b"one", b"two"]);
        messages += 1;
    }
    assert!(messages > 3);
}
