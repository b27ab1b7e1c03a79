//! Nodes as processes, as init systems run them.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
};

use serde_json::Value;

use crate::harness::{DEADLINE, get};

/// A node as a process of its own, with JSON logs.
pub(crate) struct Node {
    process: Child,
    // All that it logs after it has started.
    log: Option<JoinHandle<String>>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Node {
    /// Starts one on free ports, unless the settings say otherwise.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon"));
        let free = ["server.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "drain.spread=0s"];
        for setting in free.iter().chain(&["log.format=json"]).chain(settings) {
            command.args(["--set", setting]);
        }
        let mut process = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped"));
        let started = loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).expect("UTF-8") > 0, "it ended");
            let line: Value = serde_json::from_str(&line).expect("a JSON object a line");
            if line["message"].as_str().is_some_and(|text| text.contains("Antiphon serves")) {
                break line;
            }
        };
        let log = thread::spawn(move || {
            let mut log = String::new();
            lines.read_to_string(&mut log).expect("UTF-8");
            log
        });
        let message = started["message"].as_str().expect("a text");
        let address = message.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let admin = started["admin"].as_str().and_then(|url| url.strip_prefix("http://"));
        Self {
            process,
            log: Some(log),
            address: address.expect("an address").parse().expect("an address"),
            admin: admin.expect("an address").parse().expect("an address"),
        }
    }

    pub(crate) async fn until_ready(&self) {
        let ready = async {
            while get(self.admin, "/readyz").await.0 != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, ready).await.expect("it gets ready");
    }

    /// Stops it as a deploy does. Returns what it logged.
    pub(crate) fn stop(mut self) -> Vec<Value> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        let log = self.log.take().expect("it is stopped once").join().expect("it is read");
        assert_eq!(self.process.wait().expect("it ends").code(), Some(0), "{log}");
        log.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
