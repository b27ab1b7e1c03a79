//! What each kind of rule does, with and without acknowledgements.

use serde_json::json;

use crate::{
    client::{Client, Packet},
    harness::TestNode,
};

/// One rule of each kind.
pub(crate) const RULES: &str = r#"
namespaces = ["/", "/other"]

[limits]
max_rooms_per_socket = 2
max_room_name_bytes = 8

[[event]]
name = "to_all"
action = "broadcast"

[[event]]
name = "to_others"
action = "broadcast"
to = "others"

[[event]]
name = "cursor"
action = "broadcast"
volatile = true

[[event]]
name = "ping_me"
action = "echo"
as = "pong"

[[event]]
name = "join"
action = "join"

[[event]]
name = "leave"
action = "leave"

[[event]]
name = "say"
action = "room"

[[event]]
name = "say_others"
action = "room"
to = "others"
require_joined = true

[[event]]
name = "small"
action = "echo"
max_bytes = 24

[[event]]
name = "seldom"
action = "echo"
rate = { per_second = 1, burst = 3 }

[[event]]
name = "to_all"
namespace = "/other"
action = "broadcast"
"#;

fn refused(reason: &str) -> serde_json::Value {
    json!([{ "ok": false, "error": reason }])
}

fn ok() -> serde_json::Value {
    json!([{ "ok": true }])
}

async fn three(node: &TestNode) -> [Client; 3] {
    [
        Client::connect(node.address).await,
        Client::connect(node.address).await,
        Client::connect(node.address).await,
    ]
}

#[tokio::test]
async fn broadcasts_reach_all_or_others_with_the_same_arguments() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let [mut a, mut b, mut c] = three(&node).await;
    let event = json!(["to_all", {"z": 1, "a": [null, 1.5]}, "zwei", "\u{1f600}"]);
    a.emit(event.clone()).await;
    for client in [&mut a, &mut b, &mut c] {
        assert_eq!(client.event().await, event);
    }
    assert_eq!(a.ask(7, json!(["to_others", 1])).await, ok());
    assert_eq!(a.ask(8, json!(["to_all"])).await, ok());
    assert_eq!(a.event().await, json!(["to_all"]), "the sender did not get its own");
    assert_eq!(b.event().await, json!(["to_others", 1]));
    assert_eq!(b.event().await, json!(["to_all"]));
    assert_eq!(c.event().await, json!(["to_others", 1]));
    a.emit(json!(["cursor", 3, 4])).await;
    assert_eq!(c.event().await, json!(["to_all"]));
    assert_eq!(c.event().await, json!(["cursor", 3, 4]));
}

#[tokio::test]
async fn the_text_of_a_payload_is_not_printed_anew() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut client = Client::connect(node.address).await;
    // An escape, an exponent, a large number, a repeated key: each would change on the way through
    // a parser and a printer. They compare as text below, so the client must not parse them.
    client
        .send_text(r#"42["to_all","\ud83d",1e2,12345678901234567890123,{"b":1,"a":2,"b":3}]"#)
        .await;
    let text = client.raw_text().await;
    assert_eq!(text, r#"42["to_all","\ud83d",1e2,12345678901234567890123,{"b":1,"a":2,"b":3}]"#);
}

#[tokio::test]
async fn attachments_travel_with_their_event() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let [mut a, mut b, _c] = three(&node).await;
    let text = r#"["to_all",{"_placeholder":true,"num":0},[{"_placeholder":true,"num":1}]]"#;
    a.send_text(&format!("452-{text}")).await;
    a.send_binary(&[1, 2, 3]).await;
    a.send_binary(&[]).await;
    for client in [&mut a, &mut b] {
        let Packet::Event(event, attachments) = client.next().await else { panic!("no event") };
        assert_eq!(json!(event), serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
        assert_eq!(attachments, [vec![1, 2, 3], vec![]]);
    }
}

#[tokio::test]
async fn echoes_come_back_under_another_name_to_the_sender_alone() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let [mut a, mut b, _c] = three(&node).await;
    assert_eq!(a.ask(1, json!(["ping_me", 1, {"x": []}])).await, ok());
    assert_eq!(a.event().await, json!(["pong", 1, {"x": []}]));
    a.emit(json!(["to_all"])).await;
    assert_eq!(b.event().await, json!(["to_all"]), "nothing came before it");
}

