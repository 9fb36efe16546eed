//! Files → shards, as a library call and as the binary.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tallow_text::prepare::{
    Format, OnError, PrepareConfig, Rank, SeparatorChoice, estimate, finish, launched_rank_from_env, prepare,
    rank_from_env,
};
use tallow_text::shard::{IdType, Io, Manifest, document, verify};
use tallow_text::{Error, Specials, Tokenizer};

use crate::support::{contents, golden, golden_json, text};

const SEPARATOR: u32 = 100_257;

fn config(inputs: &[&Path], out: &Path) -> PrepareConfig {
    let inputs = inputs.iter().map(|path| path.to_path_buf()).collect();
    PrepareConfig { inputs, out: out.to_path_buf(), ..Default::default() }
}

/// All ids of a split, in order.
pub fn ids(folder: &Path, split: &str) -> Vec<u32> {
    let manifest = Manifest::read(folder).unwrap();
    let mut all = Vec::new();
    for info in &manifest.splits[split].shards {
        let shard = manifest.open(folder, split, info, Io::Map).unwrap();
        let mut ids = vec![0; shard.tokens() as usize];
        shard.read(0, &mut ids).unwrap();
        all.extend(ids);
    }
    all
}

/// The documents of a split, without their separators.
fn documents(folder: &Path, split: &str) -> Vec<Vec<u32>> {
    let manifest = Manifest::read(folder).unwrap();
    let mut all = Vec::new();
    for (number, shard) in manifest.splits[split].shards.iter().enumerate() {
        for at in 0..shard.documents {
            let mut ids = document(folder, split, number, at, usize::MAX).unwrap();
            assert_eq!(ids.pop(), Some(SEPARATOR));
            all.push(ids);
        }
    }
    all
}

