//! Corpus × tokenizer → shards. This is the only module that uses all three; it does not know tensors.
//!
//! The work is cut into units, listed in `plan.json`. Each unit becomes one shard per split, and then one file in `units/` that
//! records it. A process that is killed loses only its unfinished units, and any number of processes can share a folder. When all
//! units are done, `manifest.json` is written. `docs/format.md` describes every file byte by byte.

mod plan;
mod rank;
mod unit;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::corpus::{Bad, Document, End, Source, documents};
use crate::shard::{FORMAT, MANIFEST, Manifest, ShardInfo, Skipped, SplitInfo, VERSION};
use crate::support::files::remove_temporaries;
use crate::{Error, Result, Tokenizer};
use plan::Plan;

pub use crate::corpus::Format;
pub use rank::{Rank, launched_rank_from_env, rank_from_env};

/// What to do with a document that cannot be used: invalid UTF-8, broken JSON, a missing field, a torn archive, an
/// empty file.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{OnError, PrepareConfig, prepare};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.jsonl"), folder.path().join("tokens"));
/// std::fs::write(&input, "{\"text\": \"Hello\"}\n{\"title\": \"no text\"}\n")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, on_error: OnError::Skip, ..Default::default() };
/// let manifest = prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?.expect("there is no other rank");
/// assert_eq!((manifest.splits["train"].documents, manifest.skipped.count), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Stop with an error that names the document and the reason (the default).
    #[default]
    Error,
    /// Leave it out. The manifest counts and lists it.
    Skip,
    /// Read bytes that are not UTF-8 as U+FFFD. All other faults are errors.
    Replace,
}

impl std::str::FromStr for OnError {
    type Err = Error;

    /// `error`, `skip` or `replace`.
    fn from_str(name: &str) -> Result<Self> {
        let all = [("error", OnError::Error), ("skip", OnError::Skip), ("replace", OnError::Replace)];
        Error::named("on_error", name, &all)
    }
}

/// The separator that is written after each document.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, SeparatorChoice, prepare};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, separator: SeparatorChoice::None, ..Default::default() };
/// let manifest = prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?.expect("there is no other rank");
/// assert_eq!(manifest.splits["train"].tokens, 2); // Hello, world
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SeparatorChoice {
    /// `<|endoftext|>`, which must be a special token of the tokenizer.
    #[default]
    EndOfText,
    /// No separator.
    None,
    /// This token.
    Token(String),
}

/// Input, output and settings of [`prepare`].
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, prepare};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.jsonl"), folder.path().join("tokens"));
/// std::fs::write(&input, "{\"body\": \"Hello\"}\n{\"body\": \"world\"}\n")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, field: "body".to_string(), val: 1.0, ..Default::default() };
/// let manifest = prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?.expect("there is no other rank");
/// assert_eq!((manifest.splits["train"].documents, manifest.splits["val"].documents), (0, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PrepareConfig {
    /// Files, folders, patterns (`*`, `?`, `[…]`), or `-` for standard input.
    pub inputs: Vec<PathBuf>,
    /// The folder for the shards.
    pub out: PathBuf,
    /// Format of the files. `None`: by the ending of each file's name. A named file with another ending is read as text, and such
    /// files in folders are left out.
    pub format: Option<Format>,
    /// The JSON field or Parquet column that holds the text.
    pub field: String,
    /// The line that separates two documents of a text file. `None`: each file is one document.
    pub split_at: Option<String>,
    /// The separator that is written after each document.
    pub separator: SeparatorChoice,
    /// Fraction of documents that go to the split `val`, from 0 to 1.
    pub val: f64,
    /// Seed of the split. A document's split depends only on the seed and on its first 64 KiB. So new files do not move old
    /// documents, and copies of a document go to the same split.
    pub seed: u64,
    /// What to do with documents that cannot be used.
    pub on_error: OnError,
    /// Approximate size of a unit in bytes of input. `None`: 1/256 of the corpus, between 1 MiB and 64 MiB.
    pub unit_bytes: Option<u64>,
    /// Number of threads. 0: one per processor.
    pub jobs: usize,
    /// Rank of this process among those that share the folder.
    pub rank: Rank,
}

