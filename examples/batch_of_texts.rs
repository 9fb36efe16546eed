//! Texts of different lengths in one batch: padding gives zeros and trains nothing.
//!
//!     cargo run --example batch_of_texts
//!
//! prints:
//!
//! ```text
//! lengths [2, 7, 0]
//! ids     [3, 7], padding marked ·
//!    9906   1917      ·      ·      ·      ·      ·
//!   83687  75140    163    253    102  33443    113
//!       ·      ·      ·      ·      ·      ·      ·
//! tensor  [3, 7, 8]
//! rows of the gradient that are not zero: 9
//! ```

mod args;
use anyhow::Result;
use candle_core::{DType, Device, Module};
use candle_nn::{VarBuilder, VarMap};
use tallow::{NO_TOKEN, PaddedBatch, Padding, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

fn main() -> Result<()> {
    tallow::keep_pages();
    let tokenizer = Tokenizer::cl100k();
    let texts = ["Hello world", "数字变矩阵", ""];
    let batch = PaddedBatch::from_texts(&tokenizer, &texts, Padding::default(), &Device::Cpu)?;
    println!("lengths {:?}", batch.lengths);
    println!("ids     {:?}, padding marked ·", batch.ids.dims());
    for row in batch.ids.to_vec2::<u32>()? {
        let cell = |id: &u32| if *id == NO_TOKEN { "·".to_string() } else { id.to_string() };
        println!("{}", row.iter().map(|id| format!("{:>7}", cell(id))).collect::<String>());
    }

    let varmap = VarMap::new();
    let device = args::device("cpu")?;
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let cfg = TokenEmbeddingConfig { vocab_size: tokenizer.vocab_size(), d_model: 8, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let x = wte.forward(&batch.ids)?;
    println!("tensor  {:?}", x.dims());

    // Only rows that were looked up get a gradient.
    let grads = x.sum_all()?.backward()?;
    let grad = grads.get(wte.flushed_weight()?).expect("the table is a variable");
    let touched = grad.sum(1)?.to_vec1::<f32>()?.iter().filter(|sum| **sum != 0.0).count();
    println!("rows of the gradient that are not zero: {touched}");
    Ok(())
}