fn sha256(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut hash = Sha256::new();
    numbers.into_iter().for_each(|number| hash.update(number.to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn ids_are_tiktokens_however_the_corpus_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let jsonl = std::fs::read(golden("corpus.jsonl")).unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.jsonl"), &jsonl).unwrap();
    // Two members in one gzip file, as `cat a.gz b.gz` makes them.
    let cut = jsonl.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(40).unwrap().0 + 1;
    let mut gz = Vec::new();
    for part in [&jsonl[..cut], &jsonl[cut..]] {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(part).unwrap();
        gz.extend(encoder.finish().unwrap());
    }
    std::fs::write(path("b.jsonl.gz"), gz).unwrap();
    // Frames made by another program (zstd 1.5 through Python), two of them and a skippable one.
    std::fs::copy(golden("corpus.jsonl.zst"), path("c.jsonl.zst")).unwrap();
    // Text files, one a document; one folder.
    std::fs::create_dir_all(path("d/.hidden")).unwrap();
    std::fs::write(path("d/.hidden/x.txt"), "not me").unwrap();
    std::fs::write(path("d/manifest.json"), "nor me").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(path("d"), path("d/round")).unwrap();
    for (number, line) in jsonl.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let value: serde_json::Value = serde_json::from_slice(line).unwrap();
        let text = value["text"].as_str().unwrap();
        if !text.is_empty() {
            std::fs::write(path(&format!("d/{number:03}.txt")), text).unwrap();
        }
    }
    let expected = golden_json("corpus.json");
    let mut inputs = vec!["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d"];
    if cfg!(feature = "parquet") {
        std::fs::copy(golden("corpus.parquet"), path("e.parquet")).unwrap();
        // Compressed a second time.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&std::fs::read(golden("corpus.parquet")).unwrap()).unwrap();
        std::fs::write(path("f.parquet.gz"), encoder.finish().unwrap()).unwrap();
        inputs.extend(["e.parquet", "f.parquet.gz"]);
    }
    for name in inputs {
        for unit_bytes in [None, Some(1000)] {
            let out = tempfile::tempdir().unwrap();
            let cfg = PrepareConfig { unit_bytes, jobs: 2, ..config(&[&path(name)], out.path()) };
            let manifest = prepare(&Tokenizer::cl100k(), &cfg, &|_| ()).unwrap().unwrap();
            let train = &manifest.splits["train"];
            assert_eq!(train.tokens, expected["tokens"].as_u64().unwrap(), "{name}");
            assert_eq!(train.documents, expected["documents"].as_u64().unwrap(), "{name}");
            assert_eq!(sha256(ids(out.path(), "train")), expected["sha256"].as_str().unwrap(), "{name}");
            let lengths = documents(out.path(), "train").into_iter().map(|ids| ids.len() as u32 + 1);
            assert_eq!(sha256(lengths), expected["lengths_sha256"].as_str().unwrap(), "{name}");
            assert_eq!(verify(out.path(), &|_, _| ()).unwrap(), [""; 0], "{name}");
            assert_eq!(
                (manifest.table_rows, manifest.id_type, manifest.largest_id),
                (100_277, IdType::U32, Some(SEPARATOR))
            );
        }
    }
}

#[test]
fn a_document_that_is_cut_has_the_ids_of_the_whole() {
    let tokenizer = Tokenizer::cl100k();
    let folder = tempfile::tempdir().unwrap();
    let (input, long) = (folder.path().join("long.txt"), text(11, 60_000));
    std::fs::write(&input, &long).unwrap();
    let mut whole = tokenizer.encode(&long).unwrap();
    whole.push(SEPARATOR);
    for unit_bytes in [20_000, 300_000, 1 << 30] {
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { unit_bytes: Some(unit_bytes), ..config(&[&input], out.path()) };
        let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        let train = &manifest.splits["train"];
        assert_eq!((train.documents, train.text_bytes), (1, long.len() as u64));
        assert_eq!(train.shards.len() as u64 > 1, unit_bytes < long.len() as u64);
        assert!(train.shards.iter().skip(1).all(|shard| shard.continues) && !train.shards[0].continues);
        assert!(ids(out.path(), "train") == whole, "{unit_bytes}");
        // All of its parts go to one split.
        for seed in 0..4 {
            let out = tempfile::tempdir().unwrap();
            let cfg = PrepareConfig { val: 0.5, seed, unit_bytes: Some(unit_bytes), ..config(&[&input], out.path()) };
            let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
            let tokens = |split: &str| manifest.splits[split].tokens as usize;
            assert!([tokens("train"), tokens("val")].contains(&whole.len()), "seed {seed}: divided");
        }
        // It is one document for datatrove, too.
        use tallow_text::shard::{Foreign, export};
        let files = export(out.path(), "train", Foreign::Datatrove, IdType::U32, &folder.path().join("x.ds")).unwrap();
        assert_eq!(std::fs::read(&files[1]).unwrap(), (whole.len() as u64).to_le_bytes());
        assert_eq!(verify(out.path(), &|_, _| ()).unwrap(), [""; 0]);
    }
    // One document that cannot be cut: a line of 5 MB, and the same in a JSON line too long to hold.
    let line = "the table ".repeat(500_000);
    std::fs::write(&input, &line).unwrap();
    let json = folder.path().join("long.jsonl");
    let before = serde_json::json!({"id": 1, "meta": {"text": "no"}}).to_string();
    let content =
        format!("{}, \"text\": {}}}\n{{\"text\":\"b\"}}\n", &before[..before.len() - 1], serde_json::json!(line));
    std::fs::write(&json, content).unwrap();
    let expected = tokenizer.encode(&line).unwrap();
    for input in [&input, &json] {
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { unit_bytes: Some(100_000), ..config(&[input], out.path()) };
        prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        let found = documents(out.path(), "train");
        assert!(found[0] == expected, "{}", input.display());
        assert_eq!(found.len(), if input == &json { 2 } else { 1 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Documents between separator lines, against a split of the whole text.
    #[test]
    fn separator_lines_split_a_text(picks in prop::collection::vec(0usize..7, 0..40), unit_bytes in 1u64..60) {
        let parts = ["---\n", "---\r\n", "a line\n", "--- \n", "\n", "数字", "---"];
        let text: String = picks.iter().map(|i| parts[*i]).collect();
        prop_assume!(!text.is_empty());
        let mut expected = vec![String::new()];
        for line in text.split_inclusive('\n') {
            let content = line.strip_suffix('\n').unwrap_or(line);
            match content.strip_suffix('\r').unwrap_or(content) == "---" {
                true => expected.push(String::new()),
                false => *expected.last_mut().unwrap() += line,
            }
        }
        expected.retain(|document| !document.is_empty());
        prop_assume!(!expected.is_empty()); // a file of separators alone is an error
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("x.txt");
        std::fs::write(&input, &text).unwrap();
        let out = folder.path().join("out");
        let cfg = PrepareConfig { split_at: Some("---".into()), unit_bytes: Some(unit_bytes), ..config(&[&input], &out) };
        let tokenizer = Tokenizer::cl100k();
        prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        let found: Vec<String> = documents(&out, "train").iter().map(|ids| tokenizer.decode(ids).unwrap()).collect();
        prop_assert_eq!(found, expected);
    }
}

/// A text that was given as a stream is taken back where a later field of its name is the one that counts.
#[test]
fn of_equal_names_the_last_counts_at_any_length() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.jsonl");
    let long = "words and more of them ".repeat(20_000);
    let lines = [
        format!("{{\"text\":\"{long}\",\"text\":\"first\"}}"),
        format!("{{\"text\":\"no\",\"text\":\"{long}\"}}"),
        // What is wrong with a text that does not count is no error: half a surrogate pair, a special token.
        format!("{{\"text\":\"{long}\\ud83d\",\"text\":\"second\"}}"),
        format!("{{\"text\":\"{long}<|endoftext|>\",\"text\":\"{long}\",\"text\":\"third\"}}"),
        format!("{{\"text\":\"{long}\",\"text\":\"\"}}"),
        format!("{{\"text\":\"{long}\",\"pad\":\"{long}\",\"x\":{}1{}}}", "[".repeat(999), "]".repeat(999)),
    ];
    std::fs::write(&input, lines.join("\n")).unwrap();
    let tokenizer = Tokenizer::cl100k().with_specials(Specials::Forbid);
    let expected = ["first", &long, "second", "third", &long].map(|text| tokenizer.encode(text).unwrap());
    for seed in 0..4 {
        let out = folder.path().join(format!("out-{seed}"));
        let cfg = PrepareConfig { val: 0.5, seed, ..config(&[&input], &out) };
        let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        let mut found = [documents(&out, "train"), documents(&out, "val")].concat();
        found.sort();
        let mut expected = expected.to_vec();
        expected.sort();
        assert!(found == expected, "seed {seed}");
        let bytes: u64 = manifest.splits.values().map(|split| split.text_bytes).sum();
        assert_eq!(bytes as usize, "firstsecondthird".len() + 2 * long.len());
        assert_eq!(verify(&out, &|_, _| ()).unwrap(), [""; 0]);
    }
    // A file whose only text was taken back has none; a depth that no stack holds is an error at any length.
    let deep = |pad: &str, depth| {
        format!("{{\"pad\":\"{pad}\",\"x\":{}{},\"text\":\"a\"}}", "[".repeat(depth), "]".repeat(depth))
    };
    for (line, reason) in [
        (format!("{{\"text\":\"{long}\",\"text\":\"\"}}"), "there is no text in it"),
        (format!("{{\"text\":\"{long}<|endoftext|>\"}}"), "endoftext"),
        (deep("", 1000), "more than 1000 nested objects or arrays"),
        (deep(&long, 1000), "more than 1000 nested objects or arrays"),
        (deep("", 1_000_000), "more than 1000 nested objects or arrays"),
        (format!("{{\"text\":\"{long}\",\"x\":1}} 2"), "something after the object"),
    ] {
        std::fs::write(&input, line).unwrap();
        let out = tempfile::tempdir().unwrap();
        let error = prepare(&tokenizer, &config(&[&input], out.path()), &|_| ()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}, not {reason}");
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { on_error: OnError::Skip, ..config(&[&input], out.path()) };
        let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        assert_eq!((manifest.skipped.count, manifest.splits["train"].tokens), (1, 0), "{reason}");
        assert_eq!(manifest.splits["train"].text_bytes, 0, "{reason}");
    }
}

/// A byte order mark at the head of a file of JSON lines belongs to no line; in a text it is text, as tiktoken has it.
#[test]
fn a_byte_order_mark_at_the_head_of_json_lines_is_passed_over() {
    let tokenizer = Tokenizer::cl100k();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let long = "word ".repeat(60_000);
    let marked = |text: &str| format!("\u{FEFF}{text}");
    let line = |text: &str| format!("{{\"text\":\"{text}\"}}\n");
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(marked(&line("a")).as_bytes()).unwrap();
    std::fs::write(path("gz.jsonl.gz"), gz.finish().unwrap()).unwrap();
    std::fs::write(path("short.jsonl"), marked(&(line("a") + &line("\u{FEFF}b")))).unwrap();
    std::fs::write(path("long.jsonl"), marked(&line(&long))).unwrap();
    std::fs::write(path("blank.jsonl"), marked(&format!("\n{}", line("a")))).unwrap();
    std::fs::write(path("text.txt"), marked("a")).unwrap();
    for (name, expected) in [
        ("gz.jsonl.gz", vec!["a"]),
        ("short.jsonl", vec!["a", "\u{FEFF}b"]),
        ("long.jsonl", vec![&long]),
        ("blank.jsonl", vec!["a"]),
        ("text.txt", vec!["\u{FEFF}a"]),
    ] {
        let fifth = std::fs::metadata(path(name)).unwrap().len() / 5 + 1;
        for unit_bytes in [None, Some(fifth)] {
            let out = tempfile::tempdir().unwrap();
            let cfg = PrepareConfig { unit_bytes, ..config(&[&path(name)], out.path()) };
            prepare(&tokenizer, &cfg, &|_| ()).unwrap();
            let found: Vec<String> =
                documents(out.path(), "train").iter().map(|ids| tokenizer.decode(ids).unwrap()).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
    // Anywhere else it is no JSON, as for Python.
    std::fs::write(path("short.jsonl"), line("a") + &marked(&line("b"))).unwrap();
    let error = prepare(&tokenizer, &config(&[&path("short.jsonl")], &path("out")), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("line 2: broken JSON at byte 0"), "{error}");
}

/// Patterns find what they found through the crate `glob`'s own walk, and names that are no UTF-8 are in nobody's way.
#[cfg(target_os = "linux")]
#[test]
fn patterns_find_files_beside_names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("g");
    for inner in ["a/b/c", "a/d", "e", ".h", "a/.h"] {
        std::fs::create_dir_all(base.join(inner)).unwrap();
    }
    let files =
        ["x.txt", "y.txt", "y.TXT", ".z.txt", "a.txt", "[1].txt", "a/x.txt", "a/b/x.txt", "a/b/c/y.txt", "a/d/x.md"];
    for name in files.iter().chain(&["e/x.txt", "e/數.txt", ".h/x.txt", "a/.h/x.txt", "no.bin"]) {
        std::fs::write(base.join(name), "a").unwrap();
    }
    let found = |pattern: &str| -> Result<Vec<String>, String> {
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { jobs: 1, ..config(&[&base.join(pattern)], &out.path().join("out")) };
        prepare(&Tokenizer::cl100k(), &cfg, &|_| ()).map_err(|error| error.to_string())?;
        let plan: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.path().join("out/plan.json")).unwrap()).unwrap();
        let paths = plan["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap());
        Ok(paths.map(|path| path.strip_prefix(&format!("{}/", base.display())).unwrap_or(path).to_string()).collect())
    };
    let patterns = [
        "*.txt",
        "?.txt",
        "[xy].txt",
        "[!x].txt",
        "[[]1].txt",
        "*",
        "*/*.txt",
        "**/*.txt",
        "**/x.txt",
        "a/**/*",
        "**",
        "*/b/*.txt",
        "a/b/../b/*.txt",
        "./*.txt",
        "a/./b/*.txt",
        "a*/",
        "*/",
        "**/b/**/*.txt",
        "e/數*",
        "[a-e]/*/?.txt",
    ];
    let others = |pattern: &str| -> Vec<String> {
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
        let paths = glob::glob_with(&format!("{}/{pattern}", base.display()), options).unwrap();
        let paths = paths.map(|path| path.unwrap()).filter(|path| path.is_file());
        paths
            .map(|path| path.to_str().unwrap().strip_prefix(&format!("{}/", base.display())).unwrap().to_string())
            .collect()
    };
    let mut before = Vec::new();
    for pattern in patterns {
        let files = found(pattern).unwrap();
        let theirs = others(pattern);
        let named: Vec<&String> = files.iter().filter(|file| theirs.contains(file)).collect();
        // Folders that match are walked: there are more files then.
        assert!(theirs.iter().all(|file| files.contains(file)), "{pattern}: {files:?}, not {theirs:?}");
        if !["*", "a/**/*", "**", "a*/", "*/"].contains(&pattern) {
            assert_eq!(named, theirs.iter().collect::<Vec<_>>(), "{pattern}");
            assert_eq!(files.len(), theirs.len(), "{pattern}");
        }
        before.push(files);
    }
    assert!(found("*.csv").unwrap_err().contains("no file matches"));
    assert!(found("[x").unwrap_err().contains("is not a pattern"));
    assert_eq!(found(".z*").unwrap(), [".z.txt"], "a dot that is written down finds hidden files");
    // Beside names that no pattern matches, they find the same.
    let strange = |bytes: &[u8]| base.join(std::ffi::OsStr::from_bytes(bytes));
    std::fs::write(strange(b"\xff.bin"), "a").unwrap();
    std::fs::create_dir(strange(b"\xfe")).unwrap();
    std::fs::write(strange(b"a/b/\xff"), "a").unwrap();
    for (pattern, before) in patterns.iter().zip(&before) {
        if !["*", "**", "a/**/*", "**/*"].contains(pattern) {
            assert_eq!(&found(pattern).unwrap(), before, "{pattern}");
        }
    }
    // One that matches is named.
    std::fs::write(strange(b"e/\xffnew.txt"), "a").unwrap();
    for pattern in ["e/*.txt", "**/*new*", "e/?new.txt"] {
        let error = found(pattern).unwrap_err();
        assert!(error.contains("\u{FFFD}new.txt is not UTF-8: rename it"), "{error}");
    }
    assert_eq!(found("e/x*").unwrap(), ["e/x.txt"]);
}

/// A run replaces and removes its own files: no input has the name of one.
#[test]
fn an_input_among_the_files_of_the_run_is_refused() {
    for name in ["train/000000.bin", "val/x", "units/000000.json", ".tmp-abc", "manifest.json", "sub/../train/y"] {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join(name);
        ["train", "val", "units", "sub"].iter().for_each(|sub| std::fs::create_dir(folder.path().join(sub)).unwrap());
        std::fs::write(&input, "hello there").unwrap();
        let cfg = PrepareConfig { format: Some(Format::Text), ..config(&[&input], folder.path()) };
        let error = prepare(&Tokenizer::cl100k(), &cfg, &|_| ()).unwrap_err().to_string();
        assert!(error.contains("writes its own files"), "{name}: {error}");
        assert_eq!(std::fs::read(&input).unwrap(), b"hello there");
    }
    // Beside them it may lie.
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.txt");
    std::fs::write(&input, "hello there").unwrap();
    prepare(&Tokenizer::cl100k(), &config(&[&input], folder.path()), &|_| ()).unwrap().unwrap();
    assert_eq!(std::fs::read(&input).unwrap(), b"hello there");
}

#[test]
fn too_many_units_are_refused_before_they_take_memory() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.jsonl");
    let file = std::fs::File::create(&input).unwrap();
    let out = folder.path().join("out");
    let cfg = PrepareConfig { unit_bytes: Some(1), ..config(&[&input], &out) };
    // A file of holes: nothing of it is read.
    for bytes in [1_000_100, 1 << 42] {
        file.set_len(bytes).unwrap();
        let error = prepare(&Tokenizer::cl100k(), &cfg, &|_| ()).unwrap_err().to_string();
        let least = bytes / 1_000_000 + 1;
        assert!(error.contains(&format!("makes {bytes} units of 1 bytes")), "{error}");
        assert!(error.contains(&format!("raise unit_bytes to about {least}")), "{error}");
        assert!(!out.exists());
    }
}

/// A plan, or the word that a unit is done, that is a pipe does not stop a run for ever.
#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_plan_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.txt");
    std::fs::write(&input, "a").unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    pipe("a/plan.json");
    let error = prepare(&Tokenizer::cl100k(), &config(&[&input], &folder.path().join("a")), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("plan.json: it is not a regular file"), "{error}");
    let error = finish(&folder.path().join("a")).unwrap_err();
    assert!(error.to_string().contains("plan.json: it is not a regular file"), "{error}");
    // The unit is made again.
    pipe("b/units/000000.json");
    prepare(&Tokenizer::cl100k(), &config(&[&input], &folder.path().join("b")), &|_| ()).unwrap().unwrap();
    assert_eq!(ids(&folder.path().join("b"), "train"), [64, SEPARATOR]);
}

#[test]
fn the_split_is_stable_and_of_the_right_size() {
    let folder = tempfile::tempdir().unwrap();
    let line = |i: usize| format!("{{\"text\":\"document number {i}\"}}\n");
    let (old, new) = (folder.path().join("b.jsonl"), folder.path().join("a.jsonl"));
    std::fs::write(&old, (0..4000).map(line).collect::<String>()).unwrap();
    std::fs::write(&new, (3900..5000).map(line).collect::<String>()).unwrap();
    let tokenizer = Tokenizer::cl100k();
    let run = |inputs: &[&Path], seed: u64, unit_bytes| {
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { val: 0.1, seed, unit_bytes: Some(unit_bytes), ..config(inputs, out.path()) };
        prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        let texts = |split| documents(out.path(), split).iter().map(|ids| tokenizer.decode(ids).unwrap()).collect();
        let (train, val): (Vec<String>, Vec<String>) = (texts("train"), texts("val"));
        (train, val)
    };
    let (train, val) = run(&[&old], 1, 1 << 20);
    assert_eq!(train.len() + val.len(), 4000);
    assert!((320..480).contains(&val.len()), "{}", val.len()); // 400, four standard deviations
    let (_, more) = run(&[&new, &old], 1, 5000);
    assert!(val.iter().all(|document| more.contains(document)), "an old document moved");
    assert!(more.iter().all(|document| !train.contains(document)), "an old document moved, or a copy was divided");
    assert_ne!(run(&[&old], 2, 1 << 20).1, val);
}

#[test]
fn separators_are_chosen_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.txt");
    std::fs::write(&input, "a<|endoftext|>b").unwrap();
    let tokenizer = Tokenizer::cl100k();
    let run = |separator, tokenizer: &Tokenizer| {
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { separator, ..config(&[&input], out.path()) };
        prepare(tokenizer, &cfg, &|_| ()).map(|manifest| (ids(out.path(), "train"), manifest.unwrap().separator))
    };
    let text = tokenizer.encode("a<|endoftext|>b").unwrap();
    assert!(!text.contains(&SEPARATOR), "text never becomes a separator");
    assert_eq!(run(SeparatorChoice::None, &tokenizer).unwrap(), (text.clone(), None));
    let (ids, separator) = run(SeparatorChoice::Token("<|fim_prefix|>".into()), &tokenizer).unwrap();
    assert_eq!((ids, separator.unwrap().id), ([text, vec![100_258]].concat(), 100_258));
    let unigram = Tokenizer::from_file(golden("unigram.json")).unwrap();
    let error = run(SeparatorChoice::EndOfText, &unigram).unwrap_err().to_string();
    assert!(
        error.contains("unigram has no token \"<|endoftext|>\"")
            && error.contains("one of <unk> <s> (`SeparatorChoice::Token`)"),
        "{error}"
    );
    // A small vocabulary is written as u16.
    let byte_level = Tokenizer::from_file(golden("byte_level.json")).unwrap();
    let out = folder.path().join("u16");
    let manifest = prepare(&byte_level, &config(&[&input], &out), &|_| ()).unwrap().unwrap();
    assert_eq!(manifest.id_type, IdType::U16);
    assert_eq!(self::ids(&out, "train"), [byte_level.encode("a<|endoftext|>b").unwrap(), vec![0]].concat());
    assert_eq!(verify(&out, &|_, _| ()).unwrap(), [""; 0]);
}

