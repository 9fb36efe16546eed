//! The learning rate of a step: warm-up, then constant, linear or cosine.

use std::f64::consts::PI;

use crate::{Error, Result};

/// How the learning rate decreases after the warm-up.
///
/// # Example
/// ```
/// use tallow::optim::{Decay, Schedule};
/// let linear = Schedule { peak: 1.0, min: 0.0, warmup_steps: 0, total_steps: 4, decay: Decay::Linear };
/// assert_eq!((linear.lr(1)?, linear.lr(4)?), (0.75, 0.0));
/// let constant = Schedule { decay: Decay::Constant, ..linear };
/// assert_eq!(constant.lr(4)?, 1.0);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decay {
    /// Constant at `peak`.
    Constant,
    /// Linear to `min`.
    Linear,
    /// Half a cosine to `min` (Loshchilov and Hutter, 2017). The default.
    #[default]
    Cosine,
}

/// The learning rate as a function of the step. It has no state, so a resumed run gets the same rates.
///
/// Steps count from 1. With w warm-up steps and n steps in all, step s ≤ w has peak · s/w. After that, with
/// p = (s - w)/(n - w), the rate is peak - (peak - min) · p ([`Decay::Linear`]) or
/// min + (peak - min) · (1 + cos πp)/2 ([`Decay::Cosine`]). From step n on it is `min`.
///
/// # Example
/// ```
/// use tallow::optim::{Decay, Schedule};
/// let schedule = Schedule { peak: 1e-3, min: 1e-4, warmup_steps: 10, total_steps: 110, decay: Decay::Cosine };
/// assert_eq!(schedule.lr(1)?, 1e-4);
/// assert_eq!(schedule.lr(10)?, 1e-3);
/// assert!((schedule.lr(60)? - 5.5e-4).abs() < 1e-12);
/// assert_eq!(schedule.lr(110)?, 1e-4);
/// // Before each step: opt.set_learning_rate(schedule.lr(step)?)
/// # Ok::<(), tallow::Error>(())
/// ```
///
/// Source: PyTorch's `LinearLR` for the warm-up, then `CosineAnnealingLR` or `LinearLR`, joined by `SequentialLR`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The rate after the warm-up.
    pub peak: f64,
    /// The rate at the end. [`Decay::Constant`] ignores it.
    pub min: f64,
    /// Steps over which the rate rises to `peak`; 0 for none.
    pub warmup_steps: u64,
    /// Steps of the whole run, including the warm-up. [`Decay::Constant`] ignores it.
    pub total_steps: u64,
    /// The shape after the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of a step, from 1. For groups with different rates multiply it by a factor for each group
    /// ([`groups_mut`](super::Optim::groups_mut)).
    ///
    /// # Errors
    /// [`Error::Config`]: step 0; a `peak` or `min` that is negative or not finite; a `min` above `peak`; a warm-up that is not shorter
    /// than the run.
    pub fn lr(&self, step: u64) -> Result<f64> {
        let &Schedule { peak, min, warmup_steps: warmup, total_steps: total, decay } = self;
        let wrong = |what: String| Err(Error::Config(what));
        let constant = decay == Decay::Constant;
        if step == 0 {
            return wrong("a schedule has no step 0: steps count from 1".to_string());
        }
        if !(peak.is_finite() && peak >= 0.0 && (constant || (0.0..=peak).contains(&min))) {
            return wrong(format!("a schedule with peak {peak} and min {min}: both must be numbers, 0 <= min <= peak"));
        }
        if !constant && warmup >= total {
            return wrong(format!("{warmup} warm-up steps in a run of {total} steps: the warm-up must be shorter"));
        }
        if step <= warmup {
            return Ok(peak * step as f64 / warmup as f64);
        }
        if !constant && step >= total {
            return Ok(min);
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup) as f64;
        Ok(match decay {
            Decay::Constant => peak,
            Decay::Linear => peak - (peak - min) * progress,
            // The cosine of the C library differs between machines in the last bit, and would change the weights.
            Decay::Cosine => min + (peak - min) * (1.0 + libm::cos(PI * progress)) / 2.0,
        })
    }
}
