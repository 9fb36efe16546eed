//! Ids ⇄ files on disk: raw little-endian ids, and beside them Megatron-LM's `.idx`.
//!
//! Every byte of the format stands in `docs/format.md`. This module knows nothing of text: of the tokenizer it
//! keeps a name, a fingerprint and a number of rows.
//!
//! Arguments stand in one order: what is read (a folder and its split, or files), what it is, where it goes, and last who hears of
//! the progress.

mod foreign;
mod index;
mod manifest;
mod read;
mod statistics;
mod verify;
mod write;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use foreign::{Foreign, ForeignFile, export, import};
pub use manifest::{Manifest, Separator, ShardInfo, Skipped, SplitInfo, TokenizerInfo};
pub use read::{Index, Io, Shard};
pub use statistics::{LongDocument, Statistics, document, sample};
pub use verify::verify;
pub use write::ShardWriter;

pub(crate) use manifest::{FORMAT, MANIFEST, VERSION};

/// How an id is stored.
///
/// # Example
/// ```
/// use tallow_text::shard::IdType;
/// assert_eq!(IdType::for_rows(50_257), IdType::U16);
/// assert_eq!(IdType::for_rows(100_277).bytes(), 4);
/// assert_eq!("u16".parse::<IdType>()?, IdType::U16);
/// # Ok::<(), tallow_text::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdType {
    /// Two bytes: every id is below 65536.
    U16,
    /// Four bytes.
    U32,
}

impl IdType {
    /// The smallest type that holds the ids of a table of `rows` rows.
    pub fn for_rows(rows: usize) -> Self {
        if rows <= 1 << 16 { IdType::U16 } else { IdType::U32 }
    }

    /// Bytes of an id.
    pub fn bytes(self) -> usize {
        match self {
            IdType::U16 => 2,
            IdType::U32 => 4,
        }
    }

    /// Megatron-LM's code: it has none for u32, and reads our u32 as int32, which is the same below 2^31.
    fn megatron_code(self) -> u8 {
        match self {
            IdType::U16 => 8,
            IdType::U32 => 4,
        }
    }

    /// Appends `ids` as little-endian bytes, or says which does not fit.
    fn encode(self, ids: &[u32], out: &mut Vec<u8>) -> std::result::Result<(), u32> {
        let start = out.len();
        out.resize(start + ids.len() * self.bytes(), 0);
        let out = &mut out[start..];
        match self {
            IdType::U32 => {
                for (bytes, id) in out.as_chunks_mut::<4>().0.iter_mut().zip(ids) {
                    *bytes = id.to_le_bytes();
                }
            }
            IdType::U16 => {
                if let Some(id) = ids.iter().find(|id| **id > u32::from(u16::MAX)) {
                    return Err(*id);
                }
                for (bytes, id) in out.as_chunks_mut::<2>().0.iter_mut().zip(ids) {
                    *bytes = (*id as u16).to_le_bytes();
                }
            }
        }
        Ok(())
    }

    /// Reads little-endian ids into `out`, which holds as many as `bytes`.
    fn decode(self, bytes: &[u8], out: &mut [u32]) {
        match self {
            IdType::U16 => {
                for (id, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *id = u32::from(u16::from_le_bytes(*bytes));
                }
            }
            IdType::U32 => {
                for (id, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *id = u32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

impl std::str::FromStr for IdType {
    type Err = Error;

    /// `u16` or `u32`.
    fn from_str(name: &str) -> Result<Self> {
        Error::named("id type", name, &[("u16", IdType::U16), ("u32", IdType::U32)])
    }
}

impl std::fmt::Display for IdType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "u{}", 8 * self.bytes())
    }
}
