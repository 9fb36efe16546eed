//! Tables that somebody trained: found in a file or a folder, read by rows, put into a layer.
//!
//! This room knows how models name their tables. It does not know where files come from.

mod changes;
mod find;
mod remote;
mod report;
mod tokens;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::pickle::{PthTensors, TensorInfo as PthInfo};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::embedding::{nearest, queries_fit};
use crate::tensors::{Gguf, TensorFile, dtype_of, single_header, wrong};
use crate::{Error, Init, Neighbor, Result, TokenEmbedding, TokenEmbeddingConfig};

pub use changes::{RowChange, RowChanges};
#[cfg(feature = "hub")]
pub use remote::pull;
pub use report::{RowStatistics, TensorInfo, list_tensors};
pub use tokens::Transplanted;

/// Rows are carried over in blocks of about this many values: never two tables in memory.
const BLOCK_VALUES: usize = 1 << 21;

/// Larger indices of sharded models are not read.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A table (V, C) in a file of weights. Nothing but its header is read until rows are asked for: a table larger than memory can
/// be read row by row.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{Gradient, PretrainedTable, TokenEmbedding, TokenEmbeddingConfig};
///
/// // What somebody saved:
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
/// let wte = TokenEmbedding::from_pretrained(&table, &cfg, vb.pp("wte"))?;
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
    Safetensors(TensorFile),
    Gguf(Gguf),
    /// candle reads a tensor of such a file whole.
    Pth(Tensor),
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
    /// Finds the table of a model: a safetensors, GGUF or PyTorch file (by its content, not its name), or a folder as
    /// transformers writes it, with or without shards. `tensor` says which, where the name is none of the usual.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`]: no table, or more than one, with a list of candidates; a torn or hostile file; a dtype that candle
    ///   cannot compute with.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// Reads the header. A PyTorch file (a pickle in a zip, through candle) is read with its table; prefer safetensors: the doc of
    /// `candle_core::pickle` makes no promise about hostile pickles.
    pub fn open(path: impl AsRef<Path>, tensor: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        if fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir() {
            open_folder(path, tensor)
        } else {
            open_file(path, tensor)
        }
    }

    /// What the tensor is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file in which it lies.
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

    /// The dtype in which rows are given: the file's, or f32 where they are quantized.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether the model has no output layer of its own: its head is this table ([`TokenEmbedding::attend`], or
    /// [`head::cross_entropy`](crate::head::cross_entropy) over [`TokenEmbedding::weight`]).
    pub fn tied(&self) -> bool {
        self.tied
    }

    /// A config for a layer of this size; the rest as by default.
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
    /// One read a row of C elements.
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

    /// Reads rows that follow one another, as (rows, C) on the CPU.
    ///
    /// # Errors
    /// - [`Error::Config`]: the range is empty or leaves the table.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// One read of rows · C elements.
    pub fn block(&self, rows: Range<usize>) -> Result<Tensor> {
        let (count, columns) = self.shape;
        if rows.is_empty() || rows.end > count {
            return Err(Error::Config(format!("rows {rows:?} of a table of {count}")));
        }
        match &self.source {
            Source::Gguf(file) => file.rows(&self.name, rows),
            Source::Pth(tensor) => Ok(tensor.narrow(0, rows.start, rows.len())?),
            Source::Safetensors(file) => {
                let range = file.header.range(&self.name).unwrap_or_default();
                let row_bytes = (columns * self.dtype.size_in_bytes()) as u64;
                let from = range.start + rows.start as u64 * row_bytes;
                let bytes = file.bytes(from..from + rows.len() as u64 * row_bytes)?;
                Ok(Tensor::from_raw_buffer(&bytes, self.dtype, &[rows.len(), columns], &Device::Cpu)?)
            }
        }
    }

    /// Writes rows (all of them, if `ranges` is empty) as a safetensors file with this tensor alone, whole or not at all.
    ///
    /// # Errors
    /// - [`Error::Config`]: a range that is empty or leaves the table.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// One pass, in blocks.
    pub fn save(&self, path: impl AsRef<Path>, ranges: &[Range<usize>]) -> Result<()> {
        let path = path.as_ref();
        let all = 0..self.shape.0;
        let ranges = if ranges.is_empty() { std::slice::from_ref(&all) } else { ranges };
        if let Some(bad) = ranges.iter().find(|range| range.is_empty() || range.end > self.shape.0) {
            return Err(Error::Config(format!("rows {bad:?} of a table of {}", self.shape.0)));
        }
        let io = |e| Error::io(path, e);
        let rows: usize = ranges.iter().map(Range::len).sum();
        let bytes = rows * self.shape.1 * self.dtype.size_in_bytes();
        let info = safetensors::tensor::TensorInfo {
            dtype: self.dtype.into(),
            shape: vec![rows, self.shape.1],
            data_offsets: (0, bytes),
        };
        let mut out = std::io::BufWriter::new(crate::files::temporary(crate::files::folder_of(path))?);
        out.write_all(&single_header(&self.name, &info, &[("tied", self.tied.to_string())])?).map_err(io)?;
        let step = (BLOCK_VALUES / self.shape.1).max(1);
        for range in ranges {
            for from in range.clone().step_by(step) {
                let block = self.block(from..range.end.min(from + step))?.contiguous()?;
                out.write_all(&safetensors::View::data(&block)).map_err(io)?;
            }
        }
        crate::files::persist(out, path).map_err(io)
    }

    /// The `k` rows nearest to each of `ids` by cosine, as [`TokenEmbedding::neighbors`], without loading the table.
    ///
    /// # Errors
    /// [`Error::IdOutOfRange`], and those of reading.
    ///
    /// # Cost
    /// Reads the table once for all ids together, in some 16 MiB.
    pub fn neighbors(&self, ids: &[u32], k: usize) -> Result<Vec<Vec<Neighbor>>> {
        nearest(&self.rows(ids)?, ids, k, self.blocks())
    }

    /// The `k` rows nearest to each of `queries` (N, C), as [`TokenEmbedding::neighbors_of`].
    ///
    /// # Errors
    /// [`Error::Config`] for another shape, and those of reading.
    pub fn neighbors_of(&self, queries: &Tensor, k: usize) -> Result<Vec<Vec<Neighbor>>> {
        queries_fit(queries, self.d_model())?;
        nearest(queries, &[], k, self.blocks())
    }

    /// The table in blocks of rows, each with its first row: one pass in bounded memory.
    pub fn blocks(&self) -> impl Iterator<Item = Result<(usize, Tensor)>> {
        let (count, columns) = self.shape;
        let step = (BLOCK_VALUES / columns).max(1);
        (0..count).step_by(step).map(move |from| Ok((from, self.block(from..count.min(from + step))?)))
    }
}

