//! The seeded init: fixed bits, and the distributions that it says.

use tallow::Init;

use crate::support::golden_json;

#[test]
fn bits_equal_a_second_implementation() {
    for row in golden_json("init.json")["rows"].as_array().unwrap() {
        let seed: u64 = row["seed"].as_str().unwrap().parse().unwrap();
        let first = row["row"].as_u64().unwrap() as usize;
        for (init, name) in [(Init::GPT2, "gpt2"), (Init::KERAS, "keras")] {
            let expected = crate::support::ids_of(&row[name]);
            let bits: Vec<u32> = init.rows(seed, first, 1, expected.len()).iter().map(|v| v.to_bits()).collect();
            assert_eq!(bits, expected, "{name} row {first} seed {seed}");
        }
    }
}

#[test]
fn rows_depend_on_nothing_but_seed_row_and_column() {
    let all = Init::GPT2.rows(1, 0, 300, 10);
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| Init::GPT2.rows(1, 0, 300, 10)), all);
    }
    assert_eq!(Init::GPT2.rows(1, 200, 100, 10), all[2000..]);
    assert_eq!(Init::GPT2.rows(1, 200, 1, 7), all[2000..2007]);
    assert_ne!(Init::GPT2.rows(2, 0, 300, 10), all);
}

#[test]
fn distributions_are_what_they_say() {
    let moments = |init: Init| {
        let values = init.rows(1337, 0, 4000, 100);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 4e5;
        let std = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 4e5).sqrt();
        let low = values.iter().copied().fold(f32::MAX, f32::min);
        let high = values.iter().copied().fold(f32::MIN, f32::max);
        (mean, std, low, high)
    };
    for (init, expected) in [(Init::GPT2, 0.02), (Init::CANDLE, 1.0), (Init::FanIn, 0.1)] {
        let (mean, std, low, high) = moments(init);
        // 400,000 values: the mean is off by 0.0016 std on average, the std by 0.0011.
        assert!(mean.abs() < 0.008 * expected && (std / expected - 1.0).abs() < 0.006, "{init}: {mean} {std}");
        // P(|z| > 4) = 6.3e-5, so about 25 of them; P(|z| > 6.7) is nothing.
        assert!(
            f64::from(high) > 4.0 * expected && f64::from(low) < -4.0 * expected && f64::from(high) < 6.8 * expected
        );
    }
    let (mean, std, low, high) = moments(Init::KERAS);
    assert!(
        mean.abs() < 5e-4 && (std - 0.1 / 12f64.sqrt()).abs() < 2e-4 && low >= -0.05 && high <= 0.05 && high > 0.0499
    );
    assert_eq!(moments(Init::Constant(0.5)), (0.5, 0.0, 0.5, 0.5));
}

#[test]
fn names_are_read() {
    for (name, init) in [
        ("gpt2", Init::GPT2),
        ("torch", Init::CANDLE),
        ("keras", Init::KERAS),
        ("fan-in", Init::FanIn),
        ("normal:0.5", Init::Normal { std: 0.5 }),
        ("uniform:-1:1", Init::Uniform { low: -1.0, high: 1.0 }),
        ("constant:3", Init::Constant(3.0)),
    ] {
        assert_eq!(name.parse::<Init>().unwrap(), init);
    }
    for bad in ["", "gpt3", "normal", "normal:x", "normal:-1", "normal:inf", "uniform:2:1", "constant:NaN", "gpt2:1"] {
        assert!(bad.parse::<Init>().is_err(), "{bad}");
    }
}
