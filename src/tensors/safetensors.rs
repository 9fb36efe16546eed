//! Reads and writes safetensors files one tensor at a time, without a copy of the whole file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::wrong;
use crate::{Error, Result};
use tallow_text::support::files::open_regular;

/// The format's own limit for its header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Tensors are written in parts of about this many values, and copied in parts of the bytes below.
const WRITTEN_VALUES: usize = 1 << 21;
const COPIED_BYTES: u64 = 8 << 20;

/// A validated header of a safetensors file: tensors are contiguous, and the last one ends at the end of the file.
pub(crate) struct Header {
    metadata: Metadata,
    /// First byte of the first tensor.
    start: u64,
}

impl Header {
    /// Length of the header, from the first 8 bytes of a file of `bytes` bytes.
    pub(crate) fn length(first: [u8; 8], bytes: u64) -> std::result::Result<u64, String> {
        let length = u64::from_le_bytes(first);
        match length <= MAX_HEADER_BYTES && length + 8 <= bytes {
            true => Ok(length),
            false => {
                Err(format!("it is not a safetensors file, or torn: a header of {length} bytes in a file of {bytes}"))
            }
        }
    }

    /// Parses the header of a file of `bytes` bytes.
    pub(crate) fn parse(header: &[u8], bytes: u64) -> std::result::Result<Self, String> {
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|e| format!("the header of this safetensors file is not sound: {e}"))?;
        let (start, data) = (header.len() as u64 + 8, metadata.data_len() as u64);
        if start.checked_add(data) != Some(bytes) {
            let has = bytes.saturating_sub(start);
            return Err(format!("it is torn: its header describes {data} bytes of tensors, it has {has}"));
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

    /// A value of the file's metadata.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The range of a tensor's bytes in the file.
    pub(crate) fn range(&self, name: &str) -> Option<std::ops::Range<u64>> {
        let (from, to) = self.info(name)?.data_offsets;
        Some(self.start + from as u64..self.start + to as u64)
    }
}

/// A safetensors file with a validated header.
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
        file.read_exact(&mut first)
            .map_err(|_| wrong(path, format!("a file of {bytes} bytes is not a safetensors file")))?;
        let length = Header::length(first, bytes).map_err(|reason| wrong(path, reason))?;
        let mut header = Vec::new();
        (&file).take(length).read_to_end(&mut header).map_err(io)?;
        let header = Header::parse(&header, bytes).map_err(|reason| wrong(path, reason))?;
        Ok(TensorFile { path: path.to_path_buf(), file, header })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, and the position of a tensor's first byte.
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

    /// Bytes of the file. The range must be within the file; `open` checked those of the header.
    fn bytes(&self, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
        super::read_at(&self.file, range).map_err(|e| Error::io(&self.path, e))
    }

    /// Writes a copy of the file to `path` in which `new` tensors replace those of the same names, in the dtypes of the file. All
    /// other tensors and the metadata are copied. Without new tensors the whole file is copied. Returns the bytes of all tensors.
    pub(crate) fn rewrite(&self, path: &Path, new: &HashMap<String, Tensor>) -> Result<u64> {
        let io = |e| Error::io(path, e);
        let mut out = BufWriter::new(File::create_new(path).map_err(io)?);
        let bytes = match self.header.names().iter().any(|name| new.contains_key(name)) {
            true => self.write_with(&mut out, path, new)?,
            false => {
                let bytes = self.header.metadata.data_len() as u64;
                self.copy_range(&mut out, path, 0..self.header.start + bytes)?;
                bytes
            }
        };
        let out = out.into_inner().map_err(|e| io(e.into_error()))?;
        out.sync_all().map_err(io)?;
        Ok(bytes)
    }

