//! The output layer: hidden states and a (V, C) weight, own or tied → loss, logits, log-probabilities.
//!
//! A linear layer and a softmax over 100,000 rows are most of a small GPT's step. [`Head::loss`] computes loss and gradients
//! without storing the (N, V) logits: one chunk of tokens at a time, and in each chunk one block of the vocabulary at a time.
//! This module does not depend on the model that computes hidden states.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use candle_nn::{Optimizer, ParamsAdamW};
//! use tallow::{Head, NO_TOKEN, optim::AdamW};
//!
//! let device = Device::Cpu;
//! let hidden = Tensor::new(&[[[1f32, 0.], [0., 1.], [5., 5.]]], &device)?; // (B, T, C) = (1, 3, 2)
//! let weight = Var::from_tensor(&Tensor::new(&[[2f32, 0.], [0., 2.], [0., 0.]], &device)?)?; // (V, C) = (3, 2)
//! let targets = Tensor::new(&[[0u32, 1, NO_TOKEN]], &device)?; // the last position is padding
//! let head = Head::new(&weight, None)?;
//! let loss = head.loss(&hidden, &targets, &Default::default())?;
//! // Both tokens: ln(e² + 1 + 1) - 2.
//! assert!((loss.to_scalar::<f32>()? - 0.239_545).abs() < 1e-6);
//! let mut opt = AdamW::new(vec![weight.clone()], ParamsAdamW::default())?;
//! opt.backward_step(&loss)?;
//! # Ok::<(), tallow::Error>(())
//! ```

mod by_operations;
mod fused;
mod grow;
mod kernel;
mod loss;
mod product;
mod search;

use std::sync::Arc;

use candle_core::{DType, Module, Tensor};

use crate::collective::Shard;
use crate::rows::{RowTable, Rows};
use crate::{Error, NO_TOKEN, Result, TokenEmbedding, ids};

/// How [`Head::loss`] reduces the losses of the tokens.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tallow::Head;
/// use tallow::head::{CrossEntropyConfig, Reduction};
/// let head = Head::new(&Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?, None)?;
/// let hidden = Tensor::ones((3, 2), DType::F32, &Device::Cpu)?;
/// let targets = Tensor::new(&[0u32, 1, 2], &Device::Cpu)?;
/// let cfg = CrossEntropyConfig { reduction: Reduction::None, ..Default::default() };
/// assert_eq!(head.loss(&hidden, &targets, &cfg)?.dims(), [3]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// The mean over the tokens with a target: a scalar. 0 if there is none.
    #[default]
    Mean,
    /// The sum: a scalar.
    Sum,
    /// No reduction: the shape of the targets, 0 at positions without a target. Backward computes the logits again.
    None,
}

/// Options of [`Head::loss`]. The default is the mean cross-entropy.
///
/// With logits z, their log-sum-exp L and a target y, a token's loss is
/// L - (1 - ε) z_y - ε mean(z) + z_loss · L², where ε is `label_smoothing`.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tallow::Head;
/// use tallow::head::CrossEntropyConfig;
/// let head = Head::new(&Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?, None)?;
/// let hidden = Tensor::ones((3, 2), DType::F32, &Device::Cpu)?;
/// let targets = Tensor::new(&[0u32, 1, 2], &Device::Cpu)?;
/// let cfg = CrossEntropyConfig { label_smoothing: 0.1, ..Default::default() };
/// let loss = head.loss(&hidden, &targets, &cfg)?.to_scalar::<f32>()?;
/// assert!((loss - 4f32.ln()).abs() < 1e-6); // four equal logits
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyConfig {
    /// Mean, sum, or none.
    pub reduction: Reduction,
    /// The part ε of the target's probability that is spread uniformly over the vocabulary, 0 to 1 (PyTorch's `label_smoothing`).
    pub label_smoothing: f64,
    /// Weight of L², which keeps the logits from drifting (PaLM: 10⁻⁴). 0 for none.
    pub z_loss: f64,
}

impl CrossEntropyConfig {
    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Config(what.to_string()));
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return wrong(&format!("label_smoothing {} is not between 0 and 1", self.label_smoothing));
        }
        if !(self.z_loss.is_finite() && self.z_loss >= 0.0) {
            return wrong(&format!("z_loss {} must be a number, 0 or larger", self.z_loss));
        }
        Ok(())
    }
}

