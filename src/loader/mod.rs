//! Shards, or ids in memory → batches (inputs, targets), in an order that can be resumed anywhere.
//!
//! Sample `s` of a run is a pure function of seed, order and `s`. So nothing is built at the start (except for the orders that use
//! document boundaries), resuming costs nothing, and any number of ranks splits the same global batches. This module does not depend
//! on the embedding: its output is tensors of ids and a bound for them.

mod batch;
mod dataset;
mod documents;
mod order;
mod prefetch;
mod state;

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::Device;

use crate::{Error, NO_TOKEN, Result};
use batch::Builder;
use documents::Segment;
use order::Plan;
use prefetch::Prefetcher;
use tallow_text::support::mix;

pub use batch::{Batch, Documents};
pub use dataset::{Dataset, Split};
pub use state::LoaderState;

/// The order of the samples, and the definition of a sample. T is the context length.
///
/// # Example
/// ```
/// use tallow::{DataLoader, DataLoaderConfig, Dataset, Order};
/// let train = Dataset::from_ids(&[0, 1, 2, 3, 4, 5, 6, 7, 8], 0.0)?.split("train")?;
/// let cfg = DataLoaderConfig { batch_size: 2, context_length: 4, order: Order::Sequential, ..Default::default() };
/// let batch = DataLoader::new(&train, cfg)?.next().expect("there are 2 windows of 4")?;
/// assert_eq!(batch.inputs.to_vec2::<u32>()?, [[0, 1, 2, 3], [4, 5, 6, 7]]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Every window of T + 1 ids once per epoch, in random order. The windows of a shard are contiguous, and start at
    /// another offset in every epoch. The default.
    #[default]
    Permuted,
    /// Windows at random positions, drawn with replacement: nanoGPT's `get_batch`. An epoch has as many samples as there are
    /// windows without overlap.
    Random,
    /// Every window once, from the beginning to the end: for validation.
    Sequential,
    /// Whole documents, packed into rows by best-fit decreasing; the rest of a row is padding. Longer documents are cut into pieces
    /// of T. No target is in another document. Rows are in random order.
    Packed,
    /// Every row starts at the start of a document and continues through the next ones. The rest of its last document is
    /// dropped. Rows are in random order.
    BosAligned,
}

/// Settings of a [`DataLoader`].
///
/// # Example
/// ```
/// use tallow::{DataLoaderConfig, Order};
/// let cfg = DataLoaderConfig { batch_size: 8, context_length: 32, epochs: None, ..Default::default() };
/// let evaluation = cfg.once();
/// assert_eq!((evaluation.batch_size, evaluation.order, evaluation.epochs), (8, Order::Sequential, Some(1)));
/// ```
#[derive(Clone, Debug)]
pub struct DataLoaderConfig {
    /// Rows of a batch, B. With several ranks the global batch is `batch_size x world_size`.
    pub batch_size: usize,
    /// Columns of a batch, T.
    pub context_length: usize,
    /// Order of the samples.
    pub order: Order,
    /// Seed of that order.
    pub seed: u64,
    /// Rank of this process, from 0 to `world_size` - 1.
    pub rank: usize,
    /// Number of processes that train together.
    pub world_size: usize,
    /// Number of epochs. `None`: the iterator never ends.
    pub epochs: Option<u64>,
    /// Drop the last global batch if it is not full (the default; all ranks then get the same number of batches). Else it has fewer
    /// rows, and some ranks may get none.
    pub drop_last: bool,
    /// Also compute document ids, positions, lengths and a loss mask: [`Batch::documents`].
    pub documents: bool,
    /// Padding in `inputs`, for rows that are not full ([`Order::Packed`]).
    pub pad_id: u32,
    /// Number of batches that a thread reads ahead from the disk. 0: no thread.
    pub prefetch: usize,
    /// Device of the tensors. Leave ids on the CPU, also for a model on a GPU: the layer checks them there and copies them to the GPU.
    pub device: Device,
}

impl DataLoaderConfig {
    /// The same settings for evaluation: every window once, in order, including a last batch that is not full. Each rank gets its part.
    pub fn once(&self) -> Self {
        DataLoaderConfig { order: Order::Sequential, epochs: Some(1), drop_last: false, ..self.clone() }
    }
}

