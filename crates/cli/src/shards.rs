//! What several commands print about a folder of shards.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use tallow::Tokenizer;
use tallow::shard::{Manifest, SplitInfo};

use crate::plain::plain;
use crate::progress::plural;

/// Prints the splits, the tokenizer, the separator and the skipped documents.
pub fn describe(out: &mut impl Write, manifest: &Manifest) -> Result<()> {
    for (name, split) in &manifest.splits {
        if split.tokens == 0 && name == "val" && manifest.val == 0.0 {
            continue; // --val was not given
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

/// It is an error if the path is one shard of a folder, or a folder whose shards are not finished.
pub fn not_a_part(path: &Path) -> Result<()> {
    let shard = path.extension().is_some_and(|end| end == "bin") && path.with_extension("idx").is_file();
    ensure!(!shard, "{}: this is a shard: give its folder, which has a manifest.json", path.display());
    ensure!(
        !path.join("plan.json").is_file(),
        "{}: its shards are not finished: run the same `tallow prepare` again",
        path.display()
    );
    Ok(())
}

/// The split of this name. It is an error if the folder has no such split, or if the split has no ids.
pub fn split_of<'a>(manifest: &'a Manifest, name: &str, folder: &Path) -> Result<&'a SplitInfo> {
    let folder = folder.display();
    let Some(split) = manifest.splits.get(name) else {
        let names: Vec<&str> = manifest.splits.keys().map(String::as_str).collect();
        bail!("{folder} has no split {name:?}; its splits are {}", names.join(", "));
    };
    ensure!(split.tokens > 0, "{folder}: the split {name:?} has no ids");
    Ok(split)
}

/// It is an error if the folder was made by another tokenizer.
pub fn matching(manifest: &Manifest, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let fingerprint = format!("{:016x}", tokenizer.fingerprint());
    match &manifest.tokenizer {
        Some(made_by) if made_by.fingerprint != fingerprint => bail!(
            "{} was made by {} ({}), not by {} ({fingerprint}): give its tokenizer (--tokenizer)",
            folder.display(),
            made_by.name,
            made_by.fingerprint,
            tokenizer.name()
        ),
        _ => Ok(()),
    }
}
