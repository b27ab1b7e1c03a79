//! P5: three nodes behind a balancer are replaced one after another, as a deploy does it, under load. Nobody who is
//! connected misses anything, and everybody is back after one of its own back-offs.
//!
//! Needs a redis-server (Debian: `apt-get install redis-server`).

#[expect(dead_code, reason = "the tests of a node need more of it")]
#[path = "node/harness.rs"]
mod harness;
#[path = "support/process.rs"]
mod process;
#[expect(dead_code, reason = "the tests of the bus need more of it")]
#[path = "../../adapter/tests/bus/server.rs"]
mod server;
#[expect(dead_code, reason = "the tests of the bus need more of it")]
#[path = "../../adapter/tests/bus/wait.rs"]
mod wait;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use antiphon_loadtest::{
    live::Live,
    scenario::{Flags, plan},
};
use tokio::net::{TcpListener, TcpStream};

use crate::{harness::get, process::Node, server::Server, wait::eventually};

const CLIENTS: usize = 60;

/// How often the balancer asks nodes whether they are ready: well within their `drain.delay`.
const HEALTH_INTERVAL: Duration = Duration::from_millis(50);

/// The longest first back-off of the official clients, and time to connect on a busy machine.
const BACK_WITHIN_US: u64 = 1_500_000 + 1_500_000;

/// What a balancer knows of a node.
struct Backend {
    address: SocketAddr,
    admin: SocketAddr,
    ready: AtomicBool,
}

/// Sends each connection to the next node that is ready.
struct Balancer {
    backends: Vec<Backend>,
    next: AtomicUsize,
}

impl Balancer {
    async fn start(nodes: &[Node]) -> SocketAddr {
        let ready = || AtomicBool::new(true);
        let backend =
            |node: &Node| Backend { address: node.address, admin: node.admin, ready: ready() };
        let backends = nodes.iter().map(backend).collect();
        let balancer = Arc::new(Self { backends, next: AtomicUsize::new(0) });
        for at in 0..nodes.len() {
            tokio::spawn(Arc::clone(&balancer).watch(at));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&balancer).serve(client));
            }
        });
        address
    }

    async fn watch(self: Arc<Self>, at: usize) {
        let backend = &self.backends[at];
        let mut ticks = tokio::time::interval(HEALTH_INTERVAL);
        loop {
            ticks.tick().await;
            let answer = reqwest::get(format!("http://{}/readyz", backend.admin)).await;
            let ready = answer.is_ok_and(|answer| answer.status().is_success());
            backend.ready.store(ready, Ordering::Relaxed);
        }
    }

    async fn serve(self: Arc<Self>, mut client: TcpStream) {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let all = self.backends.len();
        let order = (first..first + all).map(|at| &self.backends[at % all]);
        for backend in order.filter(|backend| backend.ready.load(Ordering::Relaxed)) {
            if let Ok(mut node) = TcpStream::connect(backend.address).await {
                // However it ends, both see it.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                return;
            }
        }
    }
}

async fn connected(nodes: &[Node]) -> usize {
    let mut sum = 0;
    for node in nodes {
        let (_, metrics) = get(node.admin, "/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with("antiphon_gateway_sockets{"));
        let number = line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        sum += number.expect("a number");
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing() {
    let redis = Server::start(&[]).await;
    let redis = format!("redis.url={}", redis.url());
    let settings =
        [&redis, "drain.delay=500ms", "drain.spread=500ms", "log.filter=warn,antiphon=info"];
    let mut nodes: Vec<_> = (0..3).map(|_| Node::start(&settings)).collect();
    for node in &nodes {
        node.until_ready().await;
    }
    let balancer = Balancer::start(&nodes).await;

    let flags = Flags {
        urls: vec![format!("http://{balancer}")],
        clients: Some(CLIENTS.to_string()),
        senders: Some("6".to_owned()),
        rate: Some("120".to_owned()),
        warm_up: Some("0s".to_owned()),
        duration: Some("100s".to_owned()),
        ..Flags::default()
    };
    let plan = plan("chat", &flags).expect("a plan");
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let load = tokio::task::spawn_blocking(move || {
        antiphon_loadtest::run(plan, "rolling restart", &stopping, &mut Live::new(true))
    });
    let soon = Duration::from_secs(10);
    eventually("all are connected", soon, async || connected(&nodes).await == CLIENTS).await;
    for at in 0..nodes.len() {
        let old = nodes.remove(at);
        let ports = [("server.listen", old.address), ("admin.listen", old.admin)];
        let ports = ports.map(|(key, address)| format!("{key}={address}"));
        let log = tokio::task::spawn_blocking(|| old.stop()).await.expect("it ends");
        let drained = log.iter().find(|line| line["message"] == "drained").expect("it drained");
        assert_eq!(drained["cut"], 0, "{drained}");
        let settings = [&settings[..], &[&ports[0], &ports[1]]].concat();
        nodes.insert(at, Node::start(&settings));
        nodes[at].until_ready().await;
        eventually("all are back", soon, async || connected(&nodes).await == CLIENTS).await;
    }
    stop.store(true, Ordering::Relaxed);
    let report = load.await.expect("no panic").expect("it ran");
    let totals = &report.totals;
    assert_eq!((totals.lost, totals.reordered, totals.duplicated), (0, 0, 0), "{}", report.table());
    assert!(totals.delivered > 1000, "{}", report.table());
    assert_eq!(
        (totals.connect_failures, report.reconnect_us.still_away),
        (0, 0),
        "{}",
        report.table()
    );
    assert!(totals.reconnects >= CLIENTS as u64, "each was disconnected once: {}", report.table());
    assert!(report.reconnect_us.max <= BACK_WITHIN_US, "{}", report.table());
}
