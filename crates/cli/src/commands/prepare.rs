//! `tallow prepare`: text files → shards.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use clap::builder::PossibleValue;
use serde_json::json;
use tallow::TextError;
use tallow::prepare::{
    Estimate, Event, Format, OnError, PrepareConfig, Rank, SeparatorChoice, estimate, finish, prepare, rank_from_env,
};
use tallow::shard::Manifest;

use crate::args::{SpecialsArgs, TokenizerArgs, by_name};
use crate::plain::{plain, say};
use crate::progress::{bar, bytes, grouped, memory_mib, plural};
use crate::shards::describe;

#[derive(Args)]
pub struct Prepare {
    #[cfg_attr(
        feature = "parquet",
        doc = "Files, folders, patterns, or - for standard input: .txt .md .jsonl .ndjson .parquet, also .gz and .zst"
    )]
    #[cfg_attr(
        not(feature = "parquet"),
        doc = "Files, folders, patterns, or - for standard input: .txt .md .jsonl .ndjson, also .gz and .zst"
    )]
    #[arg(required_unless_present = "finish")]
    inputs: Vec<PathBuf>,
    /// The folder of shards to write
    #[arg(short, long)]
    out: PathBuf,
    /// Format of the files [default: by their names]
    #[arg(long, value_parser = by_name::<Format>(formats()))]
    format: Option<Format>,
    #[cfg_attr(feature = "parquet", doc = "The JSON field or Parquet column that is the text")]
    #[cfg_attr(not(feature = "parquet"), doc = "The JSON field that is the text")]
    #[arg(long, default_value = "text")]
    field: String,
    /// The line between two documents of a text file ('' for empty lines) [default: a file is a document]
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    split_at: Option<String>,
    /// The token after each document, or none
    #[arg(long, value_name = "TOKEN", default_value = "<|endoftext|>")]
    separator: String,
    /// Share of documents that go to the split val, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    val: f64,
    /// Seed of the choice of these documents
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// What to do with a document that cannot be read
    #[arg(long, default_value = "error", value_parser = by_name::<OnError>(on_error()))]
    on_error: OnError,
    /// Number of threads [default: one per processor]
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Number of this process, from 0, where several share the folder [default: the scheduler's]
    #[arg(long, requires = "world_size")]
    rank: Option<usize>,
    /// How many processes share the folder [default: the scheduler's, or 1]
    #[arg(long)]
    world_size: Option<usize>,
    /// Bytes of input per shard [default: 1/256 of the input, from 1 MiB to 64 MiB]
    #[arg(long, value_name = "BYTES")]
    unit_bytes: Option<u64>,
    /// Read no input: write manifest.json of a folder whose units are all done, and delete its temporary files (.tmp-…); all shards
    /// are kept
    #[arg(long, conflicts_with_all = [
        "inputs", "format", "field", "split_at", "separator", "val", "seed", "on_error", "jobs", "rank", "world_size", "unit_bytes",
        "dry_run", "tokenizer", "specials",
    ])]
    finish: bool,
    /// Print an estimate of the tokens and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON line per unit, and one at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    #[command(flatten)]
    specials: SpecialsArgs,
}

fn formats() -> [PossibleValue; 3] {
    ["text", "jsonl", "parquet"]
        .map(|name| PossibleValue::new(name).hide(name == "parquet" && !cfg!(feature = "parquet")))
}

fn on_error() -> [PossibleValue; 3] {
    [
        PossibleValue::new("error").help("Stop with an error that names it"),
        PossibleValue::new("skip").help("Leave it out; count and list it in the manifest"),
        PossibleValue::new("replace").help("Read bytes that are not UTF-8 as U+FFFD; stop at everything else"),
    ]
}