#[test]
fn bad_input_is_named_skipped_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let good = "{\"text\":\"good\"}\n";
    let jsonl = |bad: &[u8]| [good.as_bytes(), bad, b"\n", good.as_bytes()].concat();
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(good.repeat(3000).as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    let zst = std::fs::read(golden("corpus.jsonl.zst")).unwrap();
    let mut damaged = zst.clone();
    let middle = damaged.len() / 3;
    damaged[middle] ^= 0x55;
    let long = 9 << 20;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("utf8.txt", b"abc\xFFdef".to_vec(), "utf8.txt: invalid UTF-8 at byte 3 of the document"),
        ("empty.txt", Vec::new(), "empty.txt: the file is empty"),
        ("empty.jsonl", Vec::new(), "empty.jsonl: the file is empty"),
        ("empty.txt.gz", GzEncoder::new(Vec::new(), Compression::fast()).finish().unwrap(), "there is no text in it"),
        (
            "tail.jsonl",
            jsonl(format!("{{\"text\":\"{}\"", "a".repeat(long)).as_bytes()),
            "tail.jsonl: line 2: broken JSON",
        ),
        (
            "after2.jsonl",
            jsonl(format!("{{\"text\":\"{}\"}} x", "a".repeat(long)).as_bytes()),
            "after2.jsonl: line 2: broken JSON",
        ),
        ("utf8.jsonl", jsonl(b"{\"text\":\"\xE6\xB2\"}"), "utf8.jsonl: line 2: invalid UTF-8 at byte 9 of the line"),
        ("broken.jsonl", jsonl(b"{\"text\":\"a"), "broken.jsonl: line 2: broken JSON at byte 10 of the line"),
        ("array.jsonl", jsonl(b"[1]"), "array.jsonl: line 2: broken JSON at byte 0 of the line: not an object"),
        ("after.jsonl", jsonl(b"{\"text\":\"a\"} x"), "after.jsonl: line 2: broken JSON"),
        ("field.jsonl", jsonl(b"{\"txt\":\"a\",\"id\":1}"), "line 2: no field \"text\", only txt, id"),
        ("type.jsonl", jsonl(b"{\"text\":[\"a\"]}"), "type.jsonl: line 2: field \"text\" is not a string"),
        ("surrogate.jsonl", jsonl(b"{\"text\":\"\\ud800\"}"), "has half of a surrogate pair"),
        ("torn.jsonl.gz", gz[..gz.len() - 30].to_vec(), "torn.jsonl.gz: the compressed file is truncated"),
        ("no.jsonl.gz", good.as_bytes().to_vec(), "no.jsonl.gz: invalid gzip header"),
        ("torn.jsonl.zst", zst[..zst.len() / 2].to_vec(), "torn.jsonl.zst: zstd: broken or truncated"),
        ("damaged.jsonl.zst", damaged, "damaged.jsonl.zst: "),
        ("no.jsonl.zst", good.as_bytes().to_vec(), "no.jsonl.zst: zstd: "),
        ("torn.txt.gz", gz[..gz.len() - 30].to_vec(), "torn.txt.gz: the compressed file is truncated"),
        (
            "long.jsonl",
            jsonl(format!("{{\"text\":\"{}", "a".repeat(long)).as_bytes()),
            "long.jsonl: line 2: broken JSON at byte 9437193 of the line: a string has no end",
        ),
        (
            "longtype.jsonl",
            jsonl(format!("{{\"x\":\"{}\",\"text\":3}}", "a".repeat(long)).as_bytes()),
            "is not a string",
        ),
        (
            "longfield.jsonl",
            jsonl(format!("{{\"x\":\"{}\"}}", "a".repeat(long)).as_bytes()),
            "no field \"text\", only x",
        ),
        ("longutf8.txt", [&b"a".repeat(long)[..], b"\xFF"].concat(), "invalid UTF-8 at byte 9437184 of the document"),
        ("deep.jsonl", jsonl(format!("{{\"x\":{}", "[".repeat(100_000)).as_bytes()), "deep.jsonl: line 2: broken JSON"),
    ];
    let tokenizer = Tokenizer::cl100k();
    for (name, bytes, expected) in cases {
        std::fs::write(path(name), bytes).unwrap();
        let out = tempfile::tempdir().unwrap();
        let cfg = config(&[&path(name)], out.path());
        match prepare(&tokenizer, &cfg, &|_| ()).unwrap_err() {
            Error::Document { place, reason, .. } => {
                let message = format!("{place}: {reason}");
                assert!(message.contains(expected), "{message}, not {expected}");
            }
            other => panic!("{name}: {other}"),
        }
        assert!(!out.path().join("manifest.json").exists());
        // Left out, it is counted, and the rest is there.
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { on_error: OnError::Skip, ..config(&[&path(name)], out.path()) };
        let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        assert_eq!((manifest.skipped.count, manifest.skipped.reasons.len()), (1, 1), "{name}: {:?}", manifest.skipped);
        assert!(manifest.skipped.reasons[0].contains(expected), "{:?}", manifest.skipped);
        if name.ends_with(".jsonl") && !name.starts_with("empty") {
            assert_eq!(ids(out.path(), "train"), [19045, SEPARATOR, 19045, SEPARATOR], "{name}");
        }
        assert_eq!(verify(out.path(), &|_, _| ()).unwrap(), [""; 0], "{name}");
    }
    // A document that would be cut is left out as a whole, wherever the bad byte is.
    for at in [100, 300_000] {
        let mut bytes = text(5, 20_000).into_bytes();
        bytes[at] = 0xFF;
        std::fs::write(path("cut.txt"), bytes).unwrap();
        let out = tempfile::tempdir().unwrap();
        let inputs = config(&[&path("cut.txt"), &path("after.jsonl")], out.path());
        let cfg = PrepareConfig { on_error: OnError::Skip, unit_bytes: Some(50_000), ..inputs };
        let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        assert_eq!((manifest.skipped.count, manifest.splits["train"].tokens), (2, 4), "byte {at}");
        assert_eq!(verify(out.path(), &|_, _| ()).unwrap(), [""; 0]);
    }
    // Replaced in a line too long to hold, characters cut anywhere by reads.
    let line =
        [b"{\"text\":\"".to_vec(), "数\u{1F600}a".repeat(500_000).into_bytes(), b"\xE6\xFFz\"}\n".to_vec()].concat();
    std::fs::write(path("longbad.jsonl"), &line).unwrap();
    let out = tempfile::tempdir().unwrap();
    let cfg = PrepareConfig { on_error: OnError::Replace, ..config(&[&path("longbad.jsonl")], out.path()) };
    prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
    let expected = "数\u{1F600}a".repeat(500_000) + "\u{FFFD}\u{FFFD}z";
    assert!(documents(out.path(), "train")[0] == tokenizer.encode(&expected).unwrap());
    // Replaced, bytes are read as U+FFFD.
    for (name, document) in [("utf8.txt", "abc\u{FFFD}def"), ("utf8.jsonl", "\u{FFFD}")] {
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { on_error: OnError::Replace, ..config(&[&path(name)], out.path()) };
        prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        let expected = tokenizer.encode(document).unwrap();
        assert!(documents(out.path(), "train").contains(&expected), "{name}");
    }
    let out = tempfile::tempdir().unwrap();
    let cfg = PrepareConfig { on_error: OnError::Replace, ..config(&[&path("broken.jsonl")], out.path()) };
    assert!(matches!(prepare(&tokenizer, &cfg, &|_| ()), Err(Error::Document { .. })), "broken JSON is not replaced");
}

