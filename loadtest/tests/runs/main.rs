//! Whole runs against servers of the tests' own, and everything that keeps a run from happening.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod books;
mod errors;
mod frames;
mod oracle;
mod push;
mod server;
mod transports;
