//! Files of named tensors: safetensors, GGUF, and PyTorch's own. Whatever a file says of lengths is compared with the
//! file before memory is taken.
//!
//! This module does not know what the tensors are for.

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

/// The error of every file of weights.
pub(crate) fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), reason: reason.into() }
}

/// Bytes of a file that is known to be that long.
pub(crate) fn read_at(file: &File, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    tallow_text::support::files::read_at(file, &mut bytes, range.start)?;
    Ok(bytes)
}
