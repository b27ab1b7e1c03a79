//! Who the client is when a proxy stands between, and how many of them there may be.

use serde_json::json;

use crate::{client::Client, harness::TestNode};

const REFUSED: &str = r#"antiphon_gateway_refusals_total{reason="address_limit"}"#;

#[tokio::test]
async fn clients_behind_a_trusted_proxy_are_counted_by_their_own_address() {
    let settings = [("proxy.trusted", "127.0.0.0/8"), ("server.max_connections_per_ip", "1")];
    let node = TestNode::start(&settings).await;
    let from =
        async |client: &str| Client::open(node.address, &[("x-forwarded-for", client)]).await;
    let mut first = from("192.0.2.1").await.expect("the first of this address");
    first.send_text("40").await;
    first.next().await;
    let _other = from("192.0.2.2").await.expect("another address");
    assert!(from("192.0.2.1").await.is_err(), "one too many");
    assert!(
        from("6.6.6.6, 192.0.2.1").await.is_err(),
        "what the client wrote itself is not believed"
    );
    assert_eq!(node.metric(REFUSED).await, 2.0);
    first.leave().await;
    node.until("antiphon_gateway_sessions{", 1.0).await;
    from("192.0.2.1").await.expect("its place is free again");
}

#[tokio::test]
async fn a_header_from_anyone_else_is_ignored() {
    let settings = [("proxy.trusted", "10.0.0.0/8"), ("server.max_connections_per_ip", "2")];
    let node = TestNode::start(&settings).await;
    let from =
        async |client: &str| Client::open(node.address, &[("x-forwarded-for", client)]).await;
    let mut first = from("192.0.2.1").await.expect("free");
    let _second = from("192.0.2.2").await.expect("free");
    assert!(from("192.0.2.3").await.is_err(), "all three come from 127.0.0.1");
    assert_eq!(node.metric(REFUSED).await, 1.0);
    first.send_text("40").await;
    first.next().await;
    assert_eq!(first.ask(1, json!(["chat_message"])).await, json!([{ "ok": true }]));
}
