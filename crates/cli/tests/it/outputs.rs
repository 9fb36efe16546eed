//! Outputs replace no input and no file of another kind, appear whole or not at all, and are escaped on a terminal.

use std::path::{Path, PathBuf};

use tallow::PretrainedTable;
use tallow::shard::{Foreign, IdType, export};

use crate::cli::{refusal, stdout, tallow};
use crate::support::golden;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Copies the files of a folder.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Every file below a folder, with its bytes.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_read_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    copy(&golden("pretrained/gpt2"), &path("m"));
    copy(&golden("pretrained/llama"), &path("shards"));
    std::fs::copy(golden("byte_level.json"), path("m/tokenizer.json")).unwrap();
    std::fs::write(path("h.txt"), "Hello world").unwrap();
    std::fs::write(path("ids"), "9906 1917").unwrap();
    let rows = candle_core::Tensor::zeros((400, 2), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("wte.weight".to_string(), rows)].into(), path("t.safetensors")).unwrap();
    std::fs::hard_link(path("h.txt"), path("hard")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("h.txt", path("soft")).unwrap();
    let before = contents(folder.path());
    let (m, table) = (path("m"), path("t.safetensors"));
    let (small, shards) = (path("m/tokenizer.json"), path("shards"));
    let mut refused: Vec<Vec<PathBuf>> = [
        ["pull", "m", "-o", "m/model.safetensors"],
        ["pull", "m", "-o", "m/../m/./model.safetensors"],
        ["pull", "m/model.safetensors", "-o", "m/tokenizer.json"],
        ["pull", "shards", "-o", "shards/model-00002-of-00003.safetensors"],
        ["pull", "shards", "-o", "shards/model.safetensors.index.json"],
        ["encode", "h.txt", "-o", "h.txt"],
        ["encode", "h.txt", "-o", "hard"],
        ["decode", "ids", "-o", "ids"],
    ]
    .map(|args| args.map(|arg| if Path::new(&path(arg)).exists() { path(arg) } else { arg.into() }).to_vec())
    .to_vec();
    let own = |args: &[&str]| args.iter().map(PathBuf::from).collect::<Vec<_>>();
    refused.extend([
        own(&["encode", text(&path("h.txt")), "--tokenizer", text(&small), "-o", text(&small)]),
        own(&["show", "#", "--tokenizer", text(&small), "--table", text(&table), "--out", text(&table)]),
        own(&["show", "#", "--tokenizer", text(&small), "--npy", text(&small)]),
        own(&["plot", text(&table), "--before", text(&table), "--svg", text(&table)]),
        own(&["plot", text(&shards), "--svg", text(&shards.join("model-00001-of-00003.safetensors"))]),
    ]);
    #[cfg(unix)]
    refused.push(vec!["encode".into(), path("h.txt"), "-o".into(), path("soft")]);
    for args in refused {
        let args: Vec<&str> = args.iter().map(|arg| text(arg)).chain(["--force"]).collect();
        let said = refusal(&args, b"");
        assert!(said.contains("is a file that this command reads"), "{args:?}: {said}");
        assert!(contents(folder.path()) == before, "{args:?}");
    }
    // Standard input is a file, too.
    #[cfg(unix)]
    for args in [&["encode", "-o"][..], &["decode", "-o"], &["show", "-", "--svg"], &["show", "-", "--npy"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        command.args(args).arg(path("h.txt")).arg("--force");
        let output = command.stdin(std::fs::File::open(path("h.txt")).unwrap()).output().unwrap();
        assert!(output.status.code() == Some(2) && contents(folder.path()) == before);
    }
    // And where standard output is appended to it.
    #[cfg(unix)]
    for (file, input) in [("h.txt", "h.txt"), ("-", "h.txt"), ("soft", "ids")] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        command.args(["encode", file]).current_dir(folder.path()).stdin(std::fs::File::open(path(input)).unwrap());
        let end = std::fs::File::options().append(true).open(path("h.txt")).unwrap();
        assert_eq!(command.stdout(end).output().unwrap().status.code(), Some(2), "{file}");
        assert!(contents(folder.path()) == before, "{file}");
    }
    // The library refuses it, too.
    let table = PretrainedTable::open(&m, None).unwrap();
    let error = table.save(m.join("../m/model.safetensors"), &[]).unwrap_err().to_string();
    assert!(error.contains("the file that the rows are read from"), "{error}");
    assert!(contents(folder.path()) == before);
}

