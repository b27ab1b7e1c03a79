//! The load test: many simulated Socket.IO clients, and an oracle that knows for each what it should have received.
//!
//! A run, in reading order:
//!
//! 1. [`scenario`]: a file and flags become a [`Plan`](scenario::Plan).
//! 2. [`run()`]: probes the targets, starts the workers, follows the plan, collects.
//! 3. [`client`]: worker threads with their connections. They send as [`pacing`] says what [`payload`] writes,
//!    and note in their [`oracle`]'s ledger what arrives, and in a [`histogram`] how late.
//! 4. Meanwhile: [`seconds`] adds up, [`push`] publishes, [`faults`] runs commands, [`procs`] watches the servers, [`live`] shows it.
//! 5. Afterwards: [`oracle::judge`] says what became of everything that is missing, [`books`] asks the nodes what
//!    they counted, [`report`] has it all, [`verdict`] says whether what must hold did.
//!
//! [`compare`] runs all this as a program of its own, once for each of several servers.
//!
//! It shares no code with the server, so that no mistake can hide in both.

pub mod books;
pub mod client;
pub mod compare;
pub mod faults;
pub mod histogram;
pub mod live;
pub mod oracle;
pub mod pacing;
pub mod payload;
pub mod procs;
pub mod push;
pub mod report;
pub mod run;
pub mod scenario;
pub mod seconds;
pub mod verdict;

pub use run::{RunError, run};
