//! `manifest.json`: what a folder of shards holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{IdType, Io, Shard};
use crate::support::Fingerprint;
use crate::support::files::{read_regular, write_whole};
use crate::{Error, Result};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const FORMAT: &str = "tallow-shards";
pub(crate) const VERSION: u32 = 1;
/// A manifest that says more is not believed: it would cost memory.
const MOST_ROWS: usize = 1 << 28;

/// Everything that is known of a folder of shards.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, prepare};
/// use tallow_text::shard::Manifest;
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?;
/// let manifest = Manifest::read(&cfg.out)?;
/// assert_eq!((manifest.table_rows, manifest.largest_id), (100_277, Some(100_257))); // <|endoftext|> is 100257
/// assert_eq!(manifest.splits["train"].tokens, 3); // Hello, world, <|endoftext|>
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `tallow-shards`.
    pub format: String,
    /// Version of the format: 1.
    pub version: u32,
    /// Who made the ids, where that is known.
    pub tokenizer: Option<TokenizerInfo>,
    /// Rows that an embedding table needs for every id that the tokenizer can give, the separator included.
    pub table_rows: usize,
    /// The largest id in the shards; none where there are no ids.
    pub largest_id: Option<u32>,
    /// What stands between documents.
    pub separator: Option<Separator>,
    /// How ids are stored.
    #[serde(rename = "dtype")]
    pub id_type: IdType,
    /// Share of documents that went to the split `val`.
    pub val: f64,
    /// Seed of that choice.
    pub seed: u64,
    /// Documents that could not be used, where that was allowed.
    pub skipped: Skipped,
    /// The splits, `train` and `val`.
    pub splits: BTreeMap<String, SplitInfo>,
}

/// A tokenizer as the manifest names it.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::shard::TokenizerInfo;
/// let tokenizer = Tokenizer::cl100k();
/// let info = TokenizerInfo::new(tokenizer.name(), tokenizer.fingerprint());
/// assert_eq!((info.name.as_str(), info.fingerprint.len()), ("cl100k_base", 16));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    /// Its name.
    pub name: String,
    /// [`Tokenizer::fingerprint`](crate::Tokenizer::fingerprint) in 16 hexadecimal digits.
    pub fingerprint: String,
}

impl TokenizerInfo {
    /// A tokenizer by its name and [`Tokenizer::fingerprint`](crate::Tokenizer::fingerprint).
    pub fn new(name: &str, fingerprint: u64) -> Self {
        TokenizerInfo { name: name.to_string(), fingerprint: format!("{fingerprint:016x}") }
    }
}

/// The token that stands after (or, in some imported files, before) each document.
///
/// # Example
/// ```
/// use tallow_text::shard::Separator;
/// let separator = Separator { token: Some("<|endoftext|>".to_string()), id: 100_257, before: false };
/// assert_eq!(serde_json::to_string(&separator)?, r#"{"token":"<|endoftext|>","id":100257}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Separator {
    /// Its text, where that is known.
    pub token: Option<String>,
    /// Its id.
    pub id: u32,
    /// Whether it stands before each document (imported files), not after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub before: bool,
}

/// One split.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, prepare};
/// use tallow_text::shard::SplitInfo;
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// let manifest = prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?.expect("there is no other rank");
/// let train: &SplitInfo = &manifest.splits["train"];
/// assert_eq!((train.tokens, train.documents, train.text_bytes, train.shards.len()), (3, 1, 11, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// Ids of all its shards.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of the text that became these ids (0 where that is unknown).
    pub text_bytes: u64,
    /// Its shards, in order.
    pub shards: Vec<ShardInfo>,
}

