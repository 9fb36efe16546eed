//! Other trainers' readers and writers, as small numpy programs in tests/interop.
//!
//! Tests that need more than Rust are ignored, and named after what they need (`needs_python_…`, `needs_chromium_…`,
//! `needs_root_…`, `needs_corpora_…`), so that none passes without running. Who has it asks for them by name, as .ci/run does:
//! `cargo test --features full --test it -- --ignored needs_python`. What is missing then is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tallow::Dataset;
use tallow::shard::{Foreign, ForeignFile, IdType, export, import, verify};

/// The interpreter, which must have these packages.
pub fn python(packages: &str) -> String {
    let python = std::env::var("TALLOW_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let asked = Command::new(&python).args(["-c", &format!("import {packages}")]).output();
    let there = asked.is_ok_and(|output| output.status.success());
    assert!(there, "{python} has no {packages}: install them, or name another interpreter (TALLOW_PYTHON)");
    python
}

pub fn run(python: &str, script: &str, args: &[&Path]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(script);
    let output = Command::new(python).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[cfg(feature = "prepare")]
#[test]
#[ignore = "needs Python with numpy"]
fn needs_python_other_trainers_read_tiktokens_ids_from_our_files() {
    use tallow::prepare::{PrepareConfig, prepare};
    let python = python("numpy");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tokens");
    let cfg = PrepareConfig { inputs: vec![crate::golden("corpus.jsonl")], out: out.clone(), ..Default::default() };
    prepare(&tallow::Tokenizer::cl100k(), &cfg, &|_| ()).unwrap().unwrap();
    let golden = crate::golden_json("corpus.json");
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
    read("llmc", &to("llmc.bin", Foreign::LlmC), false);
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
    for (name, format, dtype, separator) in cases {
        let out = folder.path().join(format!("{name}.tokens"));
        let table_rows = if name == "olmo.npy" { 100_278 } else { 50_257 };
        let file = ForeignFile { format, dtype, separator, table_rows, tokenizer: None };
        let files: Vec<PathBuf> = vec![folder.path().join(name)];
        let manifest = import(&files, &file, &out, "train").unwrap();
        let train = &manifest.splits["train"];
        assert_eq!(train.tokens, about[name]["tokens"].as_u64().unwrap(), "{name}");
        let mut ids = vec![0; train.tokens as usize];
        Dataset::open(&out).unwrap().split("train").unwrap().shards()[0].read(0, &mut ids).unwrap();
        let mut hash = Sha256::new();
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, about[name]["sha256"].as_str().unwrap(), "{name}");
        // llama2.c's random ids hold its BOS (1), too: there the documents are more.
        let lengths = about[name]["lengths"].as_array().unwrap();
        if name != "llama2c.bin" {
            assert_eq!(train.documents as usize, lengths.len(), "{name}");
            for (number, length) in lengths.iter().enumerate() {
                let ids = tallow::shard::document(&out, "train", 0, number as u64, usize::MAX).unwrap();
                assert_eq!(ids.len() as u64, length.as_u64().unwrap(), "{name}");
            }
        }
        assert_eq!(verify(&out, |_| ()).unwrap(), [""; 0], "{name}");
    }
}
