//! What every key means: its type, its bounds, and how it must fit the others.

use std::{collections::HashSet, net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use config::{Value, ValueKind};
use ipnet::IpNet;

use crate::telemetry::parse_filter;

use super::{
    Action, Admin, AllowedOrigins, Audience, Config, Cors, Drain, EventRule, FanOut,
    ForwardingHeader, Limits, Log, LogFormat, Node, Proxy, Rate, Redis, Secret, Server, Session,
    Stage, Traces,
    read::{
        Noted, Parsed, Read, Section, address, boolean, duration, one_of, share, size, text, whole,
    },
};

/// Zero would mean "at once" for a timeout, which no client can meet; the handshake tells clients
/// whole milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);

/// Far above any sensible wait, so longer is a slip in the unit. Clients add ping interval and
/// timeout into one JavaScript timer, which fires at once beyond 24.8 days.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Smaller, and the handshake or a mere error answer may not fit.
const MESSAGE_BYTES_MIN: usize = 1024;

/// A message is in memory as a whole; a larger one is a file.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// For what is counted and costs memory: far above any machine, far below an overflow.
const COUNT_MAX: i64 = 100_000_000;

/// Longer names are of no use to a reader of logs.
const NODE_ID_CHARS_MAX: usize = 128;

/// What clients or servers of Socket.IO say themselves (`error` carries our refusals).
const RESERVED_EVENTS: [&str; 7] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "error",
    "newListener",
    "removeListener",
];

/// Reads the whole tree, in the order in which it prints.
pub(super) fn config(root: &mut Section<'_>) -> Read<Config> {
    let namespaces = namespaces(root);
    let node = root.section("node", node);
    let server = root.section("server", server);
    let proxy = root.section("proxy", proxy);
    let cors = root.section("cors", cors);
    let session = root.section("session", session);
    let limits = root.section("limits", limits);
    let message_bytes_max = limits.as_ref().ok().map(|limits| limits.max_message_bytes);
    let stage = root.section("stage", |section| stage(section, message_bytes_max));
    let fanout = root.section("fanout", fanout);
    let drain = root.section("drain", drain);
    let public = server.as_ref().ok().map(|server| server.listen);
    let admin = root.section("admin", |section| admin(section, public));
    let redis = root.section("redis", |section| redis(section, message_bytes_max));
    let log = root.section("log", log);
    let traces = root.section("traces", traces);

    let mut taken = HashSet::new();
    let known = namespaces.as_ref().ok();
    let events = root.entries("event", |entry| {
        let rule = event(entry, message_bytes_max)?;
        if known.is_some_and(|known| !known.contains(&rule.namespace)) {
            let right = "is not in the list of namespaces at the top of the file".to_owned();
            return Err(entry.refuse("namespace", right));
        }
        if !taken.insert((rule.namespace.clone(), rule.name.clone())) {
            let right = format!("has a rule in namespace {:?} already", rule.namespace);
            return Err(entry.refuse("name", right));
        }
        Ok(rule)
    });

    Ok(Config {
        node: node?,
        server: server?,
        proxy: proxy?,
        cors: cors?,
        session: session?,
        limits: limits?,
        stage: stage?,
        fanout: fanout?,
        drain: drain?,
        admin: admin?,
        redis: redis?,
        log: log?,
        traces: traces?,
        namespaces: namespaces?,
        events: events?,
    })
}

fn namespaces(root: &mut Section<'_>) -> Read<Vec<String>> {
    let namespaces = root.list("namespaces", |value| match text(value) {
        Ok(name) if is_namespace(&name) => Ok(name),
        _ => Err("want \"/\" and letters, digits or any of / - _ . ~ : @ + = after it".to_owned()),
    })?;
    if !namespaces.iter().any(|name| name == "/") {
        let right = "must contain \"/\": older clients always connect to it".to_owned();
        return Err(root.refuse("namespaces", right));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = namespaces.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(root.refuse("namespaces", format!("has {twice:?} twice")));
    }
    Ok(namespaces)
}

/// Without the characters that mean something elsewhere: `,` and `?` end a namespace in a packet,
/// `#` in the name of a Redis channel, and `*` and brackets are patterns there.
fn is_namespace(name: &str) -> bool {
    name.strip_prefix('/')
        .is_some_and(|rest| rest.chars().all(|c| c.is_alphanumeric() || "/-_.~:@+=".contains(c)))
}

