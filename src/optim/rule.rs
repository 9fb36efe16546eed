//! The rules, as the numbers of one step.

use candle_nn::ParamsAdamW;

use super::history::Step;

/// The numbers of one step of a rule; a place does the arithmetic.
#[derive(Clone, Copy)]
pub(super) enum Update {
    /// θ ← θ · decay - lr · m̂ / (√v̂ + ε). Rows without a gradient move, too; a table defers that.
    AdamW(Step<f64>),
    /// θ ← θ - lr · g.
    Sgd { lr: f64 },
}

/// The parameters of a rule: `ParamsAdamW` of AdamW, the learning rate of gradient descent.
#[allow(private_bounds)] // no other rules than these
pub trait Rule: Numbers + Clone {
    /// The learning rate.
    fn learning_rate(&self) -> f64;
    /// Sets it.
    fn set_learning_rate(&mut self, lr: f64);
}

pub(super) trait Numbers {
    /// Whether a weight has moments.
    const MOMENTS: bool;
    /// The numbers of step `t`, from 1.
    fn update(&self, t: usize) -> Update;
}

impl Rule for ParamsAdamW {
    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }
}

impl Numbers for ParamsAdamW {
    const MOMENTS: bool = true;

    fn update(&self, t: usize) -> Update {
        Update::AdamW(Step::new(self, t))
    }
}

impl Rule for f64 {
    fn learning_rate(&self) -> f64 {
        *self
    }

    fn set_learning_rate(&mut self, lr: f64) {
        *self = lr;
    }
}

impl Numbers for f64 {
    const MOMENTS: bool = false;

    fn update(&self, _t: usize) -> Update {
        Update::Sgd { lr: *self }
    }
}
