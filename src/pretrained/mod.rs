//! Pretrained tables: finds them in a file or a folder, reads rows, and loads them into a layer.
//!
//! This module has the names of tables in common models. It does not depend on the origin of files.

mod changes;
mod files;
pub(crate) mod find;
mod merge;
mod open;
mod report;
mod tokens;

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::tensors::{Gguf, single_header};
use crate::{Error, Init, Result, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};
use tallow_text::support::files::{folder_of, persist, temporary};
use tallow_text::support::same_file;

pub use changes::{RowChange, RowChanges};
pub use files::weight_files;
#[cfg(feature = "hub")]
pub(crate) use open::Sharded;
pub use report::{RowStatistics, TensorInfo, list_tensors};
pub use tokens::Transplanted;

/// Rows are copied in blocks of about this many values, so there are never two tables in memory.
const BLOCK_VALUES: usize = 1 << 21;

/// A table (V, C) in a weight file. Only the header is read at first. Rows are read on request, so the table may be larger than
/// memory.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{Gradient, PretrainedTable, TokenEmbeddingConfig};
///
/// // A saved model:
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// let rows = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((4, 3))?;
/// candle_core::safetensors::save(&[("transformer.wte.weight", rows)].into(), &path)?;
///
/// let table = PretrainedTable::open(&path, None)?;
/// assert_eq!((table.name(), table.vocab_size(), table.d_model()), ("transformer.wte.weight", 4, 3));
/// assert_eq!(table.rows(&[2, 0])?.to_vec2::<f32>()?, [[6., 7., 8.], [0., 1., 2.]]);
///
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..table.config() };
/// let wte = table.embedding(&cfg, vb.pp("wte"))?;
/// assert_eq!(wte.lookup(&Tensor::new(&[3u32], &Device::Cpu)?)?.to_vec2::<f32>()?, [[9., 10., 11.]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PretrainedTable {
    path: PathBuf,
    name: String,
    shape: (usize, usize),
    dtype: DType,
    tied: bool,
    source: Source,
}

enum Source {
    /// Contiguous rows in the table's dtype, from this byte on. Their end was checked against the file's size.
    Rows(File, u64),
    Gguf(Gguf),
}

impl std::fmt::Debug for PretrainedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PretrainedTable")
            .field("path", &self.path)
            .field("name", &self.name)
            .field("shape", &self.shape)
            .field("dtype", &self.dtype)
            .field("tied", &self.tied)
            .finish_non_exhaustive()
    }
}

impl PretrainedTable {
    /// Finds the table of a model. `path` is a safetensors, GGUF or PyTorch file (recognized by content, not by name), or a folder as
    /// transformers writes it, with or without shards. `tensor` is the table's name, needed only if it is not one of the usual names.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`]: no table, or more than one (the message lists candidates); a truncated or malicious file; a dtype that
    ///   candle does not support; a view in a PyTorch file whose rows are not contiguous.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// Reads the header; in a PyTorch file the pickle, of at most 64 MiB. No code in a pickle is run: objects that are not tensors
    /// are skipped.
    pub fn open(path: impl AsRef<Path>, tensor: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        if fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir() {
            open::folder(path, tensor)
        } else {
            open::file(path, tensor)
        }
    }

    /// Name of the tensor.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that contains it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows of the table, V.
    pub fn vocab_size(&self) -> usize {
        self.shape.0
    }

    /// Columns of the table, C.
    pub fn d_model(&self) -> usize {
        self.shape.1
    }

    /// The dtype of the rows that are read: the file's, or f32 for quantized tables.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether the model has no output weight of its own. Its head is then this table ([`Head::tied`](crate::Head::tied)).
    pub fn tied(&self) -> bool {
        self.tied
    }

    /// The default config with the sizes of this table.
    pub fn config(&self) -> TokenEmbeddingConfig {
        TokenEmbeddingConfig { vocab_size: self.shape.0, d_model: self.shape.1, ..Default::default() }
    }

