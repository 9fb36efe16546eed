//! A whole training step of the example's GPT and its parts: tallow, stock candle (its embedding, its cross-entropy, its AdamW,
//! the same blocks), PyTorch.
//!
//!     cargo bench --bench train_gpt [-- quick]
//!
//! First both must give the same losses for three steps. Then each side runs in a process of its own, because the settings of
//! `tallow::keep_pages` and `tallow::tune_threads` cannot be taken back: tallow with both, candle with none (what its users have)
//! and with both. PyTorch runs 2 threads with a fused AdamW. Ids are drawn Zipf-like. Medians in milliseconds.

mod common;
#[allow(dead_code)]
#[path = "../examples/train_gpt/model.rs"]
mod model;

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use common::{ids, median, python, report};
use model::{Body, Config, Gpt};
use serde_json::{Value, json};
use tallow::{DataLoader, DataLoaderConfig, Dataset};

const PARTS: [&str; 7] = [
    "loader",
    "embedding forward",
    "blocks forward",
    "head and loss",
    "backward",
    "table's optimizer",
    "other optimizer",
];

fn config(name: &str) -> Config {
    let lesson = Config {
        vocab_size: 100_277,
        d_model: 64,
        blocks: 8,
        heads: 4,
        context: 16,
        batch: 4,
        dropout: 0.1,
        tied: false,
        lr: 1e-3,
        seed: 1337,
    };
    match name {
        "lesson" => lesson,
        _ => Config { d_model: 512, heads: 8, context: 256, batch: 8, ..lesson },
    }
}

fn loader(cfg: &Config) -> Result<DataLoader> {
    let split = Dataset::from_ids(&ids("zipf", cfg.vocab_size, 200_000), 0.0)?.split("train")?;
    let loading =
        DataLoaderConfig { batch_size: cfg.batch, context_length: cfg.context, epochs: None, ..Default::default() };
    Ok(DataLoader::new(&split, loading)?)
}

type Loss = dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;
type Backward = fn(&Tensor) -> candle_core::Result<GradStore>;

/// One side: its front layer, its loss, its optimizers for the table and for the rest.
struct Side {
    loader: DataLoader,
    wte: Box<dyn Module>,
    body: Body,
    loss: Box<Loss>,
    backward: Backward,
    table: Steps,
    others: Steps,
}

/// An optimizer of tallow or candle. (`Optimizer` is no trait for objects.)
enum Steps {
    Tallow(tallow::optim::AdamW),
    Candle(candle_nn::AdamW),
}

impl Steps {
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        match self {
            Steps::Tallow(optimizer) => optimizer.step(grads),
            Steps::Candle(optimizer) => optimizer.step(grads),
        }
    }
}

impl Side {
    fn new(cfg: &Config, ours: bool) -> Result<Self> {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let Gpt { wte, body, head } = Gpt::new(cfg, vb.clone())?;
        let weight = vb.pp("lm_head").get((cfg.vocab_size, cfg.d_model), "weight")?;
        let table = vec![Var::from_tensor(wte.flushed_weight()?)?];
        let is_table = |var: &Var| table.iter().any(|table| table.as_tensor().id() == var.as_tensor().id());
        let others: Vec<Var> = varmap.all_vars().into_iter().filter(|var| !is_table(var)).collect();
        let params = ParamsAdamW { lr: cfg.lr, ..Default::default() };
        let loader = loader(cfg)?;
        if ours {
            return Ok(Side {
                loader,
                wte: Box::new(wte),
                body,
                loss: Box::new(move |hidden, targets| Ok(head.loss(hidden, targets, &Default::default())?)),
                backward: tallow::backward,
                table: Steps::Tallow(Optimizer::new(table, params.clone())?),
                others: Steps::Tallow(Optimizer::new(others, params)?),
            });
        }
        Ok(Side {
            loader,
            // candle's own layer over the same variable: its gradient is dense.
            wte: Box::new(candle_nn::func({
                let (wte, scale) = (wte.flushed_weight()?.clone(), (cfg.d_model as f64).sqrt());
                let wte = candle_nn::Embedding::new(wte, cfg.d_model);
                move |ids| wte.forward(ids)? * scale
            })),
            body,
            loss: Box::new(move |hidden, targets| {
                let logits = hidden.flatten(0, 1)?.matmul(&weight.t()?)?;
                Ok(candle_nn::loss::cross_entropy(&logits, &targets.flatten_all()?)?)
            }),
            backward: Tensor::backward,
            table: Steps::Candle(Optimizer::new(table, params.clone())?),
            others: Steps::Candle(Optimizer::new(others, params)?),
        })
    }

