//! The head, forward and backward: ours against candle's linear layer + cross-entropy, and PyTorch's.
//!
//!     cargo bench --bench head          # about four minutes; `-- quick` leaves out the large sizes
//!
//! f32. "mode": "head" is forward + backward of head and loss, "step" a whole step of table, head, loss and both optimizers at the
//! lesson's setting. "pages" says whether the allocator keeps its pages (`tallow::keep_pages`); Rust programs by default do not, and candle is
//! much slower then. "ours_ms" is the loss and `tallow::backward`; `"backward": "candle's"` is `loss.backward()` instead. "products_ms" is what the
//! three products of the step alone take in the gemm crate at full size, in the same run: their share says how much is spent on
//! anything else. Peaks are of live bytes during a step; "extra" is without the two gradients that come out of it, and "logits_bytes" is N·V·4.

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use common::{median, python, report};
use counting::{LIVE, PEAK};
use serde_json::json;
use tallow::optim::AdamW;
use tallow::{Gradient, Head, TokenEmbedding, TokenEmbeddingConfig};

const CASES: [(usize, usize, usize); 3] = [(64, 64, 100_256), (2048, 512, 50_304), (2048, 1024, 100_352)];

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "quick");
    // First, while this process is small: its memory would be counted as theirs.
    let answer = python("torch_head.py", &json!({"cases": CASES, "seconds": 4}));
    let against = |name: &str, line: serde_json::Value, ours: f64, ms: &serde_json::Value| {
        if let Some(ms) = ms.as_f64() {
            report(line, ours, name, ms);
        }
    };
    let torch = |line, ours, ms: &serde_json::Value| against("torch", line, ours, ms);
    let one_call = |line, ours, ms: &serde_json::Value| against("torch, linear_cross_entropy", line, ours, ms);
    let answer = answer.unwrap_or_default();
    let [lesson, large @ ..] = CASES;
    for pages in ["given back", "kept"] {
        if pages == "kept" {
            tallow::keep_pages();
        }
        let ours = case(lesson, pages)?;
        torch(facts("head", lesson, pages), ours, &answer["cases"][0]["ms"]);
        one_call(facts("head", lesson, pages), ours, &answer["cases"][0]["one_call_ms"]);
        let ours = step(lesson, pages)?;
        torch(facts("step", lesson, pages), ours, &answer["step_ms"]);
    }
    for (i, sizes) in (1..).zip(large).filter(|_| !quick) {
        let ours = case(sizes, "kept")?;
        let mut line = facts("head", sizes, "kept");
        line["reference_resident_bytes"] = answer["cases"][i]["resident_bytes"].clone();
        torch(line, ours, &answer["cases"][i]["ms"]);
        one_call(facts("head", sizes, "kept"), ours, &answer["cases"][i]["one_call_ms"]);
    }
    Ok(())
}

type Sizes = (usize, usize, usize);

fn facts(mode: &str, (n, c, v): Sizes, pages: &str) -> serde_json::Value {
    json!({"bench": "head", "mode": mode, "tokens": n, "d_model": c, "vocab": v, "pages": pages})
}

