//! `tallow prepare`, `inspect`, `verify` and `convert` as a user meets them.

use std::path::Path;

use serde_json::Value;

use crate::cli::{refusal, stdout, tallow};
use crate::support::{golden, golden_json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn from_files_to_batches_by_commands() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (golden("corpus.jsonl"), folder.path().join("tokens"));
    let (input, out) = (text(&input), text(&out));
    let expected = golden_json("corpus.json");

    let estimate = stdout(&["prepare", input, "--out", out, "--dry-run", "--json"], b"");
    let estimate: Value = serde_json::from_str(&estimate).unwrap();
    assert_eq!((estimate["files"].as_u64(), estimate["bytes"].as_u64()), (Some(1), Some(42_221)));
    assert!(!Path::new(out).exists());

    // One JSON line a unit, one at the end.
    let lines = stdout(&["prepare", input, "--out", out, "--json", "--unit-bytes", "10000"], b"");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    let mut units: Vec<u64> = lines[..5].iter().map(|line| line["unit"].as_u64().unwrap()).collect();
    units.sort();
    assert_eq!(units, [0, 1, 2, 3, 4]);
    let tokens: u64 = lines[..5].iter().map(|line| line["train"]["tokens"].as_u64().unwrap()).sum();
    assert_eq!((lines[5]["finished"].as_bool(), lines[5]["train_tokens"].as_u64()), (Some(true), Some(tokens)));
    assert_eq!(expected["tokens"].as_u64(), Some(tokens));

    let report = stdout(&["inspect", out], b"");
    for part in ["10 229 tokens in 117 documents, 5 shards", "cl100k_base", "<|endoftext|> (100257) after", "touched"] {
        assert!(report.contains(part), "{part} is not in\n{report}");
    }
    let report: Value = serde_json::from_str(&stdout(&["inspect", out, "--json", "--top", "3"], b"")).unwrap();
    assert_eq!((report["tokens"].as_u64(), report["longest"].as_array().unwrap().len()), (Some(tokens), 3));
    let most: u64 = report["frequent"][0]["count"].as_u64().unwrap();
    assert!(most >= report["frequent"][1]["count"].as_u64().unwrap() && most > 100);
    assert_eq!(report["samples"].as_array().unwrap().len(), 3);
    for (command, more) in [("convert", &["--to", "nanogpt", "-o", "x.bin"][..]), ("inspect", &[]), ("plot", &[])] {
        let of = |split: &str| refusal(&[&[command, out, "--split", split][..], more].concat(), b"");
        assert!(of("test").contains("has no split \"test\"; its splits are train, val"), "{}", of("test"));
        assert!(of("val").contains("the split \"val\" has no ids"), "{}", of("val"));
    }
    assert!(!Path::new("x.bin").exists());
    // Another tokenizer: counts, but no texts.
    let other = golden("byte_level.json");
    let blind = stdout(&["inspect", out, "--tokenizer", text(&other)], b"");
    assert!(blind.contains("no texts: ") && blind.contains("was made by cl100k_base"), "{blind}");

    assert!(stdout(&["verify", out], b"").starts_with("all well: 5 shards, 10 229 tokens, "));
    let bin = Path::new(out).join("train/000003.bin");
    let mut bytes = std::fs::read(&bin).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&bin, &bytes).unwrap();
    let found = tallow(&["verify", out], b"");
    assert_eq!(found.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&found.stdout).contains("000003.bin: CRC-32"));
    assert!(String::from_utf8_lossy(&found.stderr).starts_with("error: 1 finding: "));
    let json: Value = serde_json::from_slice(&tallow(&["verify", out, "--json"], b"").stdout).unwrap();
    assert_eq!(json["findings"].as_array().unwrap().len(), 1);
    bytes[100] ^= 1;
    std::fs::write(&bin, &bytes).unwrap();

    // Out to another trainer's file, and back.
    let (ds, back) = (folder.path().join("x.ds"), folder.path().join("back"));
    let written = stdout(&["convert", out, "--to", "datatrove", "-o", text(&ds)], b"");
    assert_eq!(written.lines().count(), 3, "{written}");
    let read = ["convert", text(&ds), "--from", "datatrove", "-o", text(&back), "--tokenizer", "cl100k"];
    assert!(stdout(&read, b"").contains("10 229 tokens in 117 documents, 1 shard"));
    assert!(stdout(&["verify", text(&back)], b"").starts_with("all well"));
    let raw: Vec<u8> =
        (0..5).flat_map(|i| std::fs::read(Path::new(out).join(format!("train/00000{i}.bin"))).unwrap()).collect();
    assert!(std::fs::read(back.join("train/000000.bin")).unwrap() == raw);
}