fn node(s: &mut Section<'_>) -> Read<Node> {
    let id = s.get("id", |value| match text(value) {
        Ok(id) if id.len() <= NODE_ID_CHARS_MAX && id.chars().all(is_node_id_char) => Ok(id),
        _ => Err(format!("want at most {NODE_ID_CHARS_MAX} letters, digits or any of . _ : -")),
    })?;
    Ok(Node { id: if id.is_empty() { chosen_id() } else { id } })
}

/// The host name, for people, and a random suffix: two nodes on one host differ, and so does a node
/// from itself before a restart, whose late answers peers must not take for its own.
fn chosen_id() -> String {
    use std::hash::{BuildHasher as _, RandomState};

    let host = gethostname::gethostname();
    // The standard library seeds its hash maps from the system's randomness.
    let random = RandomState::new().hash_one(&host);
    let host = host.to_string_lossy().replace(|c| !is_node_id_char(c), "-");
    format!("{host}-{:08x}", random & 0xffff_ffff)
}

/// No `#` or `*`, which mean something in the names of Redis channels, and nothing that needs quotes.
fn is_node_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._:-".contains(c)
}

fn server(s: &mut Section<'_>) -> Read<Server> {
    let listen = s.get("listen", address);
    let path = s.get("path", path);
    let transports = s.list(
        "transports",
        one_of(&[("polling", Transport::Polling), ("websocket", Transport::WebSocket)]),
    );
    let transports = transports.and_then(|transports| {
        if transports.is_empty() {
            let right = "want at least one of \"polling\", \"websocket\"".to_owned();
            return Err(s.refuse("transports", right));
        }
        Ok(transports)
    });
    let allow_eio3 = s.get("allow_eio3", boolean);
    let backlog = s.get("backlog", whole(1..=i64::from(i32::MAX)));
    let max_connections = s.get("max_connections", whole(1..=COUNT_MAX));
    let max_connections_per_ip = s.get("max_connections_per_ip", whole(1..=COUNT_MAX));
    let request_head_timeout = timeout(s, "request_head_timeout");
    let request_body_timeout = timeout(s, "request_body_timeout");
    let keep_alive_timeout = timeout(s, "keep_alive_timeout");

    let transports = transports?;
    Ok(Server {
        listen: listen?,
        path: path?,
        polling: transports.contains(&Transport::Polling),
        websocket: transports.contains(&Transport::WebSocket),
        allow_eio3: allow_eio3?,
        backlog: backlog?,
        max_connections: max_connections?,
        max_connections_per_ip: max_connections_per_ip?,
        request_head_timeout: request_head_timeout?,
        request_body_timeout: request_body_timeout?,
        keep_alive_timeout: keep_alive_timeout?,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Polling,
    WebSocket,
}

fn path(value: &Value) -> Parsed<String> {
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c))
    };
    match text(value) {
        Ok(path) if path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_segment)) => {
            Ok(path)
        }
        _ => Err("want a path such as \"/socket.io\", without a slash at its end".to_owned()),
    }
}

fn timeout(s: &mut Section<'_>, key: &'static str) -> Read<Duration> {
    s.get(key, duration(SHORTEST..=LONGEST))
}

fn proxy(s: &mut Section<'_>) -> Read<Proxy> {
    let trusted = s.list("trusted", network);
    let header = s.get(
        "header",
        one_of(&[
            ("x-forwarded-for", ForwardingHeader::XForwardedFor),
            ("forwarded", ForwardingHeader::Forwarded),
        ]),
    );
    Ok(Proxy { trusted: trusted?, header: header? })
}

fn network(value: &Value) -> Parsed<IpNet> {
    let parse = |text: String| {
        text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
    };
    text(value)
        .ok()
        .and_then(parse)
        .ok_or_else(|| "want a network or an address, such as \"10.0.0.0/8\"".to_owned())
}

