//! Commands at set times: what is done to the server while it is under load.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use crate::client::Clock;
use crate::report::FaultRecord;
use crate::scenario::Fault;

/// A command that is running.
#[derive(Debug)]
struct Running {
    at: usize,
    child: Child,
    since_us: u64,
}

/// The commands of a run.
#[derive(Debug)]
pub struct Faults {
    clock: Clock,
    faults: Vec<Fault>,
    next: usize,
    running: Vec<Running>,
    records: Vec<FaultRecord>,
}

impl Faults {
    /// In the order of their times.
    pub fn new(clock: Clock, faults: Vec<Fault>) -> Self {
        Self { clock, faults, next: 0, running: Vec::new(), records: Vec::new() }
    }

    /// Starts what is due, so long after counting began, and sees what has ended.
    pub fn step(&mut self, since_us: u64) {
        self.reap();
        while let Some(fault) = self.faults.get(self.next) {
            if fault.at.as_micros() as u64 > since_us {
                break;
            }
            self.next += 1;
            let t = since_us as f64 / 1e6;
            self.records.push(FaultRecord {
                t,
                command: fault.command.clone(),
                exit: None,
                took_s: 0.0,
            });
            match start(&fault.command) {
                Ok(child) => {
                    let (at, since_us) = (self.records.len() - 1, self.clock.now_us());
                    self.running.push(Running { at, child, since_us });
                }
                Err(error) => eprintln!("{}: cannot be run: {error}", fault.command),
            }
        }
    }

    /// Whether commands are still running.
    pub fn are_running(&mut self) -> bool {
        self.reap();
        !self.running.is_empty()
    }

    /// What became of them. One that is still running has no exit code, and is left alone: it may be
    /// the server.
    pub fn records(self) -> Vec<FaultRecord> {
        self.records
    }

    fn reap(&mut self) {
        let (clock, records) = (self.clock, &mut self.records);
        self.running.retain_mut(|running| {
            let record = &mut records[running.at];
            record.took_s = (clock.now_us() - running.since_us) as f64 / 1e6;
            match running.child.try_wait() {
                Ok(Some(status)) => {
                    record.exit = status.code();
                    false
                }
                Ok(None) => true,
                Err(_) => false,
            }
        });
    }
}

/// Through the shell. What it prints goes where messages for people go: standard output has the report.
fn start(command: &str) -> io::Result<Child> {
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(stderr).spawn()
}
