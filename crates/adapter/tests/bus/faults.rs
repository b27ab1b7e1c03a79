//! What Redis can do to a bus. Everything adds up afterwards, and what arrived is in order.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use antiphon_adapter::bus::{ClientIdentity, Protocol, Settings, Status};
use antiphon_metrics::bus::{Connection, Unpublished as Reason};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    node::{Chatter, Collected, Node, channels, redis, settings},
    proxy::Proxy,
    server::{Server, free_port},
    wait::{SOON, eventually},
};

/// A node that publishes to itself all through a fault.
struct Running {
    node: Node,
    heard: Collected,
    chatter: Chatter,
}

impl Running {
    async fn start(url: String) -> Self {
        let mut node = Node::redis(&redis(url, Protocol::Resp3), settings(), &["room"]);
        node.ready().await;
        let (heard, chatter) = (node.collect(), node.chatter("room"));
        heard.beyond(20).await;
        Self { node, heard, chatter }
    }

    /// It is back by itself, what it counted adds up, and what arrived is in order.
    async fn recovers(self) -> Node {
        self.node.ready().await;
        self.heard.beyond(self.chatter.next() + 20).await;
        let (accepted, refused) = self.chatter.stop().await;
        let node = self.node;
        let known = || {
            node.published()
                + node.unpublished(Reason::LinkLost)
                + node.unpublished(Reason::Rejected)
        };
        eventually("all is accounted for", SOON, async || known() == accepted).await;
        let turned_away = node.unpublished(Reason::Down) + node.unpublished(Reason::QueueFull);
        assert_eq!(turned_away, refused);
        self.heard.in_order();
        node
    }
}

#[tokio::test]
async fn a_killed_subscriber_comes_back() {
    let server = Server::start(&[]).await;
    let running = Running::start(server.url()).await;
    server.admin(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    running.node.not_ready().await;
    let node = running.recovers().await;
    assert_eq!(node.metrics.reconnects_total.of(Connection::Subscriber).get(), 1);
    assert_eq!(node.metrics.reconnects_total.of(Connection::Publisher).get(), 0);
    assert_eq!(node.unpublished(Reason::LinkLost), 0, "the publisher was not concerned");
}

#[tokio::test]
async fn a_restarted_server_is_joined_again() {
    let mut server = Server::start(&[]).await;
    let running = Running::start(server.url()).await;
    server.kill();
    running.node.not_ready().await;
    let refused = || running.node.unpublished(Reason::Down);
    eventually("publishing fails at once", SOON, async || refused() > 100).await;
    server.run().await;
    let node = running.recovers().await;
    assert!(node.metrics.deaf_seconds_total.get() > 0.0);
}

#[tokio::test]
async fn a_server_that_is_down_at_start_is_joined_later() {
    let mut server = Server::not_started(&[]);
    let mut node = Node::redis(&redis(server.url(), Protocol::Resp2), settings(), &["room"]);
    let failures = || node.metrics.connect_failures_total.of(Connection::Publisher).get();
    eventually("it tries", SOON, async || failures() > 1).await;
    assert!(!node.bus.ready());
    assert!(node.bus.publish("room", Bytes::new()).is_err());
    server.run().await;
    node.ready().await;
    node.bus.publish("room", Bytes::from_static(b"1")).expect("is up");
    assert_eq!(node.receive(1).await.len(), 1);
}

#[tokio::test]
async fn a_paused_server_is_noticed_and_outlived() {
    let server = Server::start(&[]).await;
    let running = Running::start(server.url()).await;
    server.admin(&["CLIENT", "PAUSE", "5000", "ALL"]).await;
    running.node.not_ready().await;
    running.node.status("the publisher gives up", |status| !status.publisher_up).await;
    // What is left of the pause ends by itself; from then on there are five seconds.
    eventually("it is back", SOON + SOON, async || running.node.bus.ready()).await;
    let node = running.recovers().await;
    assert!(node.unpublished(Reason::LinkLost) > 0);
}

/// The other side is gone without a word. New connections work; each of the old ones has to be given up by
/// itself, and the first to be replaced says nothing about the other.
#[tokio::test]
async fn half_open_connections_are_both_replaced_before_all_is_well() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(server.port).await;
    let running = Running::start(proxy.url()).await;
    let heard = Instant::now();
    proxy.strand();
    running.node.not_ready().await;
    running.node.ready().await;
    let (passed, deaf) = (heard.elapsed(), running.node.metrics.deaf_seconds_total.get());
    assert!(deaf > passed.as_secs_f64() - 0.5, "deaf for {deaf} s of {passed:?}");
    for connection in [Connection::Publisher, Connection::Subscriber] {
        let reconnects = running.node.metrics.reconnects_total.of(connection).get();
        assert_eq!(reconnects, 1, "{connection:?}");
    }
    running.recovers().await;
}

