//! Remote nodes that are silent or gone, and frames that are nonsense.

use std::{sync::Arc, time::Duration};

use antiphon_adapter::{
    RequestError,
    bus::{Status, memory::Hub},
};
use antiphon_metrics::adapter::{Ignored, Request, RequestFailure, Unsent};
use futures_util::future;
use tokio::time::Instant;

use crate::{
    clients::settle,
    node::{Node, REQUEST_TIMEOUT, Stranger, channels, everyone, room},
};

#[tokio::test(start_paused = true)]
async fn a_silent_remote_node_costs_the_deadline_and_no_more() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    b.socket(&[]);
    let silent = Stranger::join(&hub.link(), &[channels("").request()]).await;
    let asked = Instant::now();
    let failed = a.namespace.sockets(everyone()).await.unwrap_err();
    assert!(matches!(failed, RequestError::Timeout { answered: 1, expected: 2 }), "{failed}");
    assert!(asked.elapsed() >= REQUEST_TIMEOUT);
    assert!(asked.elapsed() < REQUEST_TIMEOUT + Duration::from_millis(100));
    assert_eq!(a.metrics.requests_failed_total.of(RequestFailure::Timeout).get(), 1);
    assert_eq!(a.metrics.requests_pending.get(), 0);
    drop(silent);
    settle().await;
    assert_eq!(a.namespace.sockets(everyone()).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_is_waited_for_no_longer_than_any() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::join(&hub.link(), "node_b").await;
    let c = Node::join(&hub.link(), "node_c").await;
    let id = c.socket(&[]);
    let asking = a.namespace.sockets(everyone());
    b.die();
    let asked = Instant::now();
    match asking.await {
        Ok(sockets) => assert_eq!(sockets.len(), 1),
        Err(error) => assert!(matches!(error, RequestError::Timeout { answered: 1, expected: 2 })),
    }
    assert!(asked.elapsed() < REQUEST_TIMEOUT + Duration::from_millis(100));
    settle().await;
    assert_eq!(a.namespace.server_count().await.unwrap(), 2);
    let sockets = a.namespace.sockets(everyone()).await.unwrap();
    assert_eq!(sockets.iter().map(|one| &*one.id).collect::<Vec<_>>(), [id.as_str()]);
}

