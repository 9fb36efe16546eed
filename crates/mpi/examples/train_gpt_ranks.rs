//! The model of tallow's example train_gpt, trained by several ranks: the same losses as one process.
//!
//!     cargo build --release -p tallow-mpi --example train_gpt_ranks
//!     mpirun -n 1 target/release/examples/train_gpt_ranks --steps 60 --dropout 0
//!
//! ```text
//! step    20  loss 10.433  ranks 1
//! step    40  loss  9.282  ranks 1
//! step    60  loss  7.759  ranks 1
//! ```
//!
//!     mpirun -n 2 target/release/examples/train_gpt_ranks --steps 60 --dropout 0
//!
//! ```text
//! step    20  loss 10.433  ranks 2
//! step    40  loss  9.282  ranks 2
//! step    60  loss  7.759  ranks 2
//! ```
//!
//! Every rank has the whole model and a part of each batch (--batch is that of all ranks). With --vocab-parallel every rank has a part
//! of table and head, and the whole batch.

#[allow(dead_code)] // its mean loss: here the sum is divided by the tokens of all ranks
#[path = "../../../examples/train_gpt/model.rs"]
mod model;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use clap::Parser;
use model::{Body, Config, Gpt, mix};
use tallow::distributed::{Collective, DataParallel, ReduceOp, RowExchange, VocabParallelEmbedding};
use tallow::head::{CrossEntropyConfig, Reduction};
use tallow::optim::AdamW;
use tallow::{
    Checkpoint, DataLoader, DataLoaderConfig, Dataset, Gradient, Init, Scale, TokenEmbeddingConfig, Tokenizer,
};
use tallow_mpi::World;

/// Trains the lesson's GPT by several ranks.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: Config,
    /// A text file, or a folder made by `tallow prepare` [default: the included story]
    #[arg(long)]
    data: Option<PathBuf>,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// How row gradients are exchanged
    #[arg(long, default_value = "union", value_parser = ["union", "owners", "ordered"])]
    rows: String,
    /// Split table and head by rows, not the batch
    #[arg(long, conflicts_with = "rows")]
    vocab_parallel: bool,
    /// Folder of the checkpoint that is saved at the end
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Print one line of JSON per step
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse(); // --help and wrong flags need no ranks
    tallow_mpi::run(|world| train(world, &args))
}

fn train(world: &World, args: &Args) -> Result<()> {
    let (rank, world_size) = (world.rank(), world.world_size());
    let tokenizer = Tokenizer::cl100k();
    let cfg = &Config { vocab_size: tokenizer.vocab_size(), ..args.model.clone() };
    let story = || Dataset::from_text(&tokenizer, include_str!("../../../assets/story.txt"), 0.1);
    let data = args.data.as_ref().map_or_else(story, |path| Dataset::from_path(&tokenizer, path, 0.1))?;
    let mut loading =
        DataLoaderConfig { batch_size: cfg.batch, context_length: cfg.context, epochs: None, ..Default::default() };
    if !args.vocab_parallel {
        ensure!(cfg.batch.is_multiple_of(world_size), "--batch {} is no multiple of {world_size} ranks", cfg.batch);
        loading = DataLoaderConfig { batch_size: cfg.batch / world_size, rank, world_size, ..loading };
    }
    let mut loader = DataLoader::new(&data.split("train")?, DataLoaderConfig { seed: cfg.seed, ..loading })?;

    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let model = if args.vocab_parallel { Model::split(cfg, world, vb)? } else { Model::Whole(Gpt::new(cfg, vb)?) };
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: cfg.lr, ..Default::default() })?;
    let rows = match args.rows.as_str() {
        "owners" => RowExchange::Owners,
        "ordered" => RowExchange::Ordered,
        _ => RowExchange::Union,
    };
    let ranks = DataParallel::new(world).with_rows(rows);
    ranks.broadcast(&varmap)?;

    let sum = CrossEntropyConfig { reduction: Reduction::Sum, ..Default::default() };
    for step in 1..=args.steps {
        let batch = loader.next().context("the loader has no end")??;
        // Ranks with other tokens drop other values.
        let noise = mix(cfg.seed ^ mix(step) ^ if args.vocab_parallel { 0 } else { rank as u64 });
        let (hidden, head) = match &model {
            Model::Whole(gpt) => (gpt.hidden(&batch.inputs, Some(noise))?, &gpt.head),
            Model::Split { wte, body, head } => (body.forward(&wte.lookup(&batch.inputs)?, Some(noise))?, head),
        };
        let tokens = batch.targets.elem_count();
        let tokens = if args.vocab_parallel { tokens } else { ranks.total(tokens)? };
        let loss = (head.loss(&hidden, &batch.targets, &sum)? / tokens as f64)?;
        let mut grads = tallow::backward(&loss)?;
        if !args.vocab_parallel {
            ranks.exchange(&opt, &mut grads)?;
        }
        opt.step(&grads)?;
        let loss = if args.vocab_parallel { loss } else { world.all_reduce(&loss, ReduceOp::Sum)? };
        let loss = loss.to_scalar::<f32>()?;
        ensure!(loss.is_finite(), "the loss of step {step} is {loss}: try a smaller --lr");
        if step % 100 == 0 || step == args.steps {
            ranks.check_replicas(&varmap)?;
        }
        match (rank, args.json) {
            (0, true) => println!("{}", serde_json::json!({"step": step, "loss": loss, "ranks": world_size})),
            (0, false) if step % 20 == 0 => println!("step {step:5}  loss {loss:6.3}  ranks {world_size}"),
            _ => (),
        }
    }
    // The whole model is on every rank, or each has a part and all save together.
    if let Some(folder) = args.checkpoint.as_ref().filter(|_| rank == 0 || args.vocab_parallel) {
        let saved = Checkpoint { step: args.steps, seed: cfg.seed, ..Default::default() };
        saved.save(folder, &varmap, Some(&opt), 0)?;
    }
    world.barrier()?;
    Ok(())
}

enum Model {
    Whole(Gpt),
    Split { wte: VocabParallelEmbedding, body: Body, head: tallow::Head },
}

impl Model {
    /// The weights of [`Gpt::new`], with table and head split by rows.
    fn split(cfg: &Config, world: &World, vb: VarBuilder) -> Result<Self> {
        let ranks: Arc<dyn Collective> = Arc::new(world.clone());
        let &Config { vocab_size, d_model, seed, .. } = cfg;
        let (scale, gradient) = (Scale::SqrtDModel, Gradient::RowSparse);
        let table = TokenEmbeddingConfig { vocab_size, d_model, seed, scale, gradient, ..Default::default() };
        let wte = VocabParallelEmbedding::new(&table, ranks.clone(), vb.pp("wte"))?;
        let head = match cfg.tied {
            true => wte.head(),
            false => {
                let cfg = TokenEmbeddingConfig {
                    vocab_size,
                    d_model,
                    seed: seed.wrapping_add(1),
                    init: Init::GPT2,
                    ..Default::default()
                };
                VocabParallelEmbedding::new(&cfg, ranks, vb.pp("lm_head"))?.head()
            }
        };
        Ok(Model::Split { wte, body: Body::new(cfg, vb)?, head })
    }
}
