//! Ids ⇄ files on disk: raw little-endian ids, and beside them Megatron-LM's `.idx`.
//!
//! `docs/format.md` describes every byte of the format. This module knows nothing about text. Of the tokenizer it stores the name,
//! the fingerprint and the number of table rows.
//!
//! All functions take their arguments in one order: the input (a folder and its split, or files), its format, the output, and last
//! the progress callback.

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

/// Type of the ids on disk. Both types are little-endian.
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
    /// Two bytes, for ids below 65536.
    U16,
    /// Four bytes.
    U32,
}

impl IdType {
    /// The smallest type for the ids of a table with `rows` rows.
    pub fn for_rows(rows: usize) -> Self {
        if rows <= 1 << 16 { IdType::U16 } else { IdType::U32 }
    }

    /// Bytes per id.
    pub fn bytes(self) -> usize {
        match self {
            IdType::U16 => 2,
            IdType::U32 => 4,
        }
    }

    /// Megatron-LM's type code. It has none for u32, so u32 ids have the code of int32, which is the same below 2^31.
    fn megatron_code(self) -> u8 {
        match self {
            IdType::U16 => 8,
            IdType::U32 => 4,
        }
    }

    /// Appends `ids` as little-endian bytes. The error is the first id that does not fit.
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

    /// Reads the little-endian ids in `bytes` into `out`, which has their number.
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
