//! Optimizers: dense or row-sparse gradients → new weights, in place.
//!
//! [`AdamW`] and [`Sgd`] implement `candle_nn::Optimizer` and take candle's parameters: to switch from candle's, replace the
//! name of the type. Dense weights are updated in one fused pass, bit for bit as by candle. The cost of a row-sparse table
//! ([`Gradient::RowSparse`](crate::Gradient::RowSparse)) depends on the batch, not on the vocabulary.
//! This module does not depend on how gradients are computed.

mod engine;
mod history;
mod kernel;
mod place;
mod rule;
mod schedule;
mod state;
mod variable;

use candle_nn::ParamsAdamW;

pub use engine::{Optim, ParamGroup};
pub use rule::{Rule, decay_matrices};
pub use schedule::{Decay, Schedule};
pub use state::Stateful;

/// AdamW (Loshchilov and Hutter, 2019), a drop-in replacement for `candle_nn::AdamW`.
///
/// f32 and f64 weights get candle's bits (except for moments below the normal range, see [`Replay::Exact`]). bf16 and f16
/// weights are computed in f32 with f32 moments; candle rounds every intermediate result. A table whose layer has
/// [`Gradient::RowSparse`](crate::Gradient::RowSparse) is recognized by its variable. [`Replay`] sets how its rows are updated.
///
/// **While the optimizer exists, updates of such a table's rows are deferred.** Everything of tallow replays the rows that it reads.
/// Call [`flush`](Optim::flush) before other code reads or writes the raw variables (`VarMap::save`, `VarMap::load`, `Var::set`, a
/// `candle_nn::Embedding` over the table); else deferred updates are later applied to the new weights. Dropping the optimizer also
/// flushes, and discards pending row gradients.
///
/// # Accumulation
/// Row gradients belong to the `GradStore` of their backward, as dense ones do. To train on a batch in parts, add the stores
/// (`total.extend(grads)?`), then step once: examples/accumulate.rs. A step with a store that lacks row gradients of an earlier
/// backward is [`Error::MissingGradients`](crate::Error::MissingGradients). A second step with the same store, or with a store that
/// was added to after its step, is [`Error::SteppedBefore`](crate::Error::SteppedBefore).
///
/// # Cost
/// Dense: one pass that reads weight, gradient and both moments and writes all but the gradient, on all threads,
/// without temporaries. Row-sparse: proportional to the look-ups of the step.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
///
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// let mut opt = AdamW::new(varmap.all_vars(), ParamsAdamW::default())?; // was candle_nn::AdamW::new(…)
/// let x = wte.forward(&Tensor::new(&[[7u32, 99999]], &Device::Cpu)?)?;
/// opt.backward_step(&x.sqr()?.sum_all()?)?; // moves two rows, touches no other
/// # Ok::<(), tallow::Error>(())
/// ```
pub type AdamW = Optim<ParamsAdamW>;

/// Gradient descent, θ ← θ - lr · g: `candle_nn::SGD`, bit for bit in f32, in one pass. Row-sparse tables are updated by row.
///
/// A row without a gradient does not change, so nothing is deferred. Gradients accumulate as with [`AdamW`].
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_nn::Optimizer;
/// use tallow::optim::Sgd;
/// let weight = Var::from_tensor(&Tensor::new(&[2f32, 4.], &Device::Cpu)?)?;
/// let mut opt = Sgd::new(vec![weight.clone()], 0.25)?;
/// opt.backward_step(&weight.sqr()?.sum_all()?)?;
/// assert_eq!(weight.to_vec1::<f32>()?, [1.0, 2.0]); // θ - 0.25 · 2θ
/// # Ok::<(), tallow::Error>(())
/// ```
pub type Sgd = Optim<f64>;

/// How [`AdamW`] treats the steps in which a row of a row-sparse table had no gradient.
///
/// A dense AdamW updates every row at every step, also rows without a gradient: their moments decay, their momentum still moves
/// them, and weight decay shrinks them.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// use tallow::optim::{AdamW, Replay};
/// use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig};
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 8, d_model: 2, gradient: Gradient::RowSparse, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?.with_replay(Replay::Lazy)?;
/// let before = wte.flushed_weight()?.to_vec2::<f32>()?;
/// opt.backward_step(&wte.forward(&Tensor::new(&[3u32], &Device::Cpu)?)?.sqr()?.sum_all()?)?;
/// let after = wte.flushed_weight()?.to_vec2::<f32>()?;
/// assert!(after[3] != before[3] && after[4] == before[4]); // row 4 does not even decay
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// Every deferred update is replayed before the row is read. In f32 each weight and each loss is that of the dense optimizer,
    /// bit for bit.
    ///
    /// Full steps are replayed only while they can change a weight (about 150 steps with β1 = 0.9). After that only the
    /// products of moments and decay remain, so the cost stays bounded in long runs. The proof is at `History`
    /// in `src/optim/history.rs`.
    ///
    /// Moments below 2⁻¹²⁶ are stored as zero, also by this optimizer's dense steps, because subnormal numbers are slow. So a weight
    /// can differ from candle's in these cases: it is below 2⁻¹⁰¹ · lr / ε (4·10⁻²⁶ for lr = 10⁻³, ε = 10⁻⁸); or such a moment is
    /// later updated with a gradient element 0 < |g| < 2⁻⁵¹ / √(1 - β2) (1.4·10⁻¹⁴ for β2 = 0.999), or used with a smaller ε. (With
    /// an ε below 10⁻¹⁷ no moment is stored as zero.)
    ///
    /// The cost is bounded for β1 and β2 in (0, 1) with β1 < √β2, ε ≥ 10⁻¹⁷ and lr · decay < 1. With other settings every
    /// deferred update is replayed in full. This is still exact, but the cost grows with the number of deferred steps.
    #[default]
    Exact,
    /// At most `steps` deferred updates are replayed in full. For the other steps only the products of moments and decay are applied.
    /// The result is close to the dense optimizer, but not equal: with 200 steps and β1 = 0.9 each omitted update is below 10⁻⁹ of
    /// the first one.
    Truncated {
        /// Steps replayed in full.
        steps: usize,
    },
    /// Nothing is replayed: moments and weight of a row change only in steps in which it has a gradient. This is the rule of PyTorch's
    /// SparseAdam (which adds ε before bias correction; this adds it after, as AdamW does). It is another optimizer than AdamW, with
    /// other results.
    Lazy,
}
