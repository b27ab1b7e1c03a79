//! From a scenario file and flags to a [`Plan`]: read, checked, every mistake at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::client::{Eio, Transport};
use crate::oracle::{Hears, Scope};
use crate::pacing::Pace;
use crate::payload::HEAD_BYTES;
use crate::verdict::Expectation;

/// The scenarios that come with the program: name and text.
pub const EMBEDDED: [(&str, &str); 9] = [
    ("chat", include_str!("../scenarios/chat.toml")),
    ("rooms", include_str!("../scenarios/rooms.toml")),
    ("echo", include_str!("../scenarios/echo.toml")),
    ("idle", include_str!("../scenarios/idle.toml")),
    ("storm", include_str!("../scenarios/storm.toml")),
    ("slow", include_str!("../scenarios/slow.toml")),
    ("push", include_str!("../scenarios/push.toml")),
    ("mixed", include_str!("../scenarios/mixed.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
];

/// Connections from one source address: below the 28,000 ports that Linux has for this. An address that is bound before
/// the target is known to the kernel has no port twice, whatever the targets.
const CONNECTIONS_PER_SOURCE: u64 = 20_000;

/// Pairs of sender and receiver that are watched: a gigabyte of numbers.
const PAIRS_MAX: u64 = 1 << 28;

/// What the flags say; they go over the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// A server: http://host:port[/path]; several share the clients [default: http://127.0.0.1:5000]
    #[arg(long = "url", value_name = "URL")]
    pub urls: Vec<String>,
    /// Clients in all
    #[arg(long, value_name = "N")]
    pub clients: Option<String>,
    /// Clients that send
    #[arg(long, value_name = "N")]
    pub senders: Option<String>,
    /// Open loop: messages a second, of all senders together
    #[arg(long, value_name = "MSGS_PER_S", conflicts_with = "in_flight")]
    pub rate: Option<String>,
    /// The rate rises evenly to this one by the end
    #[arg(long, value_name = "MSGS_PER_S", conflicts_with = "in_flight")]
    pub rate_to: Option<String>,
    /// Closed loop: messages on their way at a time
    #[arg(long, value_name = "N")]
    pub in_flight: Option<String>,
    /// Size of a message's payload
    #[arg(long, value_name = "N")]
    pub bytes: Option<String>,
    /// How long to measure
    #[arg(long, value_name = "TIME")]
    pub duration: Option<String>,
    /// How long to send before measuring
    #[arg(long, value_name = "TIME")]
    pub warm_up: Option<String>,
    /// How long to wait for the last deliveries
    #[arg(long, value_name = "TIME")]
    pub grace: Option<String>,
    /// Connections opened a second, such as 1000/s
    #[arg(long, value_name = "N/s")]
    pub ramp: Option<String>,
    /// Protocol of the clients: 4, or 3 as clients of Socket.IO 2
    #[arg(long, value_name = "4|3")]
    pub eio: Option<String>,
    /// websocket or polling
    #[arg(long, value_name = "TRANSPORT")]
    pub transport: Option<String>,
    /// Threads of clients [default: cores less one, at least one]
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// Addresses to connect from, in turn [default: as many of 127.0.0.0/8 as needed, on loopback]
    #[arg(long = "source", value_name = "ADDRESS")]
    pub sources: Vec<String>,
    /// Admin address of a node (http://host:port): its counters are balanced with what arrived
    #[arg(long, value_name = "URL")]
    pub admin: Vec<String>,
    /// What the admin address wants as bearer token
    #[arg(long, value_name = "TOKEN")]
    pub admin_token: Option<String>,
    /// Process of a server, whose CPU and memory are recorded
    #[arg(long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// A command at a time after measuring began: --at "10s COMMAND"
    #[arg(long = "at", value_name = "TIME COMMAND")]
    pub at: Vec<String>,
    /// What must hold: --expect "p99 < 50ms"
    #[arg(long, value_name = "CONDITION")]
    pub expect: Vec<String>,
    /// Redis to publish to, for kind = "push"
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
    /// Makes reconnect delays the same each time
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// A server to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was given.
    pub url: String,
    /// For the `Host` header.
    pub host: String,
    /// Where it is.
    pub address: SocketAddr,
    /// The path of Socket.IO requests, with its last slash.
    pub path: String,
}

/// Who sends, and through what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The clients themselves.
    Clients,
    /// Somebody outside, through Redis, as `@socket.io/redis-emitter` does.
    Redis,
}

