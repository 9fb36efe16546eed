//! The help of `tallow`, which lists the commands by task, and the examples in the help of each command.

use clap::Command;

/// A task: its name, the names of its commands, and examples of each.
pub type Task = (&'static str, &'static [(&'static str, &'static [&'static str])]);

pub const TASKS: [Task; 5] = [
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
                    "tallow table --d-model 128 --init candle --out table.safetensors",
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
            ("decode", &["echo 9906 1917 | tallow decode", "tallow decode book.bin --format u32 -o again.txt"]),
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
                    "tallow convert train.bin --from nanogpt --tokenizer gpt2 --separator 50256 --out tokens",
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
    (
        "Shell",
        &[(
            "completions",
            &[
                "tallow completions bash > ~/.local/share/bash-completion/completions/tallow",
                "tallow completions zsh > ~/.zfunc/_tallow",
                "tallow completions fish > ~/.config/fish/completions/tallow.fish",
            ],
        )],
    ),
];

/// Adds the tasks and the examples to the helps.
pub fn with_tasks(mut command: Command) -> Command {
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
        Run `tallow COMMAND --help` for all flags and examples."
    ))
}
