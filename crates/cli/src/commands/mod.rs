//! The commands, one file each.

mod completions;
mod convert;
mod decode;
mod encode;
mod inspect;
mod neighbors;
mod plot;
mod prepare;
mod pull;
mod show;
mod table;
mod verify;
mod weights;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Text becomes ids, ids become rows of a table: the front layer of a GPT.
#[derive(Parser)]
#[command(name = "tallow", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show how a text becomes pieces, ids and a matrix
    Show(Box<show::Show>),
    /// Show rows of the look-up table
    Table(table::Table),
    /// Turn text into ids
    Encode(encode::Encode),
    /// Turn ids back into text
    Decode(decode::Decode),
    /// Turn text files into shards of ids for training
    ///
    /// Ctrl-C leaves the finished units and temporary files (.tmp-…), without a manifest.json. The same command continues with the
    /// other units and deletes the temporary files.
    Prepare(Box<prepare::Prepare>),
    /// Describe a folder of shards, a checkpoint, a model or a file of weights
    Inspect(inspect::Inspect),
    /// Find the tokens whose rows are nearest to a token's
    Neighbors(neighbors::Neighbors),
    /// Draw a table, before and after training, or a folder of shards
    Plot(Box<plot::Plot>),
    /// Write the table of a model to a file, without the other tensors
    Pull(pull::Pull),
    /// Compare every shard of a folder with its manifest
    Verify(verify::Verify),
    /// Convert token files of other trainers to shards, or shards to token files
    Convert(convert::Convert),
    /// Print a script with which a shell completes commands and flags
    Completions(completions::Completions),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Show(args) => args.run(),
            Command::Table(args) => args.run(),
            Command::Encode(args) => args.run(),
            Command::Decode(args) => args.run(),
            Command::Prepare(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Neighbors(args) => args.run(),
            Command::Plot(args) => args.run(),
            Command::Pull(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Convert(args) => args.run(),
            Command::Completions(args) => args.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::help::{TASKS, with_tasks};

    /// The words of a shell command, up to `>`.
    fn words(line: &str) -> Vec<String> {
        let quoted = line.split('"').enumerate();
        let words = quoted.flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(str::to_string).collect(),
            _ => vec![part.to_string()],
        });
        words.take_while(|word| word != ">").collect()
    }

    #[test]
    fn every_command_has_a_task_and_examples_that_are_understood() {
        let known: Vec<&str> = TASKS.iter().flat_map(|(_, commands)| commands.iter().map(|(name, _)| *name)).collect();
        let all = Cli::command();
        assert_eq!(known.len(), all.get_subcommands().count());
        for (name, examples) in TASKS.iter().flat_map(|(_, commands)| *commands) {
            assert!(all.find_subcommand(name).is_some(), "{name}");
            for example in *examples {
                let call = words(example.rsplit(" | ").next().unwrap());
                let matches = with_tasks(Cli::command())
                    .try_get_matches_from(&call)
                    .unwrap_or_else(|error| panic!("{example}: {error}"));
                assert_eq!(matches.subcommand_name(), Some(*name));
            }
        }
    }
}
