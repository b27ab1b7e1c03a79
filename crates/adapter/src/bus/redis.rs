//! The bus on Redis.
//!
//! # Why these connections
//!
//! **Publishing: [`MultiplexedConnection`], one, with pipelines.** Its driver task writes what it is handed in
//! that order, keeps reading while it writes (two full socket buffers cannot block each other), and when
//! the connection ends fails everything unanswered, which is what we count as lost. A pipeline is one
//! buffer and one write. Its own response timeout (500 ms by default) is off: it would give up on an
//! answer while the request stays on its way, and then what is counted as lost arrives all the same.
//! [`super::publisher`] has a deadline for the *connection* instead. `ConnectionManager` is not used: it
//! reconnects behind one's back, and what is lost in between cannot be told. Nor is the pool: several
//! connections have no common order.
//!
//! **Receiving: [`PubSub`](redis::aio::PubSub), split, for RESP2 and RESP3 alike**, behind a reader of our own
//! ([`super::reader`]). Confirmations are matched to their commands in both protocols, commands can be given
//! while messages flow, and the end of the stream is the end of the connection. Messages are picked out
//! before they reach it. With TLS, whose settings cannot be had from the redis crate, they are not, and go
//! the redis crate's way: through its parser, and a channel without a bound. The subscriber's task moves
//! what is in it to the bounded queue without ever waiting, so it holds what arrives in one scheduling
//! delay.
//!
//! **Questions: a small pool**, so that a slow answer delays neither.

use std::{fmt, time::Duration};

use bytes::Bytes;
use deadpool_redis::{Manager, PoolError, Runtime, Timeouts};
use futures_util::StreamExt;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, ProtocolVersion, RedisError, RedisResult, TlsCertificates,
    aio::{MultiplexedConnection, PubSubSink, PubSubStream},
};

use super::{
    Message, Settings, Subscription,
    link::{
        Answers, Asked, Commands, LinkError, Messages, Outgoing, Publishing, Question, Questions,
        Setup, Transport,
    },
    publisher::FLYING_MAX,
    reader::{self, Reader},
};

/// Which Redis, and how to talk to it. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis://`, `rediss://` (TLS) or `unix://`, with user, password and database if need be.
    pub url: String,
    /// Goes before the user in the URL.
    pub username: Option<String>,
    /// Goes before the password in the URL.
    pub password: Option<String>,
    /// The protocol's version.
    pub protocol: Protocol,
    /// Certificates (PEM) of the authorities to trust, instead of the system's.
    pub tls_authorities: Option<Vec<u8>>,
    /// What to show when the server asks who we are.
    pub tls_identity: Option<ClientIdentity>,
    /// Connections for questions.
    pub pool_connections_max: usize,
    /// How long a question may take, with the wait for a connection.
    pub question_timeout: Duration,
}

impl RedisSettings {
    /// The defaults for a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            username: None,
            password: None,
            protocol: Protocol::Resp2,
            tls_authorities: None,
            tls_identity: None,
            pool_connections_max: 2,
            question_timeout: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL that cannot be parsed may hold its password anywhere.
        let address = self.url.as_str().into_connection_info().map(|info| info.addr().to_string());
        f.debug_struct("RedisSettings")
            .field("address", &address.unwrap_or_else(|_| "invalid".to_owned()))
            .field("protocol", &self.protocol)
            .field("tls_authorities", &self.tls_authorities.is_some())
            .field("tls_identity", &self.tls_identity.is_some())
            .field("pool_connections_max", &self.pool_connections_max)
            .field("question_timeout", &self.question_timeout)
            .finish_non_exhaustive()
    }
}

/// A client certificate and its key.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The certificate with its chain, PEM.
    pub certificate: Vec<u8>,
    /// The private key, PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

/// The version of the Redis protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Every server speaks it.
    Resp2,
    /// Redis 6 and later.
    Resp3,
}

/// Makes the two connections.
pub(super) struct RedisTransport {
    client: Client,
    connection: AsyncConnectionConfig,
}

