//! Every command of the READMEs and of the lesson, and every one of the guide that shows its output, is run, and what it prints is compared.

use std::path::Path;
use std::process::Command;

use crate::support::root;

/// The commands of a page, each with its output; `None` in a block that is only run.
fn commands(text: &str) -> Vec<(String, Option<String>)> {
    let (mut found, mut block) = (Vec::new(), "");
    for line in text.lines() {
        match (line.strip_prefix("```"), block) {
            (Some(language), "") => block = if language.is_empty() { "text" } else { language },
            (Some(_), _) => block = "",
            (None, "sh") => found.push((line.to_string(), None)),
            (None, "console") => match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => found.push((command.to_string(), Some(String::new()))),
                (None, Some((_, Some(output)))) => *output += &format!("{line}\n"),
                (None, _) => panic!("{line:?} stands below no command"),
            },
            _ => {}
        }
    }
    found
}

/// A folder that looks like the repository, so that what commands write stays out of it.
fn like_the_repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        std::os::unix::fs::symlink(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn run(name: &str, folder: &Path, commands: &[(String, Option<String>)]) {
    for (command, expected) in commands {
        // `cargo run -- …` and `tallow …` both mean the binary under test; examples lie beside it.
        let script = format!(
            "tallow() {{ \"$BIN\" \"$@\"; }}
             cargo() {{ if [ \"$3\" = --example ]; then name=$4; shift 5; \"$EXAMPLES/$name\" \"$@\"; else shift 2; tallow \"$@\"; fi; }}
             {command}"
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).env("BIN", env!("CARGO_BIN_EXE_tallow")).env("EXAMPLES", examples());
        let output = shell.current_dir(folder).output().unwrap();
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        match expected {
            Some(expected) => assert_eq!(printed.trim_end(), expected.trim_end(), "{name}: {command}"),
            None => assert!(output.status.success(), "{name}: {command}: {printed}"),
        }
    }
}

fn text(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

fn examples() -> std::path::PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples")
}

/// The READMEs, and every page of the guide that shows commands. The lesson has a test of its own.
#[test]
fn the_readmes_print_what_they_say() {
    let page = |entry: std::io::Result<std::fs::DirEntry>| format!("docs/{}", entry.unwrap().file_name().display());
    let shows_commands = |name: &String| !name.starts_with("docs/lesson") && text(name).contains("```console");
    let guide = std::fs::read_dir(root().join("docs")).unwrap().map(page).filter(shows_commands);
    let mut names: Vec<String> =
        ["README.md", "README.zh-CN.md"].map(str::to_string).into_iter().chain(guide).collect();
    names.sort();
    for page in ["docs/corpora.md", "docs/layer.md", "docs/pictures.md", "docs/tokenizer.md"] {
        assert!(names.iter().any(|name| name == page), "{page} shows no command: {names:?}");
    }
    for name in &names {
        let mut commands = commands(&text(name));
        commands.retain(|(command, expected)| expected.is_some() && command != "cargo test");
        assert!(!commands.is_empty(), "{name} has no command with its output");
        run(name, like_the_repository().path(), &commands);
    }
}

#[test]
fn the_lesson_prints_what_it_says_and_draws_its_figures() {
    let built = examples().join("train_gpt").exists();
    assert!(built, "the lesson runs an example: `cargo test` builds it, and so does `cargo build --examples`");
    let mut trained: Option<(String, tempfile::TempDir)> = None;
    for name in ["docs/lesson.md", "docs/lesson.zh-CN.md"] {
        let lesson = text(name);
        let mut commands = commands(&lesson);
        assert!(commands.len() >= 10, "{name}: {commands:?}");
        let folder = like_the_repository();
        let training = commands.iter().position(|(command, _)| command.contains("--example train_gpt")).unwrap();
        if let Some((command, first)) = &trained {
            // It takes most of the time, and both lessons train the same: the second takes what the first has made.
            assert_eq!(commands.remove(training).0, *command, "{name}");
            std::os::unix::fs::symlink(first.path().join("run"), folder.path().join("run")).unwrap();
        }
        run(name, folder.path(), &commands);
        let figures: Vec<&str> =
            lesson.split("(../assets/lesson/").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        assert_eq!(figures.len(), 3, "{name}: {figures:?}");
        for figure in figures {
            let drawn = std::fs::read(folder.path().join(figure)).unwrap();
            let kept = std::fs::read(root().join("assets/lesson").join(figure)).unwrap();
            // Training is the same to the bit on one machine, not on all of them.
            assert!(figure.starts_with("trained") || drawn == kept, "{name}: {figure} is drawn otherwise now");
        }
        trained.get_or_insert_with(|| (commands[training].0.clone(), folder));
    }
}
