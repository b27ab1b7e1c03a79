//! A node for one test, on ports of its own, and the questions that tests ask it.

use std::{net::SocketAddr, path::Path, time::Duration};

use antiphon_gateway::{Listeners, RunError, Shutdown, config::Config, run};
use tokio::task::JoinHandle;

/// How long anything that should happen may take. Nothing waits this long unless it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A running node.
pub(crate) struct TestNode {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) shutdown: Shutdown,
    running: JoinHandle<Result<(), RunError>>,
}

impl TestNode {
    /// A node with the default settings but for `settings`.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(None, settings).await
    }

    /// The same, with the text of a configuration file.
    pub(crate) async fn start_with_file(text: &str, settings: &[(&str, &str)]) -> Self {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
        std::fs::write(file.path(), text).expect("the file is writable");
        Self::start_with(Some(file.path()), settings).await
    }

    pub(crate) async fn start_with(file: Option<&Path>, settings: &[(&str, &str)]) -> Self {
        let fixed = [("server.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0")];
        let pairs = fixed.iter().chain(settings);
        let pairs: Vec<_> =
            pairs.map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let loaded = Config::load(file, std::iter::empty(), &pairs).expect("valid settings");
        let listeners = Listeners::bind(&loaded.config).await.expect("free ports");
        let address = listeners.public.local_addr().expect("bound");
        let admin = listeners.admin.as_ref().expect("on").local_addr().expect("bound");
        let shutdown = Shutdown::default();
        let running = tokio::spawn(run(loaded.config, listeners, shutdown.clone()));
        Self { address, admin, shutdown, running }
    }

    /// Waits for the node to end after it was told to.
    pub(crate) async fn ended(self) {
        let ended = tokio::time::timeout(DEADLINE, self.running).await;
        ended.expect("the node ends").expect("without panic").expect("without error");
    }

    /// The sum of all samples whose line begins with `prefix`.
    pub(crate) async fn metric(&self, prefix: &str) -> f64 {
        let text = get(self.admin, "/metrics").await.1;
        let samples = text.lines().filter(|line| line.starts_with(prefix));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until [`TestNode::metric`] is `expected`.
    pub(crate) async fn until(&self, prefix: &str, expected: f64) {
        let seen = std::cell::Cell::new(f64::NAN);
        let reached = async {
            loop {
                seen.set(self.metric(prefix).await);
                if seen.get() == expected {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, reached).await;
        assert!(in_time.is_ok(), "{prefix} is {}, not {expected}", seen.get());
    }

    /// Waits until nothing is left of any client: no socket, session or connection.
    pub(crate) async fn until_empty(&self) {
        self.until("antiphon_gateway_sockets{", 0.0).await;
        self.until("antiphon_gateway_sessions{", 0.0).await;
        self.until("antiphon_gateway_connections ", 0.0).await;
        self.until("antiphon_gateway_stage_events ", 0.0).await;
        self.until("antiphon_gateway_stage_bytes ", 0.0).await;
        self.until("antiphon_gateway_memory_bytes ", 0.0).await;
        for counted in ["sessions", "sockets"] {
            let opened = format!("antiphon_gateway_{counted}_opened_total{{");
            let closed = format!("antiphon_gateway_{counted}_closed_total{{");
            self.until(&closed, self.metric(&opened).await).await;
        }
    }
}

/// A GET: status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let response = reqwest::get(format!("http://{address}{path}")).await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("a body"))
}

/// Opens a polling session that has not connected to any namespace yet: its id.
pub(crate) async fn open_polling(address: SocketAddr) -> String {
    let (status, open) = get(address, "/socket.io/?EIO=4&transport=polling").await;
    assert_eq!(status, 200, "{open}");
    let open: serde_json::Value = serde_json::from_str(&open[1..]).expect("an open packet");
    open["sid"].as_str().expect("an id").to_owned()
}
