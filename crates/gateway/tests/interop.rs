//! The official clients against the real binary: the suite in `tests/interop`, which needs Node.js and
//! Python. `.ci/test` turns it on; `cargo test` alone says so. A program of its own rather than
//! `#[test]`s, so that this is seen.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    // `cargo test --list` and the like expect nothing but an answer to their question.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("ANTIPHON_INTEROP").is_none() {
        println!(
            "\ninterop: the official Socket.IO clients (JavaScript 2, 3, 4 and Python), clusters with Node.js\n\
             servers, and Redis faults are not part of this run. They need Node.js, Python and Redis:\n\
             `.ci/test` runs everything, and installs those.\n"
        );
        return ExitCode::SUCCESS;
    }
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/run");
    let status = Command::new(suite).env("ANTIPHON_BIN", env!("CARGO_BIN_EXE_antiphon")).status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("interop: {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("interop: cannot run {suite}: {error}");
            ExitCode::FAILURE
        }
    }
}
