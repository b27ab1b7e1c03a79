//! Lines in the log about what others do wrong: whoever does it, does it often.

use tokio::time::{Duration, Instant};

/// Lets one line a second into the log, and tells it how many were kept back.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    last: Option<Instant>,
    kept_back: u64,
}

impl Complaints {
    /// The number kept back when a line may be written now.
    pub(crate) fn may(&mut self) -> Option<u64> {
        let recent = self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1));
        if recent {
            self.kept_back += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.kept_back))
    }
}