/// Messages of one kind.
#[derive(Debug, Clone)]
pub struct Flow {
    /// What is emitted.
    pub event: String,
    /// Under what it arrives.
    pub heard_as: String,
    /// What a client emits to be in its room.
    pub join_event: String,
    /// Who sends.
    pub source: Source,
    /// Who hears it.
    pub scope: Scope,
    /// When messages are due.
    pub pace: Pace,
    /// The size of the payload.
    pub bytes: usize,
}

impl Flow {
    /// How many rooms there are; 0 if it has nothing to do with rooms.
    pub fn rooms(&self) -> u32 {
        match self.scope.hears {
            Hears::Room { rooms, .. } => rooms,
            _ => 0,
        }
    }

    /// Whether a sender hears its own messages, which tells it that they have been delivered.
    pub fn sender_hears(&self) -> bool {
        match self.scope.hears {
            Hears::All | Hears::Sender => true,
            Hears::Others => false,
            Hears::Room { sender_too, .. } => sender_too,
        }
    }
}

/// All clients drop their connections at once.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// When, after measuring began.
    pub at: Duration,
    /// Whether they wait before they come back, as the official client does after a lost connection.
    pub back_off: bool,
}

/// The last clients stop reading for a time.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// How many.
    pub clients: u32,
    /// From when, after measuring began.
    pub from: Duration,
    /// How long.
    pub lasting: Duration,
}

/// A command to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// When, after measuring began.
    pub at: Duration,
    /// For the shell.
    pub command: String,
}

/// All there is to know about a run before it begins.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The scenario's name.
    pub name: String,
    /// The same in words.
    pub title: String,
    /// The servers.
    pub targets: Vec<Target>,
    /// Clients in all.
    pub clients: u32,
    /// Connections opened a second.
    pub ramp: f64,
    /// How long all may take to connect, beyond the ramp.
    pub connect_within: Duration,
    /// What is sent.
    pub flows: Vec<Flow>,
    /// How long is measured.
    pub duration: Duration,
    /// How long is sent before.
    pub warm_up: Duration,
    /// How long the last deliveries are waited for.
    pub grace: Duration,
    /// A delivery that takes longer counts as late.
    pub late_after: Duration,
    /// The protocol of most clients.
    pub eio: Eio,
    /// The transport of most clients.
    pub transport: Transport,
    /// The part of clients that speak Engine.IO 3 instead.
    pub eio3_share: f64,
    /// The part of clients that poll instead.
    pub polling_share: f64,
    /// Threads of clients.
    pub threads: u32,
    /// Addresses to connect from; none leaves it to the system.
    pub sources: Vec<IpAddr>,
    /// Everybody reconnects.
    pub storm: Option<Storm>,
    /// Some stop reading.
    pub slow: Option<Slow>,
    /// Commands.
    pub faults: Vec<Fault>,
    /// What must hold.
    pub expect: Vec<Expectation>,
    /// Admin addresses of the nodes.
    pub admin: Vec<String>,
    /// Their token.
    pub admin_token: Option<String>,
    /// Processes of the servers.
    pub pids: Vec<u32>,
    /// Where to publish.
    pub redis: Option<String>,
    /// For reconnect delays.
    pub seed: u64,
}

impl Plan {
    /// The flows' streams.
    pub fn scopes(&self) -> Vec<Scope> {
        self.flows.iter().map(|flow| flow.scope).collect()
    }

    /// How a client connects. The same client always does it in the same way.
    pub fn kind_of(&self, client: u32) -> (Eio, Transport) {
        // Two unrelated orders of the clients, so that some are both.
        let part = |factor: u32| f64::from(client.wrapping_mul(factor)) / 4_294_967_296.0;
        let eio = if part(2_654_435_761) < self.eio3_share { Eio::V3 } else { self.eio };
        let polls = part(2_246_822_519) < self.polling_share;
        (eio, if polls { Transport::Polling } else { self.transport })
    }

