//! The nodes' own counters, before and after: does what they say they delivered match what arrived? And is what was
//! lost between them what they say did not cross?

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::oracle::Unheard;
use crate::report::Book;

const PATIENCE: Duration = Duration::from_secs(3);
/// More than any node writes.
const TEXT_BYTES_MAX: u64 = 16 << 20;

const SENT: &str = "antiphon_adapter_broadcasts_sent_total";
const UNSENT: &str = "antiphon_adapter_broadcasts_unsent_total";
const UNPUBLISHED: &str = "antiphon_bus_unpublished_total";
const DROPPED: &str = "antiphon_bus_receive_dropped_total";
const RECEIVED: &str = "antiphon_adapter_broadcasts_received_total";
const DEAF: &str = "antiphon_bus_deaf_seconds_total";
/// What became of broadcasts of others that were not refused.
const HEARD: [&str; 3] = ["delivered", "nobody_here", "other_namespace"];
const OWN: &str = "own";

/// What gets lost between nodes: it is in nobody's deliveries, and here to be read beside them.
const BETWEEN_NODES: [&str; 3] = [UNSENT, UNPUBLISHED, DROPPED];
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

    /// Of several nodes together.
    pub fn sum<'a>(nodes: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for (name, value) in nodes.into_iter().flat_map(|node| &node.0) {
            *sum.0.entry(name.clone()).or_default() += value;
        }
        sum
    }

    fn grown(&self, before: &Self, name: &str) -> f64 {
        let at = |counters: &Self| counters.0.get(name).copied().unwrap_or(0.0);
        at(self) - at(before)
    }

    fn since(&self, before: &Self, name: &str) -> i64 {
        self.grown(before, name) as i64
    }

    /// By the value of a counter's last label, of whatever the others are: how much it grew, where it did.
    fn by_label(&self, before: &Self, name: &str) -> BTreeMap<String, i64> {
        let label = |key: &str| {
            let rest = key.strip_prefix(name)?.strip_prefix('{')?;
            Some(rest.rsplit('"').nth(1)?.to_owned())
        };
        let mut by_label = BTreeMap::new();
        for key in self.0.keys() {
            if let Some(label) = label(key) {
                *by_label.entry(label).or_default() += self.since(before, key);
            }
        }
        by_label.retain(|_, grown| *grown != 0);
        by_label
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
        unheard: 0,
        accounted: 0,
        between_nodes: between_nodes.collect(),
        closed: after.by_label(before, CLOSED),
        // A node may have put into a queue what its client did not take before it went; never less than arrived.
        balanced: (0..=cut_off as i64).contains(&difference),
        error: None,
        difference,
    }
}

/// What of the `lost` (by node: what nobody there got) was lost between the nodes. Written into their books, which are
/// all that there are, as their counters are: `before` and `after`. `published` came from outside the cluster.
///
/// What a node did not hear is known to the last message: what the others counted as theirs, sent or not, less what it
/// counted as received. That is accounted for as far as somebody counted it as not sent, refused or dropped; or all of
/// it, if the node knew that it was deaf for a time. A node whose own books do not balance, as after a restart, is not
/// believed.
pub fn account(
    books: &mut [Book],
    counters: &[(&Counters, &Counters)],
    published: u64,
    lost: &[Vec<Unheard>],
) {
    let of = |node: usize, name: &str| {
        let (before, after) = counters[node];
        after.by_label(before, name)
    };
    let all = |node: usize, name: &str| of(node, name).values().sum::<i64>();
    for (node, (book, lost)) in books.iter_mut().zip(lost).enumerate() {
        let others = || (0..counters.len()).filter(|other| *other != node);
        let (before, after) = counters[node];
        let emitted = |other: usize| {
            let (before, after) = counters[other];
            after.since(before, SENT) + all(other, UNSENT)
        };
        let received = of(node, RECEIVED);
        let sum = |is: fn(&str) -> bool| -> i64 {
            received.iter().filter(|(outcome, _)| is(outcome)).map(|(_, count)| count).sum()
        };
        let heard = sum(|outcome| HEARD.contains(&outcome));
        let refused = sum(|outcome| outcome != OWN && !HEARD.contains(&outcome));
        let unheard = others().map(emitted).sum::<i64>() + published as i64 - heard;
        // Fewer than none: others have been restarted, or some have no book here.
        let unheard = unheard.max(0) as u64;
        let not_sent: i64 =
            others().map(|other| all(other, UNSENT) + all(other, UNPUBLISHED)).sum();
        let counted = not_sent + all(node, DROPPED) + refused;
        let was_deaf = after.grown(before, DEAF) > 0.0;
        let known = if was_deaf { unheard } else { unheard.min(counted.max(0) as u64) };
        if book.balanced {
            (book.unheard, book.accounted) = (unheard, deliveries(lost, known));
        }
    }
}

/// How many deliveries are lost with so many messages.
fn deliveries(lost: &[Unheard], mut messages: u64) -> u64 {
    let mut deliveries = 0;
    for part in lost {
        let taken = messages.min(part.messages.into());
        messages -= taken;
        deliveries += taken * u64::from(part.lost_each);
    }
    deliveries
}

