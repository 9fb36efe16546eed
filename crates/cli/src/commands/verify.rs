//! `tallow verify`: checks every byte of a folder of shards.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use tallow::shard::{Manifest, verify};

use crate::plain::plain;
use crate::progress::{bar, bytes, hear, plural};

#[derive(Args)]
pub struct Verify {
    /// The folder of shards
    folder: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub fn run(self) -> Result<()> {
        let manifest = Manifest::read(&self.folder)?;
        let tokens: u64 = manifest.splits.values().fold(0, |sum, split| split.tokens.saturating_add(sum));
        let progress = bar(0);
        let findings = verify(&self.folder, &hear(&progress))?;
        let read = progress.position();
        progress.finish_and_clear();
        let shards: usize = manifest.splits.values().map(|split| split.shards.len()).sum();
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", json!({"shards": shards, "tokens": tokens, "bytes": read, "findings": findings}))?;
        } else if findings.is_empty() {
            writeln!(
                out,
                "all well: {}, {}, {} read",
                plural(shards as u64, "shard"),
                plural(tokens, "token"),
                bytes(read)
            )?;
        } else {
            findings.iter().try_for_each(|finding| writeln!(out, "{}", plain(finding)))?;
        }
        if !findings.is_empty() {
            bail!(
                "{}: {} does not match its manifest",
                plural(findings.len() as u64, "finding"),
                self.folder.display()
            );
        }
        Ok(())
    }
}