impl Default for PrepareConfig {
    fn default() -> Self {
        PrepareConfig {
            inputs: Vec::new(),
            out: PathBuf::new(),
            format: None,
            field: "text".to_string(),
            split_at: None,
            separator: SeparatorChoice::default(),
            val: 0.0,
            seed: 1337,
            on_error: OnError::default(),
            unit_bytes: None,
            jobs: 0,
            rank: Rank::default(),
        }
    }
}

/// One finished unit, as its file in `units/` and as a line of `tallow prepare --json`.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, UnitReport, prepare};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?;
/// let report: UnitReport = serde_json::from_slice(&std::fs::read(cfg.out.join("units/000000.json"))?)?;
/// assert_eq!((report.unit, report.train.tokens, report.val.tokens), (0, 3, 0)); // Hello, world, <|endoftext|>
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitReport {
    /// Number of the unit, from 0.
    pub unit: usize,
    /// Its shard of the split `train`.
    pub train: ShardInfo,
    /// Its shard of the split `val`, empty if no document went there.
    pub val: ShardInfo,
    /// Documents that were skipped.
    pub skipped: Skipped,
}

/// Progress of [`prepare`].
///
/// # Example
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{Event, PrepareConfig, prepare};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// let written = AtomicU64::new(0);
/// prepare(&Tokenizer::cl100k(), &cfg, &|event| match event {
///     Event::Progress { tokens, .. } => _ = written.fetch_add(tokens, Ordering::Relaxed),
///     _ => (),
/// })?;
/// assert_eq!(written.into_inner(), 3); // Hello, world, <|endoftext|>
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The plan is made, and the work begins.
    Planned {
        /// Units of all ranks.
        units: usize,
        /// Units that this process will do now.
        to_do: usize,
        /// Bytes of these units on disk (compressed bytes for compressed files).
        bytes: u64,
        /// Files that were left out because their names have no known ending.
        ignored_files: u64,
    },
    /// More was read and written since the last such event.
    Progress {
        /// Bytes read.
        bytes: u64,
        /// Ids written.
        tokens: u64,
    },
    /// A unit is done.
    Unit(&'a UnitReport),
}

