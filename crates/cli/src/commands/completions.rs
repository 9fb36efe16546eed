//! `tallow completions`: prints the completion script of a shell.

use std::io::Write;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::help::with_tasks;

#[derive(Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        generate(self.shell, &mut with_tasks(super::Cli::command()), "tallow", &mut script);
        Ok(std::io::stdout().write_all(&script)?)
    }
}
