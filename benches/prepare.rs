//! JSON lines → shards, against the Hugging Face datasets + tiktoken route (nanoGPT's `prepare.py`).
//!
//!     cargo bench --bench prepare      # 40 MB made of every .txt of ../shared/corpora or $TALLOW_CORPORA
//!
//! Each run is a fresh process. The ids of both routes are compared first, as a hash. Rates count the ids that were
//! written, the separator included; datasets_prepare.py maps with `num_proc` 1 and 2 and writes train.bin as nanoGPT does.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::{median, python};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tallow::prepare::{PrepareConfig, prepare};
use tallow::{Dataset, Tokenizer};

const BYTES: usize = 40_000_000;
/// Characters of a document: the mean of web text is about three times as much, of code about this.
const DOCUMENT_BYTES: usize = 3500;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--child") {
        return child(&args[at + 1], &args[at + 2], args[at + 3].parse()?);
    }
    let folder = tempfile::tempdir()?;
    let (input, out) = (folder.path().join("corpus.jsonl"), folder.path().join("out"));
    let (documents, bytes) = corpus(&input)?;
    eprintln!("{documents} documents, {bytes} bytes");
    let run = |jobs: usize| -> Result<Value> {
        let mut runs = Vec::new();
        for _ in 0..5 {
            _ = std::fs::remove_dir_all(&out);
            let output = Command::new(std::env::current_exe()?)
                .args(["--child".as_ref(), input.as_os_str(), out.as_os_str()])
                .arg(jobs.to_string())
                .output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            runs.push(serde_json::from_slice::<Value>(&output.stdout)?);
        }
        let seconds = median(runs.iter().filter_map(|run| run["seconds"].as_f64()).collect());
        let mut first = runs.swap_remove(0);
        first["seconds"] = json!(seconds);
        Ok(first)
    };
    let (one, two) = (run(1)?, run(2)?);
    ensure!(one["sha256"] == two["sha256"], "other ids with two threads");
    let theirs = python("datasets_prepare.py", &json!({"input": input, "ranks": ranks(folder.path())?}));
    for (threads, ours) in [(1, &one), (2, &two)] {
        let rate = ours["tokens"].as_f64().context("tokens")? / ours["seconds"].as_f64().context("seconds")?;
        let mut line = json!({"bench": "prepare", "threads": threads, "documents": documents, "bytes": bytes,
            "tokens": ours["tokens"], "tokens_per_second": rate.round(), "peak_memory_mib": ours["peak_memory_mib"]});
        if let Some(theirs) = &theirs {
            ensure!(theirs["sha256"] == ours["sha256"], "the ids differ from tiktoken's");
            let other = theirs[&format!("num_proc_{threads}")].as_f64().context("a rate")?;
            line["datasets_tiktoken"] = json!(other.round());
            line["times"] = json!((rate / other * 10.0).round() / 10.0);
        }
        if threads == 2 {
            let seconds = |run: &Value| run["seconds"].as_f64().unwrap_or(f64::NAN);
            line["times_one_thread"] = json!((seconds(&one) / seconds(&two) * 100.0).round() / 100.0);
        }
        println!("{line}");
    }
    Ok(())
}

fn child(input: &str, out: &str, jobs: usize) -> Result<()> {
    let tokenizer = Tokenizer::cl100k();
    let started = Instant::now();
    let cfg = PrepareConfig { inputs: vec![input.into()], out: out.into(), jobs, ..Default::default() };
    let manifest = prepare(&tokenizer, &cfg, &|_| ())?.context("one rank does it all")?;
    let seconds = started.elapsed().as_secs_f64();
    let peak = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?.to_string();
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let mut hash = Sha256::new();
    for shard in Dataset::open(out)?.split("train")?.shards() {
        let mut ids = vec![0; shard.tokens() as usize];
        shard.read(0, &mut ids)?;
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!(
        "{}",
        json!({"seconds": seconds, "tokens": manifest.splits["train"].tokens, "sha256": sha256,
            "peak_memory_mib": peak.map(|kib| kib / 1024)})
    );
    Ok(())
}

/// Documents of about [`DOCUMENT_BYTES`], cut at line ends, the files over and over until there are [`BYTES`].
fn corpus(path: &Path) -> Result<(usize, usize)> {
    let folder = std::env::var("TALLOW_CORPORA").unwrap_or("../shared/corpora".to_string());
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "txt"));
    files.sort();
    ensure!(!files.is_empty(), "no .txt files in {folder}: set TALLOW_CORPORA to a folder of texts");
    let texts = files.iter().map(std::fs::read_to_string).collect::<std::io::Result<Vec<String>>>()?;
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    let (mut documents, mut bytes) = (0, 0);
    for text in texts.iter().cycle() {
        let mut document = String::new();
        for line in text.split_inclusive('\n') {
            document += line;
            if document.len() >= DOCUMENT_BYTES {
                writeln!(out, "{}", json!({"text": document}))?;
                (documents, bytes) = (documents + 1, bytes + document.len());
                document.clear();
            }
        }
        if bytes >= BYTES {
            break;
        }
    }
    out.flush()?;
    Ok((documents, bytes))
}

/// The bundled vocabulary as a .tiktoken file: tiktoken would download it.
fn ranks(folder: &Path) -> Result<PathBuf> {
    use base64::Engine;
    let path = folder.join("cl100k_base.tiktoken");
    let tokenizer = Tokenizer::cl100k();
    let mut text = String::new();
    for id in 0..tokenizer.ordinary_vocab_size() as u32 {
        let bytes = tokenizer.token_bytes(id).context("no gaps")?;
        text += &format!("{} {id}\n", base64::prelude::BASE64_STANDARD.encode(bytes));
    }
    std::fs::write(&path, text)?;
    Ok(path)
}
