//! A table, and a head over it, whose rows are split between the ranks.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;

use crate::collective::{Collective, Shard};
use crate::head::Head;
use crate::{Error, NO_TOKEN, Result, TokenEmbedding, TokenEmbeddingConfig, ids};

/// A [`TokenEmbedding`] whose rows are split between N ranks: each holds V / N rows, with their gradients and moments.
///
/// All ranks get the **same ids**, look up the rows that they hold, and sum the outputs. So every rank has the whole output, and
/// runs the same model on it. [`head`](Self::head) splits logits and loss in the same way. Gradients of the table stay on their rank:
/// do not call [`DataParallel::exchange`](super::DataParallel::exchange) (it is an error).
///
/// Row i is on rank i mod N: ids of BPE tokenizers are sorted by frequency, and contiguous parts would give the first rank most of
/// the work. V need not divide by N, and a rank may hold no row (f32, bf16 and f16 on the CPU).
///
/// New rows have the values that they have in one process. The VarMap of each rank holds its part as `weight`.
/// [`Checkpoint::save`](crate::Checkpoint::save), called on all ranks, writes one plain (V, C) weight, and
/// [`Checkpoint::load`](crate::Checkpoint::load) and [`load_weights`](crate::load_weights) read this rank's rows from such a file,
/// on any number of ranks. [`Optim::clip_grad_norm`](crate::optim::Optim::clip_grad_norm) takes the norm over all ranks.
///
/// # Shapes
/// - ids: (…), the same on all ranks, u8, u32 or i64
/// - weight on each rank: (V / N, C)
/// - output of [`forward`](Module::forward): (…, C)
///
/// # Cost
/// Forward: the look-up, and an all-reduce of its output (N·C elements for N ids). Backward: no communication.
///
/// Source: Megatron-LM's `VocabParallelEmbedding`, with rows by id mod N in place of ranges.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::TokenEmbeddingConfig;
/// use tallow::distributed::{Collective, Local, VocabParallelEmbedding};
/// let ranks: Arc<dyn Collective> = Arc::new(Local); // or tallow_mpi's World
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 1000, d_model: 8, ..Default::default() };
/// let wte = VocabParallelEmbedding::new(&cfg, ranks, vb.pp("wte"))?;
/// let hidden = wte.forward(&Tensor::new(&[[7u32, 999]], &Device::Cpu)?)?; // a model comes between
/// let targets = Tensor::new(&[[999u32, 3]], &Device::Cpu)?;
/// let loss = wte.head().loss(&hidden, &targets, &Default::default())?;
/// assert!((loss.to_scalar::<f32>()? - 1000f32.ln()).abs() < 0.1);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone)]
pub struct VocabParallelEmbedding {
    /// The rows of this rank.
    own: TokenEmbedding,
    shard: Arc<Shard>,
    padding_id: Option<u32>,
}

impl std::fmt::Debug for VocabParallelEmbedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VocabParallelEmbedding")
            .field("vocab_size", &self.vocab_size())
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Module for VocabParallelEmbedding {
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.lookup(ids)?)
    }
}

impl VocabParallelEmbedding {
    /// Gets this rank's rows, named `weight`, from `vb`, or creates them there. `cfg` is that of the whole table, and the same on all
    /// ranks.
    ///
    /// # Errors
    /// As [`TokenEmbedding::new`]; [`Error::Config`] if there are more ranks than rows, and the table is f64 or on a GPU;
    /// [`Error::RanksDiffer`]: `cfg` is not the same on all ranks; [`Error::Collective`].
    pub fn new(cfg: &TokenEmbeddingConfig, ranks: Arc<dyn Collective>, vb: VarBuilder) -> Result<Self> {
        let world_size = ranks.world_size();
        let shard = Arc::new(Shard::new(ranks, cfg.vocab_size));
        let own = TokenEmbedding::of_rows(cfg, shard.stride(), vb)?;
        let (weight, table) = own.weight_and_table();
        if world_size > cfg.vocab_size && (!weight.device().is_cpu() || weight.dtype() == DType::F64) {
            return Err(Error::Config(format!(
                "a table of {} rows on {world_size} ranks: on a GPU, and in f64, each rank needs a row",
                cfg.vocab_size
            )));
        }
        // (The weight's dtype is that of a checkpoint that `vb` has, or of `vb`.)
        shard.check_same("the settings", format!("{cfg:?} {:?}", weight.dtype()).as_bytes())?;
        table.split(shard.clone());
        Ok(VocabParallelEmbedding { own, shard, padding_id: cfg.padding_id })
    }

    /// Error messages then show the token of an id: `wte.with_token_names(tokenizer.names())`.
    pub fn with_token_names(self, names: impl Fn(u32) -> Option<String> + Send + Sync + 'static) -> Self {
        VocabParallelEmbedding { own: self.own.with_token_names(names), ..self }
    }

    /// Looks up the rows of `ids` (…), as (…, C): [`forward`](Module::forward) with tallow's typed errors.
    ///
    /// The output is that of one process: each element is one rank's value plus zeros.
    ///
    /// # Errors
    /// - As [`TokenEmbedding::lookup`]. All ranks get the same error.
    /// - [`Error::RanksDiffer`]: the ranks have different ids.
    /// - [`Error::Collective`].
    pub fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = ids::on_host(ids)?;
        let checked = ids::check(&ids, self.vocab_size(), self.padding_id, |id| self.own.token_name(id));
        // The cast keeps u8 255 different from NO_TOKEN, and turns i64::MAX into it. (Ids that it would hide are errors already.)
        let mut rows: Vec<u32> = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
        self.shard.check_same("the ids", bytemuck::cast_slice(&rows))?;
        checked?;
        for id in &mut rows {
            *id = if Some(*id) == self.padding_id { NO_TOKEN } else { self.shard.row(*id) };
        }
        let out = self.own.lookup_unchecked(&Tensor::from_vec(rows, ids.shape(), &Device::Cpu)?)?;
        // In place: the gradient of the sum is that of each rank's part, so backward is that of the look-up.
        self.shard.sum_in_place(&out)?;
        Ok(out)
    }

    /// A head whose weight is this table, split in the same way. For an untied head make a second table of this type, under another
    /// name, and use only its head.
    ///
    /// Its loss is computed by all ranks together, each with its part of the logits: for each chunk of tokens they exchange the
    /// maximum, the sum of exponentials and the target's logit of each token. The gradient of the hidden states is summed over the
    /// ranks (one all-reduce of N·C elements for N tokens); that of the weight stays on its rank. All ranks must have the same
    /// hidden states and targets. [`Head::loss`], [`log_probs`](Head::log_probs) and [`top_k`](Head::top_k) give every rank the
    /// result of the whole vocabulary. [`logits`](Head::logits) and a bias are errors.
    ///
    /// Source: Megatron-LM's `vocab_parallel_cross_entropy`.
    pub fn head(&self) -> Head {
        Head::tied(&self.own)
    }

    /// This rank's rows (V / N, C), after all deferred updates are replayed. Row i is that of id rank + i · N.
    ///
    /// # Errors
    /// As [`TokenEmbedding::flushed_weight`].
    pub fn flushed_weight(&self) -> Result<&Tensor> {
        self.own.flushed_weight()
    }

    /// Rows of the whole table, V.
    pub fn vocab_size(&self) -> usize {
        self.shard.vocab_size()
    }

    /// Columns of the table, C.
    pub fn d_model(&self) -> usize {
        self.own.d_model()
    }
}
