//! What counting costs: the same work with and without all that a node counts for it, in turns.
//!
//! ```text
//! cargo bench -p antiphon-metrics --bench cost
//! ```
//!
//! The work is the least that there is to do: what a node reads from its socket and writes to others for an event, and
//! nothing else. A node does more for it, so the share of its metrics is smaller than what this says. Linux only:
//! CPU time is the thread's own. Without `--bench`, which `cargo bench` passes, it is a smoke test.

use std::{
    cell::Cell,
    fs,
    hint::black_box,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use antiphon_metrics::{
    AdapterMetrics, BusMetrics, Counters, GatewayMetrics, Registry, adapter::Received,
    gateway::Outcome,
};

/// An event of 128 bytes as a client gets it, and as a peer does.
const FRAME_BYTES: usize = 160;
const PUBLISHED_BYTES: usize = 400;

/// Events that go out together when a core is saturated.
const TURN: usize = 100;

/// Recipients of an event, and the connections that they share: two descriptors for each fit into the usual 1,024.
const RECIPIENTS: usize = 1000;
const CONNECTIONS: usize = 250;

fn main() {
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (rounds, turns) = if measured { (15, 30) } else { (1, 1) };
    let counting = Counting::new();
    let peer = Sockets::connect(1);
    let clients = Sockets::connect(CONNECTIONS);

    let alone = |count: fn(&Counting)| {
        let events = (turns * 30_000) as u32;
        median(rounds, || cpu(|| (0..events).for_each(|_| count(black_box(&counting)))) / events)
    };
    let frames = vec![b'x'; FRAME_BYTES * TURN];
    let fan_out = |counting: Option<&Counting>| {
        for _ in 0..turns {
            let accepted = counting.map(|counting| [(); TURN].map(|()| counting.accepted()));
            for recipient in 0..RECIPIENTS {
                clients.write(recipient % CONNECTIONS, &frames);
            }
            if let (Some(counting), Some(accepted)) = (counting, accepted) {
                accepted.into_iter().for_each(|accepted| counting.delivered(accepted));
            }
            clients.settle();
        }
        turns * TURN
    };
    let counted = alone(|counting| counting.delivered(counting.accepted()));
    compare("to 1,000 clients, 100 together", rounds, &counting, fan_out, counted);

    let one = |counting: Option<&Counting>| {
        for number in 0..turns * 1000 {
            clients.write(0, &frames[..FRAME_BYTES]);
            peer.write(0, &frames[..PUBLISHED_BYTES]);
            clients.write(1, &frames[..FRAME_BYTES]);
            if let Some(counting) = counting {
                counting.one_by_one();
            }
            if number % TURN == 0 {
                clients.settle();
            }
        }
        turns * 1000
    };
    let title = "to one client and the peers, by itself";
    compare(title, rounds, &counting, one, alone(Counting::one_by_one));
}

/// Prints what an event costs with and without.
fn compare(
    title: &str,
    rounds: usize,
    counting: &Counting,
    mut work: impl FnMut(Option<&Counting>) -> usize,
    alone: Duration,
) {
    let mut each = |counting| {
        let mut events = 0;
        let took = cpu(|| events = work(counting));
        took / events as u32
    };
    each(None);
    // One after the other in each round, so that what else the machine does is in both.
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for counted in [round % 2 == 0, round % 2 == 1] {
            if counted {
                with.push(each(Some(counting)));
            } else {
                without.push(each(None));
            }
        }
    }
    let [without, with] =
        [&mut without, &mut with].map(|all| (middle(all), all[0], all[rounds - 1]));
    let share = |part: f64| 100.0 * part / without.0.as_secs_f64();
    let more = share(with.0.as_secs_f64() - without.0.as_secs_f64());
    println!(
        "an event {title}: {} without metrics, {} with them: {more:+.1} %",
        show(without),
        show(with)
    );
    println!("  what is counted for it, by itself: {alone:?}: {:.2} %", share(alone.as_secs_f64()));
}

/// The median of the rounds, and the extremes.
fn show((middle, lowest, highest): (Duration, Duration, Duration)) -> String {
    format!("{middle:.1?} ({lowest:.1?} to {highest:.1?})")
}

/// All that is counted for an event.
struct Counting {
    gateway: GatewayMetrics,
    adapter: AdapterMetrics,
    bus: BusMetrics,
    outcomes: Counters<Outcome>,
    recipients: Counters<()>,
}

impl Counting {
    fn new() -> Self {
        let registry = Registry::new();
        let gateway = GatewayMetrics::register(&registry).expect("a registry of its own");
        let adapter = AdapterMetrics::register(&registry).expect("a registry of its own");
        let bus = BusMetrics::register(&registry).expect("a registry of its own");
        let outcomes = gateway.events_total.rule("/", "chat_message").expect("a rule");
        let recipients = gateway.recipients_total.rule("/", "chat_message").expect("a rule");
        Self { gateway, adapter, bus, outcomes, recipients }
    }

