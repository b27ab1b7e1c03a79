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
    #[error("no answer from http://{0}/healthz")]
    Silent(SocketAddr, #[source] io::Error),
    /// It answered, but not that it is well.
    #[error("http://{0}/healthz answered: {1}")]
    Unwell(SocketAddr, String),
}

/// Asks the node that listens on `admin`, on this machine, whether it is alive.
pub fn healthcheck(admin: Option<SocketAddr>) -> Result<(), Unhealthy> {
    let address = reachable(admin.ok_or(Unhealthy::Off)?);
    if address.port() == 0 {
        return Err(Unhealthy::AnyPort);
    }
    let answer = ask(address).map_err(|error| Unhealthy::Silent(address, error))?;
    let mut head = answer.lines().next().unwrap_or_default().split(' ');
    match (head.next(), head.next()) {
        (Some("HTTP/1.1" | "HTTP/1.0"), Some("200")) => Ok(()),
        _ => Err(Unhealthy::Unwell(address, answer.trim().to_owned())),
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

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
