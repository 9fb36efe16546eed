//! `tallow pull`: the table of a model, and nothing else of it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tallow::PretrainedTable;

use super::plain::plain;

#[derive(Args)]
pub struct Pull {
    /// A repository on the Hugging Face Hub (owner/name), or a file or folder here
    repo: String,
    /// A branch, tag or commit [default: main]
    #[arg(long)]
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
    /// Ask the Hub whether the branch has moved, even if the cache has the table
    #[arg(long)]
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    refresh: bool,
}

impl Pull {
    pub fn run(self) -> Result<()> {
        let table = self.open()?;
        let ranges = match &self.rows {
            Some(rows) => super::table::ranges(rows, table.vocab_size())?,
            None => Vec::new(),
        };
        table.save(&self.out, &ranges)?;
        let rows = if ranges.is_empty() { table.vocab_size() } else { ranges.iter().map(|range| range.len()).sum() };
        let (out, name, dtype) = (plain(self.out.display()), plain(table.name()), table.dtype().as_str());
        Ok(writeln!(std::io::stdout(), "{out}: {rows} rows x {} columns of {name}, {dtype}", table.d_model())?)
    }

    #[cfg(feature = "hub")]
    fn open(&self) -> Result<PretrainedTable> {
        if std::path::Path::new(&self.repo).exists() {
            return Ok(PretrainedTable::open(&self.repo, self.tensor.as_deref())?);
        }
        let hub = tallow::hub::Hub { refresh: self.refresh, ..tallow::hub::Hub::from_env() };
        let bar = super::progress::bar(0);
        let hear = |here: u64, all: u64| {
            bar.set_length(all);
            bar.set_position(here);
        };
        let table = tallow::pull(&hub, &self.repo, self.revision.as_deref(), self.tensor.as_deref(), &hear);
        bar.finish_and_clear();
        Ok(table?)
    }

    #[cfg(not(feature = "hub"))]
    fn open(&self) -> Result<PretrainedTable> {
        Ok(PretrainedTable::from_pretrained(&self.repo, self.revision.as_deref(), self.tensor.as_deref())?)
    }
}
