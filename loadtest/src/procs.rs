//! CPU and memory of processes, as the kernel counts them.

use std::fs;

/// What the kernel's clock ticks in a second; the same on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Seconds of CPU.
    pub cpu_s: f64,
    /// Resident memory.
    pub rss_bytes: u64,
}

/// What a process has used; `None` if there is no such process.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name is in parentheses and may be anything: the fields are counted from behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some(Usage {
        cpu_s: (ticks(11)? + ticks(12)?) / TICKS_PER_S,
        rss_bytes: status_kb(pid, "VmRSS:")? * 1024,
    })
}

/// The most memory that a process ever had.
pub fn rss_max_bytes(pid: u32) -> Option<u64> {
    Some(status_kb(pid, "VmHWM:")? * 1024)
}

/// The name of a process.
pub fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

fn status_kb(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // A process that has ended and that nobody has asked about has no memory, and no such line.
    let line = status.lines().find(|line| line.starts_with(key));
    line.map_or(Some(0), |line| line.split_whitespace().nth(1)?.parse().ok())
}

/// This machine: the name of its CPU, its memory in bytes, its kernel.
pub fn machine() -> (String, u64, String) {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let after = |text: &str, key: &str, sign| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(sign)?.1.trim().to_owned())
    };
    let kb = after(&memory, "MemTotal", ':').and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
    (
        after(&cpu, "model name", ':').unwrap_or_else(|| "unknown".into()),
        kb.unwrap_or(0) * 1024,
        read("/proc/sys/kernel/osrelease").trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_has_a_name() {
        let own = std::process::id();
        assert!(usage(own).unwrap().rss_bytes > 0);
        assert!(rss_max_bytes(own).unwrap() >= 4096);
        assert!(!name(own).unwrap().is_empty());
        assert_eq!(usage(u32::MAX), None);
    }
}