#[test]
fn folders_are_not_mixed_up() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.jsonl");
    std::fs::write(&input, "{\"text\":\"a\"}\n").unwrap();
    let out = folder.path().join("out");
    let tokenizer = Tokenizer::cl100k();
    let cfg = config(&[&input], &out);
    let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
    let before = contents(&out);
    // The same again gives the same manifest and does no work, for one process as for several.
    for world_size in [1, 3] {
        let cfg = PrepareConfig { rank: Rank { rank: 0, world_size }, ..cfg.clone() };
        let again = prepare(&tokenizer, &cfg, &|event| panic!("{event:?}")).unwrap().unwrap();
        assert!(again == manifest && contents(&out) == before);
    }
    let refused = |tokenizer: &Tokenizer, cfg: &PrepareConfig, expected: &str| {
        let error = prepare(tokenizer, cfg, &|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(
        &tokenizer,
        &PrepareConfig { val: 0.5, ..cfg.clone() },
        "begun with other settings or input: val (there 0.0, now 0.5)",
    );
    refused(&Tokenizer::from_file(golden("byte_level.json")).unwrap(), &cfg, "tokenizer");
    std::fs::write(&input, "{\"text\":\"ab\"}\n").unwrap();
    refused(&tokenizer, &cfg, "begun with other settings or input: files");
    assert!(contents(&out) == before, "nothing was touched");
    // Values that make no sense.
    let nothing = folder.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    std::fs::write(nothing.join("a.bin"), "x").unwrap();
    for (cfg, expected) in [
        (config(&[], &out), "no file"),
        (config(&[&folder.path().join("none.txt")], &out), "none.txt: "),
        (config(&[&folder.path().join("*.none")], &out), "no file matches"),
        (config(&[&nothing], &out), "none of the 1 files ends in"),
        (PrepareConfig { val: 1.5, ..cfg.clone() }, "1.5"),
        (PrepareConfig { val: f64::NAN, ..cfg.clone() }, "NaN"),
        (PrepareConfig { unit_bytes: Some(0), ..cfg.clone() }, "units of 0 bytes"),
        (PrepareConfig { rank: Rank { rank: 2, world_size: 2 }, ..cfg.clone() }, "rank 2 of 2"),
        (PrepareConfig { rank: Rank { rank: 0, world_size: 2 }, ..config(&[Path::new("-")], &out) }, "standard input"),
    ] {
        refused(&tokenizer, &cfg, expected);
    }
    let parquet = PrepareConfig { format: Some(Format::Parquet), ..config(&[&input], &folder.path().join("p")) };
    if cfg!(feature = "parquet") {
        assert!(matches!(prepare(&tokenizer, &parquet, &|_| ()), Err(Error::Document { .. })));
    } else {
        refused(&tokenizer, &parquet, "needs the feature `parquet`");
    }
    assert!(finish(&nothing).unwrap_err().to_string().contains("has not begun here"));
}

#[test]
fn schedulers_say_which_rank_this_is() {
    let from = |set: &[(&str, &str)], world_size| {
        let set: BTreeMap<String, String> = set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        rank_from_env(|name| set.get(name).cloned(), world_size)
    };
    let is = |rank, world_size, name| Ok(Some((Rank { rank, world_size }, name)));
    assert_eq!(from(&[("RANK", "1"), ("WORLD_SIZE", "4")], None), is(1, 4, "torchrun"));
    assert_eq!(from(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")], None), is(0, 2, "OpenMPI"));
    assert_eq!(from(&[("PMI_RANK", "2"), ("PMI_SIZE", "3")], None), is(2, 3, "PMI"));
    let array = [("SLURM_ARRAY_TASK_ID", "12"), ("SLURM_ARRAY_TASK_COUNT", "4"), ("SLURM_ARRAY_TASK_MIN", "10")];
    assert_eq!(from(&array, None), is(2, 4, "a SLURM job array"));
    // A job array of single tasks: the task's own rank says nothing.
    let both = [&array[..], &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]].concat();
    assert_eq!(from(&both, None), is(2, 4, "a SLURM job array"));
    // A batch script is one process, however many tasks its job may start.
    assert_eq!(from(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "3")], None), Ok(None));
    assert_eq!(from(&[("JOB_COMPLETION_INDEX", "3")], Some(8)), is(3, 8, "a Kubernetes indexed job"));
    // What the user says decides which scheduler is meant.
    assert_eq!(from(&both, Some(4)), is(2, 4, "a SLURM job array"));
    let torch = [("RANK", "0"), ("WORLD_SIZE", "1"), ("JOB_COMPLETION_INDEX", "3")];
    assert_eq!(from(&torch, Some(8)), is(3, 8, "a Kubernetes indexed job"));
    assert!(from(&[("JOB_COMPLETION_INDEX", "3")], None).unwrap_err().contains("(`world_size`)"));
    assert!(from(&[("RANK", "x"), ("WORLD_SIZE", "4")], None).unwrap_err().contains("RANK=x"));
    assert!(from(&[("RANK", "4"), ("WORLD_SIZE", "4")], None).unwrap_err().contains("not one of 4"));
    assert_eq!(from(&[("RANK", "0"), ("WORLD_SIZE", "1")], None), Ok(None));
}

