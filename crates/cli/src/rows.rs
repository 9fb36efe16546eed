//! Rows of a table: the flag --rows, their tokens, and files of rows.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Result, bail};
use candle_core::Tensor;
use tallow::Tokenizer;
use tallow_view::token_text;

use crate::args::TableArgs;
use crate::io::{Kind, Outputs};
use crate::pictures::write;

/// Parses ranges of rows: `0..3,1000`.
pub fn ranges(rows: &str, vocab_size: usize) -> Result<Vec<Range<usize>>> {
    let mut ranges = Vec::new();
    for part in rows.split(',').map(str::trim) {
        let (start, end) = part.split_once("..").unwrap_or((part, ""));
        let number = |text: &str| text.trim().parse::<usize>();
        let range = match (number(start), number(end)) {
            (Ok(start), Ok(end)) if start < end => start..end,
            (Ok(start), Err(_)) if !part.contains("..") && start < usize::MAX => start..start + 1,
            _ => bail!("{part:?} is not a range of rows: write START..END, where END is excluded, or one number"),
        };
        if range.end > vocab_size {
            bail!("rows {part} end beyond the table, whose {vocab_size} rows are 0..{vocab_size}");
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// The token of a row as text, if it has one.
pub fn token(tokenizer: &Tokenizer, row: usize) -> Option<String> {
    Some(token_text(&tokenizer.token_bytes(u32::try_from(row).ok()?)?))
}

/// Writes tensors. The metadata has the tokenizer, and for a new table (`fresh`) its seed and distribution.
pub fn save(
    outputs: &Outputs,
    path: &Path,
    tensors: &[(&str, &Tensor)],
    tokenizer: &Tokenizer,
    fresh: Option<&TableArgs>,
) -> Result<()> {
    let mut metadata = HashMap::from([
        ("format".to_string(), "pt".to_string()),
        ("tokenizer".to_string(), tokenizer.name().to_string()),
        ("fingerprint".to_string(), format!("{:016x}", tokenizer.fingerprint())),
    ]);
    if let Some(args) = fresh {
        metadata.insert("seed".to_string(), args.seed.to_string());
        metadata.insert("init".to_string(), args.init.to_string());
    }
    write(outputs, path, Kind::Rows, &safetensors::serialize(tensors.iter().copied(), Some(metadata))?)
}