/// Every batch of bytes is late, by far less than what makes a node suspicious.
#[tokio::test]
async fn a_slow_server_is_waited_for() {
    const DELAY: Duration = Duration::from_millis(300);
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(server.port).await;
    let running = Running::start(proxy.url()).await;
    let mut status = running.node.bus.status();
    let well = status.wait_for(|status| !status.ready());
    let probes = || running.node.metrics.probe_seconds.count();
    let slow = async {
        let before = probes();
        proxy.delay(DELAY);
        // One may have been under way; each takes two delays and comes two seconds after the other.
        eventually("probes come back", 2 * SOON, async || probes() >= before + 3).await;
    };
    tokio::select! {
        biased;
        _ = well => panic!("it is late, not lost: {:?}", *running.node.bus.status().borrow()),
        () = slow => {}
    }
    let latest = running.heard.numbers().len() as u64;
    let behind = running.chatter.next() - latest;
    assert!(behind > 50, "{behind} are on their way, at one a millisecond");
    let node = running.recovers().await;
    assert_eq!(node.metrics.probes_lost_total.get(), 0);
    for connection in [Connection::Publisher, Connection::Subscriber] {
        assert_eq!(node.metrics.reconnects_total.of(connection).get(), 0, "{connection:?}");
    }
    for reason in [Reason::LinkLost, Reason::Down, Reason::QueueFull, Reason::Rejected] {
        assert_eq!(node.unpublished(reason), 0, "{reason:?}");
    }
}

#[tokio::test]
async fn a_subscriber_cut_off_for_its_output_buffer_comes_back() {
    let limit = ["--client-output-buffer-limit", "pubsub 64kb 0 0"];
    let server = Server::start(&limit).await;
    let running = Running::start(server.url()).await;
    let peer = Node::redis(&redis(server.url(), Protocol::Resp2), settings(), &[]);
    peer.ready().await;
    let others = channels(&["other"]).remove(0);
    running.node.bus.subscribe(others.clone()).expect("has room");
    running.node.ready().await;
    // More in one message than the server may hold for a subscriber.
    peer.bus.publish("other", Bytes::from(vec![b'x'; 1 << 20])).expect("is up");
    running.node.not_ready().await;
    running.node.bus.unsubscribe(&others);
    let node = running.recovers().await;
    assert_eq!(node.metrics.reconnects_total.of(Connection::Subscriber).get(), 1);
}

#[tokio::test]
async fn a_forbidden_channel_is_reported_and_the_others_serve() {
    let server = Server::start(&[]).await;
    let user = ["ACL", "SETUSER", "node", "on", ">secret", "+@all", "resetchannels"];
    server.admin(&[&user[..], &["&room", "&antiphon-probe#*"]].concat()).await;
    let url = server.url().replace("://", "://node:secret@");
    let mut node = Node::redis(&redis(url, Protocol::Resp2), settings(), &["room", "forbidden"]);
    node.status("publishing", |status| status.publisher_up).await;
    eventually("the permitted one is subscribed", SOON, async || {
        node.bus.subscribers("room").await.is_ok_and(|count| count == 1)
    })
    .await;
    assert!(!node.bus.ready());
    node.bus.publish("forbidden", Bytes::from_static(b"0")).expect("is up");
    eventually("it is rejected", SOON, async || node.unpublished(Reason::Rejected) == 1).await;
    node.bus.publish("room", Bytes::from_static(b"1")).expect("is up");
    assert_eq!(&node.receive(1).await[0].channel[..], b"room");
    let reconnects = node.metrics.reconnects_total.of(Connection::Publisher).get();
    assert_eq!(reconnects, 0, "a refusal costs no connection");

    server.admin(&["ACL", "SETUSER", "node", "&forbidden"]).await;
    node.ready().await;
}

#[tokio::test]
async fn a_forbidden_probe_is_not_ready() {
    let server = Server::start(&[]).await;
    let running = Running::start(server.url()).await;
    let channels = ["ACL", "SETUSER", "default", "resetchannels", "&room"];
    server.admin(&channels).await;
    running.node.not_ready().await;
    server.admin(&["ACL", "SETUSER", "default", "allchannels"]).await;
    running.recovers().await;
}

