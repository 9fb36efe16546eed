//! Paths, folders and patterns → files, in the same order on every machine.

use std::path::{Path, PathBuf};

use super::pattern::matches;
use super::{CorpusFile, Format, Packing};
use crate::{Error, Result};

/// For messages: the files that names tell apart.
const ENDINGS: &str = ".txt, .text, .md, .jsonl, .ndjson or .parquet (also .gz, .zst)";

/// The files of a corpus.
pub(crate) struct Found {
    pub(crate) files: Vec<CorpusFile>,
    /// Files in folders that were left out because their names have no known ending.
    pub(crate) ignored: u64,
}

/// Finds the files that `inputs` name. An input is a file, a folder, a pattern with `*`, `?` and `[…]`, or `-` for standard input.
/// A folder stands for all files below it, sorted by name; `out`, hidden files and links to folders are left out. `format` overrides
/// the formats that file names tell.
pub(crate) fn find(inputs: &[PathBuf], format: Option<Format>, out: &Path) -> Result<Found> {
    let out = std::fs::canonicalize(out).ok(); // left out where it lies in an input folder
    let out = out.as_deref();
    let mut found = Found { files: Vec::new(), ignored: 0 };
    for input in inputs {
        let name = input.to_string_lossy();
        if name == "-" {
            let file = CorpusFile {
                path: "-".to_string(),
                bytes: 0,
                format: format.unwrap_or(Format::Text),
                packing: Packing::None,
            };
            found.files.push(file);
        } else if input.exists() || !name.contains(['*', '?', '[']) {
            add(input, true, format, out, &mut found)?;
        } else {
            let before = found.files.len();
            matches(&name, &mut |path| add(path, true, format, out, &mut found))?;
            if found.files.len() == before {
                return Err(Error::NoInput { pattern: name.into_owned() });
            }
        }
    }
    if found.files.is_empty() {
        let why = match found.ignored {
            0 if inputs.is_empty() => "there is no file to read: name files or folders".to_string(),
            0 => {
                let named: Vec<String> = inputs.iter().map(|input| input.display().to_string()).collect();
                format!(
                    "there is no file to read in {}: `prepare` reads files that end in {ENDINGS}, and no hidden ones; \
                     put some there, or name other files or folders",
                    named.join(", ")
                )
            }
            n => format!("none of the {n} files ends in {ENDINGS}: say what they hold (`PrepareConfig::format`)"),
        };
        return Err(Error::Config(why));
    }
    Ok(found)
}

fn add(path: &Path, named: bool, format: Option<Format>, out: Option<&Path>, found: &mut Found) -> Result<()> {
    let io = |e| Error::io(path, e);
    let about = match std::fs::metadata(path) {
        Err(_) if !named => {
            found.ignored += 1; // a dangling link
            return Ok(());
        }
        about => about.map_err(io)?,
    };
    if about.is_dir() {
        // Links to folders could form a cycle, so only those that the caller named are followed.
        if !named && std::fs::symlink_metadata(path).map_err(io)?.is_symlink() {
            return Ok(());
        }
        if !named && out.is_some() && std::fs::canonicalize(path).ok().as_deref() == out {
            return Ok(());
        }
        let mut entries: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            entries.push(entry.map_err(io)?.path());
        }
        entries.retain(|path| !path.file_name().unwrap_or_default().to_string_lossy().starts_with('.'));
        entries.sort();
        return entries.iter().try_for_each(|path| add(path, false, format, out, found));
    }
    if !about.is_file() && !named {
        found.ignored += 1;
        return Ok(());
    }
    if !about.is_file() {
        let name = path.display();
        return Err(Error::Config(format!(
            "{name} is not a regular file: its size is not known; pass it as standard input (-)"
        )));
    }
    let (known, packing) = kind(path);
    let Some(format) = format.or(known).or(named.then_some(Format::Text)) else {
        found.ignored += 1;
        return Ok(());
    };
    let Some(path) = path.to_str() else {
        return Err(Error::Config(format!("the name of {} is not UTF-8: rename it", path.display())));
    };
    found.files.push(CorpusFile { path: path.to_string(), bytes: about.len(), format, packing });
    Ok(())
}

/// The format and the compression that a file name tells.
fn kind(path: &Path) -> (Option<Format>, Packing) {
    let ending = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (packing, inner) = match ending(path).as_str() {
        "gz" | "gzip" => (Packing::Gzip, ending(&path.with_extension(""))),
        "zst" | "zstd" => (Packing::Zstd, ending(&path.with_extension(""))),
        other => (Packing::None, other.to_string()),
    };
    let format = match inner.as_str() {
        "txt" | "text" | "md" => Some(Format::Text),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        "parquet" => Some(Format::Parquet),
        _ => None,
    };
    (format, packing)
}
