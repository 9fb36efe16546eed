//! Adds two special tokens to a table, and trains only their rows.
//!
//!     cargo run --example add_tokens
//!
//! ```text
//! <|user|> is 100277, <|bot|> is 100278; the table grew from 100277 to 100279 rows
//! "<|user|>Hi<|bot|>" is [100277, 13347, 100278]
//! a new row begins as the mean of all: -0.000058 is -0.000058
//! 20 steps on: the new rows moved by 0.0200 and 0.0200, the others by 0
//! ```

mod args;
use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::AdamW;
use tallow::{Fill, Gradient, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

fn main() -> Result<()> {
    // Fresh rows for the bundled tokenizer. A trained table and its tokenizer (see pretrained_rows) work the same way.
    let mut tokenizer = Tokenizer::cl100k();
    let varmap = VarMap::new();
    let device = args::device("cpu")?;
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let gradient = Gradient::RowSparse;
    let cfg = TokenEmbeddingConfig { vocab_size: tokenizer.vocab_size(), d_model: 64, gradient, ..Default::default() };
    let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let old = wte.flushed_weight()?.copy()?;

    // An error leaves table and tokenizer unchanged. The tokenizer finds the new tokens in text, and its fingerprint changes.
    let new = wte.add_tokens(None, &varmap, &mut tokenizer, &["<|user|>", "<|bot|>"], Fill::Mean)?;
    wte.freeze_except(&new)?;
    let (before, rows) = (old.dims()[0], wte.vocab_size());
    println!("<|user|> is {}, <|bot|> is {}; the table grew from {before} to {rows} rows", new[0], new[1]);
    let text = "<|user|>Hi<|bot|>";
    let ids = tokenizer.encode(text)?;
    println!("{text:?} is {ids:?}");
    let (row, mean) = (wte.flushed_weight()?.get(new[0] as usize)?, old.mean(0)?);
    let first = |row: &Tensor| -> Result<f32> { Ok(row.get(0)?.to_scalar::<f32>()?) };
    println!("a new row begins as the mean of all: {:.6} is {:.6}", first(&row)?, first(&mean)?);

    let fresh = wte.flushed_weight()?.copy()?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 1e-3, ..Default::default() })?;
    for _ in 0..20 {
        let x = wte.forward(&Tensor::new(&ids[..], &Device::Cpu)?)?;
        opt.backward_step(&x.affine(1.0, -1.0)?.sqr()?.sum_all()?)?;
    }
    let moved = wte.flushed_weight()?.sub(&fresh)?.abs()?.max(1)?.to_vec1::<f32>()?;
    let others = moved[..before].iter().copied().fold(0f32, f32::max);
    println!(
        "20 steps on: the new rows moved by {:.4} and {:.4}, the others by {others}",
        moved[before],
        moved[before + 1]
    );
    Ok(())
}