    /// Connections at a time, at most: who polls needs two.
    fn connections(&self) -> u64 {
        let polls = self.transport == Transport::Polling || self.polling_share > 0.0;
        u64::from(self.clients) * if polls { 2 } else { 1 }
    }

    /// Descriptors that the run needs.
    pub fn descriptors(&self) -> u64 {
        self.connections() + 100
    }
}

/// What is wrong with a scenario or flags: a line for each mistake.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

/// Title of a scenario text; for lists.
pub fn title_of(text: &str) -> String {
    let mut mistakes = Vec::new();
    let file = read_file("", text, &mut mistakes);
    file.get("scenario").and_then(|s| s[0].get("title")).map_or(String::new(), |v| v.text.clone())
}

/// Reads a scenario, by name or path, puts the flags over it, and checks all.
///
/// # Errors
///
/// Every mistake that there is.
pub fn plan(scenario: &str, flags: &Flags) -> Result<Plan, Mistakes> {
    let mut mistakes = Vec::new();
    let (name, origin, text) = find(scenario).map_err(|mistake| Mistakes(vec![mistake]))?;
    let file = read_file(&origin, &text, &mut mistakes);
    let plan = Reader { file, flags, mistakes: &mut mistakes }.plan(name);
    if mistakes.is_empty() { Ok(plan) } else { Err(Mistakes(mistakes)) }
}

fn find(scenario: &str) -> Result<(String, String, String), String> {
    if let Some((name, text)) = EMBEDDED.iter().find(|(name, _)| *name == scenario) {
        return Ok(((*name).to_owned(), format!("{name}.toml"), (*text).to_owned()));
    }
    let path = PathBuf::from(scenario);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        let names: Vec<_> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        format!("{scenario}: {error}; give a file, or one of: {}", names.join(", "))
    })?;
    let name = path.file_stem().map_or(scenario.into(), |stem| stem.to_string_lossy());
    Ok((name.into_owned(), scenario.to_owned(), text))
}

/// A value as text, and where it stands.
#[derive(Debug, Clone)]
struct Value {
    text: String,
    origin: String,
    used: bool,
}

type Section = BTreeMap<String, Value>;

const SECTIONS: [&str; 5] = ["scenario", "load", "expect", "also", "at"];

/// The sections of a file; those of `[[also]]` and `[[at]]` may be several.
fn read_file(
    origin: &str,
    text: &str,
    mistakes: &mut Vec<String>,
) -> BTreeMap<String, Vec<Section>> {
    let line = |at: usize| format!("{origin}:{}", text[..at].matches('\n').count() + 1);
    let (root, errors) = toml::de::DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        mistakes.push(format!("{}: {}", line(at), error.message()));
    }
    let mut file: BTreeMap<String, Vec<Section>> = BTreeMap::new();
    for (name, value) in root.get_ref() {
        let at = line(name.span().start);
        let name: &str = name.get_ref();
        let several = matches!(name, "also" | "at");
        let tables: Vec<_> = match value.get_ref() {
            toml::de::DeValue::Table(table) if !several => vec![table],
            toml::de::DeValue::Array(array) if several => {
                array.iter().filter_map(|item| item.get_ref().as_table()).collect()
            }
            _ if SECTIONS.contains(&name) => {
                let form = if several { format!("[[{name}]]") } else { format!("[{name}]") };
                mistakes.push(format!("{at}: {name}: must be a section: {form}"));
                continue;
            }
            _ => Vec::new(),
        };
        if !SECTIONS.contains(&name) {
            mistakes
                .push(format!("{at}: {name}: no such section; there are {}", SECTIONS.join(", ")));
            continue;
        }
        for table in tables {
            let mut section = Section::new();
            for (key, value) in table {
                let (key, origin) = (key.get_ref().to_string(), line(key.span().start));
                match scalar(value.get_ref()) {
                    Some(text) => {
                        section.insert(key, Value { text, origin, used: false });
                    }
                    None => mistakes.push(format!("{origin}: {key}: must be one value")),
                }
            }
            file.entry(name.to_owned()).or_default().push(section);
        }
    }
    file
}