/// The output layer: logits (…, V) = hidden (…, C) · weightᵀ + bias, its own or tied to a [`TokenEmbedding`].
///
/// `candle_nn::Linear` with a loss that stores no logits. Deferred updates of a row-sparse table are replayed before its rows are
/// read, also if `weight` is a detached tensor of the table ([`no_grad`](crate::no_grad)). A detached weight gets no gradient.
///
/// # Shapes
/// - weight: (V, C), bias: (V), f32, f64, bf16 or f16
/// - hidden: (…, C), the weight's dtype and device
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{Head, TokenEmbedding, TokenEmbeddingConfig};
///
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 1000, d_model: 8, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// let head = Head::tied(&wte);
/// let hidden = wte.forward(&Tensor::new(&[[7u32, 999], [0, 7]], &Device::Cpu)?)?; // a model comes between
/// assert_eq!(head.logits(&hidden)?.dims(), [2, 2, 1000]);
/// let targets = Tensor::new(&[[999u32, 1], [7, 2]], &Device::Cpu)?;
/// assert_eq!(head.loss(&hidden, &targets, &Default::default())?.rank(), 0);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone)]
pub struct Head {
    weight: Tensor,
    bias: Option<Tensor>,
    soft_cap: Option<f64>,
    /// Whether the weight is a layer's table. The layer resizes it.
    tied: bool,
    /// Shared with the layers and optimizers over the same memory.
    table: Arc<RowTable>,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head")
            .field("weight", &self.weight.shape())
            .field("bias", &self.bias.is_some())
            .field("soft_cap", &self.soft_cap)
            .finish_non_exhaustive()
    }
}

