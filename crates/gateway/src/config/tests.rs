//! Every kind of mistake with its message; the layers; what prints loads again.

use std::{fs, path::Path, time::Duration};

use super::{
    Action, AllowedOrigins, Audience, Config, ConfigErrors, EventRule, ForwardingHeader, Loaded,
    LogFormat, load::DEFAULTS,
};

/// Loads a file called `settings.toml`, environment variables and flags.
fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    fs::write(&path, file).unwrap();
    load_path(&path, env, flags)
}

fn load_path(
    path: &Path,
    env: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, ConfigErrors> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let flags: Vec<_> = flags.iter().map(owned).collect();
    Config::load(Some(path), env.iter().map(owned), &flags)
}

/// The settings are refused with exactly these errors: each begins with its key and contains the
/// other texts.
#[track_caller]
fn check(file: &str, env: &[(&str, &str)], expected: &[&[&str]]) {
    let errors = match load(file, env, &[]) {
        Ok(_) => panic!("{file:?} {env:?} was accepted"),
        Err(errors) => errors.to_string(),
    };
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), expected.len() + 1, "{errors}");
    for (line, texts) in lines[1..].iter().zip(expected) {
        assert!(line.trim_start().starts_with(texts[0]), "{:?} in:\n{errors}", texts[0]);
        for text in &texts[1..] {
            assert!(line.contains(text), "{text:?} in:\n{errors}");
        }
    }
}

/// `[section] key = value` is refused: the key, the value and the line are named, and `right`.
#[track_caller]
fn check_value(section: &str, key: &str, value: &str, right: &str) {
    let at = format!("{section}.{key}");
    check(
        &format!("[{section}]\n{key} = {value}"),
        &[],
        &[&[&at, right, &format!("; got {value}"), "settings.toml:2)"]],
    );
}

/// `[[event]]` named `cursor` with these lines, third in the file, is refused with these errors.
#[track_caller]
fn check_event(lines: &str, expected: &[&[&str]]) {
    let file = format!(
        "namespaces = [\"/\", \"/docs\"]\n[[event]]\nname = \"a\"\naction = \"echo\"\n\
         [[event]]\nname = \"b\"\naction = \"join\"\n[[event]]\nname = \"cursor\"\n{lines}"
    );
    check(&file, &[], expected);
}

