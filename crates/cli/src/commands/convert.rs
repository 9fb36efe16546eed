//! `tallow convert`: token files of other trainers to a folder of shards, and back.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::PossibleValue;
use tallow::shard::{Foreign, ForeignFile, IdType, Manifest, TokenizerInfo, export, import};

use crate::args::{TokenizerArgs, by_name, tokenizer_help};
use crate::interrupt;
use crate::io::{Kind, Outputs};
use crate::plain::plain;
use crate::shards::{describe, split_of};
use tallow_text::support::lies_in;

#[derive(Args)]
#[command(mut_arg("tokenizer", |arg| arg.help(tokenizer_help("(with --from)"))))]
pub struct Convert {
    /// Token files to read (with --from), or a folder of shards (with --to)
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Format of the files that are read
    #[arg(long, conflicts_with = "to", value_parser = by_name::<Foreign>(formats()))]
    from: Option<Foreign>,
    /// Format of the file that is written
    #[arg(long, value_parser = by_name::<Foreign>(formats()))]
    to: Option<Foreign>,
    /// The folder of shards (with --from) or the token file (with --to) to write; a split that exists is never replaced
    #[arg(short, long)]
    out: PathBuf,
    /// The split that is written (with --from) or read (with --to)
    #[arg(long, default_value = "train")]
    split: String,
    /// Type of the ids in the token file [default: u16 for a table of at most 65536 rows, else u32]
    #[arg(long = "dtype", value_name = "DTYPE", value_parser = by_name::<IdType>(["u16", "u32"]))]
    id_type: Option<IdType>,
    /// The id that separates documents in the token files (with --from)
    #[arg(long, value_name = "ID")]
    separator: Option<u32>,
    /// How many rows the table of these ids has, if the tokenizer is not known (with --from)
    #[arg(long)]
    vocab_size: Option<usize>,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

fn formats() -> [PossibleValue; 5] {
    [
        PossibleValue::new("nanogpt").help("nanoGPT: raw ids"),
        PossibleValue::new("llama2c").help("llama2.c: raw u16"),
        PossibleValue::new("llmc").help("llm.c: a header and u16 or u32"),
        PossibleValue::new("olmo").help("OLMo-core: raw ids in a file named .npy"),
        PossibleValue::new("datatrove").help("datatrove: .ds with .ds.index"),
    ]
}

impl Convert {
    pub fn run(mut self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if let Some(format) = self.to {
            let [folder] = self.inputs.as_slice() else { bail!("--to reads one folder of shards: give one") };
            let manifest = Manifest::read(folder)?;
            split_of(&manifest, &self.split, folder)?;
            let fits = match format {
                Foreign::Llama2C => IdType::U16,
                _ => manifest.id_type,
            };
            self.outputs.reads([folder.clone()]);
            self.outputs.seal(folder);
            let export = |path: &Path| Ok(export(folder, &self.split, format, self.id_type.unwrap_or(fits), path)?);
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
        let (table_rows, tokenizer) = match (self.vocab_size, &self.tokenizer.tokenizer) {
            (Some(rows), None) => (rows, None),
            (rows, Some(_)) => {
                let tokenizer = self.tokenizer.open()?;
                let info = TokenizerInfo::new(tokenizer.name(), tokenizer.fingerprint());
                (rows.unwrap_or(tokenizer.vocab_size()), Some(info))
            }
            (None, None) => {
                bail!("give the tokenizer of these ids (--tokenizer FILE or cl100k), or only --vocab-size N")
            }
        };
        let about = ForeignFile {
            format,
            id_type: self.id_type.unwrap_or(IdType::for_rows(table_rows)),
            separator: self.separator,
            table_rows,
            tokenizer,
        };
        let folder = self.out.join(&self.split);
        if let Some(input) = self.inputs.iter().find(|input| lies_in(input, &folder)) {
            bail!("{} is in the folder that is written: give another --out", input.display());
        }
        interrupt::temporaries_in(self.out.clone());
        interrupt::temporaries_in(folder);
        let manifest = import(&self.inputs, &about, &self.split, &self.out)?;
        describe(&mut out, &manifest)?;
        if manifest.separator.is_none() && about.format != Foreign::Datatrove {
            writeln!(out, "note       each file is one document: give --separator ID to split it into documents")?;
        }
        Ok(())
    }
}
