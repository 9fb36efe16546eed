//! `tallow table`: rows of a new look-up table.

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;

use crate::grid::{Align, Cell, Column, write_grid};
use anyhow::Result;
use candle_core::DType;
use clap::Args;
use serde::Serialize;
use tallow_view::shown_columns;

use crate::args::{TableArgs, TokenizerArgs, describe};
use crate::io::Outputs;
use crate::plain::plain;
use crate::rows::{ranges, token};

#[derive(Args)]
pub struct Table {
    /// Which rows to print: numbers and ranges, such as 0..3,999..1002; the end is excluded
    ///
    /// [default: the first three, 999..1002, and the last two]
    #[arg(long)]
    rows: Option<String>,
    /// How many rows the table has [default: the tokenizer's ordinary tokens]
    #[arg(long)]
    vocab_size: Option<usize>,
    #[command(flatten)]
    table: TableArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    /// Also write the whole table to this safetensors file, as "wte.weight": the initial table of a model with this seed
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    vocab_size: usize,
    d_model: usize,
    seed: u64,
    init: String,
    dtype: &'static str,
    device: String,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    row: usize,
    token: Option<String>,
    values: Vec<f32>,
}

impl Table {
    pub fn run(mut self) -> Result<()> {
        let tokenizer = self.tokenizer.open()?;
        let rows = self.vocab_size.unwrap_or(tokenizer.ordinary_vocab_size());
        let table = self.table.open(rows, &tokenizer)?;
        let ranges = self.ranges(table.vocab_size())?;
        if let Some(path) = &self.out {
            self.outputs.reads(self.tokenizer.files());
            crate::rows::save(
                &self.outputs,
                path,
                &[("wte.weight", table.flushed_weight()?)],
                &tokenizer,
                Some(&self.table),
            )?;
        }
        let mut rows = Vec::new();
        for range in &ranges {
            let values =
                table.flushed_weight()?.narrow(0, range.start, range.len())?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let row = |(row, values)| Row { row, token: token(&tokenizer, row), values };
            rows.extend(range.clone().zip(values).map(row));
        }
        let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
        if self.json {
            let report = Report {
                vocab_size: table.vocab_size(),
                d_model: table.d_model(),
                seed: self.table.seed,
                init: self.table.init.to_string(),
                dtype: table.flushed_weight()?.dtype().as_str(),
                device: crate::args::device_name(table.flushed_weight()?.device()),
                rows,
            };
            serde_json::to_writer(&mut out, &report)?;
            writeln!(out)?;
            return Ok(());
        }
        writeln!(out, "embedding look-up table: {}", describe(&table, &self.table.origin())?)?;
        writeln!(out, "vocab_size = {} rows, d_model = {} columns\n", table.vocab_size(), table.d_model())?;
        let shown = shown_columns(table.d_model(), 3);
        let mut columns = vec![Column::new("row", Align::Right), Column::new("token", Align::Left)];
        columns.extend(shown.iter().map(|c| Column::new(c.map_or("…".to_string(), |c| c.to_string()), Align::Right)));
        let gap = || columns.iter().map(|_| Cell::plain("…")).collect::<Vec<_>>();
        let mut lines = Vec::new();
        let mut next = 0;
        for Row { row, token, values } in rows {
            if row != next {
                lines.push(gap());
            }
            next = row + 1;
            let mut line = vec![Cell::plain(row.to_string()), Cell::plain(token.unwrap_or_default())];
            line.extend(shown.iter().map(|c| c.map_or(Cell::plain("…"), |c| Cell::number(values[c]))));
            lines.push(line);
        }
        if next != table.vocab_size() {
            lines.push(gap());
        }
        write_grid(&mut out, &columns, &lines)?;
        if let Some(path) = &self.out {
            writeln!(out, "\nwritten    {}", plain(path.display()))?;
        }
        Ok(())
    }

    fn ranges(&self, vocab_size: usize) -> Result<Vec<Range<usize>>> {
        let Some(rows) = &self.rows else {
            let ends = [0..vocab_size.min(3), 999..1002, vocab_size.saturating_sub(2).max(3)..vocab_size];
            return Ok(ends.into_iter().filter(|range| range.start < range.end && range.end <= vocab_size).collect());
        };
        ranges(rows, vocab_size)
    }
}
