//! A whole training step of the table: forward + backward + optimizer, ours against candle and PyTorch.
//!
//!     cargo bench --bench train_step                 # about ten minutes; `-- quick`, `-- only=64x2048-stream`
//!
//! V = 100256, f32, AdamW with candle's defaults (decay 0.01). The loss is the sum of the look-up: a heavier one would add
//! candle's own work on (B, T, C) to every time. "ids": "stream" draws random windows from ../shared/corpora (or $TALLOW_CORPORA) tokenized with
//! cl100k; these runs are timed after "step" steps ("steady": true), because more updates are deferred the longer a run lasts. Ours and
//! candle see the same batches; PyTorch draws its own windows from the same stream. "mode": "dense" times the optimizer
//! alone on a dense gradient, against candle's and against a plain stream of the same bytes.

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use common::{median, python, report};
use counting::{ALLOCATED, LIVE, PEAK};
use serde_json::json;
use tallow::optim::{AdamW, Replay};
use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

const V: usize = 100_256;

/// Batches of ids: windows of a stream, or draws.
struct Source {
    kind: &'static str,
    stream: Vec<u32>,
    windows: (usize, usize),
    state: u64,
}

impl Source {
    fn batch(&mut self) -> anyhow::Result<Tensor> {
        let (count, length) = self.windows;
        let mut list = Vec::with_capacity(count * length);
        for _ in 0..count {
            self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let start = (self.state >> 33) as usize % (self.stream.len() - length);
            list.extend_from_slice(&self.stream[start..start + length]);
        }
        Ok(Tensor::from_vec(list, (count, length), &Device::Cpu)?)
    }
}

fn step(
    layer: &dyn Module,
    opt: &mut dyn FnMut(&Tensor) -> candle_core::Result<()>,
    ids: &Tensor,
) -> candle_core::Result<f64> {
    let start = Instant::now();
    let loss = layer.forward(ids)?.sum_all()?;
    opt(&loss)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn table(d_model: usize, gradient: Gradient) -> anyhow::Result<(TokenEmbedding, VarMap)> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: V, d_model, gradient, ..Default::default() };
    Ok((TokenEmbedding::new(&cfg, vb)?, varmap))
}

fn tokenized() -> Vec<u32> {
    let folder = std::env::var("TALLOW_CORPORA").unwrap_or("../shared/corpora".to_string());
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).ok();
    let texts: Vec<String> = ["en_tech.txt", "zh.txt"].into_iter().filter_map(read).collect();
    texts.iter().flat_map(|text| Tokenizer::cl100k().encode(text).expect("text has ids")).collect()
}

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "quick");
    let only = std::env::args().find_map(|arg| arg.strip_prefix("only=").map(String::from)).unwrap_or_default();
    let stream = tokenized();
    if stream.is_empty() {
        eprintln!(
            "no en_tech.txt or zh.txt in ../shared/corpora or $TALLOW_CORPORA: cases on a real stream are left out"
        );
    }
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("stream.u32");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    stream.iter().try_for_each(|id| file.write_all(&id.to_le_bytes()))?;
    file.flush()?;
    let mut for_torch = Vec::new();
    for d_model in [64, 1024] {
        if only.is_empty() {
            dense(d_model)?;
        }
        for windows in [(4, 16), (8, 256), (32, 1024)] {
            for kind in ["stream", "uniform", "zipf"] {
                if !format!("{d_model}x{}-{kind}", windows.0 * windows.1).starts_with(&only) {
                    continue;
                }
                let stream = match kind {
                    "stream" => stream.clone(),
                    _ => common::ids(kind, V, 4_000_000),
                };
                let long = kind == "stream" && windows.0 < 32 && !quick;
                if stream.is_empty() || (windows.0 == 32 && d_model == 1024 && (quick || kind == "uniform")) {
                    continue;
                }
                let mut source = Source { kind, stream, windows, state: 1 };
                for_torch.extend(case(d_model, &mut source, long)?);
            }
        }
    }
    let wanted: Vec<_> =
        for_torch.iter().map(|(d, (count, length), kind, ..)| json!([d, count, length, kind])).collect();
    let job = json!({"vocab": V, "stream": path, "cases": wanted});
    if let Some(answer) = python("torch_train_step.py", &job) {
        for ((d_model, windows, kind, at, ours), times) in
            for_torch.iter().zip(answer["ms"].as_array().into_iter().flatten())
        {
            for (reference, ms) in times.as_object().into_iter().flatten() {
                let facts = facts(*d_model, *windows, kind, "exact", *at);
                report(facts, *ours, &format!("torch {reference}"), ms.as_f64().unwrap_or(f64::NAN));
            }
        }
    }
    Ok(())
}

fn facts(d_model: usize, windows: (usize, usize), kind: &str, mode: &str, at: usize) -> serde_json::Value {
    let tokens = windows.0 * windows.1;
    json!({"bench": "train_step", "d_model": d_model, "tokens": tokens, "ids": kind, "mode": mode, "step": at, "steady": at >= 5000})
}

