//! Loss per token and perplexity of a text, under a small model that was saved before.
//!
//!     cargo run --example perplexity [TABLE.safetensors TEXT.txt]
//!
//! Without arguments it first trains a bigram model (each token's row predicts the next token) on a verse, and saves it:
//!
//! ```text
//! The table has a row for every    31 tokens  loss  0.367  perplexity        1.4
//! Rain fell on the harbour; nobo   11 tokens  loss 14.244  perplexity  1535306.8
//! ```
//!
//! (A uniform guess has perplexity 100277. The model has seen one verse, so it is confident and wrong about others.)

mod args;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::AdamW;
use tallow::{Gradient, Head, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

const VERSE: &str = "The table has a row for every word, and every word a row; the rows were noise when they were made, \
                     and what they know, they grow.";
const OTHER: &str = "Rain fell on the harbour; nobody had brought a coat.";

/// The table and the output layer over the weights of `vb`.
fn model(vb: VarBuilder) -> Result<(TokenEmbedding, Head)> {
    let (vocab_size, d_model) = (Tokenizer::cl100k().vocab_size(), 32);
    let cfg = TokenEmbeddingConfig { vocab_size, d_model, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let weight = vb.get_with_hints((vocab_size, d_model), "head.weight", candle_nn::Init::Const(0.0))?;
    Ok((wte, Head::new(&weight, None)?))
}

/// The inputs (all ids but the last) and the targets (all ids but the first).
fn pairs(text: &str) -> Result<(Tensor, Tensor)> {
    let ids = Tokenizer::cl100k().encode(text)?;
    let last = ids.len().checked_sub(1).filter(|last| *last > 0).context("a text of two tokens or more is needed")?;
    Ok((Tensor::new(&ids[..last], &Device::Cpu)?, Tensor::new(&ids[1..], &Device::Cpu)?))
}

fn train(path: &str, device: &Device) -> Result<()> {
    let varmap = VarMap::new();
    let (wte, head) = model(VarBuilder::from_varmap(&varmap, DType::F32, device))?;
    let mut opt = AdamW::new(varmap.all_vars(), ParamsAdamW { lr: 0.02, ..Default::default() })?;
    let (inputs, targets) = pairs(VERSE)?;
    for _ in 0..40 {
        let loss = head.loss(&wte.forward(&inputs)?, &targets, &Default::default())?;
        opt.backward_step(&loss)?;
    }
    opt.flush()?;
    Ok(varmap.save(path)?)
}

fn score(table: &str, text: &str, device: &Device) -> Result<()> {
    let vb = VarBuilder::from_tensors(candle_core::safetensors::load(table, device)?, DType::F32, device);
    let ((wte, head), (inputs, targets)) = (model(vb)?, pairs(text)?);
    let log_probs = head.log_probs(&wte.forward(&inputs)?, &targets)?.to_vec1::<f32>()?;
    let loss = -log_probs.iter().sum::<f32>() / log_probs.len() as f32;
    let start: String = text.chars().take(30).collect();
    println!("{start:30}  {:3} tokens  loss {loss:6.3}  perplexity {:10.1}", log_probs.len(), loss.exp());
    Ok(())
}

fn main() -> Result<()> {
    tallow::keep_pages();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let device = &args::device("cpu")?;
    if let [table, text, ..] = &arguments[..]
        && !table.starts_with("--")
    {
        return score(table, &std::fs::read_to_string(text).context(text.clone())?, device);
    }
    let folder = tempfile::tempdir()?;
    let table = folder.path().join("table.safetensors").to_string_lossy().into_owned();
    train(&table, device)?;
    score(&table, VERSE, device)?;
    score(&table, OTHER, device)
}
