//! A program that trains, with tallow and candle alone: shards out of a text, batches, rows, a tied head, row-sparse AdamW.

use candle_core::{DType, Device, Module};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::AdamW;
use tallow::prepare::{PrepareConfig, prepare};
use tallow::{DataLoader, DataLoaderConfig, Dataset, Gradient, Head, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(text), Some(out)) = (args.next(), args.next()) else { return Err("train TEXT FOLDER".into()) };
    let tokenizer = Tokenizer::cl100k();
    let cfg = PrepareConfig { inputs: vec![text.into()], out: out.clone().into(), ..Default::default() };
    prepare(&tokenizer, &cfg, &|_| ())?;
    let split = Dataset::open(&out)?.split("train")?;
    let cfg = DataLoaderConfig { batch_size: 8, context_length: 32, epochs: None, ..Default::default() };
    let mut loader = DataLoader::new(&split, cfg)?;

    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let gradient = Gradient::RowSparse;
    let cfg = TokenEmbeddingConfig { vocab_size: split.id_bound(), d_model: 32, gradient, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let layer = candle_nn::linear(32, 32, vb.pp("layer"))?;
    let head = Head::tied(&wte);
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 1e-2, ..Default::default() })?;
    let (mut first, mut last) = (None, 0.0);
    for _ in 0..60 {
        let batch = loader.next().ok_or("it never ends")??;
        let x = layer.forward(&wte.forward(&batch.inputs)?)?.gelu()?;
        let loss = head.loss(&x, &batch.targets, &Default::default())?;
        opt.backward_step(&loss)?;
        last = loss.to_scalar::<f32>()?;
        first.get_or_insert(last);
    }
    let first = first.unwrap_or_default();
    println!("loss {first:.3} at the first step, {last:.3} at the last");
    if last > first * 0.7 { Err("it learned nothing".into()) } else { Ok(()) }
}