fn cors(s: &mut Section<'_>) -> Read<Cors> {
    let origins = s.list("allowed_origins", |value| match &value.kind {
        ValueKind::String(text) if text == "*" => Ok(None),
        _ => web_origin(value).map(Some),
    });
    let credentials = s.get("credentials", boolean);

    let origins = origins?;
    let listed = origins.len();
    let list: Vec<String> = origins.into_iter().flatten().collect();
    let allowed_origins = match (listed, list.len()) {
        (1, 0) => AllowedOrigins::Any,
        (listed, named) if listed == named => AllowedOrigins::List(list),
        _ => {
            let right = "want \"*\" alone or no \"*\" at all".to_owned();
            return Err(s.refuse("allowed_origins", right));
        }
    };
    let credentials = credentials?;
    if credentials && allowed_origins == AllowedOrigins::Any {
        let right = "needs origins by name in cors.allowed_origins, not \"*\": \
                     browsers send no cookies to a server that takes any page"
            .to_owned();
        return Err(s.refuse("credentials", right));
    }
    Ok(Cors { allowed_origins, credentials })
}

/// An origin as a browser sends it: lower case, and without the port that its scheme implies.
fn web_origin(value: &Value) -> Parsed<String> {
    let wanted =
        || "want \"*\" or scheme://host[:port], such as \"https://example.com\"".to_owned();
    let origin = text(value).map_err(|_| wanted())?.to_ascii_lowercase();
    // What pages send that are no web pages: of an app's own files, or of a sandbox.
    if origin == "null" || origin == "file://" {
        return Ok(origin);
    }
    let (scheme, authority) = origin.split_once("://").ok_or_else(wanted)?;
    if authority.contains('/') {
        return Err(format!("{}, without a path or a slash at the end", wanted()));
    }
    if authority.contains('*') {
        return Err(format!("{}: no patterns, each origin by its name", wanted()));
    }
    // The colons of an IPv6 address are inside its brackets.
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match authority[host_end..].split_once(':') {
        Some((rest, port)) => (&authority[..host_end + rest.len()], Some(port)),
        None => (authority, None),
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !host.is_empty() && host.chars().all(allowed)
        }
    };
    let port = port.map(|port| port.parse::<u16>().map_err(|_| wanted())).transpose()?;
    if !is_scheme || !is_host {
        return Err(wanted());
    }
    Ok(match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => format!("{scheme}://{host}"),
        (_, Some(port)) => format!("{scheme}://{host}:{port}"),
    })
}

fn session(s: &mut Section<'_>) -> Read<Session> {
    let ping_interval = timeout(s, "ping_interval");
    let ping_timeout = timeout(s, "ping_timeout");
    let connect_timeout = timeout(s, "connect_timeout");
    let upgrade_timeout = timeout(s, "upgrade_timeout");
    let send_queue_bytes = s.get("send_queue_bytes", size(MESSAGE_BYTES_MIN..=usize::MAX));
    let write_stall_timeout = timeout(s, "write_stall_timeout");
    let cookie = s.get("cookie", |value| match text(value) {
        Ok(name) if name.chars().all(is_cookie_char) => Ok(name),
        _ => Err("want the name of a cookie, such as \"io\", or \"\"".to_owned()),
    });
    Ok(Session {
        ping_interval: ping_interval?,
        ping_timeout: ping_timeout?,
        connect_timeout: connect_timeout?,
        upgrade_timeout: upgrade_timeout?,
        send_queue_bytes: send_queue_bytes?,
        write_stall_timeout: write_stall_timeout?,
        cookie: Some(cookie?).filter(|name| !name.is_empty()),
    })
}

/// RFC 6265, section 4.1.1: a token.
fn is_cookie_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// Below this many of the largest messages, a few clients could keep all others out.
const MEMORY_MESSAGES_MIN: usize = 4;

/// The part of the memory that waits for clients or comes from them, unless it is set.
const MEMORY_PART: usize = 2;

/// Without a limit that can be read: what the smallest machines have.
const MEMORY_FALLBACK: usize = 256 << 20;

/// Half of what the container may have, or the machine has.
fn derived_memory() -> usize {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let container = number("/sys/fs/cgroup/memory.max")
        .or_else(|| number("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kilobytes: usize = total.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kilobytes * 1024)
    });
    let all = container.into_iter().chain(machine).min();
    all.map_or(MEMORY_FALLBACK, |all| all / MEMORY_PART)
}

