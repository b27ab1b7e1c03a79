//! A small Socket.IO server on threads, which broadcasts `chat_message` and misbehaves as told.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::frames::{push_frame, take_frame};
use antiphon_loadtest::live::Live;
use antiphon_loadtest::report::Report;
use antiphon_loadtest::scenario::{self, Flags};

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// Nothing.
    None,
    /// Leaves every so-manieth delivery out.
    Drop(u64),
    /// Of every so many deliveries to a client, has two change places.
    Swap(u64),
    /// Makes every so-manieth delivery twice.
    Duplicate(u64),
    /// Holds one message (the second) for so long.
    Delay(Duration),
    /// Closes one client, after so many deliveries to it.
    Close(u64),
    /// After every so-manieth delivery, sends what nobody sent.
    Nonsense(u64),
    /// Sends one client bytes that are no frame, after so many deliveries.
    Garbage(u64),
    /// Refuses every so-manieth message, and says so.
    Refuse(u64),
    /// Sends one client away for good, after so many deliveries to it.
    SendAway(u64),
}

#[derive(Debug)]
struct Client {
    socket: TcpStream,
    deliveries: u64,
    sends: bool,
    held: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Hub {
    mischief: Mischief,
    clients: Mutex<Vec<Client>>,
    deliveries: AtomicU64,
    messages: AtomicU64,
    /// How often it misbehaved.
    done: AtomicU64,
}

/// The server. It ends with the process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    hub: Arc<Hub>,
}

impl Server {
    pub(crate) fn start(mischief: Mischief) -> Self {
        let hub = Arc::new(Hub {
            mischief,
            clients: Mutex::default(),
            deliveries: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            done: AtomicU64::new(0),
        });
        let url = listen({
            let hub = hub.clone();
            move |socket| drop(hub.serve(socket))
        });
        Self { url, hub }
    }

    /// How often it misbehaved.
    pub(crate) fn done(&self) -> u64 {
        self.hub.done.load(Ordering::SeqCst)
    }
}

/// Serves each connection on a thread of its own; the URL.
pub(crate) fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(socket));
        }
    });
    format!("http://{address}")
}

/// Answers each request with this; the URL.
pub(crate) fn answer(answer: &'static str) -> String {
    listen(move |mut socket| {
        let mut request = [0; 4096];
        let _ = socket.read(&mut request);
        let _ = socket.write_all(answer.as_bytes());
    })
}