/// Table, head, loss and AdamW: everything of the lesson's GPT but its blocks.
fn step((n, c, v): Sizes, pages: &str) -> anyhow::Result<f64> {
    let tables = |gradient: Gradient| -> anyhow::Result<_> {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let cfg = TokenEmbeddingConfig { vocab_size: v, d_model: c, gradient, ..Default::default() };
        let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
        let out = vb.get_with_hints((v, c), "head.weight", candle_nn::Init::Randn { mean: 0.0, stdev: 0.02 })?;
        Ok((wte, out, varmap))
    };
    let (wte, out, varmap) = tables(Gradient::RowSparse)?;
    let mut opt = AdamW::new(varmap.all_vars(), ParamsAdamW::default())?;
    let head = Head::new(&out, None)?;
    let mut ours = |ids: &Tensor, y: &Tensor| -> anyhow::Result<()> {
        Ok(opt.backward_step(&head.loss(&wte.forward(ids)?, y, &Default::default())?)?)
    };
    let (stock_wte, stock_out, varmap) = tables(Gradient::Dense)?;
    let stock_wte: candle_nn::Embedding = stock_wte.into();
    let mut stock_opt = candle_nn::AdamW::new(varmap.all_vars(), ParamsAdamW::default())?;
    let linear = Linear::new(stock_out, None);
    let mut candle = |ids: &Tensor, y: &Tensor| -> anyhow::Result<()> {
        let logits = linear.forward(&stock_wte.forward(ids)?)?;
        Ok(stock_opt.backward_step(&candle_nn::loss::cross_entropy(&logits, y)?)?)
    };
    let draws = common::ids("zipf", v, 200 * n);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for draws in draws.chunks(2 * n).take(20) {
        let ids = Tensor::from_slice(&draws[..n], n, &Device::Cpu)?;
        let targets = Tensor::from_slice(&draws[n..], n, &Device::Cpu)?;
        for (times, step) in
            [(&mut x, &mut ours as &mut dyn FnMut(&Tensor, &Tensor) -> anyhow::Result<()>), (&mut y, &mut candle)]
        {
            let start = Instant::now();
            step(&ids, &targets)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (ours_ms, stock_ms) = (median(x), median(y));
    report(facts("step", (n, c, v), pages), ours_ms, "candle", stock_ms);
    Ok(ours_ms)
}

fn case((n, c, v): Sizes, pages: &str) -> anyhow::Result<f64> {
    let hidden = Var::from_tensor(&Tensor::randn(0f32, 1.0, (n, c), &Device::Cpu)?)?;
    let weight = Var::from_tensor(&Tensor::randn(0f32, 0.02, (v, c), &Device::Cpu)?)?;
    let targets = Tensor::from_vec(common::ids("uniform", v, n), n, &Device::Cpu)?;
    let head = Head::new(&weight, None)?;
    let loss = || head.loss(&hidden, &targets, &Default::default());
    let ours = || -> anyhow::Result<_> { Ok(tallow::backward(&loss()?)?) };
    let plain = || -> anyhow::Result<_> { Ok(loss()?.backward()?) };
    let linear = Linear::new(weight.as_tensor().clone(), None);
    let stock_loss = || candle_nn::loss::cross_entropy(&linear.forward(&hidden)?, &targets);
    let candle = || -> anyhow::Result<_> { Ok(stock_loss()?.backward()?) };

    // The answer first.
    let ours_peak = peak(&ours)?;
    let candle_peak = peak(&candle)?;
    {
        let (a, b) = (loss()?.to_scalar::<f32>()?, stock_loss()?.to_scalar::<f32>()?);
        assert!((a - b).abs() < 1e-5 * b, "loss {a}, candle {b}");
        let (a, b) = (ours()?, candle()?);
        for var in [&hidden, &weight] {
            let (a, b) = (a.get(var).expect("ours"), b.get(var).expect("candle's"));
            let norm = |t: &Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
            let far = norm(&(a - b)?)? / norm(b)?;
            assert!(far < 1e-5, "gradients differ by {far}");
        }
    }
    let gradients = (n * c + v * c) * 4;
    let (mut x, mut y, mut z, mut w) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let started = Instant::now();
    let mut products = Products::new(n, c, v);
    while x.len() < 5 || (x.len() < 40 && started.elapsed().as_secs() < 6) {
        x.push(time(&ours)?);
        y.push(time(&plain)?);
        w.push(products.run());
        if n <= 64 || z.len() < 3 {
            z.push(time(&candle)?);
        }
    }
    let (ours_ms, products_ms) = (median(x), median(w));
    let mut line = facts("head", (n, c, v), pages);
    line["ours_peak_bytes"] = json!(ours_peak);
    line["ours_extra_bytes"] = json!(ours_peak.saturating_sub(gradients));
    line["logits_bytes"] = json!(n * v * 4);
    line["products_ms"] = json!(products_ms);
    line["products_share"] = json!((products_ms / ours_ms * 1e3).round() / 1e3);
    line["reference_peak_bytes"] = json!(candle_peak);
    report(line, ours_ms, "candle", median(z));
    let mut line = facts("head", (n, c, v), pages);
    line["backward"] = json!("candle's");
    report(line, median(y), "ours with tallow::backward", ours_ms);
    Ok(ours_ms)
}

fn time<T>(f: &impl Fn() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let start = Instant::now();
    drop(f()?); // gradients are freed within the time, as PyTorch's are
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Live bytes of one call at their highest, above what lived before.
fn peak<T>(f: &impl Fn() -> anyhow::Result<T>) -> anyhow::Result<usize> {
    f()?;
    let live = LIVE.load(Relaxed);
    PEAK.store(live, Relaxed);
    f()?;
    Ok(PEAK.load(Relaxed) - live)
}

/// The three products at full size (128 tokens at a time where there are more: logits must fit somewhere), threads by the crate.
struct Products {
    sizes: Sizes,
    hidden: Vec<f32>,
    weight: Vec<f32>,
    logits: Vec<f32>,
    of_hidden: Vec<f32>,
    of_weight: Vec<f32>,
}

impl Products {
    fn new(n: usize, c: usize, v: usize) -> Self {
        let chunk = n.min(128);
        Products {
            sizes: (n, c, v),
            hidden: vec![0.5; chunk * c],
            weight: vec![0.25; v * c],
            logits: vec![0.0; v * chunk],
            of_hidden: vec![0.0; chunk * c],
            of_weight: vec![0.0; v * c],
        }
    }

    fn run(&mut self) -> f64 {
        let (n, c, v) = self.sizes;
        let chunk = n.min(128);
        let threads = gemm::Parallelism::Rayon(0);
        let start = Instant::now();
        for i in 0..n / chunk {
            type Operand = (*const f32, isize, isize);
            let product = |m: usize, n: usize, k: usize, out: *mut f32, add: bool, a: Operand, b: Operand| {
                // SAFETY: the buffers have the sizes that m, n, k and the strides below say.
                unsafe {
                    gemm::gemm(
                        m, n, k, out, 1, n as isize, add, a.0, a.2, a.1, b.0, b.2, b.1, 1.0, 1.0, false, false, false,
                        threads,
                    )
                }
            };
            let (h, w, z) = (self.hidden.as_ptr(), self.weight.as_ptr(), self.logits.as_ptr());
            let (wide, long) = (c as isize, chunk as isize);
            product(v, chunk, c, self.logits.as_mut_ptr(), false, (w, wide, 1), (h, 1, wide));
            product(chunk, c, v, self.of_hidden.as_mut_ptr(), false, (z, 1, long), (w, wide, 1));
            product(v, c, chunk, self.of_weight.as_mut_ptr(), i > 0, (z, long, 1), (h, wide, 1));
        }
        start.elapsed().as_secs_f64() * 1e3
    }
}
