//! What is in a folder of shards: how often each id occurs, and the longest documents.

use std::path::Path;

use super::{Io, Manifest};
use crate::Result;

/// Counts over one split.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// How often each id occurs, by id: as many as the manifest's table has rows.
    pub counts: Vec<u64>,
    /// The longest documents, longest first.
    pub longest: Vec<LongDocument>,
}

/// One of the longest documents.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LongDocument {
    /// Its ids, the separator included.
    pub tokens: u64,
    /// The shard, as a number from 0, and the document in it.
    pub shard: usize,
    /// Number of the document in that shard, from 0.
    pub document: u64,
}

impl Statistics {
    /// Reads all ids of split `split` of `folder`; `progress` is told how many at a time. The `longest` longest documents are
    /// kept.
    ///
    /// # Errors
    /// Those of [`Manifest::read`] and [`Shard::open`](super::Shard::open). A split that is not there has no ids.
    ///
    /// # Cost
    /// One pass over the ids; 8 bytes a table row.
    pub fn read(folder: &Path, split: &str, longest: usize, mut progress: impl FnMut(u64)) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let mut statistics = Statistics { counts: vec![0; manifest.table_rows], longest: Vec::new() };
        let shards = manifest.splits.get(split).into_iter().flat_map(|split| &split.shards);
        for (number, info) in shards.enumerate() {
            let shard = manifest.open(folder, split, info, Io::Map)?;
            shard.for_each(|ids| {
                for id in ids {
                    // The manifest's largest id was compared; its rows may be a lie.
                    if let Some(count) = statistics.counts.get_mut(*id as usize) {
                        *count += 1;
                    }
                }
                progress(ids.len() as u64);
            })?;
            let index = shard.index()?;
            for document in 0..index.documents() {
                let tokens = index.start(document + 1).saturating_sub(index.start(document));
                if statistics.longest.len() < longest || statistics.longest.last().is_some_and(|l| l.tokens < tokens) {
                    let place = statistics.longest.partition_point(|other| other.tokens >= tokens);
                    statistics.longest.insert(place, LongDocument { tokens, shard: number, document });
                    statistics.longest.truncate(longest);
                }
            }
        }
        Ok(statistics)
    }

    /// All ids.
    pub fn tokens(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Ids that occur at all.
    pub fn touched(&self) -> usize {
        self.counts.iter().filter(|count| **count > 0).count()
    }

    /// The `count` most frequent ids, with how often they occur.
    pub fn most_frequent(&self, count: usize) -> Vec<(u32, u64)> {
        let mut ids: Vec<(u32, u64)> = (0..).zip(self.counts.iter().copied()).filter(|(_, count)| *count > 0).collect();
        ids.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        ids.truncate(count);
        ids
    }
}

/// Ids of one document, at most `limit` of them.
///
/// # Errors
/// As [`Statistics::read`]; [`Error::Config`](crate::Error::Config) if there is no such document.
pub fn document(folder: &Path, split: &str, shard: usize, document: u64, limit: usize) -> Result<Vec<u32>> {
    let manifest = Manifest::read(folder)?;
    let nothing = || crate::Error::Config(format!("split {split} has no document {document} in shard {shard}"));
    let info = manifest.splits.get(split).and_then(|split| split.shards.get(shard)).ok_or_else(nothing)?;
    let shard = manifest.open(folder, split, info, Io::Map)?;
    let index = shard.index()?;
    if document >= index.documents() {
        return Err(nothing());
    }
    let (start, end) = (index.start(document), index.start(document + 1));
    let mut ids = vec![0; (end.saturating_sub(start)).min(limit as u64) as usize];
    shard.read(start, &mut ids)?;
    Ok(ids)
}