// In this room, because an embedding does not know files.
impl TokenEmbedding {
    /// Makes the variable `weight` of `vb` out of a pretrained table, in the dtype and on the device of `vb`. Begin with
    /// `table.config()`. Where `cfg.vocab_size` is larger than the table, the rows beyond are drawn from `cfg.init` and
    /// `cfg.seed`; [`resize`](Self::resize) has better ways to fill rows.
    ///
    /// A weight that the VarBuilder already has (a run that goes on) is used as it is, as in [`new`](Self::new).
    ///
    /// # Errors
    /// - [`Error::Config`]: `cfg` is of another width, or has fewer rows than the table.
    /// - those of [`new`](Self::new) and of reading.
    ///
    /// # Cost
    /// One pass over the table; a few MiB beside it.
    pub fn from_pretrained(table: &PretrainedTable, cfg: &TokenEmbeddingConfig, vb: VarBuilder) -> Result<Self> {
        let (rows, columns) = table.shape;
        if cfg.d_model != columns || cfg.vocab_size < rows {
            return Err(Error::Config(format!(
                "{} is {rows} x {columns}, the config says {} x {}: begin with `table.config()`",
                table.name, cfg.vocab_size, cfg.d_model
            )));
        }
        if vb.contains_tensor("weight") {
            return Self::new(cfg, vb);
        }
        // Rows that are overwritten anyway are not drawn.
        let init = if cfg.vocab_size == rows { Init::Constant(0.0) } else { cfg.init };
        let layer = Self::new(&TokenEmbeddingConfig { init, ..cfg.clone() }, vb)?;
        for block in table.blocks() {
            let (from, block) = block?;
            layer.weight()?.slice_set(
                &block.to_dtype(layer.dtype())?.to_device(layer.device())?.contiguous()?,
                0,
                from,
            )?;
        }
        Ok(layer)
    }
}

