//! Logits → the next id: temperature, top-k, top-p, a mask, a seed.
//!
//! This module does not depend on a model.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};
use tallow_text::support::mix;

/// Settings of a [`Sampler`].
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{Sampler, SamplerConfig};
/// let cfg = SamplerConfig { temperature: 0.8, top_k: Some(1), ..Default::default() };
/// let logits = Tensor::new(&[1f32, 5., 3.], &Device::Cpu)?;
/// assert_eq!(Sampler::new(cfg)?.sample(&logits)?, 1);
/// assert!(Sampler::new(SamplerConfig { top_p: Some(2.0), ..cfg }).is_err());
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by it. Below 1 likely ids become likelier. 0 always selects the likeliest id (among equal ones the lowest).
    pub temperature: f64,
    /// Only this many of the likeliest ids can be drawn. `None`: all.
    pub top_k: Option<usize>,
    /// After `top_k`: only the smallest set of likeliest ids whose probabilities sum to at least this, 0 to 1. `None`: all.
    pub top_p: Option<f64>,
    /// Seed of the draws.
    pub seed: u64,
}

/// Temperature 1, no limits, seed 1337.
impl Default for SamplerConfig {
    fn default() -> Self {
        SamplerConfig { temperature: 1.0, top_k: None, top_p: None, seed: 1337 }
    }
}

/// Draws ids from their logits.
///
/// p = softmax(logits / temperature) over the `top_k` likeliest ids that are not masked, restricted to `top_p` and normalized. Draw n is
/// a function of the seed, n and the logits, so two samplers with the same seed draw the same ids. The arithmetic is f64 in a fixed
/// order, with the same exp on all platforms: equal logits give the same draw on every machine.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{Sampler, SamplerConfig, Tokenizer};
/// let logits = Tensor::new(&[1f32, 5., 3.], &Device::Cpu)?;
/// let mut greedy = Sampler::new(SamplerConfig { temperature: 0.0, ..Default::default() })?;
/// assert_eq!(greedy.sample(&logits)?, 1);
/// greedy.mask([1]); // id 1 is never drawn again
/// assert_eq!(greedy.sample(&logits)?, 2);
/// // Rows of a table without a token must not be drawn:
/// let mut sampler = Sampler::new(SamplerConfig { top_k: Some(40), ..Default::default() })?;
/// sampler.mask(Tokenizer::cl100k().ids_without_token(100_352));
/// # Ok::<(), tallow::Error>(())
/// ```
///
/// Source: Fan, Lewis and Dauphin, 2018 (top-k); Holtzman et al., 2020 (top-p); in the order of transformers' logits processors.
#[derive(Clone, Debug)]
pub struct Sampler {
    cfg: SamplerConfig,
    /// Ascending, each id once.
    masked: Vec<u32>,
    draws: u64,
}

impl Sampler {
    /// A sampler without masked ids, at draw 0.
    ///
    /// # Errors
    /// [`Error::Config`]: a temperature that is negative or not finite, a `top_k` of 0, a `top_p` that is not above 0 and at most 1.
    pub fn new(cfg: SamplerConfig) -> Result<Self> {
        let SamplerConfig { temperature, top_k, top_p, .. } = cfg;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::Config(format!("temperature {temperature} must be a number, 0 or larger")));
        }
        if top_k == Some(0) || top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            let what = format!("top_k {top_k:?} and top_p {top_p:?} leave no id to draw: 1 <= top_k, 0 < top_p <= 1");
            return Err(Error::Config(what));
        }
        Ok(Sampler { cfg, masked: Vec::new(), draws: 0 })
    }

    /// Masks these ids, in addition to those that are masked already. Masked ids are never drawn.
    pub fn mask(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.masked.extend(ids);
        self.masked.sort_unstable();
        self.masked.dedup();
    }

    /// Draws an id.
    ///
    /// # Shapes
    /// - logits: V numbers in any shape, such as the (1, 1, V) of [`Head::logits`](crate::Head::logits) for the last position, f32, f64,
    ///   bf16 or f16. -∞ is never drawn.
    ///
    /// # Errors
    /// [`Error::Config`]: logits of several positions; a logit of an unmasked id that is NaN or +∞; no id left to draw.
    ///
    /// # Cost
    /// One pass over V logits, and an exp for each logit that is left. With `top_k` or `top_p` also a selection or a sort.
    pub fn sample(&mut self, logits: &Tensor) -> Result<u32> {
        let wrong = |what: String| Err(Error::Config(what));
        if logits.dims().last() != Some(&logits.elem_count()) {
            return wrong(format!("logits {:?} of several positions: pass the logits of one", logits.dims()));
        }
        let logits: Vec<f64> = logits.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?;
        let (mut left, mut masked) = (Vec::with_capacity(logits.len()), self.masked.iter().peekable());
        for (id, logit) in (0u32..).zip(logits) {
            if masked.next_if_eq(&&id).is_some() {
                continue;
            }
            if logit.is_nan() || logit == f64::INFINITY {
                return wrong(format!("the logit of id {id} is {logit}: check the model's weights and its input"));
            }
            left.extend((logit > f64::NEG_INFINITY).then_some((logit + 0.0, id))); // -0 is 0
        }
        if left.is_empty() {
            return wrong("no id is left to draw: all are masked, or have the logit -inf".to_string());
        }
        let SamplerConfig { temperature, top_k, top_p, seed } = self.cfg;
        // The largest first, among equal ones the lower id. Ids are unique, so the order is total.
        let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let most = if temperature == 0.0 { 1 } else { top_k.unwrap_or(left.len()) };
        if most < left.len() {
            left.select_nth_unstable_by(most - 1, order);
            left.truncate(most);
        }
        if top_k.is_some() || top_p.is_some() {
            left.sort_unstable_by(order);
        }
        let largest = left.iter().map(|(logit, _)| *logit).fold(f64::NEG_INFINITY, f64::max);
        let weights = left.iter().map(|(logit, _)| match temperature {
            0.0 => 1.0,
            t => libm::exp((logit - largest) / t),
        });
        let mut weights: Vec<f64> = weights.collect();
        if let Some(top_p) = top_p {
            let (mut kept, mut sum, enough) = (0, 0.0, top_p * weights.iter().sum::<f64>());
            while kept < weights.len() && sum < enough {
                sum += weights[kept];
                kept += 1;
            }
            weights.truncate(kept.max(1));
        }
        let unit = (mix(seed ^ mix(self.draws)) >> 11) as f64 / (1u64 << 53) as f64; // 0 <= unit < 1
        self.draws += 1;
        let mut rest = unit * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        // Because of rounding, no id may be found: then the last one with a weight is taken.
        let last = weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
        Ok(left[drawn.unwrap_or(last)].1)
    }
}
