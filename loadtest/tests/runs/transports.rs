//! Both protocols over both transports, and all kinds of messages, against a server that others wrote.

use std::net::TcpListener;
use std::thread;

use antiphon_loadtest::report::Report;
use antiphon_loadtest::scenario::{self, Flags};
use serde_json::Value;
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef};

use crate::server;

/// Starts socketioxide with an event for each kind; the URL.
///
/// It runs handlers in tasks of their own: with more than one message on its way, order is not kept.
fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::spawn(move || {
        runtime.block_on(async {
            let (layer, io) = SocketIo::new_layer();
            io.ns("/", connected);
            let app = axum::Router::<()>::new().layer(layer);
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
        });
    });
    url
}

async fn connected(socket: SocketRef) {
    socket.on("chat_message", async |io: SocketIo, Data::<Value>(text)| {
        io.emit("chat_message", &text).await.unwrap();
    });
    socket.on("ask", async |socket: SocketRef, Data::<Value>(text)| {
        socket.emit("answer", &text).unwrap();
    });
    socket.on("to_others", async |socket: SocketRef, Data::<Value>(text), ack: AckSender| {
        socket.broadcast().emit("to_others", &text).await.unwrap();
        let _ = ack.send(&true);
    });
    socket.on("join", async |socket: SocketRef, Data::<String>(room), ack: AckSender| {
        socket.join(room);
        let _ = ack.send(&true);
    });
    socket.on("say", async |io: SocketIo, Data::<(String, Value)>((room, text))| {
        io.to(room).emit("say", &text).await.unwrap();
    });
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn flags(eio: &str, transport: &str) -> Flags {
    let mut flags = server::flags(&start());
    (flags.eio, flags.transport, flags.grace) = (text(eio), text(transport), text("5s"));
    flags
}

#[track_caller]
fn check(report: &Report, expected: u64) {
    let totals = &report.totals;
    assert_eq!((totals.expected, totals.delivered), (expected, expected), "{}", report.table());
    assert_eq!((totals.lost, totals.duplicated, totals.foreign), (0, 0, 0), "{}", report.table());
    assert!(totals.disconnects.is_empty() && totals.connect_failures == 0, "{}", report.table());
}

fn run_kind(scenario: &str, flags: &Flags) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kind.toml");
    std::fs::write(&file, format!("[load]\n{scenario}\n")).unwrap();
    let plan = scenario::plan(file.to_str().unwrap(), flags).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut live = antiphon_loadtest::live::Live::new(true);
    antiphon_loadtest::run(plan, "a test", &stop, &mut live).unwrap()
}

#[track_caller]
fn check_kind(scenario: &str, flags: &Flags, expected: u64) {
    check(&run_kind(scenario, flags), expected);
}

#[test]
fn websocket_and_the_newer_protocol() {
    check(&server::run(&flags("4", "websocket")), 1000);
}

#[test]
fn websocket_and_the_older_protocol() {
    check(&server::run(&flags("3", "websocket")), 1000);
}

#[test]
fn polling_and_the_newer_protocol() {
    check(&server::run(&flags("4", "polling")), 1000);
}

#[test]
fn polling_and_the_older_protocol() {
    check(&server::run(&flags("3", "polling")), 1000);
}

#[test]
fn two_threads_and_addresses_of_their_own() {
    let mut flags = flags("4", "websocket");
    flags.threads = text("2");
    flags.sources = vec!["127.0.0.2".into(), "127.0.0.3".into()];
    check(&server::run(&flags), 1000);
}

#[test]
fn answers_go_to_who_asked() {
    let mut flags = flags("4", "websocket");
    flags.senders = text("10");
    check_kind("event = \"ask\"\nreply = \"answer\"\nkind = \"echo\"", &flags, 100);
}

#[test]
fn others_hear_what_one_says_and_acknowledgements_drive_a_closed_loop() {
    check_kind("event = \"to_others\"\nkind = \"others\"", &flags("4", "websocket"), 900);
    let mut closed = flags("4", "websocket");
    (closed.rate, closed.in_flight) = (None, text("2"));
    let report = run_kind("event = \"to_others\"\nkind = \"others\"", &closed);
    assert!(report.totals.sent > 50, "{}", report.table());
    check(&report, report.totals.sent * 9);
}

#[test]
fn rooms_hear_their_members() {
    // Ten clients in five rooms: two hear each message.
    check_kind("event = \"say\"\nkind = \"room\"\nrooms = 5", &flags("4", "websocket"), 200);
    // Rooms of four, three and three; the senders are in the first two.
    check_kind("event = \"say\"\nkind = \"room\"\nrooms = 3", &flags("3", "polling"), 350);
}

#[test]
fn several_kinds_at_a_time() {
    let scenario = "event = \"chat_message\"\nsenders = 2\nrate = 50\neio3_share = 0.5\npolling_share = 0.5\n\
                    [[also]]\nevent = \"ask\"\nreply = \"answer\"\nkind = \"echo\"\nsenders = 3\nrate = 30\n\
                    [[also]]\nevent = \"say\"\nkind = \"room\"\nrooms = 2\nsenders = 2\nrate = 20";
    let mut flags = flags("4", "websocket");
    (flags.senders, flags.rate) = (None, None);
    let report = run_kind(scenario, &flags);
    check(&report, 500 + 30 + 100);
    assert_eq!((report.plan.senders, report.plan.rate), (7, Some(100.0)));
}