fn limits(s: &mut Section<'_>) -> Read<Limits> {
    let max_message_bytes = s.get("max_message_bytes", size(MESSAGE_BYTES_MIN..=MESSAGE_BYTES_MAX));
    // None at all is a choice: a server that takes no binary.
    let max_attachments = s.get("max_attachments", whole(0..=1000));
    let attachment_timeout = timeout(s, "attachment_timeout");
    let max_json_depth = s.get("max_json_depth", whole(1..=1000));
    let max_rooms_per_socket = s.get("max_rooms_per_socket", whole(1..=1_000_000));
    let max_room_name_bytes = s.get("max_room_name_bytes", size(1..=65_536));
    let memory = s.get("memory", size(0..=usize::MAX));
    let max_unconnected_sessions = s.get("max_unconnected_sessions", whole(1..=COUNT_MAX));
    let max_unconnected_sessions_per_ip =
        s.get("max_unconnected_sessions_per_ip", whole(1..=COUNT_MAX));
    // What is smaller than a few messages would refuse everybody.
    let memory = memory.and_then(|memory| match (memory, &max_message_bytes) {
        (0, _) => Ok(derived_memory()),
        (memory, Ok(message)) if memory < message.saturating_mul(MEMORY_MESSAGES_MIN) => {
            let right = format!(
                "want 0, or at least {MEMORY_MESSAGES_MIN} times limits.max_message_bytes ({message})"
            );
            Err(s.refuse("memory", right))
        }
        (memory, _) => Ok(memory),
    });
    Ok(Limits {
        max_message_bytes: max_message_bytes?,
        max_attachments: max_attachments?,
        attachment_timeout: attachment_timeout?,
        max_json_depth: max_json_depth?,
        max_rooms_per_socket: max_rooms_per_socket?,
        max_room_name_bytes: max_room_name_bytes?,
        memory: memory?,
        max_unconnected_sessions: max_unconnected_sessions?,
        max_unconnected_sessions_per_ip: max_unconnected_sessions_per_ip?,
    })
}

fn stage(s: &mut Section<'_>, message_bytes_max: Option<usize>) -> Read<Stage> {
    let max_events = s.get("max_events", whole(1..=COUNT_MAX));
    let max_bytes = s.get("max_bytes", size(1..=usize::MAX))?;
    if let Some(message) = message_bytes_max.filter(|message| *message > max_bytes) {
        let right = format!("want at least limits.max_message_bytes ({message})");
        return Err(s.refuse("max_bytes", right));
    }
    Ok(Stage { max_events: max_events?, max_bytes })
}

fn fanout(s: &mut Section<'_>) -> Read<FanOut> {
    let workers = s.get("workers", whole(0..=1024))?;
    // A second is late in any of the uses; more is a slip in the unit.
    let window = s.get("window", duration(Duration::ZERO..=Duration::from_secs(1)))?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Ok(FanOut { workers: if workers == 0 { cores() } else { workers }, window })
}

fn drain(s: &mut Section<'_>) -> Read<Drain> {
    let delay = s.get("delay", duration(Duration::ZERO..=LONGEST));
    // Zero closes all sessions at once: right for a test, or for the last node.
    let spread = s.get("spread", duration(Duration::ZERO..=LONGEST));
    let deadline = timeout(s, "deadline");
    let (delay, spread, deadline) = (delay?, spread?, deadline?);
    // The rest is for the last batch to be written, and for what follows.
    let least = (delay + spread) * 5 / 4;
    if least > deadline {
        let least = humantime::format_duration(least);
        let right =
            format!("want a quarter more than drain.delay and drain.spread together ({least})");
        return Err(s.refuse("deadline", right));
    }
    Ok(Drain { delay, spread, deadline })
}

fn admin(s: &mut Section<'_>, public: Option<SocketAddr>) -> Read<Admin> {
    let listen = s.get("listen", |value| match text(value) {
        Ok(text) if text.is_empty() => Ok(None),
        _ => address(value).map(Some),
    });
    let token = s.secret("token");

    let listen = listen?;
    if let (Some(admin), Some(public)) = (listen, public) {
        let same_ip = admin.ip() == public.ip()
            || admin.ip().is_unspecified()
            || public.ip().is_unspecified();
        if same_ip && admin.port() == public.port() && public.port() != 0 {
            let right = format!("want another port than server.listen ({public})");
            return Err(s.refuse("listen", right));
        }
    }
    let token = token?;
    if let Some(listen) = listen.filter(|address| !address.ip().is_loopback() && token.is_none()) {
        let right = format!(
            "want a secret, because admin.listen ({listen}) is open to other machines, and whoever asks there \
             can stop the node"
        );
        return Err(s.refuse_unshown("token", right));
    }
    Ok(Admin { listen, token })
}