impl Default for DataLoaderConfig {
    fn default() -> Self {
        DataLoaderConfig {
            batch_size: 4,
            context_length: 16,
            order: Order::default(),
            seed: 1337,
            rank: 0,
            world_size: 1,
            epochs: Some(1),
            drop_last: true,
            documents: false,
            pad_id: NO_TOKEN,
            prefetch: 4,
            device: Device::Cpu,
        }
    }
}

/// An iterator over batches: `Result<Batch>`. It ends after an error. [`state`](Self::state) is then at the start of the failed
/// batch; pass it to [`load_state`](Self::load_state) to try again.
///
/// # Shapes
/// inputs and targets (B, T) u32; targets are inputs shifted by one.
///
/// # Cost
/// Two copies of B x T ids per batch, on the calling thread. Memory does not grow with the data, except for
/// [`Order::Packed`] (16 bytes per document) and [`Order::BosAligned`] (16 bytes per row).
///
/// # Example
/// ```
/// use tallow::{DataLoader, DataLoaderConfig, Dataset};
/// let ids: Vec<u32> = (0..100).collect();
/// let dataset = Dataset::from_ids(&ids, 0.1)?; // the last tenth is the split "val"
/// let cfg = DataLoaderConfig { batch_size: 2, context_length: 8, ..Default::default() };
/// let mut loader = DataLoader::new(&dataset.split("train")?, cfg.clone())?;
/// let batch = loader.next().expect("there are 11 windows of 8")?;
/// let (x, y) = (batch.inputs.to_vec2::<u32>()?, batch.targets.to_vec2::<u32>()?);
/// assert_eq!(x[0][1..], y[0][..7]);
///
/// // Later, or in another process:
/// let state = loader.state();
/// let mut resumed = DataLoader::new(&dataset.split("train")?, cfg)?;
/// resumed.load_state(&state)?;
/// assert_eq!(resumed.next().expect("more")?.inputs.to_vec2::<u32>()?, loader.next().expect("more")?.inputs.to_vec2::<u32>()?);
/// # Ok::<(), tallow::Error>(())
/// ```
pub struct DataLoader {
    cfg: DataLoaderConfig,
    sources: Vec<Source>,
    /// For a mixture: the current period, and for each of its samples the source and the sample number in that source.
    period: Option<(u64, Vec<(usize, u64)>)>,
    fingerprint: u64,
    /// Samples that were returned, of all ranks.
    consumed: u64,
    /// The segments of the next batches that were sent to the prefetcher.
    ahead: VecDeque<Vec<Row>>,
    builder: Builder,
    prefetcher: Option<Prefetcher>,
    failed: bool,
}

/// One split, its order, and its share of a mixture.
struct Source {
    split: Split,
    plan: Plan,
    seed: u64,
    /// Its slots of every [`SLOTS`] samples: `from..to`.
    slots: (u64, u64),
}

/// One row of a batch: parts of shards of one source.
type Row = (usize, Vec<Segment>);

/// Samples in a period of a mixture. Every period has exact shares, in its own random order.
const SLOTS: u64 = 1 << 16;

impl DataLoader {
    /// Batches of one split.
    ///
    /// # Errors
    /// - [`Error::Config`]: a size of 0, a rank that is not below `world_size`, a split without a sample of `context_length`, or
    ///   settings that give no batch (fewer samples than a global batch, and `drop_last`).
    /// - [`Error::Io`], [`TextError::Shard`](crate::TextError::Shard), for an order that uses document boundaries.
    pub fn new(split: &Split, cfg: DataLoaderConfig) -> Result<Self> {
        Self::mixed(&[(split, 1.0)], cfg)
    }

