//! What cannot be run says why, and ends with its exit code.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use crate::server::{Mischief, Server, answer, listen};

const NOT_RUN: i32 = 2;
const USAGE: i32 = 64;

fn loadtest() -> Command {
    Command::new(env!("CARGO_BIN_EXE_antiphon-loadtest"))
}

#[track_caller]
fn check(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

fn run_against(url: &str, more: &[&str]) -> Output {
    loadtest().args(["run", "chat", "--quiet", "--url", url]).args(more).output().unwrap()
}

#[test]
fn nobody_there() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    check(&run_against(&url, &[]), NOT_RUN, &[&url, "cannot be reached", "refused"]);
}

#[test]
fn the_wrong_path() {
    let url = answer("HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found");
    check(&run_against(&url, &[]), NOT_RUN, &["HTTP 404", "/socket.io/", "path"]);
    check(&run_against(&format!("{url}/chat"), &[]), NOT_RUN, &["nothing at /chat/"]);
}

#[test]
fn refused() {
    let url = answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\ndraining");
    check(&run_against(&url, &[]), NOT_RUN, &["HTTP 503", "no clients", "draining"]);
    let polling = ["--transport", "polling"];
    check(&run_against(&url, &polling), NOT_RUN, &["HTTP 503"]);
}

#[test]
fn full() {
    // One gets in, which is the load test's own first try.
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let url = listen(move |mut socket| {
        let mut request = [0; 4096];
        let _ = socket.read(&mut request);
        let answer = if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        } else {
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        };
        let _ = socket.write_all(answer.as_bytes());
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("few.toml");
    fs::write(&file, "[load]\nclients = 3\nconnect_within = \"200ms\"\n").unwrap();
    let output = loadtest().arg("run").arg(&file).args(["--url", &url]).output().unwrap();
    check(&output, NOT_RUN, &["only 0 of 3 clients could connect", "HTTP 503 (3×)"]);
}

#[test]
fn posts_refused() {
    // A session that is not there any more is no answer that cannot be read.
    let url = listen(|mut socket| {
        let mut request = [0; 4096];
        while let Ok(count @ 1..) = socket.read(&mut request) {
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            let open = r#"0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000}"#;
            let answer = match (request.starts_with("POST"), request.contains("sid=")) {
                (true, _) => "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_owned(),
                (false, false) => {
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{open}", open.len())
                }
                // The poll waits.
                (false, true) => continue,
            };
            let _ = socket.write_all(answer.as_bytes());
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("few.toml");
    fs::write(&file, "[load]\nclients = 1\nconnect_within = \"200ms\"\ntransport = \"polling\"\n")
        .unwrap();
    let output = loadtest().arg("run").arg(&file).args(["--url", &url]).output().unwrap();
    check(&output, NOT_RUN, &["only 0 of 1 clients could connect: transport error (1×)"]);
}

#[test]
fn something_else_than_a_socket_io_server() {
    let url = answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    check(&run_against(&url, &[]), NOT_RUN, &["no Socket.IO server", "hello"]);
    let url = answer("220 smtp.example.com\r\n\r\n");
    check(&run_against(&url, &[]), NOT_RUN, &["not in HTTP"]);
    let url = listen(drop);
    check(&run_against(&url, &[]), NOT_RUN, &["closes the connection", &url]);
}

#[test]
fn too_few_descriptors() {
    let server = Server::start(Mischief::None);
    let program = env!("CARGO_BIN_EXE_antiphon-loadtest");
    let command =
        format!("ulimit -n 200; exec {program} run idle --clients 1000 --url {}", server.url);
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    check(&output, NOT_RUN, &["1100 file descriptors are needed", "200", "ulimit -n"]);
}

#[test]
fn a_process_or_a_redis_or_a_node_that_is_not_there() {
    let server = Server::start(Mischief::None);
    check(&run_against(&server.url, &["--pid", "4194305"]), NOT_RUN, &["no such process"]);
    let admin = answer("HTTP/1.0 200 OK\r\n\r\nup 1\n");
    check(
        &run_against(&server.url, &["--admin", &admin]),
        NOT_RUN,
        &["antiphon_gateway_deliveries_total"],
    );
    let guarded = answer("HTTP/1.0 401 Unauthorized\r\n\r\n");
    check(&run_against(&server.url, &["--admin", &guarded]), NOT_RUN, &["--admin-token"]);
    let output = loadtest()
        .args(["run", "push", "--url", &server.url, "--redis", "redis://127.0.0.1:1"])
        .output()
        .unwrap();
    check(&output, NOT_RUN, &["redis://127.0.0.1:1"]);
}

#[test]
fn a_scenario_with_mistakes_has_them_all_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    let text = "[scenario]\ntitel = \"x\"\n[load]\nclients = \"many\"\nkind = \"shout\"\nduration = 5\n\
                rate = 1\nin_flight = 1\n[expect]\nlost = \"none\"\np98 = \"1ms\"\n[lode]\n";
    fs::write(&file, text).unwrap();
    let output = loadtest().arg("run").arg(&file).output().unwrap();
    let lines = [
        "wrong.toml:2: titel",
        "wrong.toml:4: clients",
        "wrong.toml:5: kind",
        "wrong.toml:6: duration",
        "wrong.toml:8: in_flight",
        "wrong.toml:10: lost",
        "wrong.toml:11: p98",
        "wrong.toml:12: lode",
    ];
    check(&output, USAGE, &lines);
    fs::write(&file, "[load\nclients = 1\n").unwrap();
    check(&loadtest().arg("run").arg(&file).output().unwrap(), USAGE, &["wrong.toml:1"]);
}

#[test]
fn wrong_flags() {
    let run = |arguments: &[&str]| loadtest().args(arguments).output().unwrap();
    check(&run(&[]), USAGE, &["Usage"]);
    check(
        &run(&["run", "chat", "--clients", "no"]),
        USAGE,
        &["--clients: clients", "not a number"],
    );
    check(&run(&["run", "nonesuch"]), USAGE, &["nonesuch", "chat", "storm"]);
    check(&run(&["run", "chat", "--url", "https://localhost"]), USAGE, &["TLS"]);
    check(&run(&["run", "chat", "--at", "10s"]), USAGE, &["--at"]);
    check(&run(&["run", "chat", "--at", "10m kill"]), USAGE, &["after the end"]);
    check(&run(&["run", "chat", "--expect", "p99 = soon"]), USAGE, &["--expect", "soon"]);
    check(&run(&["run", "push"]), USAGE, &["--redis"]);
    check(&run(&["run", "chat", "--json", "/nonesuch/a.json"]), USAGE, &["/nonesuch/a.json"]);
    check(&run(&["run", "chat", "--html", "/"]), USAGE, &["cannot be written"]);
    check(&run(&["run", "chat", "--senders", "2000"]), USAGE, &["2000 of 1000"]);
}

#[test]
fn every_scenario_that_comes_with_it_is_well_formed_and_listed() {
    let listed = String::from_utf8(loadtest().arg("list").output().unwrap().stdout).unwrap();
    for (name, _) in antiphon_loadtest::scenario::EMBEDDED {
        let flags = antiphon_loadtest::scenario::Flags {
            redis: Some("redis://localhost".into()),
            ..Default::default()
        };
        antiphon_loadtest::scenario::plan(name, &flags).unwrap();
        assert!(listed.lines().any(|line| line.starts_with(name) && line.len() > 15), "{name}");
    }
}

#[test]
fn there_are_addresses_enough_for_the_ports_of_all_connections() {
    let sources = |clients: &str, transport: &str, servers: usize| {
        let flags = antiphon_loadtest::scenario::Flags {
            urls: vec!["http://127.0.0.1:5000".into(); servers],
            clients: Some(clients.into()),
            transport: Some(transport.into()),
            ..Default::default()
        };
        antiphon_loadtest::scenario::plan("idle", &flags).unwrap().sources.len()
    };
    assert_eq!(sources("20000", "websocket", 1), 0);
    assert_eq!(sources("20000", "polling", 1), 2);
    assert_eq!(sources("60000", "websocket", 2), 3);
}

#[test]
fn nothing_is_not_fast() {
    let server = Server::start(Mischief::None);
    let mut flags = crate::server::flags(&server.url);
    flags.senders = Some("0".into());
    flags.expect = vec!["p99 < 1s".into()];
    let report = crate::server::run(&flags);
    let failed: Vec<_> = report.expectations.iter().filter(|e| !e.held).collect();
    assert_eq!((failed.len(), &failed[0].actual[..]), (1, "never"), "{}", report.table());
}

#[test]
fn exit_codes_of_runs_and_a_report_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let flags = [
        "--clients",
        "5",
        "--senders",
        "1",
        "--duration",
        "300ms",
        "--warm-up",
        "0s",
        "--grace",
        "300ms",
    ];
    let json_flag = ["--json", json.to_str().unwrap(), "--expect", "p99 < 10s"];
    let good = Server::start(Mischief::None);
    let output = run_against(&good.url, &[&flags[..], &json_flag].concat());
    check(&output, 0, &[]);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("PASSED\n"));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!((&report["format"], &report["passed"]), (&1.into(), &true.into()));
    assert_eq!(report["totals"]["delivered"], 150);
    assert!(report["command"].as_str().unwrap().ends_with(" --expect 'p99 < 10s'"), "{report}");
    let bad = Server::start(Mischief::Drop(10));
    let output = run_against(&bad.url, &flags);
    check(&output, 1, &[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("NOT HELD        lost = 0 (is 15)"));
}

#[test]
fn faults_are_run_at_their_time_and_reported() {
    let server = Server::start(Mischief::None);
    let mut flags = crate::server::flags(&server.url);
    flags.at = vec!["200ms exit 3".into(), "100ms true".into()];
    let report = crate::server::run(&flags);
    let faults: Vec<_> = report.faults.iter().map(|f| (&f.command[..], f.exit)).collect();
    assert_eq!(faults, [("true", Some(0)), ("exit 3", Some(3))]);
    assert!((0.1..0.6).contains(&report.faults[0].t), "{:?}", report.faults);
}

#[test]
fn a_server_is_measured_from_the_beginning_to_the_end_and_no_longer() {
    // It works only while it is measured: from the first command on, until the last, which is due at the very end.
    let busy = "kill -STOP $$; while :; do :; done";
    let mut child = Command::new("sh").args(["-c", busy]).spawn().unwrap();
    let pid = child.id();
    let is_stopped =
        || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !is_stopped() {
        assert!(std::time::Instant::now() < deadline, "it does not stop");
        std::thread::yield_now();
    }
    let server = Server::start(Mischief::None);
    let mut flags = crate::server::flags(&server.url);
    flags.duration = Some("1900ms".into());
    flags.pids = vec![pid];
    flags.at = vec![format!("0s kill -CONT {pid}"), format!("1900ms kill -STOP {pid}")];
    let report = crate::server::run(&flags);
    let worked_s = antiphon_loadtest::procs::usage(pid).unwrap().cpu_s;
    child.kill().unwrap();
    child.wait().unwrap();
    let exits: Vec<_> = report.faults.iter().map(|fault| fault.exit).collect();
    assert_eq!(exits, [Some(0), Some(0)]);
    let cpu_s = report.servers[0].cpu_s;
    assert!(cpu_s > 0.8 * worked_s && cpu_s < 1.2 * worked_s, "{cpu_s} of {worked_s}");
}

#[test]
fn ctrl_c_ends_early_with_a_report() {
    let server = Server::start(Mischief::None);
    let flags = ["--url", &server.url, "--clients", "5", "--senders", "1", "--warm-up", "0s"];
    let mut child = loadtest()
        .args(["run", "chat", "--duration", "1h"])
        .args(flags)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("measuring")));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    check(&output, 130, &[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("(ended early)"));
}
