//! Functions of the crate `libm` on slices. They take the same steps without branches, so that the compiler can vectorize them, and
//! give the same bits.

use crate::support::widest::widest;

widest! {
    /// Each value x in (0, 1) becomes sqrt(-2 ln x).
    pub(super) fn radii(values: &mut [f64]) {
        for x in values {
            *x = (-2.0 * ln(*x)).sqrt();
        }
    }
}

widest! {
    /// Each angle in [0, 2π) becomes its sine; its cosine is written beside it.
    pub(super) fn sines_and_cosines(angles: &mut [f64], cosines: &mut [f64]) {
        if angles.iter().fold(false, |near, x| near | is_near_axis(*x)) {
            // True for about one angle in half a million.
            for (x, cosine) in angles.iter_mut().zip(cosines) {
                (*x, *cosine) = libm::sincos(*x);
            }
            return;
        }
        for (x, cosine) in angles.iter_mut().zip(cosines) {
            (*x, *cosine) = sin_cos(*x);
        }
    }
}

/// The natural logarithm of a number in (0, 1) that is not subnormal, a fifth of the time of libm's `log`.
///
/// Source: FreeBSD's e_log.c (Sun Microsystems, 1993), by way of the crate `libm`: x is 2^k (1 + f), and s is f / (2 + f).
#[inline(always)]
fn ln(x: f64) -> f64 {
    const SQRT_HALF: u32 = 0x3fe6_a09e; // the upper half of sqrt(1/2)
    const ONE: u32 = 0x3ff0_0000;
    let bits = x.to_bits();
    let high = ((bits >> 32) as u32).wrapping_add(ONE - SQRT_HALF);
    let k = f64::from((high >> 20) as i32 - 0x3ff);
    let high = (high & 0x000f_ffff) + SQRT_HALF;
    let f = f64::from_bits(u64::from(high) << 32 | bits & 0xffff_ffff) - 1.0;

    let half_square = 0.5 * f * f;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (0.3999999999940942 + w * (0.22222198432149784 + w * 0.15313837699209373));
    let odd = z * (0.6666666666666735 + w * (0.2857142874366239 + w * (0.1818357216161805 + w * 0.14798198605116586)));
    // ln 2 in two parts, of which the first times k is exact.
    let (ln2_high, ln2_low) = (0.6931471803691238, 1.9082149292705877e-10);
    s * (half_square + (odd + even)) + k * ln2_low - half_square + f + k * ln2_high
}

/// The number with these upper 32 bits; the lower bits are zero.
const fn from_high(high: u64) -> f64 {
    f64::from_bits(high << 32)
}

/// Whether an angle in [0, 2π) is too close to π/2, π, 3π/2 or 2π for the precision of [`sin_cos`].
#[inline(always)]
fn is_near_axis(x: f64) -> bool {
    let high = x.to_bits() >> 32;
    (high == 0x3ff9_21fb) | (high == 0x4009_21fb) | (high == 0x4012_d97c) | (high == 0x4019_21fb)
}