    fn write_with(&self, out: &mut dyn Write, path: &Path, new: &HashMap<String, Tensor>) -> Result<u64> {
        let mut old: Vec<(String, &TensorInfo)> = Vec::new();
        for name in self.header.metadata.offset_keys() {
            old.extend(self.header.info(&name).map(|info| (name, info)));
        }
        // Wide dtypes first, so that a tensor of another size does not break the alignment of wider ones.
        old.sort_by_key(|(_, info)| std::cmp::Reverse(info.dtype.bitsize()));
        let (mut end, mut infos) = (0, Vec::new());
        for (name, info) in &old {
            let (from, to) = info.data_offsets;
            let (shape, bytes) = match new.get(name) {
                Some(tensor) => (tensor.dims().to_vec(), tensor.elem_count() * info.dtype.bitsize() / 8),
                None => (info.shape.clone(), to - from),
            };
            infos.push((name.clone(), TensorInfo { dtype: info.dtype, shape, data_offsets: (end, end + bytes) }));
            end += bytes;
        }
        let notes = self.header.metadata.metadata().clone().unwrap_or_default();
        let io = |e| Error::io(path, e);
        out.write_all(&header_with(infos, notes.into_iter().collect())?).map_err(io)?;
        for (name, info) in old {
            match new.get(&name) {
                Some(tensor) => {
                    let dtype = dtype_of(info).map_err(|reason| wrong(&self.path, format!("{name:?} {reason}")))?;
                    let values = tensor.flatten_all()?;
                    for from in (0..values.elem_count()).step_by(WRITTEN_VALUES) {
                        let part = values.narrow(0, from, WRITTEN_VALUES.min(values.elem_count() - from))?;
                        let part = part.to_dtype(dtype)?.to_device(&Device::Cpu)?.contiguous()?;
                        out.write_all(&safetensors::View::data(&part)).map_err(io)?;
                    }
                }
                None => self.copy_range(out, path, self.header.range(&name).unwrap_or_default())?,
            }
        }
        Ok(end as u64)
    }

    fn copy_range(&self, out: &mut dyn Write, path: &Path, range: std::ops::Range<u64>) -> Result<()> {
        for from in range.clone().step_by(COPIED_BYTES as usize) {
            let bytes = self.bytes(from..range.end.min(from + COPIED_BYTES))?;
            out.write_all(&bytes).map_err(|e| Error::io(path, e))?;
        }
        Ok(())
    }

    /// Reads all tensors, to the CPU.
    pub(crate) fn read_all(&self) -> Result<HashMap<String, Tensor>> {
        self.header.names().into_iter().map(|name| Ok((name.clone(), self.read(&name, &Device::Cpu)?))).collect()
    }
}

/// Writes tensors as safetensors, with `format: pt` and `notes` as metadata. Equal tensors give equal bytes.
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

/// The first bytes of a file that tallow writes, up to the first tensor.
fn header_of(infos: Vec<(String, TensorInfo)>, notes: &[(&str, String)]) -> candle_core::Result<Vec<u8>> {
    let fixed = [("format", "pt".to_string()), ("tallow", env!("CARGO_PKG_VERSION").to_string())];
    let notes = fixed.into_iter().chain(notes.iter().cloned()).map(|(key, note)| (key.to_string(), note));
    header_with(infos, notes.collect())
}

/// The first bytes of a file with these notes as metadata, up to the first tensor.
fn header_with(infos: Vec<(String, TensorInfo)>, notes: BTreeMap<String, String>) -> candle_core::Result<Vec<u8>> {
    let sound = |e: &dyn std::fmt::Display| candle_core::Error::Msg(format!("no header for these tensors: {e}"));
    let header = Metadata::new(None, infos).map_err(|e| sound(&e))?;
    let mut header = serde_json::to_value(&header).map_err(|e| sound(&e))?;
    // The crate stores metadata in a hash map, whose order differs between runs.
    if !notes.is_empty() {
        header["__metadata__"] = serde_json::to_value(notes).unwrap_or(Value::Null);
    }
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    Ok(bytes)
}

/// The first bytes of a file with only this tensor.
pub(crate) fn single_header(name: &str, info: &TensorInfo, notes: &[(&str, String)]) -> candle_core::Result<Vec<u8>> {
    let (from, to) = info.data_offsets;
    let info = TensorInfo { dtype: info.dtype, shape: info.shape.clone(), data_offsets: (0, to - from) };
    header_of(vec![(name.to_string(), info)], notes)
}

/// candle's dtype of a tensor. The error is a message that continues after the tensor's name.
pub(crate) fn dtype_of(info: &TensorInfo) -> std::result::Result<DType, String> {
    match DType::try_from(info.dtype) {
        Ok(DType::F6E2M3 | DType::F6E3M2 | DType::F4 | DType::F8E8M0) | Err(_) => {
            Err(format!("has the dtype {}, which candle does not support", info.dtype))
        }
        Ok(dtype) => Ok(dtype),
    }
}
