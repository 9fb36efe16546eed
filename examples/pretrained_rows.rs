//! Opens a trained table, reads single rows, makes a layer of it, and trains it.
//!
//!     cargo run --example pretrained_rows [-- MODEL]
//!
//! MODEL is a file or folder of weights (safetensors, GGUF, PyTorch), or with `--features hub` a repository such as Qwen/Qwen3-0.6B, of
//! which only the table is downloaded. Without MODEL, a tiny model that transformers wrote:
//!
//! ```text
//! model.embed_tokens.weight: 64 rows x 8 columns, bf16, with a head of its own
//! row 7 begins 0.0259 -0.0045 0.0139
//! nearest to 7: 28 (0.80), 5 (0.54), 12 (0.46)
//! (1, 3, 8) of f32, ready for positions
//! one step moved rows 7, 8, 9 and no other
//! ```

mod args;
use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::AdamW;
use tallow::{Gradient, PretrainedTable, TokenEmbeddingConfig, neighbors};

fn main() -> Result<()> {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pretrained/llama");
    let model = std::env::args().nth(1).filter(|first| !first.starts_with("--")).unwrap_or_else(|| tiny.to_string());
    let table = PretrainedTable::from_pretrained(&model, None, None)?;
    let (rows, columns, dtype) = (table.vocab_size(), table.d_model(), table.dtype().as_str());
    let head = if table.tied() { "tied" } else { "with a head of its own" };
    println!("{}: {rows} rows x {columns} columns, {dtype}, {head}", table.name());

    // So far only the header was read. Each row costs one read.
    let row = table.rows(&[7])?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    println!("row 7 begins {:.4} {:.4} {:.4}", row[0], row[1], row[2]);
    let near: Vec<String> =
        neighbors(&table, &[[7]], 3)?[0].iter().map(|n| format!("{} ({:.2})", n.id, n.cosine)).collect();
    println!("nearest to 7: {}", near.join(", "));

    // The whole table as a variable, in the VarBuilder's dtype.
    let varmap = VarMap::new();
    let device = args::device("cpu")?;
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..table.config() };
    let wte = table.embedding(&cfg, vb.pp("wte"))?;
    let x = wte.forward(&Tensor::new(&[[7u32, 8, 9]], &Device::Cpu)?)?;
    println!("{:?} of {}, ready for positions", x.dims3()?, x.dtype().as_str());

    let before = wte.flushed_weight()?.copy()?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { weight_decay: 0.0, ..Default::default() })?;
    opt.backward_step(&x.sqr()?.sum_all()?)?;
    let moved = wte.flushed_weight()?.sub(&before)?.abs()?.sum(1)?.to_vec1::<f32>()?;
    let moved: Vec<String> = (0..rows).filter(|row| moved[*row] > 0.0).map(|row| row.to_string()).collect();
    println!("one step moved rows {} and no other", moved.join(", "));
    Ok(())
}
