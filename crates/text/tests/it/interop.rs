//! Other trainers' readers and writers, as small numpy programs in tests/interop.
//!
//! Tests that need more than Rust are ignored, and named after what they need (`needs_python_…`, `needs_chromium_…`,
//! `needs_root_…`, `needs_corpora_…`), so that none passes without running. Who has it asks for them by name, as .ci/needs does:
//! `cargo test --features full --test it -- --ignored needs_python`. What is missing then is a failure.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tallow_text::shard::{Foreign, ForeignFile, IdType, Io, export, import, verify};

use crate::support::{python, run};

#[test]
#[ignore = "needs Python with numpy"]
fn needs_python_other_trainers_read_tiktokens_ids_from_our_files() {
    use tallow_text::prepare::{PrepareConfig, prepare};
    let python = python("numpy");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tokens");
    let cfg =
        PrepareConfig { inputs: vec![crate::support::golden("corpus.jsonl")], out: out.clone(), ..Default::default() };
    prepare(&tallow_text::Tokenizer::cl100k(), &cfg, &|_| ()).unwrap().unwrap();
    let golden = crate::support::golden_json("corpus.json");
    let read = |format: &str, file: &Path, documents: bool| {
        let found = run(&python, "read.py", &[Path::new(format), file]);
        assert_eq!((&found["tokens"], &found["sha256"]), (&golden["tokens"], &golden["sha256"]), "{format}");
        if documents {
            assert_eq!(found["lengths_sha256"], golden["lengths_sha256"], "{format}");
        }
    };
    let bin = out.join("train/000000.bin");
    read("megatron", &bin, true);
    read("nanogpt-u32", &bin, false); // the same bytes
    let npy = folder.path().join("part-0.npy");
    std::fs::copy(&bin, &npy).unwrap(); // the same bytes, under OLMo's name
    read("olmo", &npy, true);
    let to =
        |name: &str, format| export(&out, "train", format, IdType::U32, &folder.path().join(name)).unwrap().remove(0);
    read("nanogpt-u32", &to("train.bin", Foreign::NanoGpt), false);
    read("llmc", &to("llmc.bin", Foreign::LlmC), true);
    read("olmo", &to("olmo.npy", Foreign::Olmo), true);
    read("datatrove-u32", &to("x.ds", Foreign::Datatrove), true);
}

#[test]
#[ignore = "needs Python with numpy"]
fn needs_python_we_read_what_other_trainers_write() {
    let python = python("numpy");
    let folder = tempfile::tempdir().unwrap();
    let about = run(&python, "write.py", &[folder.path()]);
    let cases: [(&str, Foreign, IdType, Option<u32>); 6] = [
        ("nanogpt.bin", Foreign::NanoGpt, IdType::U16, Some(50_256)),
        ("llama2c.bin", Foreign::Llama2C, IdType::U16, Some(1)),
        ("olmo.npy", Foreign::Olmo, IdType::U32, Some(100_257)),
        ("llmc16.bin", Foreign::LlmC, IdType::U32, Some(50_256)), // the header says u16
        ("llmc32.bin", Foreign::LlmC, IdType::U16, Some(50_256)), // the header says u32
        ("datatrove.ds", Foreign::Datatrove, IdType::U16, None),
    ];
    for (name, format, id_type, separator) in cases {
        let out = folder.path().join(format!("{name}.tokens"));
        let table_rows = if name == "olmo.npy" { 100_278 } else { 50_257 };
        let file = ForeignFile { format, id_type, separator, table_rows, tokenizer: None };
        let files: Vec<PathBuf> = vec![folder.path().join(name)];
        let manifest = import(&files, &file, "train", &out).unwrap();
        let train = &manifest.splits["train"];
        assert_eq!(train.tokens, about[name]["tokens"].as_u64().unwrap(), "{name}");
        let mut ids = vec![0; train.tokens as usize];
        let shard = manifest.open(&out, "train", &train.shards[0], Io::Map).unwrap();
        shard.read(0, &mut ids).unwrap();
        let mut hash = Sha256::new();
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, about[name]["sha256"].as_str().unwrap(), "{name}");
        // llama2.c's random ids hold its BOS (1), too: there the documents are more.
        let lengths = about[name]["lengths"].as_array().unwrap();
        if name != "llama2c.bin" {
            assert_eq!(train.documents as usize, lengths.len(), "{name}");
            for (number, length) in lengths.iter().enumerate() {
                let ids = tallow_text::shard::document(&out, "train", 0, number as u64, usize::MAX).unwrap();
                assert_eq!(ids.len() as u64, length.as_u64().unwrap(), "{name}");
            }
        }
        assert_eq!(verify(&out, &|_, _| ()).unwrap(), [""; 0], "{name}");
    }
}

