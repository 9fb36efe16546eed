//! The same layer on a GPU: ids are checked on the host, rows are fetched on the device.
//!
//!     cargo run --features cuda --example gpu                  # or metal
//!     cargo run --example gpu -- --device cpu                  # auto, cpu, cuda, cuda:N, metal, metal:N
//!
//! prints, in a build without GPU features (and a warning on standard error that the CPU is used):
//!
//! ```text
//! device  Cpu
//! tensor  [2, 8, 64] F32
//! row     [-0.0049, 0.0124, 0.0246, …] equal to the bits drawn on the host
//! refused id 100257 at position [0, 1] of the ids is outside the table of 100256 rows
//! ```

mod args;
use anyhow::{Result, ensure};
use candle_core::{DType, IndexOp, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tallow::{Init, PaddedBatch, Padding, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

fn main() -> Result<()> {
    tallow::keep_pages();
    let device = args::device("auto")?;
    println!("device  {:?}", device.location());

    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let wte = TokenEmbedding::new(&TokenEmbeddingConfig { vocab_size: 100_256, ..Default::default() }, vb.pp("wte"))?;
    let padding = Padding { context_length: Some(8), ..Default::default() };
    let batch = PaddedBatch::from_texts(&Tokenizer::cl100k(), &["小沈阳", "Hello"], padding, &device)?;
    let x = wte.forward(&batch.ids)?;
    println!("tensor  {:?} {:?}", x.dims(), x.dtype());

    let row = x.i((0, 0))?.to_vec1::<f32>()?;
    ensure!(row == Init::GPT2.rows(1337, 31809, 1, 64), "the device gave other bits than the host drew");
    println!("row     [{:.4}, {:.4}, {:.4}, …] equal to the bits drawn on the host", row[0], row[1], row[2]);

    // Without the check a GPU would end the process or give a wrong row. Here it is an ordinary error.
    let bad = Tensor::new(&[[7u32, 100_257]], &device)?;
    let message = wte.forward(&bad).expect_err("100257 has no row").to_string();
    println!("refused {}", message.split(':').next().unwrap_or_default());
    Ok(())
}
