//! Sessions that take places and connect to no namespace.

use std::net::Ipv4Addr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    attacker::{Bystander, request},
    harness::DEADLINE,
    node::{Node, eventually},
};

const OPEN: &str = "GET /socket.io/?EIO=4&transport=polling";

/// Opens a polling session: its id.
async fn open(node: &Node, from: Ipv4Addr) -> String {
    let (status, _, body) = request(node.address, from, OPEN, "").await;
    assert_eq!(status, 200, "{body}");
    let open: Value = serde_json::from_str(&body[1..]).expect("an open packet");
    open["sid"].as_str().expect("an id").to_owned()
}

/// The status of the answer to this session's CONNECT packet.
async fn connect(node: &Node, from: Ipv4Addr, sid: &str) -> u16 {
    let path = format!("POST /socket.io/?EIO=4&transport=polling&sid={sid}");
    request(node.address, from, &path, "40").await.0
}

fn local(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, host)
}

async fn sessions(node: &Node) -> f64 {
    node.metric("sessions", "").await
}

async fn never_connected(node: &Node) -> f64 {
    node.metric("sessions_closed_total", r#"reason="never_connected""#).await
}

#[tokio::test]
async fn sessions_that_connect_to_no_namespace_keep_nobody_out() {
    let node = Node::start(&["server.max_connections=3000"]).await;
    let mut member = Bystander::echoing(node.address).await;
    let (mut read, mut write) = TcpStream::connect(node.address).await.expect("open").into_split();
    let writing = tokio::spawn(async move {
        let requests = format!("{OPEN} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(3000);
        let _ = write.write_all(requests.as_bytes()).await;
        write
    });
    let (mut answers, mut answered) = (Vec::new(), 0);
    while answered < 3000 {
        // The beginning of an answer may be cut in two.
        answers.drain(..answers.len().saturating_sub(4));
        let read = timeout(DEADLINE, read.read_buf(&mut answers)).await.expect("in time");
        if read.is_ok_and(|read| read == 0) {
            break;
        }
        answered += answers.windows(5).filter(|part| part == b"HTTP/").count();
    }
    for _ in 0..10 {
        Bystander::echoing(node.address).await.p99(1).await;
        let sid = open(&node, local(1)).await;
        assert_eq!(connect(&node, local(1), &sid).await, 200);
    }
    assert!(never_connected(&node).await > 0.0);
    member.p99(10).await;
    drop(writing.await);
}

#[tokio::test]
async fn of_the_sessions_of_an_address_that_connect_to_no_namespace_the_oldest_yields() {
    let bounds =
        ["limits.max_unconnected_sessions=50", "limits.max_unconnected_sessions_per_ip=20"];
    let node = Node::start(&bounds).await;
    let member = open(&node, local(1)).await;
    assert_eq!(connect(&node, local(1), &member).await, 200);
    let other = open(&node, local(2)).await;
    let mut sids = Vec::new();
    for _ in 0..60 {
        sids.push(open(&node, local(1)).await);
    }
    eventually("the oldest are closed", async || never_connected(&node).await == 40.0).await;
    assert_eq!(sessions(&node).await, 22.0, "a member, one of another address, and the newest");
    for (number, sid) in sids.iter().enumerate() {
        let status = if number < 40 { 400 } else { 200 };
        assert_eq!(connect(&node, local(1), sid).await, status, "session {number}");
    }
    assert_eq!(connect(&node, local(2), &other).await, 200);
    assert_eq!(connect(&node, local(1), &member).await, 200, "members have their places");
}

#[tokio::test]
async fn of_all_sessions_that_connect_to_no_namespace_the_oldest_yields() {
    let bounds =
        ["limits.max_unconnected_sessions=50", "limits.max_unconnected_sessions_per_ip=20"];
    let node = Node::start(&bounds).await;
    let mut sids = Vec::new();
    for number in 0..100 {
        let from = local(1 + (number / 10) as u8);
        sids.push((from, open(&node, from).await));
    }
    eventually("the oldest are closed", async || never_connected(&node).await == 50.0).await;
    assert_eq!(sessions(&node).await, 50.0);
    assert_eq!(connect(&node, sids[0].0, &sids[0].1).await, 400);
    assert_eq!(connect(&node, sids[49].0, &sids[49].1).await, 400);
    assert_eq!(connect(&node, sids[50].0, &sids[50].1).await, 200);
    assert_eq!(connect(&node, sids[99].0, &sids[99].1).await, 200);
}