/// Lines that are odd, `@` in them for something long: by hand, and put together by chance.
fn odd_lines() -> Vec<Vec<u8>> {
    let hand = [
        // Of equal names the last one counts, whatever it is.
        r#"{"text":"a@","text":"b"}"#,
        r#"{"text":"a","text":"b@"}"#,
        r#"{"text":"a@","text":"b@","text":"c@"}"#,
        r#"{"text":"a@","text":5}"#,
        r#"{"text":5,"text":"a@"}"#,
        r#"{"text":"a@","text":null}"#,
        r#"{"text":"a@","text":""}"#,
        r#"{"text":["a@"],"text":{"text":"no"},"text":"yes"}"#,
        r#"{"text":"a@","\u0074ext":"escaped name"}"#,
        r#"{"\u0074e\u0078t":"a@"}"#,
        r#"{"text":"a@","text\ud800":"no","\udc00":1,"text\u0000":2}"#,
        r#"{"":"empty name","text":"a@","":2}"#,
        r#"{"text":"a@","x":1,"x":[2]}"#,
        // Surrogates.
        r#"{"text":"a@\ud83d\ude00b"}"#,
        r#"{"text":"a@\ud83d"}"#,
        r#"{"text":"\ude00a@"}"#,
        r#"{"text":"\ud83d\ud83d\ude00 @"}"#,
        r#"{"text":"\ud83d@\ude00"}"#,
        r#"{"text":"\ud83d\n\ude00@"}"#,
        r#"{"text":"a@\ud83d","text":"good"}"#,
        r#"{"text":"good","text":"a@\ud83d"}"#,
        r#"{"x":"\ud800","y":["\udfff\ud800"],"text":"a@"}"#,
        r#"{"text":"a@","x":"\ud800\ud800"}"#,
        r#"{"text":"a@\ud83d\u00zz"}"#,
        r#"{"text":"a@\ud83d\x"}"#,
        r#"{"text":"a@\u+123"}"#,
        r#"{"text":"a@\uD83D\uDE00\u00e9\u6570"}"#,
        // Escapes and control characters.
        r#"{"text":"\"\\\/\b\f\n\r\t@\""}"#,
        r#"{"text":"a@\'"}"#,
        r#"{"text":"a@\"#,
        r#"{"text":"a@\u12"#,
        "{\"text\":\"a@\tb\"}",
        "{\"text\":\"a@\u{7f}\u{80}\u{2028}b\"}",
        "{\"x\":\"\u{1}\",\"text\":\"a@\"}",
        "{\"text\":\"a@\",\"x\u{0}\":1}",
        // Numbers and words.
        r#"{"x":[NaN,Infinity,-Infinity,1e999,-0,0.5,1E+2,123456789012345678901234567890],"text":"a@"}"#,
        r#"{"text":"a@","x":-NaN}"#,
        r#"{"text":"a@","x":01}"#,
        r#"{"text":"a@","x":1.}"#,
        r#"{"text":"a@","x":.5}"#,
        r#"{"text":"a@","x":+1}"#,
        r#"{"text":"a@","x":1e}"#,
        r#"{"text":"a@","x":-}"#,
        r#"{"text":"a@","x":-Inf}"#,
        r#"{"text":"a@","x":nul}"#,
        r#"{"text":"a@","x":truefalse}"#,
        r#"{"text":"a@","x":True}"#,
        r#"{"text":NaN,"x":"@"}"#,
        // The grammar.
        r#"  { "x" : [ 1 , { "a" : [ ] , "b" : { } } ] , "text" : "a@" }  "#,
        "\t{\"text\"\r:\t\"a@\"}\r",
        "\u{c}{\"text\":\"a@\"}",
        "{\"text\":\u{a0}\"a@\"}",
        "\u{feff}{\"text\":\"a@\"}",
        r#"{"text":"a@",}"#,
        r#"{,"text":"a@"}"#,
        r#"{"text":"a@" "x":1}"#,
        r#"{"text" "a@"}"#,
        r#"{"text":"a@","x"}"#,
        r#"{"text":"a@",'x':1}"#,
        r#"{"text":"a@",x:1}"#,
        r#"{"text":"a@",1:1}"#,
        r#"{"text":"a@"}}"#,
        r#"{"text":"a@"} {"text":"b"}"#,
        r#"{"text":"a@"},"#,
        r#"{"text":"a@""#,
        r#"{"text":"a@"#,
        r#"{"text":"a@","x":[1,2}"#,
        r#"{"text":"a@","x":{"a":1]}"#,
        r#"{"text":"a@","x":[1,]}"#,
        r#"{"text":"a@","x":[,1]}"#,
        r#"{"text":"a@","x":{"a":1,}}"#,
        r#"{"text":"a@","x":{"a"}}"#,
        r#"{"text":"a@","x":[1 2]}"#,
        r#"{"text":"a@","x":]}"#,
        r#"{"text":"a@" /* no */}"#,
        r#"["a@"]"#,
        r#""text@""#,
        "5",
        "null",
        "{}",
        "{",
        "  \t ",
        "",
        r#"{"Text":"a@","tex":"b","text ":"c"}"#,
        r#"{"x":{"text":"inner@"},"y":[{"text":"inner"}]}"#,
        r#"{"text":"数字😀@é"}"#,
    ];
    let mut lines: Vec<Vec<u8>> = hand.iter().map(|line| line.as_bytes().to_vec()).collect();
    // Bytes that are no UTF-8, in the text and elsewhere.
    for bad in [&b"\xff"[..], b"\xe6\x95", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"] {
        lines.push([b"{\"text\":\"a@", bad, b"b\"}"].concat());
        lines.push([b"{\"text\":\"a@\",\"x\":\"", bad, b"\"}"].concat());
        lines.push([b"{\"text\":\"a@\"}", bad].concat());
        lines.push([b"{\"text\":\"a@\",\"text", bad, b"\":2}"].concat());
    }
    // Much in one another.
    for depth in [126, 200, 900] {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        lines.push(format!("{{\"x\":{open}1{close},\"text\":\"a@\"}}").into_bytes());
        let (open, close) = ("{\"a\":".repeat(depth), "}".repeat(depth));
        lines.push(format!("{{\"text\":\"a@\",\"x\":{open}[]{close}}}").into_bytes());
        lines.push(format!("{{\"text\":\"a@\",\"x\":{open}[]{close}").into_bytes());
    }
    let members = [
        r#""text":"a@\n""#,
        r#""text" : "数@字""#,
        r#""text":"\u00e9@\ud83d\ude00""#,
        r#""text":"\ud800@""#,
        r#""text":"""#,
        r#""text":[1,"@"]"#,
        r#""te\u0078t":"other way@""#,
        r#""x":{"text":"@","y":[null,true,-1.5e-7]}"#,
        r#""x":"\\\"@""#,
        r#""":NaN"#,
        r#""x":[[],{},""]"#,
    ];
    let wrong = [",", "}", "\\", "\"", ":", "{", "]", "\t", "1", "u", "\u{1}"];
    let mut rng = crate::support::Lcg(41);
    while lines.len() < 300 {
        let picked: Vec<&str> = (0..1 + rng.below(5)).map(|_| members[rng.below(11) as usize]).collect();
        let mut line = format!("{{{}}}", picked.join([",", " ,\t", ", "][rng.below(3) as usize]));
        if rng.below(3) == 0 {
            let places: Vec<usize> = line.char_indices().map(|(at, _)| at).collect();
            line.insert_str(places[rng.below(places.len() as u64) as usize], wrong[rng.below(11) as usize]);
        }
        lines.push(line.into_bytes());
    }
    lines
}