/// Encodes text files into shards in `cfg.out`, or continues where an earlier call was stopped. Returns the manifest if all units
/// of all ranks are done, and `None` if other ranks still have work. On a finished folder with the same settings it only returns
/// the manifest.
///
/// Shards and manifest have the same bytes for any number of threads, ranks and interruptions.
///
/// # Errors
/// - [`Error::Document`]: a document that cannot be used, under [`OnError::Error`].
/// - [`Error::Folder`]: the folder was begun with other inputs, settings or another tokenizer, or the disk is full. Finished
///   units are kept.
/// - [`Error::NoInput`], [`Error::FeatureMissing`] (Parquet), [`Error::Config`], [`Error::Io`].
///
/// # Cost
/// Memory: 13 MiB with one thread and 17 MiB with two, for any size of corpus (measured on 42 MB of JSON lines). Each further thread
/// adds some 5 MiB. In each thread a `.zst` adds its window (8 MiB by default, at most 128 MiB). A run of characters that the split
/// pattern keeps together (letters without white space or punctuation, zero bytes) takes up to ten times its size in each thread; a
/// document with a run above 64 MiB cannot be used. With a `tokenizer.json` a whole document must fit into memory.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, prepare};
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("a.txt"), "Hello world")?;
/// let cfg = PrepareConfig {
///     inputs: vec![folder.path().join("a.txt")],
///     out: folder.path().join("tokens"),
///     ..Default::default()
/// };
/// let manifest = prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?.expect("there is no other rank");
/// assert_eq!(manifest.splits["train"].tokens, 3); // Hello, world, <|endoftext|>
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn prepare(
    tokenizer: &Tokenizer,
    cfg: &PrepareConfig,
    progress: &(dyn Fn(Event) + Sync),
) -> Result<Option<Manifest>> {
    let (plan, ignored_files) = Plan::new(tokenizer, cfg)?;
    if cfg.out.join(MANIFEST).exists() {
        plan.compare_with(&cfg.out)?;
        clean(&cfg.out)?;
        return Manifest::read(&cfg.out).map(Some);
    }
    plan.store(&cfg.out)?;
    let to_do = missing(&plan, &cfg.out, cfg.rank);
    let bytes = to_do.iter().map(|unit| plan.unit_bytes(*unit)).sum();
    progress(Event::Planned { units: plan.units.len(), to_do: to_do.len(), bytes, ignored_files });

    let (next, failed, first_error) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some(unit) = to_do.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            match unit::encode(tokenizer, &plan, *unit, &cfg.out, progress, &failed) {
                Ok(Some(report)) => progress(Event::Unit(&report)),
                Ok(None) => return,
                Err(error) => {
                    // The error is stored before `failed` is set, so that no later error can take its place.
                    first_error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                    failed.store(true, Ordering::Release);
                }
            }
        }
    };
    let threads = match cfg.jobs {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        jobs => jobs,
    };
    std::thread::scope(|scope| (0..threads.min(to_do.len())).for_each(|_| _ = scope.spawn(work)));
    match first_error.into_inner().unwrap_or_else(|e| e.into_inner()) {
        // Another process finished the same work first and removed the temporary files.
        Some(Error::Io { .. }) if cfg.out.join(MANIFEST).exists() => Manifest::read(&cfg.out).map(Some),
        Some(Error::Io { path, cause }) if is_full(&cause) => {
            let done = plan.units.len() - missing(&plan, &cfg.out, Rank::default()).len();
            let reason = format!(
                "the disk is full ({done} of {} units are finished and kept): free space and run the same command again",
                plan.units.len()
            );
            Err(Error::Folder { path, reason })
        }
        Some(error) => Err(error),
        None if missing(&plan, &cfg.out, Rank::default()).is_empty() => manifest(&plan, &cfg.out).map(Some),
        None => Ok(None),
    }
}

/// Units of `rank` that are not done. With the default rank: all units that are not done.
fn missing(plan: &Plan, out: &Path, rank: Rank) -> Vec<usize> {
    let mine = (0..plan.units.len()).filter(|unit| unit % rank.world_size == rank.rank);
    mine.filter(|unit| unit::done(out, *unit, plan.id_type).is_none()).collect()
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Writes the manifest of a folder whose units are all done. [`prepare`] does this by itself as its last step.
///
/// # Errors
/// [`Error::Folder`]: units are missing (the message lists them), or `prepare` was never run on this folder.
pub fn finish(out: &Path) -> Result<Manifest> {
    let plan = Plan::read(out)?.ok_or_else(|| Error::Folder {
        path: out.to_path_buf(),
        reason: "there is no plan.json: `prepare` has not begun here".to_string(),
    })?;
    let missing = missing(&plan, out, Rank::default());
    if missing.is_empty() {
        return manifest(&plan, out);
    }
    let shown: Vec<String> = missing.iter().take(8).map(|unit| unit.to_string()).collect();
    let (count, shown) = (missing.len(), shown.join(", "));
    let more = if count > 8 { ", …" } else { "" };
    let what = match count {
        1 => format!("unit {shown} is not done"),
        _ => format!("{count} of {} units are not done ({shown}{more})", plan.units.len()),
    };
    let reason = format!("{what}: run the `prepare` that began this folder again, with all its ranks or as one rank");
    Err(Error::Folder { path: out.to_path_buf(), reason })
}

fn manifest(plan: &Plan, out: &Path) -> Result<Manifest> {
    let (mut train, mut val) = (SplitInfo::default(), SplitInfo::default());
    let mut skipped = Skipped::default();
    for unit in 0..plan.units.len() {
        let path = out.to_path_buf();
        let reason = || format!("unit {unit} is no longer complete: run `prepare` again");
        let report = unit::done(out, unit, plan.id_type).ok_or_else(|| Error::Folder { path, reason: reason() })?;
        train.add(report.train);
        val.add(report.val);
        skipped.count += report.skipped.count;
        skipped.reasons.extend(report.skipped.reasons);
    }
    let manifest = Manifest {
        format: FORMAT.to_string(),
        version: VERSION,
        tokenizer: Some(plan.tokenizer.clone()),
        table_rows: plan.table_rows,
        largest_id: train.shards.iter().chain(&val.shards).filter_map(|shard| shard.largest_id).max(),
        separator: plan.separator.clone(),
        id_type: plan.id_type,
        val: plan.val,
        seed: plan.seed,
        skipped,
        splits: [("train".to_string(), train), ("val".to_string(), val)].into(),
    };
    // Ranks that end at the same time write the same bytes. One may remove the temporary file that the other is writing.
    manifest.write(out).or_else(|error| match Manifest::read(out) {
        Ok(there) if there == manifest => Ok(()),
        _ => Err(error),
    })?;
    clean(out)?;
    Ok(manifest)
}

/// Removes the temporary files that killed processes left in a finished folder.
fn clean(out: &Path) -> Result<()> {
    ["", "units", "train", "val"].iter().try_for_each(|folder| remove_temporaries(&out.join(folder)))
}

/// Expected result of [`prepare`], estimated from a sample of the corpus.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, estimate};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// let expected = estimate(&Tokenizer::cl100k(), &cfg)?;
/// assert_eq!((expected.files, expected.bytes, expected.units), (1, 11, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Number of files.
    pub files: usize,
    /// Files that are left out because their names have no known ending.
    pub ignored_files: u64,
    /// Bytes of the files on disk.
    pub bytes: u64,
    /// Number of units.
    pub units: usize,
    /// Estimated number of ids.
    pub tokens: u64,
    /// Estimated bytes of the shards on disk.
    pub shard_bytes: u64,
}