#[tokio::test(start_paused = true)]
async fn without_the_bus_a_node_does_what_it_can_and_says_what_it_cannot() {
    let hub = Hub::new();
    let link = hub.link();
    let a = Node::join(&link, "node_a").await;
    let id = a.socket(&[]);
    link.down();
    a.bus.status().wait_for(|status: &Status| !status.subscribed).await.unwrap();
    let asked = Instant::now();
    assert!(matches!(a.namespace.sockets(everyone()).await, Err(RequestError::Down)));
    assert!(matches!(a.namespace.server_count().await, Err(RequestError::Down)));
    let ordered = a.namespace.sockets_join(&everyone(), vec!["room".into()]);
    assert!(matches!(ordered, Err(RequestError::Unpublished(_))));
    assert!(asked.elapsed() < Duration::from_millis(100), "at once");
    assert!(a.namespace.in_room(id, "room"));
    assert_eq!(a.metrics.requests_failed_total.of(RequestFailure::Down).get(), 1);
    assert_eq!(a.metrics.requests_failed_total.of(RequestFailure::Bus).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_bounded() {
    const REQUESTS_IN_FLIGHT_MAX: usize = 1024;
    let hub = Hub::new();
    let a = Arc::new(Node::join(&hub.link(), "node_a").await);
    let _silent = Stranger::join(&hub.link(), &[channels("").request()]).await;
    let requests = (0..=REQUESTS_IN_FLIGHT_MAX).map(|_| {
        let a = Arc::clone(&a);
        tokio::spawn(async move { a.namespace.sockets(everyone()).await })
    });
    let answers = future::join_all(requests).await;
    let refused =
        answers.iter().filter(|answer| matches!(answer, Ok(Err(RequestError::TooMany)))).count();
    assert_eq!(refused, 1);
    assert_eq!(a.metrics.requests_failed_total.of(RequestFailure::TooMany).get(), 1);
    assert_eq!(a.metrics.requests_pending.get(), 0);
    let again = a.namespace.sockets(everyone()).await;
    assert!(matches!(again, Err(RequestError::Timeout { .. })), "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_too_large_is_not_sent_and_counted() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let b = Node::with(&hub.link(), "node_b", |it| it.answer_bytes_max = 4000).await;
    for _ in 0..10 {
        b.socket(&["fat"]);
    }
    // With their headers they are more than a response; without client-supplied fields they are
    // not.
    let found = a.namespace.sockets(room("fat")).await.unwrap();
    assert_eq!(found.len(), 10);
    for _ in 0..10 {
        b.socket(&[]);
    }
    let failed = a.namespace.sockets(everyone()).await.unwrap_err();
    assert!(matches!(failed, RequestError::Timeout { answered: 0, expected: 1 }), "{failed}");
    assert_eq!(b.metrics.answers_unsent_total.of(Unsent::Unencodable).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_counted_and_stops_nobody() {
    let hub = Hub::new();
    let a = Node::join(&hub.link(), "node_a").await;
    let id = a.socket(&[]);
    let names = channels("node_a");
    let stranger = Stranger::join(&hub.link(), &[]).await;
    let many = format!(r#"{{"type":2,"rooms":[{}"r"],"opts":{{}}}}"#, r#""r","#.repeat(200));
    let frames: Vec<(Ignored, Vec<u8>)> = vec![
        (Ignored::Malformed, b"".to_vec()),
        (Ignored::Malformed, b"{".to_vec()),
        (Ignored::Malformed, b"{}".to_vec()),
        (Ignored::Malformed, b"nonsense".to_vec()),
        (Ignored::Malformed, vec![0xc1; 10]),
        (Ignored::UnknownRequest, br#"{"type":99}"#.to_vec()),
        (Ignored::TooManyRooms, many.into_bytes()),
        (Ignored::TooLarge, vec![b'{'; (1 << 20) + 1]),
        (Ignored::Own, br#"{"uid":"node_a","type":1,"requestId":"x"}"#.to_vec()),
    ];
    let ignored = |reason| a.metrics.requests_ignored_total.of(reason).get();
    for (reason, frame) in &frames {
        let before = ignored(*reason);
        stranger.publish(names.request(), frame.clone());
        settle().await;
        assert_eq!(ignored(*reason), before + 1, "{reason:?}");
    }
    // Deeper than events may be, and nobody here looks into it.
    let deep = [&[b'['; 100][..], &[b']'; 100]].concat();
    let deep = [br#"{"type":6,"data":"#, &deep[..], b"}"].concat();
    stranger.publish(names.request(), deep);
    settle().await;
    assert_eq!(a.metrics.requests_received_total.of(Request::ServerSideEmit).get(), 1);
    for channel in [names.response(), names.own_response()] {
        let before = ignored(Ignored::Unasked);
        stranger.publish(channel, "nobody asked, so nobody reads");
        settle().await;
        assert_eq!(ignored(Ignored::Unasked), before + 1);
    }
    // While it waits for an answer, too; and one that it did not ask for is none.
    let _silent = Stranger::join(&hub.link(), &[names.request()]).await;
    let asking = a.namespace.sockets(everyone());
    let nonsense = async {
        let (malformed, unasked) = (ignored(Ignored::Malformed), ignored(Ignored::Unasked));
        settle().await;
        stranger.publish(names.response(), "nonsense");
        stranger.publish(names.response(), r#"{"requestId":"of somebody else","sockets":[]}"#);
        settle().await;
        assert_eq!(ignored(Ignored::Malformed), malformed + 1);
        assert_eq!(ignored(Ignored::Unasked), unasked + 1);
    };
    let (answer, ()) = future::join(asking, nonsense).await;
    assert!(matches!(answer, Err(RequestError::Timeout { answered: 0, expected: 1 })));
    stranger.publish(names.request(), r#"{"type":4,"opts":{"rooms":[],"except":[]},"close":true}"#);
    settle().await;
    assert!(!a.namespace.has(id), "it still receives");
    assert_eq!(a.clients.closed(), [id]);
    assert_eq!(a.metrics.requests_received_total.of(Request::Disconnect).get(), 1);
}
