//! Encoding real text: tallow against tiktoken-rs and Hugging Face tokenizers, the same ids asserted first.
//!
//!     cargo bench --bench encode                 # every .txt of ../shared/corpora or $TALLOW_CORPORA
//!
//! Each measurement is a fresh process: "cold" is its first pass over the file (the vocabulary is loaded before),
//! "warm" the median of the passes after it. One thread, or two; documents of about 2 KiB, cut at line ends.

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use common::{median, report};
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--child") {
        return child(&args[at + 1], &args[at + 2]);
    }
    let folder = std::env::var("TALLOW_CORPORA").unwrap_or("../shared/corpora".to_string());
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    files.sort();
    if files.is_empty() {
        eprintln!("no .txt files in {folder}: set TALLOW_CORPORA to a folder of texts");
    }
    one_letter();
    for file in &files {
        let corpus = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for threads in [1, 2] {
            let run = |engine: &str| -> anyhow::Result<Value> {
                let mut command = Command::new(std::env::current_exe()?);
                let output = command
                    .args(["--child", engine])
                    .arg(file)
                    .env("RAYON_NUM_THREADS", threads.to_string())
                    .output()?;
                anyhow::ensure!(output.status.success(), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
                Ok(serde_json::from_slice(&output.stdout)?)
            };
            let ours = run("tallow")?;
            for engine in ["tiktoken-rs", "tokenizers"] {
                let theirs = run(engine)?;
                assert_eq!(ours["sha256"], theirs["sha256"], "{corpus}: the ids differ from {engine}'s");
                for mode in ["cold", "warm"] {
                    let ms = |value: &Value| value[mode].as_f64().unwrap_or(f64::NAN);
                    let facts = json!({
                        "bench": "encode", "corpus": corpus, "bytes": ours["bytes"], "tokens": ours["tokens"],
                        "threads": threads, "mode": mode,
                        "ours_mb_per_s": (ours["bytes"].as_f64().unwrap_or(0.0) / ms(&ours) / 100.0).round() / 10.0,
                    });
                    report(facts, ms(&ours), engine, ms(&theirs));
                }
            }
        }
    }
    Ok(())
}

/// The slow case of regex engines and merge loops: 1 MB of one letter, against as many bytes of English words.
fn one_letter() {
    let tokenizer = tallow::Tokenizer::cl100k();
    let words = "The front layer of a language model turns text into rows of a table, and so begins the work. ";
    let (letter, english) = ("a".repeat(1_000_000), words.repeat(1_000_000 / words.len()));
    let (ours, reference) = common::side_by_side(|| tokenizer.encode(&letter), || tokenizer.encode(&english));
    report(
        json!({"bench": "encode", "corpus": "1 MB of one letter", "mode": "warm", "threads": 1}),
        ours,
        "1 MB of English",
        reference,
    );
}

type Encode<'a> = Box<dyn Fn() -> Vec<Vec<u32>> + 'a>;

/// Encodes the file a few times and prints what it took.
fn child(engine: &str, file: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file)?;
    let docs = documents(&text);
    let docs = &docs;
    let (passes, encode): (usize, Encode) = match engine {
        "tallow" => {
            let tokenizer = tallow::Tokenizer::cl100k();
            (5, Box::new(move || tokenizer.encode_batch(docs).expect("text has ids")))
        }
        "tiktoken-rs" => {
            let bpe = tiktoken_rs::cl100k_base()?;
            (5, Box::new(move || docs.par_iter().map(|doc| bpe.encode_ordinary(doc)).collect()))
        }
        _ => {
            let tokenizer = hugging_face()?;
            let encode = move || tokenizer.encode_batch_fast(docs.clone(), false).expect("text has ids");
            (2, Box::new(move || encode().iter().map(|encoding| encoding.get_ids().to_vec()).collect()))
        }
    };
    let mut times = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..passes {
        let start = Instant::now();
        ids = encode();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut hash = Sha256::new();
    ids.iter().flatten().for_each(|id| hash.update(id.to_le_bytes()));
    let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let tokens = ids.iter().map(Vec::len).sum::<usize>();
    println!(
        "{}",
        json!({"cold": times[0], "warm": median(times[1..].to_vec()), "tokens": tokens, "bytes": text.len(), "sha256": sha256})
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

/// cl100k as a tokenizer.json would hold it: merges recovered from the ranks, the published split pattern.
fn hugging_face() -> anyhow::Result<tokenizers::Tokenizer> {
    use tokenizers::models::bpe::BPE;
    use tokenizers::pre_tokenizers::{byte_level::ByteLevel, sequence::Sequence, split::Split};
    let ours = tallow::Tokenizer::cl100k();
    let alphabet: Vec<char> = byte_alphabet();
    let spell = |bytes: &[u8]| -> String { bytes.iter().map(|byte| alphabet[*byte as usize]).collect() };
    let tokens: Vec<Vec<u8>> = (0..100_256).map(|id| ours.token_bytes(id).expect("no gaps").into_owned()).collect();
    let rank = |bytes: &[u8]| ours.token_to_id(bytes).unwrap_or(u32::MAX);
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| token.len() > 1) {
        // Merge with lower ranks only, until two parts are left: they are the merge that makes this token.
        let mut cuts: Vec<usize> = (0..=token.len()).collect();
        while cuts.len() > 3 {
            let pairs = cuts.windows(3).enumerate().map(|(i, w)| (rank(&token[w[0]..w[2]]), i + 1));
            let (best, cut) = pairs.min().expect("three cuts make a pair");
            anyhow::ensure!((best as usize) < id, "token {id} is not reachable by merging");
            cuts.remove(cut);
        }
        merges.push((spell(&token[..cuts[1]]), spell(&token[cuts[1]..])));
    }
    let vocab: tokenizers::models::bpe::Vocab =
        tokens.iter().zip(0u32..).map(|(token, id)| (spell(token), id)).collect();
    let model =
        BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true).build().map_err(anyhow::Error::msg)?;
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let pattern = tokenizers::pre_tokenizers::split::SplitPattern::Regex(pattern.to_string());
    let split = Split::new(pattern, tokenizers::SplitDelimiterBehavior::Isolated, false).map_err(anyhow::Error::msg)?;
    let bytes = ByteLevel::new(false, true, false);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    Ok(tokenizer)
}

/// GPT-2's printable stand-in for every byte.
fn byte_alphabet() -> Vec<char> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("a letter")
            }
        })
        .collect()
}