impl RedisTransport {
    pub(super) fn new(redis: &RedisSettings, settings: &Settings) -> Result<Self, Setup> {
        let connection = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(None)
            // Room for every batch that may be on its way: handing one over never waits.
            .set_pipeline_buffer_size(FLYING_MAX + 1);
        Ok(Self { client: client(redis).map_err(setup)?, connection })
    }
}

fn setup(error: RedisError) -> Setup {
    Setup::Redis(error.to_string())
}

fn client(redis: &RedisSettings) -> RedisResult<Client> {
    let info = redis.url.as_str().into_connection_info()?;
    // A connection that is given up must not go on by itself: what the kernel still holds of it would reach Redis
    // when the network is back, late, behind what was published since, and counted as lost. Otherwise a
    // connection is only closed when all is answered.
    let tcp = info.tcp_settings().clone().set_nodelay(true).set_linger_time(Duration::ZERO);
    let info = authentication(redis, info).set_tcp_settings(tcp);
    if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        if redis.tls_authorities.is_some() || redis.tls_identity.is_some() {
            let kind = ErrorKind::InvalidClientConfig;
            return Err((kind, "certificates are given and the URL is not rediss://").into());
        }
        return Client::open(info);
    }
    // redis asks rustls for the process's provider, which is not there when several are compiled in.
    // The error says that somebody has chosen one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let identity = redis.tls_identity.clone();
    let client_tls = identity.map(|identity| ClientTlsConfig {
        client_cert: identity.certificate,
        client_key: identity.key,
    });
    let root_cert = redis.tls_authorities.clone();
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
}

fn authentication(redis: &RedisSettings, info: ConnectionInfo) -> ConnectionInfo {
    let protocol = match redis.protocol {
        Protocol::Resp2 => ProtocolVersion::RESP2,
        Protocol::Resp3 => ProtocolVersion::RESP3,
    };
    let mut session = info.redis_settings().clone().set_protocol(protocol);
    if let Some(username) = &redis.username {
        session = session.set_username(username);
    }
    if let Some(password) = &redis.password {
        session = session.set_password(password);
    }
    info.set_redis_settings(session)
}

impl Transport for RedisTransport {
    type Publishing = MultiplexedConnection;
    type Commands = PubSubSink;
    type Messages = Receiving;

    async fn publishing(&self) -> Result<MultiplexedConnection, LinkError> {
        let config = &self.connection;
        self.client.get_multiplexed_async_connection_with_config(config).await.map_err(link_error)
    }

    async fn receiving(&self) -> Result<(PubSubSink, Receiving), LinkError> {
        let plain = reader::connect(self.client.get_connection_info()).await;
        if let Some((commands, reader)) = plain.map_err(link_error)? {
            return Ok((commands, Receiving::Plain(reader)));
        }
        let (commands, stream) = self.client.get_async_pubsub().await.map_err(link_error)?.split();
        Ok((commands, Receiving::Tls(stream)))
    }
}

fn link_error(error: RedisError) -> LinkError {
    // A code means that the server answered.
    if error.kind() == ErrorKind::AuthenticationFailed || error.code().is_some() {
        LinkError::Refused(error.to_string())
    } else {
        LinkError::Broken(error.to_string())
    }
}

impl Publishing for MultiplexedConnection {
    fn send(&mut self, batch: &[Outgoing]) -> Answers {
        let mut pipeline = redis::Pipeline::with_capacity(batch.len());
        pipeline.ignore_errors();
        for message in batch {
            pipeline.cmd("PUBLISH").arg(&*message.channel).arg(&message.payload[..]);
        }
        let mut connection = self.clone();
        Box::pin(async move {
            let answers: Vec<RedisResult<i64>> =
                pipeline.query_async(&mut connection).await.map_err(link_error)?;
            let text =
                |answer: RedisResult<i64>| answer.map(drop).map_err(|error| error.to_string());
            Ok(answers.into_iter().map(text).collect())
        })
    }
}

