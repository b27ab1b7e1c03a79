//! Sessions of the engine, with handlers as applications write them.

use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use antiphon_adapter::Cluster;
use antiphon_metrics::{GatewayMetrics, Registry};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use proptest::prelude::*;
use socketioxide::{
    SocketIo,
    extract::{Data, Event},
    handler::{ConnectHandler, FromMessageParts, Value},
    socket::{DisconnectReason, Sid, Socket},
};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tower::Service as _;

use crate::{fanout::FanOut, transport::Budget};

use super::{
    Adapter, Driver, Engine, EngineClient, EngineSession, Settings,
    codec::{self, Emitted, Payload},
    incoming::ForwardError,
    incoming::{Incoming, Post},
};

type SocketRef = socketioxide::extract::SocketRef<Adapter>;
type AckSender = socketioxide::extract::AckSender<Adapter>;

const DEADLINE: Duration = Duration::from_secs(10);

fn settings() -> Settings {
    Settings {
        handler_threads: 2,
        max_emitted_packets: 1024,
        max_packet_bytes: 100_000,
        max_waiting_bytes: 1000,
        max_tasks: 100_000,
    }
}

/// The only place that depends on the adapter.
fn engine(settings: &Settings) -> (Engine, Driver) {
    let metrics = GatewayMetrics::register(&Registry::new()).unwrap();
    let budget = Budget::new(usize::MAX, metrics.memory_bytes.clone());
    let fan_out = FanOut::new(1, budget, Arc::new(metrics));
    Engine::new(settings, Cluster::alone(Arc::new(fan_out))).unwrap()
}

struct Node {
    engine: Engine,
    driver: JoinHandle<()>,
}

impl Node {
    fn new() -> Self {
        let (engine, driver) = engine(&settings());
        Self { engine, driver: tokio::spawn(driver.run()) }
    }

    fn io(&self) -> &SocketIo<Adapter> {
        self.engine.io()
    }

    fn open(&self, namespace: &str) -> (Arc<EngineSession>, Arc<Client>) {
        let client = Arc::new(Client::default());
        let head = Request::get("/socket.io/?token=1&EIO=3&sid=abc&transport=websocket&b=2");
        let head = head.header("x-user", "me").extension(42_u8).body(()).unwrap();
        let session = self.engine.open(head, namespace, client.clone()).unwrap();
        (session, client)
    }

    fn connect(&self, namespace: &str, auth: Option<&str>) -> (Arc<EngineSession>, Arc<Client>) {
        let (session, client) = self.open(namespace);
        session.connect(auth);
        (session, client)
    }

    /// A session that is connected.
    async fn connected(&self, namespace: &str) -> (Arc<EngineSession>, Arc<Client>) {
        let (session, client) = self.connect(namespace, None);
        client.has(1).await;
        assert_eq!(client.calls(), [format!("connected {}", session.sid())]);
        client.calls.lock().unwrap().clear();
        (session, client)
    }

