//! Ends of documents in a file of another trainer.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::{ForeignFile, Layout};
use crate::shard::write::with_suffix;
use crate::support::files::open_regular;
use crate::{Error, Result};

/// How the ends of documents are found.
pub(super) enum Ends {
    /// A document ends with this id.
    After(u32),
    /// A document ends before this id, which begins the next one.
    Before(u32),
    Index(Index),
    /// The whole file is one document.
    Nothing,
}

impl Ends {
    /// Prepares for the file `path` of `total` ids.
    pub(super) fn open(path: &Path, about: &ForeignFile, layout: &Layout, total: u64) -> Result<Self> {
        Ok(match about.separator {
            _ if layout.index => Ends::Index(Index::open(path, total)?),
            Some(id) if layout.separator_before => Ends::Before(id),
            Some(id) => Ends::After(id),
            None => Ends::Nothing,
        })
    }

    /// Returns how many of `ids` belong to the current document, and whether it ends with them. `at` is the position of the first of
    /// `ids` in the file. `begins`: the document has no ids yet.
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

/// datatrove's index: the ends of documents as u64, counted in ids.
pub(super) struct Index {
    path: PathBuf,
    reader: BufReader<File>,
    /// End of the current document. After the last document: `u64::MAX`.
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

    /// If the current document ends within the `count` ids from `at` on: how many of them belong to it.
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
            // Documents without ids are skipped. They end where the previous one does.
            if end > last {
                self.end = end;
                return Ok(());
            }
        }
        self.end = u64::MAX;
        Ok(())
    }
}
