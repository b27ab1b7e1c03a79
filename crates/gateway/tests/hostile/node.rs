//! The node under attack, and what tests ask about it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use crate::harness::{DEADLINE, get};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub(crate) const MB: u64 = 1_000_000;

/// A node as a process of its own, with JSON logs. It is killed when dropped.
pub(crate) struct Node {
    process: Child,
    log: Option<JoinHandle<String>>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    _alone: MutexGuard<'static, ()>,
}

impl Node {
    /// Starts one with the default settings but for `settings`, each "key=value".
    pub(crate) async fn start(settings: &[&str]) -> Self {
        Self::start_with_file("", settings).await
    }

    /// The same, with the text of a configuration file.
    pub(crate) async fn start_with_file(text: &str, settings: &[&str]) -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
        fs::write(file.path(), text).expect("the file is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon"));
        command.arg("--config").arg(file.path());
        let fixed = ["server.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "log.format=json"];
        for setting in fixed.iter().chain(&["drain.spread=0s"]).chain(settings) {
            command.args(["--set", setting]);
        }
        let mut process = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped"));
        let (address, admin) = addresses(&mut lines);
        let log = thread::spawn(move || {
            let mut log = String::new();
            lines.read_to_string(&mut log).expect("UTF-8");
            log
        });
        Self { process, log: Some(log), address, admin, _alone: alone }
    }

    /// Resident memory of the process, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most it has been since [`Node::forget_peak`].
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    pub(crate) fn forget_peak(&self) {
        let file = format!("/proc/{}/clear_refs", self.process.id());
        fs::write(file, "5").expect("the process is ours");
    }

    fn status(&self, name: &str) -> u64 {
        let file = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(file).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("in kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// The sum of the samples of `antiphon_gateway_<name>` that have this label; "" is any.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = get(self.admin, "/metrics").await.1;
        let name = format!("antiphon_gateway_{name}");
        let samples = text.lines().filter_map(|line| line.strip_prefix(name.as_str()));
        let samples = samples.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label));
        let values = samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
        values.fold(0.0, |sum, value| sum + value)
    }

    /// Sockets in any namespace.
    pub(crate) async fn sockets(&self) -> f64 {
        self.metric("sockets", "").await
    }

    /// Tells it to stop, as a deploy does, and waits for its end. Returns what it logged.
    pub(crate) async fn stop(mut self) -> Vec<Value> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        let mut code = None;
        eventually("SIGTERM ends the node", async || {
            code = self.process.try_wait().expect("our child");
            code.is_some()
        })
        .await;
        let log = self.log.take().expect("it is stopped once").join().expect("it is read");
        assert_eq!(code.expect("ended").code(), Some(0), "{log}");
        log.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where it serves clients and operators, from the line that it logs once it does.
fn addresses(lines: &mut impl BufRead) -> (SocketAddr, SocketAddr) {
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("UTF-8") > 0, "the node has ended");
        let Ok(line) = serde_json::from_str::<Value>(&line) else { panic!("{line}") };
        let url = |text: &Value| -> Option<SocketAddr> {
            text.as_str()?.split("http://").nth(1)?.split('/').next()?.parse().ok()
        };
        if let (Some(address), Some(admin)) = (url(&line["message"]), url(&line["admin"])) {
            return (address, admin);
        }
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
