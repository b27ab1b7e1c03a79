//! What a person sees while it runs: one line on stderr that is kept up to date, or one now and then.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::report::{count, time};

/// How often a line is written where lines stay.
const LINES_EVERY: Duration = Duration::from_secs(5);
/// How often it is written anew where it does not.
const REDRAWN_EVERY: Duration = Duration::from_millis(200);

/// How things are.
#[derive(Debug, Clone, Default)]
pub struct Glance {
    /// What is being done.
    pub phase: &'static str,
    /// Seconds of the phase that are over, and of how many, if it has an end.
    pub progress: Option<(f64, f64)>,
    /// Clients connected.
    pub connected: u32,
    /// Clients in all.
    pub clients: u32,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Messages sent in the last second.
    pub sent: u64,
    /// Deliveries in the last second.
    pub delivered: u64,
    /// Latencies of the last second.
    pub p50_us: u64,
    /// The same.
    pub p99_us: u64,
    /// Messages that are missing so far.
    pub missing: u64,
    /// Cores and memory of the servers.
    pub servers: Vec<(f64, u64)>,
}

impl Glance {
    fn line(&self) -> String {
        let mut line = String::from(self.phase);
        if let Some((over, of)) = self.progress {
            let _ = write!(line, " {over:.0}/{of:.0} s");
        }
        let _ = write!(
            line,
            " | connected {}/{}",
            count(self.connected.into()),
            count(self.clients.into())
        );
        if self.connect_failures > 0 {
            let _ = write!(line, " ({} failed attempts)", count(self.connect_failures));
        }
        if self.sent > 0 || self.delivered > 0 {
            let _ = write!(
                line,
                " | {} msg/s, {} deliveries/s | p50 {}, p99 {}",
                count(self.sent),
                count(self.delivered),
                time(self.p50_us),
                time(self.p99_us)
            );
        }
        if self.missing > 0 {
            let _ = write!(line, " | missing {}", count(self.missing));
        }
        for (cpu, rss) in &self.servers {
            let _ = write!(line, " | server {:.0} %, {:.0} MB", cpu * 100.0, *rss as f64 / 1e6);
        }
        line
    }
}

/// The line.
#[derive(Debug)]
pub struct Live {
    quiet: bool,
    redraws: bool,
    last: Option<(Instant, &'static str)>,
}

impl Live {
    /// Nothing at all, if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, redraws: std::io::stderr().is_terminal(), last: None }
    }

    /// Shows how things are, unless it did so just now.
    pub fn show(&mut self, glance: &Glance) {
        let every = if self.redraws { REDRAWN_EVERY } else { LINES_EVERY };
        let recent =
            self.last.is_some_and(|(at, phase)| at.elapsed() < every && phase == glance.phase);
        if self.quiet || recent {
            return;
        }
        self.last = Some((Instant::now(), glance.phase));
        // Nobody is left to be told that stderr cannot be written.
        let _ = if self.redraws {
            write!(std::io::stderr(), "\r\x1b[2K{}", glance.line())
        } else {
            writeln!(std::io::stderr(), "{}", glance.line())
        };
    }

    /// Leaves the terminal as it was.
    pub fn done(&mut self) {
        if !self.quiet && self.redraws && self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