/// One shard: `NAME.bin` and `NAME.idx` in the split's folder.
///
/// # Example
/// ```
/// use tallow_text::shard::{IdType, ShardWriter};
/// let folder = tempfile::tempdir()?;
/// let mut writer = ShardWriter::create(folder.path().join("000000"), IdType::U16)?;
/// writer.push(&[5, 6, 0])?;
/// let info = writer.finish()?;
/// assert_eq!((info.name.as_str(), info.tokens, info.documents), ("000000", 3, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// File name without its ending.
    pub name: String,
    /// Ids.
    pub tokens: u64,
    /// Documents. A document that was cut into several shards counts in each of them.
    pub documents: u64,
    /// Whether the first document is the rest of one that began in an earlier shard.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// Bytes of its text.
    #[serde(default)]
    pub text_bytes: u64,
    /// The largest id.
    pub largest_id: Option<u32>,
    /// CRC-32 (IEEE) of the `.bin`.
    pub crc32: u32,
    /// CRC-32 (IEEE) of the `.idx`.
    pub index_crc32: u32,
}

/// Documents that could not be used.
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
/// assert_eq!(manifest.skipped.count, 1);
/// assert!(manifest.skipped.reasons[0].contains("a.jsonl: line 2: no field"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// The first of them of each unit of work: which, and why.
    pub reasons: Vec<String>,
}

impl SplitInfo {
    pub(crate) fn add(&mut self, shard: ShardInfo) {
        self.tokens += shard.tokens;
        self.documents += shard.documents - u64::from(shard.continues);
        self.text_bytes += shard.text_bytes;
        if shard.tokens > 0 {
            self.shards.push(shard);
        }
    }
}

impl Manifest {
    /// Reads the manifest of `folder`.
    ///
    /// # Errors
    /// - [`Error::Io`] if there is none, with a word on folders that are not finished.
    /// - [`Error::Shard`] if it is torn, or of another format or version.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(MANIFEST);
        let bad = |reason: String| Error::Shard { path: path.clone(), reason };
        let bytes = match read_regular(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && folder.as_ref().join("plan.json").exists() => {
                return Err(bad("not there yet: `prepare` has not finished this folder".to_string()));
            }
            result => result.map_err(|e| Error::io(&path, e))?,
        };
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head = serde_json::from_slice(&bytes).map_err(|e| bad(format!("not a manifest: {e}")))?;
        if (head.format.as_str(), head.version) != (FORMAT, VERSION) {
            return Err(bad(format!(
                "format {:?} version {}, of which this tallow knows {FORMAT:?} version {VERSION}",
                head.format, head.version
            )));
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| bad(format!("not a manifest: {e}")))?;
        if manifest.table_rows > MOST_ROWS {
            return Err(bad(format!("{} table rows: no vocabulary is that large", manifest.table_rows)));
        }
        // Names from strangers must not lead out of the folder.
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\', ':']) && !name.starts_with('.');
        for (split, info) in &manifest.splits {
            if let Some(name) = [split].into_iter().chain(info.shards.iter().map(|s| &s.name)).find(|name| !plain(name))
            {
                return Err(bad(format!("{name:?} is not the name of a split or shard")));
            }
        }
        Ok(manifest)
    }

    /// Opens one shard of `split`, a folder's.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shard`] if the files' lengths are not what `info` says.
    pub fn open(&self, folder: &Path, split: &str, info: &ShardInfo, io: Io) -> Result<Shard> {
        Shard::open(folder.join(split).join(&info.name), info, self.id_type, io)
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest is JSON");
        text.push(b'\n');
        write_whole(&folder.join(MANIFEST), &text)
    }

    /// A number that changes when the checksum of any shard of `split` does: what a loader's state is tied to.
    pub fn fingerprint(&self, split: &str) -> u64 {
        let mut fingerprint = Fingerprint::new("split");
        fingerprint.add(self.tokenizer.as_ref().map_or("", |t| &t.fingerprint).as_bytes());
        fingerprint.add(&[self.id_type.bytes() as u8]);
        fingerprint.add(&self.separator.as_ref().map_or(u32::MAX, |s| s.id).to_le_bytes());
        for shard in self.splits.get(split).iter().flat_map(|split| &split.shards) {
            fingerprint.add(shard.name.as_bytes());
            fingerprint.add(&shard.tokens.to_le_bytes());
            fingerprint.add(&shard.crc32.to_le_bytes());
            fingerprint.add(&shard.index_crc32.to_le_bytes());
        }
        fingerprint.finish()
    }
}
