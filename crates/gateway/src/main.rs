//! The `antiphon` command: runs a node, or says how it would be configured.

use std::{path::PathBuf, process::ExitCode};

use antiphon_gateway::{
    BuildError, Listeners, Node, Question, Shutdown,
    config::{Config, Loaded, environment},
    healthcheck,
    telemetry::Telemetry,
};
use anyhow::Context;
use clap::{Parser, Subcommand};

/// The command line or the configuration is wrong (`EX_USAGE` of sysexits.h).
const EXIT_CONFIG: u8 = 64;

/// A Socket.IO server: a node of an Antiphon cluster.
///
/// Without arguments it listens on 0.0.0.0:5000 and needs nothing else. Settings come from built-in
/// defaults, then the file, then ANTIPHON__… environment variables, then flags;
/// `antiphon print-config` shows the result.
#[derive(Debug, Parser)]
#[command(name = "antiphon", version, max_term_width = 100)]
struct Args {
    /// A configuration file (TOML)
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Where clients connect, such as 0.0.0.0:5000 (server.listen)
    #[arg(long, value_name = "ADDRESS", global = true)]
    listen: Option<String>,

    /// Where operators ask, such as 127.0.0.1:9464 (admin.listen)
    #[arg(long, value_name = "ADDRESS", global = true)]
    admin_listen: Option<String>,

    /// Any other setting, such as --set log.filter=debug; may be repeated
    #[arg(long, value_name = "KEY=VALUE", global = true, value_parser = setting)]
    set: Vec<(String, String)>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Report every mistake in the settings, and start nothing
    CheckConfig,
    /// Print the effective settings as a configuration file; secrets are redacted
    PrintConfig,
    /// Ask the node that runs with these settings, on this machine, whether it is alive
    Healthcheck {
        /// Ask whether clients may be sent to it
        #[arg(long)]
        ready: bool,
    },
}

/// Descriptors for all but clients: refusals (256), operators (64), Redis, collectors, files, the runtime.
const OTHER_DESCRIPTORS: usize = 512;

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version come this way too, for standard output and success.
            let code = if error.use_stderr() { EXIT_CONFIG } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    let named = [("server.listen", args.listen), ("admin.listen", args.admin_listen)];
    let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let overrides: Vec<_> = args.set.into_iter().chain(named).collect();
    let loaded = match Config::load(args.config.as_deref(), environment(), &overrides) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return EXIT_CONFIG.into();
        }
    };
    match args.command {
        Some(Command::CheckConfig) => println!("the configuration is valid"),
        Some(Command::PrintConfig) => print!("{}", loaded.to_toml()),
        Some(Command::Healthcheck { ready }) => {
            let question = if ready { Question::Ready } else { Question::Alive };
            let healthy = healthcheck(loaded.config.admin.listen, question);
            return finish(healthy.map_err(anyhow::Error::from));
        }
        None => return finish(serve(loaded)),
    }
    ExitCode::SUCCESS
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    // {:#}: the whole chain of causes, once, here where it is handled.
    eprintln!("antiphon: {error:#}");
    exit_code(&error)
}

/// Settings that only show to be wrong when they are used, such as a file that is not there, are wrong
/// settings all the same.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        Some(BuildError::Cluster(_)) => EXIT_CONFIG.into(),
        _ => ExitCode::FAILURE,
    }
}

fn serve(loaded: Loaded) -> anyhow::Result<()> {
    let mut config = loaded.config;
    let telemetry = Telemetry::start(&config).context("cannot start logging and tracing")?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    config.server.max_connections = within_descriptors(config.server.max_connections);
    let result = runtime.block_on(async {
        let listeners = Listeners::bind(&config).await?;
        let shutdown = Shutdown::on_signals().context("cannot listen to signals")?;
        let node = Node::new(config.clone())?.with_telemetry(telemetry.clone());
        announce(&config, &listeners)?;
        node.serve(listeners, shutdown).await?;
        Ok(())
    });
    // Connections that outlived the drain are not waited for.
    runtime.shutdown_background();
    telemetry.finish();
    result
}

/// What somebody who has just started it needs to know.
fn announce(config: &Config, listeners: &Listeners) -> anyhow::Result<()> {
    let address = listeners.public.local_addr()?;
    let admin = match &listeners.admin {
        Some(listener) => format!("http://{}", listener.local_addr()?),
        None => "off".to_owned(),
    };
    tracing::info!(
        mode = if config.redis.is_some() {
            "cluster, over Redis"
        } else {
            "single node, without Redis"
        },
        admin,
        version = env!("CARGO_PKG_VERSION"),
        "Antiphon serves Socket.IO at http://{address}{}/",
        config.server.path
    );
    Ok(())
}

/// Every connection takes a descriptor, and most systems give a process 1,024 until it asks. Returns how many connections
/// there may be so that a node full of clients can still refuse others, tell how it is, and reach its peers.
fn within_descriptors(max_connections: usize) -> usize {
    let limit = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open descriptors");
            return max_connections;
        }
    };
    let room = limit.saturating_sub(OTHER_DESCRIPTORS).max(1);
    if room < max_connections {
        tracing::warn!(
            limit,
            "too few descriptors for server.max_connections = {max_connections}: {room} it is. Raise the hard limit \
             (`ulimit -Hn`, LimitNOFILE=, or --ulimit nofile=), or lower the setting"
        );
    }
    room.min(max_connections)
}
