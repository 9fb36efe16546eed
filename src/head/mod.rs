//! Hidden states and a (V, C) weight, own or tied → loss, logits, log-probabilities: the vocabulary's other end, fused.
//!
//! A linear layer and a softmax over 100,000 rows are most of a small GPT's step. [`cross_entropy`] gives loss and gradients
//! without keeping the (N, V) logits: a part of the tokens at a time, and of these a block of the vocabulary at a time.
//! This module does not know how hidden states came about.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use candle_nn::{Optimizer, ParamsAdamW};
//! use tallow::{NO_TOKEN, head, optim::AdamW};
//!
//! let device = Device::Cpu;
//! let hidden = Tensor::new(&[[[1f32, 0.], [0., 1.], [5., 5.]]], &device)?; // (B, T, C) = (1, 3, 2)
//! let weight = Var::from_tensor(&Tensor::new(&[[2f32, 0.], [0., 2.], [0., 0.]], &device)?)?; // (V, C) = (3, 2)
//! let targets = Tensor::new(&[[0u32, 1, NO_TOKEN]], &device)?; // the last position is padding
//! let loss = head::cross_entropy(&hidden, &weight, None, &targets, &head::CrossEntropyConfig::default())?;
//! // Both tokens: ln(e² + 1 + 1) - 2.
//! assert!((loss.to_scalar::<f32>()? - 0.239_545).abs() < 1e-6);
//! let mut opt = AdamW::new(vec![weight.clone()], ParamsAdamW::default())?;
//! opt.backward_step(&loss)?;
//! # Ok::<(), tallow::Error>(())
//! ```

mod by_operations;
mod fused;
mod kernel;
mod loss;
mod product;
mod search;

use candle_core::{DType, Tensor};

pub use search::top_k;

use crate::rows::RowTable;
use crate::{Error, NO_TOKEN, Result, ids};

/// What [`cross_entropy`] gives for the losses of single tokens.
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

/// What [`cross_entropy`] computes beside the plain loss. The default is the plain mean.
///
/// With logits z, their log-sum-exp L and a target y, a token's loss is
/// L - (1 - ε) z_y - ε mean(z) + z_loss · L², where ε is `label_smoothing`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrossEntropyConfig {
    /// Mean, sum, or every token's own.
    pub reduction: Reduction,
    /// The part ε of the target's probability that is spread evenly over the vocabulary, 0 to 1 (PyTorch's).
    pub label_smoothing: f64,
    /// Weight of L², which keeps logits from drifting (PaLM: 10⁻⁴). 0 for none.
    pub z_loss: f64,
    /// Logits become cap · tanh(logits / cap) first (Gemma 2: 30).
    pub soft_cap: Option<f64>,
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
        check_soft_cap(self.soft_cap)
    }
}

fn check_soft_cap(soft_cap: Option<f64>) -> Result<()> {
    match soft_cap {
        Some(cap) if !(1e-30..1e30).contains(&cap) => {
            Err(Error::Config(format!("soft_cap {cap} is not a number from 1e-30 to 1e30: use None for no cap")))
        }
        _ => Ok(()),
    }
}

/// Which gradients are asked for.
#[derive(Clone, Copy, Default)]
struct Wanted {
    hidden: bool,
    weight: bool,
    bias: bool,
}

/// The cross-entropy of a linear layer's logits and `targets`, with gradients for `hidden`, `weight` and `bias`.
///
/// logits = hidden · weightᵀ + bias, but never kept: on the CPU, loss and gradients come out of the same pass, so that
/// backward only passes them along. For a tied head give the table, `wte.weight()?`: with a row-sparse table the rows that
/// were looked up are added into the same gradient buffer by the optimizer. Deferred updates of such a table are replayed
/// before it is read, also where `weight` is a detached tensor of it.
///
/// Gradients are computed whenever an input is part of a graph, with the weights of that moment, and live until backward
/// takes them or the loss is dropped: go backward after each loss, and keep `loss.detach()`. For evaluation give
/// `hidden.detach()` and `weight.detach()`, or use [`log_probs`].
///
/// # Shapes
/// - hidden: (…, C), f32, f64, bf16 or f16
/// - weight: (V, C), bias: (V), the same dtype
/// - targets: (…), u8, u32 or i64; [`NO_TOKEN`] marks positions without a target: they count in no mean and get zero gradients
/// - output: a scalar, or (…) for [`Reduction::None`]; f32 (f64 for f64)
///
/// # Errors
/// - [`Error::TargetOutOfRange`]: a target that is no row of the weight.
/// - [`Error::Config`]: shapes, dtypes or devices that do not fit together; options that make no sense.
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
pub fn cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    cfg: &CrossEntropyConfig,
) -> Result<Tensor> {
    cfg.check()?;
    loss::cross_entropy(&Head::new(hidden, weight, bias)?, targets, cfg)
}

