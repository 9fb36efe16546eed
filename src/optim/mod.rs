//! Gradients, dense or by row → new weights, in place.
//!
//! [`AdamW`] and [`Sgd`] implement `candle_nn::Optimizer` and take candle's parameters: to change over, replace the
//! name of the type. Dense weights are updated in one fused pass, bit for bit as candle would; a row-sparse table
//! ([`Gradient::RowSparse`](crate::Gradient::RowSparse)) costs what the batch costs, not what the vocabulary costs.
//! This module does not know where gradients came from.

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

/// Decoupled Adam (Loshchilov and Hutter, 2019), a drop-in for `candle_nn::AdamW`.
///
/// Weights of f32 and f64 take candle's bits (moments below the normal range aside, see [`Replay::Exact`]); bf16 and f16
/// weights are computed in f32 with f32 moments, where candle rounds every intermediate result. Tables whose layer has
/// [`Gradient::RowSparse`](crate::Gradient::RowSparse) are found by their variable and updated by [`Replay`]'s rule.
///
/// **While it lives, updates of such a table's rows are deferred.** Everything of tallow replays the rows that it reads. Before
/// anything else reads or writes the raw variables (`VarMap::save`, `VarMap::load`, `Var::set`, a `candle_nn::Embedding` over
/// the table) call [`flush`](Optim::flush): deferred updates would later be applied to the new weights. Dropping the optimizer
/// flushes, too, and forgets gradients that wait.
///
/// # Accumulation
/// Row gradients belong to the `GradStore` of their backward, as dense ones do. To train on a batch in parts, add the stores
/// (`total.extend(grads)?`), then step once: examples/accumulate.rs. A step with a store that lacks the rows of an earlier backward is
/// [`Error::MissingGradients`](crate::Error::MissingGradients): the table would train on them, and nothing else. A second step with one store,
/// or with one that was added to after its step, is [`Error::SteppedBefore`](crate::Error::SteppedBefore): the table has no rows of it left.
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

/// θ ← θ - lr · g: `candle_nn::SGD`, bit for bit in f32, in one pass, and row by row for row-sparse tables.
///
/// A row without a gradient does not change, so nothing is deferred. Gradients accumulate as with [`AdamW`].
pub type Sgd = Optim<f64>;

/// What [`AdamW`] does about the steps in which a row of a row-sparse table had no gradient.
///
/// A dense AdamW moves every row at every step, also those without a gradient: their moments fade, their momentum goes on
/// to move them, decay shrinks them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// Every skipped update is replayed before the row is read: each weight and each loss is that of the dense optimizer, bit
    /// for bit, in f32.
    ///
    /// Full steps are replayed only while they can change a weight (some 150 steps with β1 = 0.9); after that only the
    /// products of moments and decay are left, at a cost that stays bounded over long runs. The proof stands at `History`
    /// in `src/optim/history.rs`. Moments below 2⁻¹²⁶ are stored as zero, by this optimizer's dense steps too: no step
    /// gets slow from subnormal numbers. So a weight can differ from candle's where it is itself below 2⁻¹⁰¹ · lr / ε (4·10⁻²⁶ for
    /// lr = 10⁻³, ε = 10⁻⁸), or where such a moment later meets a gradient element with 0 < |g| < 2⁻⁵¹ / √(1 - β2) (1.4·10⁻¹⁴ for
    /// β2 = 0.999), or a smaller ε. (With an ε below 10⁻¹⁷ nothing is stored as zero.)
    ///
    /// The cost stays bounded for sound settings: β1 and β2 in (0, 1) with β1 < √β2, ε ≥ 10⁻¹⁷, lr · decay < 1. With others every
    /// deferred update is replayed in full: still exact, slower the longer a row had no gradient.
    #[default]
    Exact,
    /// At most so many deferred updates are replayed; for the rest moments and decay are multiplied by their products, and updates
    /// are left out. Close to the dense optimizer (with 200 steps and β1 = 0.9, an update that is left out is below
    /// 10⁻⁹ of the first), not equal.
    Truncated {
        /// Steps replayed in full.
        steps: usize,
    },
    /// Nothing is replayed: a row's moments, decay and weight change only in steps in which it has a gradient. This is
    /// the rule of PyTorch's SparseAdam (which adds ε before bias correction, where this adds it after, as AdamW does), and another
    /// optimizer than AdamW: results differ from the dense one's.
    Lazy,
}