/// A line means what it means to Python, whatever its length, and wherever in it the length is.
#[test]
#[ignore = "needs Python"]
fn needs_python_a_json_line_means_what_it_means_there() {
    use tallow_text::prepare::{OnError, PrepareConfig, prepare};
    let python = python("json");
    let tokenizer = tallow_text::Tokenizer::cl100k();
    let folder = tempfile::tempdir().unwrap();
    let long = "a line of words, 数字 and 😀; ".repeat(9000);
    assert!(long.len() > 1 << 18);
    let pad = format!("\"pad\":\"{}\"", long.replace(';', "\\n"));
    let with = |line: &[u8], what: &str| line.split(|byte| *byte == b'@').collect::<Vec<_>>().join(what.as_bytes());
    type Form<'a> = (&'static str, &'a dyn Fn(&[u8]) -> Vec<u8>);
    let forms: [Form; 6] = [
        ("short", &|line| with(line, "x")),
        ("a long text", &|line| with(line, &long)),
        ("a long text of escapes", &|line| with(line, &"\\u6570\\ud83d\\ude00\\t".repeat(1 << 15))),
        ("a long field before", &|line| {
            let line = with(line, "x");
            let at = line.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
            [&line[..at], pad.as_bytes(), b",", &line[at..]].concat()
        }),
        ("a long field after", &|line| {
            let line = with(line, "x");
            let at = line.iter().rposition(|byte| *byte == b'}').unwrap_or(line.len());
            [&line[..at], b",", pad.as_bytes(), &line[at..]].concat()
        }),
        ("white space", &|line| [" ".repeat(1 << 18).as_bytes(), &with(line, "x"), &[b'\t'; 1 << 17]].concat()),
    ];
    let lines = odd_lines();
    for (name, form) in forms {
        // A line that is known after each of them tells their documents apart.
        let input = folder.path().join("x.jsonl");
        let mut bytes = Vec::new();
        for line in &lines {
            bytes.extend(form(line));
            bytes.extend(b"\n{\"text\":\"<next>\"}\n");
        }
        std::fs::write(&input, bytes).unwrap();
        let expected = run(&python, "json_lines.py", &[&input, Path::new("text")]);
        let expected: Vec<Option<String>> = serde_json::from_value(expected).unwrap();
        let out = folder.path().join(name);
        let cfg = PrepareConfig {
            inputs: vec![input],
            out: out.clone(),
            on_error: OnError::Skip,
            unit_bytes: Some(u64::MAX),
            ..Default::default()
        };
        let manifest = prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        let (mut document, mut good) = (0, 0);
        let mut next = || {
            let mut ids = tallow_text::shard::document(&out, "train", 0, document, usize::MAX).unwrap();
            ids.pop();
            document += 1;
            tokenizer.decode(&ids).unwrap()
        };
        for (line, expected) in lines.iter().zip(expected.iter().step_by(2)) {
            let mut text = next();
            let found = match text == "<next>" {
                true => None,
                false => Some(Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
            };
            if found.is_some() {
                good += 1;
                text = next();
            }
            let line = String::from_utf8_lossy(line);
            assert_eq!(text, "<next>", "{name}: two texts of {line}");
            let expected = expected.as_ref().filter(|hash| !["", "blank"].contains(&hash.as_str()));
            assert_eq!(found.as_ref(), expected, "{name}: {line}");
        }
        let bad = expected.iter().filter(|line| line.is_none()).count();
        assert_eq!(manifest.skipped.count, bad as u64, "{name}: {:?}", manifest.skipped.reasons);
        assert_eq!(manifest.splits["train"].documents as usize, good + lines.len(), "{name}");
        assert_eq!(verify(&out, &|_, _| ()).unwrap(), [""; 0], "{name}");
        println!("{name}: {} lines, {good} texts, {bad} errors", lines.len());
    }
}

/// The split as docs/format.md describes it, in Python, against a real run.
#[test]
#[ignore = "needs Python"]
fn needs_python_the_split_can_be_rebuilt_from_the_document() {
    use tallow_text::prepare::{PrepareConfig, prepare};
    let python = python("json, zlib");
    let mut rng = crate::support::Lcg(77);
    let mut texts: Vec<String> =
        (0..400).map(|i| (0..rng.below(9)).map(|_| rng.scalar()).chain(format!(" {i}").chars()).collect()).collect();
    // A character lies across byte 65536, or two texts differ only after it; and one that is given as a stream.
    for before in 0..4 {
        let beginning = "x".repeat(before) + &"數字 and ".repeat(6000);
        texts.extend([format!("{beginning}a"), format!("{beginning}b")]);
    }
    texts.push("words, 數字; ".repeat(30_000));
    let choices = [(0.1, 0), (0.1, 1337), (0.5, u64::MAX), (0.9, 1 << 63), (0.000_1, 3), (1.0, 4), (0.0, 5)];
    let folder = tempfile::tempdir().unwrap();
    let (task, input) = (folder.path().join("task.json"), folder.path().join("x.jsonl"));
    std::fs::write(&task, serde_json::json!({"texts": texts, "choices": choices}).to_string()).unwrap();
    let lines = texts.iter().map(|text| serde_json::json!({"text": text}).to_string() + "\n");
    std::fs::write(&input, lines.collect::<String>()).unwrap();
    let expected: Vec<Vec<bool>> = serde_json::from_value(run(&python, "split.py", &[&task])).unwrap();
    let tokenizer = tallow_text::Tokenizer::cl100k();
    for ((val, seed), expected) in choices.into_iter().zip(expected) {
        let out = folder.path().join(format!("{val}-{seed}"));
        let cfg = PrepareConfig { inputs: vec![input.clone()], out: out.clone(), val, seed, ..Default::default() };
        prepare(&tokenizer, &cfg, &|_| ()).unwrap().unwrap();
        for (split, is_val) in [("train", false), ("val", true)] {
            let there = texts.iter().zip(&expected).filter(|(_, val)| **val == is_val);
            let there = there.map(|(text, _)| [tokenizer.encode(text).unwrap(), vec![100_257]].concat());
            assert!(crate::prepare::ids(&out, split) == there.collect::<Vec<_>>().concat(), "{split}, {val} of {seed}");
        }
    }
}

/// Every name in plan.json and units/*.json stands in the document.
#[test]
fn the_document_has_every_field_of_a_plan() {
    use tallow_text::prepare::{PrepareConfig, prepare};
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let cfg =
        PrepareConfig { inputs: vec![crate::support::golden("corpus.jsonl")], out: out.clone(), ..Default::default() };
    prepare(&tallow_text::Tokenizer::cl100k(), &cfg, &|_| ()).unwrap();
    let document = include_str!("../../../../docs/format.md");
    fn names(value: &Value, all: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(name, value)| {
                all.push(name.clone());
                names(value, all);
            }),
            Value::Array(list) => list.iter().for_each(|value| names(value, all)),
            _ => (),
        }
    }
    for file in ["plan.json", "units/000000.json", "manifest.json"] {
        let mut all = Vec::new();
        names(&serde_json::from_slice(&std::fs::read(out.join(file)).unwrap()).unwrap(), &mut all);
        assert!(all.len() > 10, "{file}");
        for name in all.iter().filter(|name| !["train", "val"].contains(&name.as_str())) {
            assert!(document.contains(&format!("`{name}`")), "{name} of {file}");
        }
    }
}
