//! What waits for clients and from them, all of it together, has one bound: the memory budget.

use std::{fs, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::{
    attacker::{
        BINARY, Bystander, ENDS, TEXT, TEXT_BEGINS, frame, request, silent, try_silent, write,
    },
    harness::{DEADLINE, get, open_polling},
    node::{MB, Node, eventually},
};

const BUDGET: u64 = 64 * MB;

/// Deadlines that end nobody within these tests, and the budget.
const SETTINGS: [&str; 5] = [
    "limits.memory=64MB",
    "limits.attachment_timeout=10m",
    "server.request_body_timeout=10m",
    "session.write_stall_timeout=10m",
    "session.connect_timeout=10m",
];

async fn closed_for_memory(node: &Node) -> f64 {
    let label = r#"reason="memory""#;
    node.metric("sessions_closed_total", label).await + node.metric("refusals_total", label).await
}

/// What the node says that it holds is within its budget.
async fn holds_no_more_than_it_may(node: &Node) {
    let held = node.metric("memory_bytes", "").await;
    assert!(held <= BUDGET as f64, "{held} bytes held");
}

/// Checks that the node stays within its budget during an attack that goes beyond it, and serves
/// others.
async fn stays_within_the_budget(node: &Node, attack: impl AsyncFnOnce()) {
    let mut bystander = Bystander::connect(node.address).await;
    bystander.p99(20).await;
    assert_eq!(node.metric("memory_bytes_max", "").await, BUDGET as f64);
    node.forget_peak();
    let memory = node.memory();
    attack().await;
    eventually("some are closed", async || {
        holds_no_more_than_it_may(node).await;
        closed_for_memory(node).await > 0.0
    })
    .await;
    let grown = node.peak_memory().saturating_sub(memory);
    // A quarter for what allocators keep, and for those who are no more than connected.
    assert!(grown < BUDGET * 5 / 4, "{grown} bytes more");
    bystander.p99(20).await;
}

/// Lets each of these clients send `message`.
async fn send(node: &Node, attackers: &mut [TcpStream], message: &[u8]) {
    for attacker in attackers {
        write(attacker, message).await;
        holds_no_more_than_it_may(node).await;
    }
}

async fn many(node: &Node, count: usize) -> Vec<TcpStream> {
    let mut attackers = Vec::new();
    for _ in 0..count {
        attackers.push(silent(node.address).await);
    }
    attackers
}

#[tokio::test]
async fn unfinished_attachments_stay_within_the_budget() {
    let node = Node::start(&SETTINGS).await;
    let header =
        br#"452-["chat_message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
    let message = [frame(TEXT, header), frame(BINARY, &[0; 900_000])].concat();
    let mut attackers = many(&node, 100).await;
    stays_within_the_budget(&node, async || send(&node, &mut attackers, &message).await).await;
}

/// The beginning of a text message of this size.
fn fragment(bytes: usize) -> Vec<u8> {
    let begin = r#"42["server_message",""#;
    frame(TEXT_BEGINS, format!("{begin}{}", "x".repeat(bytes - begin.len())).as_bytes())
}

#[tokio::test]
async fn unfinished_messages_stay_within_the_budget_and_the_largest_are_closed_first() {
    let node = Node::start(&SETTINGS).await;
    let mut small = many(&node, 10).await;
    for holder in &mut small {
        write(holder, &fragment(100_000)).await;
    }
    let (mut large, message) = (many(&node, 100).await, fragment(900_000));
    stays_within_the_budget(&node, async || send(&node, &mut large, &message).await).await;
    for mut holder in small {
        write(&mut holder, &frame(ENDS, b"\"]")).await;
        let mut answer = Vec::new();
        while !answer.windows(14).any(|part| part == b"server_message") {
            let read = timeout(DEADLINE, holder.read_buf(&mut answer)).await.expect("in time");
            assert!(read.expect("open") > 0, "a small holder is closed");
        }
    }
}

/// A polling session in "/": where it is.
async fn polling(node: &Node) -> String {
    let sid = open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    assert_eq!(post(node, &path, "40").await, 200);
    path
}

async fn post(node: &Node, path: &str, body: &str) -> u16 {
    request(node.address, [127, 0, 0, 1].into(), &format!("POST {path}"), body).await.0
}

#[tokio::test]
async fn unfinished_request_bodies_stay_within_the_budget() {
    let node = Node::start(&SETTINGS).await;
    let mut attackers = Vec::new();
    for _ in 0..100 {
        let path = polling(&node).await;
        let mut stream = TcpStream::connect(node.address).await.expect("the node listens");
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 900001\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("written");
        attackers.push(stream);
    }
    let body = [b'x'; 900_000];
    stays_within_the_budget(&node, async || send(&node, &mut attackers, &body).await).await;
}

#[tokio::test]
async fn answers_that_nobody_fetches_stay_within_the_budget() {
    let node = Node::start(&SETTINGS).await;
    let mut attackers = Vec::new();
    for _ in 0..25 {
        attackers.push(polling(&node).await);
    }
    let message = format!(r#"42["server_message","{}"]"#, "x".repeat(950_000));
    stays_within_the_budget(&node, async || {
        for attacker in &attackers {
            for _ in 0..4 {
                post(&node, attacker, &message).await;
                holds_no_more_than_it_may(&node).await;
            }
        }
    })
    .await;
}

/// Holds as much as one client can, again and again.
async fn hold(address: SocketAddr) {
    loop {
        if let Some(mut attacker) = try_silent(address, 4, Some(2048)).await {
            write(&mut attacker, &fragment(900_000)).await;
            let _ = attacker.read_to_end(&mut Vec::new()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_at_its_budget_is_unready_and_refuses_newcomers_until_there_is_room() {
    let node = Node::start(&SETTINGS).await;
    let mut bystander = Bystander::connect(node.address).await;
    let mut attackers = JoinSet::new();
    for _ in 0..100 {
        attackers.spawn(hold(node.address));
    }
    let mut unready = false;
    eventually("it is unready and refuses", async || {
        unready |= get(node.admin, "/readyz").await.0 == 503;
        // A newcomer, if the attackers are not enough of them.
        let _ = get(node.address, "/socket.io/?EIO=4&transport=polling").await;
        unready && node.metric("refusals_total", r#"reason="memory""#).await > 0.0
    })
    .await;
    assert_eq!(get(node.admin, "/healthz").await.0, 200, "it is not to be restarted");
    bystander.p99(10).await;
    attackers.shutdown().await;
    eventually("it is ready again", async || {
        get(node.admin, "/readyz").await.0 == 200 && node.metric("memory_bytes", "").await < 1e6
    })
    .await;
    assert_eq!(get(node.address, "/socket.io/?EIO=4&transport=polling").await.0, 200);
}

#[tokio::test]
async fn the_budget_comes_from_the_memory_that_there_is() {
    let node = Node::start(&[]).await;
    let budget = node.metric("memory_bytes_max", "").await;
    let memory = fs::read_to_string("/proc/meminfo").expect("Linux");
    let total = memory.lines().next().and_then(|line| line.split_whitespace().nth(1));
    let total =
        total.and_then(|kilobytes| kilobytes.parse::<f64>().ok()).expect("MemTotal") * 1024.0;
    assert!(budget > 0.0 && budget < total, "{budget} of {total} bytes");
}
