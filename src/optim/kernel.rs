//! The arithmetic of AdamW, element by element, in candle's order of operations: the same bits, in one pass.

use super::history::{Entry, History, Step};
use crate::support::widest::widest;

/// Elements that are replayed together: they stay in registers and first-level cache over all steps.
pub(super) const LANES: usize = 64;

/// 2⁻⁶⁰: from here on decay keeps a weight in the normal range (see [`History`]).
const SMALLEST_WEIGHT: f32 = 8.673_617e-19;

/// Full steps between two looks at whether a block is settled.
const STEPS_A_LOOK: usize = 4;

/// The float types of the arithmetic.
trait Real:
    Copy
    + std::ops::Mul<Output = Self>
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Div<Output = Self>
{
    const ZERO: Self;
    fn sqrt(self) -> Self;
    /// Zero for what is closer to zero than `floor`.
    fn above(self, floor: Self) -> Self;
}

macro_rules! real {
    ($type:ty) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            #[inline(always)]
            fn above(self, floor: Self) -> Self {
                if self.abs() < floor { 0.0 } else { self }
            }
        }
    };
}
real!(f32);
real!(f64);

/// The update of a weight from its new moments. `+ 0` stands where candle's `affine` adds it: it turns -0 into 0.
#[inline(always)]
fn update<T: Real>(theta: T, m: T, v: T, s: &Step<T>) -> T {
    let (m_hat, v_hat) = (m * s.scale_m + T::ZERO, v * s.scale_v + T::ZERO);
    (theta * s.decay + T::ZERO) - (m_hat / (v_hat.sqrt() + s.eps) * s.lr + T::ZERO)
}

/// One step with a gradient.
#[inline(always)]
fn step_one<T: Real>(theta: T, m: &mut T, v: &mut T, g: T, s: &Step<T>) -> T {
    *m = ((*m * s.beta1 + T::ZERO) + (g * s.one_minus_beta1 + T::ZERO)).above(s.floor);
    *v = ((*v * s.beta2 + T::ZERO) + (g * g * s.one_minus_beta2 + T::ZERO)).above(s.floor);
    update(theta, *m, *v, s)
}

/// One step without a gradient.
#[inline(always)]
fn skip_one(theta: f32, m: &mut f32, v: &mut f32, s: &Step) -> f32 {
    *m = (*m * s.beta1 + 0.0).above(s.floor);
    *v = (*v * s.beta2 + 0.0).above(s.floor);
    update(theta, *m, *v, s)
}

widest! {
    /// AdamW's step on equally long slices.
    pub(super) fn step_f32(theta: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &Step) {
        let s = *s;
        for (((theta, m), v), g) in theta.iter_mut().zip(m).zip(v).zip(g) {
            *theta = step_one(*theta, m, v, *g, &s);
        }
    }
}

widest! {
    /// The same for f64 weights.
    pub(super) fn step_f64(theta: &mut [f64], m: &mut [f64], v: &mut [f64], g: &[f64], s: &Step<f64>) {
        let s = *s;
        for (((theta, m), v), g) in theta.iter_mut().zip(m).zip(v).zip(g) {
            *theta = step_one(*theta, m, v, *g, &s);
        }
    }
}

widest! {
    /// Replays entries `from + 1..=to` of the history on a row, in blocks, and in each block in two phases: full steps
    /// until [`History`]'s bound holds for every element, then only the products that are left.
    pub(super) fn replay_f32(theta: &mut [f32], m: &mut [f32], v: &mut [f32], history: &History, from: usize, to: usize) {
        replay(theta, m, v, history, (from, to), |theta| theta);
    }
}

widest! {
    /// The same for weights that are stored as bf16: rounded after every step.
    pub(super) fn replay_bf16(theta: &mut [f32], m: &mut [f32], v: &mut [f32], history: &History, from: usize, to: usize) {
        replay(theta, m, v, history, (from, to), |theta| half::bf16::from_f32(theta).to_f32());
    }
}

