//! The binary: `tallow show`, `table`, `encode`, `decode`.

mod cli;

use std::io;
use std::panic;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Parser;

fn main() -> ExitCode {
    tallow::keep_pages();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(), // --help, --version
        Err(error) => {
            // clap's first paragraph, as one line.
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            eprintln!("{} (try --help)", lines.join(" "));
            return ExitCode::from(2);
        }
    };
    // Panics of the tokenizers crate are caught and become errors; what they would print is not for the user.
    let last_panic = Arc::new(Mutex::new(String::new()));
    let seen = last_panic.clone();
    panic::set_hook(Box::new(move |info| {
        if let Ok(mut seen) = seen.lock() {
            *seen = info.to_string();
        }
    }));
    match panic::catch_unwind(|| cli.run()) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough: `tallow show … | head`.
        Ok(Err(error)) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
        Err(_) => {
            let what = last_panic.lock().map(|what| what.clone()).unwrap_or_default();
            eprintln!("error: this is a bug in tallow, please report it: {what}");
            ExitCode::from(101)
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    let json = |e: &serde_json::Error| e.io_error_kind() == Some(io::ErrorKind::BrokenPipe);
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(broken)
            || cause.downcast_ref::<serde_json::Error>().is_some_and(json)
    })
}
