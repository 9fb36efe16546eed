//! What is in a file of weights, and how the rows of its table look.

use std::collections::HashMap;
use std::path::Path;

use candle_core::DType;
use serde::Serialize;

use super::PretrainedTable;
use super::open::Kind;
use crate::Result;
use crate::tensors::{Gguf, Pth, TensorFile, type_name};

/// A tensor of a file, as its header says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dimensions, the slowest first.
    pub shape: Vec<usize>,
    /// The file's word for its elements: F32, BF16, Q4K.
    pub dtype: String,
}

/// Every tensor of a safetensors, GGUF or PyTorch file, by name. Only headers are read.
///
/// # Errors
/// As [`PretrainedTable::open`], for a file that is torn or hostile.
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

/// The rows of a table by length: which were never trained, by the look of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowStatistics {
    /// The shortest row's L2 norm, the first quarter's, the median, the third quarter's, the longest row's.
    pub norms: [f32; 5],
    /// Rows of zeros.
    pub zero: Vec<u32>,
    /// Rows shorter than a third of the median, but not zero. In trained tables these are mostly tokens that never
    /// occurred: weight decay is all that they saw.
    pub short: Vec<u32>,
    /// Rows that are equal to the bit (by a hash of 64), in groups; rows of zeros aside.
    pub duplicates: Vec<Vec<u32>>,
    /// Rows with a value that is infinite or no number.
    pub not_finite: Vec<u32>,
}

impl PretrainedTable {
    /// Looks at every row.
    ///
    /// # Errors
    /// Those of reading.
    ///
    /// # Cost
    /// One pass, some 16 MiB, and 24 bytes a row.
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