#[tokio::test]
async fn rooms_have_members_and_those_who_are_not() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let [mut a, mut b, mut c] = three(&node).await;
    assert_eq!(a.ask(1, json!(["join", "r"])).await, ok());
    assert_eq!(b.ask(1, json!(["join", "r"])).await, ok());
    assert_eq!(b.ask(2, json!(["join", "r"])).await, ok(), "twice is once");

    assert_eq!(a.ask(2, json!(["say", "r", 1, 2])).await, ok());
    assert_eq!(a.event().await, json!(["say", 1, 2]));
    assert_eq!(b.event().await, json!(["say", 1, 2]));
    assert_eq!(c.ask(1, json!(["say", "r", 3])).await, ok(), "anyone may, unless the rule forbids");
    assert_eq!(b.event().await, json!(["say", 3]));

    assert_eq!(a.ask(3, json!(["say_others", "r", 4])).await, ok());
    assert_eq!(b.event().await, json!(["say_others", 4]));
    assert_eq!(c.ask(2, json!(["say_others", "r", 5])).await, refused("not_joined"));
    let reached = async |event: &str| {
        let labels = format!("{{event=\"{event}\",namespace=\"/\"}}");
        node.metric(&format!("antiphon_gateway_recipients_total{labels}")).await
    };
    assert_eq!((reached("say").await, reached("say_others").await), (4.0, 1.0));
    assert_eq!(node.metric("antiphon_gateway_recipients_total{").await, 5.0, "and no other rule");

    // One after another without waiting: each sees what the one before did.
    a.emit(json!(["leave", "r"])).await;
    a.emit(json!(["say_others", "r", 6])).await;
    let answer = a.ask(4, json!(["leave", "never joined"])).await;
    assert_eq!(answer, refused("room_name_too_long"));
    assert_eq!(a.event().await, json!(["say", 3]));
    let error = json!({"ok": false, "error": "not_joined", "event": "say_others"});
    assert_eq!(a.event().await, json!(["error", error]));
    assert_eq!(a.ask(5, json!(["leave", "s"])).await, ok());
}

#[tokio::test]
async fn refusals_are_answered_from_the_closed_list() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut client = Client::connect(node.address).await;
    for (id, event, answer) in [
        (1, json!(["small", "123456789"]), ok()),
        (2, json!(["small", "1234567890123456789"]), refused("too_large")),
        (3, json!(["seldom"]), ok()),
        (4, json!(["seldom"]), ok()),
        (5, json!(["seldom"]), ok()),
        (6, json!(["seldom"]), refused("rate_limited")),
        (7, json!(["join"]), refused("invalid_room")),
        (8, json!(["join", 5]), refused("invalid_room")),
        (9, json!(["join", ""]), refused("invalid_room")),
        (10, json!(["say", ["r"], 1]), refused("invalid_room")),
        (11, json!(["join", "123456789"]), refused("room_name_too_long")),
        (12, json!(["join", "one"]), ok()),
        (13, json!(["join", "two"]), ok()),
        (14, json!(["join", "three"]), refused("too_many_rooms")),
        (15, json!(["leave", "one"]), ok()),
        (16, json!(["join", "three"]), ok()),
        (17, json!(["nobody listens"]), refused("unknown_event")),
    ] {
        assert_eq!(client.ask(id, event.clone()).await, answer, "{event}");
    }
    let counted = |event: &str, outcome: &str| {
        format!(
            r#"antiphon_gateway_events_total{{event="{event}",namespace="/",outcome="{outcome}"}}"#
        )
    };
    assert_eq!(node.metric(&counted("seldom", "ok")).await, 3.0);
    assert_eq!(node.metric(&counted("seldom", "rate_limited")).await, 1.0);
    assert_eq!(node.metric(&counted("other", "unknown_event")).await, 1.0);
    let fan_outs = node.metric("antiphon_gateway_fanout_seconds_count ").await;
    assert_eq!(fan_outs, 4.0, "what was delivered; joins and refusals are none");
    client.leave().await;
    node.until_empty().await;
}

