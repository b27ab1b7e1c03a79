//! One handshake before all others, so that what is wrong with a target is said once, and clearly.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::engineio::{self, Transport};
use super::websocket;
use crate::scenario::{Plan, Target};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What an answer may be, before it is taken for something else than an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Shakes hands with each target once.
///
/// # Errors
///
/// What is wrong with the first that fails, for people.
pub fn probe(plan: &Plan) -> Result<(), String> {
    plan.targets.iter().try_for_each(|target| {
        shake_hands(plan, target).map_err(|what| format!("{}: {what}", target.url))
    })
}

fn shake_hands(plan: &Plan, target: &Target) -> Result<(), String> {
    let query =
        format!("{}?EIO={}&transport={}", target.path, plan.eio.number(), plan.transport.as_str());
    let request = match plan.transport {
        Transport::WebSocket => websocket::upgrade_request(&target.host, &query),
        Transport::Polling => {
            format!("GET {query} HTTP/1.1\r\nHost: {}\r\n\r\n", target.host).into_bytes()
        }
    };
    let mut socket = TcpStream::connect_timeout(&target.address, PATIENCE)
        .map_err(|error| format!("cannot be reached: {error}"))?;
    let answer = exchange(&mut socket, &request);
    let answer = answer.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => format!("does not answer within {PATIENCE:?}"),
        io::ErrorKind::InvalidData => "answers, but not in HTTP".into(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "closes the connection without an answer".into()
        }
        _ => format!("does not answer: {error}"),
    })?;
    let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]).into_owned();
    let said =
        if said.trim().is_empty() { String::new() } else { format!(" It says: {}", said.trim()) };
    match (answer.status, plan.transport) {
        (101, Transport::WebSocket) if websocket::accepts(answer.accept.as_deref()) => Ok(()),
        (200, Transport::Polling) if said.contains("\"sid\"") => Ok(()),
        (404, _) => Err(format!(
            "HTTP 404: nothing at {}; is the path right? Give it with the URL.{said}",
            target.path
        )),
        (503, _) => Err(format!("HTTP 503: it takes no clients at present.{said}")),
        (200 | 101, _) => Err(format!("answers, but is no Socket.IO server.{said}")),
        (status, _) => Err(format!("refuses the handshake with HTTP {status}.{said}")),
    }
}

fn exchange(socket: &mut TcpStream, request: &[u8]) -> io::Result<engineio::Answer> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(request)?;
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        match socket.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
        match engineio::read_answer(&bytes) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if bytes.len() < ANSWER_BYTES_MAX => {}
            Ok(None) | Err(()) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