#[test]
fn a_file_of_another_kind_is_replaced_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let ids = folder.path().join("ids");
    std::fs::write(&ids, "9906 1917").unwrap();
    let (gpt2, ids, out_text) = (golden("pretrained/gpt2"), text(&ids).to_string(), text(&out).to_string());
    let commands: [(&[&str], bool); 10] = [
        (&["pull", text(&gpt2), "-o"], true),
        (&["table", "--vocab-size", "9", "--rows", "0", "--out"], true),
        (&["show", "x", "--out"], true),
        (&["show", "x", "--html"], true),
        (&["show", "x", "--svg"], true),
        (&["show", "x", "--png"], true),
        (&["show", "x", "--npy"], true),
        (&["encode", "--format", "json", "-o"], true),
        (&["encode", "--format", "u32", "-o"], false),
        (&["decode", &ids, "-o"], false),
    ];
    for (command, repeats) in commands {
        let args = [command, &[&out_text]].concat();
        // An empty file holds nothing.
        std::fs::write(&out, "").unwrap();
        stdout(&args, b"Hello");
        // (The order of safetensors metadata changes from run to run.)
        let bytes = || std::fs::metadata(&out).unwrap().len();
        let written = bytes();
        assert!(written > 0);
        match repeats {
            true => _ = stdout(&args, b"Hello"),
            false => assert!(refusal(&args, b"Hello").contains("is there already"), "{args:?}"),
        }
        assert_eq!(bytes(), written, "{args:?}");
        for other in ["Dear diary", "<!DOCTYPE html><html><head><title>mine</title>"] {
            std::fs::write(&out, other).unwrap();
            let said = refusal(&args, b"Hello");
            assert!(said.contains("is there") && said.contains("--force"), "{args:?}: {said}");
            assert_eq!(std::fs::read_to_string(&out).unwrap(), other, "{args:?}");
        }
        stdout(&[&args[..], &["--force"]].concat(), b"Hello");
        assert_eq!(bytes(), written, "{args:?}");
    }
    // A model is no file of rows, whatever its format.
    std::fs::copy(gpt2.join("model.safetensors"), &out).unwrap();
    refusal(&["show", "x", "--out", &out_text], b"");
    // The projector's two files.
    let tsv = folder.path().join("tsv");
    stdout(&["show", "x y", "--tsv", text(&tsv)], b"");
    stdout(&["show", "x", "--tsv", text(&tsv)], b"");
    std::fs::write(tsv.join("metadata.tsv"), "name\tage\n").unwrap();
    assert!(refusal(&["show", "x", "--tsv", text(&tsv)], b"").contains("metadata.tsv is there"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "something was left");
}

