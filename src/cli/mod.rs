//! The command line: flags → calls of the library. No logic of its own.

mod closed;
mod convert;
mod decode;
mod encode;
mod inspect;
mod interrupt;
mod io;
mod model;
mod neighbors;
mod pictures;
mod plain;
mod plot;
mod prepare;
mod progress;
mod pull;
mod show;
mod table;
mod verify;
mod weights;

use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tallow::{Init, PretrainedTable, Specials, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

pub use closed::stdout_was_closed;
pub use plain::say;

/// Text becomes ids, ids become rows of a table: the front layer of a GPT.
#[derive(Parser)]
#[command(name = "tallow", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a text become pieces, ids, and a matrix
    Show(Box<show::Show>),
    /// Show rows of the look-up table
    Table(table::Table),
    /// Turn text into ids
    Encode(encode::Encode),
    /// Turn ids back into text
    Decode(decode::Decode),
    /// Turn text files into shards of ids for training
    Prepare(Box<prepare::Prepare>),
    /// Say what is in a folder of shards, a checkpoint, a model or a file of weights
    Inspect(inspect::Inspect),
    /// Find the tokens whose rows are nearest to a token's
    Neighbors(neighbors::Neighbors),
    /// Draw a table, before and after training, or a folder of shards
    Plot(Box<plot::Plot>),
    /// Fetch the table of a model, and nothing else of it
    Pull(pull::Pull),
    /// Recount and checksum a folder of shards
    Verify(verify::Verify),
    /// Read token files of other trainers, or write them
    Convert(convert::Convert),
}

impl Cli {
    /// Does what the flags say.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Show(args) => args.run(),
            Command::Table(args) => args.run(),
            Command::Encode(args) => args.run(),
            Command::Decode(args) => args.run(),
            Command::Prepare(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Neighbors(args) => args.run(),
            Command::Plot(args) => args.run(),
            Command::Pull(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Convert(args) => args.run(),
        }
    }
}

/// For --help: what a tokenizer can be.
const TOKENIZER: &str = match cfg!(feature = "hub") {
    true => {
        "A tokenizer.json or .tiktoken file, a folder with one, a repository on the Hub, or cl100k [default: the model's own \
         where there is a model, else the bundled cl100k]"
    }
    false => {
        "A tokenizer.json or .tiktoken file, a folder with one, or cl100k [default: the model's own where there is a model, else the \
         bundled cl100k]"
    }
};

/// Which tokenizer.
#[derive(Args)]
struct TokenizerArgs {
    #[arg(long, value_name = "FILE", help = TOKENIZER)]
    tokenizer: Option<PathBuf>,
}

/// What it does with special tokens.
#[derive(Args)]
struct SpecialsArgs {
    /// What text that spells a special token (<|endoftext|>) is
    #[arg(long, value_enum, default_value = "text")]
    specials: SpecialsArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum SpecialsArg {
    /// Ordinary text
    Text,
    /// An error
    Forbid,
    /// The special token
    Allow,
}

impl SpecialsArgs {
    fn apply(&self, tokenizer: Tokenizer) -> Tokenizer {
        tokenizer.with_specials(match self.specials {
            SpecialsArg::Text => Specials::Text,
            SpecialsArg::Forbid => Specials::Forbid,
            SpecialsArg::Allow => Specials::Allow,
        })
    }

    /// Rows that a table for these ids has.
    fn rows(&self, tokenizer: &Tokenizer) -> usize {
        match self.specials {
            SpecialsArg::Allow => tokenizer.table_rows(),
            _ => tokenizer.table_rows_ordinary(),
        }
    }
}

impl TokenizerArgs {
    /// The tokenizer, if one was chosen: another model's ids are not the bundled one's.
    fn chosen(&self) -> Result<Option<Tokenizer>> {
        self.tokenizer.is_some().then(|| self.open()).transpose()
    }

    /// The one that was chosen, or the model's own: beside its file, or in its repository. It must fit the model's table.
    fn of_model(&self, model: &Path, table: &PretrainedTable) -> Result<Option<Tokenizer>> {
        let beside = model::folder(model).join("tokenizer.json");
        let found = match (self.chosen()?, model.to_str().filter(|_| model::is_repository(model))) {
            (Some(chosen), _) => Some(chosen),
            (None, Some(repository)) => Some(Tokenizer::from_pretrained(repository, None)?),
            (None, None) if beside.is_file() => Some(Tokenizer::from_file(beside)?),
            (None, None) => None,
        };
        found.iter().try_for_each(|tokenizer| model::fits(tokenizer, table))?;
        Ok(found)
    }

    fn open(&self) -> Result<Tokenizer> {
        match &self.tokenizer {
            None => Ok(Tokenizer::cl100k()),
            Some(path) if path.as_os_str() == "cl100k" && !path.exists() => Ok(Tokenizer::cl100k()),
            Some(path) => match path.to_str().filter(|_| path.is_dir() || model::is_repository(path)) {
                Some(name) => Ok(Tokenizer::from_pretrained(name, None)?),
                None => Ok(Tokenizer::from_file(path)?),
            },
        }
    }

    /// The file that is read, if one was named.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.tokenizer.iter().map(|path| if path.is_dir() { path.join("tokenizer.json") } else { path.clone() })
    }
}

/// Which table.
#[derive(Args)]
struct TableArgs {
    /// Columns of the table
    #[arg(long, default_value_t = 64)]
    d_model: usize,
    /// What its values are drawn from
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// How they are drawn: gpt2, candle, keras, fan-in, normal:STD, uniform:LOW:HIGH or constant:VALUE
    #[arg(long, default_value = "gpt2")]
    init: Init,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
    #[cfg_attr(feature = "cuda", doc = "auto, cpu, cuda or cuda:N")]
    #[cfg_attr(feature = "metal", doc = "auto, cpu, metal or metal:N")]
    #[cfg_attr(
        not(any(feature = "cuda", feature = "metal")),
        doc = "cpu, or auto, which is cpu in a build without GPUs"
    )]
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Give memory of a GPU back to the system whenever it is not in use: slower, and leaves it to other processes
    #[arg(long)]
    release_memory: bool,
}

fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err("use f32, bf16 or f16".to_string()),
    }
}

impl TableArgs {
    fn device(&self) -> Result<Device> {
        let device = tallow::device::open(&self.device, |reason| say(format!("warning: {reason}")))?;
        if self.release_memory {
            tallow::device::keep_memory(&device, false)?;
        }
        Ok(device)
    }

    /// The table with so many rows.
    fn open(&self, rows: usize, tokenizer: &Tokenizer) -> Result<TokenEmbedding> {
        let device = self.device()?;
        let cfg = TokenEmbeddingConfig {
            vocab_size: rows,
            d_model: self.d_model,
            init: self.init,
            seed: self.seed,
            ..Default::default()
        };
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, self.dtype, &device);
        Ok(TokenEmbedding::new(&cfg, vb.pp("wte"))?.with_token_names(tokenizer.names()))
    }

    /// What the values were drawn from.
    fn origin(&self) -> String {
        format!("{}, seed {}", self.init, self.seed)
    }
}

/// One line about a table whose values have this origin.
fn describe(table: &TokenEmbedding, origin: &str) -> String {
    let (rows, columns) = (table.vocab_size(), table.d_model());
    let mib = (rows * columns * table.dtype().size_in_bytes()) as f64 / f64::from(1 << 20);
    let (dtype, device) = (table.dtype().as_str(), device_name(table.device()));
    format!("{rows} rows x {columns} columns, {dtype} on {device}, {origin}, {mib:.1} MiB")
}

fn device_name(device: &candle_core::Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_string(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}
