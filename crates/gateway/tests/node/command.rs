//! The `antiphon` command as people and init systems meet it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Output, Stdio},
};

use serde_json::json;

use crate::{client::Client, harness::get};

fn antiphon(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ANTIPHON__")) {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// A node that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts a node; returns it with its first lines, up to the one that says where it serves.
    fn start(args: &[&str]) -> (Self, BufReader<std::process::ChildStderr>, String) {
        let mut child = antiphon(args).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let mut seen = String::new();
        while !seen.contains("Antiphon serves") {
            assert!(lines.read_line(&mut seen).expect("UTF-8") > 0, "it ended: {seen}");
        }
        (Self(child), lines, seen)
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status();
        assert!(status.expect("kill is there").success());
    }
}

#[test]
fn mistakes_are_reported_together_and_nothing_is_started() {
    let mut command = antiphon(&["check-config", "--set", "server.listn=:5000"]);
    command.env("ANTIPHON__LIMITS__MAX_MESSAGE_BYTES", "huge").env("ANTIPHON__NO__SUCH", "1");
    let (code, stdout, stderr) = output(&mut command);
    assert_eq!((code, &*stdout), (Some(64), ""));
    for part in [
        "server.listn",
        "did you mean",
        "ANTIPHON__LIMITS__MAX_MESSAGE_BYTES",
        "huge",
        "ANTIPHON__NO__SUCH",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    let (code, _, stderr) = output(&mut antiphon(&["--no-such-flag"]));
    assert_eq!(code, Some(64), "{stderr}");
    let (code, _, stderr) = output(&mut antiphon(&["--config", "/no/such/file.toml"]));
    assert_eq!(code, Some(64));
    assert!(stderr.contains("/no/such/file.toml"), "{stderr}");
}

#[test]
fn settings_that_turn_out_wrong_are_wrong_settings() {
    let free = ["--listen", "127.0.0.1:0", "--set", "admin.listen="];
    for (settings, part) in [
        (&["redis.url=redis://:hidden@host:port"][..], "Redis"),
        (&["redis.url=rediss://host", "redis.tls_ca=/no/such.pem"][..], "/no/such.pem"),
    ] {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let args: Vec<_> = free.into_iter().chain(settings).collect();
        let (code, _, stderr) = output(&mut antiphon(&args));
        assert_eq!(code, Some(64), "{stderr}");
        assert!(stderr.contains(part) && !stderr.contains("hidden"), "{stderr}");
        assert!(!stderr.contains("Antiphon serves"), "nothing was started: {stderr}");
    }
}

#[test]
fn layers_apply_in_their_order_and_secrets_stay_hidden() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    let text = "[server]\nlisten = \"127.0.0.1:1001\"\nbacklog = 11\n[admin]\ntoken = \"hidden\"\n";
    std::fs::write(file.path(), text).expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let mut command =
        antiphon(&["print-config", "--config", path, "--set", "session.ping_interval=3s"]);
    command.env("ANTIPHON__SERVER__LISTEN", "127.0.0.1:1002");
    command.env("ANTIPHON__SESSION__PING_INTERVAL", "2s");
    let (code, stdout, stderr) = output(&mut command);
    assert_eq!(code, Some(0), "{stderr}");
    for line in
        ["listen = \"127.0.0.1:1002\"", "backlog = 11", "ping_interval = \"3s\"", "<redacted>"]
    {
        assert!(stdout.contains(line), "{line}: {stdout}");
    }
    assert!(!stdout.contains("hidden"), "{stdout}");
    assert_eq!(output(&mut antiphon(&["check-config"])).0, Some(0));
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let (code, _, stderr) = output(&mut antiphon(&["--listen", &address]));
    assert_eq!(code, Some(1));
    for part in [&*address, "server.listen", "another program has port", "ss -ltnp"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

/// One that answers every request with `answer`; with an empty one it never answers.
fn stub(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        let mut asked = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer.as_bytes());
            if answer.is_empty() {
                asked.push(stream);
            }
        }
    });
    address
}

