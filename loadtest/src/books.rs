//! The nodes' own counters, before and after: does what they say they delivered match what arrived?

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::report::Book;

const PATIENCE: Duration = Duration::from_secs(3);
/// More than any node writes.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// What gets lost between nodes: it is in nobody's deliveries, and here to be read beside them.
const BETWEEN_NODES: [&str; 3] = [
    "antiphon_adapter_broadcasts_unsent_total",
    "antiphon_bus_unpublished_total",
    "antiphon_bus_receive_dropped_total",
];
const DELIVERED: &str = "antiphon_gateway_deliveries_total";
const UNDELIVERED: &str = "antiphon_gateway_undelivered_total";
const CLOSED: &str = "antiphon_gateway_sockets_closed_total";

/// A node's counters at one time, by name and labels.
#[derive(Debug, Clone, Default)]
pub struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// Asks a node.
    ///
    /// # Errors
    ///
    /// Why it cannot be asked, for people.
    pub fn read(admin: &str, token: Option<&str>) -> Result<Self, String> {
        let text = get(admin, token).map_err(|what| format!("{admin}/metrics: {what}"))?;
        let counters = Self::parse(&text);
        if !counters.0.contains_key(DELIVERED) {
            return Err(format!(
                "{admin}/metrics: has no {DELIVERED}; is it Antiphon's admin address?"
            ));
        }
        Ok(counters)
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|text| !text.starts_with('#')).filter_map(line).collect())
    }

    fn since(&self, before: &Self, name: &str) -> i64 {
        let at = |counters: &Self| counters.0.get(name).copied().unwrap_or(0.0);
        (at(self) - at(before)) as i64
    }

    /// Each label's value of a counter with one label, where it changed.
    fn by_label(&self, before: &Self, name: &str) -> BTreeMap<String, i64> {
        let label = |key: &str| {
            let rest = key.strip_prefix(name)?.strip_prefix('{')?;
            Some(rest.split('"').nth(1)?.to_owned())
        };
        let changed = |key: &String| Some((label(key)?, self.since(before, key)));
        self.0.keys().filter_map(changed).filter(|(_, count)| *count != 0).collect()
    }
}

/// Balances one node's books: `received` by its clients, of which `cut_off` may be missing because their
/// connections ended.
pub fn balance(
    admin: &str,
    before: &Counters,
    after: &Counters,
    received: u64,
    cut_off: u64,
) -> Book {
    let delivered = after.since(before, DELIVERED);
    let short =
        |name: &str| name.trim_start_matches("antiphon_").trim_end_matches("_total").to_owned();
    let between_nodes = BETWEEN_NODES.iter().flat_map(|name| {
        let counts = after.by_label(before, name).into_iter();
        counts.map(move |(reason, count)| (format!("{} {reason}", short(name)), count))
    });
    let difference = delivered - received as i64;
    Book {
        admin: admin.to_owned(),
        delivered,
        undelivered: after.by_label(before, UNDELIVERED),
        between_nodes: between_nodes.collect(),
        closed: after.by_label(before, CLOSED),
        // A node may have put into a queue what its client did not take before it went; never less than arrived.
        balanced: (0..=cut_off as i64).contains(&difference),
        error: None,
        difference,
    }
}

/// The books of a node that cannot be asked any more.
pub fn unreadable(admin: &str, error: &str) -> Book {
    Book {
        admin: admin.to_owned(),
        delivered: 0,
        undelivered: BTreeMap::new(),
        between_nodes: BTreeMap::new(),
        closed: BTreeMap::new(),
        balanced: false,
        error: Some(error.to_owned()),
        difference: 0,
    }
}

fn get(admin: &str, token: Option<&str>) -> Result<String, String> {
    let host =
        admin.strip_prefix("http://").ok_or("must begin with http://")?.trim_end_matches('/');
    let mut addresses = host.to_socket_addrs().map_err(|error| error.to_string())?;
    let address = addresses.next().ok_or("has no address")?;
    let text = |error: std::io::Error| error.to_string();
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE).map_err(text)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    let token = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    // HTTP/1.0: the body is what comes until the end.
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {host}\r\n{token}\r\n");
    socket.write_all(request.as_bytes()).map_err(text)?;
    let mut answer = Vec::new();
    socket.take(TEXT_BYTES_MAX).read_to_end(&mut answer).map_err(text)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("does not answer in HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some("401") => Err("HTTP 401: give its token with --admin-token".into()),
        Some(status) => Err(format!("HTTP {status}")),
        None => Err("does not answer in HTTP".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP x y\nantiphon_gateway_deliveries_total 100\n\
        antiphon_gateway_undelivered_total{reason=\"gone\"} 1\n\
        antiphon_gateway_sockets_closed_total{reason=\"slow_consumer\"} 0\n";
    const AFTER: &str = "antiphon_gateway_deliveries_total 1100\n\
        antiphon_gateway_undelivered_total{reason=\"gone\"} 1\n\
        antiphon_gateway_sockets_closed_total{reason=\"slow_consumer\"} 2\n";

    #[track_caller]
    fn check(received: u64, cut_off: u64, balanced: bool) {
        let (before, after) = (Counters::parse(BEFORE), Counters::parse(AFTER));
        let book = balance("a", &before, &after, received, cut_off);
        assert_eq!(book.delivered, 1000);
        assert!(book.undelivered.is_empty());
        assert_eq!(book.closed, [("slow_consumer".to_owned(), 2)].into());
        assert_eq!((book.difference, book.balanced), (1000 - received as i64, balanced));
    }

    #[test]
    fn what_a_node_delivered_arrived_or_its_client_was_cut_off() {
        check(1000, 0, true);
        check(990, 0, false);
        check(990, 10, true);
        check(990, 9, false);
        check(1001, 10, false);
    }
}
