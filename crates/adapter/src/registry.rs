//! The namespaces of a node.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::{
    sync::Semaphore,
    time::{Duration, MissedTickBehavior, interval},
};

use crate::{
    acks::{AckTable, waiting_bytes},
    bus::Subscription,
    namespace::Namespace,
    remote::{ClusterSettings, RemoteNodes},
    sink::DeliverySink,
    wire::{Channels, Traffic, legacy_channel},
};

/// How often Redis is asked how many nodes there are.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// The subscriptions of the node that signs with `uid`, for these namespaces.
pub fn subscriptions<'a>(
    prefix: &str,
    uid: &str,
    namespaces: impl IntoIterator<Item = &'a str>,
) -> Vec<Subscription> {
    let each = |nsp| channels_of(&Channels::new(prefix, nsp, uid));
    let legacy = Subscription::Channel(legacy_channel(prefix));
    namespaces.into_iter().flat_map(each).chain([legacy]).collect()
}

fn channels_of(channels: &Channels) -> impl Iterator<Item = Subscription> + use<> {
    let named = [channels.request(), channels.response(), channels.own_response()];
    let named = named.map(|channel| Subscription::Channel(channel.to_owned()));
    std::iter::once(Subscription::Pattern(channels.pattern())).chain(named)
}

/// The namespaces of one node, and its way to the remote nodes. Cloning it is cheap.
pub struct Cluster<S: DeliverySink>(Arc<Registry<S>>);

impl<S: DeliverySink> Clone for Cluster<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What the parts of the adapter share.
pub(crate) struct Registry<S: DeliverySink> {
    // Written once for each namespace; read to find one.
    namespaces: RwLock<Vec<Arc<Namespace<S>>>>,
    sink: Arc<S>,
    remote: Option<Arc<RemoteNodes>>,
    waiting_ack_bytes: Arc<Semaphore>,
}

impl<S: DeliverySink> Cluster<S> {
    /// A node by itself.
    pub fn alone(sink: Arc<S>) -> Self {
        Self::new(sink, None)
    }

    /// A node among remote nodes.
    pub fn among(sink: Arc<S>, settings: ClusterSettings) -> Self {
        Self::new(sink, Some(Arc::new(RemoteNodes::new(settings))))
    }

    fn new(sink: Arc<S>, remote: Option<Arc<RemoteNodes>>) -> Self {
        let (namespaces, waiting_ack_bytes) = (RwLock::default(), waiting_bytes());
        Self(Arc::new(Registry { namespaces, sink, remote, waiting_ack_bytes }))
    }

    /// The namespace at `path`, which is made and subscribed to if it is not there yet.
    pub fn create(&self, path: &str) -> Arc<Namespace<S>> {
        let mut namespaces = self.0.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespace) = namespaces.iter().find(|one| one.path() == path) {
            return Arc::clone(namespace);
        }
        let namespace = Arc::new(self.0.namespace(path));
        namespaces.push(Arc::clone(&namespace));
        namespace
    }

    /// The namespace at `path`, if it has been created.
    pub fn namespace(&self, path: &str) -> Option<Arc<Namespace<S>>> {
        self.0.at(path)
    }

    /// Keeps the number of remote nodes in the metrics, for as long as the future runs.
    pub async fn count_remote_nodes(self) {
        let Some(remote) = &self.0.remote else { return };
        let mut ticks = interval(COUNT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let first = self.0.read().first().map(Arc::clone);
            let Some(namespace) = first else { continue };
            let number = remote.number(namespace.channels()).await.unwrap_or(0);
            remote.metrics().peers.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }
}

impl<S: DeliverySink> Cluster<S> {
    /// For whoever finds namespaces often.
    pub(crate) fn registry(&self) -> &Arc<Registry<S>> {
        &self.0
    }
}

impl<S: DeliverySink> Registry<S> {
    /// The way to the remote nodes, if there are any.
    pub(crate) fn remote(&self) -> Option<&Arc<RemoteNodes>> {
        self.remote.as_ref()
    }

    fn namespace(&self, path: &str) -> Namespace<S> {
        let channels = match &self.remote {
            Some(remote) => Channels::new(&remote.settings.prefix, path, &remote.settings.uid),
            None => Channels::new("", path, ""),
        };
        if let Some(remote) = &self.remote {
            // Those that were there when the bus started are subscribed to already.
            let subscribed =
                channels_of(&channels).try_for_each(|one| remote.settings.bus.subscribe(one));
            if let Err(error) = subscribed {
                tracing::error!(
                    namespace = path,
                    %error,
                    "cannot subscribe to the namespace's channels: nothing of remote nodes arrives",
                );
            }
        }
        let (sink, remote) = (Arc::clone(&self.sink), self.remote.clone());
        let acks = AckTable::new(Arc::clone(&self.waiting_ack_bytes));
        Namespace::new(path, channels, sink, remote, acks)
    }

    /// The namespace at `path`.
    pub(crate) fn at(&self, path: &str) -> Option<Arc<Namespace<S>>> {
        self.read().iter().find(|namespace| namespace.path() == path).map(Arc::clone)
    }

    /// The namespace that a channel belongs to, and what the channel carries.
    pub(crate) fn of_channel<'a>(
        &self,
        channel: &'a [u8],
    ) -> Option<(Arc<Namespace<S>>, Traffic<'a>)> {
        self.read().iter().find_map(|namespace| {
            Some((Arc::clone(namespace), namespace.channels().traffic(channel)?))
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Namespace<S>>>> {
        self.namespaces.read().unwrap_or_else(PoisonError::into_inner)
    }
}