    /// Where an event comes in (`net/conn.rs`, `stage.rs`).
    fn accepted(&self) -> Instant {
        self.gateway.received_bytes_total.inc_by(FRAME_BYTES as u64);
        self.gateway.stage_events.inc();
        self.gateway.stage_bytes.add(128);
        Instant::now()
    }

    /// Where it has gone out (`delivery.rs`, `sessions.rs`, `stage.rs`). Bytes and deliveries are counted once for all
    /// that go out together; here for each.
    fn delivered(&self, accepted: Instant) {
        black_box(self.recipients.of(()).clone()).inc_by(RECIPIENTS as u64);
        self.gateway.sent_bytes_total.inc_by((FRAME_BYTES * RECIPIENTS) as u64);
        self.gateway.deliveries_total.inc_by(RECIPIENTS as u64);
        self.outcomes.of(Outcome::Ok).inc();
        self.gateway.fanout_seconds.observe(accepted.elapsed().max(Duration::from_micros(700)));
        self.gateway.stage_events.dec();
        self.gateway.stage_bytes.sub(128);
    }

    /// What goes to the peers, and comes back from Redis (`peers.rs`, `bus`). One message at a time, so that what is
    /// done for several together is done for each.
    fn published(&self) {
        let Self { adapter, bus, .. } = self;
        adapter.broadcasts_sent_total.inc();
        for (messages, bytes) in [
            (&bus.publish_queue_messages, &bus.publish_queue_bytes),
            (&bus.receive_queue_messages, &bus.receive_queue_bytes),
        ] {
            for held in [1, 0] {
                messages.set(held);
                bytes.set(held * PUBLISHED_BYTES as i64);
            }
        }
        bus.publish_seconds
            .observe(black_box(Instant::now()).elapsed().max(Duration::from_micros(300)));
        bus.published_total.inc();
        bus.published_bytes_total.inc_by(PUBLISHED_BYTES as u64);
        bus.received_total.inc();
        bus.received_bytes_total.inc_by(PUBLISHED_BYTES as u64);
        adapter.broadcasts_received_total.of(Received::Own).inc();
    }

    fn one_by_one(&self) {
        let accepted = self.accepted();
        self.published();
        self.delivered(accepted);
    }
}

/// Connections whose other ends take all that comes.
struct Sockets {
    all: Vec<TcpStream>,
    written: Cell<u64>,
    taken: Arc<AtomicU64>,
}

impl Sockets {
    fn connect(number: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let taken = Arc::new(AtomicU64::new(0));
        let (give, given) = mpsc::channel();
        let counted = Arc::clone(&taken);
        thread::spawn(move || drain(given.iter().take(number).collect(), &counted));
        let connect = |_| {
            let here = TcpStream::connect(address).expect("it listens");
            here.set_nodelay(true).expect("a connection");
            let (there, _) = listener.accept().expect("it came");
            there.set_nonblocking(true).expect("a connection");
            give.send(there).expect("somebody drains");
            here
        };
        Self { all: (0..number).map(connect).collect(), written: Cell::new(0), taken }
    }

    fn write(&self, to: usize, bytes: &[u8]) {
        (&self.all[to]).write_all(bytes).expect("it is read");
        self.written.set(self.written.get() + bytes.len() as u64);
    }

    /// Until all has been taken: a full socket would make the next write wait, and wake up.
    fn settle(&self) {
        while self.taken.load(Ordering::Relaxed) < self.written.get() {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Reads until all have been closed.
fn drain(mut sockets: Vec<TcpStream>, taken: &AtomicU64) {
    let mut bytes = vec![0; 1 << 16];
    while !sockets.is_empty() {
        let mut idle = true;
        sockets.retain_mut(|socket| match socket.read(&mut bytes) {
            Ok(0) => false,
            Ok(read) => {
                taken.fetch_add(read as u64, Ordering::Relaxed);
                idle = false;
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        if idle {
            thread::sleep(Duration::from_micros(50));
        }
    }
}

/// The CPU time that this thread needs for it.
fn cpu(work: impl FnOnce()) -> Duration {
    let used = || {
        // What runs is accounted for when it stops.
        thread::yield_now();
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
        let on_cpu = text.split(' ').next().and_then(|field| field.parse().ok());
        Duration::from_nanos(on_cpu.expect("nanoseconds"))
    };
    let before = used();
    work();
    used() - before
}

fn median(rounds: usize, mut measure: impl FnMut() -> Duration) -> Duration {
    middle(&mut (0..rounds).map(|_| measure()).collect::<Vec<_>>())
}

fn middle(all: &mut [Duration]) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}
