//! Servers that misbehave on purpose: each is caught, with the right number, and the report names it.

use std::time::Duration;

use crate::server::{Mischief, Server, flags, run};
use antiphon_loadtest::report::Report;

/// All that was sent has arrived, is lost, or could not arrive.
#[track_caller]
fn check_sum(report: &Report) {
    let totals = &report.totals;
    assert_eq!(
        totals.delivered + totals.lost + totals.not_connected,
        totals.expected,
        "{}",
        report.table()
    );
    assert_eq!(totals.expected, (totals.sent - totals.refused) * 10, "{}", report.table());
    assert_eq!(totals.sent, 100, "{}", report.table());
    assert_eq!(report.seconds.iter().map(|second| second.lost).sum::<u64>(), totals.lost);
    assert_eq!(report.latency_us.count, totals.delivered);
}

/// The culprits that the report names are to blame for so many.
#[track_caller]
fn check_culprits(report: &Report, what: &str, count: u64) {
    let named: u64 = report.culprits.iter().filter(|c| c.what == what).map(|c| c.count).sum();
    assert_eq!(named, count, "{:?}", report.culprits);
}

#[track_caller]
fn check_failed(report: &Report, what: &str) {
    let failed: Vec<_> =
        report.expectations.iter().filter(|e| !e.held).map(|e| &e.what[..]).collect();
    assert_eq!(failed, [what], "{}", report.table());
    assert!(!report.passed && report.table().ends_with("FAILED\n"));
}

#[test]
fn an_honest_server_passes() {
    let server = Server::start(Mischief::None);
    let report = run(&flags(&server.url));
    check_sum(&report);
    assert!(report.passed, "{}", report.table());
    assert_eq!(report.totals.delivered, 1000);
    assert_eq!(report.totals.connects, 10);
    assert!(report.culprits.is_empty());
}

#[test]
fn every_hundredth_delivery_dropped() {
    let server = Server::start(Mischief::Drop(100));
    let report = run(&flags(&server.url));
    check_sum(&report);
    assert_eq!((report.totals.lost, server.done()), (10, 10), "{}", report.table());
    check_culprits(&report, "lost", 10);
    check_failed(&report, "lost = 0");
}

#[test]
fn two_deliveries_swapped() {
    let server = Server::start(Mischief::Swap(20));
    let report = run(&flags(&server.url));
    check_sum(&report);
    // Neighbours of different senders have no order between them: only the server knows how many were swapped.
    let reordered = report.totals.reordered;
    assert!(reordered <= server.done() && server.done() == 50, "{}", report.table());
    assert_eq!(report.totals.lost, 0);

    let server = Server::start(Mischief::Swap(20));
    let mut of_one = flags(&server.url);
    of_one.senders = Some("1".into());
    let report = run(&of_one);
    assert_eq!((report.totals.reordered, server.done()), (50, 50), "{}", report.table());
    check_culprits(&report, "reordered", 50);
    check_failed(&report, "reordered = 0");
}

#[test]
fn deliveries_made_twice() {
    let server = Server::start(Mischief::Duplicate(50));
    let report = run(&flags(&server.url));
    check_sum(&report);
    assert_eq!((report.totals.duplicated, server.done()), (20, 20), "{}", report.table());
    check_culprits(&report, "duplicated", 20);
    check_failed(&report, "duplicated = 0");
}

#[test]
fn a_message_held_up() {
    let server = Server::start(Mischief::Delay(Duration::from_millis(1500)));
    let mut slowly = flags(&server.url);
    (slowly.senders, slowly.rate) = (Some("1".into()), Some("1".into()));
    (slowly.duration, slowly.grace) = (Some("2s".into()), Some("5s".into()));
    slowly.expect = vec!["late = 0".into(), "p99 < 5s".into()];
    let report = run(&slowly);
    assert_eq!((report.totals.sent, report.totals.lost), (2, 0), "{}", report.table());
    assert_eq!(report.totals.late, 10, "{}", report.table());
    assert!(report.latency_us.max >= 1_500_000 && report.latency_us.p50 < 1_000_000);
    check_failed(&report, "late = 0");
}

