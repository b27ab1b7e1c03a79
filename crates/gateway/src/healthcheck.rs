//! What `antiphon healthcheck` does: asks the node on this machine how it is, as a container engine wants
//! to from inside an image that has no shell and no curl.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// For connecting, and for each part of the answer. Below the time-outs that engines give a health check
/// (`deploy/Dockerfile`), so that it is this message that is seen.
const PATIENCE: Duration = Duration::from_secs(2);

/// More than the node answers; the rest does not matter.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Why the node does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// There is nobody to ask.
    #[error("admin.listen is off: there is nothing to ask")]
    Off,
    /// Any port is taken, so nobody but the node knows which.
    #[error("admin.listen has port 0: give it a port")]
    AnyPort,
    /// It did not answer.
    #[error("no answer from http://{0}{1}")]
    Silent(SocketAddr, &'static str, #[source] io::Error),
    /// It answered, but not that it is well.
    #[error("http://{0}{1} answered: {2}")]
    Unwell(SocketAddr, &'static str, String),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether the node gets on: `/healthz`. If not, it is better started anew.
    Alive,
    /// Whether clients may be sent to it: `/readyz`.
    Ready,
}

/// Asks the node that listens on `admin`, on this machine, how it is.
pub fn healthcheck(admin: Option<SocketAddr>, question: Question) -> Result<(), Unhealthy> {
    let address = reachable(admin.ok_or(Unhealthy::Off)?);
    if address.port() == 0 {
        return Err(Unhealthy::AnyPort);
    }
    let path = match question {
        Question::Alive => "/healthz",
        Question::Ready => "/readyz",
    };
    let answer = ask(address, path).map_err(|error| Unhealthy::Silent(address, path, error))?;
    let mut head = answer.lines().next().unwrap_or_default().split(' ');
    match (head.next(), head.next()) {
        (Some("HTTP/1.1" | "HTTP/1.0"), Some("200")) => Ok(()),
        _ => Err(Unhealthy::Unwell(address, path, answer.trim().to_owned())),
    }
}

/// "All interfaces" is nowhere one can connect to.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn ask(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
