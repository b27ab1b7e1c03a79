//! Cases that the model's scripts come to by chance only, each on its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    thread,
};

use antiphon_metrics::IntGauge;

use super::{
    Ending, Flushed, Outbound, POLL_BEHIND_BYTES, Polled, Sent, Upgrade,
    kernel::{Kernel, Task},
};
use crate::transport::{
    Protocol,
    batch::{FrameBatch, FrameBatchBuilder},
    frame::{Opcode, write_frame},
    memory::Budget,
};

const MAX: usize = 100_000;

struct Node {
    gauge: IntGauge,
    budget: Arc<Budget>,
}

impl Node {
    fn new() -> Self {
        let gauge = IntGauge::new("held", "Bytes").expect("a name");
        Self { budget: Budget::new(usize::MAX, gauge.clone()), gauge }
    }

    fn held(&self) -> usize {
        usize::try_from(self.gauge.get()).expect("not negative")
    }

    fn batch(&self, events: usize, volatile: bool, text: &str) -> FrameBatch {
        let mut builder = FrameBatchBuilder::default();
        (0..events).for_each(|_| builder.message(&["2", text]));
        builder.build(events, volatile, &self.budget)
    }

    fn event(&self, text: &str) -> FrameBatch {
        self.batch(1, false, text)
    }

    fn websocket(&self, kernel: &Arc<Kernel>) -> Outbound<Kernel> {
        Outbound::websocket(Protocol::Eio4, Arc::clone(kernel), &self.budget)
    }

    fn polling(&self) -> Outbound<Kernel> {
        Outbound::polling(Protocol::Eio4, &self.budget)
    }
}

fn waits(replaced: u64, replaceable: bool, first: bool) -> Sent {
    Sent::Accepted { written: 0, replaced, waits: first, replaceable }
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    write_frame(&mut frame, opcode, &[payload]);
    frame
}

fn flush(outbound: &Outbound<Kernel>) -> Flushed {
    outbound.flush().expect("the kernel is there")
}

fn poll(outbound: &Outbound<Kernel>, task: &Arc<Task>) -> Poll<Polled> {
    outbound.poll(true, &Context::from_waker(&task.begin()))
}