#[test]
fn latency_counts_from_the_planned_time() {
    // Its only sender is held up for as long as ten messages take to be due: they are late as well, although
    // the server had them only a moment.
    let server = Server::start(Mischief::Delay(Duration::from_millis(1000)));
    let mut one = flags(&server.url);
    (one.senders, one.rate, one.grace) = (Some("1".into()), Some("10".into()), Some("5s".into()));
    one.expect = vec!["p99 < 10s".into()];
    let report = run(&one);
    // Ten messages: one at once, nine that wait for 1000, 900, 800 … 200 ms.
    assert!((400_000..800_000).contains(&(report.latency_us.mean as u64)), "{}", report.table());
}

#[test]
fn what_is_on_its_way_at_the_end_is_waited_for() {
    // The second message is due after 1.1 s and held for as long as the run goes on, and some more.
    let server = Server::start(Mischief::Delay(Duration::from_millis(700)));
    let mut one = flags(&server.url);
    (one.senders, one.rate) = (Some("1".into()), Some("0.9".into()));
    (one.duration, one.grace) = (Some("1300ms".into()), Some("10s".into()));
    let report = run(&one);
    assert_eq!((report.totals.sent, report.totals.lost), (2, 0), "{}", report.table());
}

#[test]
fn a_client_closed_is_not_a_loss_but_a_disconnect() {
    let server = Server::start(Mischief::Close(20));
    let mut patient = flags(&server.url);
    patient.grace = Some("2s".into());
    let report = run(&patient);
    check_sum(&report);
    let totals = &report.totals;
    assert_eq!(totals.disconnects, [("transport close".to_owned(), 1)].into());
    assert_eq!((totals.lost, totals.reconnects, totals.connects), (0, 1, 11), "{}", report.table());
    assert!(totals.not_connected > 0);
    // The official client comes back after 0.5 to 1.5 s.
    assert!((500_000..2_500_000).contains(&report.reconnect_us.max), "{}", report.table());
    check_failed(&report, "disconnects = 0");
}

#[test]
fn a_client_sent_away_does_not_come_back() {
    let server = Server::start(Mischief::SendAway(20));
    let report = run(&flags(&server.url));
    check_sum(&report);
    assert_eq!(report.totals.disconnects, [("io server disconnect".to_owned(), 1)].into());
    assert_eq!((report.totals.reconnects, report.reconnect_us.still_away), (0, 1));
    // Nineteen of a hundred reached it.
    assert_eq!((report.totals.not_connected, report.totals.lost), (81, 0), "{}", report.table());
}

#[test]
fn nonsense_is_nobodys_message() {
    let server = Server::start(Mischief::Nonsense(100));
    let report = run(&flags(&server.url));
    check_sum(&report);
    assert_eq!((report.totals.foreign, server.done()), (10, 10), "{}", report.table());
    assert_eq!(report.totals.lost, 0);
    check_culprits(&report, "foreign", 10);
    check_failed(&report, "foreign = 0");
}

#[test]
fn garbage_ends_the_connection() {
    let server = Server::start(Mischief::Garbage(20));
    let report = run(&flags(&server.url));
    assert_eq!(
        report.totals.disconnects,
        [("parse error".to_owned(), 1)].into(),
        "{}",
        report.table()
    );
    assert_eq!((report.totals.lost, server.done()), (0, 1));
}

#[test]
fn refused_messages_are_not_lost() {
    let server = Server::start(Mischief::Refuse(20));
    let report = run(&flags(&server.url));
    check_sum(&report);
    assert_eq!((report.totals.refused, server.done()), (5, 5), "{}", report.table());
    assert_eq!(report.totals.refusals, [("overloaded".to_owned(), 5)].into());
    assert_eq!(report.totals.lost, 0);
    check_failed(&report, "refused = 0");
}

#[test]
fn a_closed_loop_sends_as_fast_as_it_is_answered() {
    let server = Server::start(Mischief::None);
    let mut closed = flags(&server.url);
    (closed.rate, closed.in_flight) = (None, Some("4".into()));
    let report = run(&closed);
    let totals = &report.totals;
    assert!(totals.sent > 200 && totals.lost == 0, "{}", report.table());
    assert_eq!(totals.delivered, totals.sent * 10);
}