/// The logarithm of the probability that the model gives each target. The perplexity is exp(-sum / targets); positions
/// without a target ([`NO_TOKEN`]) hold 0, and count in no mean. No gradient goes through it.
///
/// # Shapes
/// As [`cross_entropy`]; output: (…), f32 (f64 for f64).
///
/// # Errors
/// As [`cross_entropy`].
///
/// # Cost
/// As [`cross_entropy`] without gradients: 2·N·V·C operations; for f32 on the CPU half a MiB a thread.
pub fn log_probs(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    soft_cap: Option<f64>,
) -> Result<Tensor> {
    check_soft_cap(soft_cap)?;
    let cfg = CrossEntropyConfig { reduction: Reduction::None, soft_cap, ..Default::default() };
    let bias = bias.map(|bias| bias.detach());
    let head = Head::new(&hidden.detach(), &weight.detach(), bias.as_ref())?;
    Ok(loss::cross_entropy(&head, targets, &cfg)?.neg()?)
}

/// The logits of the last position, for generation: (…, T, C) → (…, V).
///
/// # Shapes
/// - hidden: (…, T, C) with T at least 1; weight: (V, C); bias: (V)
/// - output: (…, V), their dtype; gradients go through it
///
/// # Errors
/// [`Error::Config`]: shapes, dtypes or devices that do not fit together, no position at all, or a soft cap that is none.
pub fn logits(hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>, soft_cap: Option<f64>) -> Result<Tensor> {
    check_soft_cap(soft_cap)?;
    let head = Head::new(hidden, weight, bias)?;
    let mut dims = hidden.dims().to_vec();
    let positions = dims.len().checked_sub(2).map(|at| dims[at]).filter(|positions| *positions > 0);
    let Some(positions) = positions else {
        return Err(Error::Config(format!(
            "hidden states {dims:?} have no last position: (…, T, C) with T at least 1"
        )));
    };
    let last = hidden.narrow(dims.len() - 2, positions - 1, 1)?.reshape(((), head.columns))?;
    dims.truncate(dims.len() - 2);
    dims.push(head.vocab_size);
    Ok(head.logits(&last, 0, head.vocab_size, soft_cap)?.reshape(dims)?)
}

/// Gradients of hidden (N, C), weight (V, C) and bias (V), where they were wanted.
type Grads = [Option<Tensor>; 3];

/// Hidden states as (N, C) with a weight that fits them.
struct Head {
    hidden: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    /// Shape of the targets: hidden's without C.
    dims: Vec<usize>,
    vocab_size: usize,
    columns: usize,
}

impl Head {
    fn new(hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let wrong = |what: String| Err(Error::Config(what));
        let [vocab_size, columns] = *weight.dims() else {
            return wrong(format!("the head's weight has shape {:?}: it must be (V, C)", weight.dims()));
        };
        let mut dims = hidden.dims().to_vec();
        if dims.pop() != Some(columns) || columns == 0 {
            return wrong(format!(
                "hidden states {:?} and a head's weight {:?} do not fit: both must end in the same C, at least 1",
                hidden.dims(),
                weight.dims()
            ));
        }
        if vocab_size == 0 || vocab_size > NO_TOKEN as usize {
            return wrong(format!("a head of {vocab_size} rows: there must be one at least, and u32 ids for all"));
        }
        if let Some(bias) = bias.filter(|bias| bias.dims() != [vocab_size]) {
            return wrong(format!("a bias of shape {:?} for a head of {vocab_size} rows", bias.dims()));
        }
        let dtype = weight.dtype();
        if !matches!(dtype, DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
            return wrong(format!("a head's weight of {}: use f32, f64, bf16 or f16", dtype.as_str()));
        }
        for (name, other) in [("hidden states", Some(hidden)), ("bias", bias)] {
            let Some(other) = other else { continue };
            if other.dtype() != dtype || !other.device().same_device(weight.device()) {
                return wrong(format!(
                    "{name} {} on {:?}, weight {} on {:?}: they must have one dtype and one device",
                    other.dtype().as_str(),
                    other.device().location(),
                    dtype.as_str(),
                    weight.device().location()
                ));
            }
        }
        RowTable::refresh(weight)?; // a tied head, also over a detached tensor of the table
        Ok(Head {
            hidden: hidden.reshape((dims.iter().product::<usize>(), columns))?,
            weight: weight.clone(),
            bias: bias.cloned(),
            dims,
            vocab_size,
            columns,
        })
    }

    /// Targets on the host, checked.
    fn targets(&self, targets: &Tensor) -> Result<Vec<u32>> {
        if targets.dims() != self.dims {
            return Err(Error::Config(format!(
                "targets {:?} for hidden states {:?}: one target a position, {:?}",
                targets.dims(),
                [&self.dims[..], &[self.columns]].concat(),
                self.dims
            )));
        }
        let targets = ids::on_host(targets)?;
        ids::check(&targets, self.vocab_size, None, |_| None).map_err(|error| match error {
            Error::IdOutOfRange { id, position, rows, .. } => Error::TargetOutOfRange { target: id, position, rows },
            other => other,
        })?;
        Ok(targets.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?)
    }

    /// Logits (n, rows) of `hidden` (n, C) and some rows of the vocabulary, by candle's operations.
    fn logits(&self, hidden: &Tensor, first: usize, rows: usize, soft_cap: Option<f64>) -> candle_core::Result<Tensor> {
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
        if let Some(cap) = soft_cap {
            logits = ((logits / cap)?.tanh()? * cap)?;
        }
        logits.to_dtype(self.weight.dtype())
    }
}
