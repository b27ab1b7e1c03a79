//! `antiphon-loadtest`: arguments, Ctrl-C, exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use antiphon_loadtest::compare;
use antiphon_loadtest::live::Live;
use antiphon_loadtest::report::{Report, html};
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
    /// Makes a page of a report
    Html {
        /// A report, as `run --json` writes it
        report: PathBuf,
        /// Where the page goes
        page: PathBuf,
    },
    /// Measures Antiphon and other servers in turn, and writes how they compare
    Compare(compare::Args),
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
    /// Where the report goes, as a page with charts that needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
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
        Arguments::Html { report, page } => code(page_of(&report, &page)),
        Arguments::Compare(arguments) => match compare::run(&arguments) {
            Ok(code) => code,
            Err(error) => code(Err(format!("{error:#}"))),
        },
    }
}

fn code(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(NOT_RUN)
        }
    }
}

fn page_of(report: &Path, page: &Path) -> Result<(), String> {
    let text =
        fs::read_to_string(report).map_err(|error| format!("{}: {error}", report.display()))?;
    let known = serde_json::from_str::<Report>(&text);
    known.map_err(|error| format!("{}: not a report: {error}", report.display()))?;
    write(&html::render(&text), page)
}

fn run(arguments: RunArguments) -> ExitCode {
    let plan = match scenario::plan(&arguments.scenario, &arguments.flags) {
        Ok(plan) => plan,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(USAGE);
        }
    };
    // A report that cannot be written should be known of before an hour has gone by.
    for path in [&arguments.json, &arguments.html].into_iter().flatten() {
        let directory = path.parent().filter(|parent| *parent != Path::new(""));
        if path.is_dir() || directory.is_some_and(|directory| !directory.is_dir()) {
            eprintln!(
                "{}: cannot be written there: no such directory, or one itself",
                path.display()
            );
            return ExitCode::from(USAGE);
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    // The first Ctrl-C ends the run with a report, the second ends the program.
    let second =
        signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), stop.clone());
    let first = second.and_then(|_| signal_hook::flag::register(SIGINT, stop.clone()));
    if let Err(error) = first {
        eprintln!("Ctrl-C will end it without a report: {error}");
    }
    let command: Vec<String> = std::env::args().map(quoted).collect();
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
    if let Err(error) = write_files(&report, arguments.json.as_deref(), arguments.html.as_deref()) {
        return code(Err(error));
    }
    match &report {
        report if report.ended_early => ExitCode::from(INTERRUPTED),
        report if report.passed => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    }
}

/// As a shell reads it.
fn quoted(argument: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument;
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

fn write_files(report: &Report, json: Option<&Path>, page: Option<&Path>) -> Result<(), String> {
    let mut text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    text.push('\n');
    json.map_or(Ok(()), |path| write(&text, path))?;
    page.map_or(Ok(()), |path| write(&html::render(&text), path))
}

fn write(text: &str, path: &Path) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
