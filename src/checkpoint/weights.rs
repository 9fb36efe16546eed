//! Compares the variables of a VarMap with the tensors of a file, and loads them.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use candle_nn::VarMap;

use super::LoadOptions;
use crate::Result;
use crate::collective::Shard;
use crate::rows::RowTable;
use crate::support::variables::{insert, variables};
use crate::tensors::{TensorFile, dtype_of, wrong};

/// The names that a load with [`LoadOptions::partial`] skipped. Empty after any other load. (The name is PyTorch's.)
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{IncompatibleKeys, LoadOptions, load_weights};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("rows.safetensors");
/// Tensor::new(&[[1f32, 2.]], &Device::Cpu)?.save_safetensors("wte.weight", &path)?;
/// let varmap = VarMap::new();
/// VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu).get(2, "bias")?;
/// let skipped = load_weights(&path, &varmap, &LoadOptions { partial: true, ..Default::default() })?;
/// let expected = IncompatibleKeys { missing: vec!["bias".to_string()], unexpected: vec!["wte.weight".to_string()] };
/// assert_eq!(skipped, expected);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncompatibleKeys {
    /// Variables that are not in the file. They keep their values.
    pub missing: Vec<String>,
    /// Tensors of the file that are not variables of the VarMap.
    pub unexpected: Vec<String>,
}

/// Loads the weights of a safetensors file, written by PyTorch, candle or [`Checkpoint::save`](super::Checkpoint::save), into
/// the variables of the same names. Nothing is changed unless everything fits.
///
/// An empty VarMap gets all tensors of the file as variables, on `options.device`, in their dtypes. Row-sparse tables are
/// flushed first, and their pending row gradients are discarded.
///
/// # Errors
/// - [`Error::Checkpoint`](crate::Error::Checkpoint): a truncated or malicious file; or one list of everything that does not fit:
///   missing variables, shapes, dtypes, the tokenizer.
/// - [`Error::Io`](crate::Error::Io).
///
/// # Cost
/// Reads the file once. Memory: one tensor at a time. Lengths in the header are checked against the file's size before memory is
/// allocated.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::VarMap;
/// use tallow::{LoadOptions, load_weights};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("rows.safetensors");
/// Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?.save_safetensors("wte.weight", &path)?;
/// let varmap = VarMap::new();
/// load_weights(&path, &varmap, &LoadOptions::default())?;
/// assert_eq!(varmap.all_vars()[0].to_vec2::<f32>()?, [[1., 2.], [3., 4.]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn load_weights(path: impl AsRef<Path>, varmap: &VarMap, options: &LoadOptions) -> Result<IncompatibleKeys> {
    let file = TensorFile::open(path.as_ref())?;
    let weights = Weights::of(varmap);
    let (mut misfits, skipped) = weights.compare(&file, options);
    let theirs = file.header.note("tokenizer").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    misfits.extend(other_tokenizer(theirs, options));
    match misfits.is_empty() {
        true => weights.fill(&file, varmap, options)?,
        false => return Err(wrong(file.path(), list(&misfits))),
    }
    Ok(skipped)
}

/// Joins many reasons into one message.
pub(super) fn list(misfits: &[String]) -> String {
    format!("it does not fit:\n  {}", misfits.join("\n  "))
}

pub(super) fn other_tokenizer(theirs: Option<u64>, options: &LoadOptions) -> Option<String> {
    let (ours, theirs) = (options.tokenizer?, theirs?);
    (ours != theirs).then(|| {
        format!("it was trained with the ids of tokenizer {theirs:016x}, and the tokenizer here is {ours:016x}")
    })
}

/// The variables of a VarMap by name.
pub(super) struct Weights(Vec<(String, Var)>);