type ForTorch = Option<(usize, (usize, usize), &'static str, usize, f64)>;

/// One size and kind of ids in every mode; gives what the exact mode took last.
fn case(d_model: usize, source: &mut Source, long: bool) -> anyhow::Result<ForTorch> {
    let (kind, windows) = (source.kind, source.windows);
    // candle: the same for every mode.
    let (stock_ms, stock_bytes, stock_peak) = {
        let (layer, varmap) = table(d_model, Gradient::Dense)?;
        let layer: candle_nn::Embedding = layer.into();
        let mut opt = candle_nn::AdamW::new(varmap.all_vars(), ParamsAdamW::default())?;
        let mut times = Vec::new();
        let mut memory = (0, 0);
        for _ in 0..if d_model == 64 { 7 } else { 5 } {
            let (before, live) = (ALLOCATED.load(Relaxed), LIVE.load(Relaxed));
            PEAK.store(live, Relaxed);
            times.push(step(&layer, &mut |loss| opt.backward_step(loss), &source.batch()?)?);
            memory = (ALLOCATED.load(Relaxed) - before, PEAK.load(Relaxed) - live);
        }
        (median(times[2..].to_vec()), memory.0, memory.1)
    };
    let mut last = None;
    let modes = [("exact", Replay::Exact), ("truncated", Replay::Truncated { steps: 200 }), ("lazy", Replay::Lazy)];
    for (mode, replay) in modes {
        let (layer, varmap) = table(d_model, Gradient::RowSparse)?;
        let mut opt = AdamW::new(varmap.all_vars(), ParamsAdamW::default())?.with_replay(replay)?;
        let looks: &[usize] = match (long, d_model, mode) {
            (true, 64, _) => &[2000, 5000, 10_000],
            (true, _, "exact") if windows.0 == 4 => &[2000, 5000, 10_000],
            (true, _, "exact") => &[2000, 5000],
            _ => &[60],
        };
        let mut times = Vec::new();
        let mut at_2000 = f64::NAN;
        for i in 1..=looks[looks.len() - 1] {
            let (ids, before) = (source.batch()?, ALLOCATED.load(Relaxed));
            let live = LIVE.load(Relaxed);
            PEAK.store(live, Relaxed);
            times.push(step(&layer, &mut |loss| opt.backward_step(loss), &ids)?);
            let memory = (ALLOCATED.load(Relaxed) - before, PEAK.load(Relaxed) - live);
            if !looks.contains(&i) {
                continue;
            }
            let ours = median(times[times.len().saturating_sub(200).max(times.len().min(10))..].to_vec());
            report(facts(d_model, windows, kind, mode, i), ours, "candle", stock_ms);
            if i == 2000 {
                at_2000 = ours;
            }
            if i == 10_000 {
                report(facts(d_model, windows, kind, "drift", i), ours, "ours at step 2000", at_2000);
            }
            if mode == "exact" {
                last = Some((d_model, windows, kind, i, ours));
                println!(
                    "{}",
                    json!({
                        "bench": "train_step", "mode": "memory", "d_model": d_model, "tokens": windows.0 * windows.1, "ids": kind,
                        "step": i, "ours_bytes": memory.0, "ours_peak": memory.1, "reference": "candle",
                        "reference_bytes": stock_bytes, "reference_peak": stock_peak, "look_up_bytes": windows.0 * windows.1 * d_model * 4,
                    })
                );
            }
        }
    }
    Ok(last)
}

/// The optimizer alone on a dense gradient.
fn dense(d_model: usize) -> anyhow::Result<()> {
    let start = Tensor::randn(0f32, 0.02, (V, d_model), &Device::Cpu)?;
    let [a, b] = [Var::from_tensor(&start.copy()?)?, Var::from_tensor(&start)?];
    let r = Tensor::randn(0f32, 1.0, (V, d_model), &Device::Cpu)?;
    let grads = |var: &Var| (var.as_tensor() * &r)?.sum_all()?.backward();
    let (ga, gb) = (grads(&a)?, grads(&b)?);
    let mut ours = AdamW::new(vec![a.clone()], ParamsAdamW::default())?;
    let mut theirs = candle_nn::AdamW::new(vec![b.clone()], ParamsAdamW::default())?;
    for _ in 0..3 {
        ours.step(&ga)?;
        theirs.step(&gb)?;
    }
    let flat = |var: &Var| var.as_tensor().flatten_all()?.to_vec1::<f32>();
    assert!(flat(&a)? == flat(&b)?, "the fused step is not candle's");
    let (ours_ms, candle_ms) = common::side_by_side(|| ours.step(&ga), || theirs.step(&gb));
    let facts = || json!({"bench": "train_step", "d_model": d_model, "tokens": 0, "ids": "all", "mode": "dense"});
    report(facts(), ours_ms, "candle", candle_ms);
    // The floor: four arrays read, three written, nothing computed to speak of.
    let n = V * d_model;
    let mut arrays = [vec![1f32; n], vec![1f32; n], vec![1f32; n]];
    let fourth = vec![1f32; n];
    let mut stream = || {
        let [x, y, z] = &mut arrays;
        let half = n / 2;
        let run = |x: &mut [f32], y: &mut [f32], z: &mut [f32], w: &[f32]| {
            for (((x, y), z), w) in x.iter_mut().zip(y).zip(z).zip(w) {
                (*x, *y, *z) = (*x + *w, *y + *w, *z + *w);
            }
        };
        let ((x1, x2), (y1, y2), (z1, z2)) = (x.split_at_mut(half), y.split_at_mut(half), z.split_at_mut(half));
        rayon::join(|| run(x1, y1, z1, &fourth[..half]), || run(x2, y2, z2, &fourth[half..]));
    };
    let (ours_ms, stream_ms) = common::side_by_side(|| ours.step(&ga), &mut stream);
    report(facts(), ours_ms, "stream 4 reads 3 writes", stream_ms);
    Ok(())
}