impl Hub {
    fn serve(&self, mut socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            read(&mut socket, &mut bytes)?;
        }
        bytes.clear();
        // The answer to the key that RFC 6455 has as its example, which the load test always sends.
        socket.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )?;
        let open = r#"0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000}"#;
        socket.write_all(&frame(open.as_bytes()))?;
        loop {
            while let Some(packet) = take_frame(&mut bytes) {
                self.packet(&mut socket, &packet)?;
            }
            read(&mut socket, &mut bytes)?;
        }
    }

    fn packet(&self, socket: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
        if packet == b"40" {
            let mut clients = self.clients.lock().unwrap();
            socket.write_all(&frame(br#"40{"sid":"b"}"#))?;
            clients.push(Client {
                socket: socket.try_clone()?,
                deliveries: 0,
                sends: false,
                held: None,
            });
        } else if packet.starts_with(b"42[\"chat_message\"") {
            let message = self.messages.fetch_add(1, Ordering::SeqCst);
            match self.mischief {
                Mischief::Delay(time) if message == 1 => {
                    thread::sleep(time);
                    self.done.fetch_add(1, Ordering::SeqCst);
                }
                Mischief::Refuse(every) if message % every == every - 1 => {
                    self.done.fetch_add(1, Ordering::SeqCst);
                    let refusal =
                        br#"42["error",{"ok":false,"error":"overloaded","event":"chat_message"}]"#;
                    let _clients = self.clients.lock().unwrap();
                    return socket.write_all(&frame(refusal));
                }
                _ => {}
            }
            self.broadcast(socket.peer_addr()?, packet);
        }
        Ok(())
    }

    fn broadcast(&self, sender: SocketAddr, packet: &[u8]) {
        let mut clients = self.clients.lock().unwrap();
        let address = |client: &Client| client.socket.peer_addr().ok();
        if let Some(client) = clients.iter_mut().find(|client| address(client) == Some(sender)) {
            client.sends = true;
        }
        let victim = clients.iter().find(|client| !client.sends).and_then(address);
        clients.retain_mut(|client| {
            let is_victim = victim.is_some() && victim == address(client);
            self.deliver(client, is_victim, frame(packet)).is_ok()
        });
    }

    fn deliver(&self, client: &mut Client, is_victim: bool, frame: Vec<u8>) -> io::Result<()> {
        let delivery = self.deliveries.fetch_add(1, Ordering::SeqCst) + 1;
        client.deliveries += 1;
        let did = || self.done.fetch_add(1, Ordering::SeqCst);
        // Once, to a client that does not send.
        let once = |after: u64| {
            is_victim && client.deliveries == after && self.done.load(Ordering::SeqCst) == 0
        };
        match self.mischief {
            Mischief::Drop(every) if delivery.is_multiple_of(every) => {
                did();
                return Ok(());
            }
            Mischief::Swap(every) if client.deliveries % every == 1 => {
                client.held = Some(frame);
                return Ok(());
            }
            Mischief::Duplicate(every) if delivery.is_multiple_of(every) => {
                did();
                client.socket.write_all(&frame)?;
            }
            Mischief::Close(after) if once(after) => {
                did();
                return client
                    .socket
                    .shutdown(std::net::Shutdown::Both)
                    .and(Err(io::ErrorKind::Other.into()));
            }
            Mischief::SendAway(after) if once(after) => {
                did();
                return client
                    .socket
                    .write_all(&self::frame(b"41"))
                    .and(Err(io::ErrorKind::Other.into()));
            }
            Mischief::Nonsense(every) if delivery.is_multiple_of(every) => {
                // In turn: no payload of ours, another run's, another event, and somebody who does not exist.
                let nonsense = [
                    r#"42["chat_message","nonsense"]"#.to_owned(),
                    format!(
                        r#"42["chat_message","00000000.00000000.00000000.0000000000000000.{}"]"#,
                        "x".repeat(84)
                    ),
                    r#"42["another_event",{"a":1}]"#.to_owned(),
                    r#"42["chat_message"]"#.to_owned(),
                ];
                let turn = did() as usize % nonsense.len();
                client.socket.write_all(&self::frame(nonsense[turn].as_bytes()))?;
            }
            Mischief::Garbage(after) if once(after) => {
                did();
                client.socket.write_all(b"\xff\xff\xff\xff garbage")?;
                return Err(io::ErrorKind::Other.into());
            }
            _ => {}
        }
        client.socket.write_all(&frame)?;
        if let Some(held) = client.held.take() {
            did();
            client.socket.write_all(&held)?;
        }
        Ok(())
    }
}

fn read(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 4096];
    match socket.read(&mut chunk)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            bytes.extend_from_slice(&chunk[..count]);
            Ok(())
        }
    }
}

fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    push_frame(&mut frame, packet);
    frame
}

/// Ten clients, two of which send, for a second; no warm-up, so that all that the server does counts.
pub(crate) fn flags(url: &str) -> Flags {
    let text = |text: &str| Some(text.to_owned());
    Flags {
        urls: vec![url.to_owned()],
        clients: text("10"),
        senders: text("2"),
        rate: text("100"),
        duration: text("1s"),
        warm_up: text("0s"),
        grace: text("500ms"),
        threads: text("1"),
        ..Flags::default()
    }
}

pub(crate) fn run(flags: &Flags) -> Report {
    let plan = scenario::plan("chat", flags).unwrap();
    antiphon_loadtest::run(plan, "a test", &AtomicBool::new(false), &mut Live::new(true)).unwrap()
}
