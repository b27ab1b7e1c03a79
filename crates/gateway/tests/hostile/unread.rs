//! Clients that send, or are sent to, and do not read.

use std::{
    fs,
    io::Write,
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    attacker::{Bystander, PING, TEXT, Written, blocking, frame, silent, try_silent, write},
    client::Client,
    harness::get,
    node::{MB, Node, eventually},
};

/// What allocators and the runtime take and give back by themselves.
const NOISE: u64 = MB;

const ATTACKERS: usize = 2;

/// Clients that send pings, 6 MB of them and then empty ones without end, and read no pong.
/// Returns when both have come to the empty ones, or the node has read nothing for half a second.
async fn ping_without_reading(node: &Node) {
    let (full, empty) = (frame(PING, &[0; 125]).repeat(1000), frame(PING, b"").repeat(1000));
    let rounds = 6 * MB as usize / full.len();
    let written = Arc::new(AtomicUsize::new(0));
    for _ in 0..ATTACKERS {
        let mut attacker = blocking(silent(node.address).await);
        let (full, empty, written) = (full.clone(), empty.clone(), Arc::clone(&written));
        thread::spawn(move || {
            for pings in iter::repeat_n(&full, rounds).chain(iter::repeat(&empty)) {
                if attacker.write_all(pings).is_err() {
                    return;
                }
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let (mut last, mut since) = (0, Instant::now());
    eventually("the attack is under way", async || {
        let now = written.load(Ordering::Relaxed);
        if now > last {
            (last, since) = (now, Instant::now());
        }
        now > ATTACKERS * (rounds + 100) || since.elapsed() > Duration::from_millis(500)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_whose_pongs_are_not_read_disturb_nobody_and_the_senders_are_closed() {
    let node = Node::start(&["session.write_stall_timeout=3s"]).await;
    let mut bystander = Bystander::connect(node.address).await;
    let _others = [Client::connect(node.address).await, Client::connect(node.address).await];
    let before = bystander.p99(300).await;
    let attack = ping_without_reading(&node);
    let chat = async {
        for _ in 0..5 {
            bystander.is_undisturbed(200, before).await;
            assert_eq!(get(node.admin, "/healthz").await.0, 200);
        }
    };
    tokio::join!(attack, chat);
    eventually("the attackers are closed", async || node.sockets().await == 3.0).await;
    bystander.is_undisturbed(300, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_whose_pongs_are_not_read_do_not_keep_a_node_from_ending() {
    let node = Node::start(&["drain.deadline=5s"]).await;
    let mut others = [Client::connect(node.address).await, Client::connect(node.address).await];
    ping_without_reading(&node).await;
    // Each of them is written to by whoever delivers.
    for number in 0..500 {
        for other in &mut others {
            other.emit(json!(["chat_message", number])).await;
        }
    }
    let stopping = Instant::now();
    node.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(6), "{:?}", stopping.elapsed());
}

/// Sends `message` again and again, 16 MB in all, while the memory of the node stays as it is.
async fn costs_no_memory(node: &Node, mut attacker: TcpStream, message: &[u8]) {
    let before = node.memory();
    let messages = message.repeat(250_000_usize.div_ceil(message.len()));
    let mut sent = 0;
    while sent < 16 * MB && write(&mut attacker, &messages).await == Written::All {
        sent += messages.len() as u64;
        let grown = node.memory().saturating_sub(before);
        assert!(grown < MB + NOISE, "{grown} bytes more after {sent} bytes of pings");
    }
}

#[tokio::test]
async fn pings_whose_pongs_are_not_read_cost_no_memory() {
    let node = Node::start(&[]).await;
    // What the node needs for any client, it needs once.
    Bystander::connect(node.address).await.p99(100).await;
    let attacker = silent(node.address).await;
    costs_no_memory(&node, attacker, &frame(PING, &[0; 125])).await;
}

#[tokio::test]
async fn pings_of_engine_io_3_whose_pongs_are_not_read_cost_no_memory() {
    let node = Node::start(&[]).await;
    Bystander::connect(node.address).await.p99(100).await;
    for payload in [0, 100_000] {
        let attacker = try_silent(node.address, 3, Some(2048)).await.expect("it is taken");
        costs_no_memory(&node, attacker, &frame(TEXT, "2".repeat(1 + payload).as_bytes())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_wait_for_many_clients_are_kept_once() {
    const MESSAGES: u64 = 5000;
    let node = Node::start(&["session.send_queue_bytes=20MB"]).await;
    let mut unread = Vec::new();
    for _ in 0..60 {
        unread.push(silent(node.address).await);
    }
    let mut sender = Client::connect(node.address).await;
    // More than the kernel takes, so that all the rest waits in the node.
    let filler = "x".repeat(900_000);
    for number in 0..10 {
        sender.emit(json!(["chat_message", number, filler])).await;
        assert_eq!(sender.event().await[1], number);
    }
    let before = node.memory();
    // One at a time, of 28 bytes each: no two of them go out together.
    for number in 1_000_000..1_000_000 + MESSAGES {
        sender.send_text(&format!(r#"42["chat_message",{number}]"#)).await;
        assert_eq!(sender.event().await[1], number);
    }
    let grown = node.memory().saturating_sub(before);
    // 40 MB for 9.7 MB of messages.
    let most = 40 * 28 * MESSAGES * 10 / 97 + 2 * NOISE;
    assert!(grown < most, "{grown} bytes more for {MESSAGES} messages of 28 bytes");
    assert_eq!(node.sockets().await, 61.0, "nobody is closed");
}

/// Bytes that the kernel still keeps to send for each connection that the node has closed.
fn orphans(node: &Node) -> Vec<u64> {
    let port = format!(":{:04X}", node.address.port());
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux");
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = columns.filter(|columns| columns[1].ends_with(&port));
    // FIN_WAIT1, CLOSING and LAST_ACK: closed on this side, with something to send.
    let closed = ours.filter(|columns| ["04", "0B", "09"].contains(&columns[3]));
    let waiting = closed.filter_map(|columns| {
        let (bytes, _) = columns[4].split_once(':')?;
        u64::from_str_radix(bytes, 16).ok()
    });
    waiting.filter(|bytes| *bytes > 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_closed_as_slow_leave_nothing_in_the_kernel() {
    let settings = ["session.send_queue_bytes=1000000", "session.write_stall_timeout=1s"];
    let node = Node::start(&settings).await;
    let mut slow = Vec::new();
    for _ in 0..5 {
        slow.push(try_silent(node.address, 4, None).await.expect("it is taken"));
    }
    let mut sender = Client::connect(node.address).await;
    let filler = "x".repeat(100_000);
    let mut sent = 0;
    while node.sockets().await > 1.0 {
        assert!(sent < 500, "50 MB went to clients that do not read");
        sender.emit(json!(["chat_message", sent, filler])).await;
        assert_eq!(sender.event().await[1], sent);
        sent += 1;
    }
    let (closed, mut kept) = (Instant::now(), orphans(&node));
    while !kept.is_empty() && closed.elapsed() < Duration::from_secs(2) {
        tokio::task::yield_now().await;
        kept = orphans(&node);
    }
    assert!(kept.is_empty(), "the kernel keeps bytes for clients that are closed: {kept:?}");
    drop(slow);
}
