//! One model, trained by any number of ranks: each takes its part of every batch, and all make the same step.
//!
//!     cargo build -p tallow-mpi --example data_parallel
//!     mpirun -n 1 target/debug/examples/data_parallel
//!
//! ```text
//! step 50: loss 4.922, 256 tokens: 1 x 8 rows
//! step 100: loss 3.929, 256 tokens: 1 x 8 rows
//! step 150: loss 3.563, 256 tokens: 1 x 8 rows
//! step 200: loss 3.634, 256 tokens: 1 x 8 rows
//! ```
//!
//!     mpirun -n 2 target/debug/examples/data_parallel
//!
//! ```text
//! step 50: loss 4.922, 256 tokens: 2 x 4 rows
//! step 100: loss 3.929, 256 tokens: 2 x 4 rows
//! step 150: loss 3.563, 256 tokens: 2 x 4 rows
//! step 200: loss 3.634, 256 tokens: 2 x 4 rows
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Module};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, ReduceOp, RowExchange};
use tallow::head::{CrossEntropyConfig, Reduction};
use tallow::optim::AdamW;
use tallow::{DataLoader, DataLoaderConfig, Dataset, Gradient, Head, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};
use tallow_mpi::World;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");

fn main() -> ExitCode {
    tallow_mpi::run(train)
}

fn train(world: &World) -> Result<()> {
    let (rank, world_size) = (world.rank(), world.world_size());
    let ranks = DataParallel::new(world).with_rows(RowExchange::Ordered);

    // Batches of 8 rows, whatever the number of ranks.
    let tokenizer = Tokenizer::from_file(format!("{ASSETS}/tiny-llama/tokenizer.json"))?;
    let data = Dataset::from_path(&tokenizer, format!("{ASSETS}/story.txt"), 0.1)?.split("train")?;
    ensure!(8 % world_size == 0, "8 rows cannot be shared evenly by {world_size} ranks: start 1, 2, 4 or 8");
    let batch_size = 8 / world_size;
    let cfg = DataLoaderConfig { batch_size, context_length: 32, rank, world_size, epochs: None, ..Default::default() };
    let mut loader = DataLoader::new(&data, cfg)?;

    // A bigram model: a row, and the next token's probabilities from it.
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let (vocab_size, gradient) = (tokenizer.vocab_size(), Gradient::RowSparse);
    let wte = TokenEmbedding::new(&TokenEmbeddingConfig { vocab_size, gradient, ..Default::default() }, vb.pp("wte"))?;
    let head = Head::new(&vb.get_with_hints((vocab_size, 64), "head", candle_nn::Init::Const(0.0))?, None)?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 1e-2, ..Default::default() })?;
    ranks.broadcast(&varmap)?; // all begin with the weights of rank 0

    let sum = CrossEntropyConfig { reduction: Reduction::Sum, ..Default::default() };
    for step in 1..=200 {
        let batch = loader.next().context("it has no end")??;
        let tokens = ranks.total(batch.targets.elem_count())?;
        // The sum of this rank's losses, divided by the tokens of all ranks.
        let loss = (head.loss(&wte.forward(&batch.inputs)?, &batch.targets, &sum)? / tokens as f64)?;
        let mut grads = tallow::backward(&loss)?;
        ranks.exchange(&opt, &mut grads)?;
        opt.clip_grad_norm(&mut grads, 1.0)?;
        opt.step(&grads)?;
        if step % 50 == 0 {
            ranks.check_replicas(&varmap)?;
            let loss = world.all_reduce(&loss.detach(), ReduceOp::Sum)?.to_scalar::<f32>()?;
            if rank == 0 {
                println!("step {step}: loss {loss:.3}, {tokens} tokens: {world_size} x {batch_size} rows");
            }
        }
    }
    Ok(())
}