#[test]
fn launchers_say_which_gpu_is_meant() {
    let from = |set: &[(&str, &str)]| {
        let set: BTreeMap<String, String> = set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        launched_rank_from_env(|name| set.get(name).cloned())
    };
    for [rank, size, local] in [
        ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
        ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
        ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
    ] {
        assert_eq!(from(&[(rank, "5"), (size, "8"), (local, "1")]), Ok(Some((Rank { rank: 5, world_size: 8 }, 1))));
        assert_eq!(from(&[(rank, "0"), (size, "1"), (local, "0")]), Ok(None));
        assert!(from(&[(rank, "5"), (size, "8")]).unwrap_err().contains(local));
        assert!(from(&[(rank, "8"), (size, "8"), (local, "1")]).unwrap_err().contains("not one of 8"));
    }
    // torchrun started one process, in an allocation of eight tasks.
    let one =
        [("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "8")];
    assert_eq!(from(&one), Ok(None));
    // No task of a job array waits for another.
    let array = [("SLURM_ARRAY_TASK_ID", "12"), ("SLURM_ARRAY_TASK_COUNT", "4"), ("SLURM_ARRAY_TASK_MIN", "10")];
    assert_eq!(from(&array), Ok(None));
    assert_eq!(from(&[("JOB_COMPLETION_INDEX", "3")]), Ok(None));
}

#[test]
fn an_estimate_is_near() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.txt");
    std::fs::write(&input, text(3, 40_000)).unwrap();
    let out = folder.path().join("out");
    let cfg = PrepareConfig { unit_bytes: Some(100_000), ..config(&[&input], &out) };
    let estimate = estimate(&Tokenizer::cl100k(), &cfg).unwrap();
    assert!(!out.exists());
    let tokens = prepare(&Tokenizer::cl100k(), &cfg, &|_| ()).unwrap().unwrap().splits["train"].tokens;
    let ratio = estimate.tokens as f64 / tokens as f64;
    assert!((0.9..1.1).contains(&ratio), "{estimate:?}, really {tokens}");
}

#[cfg(feature = "parquet")]
#[test]
fn a_torn_or_hostile_parquet_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.parquet");
    let whole = std::fs::read(golden("corpus.parquet")).unwrap();
    let tokenizer = Tokenizer::cl100k();
    let run = |bytes: &[u8], on_error, field: &str| {
        std::fs::write(&input, bytes).unwrap();
        let out = tempfile::tempdir().unwrap();
        let cfg = PrepareConfig { on_error, field: field.to_string(), jobs: 1, ..config(&[&input], out.path()) };
        prepare(&tokenizer, &cfg, &|_| ()).map(|manifest| manifest.unwrap())
    };
    for (bytes, field, expected) in [
        (&whole[..whole.len() - 9], "text", "x.parquet: Parquet: "),
        (&whole[..100], "text", "x.parquet: Parquet: "),
        (&b"PAR1"[..], "text", "x.parquet: Parquet: "),
        (&whole[..], "body", "no column \"body\", only id, text"),
        (&whole[..], "id", "is not a column of text"),
    ] {
        let error = run(bytes, OnError::Error, field).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Any byte of the file may be wrong: what comes is an error, or fewer or other documents, never a panic.
    let mut rng = crate::support::Lcg(31);
    for at in (0..whole.len()).step_by(29).chain(whole.len() - 200..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << rng.below(8);
        if let Err(error) = run(&bytes, OnError::Skip, "text") {
            panic!("byte {at}: {error}");
        }
    }
}
