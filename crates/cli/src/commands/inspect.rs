//! `tallow inspect`: what is in a folder of shards, a checkpoint, a model, or a file of weights (`weights.rs`).

use std::io::Write;
use std::path::PathBuf;

use crate::grid::{Align, Cell, Column, write_grid};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;
use tallow::Checkpoint;
use tallow::shard::{Manifest, Statistics, document, sample};
use tallow_view::visible;

use crate::args::{MODEL_OR_SHARDS, TokenizerArgs, tokenizer_help};
use crate::plain::plain;
use crate::progress::{bar, grouped, hear};
use crate::shards::{describe, matching, not_a_part, split_of};

#[derive(Args)]
#[command(mut_arg("tokenizer", |arg| arg.help(tokenizer_help(MODEL_OR_SHARDS))))]
pub struct Inspect {
    /// A folder of shards, a checkpoint or the folder of a run, a folder with a model, or a safetensors, GGUF or PyTorch file
    #[arg(value_name = "PATH")]
    folder: PathBuf,
    /// The name of the table's tensor in a model [default: found by the names that tables have]
    #[arg(long)]
    tensor: Option<String>,
    /// The split to read
    #[arg(long, default_value = "train")]
    split: String,
    /// How many of the longest documents, most frequent tokens and samples to print
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

/// Tokens of a sample that are shown.
const SAMPLE_TOKENS: usize = 24;

impl Inspect {
    pub fn run(self) -> Result<()> {
        if !self.folder.join("manifest.json").is_file() {
            return self.weights();
        }
        let manifest = Manifest::read(&self.folder)?;
        let split = split_of(&manifest, &self.split, &self.folder)?;
        let tokenizer = self.tokenizer.open()?;
        // Counts need no tokenizer; texts need the right one.
        let known = matching(&manifest, &tokenizer, &self.folder);
        let name = |id: u32| match known {
            Ok(()) => crate::rows::token(&tokenizer, id as usize),
            Err(_) => None,
        };
        let progress = bar(0);
        let statistics = Statistics::read(&self.folder, &self.split, self.top, &hear(&progress))?;
        progress.finish_and_clear();
        let frequent = statistics.most_frequent(self.top);
        let mut samples = Vec::new();
        for (shard, at) in sample(split, if known.is_ok() { self.top } else { 0 }) {
            let ids = document(&self.folder, &self.split, shard, at, SAMPLE_TOKENS)?;
            let mut bytes = tokenizer.decode_bytes(&ids)?;
            if let Err(error) = std::str::from_utf8(&bytes)
                && error.error_len().is_none()
            {
                bytes.truncate(error.valid_up_to()); // half a character at the cut
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            samples.push(((shard, at), ids.len(), text));
        }
        let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
        if self.json {
            let longest = statistics.longest.iter();
            let line = json!({
                "manifest": manifest,
                "split": self.split,
                "tokens": statistics.tokens(),
                "touched_rows": statistics.touched(),
                "longest": longest.map(|l| json!({"tokens": l.tokens, "shard": l.shard, "document": l.document})).collect::<Vec<_>>(),
                "frequent": frequent.iter().map(|(id, count)| json!({"id": id, "token": name(*id), "count": count})).collect::<Vec<_>>(),
                "samples": samples.iter().map(|(_, _, text)| text).collect::<Vec<_>>(),
            });
            return Ok(writeln!(out, "{line}")?);
        }
        describe(&mut out, &manifest)?;
        let share = |part: u64, all: u64| format!("{:.2} %", 100.0 * part as f64 / all.max(1) as f64);
        writeln!(
            out,
            "touched    {} of {} table rows ({}) occur in {}",
            grouped(statistics.touched() as u64),
            grouped(manifest.table_rows as u64),
            share(statistics.touched() as u64, manifest.table_rows as u64),
            plain(&self.split)
        )?;
        if self.top == 0 {
            return Ok(());
        }
        let longest: Vec<String> = statistics.longest.iter().map(|l| grouped(l.tokens)).collect();
        writeln!(out, "longest    {} tokens\n", longest.join(", "))?;
        let columns = ["token", "id", "times", "share"]
            .map(|name| Column::new(name, if name == "token" { Align::Left } else { Align::Right }));
        let row = |(id, count): &(u32, u64)| {
            let cells =
                [name(*id).unwrap_or_default(), id.to_string(), grouped(*count), share(*count, statistics.tokens())];
            cells.map(Cell::plain).to_vec()
        };
        write_grid(&mut out, &columns, &frequent.iter().map(row).collect::<Vec<_>>())?;
        if !samples.is_empty() {
            writeln!(out)?;
        }
        for ((shard, at), tokens, text) in &samples {
            let more = if *tokens == SAMPLE_TOKENS { " …" } else { "" };
            writeln!(out, "shard {shard}, document {at}: {}{more}", visible(text))?;
        }
        if let Err(error) = known {
            writeln!(out, "\nno texts: {}", plain(error))?;
        }
        Ok(())
    }

    /// Inspects a file of weights, or a folder with weights.
    fn weights(&self) -> Result<()> {
        let path = &self.folder;
        let about = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        let checkpoint = if about.is_dir() { Checkpoint::find(path)? } else { None };
        let model = checkpoint.as_ref().map_or(path.clone(), |(folder, _)| folder.join("model.safetensors"));
        let files = if model.is_dir() { tallow::weight_files(&model)? } else { vec![model.clone()] };
        if files.is_empty() || !about.is_dir() {
            not_a_part(path)?;
        }
        ensure!(
            !files.is_empty(),
            "{} has neither shards (manifest.json), nor a finished checkpoint (step-N with complete.json), nor a model \
             (model.safetensors, model.safetensors.index.json with its shards, pytorch_model.bin, or a .safetensors, .gguf, .bin, \
             .pth or .pt file)",
            path.display()
        );
        let (tokenizer, top, json) = (&self.tokenizer, self.top, self.json);
        super::weights::Weights { model: &model, files: &files, checkpoint, tokenizer, top, json }
            .inspect(self.tensor.as_deref())
    }
}
