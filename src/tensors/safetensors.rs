//! safetensors files, a tensor at a time: neither written nor read through a copy of the whole.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::wrong;
use crate::{Error, Result};
use tallow_text::support::files::open_regular;

/// The format's own limit for its header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header of a safetensors file, found sound: tensors lie one behind another, and end where the file ends.
pub(crate) struct Header {
    metadata: Metadata,
    /// Where the first tensor begins.
    start: u64,
}

impl Header {
    /// How long the header is, by the first bytes of a file of `bytes`.
    pub(crate) fn length(first: [u8; 8], bytes: u64) -> std::result::Result<u64, String> {
        let length = u64::from_le_bytes(first);
        match length <= MAX_HEADER_BYTES && length + 8 <= bytes {
            true => Ok(length),
            false => {
                Err(format!("it is no safetensors file, or torn: a header of {length} bytes in a file of {bytes}"))
            }
        }
    }

    /// Reads a header out of a file of `bytes`.
    pub(crate) fn parse(header: &[u8], bytes: u64) -> std::result::Result<Self, String> {
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|e| format!("the header of this safetensors file is not sound: {e}"))?;
        let (start, data) = (header.len() as u64 + 8, metadata.data_len() as u64);
        if start.checked_add(data) != Some(bytes) {
            let has = bytes.saturating_sub(start);
            return Err(format!("it is torn: its header speaks of {data} bytes of tensors, it has {has}"));
        }
        Ok(Header { metadata, start })
    }

    /// Names in alphabetical order.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// A word of the file's metadata.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The bytes of the file in which a tensor lies.
    pub(crate) fn range(&self, name: &str) -> Option<std::ops::Range<u64>> {
        let (from, to) = self.info(name)?.data_offsets;
        Some(self.start + from as u64..self.start + to as u64)
    }
}

/// A safetensors file whose header is sound.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    pub(crate) header: Header,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = open_regular(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut first = [0; 8];
        file.read_exact(&mut first).map_err(|_| wrong(path, format!("{bytes} bytes are no safetensors file")))?;
        let length = Header::length(first, bytes).map_err(|reason| wrong(path, reason))?;
        let mut header = Vec::new();
        (&file).take(length).read_to_end(&mut header).map_err(io)?;
        let header = Header::parse(&header, bytes).map_err(|reason| wrong(path, reason))?;
        Ok(TensorFile { path: path.to_path_buf(), file, header })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, and where a tensor begins in it.
    pub(crate) fn rows(self, name: &str) -> Option<(File, u64)> {
        let start = self.header.range(name)?.start;
        Some((self.file, start))
    }

    /// Reads one tensor.
    pub(crate) fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.header.info(name).ok_or_else(|| wrong(&self.path, format!("there is no tensor {name:?}")))?;
        let dtype = dtype_of(info).map_err(|reason| wrong(&self.path, format!("{name:?} {reason}")))?;
        let range = self.header.range(name).unwrap_or_default();
        let bytes = self.bytes(range)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, device)?)
    }

    /// Bytes of the file. The range must lie within it: `open` compared what the header says.
    fn bytes(&self, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
        super::read_at(&self.file, range).map_err(|e| Error::io(&self.path, e))
    }

    /// Reads all tensors, to the CPU.
    pub(crate) fn read_all(&self) -> Result<HashMap<String, Tensor>> {
        self.header.names().into_iter().map(|name| Ok((name.clone(), self.read(&name, &Device::Cpu)?))).collect()
    }
}

/// Writes tensors as safetensors, with `format: pt` and `notes` as metadata: the same tensors give the same bytes.
pub(crate) fn write<'t>(
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
    out.write_all(&header_of(infos, notes)?)?;
    for (_, tensor) in tensors {
        out.write_all(&safetensors::View::data(&tensor.to_device(&Device::Cpu)?.contiguous()?))?;
    }
    Ok(())
}

/// The first bytes of a file, up to its first tensor.
fn header_of(infos: Vec<(String, TensorInfo)>, notes: &[(&str, String)]) -> candle_core::Result<Vec<u8>> {
    let sound = |e: &dyn std::fmt::Display| candle_core::Error::Msg(format!("no header for these tensors: {e}"));
    let header = Metadata::new(None, infos).map_err(|e| sound(&e))?;
    let mut header = serde_json::to_value(&header).map_err(|e| sound(&e))?;
    // The crate keeps metadata in a hash map, whose order changes from run to run.
    let fixed = [("format", "pt".to_string()), ("tallow", env!("CARGO_PKG_VERSION").to_string())];
    let notes: BTreeMap<&str, String> = fixed.into_iter().chain(notes.iter().cloned()).collect();
    header["__metadata__"] = serde_json::to_value(notes).unwrap_or(Value::Null);
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    Ok(bytes)
}

/// The first bytes of a file that holds this tensor alone.
pub(crate) fn single_header(name: &str, info: &TensorInfo, notes: &[(&str, String)]) -> candle_core::Result<Vec<u8>> {
    let (from, to) = info.data_offsets;
    let info = TensorInfo { dtype: info.dtype, shape: info.shape.clone(), data_offsets: (0, to - from) };
    header_of(vec![(name.to_string(), info)], notes)
}

/// candle's dtype of a tensor; or a reason that goes on where its name stands.
pub(crate) fn dtype_of(info: &TensorInfo) -> std::result::Result<DType, String> {
    match DType::try_from(info.dtype) {
        Ok(DType::F6E2M3 | DType::F6E3M2 | DType::F4 | DType::F8E8M0) | Err(_) => {
            Err(format!("has the dtype {}, with which candle cannot compute", info.dtype))
        }
        Ok(dtype) => Ok(dtype),
    }
}
