//! A training loop, piece by piece: groups, schedule, accumulation, clipping, evaluation, checkpoint, generation.
//!
//!     cargo run --release --example loop         # --release: 400 steps of training
//!
//! ```text
//! step 100: lr 0.0028, norm 0.9, validation 4.52, 3.00 bits a byte
//! step 200: lr 0.0019, norm 1.0, validation 3.73, 2.48 bits a byte
//! step 300: lr 0.0008, norm 1.3, validation 3.50, 2.33 bits a byte
//! step 400: lr 0.0003, norm 1.4, validation 3.44, 2.29 bits a byte
//! "The table was a all the sunder. \"It is all the long the"
//! ```

mod args;
mod llama;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use llama::Llama;
use tallow::optim::{AdamW, Decay, Schedule, decay_matrices};
use tallow::{Batch, Checkpoint, DataLoader, DataLoaderConfig, Dataset, Gradient, Head, Sampler, SamplerConfig};
use tallow::{TokenEmbedding, TokenEmbeddingConfig, Tokenizer, evaluate};

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");

/// The model over the weights of `vb`.
fn model(vocab_size: usize, vb: VarBuilder) -> Result<Llama> {
    let cfg = TokenEmbeddingConfig { vocab_size, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let head = Head::tied(&wte);
    Llama::new(wte, head, 2, 4, vb)
}

fn main() -> Result<()> {
    let (device, dtype, folder) = (args::device("cpu")?, DType::F32, tempfile::tempdir()?);
    let tokenizer = Tokenizer::from_file(format!("{ASSETS}/tiny-llama/tokenizer.json"))?;
    let data = Dataset::from_path(&tokenizer, format!("{ASSETS}/story.txt"), 0.1)?;
    let loading = DataLoaderConfig { batch_size: 8, context_length: 32, epochs: None, ..Default::default() };
    let mut loader = DataLoader::new(&data.split("train")?, loading.clone())?;

    let (varmap, vocab_size) = (VarMap::new(), tokenizer.vocab_size());
    let gpt = model(vocab_size, VarBuilder::from_varmap(&varmap, dtype, &device))?;
    let frozen = model(vocab_size, tallow::no_grad(&varmap, dtype, &device))?; // the same weights, without gradients
    let log_probs =
        |batch: &Batch| -> Result<_> { Ok(frozen.head.log_probs(&frozen.forward(&batch.inputs)?, &batch.targets)?) };
    let params = ParamsAdamW { weight_decay: 0.1, ..Default::default() };
    let mut opt = AdamW::from_varmap_with(&varmap, decay_matrices(params))?;
    let schedule = Schedule { peak: 3e-3, min: 3e-4, warmup_steps: 40, total_steps: 400, decay: Decay::Cosine };
    let part = |loader: &mut DataLoader| -> Result<_> {
        let batch = loader.next().context("it has no end")??;
        let loss = gpt.head.loss(&gpt.forward(&batch.inputs)?, &batch.targets, &Default::default())?;
        Ok(tallow::backward(&(loss / 2.0)?)?) // the mean over two parts
    };
    for step in 1..=schedule.total_steps {
        let mut grads = part(&mut loader)?;
        grads.extend(part(&mut loader)?)?;
        let norm = opt.clip_grad_norm(&mut grads, 1.0)?;
        opt.set_learning_rate(schedule.lr(step)?);
        opt.step(&grads)?;
        if step % 100 == 0 {
            let val = evaluate(DataLoader::new(&data.split("val")?, loading.once())?, &tokenizer, log_probs)?;
            let (lr, bits) = (opt.learning_rate(), val.bits_per_byte.unwrap_or(f64::NAN));
            println!("step {step}: lr {lr:.4}, norm {norm:.1}, validation {:.2}, {bits:.2} bits a byte", val.loss);
            let (tokenizer, loader) = (Some(tokenizer.fingerprint()), Some(loader.state()));
            let checkpoint = Checkpoint { step, seed: 1337, tokenizer, loader, extra: Default::default() };
            checkpoint.save(folder.path(), &varmap, Some(&opt), 2)?;
        }
    }
    let mut sampler = Sampler::new(SamplerConfig { temperature: 0.3, top_k: Some(40), ..Default::default() })?;
    let (mut ids, mut decoder, mut text) =
        (tokenizer.encode("The table")?, tokenizer.decoder(), "The table".to_string());
    for _ in 0..20 {
        let last = frozen.forward(&Tensor::new(vec![ids.clone()], &Device::Cpu)?)?.narrow(1, ids.len() - 1, 1)?;
        ids.push(sampler.sample(&frozen.head.logits(&last)?)?);
        text += decoder.push(ids[ids.len() - 1])?; // whole characters only, so it can be printed at once
    }
    println!("{text:?}");
    Ok(())
}
