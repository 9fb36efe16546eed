//! Encoding real text, side by side with other encoders. Ids are compared by their SHA-256.
//!
//!     cargo bench --bench encode                 # every .txt of ../shared/corpora or $TALLOW_CORPORA
//!
//! Each measurement is a fresh process, five by turns, of which the median is told: "cold" is the first pass over the file, after
//! the vocabulary was loaded, "warm" the second. Whole files on one thread, and documents of about 2 KiB, cut at line ends, on one and
//! two. Python's encoders (gigatoken, toktok-rs, quicktok-v1, tiktoken) are measured where $TALLOW_PYTHON has them.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::median;
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const IN_RUST: [&str; 4] = ["tallow", "bpe-openai", "tiktoken-rs", "tokenizers"];
const IN_PYTHON: [&str; 4] = ["gigatoken", "toktok", "quicktok", "tiktoken"];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--child") {
        return child(&args[at + 1], &args[at + 2], &args[at + 3]);
    }
    let folder = std::env::var("TALLOW_CORPORA").unwrap_or("../shared/corpora".to_string());
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    files.sort();
    if files.is_empty() {
        eprintln!("no .txt files in {folder}: set TALLOW_CORPORA to a folder of texts");
    }
    let odd = tempfile::tempdir()?;
    let odd_files = adversarial(odd.path())?;
    let ranks = odd.path().join("cl100k_base.tiktoken");
    tallow::Tokenizer::cl100k().save(&ranks)?;
    for file in &files {
        for (mode, threads, engines) in [
            ("whole", 1, [&IN_RUST[..3], &IN_PYTHON].concat()),
            ("documents", 1, IN_RUST.to_vec()),
            ("documents", 2, IN_RUST.to_vec()),
        ] {
            side_by_side(file, mode, threads, &engines, &ranks)?;
        }
    }
    for file in odd_files {
        side_by_side(&file, "whole", 1, &["tallow", "bpe-openai"], &ranks)?;
    }
    Ok(())
}

/// Runs every engine five times, by turns, and prints a line for each.
fn side_by_side(file: &Path, mode: &str, threads: usize, engines: &[&str], ranks: &Path) -> anyhow::Result<()> {
    let mut runs: Vec<Vec<Value>> = vec![Vec::new(); engines.len()];
    for turn in 0..5 {
        for (engine, runs) in engines.iter().zip(&mut runs) {
            if turn > 0 && runs.is_empty() {
                continue; // not installed
            }
            let mut command = match IN_PYTHON.contains(engine) {
                true => {
                    let mut python = Command::new(std::env::var("TALLOW_PYTHON").unwrap_or("python3".to_string()));
                    python.args(["benches/encode_opponents.py", engine]).arg(file).arg(ranks);
                    python
                }
                false => {
                    let mut child = Command::new(std::env::current_exe()?);
                    child.args(["--child", engine]).arg(file).arg(mode);
                    child
                }
            };
            let output = command.env("RAYON_NUM_THREADS", threads.to_string()).output()?;
            match serde_json::from_slice(&output.stdout) {
                Ok(value) => runs.push(value),
                Err(_) => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    eprintln!("left out: {engine}: {}", said.lines().last().unwrap_or_default());
                }
            }
        }
    }
    let ours = &runs[0][0];
    let of = |runs: &[Value], what: &str| median(runs.iter().filter_map(|run| run[what].as_f64()).collect());
    for (engine, runs) in engines.iter().zip(&runs).filter(|(_, runs)| !runs.is_empty()) {
        let rate = |what: &str| (ours["bytes"].as_f64().unwrap_or(0.0) / of(runs, what) / 100.0).round() / 10.0;
        let facts = json!({
            "bench": "encode", "corpus": file.file_stem().unwrap_or_default().to_string_lossy(), "mode": mode, "threads": threads,
            "engine": engine, "cold_mb_per_s": rate("cold"), "warm_mb_per_s": rate("warm"), "load_ms": of(runs, "load"),
            "tokens": runs[0]["tokens"], "exact": runs[0]["sha256"] == ours["sha256"],
        });
        println!("{facts}");
        assert!(IN_PYTHON.contains(engine) || facts["exact"] == true, "the ids differ from {engine}'s");
    }
    Ok(())
}

/// Texts that are slow for some encoders, one megabyte each.
fn adversarial(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut state = 7u64;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    let base64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mixed = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "   \n  ", "\u{a0}", "\u{3000}", "x"];
    let texts = [
        ("one letter", "a".repeat(1_000_000)),
        ("spaces", " ".repeat(1_000_000)),
        ("han run", (0..330_000).filter_map(|_| char::from_u32(0x4E00 + below(0x51A6) as u32)).collect()),
        ("base64", (0..1_000_000).map(|_| char::from(base64[below(64) as usize])).collect()),
        ("random scalars", (0..270_000).filter_map(|_| char::from_u32(below(0x11_0000) as u32)).collect()),
        ("mixed white space", (0..500_000).map(|_| mixed[below(10) as usize]).collect()),
    ];
    texts
        .into_iter()
        .map(|(name, text): (&str, String)| {
            let path = folder.join(format!("{name}.txt"));
            std::fs::write(&path, text)?;
            Ok(path)
        })
        .collect()
}

type Encode<'a> = Box<dyn Fn(&[&str]) -> Vec<Vec<u32>> + 'a>;

/// Encodes the file twice and prints what it took.
fn child(engine: &str, file: &str, mode: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file)?;
    let parts = if mode == "whole" { vec![text.as_str()] } else { documents(&text) };
    let started = Instant::now();
    let encode: Encode = match engine {
        "tallow" => {
            let tokenizer = tallow::Tokenizer::cl100k();
            Box::new(move |parts| tokenizer.encode_batch(parts).expect("text has ids"))
        }
        "bpe-openai" => {
            let bpe = bpe_openai::cl100k_base();
            Box::new(move |parts| parts.par_iter().map(|part| bpe.encode(part)).collect())
        }
        "tiktoken-rs" => {
            let bpe = tiktoken_rs::cl100k_base()?;
            Box::new(move |parts| parts.par_iter().map(|part| bpe.encode_ordinary(part)).collect())
        }
        _ => {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("tokenizer.json");
            tallow::Tokenizer::cl100k().save(&path)?;
            let tokenizer = tokenizers::Tokenizer::from_file(&path).map_err(anyhow::Error::msg)?;
            Box::new(move |parts| {
                let encodings = tokenizer.encode_batch_fast(parts.to_vec(), false).expect("text has ids");
                encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect()
            })
        }
    };
    encode(&["a"]);
    let load = started.elapsed().as_secs_f64() * 1e3;
    let mut times = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..2 {
        drop(ids);
        let start = Instant::now();
        ids = encode(&parts);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut hash = Sha256::new();
    ids.iter().flatten().for_each(|id| hash.update(id.to_le_bytes()));
    let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let tokens = ids.iter().map(Vec::len).sum::<usize>();
    println!(
        "{}",
        json!({"cold": times[0], "warm": times[1], "load": load, "tokens": tokens, "bytes": text.len(), "sha256": sha256})
    );
    Ok(())
}

/// Cuts text into documents of at least 2 KiB that end with a line.
fn documents(text: &str) -> Vec<&str> {
    let mut docs = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let from = text.ceil_char_boundary(start + 2048);
        let end = text[from..].find('\n').map_or(text.len(), |at| from + at + 1);
        docs.push(&text[start..end]);
        start = end;
    }
    docs
}
