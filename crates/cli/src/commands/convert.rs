//! `tallow convert`: token files of other trainers ⇄ a folder of shards.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use tallow::shard::{Foreign, ForeignFile, IdType, Manifest, TokenizerInfo, export, import};

use crate::args::TokenizerArgs;
use crate::interrupt;
use crate::io::{Kind, Outputs};
use crate::plain::plain;
use crate::shards::describe;
use tallow_text::support::lies_in;

#[derive(Args)]
pub struct Convert {
    /// Token files to read (with --from), or a folder of shards (with --to)
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Format of the files that are read
    #[arg(long, value_enum, conflicts_with = "to")]
    from: Option<ForeignArg>,
    /// Format of the file that is written
    #[arg(long, value_enum)]
    to: Option<ForeignArg>,
    /// The folder (with --from) or file (with --to) that is written
    #[arg(short, long)]
    out: PathBuf,
    /// Which split of the folder
    #[arg(long, default_value = "train")]
    split: String,
    /// How ids are stored in the foreign file [default: u16 where the table has at most 65536 rows, else u32]
    #[arg(long, value_enum)]
    dtype: Option<DTypeArg>,
    /// The id that separates documents in files that are read
    #[arg(long, value_name = "ID")]
    separator: Option<u32>,
    /// Rows of the table that the ids belong to, where the tokenizer is not known
    #[arg(long)]
    rows: Option<usize>,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum ForeignArg {
    /// nanoGPT: raw ids
    Nanogpt,
    /// llama2.c: raw u16
    #[value(name = "llama2c")]
    Llama2C,
    /// llm.c: a header and u16 or u32
    #[value(name = "llmc")]
    LlmC,
    /// OLMo-core: raw ids in a file named .npy
    Olmo,
    /// datatrove: .ds with .ds.index
    Datatrove,
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeArg {
    U16,
    U32,
}

impl Convert {
    pub fn run(mut self) -> Result<()> {
        let foreign = |arg| match arg {
            ForeignArg::Nanogpt => Foreign::NanoGpt,
            ForeignArg::Llama2C => Foreign::Llama2C,
            ForeignArg::LlmC => Foreign::LlmC,
            ForeignArg::Olmo => Foreign::Olmo,
            ForeignArg::Datatrove => Foreign::Datatrove,
        };
        let dtype = self.dtype.map(|dtype| match dtype {
            DTypeArg::U16 => IdType::U16,
            DTypeArg::U32 => IdType::U32,
        });
        let mut out = std::io::stdout().lock();
        if let Some(format) = self.to {
            let [folder] = self.inputs.as_slice() else { bail!("--to writes one folder of shards: give one") };
            let format = foreign(format);
            let manifest = Manifest::read(folder)?;
            let fits = match format {
                Foreign::Llama2C => IdType::U16,
                _ => manifest.id_type,
            };
            self.outputs.reads([folder.clone()]);
            self.outputs.seal(folder);
            let export = |path: &Path| Ok(export(folder, &self.split, format, dtype.unwrap_or(fits), path)?);
            let files = self.outputs.write_by_name(&self.out, Kind::Bytes, export)?;
            for file in files {
                let bytes = std::fs::metadata(&file).map(|about| about.len()).unwrap_or(0);
                writeln!(out, "written    {} ({})", plain(file.display()), crate::progress::bytes(bytes))?;
            }
            return Ok(());
        }
        let Some(format) = self.from else {
            bail!("give --from FORMAT (token files -> shards) or --to FORMAT (shards -> a token file)")
        };
        let (table_rows, tokenizer) = match (self.rows, &self.tokenizer.tokenizer) {
            (Some(rows), None) => (rows, None),
            (rows, Some(_)) => {
                let tokenizer = self.tokenizer.open()?;
                let info = TokenizerInfo::new(tokenizer.name(), tokenizer.fingerprint());
                (rows.unwrap_or(tokenizer.vocab_size()), Some(info))
            }
            (None, None) => bail!("whose ids are these? Give --tokenizer FILE (or cl100k), or only --rows N"),
        };
        let about = ForeignFile {
            format: foreign(format),
            id_type: dtype.unwrap_or(IdType::for_rows(table_rows)),
            separator: self.separator,
            table_rows,
            tokenizer,
        };
        let folder = self.out.join(&self.split);
        if let Some(input) = self.inputs.iter().find(|input| lies_in(input, &folder)) {
            bail!("{} lies in the folder that is written: give another --out", input.display());
        }
        interrupt::temporaries_in(self.out.clone());
        interrupt::temporaries_in(folder);
        let manifest = import(&self.inputs, &about, &self.split, &self.out)?;
        describe(&mut out, &manifest)?;
        if manifest.separator.is_none() && about.format != Foreign::Datatrove {
            writeln!(out, "note       each file is one document: --separator ID tells them apart")?;
        }
        Ok(())
    }
}
