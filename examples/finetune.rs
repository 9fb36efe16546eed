//! Adds two tokens to a trained model, trains only their rows in table and head, writes a new folder, and generates from it.
//!
//!     cargo run --example finetune [MODEL-FOLDER NEW-FOLDER]
//!
//! ```text
//! the new ids are [640, 641]: table and head have 642 rows now
//! loss 2.05 -> 1.31: 4 rows were trained
//! "<|user|>What is in the table? <|bot|>\"Yes,\" said Maren.<|bot|>\"You thusandood,\" said Maren.<|bot|>\"You were wrong"
//! ```
//!
//! Without arguments the model is assets/tiny-llama, and the new folder is temporary. transformers loads the new folder, too.

mod args;
mod llama;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};
use llama::Llama;
use tallow::{Fill, Sampler, SamplerConfig, Specials, Tokenizer, optim::AdamW};

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");

fn main() -> Result<()> {
    let folders: Vec<_> = std::env::args().skip(1).take_while(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let (temporary, device) = (tempfile::tempdir()?, args::device("cpu")?);
    let (model, grown) = match &folders[..] {
        [] => (Path::new(ASSETS).join("tiny-llama"), temporary.path().join("grown")),
        [model, grown] if !grown.exists() => (model.clone(), grown.clone()),
        _ => anyhow::bail!("give the folder of a Llama, and the name of a new folder; then flags"),
    };
    let story = std::fs::read_to_string(Path::new(ASSETS).join("story.txt"))?;
    finetune(&model, &grown, &story, &device)?;
    let (tokenizer, ids) = speak(&grown, "<|user|>What is in the table?", 30, &device)?;
    println!("{:?}", tokenizer.decode(&ids)?);
    Ok(())
}

/// Adds `<|user|>` and `<|bot|>` to the model and its tokenizer, trains their rows, and writes the folder `grown`.
pub fn finetune(model: &Path, grown: &Path, story: &str, device: &Device) -> Result<()> {
    let (varmap, mut tokenizer) = (VarMap::new(), Tokenizer::from_file(model.join("tokenizer.json"))?);
    let (mut model, table) = Llama::load(model, &varmap, device)?;
    let (tokens, head) = (["<|user|>", "<|bot|>"], Some(&mut model.head));
    let new = model.wte.add_tokens(head, &varmap, &mut tokenizer, &tokens, Fill::Mean)?;
    println!("the new ids are {new:?}: table and head have {} rows now", model.head.vocab_size());
    model.wte.freeze_except(&new)?;
    model.head.freeze_except(&new)?;

    // The story as a dialogue: two speakers say its sentences in turn.
    let sentences: Vec<&str> = story.split_inclusive(". ").flat_map(str::lines).filter(|s| !s.is_empty()).collect();
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 3e-2, weight_decay: 0.0, ..Default::default() })?;
    let mut losses = Vec::new();
    for turns in sentences.chunks_exact(4).take(100) {
        let [a, b, c, d] = turns else { continue };
        let ids = tokenizer.encode(&format!("<|user|>{a}<|bot|>{b}<|user|>{c}<|bot|>{d}"))?;
        let ids = Tensor::new(vec![ids], &Device::Cpu)?;
        let [inputs, targets] = [0, 1].map(|from| ids.narrow(1, from, ids.dim(1)? - 1));
        let loss = model.head.loss(&model.forward(&inputs?)?, &targets?, &Default::default())?;
        opt.backward_step(&loss)?;
        losses.push(loss.to_scalar::<f32>()?);
    }
    let ten = |losses: &[f32]| losses.iter().sum::<f32>() / 10.0;
    println!("loss {:.2} -> {:.2}: 4 rows were trained", ten(&losses[..10]), ten(&losses[90..]));
    Ok(table.merge_into(grown, &varmap, &tokenizer)?)
}

/// Continues a prompt with the model in a folder, with the likeliest token at each position.
pub fn speak(folder: &Path, prompt: &str, tokens: usize, device: &Device) -> Result<(Tokenizer, Vec<u32>)> {
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?.with_specials(Specials::Allow);
    let (model, _) = Llama::load(folder, &VarMap::new(), device)?;
    let mut sampler = Sampler::new(SamplerConfig { temperature: 0.0, ..Default::default() })?;
    let mut ids = tokenizer.encode(prompt)?;
    for _ in 0..tokens {
        let last = model.forward(&Tensor::new(vec![ids.clone()], &Device::Cpu)?)?.narrow(1, ids.len() - 1, 1)?;
        ids.push(sampler.sample(&model.head.logits(&last)?)?);
    }
    Ok((tokenizer, ids))
}
