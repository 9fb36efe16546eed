//! Recognizes the format of a weight file, and finds its table.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use candle_core::DType;

use super::files::{MAX_INDEX_BYTES, WHOLE, index_of, weight_files};
use super::{PretrainedTable, Source, find};
use crate::tensors::{Gguf, Pth, TensorFile, dtype_of, is_pth, type_name, wrong};
use crate::{Error, Result};
use tallow_text::support::files::open_regular;

/// The format of a weight file, by its first bytes.
pub(super) enum Kind {
    Safetensors,
    Gguf,
    Pth,
}

impl Kind {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let mut first = Vec::new();
        open_regular(path).and_then(|f| f.take(512).read_to_end(&mut first)).map_err(|e| Error::io(path, e))?;
        if first.starts_with(b"version https://git-lfs") {
            return Err(wrong(
                path,
                "this is only the Git LFS pointer to a file: fetch the file itself (git lfs pull)",
            ));
        }
        // A safetensors file starts with an 8-byte length. The ninth byte is the first of its header.
        let safetensors = first.get(8) == Some(&b'{');
        if !safetensors && first.get(257..262) == Some(b"ustar") {
            return Err(wrong(
                path,
                "this is a tar file, as PyTorch wrote them before 0.4: save it again with PyTorch 1.6 or newer, \
                 torch.save(torch.load(...), ...)",
            ));
        }
        Ok(match &first[..] {
            [b'G', b'G', b'U', b'F', ..] => Kind::Gguf,
            first if !safetensors && is_pth(first) => Kind::Pth,
            _ => Kind::Safetensors,
        })
    }
}

pub(super) fn file(path: &Path, tensor: Option<&str>) -> Result<PretrainedTable> {
    let (name, shape, dtype, tied, source) = match Kind::of(path)? {
        Kind::Gguf => gguf(path, tensor)?,
        Kind::Pth => pth(path, tensor)?,
        Kind::Safetensors => safetensors(path, tensor)?,
    };
    match *shape {
        [rows, columns] if rows > 0 && columns > 0 && rows <= u32::MAX as usize => {
            Ok(PretrainedTable { path: path.to_path_buf(), name, shape: (rows, columns), dtype, tied, source })
        }
        _ => Err(wrong(path, format!("{name:?} is not a table: its shape is {shape:?}"))),
    }
}

/// A table's name, shape, dtype, whether it is tied, and its rows.
type Found = (String, Vec<usize>, DType, bool, Source);

fn safetensors(path: &Path, tensor: Option<&str>) -> Result<Found> {
    let file = TensorFile::open(path)?;
    let names = file.header.names();
    let tensors: Vec<_> =
        names.iter().map(|name| (name.as_str(), file.header.info(name).map(|info| &info.shape[..]))).collect();
    let name = find::table(&tensors, tensor).map_err(|reason| wrong(path, reason))?;
    // The file of a pulled table has a note that says whether its model is tied.
    let tied = match file.header.note("tied") {
        Some(note) => note == "true",
        None => !find::has_head(names.iter().map(String::as_str)),
    };
    let changed = || wrong(path, "its header changed while it was read");
    let info = file.header.info(name).ok_or_else(changed)?;
    let dtype = dtype_of(info).map_err(|reason| wrong(path, format!("{name:?} {reason}")))?;
    let shape = info.shape.clone();
    let (file, start) = file.rows(name).ok_or_else(changed)?;
    Ok((name.to_string(), shape, dtype, tied, Source::Rows(file, start)))
}

fn gguf(path: &Path, tensor: Option<&str>) -> Result<Found> {
    let file = Gguf::open(path)?;
    let names = file.names();
    let tensors: Vec<_> =
        names.iter().map(|name| (name.as_str(), file.info(name).map(|info| &info.shape[..]))).collect();
    let name = find::table(&tensors, tensor).map_err(|reason| wrong(path, reason))?;
    let Some(info) = file.info(name) else { return Err(wrong(path, format!("there is no tensor {name:?}"))) };
    if let Err(number) = info.dtype {
        let kind = type_name(number).map_or(number.to_string(), |name| format!("{name} ({number})"));
        let reason = format!("{name:?} has the type {kind}, which cannot be read; take the model as F16, Q8_0 or Q4_K");
        return Err(wrong(path, reason));
    }
    let tied = !find::has_head(names.iter().map(String::as_str));
    Ok((name.to_string(), info.shape.clone(), DType::F32, tied, Source::Gguf(file)))
}

fn pth(path: &Path, tensor: Option<&str>) -> Result<Found> {
    let file = Pth::open(path)?;
    let tensors: Vec<_> = file.tensors.iter().map(|(name, info)| (name.as_str(), Some(&info.shape[..]))).collect();
    let name = find::table(&tensors, tensor).map_err(|reason| wrong(path, reason))?.to_string();
    let Some(info) = file.tensors.get(&name) else { return Err(wrong(path, format!("there is no tensor {name:?}"))) };
    // A tied head has its own name in the file, but is the same view of the same storage.
    let own = file.tensors.iter().filter(|(_, other)| *other != info).map(|(name, _)| name.as_str());
    let (tied, shape) = (!find::has_head(own), info.shape.clone());
    let (file, start, dtype) = file.rows(&name)?;
    Ok((name, shape, dtype, tied, Source::Rows(file, start)))
}

pub(super) fn folder(folder: &Path, tensor: Option<&str>) -> Result<PretrainedTable> {
    for whole in WHOLE {
        let (index, whole) = (index_of(folder, whole), folder.join(whole));
        if whole.is_file() {
            return file(&whole, tensor);
        }
        if index.is_file() {
            let mut bytes = Vec::new();
            let opened = open_regular(&index).map_err(|e| Error::io(&index, e))?;
            opened.take(MAX_INDEX_BYTES).read_to_end(&mut bytes).map_err(|e| Error::io(&index, e))?;
            let shard = Sharded::parse(&bytes, tensor).map_err(|reason| wrong(&index, reason))?;
            let mut table = file(&folder.join(&shard.file), Some(&shard.tensor))?;
            table.tied = shard.tied;
            return Ok(table);
        }
    }
    let known = weight_files(folder)?;
    match &known[..] {
        [one] => file(one, tensor),
        [] => Err(wrong(folder, "this folder has no safetensors, GGUF or PyTorch file")),
        many => {
            let names: Vec<_> = many.iter().filter_map(|p| p.file_name()).map(|n| n.display().to_string()).collect();
            Err(wrong(folder, format!("it has several weight files, open one of them: {}", names.join(", "))))
        }
    }
}

/// The table's location in a sharded model, by its index.
pub(crate) struct Sharded {
    pub(crate) tensor: String,
    pub(crate) file: String,
    pub(crate) tied: bool,
}

impl Sharded {
    pub(crate) fn parse(json: &[u8], tensor: Option<&str>) -> std::result::Result<Self, String> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = serde_json::from_slice(json).map_err(|e| format!("it is not an index of shards: {e}"))?;
        let names: Vec<_> = index.weight_map.keys().map(|name| (name.as_str(), None)).collect();
        let name = find::table(&names, tensor)?;
        let file = index.weight_map.get(name).cloned().unwrap_or_default();
        // An untrusted index must not refer to files outside its folder.
        if file.is_empty() || file.contains(['/', '\\', ':']) || file == ".." || file == "." {
            return Err(format!("the index says that {name:?} is in {file:?}, which is not a plain file name"));
        }
        let tied = !find::has_head(index.weight_map.keys().map(String::as_str));
        Ok(Sharded { tensor: name.to_string(), file, tied })
    }
}
