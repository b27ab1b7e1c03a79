//! What a figure belongs to (machine, commit) and what it is made of (CPU time, medians).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

/// Linux counts CPU time for /proc in hundredths of a second on every architecture we run on.
const CLOCK_TICK: Duration = Duration::from_millis(10);

pub(crate) fn machine() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("this needs Linux")?;
    let mut lines = cpuinfo.lines();
    let model = lines.find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let model = model.unwrap_or("CPU of unknown model");
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{model}, {cores} cores, Linux {}", kernel.trim()))
}

pub(crate) fn commit() -> String {
    let mut git = Command::new("git");
    // Reading the state of the tree must not refresh the index under someone else's hands.
    git.env("GIT_OPTIONAL_LOCKS", "0").args(["describe", "--always", "--dirty", "--abbrev=12"]);
    match git.output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().into()
        }
        _ => "none".into(),
    }
}

/// CPU time that a process has used so far, in user space and in the kernel.
pub(crate) fn cpu_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    let stat = stat.context("the server has ended")?;
    // The process name, in parentheses, may contain blanks: count fields from behind it.
    let (_, fields) = stat.rsplit_once(')').context("malformed /proc/PID/stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u32> { Ok(fields.get(at).context("short stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) * CLOCK_TICK)
}

/// An address to listen on: free a moment ago, and the kernel does not hand it out again at once.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The median of some figures, of which there is at least one, and the cell that shows it with their
/// spread.
pub(crate) fn summary(mut all: Vec<f64>, decimals: usize) -> (f64, String) {
    all.sort_by(f64::total_cmp);
    let (first, last) = (all[0], all[all.len() - 1]);
    let median = f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]);
    let cell = format!("{median:.decimals$} ({first:.decimals$} to {last:.decimals$})");
    (median, cell)
}