fn scalar(value: &toml::de::DeValue<'_>) -> Option<String> {
    use toml::de::DeValue as V;
    match value {
        V::String(text) => Some(text.to_string()),
        V::Integer(number) => Some(number.as_str().replace('_', "")),
        V::Float(number) => Some(number.as_str().replace('_', "")),
        V::Boolean(value) => Some(value.to_string()),
        V::Datetime(_) | V::Array(_) | V::Table(_) => None,
    }
}

struct Reader<'a> {
    file: BTreeMap<String, Vec<Section>>,
    flags: &'a Flags,
    mistakes: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn plan(mut self, name: String) -> Plan {
        let mut about = self.section("scenario");
        let title = self.text(&mut about, "title").unwrap_or_else(|| name.clone());
        self.nothing_else(&about, "scenario");

        let mut load = self.section("load");
        self.put_flags_over(&mut load);
        let clients = self.number(&mut load, "clients", 1.0..=10_000_000.0).unwrap_or(100.0) as u32;
        let duration = self.duration(&mut load, "duration").unwrap_or(Duration::from_secs(10));
        let warm_up = self.duration(&mut load, "warm_up").unwrap_or(Duration::from_secs(2));
        if duration.is_zero() {
            self.mistakes.push("duration: must be longer than 0s".into());
        }
        let mut flows = Vec::new();
        self.flow(&mut load, clients, warm_up + duration, &mut flows);
        let slow = self.slow(&mut load, duration);
        let storm = self.storm(&mut load, duration);
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let mut plan = Plan {
            name,
            title,
            sources: Vec::new(),
            targets: self.targets(),
            clients,
            ramp: self.number(&mut load, "ramp", 1.0..=1e6).unwrap_or(2000.0),
            connect_within: self
                .duration(&mut load, "connect_within")
                .unwrap_or(Duration::from_secs(45)),
            flows,
            duration,
            warm_up,
            grace: self.duration(&mut load, "grace").unwrap_or(Duration::from_secs(5)),
            late_after: self.duration(&mut load, "late_after").unwrap_or(Duration::from_secs(1)),
            eio: self
                .one_of(&mut load, "eio", &[("4", Eio::V4), ("3", Eio::V3)])
                .unwrap_or(Eio::V4),
            transport: self
                .one_of(
                    &mut load,
                    "transport",
                    &[("websocket", Transport::WebSocket), ("polling", Transport::Polling)],
                )
                .unwrap_or(Transport::WebSocket),
            eio3_share: self.number(&mut load, "eio3_share", 0.0..=1.0).unwrap_or(0.0),
            polling_share: self.number(&mut load, "polling_share", 0.0..=1.0).unwrap_or(0.0),
            threads: self
                .number(&mut load, "threads", 1.0..=1024.0)
                .unwrap_or((threads - 1.0).max(1.0))
                .min(f64::from(clients)) as u32,
            storm,
            slow,
            faults: Vec::new(),
            expect: Vec::new(),
            admin: self.flags.admin.clone(),
            admin_token: self.flags.admin_token.clone(),
            pids: self.flags.pids.clone(),
            redis: self.flags.redis.clone(),
            seed: self.flags.seed.unwrap_or_else(|| fastrand::u64(..)),
        };
        self.nothing_else(&load, "load");
        for mut also in self.file.remove("also").unwrap_or_default() {
            self.flow(&mut also, clients, warm_up + duration, &mut plan.flows);
            self.nothing_else(&also, "also");
        }
        self.flows_fit(&mut plan);
        plan.sources = self.sources(&plan);
        plan.faults = self.faults(duration);
        plan.expect = self.expectations();
        plan
    }

    fn section(&mut self, name: &str) -> Section {
        self.file.remove(name).and_then(|mut sections| sections.pop()).unwrap_or_default()
    }

    fn put_flags_over(&self, load: &mut Section) {
        let flags = self.flags;
        let ramp = flags.ramp.as_ref().map(|ramp| ramp.trim_end_matches("/s").to_owned());
        if flags.rate.is_some() {
            load.remove("in_flight");
        }
        if flags.in_flight.is_some() {
            load.remove("rate");
            load.remove("rate_to");
        }
        for (key, value) in [
            ("clients", &flags.clients),
            ("senders", &flags.senders),
            ("rate", &flags.rate),
            ("rate_to", &flags.rate_to),
            ("in_flight", &flags.in_flight),
            ("bytes", &flags.bytes),
            ("duration", &flags.duration),
            ("warm_up", &flags.warm_up),
            ("grace", &flags.grace),
            ("ramp", &ramp),
            ("eio", &flags.eio),
            ("transport", &flags.transport),
            ("threads", &flags.threads),
        ] {
            if let Some(text) = value {
                let origin = format!("--{}", key.replace('_', "-"));
                let value = Value { text: text.clone(), origin, used: false };
                load.insert(key.to_owned(), value);
            }
        }
    }

    fn wrong(&mut self, section: &Section, key: &str, what: &str) {
        let origin = section.get(key).map_or(String::new(), |value| format!("{}: ", value.origin));
        self.mistakes.push(format!("{origin}{key}: {what}"));
    }

    fn text(&mut self, section: &mut Section, key: &str) -> Option<String> {
        let value = section.get_mut(key)?;
        value.used = true;
        Some(value.text.clone())
    }

    fn number(
        &mut self,
        section: &mut Section,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Option<f64> {
        let text = self.text(section, key)?;
        match text.parse::<f64>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let (low, high) = (range.start(), range.end());
                self.wrong(section, key, &format!("{text:?} is not a number from {low} to {high}"));
                None
            }
        }
    }

    fn duration(&mut self, section: &mut Section, key: &str) -> Option<Duration> {
        let text = self.text(section, key)?;
        let day = Duration::from_secs(86_400);
        match humantime::parse_duration(&text) {
            Ok(duration) if duration <= day => Some(duration),
            Ok(_) => {
                self.wrong(section, key, "is longer than a day");
                None
            }
            Err(_) => {
                self.wrong(
                    section,
                    key,
                    &format!("{text:?} is not a time such as \"20s\" or \"500ms\""),
                );
                None
            }
        }
    }

    fn one_of<T: Copy>(
        &mut self,
        section: &mut Section,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(section, key)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.wrong(section, key, &format!("{text:?} is none of {}", names.join(", ")));
        None
    }

    fn nothing_else(&mut self, section: &Section, name: &str) {
        for (key, value) in section.iter().filter(|(_, value)| !value.used) {
            self.mistakes.push(format!("{}: {key}: no such key in [{name}]", value.origin));
        }
    }

    fn flow(&mut self, section: &mut Section, clients: u32, over: Duration, flows: &mut Vec<Flow>) {
        #[derive(Clone, Copy, PartialEq)]
        enum Kind {
            Broadcast,
            Others,
            Echo,
            Room,
            RoomOthers,
            Push,
        }
        let kinds = [
            ("broadcast", Kind::Broadcast),
            ("others", Kind::Others),
            ("echo", Kind::Echo),
            ("room", Kind::Room),
            ("room_others", Kind::RoomOthers),
            ("push", Kind::Push),
        ];
        let kind = self.one_of(section, "kind", &kinds).unwrap_or(Kind::Broadcast);
        let event = self.text(section, "event").unwrap_or_else(|| "chat_message".into());
        let heard_as = self.text(section, "reply").unwrap_or_else(|| event.clone());
        let join_event = self.text(section, "join_event").unwrap_or_else(|| "join".into());
        for (key, name) in [("event", &event), ("reply", &heard_as), ("join_event", &join_event)] {
            if name.is_empty()
                || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
            {
                self.wrong(section, key, "must be visible ASCII without quotes and backslashes");
            }
        }
        let in_rooms = matches!(kind, Kind::Room | Kind::RoomOthers);
        let rooms = self.number(section, "rooms", 0.0..=f64::from(clients)).unwrap_or(0.0) as u32;
        if in_rooms && rooms == 0 {
            self.wrong(section, "rooms", "this kind needs at least one room");
        }
        let senders = self.number(section, "senders", 0.0..=1e7);
        let senders = senders.unwrap_or(if kind == Kind::Push { 1.0 } else { 0.0 }) as u32;
        if kind != Kind::Push && senders > clients {
            self.wrong(section, "senders", &format!("{senders} of {clients} clients cannot send"));
        }
        let bytes =
            self.number(section, "bytes", HEAD_BYTES as f64..=16e6).unwrap_or(128.0) as usize;
        let in_flight = self.number(section, "in_flight", 1.0..=10_000_000.0);
        let rate = self.number(section, "rate", 0.001..=1e8);
        let rate_to = self.number(section, "rate_to", 0.001..=1e8);
        let pace = match (in_flight, rate) {
            (Some(_), Some(_)) => {
                self.wrong(
                    section,
                    "in_flight",
                    "there is a rate, too: either an open loop or a closed one",
                );
                Pace::InFlight(1)
            }
            (Some(_), None) if kind == Kind::Push => {
                self.wrong(
                    section,
                    "in_flight",
                    "notifications have a rate: nobody tells their sender",
                );
                Pace::InFlight(1)
            }
            (Some(in_flight), None) => Pace::InFlight(in_flight as u32),
            (None, rate) => {
                let from = rate.unwrap_or(100.0);
                Pace::Rate { from, to: rate_to.unwrap_or(from), over }
            }
        };
        let hears = match kind {
            Kind::Broadcast | Kind::Push => Hears::All,
            Kind::Others => Hears::Others,
            Kind::Echo => Hears::Sender,
            Kind::Room => Hears::Room { rooms: rooms.max(1), sender_too: true },
            Kind::RoomOthers => Hears::Room { rooms: rooms.max(1), sender_too: false },
        };
        let source = if kind == Kind::Push { Source::Redis } else { Source::Clients };
        let from_clients = |flow: &&Flow| flow.source == Source::Clients;
        let first_client = match source {
            Source::Clients => flows.iter().filter(from_clients).map(|f| f.scope.senders).sum(),
            // Nobody's: no client is the sender.
            Source::Redis => 0,
        };
        let first_stream = flows.iter().map(|flow| flow.scope.senders).sum();
        let offset = flows.iter().map(|flow| flow.scope.places()).sum();
        let outside = source == Source::Redis;
        let scope = Scope { hears, senders, first_client, first_stream, offset, outside };
        flows.push(Flow { event, heard_as, join_event, source, scope, pace, bytes });
    }

    fn flows_fit(&mut self, plan: &mut Plan) {
        let from_clients = plan.flows.iter().filter(|flow| flow.source == Source::Clients);
        let senders: u64 = from_clients.map(|flow| u64::from(flow.scope.senders)).sum();
        if senders > u64::from(plan.clients) {
            self.mistakes.push(format!(
                "senders: {senders} in all, but there are {} clients, and each sends one kind of message",
                plan.clients
            ));
        }
        let slow = plan.slow.map_or(0, |slow| u64::from(slow.clients));
        if senders + slow > u64::from(plan.clients) && slow > 0 {
            self.mistakes.push("slow: the last clients are slow, but they send as well".into());
        }
        for (at, flow) in plan.flows.iter().enumerate() {
            if plan.flows[..at].iter().any(|other| other.heard_as == flow.heard_as) {
                self.mistakes.push(format!(
                    "event: two kinds of messages arrive as {:?}: they need different events",
                    flow.heard_as
                ));
            }
        }
        if plan.flows.iter().any(|flow| flow.source == Source::Redis) && plan.redis.is_none() {
            self.mistakes.push("--redis: needed for kind = \"push\": the server's Redis".into());
        }
        let places: u64 = plan.flows.iter().map(|flow| u64::from(flow.scope.places())).sum();
        if places * u64::from(plan.clients) > PAIRS_MAX {
            let mut mistake =
                String::from("senders: too many pairs of sender and receiver to keep watch of: ");
            let _ = write!(mistake, "{places} × {}", plan.clients);
            self.mistakes.push(mistake);
        }
    }

    fn slow(&mut self, load: &mut Section, duration: Duration) -> Option<Slow> {
        let clients = self.number(load, "slow", 0.0..=1e7);
        let from = self.duration(load, "slow_from").unwrap_or(duration / 4);
        let lasting = self.duration(load, "slow_for").unwrap_or(duration / 2);
        let clients = clients? as u32;
        (clients > 0).then_some(Slow { clients, from, lasting })
    }

    fn storm(&mut self, load: &mut Section, duration: Duration) -> Option<Storm> {
        let at = self.duration(load, "storm_at");
        let choices = [("true", true), ("false", false)];
        let back_off = self.one_of(load, "storm_back_off", &choices).unwrap_or(false);
        if at.is_some_and(|at| at >= duration) {
            self.wrong(load, "storm_at", "is not before the end");
        }
        Some(Storm { at: at?, back_off })
    }

    fn targets(&mut self) -> Vec<Target> {
        let default = ["http://127.0.0.1:5000".to_owned()];
        let urls = if self.flags.urls.is_empty() { &default[..] } else { &self.flags.urls };
        let mut targets = Vec::new();
        for url in urls {
            match target(url) {
                Ok(target) => targets.push(target),
                Err(mistake) => self.mistakes.push(format!("--url: {url}: {mistake}")),
            }
        }
        targets
    }

    fn sources(&mut self, plan: &Plan) -> Vec<IpAddr> {
        let mut sources = Vec::new();
        for source in &self.flags.sources {
            match source.parse() {
                Ok(address) => sources.push(address),
                Err(_) => self.mistakes.push(format!("--source: {source:?} is not an IP address")),
            }
        }
        let loopback =
            |target: &Target| target.address.is_ipv4() && target.address.ip().is_loopback();
        let needed = plan.connections().div_ceil(CONNECTIONS_PER_SOURCE) as u32;
        if sources.is_empty() && needed > 1 && plan.targets.iter().all(loopback) {
            let first = u32::from(Ipv4Addr::LOCALHOST);
            sources.extend((0..needed).map(|i| IpAddr::V4(Ipv4Addr::from(first + i))));
        }
        sources
    }

    fn faults(&mut self, duration: Duration) -> Vec<Fault> {
        let mut faults = Vec::new();
        for mut section in self.file.remove("at").unwrap_or_default() {
            let at = self.duration(&mut section, "time").unwrap_or_default();
            match self.text(&mut section, "run") {
                Some(command) => faults.push(Fault { at, command }),
                None => self.mistakes.push("[[at]]: needs `time` and `run`".into()),
            }
            self.nothing_else(&section, "at");
        }
        for text in &self.flags.at {
            match text.split_once(' ').map(|(at, command)| (humantime::parse_duration(at), command))
            {
                Some((Ok(at), command)) => faults.push(Fault { at, command: command.into() }),
                _ => self
                    .mistakes
                    .push(format!("--at: {text:?} is not a time and a command: \"10s COMMAND\"")),
            }
        }
        for fault in faults.iter().filter(|fault| fault.at > duration) {
            self.mistakes.push(format!("--at: {:?} is after the end of the run", fault.at));
        }
        faults.sort_by_key(|fault| fault.at);
        faults
    }

    /// What the file says, with what the flags say over it, with what always holds unless one of them
    /// says otherwise.
    fn expectations(&mut self) -> Vec<Expectation> {
        let mut all: Vec<Expectation> = Vec::new();
        let mut add = |expectation: Expectation| {
            all.retain(|other| other.metric != expectation.metric);
            all.push(expectation);
        };
        for metric in ["lost", "duplicated", "reordered", "foreign"] {
            add(Expectation::parse(&format!("{metric} = 0")).expect("it is well-formed"));
        }
        let mut mistakes = Vec::new();
        for (key, value) in self.section("expect") {
            match Expectation::of(&key, &value.text) {
                Ok(expectation) => add(expectation),
                Err(mistake) => mistakes.push(format!("{}: {mistake}", value.origin)),
            }
        }
        for text in &self.flags.expect {
            match Expectation::parse(text) {
                Ok(expectation) => add(expectation),
                Err(mistake) => mistakes.push(format!("--expect: {mistake}")),
            }
        }
        self.mistakes.extend(mistakes);
        all
    }
}

fn target(url: &str) -> Result<Target, String> {
    if url.starts_with("https://") || url.starts_with("wss://") {
        return Err("TLS is not supported: point it at the server behind the proxy".into());
    }
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("ws://"));
    let rest = rest.ok_or("must begin with http://")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let with_port = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address = with_port.to_socket_addrs().map_err(|error| error.to_string())?.next();
    let path = match path {
        "" | "/" => "/socket.io/".to_owned(),
        path if path.ends_with('/') => path.to_owned(),
        path => format!("{path}/"),
    };
    Ok(Target {
        url: url.to_owned(),
        host: host.to_owned(),
        address: address.ok_or("has no address")?,
        path,
    })
}