/// What a file of weights is, by its first bytes.
#[derive(PartialEq)]
enum Format {
    Safetensors,
    Gguf,
    Pth,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let mut first = Vec::new();
        File::open(path).and_then(|f| f.take(32).read_to_end(&mut first)).map_err(|e| Error::io(path, e))?;
        if first.starts_with(b"version https://git-lfs") {
            return Err(wrong(
                path,
                "this is only the Git LFS pointer to a file: fetch the file itself (git lfs pull)",
            ));
        }
        Ok(match &first[..] {
            [b'G', b'G', b'U', b'F', ..] => Format::Gguf,
            [b'P', b'K', ..] => Format::Pth,
            _ => Format::Safetensors,
        })
    }
}

/// The tensors of a PyTorch file, also where trainers put them a level deeper.
fn pth(path: &Path) -> candle_core::Result<PthTensors> {
    let mut file = PthTensors::new(path, None)?;
    for key in ["state_dict", "model", "model_state_dict"] {
        if file.tensor_infos().is_empty() {
            file = PthTensors::new(path, Some(key)).unwrap_or(file);
        }
    }
    Ok(file)
}

fn open_file(path: &Path, tensor: Option<&str>) -> Result<PretrainedTable> {
    let format = Format::of(path)?;
    let unsure = |reason| wrong(path, reason);
    let made = |name: &str, dims: &[usize], dtype, tied, source| match *dims {
        [rows, columns] if rows > 0 && columns > 0 && rows <= u32::MAX as usize => {
            let (path, name) = (path.to_path_buf(), name.to_string());
            Ok(PretrainedTable { path, name, shape: (rows, columns), dtype, tied, source })
        }
        _ => Err(wrong(path, format!("{name:?} is no table: its shape is {dims:?}"))),
    };
    if format == Format::Gguf {
        let file = Gguf::open(path)?;
        let names = file.names();
        let tensors: Vec<_> =
            names.iter().map(|name| (name.as_str(), file.info(name).map(|info| &info.shape[..]))).collect();
        let name = find::table(&tensors, tensor).map_err(unsure)?;
        let shape = file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        return made(name, &shape, DType::F32, !find::has_head(names.iter().map(String::as_str)), Source::Gguf(file));
    }
    if format == Format::Pth {
        let (name, rows, tied) = open_pth(path, tensor)?;
        return made(&name, rows.clone().dims(), rows.dtype(), tied, Source::Pth(rows));
    }
    let file = TensorFile::open(path)?;
    let names = file.header.names();
    let tensors: Vec<_> =
        names.iter().map(|name| (name.as_str(), file.header.info(name).map(|info| &info.shape[..]))).collect();
    let name = find::table(&tensors, tensor).map_err(unsure)?;
    // A table that was pulled out of a model says whether the model had a head.
    let tied = match file.header.note("tied") {
        Some(note) => note == "true",
        None => !find::has_head(names.iter().map(String::as_str)),
    };
    let Some(info) = file.header.info(name) else { return Err(wrong(path, "its header changed")) };
    let dtype = dtype_of(info).map_err(|reason| wrong(path, format!("{name:?} {reason}")))?;
    made(name, &info.shape.clone(), dtype, tied, Source::Safetensors(file))
}