#[test]
fn prepare_reads_standard_input_and_warns() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tokens");
    let printed =
        stdout(&["prepare", "-", "--out", text(&out), "--val", "0.5", "--format", "jsonl"], b"{\"text\":\"a\"}\n");
    let split = printed.lines().find(|line| line.contains(" 1 document,")).unwrap_or_default();
    let (name, rest) = split.split_at(split.len().min(11));
    assert_eq!(rest, "2 tokens in 1 document, 1 shard, 0.50 bytes of text a token", "{printed}");
    assert!(["train", "val"].contains(&name.trim()), "{printed}");
    let out = folder.path().join("one");
    let printed = stdout(&["prepare", "-", "--out", text(&out), "--val", "0.0001"], b"only one document");
    assert!(printed.contains("no document went to val: there is 1 in all, and --val is"), "{printed}");
    let out = folder.path().join("other");
    let printed = stdout(&["prepare", "-", "--out", text(&out), "--val", "1"], b"only one document");
    assert!(printed.contains("no document went to train: there is 1 in all, and --val is"), "{printed}");
    let printed = stdout(&["prepare", "-", "--out", text(&out), "--val", "1", "--json"], b"only one document");
    assert!(printed.contains("\"empty_splits\":[\"train\"]"), "{printed}");
    let out = folder.path().join("hyphens");
    let printed = stdout(&["prepare", "-", "--out", text(&out), "--split-at", "---"], b"a\n---\nb\n");
    assert!(printed.contains(" in 2 documents,"), "{printed}");
    // Ids without a separator are one document, and a note says so.
    let raw = folder.path().join("raw.bin");
    std::fs::write(&raw, [1, 0, 2, 0]).unwrap();
    let command = ["convert", text(&raw), "--from", "nanogpt", "--vocab-size", "300", "--out"];
    let said = |extra: &[&str], to: &str| {
        stdout(&[&command[..], &[text(&folder.path().join(to))], extra].concat(), b"").contains("--separator ID")
    };
    assert!(said(&[], "whole") && !said(&["--separator", "2"], "separated"));
}

#[test]
fn wrong_commands_say_what_to_do_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tokens");
    let out = text(&out);
    let (input, fresh) = (golden("corpus.jsonl"), folder.path().join("fresh"));
    let (input, fresh) = (text(&input), text(&fresh));
    for (args, expected) in [
        (vec!["prepare", "--out", out], "<INPUTS>"),
        (vec!["prepare", "nothing.txt", "--out", out], "nothing.txt: No such file"),
        (vec!["prepare", input, "--out", out, "--separator", "<|x|>"], "cl100k_base has no token \"<|x|>\""),
        (vec!["prepare", input, "--out", out, "--field", "body"], "line 1: no field \"body\", only id, text, meta"),
        (vec!["prepare", input, "--out", out, "--rank", "1"], "--world-size"),
        (vec!["prepare", input, "--out", input], "corpus.jsonl: this is not a folder"),
        (vec!["prepare", "*.none", "--out", fresh], "no file matches *.none: name files or folders"),
        (vec!["prepare", "--finish", "--dry-run", "--out", out], "cannot be used with"),
        (vec!["prepare", input, "--finish", "--val", "0.5", "--out", out], "cannot be used with"),
        (vec!["prepare", input, "--out", out, "--world-size", "4"], "without --rank"),
        (vec!["prepare", "--finish", "--out", folder.path().to_str().unwrap()], "has not begun here"),
        (vec!["inspect", "nowhere"], "nowhere: No such file"),
        (
            vec!["verify", "nowhere"],
            "nowhere/manifest.json: No such file: give a folder of shards that `tallow prepare` made",
        ),
        (
            vec!["convert", input, "-o", out],
            "give --from FORMAT (token files -> shards) or --to FORMAT (shards -> a token file)",
        ),
        (vec!["convert", input, "--from", "nanogpt", "-o", out], "give the tokenizer of these ids"),
        (vec!["convert", input, "--from", "llmc", "-o", fresh, "--vocab-size", "50257"], "not an llm.c file"),
    ] {
        let said = refusal(&args, b"");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    // `prepare` with another field began a folder; it says so.
    let said = refusal(&["prepare", input, "--out", out], b"");
    assert!(said.contains("begun with other settings or input: field (there \"body\", now \"text\")"), "{said}");
    let said = refusal(&["prepare", "--finish", "--out", out], b"");
    assert!(said.contains("unit 0 is not done: run the `tallow prepare` that began this folder again"), "{said}");
}

#[test]
fn a_finished_folder_is_nothing_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tokens");
    let input = golden("corpus.jsonl");
    let args = ["prepare", text(&input), "--out", text(&out)];
    let first = stdout(&args, b"");
    let again = tallow(&args, b"");
    assert_eq!(
        String::from_utf8(again.stderr).unwrap(),
        format!("note: {} is complete already: nothing was done\n", text(&out))
    );
    assert_eq!((again.status.code(), String::from_utf8(again.stdout).unwrap()), (Some(0), first));
    let finish = tallow(&["prepare", "--finish", "--out", text(&out)], b"");
    assert!(finish.status.success() && String::from_utf8(finish.stderr).unwrap().contains("nothing was done"));
    let other = refusal(&[&args[..], &["--val", "0.5"]].concat(), b"");
    assert!(other.contains("begun with other settings or input: val"), "{other}");
}
