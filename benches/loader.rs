//! Batches of 32 x 1024 out of a gigabyte of ids, against nanoGPT's `get_batch`.
//!
//!     cargo bench --bench loader                 # makes target/bench-loader (1.07 GB) once
//!
//! "warm": the file is in the page cache, and the process has read it once before (from the second epoch on); "warm-first":
//! in the page cache, but new to the process, so that most batches pay for page faults; "cold": the cache is dropped for
//! that file first; "pread": warm, without a map; "pread-cold". The first batches are compared with the ids that were written. nanoGPT's numbers come from
//! nanogpt_loader.py on the same file in the same run (the map made anew for each batch, and kept).

mod common;

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::{median, python};
use serde_json::json;
use tallow::shard::{IdType, Io, Manifest, ShardWriter};
use tallow::{DataLoader, DataLoaderConfig, Dataset, Order};

const TOKENS: u64 = 1 << 28;
const DOCUMENT: u64 = 752;
const ROWS: usize = 32;
const CONTEXT: usize = 1024;
const WARM: usize = 2000;
const COLD: usize = 200;

/// Id number `i` of the file.
fn id(i: u64) -> u32 {
    let x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (x >> 40) as u32 % 100_257
}

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-loader");
    if Manifest::read(&folder).is_err() {
        make(&folder)?;
    }
    let bin = folder.join("train/000000.bin");
    let argument = json!({"path": bin, "rows": ROWS, "context": CONTEXT, "warm": WARM, "cold": COLD});
    check(&folder)?;
    for (case, io, order, batches) in [
        ("warm", Io::Map, Order::Permuted, WARM),
        ("warm-first", Io::Map, Order::Permuted, WARM),
        ("warm-random", Io::Map, Order::Random, WARM),
        ("warm-packed", Io::Map, Order::Packed, WARM),
        ("cold", Io::Map, Order::Permuted, COLD),
        ("pread", Io::Pread, Order::Permuted, WARM),
        ("pread-cold", Io::Pread, Order::Permuted, COLD),
    ] {
        let mut runs: Vec<(f64, f64, f64)> = Vec::new();
        for seed in 0..3 {
            if case.ends_with("cold") {
                drop_cache(&bin)?
            } else {
                warm_cache(&bin)?
            }
            runs.push(run(&folder, io, order, batches, seed, case)?);
        }
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (rate, p50, p99) = runs[1];
        // nanoGPT right after it, on the same cache.
        let mode = if case.ends_with("cold") { "cold" } else { "warm" };
        let mut argument = argument.clone();
        argument["mode"] = json!(mode);
        let theirs = python("nanogpt_loader.py", &argument);
        let mut line = json!({"bench": "loader", "case": case, "rows": ROWS, "context": CONTEXT,
            "tokens_per_second": rate.round(), "p50_us": p50.round(), "p99_us": p99.round()});
        if let Some(theirs) = theirs {
            for name in ["nanogpt", "nanogpt_map_kept"] {
                let other = theirs[name].as_f64().context("a rate")?;
                line[name] = json!(other.round());
                line[format!("times_{name}")] = json!((rate / other * 10.0).round() / 10.0);
            }
        }
        println!("{line}");
    }
    let started = Instant::now();
    let split = Dataset::open(&folder)?.split("train")?;
    let mut loader = DataLoader::new(&split, config(Order::Permuted, 0))?;
    let mut state = loader.state();
    state.samples = 200_000;
    loader.load_state(&state)?;
    loader.next().context("a batch")??;
    println!(
        "{}",
        json!({"bench": "loader", "case": "open, resume in the middle, first batch", "ms": started.elapsed().as_secs_f64() * 1e3})
    );
    Ok(())
}

fn config(order: Order, seed: u64) -> DataLoaderConfig {
    DataLoaderConfig { batch_size: ROWS, context_length: CONTEXT, epochs: None, order, seed, ..Default::default() }
}

/// Tokens per second; median and 99th percentile of a batch in µs.
fn run(folder: &Path, io: Io, order: Order, batches: usize, seed: u64, case: &str) -> Result<(f64, f64, f64)> {
    let split = Dataset::open_with(folder, io)?.split("train")?;
    if io == Io::Map && case.starts_with("warm") && case != "warm-first" {
        DataLoader::new(&split, config(Order::Sequential, 0))?.take(1 << 13).try_for_each(|batch| batch.map(drop))?;
    }
    let mut loader = DataLoader::new(&split, config(order, seed))?;
    let mut times = Vec::with_capacity(batches);
    let started = Instant::now();
    for _ in 0..batches {
        let one = Instant::now();
        let batch = loader.next().context("the loader never ends")??;
        std::hint::black_box(&batch);
        times.push(one.elapsed().as_secs_f64() * 1e6);
    }
    let rate = (batches * ROWS * CONTEXT) as f64 / started.elapsed().as_secs_f64();
    let p50 = median(times.clone());
    times.sort_by(f64::total_cmp);
    Ok((rate, p50, times[times.len() * 99 / 100]))
}

/// The answer first: windows hold the ids that were written, and no window comes twice.
fn check(folder: &Path) -> Result<()> {
    let first: std::collections::HashMap<(u32, u32, u32, u32), u64> =
        (0..1 << 22).map(|i| ((id(i), id(i + 1), id(i + 2), id(i + 3)), i)).collect();
    let split = Dataset::open(folder)?.split("train")?;
    let mut found = 0;
    for batch in DataLoader::new(&split, config(Order::Permuted, 1))?.take(500) {
        let batch = batch?;
        for (x, y) in batch.inputs.to_vec2::<u32>()?.iter().zip(batch.targets.to_vec2::<u32>()?) {
            ensure!(x[1..] == y[..CONTEXT - 1], "targets are not inputs shifted by one");
            if let Some(start) = first.get(&(x[0], x[1], x[2], x[3])) {
                ensure!((0..CONTEXT as u64).all(|i| x[i as usize] == id(start + i)), "other ids than were written");
                found += 1;
            }
        }
    }
    ensure!(found > 100, "{found} windows were recognised");
    Ok(())
}

fn make(folder: &Path) -> Result<()> {
    eprintln!("making {}", folder.display());
    std::fs::create_dir_all(folder.join("train"))?;
    let mut writer = ShardWriter::create(folder.join("train/000000"), IdType::U32)?;
    for document in 0..TOKENS / DOCUMENT {
        let ids: Vec<u32> = (document * DOCUMENT..(document + 1) * DOCUMENT).map(id).collect();
        writer.push(&ids)?;
        writer.end_document()?;
    }
    let info = writer.finish()?;
    let manifest = json!({"format": "tallow-shards", "version": 1, "tokenizer": null, "table_rows": 100_257,
        "largest_id": info.largest_id, "separator": null, "dtype": "u32", "val": 0.0, "seed": 0,
        "skipped": {"count": 0, "reasons": []},
        "splits": {"train": {"tokens": info.tokens, "documents": info.documents, "text_bytes": 0, "shards": [info]}}});
    std::fs::write(folder.join("manifest.json"), manifest.to_string())?;
    Ok(())
}

fn warm_cache(path: &Path) -> Result<()> {
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn drop_cache(path: &Path) -> Result<()> {
    use std::os::fd::AsRawFd;
    let file = File::open(path)?;
    file.sync_all()?;
    // SAFETY: a hint about an open file.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    ensure!(code == 0, "the cache could not be dropped");
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn drop_cache(_: &Path) -> Result<()> {
    anyhow::bail!("dropping the page cache needs Linux")
}
