//! `tallow inspect FILE`: the tensors of a file, and the rows of its table.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::json;
use tallow::view::{Align, Cell, Column, write_grid};
use tallow::{PretrainedTable, Tokenizer, list_tensors};

use super::plain::plain;
use super::progress::grouped;
use super::table::token;

/// Tensors listed of a file with more.
const LISTED: usize = 40;

pub fn inspect(path: &Path, tensor: Option<&str>, tokenizer: Option<Tokenizer>, top: usize, json: bool) -> Result<()> {
    let tensors = list_tensors(path)?;
    // Without a table it is still a file of tensors; a name that was asked for must be there.
    let (table, why) = match PretrainedTable::open(path, tensor) {
        Ok(table) => (Some(table), String::new()),
        Err(error) if tensor.is_some() => return Err(error.into()),
        Err(error) => (None, error.to_string()),
    };
    let statistics = table.as_ref().map(PretrainedTable::statistics).transpose()?;
    let name = |id: u32| tokenizer.as_ref().and_then(|tokenizer| token(tokenizer, id as usize));
    let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
    if json {
        let table = table.as_ref().map(|table| {
            json!({
                "name": table.name(),
                "rows": table.vocab_size(),
                "d_model": table.d_model(),
                "dtype": table.dtype().as_str(),
                "tied": table.tied(),
                "statistics": statistics,
            })
        });
        return Ok(writeln!(out, "{}", json!({"tensors": tensors, "table": table}))?);
    }
    let columns = [("tensor", Align::Left), ("shape", Align::Right), ("dtype", Align::Left)]
        .map(|(name, align)| Column::new(name, align));
    let row = |tensor: &tallow::TensorInfo| {
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        [plain(&tensor.name), shape.join(" x "), plain(&tensor.dtype)].map(Cell::plain).to_vec()
    };
    write_grid(&mut out, &columns, &tensors.iter().take(LISTED).map(row).collect::<Vec<_>>())?;
    if tensors.len() > LISTED {
        writeln!(out, "… and {} more", tensors.len() - LISTED)?;
    }
    let (Some(table), Some(statistics)) = (table, statistics) else {
        return Ok(writeln!(out, "\nno table: {}", plain(why))?);
    };
    let head = if table.tied() { "tied: the model has no head of its own" } else { "the model has a head of its own" };
    writeln!(
        out,
        "\ntable      {}: {} rows x {} columns; {head}",
        plain(table.name()),
        grouped(table.vocab_size() as u64),
        table.d_model()
    )?;
    let [least, quarter, median, three, most] = statistics.norms;
    writeln!(
        out,
        "norms      {least:.4} to {most:.4}; a quarter below {quarter:.4}, half {median:.4}, three {three:.4}"
    )?;
    let list = |rows: &[u32]| {
        let shown: Vec<String> =
            rows.iter().take(top).map(|id| name(*id).map_or(id.to_string(), |token| format!("{id} {token}"))).collect();
        let (count, more) = (grouped(rows.len() as u64), if rows.len() > top { ", …" } else { "" });
        format!("{count} {}: {}{more}", if rows.len() == 1 { "row" } else { "rows" }, shown.join(", "))
    };
    let none = "none".to_string();
    let some = |rows: &[u32]| if rows.is_empty() { none.clone() } else { list(rows) };
    writeln!(out, "zeros      {}", some(&statistics.zero))?;
    writeln!(out, "short      {} (under a third of the median: mostly never trained)", some(&statistics.short))?;
    let twins: Vec<String> = statistics.duplicates.iter().take(top).map(|rows| list(rows)).collect();
    let groups = statistics.duplicates.len();
    match groups {
        0 => writeln!(out, "duplicates none")?,
        _ => writeln!(out, "duplicates {groups} groups of equal rows: {}", twins.join("; "))?,
    }
    if !statistics.not_finite.is_empty() {
        writeln!(out, "not finite {}", some(&statistics.not_finite))?;
    }
    Ok(())
}
