//! What several commands say of a folder of shards.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use tallow::Tokenizer;
use tallow::shard::{Manifest, SplitInfo};

use crate::plain::plain;
use crate::progress::plural;

/// What a folder holds, in a few lines.
pub fn describe(out: &mut impl Write, manifest: &Manifest) -> Result<()> {
    for (name, split) in &manifest.splits {
        if split.tokens == 0 && name == "val" && manifest.val == 0.0 {
            continue; // nobody asked for one
        }
        let text = match split.text_bytes {
            0 => String::new(),
            text => format!(", {:.2} bytes of text a token", text as f64 / split.tokens.max(1) as f64),
        };
        writeln!(
            out,
            "{:<11}{} in {}, {}{text}",
            plain(name),
            plural(split.tokens, "token"),
            plural(split.documents, "document"),
            plural(split.shards.len() as u64, "shard"),
        )?;
    }
    let tokenizer = manifest.tokenizer.as_ref().map_or("unknown", |tokenizer| &tokenizer.name);
    let id_type = manifest.id_type;
    let tokenizer = plain(tokenizer);
    writeln!(
        out,
        "tokenizer  {tokenizer}; ids are {id_type}; a table for all of them has {} rows",
        manifest.table_rows
    )?;
    match &manifest.separator {
        Some(separator) => {
            let token = plain(separator.token.as_deref().unwrap_or("a token"));
            let place = if separator.before { "before" } else { "after" };
            writeln!(out, "separator  {token} ({}) {place} each document", separator.id)?;
        }
        None => writeln!(out, "separator  none")?,
    }
    if manifest.skipped.count > 0 {
        writeln!(out, "skipped    {}:", plural(manifest.skipped.count, "document"))?;
        for reason in manifest.skipped.reasons.iter().take(5) {
            writeln!(out, "           {}", plain(reason))?;
        }
        if manifest.skipped.count > 5 {
            writeln!(out, "           … (manifest.json lists more)")?;
        }
    }
    Ok(())
}

/// A split that has tokens.
pub fn split_of<'a>(manifest: &'a Manifest, name: &str, folder: &Path) -> Result<&'a SplitInfo> {
    let Some(split) = manifest.splits.get(name).filter(|split| split.tokens > 0) else {
        let with = manifest.splits.iter().filter(|(_, split)| split.tokens > 0);
        let with: Vec<&str> = with.map(|(name, _)| name.as_str()).collect();
        bail!("{} has no tokens in a split {name:?}, only in: {}", folder.display(), with.join(", "));
    };
    Ok(split)
}

/// The folder's tokenizer, if it is the one that was given.
pub fn matching(manifest: &Manifest, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let fingerprint = format!("{:016x}", tokenizer.fingerprint());
    match &manifest.tokenizer {
        Some(made_by) if made_by.fingerprint != fingerprint => bail!(
            "{} was made by {} ({}), not by {} ({fingerprint}): give --tokenizer",
            folder.display(),
            made_by.name,
            made_by.fingerprint,
            tokenizer.name()
        ),
        _ => Ok(()),
    }
}
