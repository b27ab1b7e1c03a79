//! Rate-limited logging of what others do wrong: whoever does it, does it often.

use tokio::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// Admits one log line a second, and counts those that it suppresses.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    /// How many lines were suppressed before this one; `None` if this one is suppressed too.
    pub(crate) fn admit(&mut self) -> Option<u64> {
        let recent = self.last.is_some_and(|last| last.elapsed() < INTERVAL);
        if recent {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.suppressed))
    }
}
