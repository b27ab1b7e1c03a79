//! `antiphon-loadtest compare` from outside. The servers and the load test are stand-ins: this very
//! executable, under other names.

#![expect(clippy::unwrap_used, reason = "without the harness clippy takes it for a program")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio, exit};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Where each stand-in leaves a file with its process id for a name.
const PIDS: &str = "COMPARE_TEST_PIDS";
/// `hang`: the load test is not done until it is ended. `fail`: it cannot be run.
const LOADTEST: &str = "COMPARE_TEST_LOADTEST";

const DEADLINE: Duration = Duration::from_secs(20);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match Path::new(&args[0]).file_name().and_then(|name| name.to_str()) {
        Some("start") => serve(&args[1], option(&args, "--port")),
        Some("antiphon") => {
            serve("antiphon", option(&args, "--listen").rsplit_once(':').unwrap().1)
        }
        Some("loadtest") => load(&args),
        _ => {
            let tests: [(&str, fn()); 4] = [
                ("servers_are_compared", servers_are_compared),
                ("two_nodes_and_redis", two_nodes_and_redis),
                ("ctrl_c_ends_all_children", ctrl_c_ends_all_children),
                ("a_load_test_that_fails", a_load_test_that_fails),
            ];
            for (name, test) in tests {
                test();
                println!("test {name} ... ok");
            }
        }
    }
}

// --- stand-ins ---------------------------------------------------------------------------------------------

fn serve(name: &str, port: &str) {
    match name {
        "node-uws" => {
            eprintln!("some warning\nneeds Node.js 20\n");
            exit(69);
        }
        "bun" => {
            eprintln!("Error: a bug\n    at line 1\n\nNode.js v20");
            exit(3);
        }
        _ => {}
    }
    leave_pid();
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).unwrap();
    for stream in listener.incoming() {
        drop(stream);
    }
}

fn load(args: &[String]) {
    leave_pid();
    let pids: Vec<&str> =
        args.windows(2).filter(|pair| pair[0] == "--pid").map(|pair| pair[1].as_str()).collect();
    let of_antiphon = proc_file(pids[0], "cmdline").contains("/antiphon");
    match std::env::var(LOADTEST).as_deref() {
        Ok("hang") if !of_antiphon => sleep(DEADLINE * 2),
        Ok("fail") => {
            eprintln!("the server is unreachable");
            exit(2);
        }
        _ => {}
    }
    let cores = |pid: &str| {
        let status = proc_file(pid, "status");
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    let (deliveries_per_s, cpu) = if of_antiphon { (4e6, 0.2) } else { (5e6, 0.16) };
    let servers: Vec<_> = pids
        .iter()
        .map(|pid| {
            let cpu = cpu / pids.len() as f64;
            let command = proc_file(pid, "cmdline").replace('\0', " ");
            json!({ "pid": pid, "cpu_us_per_delivery": cpu, "rss_end_bytes": 4_000_000_000_u64,
                    "cores": cores(pid), "command": command })
        })
        .collect();
    let report = json!({
        "machine": { "cpu": "Some <CPU>", "cores": 1, "memory_bytes": 8e9, "kernel": "6.1" },
        "args": args[1..],
        "cores": cores("self"),
        "plan": { "clients": 1000 },
        "totals": { "expected": 1000, "delivered": 900, "lost": 100, "reordered": 9,
                    "connect_failures": 0, "deliveries_per_s": deliveries_per_s },
        "latency_us": { "count": 900, "p50": 1500, "p99": 39_000 },
        "connect_us": { "p99": 250_000, "all_connected_after_s": 1.5 },
        "servers": servers,
    });
    fs::write(option(args, "--json"), report.to_string()).unwrap();
    // It ran, but messages were lost.
    exit(1);
}

fn option<'a>(args: &'a [String], name: &str) -> &'a str {
    let at = args.iter().position(|arg| arg == name);
    &args[at.unwrap_or_else(|| panic!("no {name} in {args:?}")) + 1]
}

fn leave_pid() {
    let directory = std::env::var(PIDS).unwrap();
    fs::write(Path::new(&directory).join(std::process::id().to_string()), "").unwrap();
}

fn proc_file(pid: &str, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
}

// --- tests -------------------------------------------------------------------------------------------------

struct Compared {
    directory: TempDir,
    status: ExitStatus,
    said: String,
}

impl Compared {
    /// The one file in the output directory with that extension.
    fn file(&self, extension: &str) -> String {
        let path = only(&self.directory.path().join("out"), |path| {
            path.extension().is_some_and(|ending| ending == extension)
        });
        fs::read_to_string(path).unwrap()
    }

    fn table(&self) -> Vec<String> {
        self.file("md").lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
    }

    fn reports(&self) -> Vec<Value> {
        let results: Value = serde_json::from_str(&self.file("json")).unwrap();
        let runs = results["runs"].as_array().unwrap().iter();
        runs.map(|run| run["report"].clone()).filter(|report| !report.is_null()).collect()
    }
}