#[tokio::test]
async fn a_wrong_password_is_reported_without_showing_it() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false);
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let server = Server::start(&[]).await;
    server.admin(&["ACL", "SETUSER", "node", "on", ">right", "+@all", "allchannels"]).await;
    let mut settings = redis(server.url(), Protocol::Resp2);
    settings.username = Some("node".to_owned());
    settings.password = Some("wr0ng".to_owned());
    assert!(!format!("{settings:?}").contains("wr0ng"));
    let quick = Settings { backoff_max: Duration::from_millis(100), ..crate::node::settings() };
    let node = Node::redis(&settings, quick, &["room"]);
    let failures = || node.metrics.connect_failures_total.of(Connection::Subscriber).get();
    eventually("it keeps trying", SOON, async || failures() > 12).await;
    let error = node.bus.ping().await.expect_err("the password is wrong").to_string();
    assert!(error.contains("refused") && !error.contains("wr0ng"), "{error}");
    let text = log.text();
    assert!(text.contains("WRONGPASS") || text.contains("authentication"), "{text}");
    assert!(!text.contains("wr0ng"), "{text}");
    assert!(text.lines().count() <= 6, "one a second for each connection: {text}");
    server.admin(&["ACL", "SETUSER", "node", ">wr0ng"]).await;
    node.ready().await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_without_showing_secrets() {
    let mut with_certificates = redis("redis://127.0.0.1", Protocol::Resp2);
    with_certificates.tls_authorities = Some(Vec::new());
    let bad_url = redis("http://node:s3cret@127.0.0.1:x", Protocol::Resp2);
    for settings in [with_certificates, bad_url] {
        let (registry, stop) = (antiphon_metrics::Registry::new(), Default::default());
        let metrics = antiphon_metrics::BusMetrics::register(&registry).expect("a new registry");
        let bounds = Settings::default();
        let started =
            antiphon_adapter::bus::Bus::redis(&settings, bounds, [], Arc::new(metrics), &stop);
        let error = started.err().expect("cannot work");
        assert!(!format!("{error} {error:?} {settings:?}").contains("s3cret"), "{error:?}");
    }
}

#[tokio::test]
async fn a_unix_socket_and_a_database_will_do() {
    let server = Server::start(&[]).await;
    let url = format!("unix://{}?db=3", server.unix_socket());
    let mut node = Node::redis(&redis(url, Protocol::Resp3), settings(), &["room"]);
    node.ready().await;
    node.bus.publish("room", Bytes::from_static(b"1")).expect("is up");
    assert_eq!(node.receive(1).await.len(), 1);
    assert_eq!(node.bus.subscribers("room").await.expect("answers"), 1);
    node.status("still ready", Status::ready).await;
}

#[tokio::test]
async fn tls_with_an_authority_and_a_client_certificate_of_ones_own() {
    let files = TempDir::new().expect("a temporary directory");
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).expect("can be written");
        path.display().to_string()
    };
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("valid names");
    // Not the default, which the certificates it signs have: they would pass for self-signed.
    authority.distinguished_name.push(DnType::CommonName, "authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).expect("signs").pem();
    let issuer = Issuer::new(authority, authority_key);
    let issue = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("valid names");
        (params.signed_by(&key, &issuer).expect("signs").pem(), key.serialize_pem())
    };
    let (server_pem, server_key) = issue("127.0.0.1");
    let (client_pem, client_key) = issue("node");
    let tls_port = free_port().to_string();
    let server = Server::start(&[
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &file("server.pem", &server_pem),
        "--tls-key-file",
        &file("server.key", &server_key),
        "--tls-ca-cert-file",
        &file("authority.pem", &authority_pem),
        "--tls-auth-clients",
        "yes",
    ])
    .await;

    let mut over_tls = redis(format!("rediss://127.0.0.1:{tls_port}"), Protocol::Resp2);
    over_tls.tls_authorities = Some(authority_pem.into_bytes());
    let without = Node::redis(&over_tls, settings(), &["room"]);
    let (certificate, key) = (client_pem.into_bytes(), client_key.into_bytes());
    over_tls.tls_identity = Some(ClientIdentity { certificate, key });
    let mut node = Node::redis(&over_tls, settings(), &["room"]);
    node.ready().await;
    node.bus.publish("room", Bytes::from_static(b"1")).expect("is up");
    assert_eq!(node.receive(1).await.len(), 1);
    assert_eq!(node.bus.subscribers("room").await.expect("answers"), 1);
    server.admin(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    node.not_ready().await;
    node.ready().await;

    over_tls.tls_authorities = None;
    let untrusting = Node::redis(&over_tls, settings(), &["room"]);
    for refused in [&without, &untrusting] {
        let failures = || refused.metrics.connect_failures_total.of(Connection::Publisher).get();
        eventually("it fails", SOON, async || failures() > 0).await;
        assert!(!refused.bus.ready());
    }
}

/// The log as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
