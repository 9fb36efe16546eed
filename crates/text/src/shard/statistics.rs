//! Statistics of a folder of shards: how often each id occurs, and how long documents are.

use std::path::Path;

use super::{Io, Manifest, SplitInfo};
use crate::Result;

/// Statistics of one split.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, prepare};
/// use tallow_text::shard::Statistics;
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?;
/// let statistics = Statistics::read(&cfg.out, "train", 1, &|_, _| ())?;
/// assert_eq!((statistics.tokens(), statistics.touched()), (3, 3)); // Hello, world, <|endoftext|>
/// assert_eq!(statistics.most_frequent(1), [(1917, 1)]); // the lowest of ids that are equally frequent
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Number of occurrences of each id, indexed by id. Its length is the manifest's number of table rows.
    pub counts: Vec<u64>,
    /// The longest documents, longest first.
    pub longest: Vec<LongDocument>,
    /// Histogram of document lengths. Entry i counts documents of at least 2^(i/2) and fewer than 2^((i+1)/2) tokens.
    pub lengths: Vec<u64>,
    /// Growth of the vocabulary: (tokens read, different ids among them), about twelve points per power of ten.
    pub growth: Vec<(u64, usize)>,
}

/// One of the longest documents.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, prepare};
/// use tallow_text::shard::{LongDocument, Statistics};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?;
/// let statistics = Statistics::read(&cfg.out, "train", 1, &|_, _| ())?;
/// assert_eq!(statistics.longest, [LongDocument { tokens: 3, shard: 0, document: 0 }]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LongDocument {
    /// Number of ids, the separator included.
    pub tokens: u64,
    /// Number of the shard in which it begins, from 0.
    pub shard: usize,
    /// Number of the document in that shard, from 0.
    pub document: u64,
}

impl Statistics {
    /// Reads all ids of split `split` in `folder`, and keeps the `longest` longest documents. `progress` gets the number of bytes
    /// read and the number of all bytes.
    ///
    /// # Errors
    /// Those of [`Manifest::read`] and [`Shard::open`](super::Shard::open). A missing split counts as empty.
    ///
    /// # Cost
    /// One pass over the ids. Memory: 8 bytes per table row.
    pub fn read(folder: &Path, split: &str, longest: usize, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let mut statistics = Statistics { counts: vec![0; manifest.table_rows], ..Default::default() };
        let (mut tokens, mut touched, mut next) = (0u64, 0usize, 1u64);
        let mut last: Option<LongDocument> = None;
        let split_info = manifest.splits.get(split);
        let bytes = |tokens: u64| tokens.saturating_mul(manifest.id_type.bytes() as u64);
        let total = bytes(split_info.map_or(0, |split| split.tokens));
        for (number, info) in split_info.into_iter().flat_map(|split| &split.shards).enumerate() {
            let shard = manifest.open(folder, split, info, Io::Map)?;
            shard.for_each(|ids| {
                for id in ids {
                    // Ids are at most the manifest's largest id, but its number of rows may be wrong.
                    if let Some(count) = statistics.counts.get_mut(*id as usize) {
                        touched += usize::from(*count == 0);
                        *count += 1;
                    }
                    tokens += 1;
                    if tokens == next {
                        statistics.growth.push((tokens, touched));
                        next += (next / 5).max(1);
                    }
                }
                progress(bytes(tokens), total);
            })?;
            let index = shard.index()?;
            for document in 0..index.documents() {
                let tokens = index.start(document + 1).saturating_sub(index.start(document));
                // A document that is cut at the end of a shard continues as the first document of the next.
                match &mut last {
                    Some(last) if document == 0 && info.continues => last.tokens += tokens,
                    _ => {
                        let next = LongDocument { tokens, shard: number, document };
                        last.replace(next).into_iter().for_each(|document| statistics.add(document, longest));
                    }
                }
            }
        }
        last.into_iter().for_each(|document| statistics.add(document, longest));
        if statistics.growth.last().is_some_and(|last| last.0 < tokens) {
            statistics.growth.push((tokens, touched));
        }
        Ok(statistics)
    }

    fn add(&mut self, document: LongDocument, longest: usize) {
        let place = half_octave(document.tokens);
        if self.lengths.len() <= place {
            self.lengths.resize(place + 1, 0);
        }
        self.lengths[place] += 1;
        let place = self.longest.partition_point(|other| other.tokens >= document.tokens);
        if place < longest {
            self.longest.insert(place, document);
            self.longest.truncate(longest);
        }
    }

    /// Number of all ids.
    pub fn tokens(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Number of different ids that occur.
    pub fn touched(&self) -> usize {
        self.counts.iter().filter(|count| **count > 0).count()
    }

    /// The `count` most frequent ids with their numbers of occurrences, most frequent first. Equal ones are sorted by id.
    pub fn most_frequent(&self, count: usize) -> Vec<(u32, u64)> {
        let mut ids: Vec<(u32, u64)> = (0..).zip(self.counts.iter().copied()).filter(|(_, count)| *count > 0).collect();
        ids.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        ids.truncate(count);
        ids
    }
}

/// The largest i with 2^(i/2) <= length; 0 for an empty document.
fn half_octave(length: u64) -> usize {
    let whole = length.max(1).ilog2();
    let upper = u128::from(length) * u128::from(length) >= 1 << (2 * whole + 1);
    (2 * whole) as usize + usize::from(upper)
}

/// At most `count` documents, spread evenly over the shards of a split. Each is (number of its shard, its number in that shard).
///
/// # Example
/// ```
/// use tallow_text::shard::{ShardInfo, SplitInfo, sample};
/// let shard = |documents| ShardInfo { documents, ..Default::default() };
/// let split = SplitInfo { shards: vec![shard(10), shard(6)], ..Default::default() };
/// assert_eq!(sample(&split, 4), [(0, 0), (0, 3), (1, 4), (1, 0)]);
/// ```
pub fn sample(split: &SplitInfo, count: usize) -> Vec<(usize, u64)> {
    let shards = split.shards.len();
    let mut places = Vec::new();
    for i in 0..if shards == 0 { 0 } else { count } {
        let shard = i * shards / count;
        // `within` documents fall into one shard. Each comes from another part of it.
        let within = (count - count.min(shards)) as u64 + 1;
        let place = (shard, (i as u64 % within) * split.shards[shard].documents / within);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Reads the first `limit` ids of a document. `shard` and `document` are numbers from 0.
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

#[cfg(test)]
mod tests {
    use super::half_octave;

    #[test]
    fn lengths_fall_into_half_octaves() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 16].map(half_octave), [0, 0, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8]);
        assert_eq!(half_octave(u64::MAX), 127);
    }
}