#[tokio::test]
async fn a_rate_is_each_connections_own() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let [mut a, mut b, _c] = three(&node).await;
    for id in 0..3 {
        assert_eq!(a.ask(id, json!(["seldom"])).await, ok());
    }
    assert_eq!(a.ask(3, json!(["seldom"])).await, refused("rate_limited"));
    assert_eq!(b.ask(0, json!(["seldom"])).await, ok());
}

#[tokio::test]
async fn leaving_and_coming_back_does_not_refill_a_rate() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut client = Client::connect(node.address).await;
    for id in 0..3 {
        assert_eq!(client.ask(id, json!(["seldom"])).await, ok());
        client.event().await;
    }
    client.send_text("41").await;
    client.send_text("40").await;
    assert_eq!(client.next().await, Packet::Connected);
    assert_eq!(client.ask(3, json!(["seldom"])).await, refused("rate_limited"));
}

#[tokio::test]
async fn volatile_events_keep_their_place_among_the_others() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let [mut a, mut b, _c] = three(&node).await;
    for number in 0..100 {
        a.emit(json!([if number % 2 == 0 { "cursor" } else { "to_all" }, number])).await;
        // Nobody is behind, so nothing is left out.
        for client in [&mut a, &mut b] {
            assert_eq!(client.event().await[1], number);
        }
    }
}

#[tokio::test]
async fn namespaces_have_their_own_events_and_sockets() {
    let node = TestNode::start_with_file(RULES, &[]).await;
    let mut root = Client::connect(node.address).await;
    let mut other = Client::connect_to(node.address, "/other").await;
    assert_eq!(other.ask(1, json!(["join", "r"])).await, refused("unknown_event"));
    assert_eq!(other.ask(2, json!(["to_all", 1])).await, ok());
    assert_eq!(other.event().await, json!(["to_all", 1]));
    assert_eq!(root.ask(1, json!(["ping_me"])).await, ok());
    assert_eq!(root.event().await, json!(["pong"]), "nothing came over from the other namespace");
}

#[tokio::test]
async fn a_full_stage_refuses_and_keeps_what_it_took() {
    // One event of more than 4,000 bytes may be in the stage at a time. In this test everything runs
    // on one thread, so events that arrive together pile up there.
    let settings = [("stage.max_bytes", "4000"), ("limits.max_message_bytes", "4000")];
    let node = TestNode::start(&settings).await;
    let mut client = Client::connect(node.address).await;
    let filler = "x".repeat(3000);
    for number in 0..20 {
        client.emit(json!(["chat_message", number, filler])).await;
    }
    let (mut last, mut arrived, mut overloaded) = (-1, 0.0, 0.0);
    for _ in 0..20 {
        let event = client.event().await;
        if event[0] == "error" {
            assert_eq!(event[1]["error"], "overloaded");
            overloaded += 1.0;
        } else {
            let number = event[1].as_i64().expect("a number");
            assert!(number > last, "in order");
            (last, arrived) = (number, arrived + 1.0);
        }
    }
    let counted = r#"antiphon_gateway_events_total{event="chat_message",namespace="/",outcome="#;
    assert_eq!(node.metric(&format!(r#"{counted}"ok""#)).await, arrived);
    assert_eq!(node.metric(&format!(r#"{counted}"overloaded""#)).await, overloaded);
    assert!(arrived >= 1.0, "one event always fits");
    client.leave().await;
    node.until_empty().await;
}
