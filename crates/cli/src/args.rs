//! Flags that several commands share.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tallow::{Init, PretrainedTable, Specials, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

use crate::flags::in_flags;
use crate::model;
use crate::plain::say;

/// The help of --tokenizer, without its default.
const TOKENIZER: &str = match cfg!(feature = "hub") {
    true => {
        "A tokenizer.json or .tiktoken file, a folder with one, a repository on the Hub (owner/name), or cl100k, o200k or gpt2"
    }
    false => {
        "A tokenizer.json or .tiktoken file, a folder with one, or cl100k, o200k or gpt2 (a repository on the Hub needs a build \
         with --features hub)"
    }
};

/// The default of --tokenizer in commands that read a model or shards.
pub const MODEL_OR_SHARDS: &str = "[default: the tokenizer.json beside the model, if there is one; cl100k for shards]";

/// The help of --tokenizer. `default` is its end.
pub fn tokenizer_help(default: &str) -> String {
    format!("{TOKENIZER} {default}")
}

/// Which tokenizer.
#[derive(Args)]
pub struct TokenizerArgs {
    #[arg(long, value_name = "FILE", help = tokenizer_help("[default: cl100k]"))]
    pub tokenizer: Option<PathBuf>,
}

/// How text that spells a special token is encoded.
#[derive(Args)]
pub struct SpecialsArgs {
    /// How to encode text that spells a special token, such as <|endoftext|>
    #[arg(long, default_value = "text", value_parser = by_name::<Specials>(specials()))]
    pub specials: Specials,
}

fn specials() -> [PossibleValue; 3] {
    [
        PossibleValue::new("text").help("As ordinary text"),
        PossibleValue::new("forbid").help("Stop with an error"),
        PossibleValue::new("allow").help("As the special token"),
    ]
}

/// Parses a value by its name in the library. --help lists `names`.
pub fn by_name<T>(names: impl IntoIterator<Item = impl Into<PossibleValue>>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

impl SpecialsArgs {
    pub fn apply(&self, tokenizer: Tokenizer) -> Tokenizer {
        tokenizer.with_specials(self.specials)
    }

    /// How many rows a table for these ids needs.
    pub fn rows(&self, tokenizer: &Tokenizer) -> usize {
        match self.specials {
            Specials::Allow => tokenizer.vocab_size(),
            _ => tokenizer.ordinary_vocab_size(),
        }
    }
}

impl TokenizerArgs {
    /// The tokenizer of --tokenizer. It has no default here, because ids of a model are those of its own tokenizer.
    pub fn chosen(&self) -> Result<Option<Tokenizer>> {
        self.tokenizer.is_some().then(|| self.open()).transpose()
    }

    /// The tokenizer of --tokenizer, or else the model's own: `tokenizer.json` beside its file, or the one of its repository. It is an
    /// error if the tokenizer does not fit the table.
    pub fn of_model(&self, model: &Path, table: &PretrainedTable) -> Result<Option<Tokenizer>> {
        let beside = model::folder(model).join("tokenizer.json");
        let found = match (self.chosen()?, model.to_str().filter(|_| model::is_repository(model))) {
            (Some(chosen), _) => Some(chosen),
            (None, Some(repository)) => Some(Tokenizer::from_pretrained(repository, None)?),
            (None, None) if beside.is_file() => Some(Tokenizer::from_file(beside)?),
            (None, None) => None,
        };
        found.iter().try_for_each(|tokenizer| table.check_tokenizer(tokenizer))?;
        Ok(found)
    }

    pub fn open(&self) -> Result<Tokenizer> {
        let Some(path) = &self.tokenizer else { return Ok(Tokenizer::cl100k()) };
        match path.to_str().filter(|_| !path.exists()).and_then(Tokenizer::bundled) {
            Some(bundled) => Ok(bundled),
            None => match path.to_str().filter(|_| path.is_dir() || model::is_repository(path)) {
                Some(name) => Ok(Tokenizer::from_pretrained(name, None)?),
                None => {
                    let advice = "; --tokenizer takes cl100k, o200k, gpt2, a file, a folder with one, or a repository on the Hub \
                                  (owner/name)";
                    model::must_exist(path, advice)?;
                    Ok(Tokenizer::from_file(path)?)
                }
            },
        }
    }

    /// The file of --tokenizer, if it is given.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.tokenizer.iter().map(|path| if path.is_dir() { path.join("tokenizer.json") } else { path.clone() })
    }
}

/// Shape, values and device of a new table.
#[derive(Args)]
pub struct TableArgs {
    /// How many columns the table has
    #[arg(long, default_value_t = 64)]
    pub d_model: usize,
    /// Seed of the random values
    #[arg(long, default_value_t = 1337)]
    pub seed: u64,
    /// Distribution of the values: gpt2, candle (or torch), keras, fan-in, normal:STD, uniform:LOW:HIGH or constant:VALUE
    #[arg(long, default_value = "gpt2")]
    pub init: Init,
    /// Type of the values: f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: DType,
    #[cfg_attr(feature = "cuda", doc = "Device of the table: auto, cpu, cuda or cuda:N")]
    #[cfg_attr(feature = "metal", doc = "Device of the table: auto, cpu, metal or metal:N")]
    #[cfg_attr(
        not(any(feature = "cuda", feature = "metal")),
        doc = "Device of the table: cpu, or auto, which is cpu in a build without GPUs"
    )]
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Return unused GPU memory to the system, for other processes; slower
    #[arg(long)]
    pub release_memory: bool,
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
    pub fn device(&self) -> Result<Device> {
        let device = tallow::device::open(&self.device, |reason| say(in_flags(&format!("warning: {reason}"))))?;
        if self.release_memory {
            tallow::device::keep_memory(&device, false)?;
        }
        Ok(device)
    }

    /// Makes a table with this many rows.
    pub fn open(&self, rows: usize, tokenizer: &Tokenizer) -> Result<TokenEmbedding> {
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

    /// The distribution and the seed of the values.
    pub fn origin(&self) -> String {
        format!("{}, seed {}", self.init, self.seed)
    }
}

/// One line about a table: shape, dtype, device, origin and size.
pub fn describe(table: &TokenEmbedding, origin: &str) -> tallow::Result<String> {
    let weight = table.flushed_weight()?;
    let (rows, columns) = (table.vocab_size(), table.d_model());
    let mib = (rows * columns * weight.dtype().size_in_bytes()) as f64 / f64::from(1 << 20);
    let (dtype, device) = (weight.dtype().as_str(), device_name(weight.device()));
    Ok(format!("{rows} rows x {columns} columns, {dtype} on {device}, {origin}, {mib:.1} MiB"))
}

pub fn device_name(device: &candle_core::Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_string(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}
