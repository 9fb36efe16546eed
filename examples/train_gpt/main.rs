//! A GPT trained end to end: text → ids → batches → rows → the lesson's transformer → fused loss → row-sparse AdamW.
//!
//!     cargo run --release --example train_gpt -- [--preset lesson] [--data FILE|DIR] [--checkpoint DIR --resume] [--help]
//!
//! --release: training takes minutes. After a kill the same command with `--resume` goes on from the last checkpoint, to the same bits.

mod model;

use std::{io::IsTerminal, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use model::{Config, Gpt, mix};
use tallow::optim::AdamW;
use tallow::{Batch, Checkpoint, DataLoader, DataLoaderConfig, Dataset, Evaluation, LoadOptions};
use tallow::{Sampler, SamplerConfig, Tokenizer, evaluate};
use tallow_view::{Fonts, Lang, loss_curve};

/// Trains the lesson's GPT from a text.
#[derive(Parser)]
#[command(args_override_self = true)]
struct Args {
    /// Sizes that the flags change one by one; gpt2-124m has 124 M parameters with GPT-2's --tokenizer
    #[arg(long, default_value = "lesson", value_parser = ["lesson", "small", "gpt2-124m"])]
    preset: String,
    #[command(flatten)]
    model: Config,
    /// A text file, or a folder made by `tallow prepare` [default: the included story]
    #[arg(long)]
    data: Option<PathBuf>,
    /// A tokenizer.json or .tiktoken file instead of cl100k
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N, metal or metal:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Return unused GPU memory to the system: slower
    #[arg(long)]
    release_memory: bool,
    /// f32, bf16 or f16; bf16 and f16 are slow on a CPU
    #[arg(long, default_value = "f32")]
    dtype: DType,
    #[arg(long, default_value_t = 5000)]
    steps: u64,
    /// Steps between evaluations, on the first 20 batches of the validation split
    #[arg(long, default_value_t = 250)]
    eval_every: u64,
    /// Folder of the checkpoints
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    #[arg(long, default_value_t = 500)]
    save_every: u64,
    /// How many checkpoints to keep; 0: all
    #[arg(long, default_value_t = 2)]
    keep: usize,
    /// Go on from the newest checkpoint, if there is one
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Print one line of JSON per evaluation
    #[arg(long)]
    json: bool,
    /// The prompt of the sample of 100 tokens at the end
    #[arg(long, default_value = "The table")]
    prompt: String,
    /// SVG file of the loss curve
    #[arg(long, default_value = "loss.svg")]
    curve: PathBuf,
}

/// What a checkpoint of this program holds besides weights, optimizer state and loader state.
#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    config: Config,
    /// Step, mean training loss since the last evaluation, validation loss.
    curve: Vec<(u64, f32, f32)>,
    since: Vec<f32>,
}