    /// Batches of several splits, mixed by weight. In every 65536 samples each split has its share, exact to 1/65536, in a random
    /// order that depends on the seed. Each split has its own epochs. An epoch of the mixture has as many samples as all splits
    /// together.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::Config`] for weights that are not positive.
    pub fn mixed(splits: &[(&Split, f64)], cfg: DataLoaderConfig) -> Result<Self> {
        let bad = |reason: String| Err(Error::Config(reason));
        if cfg.batch_size == 0 || cfg.context_length == 0 {
            return bad(format!(
                "a batch of {} x {} ids: both sizes must be at least 1",
                cfg.batch_size, cfg.context_length
            ));
        }
        let ids = cfg.batch_size.checked_mul(cfg.context_length);
        if ids.is_none_or(|ids| ids > u32::MAX as usize) || cfg.batch_size.checked_mul(cfg.world_size).is_none() {
            return bad(format!("a batch of {} x {} ids is too large", cfg.batch_size, cfg.context_length));
        }
        if cfg.prefetch > 1000 || (cfg.order == Order::Packed && cfg.context_length > 1 << 24) {
            return bad("at most 1000 batches are prefetched, and packed rows have at most 16777216 ids".to_string());
        }
        if cfg.rank >= cfg.world_size {
            return bad(format!("rank {} of {}: ranks count from 0", cfg.rank, cfg.world_size));
        }
        let total: f64 = splits.iter().map(|(_, weight)| *weight).sum();
        if splits.is_empty()
            || splits.len() > 1000
            || splits.iter().any(|(_, weight)| weight.is_nan() || *weight <= 0.0)
            || !total.is_finite()
        {
            return bad("a mixture needs 1 to 1000 splits with positive weights".to_string());
        }
        let mut fingerprint = tallow_text::support::Fingerprint::new("mixture");
        let (mut sources, mut before, mut sum) = (Vec::new(), 0, 0.0);
        for (i, (split, weight)) in splits.iter().enumerate() {
            sum += weight / total;
            // Every source gets at least one slot. The last source gets the rest.
            let left = (splits.len() - 1 - i) as u64;
            let to = if left == 0 { SLOTS } else { ((sum * SLOTS as f64) as u64).clamp(before + 1, SLOTS - left) };
            let seed = mix(cfg.seed ^ mix(i as u64));
            let plan = Plan::new(cfg.order, split, cfg.context_length)?;
            if plan.samples() == 0 {
                let tokens: u64 = split.tokens();
                return bad(format!(
                    "split {} has no sample of {} + 1 ids: it has {tokens} ids in {} shards; use a shorter context, or more text",
                    split.name(),
                    cfg.context_length,
                    split.shards().len()
                ));
            }
            fingerprint.add(&split.fingerprint().to_le_bytes());
            fingerprint.add(&(to - before).to_le_bytes());
            sources.push(Source { split: (*split).clone(), plan, seed, slots: (before, to) });
            before = to;
        }
        let samples: u64 = sources.iter().map(|source| source.plan.samples()).sum();
        let global = (cfg.batch_size * cfg.world_size) as u64;
        let total = cfg.epochs.map_or(u64::MAX, |epochs| epochs.saturating_mul(samples));
        if total == 0 || (cfg.drop_last && total < global) {
            return bad(format!(
                "there would be no batch: {} epochs of {samples} samples are fewer than the {global} of a global batch, \
                 and `drop_last` drops a batch that is not full; use a smaller batch, more text, more epochs, or `drop_last: false`",
                cfg.epochs.unwrap_or(0)
            ));
        }
        let fingerprint = if sources.len() == 1 { sources[0].split.fingerprint() } else { fingerprint.finish() };
        let prefetcher = match cfg.prefetch {
            0 => None,
            depth => Some(Prefetcher::new(sources.iter().map(|source| source.split.shared()).collect(), depth)),
        };
        let builder = Builder::new(&cfg);
        Ok(DataLoader {
            cfg,
            sources,
            period: None,
            fingerprint,
            consumed: 0,
            ahead: VecDeque::new(),
            builder,
            prefetcher,
            failed: false,
        })
    }

    /// Samples (rows) in an epoch, of all ranks together.
    pub fn samples_per_epoch(&self) -> u64 {
        self.sources.iter().map(|source| source.plan.samples()).sum()
    }