    /// One step: milliseconds of its parts, and the loss.
    fn step(&mut self, number: u64) -> Result<(Vec<f64>, f32)> {
        let mut times = Vec::new();
        let mut last = Instant::now();
        let mut lap = || {
            times.push(last.elapsed().as_secs_f64() * 1e3);
            last = Instant::now();
        };
        let batch = self.loader.next().context("the loader has no end")??;
        lap();
        let rows = self.wte.forward(&batch.inputs)?;
        lap();
        let hidden = self.body.forward(&rows, Some(model::mix(number)))?;
        lap();
        let loss = (self.loss)(&hidden, &batch.targets)?;
        lap();
        let grads = (self.backward)(&loss)?;
        lap();
        self.table.step(&grads)?;
        lap();
        self.others.step(&grads)?;
        drop((grads, hidden, rows));
        let loss = loss.to_scalar()?;
        lap();
        Ok((times, loss))
    }

    /// Medians of the parts and of the whole step over `seconds`.
    fn measure(mut self, seconds: f64) -> Result<Value> {
        let mut laps: Vec<Vec<f64>> = Vec::new();
        let began = Instant::now();
        while laps.len() < 4 || (laps.len() < 300 && began.elapsed().as_secs_f64() < seconds) {
            laps.push(self.step(laps.len() as u64)?.0);
        }
        laps.remove(0);
        let whole = median(laps.iter().map(|lap| lap.iter().sum()).collect());
        let part = |i: usize| (PARTS[i], median(laps.iter().map(|lap| lap[i]).collect()));
        Ok(
            json!({"ms": whole, "steps": laps.len(), "parts": (0..PARTS.len()).map(part).collect::<std::collections::BTreeMap<_, _>>()}),
        )
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let seconds = if args.iter().any(|arg| arg == "quick") { 3.0 } else { 12.0 };
    // A child: `side=NAME case=NAME`.
    if let Some(side) = args.iter().find_map(|arg| arg.strip_prefix("side=")) {
        let case = args.iter().find_map(|arg| arg.strip_prefix("case=")).context("case=NAME")?;
        if side != "candle" {
            tallow::keep_pages();
            tallow::tune_threads();
        }
        println!("{}", Side::new(&config(case), side == "tallow")?.measure(seconds)?);
        return Ok(());
    }
    // The same losses first. (The fused loss sums in another order.)
    let (mut ours, mut stock) = (Side::new(&config("lesson"), true)?, Side::new(&config("lesson"), false)?);
    for number in 0..3 {
        let (a, b) = (ours.step(number)?.1, stock.step(number)?.1);
        assert!((a - b).abs() < 1e-4, "step {number}: {a} and {b}");
    }
    drop((ours, stock));
    let cases = ["lesson", "d512"];
    let mut whole = Vec::new();
    for case in cases {
        let measured = |side: &str| -> Result<Value> {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.args([format!("side={side}"), format!("case={case}")]).args(&args[1..]);
            let output = command.stderr(std::process::Stdio::inherit()).output()?;
            serde_json::from_slice(&output.stdout).with_context(|| format!("{side} gave no answer"))
        };
        let ours = measured("tallow")?;
        let ms = ours["ms"].as_f64().unwrap_or(f64::NAN);
        let part = |name: &str| ours["parts"][name].as_f64().unwrap_or(f64::NAN);
        let front = part("loader") + part("embedding forward") + part("table's optimizer");
        println!("{}", json!({"bench": "train_gpt", "case": case, "tallow": ours, "front layer's share": front / ms}));
        for side in ["candle", "candle with keep_pages and tune_threads"] {
            let stock = measured(side)?;
            report(
                json!({"bench": "train_gpt", "case": case, "parts": stock["parts"]}),
                ms,
                side,
                stock["ms"].as_f64().unwrap_or(f64::NAN),
            );
        }
        whole.push(ms);
    }
    let wanted: Vec<Value> = cases.iter().map(|case| json!(config(case))).collect();
    if let Some(answer) = python("torch_train_gpt.py", &json!({"cases": wanted, "seconds": seconds})) {
        for ((case, ms), torch) in cases.iter().zip(whole).zip(answer["cases"].as_array().into_iter().flatten()) {
            let name = format!("torch {}", answer["version"].as_str().unwrap_or_default());
            report(json!({"bench": "train_gpt", "case": case}), ms, &name, torch.as_f64().unwrap_or(f64::NAN));
        }
    }
    Ok(())
}
