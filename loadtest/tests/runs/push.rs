//! Notifications through a Redis that misbehaves.

use std::io::{Read, Write};

use crate::server::{Mischief, Server, flags, listen};
use antiphon_loadtest::live::Live;
use antiphon_loadtest::scenario;

/// A Redis that takes clients, and never answers what they publish; its URL.
fn stalled_redis() -> String {
    let url = listen(|mut socket| {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = socket.read(&mut chunk) {
            let said = String::from_utf8_lossy(&chunk[..count]);
            // How the client library introduces itself.
            let answers = "+OK\r\n".repeat(said.matches("SETINFO").count());
            let _ = socket.write_all(answers.as_bytes());
        }
    });
    url.replace("http", "redis")
}

#[test]
fn a_redis_that_stalls_holds_nothing_up_for_ever_and_hides_nothing() {
    let server = Server::start(Mischief::None);
    let mut notified = flags(&server.url);
    (notified.senders, notified.rate) = (Some("1".into()), Some("10".into()));
    notified.redis = Some(stalled_redis());
    let plan = scenario::plan("push", &notified).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let report = antiphon_loadtest::run(plan, "a test", &stop, &mut Live::new(true)).unwrap();
    let totals = &report.totals;
    // The first is with Redis for as long as that may take; then the run is over.
    assert!(totals.sent > 0 && totals.unsent > 0, "{}", report.table());
    assert_eq!(totals.sent + totals.unsent, 10, "{}", report.table());
    assert_eq!((totals.lost, totals.not_connected), (0, 10 * totals.sent), "{}", report.table());
}
