//! What every benchmark shares: timing side by side, ids, one JSON line a case.

#![allow(dead_code)]

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Times `ours` and `theirs` in turn, so that a noisy machine disturbs both; medians in milliseconds.
pub fn side_by_side<A, B>(mut ours: impl FnMut() -> A, mut theirs: impl FnMut() -> B) -> (f64, f64) {
    let (repeat_ours, repeat_theirs) = (repeats(&mut ours), repeats(&mut theirs));
    let started = Instant::now();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    while a.len() < 9 || (a.len() < 101 && started.elapsed() < Duration::from_secs(2)) {
        a.push(sample(&mut ours, repeat_ours));
        b.push(sample(&mut theirs, repeat_theirs));
    }
    (median(a), median(b))
}

/// How often to call within one sample: about 5 ms' worth.
fn repeats<T>(f: &mut impl FnMut() -> T) -> usize {
    sample(f, 3);
    let once = sample(f, 3).max(1e-5);
    ((5.0 / once) as usize).clamp(1, 20_000)
}

fn sample<T>(f: &mut impl FnMut() -> T, repeats: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..repeats {
        black_box(f());
    }
    start.elapsed().as_secs_f64() * 1e3 / repeats as f64
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints one case. `facts` say which case it is; ratio is ours / reference.
pub fn report(mut facts: Value, ours_ms: f64, reference: &str, reference_ms: f64) {
    let round = |x: f64| (x * 1e6).round() / 1e6;
    facts["ours_ms"] = json!(round(ours_ms));
    facts["reference"] = json!(reference);
    facts["reference_ms"] = json!(round(reference_ms));
    facts["ratio"] = json!((ours_ms / reference_ms * 1e4).round() / 1e4);
    println!("{facts}");
}

/// `count` ids below `vocab`: "uniform", or "zipf" (rank r with weight 1/r; the rank is the id, as frequent tokens
/// have low ids in a byte-pair vocabulary).
pub fn ids(kind: &str, vocab: usize, count: usize) -> Vec<u32> {
    let mut state = 1337u64;
    let mut unit = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    if kind == "uniform" {
        return (0..count).map(|_| (unit() * vocab as f64) as u32).collect();
    }
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=vocab)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    (0..count)
        .map(|_| {
            let at = unit() * sum;
            cumulative.partition_point(|c| *c < at).min(vocab - 1) as u32
        })
        .collect()
}

/// Runs a Python script beside the benchmark with one JSON argument; its last line is the JSON answer. `None`,
/// and a word on why, where Python or a package is missing. `TALLOW_PYTHON` names another interpreter.
pub fn python(script: &str, argument: &Value) -> Option<Value> {
    let python = std::env::var("TALLOW_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/").to_string() + script;
    let output = Command::new(&python).arg(&path).arg(argument.to_string()).output();
    let answer = output
        .as_ref()
        .ok()
        .filter(|o| o.status.success())
        .and_then(|o| serde_json::from_str(String::from_utf8_lossy(&o.stdout).lines().last()?).ok());
    if answer.is_none() {
        let why = match &output {
            Ok(o) => String::from_utf8_lossy(&o.stderr).lines().last().unwrap_or_default().to_string(),
            Err(e) => e.to_string(),
        };
        eprintln!("{python} {script} gave no answer ({why}): its cases are left out");
    }
    answer
}