#[test]
fn a_health_check_asks_the_node_with_the_same_settings() {
    let free = ["--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0", "--set", "admin.token=t"];
    let (_node, _lines, start) = Running::start(&free);
    let port =
        start.split("admin=\"http://0.0.0.0:").nth(1).and_then(|rest| rest.split('"').next());
    // As it is in a container: all interfaces, and from the environment.
    let mut command = antiphon(&["healthcheck"]);
    command.env("ANTIPHON__ADMIN__LISTEN", format!("0.0.0.0:{}", port.expect("a port")));
    command.env("ANTIPHON__ADMIN__TOKEN", "t");
    assert_eq!(output(&mut command), (Some(0), String::new(), String::new()));

    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr();
    let nobody = nobody.expect("bound").to_string();
    let unwell = stub("HTTP/1.1 503 Service Unavailable\r\n\r\nstuck");
    for (listen, part) in [
        (&*nobody, "refused"),
        (&unwell, "503 Service Unavailable\r\n\r\nstuck"),
        (&stub("SSH-2.0-OpenSSH_9.2\r\n200"), "SSH-2.0"),
        (&stub(""), "no answer from"),
        ("", "admin.listen is off"),
        ("127.0.0.1:0", "give it a port"),
    ] {
        let (code, stdout, stderr) =
            output(&mut antiphon(&["healthcheck", "--admin-listen", listen]));
        assert_eq!((code, &*stdout), (Some(1), ""), "{stderr}");
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[tokio::test]
async fn a_newcomer_sees_where_it_serves_and_who_comes_and_goes() {
    let free = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let args = [&free[..], &["--set", "node.id=n1", "--set", "drain.spread=0s"]].concat();
    let args = [&args[..], &["--set", "log.filter=debug"]].concat();
    let (mut node, mut lines, start) = Running::start(&args);
    for part in
        ["http://127.0.0.1:", "/socket.io/", "n1", "single node", "admin=\"http://127.0.0.1:"]
    {
        assert!(start.contains(part), "{part}: {start}");
    }
    let (address, _) = addresses(&start);
    let mut client = Client::connect(address).await;
    client.ask(1, json!(["chat_message", "a secret between friends"])).await;
    client.leave().await;

    node.signal("-TERM");
    let mut log = String::new();
    lines.read_to_string(&mut log).expect("UTF-8");
    assert_eq!(node.0.wait().expect("ended").code(), Some(0), "{log}");
    for part in [
        "connected client=1",
        "address=127.0.0.1",
        "event=\"chat_message\"",
        "reason=\"transport_close\"",
        "drained",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("friends"), "no payload in the log: {log}");
}

/// Where clients and operators ask, by what a node says when it starts.
fn addresses(start: &str) -> (SocketAddr, SocketAddr) {
    let after = |what: &str, until: char| {
        let rest = start.split(what).nth(1).expect("it says so");
        rest.split(until).next().expect("an end").parse().expect("an address")
    };
    (after("Socket.IO at http://", '/'), after("admin=\"http://", '"'))
}

#[tokio::test]
async fn what_is_logged_can_be_changed_while_it_runs() {
    let (node, mut lines, start) =
        Running::start(&["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let (address, admin) = addresses(&start);
    let url = format!("http://{admin}/log");
    let put = async |filter: &'static str| {
        let answer = reqwest::Client::new().put(&url).body(filter).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    assert!(get(admin, "/log").await.1.contains("info"));
    for wrong in ["a=b=c", "", " "] {
        let (status, why) = put(wrong).await;
        assert!(status == 400 && why.contains("want a level"), "{status} {why}");
    }
    assert_eq!(put("trace").await.0, 200);
    let filter = get(admin, "/log").await.1;
    assert!(filter.contains("trace") && filter.contains("tungstenite=info"), "{filter}");
    let mut client = Client::connect(address).await;
    client.ask(1, json!(["chat_message", "x"])).await;
    let mut log = String::new();
    while !log.contains("event=\"chat_message\"") {
        assert!(lines.read_line(&mut log).expect("UTF-8") > 0, "{log}");
    }
    drop(node);
}

#[tokio::test]
async fn lines_for_people_have_the_node_and_the_trace() {
    let free = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    // A collector that is not there is none of this test's business.
    let settings = [
        "node.id=n1",
        "log.filter=debug",
        "traces.sample_ratio=1",
        "traces.endpoint=http://127.0.0.1:9/v1/traces",
    ];
    let args: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let (node, mut lines, start) = Running::start(&[&free[..], &args].concat());
    assert!(start.lines().all(|line| line.split(' ').nth(1) == Some("n1")), "{start}");
    let mut client = Client::connect(addresses(&start).0).await;
    client.ask(1, json!(["chat_message", "x"])).await;
    let mut line = String::new();
    while !line.contains("event=\"chat_message\"") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("UTF-8") > 0, "it ended");
    }
    let mut words = line.split(' ').skip(1);
    assert_eq!(words.next(), Some("n1"), "{line}");
    let trace = words.next().expect("a trace");
    assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
    drop(node);
}

#[tokio::test]
async fn who_does_not_read_the_log_does_not_stop_the_node() {
    let free = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let (node, lines, start) =
        Running::start(&[&free[..], &["--set", "log.filter=trace"]].concat());
    let (address, admin) = addresses(&start);
    let mut client = Client::connect(address).await;
    // A line each, of 100 bytes: a pipe holds 64 KiB, and 16,384 lines wait.
    for _ in 0..200 {
        for _ in 0..100 {
            client.emit(json!(["server_message", "x"])).await;
        }
        for _ in 0..100 {
            client.event().await;
        }
    }
    let (_, metrics) = get(admin, "/metrics").await;
    let dropped =
        metrics.lines().find_map(|line| line.strip_prefix("antiphon_log_lines_dropped_total "));
    assert!(dropped.is_some_and(|number| number != "0"), "{dropped:?}");
    drop((node, lines));
}

#[tokio::test]
async fn a_second_signal_hurries() {
    let free = ["--listen", "127.0.0.1:0", "--set", "admin.listen="];
    let slow = ["--set", "drain.spread=1h", "--set", "drain.deadline=2h"];
    let (mut node, mut lines, start) = Running::start(&[&free[..], &slow].concat());
    let address = start.split("http://").nth(1).and_then(|rest| rest.split("/socket.io").next());
    let address = address.expect("the address").parse().expect("an address");
    let _a = Client::connect(address).await;
    let _b = Client::connect(address).await;
    node.signal("-INT");
    let mut line = String::new();
    while !line.contains("draining") {
        assert!(lines.read_line(&mut line).expect("UTF-8") > 0, "it ended: {line}");
    }
    node.signal("-INT");
    let mut log = String::new();
    lines.read_to_string(&mut log).expect("UTF-8");
    assert_eq!(node.0.wait().expect("ended").code(), Some(0), "{log}");
}