    /// Reads some rows, in this order, as (rows, C) on the CPU.
    ///
    /// # Errors
    /// - [`Error::IdOutOfRange`]: a row that the table does not have.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// One read of C elements per row.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        if let Some((position, id)) = rows.iter().enumerate().find(|(_, id)| **id as usize >= self.shape.0) {
            let (id, position) = (i64::from(*id), vec![position]);
            return Err(Error::IdOutOfRange { id, position, rows: self.shape.0, token: None });
        }
        if rows.is_empty() {
            return Ok(Tensor::zeros((0, self.shape.1), self.dtype, &Device::Cpu)?);
        }
        let rows = rows.iter().map(|id| self.block(*id as usize..*id as usize + 1)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }

    /// Reads a range of rows, as (rows, C) on the CPU.
    ///
    /// # Errors
    /// - [`Error::Config`]: the range is empty or exceeds the table.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// One read of rows · C elements.
    pub fn block(&self, rows: Range<usize>) -> Result<Tensor> {
        let (count, columns) = self.shape;
        if rows.is_empty() || rows.end > count {
            return Err(Error::Config(format!("the range {rows:?} is empty or exceeds the table of {count} rows")));
        }
        match &self.source {
            Source::Gguf(file) => file.rows(&self.name, rows),
            Source::Rows(file, start) => {
                let row_bytes = (columns * self.dtype.size_in_bytes()) as u64;
                let range = start + rows.start as u64 * row_bytes..start + rows.end as u64 * row_bytes;
                let bytes = crate::tensors::read_at(file, range).map_err(|e| Error::io(&self.path, e))?;
                Ok(Tensor::from_raw_buffer(&bytes, self.dtype, &[rows.len(), columns], &Device::Cpu)?)
            }
        }
    }

    /// Writes ranges of rows (all rows, if `ranges` is empty) to a safetensors file with only this tensor. The file is written
    /// completely or not at all.
    ///
    /// # Errors
    /// - [`Error::Config`]: a range that is empty or exceeds the table; `path` is the file that the rows are read from. Any other
    ///   existing file is replaced.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// One pass, in blocks.
    pub fn save(&self, path: impl AsRef<Path>, ranges: &[Range<usize>]) -> Result<()> {
        let path = path.as_ref();
        let all = 0..self.shape.0;
        let ranges = if ranges.is_empty() { std::slice::from_ref(&all) } else { ranges };
        if let Some(bad) = ranges.iter().find(|range| range.is_empty() || range.end > self.shape.0) {
            return Err(Error::Config(format!(
                "the range {bad:?} is empty or exceeds the table of {} rows",
                self.shape.0
            )));
        }
        if same_file(path, &self.path) {
            let path = path.display();
            return Err(Error::Config(format!("{path} is the file that the rows are read from: name another one")));
        }
        let io = |e| Error::io(path, e);
        let rows: usize = ranges.iter().map(Range::len).sum();
        let bytes = rows * self.shape.1 * self.dtype.size_in_bytes();
        let info = safetensors::tensor::TensorInfo {
            dtype: self.dtype.into(),
            shape: vec![rows, self.shape.1],
            data_offsets: (0, bytes),
        };
        let mut out = std::io::BufWriter::new(temporary(folder_of(path))?);
        out.write_all(&single_header(&self.name, &info, &[("tied", self.tied.to_string())])?).map_err(io)?;
        let step = (BLOCK_VALUES / self.shape.1).max(1);
        for range in ranges {
            for from in range.clone().step_by(step) {
                let block = self.block(from..range.end.min(from + step))?.contiguous()?;
                out.write_all(&safetensors::View::data(&block)).map_err(io)?;
            }
        }
        persist(out, path).map_err(io)
    }

    /// Checks by size whether this can be the table's tokenizer: the table must have a row for every ordinary token, and at most 5 % or
    /// 1024 rows more than the tokenizer has ids. (Models pad their tables: DeepSeek-V2 by 2.4 %, Phi-2 by 905 rows.)
    ///
    /// # Errors
    /// [`Error::Config`] with the numbers, if the sizes do not fit.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        let (rows, ids) = (self.vocab_size(), tokenizer.vocab_size());
        let (least, most) = (tokenizer.ordinary_vocab_size(), ids + (ids / 20).max(1024));
        match (least..=most).contains(&rows) {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "{}: a table of {rows} rows is not {}'s, which needs {least} and can be padded to {most}: take the table's own \
                 tokenizer",
                self.path.display(),
                tokenizer.name()
            ))),
        }
    }

    /// The table in blocks of rows, each with the number of its first row: one pass in bounded memory.
    pub fn blocks(&self) -> impl Iterator<Item = Result<(usize, Tensor)>> {
        let (count, columns) = self.shape;
        let step = (BLOCK_VALUES / columns).max(1);
        (0..count).step_by(step).map(move |from| Ok((from, self.block(from..count.min(from + step))?)))
    }

    /// Makes the variable `weight` of `vb` from this table, in the dtype and on the device of `vb`, and a layer over it. Start with
    /// [`config`](Self::config). If `cfg.vocab_size` is larger than the table, the additional rows are drawn from `cfg.init` and
    /// `cfg.seed`; [`TokenEmbedding::resize`] has better ways to fill rows.
    ///
    /// A weight that the VarBuilder already has (in a resumed run) is used unchanged, as in [`TokenEmbedding::new`].
    ///
    /// # Errors
    /// - [`Error::Config`]: `cfg` has another width or fewer rows than the table.
    /// - those of [`TokenEmbedding::new`] and of reading.
    ///
    /// # Cost
    /// One pass over the table, and a few MiB of memory beside it.
    pub fn embedding(&self, cfg: &TokenEmbeddingConfig, vb: VarBuilder) -> Result<TokenEmbedding> {
        let (rows, columns) = self.shape;
        if cfg.d_model != columns || cfg.vocab_size < rows {
            return Err(Error::Config(format!(
                "{} is {rows} x {columns}, the config says {} x {}: start with `table.config()`",
                self.name, cfg.vocab_size, cfg.d_model
            )));
        }
        if vb.contains_tensor("weight") {
            return TokenEmbedding::new(cfg, vb);
        }
        // If all rows are overwritten, none are drawn.
        let init = if cfg.vocab_size == rows { Init::Constant(0.0) } else { cfg.init };
        let layer = TokenEmbedding::new(&TokenEmbeddingConfig { init, ..cfg.clone() }, vb)?;
        let weight = layer.flushed_weight()?;
        for block in self.blocks() {
            let (from, block) = block?;
            weight.slice_set(&block.to_dtype(weight.dtype())?.to_device(weight.device())?.contiguous()?, 0, from)?;
        }
        Ok(layer)
    }
}
