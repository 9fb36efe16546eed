//! The arithmetic of AdamW for AVX-512, AVX2 and the baseline: the same bits.

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
        let start = || (values(count, 1, 0.1), values(count, 2, 1e-3), values(count, 3, 1e-6), values(count, 4, 1.0));
        let moments = |v: &mut Vec<f32>| v.iter_mut().for_each(|v| *v = v.abs());
        let stepped = same_with_every_body(|| {
            let (mut theta, mut m, mut v, g) = start();
            moments(&mut v);
            step(&mut theta, &mut m, &mut v, &g, &Step::new(&params, 7).to_f32());
            bits([&theta, &m, &v])
        });
        assert_ne!(stepped[0], bits([&start().0, &[], &[]])[0]);
        same_with_every_body(|| {
            let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
            let (theta, m, mut v, g) = start();
            moments(&mut v);
            let (mut theta, mut m, mut v) = (wide(theta), wide(m), wide(v));
            step(&mut theta, &mut m, &mut v, &wide(g), &Step::new(&params, 7));
            [theta, m, v].map(|values| values.into_iter().map(f64::to_bits).collect::<Vec<_>>())
        });
        type Replay = fn([&mut [f32]; 3], &History, usize, usize);
        for replay in [replay::<f32> as Replay, replay::<half::bf16>, replay::<half::f16>] {
            same_with_every_body(|| {
                let (mut theta, mut m, mut v, _) = start();
                moments(&mut v);
                replay([&mut theta, &mut m, &mut v], &history, 3, 390);
                bits([&theta, &m, &v])
            });
        }
    }
}
