//! What proxies and balancers see of the node.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::client_async;

use crate::{
    attacker::{read_to_end, request},
    harness::DEADLINE,
    node::Node,
};

const OPEN: &str = "GET /socket.io/?EIO=4&transport=polling";

fn set_cookie(head: &str) -> Vec<&str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let cookies = fields.filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    cookies.map(|(_, value)| value).collect()
}

#[tokio::test]
async fn a_cookie_has_the_session_id_for_balancers_that_rely_on_it() {
    let node = Node::start(&["session.cookie=io"]).await;
    let local = [127, 0, 0, 1].into();
    for revision in [3, 4] {
        let open = OPEN.replace('4', &revision.to_string());
        let (status, head, body) = request(node.address, local, &open, "").await;
        assert_eq!(status, 200, "{body}");
        let body = &body[body.find('{').expect("an open packet")..];
        let body = &body[..=body.find('}').expect("its end")];
        let sid = serde_json::from_str::<Value>(body).expect("JSON")["sid"].clone();
        let sid = sid.as_str().expect("an id");
        let expected = format!("io={sid}; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(set_cookie(&head), [expected], "as Node");

        // Only on the answer to the handshake.
        let packet = if revision == 3 { "1:2" } else { "40" };
        for (method, packet) in [("POST", packet), ("GET", "")] {
            let path = format!("{method} /socket.io/?EIO={revision}&transport=polling&sid={sid}");
            let (status, head, body) = request(node.address, local, &path, packet).await;
            assert_eq!((status, set_cookie(&head)), (200, vec![]), "{body}");
        }
    }
    // Node sets none on a WebSocket's handshake.
    let stream = TcpStream::connect(node.address).await.expect("the node listens");
    let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", node.address);
    let (_socket, answer) = client_async(url, stream).await.expect("the handshake succeeds");
    assert!(!answer.headers().contains_key("set-cookie"), "{answer:?}");
}

#[tokio::test]
async fn there_is_no_cookie_unless_it_is_set() {
    let node = Node::start(&[]).await;
    let (status, head, _) = request(node.address, [127, 0, 0, 1].into(), OPEN, "").await;
    assert_eq!((status, set_cookie(&head)), (200, vec![]));
}

#[tokio::test]
async fn requests_for_sessions_of_other_nodes_are_told_apart_and_logged_a_few_times() {
    const REQUESTS: usize = 200;
    let node = Node::start(&[]).await;
    let started = Instant::now();
    for _ in 0..REQUESTS {
        let path = format!("{OPEN}&sid=AAAAAAAAAAAAAAAAAAAA");
        let answer = request(node.address, [127, 0, 0, 1].into(), &path, "").await;
        assert_eq!((answer.0, answer.2.contains("Session ID unknown")), (400, true), "{answer:?}");
    }
    let counted = node.metric("refusals_total", r#"reason="unknown_session""#).await;
    assert_eq!(counted, REQUESTS as f64);
    assert_eq!(node.metric("refusals_total", r#"reason="bad_request""#).await, 0.0);
    let seconds = started.elapsed().as_secs() as usize;
    let log = node.stop().await;
    let told = log.iter().filter(|line| line.to_string().contains("sticky sessions"));
    let levels: Vec<_> = told.map(|line| line["level"].as_str().expect("a level")).collect();
    assert!(!levels.is_empty() && levels.iter().all(|level| *level == "WARN"), "{levels:?}");
    assert!(levels.len() <= 5 + seconds, "{} times", levels.len());
}

/// Sends a request over an open connection and reads its answer.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(format!("{OPEN} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("open");
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = timeout(DEADLINE, stream.read_buf(&mut answer)).await.expect("in time");
        assert!(read.expect("open") > 0, "closed");
    }
    String::from_utf8(answer).expect("UTF-8")
}

/// Sends part of a request's head: how long it takes the node to close the connection.
async fn unfinished_head(stream: &mut TcpStream) -> Duration {
    let started = Instant::now();
    stream.write_all(b"GET /socket.io/ HTTP/1.1\r\nHost:").await.expect("open");
    read_to_end(stream).await;
    started.elapsed()
}

#[tokio::test]
async fn an_idle_connection_stays_open_longer_than_the_head_of_a_request_may_take() {
    let node = Node::start(&["server.request_head_timeout=200ms"]).await;
    let mut idle = TcpStream::connect(node.address).await.expect("the node listens");
    assert!(ask(&mut idle).await.starts_with("HTTP/1.1 200"));
    for _ in 0..3 {
        let mut other = TcpStream::connect(node.address).await.expect("the node listens");
        let closed = unfinished_head(&mut other).await;
        assert!(closed >= Duration::from_millis(200), "{closed:?}");
    }
    assert!(ask(&mut idle).await.starts_with("HTTP/1.1 200"), "after 600 ms");
    // The head of the next request has the same time as that of the first.
    let closed = unfinished_head(&mut idle).await;
    assert!(closed < Duration::from_secs(5), "{closed:?}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_own_time() {
    let node = Node::start(&["server.keep_alive_timeout=300ms"]).await;
    let mut idle = TcpStream::connect(node.address).await.expect("the node listens");
    ask(&mut idle).await;
    let started = Instant::now();
    read_to_end(&mut idle).await;
    let closed = started.elapsed();
    assert!(closed >= Duration::from_millis(250) && closed < Duration::from_secs(5), "{closed:?}");
}

#[test]
fn idle_connections_are_kept_longer_than_balancers_keep_theirs() {
    let command = Command::new(env!("CARGO_BIN_EXE_antiphon")).arg("print-config").output();
    let printed = String::from_utf8(command.expect("it runs").stdout).expect("UTF-8");
    let value = printed.lines().find_map(|line| line.strip_prefix("keep_alive_timeout = "));
    let value = value.expect("a setting of its own").trim_matches('"');
    let timeout = humantime::parse_duration(value).expect("a duration");
    assert!(timeout >= Duration::from_secs(75), "{value}");
}
