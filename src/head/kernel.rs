//! Softmax arithmetic on blocks of logits that lie transposed: a row is one vocabulary entry, a column one token. Every
//! token has a lane of its own, so that no sum crosses lanes: wider registers change no bit.

use crate::widest::widest;

/// What is known of a block's logits z, one number a token.
pub(super) struct Statistics<'a> {
    /// The largest.
    pub(super) max: &'a mut [f32],
    /// Σ exp(z - max).
    pub(super) exp_sum: &'a mut [f32],
    /// Σ z.
    pub(super) sum: &'a mut [f32],
}

widest! {
    /// Adds the bias, caps the logits in place, and describes them. `cap` 0 stands for none.
    pub(super) fn describe(z: &mut [f32], bias: Option<&[f32]>, cap: f32, of: &mut Statistics) {
        let tokens = of.max.len();
        of.max.fill(f32::MIN);
        of.exp_sum.fill(0.0);
        of.sum.fill(0.0);
        for (row, z) in z.chunks_exact_mut(tokens).enumerate() {
            let bias = bias.map_or(0.0, |bias| bias[row]);
            if cap > 0.0 {
                z.iter_mut().for_each(|z| *z = cap * tanh((*z + bias) / cap));
            } else if bias != 0.0 {
                z.iter_mut().for_each(|z| *z += bias);
            }
            for ((z, max), sum) in z.iter().zip(of.max.iter_mut()).zip(of.sum.iter_mut()) {
                *max = if *z > *max { *z } else { *max };
                *sum += *z;
            }
        }
        for z in z.chunks_exact(tokens) {
            for ((z, max), sum) in z.iter().zip(of.max.iter()).zip(of.exp_sum.iter_mut()) {
                *sum += exp(*z - *max);
            }
        }
    }
}

widest! {
    /// Logits become gradients of the loss, but for the targets' own share:
    /// (exp(z - max) · factor - even) · (1 - (z / cap)²).
    pub(super) fn differentiate(z: &mut [f32], cap: f32, max: &[f32], factor: &[f32], even: &[f32]) {
        for z in z.chunks_exact_mut(max.len()) {
            for (((z, max), factor), even) in z.iter_mut().zip(max).zip(factor).zip(even) {
                let grad = exp(*z - *max) * *factor - *even;
                let bent = *z / cap;
                *z = if cap > 0.0 { grad * (1.0 - bent * bent) } else { grad };
            }
        }
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

/// e to the x for x ≤ 0 (and a little above), to about one unit in the last place; 0 below -87.3, NaN for NaN. After
/// Cody and Waite: x = n ln 2 + r with ln 2 in two parts, and a polynomial in r.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = (p * r * r + r) + 1.0;
    let power = f32::from_bits(((n + 127.0) as i32 as u32) << 23);
    if x < -87.3 { 0.0 } else { p * power }
}

/// tanh: a series near zero, where the quotient would lose digits.
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
mod tests {
    use super::*;

    #[test]
    fn exp_and_tanh_are_those_of_f64() {
        for i in 0..1_000_000 {
            let x = -(i as f32) * 8.73e-5;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= want * 1.5e-7, "exp {x}: {} {want}", exp(x));
            for x in [x, -x] {
                let want = f64::from(x).tanh();
                assert!((f64::from(tanh(x)) - want).abs() <= want.abs() * 3e-7, "tanh {x}: {} {want}", tanh(x));
            }
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY), exp(f32::MIN)), (1.0, 0.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert_eq!((tanh(1e30), tanh(-1e30), tanh(0.0)), (1.0, -1.0, 0.0));
    }
}
