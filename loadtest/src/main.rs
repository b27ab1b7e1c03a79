//! `antiphon-loadtest`: arguments, Ctrl-C, exit codes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use antiphon_loadtest::live::Live;
use antiphon_loadtest::report::Report;
use antiphon_loadtest::scenario::{self, Flags};
use clap::Parser;
use signal_hook::consts::SIGINT;

/// Something that had to hold did not.
const FAILED: u8 = 1;
/// It could not be run.
const NOT_RUN: u8 = 2;
/// Wrong arguments, or a wrong scenario.
const USAGE: u8 = 64;
/// Ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Loads a Socket.IO server with many clients, and checks what each of them gets.
#[derive(Debug, Parser)]
#[command(version)]
enum Arguments {
    /// Runs a scenario; the exit code says whether what must hold did
    Run(Box<RunArguments>),
    /// Lists the scenarios that come with it
    List,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Name of a scenario (see `list`), or a TOML file
    scenario: String,
    #[command(flatten)]
    flags: Flags,
    /// Where the report goes, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shows nothing until the end
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help is no error, and goes to standard output.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match arguments {
        Arguments::Run(arguments) => run(*arguments),
        Arguments::List => {
            for (name, text) in scenario::EMBEDDED {
                println!("{name:<8} {}", scenario::title_of(text));
            }
            ExitCode::SUCCESS
        }
    }
}

fn run(arguments: RunArguments) -> ExitCode {
    let plan = match scenario::plan(&arguments.scenario, &arguments.flags) {
        Ok(plan) => plan,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(USAGE);
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    // The first Ctrl-C ends the run with a report, the second ends the program.
    let second =
        signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), stop.clone());
    let first = second.and_then(|_| signal_hook::flag::register(SIGINT, stop.clone()));
    if let Err(error) = first {
        eprintln!("Ctrl-C will end it without a report: {error}");
    }
    let command: Vec<String> = std::env::args().collect();
    let report =
        antiphon_loadtest::run(plan, &command.join(" "), &stop, &mut Live::new(arguments.quiet));
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            eprintln!("{}", chain(&error));
            return ExitCode::from(NOT_RUN);
        }
    };
    print!("{}", report.table());
    if let Some(error) = arguments.json.and_then(|path| write_json(&report, &path).err()) {
        eprintln!("{error}");
        return ExitCode::from(NOT_RUN);
    }
    match &report {
        report if report.ended_early => ExitCode::from(INTERRUPTED),
        report if report.passed => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    }
}

fn write_json(report: &Report, path: &std::path::Path) -> Result<(), String> {
    let mut text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    text.push('\n');
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
