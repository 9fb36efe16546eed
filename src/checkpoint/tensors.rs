//! safetensors files, a tensor at a time: neither written nor read through a copy of the whole.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::folder::wrong;
use crate::{Error, Result};

/// The format's own limit for its header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A safetensors file whose header was read and found sound: tensors lie one behind another, and end where the file ends.
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the first tensor begins.
    start: u64,
}

impl TensorFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(wrong(path, "it is not a file"));
        }
        let mut file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| wrong(path, format!("{bytes} bytes are no safetensors file")))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length + 8 > bytes {
            let reason = format!("it is no safetensors file, or torn: a header of {length} bytes in a file of {bytes}");
            return Err(wrong(path, reason));
        }
        let mut header = Vec::new();
        (&file).take(length).read_to_end(&mut header).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| wrong(path, format!("the header of this safetensors file is not sound: {e}")))?;
        let (start, data) = (length + 8, header.data_len() as u64);
        if start.checked_add(data) != Some(bytes) {
            let reason = format!("it is torn: its header speaks of {data} bytes of tensors, it has {}", bytes - start);
            return Err(wrong(path, reason));
        }
        Ok(TensorFile { path: path.to_path_buf(), file, header, start })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names in alphabetical order.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort_unstable();
        names
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// A word of the file's metadata.
    pub(super) fn note(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Reads one tensor.
    pub(super) fn read(&mut self, name: &str, device: &Device) -> Result<Tensor> {
        let lost = || wrong(&self.path, format!("there is no tensor {name:?}"));
        let info = self.header.info(name).ok_or_else(lost)?.clone();
        let dtype = dtype_of(&info).map_err(|reason| wrong(&self.path, format!("{name:?} {reason}")))?;
        let (from, to) = info.data_offsets;
        // No more than the file has: `open` compared.
        let mut bytes = vec![0; to - from];
        self.file
            .seek(SeekFrom::Start(self.start + from as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|e| Error::io(&self.path, e))?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, device)?)
    }

    /// Reads all tensors, to the CPU.
    pub(super) fn read_all(&mut self) -> Result<HashMap<String, Tensor>> {
        self.names().into_iter().map(|name| Ok((name.clone(), self.read(&name, &Device::Cpu)?))).collect()
    }
}

/// Writes tensors as safetensors, with `format: pt` and `notes` as metadata: the same tensors give the same bytes.
pub(super) fn write<'t>(
    out: &mut dyn Write,
    tensors: impl Iterator<Item = (&'t str, &'t Tensor)>,
    notes: &[(&str, String)],
) -> candle_core::Result<()> {
    let mut tensors: Vec<(&str, &Tensor)> = tensors.collect();
    // Wide dtypes first, so that every tensor is aligned to its elements.
    tensors.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype().size_in_bytes()), *name));
    let mut end = 0;
    let mut infos = Vec::new();
    for (name, tensor) in &tensors {
        let info = TensorInfo {
            dtype: tensor.dtype().into(),
            shape: tensor.dims().to_vec(),
            data_offsets: (end, end + tensor.elem_count() * tensor.dtype().size_in_bytes()),
        };
        dtype_of(&info).map_err(|reason| candle_core::Error::Msg(format!("{name:?} {reason}")))?;
        end = info.data_offsets.1;
        infos.push((name.to_string(), info));
    }
    let sound = |e: &dyn std::fmt::Display| candle_core::Error::Msg(format!("no header for these tensors: {e}"));
    let header = Metadata::new(None, infos).map_err(|e| sound(&e))?;
    let mut header = serde_json::to_value(&header).map_err(|e| sound(&e))?;
    // The crate keeps metadata in a hash map, whose order changes from run to run.
    let fixed = [("format", "pt".to_string()), ("tallow", env!("CARGO_PKG_VERSION").to_string())];
    let notes: BTreeMap<&str, String> = fixed.into_iter().chain(notes.iter().cloned()).collect();
    header["__metadata__"] = serde_json::to_value(notes).unwrap_or(Value::Null);
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in tensors {
        out.write_all(&safetensors::View::data(&tensor.to_device(&Device::Cpu)?.contiguous()?))?;
    }
    Ok(())
}

/// candle's dtype of a tensor; or a reason that goes on where its name stands.
pub(super) fn dtype_of(info: &TensorInfo) -> std::result::Result<DType, String> {
    match DType::try_from(info.dtype) {
        Ok(DType::F6E2M3 | DType::F6E3M2 | DType::F4 | DType::F8E8M0) | Err(_) => {
            Err(format!("has the dtype {}, with which candle cannot compute", info.dtype))
        }
        Ok(dtype) => Ok(dtype),
    }
}
