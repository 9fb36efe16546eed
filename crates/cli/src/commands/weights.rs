//! `tallow inspect` of weights: the state of a checkpoint, the tensors, and statistics of the table.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::grid::{Align, Cell, Column, write_grid};
use anyhow::Result;
use serde_json::json;
use tallow::{Checkpoint, PretrainedTable, RowStatistics, TensorInfo, Tokenizer, list_tensors};

use crate::args::TokenizerArgs;
use crate::flags::in_flags;
use crate::plain::plain;
use crate::progress::{grouped, plural};
use crate::rows::token;

/// At most this many tensors are listed.
const LISTED: usize = 40;

/// What to inspect, and how to print it.
pub struct Weights<'a> {
    /// A file, or a folder with a model.
    pub model: &'a Path,
    /// Its files of weights.
    pub files: &'a [PathBuf],
    /// The checkpoint of these weights, after its folder.
    pub checkpoint: Option<(PathBuf, Checkpoint)>,
    pub tokenizer: &'a TokenizerArgs,
    pub top: usize,
    pub json: bool,
}

impl Weights<'_> {
    pub fn inspect(self, tensor: Option<&str>) -> Result<()> {
        // A file without a table is listed, too. A tensor that --tensor names must exist.
        let (table, why) = match PretrainedTable::open(self.model, tensor) {
            Ok(table) => (Some(table), String::new()),
            Err(error) if tensor.is_some() => return Err(error.into()),
            Err(error) => (None, in_flags(&error.to_string())),
        };
        let tokenizer = match &table {
            // A tokenizer beside the model that does not fit its table is left out.
            Some(table) if self.tokenizer.tokenizer.is_none() => {
                self.tokenizer.of_model(self.model, table).unwrap_or(None)
            }
            Some(table) => self.tokenizer.of_model(self.model, table)?,
            None => self.tokenizer.chosen()?,
        };
        let mut tensors = Vec::new();
        for file in self.files {
            tensors.extend(list_tensors(file)?);
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let statistics = table.as_ref().map(PretrainedTable::statistics).transpose()?;
        let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
        if self.json {
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
            let mut report = json!({"tensors": tensors, "table": table});
            if let Some((folder, state)) = &self.checkpoint {
                report["checkpoint"] = json!({"folder": folder.display().to_string(), "state": state});
            }
            return Ok(writeln!(out, "{report}")?);
        }
        if let Some((folder, state)) = &self.checkpoint {
            print_state(&mut out, state, folder)?;
        }
        print_tensors(&mut out, &tensors)?;
        match (table, statistics) {
            (Some(table), Some(statistics)) => self.print_table(&mut out, &table, &statistics, tokenizer.as_ref()),
            _ => Ok(writeln!(out, "\nno table: {}", plain(why))?),
        }
    }
}

fn print_state(out: &mut impl Write, state: &Checkpoint, folder: &Path) -> Result<()> {
    writeln!(out, "checkpoint step {}, seed {}: {}", state.step, state.seed, plain(folder.display()))?;
    let tokenizer = state.tokenizer.map_or("unknown".to_string(), |fingerprint| format!("{fingerprint:016x}"));
    writeln!(out, "tokenizer  {tokenizer}")?;
    match &state.loader {
        Some(loader) => writeln!(
            out,
            "loader     {} of {} tokens given out, epoch {}, of dataset {}",
            plural(loader.samples, "sample"),
            loader.context_length,
            loader.epoch,
            plain(&loader.dataset)
        )?,
        None => writeln!(out, "loader     none")?,
    }
    Ok(writeln!(out)?)
}

fn print_tensors(out: &mut impl Write, tensors: &[TensorInfo]) -> Result<()> {
    let columns = [("tensor", Align::Left), ("shape", Align::Right), ("dtype", Align::Left)]
        .map(|(name, align)| Column::new(name, align));
    let row = |tensor: &TensorInfo| {
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        [plain(&tensor.name), shape.join(" x "), plain(&tensor.dtype)].map(Cell::plain).to_vec()
    };
    write_grid(out, &columns, &tensors.iter().take(LISTED).map(row).collect::<Vec<_>>())?;
    if tensors.len() > LISTED {
        writeln!(out, "… and {} more", tensors.len() - LISTED)?;
    }
    Ok(())
}

impl Weights<'_> {
    fn print_table(
        &self,
        out: &mut impl Write,
        table: &PretrainedTable,
        statistics: &RowStatistics,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<()> {
        let top = self.top;
        let name = |id: u32| tokenizer.and_then(|tokenizer| token(tokenizer, id as usize));
        let head =
            if table.tied() { "tied: the model has no head of its own" } else { "the model has a head of its own" };
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
            let shown: Vec<String> = rows
                .iter()
                .take(top)
                .map(|id| name(*id).map_or(id.to_string(), |token| format!("{id} {token}")))
                .collect();
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
}
