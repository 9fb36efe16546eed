//! Files → units of work, each of which can be read independently.

use serde::{Deserialize, Serialize};

use super::{CorpusFile, Format, Packing, Rules};
use crate::{Error, Result};

/// The most units of a plan. Each becomes two or more files and an entry of the plan.
const MOST_UNITS: usize = 1_000_000;

/// A piece of a file: bytes `start..end` if the file can be cut, row groups `start..end` of Parquet, else the whole file (0 to
/// `u64::MAX`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) file: usize,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Approximate size in bytes of the file.
    pub(crate) bytes: u64,
}

/// Cuts files into units of about `unit_bytes`: large files into several units, several small files into one.
///
/// Units depend only on file sizes (and the footers of Parquet files), so every rank finds the same ones. `unit_bytes` is not 0.
pub(crate) fn units(files: &[CorpusFile], rules: &Rules, unit_bytes: u64) -> Result<Vec<Vec<Piece>>> {
    let refuse = |count: u64| {
        let least = u128::from(unit_bytes) * u128::from(count) / MOST_UNITS as u128 + 1;
        Err(Error::Config(format!(
            "the corpus makes {count} units of {unit_bytes} bytes, but at most {MOST_UNITS} are allowed: raise unit_bytes to about {least}"
        )))
    };
    // Checked before the units take memory.
    let cut = files.iter().filter(|file| can_be_cut(file, rules));
    let count = cut.map(|file| file.bytes / unit_bytes).fold(0, u64::saturating_add);
    if count > MOST_UNITS as u64 {
        return refuse(count);
    }
    let mut units: Vec<Vec<Piece>> = Vec::new();
    let mut open = 0; // bytes of the last unit, while it may take more
    for (file, about) in files.iter().enumerate() {
        for piece in pieces(file, about, rules, unit_bytes)? {
            let bytes = piece.bytes.max(1);
            match units.last_mut().filter(|_| open > 0 && bytes.saturating_add(open) <= unit_bytes) {
                Some(unit) => unit.push(piece),
                None => {
                    units.push(vec![piece]);
                    open = 0;
                }
            }
            open = bytes.saturating_add(open);
        }
    }
    if units.len() > MOST_UNITS {
        return refuse(units.len() as u64);
    }
    Ok(units)
}

/// Whether pieces of a file may begin at any byte. (Reading then begins at the next line, or the next place for a cut.)
fn can_be_cut(about: &CorpusFile, rules: &Rules) -> bool {
    let bytes = about.packing == Packing::None && about.path != "-";
    bytes
        && match about.format {
            Format::Jsonl => true,
            Format::Text => rules.split_at.is_some() || rules.cuts.is_some(),
            Format::Parquet => false,
        }
}

/// The pieces of one file.
fn pieces(file: usize, about: &CorpusFile, rules: &Rules, unit_bytes: u64) -> Result<Vec<Piece>> {
    let whole = || vec![Piece { file, start: 0, end: u64::MAX, bytes: about.bytes }];
    if about.format == Format::Parquet && (about.packing == Packing::None || cfg!(not(feature = "parquet"))) {
        return parquet_pieces(file, about);
    }
    if !can_be_cut(about, rules) || about.bytes <= unit_bytes {
        return Ok(whole());
    }
    let count = about.bytes.div_ceil(unit_bytes);
    let at = |i: u64| (u128::from(about.bytes) * u128::from(i) / u128::from(count)) as u64;
    Ok((0..count).map(|i| Piece { file, start: at(i), end: at(i + 1), bytes: at(i + 1) - at(i) }).collect())
}

#[cfg(feature = "parquet")]
fn parquet_pieces(file: usize, about: &CorpusFile) -> Result<Vec<Piece>> {
    let sizes = super::parquet::row_groups(about);
    // A file that cannot be read becomes one piece. Reading it gives the error.
    let sizes = if sizes.is_empty() { vec![about.bytes] } else { sizes };
    Ok((0..).zip(sizes).map(|(i, bytes)| Piece { file, start: i, end: i + 1, bytes }).collect())
}

#[cfg(not(feature = "parquet"))]
fn parquet_pieces(_: usize, about: &CorpusFile) -> Result<Vec<Piece>> {
    Err(Error::FeatureMissing { what: format!("{}: Parquet", about.path), feature: "parquet" })
}
