//! Hidden states and a (V, C) weight, own or tied → loss, logits, log-probabilities: the vocabulary's other end, fused.
//!
//! A linear layer and a softmax over 100,000 rows are most of a small GPT's step. [`Head::loss`] gives loss and gradients
//! without keeping the (N, V) logits: a part of the tokens at a time, and of these a block of the vocabulary at a time.
//! This module does not know how hidden states came about.
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

use crate::rows::{RowTable, Rows};
use crate::{Error, NO_TOKEN, Result, TokenEmbedding, ids};

/// What [`Head::loss`] gives for the losses of single tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean over the tokens that have a target: a scalar. 0 if none has.
    #[default]
    Mean,
    /// Their sum: a scalar.
    Sum,
    /// Each one, 0 where there is no target: the shape of the targets. Backward computes the logits once more.
    None,
}

/// What [`Head::loss`] computes beside the plain loss. The default is the plain mean.
///
/// With logits z, their log-sum-exp L and a target y, a token's loss is
/// L - (1 - ε) z_y - ε mean(z) + z_loss · L², where ε is `label_smoothing`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyConfig {
    /// Mean, sum, or every token's own.
    pub reduction: Reduction,
    /// The part ε of the target's probability that is spread evenly over the vocabulary, 0 to 1 (PyTorch's).
    pub label_smoothing: f64,
    /// Weight of L², which keeps logits from drifting (PaLM: 10⁻⁴). 0 for none.
    pub z_loss: f64,
}

impl CrossEntropyConfig {
    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Config(what.to_string()));
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return wrong(&format!("label_smoothing {} is not between 0 and 1", self.label_smoothing));
        }
        if !(self.z_loss.is_finite() && self.z_loss >= 0.0) {
            return wrong(&format!("z_loss {} is not a number from 0 on", self.z_loss));
        }
        Ok(())
    }
}