/// Encodes samples from up to eight units and extrapolates. Writes nothing.
///
/// # Errors
/// As [`prepare`], but documents of the sample that cannot be used are ignored.
///
/// # Cost
/// Reads some 256 KiB of each sampled unit (some 1 MiB if its documents are large).
pub fn estimate(tokenizer: &Tokenizer, cfg: &PrepareConfig) -> Result<Estimate> {
    const PLACES: usize = 8;
    const SAMPLE_BYTES: u64 = 256 << 10;
    let (plan, ignored_files) = Plan::new(tokenizer, cfg)?;
    let (mut read_bytes, mut tokens) = (0, 0);
    let step = plan.units.len().div_ceil(PLACES).max(1);
    for unit in (0..plan.units.len()).step_by(step) {
        let Some(piece) = plan.units[unit].first().filter(|piece| plan.files[piece.file].path != "-") else { continue };
        let file = &plan.files[piece.file];
        let read = AtomicU64::new(0);
        let mut found = (0, 0); // bytes of the file and ids, as of the last document
        let cuts = tokenizer.cuts();
        let rules = plan.rules(cuts.as_ref().map(|cuts| cuts as _));
        let mut each = |document: std::result::Result<Document, Bad>| {
            if let Ok(document) = document {
                found.1 += unit::count(tokenizer, document, SAMPLE_BYTES).unwrap_or(0);
                found.0 = read.load(Ordering::Relaxed);
            }
            if found.0 >= SAMPLE_BYTES { Err(End::Enough) } else { Ok(()) }
        };
        _ = documents(Source { file, piece, rules: &rules, read: &read }, &mut each)?;
        read_bytes += found.0;
        tokens += found.1;
    }
    let bytes = plan.files.iter().map(|file| file.bytes).sum();
    let tokens = (u128::from(bytes) * u128::from(tokens) / u128::from(read_bytes.max(1))) as u64;
    Ok(Estimate {
        files: plan.files.len(),
        ignored_files,
        bytes,
        units: plan.units.len(),
        tokens,
        shard_bytes: tokens * plan.id_type.bytes() as u64,
    })
}