fn only(directory: &Path, which: impl Fn(&Path) -> bool) -> PathBuf {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths.filter(|path| which(path)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn pids(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory.join("pids")).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs it to its end, and checks that no child has outlived it. Ctrl-C comes when there are as many children
/// as said.
fn compare(args: &str, loadtest: &str, interrupt_at: Option<usize>) -> Compared {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("pids")).unwrap();
    for name in ["start", "antiphon", "loadtest"] {
        symlink(std::env::current_exe().unwrap(), at(name)).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon-loadtest"));
    command.arg("compare").args(args.split(' ')).env(PIDS, at("pids")).env(LOADTEST, loadtest);
    command.arg("--out").arg(at("out")).arg("--peers-dir").arg(directory.path());
    command.arg("--antiphon").arg(at("antiphon")).arg("--loadtest").arg(at("loadtest"));
    let said = fs::File::create(at("said")).unwrap();
    let mut child = command.stdin(Stdio::null()).stderr(said).spawn().unwrap();

    let deadline = Instant::now() + DEADLINE;
    let mut interrupt_at = interrupt_at;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if interrupt_at.is_some_and(|count| pids(directory.path()).len() == count) {
            interrupt_at = None;
            let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            assert!(kill.unwrap().success());
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("not done in time: {}", fs::read_to_string(at("said")).unwrap());
        }
        sleep(Duration::from_millis(10));
    };
    for pid in pids(directory.path()) {
        assert!(!Path::new("/proc").join(&pid).exists(), "process {pid} is still there");
    }
    let said = fs::read_to_string(at("said")).unwrap();
    Compared { directory, status, said }
}

fn servers_are_compared() {
    let args = "--peers antiphon,floor,node-uws,bun --rounds 2 --only saturated,idle";
    let compared = compare(args, "", None);
    assert!(compared.status.success(), "{}", compared.said);

    let saturated = [
        "| antiphon | 4.00 M | 1.00 | 0.200 | 1.00 | 39.0 | 1.00 | 10.0 % | 1.00 % | 4.00 M – 4.00 M |",
        "| floor | 5.00 M | 1.25 | 0.160 | 0.800 | 39.0 | 1.00 | 10.0 % | 1.00 % | 5.00 M – 5.00 M |",
        "| node-uws | missing: needs Node.js 20 | | | | | | | | |",
        "| bun | failed: see below | | | | | | | | |",
    ];
    let table = compared.table();
    assert_eq!(table[2..6], saturated);
    // 4 GB and 1,000 clients: 4 MB each, but for what the server had before.
    let idle = table[8].strip_prefix("| antiphon | ").and_then(|rest| rest.split(' ').next());
    let kilobytes = idle.and_then(|figure| figure.parse::<u32>().ok());
    assert!(kilobytes.is_some_and(|figure| (3900..4000).contains(&figure)), "{}", table[8]);
    let text = compared.file("md");
    assert!(
        text.contains("bun failed in round 2: bun ended by itself (exit status: 3): Error: a bug"),
        "{text}"
    );
    assert!(text.contains(" cores, 8 GB), Linux 6.1; "), "{text}");
    let picture = compared.file("svg");
    for shown in [
        "4.00 M (10.0 % lost, 1.00 % out of order)",
        "5.00 M",
        "missing",
        "no figures",
        "Some &lt;CPU&gt;",
    ] {
        assert!(picture.contains(shown), "{shown}: {picture}");
    }

    let reports = compared.reports();
    assert_eq!(reports.len(), 8, "two servers, two measurements, two rounds");
    if compared.said.contains("servers on core 0, load on core 1") {
        for report in &reports {
            assert_eq!(
                (&report["cores"], &report["servers"][0]["cores"]),
                (&json!("1"), &json!("0"))
            );
        }
    } else {
        assert!(compared.said.contains("not pinned"), "{}", compared.said);
    }
    // The servers take turns, and another one begins each round.
    let turns = "antiphon floor antiphon floor floor antiphon floor antiphon";
    let servers = reports.iter().map(|report| report["servers"][0]["command"].as_str().unwrap());
    let servers =
        servers.map(|command| if command.contains("/antiphon") { "antiphon" } else { "floor" });
    assert_eq!(servers.collect::<Vec<_>>().join(" "), turns);
}

fn two_nodes_and_redis() {
    let args = "--quick --peers antiphon,floor --only through-redis --redis redis://127.0.0.1:1";
    let compared = compare(args, "", None);
    assert!(compared.status.success(), "{}", compared.said);
    let report = &compared.reports()[0];
    let servers = report["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 2);
    for server in servers {
        let command = server["command"].as_str().unwrap();
        assert!(command.contains("--set redis.url=redis://127.0.0.1:1"), "{command}");
    }
    let urls = report["args"].as_array().unwrap().iter().filter(|arg| **arg == "--url");
    assert_eq!(urls.count(), 2);
    // What each of both took: together 0.2 µs.
    let line = "| antiphon | 4.00 M | 1.00 | 0.200 | 1.00 | 39.0 | 1.00 | 10.0 % | 1.00 % |";
    assert_eq!(compared.table()[2], line);
    assert_eq!(compared.table()[3], "| floor | has no cluster here | | | | | | | |");
}

fn ctrl_c_ends_all_children() {
    // Antiphon's server and load test; then the floor's, which does not end by itself.
    let compared = compare("--peers antiphon,floor --only saturated", "hang", Some(4));
    assert_eq!(compared.status.code(), Some(130), "{}", compared.said);
    assert!(compared.file("md").contains("Ended early"), "{}", compared.file("md"));
    assert!(compared.table()[2].starts_with("| antiphon | 4.00 M |"));
    assert_eq!(compared.table()[3], "| floor | not measured | | | | | | | | |");
    let results: Value = serde_json::from_str(&compared.file("json")).unwrap();
    assert_eq!(results["ended_early"], true);
}

fn a_load_test_that_fails() {
    let compared = compare("--peers antiphon --rounds 1 --only saturated", "fail", None);
    assert_eq!(compared.status.code(), Some(2));
    for said in [
        "failed: the load test ended with exit status: 2: the server is unreachable",
        "nothing was measured",
    ] {
        assert!(compared.said.contains(said), "{}", compared.said);
    }
}