/// The names among subscriptions: channels, patterns.
fn sorted(what: &[Subscription]) -> (Vec<&str>, Vec<&str>) {
    let (mut channels, mut patterns) = (Vec::new(), Vec::new());
    for subscription in what {
        match subscription {
            Subscription::Channel(name) => channels.push(name.as_str()),
            Subscription::Pattern(name) => patterns.push(name.as_str()),
        }
    }
    (channels, patterns)
}

impl Commands for PubSubSink {
    async fn subscribe(&mut self, what: &[Subscription]) -> Result<(), LinkError> {
        let (channels, patterns) = sorted(what);
        if !channels.is_empty() {
            PubSubSink::subscribe(self, channels).await.map_err(link_error)?;
        }
        if !patterns.is_empty() {
            self.psubscribe(patterns).await.map_err(link_error)?;
        }
        Ok(())
    }

    async fn unsubscribe(&mut self, what: &[Subscription]) -> Result<(), LinkError> {
        let (channels, patterns) = sorted(what);
        if !channels.is_empty() {
            PubSubSink::unsubscribe(self, channels).await.map_err(link_error)?;
        }
        if !patterns.is_empty() {
            self.punsubscribe(patterns).await.map_err(link_error)?;
        }
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), LinkError> {
        PubSubSink::ping::<redis::Value>(self).await.map(drop).map_err(link_error)
    }
}

/// What arrives, with and without TLS.
pub(super) enum Receiving {
    Plain(Reader),
    Tls(PubSubStream),
}

impl Messages for Receiving {
    async fn next(&mut self) -> Option<Message> {
        let stream = match self {
            Self::Plain(reader) => return reader.next().await,
            Self::Tls(stream) => stream,
        };
        let message = stream.next().await?;
        // Both are bulk strings, which are bytes; what is not would be an empty channel, that nobody has.
        let channel = message.get_channel::<Vec<u8>>().unwrap_or_default();
        let payload = Bytes::copy_from_slice(message.get_payload_bytes());
        Some(Message { channel: channel.into(), payload })
    }
}

/// Connections for questions.
pub(super) struct Pool(deadpool_redis::Pool);

impl Pool {
    pub(super) fn new(redis: &RedisSettings, transport: &RedisTransport) -> Result<Self, Setup> {
        let info = transport.client.get_connection_info().clone();
        let timeout = Some(redis.question_timeout);
        let connection = transport.connection.clone().set_response_timeout(timeout);
        let manager = Manager::new_with_config(info, connection).map_err(setup)?;
        let timeouts = Timeouts { wait: timeout, create: timeout, recycle: timeout };
        let pool = deadpool_redis::Pool::builder(manager)
            .max_size(redis.pool_connections_max)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Setup::Redis(error.to_string()))?;
        Ok(Self(pool))
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: redis::Cmd) -> Result<T, Question> {
        let mut connection = self.0.get().await.map_err(|error| match error {
            PoolError::Backend(error) => question(&error),
            other => Question::Unanswered(other.to_string()),
        })?;
        command.query_async(&mut connection).await.map_err(|error| question(&error))
    }
}

fn question(error: &RedisError) -> Question {
    match link_error(error.clone()) {
        LinkError::Refused(reason) => Question::Refused(reason),
        LinkError::Broken(reason) => Question::Unanswered(reason),
    }
}

impl Questions for Pool {
    fn subscribers<'a>(&'a self, channel: &'a str) -> Asked<'a, u64> {
        Box::pin(async move {
            let mut command = redis::cmd("PUBSUB");
            command.arg("NUMSUB").arg(channel);
            let counts: Vec<(String, u64)> = self.ask(command).await?;
            Ok(counts.first().map_or(0, |(_, count)| *count))
        })
    }

    fn ping(&self) -> Asked<'_, ()> {
        Box::pin(async move { self.ask::<redis::Value>(redis::cmd("PING")).await.map(drop) })
    }

    fn close(&self) {
        self.0.close();
    }
}
