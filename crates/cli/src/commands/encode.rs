//! `tallow encode`: text → ids.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::args::{SpecialsArgs, TokenizerArgs};
use crate::io::{Kind, Outputs, reader, source};

#[derive(Args)]
pub struct Encode {
    /// The text: a file, or - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Format of the ids
    #[arg(long, value_enum, default_value = "text")]
    format: IdFormat,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print only the number of ids
    #[arg(long)]
    count: bool,
    /// Read bytes that are not UTF-8 as U+FFFD
    #[arg(long)]
    lossy: bool,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    #[command(flatten)]
    specials: SpecialsArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IdFormat {
    /// Decimal numbers with spaces between them
    Text,
    /// A JSON array
    Json,
    /// Raw 32-bit numbers, little-endian
    U32,
}

impl Encode {
    pub fn run(mut self) -> Result<()> {
        if self.format == IdFormat::U32 && self.out.is_none() && !self.count && std::io::stdout().is_terminal() {
            bail!("raw u32 ids cannot be printed on a terminal: use -o FILE or a pipe");
        }
        let tokenizer = self.specials.apply(self.tokenizer.open()?);
        let reader = reader(&self.file)?;
        self.outputs.reads(self.tokenizer.files().chain([self.file.clone()]));
        let kind = if self.format == IdFormat::U32 && !self.count { Kind::Bytes } else { Kind::Numbers };
        let mut out = self.outputs.open(self.out.as_deref(), kind)?;
        let mut count = 0u64;
        if self.format == IdFormat::Json && !self.count {
            write!(out, "[")?;
        }
        for ids in tokenizer.encode_reader(reader, self.lossy) {
            let ids = ids.map_err(|error| anyhow::anyhow!("{}: {error}", source(&self.file)))?;
            if !self.count {
                self.write(&mut out, &ids, count == 0)?;
            }
            count += ids.len() as u64;
        }
        match self.format {
            _ if self.count => writeln!(out, "{count}")?,
            IdFormat::Text => writeln!(out)?,
            IdFormat::Json => writeln!(out, "]")?,
            IdFormat::U32 => (),
        }
        out.finish()
    }

    fn write(&self, out: &mut impl Write, ids: &[u32], first: bool) -> std::io::Result<()> {
        let separator = match self.format {
            IdFormat::U32 => return ids.iter().try_for_each(|id| out.write_all(&id.to_le_bytes())),
            IdFormat::Text => " ",
            IdFormat::Json => ",",
        };
        for (i, id) in ids.iter().enumerate() {
            let separator = if first && i == 0 { "" } else { separator };
            write!(out, "{separator}{id}")?;
        }
        Ok(())
    }
}
