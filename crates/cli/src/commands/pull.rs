//! `tallow pull`: the table of a model, and nothing else of it.

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
    /// Which tensor is the table [default: the one that has a name that tables have]
    #[arg(long)]
    tensor: Option<String>,
    /// Which rows: ranges like 0..3,999..1002, the end not included [default: all]
    #[arg(long)]
    rows: Option<String>,
    /// Where the rows go: a safetensors file
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    outputs: Outputs,
    /// Ask the Hub whether the branch has moved, even if the cache has the table
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

    /// A file or folder here; anything else is looked for on the Hub.
    fn open(&self) -> Result<PretrainedTable> {
        match self.model.to_str() {
            Some(repository) if !self.model.exists() => self.open_repository(repository),
            _ => Ok(PretrainedTable::open(&self.model, self.tensor.as_deref())?),
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