    fn count(&self, namespace: &str) -> usize {
        self.io().of(namespace).unwrap().sockets().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

type Hook = Box<dyn Fn(&str) + Send + Sync>;

/// Records its calls.
#[derive(Default)]
struct Client {
    calls: Mutex<Vec<String>>,
    changed: Notify,
    busy: AtomicUsize,
    hook: Mutex<Option<Hook>>,
}

impl Client {
    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    async fn has(&self, count: usize) -> Vec<String> {
        let enough = async {
            loop {
                let changed = self.changed.notified();
                if self.calls().len() >= count {
                    return;
                }
                changed.await;
            }
        };
        let _ = timeout(DEADLINE, enough).await;
        let calls = self.calls();
        assert!(calls.len() >= count, "waited for {count} calls, have {calls:?}");
        calls
    }

    fn call(&self, call: String) {
        assert_eq!(self.busy.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
        if let Some(hook) = &*self.hook.lock().unwrap() {
            hook(&call);
        }
        self.calls.lock().unwrap().push(call);
        self.busy.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_one();
    }

    fn on_call(&self, hook: impl Fn(&str) + Send + Sync + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }
}

impl EngineClient for Client {
    fn connected(&self, engine: Sid) {
        self.call(format!("connected {engine}"));
    }

    fn refused(&self, data: &str) {
        self.call(format!("refused {data}"));
    }

    fn packet(&self, text: &str, attachments: Vec<Bytes>) {
        let attachments: String =
            attachments.iter().map(|bytes| format!(" {:?}", bytes.as_ref())).collect();
        self.call(format!("{text}{attachments}"));
    }

    fn disconnected(&self) {
        self.call("disconnected".to_owned());
    }
}

async fn until(what: impl Debug, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, reached).await.unwrap_or_else(|_| panic!("waited in vain: {what:?}"));
}

async fn next<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(DEADLINE, receiver.recv()).await.unwrap().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test counts what comes")]
fn channel<T>() -> (mpsc::UnboundedSender<T>, mpsc::UnboundedReceiver<T>) {
    mpsc::unbounded_channel()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connects_with_the_clients_head() {
    let node = Node::new();
    node.io().ns("/chat", async |socket: SocketRef, Data::<rmpv::Value>(auth)| {
        let parts = socket.req_parts();
        let seen = format!(
            "{} {:?} {:?} {auth}",
            parts.uri,
            parts.headers["x-user"],
            parts.extensions.get::<u8>(),
        );
        socket.emit("seen", &seen).unwrap();
    });
    assert!(node.engine.handles("/chat"));
    assert!(!node.engine.handles("/"));
    let (session, client) = node.connect("/chat", Some(r#"{"token":"a"}"#));
    let calls = client.has(2).await;
    assert_eq!(calls[0], format!("connected {}", session.sid()));
    assert_eq!(
        calls[1],
        concat!(
            r#"2/chat,["seen","/socket.io/?EIO=4&transport=polling&token=1&b=2"#,
            r#" \"me\" Some(42) {\"token\": \"a\"}"]"#
        )
    );
    assert_eq!(node.count("/chat"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn middleware_refuses_at_once_or_later() {
    let node = Node::new();
    let gate = Arc::new(Semaphore::new(0));
    let waits = gate.clone();
    let handler = { async || () }.with(async move |Data::<rmpv::Value>(auth)| {
        if auth.as_map().is_some_and(|map| map.is_empty()) {
            return Err("not \"you\", ever");
        }
        waits.acquire().await.unwrap().forget();
        if auth["good"].as_bool() == Some(true) { Ok(()) } else { Err("later") }
    });
    node.io().ns("/", handler.clone());
    node.io().ns("/a", handler);
    let (_session, client) = node.connect("/a", None);
    assert_eq!(client.has(1).await, [r#"refused {"message":"not \"you\", ever"}"#]);
    let (_session, client) = node.connect("/", Some("{}"));
    assert_eq!(client.has(1).await, [r#"refused {"message":"not \"you\", ever"}"#]);

    let (bad, bad_client) = node.connect("/", Some(r#"{"good":false}"#));
    let (_good, good_client) = node.connect("/", Some(r#"{"good":true}"#));
    bad.flush();
    until("both wait", || Arc::strong_count(&gate) > 1).await;
    assert!(bad_client.calls().is_empty() && good_client.calls().is_empty());
    gate.add_permits(2);
    assert_eq!(bad_client.has(1).await, [r#"refused {"message":"later"}"#]);
    assert!(good_client.has(1).await[0].starts_with("connected"));
    assert_eq!(bad.forward("2[\"a\"]", &[]), Err(ForwardError::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refuses_unknown_and_invalid_namespaces() {
    let node = Node::new();
    node.io().ns("/", async || ());
    for (namespace, auth) in [
        ("/nothing", None),
        ("/a,b", None),
        ("nothing", None),
        ("/x\u{1e}40", None),
        ("/", Some("{\"a\":\"\u{1e}1\"}")),
        ("/", Some("/nothing,{}")),
    ] {
        let (_session, client) = node.connect(namespace, auth);
        assert_eq!(client.has(1).await, [r#"refused {"message":"Invalid namespace"}"#]);
    }
    node.io()
        .dyn_ns("/dyn-{id}", async |socket: SocketRef| socket.emit("hi", "x").unwrap())
        .unwrap();
    assert!(!node.engine.handles("/dyn-1"));
    let (session, client) = node.connect("/dyn-1", None);
    let sid = session.sid();
    assert_eq!(client.has(2).await, [format!("connected {sid}"), r#"2/dyn-1,["hi","x"]"#.into()]);
    assert!(node.engine.handles("/dyn-1"));
}

/// Echoes everything, attachments too.
async fn echo(socket: SocketRef) {
    socket.on_fallback(
        async |socket: SocketRef, Event(event), Data::<Arguments>(data), ack: AckSender| {
            let name = format!("{event}-back");
            socket.emit(name, &data).unwrap();
            ack.send(&data).unwrap();
        },
    );
}

/// All the arguments of an event.
#[derive(serde::Deserialize, serde::Serialize)]
struct Arguments(rmpv::Value, rmpv::Value);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carries_events_and_acks_with_attachments_both_ways() {
    let node = Node::new();
    node.io().ns("/", echo);
    node.io().ns("/b", echo);
    let (root, root_client) = node.connected("/").await;
    let (b, b_client) = node.connected("/b").await;
    root.forward(r#"25["a",1,"ä"]"#, &[]).unwrap();
    assert_eq!(root_client.has(2).await, [r#"2["a-back",1,"ä"]"#, r#"35[1,"ä"]"#]);
    let event = r#"52-/b,7["b",{"_placeholder":true,"num":0},[{"_placeholder":true,"num":1}]]"#;
    let attachments = [Bytes::from_static(&[1, 30, 255]), Bytes::new()];
    b.forward(event, &attachments).unwrap();
    assert_eq!(
        b_client.has(2).await,
        [
            concat!(
                r#"52-/b,["b-back",{"_placeholder":true,"num":0},[{"_placeholder":true,"num":1}]]"#,
                " [1, 30, 255] []"
            ),
            concat!(
                r#"62-/b,7[{"_placeholder":true,"num":0},[{"_placeholder":true,"num":1}]]"#,
                " [1, 30, 255] []"
            ),
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gives_handlers_the_acks_of_clients() {
    let node = Node::new();
    let (replies, mut replied) = channel();
    node.io().ns("/q", async move |socket: SocketRef| {
        for _ in 0..2 {
            let ack = socket.emit_with_ack::<_, Bytes>("ask", "x").unwrap().await;
            replies.send(ack).unwrap();
        }
    });
    let (session, client) = node.connect("/q", None);
    assert_eq!(client.has(2).await[1], r#"2/q,1["ask","x"]"#);
    let reply = r#"61-/q,1[{"_placeholder":true,"num":0}]"#;
    session.forward(reply, &[Bytes::from_static(b"bin")]).unwrap();
    assert_eq!(next(&mut replied).await.unwrap(), Bytes::from_static(b"bin"));
    assert_eq!(client.has(3).await[2], r#"2/q,2["ask","x"]"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_start_in_the_order_of_the_events() {
    const EVENTS: usize = 5000;
    let node = Node::new();
    let (seen, mut order) = channel();
    node.io().ns("/", async move |socket: SocketRef| {
        socket.on("n", async move |socket: SocketRef, Data::<usize>(n)| {
            seen.send(n).unwrap();
            socket.emit("n", &n).unwrap();
        });
    });
    let (session, client) = node.connected("/").await;
    for n in 0..EVENTS {
        session.forward(&format!("2[\"n\",{n}]"), &[]).unwrap();
        client.has(n.saturating_sub(500)).await;
    }
    for n in 0..EVENTS {
        assert_eq!(next(&mut order).await, n);
    }
    let expected: Vec<_> = (0..EVENTS).map(|n| format!("2[\"n\",{n}]")).collect();
    assert_eq!(client.has(EVENTS).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_earlier_than_its_handler() {
    let node = Node::new();
    node.io().ns("/", async move |socket: SocketRef| {
        // Something that takes a while, but does not await.
        std::hint::black_box((0..20_000).map(|n| n * n).sum::<u64>());
        socket.on("n", async move |socket: SocketRef| socket.emit("n", "x").unwrap());
    });
    for _ in 0..300 {
        let (session, client) = node.open("/");
        let again = Arc::downgrade(&session);
        client.on_call(move |call| {
            // As soon as it may.
            if call.starts_with("connected") {
                again.upgrade().unwrap().forward("2[\"n\"]", &[]).unwrap();
            }
        });
        session.connect(None);
        assert_eq!(client.has(2).await[1], r#"2["n","x"]"#);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_before_the_reply_waits_for_it() {
    let node = Node::new();
    let gate = Arc::new(Semaphore::new(0));
    let waits = gate.clone();
    let middleware = async move || {
        waits.acquire().await.unwrap().forget();
        Ok::<_, &str>(())
    };
    node.io().ns("/", echo.with(middleware));
    let (session, client) = node.connect("/", None);
    session.forward(r#"2["a",1,2]"#, &[]).unwrap();
    session.forward(r#"2["b",1,2]"#, &[]).unwrap();
    let large = format!(r#"2["c",1,"{}"]"#, "x".repeat(2000));
    assert_eq!(session.forward(&large, &[]), Err(ForwardError::Full));
    gate.add_permits(1);
    assert_eq!(client.has(3).await[1..], [r#"2["a-back",1,2]"#, r#"2["b-back",1,2]"#]);
    session.forward(&large, &[]).unwrap();
    client.has(4).await;
    let larger = format!(r#"2["c","{}"]"#, "x".repeat(200_000));
    assert_eq!(session.forward(&larger, &[]), Err(ForwardError::TooLarge));
    session.forward(r#"2["d",1,2]"#, &[]).unwrap();
    client.has(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_delivers_what_was_emitted_before() {
    let node = Node::new();
    node.io().ns("/", async || ());
    let (session, client) = node.connected("/").await;
    // Nobody else delivers from here on.
    node.driver.abort();
    until("driver has stopped", || node.driver.is_finished()).await;
    let socket = node.io().of("/").unwrap().get_socket(session.sid()).unwrap();
    session.flush();
    assert!(client.calls().is_empty());
    let mut expected = Vec::new();
    for round in 0..200 {
        for n in 0..round {
            socket.emit("n", &n).unwrap();
            expected.push(format!("2[\"n\",{n}]"));
        }
        session.flush();
        assert_eq!(client.calls(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_needs_no_budget_of_the_task() {
    let node = Node::new();
    node.io().ns("/", async || ());
    let (session, client) = node.connected("/").await;
    node.driver.abort();
    until("driver has stopped", || node.driver.is_finished()).await;
    let socket = node.io().of("/").unwrap().get_socket(session.sid()).unwrap();
    tokio::spawn(async move {
        let semaphore = Semaphore::new(1_000_000);
        loop {
            // Each takes one from the budget, until nothing is left.
            let acquire = std::pin::pin!(semaphore.acquire());
            match futures_util::FutureExt::now_or_never(acquire) {
                Some(permit) => permit.unwrap().forget(),
                None => break,
            }
        }
        socket.emit("a", "x").unwrap();
        session.flush();
        assert_eq!(client.calls(), [r#"2["a","x"]"#]);
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_are_cut_and_nothing_is_lost() {
    let node = Node::new();
    node.io().ns("/", async || ());
    let (session, client) = node.connected("/").await;
    let socket = node.io().of("/").unwrap().get_socket(session.sid()).unwrap();
    // Some are larger than a response may be.
    let text = |n: usize| "x".repeat([10, 70_000, 250_000, 40_000][n % 4]);
    for n in 0..40 {
        socket.emit("n", &text(n)).unwrap();
    }
    session.flush();
    client.has(40).await;
    for (n, call) in client.calls().into_iter().enumerate() {
        assert_eq!(call.len(), text(n).len() + r#"2["n",""]"#.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_gets_no_packet_that_makes_it_close() {
    let node = Node::new();
    node.io().ns("/", echo);
    let (session, client) = node.connected("/").await;
    for bad in [
        "",
        "0",
        "1",
        "2",
        "4{}",
        "7[]",
        "ä",
        "2[]",
        "2[1]",
        "2{\"a\":1}",
        "2null",
        "2/other",
        "2[\"a\"]\u{1e}1",
        r#"2["a\"b"]"#,
        r#"2["a\nb"]"#,
        r#"2["a\ud800"]"#,
        r#"2["a"#,
        "3[]",
        "399999999999999999999[]",
        r#"51-["a"]"#,
        r#"5-["a"]"#,
        r#"6["a"]"#,
    ] {
        assert_eq!(session.forward(bad, &[]), Err(ForwardError::Unreadable), "{bad:?}");
    }
    let attachment = [Bytes::from_static(b"x")];
    assert_eq!(session.forward(r#"2["a"]"#, &attachment), Err(ForwardError::Unreadable));
    session.forward(r#"2[ "caf\u00e9" ,"\u00e9\u001e",2]"#, &[]).unwrap();
    assert_eq!(client.has(1).await, [r#"2["café-back","é\u001e",2]"#]);
    // Acknowledgements that nobody waits for.
    session.forward("312345[]", &[]).unwrap();
    session.forward(r#"299999999999999999999999["a",1,2]"#, &[]).unwrap();
    client.has(2).await;
}

/// Panics before there is a task.
struct Panics;

impl FromMessageParts<Adapter> for Panics {
    type Error = std::convert::Infallible;

    fn from_message_parts(
        _: &Arc<Socket<Adapter>>,
        _: &mut Value,
        _: &Option<i64>,
    ) -> Result<Self, Self::Error> {
        panic!("on purpose")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_cost_one_packet() {
    let node = Node::new();
    node.io().ns("/", async |socket: SocketRef| {
        echo(socket.clone()).await;
        socket.on("extractor", async |_: Panics| ());
        socket.on("task", async || panic!("on purpose"));
    });
    let (session, client) = node.connected("/").await;
    for event in ["extractor", "task", "a"] {
        session.forward(&format!(r#"2["{event}",1,2]"#), &[]).unwrap();
    }
    assert_eq!(client.has(1).await, [r#"2["a-back",1,2]"#]);
    // A client that panics loses its session, and only that.
    client.on_call(|_| panic!("on purpose"));
    session.forward(r#"2["a",1,2]"#, &[]).unwrap();
    until("it is out", || node.count("/") == 0).await;
    let (_other, other_client) = node.connected("/").await;
    assert!(other_client.calls().is_empty());
}

/// Registers a namespace that reports how its sockets leave.
fn tells_reasons(node: &Node) -> mpsc::UnboundedReceiver<(Sid, DisconnectReason)> {
    let (left, leaving) = channel();
    node.io().ns("/", async move |socket: SocketRef| {
        socket.join("room");
        socket.on_disconnect(async move |socket: SocketRef, reason: DisconnectReason| {
            left.send((socket.id, reason)).unwrap();
        });
        socket.on("kick", async |socket: SocketRef| {
            for n in 0..5 {
                socket.emit("n", &n).unwrap();
            }
            socket.disconnect().unwrap();
        });
    });
    leaving
}

async fn nothing_is_left(node: &Node, session: Weak<EngineSession>, client: Weak<Client>) {
    until("socket is gone", || node.count("/") == 0).await;
    until("client is dropped", || client.strong_count() == 0).await;
    until("session is dropped", || session.strong_count() == 0).await;
    assert!(node.io().of("/").unwrap().rooms().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_in_every_way_and_nothing_is_left() {
    let node = Node::new();
    let mut leaving = tells_reasons(&node);

    let (session, client) = node.connected("/").await;
    session.disconnect();
    session.disconnect();
    session.close();
    let reason = DisconnectReason::ClientNSDisconnect;
    assert_eq!(next(&mut leaving).await, (session.sid(), reason));
    assert!(client.calls().is_empty());
    let weak = (Arc::downgrade(&session), Arc::downgrade(&client));
    drop((session, client));
    nothing_is_left(&node, weak.0, weak.1).await;

    let (session, client) = node.connected("/").await;
    session.close();
    assert_eq!(next(&mut leaving).await, (session.sid(), DisconnectReason::TransportClose));
    assert_eq!(session.forward("2[\"a\"]", &[]), Err(ForwardError::Closed));
    assert!(client.calls().is_empty());
    let weak = (Arc::downgrade(&session), Arc::downgrade(&client));
    drop(client);
    // The session holds nothing of the client any more.
    until("client is dropped", || weak.1.strong_count() == 0).await;
    drop(session);
    nothing_is_left(&node, weak.0, weak.1).await;

    let (session, client) = node.connected("/").await;
    let sid = session.sid();
    let weak = (Arc::downgrade(&session), Arc::downgrade(&client));
    drop((session, client));
    assert_eq!(next(&mut leaving).await, (sid, DisconnectReason::TransportClose));
    nothing_is_left(&node, weak.0, weak.1).await;

    for _ in 0..100 {
        let (session, client) = node.connected("/").await;
        session.forward("2[\"kick\"]", &[]).unwrap();
        let calls = client.has(6).await;
        assert_eq!(
            calls,
            ["2[\"n\",0]", "2[\"n\",1]", "2[\"n\",2]", "2[\"n\",3]", "2[\"n\",4]", "disconnected"]
        );
        let reason = DisconnectReason::ServerNSDisconnect;
        assert_eq!(next(&mut leaving).await, (session.sid(), reason));
        assert_eq!(session.forward("2[\"a\"]", &[]), Err(ForwardError::Closed));
        let weak = (Arc::downgrade(&session), Arc::downgrade(&client));
        drop((session, client));
        nothing_is_left(&node, weak.0, weak.1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_disconnects_a_client() {
    let node = Node::new();
    let mut leaving = tells_reasons(&node);
    for _ in 0..100 {
        let (session, client) = node.connected("/").await;
        session.disconnect_by_server();
        let reason = DisconnectReason::ServerNSDisconnect;
        assert_eq!(next(&mut leaving).await, (session.sid(), reason));
        assert!(client.calls().is_empty());
        let weak = (Arc::downgrade(&session), Arc::downgrade(&client));
        drop((session, client));
        nothing_is_left(&node, weak.0, weak.1).await;
    }
    // Somebody else disconnects it, from any thread.
    for _ in 0..100 {
        let (session, client) = node.connected("/").await;
        let socket = node.io().of("/").unwrap().get_socket(session.sid()).unwrap();
        socket.disconnect().unwrap();
        let reason = DisconnectReason::ServerNSDisconnect;
        assert_eq!(next(&mut leaving).await, (session.sid(), reason));
        assert_eq!(client.has(1).await, ["disconnected"]);
    }
    // Too early: the handlers have not accepted it.
    let (session, client) = node.open("/");
    session.disconnect_by_server();
    session.connect(None);
    assert_eq!(Arc::strong_count(&client), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_clients_that_never_came_in() {
    let node = Node::new();
    let gate = Arc::new(Semaphore::new(0));
    let waits = gate.clone();
    let (entered, mut entering) = channel();
    let handler =
        { async || () }.with(async move |socket: SocketRef, Data::<rmpv::Value>(auth)| {
            socket.join("room");
            let alive = socket.req_parts().extensions.get::<Arc<()>>().cloned();
            entered.send(alive.is_some()).unwrap();
            if auth["wait"].as_bool() == Some(true) {
                waits.acquire().await.unwrap().forget();
            }
            Err::<(), _>("no")
        });
    node.io().ns("/", handler);
    let open = |client: &Arc<Client>, alive: &Arc<()>| {
        let head = Request::get("/").extension(Arc::clone(alive)).body(()).unwrap();
        node.engine.open(head, "/", client.clone()).unwrap()
    };
    let refused = Arc::new(());
    for _ in 0..10 {
        let client = Arc::new(Client::default());
        open(&client, &refused).connect(Some(r#"{"wait":false}"#));
        drop(client);
    }
    // Dropped without having connected.
    drop(open(&Arc::default(), &refused));
    until("no request is left", || Arc::strong_count(&refused) == 1).await;

    let client = Arc::new(Client::default());
    let session = open(&client, &refused);
    session.connect(Some(r#"{"wait":false}"#));
    client.has(1).await;
    until("no request is left", || Arc::strong_count(&refused) == 1).await;

    // Gone while the middleware works.
    while entering.try_recv().is_ok() {}
    let waiting = Arc::new(());
    let client = Arc::new(Client::default());
    let session = open(&client, &waiting);
    session.connect(Some(r#"{"wait":true}"#));
    next(&mut entering).await;
    session.close();
    assert_eq!(Arc::strong_count(&client), 1);
    gate.add_permits(1);
    until("no request is left", || Arc::strong_count(&waiting) == 1).await;
    assert!(client.calls().is_empty());
    assert!(node.io().of("/").unwrap().rooms().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_shuts_down() {
    let node = Node::new();
    let mut leaving = tells_reasons(&node);
    let (session, client) = node.connected("/").await;
    timeout(DEADLINE, node.io().close()).await.unwrap();
    assert_eq!(client.has(1).await, ["disconnected"]);
    assert_eq!(session.forward("2[\"a\"]", &[]), Err(ForwardError::Closed));
    drop(node);
    drop((session, client));
    leaving.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_call_its_session() {
    let node = Node::new();
    node.io().ns("/", echo);
    for end in [EngineSession::close, EngineSession::disconnect] {
        let (session, client) = node.connected("/").await;
        let weak = Arc::downgrade(&session);
        let hooked = Arc::downgrade(&client);
        client.on_call(move |call| {
            let session = weak.upgrade().unwrap();
            session.flush();
            if call.contains("\"a-back\"") {
                session.forward(r#"2["b",1,2]"#, &[]).unwrap();
                session.flush();
            } else if call.contains("\"b-back\"") {
                end(&session);
                session.flush();
                assert_eq!(session.forward("2[\"a\"]", &[]), Err(ForwardError::Closed));
                assert!(hooked.strong_count() > 0);
            }
        });
        session.forward(r#"2["a",1,2]"#, &[]).unwrap();
        assert_eq!(client.has(2).await, [r#"2["a-back",1,2]"#, r#"2["b-back",1,2]"#]);
        until("socket is gone", || node.count("/") == 0).await;
        client.hook.lock().unwrap().take();
        until("session let go", || Arc::strong_count(&client) == 1).await;
        assert_eq!(client.calls().len(), 2);
    }
}

/// Flushes while a handler is being called, on the same thread.
struct Flushes;

static FLUSHED: Mutex<Option<Arc<EngineSession>>> = Mutex::new(None);

impl FromMessageParts<Adapter> for Flushes {
    type Error = std::convert::Infallible;

    fn from_message_parts(
        socket: &Arc<Socket<Adapter>>,
        _: &mut Value,
        _: &Option<i64>,
    ) -> Result<Self, Self::Error> {
        socket.emit("early", "x").unwrap();
        let session = FLUSHED.lock().unwrap().clone().unwrap();
        session.flush();
        session.forward(r#"2["a",1,2]"#, &[]).unwrap();
        Ok(Self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_flush_its_own_session() {
    let node = Node::new();
    node.io().ns("/", async |socket: SocketRef| {
        echo(socket.clone()).await;
        socket.on("inline", async |_: Flushes, socket: SocketRef| {
            socket.emit("late", "x").unwrap();
            let session = FLUSHED.lock().unwrap().take().unwrap();
            session.flush();
        });
    });
    let (session, client) = node.connected("/").await;
    *FLUSHED.lock().unwrap() = Some(session.clone());
    session.forward("2[\"inline\"]", &[]).unwrap();
    assert_eq!(
        client.has(3).await,
        [r#"2["early","x"]"#, r#"2["late","x"]"#, r#"2["a-back",1,2]"#]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_at_once() {
    const THREADS: usize = 4;
    const EVENTS: usize = 2000;
    let node = Node::new();
    node.io().ns("/", async move |socket: SocketRef| {
        socket.on("n", async move |socket: SocketRef, Data::<(usize, usize)>(from)| {
            while socket.emit("n", &from).is_err() {
                tokio::task::yield_now().await;
            }
        });
    });
    let (session, client) = node.connected("/").await;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let session = &session;
            scope.spawn(move || {
                for n in 0..EVENTS {
                    let event = format!("2[\"n\",{thread},{n}]");
                    // Full while another thread is at it.
                    while session.forward(&event, &[]) == Err(ForwardError::Full) {}
                    if n % 3 == thread % 3 {
                        session.flush();
                    }
                }
            });
        }
    });
    let calls = client.has(THREADS * EVENTS).await;
    assert_eq!(calls.len(), THREADS * EVENTS);
    for thread in 0..THREADS {
        let head = format!("2[\"n\",{thread},");
        let of_thread = calls.iter().filter(|call| call.starts_with(&head));
        let expected = (0..EVENTS).map(|n| format!("{head}{n}]"));
        assert!(of_thread.cloned().eq(expected), "thread {thread}");
    }
    session.close();
    until("client is let go", || Arc::strong_count(&client) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sessions_of_one_another_do_not_wait_in_a_circle() {
    const EVENTS: usize = 1000;
    let node = Node::new();
    node.io().ns("/", echo);
    let (one, one_client) = node.connected("/").await;
    let (two, two_client) = node.connected("/").await;
    for (client, other) in [(&one_client, &two), (&two_client, &one)] {
        let other = Arc::downgrade(other);
        client.on_call(move |_| other.upgrade().unwrap().flush());
    }
    std::thread::scope(|scope| {
        for session in [&one, &two] {
            scope.spawn(move || {
                for _ in 0..EVENTS {
                    while session.forward(r#"2["a",1,2]"#, &[]).is_err() {}
                    session.flush();
                }
            });
        }
    });
    one_client.has(1).await;
    two_client.has(1).await;
    let (_three, three_client) = node.connected("/").await;
    assert!(three_client.calls().is_empty());
    for client in [&one_client, &two_client] {
        client.hook.lock().unwrap().take();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn closing_races_with_everything() {
    let node = Node::new();
    let mut leaving = tells_reasons(&node);
    let all = Arc::new(AtomicUsize::new(0));
    for round in 0..500 {
        let (session, client) = node.connect("/", None);
        if round % 2 == 0 {
            client.has(1).await;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = session.forward("2[\"kick\"]", &[]);
                session.flush();
            });
            scope.spawn(|| match round % 3 {
                0 => session.close(),
                1 => session.disconnect(),
                _ => {}
            });
            scope.spawn(|| session.flush());
        });
        let weak = (Arc::downgrade(&session), Arc::downgrade(&client));
        drop((session, client));
        nothing_is_left(&node, weak.0, weak.1).await;
        while leaving.try_recv().is_ok() {
            all.fetch_add(1, Ordering::Relaxed);
        }
    }
    assert!(all.load(Ordering::Relaxed) <= 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volatile_events_come_too() {
    let node = Node::new();
    node.io().ns("/", async || ());
    let (session, client) = node.connected("/").await;
    let socket = node.io().of("/").unwrap().get_socket(session.sid()).unwrap();
    socket.volatile().emit("v", "x").unwrap();
    assert_eq!(client.has(1).await, [r#"2["v","x"]"#]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_tasks_are_refused() {
    let limit = Settings { handler_threads: 1, max_tasks: 10, ..settings() };
    let (engine, driver) = engine(&limit);
    let node = Node { engine, driver: tokio::spawn(driver.run()) };
    let gate = Arc::new(Semaphore::new(0));
    let waits = gate.clone();
    node.io().ns("/", async move |socket: SocketRef| {
        socket.on("wait", async move || waits.acquire().await.unwrap().forget());
    });
    let (session, _client) = node.connected("/").await;
    let results: Vec<_> = (0..20).map(|_| session.forward("2[\"wait\"]", &[])).collect();
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    // One may be neither in the queue any more nor a task yet.
    assert!((1..=11).contains(&accepted), "{accepted}");
    assert_eq!(results[19], Err(ForwardError::Full));
    gate.add_permits(accepted);
    until("there is room", || session.forward("2[\"wait\"]", &[]).is_ok()).await;
}

#[tokio::test]
async fn a_request_that_does_not_complete_is_resumed() {
    let (engine, _driver) = engine(&settings());
    let call = || {
        let request = Request::get("/?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAA");
        engine.shared.service.clone().call(request.body(Full::default()).unwrap())
    };
    let mut incoming = Incoming::default();
    assert!(incoming.next().is_none());
    assert!(incoming.connect(Bytes::from_static(b"40")));
    assert!(!incoming.connect(Bytes::from_static(b"40")));
    incoming.push(Bytes::from_static(b"42[]"), 100, 0, 1).unwrap();
    let Some(Post::Body(body)) = incoming.next() else { panic!("CONNECT is next") };
    assert_eq!(body, "40");
    // Another thread misses its turn.
    assert!(incoming.next().is_none());
    assert!(incoming.done(Some(call())));
    assert!(matches!(incoming.next(), Some(Post::Resumed(_))));
    assert!(!incoming.done(Some(call())));
    assert!(incoming.is_suspended());
    // It is woken.
    assert!(matches!(incoming.next(), Some(Post::Resumed(_))));
    assert!(incoming.done(None));
    assert!(incoming.next().is_none());
    incoming.set_connected();
    let Some(Post::Body(body)) = incoming.next() else { panic!("the event is next") };
    assert_eq!(body, "42[]");
}

proptest! {
    /// An accepted packet is still one packet, of the same kind.
    #[test]
    fn forwarded_packets_stay_what_they_are(
        text in concat!(
            r#"[0-7](1-|-)?(/[a,]{0,2},)?"#,
            r#"[0-9]{0,20}[\[{]?[ \t"\\\\ua-f0-9,\[\]\x1e\u{e9}]{0,16}"#
        ),
        binary in any::<bool>(),
    ) {
        let attachments = [Bytes::from_static(b"\x1e")];
        let attachments = if binary { &attachments[..] } else { &[] };
        if let Ok(body) = codec::packet(&text, attachments) {
            let mut payload = Payload::new(body);
            let Some(Emitted::Packet(packet, read)) = payload.next("/") else { panic!("a packet") };
            prop_assert_eq!(packet.as_bytes()[0], text.as_bytes()[0]);
            prop_assert!("2356".contains(&packet[..1]));
            prop_assert_eq!(read, attachments);
            prop_assert_eq!(payload.next("/"), None);
        }
    }
}
