//! A GGUF reader that finds a tensor and dequantizes its rows. candle's reader keeps all metadata, and trusts the file's alignment.
//! This one skips the metadata, and checks every value.
//!
//! Source: the GGUF specification, versions 2 and 3.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};

use super::wrong;
use crate::{Error, Result};
use tallow_text::support::files::{open_regular, read_at};

/// Maximum depth of nested arrays.
const MAX_DEPTH: usize = 4;

/// A GGUF file whose header was read.
pub(crate) struct Gguf {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Info>,
}

/// A tensor of a GGUF file.
pub(crate) struct Info {
    /// The slowest dimension first. (The file has the opposite order.)
    pub(crate) shape: Vec<usize>,
    /// Its type, or the number of a type that candle cannot dequantize. The table may still be of another type.
    pub(crate) dtype: std::result::Result<GgmlDType, u32>,
    /// Its first byte in the file.
    start: u64,
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let header = Cursor { bytes, at: 0, file: BufReader::new(&file) };
        let tensors = header.read().map_err(|reason| wrong(path, format!("this GGUF file is not sound: {reason}")))?;
        Ok(Gguf { path: path.to_path_buf(), file, tensors })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    pub(crate) fn info(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name)
    }

    /// Rows of a table, dequantized to f32.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let Some(info @ Info { shape, dtype, start }) = self.tensors.get(name) else {
            return Err(wrong(&self.path, format!("there is no tensor {name:?}")));
        };
        let (Ok(dtype), Some(row_bytes)) = (dtype, info.row_bytes()) else {
            return Err(wrong(&self.path, format!("{name:?} is not a table: its shape is {shape:?}")));
        };
        // Within the file: `read` checked the end of the tensor.
        let from = start + rows.start as u64 * row_bytes as u64;
        let length = rows.len() * row_bytes;
        let mut words = vec![0u32; length.div_ceil(4)]; // candle needs aligned blocks
        let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..length];
        read_at(&self.file, bytes, from).map_err(|e| Error::io(&self.path, e))?;
        let storage = QStorage::from_data((&*bytes).into(), &Device::Cpu, *dtype)?;
        Ok(QTensor::new(storage, (rows.len(), shape[1]))?.dequantize(&Device::Cpu)?)
    }
}

impl Info {
    /// Bytes of a row. `None` if rows are not whole blocks.
    fn row_bytes(&self) -> Option<usize> {
        let (&[_, columns], Ok(dtype)) = (&self.shape[..], self.dtype) else { return None };
        columns.is_multiple_of(dtype.block_size()).then(|| columns / dtype.block_size() * dtype.type_size())
    }
}

type Sound<T> = std::result::Result<T, String>;

/// Reads the header sequentially. Every length in it is checked against the rest of the file.
struct Cursor<'f> {
    bytes: u64,
    at: u64,
    file: BufReader<&'f File>,
}

impl Cursor<'_> {
    fn read(mut self) -> Sound<BTreeMap<String, Info>> {
        let magic: [u8; 4] = self.take()?;
        let version = self.u32()?;
        if &magic != b"GGUF" {
            return Err(format!("it begins with {magic:?}"));
        }
        if !(2..=3).contains(&version) {
            return Err(format!("version {version}, not 2 or 3"));
        }
        let (count, values) = (self.u64()?, self.u64()?);
        let mut alignment = 32;
        for _ in 0..values {
            let key = self.string()?;
            let kind = self.u32()?;
            match (key.as_str(), kind) {
                ("general.alignment", 4) => alignment = u64::from(self.u32()?),
                _ => self.pass_over(kind, 0)?,
            }
        }
        if !alignment.is_power_of_two() {
            return Err(format!("an alignment of {alignment}"));
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..count {
            let name = self.string()?;
            let dimensions = self.u32()?;
            if dimensions > 8 {
                return Err(format!("{name:?} has {dimensions} dimensions"));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                shape.push(usize::try_from(self.u64()?).map_err(|e| format!("{name:?}: {e}"))?);
            }
            shape.reverse();
            let (dtype, start) = (self.u32()?, self.u64()?);
            tensors.insert(name, Info { shape, dtype: dtype_of(dtype).ok_or(dtype), start });
        }
        let data = self.at.checked_next_multiple_of(alignment).ok_or("it is too long")?;
        for (name, info) in &mut tensors {
            // The size of other types is not known, and they are not read.
            let Ok(dtype) = info.dtype else { continue };
            let elements = info.shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
            let end = elements
                .and_then(|n| (n.div_ceil(dtype.block_size())).checked_mul(dtype.type_size()))
                .and_then(|bytes| data.checked_add(info.start)?.checked_add(bytes as u64));
            info.start = data.saturating_add(info.start);
            if end.is_none_or(|end| end > self.bytes) {
                let shape = &info.shape;
                return Err(format!("{name:?} of shape {shape:?} goes beyond the {} bytes of the file", self.bytes));
            }
        }
        Ok(tensors)
    }

    fn take<const N: usize>(&mut self) -> Sound<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(|_| format!("it ends at byte {}", self.bytes))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Sound<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Sound<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn string(&mut self) -> Sound<String> {
        let length = self.u64()?;
        if length > self.bytes - self.at {
            return Err(format!("a name of {length} bytes at byte {}", self.at));
        }
        let mut bytes = Vec::new();
        (&mut self.file).take(length).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        self.at += length;
        String::from_utf8(bytes).map_err(|_| format!("a name that is not UTF-8 before byte {}", self.at))
    }

    fn skip(&mut self, bytes: u64) -> Sound<()> {
        if bytes > self.bytes - self.at {
            return Err(format!("a value of {bytes} bytes at byte {}", self.at));
        }
        self.file.seek_relative(bytes as i64).map_err(|e| e.to_string())?;
        self.at += bytes;
        Ok(())
    }

    /// Skips a value of the metadata.
    fn pass_over(&mut self, kind: u32, depth: usize) -> Sound<()> {
        if let Some(bytes) = width(kind) {
            return self.skip(bytes);
        }
        match kind {
            8 => {
                let length = self.u64()?;
                self.skip(length)
            }
            9 if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                match width(kind) {
                    Some(bytes) => self.skip(count.saturating_mul(bytes)),
                    // Every element has bytes in the file, so this terminates.
                    None => (0..count).try_for_each(|_| self.pass_over(kind, depth + 1)),
                }
            }
            _ => Err(format!("a value of kind {kind} before byte {}", self.at)),
        }
    }
}

/// Bytes of the kinds of values with a fixed size.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// candle's type for a type number, if candle can dequantize it.
fn dtype_of(number: u32) -> Option<GgmlDType> {
    use GgmlDType::*;
    Some(match number {
        0 => F32,
        1 => F16,
        2 => Q4_0,
        3 => Q4_1,
        6 => Q5_0,
        7 => Q5_1,
        8 => Q8_0,
        10 => Q2K,
        11 => Q3K,
        12 => Q4K,
        13 => Q5K,
        14 => Q6K,
        30 => BF16,
        _ => return None,
    })
}

/// ggml's names of the other types, including removed ones.
///
/// Source: `enum ggml_type` of ggml.h.
pub(crate) fn type_name(number: u32) -> Option<&'static str> {
    Some(match number {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}