/// The name and rows of a PyTorch file's table, and whether it is the head, too.
fn open_pth(path: &Path, tensor: Option<&str>) -> Result<(String, Tensor, bool)> {
    let sound =
        |e: candle_core::Error| wrong(path, format!("no PyTorch file that candle can read: {}", Error::from(e)));
    let file = pth(path).map_err(sound)?;
    let infos = file.tensor_infos();
    let tensors: Vec<_> = infos.iter().map(|(name, info)| (name.as_str(), Some(info.layout.dims()))).collect();
    let name = find::table(&tensors, tensor).map_err(|reason| wrong(path, reason))?;
    let bytes = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if let Some(info) = infos.get(name) {
        // PyTorch does not compress, so a tensor is no longer than its file; and candle takes the offset for bytes.
        let elements =
            info.layout.dims().iter().try_fold(info.dtype.size_in_bytes() as u64, |n, d| n.checked_mul(*d as u64));
        if elements.is_none_or(|n| n > bytes) || info.layout.start_offset() != 0 {
            return Err(wrong(
                path,
                format!("{name:?} of shape {:?} does not lie whole in this file", info.layout.dims()),
            ));
        }
    }
    let rows = file.get(name).map_err(sound)?.ok_or_else(|| wrong(path, format!("there is no tensor {name:?}")))?;
    // Tied weights stand there under both names, over one storage.
    let own = |(other, info): (&String, &PthInfo)| {
        (infos.get(name).is_none_or(|table| table.path != info.path)).then_some(other.clone())
    };
    let own: Vec<String> = infos.iter().filter_map(own).collect();
    Ok((name.to_string(), rows.contiguous()?, !find::has_head(own.iter().map(String::as_str))))
}

fn open_folder(folder: &Path, tensor: Option<&str>) -> Result<PretrainedTable> {
    for (index, whole) in
        [("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin")]
    {
        let (index, whole) = (folder.join(index), folder.join(whole));
        if whole.is_file() {
            return open_file(&whole, tensor);
        }
        if index.is_file() {
            let mut bytes = Vec::new();
            let file = File::open(&index).map_err(|e| Error::io(&index, e))?;
            file.take(MAX_INDEX_BYTES).read_to_end(&mut bytes).map_err(|e| Error::io(&index, e))?;
            let shard = Sharded::parse(&bytes, tensor).map_err(|reason| wrong(&index, reason))?;
            let mut table = open_file(&folder.join(&shard.file), Some(&shard.tensor))?;
            table.tied = shard.tied;
            return Ok(table);
        }
    }
    let mut known = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "safetensors" || e == "gguf" || e == "bin" || e == "pth" || e == "pt")
        {
            known.push(path);
        }
    }
    known.sort();
    match &known[..] {
        [one] => open_file(one, tensor),
        [] => Err(wrong(folder, "no safetensors, GGUF or PyTorch file is in this folder")),
        many => {
            let names: Vec<_> = many.iter().filter_map(|p| p.file_name()).map(|n| n.display().to_string()).collect();
            Err(wrong(folder, format!("which of its files: {}?", names.join(", "))))
        }
    }
}

/// Where the index of a sharded model says that its table is.
struct Sharded {
    tensor: String,
    file: String,
    tied: bool,
}

impl Sharded {
    fn parse(json: &[u8], tensor: Option<&str>) -> std::result::Result<Self, String> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = serde_json::from_slice(json).map_err(|e| format!("it is no index of shards: {e}"))?;
        let names: Vec<_> = index.weight_map.keys().map(|name| (name.as_str(), None)).collect();
        let name = find::table(&names, tensor)?;
        let file = index.weight_map.get(name).cloned().unwrap_or_default();
        // A stranger's index must not lead out of its folder.
        if file.is_empty() || file.contains(['/', '\\', ':']) || file == ".." || file == "." {
            return Err(format!("{name:?} is said to lie in {file:?}, which is no file of this folder"));
        }
        let tied = !find::has_head(index.weight_map.keys().map(String::as_str));
        Ok(Sharded { tensor: name.to_string(), file, tied })
    }
}
