//! The admin listener: what it answers, to whom, and that it does when nothing else does.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    client::{Client, Packet},
    harness::{TestNode, get},
};

async fn request(
    method: &str,
    address: SocketAddr,
    path: &str,
    token: Option<&str>,
) -> (u16, String) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    let mut request = reqwest::Client::new().request(method, format!("http://{address}{path}"));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("a body"))
}

#[tokio::test]
async fn readiness_says_each_condition() {
    let node = TestNode::start(&[]).await;
    let (status, body) = get(node.admin, "/readyz").await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let conditions = json!({
        "started": true, "not_draining": true, "not_overloaded": true, "memory": true,
        "not_stuck": true
    });
    assert_eq!(
        (status, body),
        (200, json!({ "ready": true, "conditions": conditions, "why_not": [] }))
    );
    assert_eq!(node.metric("antiphon_gateway_ready ").await, 1.0);
}

#[tokio::test]
async fn a_node_can_be_told_to_leave_and_waits_for_balancers_first() {
    let settings = [("drain.delay", "1h"), ("drain.spread", "0s"), ("drain.deadline", "2h")];
    let node = TestNode::start(&settings).await;
    let mut client = Client::connect(node.address).await;
    assert_eq!(request("POST", node.admin, "/drain", None).await.0, 202);
    let (status, body) = get(node.admin, "/readyz").await;
    assert!(status == 503 && body.contains("shutting down"), "{body}");
    // Whom a balancer still sends is served.
    let mut late = Client::connect(node.address).await;
    late.ask(1, json!(["chat_message", "late"])).await;
    assert_eq!(late.event().await[1], "late");
    assert_eq!(client.event().await[1], "late");
    node.shutdown.hurry.cancel();
    assert_eq!(client.next().await, Packet::Closed);
    node.ended().await;
}

#[tokio::test]
async fn with_a_token_strangers_get_health_and_nothing_else() {
    let node = TestNode::start(&[("admin.token", "s3cret")]).await;
    for (method, path) in
        [("GET", "/metrics"), ("POST", "/drain"), ("GET", "/log"), ("PUT", "/log")]
    {
        for token in [None, Some("s3cre"), Some("s3cret2"), Some("")] {
            assert_eq!(
                request(method, node.admin, path, token).await.0,
                401,
                "{method} {path} {token:?}"
            );
        }
    }
    assert_eq!(request("GET", node.admin, "/metrics", Some("s3cret")).await.0, 200);
    assert_eq!(get(node.admin, "/healthz").await.0, 200);
    assert_eq!(get(node.admin, "/readyz").await.0, 200, "it was not drained");
}

#[tokio::test]
async fn nothing_of_it_is_on_the_public_port() {
    let node = TestNode::start(&[]).await;
    for path in
        ["/healthz", "/readyz", "/metrics", "/log", "/drain", "//metrics", "/socket.io/../metrics"]
    {
        let address = node.address;
        let answer = tokio::task::spawn_blocking(move || ask(address, path)).await.expect("asked");
        let refused = ["HTTP/1.1 404", "HTTP/1.1 400"].iter().any(|head| answer.starts_with(head));
        assert!(refused, "{path}: {answer}");
    }
}

#[tokio::test]
async fn web_pages_cannot_use_that_no_token_is_needed_here() {
    let node = TestNode::start(&[]).await;
    let post = |headers: &[(&'static str, &'static str)]| {
        let request = reqwest::Client::new().post(format!("http://{}/drain", node.admin));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send()
    };
    // A form of another site, and a name that has been pointed here.
    for headers in [&[("origin", "http://127.0.0.1")][..], &[("host", "evil.example:9464")]] {
        let answer = post(headers).await.expect("an answer");
        assert_eq!(answer.status(), 403, "{headers:?}");
    }
    assert_eq!(get(node.admin, "/readyz").await.0, 200, "it was not drained");
    let answer = post(&[("host", "localhost:9464")]).await.expect("an answer");
    assert_eq!(answer.status(), 202);
    node.ended().await;
}

#[tokio::test]
async fn who_only_connects_does_not_keep_others_from_asking() {
    let node = TestNode::start(&[]).await;
    // More than may be connected at a time.
    let silent: Vec<_> =
        (0..70).map(|_| TcpStream::connect(node.admin).expect("it listens")).collect();
    assert_eq!(get(node.admin, "/healthz").await.0, 200);
    drop(silent);
}

/// A GET without any runtime.
fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(crate::harness::DEADLINE)).expect("a time");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn it_answers_while_the_node_is_stuck() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let node = runtime.block_on(TestNode::start(&[]));
    let (stuck, is_stuck) = mpsc::channel();
    let (free, until_free) = mpsc::channel::<()>();
    runtime.spawn(async move {
        stuck.send(()).expect("the test waits");
        let _ = until_free.recv();
    });
    is_stuck.recv().expect("the only worker is blocked");
    assert!(ask(node.admin, "/healthz").starts_with("HTTP/1.1 200"), "not for long enough yet");
    assert!(ask(node.admin, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(ask(node.admin, "/metrics").contains("antiphon_gateway_ready 1"));
    answers_in_time(node.admin, "/healthz", "stuck: no task has run");
    answers_in_time(node.admin, "/readyz", "\"not_stuck\":false");
    assert!(ask(node.admin, "/metrics").contains("antiphon_gateway_ready 0"));
    drop(free);
    answers_in_time(node.admin, "/healthz", "HTTP/1.1 200");
    assert!(ask(node.admin, "/readyz").starts_with("HTTP/1.1 200"));
}

/// Asks until the answer has `what` in it: a node counts as stuck after a quarter of a minute.
#[track_caller]
fn answers_in_time(address: SocketAddr, path: &str, what: &str) {
    let deadline = Instant::now() + 2 * crate::harness::DEADLINE;
    while !ask(address, path).contains(what) {
        assert!(Instant::now() < deadline, "{path} never says {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test]
async fn what_a_node_shows_is_what_metrics_md_lists() {
    let node = TestNode::start(&[]).await;
    let (_, shown) = get(node.admin, "/metrics").await;
    let shown: HashSet<_> =
        shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let listed = include_str!("../../../metrics/METRICS.md").lines();
    let listed: HashSet<_> =
        listed.filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(shown.difference(&listed).next(), None, "not listed");
    // Of a node by itself, in a process with other tests.
    let elsewhere = ["antiphon_adapter_", "antiphon_bus_", "antiphon_traces_", "antiphon_log_"];
    let here = |name: &&&str| !elsewhere.iter().any(|prefix| name.starts_with(prefix));
    assert_eq!(listed.difference(&shown).find(here), None, "not shown");
}