#[test]
fn shards_are_converted_to_a_place_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, out) = (folder.path().join("tokens"), folder.path().join("ng.ds"));
    stdout(&["prepare", golden("corpus.jsonl").to_str().unwrap(), "--val", "0.1", "--out", text(&tokens)], b"");
    std::fs::hard_link(tokens.join("train/000000.bin"), folder.path().join("hard")).unwrap();
    let before = contents(folder.path());
    for inside in ["tokens/train/000000.bin", "tokens/manifest.json", "tokens/units/x", "tokens/new.bin", "hard"] {
        let inside = folder.path().join(inside);
        refusal(&["convert", text(&tokens), "--to", "nanogpt", "-o", text(&inside), "--force"], b"");
        let error = export(&tokens, "train", Foreign::NanoGpt, IdType::U32, &inside).unwrap_err().to_string();
        assert!(error.contains("is part of") && contents(folder.path()) == before, "{error}");
    }
    // The other split takes another name, and so do the files beside it.
    let train = ["convert", text(&tokens), "--to", "datatrove", "-o", text(&out)];
    assert_eq!(stdout(&train, b"").lines().count(), 3);
    let written = contents(folder.path());
    assert_eq!(written.len(), before.len() + 3, "something was left");
    let val = [&train[..], &["--split", "val"]].concat();
    assert!(refusal(&val, b"").contains("is there already: name another file, or replace it with --force"));
    std::fs::remove_file(&out).unwrap();
    assert!(refusal(&val, b"").contains("ng.ds.index is there already"));
    assert!(!out.exists(), "a part of the output");
    assert!(stdout(&[&val[..], &["--force"]].concat(), b"").contains("ng.ds.metadata"));
    // Files that are read do not lie where shards are written.
    let raw = folder.path().join("new/train/000000.bin");
    std::fs::create_dir_all(raw.parent().unwrap()).unwrap();
    std::fs::copy(folder.path().join("hard"), &raw).unwrap();
    let new = folder.path().join("new");
    let said = refusal(&["convert", text(&raw), "--from", "nanogpt", "--vocab-size", "100277", "-o", text(&new)], b"");
    assert!(said.contains("is in the folder that is written"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_written_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut reader = std::process::Command::new("timeout");
    let reader = reader.args(["60", "cat"]).arg(&pipe).stdout(std::process::Stdio::piped()).spawn().unwrap();
    stdout(&["pull", golden("pretrained/gpt2").to_str().unwrap(), "-o", text(&pipe)], b"");
    assert!(!pipe.is_file());
    let rows = reader.wait_with_output().unwrap().stdout;
    assert!(safetensors::SafeTensors::deserialize(&rows).unwrap().tensor("transformer.wte.weight").is_ok());
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_leaves_nothing_behind() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let left = || std::fs::read_dir(folder.path()).unwrap().count();
    // What this process ignores (under nohup, behind `&`) its children ignore, too.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    let mask = u64::from_str_radix(mask, 16).unwrap();
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)].into_iter().filter(|(_, n)| mask >> (n - 1) & 1 == 0) {
        // It waits for text that never comes.
        let mut command = Command::new(env!("CARGO_BIN_EXE_tallow"));
        let command = command.args(["encode", "-", "-o"]).arg(&out).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let _open = child.stdin.take(); // `wait` would end the text
        let started = std::time::Instant::now();
        while left() == 0 && started.elapsed().as_secs() < 30 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(left(), 1, "the temporary folder");
        let kill = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let status = child.wait().unwrap();
        assert_eq!((status.signal(), left()), (Some(number), 0), "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_nobody_can_take_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, input) = (folder.path().join("rows"), folder.path().join("in"));
    std::fs::write(&input, "9906 1917").unwrap();
    let gpt2 = golden("pretrained/gpt2");
    for args in [
        &["pull", text(&gpt2), "-o", text(&rows)][..],
        &["--help"],
        &["--version"],
        &["encode", text(&input)],
        &["decode", text(&input)],
        &["show", "x"],
        &["show", "x", "--json"],
        &["inspect", text(&gpt2)],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        let output = command.args(args).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{args:?}: {said}");
        assert!(said.starts_with("error: "), "{args:?}: {said}");
    }
}

/// The same where there is no output at all.
#[cfg(target_os = "linux")]
#[test]
fn a_closed_output_is_an_error() {
    for (redirection, code) in [(">&-", 2), (">/dev/null", 0)] {
        let command = format!("exec \"$0\" encode - {redirection}");
        let output =
            std::process::Command::new("sh").args(["-c", &command, env!("CARGO_BIN_EXE_tallow")]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), said.contains("standard output is closed")),
            (Some(code), code == 2),
            "{said}"
        );
    }
    // What is opened for reading and writing, as Python's DEVNULL is, is an output.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
    assert!(command.args(["show", "x"]).stdout(null).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn names_of_others_reach_no_terminal_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let name = "a\x1b[31mb\u{202e}c";
    let rows = candle_core::Tensor::zeros((300, 2), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let tensors = [(format!("{name}.wte.weight"), rows)];
    candle_core::safetensors::save(&tensors.into(), path(name)).unwrap();
    std::fs::write(path("in"), "9906").unwrap();
    let model = path(name);
    std::fs::copy(golden("byte_level.json"), path(&format!("{name}.json"))).unwrap();
    let odd = path(&format!("{name}.json"));
    stdout(&["prepare", &path("in"), "--format", "text", "--out", &path("\x1b[31m"), "--tokenizer", &odd], b"");
    for args in [
        &["inspect", "/nowhere\x1b[31m"][..],
        &["inspect", &model],
        &["pull", &model, "-o", &path("x\x1b[1m")],
        &["plot", &model, "--svg", &path("x\x1b[1m.svg")],
        &["plot", &model, "--tokens", "\x1b"],
        &["neighbors", &model, "3", "\x1b[31m", "--ids"],
        &["table", "--vocab-size", "3", "--rows", "0", "--out", &path("t\x1b")],
        &["show", "x", "--npy", &path("n\x1b"), "--tokenizer", &odd],
        &["show", name, "--\x1b[31m"],
        &["prepare", &path("in"), "--format", "text", "--out", &path("\x1b[31m"), "--tokenizer", &odd],
        &["inspect", &path("\x1b[31m")],
        &["inspect", &path("\x1b[31m"), "--split", "\x1b"],
        &["verify", &path("\x1b[31m")],
        &["convert", &path("\x1b[31m"), "--to", "nanogpt", "--out", &path("c\x1b")],
        &["convert", &path("\x1b[31m"), "--to", "nanogpt", "--split", "\x1b", "--out", &path("d\x1b")],
        &["decode", &path("in"), "--format", "json"],
    ] {
        let output = tallow(args, b"");
        for stream in [output.stdout, output.stderr] {
            let said = String::from_utf8(stream).unwrap();
            let raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!said.contains(raw), "{args:?}: {said:?}");
        }
    }
}