impl Head {
    /// A head with this weight (V, C) and bias (V). For a layer of candle's: `Head::new(linear.weight(), linear.bias())`.
    ///
    /// # Errors
    /// [`Error::Config`]: other shapes or dtypes, two devices, a size of 0, or more rows than u32 ids can name.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let wrong = |what: String| Err(Error::Config(what));
        let [vocab_size, columns] = *weight.dims() else {
            return wrong(format!("the head's weight has shape {:?}: it must be (V, C)", weight.dims()));
        };
        if vocab_size == 0 || columns == 0 || vocab_size > NO_TOKEN as usize {
            return wrong(format!(
                "a head of {vocab_size} rows and {columns} columns: both must be at least 1, and u32 ids must name all rows"
            ));
        }
        if !matches!(weight.dtype(), DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
            return wrong(format!("a head's weight of {}: use f32, f64, bf16 or f16", weight.dtype().as_str()));
        }
        if let Some(bias) = bias.filter(|bias| bias.dims() != [vocab_size]) {
            return wrong(format!("a bias of shape {:?} for a head of {vocab_size} rows", bias.dims()));
        }
        let (bias, table) = (bias.cloned(), RowTable::of(weight));
        let head = Head { weight: weight.clone(), bias, soft_cap: None, tied: false, table };
        if let Some(bias) = &head.bias {
            head.check_whole("a bias")?;
            head.fits("bias", bias)?;
        }
        Ok(head)
    }

    /// A head whose weight is the table of `wte`. `scale` and `padding_id` of the layer do not apply to it. Make it anew after
    /// [`TokenEmbedding::resize`], `shrink` or `add_tokens`; until then its use is an error.
    ///
    /// The gradient of the table through the head is dense, whatever [`Gradient`](crate::Gradient) is set: every row takes part in
    /// every logit. The optimizer adds the row gradients of a row-sparse table to that dense gradient and takes one dense step, which
    /// costs O(V·C). The step is candle's bit for bit if backward visits the head before the look-ups, as in a GPT: row gradients are
    /// added last, candle adds in the order of the graph.
    pub fn tied(wte: &TokenEmbedding) -> Self {
        let (weight, table) = wte.weight_and_table();
        Head { weight: weight.clone(), bias: None, soft_cap: None, tied: true, table: table.clone() }
    }

    /// The same head with a bias (V). (A tied head is made without one.)
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_bias(self, bias: &Tensor) -> Result<Self> {
        let Head { tied, soft_cap, .. } = self;
        Ok(Head { tied, soft_cap, ..Head::new(&self.weight, Some(bias))? })
    }

    /// Replaces logits by cap · tanh(logits / cap) (Gemma 2: 30).
    ///
    /// # Errors
    /// [`Error::Config`]: a cap outside 1e-30 to 1e30.
    pub fn with_soft_cap(mut self, cap: f64) -> Result<Self> {
        if !(1e-30..1e30).contains(&cap) {
            return Err(Error::Config(format!("soft_cap {cap} is not a number from 1e-30 to 1e30")));
        }
        self.soft_cap = Some(cap);
        Ok(self)
    }

    /// Rows of the weight, V. If the weight is split between ranks, the rows of all ranks.
    pub fn vocab_size(&self) -> usize {
        self.shard().map_or(self.rows(), |shard| shard.vocab_size())
    }

    /// An error for what a weight that is split between ranks does not have.
    fn check_whole(&self, what: &str) -> Result<()> {
        match self.shard() {
            None => Ok(()),
            Some(_) => Err(Error::Config(format!(
                "{what}: not for a head whose rows are split between ranks; it has loss, log_probs and top_k"
            ))),
        }
    }

    /// Rows of the weight here.
    fn rows(&self) -> usize {
        self.weight.dims()[0]
    }

    /// The whole weight, if other ranks hold the rest of its rows ([`VocabParallelEmbedding`](crate::distributed::VocabParallelEmbedding)).
    fn shard(&self) -> Option<&Arc<Shard>> {
        self.table.shard()
    }

    /// The cross-entropy of the logits and `targets`, with gradients for hidden states, weight and bias.
    ///
    /// The logits are never stored. Loss and gradients are computed in the same pass, and backward returns the gradients. For a tied
    /// row-sparse table the optimizer adds the row gradients of the look-ups to the same buffer.
    ///
    /// Gradients are computed if an input is part of a graph, with the current weights. They are in memory until backward takes them
    /// or the loss is dropped: call backward after each loss, and keep only `loss.detach()`. For evaluation build model and
    /// head with [`no_grad`](crate::no_grad), or use [`log_probs`](Self::log_probs).
    ///
    /// # Shapes
    /// - hidden: (…, C)
    /// - targets: (…), u8, u32 or i64. [`NO_TOKEN`] marks positions without a target. They are not part of the mean and get zero
    ///   gradients.
    /// - output: a scalar, or (…) for [`Reduction::None`]; f32 (f64 for f64)
    ///
    /// # Errors
    /// - [`Error::TargetOutOfRange`]: a target that is not a row of the weight.
    /// - [`Error::Config`]: hidden states of another width, dtype or device than the weight's; invalid options.
    /// - [`Error::RanksDiffer`], [`Error::Collective`]: for a weight that is split between ranks.
    ///
    /// # Cost
    /// For N tokens with targets: 6·N·V·C floating-point operations with gradients, 2·N·V·C without (products by the gemm
    /// crate). They run on as many threads as rayon's pool has, or on one thread if called from a thread of a rayon pool.
    ///
    /// Memory beside the gradients, for f32 on the CPU: V logits for each token of a chunk (N/16 tokens, at least 64 and at most 256),
    /// and partial sums of the hidden states' gradient: an eighth of that, or 16·C numbers per token if that is more. bf16 and f16
    /// weights are copied to f32 on the CPU.
    ///
    /// Backward costs nothing if the incoming gradient is 1, else a pass over the gradients. With [`Reduction::None`] it computes
    /// everything again. candle's `loss.backward()` needs two more buffers of the weight's size; [`backward`](crate::backward) does not.
    ///
    /// # Exactness
    /// The order of sums depends on sizes, so any number of threads gives the same bits. Bits can differ between machines: the gemm
    /// crate chooses blocks by cache sizes, and uses fused multiply-add if the processor has it. Statistics are f32 within blocks of
    /// 512 rows, and f64 across blocks.
    ///
    /// f64 on the CPU, and all other devices, use candle's operations on one chunk of tokens at a time, with about five buffers of the
    /// chunk's logits. There bf16 and f16 products are rounded to that dtype before and after the softmax.
    ///
    /// Source: `F.linear` + `F.cross_entropy` of PyTorch; Liger Kernel's fused linear cross-entropy; Cut Your Losses (Wijmans et al. 2024).
    pub fn loss(&self, hidden: &Tensor, targets: &Tensor, cfg: &CrossEntropyConfig) -> Result<Tensor> {
        cfg.check()?;
        loss::cross_entropy(self, &self.hidden(hidden)?, targets, cfg)
    }

    /// The log-probability of each target. The perplexity is exp(-sum / number of targets). Positions without a target
    /// ([`NO_TOKEN`]) hold 0. The result has no gradient.
    ///
    /// # Shapes
    /// - hidden: (…, C); targets: (…), as for [`loss`](Self::loss)
    /// - output: (…), f32 (f64 for f64)
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    ///
    /// # Cost
    /// As [`loss`](Self::loss) without gradients: 2·N·V·C operations. Memory for f32 on the CPU: half a MiB per thread.
    pub fn log_probs(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let cfg = CrossEntropyConfig { reduction: Reduction::None, ..Default::default() };
        let detached = self.detached();
        Ok(loss::cross_entropy(&detached, &detached.hidden(&hidden.detach())?, targets, &cfg)?.neg()?)
    }

    /// The logits of every position, V numbers each: `candle_nn::Linear`'s forward. For the last position only, pass
    /// `hidden.narrow(1, t - 1, 1)`.
    ///
    /// # Shapes
    /// - hidden: (…, C)
    /// - output: (…, V), the dtype of hidden, with a gradient
    ///
    /// # Errors
    /// [`Error::Config`]: another width, dtype or device than the weight's; a weight that is split between ranks.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.check_whole("all logits")?;
        let hidden = self.hidden(hidden)?;
        let dims = [&hidden.dims[..], &[self.vocab_size()]].concat();
        Ok(self.logits_of(&hidden.rows, 0, self.vocab_size())?.reshape(dims)?)
    }

    /// The `k` largest logits of every position and their ids, the largest first. Among equal logits the lower id is first.
    ///
    /// The vocabulary is processed in blocks, so nothing of size N·V is allocated. The result has no gradient.
    ///
    /// # Shapes
    /// - hidden: (…, C)
    /// - output: logits (…, k), f32, and ids (…, k), u32, on hidden's device
    ///
    /// # Errors
    /// [`Error::Config`]: k is 0 or above V, another width, dtype or device than the weight's, or a logit that is NaN.
    ///
    /// # Cost
    /// 2·N·V·C operations, and up to k moves for each logit that enters the best so far (meant for small k). Memory: the logits of a
    /// block (4 MiB). A GPU copies each block to the host.
    pub fn top_k(&self, hidden: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
        search::top_k(&self.detached(), &self.hidden(&hidden.detach())?, k)
    }

    fn detached(&self) -> Head {
        let bias = self.bias.as_ref().map(Tensor::detach);
        Head { weight: self.weight.detach(), bias, ..self.clone() }
    }

    fn fits(&self, name: &str, other: &Tensor) -> Result<()> {
        let (dtype, device) = (self.weight.dtype(), self.weight.device());
        if other.dtype() == dtype && other.device().same_device(device) {
            return Ok(());
        }
        Err(Error::Config(format!(
            "{name} {} on {:?}, weight {} on {:?}: they must have one dtype and one device",
            other.dtype().as_str(),
            other.device().location(),
            dtype.as_str(),
            device.location()
        )))
    }

    /// Checks hidden states against the weight, and replays the weight's deferred updates.
    fn hidden(&self, hidden: &Tensor) -> Result<Hidden> {
        let (mut dims, columns) = (hidden.dims().to_vec(), self.weight.dims()[1]);
        if dims.pop() != Some(columns) {
            return Err(Error::Config(format!(
                "hidden states {:?} and a head's weight {:?} do not fit: both must end in the same C",
                hidden.dims(),
                self.weight.dims()
            )));
        }
        self.fits("hidden states", hidden)?;
        self.table.check_current("tied head", "the head anew, `Head::tied(&wte)`")?;
        self.table.replay(Rows::All)?;
        Ok(Hidden { rows: hidden.reshape((dims.iter().product::<usize>(), columns))?, dims })
    }

    /// Logits (n, rows) of `hidden` (n, C) for some rows of the vocabulary, by candle's operations.
    fn logits_of(&self, hidden: &Tensor, first: usize, rows: usize) -> candle_core::Result<Tensor> {
        // candle has no bf16 product on the CPU.
        let dtype = match self.weight.dtype() {
            DType::BF16 if hidden.device().is_cpu() => DType::F32,
            dtype => dtype,
        };
        let weight = self.weight.narrow(0, first, rows)?.to_dtype(dtype)?;
        let mut logits = hidden.to_dtype(dtype)?.matmul(&weight.t()?)?;
        if let Some(bias) = &self.bias {
            logits = logits.broadcast_add(&bias.narrow(0, first, rows)?.to_dtype(dtype)?)?;
        }
        if let Some(cap) = self.soft_cap {
            logits = ((logits / cap)?.tanh()? * cap)?;
        }
        logits.to_dtype(self.weight.dtype())
    }
}

