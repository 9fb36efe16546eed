//! What `--help` says of all commands together, and the examples of each.

use clap::{Command, CommandFactory};

use crate::commands::Cli;

/// A task: the names of its commands, and calls of each.
type Task = (&'static str, &'static [(&'static str, &'static [&'static str])]);

const TASKS: [Task; 5] = [
    (
        "Look",
        &[
            (
                "show",
                &[
                    r#"tallow show "Hello world""#,
                    r#"tallow show "Hello world" --html page.html --svg figure.svg"#,
                    r#"tallow show "Hello world" --tokenizer gpt2 --d-model 8 --json"#,
                    r#"tallow show "Hello world" --table model.safetensors"#,
                ],
            ),
            (
                "table",
                &[
                    "tallow table --rows 0..3,1000..1002",
                    "tallow table --rows 0..10 --d-model 128 --init candle --out rows.safetensors",
                ],
            ),
            (
                "plot",
                &[
                    "tallow plot model.safetensors --tokenizer cl100k --html table.html",
                    "tallow plot after.safetensors --before before.safetensors --svg moved.svg",
                    "tallow plot tokens --svg tokens.svg",
                ],
            ),
        ],
    ),
    (
        "Text and ids",
        &[
            ("encode", &["echo -n \"Hello world\" | tallow encode", "tallow encode book.txt --format u32 -o book.bin"]),
            ("decode", &["echo 9906 1917 | tallow decode", "tallow decode book.bin --format u32 -o book.txt"]),
        ],
    ),
    (
        "Files to train on",
        &[
            (
                "prepare",
                &[
                    "tallow prepare corpus.jsonl --val 0.01 --out tokens",
                    r#"tallow prepare books --split-at "* * *" --out tokens"#,
                    "tallow prepare corpus.jsonl --out tokens --rank 0 --world-size 4",
                ],
            ),
            ("inspect", &["tallow inspect tokens --top 20", "tallow inspect model.safetensors"]),
            ("verify", &["tallow verify tokens"]),
            (
                "convert",
                &[
                    "tallow convert train.bin --from nanogpt --out tokens",
                    "tallow convert tokens --to nanogpt --split val --out val.bin",
                ],
            ),
        ],
    ),
    (
        "Trained rows",
        &[
            (
                "neighbors",
                &["tallow neighbors my-model king", "tallow neighbors model.safetensors king --tokenizer gpt2"],
            ),
            (
                "pull",
                &[
                    "tallow pull my-model -o table.safetensors",
                    "tallow pull my-model --rows 0..1000 -o rows.safetensors",
                ],
            ),
        ],
    ),
    ("Shell", &[("completions", &["tallow completions bash > /etc/bash_completion.d/tallow"])]),
];

/// The command line, with the help that this module adds.
pub fn command() -> Command {
    let mut command = Cli::command();
    let (header, literal) = (*command.get_styles().get_header(), *command.get_styles().get_literal());
    let mut tasks = String::new();
    for (task, commands) in TASKS {
        tasks += &format!("{header}{task}:{header:#}\n");
        for (name, examples) in commands {
            let about = command.find_subcommand(name).and_then(Command::get_about).map(ToString::to_string);
            tasks += &format!("  {literal}{name:<13}{literal:#}{}\n", about.unwrap_or_default());
            let examples: String = examples.iter().map(|example| format!("\n  {example}")).collect();
            command = command.mut_subcommand(name, |c| c.after_help(format!("{header}Examples:{header:#}{examples}")));
        }
        tasks.push('\n');
    }
    command.help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{tasks}{header}Options:{header:#}\n{{options}}\n\n\
        `tallow COMMAND --help` says more of each, with examples."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words as a shell takes them, up to where output goes elsewhere.
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
                let matches =
                    command().try_get_matches_from(&call).unwrap_or_else(|error| panic!("{example}: {error}"));
                assert_eq!(matches.subcommand_name(), Some(*name));
            }
        }
    }
}
