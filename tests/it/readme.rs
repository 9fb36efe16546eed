//! Every command of the READMEs is run, and what it prints is compared.

use std::process::Command;

/// A command and what stands below it.
fn commands(readme: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for block in readme.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()) {
        for line in block.lines() {
            match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => found.push((command.to_string(), String::new())),
                (None, Some((_, output))) => *output += &format!("{line}\n"),
                (None, None) => panic!("{line:?} stands below no command"),
            }
        }
    }
    found
}

#[test]
fn the_readmes_print_what_they_say() {
    for name in ["README.md", "README.zh-CN.md"] {
        let readme = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let commands = commands(&readme);
        // A folder that looks like the repository, so that what commands write stays out of it.
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap() {
            let path = entry.unwrap().path();
            std::os::unix::fs::symlink(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        assert!(commands.len() >= 6, "{name}: {commands:?}");
        for (command, expected) in commands {
            if command == "cargo test" {
                continue;
            }
            // `cargo run --release -- …` and `tallow …` both mean the binary under test.
            let script = format!("tallow() {{ \"$BIN\" \"$@\"; }}; cargo() {{ shift 3; tallow \"$@\"; }}; {command}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]).env("BIN", env!("CARGO_BIN_EXE_tallow")).current_dir(folder.path());
            let output = shell.output().unwrap();
            let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert_eq!(printed.trim_end(), expected.trim_end(), "{name}: {command}");
        }
    }
}
