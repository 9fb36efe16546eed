//! `tallow decode`: ids → text.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::encode::IdFormat;
use crate::args::TokenizerArgs;
use crate::io::{Kind, Outputs, reader, source};
use tallow::TextError;

/// Ids decoded at a time.
const CHUNK_IDS: usize = 1 << 16;

#[derive(Args)]
pub struct Decode {
    /// The ids: a file, or - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Format of the ids: text may have commas, too; a json array is read into memory
    #[arg(long, value_enum, default_value = "text")]
    format: IdFormat,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

impl Decode {
    pub fn run(mut self) -> Result<()> {
        let tokenizer = self.tokenizer.open()?;
        let mut reader = BufReader::with_capacity(1 << 16, reader(&self.file)?);
        self.outputs.reads(self.tokenizer.files().chain([self.file.clone()]));
        let mut out = self.outputs.open(self.out.as_deref(), Kind::Bytes)?;
        let mut ids = Vec::new();
        let mut done = 0;
        loop {
            let more = match self.format {
                IdFormat::U32 => self.read_raw(&mut reader, &mut ids)?,
                IdFormat::Json => {
                    ids = serde_json::from_reader(&mut reader)
                        .with_context(|| format!("{}: not a JSON array of ids", source(&self.file)))?;
                    false
                }
                IdFormat::Text => self.read_number(&mut reader, &mut ids, done)?,
            };
            // If the vocabulary is not byte-level, the text of an id can depend on its neighbors: all ids are decoded at once.
            if !more || (ids.len() >= CHUNK_IDS && tokenizer.is_byte_level()) {
                let bytes = tokenizer.decode_bytes(&ids).map_err(|error| match error {
                    TextError::UnknownId { id, position, tokenizer, largest } => {
                        TextError::UnknownId { id, position: position + done, tokenizer, largest }
                    }
                    other => other,
                });
                out.write_all(&bytes.map_err(|error| anyhow::anyhow!("{}: {error}", source(&self.file)))?)?;
                done += ids.len();
                ids.clear();
            }
            if !more {
                return out.finish();
            }
        }
    }

    /// Reads a few raw ids; `false` at the end.
    fn read_raw(&self, reader: &mut impl BufRead, ids: &mut Vec<u32>) -> Result<bool> {
        let mut bytes = Vec::with_capacity(1 << 16);
        std::io::Read::read_to_end(&mut std::io::Read::take(reader, 1 << 16), &mut bytes)?;
        let (whole, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            bail!("{}: ends inside an id: not a whole number of 32-bit ids", source(&self.file));
        }
        ids.extend(whole.iter().map(|id| u32::from_le_bytes(*id)));
        Ok(!bytes.is_empty())
    }

    /// Reads one number; `false` at the end.
    fn read_number(&self, reader: &mut impl BufRead, ids: &mut Vec<u32>, done: usize) -> Result<bool> {
        let separates = |byte: u8| byte.is_ascii_whitespace() || byte == b',';
        let mut word = Vec::new();
        loop {
            let buffer = reader.fill_buf()?;
            let Some(byte) = buffer.first().copied() else { break };
            reader.consume(1);
            match separates(byte) {
                false if word.len() < 64 => word.push(byte),
                false => break,
                true if !word.is_empty() => break,
                true => (),
            }
        }
        if word.is_empty() {
            return Ok(false);
        }
        let word = String::from_utf8_lossy(&word);
        let Some(id) = word.parse().ok().filter(|_| word.bytes().all(|byte| byte.is_ascii_digit())) else {
            bail!("{}: {word:?} at position {} is not an id", source(&self.file), done + ids.len());
        };
        ids.push(id);
        Ok(true)
    }
}
