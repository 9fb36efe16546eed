//! A bigram model on a text, trained twice: by candle's AdamW, and by tallow's, which updates only the rows of the batch.
//!
//!     cargo run --release --example train_rows   # --release: it times both optimizers
//!
//! prints (and on standard error, for example: candle 197.55ms a step, tallow 213.13µs: 927 times):
//!
//! ```text
//! loss 3.4666 -> 2.6873
//! 60 losses equal, 0 of 6417728 weights differ
//! ```

mod args;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::AdamW;
use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

const STEPS: usize = 60;

/// Trains a table and a small head with cross-entropy. Each token predicts the id of the next one modulo 32.
fn train(layer: &dyn Module, head: &Var, opt: &mut impl Optimizer, ids: &[u32]) -> Result<(Vec<f32>, Duration)> {
    let (mut losses, mut time) = (Vec::new(), Duration::ZERO);
    for step in 0..STEPS {
        let start = step * 7 % (ids.len() - 65);
        let window = Tensor::from_slice(&ids[start..start + 64], 64, &Device::Cpu)?;
        let classes: Vec<u32> = ids[start + 1..start + 65].iter().map(|id| id % 32).collect();
        let targets = Tensor::from_vec(classes, 64, head.device())?;
        let begin = Instant::now();
        let logits = layer.forward(&window)?.matmul(head.as_tensor())?;
        let loss = candle_nn::loss::cross_entropy(&logits, &targets)?;
        opt.backward_step(&loss)?;
        head.device().synchronize()?;
        time += begin.elapsed();
        losses.push(loss.to_scalar::<f32>()?);
    }
    Ok((losses, time / STEPS as u32))
}

fn main() -> Result<()> {
    tallow::keep_pages();
    let device = args::device("cpu")?;
    let ids = Tokenizer::cl100k().encode(include_str!("../LICENSE-APACHE"))?;
    let head =
        Tensor::from_vec((0..64 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect(), (64, 32), &device)?;
    let make = |gradient| -> Result<(TokenEmbedding, VarMap, Var)> {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
        let wte = TokenEmbedding::new(&TokenEmbeddingConfig { gradient, ..Default::default() }, vb.pp("wte"))?;
        Ok((wte, varmap, Var::from_tensor(&head.copy()?)?))
    };
    let params = ParamsAdamW { lr: 1e-2, ..Default::default() };

    let (stock, varmap, stock_head) = make(Gradient::Dense)?;
    let vars = [varmap.all_vars(), vec![stock_head.clone()]].concat();
    let mut opt = candle_nn::AdamW::new(vars, params.clone())?;
    let (stock_losses, stock_time) = train(&stock, &stock_head, &mut opt, &ids)?;

    let (ours, varmap, our_head) = make(Gradient::RowSparse)?;
    let vars = [varmap.all_vars(), vec![our_head.clone()]].concat();
    let mut opt = AdamW::new(vars, params)?; // the one line that changes
    let (losses, time) = train(&ours, &our_head, &mut opt, &ids)?;

    eprintln!(
        "candle {stock_time:.2?} a step, tallow {time:.2?}: {:.0} times",
        stock_time.as_secs_f64() / time.as_secs_f64()
    );
    println!("loss {:.4} -> {:.4}", losses[0], losses[STEPS - 1]);
    ensure!(losses == stock_losses, "a loss differs");
    let bits = |t: &Tensor| -> Result<Vec<u32>> {
        Ok(t.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| v.to_bits()).collect())
    };
    let (a, b) = (bits(ours.flushed_weight()?)?, bits(stock.flushed_weight()?)?);
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    println!("{STEPS} losses equal, {differ} of {} weights differ", a.len());
    Ok(())
}