    /// Global batches in an epoch. The last one may also contain samples of the next epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        let global = self.global_batch();
        match self.cfg.drop_last {
            true => self.samples_per_epoch() / global,
            false => self.samples_per_epoch().div_ceil(global),
        }
    }

    /// The epoch of the next sample, from 0.
    pub fn epoch(&self) -> u64 {
        self.consumed / self.samples_per_epoch()
    }

    /// The largest id + 1: the rows that a table needs, and [`Batch::id_bound`] of every batch.
    pub fn id_bound(&self) -> usize {
        let padded = self.cfg.order == Order::Packed && self.cfg.pad_id != NO_TOKEN;
        let padding = if padded { self.cfg.pad_id as usize + 1 } else { 0 };
        self.sources.iter().map(|source| source.split.id_bound()).max().unwrap_or(0).max(padding)
    }

    /// The position of the loader. It counts the batches that were returned, not those that were prefetched.
    pub fn state(&self) -> LoaderState {
        LoaderState {
            version: 1,
            dataset: format!("{:016x}", self.fingerprint),
            order: self.cfg.order,
            context_length: self.cfg.context_length,
            seed: self.cfg.seed,
            epoch: self.epoch(),
            samples: self.consumed,
        }
    }

    /// Moves to the position of another loader. The next batches are, bit for bit, the next batches of that loader, also with
    /// another number of ranks if the global batch is the same.
    ///
    /// # Errors
    /// [`Error::LoaderState`] with everything that differs: data, order, context length, seed, version. Or the state's epoch does not
    /// match its samples.
    pub fn load_state(&mut self, state: &LoaderState) -> Result<()> {
        state.compare_with(&self.state())?;
        if state.samples > 1 << 62 {
            return Err(Error::LoaderState { reason: format!("{} samples are more than any run has", state.samples) });
        }
        let epoch = state.samples / self.samples_per_epoch();
        if state.epoch != epoch {
            let (samples, said) = (state.samples, state.epoch);
            let reason =
                format!("{samples} samples are in epoch {epoch} of this data, and the state says epoch {said}");
            return Err(Error::LoaderState { reason });
        }
        self.consumed = state.samples;
        self.ahead.clear();
        self.failed = false;
        Ok(())
    }

    /// Samples in all epochs of the config.
    fn total(&self) -> u64 {
        self.cfg.epochs.map_or(u64::MAX, |epochs| epochs.saturating_mul(self.samples_per_epoch()))
    }

    fn global_batch(&self) -> u64 {
        (self.cfg.batch_size * self.cfg.world_size) as u64
    }

    /// This rank's samples of the global batch that starts at sample `from`.
    fn samples(&self, from: u64) -> std::ops::Range<u64> {
        let total = self.total();
        let cut = from + self.global_batch() > total && self.cfg.drop_last;
        let end = if cut { from } else { total.max(from) };
        let first = from + (self.cfg.rank * self.cfg.batch_size) as u64;
        first.min(end)..(first + self.cfg.batch_size as u64).min(end)
    }

    /// The rows of samples.
    fn rows(&mut self, samples: std::ops::Range<u64>) -> Vec<Row> {
        samples
            .map(|sample| {
                let (number, sample) = self.source(sample);
                let source = &self.sources[number];
                let (epoch, index) = (sample / source.plan.samples(), sample % source.plan.samples());
                (number, source.plan.segments(source.seed, epoch, index))
            })
            .collect()
    }

    /// The source of a sample of the mixture, and the sample number in that source.
    fn source(&mut self, sample: u64) -> (usize, u64) {
        if self.sources.len() == 1 {
            return (0, sample);
        }
        let period = sample / SLOTS;
        if self.period.as_ref().is_none_or(|(number, _)| *number != period) {
            let key = mix(self.cfg.seed ^ mix(!period));
            let mut next: Vec<u64> =
                self.sources.iter().map(|source| period * (source.slots.1 - source.slots.0)).collect();
            let take = |place| {
                let slot = order::permute(place, SLOTS, key);
                let number = self.sources.partition_point(|source| source.slots.1 <= slot);
                next[number] += 1;
                (number, next[number] - 1)
            };
            self.period = Some((period, (0..SLOTS).map(take).collect()));
        }
        self.period.as_ref().map_or((0, sample), |(_, sources)| sources[(sample % SLOTS) as usize])
    }
}

impl Iterator for DataLoader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        // Keep the prefetcher `prefetch` batches ahead.
        while self.ahead.len() <= self.cfg.prefetch {
            let from = self.consumed + self.ahead.len() as u64 * self.global_batch();
            let samples = self.samples(from);
            let rows = self.rows(samples);
            if let Some(prefetcher) = &mut self.prefetcher {
                prefetcher.ask(&rows);
            }
            self.ahead.push_back(rows);
        }
        let rows = self.ahead.pop_front()?;
        let total = self.total();
        if rows.is_empty() {
            self.ahead.push_front(rows);
            if !self.cfg.drop_last {
                self.consumed = total; // the last rows belong to other ranks
            }
            return None;
        }
        let epoch = self.epoch();
        let shards: Vec<&[tallow_text::shard::Shard]> =
            self.sources.iter().map(|source| source.split.shards()).collect();
        let id_bound = self.id_bound();
        let batch = self.builder.build(&rows, &shards, epoch, id_bound);
        match batch {
            Ok(batch) => {
                self.consumed = (self.consumed + self.global_batch()).min(total);
                Some(Ok(batch))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

type Shards = Arc<Vec<tallow_text::shard::Shard>>;
