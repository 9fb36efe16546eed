//! A folder of shards, or ids in memory, as splits.

use std::collections::BTreeMap;
use std::path::Path;

use super::Shards;
use crate::{Error, Result, Tokenizer};
use tallow_text::shard::{Io, Manifest, Shard, ShardInfo};
use tallow_text::support::Fingerprint;

/// A data set with its splits: `train` and `val`.
///
/// # Example
/// ```
/// use tallow::Dataset;
/// let dataset = Dataset::from_ids(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.2)?; // the last fifth is the split "val"
/// assert_eq!((dataset.split("train")?.tokens(), dataset.split("val")?.tokens()), (8, 2));
/// assert!(dataset.split("test").is_err());
/// # Ok::<(), tallow::Error>(())
/// ```
pub struct Dataset {
    name: String,
    splits: BTreeMap<String, Split>,
    manifest: Option<Manifest>,
}

/// One split of a [`Dataset`]. Cloning is cheap.
///
/// # Example
/// ```
/// use tallow::Dataset;
/// let train = Dataset::from_ids(&[3, 1, 4, 1, 5], 0.0)?.split("train")?;
/// assert_eq!((train.name(), train.tokens(), train.id_bound()), ("train", 5, 6));
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone)]
pub struct Split {
    name: String,
    shards: Shards,
    id_bound: usize,
    fingerprint: u64,
}

impl Dataset {
    /// Opens a folder made by [`prepare`](crate::prepare) or [`shard::import`](crate::shard::import), through memory maps.
    ///
    /// # Errors
    /// - [`Error::Io`]: a missing file.
    /// - [`TextError::Shard`](crate::TextError::Shard): a truncated file, or one that does not match the manifest. This checks lengths
    ///   and headers; [`shard::verify`](tallow_text::shard::verify) checks checksums.
    ///
    /// # Cost
    /// Opens two files and reads 34 bytes per shard: milliseconds for a thousand shards.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(folder, Io::Map)
    }

    /// [`open`](Self::open) with another way to read: [`Io::Pread`] for network disks.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(folder: impl AsRef<Path>, io: Io) -> Result<Self> {
        let folder = folder.as_ref();
        let manifest = Manifest::read(folder)?;
        let mut splits = BTreeMap::new();
        for (name, info) in &manifest.splits {
            let open = |shard: &ShardInfo| manifest.open(folder, name, shard, io);
            let shards = info.shards.iter().map(open).collect::<tallow_text::Result<Vec<Shard>>>()?;
            let split = Split {
                name: name.clone(),
                shards: shards.into(),
                id_bound: info.shards.iter().filter_map(|shard| shard.largest_id).max().map_or(0, |id| id as usize + 1),
                fingerprint: manifest.fingerprint(name),
            };
            splits.insert(name.clone(), split);
        }
        Ok(Dataset { name: folder.display().to_string(), splits, manifest: Some(manifest) })
    }

    /// Ids in memory, as one document. The last part of them, a fraction `val` from 0 to 1, is the split `val`.
    ///
    /// # Errors
    /// [`Error::Config`]: `val` is not from 0 to 1, or an id is [`NO_TOKEN`](crate::NO_TOKEN).
    pub fn from_ids(ids: &[u32], val: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&val) {
            return Err(Error::Config(format!("the fraction of validation ids is {val}, not a number from 0 to 1")));
        }
        if let Some(at) = ids.iter().position(|id| *id == crate::NO_TOKEN) {
            return Err(Error::Config(format!("the id at position {at} is u32::MAX, which marks padding")));
        }
        let cut = ids.len() - (ids.len() as f64 * val).round() as usize;
        let split = |name: &str, ids: &[u32]| {
            let mut fingerprint = Fingerprint::new("ids");
            fingerprint.add(bytemuck::cast_slice(&ids.iter().map(|id| id.to_le()).collect::<Vec<u32>>()));
            let split = Split {
                name: name.to_string(),
                shards: vec![Shard::from_ids(ids, Vec::new())].into(),
                id_bound: ids.iter().max().map_or(0, |id| *id as usize + 1),
                fingerprint: fingerprint.finish(),
            };
            (name.to_string(), split)
        };
        let splits = [split("train", &ids[..cut]), split("val", &ids[cut..])].into();
        Ok(Dataset { name: "the ids in memory".to_string(), splits, manifest: None })
    }

    /// The ids of a text in memory, split by position, as in nanoGPT (`val` 0.1 is 90/10).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`] and [`from_ids`](Self::from_ids).
    ///
    /// # Example
    /// ```
    /// use tallow::{Dataset, Tokenizer};
    /// let dataset = Dataset::from_text(&Tokenizer::cl100k(), &"Hello world. ".repeat(10), 0.1)?;
    /// assert_eq!((dataset.split("train")?.tokens(), dataset.split("val")?.tokens()), (28, 3));
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn from_text(tokenizer: &Tokenizer, text: &str, val: f64) -> Result<Self> {
        Self::from_ids(&tokenizer.encode(text)?, val)
    }

    /// A folder made by [`prepare`](crate::prepare) with this tokenizer, or a text file, which is read completely and split by position
    /// ([`from_text`](Self::from_text)).
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`from_text`](Self::from_text); [`Error::Config`] if the folder's ids are of another tokenizer;
    /// [`TextError::InvalidUtf8`](crate::TextError::InvalidUtf8).
    pub fn from_path(tokenizer: &Tokenizer, path: impl AsRef<Path>, val: f64) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            let text = String::from_utf8(std::fs::read(path).map_err(|e| Error::io(path, e))?)
                .map_err(|e| tallow_text::Error::InvalidUtf8 { byte: e.utf8_error().valid_up_to() as u64 })?;
            return Ok(Dataset { name: path.display().to_string(), ..Self::from_text(tokenizer, &text, val)? });
        }
        let dataset = Self::open(path)?;
        let theirs = dataset.manifest().and_then(|manifest| manifest.tokenizer.as_ref());
        match theirs.filter(|theirs| theirs.fingerprint != format!("{:016x}", tokenizer.fingerprint())) {
            None => Ok(dataset),
            Some(theirs) => Err(Error::Config(format!(
                "the ids of {} were made by the tokenizer {}, and this one is {}: give that tokenizer, or prepare the text again",
                path.display(),
                theirs.name,
                tokenizer.name()
            ))),
        }
    }

    /// The folder, or a description of ids in memory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The split of this name.
    ///
    /// # Errors
    /// [`Error::Config`] with a list of the splits, if there is none of this name.
    pub fn split(&self, name: &str) -> Result<Split> {
        self.splits.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.splits.keys().map(String::as_str).collect();
            Error::Config(format!("{} has no split {name:?}, only {}", self.name, names.join(", ")))
        })
    }

    /// The manifest of the folder. `None` for ids in memory.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }
}

impl Split {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shards, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Ids of all shards.
    pub fn tokens(&self) -> u64 {
        self.shards.iter().map(Shard::tokens).sum()
    }

    /// The largest id + 1: the rows that a table needs.
    pub fn id_bound(&self) -> usize {
        self.id_bound
    }

    /// A hash of the manifest's checksums (for ids in memory: of the ids).
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn shared(&self) -> Shards {
        self.shards.clone()
    }
}
