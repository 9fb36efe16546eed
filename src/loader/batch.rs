//! Rows → tensors.

use candle_core::{Device, Tensor};

use super::{DataLoaderConfig, Row};
use crate::{NO_TOKEN, Result};
use tallow_text::shard::Shard;

/// One batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Ids (B, T) u32.
    pub inputs: Tensor,
    /// The id that follows each input: (B, T) u32; [`NO_TOKEN`] where a row is not full.
    pub targets: Tensor,
    /// Where documents are, if [`DataLoaderConfig::documents`] asked for it.
    pub documents: Option<Documents>,
    /// Every id is below it (but for padding): it was checked against the manifest when it was read. Give it to
    /// [`TokenEmbedding::lookup_below`](crate::TokenEmbedding::lookup_below), which then checks nothing again.
    pub id_bound: usize,
    /// The epoch in which the batch begins, from 0.
    pub epoch: u64,
}

/// Documents within the rows of a batch: for positions, masks and attention over variable lengths.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Which document of its row each input belongs to, from 0: (B, T) u32. Padding counts as one more.
    pub ids: Tensor,
    /// Position of each input in its document, or from where the row entered it: (B, T) u32.
    pub positions: Tensor,
    /// 1 where the target belongs to the same document, 0 at its last id and at padding: (B, T) u8.
    pub loss_mask: Tensor,
    /// Where documents begin in the B x T ids in a row, and B x T at the end: (documents + 1) u32, as `cu_seqlens` of
    /// variable-length attention.
    pub cumulative_lengths: Tensor,
    /// The longest of them.
    pub longest: usize,
}

/// Makes batches; its buffers are used again.
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
        // Inputs and targets are two halves of one buffer: one upload for a GPU, and on the host a buffer that malloc
        // gives back warm, where two smaller ones were unmapped at every batch (107 µs instead of 45).
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
        // The targets are the inputs, shifted, and one more id a segment: what was just read is still in the cache.
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
            // `len` more inputs of one document; `ends`: the target of the last is none of it.
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
