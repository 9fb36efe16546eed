//! `tallow pull`: writes the table of a model to a file, without its other tensors.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tallow::PretrainedTable;

use crate::io::{Kind, Outputs};
use crate::model;
use crate::plain::plain;

#[derive(Args)]
pub struct Pull {
    #[arg(help = model::MODEL)]
    model: PathBuf,
    /// A branch, tag or commit of a repository [default: main]
    #[arg(long, hide = !cfg!(feature = "hub"))]
    revision: Option<String>,
    /// The name of the tensor [default: found by the names that tables have]
    #[arg(long)]
    tensor: Option<String>,
    /// Which rows to write: numbers and ranges, such as 0..3,999..1002; the end is excluded [default: all]
    #[arg(long)]
    rows: Option<String>,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    outputs: Outputs,
    /// Ask the Hub for the newest commit of the branch, even if the table is in the cache
    #[arg(long, hide = !cfg!(feature = "hub"))]
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    refresh: bool,
}

impl Pull {
    pub fn run(mut self) -> Result<()> {
        let table = self.open()?;
        let ranges = match &self.rows {
            Some(rows) => crate::rows::ranges(rows, table.vocab_size())?,
            None => Vec::new(),
        };
        self.outputs.reads(model::files(&self.model, &table));
        self.outputs.write_by_name(&self.out, Kind::Rows, |path| {
            table.save(path, &ranges)?;
            Ok(vec![path.to_path_buf()])
        })?;
        let rows = if ranges.is_empty() { table.vocab_size() } else { ranges.iter().map(|range| range.len()).sum() };
        let (out, name, dtype) = (plain(self.out.display()), plain(table.name()), table.dtype().as_str());
        Ok(writeln!(std::io::stdout(), "{out}: {rows} rows x {} columns of {name}, {dtype}", table.d_model())?)
    }

    /// As [`model::open`], with a revision and a progress bar.
    fn open(&self) -> Result<PretrainedTable> {
        match self.model.to_str().filter(|_| model::is_repository(&self.model)) {
            Some(repository) => self.open_repository(repository),
            None => model::open(&self.model, self.tensor.as_deref()),
        }
    }

    #[cfg(feature = "hub")]
    fn open_repository(&self, repository: &str) -> Result<PretrainedTable> {
        let hub = tallow::hub::Hub { refresh: self.refresh, ..tallow::hub::Hub::from_env() };
        let bar = crate::progress::bar(0);
        let hear = crate::progress::hear(&bar);
        let table = PretrainedTable::pull(&hub, repository, self.revision.as_deref(), self.tensor.as_deref(), &hear);
        bar.finish_and_clear();
        Ok(table?)
    }

    #[cfg(not(feature = "hub"))]
    fn open_repository(&self, repository: &str) -> Result<PretrainedTable> {
        Ok(PretrainedTable::from_pretrained(repository, self.revision.as_deref(), self.tensor.as_deref())?)
    }
}
