//! What nodes say of themselves, against what arrived.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antiphon_loadtest::report::Report;

use crate::server::{Mischief, Server, flags, listen, run};

/// An admin address where all counters are zero the first time, and `after` from then on; its URL.
fn admin(after: &str) -> String {
    let (after, first) = (after.to_owned(), Arc::new(AtomicBool::new(true)));
    listen(move |mut socket| {
        let _ = socket.read(&mut [0; 4096]);
        let first = first.swap(false, Ordering::SeqCst);
        let counters = if first { "antiphon_gateway_deliveries_total 0\n" } else { &after };
        let _ = socket.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{counters}").as_bytes());
    })
}

/// Two nodes that never hear of each other: each has five clients, of which one sends fifty messages.
fn run_apart(of_each: &str) -> Report {
    let nodes = [Server::start(Mischief::None), Server::start(Mischief::None)];
    let mut apart = flags(&nodes[0].url);
    apart.urls.push(nodes[1].url.clone());
    let counters = "antiphon_gateway_deliveries_total 250\n\
        antiphon_adapter_broadcasts_received_total{outcome=\"own\"} 50\n";
    apart.admin =
        vec![admin(&format!("{counters}{of_each}")), admin(&format!("{counters}{of_each}"))];
    apart.expect = vec!["lost = 500".into(), "unaccounted = 0".into()];
    run(&apart)
}

#[track_caller]
fn check(report: &Report, unaccounted: u64) {
    let totals = &report.totals;
    assert_eq!((totals.lost, totals.unaccounted), (500, unaccounted), "{}", report.table());
    assert!(report.books.iter().all(|book| book.balanced), "{}", report.table());
    assert_eq!(report.passed, unaccounted == 0, "{}", report.table());
}

#[test]
fn what_did_not_cross_between_nodes_is_lost_and_accounted_for() {
    let sent = "antiphon_adapter_broadcasts_sent_total 50\n";
    check(&run_apart(&format!("{sent}antiphon_bus_deaf_seconds_total 1.5\n")), 0);
    // Neither of them noticed anything.
    check(&run_apart(sent), 500);
    // Forty could not be sent, of ten nothing is known.
    let unsent = "antiphon_adapter_broadcasts_sent_total 10\n\
        antiphon_adapter_broadcasts_unsent_total{reason=\"bus\"} 40\n";
    check(&run_apart(unsent), 100);
}

#[test]
fn nodes_behind_one_address_have_one_book() {
    let server = Server::start(Mischief::None);
    let mut behind = flags(&server.url);
    behind.admin = ["400", "600"]
        .map(|count| admin(&format!("antiphon_gateway_deliveries_total {count}\n")))
        .to_vec();
    behind.expect = vec!["unbalanced_books = 0".into()];
    let report = run(&behind);
    assert!(report.passed && report.books.len() == 1, "{}", report.table());
    assert_eq!((report.books[0].delivered, report.books[0].difference), (1000, 0));
}