widest! {
    /// The same for weights that are stored as f16.
    pub(super) fn replay_f16(theta: &mut [f32], m: &mut [f32], v: &mut [f32], history: &History, from: usize, to: usize) {
        replay(theta, m, v, history, (from, to), |theta| half::f16::from_f32(theta).to_f32());
    }
}

#[inline(always)]
fn replay(
    theta: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    history: &History,
    span: (usize, usize),
    round: impl Fn(f32) -> f32 + Copy,
) {
    for ((theta, m), v) in theta.chunks_mut(LANES).zip(m.chunks_mut(LANES)).zip(v.chunks_mut(LANES)) {
        // A short last block is replayed inside a full one; zeros are settled at once.
        let len = theta.len();
        let mut block = [[0f32; LANES]; 3];
        block[0][..len].copy_from_slice(theta);
        block[1][..len].copy_from_slice(m);
        block[2][..len].copy_from_slice(v);
        let [t, p, q] = &mut block;
        replay_block(t, p, q, history, span, round);
        theta.copy_from_slice(&block[0][..len]);
        m.copy_from_slice(&block[1][..len]);
        v.copy_from_slice(&block[2][..len]);
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
    // A rounded weight does not follow the product of its decays closely enough for the bound.
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

/// What is left when updates change nothing: the products of decay and of both moments.
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
    // Candle's `+ 0.0` turns -0 into 0. After the first one only a product that vanishes could be -0 again, and none does
    // of weights that are zero or far from it.
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

/// Steps between two looks at whether moments have reached zero.
const STEPS_A_FLUSH: usize = 16;

/// Multiplies by one factor after the other. With a floor, values below it become zero. They may do so a few steps late:
/// factors are below one, so that they would have stayed there.
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
mod tests {
    use super::*;
    use crate::support::widest::same_with_every_body;

    fn values(count: usize, seed: u64, scale: f32) -> Vec<f32> {
        (0..count as u64)
            .map(|i| ((tallow_text::support::mix(seed ^ i) >> 40) as f32 / 8_388_608.0 - 1.0) * scale)
            .collect()
    }

    /// AVX-512, AVX2 and the baseline: the same bits, on lengths that fill no register.
    #[test]
    fn every_body_has_the_same_bits() {
        let bits = |all: [&[f32]; 3]| all.map(|values| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        let params = candle_nn::ParamsAdamW { lr: 1e-2, weight_decay: 0.1, ..Default::default() };
        let mut history = History::new();
        (1..400).for_each(|step| history.push(Step::new(&params, step).to_f32()));
        for count in [1, 7, 64, 65, 200] {
            let start =
                || (values(count, 1, 0.1), values(count, 2, 1e-3), values(count, 3, 1e-6), values(count, 4, 1.0));
            let moments = |v: &mut Vec<f32>| v.iter_mut().for_each(|v| *v = v.abs());
            let stepped = same_with_every_body(|| {
                let (mut theta, mut m, mut v, g) = start();
                moments(&mut v);
                step_f32(&mut theta, &mut m, &mut v, &g, &Step::new(&params, 7).to_f32());
                bits([&theta, &m, &v])
            });
            assert_ne!(stepped[0], bits([&start().0, &[], &[]])[0]);
            same_with_every_body(|| {
                let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
                let (theta, m, mut v, g) = start();
                moments(&mut v);
                let (mut theta, mut m, mut v) = (wide(theta), wide(m), wide(v));
                step_f64(&mut theta, &mut m, &mut v, &wide(g), &Step::new(&params, 7));
                [theta, m, v].map(|values| values.into_iter().map(f64::to_bits).collect::<Vec<_>>())
            });
            type Replay = fn(&mut [f32], &mut [f32], &mut [f32], &History, usize, usize);
            for replay in [replay_f32 as Replay, replay_bf16, replay_f16] {
                same_with_every_body(|| {
                    let (mut theta, mut m, mut v, _) = start();
                    moments(&mut v);
                    replay(&mut theta, &mut m, &mut v, &history, 3, 390);
                    bits([&theta, &m, &v])
                });
            }
        }
    }
}