/// The books of a node that cannot be asked any more.
pub fn unreadable(admin: &str, error: &str) -> Book {
    Book {
        admin: admin.to_owned(),
        delivered: 0,
        undelivered: BTreeMap::new(),
        unheard: 0,
        accounted: 0,
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
        antiphon_gateway_sockets_closed_total{namespace=\"/\",reason=\"slow_consumer\"} 0\n\
        antiphon_gateway_sockets_closed_total{namespace=\"/b\",reason=\"slow_consumer\"} 0\n";
    const AFTER: &str = "antiphon_gateway_deliveries_total 1100\n\
        antiphon_gateway_undelivered_total{reason=\"gone\"} 1\n\
        antiphon_gateway_sockets_closed_total{namespace=\"/\",reason=\"slow_consumer\"} 1\n\
        antiphon_gateway_sockets_closed_total{namespace=\"/b\",reason=\"slow_consumer\"} 1\n";

    #[track_caller]
    fn check(received: u64, cut_off: u64, balanced: bool) {
        let (before, after) = (Counters::parse(BEFORE), Counters::parse(AFTER));
        let book = balance("a", &before, &after, received, cut_off);
        assert_eq!(book.delivered, 1000);
        assert!(book.undelivered.is_empty());
        assert_eq!(book.closed, [("slow_consumer".to_owned(), 2)].into());
        assert_eq!((book.difference, book.balanced), (1000 - received as i64, balanced));
    }

    /// Two nodes. Of 10 broadcasts of the first, the second heard 6; of its own 5 the first heard all. Twenty clients of
    /// the second miss four messages each.
    #[track_caller]
    fn check_accounts(what_else: [&str; 2], lost: &[Unheard], expected: [(u64, u64); 2]) {
        let before = Counters::parse("antiphon_adapter_broadcasts_sent_total 100\n");
        let first = "antiphon_adapter_broadcasts_sent_total 108\n\
            antiphon_adapter_broadcasts_unsent_total{reason=\"bus\"} 2\n\
            antiphon_adapter_broadcasts_received_total{outcome=\"own\"} 8\n\
            antiphon_adapter_broadcasts_received_total{outcome=\"delivered\"} 3\n\
            antiphon_adapter_broadcasts_received_total{outcome=\"nobody_here\"} 2\n";
        let second = "antiphon_adapter_broadcasts_sent_total 105\n\
            antiphon_adapter_broadcasts_received_total{outcome=\"own\"} 5\n\
            antiphon_adapter_broadcasts_received_total{outcome=\"delivered\"} 6\n";
        let after = [first.to_owned() + what_else[0], second.to_owned() + what_else[1]]
            .map(|text| Counters::parse(&text));
        let mut books = [0, 0].map(|difference| balance("a", &before, &before, difference, 0));
        let counters: Vec<_> = after.iter().map(|after| (&before, after)).collect();
        account(&mut books, &counters, 0, &[vec![], lost.to_vec()]);
        assert_eq!(books.map(|book| (book.unheard, book.accounted)), expected);
    }

    #[test]
    fn what_is_lost_between_nodes_is_what_they_say_did_not_cross() {
        let four =
            &[Unheard { messages: 1, lost_each: 20 }, Unheard { messages: 3, lost_each: 20 }];
        // Two were not sent. That two more did not arrive is accounted for if the receiver knew that it was deaf, or
        // as far as they were dropped, refused, or lost with the link.
        check_accounts(["", ""], four, [(0, 0), (4, 40)]);
        check_accounts(["", "antiphon_bus_deaf_seconds_total 0.2"], four, [(0, 0), (4, 80)]);
        check_accounts(["antiphon_bus_deaf_seconds_total 0.2", ""], four, [(0, 0), (4, 40)]);
        let dropped = "antiphon_bus_receive_dropped_total{reason=\"queue_count\"} 1";
        check_accounts(["", dropped], four, [(0, 0), (4, 60)]);
        let refused = "antiphon_adapter_broadcasts_received_total{outcome=\"malformed\"} 1";
        check_accounts(["", refused], four, [(0, 0), (4, 60)]);
        let link_lost = "antiphon_bus_unpublished_total{reason=\"link_lost\"} 9";
        check_accounts([link_lost, ""], four, [(0, 0), (4, 80)]);
    }

    #[test]
    fn no_more_is_accounted_for_than_did_not_cross() {
        let deaf = ["", "antiphon_bus_deaf_seconds_total 0.2"];
        check_accounts(deaf, &[Unheard { messages: 5, lost_each: 20 }], [(0, 0), (4, 80)]);
        check_accounts(deaf, &[Unheard { messages: 4, lost_each: 0 }], [(0, 0), (4, 0)]);
        // From a Node server, whose counters nobody reads: it hides what else is missing.
        let foreign = "antiphon_bus_deaf_seconds_total 0.2\n\
            antiphon_adapter_broadcasts_received_total{outcome=\"delivered\"} 11\n";
        check_accounts(["", foreign], &[Unheard { messages: 1, lost_each: 20 }], [(0, 0), (0, 0)]);
    }

    #[test]
    fn a_node_whose_books_do_not_balance_is_not_believed() {
        let (before, after) = (Counters::parse(""), Counters::parse(AFTER));
        let deaf = Counters::parse(
            "antiphon_adapter_broadcasts_sent_total 4\nantiphon_bus_deaf_seconds_total 1",
        );
        let mut books = [balance("a", &before, &deaf, 0, 0), balance("b", &before, &after, 7, 0)];
        let lost = vec![Unheard { messages: 4, lost_each: 1 }];
        account(&mut books, &[(&before, &deaf), (&before, &deaf)], 0, &[lost.clone(), lost]);
        assert_eq!(books.map(|book| (book.unheard, book.accounted)), [(4, 4), (0, 0)]);
    }

    #[test]
    fn several_nodes_may_have_one_book() {
        let counters = [BEFORE, AFTER].map(Counters::parse);
        let none = Counters::default();
        let book = balance("both", &none, &Counters::sum(&counters), 1200, 0);
        assert_eq!((book.delivered, book.difference, book.balanced), (1200, 0, true));
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
