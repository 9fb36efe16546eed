//! The arithmetic of AdamW, elementwise, in candle's order of operations: the same bits, in one pass.

use super::history::{Entry, History, Step};
use super::place::host::{Real, Weight};
use crate::support::widest::widest;

/// Elements that are replayed together. They stay in registers and first-level cache for all steps.
pub(super) const LANES: usize = 64;

/// 2⁻⁶⁰. Weights of at least this size stay in the normal range under decay (see [`History`]).
const SMALLEST_WEIGHT: f32 = 8.673_617e-19;

/// Full steps between two checks of the bound.
const STEPS_A_LOOK: usize = 4;

/// The update of a weight from its new moments. `+ 0` is where candle's `affine` adds 0, which turns -0 into 0.
#[inline(always)]
fn update<T: Real>(theta: T, m: T, v: T, s: &Step<T>) -> T {
    let (m_hat, v_hat) = (m * s.scale_m + T::zero(), v * s.scale_v + T::zero());
    (theta * s.decay + T::zero()) - (m_hat / (v_hat.sqrt() + s.eps) * s.lr + T::zero())
}

/// One step with a gradient.
#[inline(always)]
fn step_one<T: Real>(theta: T, m: &mut T, v: &mut T, g: T, s: &Step<T>) -> T {
    *m = ((*m * s.beta1 + T::zero()) + (g * s.one_minus_beta1 + T::zero())).above(s.floor);
    *v = ((*v * s.beta2 + T::zero()) + (g * g * s.one_minus_beta2 + T::zero())).above(s.floor);
    update(theta, *m, *v, s)
}

/// One step without a gradient.
#[inline(always)]
fn skip_one(theta: f32, m: &mut f32, v: &mut f32, s: &Step) -> f32 {
    *m = (*m * s.beta1 + 0.0).above(s.floor);
    *v = (*v * s.beta2 + 0.0).above(s.floor);
    update(theta, *m, *v, s)
}

#[inline(always)]
pub(super) fn sgd_one<T: Real>(theta: T, g: T, lr: T) -> T {
    theta - (g * lr + T::zero())
}

widest! {
    /// AdamW's step on equally long slices.
    pub(super) fn step<T: Real>(theta: &mut [T], m: &mut [T], v: &mut [T], g: &[T], s: &Step<T>) {
        let s = *s;
        for (((theta, m), v), g) in theta.iter_mut().zip(m).zip(v).zip(g) {
            *theta = step_one(*theta, m, v, *g, &s);
        }
    }
}

widest! {
    /// Replays entries `from + 1..=to` of the history on a row's weight and moments, in blocks. Each block has two phases: full
    /// steps until [`History`]'s bound holds for every element, then only the remaining products.
    pub(super) fn replay<W: Weight>(row: [&mut [f32]; 3], history: &History, from: usize, to: usize) {
        let [theta, m, v] = row;
        for ((theta, m), v) in theta.chunks_mut(LANES).zip(m.chunks_mut(LANES)).zip(v.chunks_mut(LANES)) {
            // A short last block is padded with zeros, for which the bound holds immediately.
            let (len, mut block) = (theta.len(), [[0f32; LANES]; 3]);
            let [t, p, q] = &mut block;
            t[..len].copy_from_slice(theta);
            p[..len].copy_from_slice(m);
            q[..len].copy_from_slice(v);
            replay_block(t, p, q, history, (from, to), W::round);
            theta.copy_from_slice(&t[..len]);
            m.copy_from_slice(&p[..len]);
            v.copy_from_slice(&q[..len]);
        }
    }
}