#[test]
fn values_that_are_wrong() {
    for (section, key, value, right) in [
        ("node", "id", r#""two words""#, "letters, digits"),
        ("server", "listen", r#"":5000""#, r#"want the address too: "0.0.0.0:5000""#),
        ("server", "listen", r#""localhost:5000""#, r#"not a name: "127.0.0.1:5000""#),
        ("server", "listen", "5000", r#"want the address too: "0.0.0.0:5000""#),
        ("server", "listen", r#""10.0.0.1""#, r#"want the port too: "10.0.0.1:5000""#),
        ("server", "listen", r#""::1""#, r#"want brackets and the port: "[::1]:5000""#),
        ("server", "listen", r#""example.com:1""#, "want an IP address and a port"),
        ("server", "path", r#""/""#, "want a path such as"),
        ("server", "path", r#""socket.io""#, "want a path such as"),
        ("server", "path", r#""/socket.io/""#, "without a slash at its end"),
        ("server", "transports", "[]", "want at least one"),
        ("server", "transports", r#""polling""#, "want a list"),
        ("server", "backlog", "0", "want a whole number from 1 to"),
        ("server", "backlog", "99999999999", "want a whole number from 1 to 2147483647"),
        ("server", "max_connections", "-1", "want a whole number from 1 to"),
        ("server", "max_connections", "1.5", "want a whole number"),
        ("server", "max_connections_per_ip", "true", "want a whole number"),
        ("server", "request_head_timeout", "10", r#"with its unit, such as "10s""#),
        ("server", "request_body_timeout", r#""2.5""#, r#"with its unit, such as "2.5s""#),
        ("server", "request_body_timeout", r#""0s""#, "want a duration from 1ms to 1day"),
        ("proxy", "header", r#""x-real-ip""#, r#"want "x-forwarded-for" or "forwarded""#),
        ("cors", "credentials", r#""yes""#, "want true or false"),
        ("cors", "allowed_origins", r#"["*", "https://a.example"]"#, r#"want "*" alone"#),
        ("session", "ping_interval", r#""soon""#, r#"want a duration, such as "10s""#),
        ("session", "ping_timeout", r#""25h""#, "to 1day"),
        ("session", "send_queue_bytes", "1023", "bytes from 1024"),
        ("redis", "prefix", r#""""#, "want what the channels' names begin with"),
        ("redis", "protocol", r#""resp1""#, r#"want "resp2" or "resp3""#),
        ("redis", "tls_certificate", r#""node.pem""#, "goes with redis.tls_key"),
        ("redis", "probe_interval", r#""0s""#, "want a duration from 1ms"),
        ("limits", "max_message_bytes", "1023", "bytes from 1024 to 1073741824"),
        ("limits", "max_message_bytes", r#""1 MiBit""#, r#"such as 65536 or "64KiB""#),
        ("limits", "max_message_bytes", r#""99999999999GiB""#, "want a number of bytes"),
        ("limits", "max_attachments", "1001", "from 0 to 1000"),
        ("limits", "max_json_depth", "0", "from 1 to 1000"),
        ("stage", "max_bytes", "4096", "at least limits.max_message_bytes (1000000)"),
        ("drain", "deadline", r#""4s""#, "drain.spread together (6s 250ms)"),
        ("admin", "listen", r#""0.0.0.0:5000""#, "another port than server.listen"),
        ("admin", "listen", r#""127.0.0.1:5000""#, "another port than server.listen"),
        ("traces", "sample_ratio", "1.5", "from 0 to 1"),
        ("traces", "sample_ratio", "-1", "from 0 to 1"),
        ("traces", "sample_ratio", "nan", "from 0 to 1"),
        ("traces", "endpoint", r#""https://x""#, "OTLP over HTTP"),
        ("log", "filter", r#""a=b=c""#, "want a level"),
        ("log", "filter", r#""""#, "want a level"),
        ("log", "format", r#""xml""#, r#"want "text" or "json""#),
        ("log", "format", "1979-05-27", r#"want "text" or "json""#),
    ] {
        // A date is shown as the text it is read as.
        if value != "1979-05-27" {
            check_value(section, key, value, right);
        } else {
            let file = format!("[{section}]\n{key} = {value}");
            check(&file, &[], &[&[&format!("{section}.{key}"), right]]);
        }
    }
}

#[test]
fn items_of_lists_that_are_wrong_are_named_one_by_one() {
    check(
        r#"
        [proxy]
        trusted = ["10.0.0.0/8", "10.0.0.0/33", 7]
        "#,
        &[],
        &[
            &["proxy.trusted[1]: want a network", r#"got "10.0.0.0/33""#, "settings.toml:3"],
            &["proxy.trusted[2]: want a network", "got 7"],
        ],
    );
    check(r#"server.transports = ["carrier pigeon"]"#, &[], &[&["server.transports[0]: want"]]);
    for origin in ["a.example", "https://", "https://a b", "https://a:port", "http://[::z]"] {
        let file = format!("cors.allowed_origins = [{origin:?}]");
        check(&file, &[], &[&["cors.allowed_origins[0]: want", "scheme://host[:port]", origin]]);
    }
    check(
        r#"cors.allowed_origins = ["https://a.example/", "https://*.a.example"]"#,
        &[],
        &[
            &["cors.allowed_origins[0]", "without a path or a slash at the end"],
            &["cors.allowed_origins[1]", "no patterns"],
        ],
    );
}

#[test]
fn namespaces_that_are_wrong() {
    for (list, right) in [
        (r#"["/chat"]"#, r#"namespaces: must contain "/""#),
        (r#"["/", "chat"]"#, r#"namespaces[1]: want "/""#),
        (r#"["/", "/a,b"]"#, r#"namespaces[1]: want "/""#),
        (r#"["/", "/a", "/a"]"#, r#"namespaces: has "/a" twice"#),
    ] {
        check(&format!("namespaces = {list}"), &[], &[&[right, "settings.toml:1)"]]);
    }
    check(
        "[log]\nformat = \"json\"\nnamespaces = [\"/\"]",
        &[],
        &[&["log.namespaces: belongs at the top of the file", "settings.toml:3)"]],
    );
}

#[test]
fn cookies_need_named_origins() {
    check("cors.credentials = true", &[], &[&["cors.credentials: needs origins by name"]]);
    let config =
        load(r#"cors = { credentials = true, allowed_origins = ["https://a.example"] }"#, &[], &[]);
    assert!(config.unwrap().config.cors.credentials);
}

#[test]
fn keys_that_do_not_exist() {
    check(
        "[server]\nlisten_on = \"x\"\nmax_conections = 5\n[sever]\nlisten = \"x\"",
        &[("ANTIPHON__SESSION__PING_INTERVALL", "5s"), ("ANTIPHON__SERVER__LISTEN__PORT", "1")],
        &[
            &["server.listen__port: unknown key; known", "variable ANTIPHON__SERVER__LISTEN__PORT"],
            &["server.listen_on: unknown key; known here: listen, path", "settings.toml:2)"],
            &["server.max_conections: unknown key; did you mean \"max_connections\"?"],
            &[
                "session.ping_intervall: unknown key; did you mean \"ping_interval\"?",
                "(environment variable ANTIPHON__SESSION__PING_INTERVALL)",
            ],
            &["sever: unknown key; did you mean \"server\"?", "settings.toml:"],
        ],
    );
    // What the config crate would take for a path must not become one.
    check(r#""server.listen" = "x""#, &[], &[&["server.listen: unknown key"]]);
    check(r#""namespaces[99999999999]" = "x""#, &[], &[&["namespaces[99999999999]: unknown key"]]);
    check("\"a\\nb\" = 1", &[], &[&[r"a\nb: unknown key"]]);
}

#[test]
fn sections_and_settings_are_not_mixed_up() {
    check(
        "server = 5\n[namespaces]\nx = 1\n[drain.spread]\nx = 1\n[event]\nname = \"a\"",
        &[("ANTIPHON__ADMIN", "s3cret"), ("ANTIPHON__NODE__ID", "a b")],
        &[
            &["drain.spread: is a setting, not a section"],
            &["event: write [[event]], with two brackets"],
            &["namespaces: is a setting, not a section"],
            &["server: is a section", "a line [server]", "settings.toml:1)"],
            &["admin: is a section", "(environment variable ANTIPHON__ADMIN)"],
            &["node.id: want at most"],
        ],
    );
    check("event = [1]", &[], &[&["event[0]: want entries [[event]]"]]);
}

#[test]
fn the_environment_is_ours_only_with_two_underscores_and_in_capitals() {
    let env = [
        ("ANTIPHON_SERVICE_HOST", "10.0.0.1"),
        ("ANTIPHON_PORT", "tcp://10.0.0.1:80"),
        ("antiphon__SERVER__LISTEN", "x"),
        ("PATH", "/bin"),
    ];
    assert!(load("", &env, &[]).is_ok());
    check(
        "",
        &[
            ("ANTIPHON__", "1"),
            ("ANTIPHON__EVENT__0__NAME", "x"),
            ("ANTIPHON__SERVER__listen", "0.0.0.0:1"),
            ("ANTIPHON__SERVER_LISTEN", "0.0.0.0:1"),
        ],
        &[
            &["event: events can only be set in a file", "ANTIPHON__EVENT__0__NAME"],
            &["server_listen: write two underscores", "levels: ANTIPHON__SERVER__LISTEN ("],
            &["server.listen: write it in capitals: ANTIPHON__SERVER__LISTEN"],
            &[": unknown key", "(environment variable ANTIPHON__)"],
        ],
    );
    check(
        "",
        &[("ANTIPHON__SERVER__BACKLOG", "many"), ("ANTIPHON__DRAIN__SPREAD", "5")],
        &[
            &["server.backlog: want a whole number", r#"got "many""#, "ANTIPHON__SERVER__BACKLOG)"],
            &["drain.spread: want a duration with its unit", "ANTIPHON__DRAIN__SPREAD)"],
        ],
    );
}

#[test]
fn flags_are_named_in_errors() {
    let errors = load("", &[], &[("server.listen", "5000"), ("event", "x"), ("log.fromat", "x")])
        .unwrap_err()
        .to_string();
    for text in [
        "server.listen: want",
        "(flag for server.listen)",
        "event: events can only be set in a file, as [[event]] (flag for event)",
        "log.fromat: unknown key; did you mean \"format\"?",
    ] {
        assert!(errors.contains(text), "{text:?} in:\n{errors}");
    }
}

#[test]
fn events_that_are_wrong() {
    let name = r#"event[2] "cursor": "#;
    for (lines, right) in [
        ("", "action: is missing"),
        ("action = \"shout\"", r#"action: want "broadcast" or "echo" or "room""#),
        ("action = \"room\"\nto = \"nobody\"", r#"to: want "all" or "others"; got "nobody""#),
        (
            "action = \"echo\"\nto = \"all\"",
            r#"to: only goes with the action "broadcast" or "room""#,
        ),
        ("action = \"echo\"\nrequire_joined = true", "require_joined: only goes with"),
        ("action = \"echo\"\nvolatile = true", "volatile: only goes with"),
        ("action = \"echo\"\nas = \"connect\"", "as: is reserved by Socket.IO"),
        ("action = \"echo\"\nas = \"other\"", "as: is what events with no rule are counted as"),
        ("action = \"broadcast\"\nas = \"x\"", r#"as: only goes with the action "echo""#),
        ("action = \"broadcast\"\nrequire_joined = false", "require_joined: only goes with"),
        ("action = \"join\"\nvolatile = false", "volatile: only goes with"),
        ("action = \"leave\"\nto = \"others\"", "to: only goes with"),
        ("action = \"echo\"\nnamespace = \"/dosc\"", "namespace: is not in the list"),
        ("action = \"echo\"\nmax_bytes = 0", "max_bytes: want a number of bytes from 1 to 1000000"),
        ("action = \"echo\"\nmax_bytes = \"2MiB\"", "max_bytes: want a number of bytes"),
        ("action = \"echo\"\nrate = 30", "rate: want { per_second = 30, burst = 60 }"),
        ("action = \"echo\"\nrate = { burst = 1 }", "rate: want { per_second = 30"),
        ("action = \"echo\"\nrate = { per_second = 0 }", "rate: want { per_second = 30"),
        ("action = \"echo\"\nrate = { per_second = 1, brust = 2 }", "rate: want { per_second"),
        ("action = \"echo\"\nmax_byte = 1", "max_byte: unknown key; did you mean"),
        ("action = \"echo\"\nnamespaces = []", "namespaces: belongs at the top of the file"),
    ] {
        check_event(lines, &[&[&format!("{name}{right}"), ""]]);
    }
    check_event(
        "action = \"echo\"\nto = \"all\"\nvolatile = \"no\"\n[[event]]\naction = \"echo\"",
        &[
            &[r#"event[2] "cursor": volatile: want true or false"#],
            &[r#"event[2] "cursor": to: only goes with"#],
            &[r#"event[2] "cursor": volatile: only goes with"#],
            &["event[3]: name: is missing (", "settings.toml:13)"],
        ],
    );
    check_event(
        "action = \"echo\"\n[[event]]\nname = \"cursor\"\naction = \"join\"\n\
         [[event]]\nname = \"cursor\"\naction = \"join\"\nnamespace = \"/docs\"",
        &[&[r#"event[3] "cursor": name: has a rule in namespace "/" already"#]],
    );
    for reserved in ["connect", "disconnect", "error", "newListener", "disconnecting"] {
        let file = format!("[[event]]\nname = {reserved:?}\naction = \"echo\"");
        check(&file, &[], &[&[&format!("event[0] {reserved:?}: name: is reserved")]]);
    }
    check("[[event]]\nname = \"\"\naction = \"echo\"", &[], &[&["event[0] \"\": name: want the"]]);
}

#[test]
fn files_that_cannot_be_read_or_are_not_toml() {
    check("[server]\nlisten = \"a\nb\"", &[], &[&["/", "settings.toml:2:", "string"]]);
    check("a = 1\na = 2", &[], &[&["/", "settings.toml:2:1: duplicate key"]]);
    // The text of the line may be a secret.
    let error = load("[admin]\ntoken = s3cret", &[], &[]).unwrap_err().to_string();
    assert!(error.contains("settings.toml:2:") && !error.contains("s3cret"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let error = load_path(&missing, &[], &[]).unwrap_err().to_string();
    assert!(error.contains("missing.toml: cannot be read: No such file"), "{error}");

    let binary = folder.path().join("binary.toml");
    fs::write(&binary, b"# fine\nx\xff").unwrap();
    let error = load_path(&binary, &[], &[]).unwrap_err().to_string();
    assert!(error.contains("binary.toml:2:2: is not UTF-8 here"), "{error}");

    let endless = load_path(Path::new("/dev/zero"), &[], &[]).unwrap_err().to_string();
    assert!(endless.contains("/dev/zero: is larger than 1048576 bytes"), "{endless}");

    let deep = format!("{}x = 1", "a.".repeat(100_000));
    assert!(load(&deep, &[], &[]).is_err());
    let deep = format!("x = {}", "[".repeat(100_000));
    assert!(load(&deep, &[], &[]).is_err());
    let wide = format!("x = [{}]", "1,".repeat(300_000));
    assert!(load(&wide, &[], &[]).is_err());
}

#[test]
fn all_mistakes_are_reported_at_once() {
    check(
        r#"
        namespaces = ["/", "x"]
        [server]
        listen = "nowhere"
        path = "/"
        [session]
        ping_interval = 25
        [drain]
        spread = "30s"
        [surprise]
        [[event]]
        name = "error"
        action = "echo"
        [[event]]
        name = "b"
        action = "join"
        to = "all"
        "#,
        &[("ANTIPHON__LOG__FORMAT", "xml"), ("ANTIPHON__SESSION__X", "a")],
        &[
            &["namespaces[1]:"],
            &["server.listen:"],
            &["server.path:"],
            &["session.ping_interval:"],
            &["session.x:"],
            &[
                "drain.deadline:",
                "drain.spread together (37s 500ms)",
                r#"got "25s" (built-in default)"#,
            ],
            &["log.format:"],
            &[r#"event[0] "error": name:"#],
            &[r#"event[1] "b": to:"#],
            &["surprise:"],
        ],
    );
}

#[test]
fn each_layer_is_over_the_one_before() {
    let env = [("ANTIPHON__SERVER__LISTEN", "127.0.0.1:3"), ("ANTIPHON__SERVER__BACKLOG", "3")];
    let file = "[server]\nlisten = \"127.0.0.1:2\"\nbacklog = 2\nmax_connections = 2";
    let config = load(file, &env, &[("server.listen", "127.0.0.1:4")]).unwrap().config;
    assert_eq!(config.server.listen.port(), 4);
    assert_eq!(config.server.backlog, 3);
    assert_eq!(config.server.max_connections, 2);
    assert_eq!(config.server.max_connections_per_ip, 20_000);
    assert_eq!(config.events, Config::embedded().events);
}

#[test]
fn every_type_can_be_set_in_the_environment() {
    let env = [
        ("ANTIPHON__NODE__ID", "7"),
        ("ANTIPHON__NAMESPACES", "/, /chat"),
        ("ANTIPHON__SERVER__TRANSPORTS", "websocket"),
        ("ANTIPHON__PROXY__TRUSTED", "10.0.0.0/8,192.168.1.1, fd00::/8"),
        ("ANTIPHON__PROXY__HEADER", "forwarded"),
        ("ANTIPHON__CORS__ALLOWED_ORIGINS", "HTTPS://A.example:443,http://b:80,http://[::1]:8080"),
        ("ANTIPHON__CORS__CREDENTIALS", "true"),
        ("ANTIPHON__LIMITS__MAX_MESSAGE_BYTES", "64KiB"),
        ("ANTIPHON__LIMITS__MAX_ATTACHMENTS", "0"),
        ("ANTIPHON__DRAIN__SPREAD", "0s"),
        ("ANTIPHON__SESSION__PING_INTERVAL", "300ms"),
        ("ANTIPHON__ADMIN__LISTEN", ""),
        ("ANTIPHON__LOG__FORMAT", "json"),
    ];
    let config = load("", &env, &[]).unwrap().config;
    assert_eq!(config.node.id, "7");
    assert_eq!(config.namespaces, ["/", "/chat"]);
    assert!(config.server.websocket && !config.server.polling);
    let trusted: Vec<_> = config.proxy.trusted.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.0/8", "192.168.1.1/32", "fd00::/8"]);
    assert_eq!(config.proxy.header, ForwardingHeader::Forwarded);
    let origins = ["https://a.example", "http://b", "http://[::1]:8080"].map(str::to_owned);
    assert_eq!(config.cors.allowed_origins, AllowedOrigins::List(origins.to_vec()));
    assert_eq!(config.limits.max_message_bytes, 65_536);
    assert_eq!(config.limits.max_attachments, 0);
    assert_eq!(config.drain.spread, Duration::ZERO);
    assert_eq!(config.session.ping_interval, Duration::from_millis(300));
    assert_eq!(config.admin.listen, None);
    assert_eq!(config.log.format, LogFormat::Json);
    // An empty list is a list.
    let config = load("", &[("ANTIPHON__CORS__ALLOWED_ORIGINS", "")], &[]).unwrap().config;
    assert_eq!(config.cors.allowed_origins, AllowedOrigins::List(Vec::new()));
}

#[test]
fn a_list_replaces_the_default_list() {
    let file = "[[event]]\nname = \"x\"\naction = \"room\"\nrate = { per_second = 3 }";
    let events = load(file, &[], &[]).unwrap().config.events;
    let [EventRule { name, namespace, action, volatile: false, max_bytes: None, rate }] =
        &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((name.as_str(), namespace.as_str()), ("x", "/"));
    assert_eq!(*action, Action::Room { to: Audience::All, require_joined: false });
    let rate = rate.unwrap();
    assert_eq!((rate.per_second.get(), rate.burst.get()), (3, 3));
    assert_eq!(load("event = []", &[], &[]).unwrap().config.events, []);
}

#[test]
fn an_admin_address_may_share_the_port_only_where_it_does_not_collide() {
    for (public, admin) in [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:5000", "127.0.0.2:5000"),
        ("0.0.0.0:5000", "0.0.0.0:5001"),
    ] {
        let flags = [("server.listen", public), ("admin.listen", admin), ("admin.token", "t")];
        assert!(load("", &[], &flags).is_ok(), "{public} {admin}");
    }
}

#[test]
fn an_admin_address_that_others_reach_needs_a_token() {
    let listen = ("admin.listen", "0.0.0.0:9464");
    let error = load("", &[], &[listen]).unwrap_err().to_string();
    assert!(error.contains("admin.token: want a secret"), "{error}");
    assert!(load("", &[], &[listen, ("admin.token", "t")]).is_ok());
    assert!(load("", &[], &[("admin.listen", "[::1]:9464")]).is_ok());
}

#[test]
fn a_share_may_come_from_every_layer() {
    let ratio = |file, env, flags| load(file, env, flags).unwrap().config.traces.sample_ratio;
    assert_eq!(ratio("traces.sample_ratio = 0.5", &[], &[]), 0.5);
    assert_eq!(ratio("traces.sample_ratio = 1", &[], &[]), 1.0);
    assert_eq!(ratio("", &[("ANTIPHON__TRACES__SAMPLE_RATIO", "0")], &[]), 0.0);
    assert_eq!(ratio("", &[], &[("traces.sample_ratio", "0.25")]), 0.25);
}

#[test]
fn secrets_are_never_shown() {
    let loaded = load("", &[("ANTIPHON__ADMIN__TOKEN", "s3cret")], &[]).unwrap();
    assert_eq!(loaded.config.admin.token.as_ref().unwrap().expose(), "s3cret");
    let shown = format!("{:?}{}", loaded, loaded.to_toml());
    assert!(shown.contains("token = \"<redacted>\"") && !shown.contains("s3cret"), "{shown}");

    let file = "[redis]\nurl = \"redis://:s3cret@host\"\npassword = \"s3cret\"";
    let loaded = load(file, &[], &[]).unwrap();
    let redis = loaded.config.redis.as_ref().unwrap();
    assert_eq!(redis.url.expose(), "redis://:s3cret@host");
    assert!(!format!("{:?}{}", loaded, loaded.to_toml()).contains("s3cret"));

    for file in [
        "admin.token = \"s3cret with a space\"",
        "admin.token = [\"s3cret\"]",
        "admin.token = \"<redacted>\" # s3cret",
        "redis.url = \"http://:s3cret@host\"",
        "redis.password = [\"s3cret\"]",
        "admin.token.s3cretkey = \"s3cret\"",
        "admin.tokn = \"s3cret\"",
        "admin = \"s3cret\"",
        "[[event]]\ntoken = \"s3cret\"",
    ] {
        let errors = load(file, &[("ANTIPHON__ADMIN__TOKEN_", "s3cret")], &[]).unwrap_err();
        assert!(!format!("{errors}").contains("s3cret"), "{errors}");
    }
    check("redis.url = \"localhost\"", &[], &[&["redis.url: want \"redis://host:6379\""]]);
    // A token that fills a line of `env_file` with its line end.
    check("admin.token = \"s3cret\\n\"", &[], &[&["admin.token: want a text of visible ASCII"]]);
}

#[test]
fn what_prints_loads_again_as_the_same_settings() {
    let strange = r#"
        event = []
        namespaces = ["/", "/a.b"]
        [node]
        id = "n1"
        [admin]
        listen = ""
        [log]
        filter = "info,a[{b=\"c\"}]=debug"
        [limits]
        max_message_bytes = "64KiB"
    "#;
    let odd_name = "[[event]]\nname = \"a b'ü\"\naction = \"echo\"\nas = \"ä\"";
    let mut files = vec![
        ("defaults".to_owned(), String::new()),
        ("strange".to_owned(), strange.into()),
        ("odd name".to_owned(), odd_name.into()),
    ];
    files.extend(examples());
    for (name, file) in files {
        let env = [("ANTIPHON__NODE__ID", "n1"), ("ANTIPHON__PROXY__TRUSTED", "10.0.0.0/8,::1")];
        let first = load(&file, &env, &[]).unwrap();
        let again = load(&first.to_toml(), &[], &[]).unwrap();
        assert_eq!(format!("{:?}", first.config), format!("{:?}", again.config), "{name}");
        assert_eq!(first.to_toml(), again.to_toml(), "{name}");
    }
}

#[test]
fn a_node_chooses_its_own_id_but_does_not_print_it() {
    let loaded = load("", &[], &[]).unwrap();
    let other = load("", &[], &[]).unwrap();
    assert_ne!(loaded.config.node.id, other.config.node.id);
    assert!(loaded.to_toml().contains("\n[node]\nid = \"\"\n"), "{}", loaded.to_toml());
    // What is chosen would be accepted as given.
    let given = [("node.id", loaded.config.node.id.as_str())];
    assert_eq!(load("", &[], &given).unwrap().config.node.id, loaded.config.node.id);
}

/// That they load at all also shows that the manual has every key that is read (one that is not
/// there "is missing") and no other (one that is not read is "unknown").
#[test]
fn the_defaults_are_those_of_the_node_server() {
    let config = Config::embedded();
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:5000");
    assert_eq!(config.namespaces, ["/"]);
    assert_eq!(config.cors.allowed_origins, AllowedOrigins::Any);
    assert_eq!(config.limits.max_message_bytes, 1_000_000);
    assert!(config.admin.token.is_none());
    let rules: Vec<_> = config.events.iter().map(|rule| (&*rule.name, &rule.action)).collect();
    assert_eq!(
        rules,
        [
            ("chat_message", &Action::Broadcast { to: Audience::All }),
            ("server_message", &Action::Echo { rename: None }),
        ]
    );
}

#[test]
fn the_examples_in_the_manual_load_and_show_every_key_of_an_event() {
    let mut manual = String::new();
    let mut keys = Vec::new();
    for line in DEFAULTS.lines() {
        let example =
            line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
        manual.push_str(example.unwrap_or(line));
        manual.push('\n');
        keys.extend(example.and_then(|line| line.split_once(" = ")).map(|(key, _)| key));
    }
    let loaded = load(&manual, &[], &[]).unwrap();
    assert_eq!(loaded.config.events.len(), 7);
    for key in [
        "name",
        "namespace",
        "action",
        "to",
        "as",
        "require_joined",
        "volatile",
        "max_bytes",
        "rate",
    ] {
        assert!(keys.contains(&key), "{key}");
    }
}

#[test]
fn every_setting_in_the_manual_is_explained() {
    let mut explained = false;
    for line in DEFAULTS.lines() {
        let is_setting = line.contains(" = ") && !line.starts_with('#');
        assert!(!is_setting || explained || line.starts_with("action"), "{line}");
        explained = line.starts_with('#') || (explained && line.starts_with('['));
    }
}

#[test]
fn every_example_file_loads() {
    let names: Vec<_> = examples()
        .into_iter()
        .map(|(name, file)| {
            let loaded = load(&file, &[], &[]);
            assert!(loaded.is_ok(), "{name}: {}", loaded.unwrap_err());
            name
        })
        .collect();
    assert_eq!(names, ["chat.toml", "collaboration.toml", "game.toml", "notifications.toml"]);
    let chat = Path::new(EXAMPLES).join("chat.toml");
    let chat = load_path(&chat, &[], &[]).unwrap().config;
    let bare = |config: &Config| -> Vec<_> {
        let events = config.events.iter();
        events.map(|one| (one.name.clone(), one.namespace.clone(), one.action.clone())).collect()
    };
    assert_eq!(bare(&chat), bare(&Config::embedded()));
    assert!(chat.events.iter().all(|event| event.rate.is_some() && event.max_bytes.is_some()));
}

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples");

fn examples() -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(EXAMPLES)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}
