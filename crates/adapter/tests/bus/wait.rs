//! How tests wait: for a condition, with a deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Within which a node has to know, and to be back.
pub(crate) const SOON: Duration = Duration::from_secs(5);

pub(crate) async fn eventually(what: &str, within: Duration, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