#[inline(always)]
fn replay_block(
    theta: &mut [f32; LANES],
    m: &mut [f32; LANES],
    v: &mut [f32; LANES],
    history: &History,
    (from, to): (usize, usize),
    round: impl Fn(f32) -> f32 + Copy,
) {
    // A weight that is rounded in every step can differ too much from the product of its decays for the bound.
    let decays = history.entries[from].log_decay != history.entries[to].log_decay;
    let bounded = history.mild(from, to) && !(decays && round(1.000_000_1) == 1.0);
    let mut at = from;
    while at < to {
        let entry = &history.entries[at];
        if bounded && is_settled(theta, m, v, entry.factor, at >= history.unsafe_until) {
            return finish(theta, m, v, history, (at, to), round);
        }
        let stop = to.min(at + STEPS_A_LOOK);
        for entry in &history.entries[at + 1..=stop] {
            let s = entry.step;
            for i in 0..LANES {
                theta[i] = round(skip_one(theta[i], &mut m[i], &mut v[i], &s));
            }
        }
        at = stop;
    }
}

/// Whether no deferred update can change any of these weights; see [`History`].
#[inline(always)]
fn is_settled(theta: &[f32; LANES], m: &[f32; LANES], v: &[f32; LANES], factor: f32, zero_is_safe: bool) -> bool {
    let mut unsettled = 0u32;
    for i in 0..LANES {
        let weight = theta[i].abs();
        let bound = (weight >= SMALLEST_WEIGHT) & (m[i].abs() * factor <= v[i].sqrt() * weight);
        let zero = (m[i] == 0.0) & zero_is_safe & (v[i] >= 0.0);
        unsettled |= u32::from(!(bound | zero));
    }
    unsettled == 0
}

/// The second phase, in which updates change nothing: the products of decay and of both moments.
#[inline(always)]
fn finish(
    theta: &mut [f32; LANES],
    m: &mut [f32; LANES],
    v: &mut [f32; LANES],
    history: &History,
    (from, to): (usize, usize),
    round: impl Fn(f32) -> f32 + Copy,
) {
    let steps = &history.entries[from + 1..=to];
    let uniform = from + 1 >= history.uniform_from;
    let decays = history.entries[from].log_decay != history.entries[to].log_decay;
    // candle's `+ 0.0` turns -0 into 0. One addition is enough: a later product is -0 only if it underflows, and weights here are
    // zero or too large for that.
    theta.iter_mut().for_each(|theta| *theta += 0.0);
    let far = theta.iter().all(|theta| (*theta == 0.0) | (theta.abs() >= SMALLEST_WEIGHT));
    match (decays, far) {
        (true, true) => multiply(theta, steps, uniform, |step| step.decay, round, None),
        (true, false) => multiply(theta, steps, uniform, |step| step.decay, |x| round(x + 0.0), None),
        (false, _) => (),
    }
    let last = [m, v];
    for (moment, factor) in last.into_iter().zip([|step: &Step| step.beta1, |step: &Step| step.beta2]) {
        multiply(moment, steps, uniform, factor, |x| x, Some(f32::MIN_POSITIVE));
    }
}

/// Steps between two checks of whether moments are zero.
const STEPS_A_FLUSH: usize = 16;

/// Multiplies by the factors one after another. With a floor, smaller values become zero, possibly a few steps late. Factors are
/// below one, so such values cannot rise above the floor again.
#[inline(always)]
fn multiply(
    values: &mut [f32; LANES],
    steps: &[Entry],
    uniform: bool,
    factor: impl Fn(&Step) -> f32,
    round: impl Fn(f32) -> f32,
    floor: Option<f32>,
) {
    let mut x = *values;
    for steps in steps.chunks(STEPS_A_FLUSH) {
        if floor.is_some() && x.iter().all(|x| *x == 0.0) {
            break;
        }
        if uniform {
            let factor = factor(&steps[0].step);
            for _ in 0..steps.len() {
                x.iter_mut().for_each(|x| *x = round(*x * factor));
            }
        } else {
            for entry in steps {
                let factor = factor(&entry.step);
                x.iter_mut().for_each(|x| *x = round(*x * factor));
            }
        }
        if let Some(floor) = floor {
            x.iter_mut().for_each(|x| *x = x.above(floor));
        }
    }
    *values = x;
}

#[cfg(test)]
#[path = "../../tests/kernels/bodies.rs"]
mod tests;