fn redis(s: &mut Section<'_>, message_bytes_max: Option<usize>) -> Read<Option<Redis>> {
    let url = redis_url(s);
    let username = s.get("username", text);
    let password = s.secret("password");
    let prefix = s.get("prefix", |value| match text(value) {
        Ok(prefix) if !prefix.is_empty() => Ok(prefix),
        _ => Err("want what the channels' names begin with, such as \"socket.io\"".to_owned()),
    });
    let resp3 = s.get("protocol", one_of(&[("resp2", false), ("resp3", true)]));
    let tls_ca = s.get("tls_ca", file);
    let tls_certificate = s.get("tls_certificate", file);
    let tls_key = s.get("tls_key", file);
    let connect_timeout = timeout(s, "connect_timeout");
    let probe_interval = timeout(s, "probe_interval");
    let probe_timeout = timeout(s, "probe_timeout");
    let publish_queue_messages = s.get("publish_queue_messages", whole(1..=COUNT_MAX));
    let frame = crate::cluster::frame_bytes_max(message_bytes_max.unwrap_or(MESSAGE_BYTES_MIN));
    let publish_queue_bytes = s.get("publish_queue_bytes", size(frame..=usize::MAX));
    let receive_queue_messages = s.get("receive_queue_messages", whole(1..=COUNT_MAX));
    let receive_queue_bytes = s.get("receive_queue_bytes", size(frame..=usize::MAX));
    let request_timeout = timeout(s, "request_timeout");
    let answer_on_own_channel = s.get("answer_on_own_channel", boolean);
    let degraded_is_ready = s.get("degraded_is_ready", boolean);
    let (tls_certificate, tls_key) = (tls_certificate?, tls_key?);
    if tls_certificate.is_some() != tls_key.is_some() {
        let right = "goes with redis.tls_key, and the other way round".to_owned();
        return Err(s.refuse("tls_certificate", right));
    }
    let username = username?;
    let redis = Redis {
        url: match url? {
            Some(url) => url,
            None => Secret(String::new()),
        },
        username: (!username.is_empty()).then_some(username),
        password: password?,
        prefix: prefix?,
        resp3: resp3?,
        tls_ca: tls_ca?,
        tls_certificate,
        tls_key,
        connect_timeout: connect_timeout?,
        probe_interval: probe_interval?,
        probe_timeout: probe_timeout?,
        publish_queue_messages: publish_queue_messages?,
        publish_queue_bytes: publish_queue_bytes?,
        receive_queue_messages: receive_queue_messages?,
        receive_queue_bytes: receive_queue_bytes?,
        request_timeout: request_timeout?,
        answer_on_own_channel: answer_on_own_channel?,
        degraded_is_ready: degraded_is_ready?,
    };
    Ok((!redis.url.expose().is_empty()).then_some(redis))
}

/// A URL may hold a password, so a wrong one is not shown.
fn redis_url(s: &mut Section<'_>) -> Read<Option<Secret>> {
    let url = s.secret("url")?;
    let schemes = ["redis://", "rediss://", "unix://"];
    let known = |url: &Secret| schemes.iter().any(|scheme| url.expose().starts_with(scheme));
    if url.as_ref().is_some_and(|url| !known(url)) {
        let right = "want \"redis://host:6379\", \"rediss://host:6379\" or \"unix:///path\"";
        return Err(s.refuse_unshown("url", right.to_owned()));
    }
    Ok(url)
}

fn file(value: &Value) -> Parsed<Option<PathBuf>> {
    let path = text(value)?;
    Ok((!path.is_empty()).then(|| PathBuf::from(path)))
}

fn log(s: &mut Section<'_>) -> Read<Log> {
    let filter = s.get("filter", |value| {
        let wanted = "want a level such as \"info\", or directives such as \"info,hyper=warn\"";
        let filter = text(value).map_err(|_| wanted.to_owned())?;
        match parse_filter(&filter) {
            Ok(_) => Ok(filter),
            Err(_) => Err(wanted.to_owned()),
        }
    });
    let format = s.get("format", one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]));
    Ok(Log { filter: filter?, format: format? })
}

fn traces(s: &mut Section<'_>) -> Read<Traces> {
    let endpoint = s.get("endpoint", |value| match text(value) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) if text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http")) => {
            Ok(Some(text))
        }
        _ => Err("want where a collector takes OTLP over HTTP, such as \"http://localhost:4318/v1/traces\"".to_owned()),
    });
    let sample_ratio = s.get("sample_ratio", share);
    Ok(Traces { endpoint: endpoint?, sample_ratio: sample_ratio? })
}

