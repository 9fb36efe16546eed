//! The head's arithmetic against f64, with AVX-512, AVX2 and the baseline: the same bits.

use super::*;

/// AVX-512, AVX2 and the baseline: the same bits, for numbers of tokens that fill no register.
#[test]
fn every_body_has_the_same_bits() {
    use crate::support::widest::same_with_every_body;
    let rows = 37;
    for (tokens, cap) in [(1, 0.0), (15, 30.0), (16, 0.0), (33, 5.0), (100, 0.0)] {
        let draw = |count: usize, seed: u64| -> Vec<f32> {
            (0..count as u64).map(|i| (tallow_text::support::mix(seed ^ i) >> 40) as f32 / 1_048_576.0 - 8.0).collect()
        };
        let bias = draw(rows, 2);
        let all = same_with_every_body(|| {
            let mut z = draw(rows * tokens, 1);
            finish(&mut z, Some(&bias), rows, cap);
            let (mut max, mut exp_sum, mut sum) = (vec![0f32; tokens], vec![0f32; tokens], vec![0f32; tokens]);
            describe(&z, &mut Statistics { max: &mut max, exp_sum: &mut exp_sum, sum: &mut sum });
            let mut sums = vec![0f32; rows];
            add_row_sums(&z, &mut sums);
            differentiate(&mut z, cap, &max, &exp_sum, &sum);
            [z, max, exp_sum, sum, sums].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        assert!(all.iter().any(|bits| *bits != 0));
    }
}

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
