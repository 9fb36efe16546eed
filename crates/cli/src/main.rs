//! The command `tallow`: reads flags and calls the library. `commands` has one file per command; the other modules are shared.

mod args;
mod closed;
mod commands;
mod flags;
mod grid;
mod help;
mod interrupt;
mod io;
mod model;
mod pictures;
mod plain;
mod progress;
mod rows;
mod shards;

use std::io::Write;
use std::panic;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use closed::stdout_was_closed;
use commands::Cli;
use plain::say;

fn main() -> ExitCode {
    if stdout_was_closed() {
        say("error: the standard output is closed; give it a file, or /dev/null");
        return ExitCode::from(2);
    }
    tallow::keep_pages();
    // Helps are errors of clap. They are composed only then, and the line is parsed again.
    let matches = Cli::command().try_get_matches().or_else(|_| help::with_tasks(Cli::command()).try_get_matches());
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        // --help, --version
        Err(text) if !text.use_stderr() => return code(text.print().map_err(anyhow::Error::from)),
        // `tallow` alone
        Err(text) if text.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            say(text.to_string().trim_end());
            return ExitCode::from(2);
        }
        Err(error) => {
            // clap's first paragraph and its tips, as one line, without the tip to pass a flag as a value (`-- --flag`).
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            let tips = text.lines().filter_map(|line| line.trim_start().strip_prefix("tip: "));
            let tips = tips.filter(|tip| !tip.contains("'-- --"));
            let tips: String = tips.map(|tip| format!("; {tip}")).collect();
            say(format!("{}{tips} (try --help)", lines.join(" ")));
            return ExitCode::from(2);
        }
    };
    // Panics of the tokenizers crate are caught and become errors. The hook keeps their message off standard error.
    let last_panic = Arc::new(Mutex::new(String::new()));
    let seen = last_panic.clone();
    panic::set_hook(Box::new(move |info| {
        if let Ok(mut seen) = seen.lock() {
            *seen = info.to_string();
        }
    }));
    match panic::catch_unwind(|| cli.run()) {
        Ok(result) => code(result),
        Err(_) => {
            let what = last_panic.lock().map(|what| what.clone()).unwrap_or_default();
            say(format!("error: this is a bug in tallow, please report it: {what}"));
            ExitCode::from(101)
        }
    }
}

/// The exit code. Output that could not be written is an error.
fn code(result: anyhow::Result<()>) -> ExitCode {
    match result.and_then(|()| Ok(std::io::stdout().flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader closed the pipe: `tallow show … | head`.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            interrupt::give_way();
            say(flags::in_flags(&format!("error: {error:#}")));
            ExitCode::from(2)
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    use std::io::{Error, ErrorKind::BrokenPipe};
    let broken = |e: &Error| e.kind() == BrokenPipe;
    let json = |e: &serde_json::Error| e.io_error_kind() == Some(BrokenPipe);
    error.chain().any(|cause| {
        cause.downcast_ref::<Error>().is_some_and(broken) || cause.downcast_ref::<serde_json::Error>().is_some_and(json)
    })
}
