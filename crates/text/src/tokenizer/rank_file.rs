//! Ranks ⇄ a `.tiktoken` file with one `base64-of-the-token rank` per line. A JSON file beside it has the special tokens.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::bpe::tables::Tables;
use super::ranks::{Ranks, check_specials};
use crate::support::files::{read_regular, write_whole};
use crate::{Error, Result};

/// Reads the ranks in `text`, the content of `path`, and the special tokens in the file beside it.
pub(super) fn read(path: &Path, text: &str) -> Result<Ranks> {
    let bad = |reason: String| Error::tokenizer_file(path, format!("not a usable .tiktoken rank file: {reason}"));
    let tables = tables(text).map_err(bad)?;
    let specials = specials_beside(path, &tables)?;
    Ranks::of(path, tables, None, specials).map_err(bad)
}

fn tables(text: &str) -> std::result::Result<Tables, String> {
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = number + 1;
        let (token, rank) = line.trim().split_once(' ').ok_or(format!("line {number}: no \"token rank\" pair"))?;
        let token = BASE64_STANDARD.decode(token).map_err(|e| format!("line {number}: not base64: {e}"))?;
        let rank: u32 = rank.trim().parse().map_err(|_| format!("line {number}: {rank:?} is not a rank"))?;
        tokens.push((rank, token));
    }
    let tokens: Vec<_> = tokens.iter().map(|(rank, token)| (*rank, token.as_slice())).collect();
    Tables::build(&tokens)
}

/// Text and id of the special tokens in the file beside a rank file. `None` if there is no such file.
fn specials_beside(path: &Path, tables: &Tables) -> Result<Option<Vec<(String, u32)>>> {
    let path = beside(path);
    let bytes = match read_regular(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|e| Error::io(&path, e))?,
    };
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let specials: BTreeMap<String, u32> = serde_json::from_slice(bytes)
        .map_err(|e| Error::tokenizer_file(&path, format!("not an object of special tokens and their ids: {e}")))?;
    let specials: Vec<_> = specials.into_iter().collect();
    check_specials(tables, &specials).map_err(|reason| Error::tokenizer_file(&path, reason))?;
    Ok(Some(specials))
}

/// Writes special tokens and ranks.
pub(super) fn write(ranks: &Ranks, path: &Path) -> Result<()> {
    let refused = |reason: String| Error::tokenizer_file(path, reason);
    check_specials(&ranks.bpe.tables, &ranks.specials).map_err(refused)?;
    if !ranks.pattern_is_told() {
        return Err(refused("a rank file does not hold this split pattern: save it as .json".to_string()));
    }
    let entry = |(text, id): &(String, u32)| format!("{}: {id}", Value::from(text.as_str()));
    let specials: Vec<String> = ranks.specials.iter().map(entry).collect();
    let mut lines = String::new();
    for id in 0..ranks.bpe.tables.rows() as u32 {
        if let Some(bytes) = ranks.bpe.tables.bytes(id) {
            _ = writeln!(lines, "{} {id}", BASE64_STANDARD.encode(bytes));
        }
    }
    write_whole(&beside(path), format!("{{{}}}\n", specials.join(", ")).as_bytes())?;
    write_whole(path, lines.as_bytes())
}

/// Path of the special tokens of a rank file.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("special_tokens.json")
}
