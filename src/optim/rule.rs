//! The update rules, as the constants of one step.

use candle_core::Var;
use candle_nn::ParamsAdamW;

use super::history::Step;

/// The constants of one step of a rule. A `Place` does the arithmetic.
#[derive(Clone, Copy)]
pub(super) enum Update {
    /// θ ← θ · decay - lr · m̂ / (√v̂ + ε). Rows without a gradient also change; a row-sparse table defers these updates.
    AdamW(Step<f64>),
    /// θ ← θ - lr · g.
    Sgd { lr: f64 },
}

/// The parameters of an update rule: `ParamsAdamW` for AdamW, the learning rate (f64) for gradient descent.
///
/// # Example
/// ```
/// use candle_nn::{Optimizer, ParamsAdamW, VarMap};
/// use tallow::optim::{Optim, Rule};
/// fn rate<P: Rule>(params: P) -> tallow::Result<f64> {
///     Ok(Optim::from_varmap(&VarMap::new(), params)?.learning_rate())
/// }
/// assert_eq!(rate(0.1f64)?, 0.1);
/// assert_eq!(rate(ParamsAdamW { lr: 0.01, ..Default::default() })?, 0.01);
/// # Ok::<(), tallow::Error>(())
/// ```
#[allow(private_bounds)] // no other implementations
pub trait Rule: Numbers + Clone {}

impl Rule for ParamsAdamW {}
impl Rule for f64 {}

pub(super) trait Numbers {
    /// Whether a weight has moments.
    const MOMENTS: bool;
    fn lr(&self) -> f64;
    fn set_lr(&mut self, lr: f64);
    /// Whether all parameters are equal.
    fn same(&self, other: &Self) -> bool;
    /// The constants of step `t`, from 1.
    fn update(&self, t: usize) -> Update;
}

impl Numbers for ParamsAdamW {
    const MOMENTS: bool = true;

    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn same(&self, other: &Self) -> bool {
        let numbers = |p: &Self| [p.lr, p.beta1, p.beta2, p.eps, p.weight_decay].map(f64::to_bits);
        numbers(self) == numbers(other)
    }

    fn update(&self, t: usize) -> Update {
        Update::AdamW(Step::new(self, t))
    }
}

impl Numbers for f64 {
    const MOMENTS: bool = false;

    fn lr(&self) -> f64 {
        *self
    }

    fn set_lr(&mut self, lr: f64) {
        *self = lr;
    }

    fn same(&self, other: &Self) -> bool {
        self.to_bits() == other.to_bits()
    }

    fn update(&self, _t: usize) -> Update {
        Update::Sgd { lr: *self }
    }
}

/// Weight decay for variables of two or more dimensions, none for biases and norms: a closure for [`Optim::from_varmap_with`].
///
/// A table has two dimensions, and decays. To exclude it, write a closure that checks the name.
///
/// # Example
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{ParamsAdamW, VarBuilder, VarMap};
/// use tallow::optim::{AdamW, decay_matrices};
/// let varmap = VarMap::new();
/// candle_nn::linear(2, 3, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
/// let mut opt = AdamW::from_varmap_with(&varmap, decay_matrices(ParamsAdamW { weight_decay: 0.1, ..Default::default() }))?;
/// let decays: Vec<f64> = opt.groups_mut().iter().map(|group| group.params.weight_decay).collect();
/// assert_eq!(decays, [0.0, 0.1]); // the bias; the weight
/// # Ok::<(), tallow::Error>(())
/// ```
///
/// Source: nanoGPT's `configure_optimizers`.
///
/// [`Optim::from_varmap_with`]: super::Optim::from_varmap_with
pub fn decay_matrices(params: ParamsAdamW) -> impl Fn(&str, &Var) -> ParamsAdamW {
    move |_, var| match var.rank() {
        0 | 1 => ParamsAdamW { weight_decay: 0.0, ..params.clone() },
        _ => params.clone(),
    }
}
