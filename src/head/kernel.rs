//! Softmax arithmetic on transposed blocks of logits: a row is one vocabulary entry, a column one token. Every
//! token has its own lane and no sum crosses lanes, so the width of registers changes no bit.

use crate::support::widest::widest;

/// Statistics of a block's logits z, one number per token.
pub(super) struct Statistics<'a> {
    /// The largest.
    pub(super) max: &'a mut [f32],
    /// Σ exp(z - max).
    pub(super) exp_sum: &'a mut [f32],
    /// Σ z.
    pub(super) sum: &'a mut [f32],
}

widest! {
    /// Adds the bias of each of `rows` rows, and applies the soft cap. A `cap` of 0 means none.
    pub(super) fn finish(z: &mut [f32], bias: Option<&[f32]>, rows: usize, cap: f32) {
        let tokens = z.len() / rows.max(1);
        for (row, z) in z.chunks_exact_mut(tokens.max(1)).enumerate() {
            let bias = bias.map_or(0.0, |bias| bias[row]);
            if cap > 0.0 {
                z.iter_mut().for_each(|z| *z = cap * tanh((*z + bias) / cap));
            } else if bias != 0.0 {
                z.iter_mut().for_each(|z| *z += bias);
            }
        }
    }
}

/// Tokens that are processed together: one register of AVX-512, two of AVX2.
const LANES: usize = 16;

widest! {
    /// Computes the statistics of a block of logits.
    pub(super) fn describe(z: &[f32], of: &mut Statistics) {
        let tokens = of.max.len();
        let whole = tokens / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            describe_lanes::<LANES>(z, at, of);
        }
        for at in whole..tokens {
            describe_lanes::<1>(z, at, of);
        }
    }
}

/// Computes the statistics of tokens `at..at + N`, row by row, with everything in registers.
#[inline(always)]
fn describe_lanes<const N: usize>(z: &[f32], at: usize, of: &mut Statistics) {
    let rows = || z.chunks_exact(of.max.len()).map(|row| lanes::<N>(row, at));
    let (mut max, mut exp_sum, mut sum) = ([f32::MIN; N], [0f32; N], [0f32; N]);
    for z in rows() {
        for i in 0..N {
            max[i] = if z[i] > max[i] { z[i] } else { max[i] };
            sum[i] += z[i];
        }
    }
    for z in rows() {
        for i in 0..N {
            exp_sum[i] += exp(z[i] - max[i]);
        }
    }
    of.max[at..at + N].copy_from_slice(&max);
    of.exp_sum[at..at + N].copy_from_slice(&exp_sum);
    of.sum[at..at + N].copy_from_slice(&sum);
}

#[inline(always)]
fn lanes<const N: usize>(row: &[f32], at: usize) -> [f32; N] {
    let mut lanes = [0f32; N];
    lanes.copy_from_slice(&row[at..at + N]);
    lanes
}

widest! {
    /// Replaces logits by gradients of the loss, without the term of the target row:
    /// (exp(z - max) · factor - even) · (1 - (z / cap)²).
    pub(super) fn differentiate(z: &mut [f32], cap: f32, max: &[f32], factor: &[f32], even: &[f32]) {
        let whole = max.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            differentiate_lanes::<LANES>(z, at, cap, [max, factor, even]);
        }
        for at in whole..max.len() {
            differentiate_lanes::<1>(z, at, cap, [max, factor, even]);
        }
    }
}

#[inline(always)]
fn differentiate_lanes<const N: usize>(z: &mut [f32], at: usize, cap: f32, of: [&[f32]; 3]) {
    let tokens = of[0].len();
    let [max, factor, even] = of.map(|of| lanes::<N>(of, at));
    for row in z.chunks_exact_mut(tokens) {
        let mut z = lanes::<N>(row, at);
        for i in 0..N {
            let grad = exp(z[i] - max[i]) * factor[i] - even[i];
            let bent = z[i] / cap;
            z[i] = if cap > 0.0 { grad * (1.0 - bent * bent) } else { grad };
        }
        row[at..at + N].copy_from_slice(&z);
    }
}

widest! {
    /// Adds the sum of each row to `sums`, in sixteen lanes.
    pub(super) fn add_row_sums(values: &[f32], sums: &mut [f32]) {
        let columns = values.len() / sums.len().max(1);
        for (values, sum) in values.chunks_exact(columns.max(1)).zip(sums) {
            let mut lanes = [0f32; 16];
            let (whole, rest) = values.as_chunks::<16>();
            for values in whole {
                lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane += *value);
            }
            *sum += lanes.iter().chain(rest).sum::<f32>();
        }
    }
}

/// e to the x for x ≤ 0 (and slightly above), accurate to about one unit in the last place. 0 below -87.3, NaN for NaN.
///
/// Source: Cody and Waite: x = n ln 2 + r with ln 2 in two parts, and a polynomial in r.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = (p * r * r + r) + 1.0;
    // The low bits of `shifted` are n. Shifted into the exponent, they give 2ⁿ.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x < -87.3 { 0.0 } else { p * power }
}

/// tanh. Near zero a series, because the quotient would lose digits.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let s = x * x;
    let mut p = -1_382.0 / 155_925.0;
    for c in [62.0 / 2_835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        p = p * s + c;
    }
    let small = p * s * x + x;
    let e = exp(-2.0 * size);
    let large = ((1.0 - e) / (1.0 + e)).copysign(x);
    if size < 0.3 { small } else { large }
}

#[cfg(test)]
#[path = "../../tests/kernels/head.rs"]
mod tests;
