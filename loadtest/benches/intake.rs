//! How many deliveries one core of the load test takes in, with the oracle on:
//! `cargo bench -p antiphon-loadtest --bench intake`.
//!
//! The server is a thread that does next to nothing: what the one sender sends, it writes to all clients, all that
//! has come in one write for each. What is measured is the CPU time of the thread with the clients, so the server
//! needs no core of its own, though it helps. Below five million the bench fails.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;

use antiphon_loadtest::live::Live;
use antiphon_loadtest::report::Report;
use antiphon_loadtest::scenario::{self, Flags};

#[path = "../tests/runs/frames.rs"]
mod frames;

use frames::{push_frame, take_frame};

/// Deliveries a second of CPU that the load test must take in, so that it does not measure itself.
const NEEDED_PER_S: f64 = 5e6;
const CLIENTS: usize = 100;
/// Enough for writes as large as a busy server's.
const IN_FLIGHT: usize = 512;
/// A short chat message.
const BYTES: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test` runs it as well, to see that it works.
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let (rounds, duration) = if measuring { (3, "5s") } else { (1, "200ms") };
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let report = round(duration)?;
        if !report.passed {
            return Err(report.table().into());
        }
        let rate = 1e6 / report.client.cpu_us_per_delivery;
        println!(
            "{:.2} M deliveries of {BYTES} bytes for each second of CPU ({:.2} M a second by the clock), p99 {} µs",
            rate / 1e6,
            report.totals.deliveries_per_s / 1e6,
            report.latency_us.p99,
        );
        if rates.is_empty() {
            let commit = report.commit.as_deref().unwrap_or("unknown");
            println!(
                "{}, {} cores, Linux {}, commit {commit}",
                report.machine.cpu, report.machine.cores, report.machine.kernel
            );
        }
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    if measuring && median < NEEDED_PER_S {
        return Err(format!(
            "{median:.0} a second are too few: the load test would measure itself"
        )
        .into());
    }
    Ok(())
}

fn round(duration: &str) -> Result<Report, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || serve(&listener));
    let report = load(address, duration);
    server.join().map_err(|_| "the server panicked")??;
    report
}

fn load(address: SocketAddr, duration: &str) -> Result<Report, Box<dyn Error>> {
    let flags = Flags {
        urls: vec![format!("http://{address}")],
        clients: Some(CLIENTS.to_string()),
        senders: Some("1".into()),
        in_flight: Some(IN_FLIGHT.to_string()),
        bytes: Some(BYTES.to_string()),
        threads: Some("1".into()),
        warm_up: Some("500ms".into()),
        duration: Some(duration.into()),
        ..Flags::default()
    };
    let plan = scenario::plan("chat", &flags)?;
    Ok(antiphon_loadtest::run(plan, "intake", &AtomicBool::new(false), &mut Live::new(true))?)
}

/// Serves until the sender, who comes first, goes.
fn serve(listener: &TcpListener) -> io::Result<()> {
    let mut clients = Vec::new();
    while clients.len() < CLIENTS {
        // The load test tries the server once before its clients come: that one goes again.
        clients.extend(welcome(listener.accept()?.0).ok());
    }
    let mut sender = clients[0].try_clone()?;
    let (mut bytes, mut frames) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let count = match sender.read(&mut chunk) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => count,
        };
        bytes.extend_from_slice(&chunk[..count]);
        while let Some(packet) = take_frame(&mut bytes) {
            push_frame(&mut frames, &packet);
        }
        for client in &mut clients {
            if client.write_all(&frames).is_err() {
                return Ok(());
            }
        }
        frames.clear();
    }
}

/// Handshakes of WebSocket, Engine.IO and Socket.IO.
fn welcome(mut socket: TcpStream) -> io::Result<TcpStream> {
    let mut bytes = Vec::new();
    let read = |socket: &mut TcpStream, bytes: &mut Vec<u8>| {
        let mut chunk = [0; 1024];
        match socket.read(&mut chunk)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            count => {
                bytes.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    };
    while !bytes.ends_with(b"\r\n\r\n") {
        read(&mut socket, &mut bytes)?;
    }
    bytes.clear();
    // The answer to the key that RFC 6455 has as its example, which the load test always sends.
    let mut hello =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            .to_vec();
    push_frame(
        &mut hello,
        br#"0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000}"#,
    );
    socket.write_all(&hello)?;
    while take_frame(&mut bytes).is_none() {
        read(&mut socket, &mut bytes)?;
    }
    let mut connect = Vec::new();
    push_frame(&mut connect, br#"40{"sid":"b"}"#);
    socket.write_all(&connect)?;
    Ok(socket)
}
