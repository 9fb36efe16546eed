//! Where the documents of a foreign file end.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::{ForeignFile, Layout};
use crate::shard::write::with_suffix;
use crate::support::files::open_regular;
use crate::{Error, Result};

/// What tells where a document ends.
pub(super) enum Ends {
    /// This id, which is its last.
    After(u32),
    /// This id, which is the first of the next.
    Before(u32),
    Index(Index),
    /// Nothing: the file is one document.
    Nothing,
}

impl Ends {
    /// For the file `path` of `total` ids.
    pub(super) fn open(path: &Path, about: &ForeignFile, layout: &Layout, total: u64) -> Result<Self> {
        Ok(match about.separator {
            _ if layout.index => Ends::Index(Index::open(path, total)?),
            Some(id) if layout.separator_before => Ends::Before(id),
            Some(id) => Ends::After(id),
            None => Ends::Nothing,
        })
    }

    /// How many of `ids`, of which the first is id `at` of the file, belong to the document at hand, and whether it ends there.
    /// `begins`: the document has no ids yet.
    pub(super) fn split(&mut self, ids: &[u32], at: u64, begins: bool) -> Result<(usize, bool)> {
        let found = match self {
            Ends::After(separator) => ids.iter().position(|id| id == separator).map(|found| found + 1),
            Ends::Before(separator) => {
                let skip = usize::from(begins);
                ids.iter().skip(skip).position(|id| id == separator).map(|found| found + skip)
            }
            Ends::Index(index) => index.take(at, ids.len())?,
            Ends::Nothing => None,
        };
        Ok((found.unwrap_or(ids.len()), found.is_some()))
    }
}

/// datatrove's index: u64 ends of documents, in ids.
pub(super) struct Index {
    path: PathBuf,
    reader: BufReader<File>,
    /// Where the document at hand ends; after the last document: as many ids as nobody has.
    end: u64,
    total: u64,
}

impl Index {
    fn open(ds: &Path, total: u64) -> Result<Self> {
        let path = with_suffix(ds, ".index");
        let file = open_regular(&path).map_err(|e| Error::io(&path, e))?;
        let mut index = Index { path, reader: BufReader::new(file), end: 0, total };
        index.advance()?;
        Ok(index)
    }

    /// How many of `count` ids from `at` on belong to the document at hand, if it ends among them.
    fn take(&mut self, at: u64, count: usize) -> Result<Option<usize>> {
        let left = self.end - at;
        if left > count as u64 {
            return Ok(None);
        }
        self.advance()?;
        Ok(Some(left as usize))
    }

    fn advance(&mut self) -> Result<()> {
        let bad = |reason: String| Error::Shard { path: self.path.clone(), reason };
        let (last, mut bytes) = (self.end, [0; 8]);
        while last < self.total {
            let end = match self.reader.read_exact(&mut bytes) {
                Ok(()) => u64::from_le_bytes(bytes),
                Err(_) => return Err(bad(format!("it ends at id {last} of {}: the file is torn", self.total))),
            };
            if end < last || end > self.total {
                return Err(bad(format!("a document runs from {last} to {end}, of {} ids", self.total)));
            }
            // A document without ids ends where the one before it does.
            if end > last {
                self.end = end;
                return Ok(());
            }
        }
        self.end = u64::MAX;
        Ok(())
    }
}