/// Sine and cosine of an angle in [0, 2π) that is not [near](is_near_axis) an axis: libm's `sincos`.
///
/// Source: FreeBSD's e_rem_pio2.c, k_sin.c and k_cos.c (Sun Microsystems, 1993), by way of the crate `libm`. The angle minus n
/// quarter turns is y + low, in [-π/4, π/4]. Two polynomials give its sine and cosine; n selects sign and order.
#[inline(always)]
fn sin_cos(x: f64) -> (f64, f64) {
    // Upper halves of the odd multiples of π/4, as libm compares them.
    const EDGES: [f64; 4] =
        [from_high(0x3fe9_21fc), from_high(0x4002_d97d), from_high(0x400f_6a7b), from_high(0x4015_fdbd)];
    // π/2 in two parts, of which the first times n is exact.
    const HALF_PI_HIGH: f64 = f64::from_bits(0x3FF9_21FB_5440_0000);
    const HALF_PI_LOW: f64 = f64::from_bits(0x3DD0_B461_1A62_6331);
    let n = EDGES.iter().fold(0.0, |n, edge| n + if x < *edge { 0.0 } else { 1.0 });
    let first = x - n * HALF_PI_HIGH;
    let y = first - n * HALF_PI_LOW;
    let low = (first - y) - n * HALF_PI_LOW;

    let z = y * y;
    let w = z * z;
    let r = 0.00833333333332249
        + z * (-0.0001984126982985795 + z * 2.7557313707070068e-6)
        + z * w * (-2.5050760253406863e-8 + z * 1.58969099521155e-10);
    let (v, s1) = (z * y, -0.16666666666666632);
    let whole = y + v * (s1 + z * r);
    let corrected = y - ((z * (0.5 * low - v * r) - low) - v * s1);
    let sin = if n == 0.0 { whole } else { corrected };

    let r = z * (0.0416666666666666 + z * (-0.001388888888887411 + z * 2.480158728947673e-5))
        + w * w * (-2.7557314351390663e-7 + z * (2.087572321298175e-9 + z * -1.1359647557788195e-11));
    let half = 0.5 * z;
    let one = 1.0 - half;
    let cos = one + (((1.0 - one) - half) + (z * r - y * low));

    let swapped = (n == 1.0) | (n == 3.0);
    let (a, b) = if swapped { (cos, sin) } else { (sin, cos) };
    (if (n == 2.0) | (n == 3.0) { -a } else { a }, if (n == 1.0) | (n == 2.0) { -b } else { b })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::widest::same_with_every_body;

    /// Random numbers in [0, 1), on the same grid as the numbers that tables are drawn from.
    fn units() -> impl Iterator<Item = f64> {
        let mut state = 1u64;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            f64::from((state >> 32) as u32) / 4_294_967_296.0
        })
    }

    #[test]
    fn sines_and_cosines_are_libms_to_the_bit() {
        let mut values: Vec<f64> = units().take(400_000).map(|unit| std::f64::consts::TAU * unit).collect();
        for eighth in 0..8 {
            let edge = std::f64::consts::FRAC_PI_4 * f64::from(eighth);
            let step = std::f64::consts::TAU / 4_294_967_296.0;
            values.extend((-2000..2000).map(|i| edge + f64::from(i) * step).filter(|x| *x >= 0.0));
            values.extend((-2000..2000).map(|i| edge + f64::from(i) * 1e-6).filter(|x| *x >= 0.0));
        }
        let found = same_with_every_body(|| {
            let (mut sines, mut cosines) = (values.clone(), vec![0.0; values.len()]);
            sines.chunks_mut(64).zip(cosines.chunks_mut(64)).for_each(|(s, c)| sines_and_cosines(s, c));
            sines.iter().zip(&cosines).map(|(s, c)| (s.to_bits(), c.to_bits())).collect::<Vec<_>>()
        });
        for (x, found) in values.iter().zip(found) {
            let (sin, cos) = libm::sincos(*x);
            assert_eq!(found, (sin.to_bits(), cos.to_bits()), "{x}");
        }
        // Both paths were tested: most chunks take the fast one, some the slow one.
        let slow = values.chunks(64).filter(|chunk| chunk.iter().any(|x| is_near_axis(*x))).count();
        assert!((50..values.len() / 64 / 4).contains(&slow), "{slow}");
    }

    #[test]
    fn radii_are_libms_to_the_bit() {
        let mut values: Vec<f64> = units().take(300_000).map(|unit| unit + 0.5 / 4_294_967_296.0).collect();
        for exponent in 1..33 {
            let power = 0.5f64.powi(exponent);
            values.extend([power.next_down(), power, power.next_up(), power * std::f64::consts::SQRT_2]);
        }
        values.push(1f64.next_down());
        let expected: Vec<u64> = values.iter().map(|x| (-2.0 * libm::log(*x)).sqrt().to_bits()).collect();
        let found = same_with_every_body(|| {
            let mut values = values.clone();
            radii(&mut values);
            values.iter().map(|x| x.to_bits()).collect::<Vec<u64>>()
        });
        assert!(found == expected);
    }
}
