//! Lists the tensors of a weight file, and computes statistics of a table's rows.

use std::collections::HashMap;
use std::path::Path;

use candle_core::DType;
use serde::Serialize;

use super::PretrainedTable;
use super::open::Kind;
use crate::Result;
use crate::tensors::{Gguf, Pth, TensorFile, type_name};

/// A tensor in a file, as its header describes it.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{TensorInfo, list_tensors};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// Tensor::new(&[[1f32, 2.]], &Device::Cpu)?.save_safetensors("wte.weight", &path)?;
/// let expected = TensorInfo { name: "wte.weight".to_string(), shape: vec![1, 2], dtype: "F32".to_string() };
/// assert_eq!(list_tensors(&path)?, [expected]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// The name.
    pub name: String,
    /// The dimensions, the slowest first.
    pub shape: Vec<usize>,
    /// The dtype in the file's notation: F32, BF16, Q4K.
    pub dtype: String,
}

/// Every tensor of a safetensors, GGUF or PyTorch file, by name. Only headers are read.
///
/// # Errors
/// As [`PretrainedTable::open`], for a truncated or malicious file.
pub fn list_tensors(path: impl AsRef<Path>) -> Result<Vec<TensorInfo>> {
    let path = path.as_ref();
    let info = |name: String, shape: &[usize], dtype: String| TensorInfo { name, shape: shape.to_vec(), dtype };
    let mut tensors: Vec<TensorInfo> = match Kind::of(path)? {
        Kind::Gguf => {
            let file = Gguf::open(path)?;
            let infos = file.names().into_iter().filter_map(|name| Some((file.info(&name)?, name)));
            let word = |dtype| match dtype {
                Ok(dtype) => format!("{dtype:?}"),
                Err(number) => type_name(number).map_or(format!("type {number}"), str::to_string),
            };
            infos.map(|(found, name)| info(name, &found.shape, word(found.dtype))).collect()
        }
        Kind::Pth => {
            let infos = Pth::open(path)?.tensors.into_iter();
            let word = |dtype: std::result::Result<DType, String>| dtype.map(|dtype| dtype.as_str().to_uppercase());
            infos.map(|(name, t)| info(name, &t.shape, word(t.dtype).unwrap_or_else(|word| word))).collect()
        }
        Kind::Safetensors => {
            let file = TensorFile::open(path)?;
            let infos = file.header.names().into_iter().filter_map(|name| Some((file.header.info(&name)?, name)));
            infos.map(|(found, name)| info(name, &found.shape, found.dtype.to_string())).collect()
        }
    };
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Statistics of a table's rows, to find rows that were never trained.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::PretrainedTable;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// Tensor::new(&[[3f32, 4.], [0., 0.], [3., 4.]], &Device::Cpu)?.save_safetensors("wte.weight", &path)?;
/// let statistics = PretrainedTable::open(&path, None)?.statistics()?;
/// assert_eq!(statistics.norms[4], 5.0); // the longest row
/// assert_eq!((statistics.zero, statistics.duplicates), (vec![1], vec![vec![0, 2]]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowStatistics {
    /// Quartiles of the rows' L2 norms: minimum, first quartile, median, third quartile, maximum.
    pub norms: [f32; 5],
    /// Rows of zeros.
    pub zero: Vec<u32>,
    /// Rows shorter than a third of the median, but not zero. In trained tables these are mostly tokens that never
    /// occurred, whose rows only had weight decay.
    pub short: Vec<u32>,
    /// Groups of rows that are equal bit for bit (by a 64-bit hash), without rows of zeros.
    pub duplicates: Vec<Vec<u32>>,
    /// Rows with an infinite value or a NaN.
    pub not_finite: Vec<u32>,
}

impl PretrainedTable {
    /// Computes the statistics of all rows.
    ///
    /// # Errors
    /// Those of reading.
    ///
    /// # Cost
    /// One pass over the table, and about 16 MiB of memory plus 24 bytes per row.
    pub fn statistics(&self) -> Result<RowStatistics> {
        let mut norms: Vec<f32> = Vec::with_capacity(self.shape.0);
        let (mut zero, mut not_finite) = (Vec::new(), Vec::new());
        let mut seen: HashMap<u64, Vec<u32>> = HashMap::new();
        for block in self.blocks() {
            let (first, block) = block?;
            let values: Vec<f32> = block.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            for (row, id) in values.chunks_exact(self.shape.1).zip(first as u32..) {
                norms.push(row.iter().map(|value| value * value).sum::<f32>().sqrt());
                if row.iter().all(|value| *value == 0.0) {
                    zero.push(id);
                    continue;
                }
                if row.iter().any(|value| !value.is_finite()) {
                    not_finite.push(id);
                }
                let mut hash = tallow_text::support::Fingerprint::new("row");
                row.iter().for_each(|value| hash.add(&value.to_bits().to_le_bytes()));
                seen.entry(hash.finish()).or_default().push(id);
            }
        }
        let mut sorted: Vec<f32> = norms.iter().copied().filter(|norm| norm.is_finite()).collect();
        sorted.sort_by(f32::total_cmp);
        let at = |quarter: usize| sorted.get(sorted.len().saturating_sub(1) * quarter / 4).copied().unwrap_or(f32::NAN);
        let quarters = [at(0), at(1), at(2), at(3), at(4)];
        let short = |(id, norm): (u32, &f32)| (*norm > 0.0 && *norm < quarters[2] / 3.0).then_some(id);
        let mut duplicates: Vec<Vec<u32>> = seen.into_values().filter(|rows| rows.len() > 1).collect();
        duplicates.sort();
        Ok(RowStatistics {
            norms: quarters,
            zero,
            short: (0..).zip(&norms).filter_map(short).collect(),
            duplicates,
            not_finite,
        })
    }
}
