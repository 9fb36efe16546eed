//! Files of named tensors: safetensors, GGUF, and PyTorch's format. Lengths in a file are checked against its size before memory is
//! allocated.
//!
//! This module does not depend on the use of the tensors.

mod gguf;
mod pickle;
mod pth;
mod safetensors;

use std::fs::File;
use std::ops::Range;
use std::path::Path;

pub(crate) use gguf::{Gguf, type_name};
pub(crate) use pth::{Pth, is_pth};
#[cfg(feature = "hub")]
pub(crate) use safetensors::Header;
pub(crate) use safetensors::{TensorFile, dtype_of, single_header, write};

use crate::Error;

/// The error for weight files.
pub(crate) fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), reason: reason.into() }
}

/// Reads bytes of a file. The range must be within the file.
pub(crate) fn read_at(file: &File, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    tallow_text::support::files::read_at(file, &mut bytes, range.start)?;
    Ok(bytes)
}