/// The output layer: logits (…, V) = hidden (…, C) · weightᵀ + bias, its own or tied to a [`TokenEmbedding`].
///
/// `candle_nn::Linear` with a loss that builds no logits. Deferred updates of a row-sparse table are applied before its rows are read,
/// also where `weight` is a detached tensor of the table ([`no_grad`](crate::no_grad)): then nothing of it gets a gradient.
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
    /// Whether the weight is a layer's table, which grows there.
    tied: bool,
    /// Shared with the layers and optimizers over the weight's memory.
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
    /// A head with this weight (V, C) and bias (V). Of a layer of candle's: `Head::new(linear.weight(), linear.bias())`.
    ///
    /// # Errors
    /// [`Error::Config`]: other shapes or dtypes, two devices, no row or column, or more rows than u32 ids can name.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let wrong = |what: String| Err(Error::Config(what));
        let [vocab_size, columns] = *weight.dims() else {
            return wrong(format!("the head's weight has shape {:?}: it must be (V, C)", weight.dims()));
        };
        if vocab_size == 0 || columns == 0 || vocab_size > NO_TOKEN as usize {
            return wrong(format!(
                "a head of {vocab_size} rows and {columns} columns: there must be one of each at least, and u32 ids for all rows"
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
        head.bias.as_ref().map_or(Ok(()), |bias| head.fits("bias", bias))?;
        Ok(head)
    }

    /// The head whose weight is the table of `wte`. `scale` and `padding_id` of the layer do not apply to it. After
    /// [`TokenEmbedding::resize`] and its like make it anew; until then it is an error.
    ///
    /// The gradient of the table through it is dense, whatever [`Gradient`](crate::Gradient) says: every row takes part in every
    /// logit. With a row-sparse table the rows that were looked up are added into that dense gradient, and the optimizer takes one
    /// dense step: tying costs what the vocabulary costs. It is candle's bit for bit where backward meets the head before the look-ups,
    /// as in a GPT; rows are added last, and candle adds in the graph's order.
    pub fn tied(wte: &TokenEmbedding) -> Self {
        let (weight, table) = wte.weight_and_table();
        Head { weight: weight.clone(), bias: None, soft_cap: None, tied: true, table: table.clone() }
    }

    /// The same with a bias (V): a tied head has none of its own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_bias(self, bias: &Tensor) -> Result<Self> {
        let Head { tied, soft_cap, .. } = self;
        Ok(Head { tied, soft_cap, ..Head::new(&self.weight, Some(bias))? })
    }

    /// Logits become cap · tanh(logits / cap) (Gemma 2: 30).
    ///
    /// # Errors
    /// [`Error::Config`]: a cap that is not a number from 1e-30 to 1e30.
    pub fn with_soft_cap(mut self, cap: f64) -> Result<Self> {
        if !(1e-30..1e30).contains(&cap) {
            return Err(Error::Config(format!("soft_cap {cap} is not a number from 1e-30 to 1e30")));
        }
        self.soft_cap = Some(cap);
        Ok(self)
    }

    /// Rows of the weight, V.
    pub fn vocab_size(&self) -> usize {
        self.weight.dims()[0]
    }

    /// The cross-entropy of the logits and `targets`, with gradients for hidden states, weight and bias.
    ///
    /// The logits are never kept: on the CPU, loss and gradients come out of the same pass, so that backward only passes them
    /// along. Of a tied row-sparse table the rows that were looked up are added into the same gradient buffer by the optimizer.
    ///
    /// Gradients are computed whenever an input is part of a graph, with the weights of that moment, and live until backward
    /// takes them or the loss is dropped: go backward after each loss, and keep `loss.detach()`. For evaluation build model and
    /// head with [`no_grad`](crate::no_grad), or use [`log_probs`](Self::log_probs).
    ///
    /// # Shapes
    /// - hidden: (…, C)
    /// - targets: (…), u8, u32 or i64; [`NO_TOKEN`] marks positions without a target: they count in no mean and get zero gradients
    /// - output: a scalar, or (…) for [`Reduction::None`]; f32 (f64 for f64)
    ///
    /// # Errors
    /// - [`Error::TargetOutOfRange`]: a target that is no row of the weight.
    /// - [`Error::Config`]: hidden states of another width, dtype or device than the weight's; options that make no sense.
    ///
    /// # Cost
    /// For N tokens with targets 6·N·V·C floating-point operations with gradients, 2·N·V·C without (products by the gemm
    /// crate), on as many threads as rayon's pool has; on one, if called from a thread of such a pool. Memory beside the gradients, f32 on the CPU: the logits of a chunk of tokens (N/16, but at
    /// least 64 and at most 256), V each, and for partial sums of the hidden states' gradient an eighth of that again (16·C a
    /// token, where that is more). Backward takes nothing more if the gradient that comes in is 1, a pass over the gradients if
    /// not, and the whole again for [`Reduction::None`]. `loss.backward()` of candle takes two more buffers of the weight's
    /// size, [`backward`](crate::backward) does not. bf16 and f16 weights are copied to f32 on the CPU.
    ///
    /// # Exactness
    /// Sums are those of sizes, not of threads: the same bits for any number of them. Not on every machine: the gemm crate takes
    /// blocks by cache sizes, and fused multiply-adds where the processor has them. Statistics are f32 in blocks of 512 rows, f64 across them.
    /// f64 on the CPU and every other device go by candle's operations, a part of the tokens at a time, with some five buffers of that part's
    /// logits; there bf16 and f16 products are rounded to that dtype before and after the softmax.
    ///
    /// Source: `F.linear` + `F.cross_entropy` of PyTorch; Liger Kernel's fused linear cross-entropy; Cut Your Losses (Wijmans et al. 2024).
    pub fn loss(&self, hidden: &Tensor, targets: &Tensor, cfg: &CrossEntropyConfig) -> Result<Tensor> {
        cfg.check()?;
        loss::cross_entropy(self, &self.hidden(hidden)?, targets, cfg)
    }

    /// The logarithm of the probability that the model gives each target. The perplexity is exp(-sum / targets); positions
    /// without a target ([`NO_TOKEN`]) hold 0, and count in no mean. No gradient goes through it.
    ///
    /// # Shapes
    /// - hidden: (…, C); targets: (…), as for [`loss`](Self::loss)
    /// - output: (…), f32 (f64 for f64)
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    ///
    /// # Cost
    /// As [`loss`](Self::loss) without gradients: 2·N·V·C operations; for f32 on the CPU half a MiB a thread.
    pub fn log_probs(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let cfg = CrossEntropyConfig { reduction: Reduction::None, ..Default::default() };
        let detached = self.detached();
        Ok(loss::cross_entropy(&detached, &detached.hidden(&hidden.detach())?, targets, &cfg)?.neg()?)
    }

    /// The logits of every position, V numbers each: `candle_nn::Linear`'s forward. For the last position alone give
    /// `hidden.narrow(1, t - 1, 1)`.
    ///
    /// # Shapes
    /// - hidden: (…, C)
    /// - output: (…, V), its dtype; gradients go through it
    ///
    /// # Errors
    /// [`Error::Config`]: another width, dtype or device than the weight's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden(hidden)?;
        let dims = [&hidden.dims[..], &[self.vocab_size()]].concat();
        Ok(self.logits_of(&hidden.rows, 0, self.vocab_size())?.reshape(dims)?)
    }

    /// The `k` largest logits of every position and their ids, the largest first; of equal ones the lower id first.
    ///
    /// The vocabulary goes by in blocks, so that nothing of size N·V is built. No gradient goes through it.
    ///
    /// # Shapes
    /// - hidden: (…, C)
    /// - output: logits (…, k), f32, and ids (…, k), u32, on hidden's device
    ///
    /// # Errors
    /// [`Error::Config`]: k is 0 or above V, another width, dtype or device than the weight's, or a logit that is not a number.
    ///
    /// # Cost
    /// 2·N·V·C operations, up to k moves for each logit among the best so far (meant for small k), and the logits of a block (4 MiB),
    /// which a GPU sends to the host.
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

    /// Hidden states that fit the weight, whose rows are up to date from now on.
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

    /// Logits (n, rows) of `hidden` (n, C) and some rows of the vocabulary, by candle's operations.
    fn logits_of(&self, hidden: &Tensor, first: usize, rows: usize) -> candle_core::Result<Tensor> {
        // candle multiplies no bf16 on the CPU.
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
    /// Targets on the host, one a position, each a row of the head.
    fn targets(&self, targets: &Tensor, vocab_size: usize) -> Result<Vec<u32>> {
        if targets.dims() != self.dims {
            return Err(Error::Config(format!(
                "targets {:?} for hidden states {:?}: one target a position, {:?}",
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

/// Which gradients are asked for.
#[derive(Clone, Copy, Default)]
struct Wanted {
    hidden: bool,
    weight: bool,
    bias: bool,
}

/// Gradients of hidden (N, C), weight (V, C) and bias (V), where they were wanted.
type Grads = [Option<Tensor>; 3];