fn main() -> Result<()> {
    tallow::keep_pages();
    tallow::tune_threads();
    let preset = match Args::parse().preset.as_str() {
        "small" => "--d-model 256 --blocks 6 --heads 8 --context 128 --batch 8 --tied",
        "gpt2-124m" => "--d-model 768 --blocks 12 --heads 12 --context 1024 --tied",
        _ => "",
    };
    let flags = std::env::args().take(1).chain(preset.split_whitespace().map(String::from));
    let args = Args::parse_from(flags.chain(std::env::args().skip(1)));
    ensure!(args.eval_every > 0 && args.save_every > 0, "--eval-every and --save-every count from 1");
    let device = &tallow::device::open(&args.device, |why| eprintln!("warning: {why}"))?;
    if args.release_memory {
        tallow::device::keep_memory(device, false)?;
    }
    let tokenizer = args.tokenizer.as_ref().map_or_else(|| Ok(Tokenizer::cl100k()), Tokenizer::from_file)?;
    let cfg = Config { vocab_size: tokenizer.vocab_size(), ..args.model.clone() };
    let story = || Dataset::from_text(&tokenizer, include_str!("../../assets/story.txt"), 0.1);
    let data = args.data.as_ref().map_or_else(story, |path| Dataset::from_path(&tokenizer, path, 0.1))?;
    let (train, val) = (data.split("train")?, data.split("val")?);
    ensure!(val.tokens() > 0, "no document is for validation: `tallow prepare --val 0.1` takes every tenth or so");
    let &Config { batch: batch_size, context: context_length, seed, .. } = &cfg;
    // Ids stay on the host: the layer checks them there and copies them to the device.
    let loading = DataLoaderConfig { batch_size, context_length, seed, epochs: None, ..Default::default() };
    let mut loader = DataLoader::new(&train, loading.clone())?;

    // The model, and a second one over the same weights without gradients, for evaluation and the sample.
    let varmap = VarMap::new();
    let model = Gpt::new(&cfg, VarBuilder::from_varmap(&varmap, args.dtype, device))?;
    let frozen = Gpt::new(&cfg, tallow::no_grad(&varmap, args.dtype, device))?;
    let log_probs = |batch: &Batch| -> Result<_> {
        Ok(frozen.head.log_probs(&frozen.hidden(&batch.inputs, None)?, &batch.targets)?)
    };
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: cfg.lr, ..Default::default() })?;
    let parameters: usize = varmap.all_vars().iter().map(|var| var.elem_count()).sum();
    eprintln!("{parameters} parameters; {} tokens to train on, {} to validate with", train.tokens(), val.tokens());

    let (mut record, mut start) = (Record { config: cfg.clone(), curve: Vec::new(), since: Vec::new() }, 0);
    let is_one = |folder: &PathBuf| folder.join("complete.json").exists();
    ensure!(!args.checkpoint.iter().any(is_one), "--checkpoint takes the folder of all checkpoints, not one of them");
    if let Some(folder) = &args.checkpoint
        && let Some(newest) = Checkpoint::newest(folder)?
    {
        ensure!(args.resume, "{folder:?} holds step {}: --resume goes on from there, or choose another", newest.step);
        record = serde_json::from_value(newest.extra).context("the checkpoint is of another program")?;
        ensure!(record.config == cfg, "the run in {folder:?} has other settings: {:?}", record.config);
        let options = LoadOptions { tokenizer: Some(tokenizer.fingerprint()), ..Default::default() };
        Checkpoint::load(folder, &varmap, Some(&mut opt), &options)?;
        loader.load_state(&newest.loader.context("the checkpoint has no loader state")?)?;
        start = newest.step;
        eprintln!("on from step {start} of {folder:?}");
    }

    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(args.steps) } else { ProgressBar::hidden() };
    let bar = bar.with_position(start);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {wide_bar} loss {msg}, {eta} left")?);
    bar.reset_eta();
    draw(&record.curve, &args.curve)?; // fails now, not after the training, if the file cannot be written
    let began = Instant::now();
    for step in start + 1..=args.steps {
        let batch = loader.next().context("the loader has no end")??;
        let loss = model.loss(&batch, Some(mix(cfg.seed ^ mix(step))))?;
        let grads = tallow::backward(&loss)?;
        if step == start + 1 {
            let missing = tallow::gradients::missing(&grads, &varmap);
            ensure!(missing.is_empty(), "these weights get no gradient (see docs/training.md): {missing:?}");
        }
        opt.step(&grads)?;
        let loss = loss.to_scalar::<f32>()?;
        ensure!(loss.is_finite(), "the loss of step {step} is {loss}: try a smaller --lr");
        record.since.push(loss);
        bar.set_position(step);
        if step % args.eval_every == 0 || step == args.steps {
            let first = DataLoader::new(&val, loading.once())?.take(20);
            let Evaluation { loss: val, bits_per_byte, .. } = evaluate(first, &tokenizer, log_probs)?;
            let (train, val) = (record.since.iter().sum::<f32>() / record.since.len() as f32, val as f32);
            record.since.clear();
            record.curve.push((step, train, val));
            let each = began.elapsed().as_secs_f64() / (step - start) as f64;
            let (speed, left) = ((batch_size * context_length) as f64 / each, (args.steps - step) as f64 * each);
            let json = serde_json::json!({"step": step, "loss": train, "val_loss": val, "val_bits_per_byte": bits_per_byte, "tokens_per_second": speed});
            let line =
                format!("step {step:5}  loss {train:6.3}  validation {val:6.3}  {speed:.0} tokens/s  {left:.0} s left");
            bar.set_message(format!("{train:.3}"));
            bar.suspend(|| println!("{}", if args.json { json.to_string() } else { line }));
        }
        if let Some(folder) = args.checkpoint.as_ref().filter(|_| step % args.save_every == 0 || step == args.steps) {
            let (tokenizer, extra) = (Some(tokenizer.fingerprint()), serde_json::to_value(&record)?);
            let saved = Checkpoint { step, seed: cfg.seed, tokenizer, loader: Some(loader.state()), extra };
            saved.save(folder, &varmap, Some(&opt), args.keep)?;
        }
    }
    bar.finish_and_clear();
    let text = sample(&frozen, &cfg, &tokenizer, &args.prompt)?;
    eprintln!("\n{text}\n");
    draw(&record.curve, &args.curve)?;
    eprintln!("loss curve: {}", args.curve.display());
    Ok(())
}

/// Continues a prompt. Each token is sampled from the 40 most likely ones.
fn sample(model: &Gpt, cfg: &Config, tokenizer: &Tokenizer, prompt: &str) -> Result<String> {
    let mut ids = tokenizer.encode(prompt)?;
    ensure!(!ids.is_empty(), "--prompt needs a token at least");
    let mut sampler = Sampler::new(SamplerConfig { top_k: Some(40), seed: cfg.seed, ..Default::default() })?;
    sampler.mask(tokenizer.ids_without_token(cfg.vocab_size)); // ids of cl100k without a token
    for _ in 0..100 {
        let seen = &ids[ids.len().saturating_sub(cfg.context)..];
        let hidden = model.hidden(&Tensor::new(seen, &Device::Cpu)?.unsqueeze(0)?, None)?;
        ids.push(sampler.sample(&model.head.logits(&hidden.narrow(1, seen.len() - 1, 1)?)?)?);
    }
    Ok(tokenizer.decode(&ids)?)
}

fn draw(curve: &[(u64, f32, f32)], path: &PathBuf) -> Result<()> {
    let svg = loss_curve(curve, Lang::En)?.svg(&Fonts::bundled())?;
    std::fs::write(path, svg).with_context(|| path.display().to_string())
}