/// The logits of every position.
impl Module for Head {
    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.logits(hidden)?)
    }
}

/// Hidden states (N, C), and their shape without C.
struct Hidden {
    rows: Tensor,
    dims: Vec<usize>,
}

impl Hidden {
    /// Targets on the host, one per position. Each is checked to be a row of the head, or [`NO_TOKEN`].
    fn targets(&self, targets: &Tensor, vocab_size: usize) -> Result<Vec<u32>> {
        if targets.dims() != self.dims {
            return Err(Error::Config(format!(
                "targets {:?} for hidden states {:?}: one target per position, {:?}",
                targets.dims(),
                [&self.dims[..], &self.rows.dims()[1..]].concat(),
                self.dims
            )));
        }
        let targets = ids::on_host(targets)?;
        ids::check(&targets, vocab_size, None, |_| None).map_err(|error| match error {
            Error::IdOutOfRange { id, position, rows, .. } => Error::TargetOutOfRange { target: id, position, rows },
            other => other,
        })?;
        Ok(targets.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?)
    }
}

/// Which gradients are wanted.
#[derive(Clone, Copy, Default)]
struct Wanted {
    hidden: bool,
    weight: bool,
    bias: bool,
}

/// Gradients of hidden (N, C), weight (V, C) and bias (V). `None`: not wanted.
type Grads = [Option<Tensor>; 3];