/// The number of packets, and the events that count now.
fn packets(polled: Poll<Polled>) -> (usize, u64) {
    match polled {
        Poll::Ready(Polled::Packets { packets, volatile_events }) => {
            (packets.len(), volatile_events)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn batches_that_wait_for_many_are_kept_once() {
    const CLIENTS: usize = 60;
    const BATCHES: usize = 5000;
    let node = Node::new();
    let kernel = Kernel::new(0);
    let clients: Vec<_> = (0..CLIENTS).map(|_| node.websocket(&kernel)).collect();
    let mut bytes = 0;
    for number in 0..BATCHES {
        let batch = node.event(&format!(r#"["chat_message",{number:>7}]"#));
        bytes += batch.frames(Protocol::Eio4).bytes.len();
        for client in &clients {
            assert_eq!(client.send(&batch, usize::MAX), waits(0, false, number == 0));
        }
    }
    // Entries and pages count, each once: not twice the bytes for 60 clients.
    assert!(node.held() < 2 * bytes, "{} bytes for {bytes}", node.held());
    assert!(clients.iter().all(|client| client.waiting_bytes() < bytes + bytes / 64));
    drop(clients);
    assert_eq!(node.held(), 0);
}

#[test]
fn batches_for_some_and_batches_for_all_are_kept_in_the_same_place() {
    const BATCHES: usize = 3000;
    let node = Node::new();
    let kernels = [(); 4].map(|()| Kernel::new(0));
    let clients = kernels.each_ref().map(|kernel| node.websocket(kernel));
    let mut expected = [(); 4].map(|()| Vec::new());
    let mut bytes = 0;
    for number in 0..BATCHES {
        let batch = node.event(&format!("[{number:>20}]"));
        let frames = &batch.frames(Protocol::Eio4).bytes;
        bytes += frames.len();
        // Two get every third one; now they come first, now the others.
        let count = if number % 3 == 0 { 4 } else { 2 };
        for client in 0..count {
            let client = (client + number) % count;
            clients[client].send(&batch, usize::MAX);
            expected[client].extend_from_slice(frames);
        }
    }
    // An entry for each batch that did not follow the one before.
    assert!(node.held() < 4 * bytes, "{} bytes for {bytes}", node.held());
    for (client, kernel) in clients.iter().zip(&kernels) {
        kernel.lock().room = usize::MAX;
        while flush(client).waiting > 0 {}
    }
    assert_eq!(kernels.map(|kernel| kernel.lock().bytes.clone()), expected);
    assert_eq!(node.held(), 0);
}

#[test]
fn a_pong_that_is_out_in_part_is_finished_whatever_is_in_it() {
    let node = Node::new();
    let kernel = Kernel::new(2);
    let outbound = node.websocket(&kernel);
    // The rest of it looks like a whole one.
    let first = frame(Opcode::Pong, &[0x8a, 2, 0x8a, 0]);
    outbound.send_pong(&first);
    assert_eq!(flush(&outbound).bytes, 2);
    let second = frame(Opcode::Pong, b"2");
    outbound.send_pong(&frame(Opcode::Pong, b"1"));
    outbound.send_pong(&second);
    outbound.send(&node.event("x"), MAX);
    kernel.lock().room = MAX;
    assert_eq!(flush(&outbound).waiting, 0);
    assert_eq!(kernel.lock().bytes, [first, second, frame(Opcode::Text, b"42x")].concat());
}

#[test]
fn a_pong_goes_before_what_waits_but_into_no_frame() {
    let node = Node::new();
    let kernel = Kernel::new(3);
    let outbound = node.websocket(&kernel);
    outbound.send(&node.batch(2, false, "x"), MAX);
    let pong = frame(Opcode::Pong, b"p");
    outbound.send_pong(&pong);
    kernel.lock().room = MAX;
    assert_eq!(flush(&outbound).waiting, 0);
    let text = frame(Opcode::Text, b"42x");
    assert_eq!(kernel.lock().bytes, [text.clone(), pong, text].concat());
}

#[test]
fn a_batch_after_a_pong_that_waits_is_not_progress() {
    let node = Node::new();
    let outbound = node.websocket(&Kernel::new(0));
    outbound.send_pong(&frame(Opcode::Pong, b"p"));
    let progress = outbound.last_progress();
    outbound.send(&node.event("x"), MAX);
    assert_eq!(outbound.last_progress(), progress);
    assert!(outbound.stalled_for(progress).is_some());
}

#[test]
fn volatile_events_that_cannot_be_replaced_count_at_once() {
    let node = Node::new();
    let outbound = node.polling();
    // The client is not behind: all of them wait, and none is replaced.
    for _ in 0..3 {
        assert_eq!(outbound.send(&node.batch(2, true, "v"), MAX), waits(0, false, false));
    }
    outbound.send(&node.event(&"x".repeat(POLL_BEHIND_BYTES)), MAX);
    assert_eq!(outbound.send(&node.batch(3, true, "v"), MAX), waits(0, true, false));
    assert_eq!(outbound.send(&node.batch(4, true, "v"), MAX), waits(3, true, false));
    assert_eq!(packets(poll(&outbound, &Arc::default())), (6 + 1 + 4, 4));
    assert_eq!((outbound.waiting_bytes(), outbound.close()), (0, 0));
}

#[test]
fn a_newer_volatile_batch_is_not_progress() {
    let node = Node::new();
    let outbound = node.websocket(&Kernel::new(0));
    assert_eq!(outbound.send(&node.batch(1, true, "v"), MAX), waits(0, true, true));
    let (progress, bytes) = (outbound.last_progress(), outbound.waiting_bytes());
    for _ in 0..100 {
        assert_eq!(outbound.send(&node.batch(1, true, "v"), MAX), waits(1, true, false));
    }
    assert_eq!((outbound.last_progress(), outbound.waiting_bytes()), (progress, bytes));
    assert_eq!(outbound.close(), 1);
}

#[test]
fn a_volatile_batch_that_does_not_fit_is_skipped() {
    let node = Node::new();
    let outbound = node.websocket(&Kernel::new(0));
    let large = "x".repeat(MAX);
    // One batch may always wait, and then the newest.
    assert_eq!(outbound.send(&node.batch(1, true, &large), MAX), waits(0, true, true));
    assert_eq!(outbound.send(&node.batch(2, true, &large), MAX), waits(1, true, false));
    assert_eq!(outbound.send(&node.event("x"), MAX), Sent::Full);
    assert_eq!(outbound.send(&node.batch(3, true, "v"), MAX), waits(2, true, false));
    assert_eq!(outbound.send(&node.event("x"), MAX), waits(0, false, false));
    assert_eq!(outbound.send(&node.batch(4, true, &large), MAX), waits(4, true, false));
    assert_eq!(outbound.close(), 3, "the one that waited is lost with the session");
}

#[test]
fn what_went_out_before_a_connection_broke_is_counted() {
    let node = Node::new();
    let kernel = Kernel::new(0);
    let outbound = node.websocket(&kernel);
    outbound.send(&node.batch(3, true, "v"), MAX);
    outbound.send(&node.event(&"x".repeat(20_000)), MAX);
    {
        let mut taken = kernel.lock();
        (taken.room, taken.breaks_after) = (MAX, 1);
    }
    assert_eq!(flush(&outbound).volatile_events, 3);
    assert!(outbound.flush().is_err());
    assert_eq!(outbound.close(), 0);
}

#[test]
fn a_poll_that_is_late_takes_no_wake_up_from_the_websocket() {
    let node = Node::new();
    let outbound = node.polling();
    outbound.begin_poll().expect("none waits");
    let (request, websocket) = (Arc::<Task>::default(), Arc::<Task>::default());
    assert_eq!(poll(&outbound, &request), Poll::Pending);
    assert!(outbound.begin_upgrade());
    outbound.set_upgrade(Upgrade::Probed);
    assert!(outbound.upgrade(Kernel::new(0)));
    // The request was woken, but the WebSocket's task is faster.
    outbound.register(&Context::from_waker(&websocket.begin()));
    assert_eq!(poll(&outbound, &request), Poll::Ready(Polled::Upgraded));
    outbound.end_poll();
    outbound.send(&node.event("x"), MAX);
    assert!(websocket.is_woken());
}

#[test]
fn a_client_that_upgrades_goes_on_where_its_poll_ended() {
    let node = Node::new();
    for (events, text) in [(20, "small".to_owned()), (20, "x".repeat(1000))] {
        let outbound = node.polling();
        outbound.send(&node.batch(events, false, &text), MAX);
        assert_eq!(packets(poll(&outbound, &Arc::default())), (16, 0));
        let kernel = Kernel::new(MAX);
        assert!(outbound.upgrade(Arc::clone(&kernel)));
        assert_eq!(flush(&outbound).waiting, 0);
        let frame = frame(Opcode::Text, format!("42{text}").as_bytes());
        assert!(kernel.lock().bytes == frame.repeat(4));
    }
}

#[test]
fn an_empty_batch_does_not_wait() {
    let node = Node::new();
    let empty = FrameBatchBuilder::default().build(0, false, &node.budget);
    for outbound in [node.polling(), node.websocket(&Kernel::new(0))] {
        for waiting in [0, 1] {
            assert_eq!(outbound.send(&empty, MAX), waits(0, false, false));
            assert_eq!(outbound.waiting_bytes().min(1), waiting);
            outbound.send(&node.event("x"), MAX);
        }
    }
}

#[test]
fn after_a_reset_nothing_goes_out() {
    let node = Node::new();
    let outbound = node.polling();
    outbound.send(&node.event("x"), MAX);
    assert!(outbound.end(Ending::Flush));
    assert!(!outbound.end(Ending::Reset));
    assert_eq!(poll(&outbound, &Arc::default()), Poll::Ready(Polled::Noop));
    let kernel = Kernel::new(MAX);
    assert!(outbound.upgrade(Arc::clone(&kernel)));
    assert_eq!(
        flush(&outbound),
        Flushed { end: true, waiting: outbound.waiting_bytes(), ..Flushed::default() }
    );
    assert!(kernel.lock().bytes.is_empty());
}

/// Two tasks deliver the same batches, each to clients of its own, while a third writes what waits.
#[test]
fn clients_served_at_once_get_everything_in_order() {
    const BATCHES: usize = 20_000;
    let node = Node::new();
    let batches: Vec<_> = (0..BATCHES).map(|number| node.event(&number.to_string())).collect();
    let expected = batches.iter().flat_map(|batch| batch.frames(Protocol::Eio4).bytes.to_vec());
    let expected: Vec<u8> = expected.collect();
    let kernels: Vec<_> = (0..8).map(|_| Kernel::new(0)).collect();
    let clients: Vec<_> = kernels.iter().map(|kernel| node.websocket(kernel)).collect();
    let delivered = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !delivered.load(Ordering::Acquire) {
                for (client, kernel) in clients.iter().zip(&kernels) {
                    kernel.lock().room += 1 + expected.len() / 1000;
                    flush(client);
                }
            }
        });
        let batches = &batches;
        let shares = clients.chunks(4).map(|share| {
            scope.spawn(move || {
                for batch in batches {
                    for client in share {
                        client.send(batch, usize::MAX);
                    }
                }
            })
        });
        let shares: Vec<_> = shares.collect();
        shares.into_iter().for_each(|share| share.join().expect("no panic"));
        delivered.store(true, Ordering::Release);
    });
    for (client, kernel) in clients.iter().zip(&kernels) {
        kernel.lock().room = usize::MAX;
        while flush(client).waiting > 0 {}
        assert!(kernel.lock().bytes == expected);
    }
    drop((batches, clients));
    assert_eq!(node.held(), 0);
}