impl Prepare {
    pub fn run(self) -> Result<()> {
        let finished = self.out.join("manifest.json").exists();
        if self.finish && finished {
            self.say_finished();
            return self.report(&Manifest::read(&self.out)?);
        }
        if self.finish {
            return self.report(&finish(&self.out)?);
        }
        let tokenizer = self.specials.apply(self.tokenizer.open()?);
        let cfg = self.config()?;
        if self.dry_run {
            return self.print_estimate(&estimate(&tokenizer, &cfg)?);
        }
        let started = Instant::now();
        let progress = bar(0);
        let tokens = Mutex::new(0u64);
        let failed_write = Mutex::new(None);
        let watch = |event: Event| match event {
            Event::Planned { units, to_do, bytes: total, ignored_files } => {
                progress.set_length(total);
                if ignored_files > 0 {
                    say(format!("note: {} with other endings left out", plural(ignored_files, "file")));
                }
                if to_do < units && cfg.rank.world_size == 1 {
                    let (done, units) = (grouped((units - to_do) as u64), plural(units as u64, "unit"));
                    say(format!("note: {done} of {units} are done already"));
                }
            }
            Event::Progress { bytes, tokens: more } => {
                progress.inc(bytes);
                let mut tokens = tokens.lock().unwrap_or_else(|e| e.into_inner());
                *tokens += more;
                let rate = *tokens as f64 / started.elapsed().as_secs_f64() / 1e6;
                let memory = memory_mib().map(|mib| format!(", {mib} MiB")).unwrap_or_default();
                progress.set_message(format!("({} tokens, {rate:.1} M/s{memory})", grouped(*tokens)));
            }
            Event::Unit(report) if self.json => {
                let line = serde_json::to_string(report).unwrap_or_default();
                if let Err(error) = writeln!(std::io::stdout(), "{line}") {
                    failed_write.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                }
            }
            _ => (),
        };
        let outcome = prepare(&tokenizer, &cfg, &watch);
        progress.finish_and_clear();
        let manifest = outcome.map_err(|error| match error {
            TextError::Document { .. }
            | TextError::Folder { .. }
            | TextError::NoInput { .. }
            | TextError::FeatureMissing { .. }
            | TextError::Config(_) => anyhow!(error),
            error if self.out.join("plan.json").exists() => {
                anyhow!("{error} (finished units are kept: run the same command again)")
            }
            error => anyhow!(error),
        })?;
        if let Some(error) = failed_write.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error.into());
        }
        match manifest {
            Some(manifest) => {
                if finished {
                    self.say_finished();
                }
                self.report(&manifest)
            }
            None if self.json => Ok(writeln!(std::io::stdout(), "{}", json!({"finished": false}))?),
            None => Ok(writeln!(
                std::io::stdout(),
                "rank {} of {}: its units are done; other ranks have units left, and the last one writes the manifest",
                cfg.rank.rank,
                cfg.rank.world_size
            )?),
        }
    }

    fn say_finished(&self) {
        say(format!("note: {} is complete already: nothing was done", self.out.display()));
    }

    fn config(&self) -> Result<PrepareConfig> {
        let rank = match (self.rank, self.world_size) {
            (Some(rank), Some(world_size)) => Rank { rank, world_size },
            (_, world_size) => {
                match rank_from_env(|name| std::env::var(name).ok(), world_size).map_err(|e| anyhow!(e))? {
                    Some((rank, scheduler)) => {
                        say(format!("note: rank {} of {}, as {scheduler} says", rank.rank, rank.world_size));
                        rank
                    }
                    None if world_size.is_some_and(|size| size > 1) => {
                        bail!(
                            "--world-size {} without --rank, and no scheduler says which rank this is",
                            world_size.unwrap_or(1)
                        )
                    }
                    None => Rank::default(),
                }
            }
        };
        Ok(PrepareConfig {
            inputs: self.inputs.clone(),
            out: self.out.clone(),
            format: self.format,
            field: self.field.clone(),
            split_at: self.split_at.clone(),
            separator: match self.separator.as_str() {
                "none" | "" => SeparatorChoice::None,
                "<|endoftext|>" => SeparatorChoice::EndOfText,
                token => SeparatorChoice::Token(token.to_string()),
            },
            val: self.val,
            seed: self.seed,
            on_error: self.on_error,
            unit_bytes: self.unit_bytes,
            jobs: self.jobs,
            rank,
        })
    }

    fn print_estimate(&self, estimate: &Estimate) -> Result<()> {
        let Estimate { files, ignored_files, bytes: total, units, tokens, shard_bytes, .. } = *estimate;
        let mut out = std::io::stdout().lock();
        if self.json {
            let line = json!({"files": files, "ignored_files": ignored_files, "bytes": total, "units": units,
                "estimated_tokens": tokens, "estimated_shard_bytes": shard_bytes});
            return Ok(writeln!(out, "{line}")?);
        }
        writeln!(
            out,
            "input      {}, {}, {}",
            plural(files as u64, "file"),
            bytes(total),
            plural(units as u64, "unit")
        )?;
        if ignored_files > 0 {
            writeln!(out, "left out   {} with other endings", plural(ignored_files, "file"))?;
        }
        writeln!(
            out,
            "expect     about {} tokens, {} on disk (nothing was written)",
            grouped(tokens),
            bytes(shard_bytes)
        )?;
        Ok(())
    }

    fn report(&self, manifest: &Manifest) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let documents = |name: &str| manifest.splits.get(name).map_or(0, |split| split.documents);
        let mut empty = vec!["train", "val"];
        empty.retain(|name| manifest.val > 0.0 && documents(name) == 0);
        if self.json {
            let split = |name: &str| manifest.splits.get(name).map_or(0, |split| split.tokens);
            let line = json!({"finished": true, "train_tokens": split("train"), "val_tokens": split("val"),
                "skipped": manifest.skipped.count, "table_rows": manifest.table_rows, "empty_splits": empty});
            return Ok(writeln!(out, "{line}")?);
        }
        describe(&mut out, manifest)?;
        let all = documents("train") + documents("val");
        for name in empty {
            writeln!(
                out,
                "warning    no document went to {name}: there {} {} in all, and --val is {}{}",
                if all == 1 { "is" } else { "are" },
                grouped(all),
                manifest.val,
                if all == 1 { "; --split-at cuts a text into documents" } else { "" }
            )?;
        }
        writeln!(out, "next       tallow inspect {}", plain(self.out.display()))?;
        Ok(())
    }
}