impl Weights {
    pub(super) fn of(varmap: &VarMap) -> Self {
        Weights(variables(varmap))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, var)| (name.as_str(), var.as_tensor()))
    }

    /// The variables that are split between ranks.
    pub(super) fn shards(&self) -> Vec<(&str, &Tensor, Arc<Shard>)> {
        let split = |(name, tensor)| RowTable::shard_of(tensor).map(|shard| (name, tensor, shard));
        self.tensors().filter_map(split).collect()
    }

    /// Replays the deferred updates of all row-sparse tables.
    pub(super) fn replay(&self) -> Result<()> {
        self.tensors().try_for_each(|(_, tensor)| RowTable::flush(tensor))
    }

    /// Everything that does not fit, and the names that a partial load skips.
    pub(super) fn compare(&self, file: &TensorFile, options: &LoadOptions) -> (Vec<String>, IncompatibleKeys) {
        let (mut misfits, mut skipped) = (Vec::new(), IncompatibleKeys::default());
        if self.is_empty() {
            let unusable = file.header.names().into_iter().filter_map(|name| {
                file.header.info(&name).and_then(|info| dtype_of(info).err()).map(|reason| format!("{name:?} {reason}"))
            });
            return (unusable.collect(), skipped);
        }
        for (name, tensor) in self.tensors() {
            let Some(info) = file.header.info(name) else {
                skipped.missing.push(name.to_string());
                continue;
            };
            let shard = RowTable::shard_of(tensor);
            let shape = shard.as_ref().map_or(Some(info.shape.clone()), |shard| shard.part_shape(&info.shape));
            if shape.as_deref() != Some(tensor.dims()) {
                let rows =
                    shard.map_or_else(String::new, |shard| format!(", {} rows on all ranks", shard.vocab_size()));
                misfits.push(format!(
                    "{name:?} has shape {:?} in the file and {:?} in the VarMap{rows}",
                    info.shape,
                    tensor.dims()
                ));
            }
            match dtype_of(info) {
                Err(reason) => misfits.push(format!("{name:?} {reason}")),
                Ok(dtype) if dtype != tensor.dtype() && !options.convert_dtype => misfits.push(format!(
                    "{name:?} is {} in the file and {} in the VarMap (`convert_dtype: true` converts it)",
                    dtype.as_str(),
                    tensor.dtype().as_str()
                )),
                Ok(_) => (),
            }
        }
        let here = |name: &String| self.0.binary_search_by(|(other, _)| other.cmp(name)).is_ok();
        skipped.unexpected = file.header.names().into_iter().filter(|name| !here(name)).collect();
        if !options.partial {
            let advice = "(`partial: true` skips it)";
            let IncompatibleKeys { missing, unexpected } = std::mem::take(&mut skipped);
            misfits.extend(missing.iter().map(|name| format!("{name:?} is not in the file {advice}")));
            misfits.extend(unexpected.iter().map(|name| format!("{name:?} is not in the VarMap {advice}")));
        }
        (misfits, skipped)
    }

    /// Sets every variable that is in the file, or makes all of them in an empty VarMap.
    pub(super) fn fill(&self, file: &TensorFile, varmap: &VarMap, options: &LoadOptions) -> Result<()> {
        if self.is_empty() {
            let made = file.header.names().into_iter().map(|name| {
                let var = Var::from_tensor(&file.read(&name, &options.device)?)?;
                Ok((name, var))
            });
            let made = made.collect::<Result<Vec<_>>>()?;
            insert(varmap, made);
            return Ok(());
        }
        // Otherwise deferred updates would later be applied to the new values.
        self.replay()?;
        self.tensors().filter_map(|(_, tensor)| RowTable::find(tensor)).for_each(|table| table.clear());
        for (name, var) in self.0.iter().filter(|(name, _)| file.header.info(name).is_some()).collect::<Vec<_>>() {
            let mut value = file.read(name, var.device())?;
            if let Some(shard) = RowTable::shard_of(var) {
                value = shard.part(&value)?;
            }
            if var.elem_count() > 0 {
                var.set(&value.to_dtype(var.dtype())?)?;
            }
        }
        Ok(())
    }
}