const ACTIONS: [(&str, Kind); 5] = [
    ("broadcast", Kind::Broadcast),
    ("echo", Kind::Echo),
    ("room", Kind::Room),
    ("join", Kind::Join),
    ("leave", Kind::Leave),
];

/// The keys that only some actions have.
const BELONGS: [(&str, &[Kind]); 4] = [
    ("to", &[Kind::Broadcast, Kind::Room]),
    ("as", &[Kind::Echo]),
    ("require_joined", &[Kind::Room]),
    ("volatile", &[Kind::Broadcast, Kind::Room]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Broadcast,
    Echo,
    Room,
    Join,
    Leave,
}

fn event(entry: &mut Section<'_>, message_bytes_max: Option<usize>) -> Read<EventRule> {
    let name = entry.get("name", event_name);
    let namespace = entry.optional("namespace", text);
    let kind = entry.get("action", one_of(&ACTIONS));
    let to = entry.optional("to", one_of(&[("all", Audience::All), ("others", Audience::Others)]));
    let rename = entry.optional("as", event_name);
    let require_joined = entry.optional("require_joined", boolean);
    let volatile = entry.optional("volatile", boolean);
    let max_bytes = message_bytes_max.unwrap_or(MESSAGE_BYTES_MAX);
    let max_bytes = entry.optional("max_bytes", size(1..=max_bytes));
    let rate = entry.optional("rate", rate);

    let kind = kind?;
    let fits = keys_fit(entry, kind);
    let to = to?.unwrap_or(Audience::All);
    let action = match kind {
        Kind::Broadcast => Action::Broadcast { to },
        Kind::Echo => Action::Echo { rename: rename? },
        Kind::Room => Action::Room { to, require_joined: require_joined?.unwrap_or_default() },
        Kind::Join => Action::Join,
        Kind::Leave => Action::Leave,
    };
    fits?;
    Ok(EventRule {
        name: name?,
        namespace: namespace?.unwrap_or_else(|| "/".to_owned()),
        action,
        volatile: volatile?.unwrap_or_default(),
        max_bytes: max_bytes?,
        rate: rate?,
    })
}

/// Refuses every key that has no meaning for the action, even at its default: whoever wrote it
/// expects something that will not happen.
fn keys_fit(entry: &mut Section<'_>, kind: Kind) -> Read<()> {
    let mut fits = Ok(());
    for (key, kinds) in BELONGS {
        if entry.has(key) && !kinds.contains(&kind) {
            let words: Vec<_> = ACTIONS
                .iter()
                .filter(|(_, kind)| kinds.contains(kind))
                .map(|(word, _)| format!("{word:?}"))
                .collect();
            let right = format!("only goes with the action {}; take it out", words.join(" or "));
            let _: Noted = entry.refuse(key, right);
            fits = Err(Noted);
        }
    }
    fits
}

fn event_name(value: &Value) -> Parsed<String> {
    match text(value) {
        Ok(name) if RESERVED_EVENTS.contains(&name.as_str()) => {
            Err("is reserved by Socket.IO; want another name".to_owned())
        }
        Ok(name) if name == "other" => {
            Err("is what events with no rule are counted as; want another name".to_owned())
        }
        Ok(name) if !name.is_empty() => Ok(name),
        _ => Err("want the name of an event".to_owned()),
    }
}

/// `{ per_second = 30, burst = 60 }`; without `burst`, it is one second's worth.
fn rate(value: &Value) -> Parsed<Rate> {
    let wanted = || {
        "want { per_second = 30, burst = 60 }, whole numbers from 1; burst may be left out"
            .to_owned()
    };
    let ValueKind::Table(table) = &value.kind else {
        return Err(wanted());
    };
    if table.keys().any(|key| key != "per_second" && key != "burst") {
        return Err(wanted());
    }
    let tokens = |value: &Value| {
        let number = whole::<u32>(1..=i64::from(u32::MAX))(value).ok();
        number.and_then(NonZeroU32::new).ok_or_else(wanted)
    };
    let per_second = tokens(table.get("per_second").ok_or_else(wanted)?)?;
    let burst = table.get("burst").map_or(Ok(per_second), tokens)?;
    Ok(Rate { per_second, burst })
}
