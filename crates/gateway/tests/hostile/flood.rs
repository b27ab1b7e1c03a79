//! Clients that send more than others.

use std::{
    io::Read,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::{
    attacker::{Bystander, TEXT, Written, blocking, flood, frame, request, silent, write},
    client::{Client, Packet},
    harness::{DEADLINE, get, open_polling},
    node::{MB, Node},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_messages_costs_others_no_message_and_no_time() {
    let node = Node::start(&[]).await;
    let mut bystander = Bystander::connect(node.address).await;
    bystander.p99(100).await;
    for reads in [true, false] {
        let attacker = blocking(silent(node.address).await);
        if reads {
            let mut answers = attacker.try_clone().expect("a descriptor");
            std::thread::spawn(move || {
                let mut part = vec![0; 65_536];
                while answers.read(&mut part).is_ok_and(|read| read > 0) {}
            });
        }
        flood(attacker, frame(TEXT, br#"42["server_message",1]"#).repeat(500));
        // Each message must be acknowledged as delivered.
        let p99 = bystander.p99(200).await;
        assert!(p99 < Duration::from_millis(50), "p99 of a bystander: {p99:?}, reads: {reads}");
    }
    let refused = node.metric("events_total", r#"outcome="overloaded""#).await;
    assert_eq!(refused, 0.0, "the flooder is not read from instead");
}

/// Writes all of these messages, reading whatever comes, and checks that each has come back.
async fn gets_all_back(address: SocketAddr, messages: usize) {
    let text = |number| format!(r#"42["server_message",{number}]"#);
    let (mut read, mut written) = silent(address).await.into_split();
    let frames: Vec<_> = (0..messages).flat_map(|n| frame(TEXT, text(n).as_bytes())).collect();
    let writing = tokio::spawn(async move {
        written.write_all(&frames).await.expect("the node takes them all");
        written
    });
    let mut answers = Vec::new();
    while !answers.ends_with(text(messages - 1).as_bytes()) {
        let read = timeout(DEADLINE, read.read_buf(&mut answers)).await.expect("in time");
        assert!(read.expect("open") > 0, "closed");
    }
    let (mut rest, mut number) = (answers.as_slice(), 0);
    // Frames shorter than 126 bytes: their length is one byte.
    while let [_, length, after @ ..] = rest {
        let (answer, after) = after.split_at(usize::from(*length));
        if answer != b"2" {
            assert_eq!(String::from_utf8_lossy(answer), text(number));
            number += 1;
        }
        rest = after;
    }
    drop(writing.await.expect("no panic"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_more_than_a_share_of_the_queue_waits_and_loses_nothing() {
    let node = Node::start(&[]).await;
    let mut senders = JoinSet::new();
    for _ in 0..8 {
        senders.spawn(gets_all_back(node.address, 10_000));
    }
    while let Some(ended) = senders.join_next().await {
        ended.expect("all of them came back, in order");
    }
}

#[tokio::test]
async fn a_namespace_with_an_endless_name_is_refused_and_not_kept() {
    let node = Node::start(&[]).await;
    let mut bystander = Bystander::connect(node.address).await;
    bystander.p99(100).await;
    let connect = format!("40/{}", "n".repeat(999_000));
    let mut client = Client::connect(node.address).await;
    client.send_text(&connect).await;
    assert!(matches!(client.next().await, Packet::Refused(_) | Packet::Closed));
    drop(client);

    let connect = frame(TEXT, connect.as_bytes());
    let before = node.memory();
    let mut attackers = vec![silent(node.address).await];
    for sent in 0..300 {
        match write(attackers.last_mut().expect("one"), &connect).await {
            Written::All => {}
            Written::Stalled if attackers.len() == 5 => break,
            Written::Stalled | Written::Closed => attackers.push(silent(node.address).await),
        }
        let grown = node.memory().saturating_sub(before);
        assert!(grown < 5 * MB, "{grown} bytes more after {sent} names of 999 kB");
    }
    bystander.p99(10).await;
}

/// Leaves "/" and comes back, so many times: the frames of both, in as many writes.
async fn leave_and_come_back(client: &mut TcpStream, times: usize, writes: &[Vec<u8>]) {
    client.set_nodelay(true).expect("set");
    for number in 0..times {
        for part in writes {
            client.write_all(part).await.expect("written");
        }
        let mut answer = Vec::new();
        while !answer.windows(3).any(|part| part == b"40{") {
            let read = timeout(Duration::from_secs(5), client.read_buf(&mut answer)).await;
            let read = read.unwrap_or_else(|_| panic!("CONNECT {number} is not answered"));
            assert!(read.expect("open") > 0, "closed at CONNECT {number}");
        }
    }
}

#[tokio::test]
async fn leaving_and_coming_back_in_one_write_is_answered_each_time() {
    let node = Node::start(&[]).await;
    let mut client = silent(node.address).await;
    let both = [frame(TEXT, b"41"), frame(TEXT, b"40")].concat();
    leave_and_come_back(&mut client, 200, &[both]).await;
    assert_eq!(node.sockets().await, 1.0);
    assert_eq!(node.metric("sockets_opened_total", "").await, 201.0);
}

#[tokio::test]
async fn leaving_and_coming_back_in_one_post_is_answered_each_time() {
    let node = Node::start(&[]).await;
    let sid = open_polling(node.address).await;
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let local = [127, 0, 0, 1].into();
    let posted = request(node.address, local, &format!("POST {path}"), "40").await;
    assert_eq!(posted.0, 200, "{posted:?}");
    let (mut sent, mut answered) = (1, 0);
    while answered < 50 {
        let (status, body) = get(node.address, &path).await;
        assert_eq!(status, 200, "{body}");
        answered += body.split('\x1e').filter(|packet| packet.starts_with("40{")).count();
        if answered == sent {
            let posted = request(node.address, local, &format!("POST {path}"), "41\x1e40").await;
            assert_eq!(posted.0, 200, "{posted:?}");
            sent += 1;
        }
    }
}

/// What a node may log about one client: a burst, and so much for each second.
fn log_is_bounded(log: &[Value], seconds: f64) {
    let bytes: usize = log.iter().map(|line| line.to_string().len() + 1).sum();
    let most = 64_000.0 + 4000.0 * seconds;
    assert!((bytes as f64) < most, "{bytes} bytes of log in {seconds} s");
}

#[tokio::test]
async fn leaving_and_coming_back_fills_no_log() {
    let node = Node::start(&[]).await;
    let started = Instant::now();
    let mut client = silent(node.address).await;
    leave_and_come_back(&mut client, 1000, &[frame(TEXT, b"41"), frame(TEXT, b"40")]).await;
    let seconds = started.elapsed().as_secs_f64();
    log_is_bounded(&node.stop().await, seconds);
}

#[tokio::test]
async fn bad_requests_fill_no_log() {
    let node = Node::start(&[]).await;
    let started = Instant::now();
    let client = reqwest::Client::new();
    for path in ["/socket.io/?EIO=4&transport=x", "/socket.io/?EIO=4&transport=polling&sid=x"] {
        for _ in 0..500 {
            let answer = client.get(format!("http://{}{path}", node.address)).send().await;
            assert_eq!(answer.expect("an answer").status().as_u16(), 400);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    log_is_bounded(&node.stop().await, seconds);
}

#[tokio::test]
async fn refused_origins_are_logged_and_fill_no_log() {
    let node = Node::start(&["cors.allowed_origins=https://app.example.com"]).await;
    let started = Instant::now();
    let client = reqwest::Client::new();
    let url = format!("http://{}/socket.io/?EIO=4&transport=polling", node.address);
    for _ in 0..1000 {
        let answer = client.get(&url).header("Origin", "https://evil.example.com").send().await;
        assert_eq!(answer.expect("an answer").status().as_u16(), 403);
    }
    let seconds = started.elapsed().as_secs_f64();
    let log = node.stop().await;
    log_is_bounded(&log, seconds);
    let told = log.iter().filter(|line| line.to_string().contains("evil.example.com")).count();
    assert!(told >= 1, "an operator must see it");
}
