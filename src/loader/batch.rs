//! Rows of ids → tensors of a batch.

use candle_core::{Device, Tensor};

use super::{DataLoaderConfig, Row};
use crate::{NO_TOKEN, Result};
use tallow_text::shard::Shard;

/// One batch: inputs and targets.
///
/// # Example
/// ```
/// use tallow::{DataLoader, DataLoaderConfig, Dataset};
/// let ids: Vec<u32> = (0..100).collect();
/// let train = Dataset::from_ids(&ids, 0.0)?.split("train")?;
/// let cfg = DataLoaderConfig { batch_size: 2, context_length: 8, ..Default::default() };
/// let batch = DataLoader::new(&train, cfg)?.next().expect("there are 12 windows of 8")?;
/// assert_eq!((batch.inputs.dims(), batch.targets.dims()), (&[2, 8][..], &[2, 8][..]));
/// assert_eq!(batch.id_bound, 100);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Batch {
    /// Ids (B, T) u32.
    pub inputs: Tensor,
    /// The id that follows each input, (B, T) u32. [`NO_TOKEN`] at padding.
    pub targets: Tensor,
    /// Documents of the batch, if [`DataLoaderConfig::documents`] is set.
    pub documents: Option<Documents>,
    /// All ids except padding are below this bound. They were checked when they were read. Pass it to
    /// [`TokenEmbedding::lookup_below`](crate::TokenEmbedding::lookup_below), which then omits the check.
    pub id_bound: usize,
    /// The epoch of the first row, from 0.
    pub epoch: u64,
}

/// The documents in the rows of a batch: for positions, masks and variable-length attention.
///
/// # Example
/// ```
/// use tallow::{DataLoader, DataLoaderConfig, Dataset};
/// let train = Dataset::from_ids(&[5; 9], 0.0)?.split("train")?;
/// let cfg = DataLoaderConfig { batch_size: 2, context_length: 4, documents: true, ..Default::default() };
/// let batch = DataLoader::new(&train, cfg)?.next().expect("there are 2 windows of 4")?;
/// let documents = batch.documents.expect("the config asks for them");
/// assert_eq!(documents.positions.to_vec2::<u32>()?, [[0, 1, 2, 3], [0, 1, 2, 3]]);
/// assert_eq!(documents.cumulative_lengths.to_vec1::<u32>()?, [0, 4, 8]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Documents {
    /// The document of each input, numbered from 0 in each row: (B, T) u32. Padding counts as one more document.
    pub ids: Tensor,
    /// Position of each input in its document, (B, T) u32. In a document that starts before the row it counts from the row's start.
    pub positions: Tensor,
    /// 1 if the target belongs to the same document, 0 at the last id of a document and at padding: (B, T) u8.
    pub loss_mask: Tensor,
    /// The starts of the documents in the flattened B x T ids, and B x T at the end: (documents + 1) u32, as `cu_seqlens` of
    /// variable-length attention.
    pub cumulative_lengths: Tensor,
    /// Length of the longest document.
    pub longest: usize,
}

/// Makes batches, and reuses its buffers.
pub(super) struct Builder {
    context: usize,
    pad_id: u32,
    documents: bool,
    device: Device,
    scratch: Vec<u32>,
    /// The last target of each segment.
    last: Vec<u32>,
}

impl Builder {
    pub(super) fn new(cfg: &DataLoaderConfig) -> Self {
        Builder {
            context: cfg.context_length,
            pad_id: cfg.pad_id,
            documents: cfg.documents,
            device: cfg.device.clone(),
            scratch: Vec::new(),
            last: Vec::new(),
        }
    }

    pub(super) fn build(&mut self, rows: &[Row], shards: &[&[Shard]], epoch: u64, id_bound: usize) -> Result<Batch> {
        // Inputs and targets are two halves of one buffer. A GPU needs one upload. On the host, malloc reuses the mapped pages;
        // two smaller buffers were unmapped at every batch (107 µs instead of 45).
        let size = rows.len() * self.context;
        let mut both = Vec::with_capacity(2 * size);
        self.last.clear();
        let ask = |row: usize| {
            if let Some((source, segments)) = rows.get(row) {
                segments.iter().for_each(|s| shards[*source][s.shard as usize].prefetch(s.start, s.len as usize + 1));
            }
        };
        ask(0);
        for (row, (source, segments)) in rows.iter().enumerate() {
            ask(row + 1);
            for segment in segments {
                let (shard, len) = (&shards[*source][segment.shard as usize], segment.len as usize);
                shard.with(segment.start, len + 1, &mut self.scratch, |ids| {
                    both.extend_from_slice(&ids[..len]);
                    self.last.push(ids[len]);
                })?;
            }
            both.resize((row + 1) * self.context, self.pad_id);
        }
        // Targets are the inputs shifted by one, plus one more id per segment. The inputs are still in the cache.
        let mut last = self.last.iter();
        for (row, (_, segments)) in rows.iter().enumerate() {
            let mut at = row * self.context;
            for segment in segments {
                both.extend_from_within(at + 1..at + segment.len as usize);
                both.extend(last.next());
                at += segment.len as usize;
            }
            both.resize(size + (row + 1) * self.context, NO_TOKEN);
        }
        let both = Tensor::from_vec(both, (2, rows.len(), self.context), &self.device)?;
        let documents = match self.documents {
            true => Some(self.documents(rows, shards)?),
            false => None,
        };
        Ok(Batch { inputs: both.get(0)?, targets: both.get(1)?, documents, id_bound, epoch })
    }

    fn documents(&self, rows: &[Row], shards: &[&[Shard]]) -> Result<Documents> {
        let size = rows.len() * self.context;
        let (mut ids, mut positions, mut mask) = (Vec::with_capacity(size), Vec::with_capacity(size), vec![1u8; size]);
        let (mut starts, mut longest) = (Vec::new(), 0);
        for (row, (source, segments)) in rows.iter().enumerate() {
            let mut document = 0;
            // Adds `len` inputs of one document. `ends`: the target of the last input is in the next document.
            let mut add = |len: u64, ends: bool, document: &mut u32| {
                starts.push(ids.len() as u32);
                longest = longest.max(len as usize);
                ids.extend(std::iter::repeat_n(*document, len as usize));
                positions.extend(0..len as u32);
                if ends {
                    mask[ids.len() - 1] = 0;
                }
                *document += 1;
                ids.len()
            };
            let mut filled = row * self.context;
            for segment in segments {
                let index = shards[*source][segment.shard as usize].index()?;
                let end = segment.start + u64::from(segment.len);
                let mut at = segment.start;
                let mut number = index.document_of(at);
                while at < end {
                    number += 1;
                    let next = index.start(number).max(at + 1);
                    filled = add(next.min(end) - at, next <= end, &mut document);
                    at = next;
                }
            }
            let padding = (row + 1) * self.context - filled;
            if padding > 0 {
                add(padding as u64, true, &mut document);
                mask[filled..(row + 1) * self.context].fill(0);
            }
        }
        starts.push(size as u32);
        let shape = (rows.len(), self.context);
        Ok(Documents {
            ids: Tensor::from_vec(ids, shape, &self.device)?,
            positions: Tensor::from_vec(positions, shape, &self.device)?,
            loss_mask: Tensor::from_vec(mask, shape, &self.device)?,
            cumulative_lengths: Tensor::new(starts, &self.device)?,
            longest,
        })
    }
}
