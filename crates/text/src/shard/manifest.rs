//! `manifest.json`: the description of a folder of shards.

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
/// The most table rows that a manifest may have. The limit bounds the memory for hostile manifests.
const MOST_ROWS: usize = 1 << 28;

/// Description of a folder of shards: tokenizer, splits, sizes and checksums.
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
    /// Name of the format: `tallow-shards`.
    pub format: String,
    /// Version of the format: 1.
    pub version: u32,
    /// The tokenizer that made the ids, if known.
    pub tokenizer: Option<TokenizerInfo>,
    /// Rows that an embedding table needs for all ids of the tokenizer, the separator included.
    pub table_rows: usize,
    /// The largest id in the shards. `None` if there are no ids.
    pub largest_id: Option<u32>,
    /// The separator between documents. `None`: documents have none.
    pub separator: Option<Separator>,
    /// Type of the ids on disk.
    #[serde(rename = "dtype")]
    pub id_type: IdType,
    /// Fraction of documents that go to the split `val`, from 0 to 1.
    pub val: f64,
    /// Seed of the split.
    pub seed: u64,
    /// Documents that were skipped.
    pub skipped: Skipped,
    /// The splits, `train` and `val`.
    pub splits: BTreeMap<String, SplitInfo>,
}

/// Name and fingerprint of a tokenizer, as the manifest stores them.
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
    /// Name of the tokenizer.
    pub name: String,
    /// [`Tokenizer::fingerprint`](crate::Tokenizer::fingerprint) in 16 hexadecimal digits.
    pub fingerprint: String,
}

impl TokenizerInfo {
    /// Makes it from a name and a [`Tokenizer::fingerprint`](crate::Tokenizer::fingerprint).
    pub fn new(name: &str, fingerprint: u64) -> Self {
        TokenizerInfo { name: name.to_string(), fingerprint: format!("{fingerprint:016x}") }
    }
}

/// The token after each document (in some imported files: before it).
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
    /// Text of the token, if known.
    pub token: Option<String>,
    /// Id of the token.
    pub id: u32,
    /// Whether the token is before each document (imported files) instead of after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub before: bool,
}

/// One split: its sizes and its shards.
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
    /// Number of ids in all its shards.
    pub tokens: u64,
    /// Number of documents.
    pub documents: u64,
    /// Bytes of the text that these ids encode. 0 if unknown.
    pub text_bytes: u64,
    /// The shards, in order.
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
    /// File name without the ending.
    pub name: String,
    /// Number of ids.
    pub tokens: u64,
    /// Number of documents. A document that is cut into several shards counts in each of them.
    pub documents: u64,
    /// Whether the first document began in an earlier shard.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// Bytes of the text that these ids encode. 0 if unknown.
    #[serde(default)]
    pub text_bytes: u64,
    /// The largest id. `None` if there are no ids.
    pub largest_id: Option<u32>,
    /// CRC-32 (IEEE) of the `.bin`.
    pub crc32: u32,
    /// CRC-32 (IEEE) of the `.idx`.
    pub index_crc32: u32,
}

/// Documents that were skipped because they could not be used.
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
    /// Number of documents.
    pub count: u64,
    /// Place and reason of each, for the first 100 of each unit.
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
    /// - [`Error::Io`]: the manifest cannot be read.
    /// - [`Error::Shard`]: `prepare` has not finished this folder, or the manifest is torn or of another format or version.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(MANIFEST);
        let bad = |reason: String| Error::Shard { path: path.clone(), reason };
        let bytes = match read_regular(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && folder.as_ref().join("plan.json").exists() => {
                return Err(bad("not there yet: `prepare` has not finished this folder".to_string()));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let reason = "No such file: give a folder of shards that `prepare` made";
                return Err(Error::io(&path, std::io::Error::new(e.kind(), reason)));
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
                "format {:?} version {}, but this tallow reads {FORMAT:?} version {VERSION}",
                head.format, head.version
            )));
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| bad(format!("not a manifest: {e}")))?;
        if manifest.table_rows > MOST_ROWS {
            return Err(bad(format!("{} table rows: at most {MOST_ROWS} are accepted", manifest.table_rows)));
        }
        // Names in a hostile manifest must not lead out of the folder.
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\', ':']) && !name.starts_with('.');
        for (split, info) in &manifest.splits {
            if let Some(name) = [split].into_iter().chain(info.shards.iter().map(|s| &s.name)).find(|name| !plain(name))
            {
                return Err(bad(format!("{name:?} is not the name of a split or shard")));
            }
        }
        Ok(manifest)
    }

    /// Opens a shard of split `split` in `folder`.
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub fn open(&self, folder: &Path, split: &str, info: &ShardInfo, io: Io) -> Result<Shard> {
        Shard::open(folder.join(split).join(&info.name), info, self.id_type, io)
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest is JSON");
        text.push(b'\n');
        write_whole(&folder.join(MANIFEST), &text)
    }

    /// Fingerprint of split `split`. It changes with the checksum of any of its shards. A loader's state stores it.
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
