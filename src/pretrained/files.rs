//! The files of a model, in the folder layout of transformers.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use tallow_text::support::files::folder_of;

use super::PretrainedTable;
use crate::{Error, Result};

/// File names of models in one file. A model in shards has an index instead: the name and `.index.json`.
pub(super) const WHOLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const ENDINGS: [&str; 5] = ["safetensors", "gguf", "bin", "pth", "pt"];

/// Largest index of a sharded model that is read.
pub(super) const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The path of the index of this model's shards.
pub(super) fn index_of(folder: &Path, whole: &str) -> PathBuf {
    folder.join(format!("{whole}.index.json"))
}

/// Whether a file's extension is that of a weight file.
pub(super) fn has_ending(path: &Path) -> bool {
    path.extension().is_some_and(|end| ENDINGS.iter().any(|known| end == *known))
}

/// The weight files in a model's folder: the file of the whole model, else the shards in its index, else all files with the extension of
/// a weight file. Missing shards are left out. The list is empty if there is no model.
///
/// # Errors
/// [`Error::Io`]: the folder cannot be read.
pub fn weight_files(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let folder = folder.as_ref();
    for whole in WHOLE {
        let (one, index) = (folder.join(whole), index_of(folder, whole));
        if one.is_file() {
            return Ok(vec![one]);
        }
        if index.is_file() {
            return Ok(shards(&index));
        }
    }
    let io = |e| Error::io(folder, e);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        files.extend(Some(entry.map_err(io)?.path()).filter(|path| has_ending(path)));
    }
    files.sort();
    Ok(files)
}

impl PretrainedTable {
    /// All files of this table's model: the usual names in the table's folder (weights, shards, index, tokenizer.json, config.json),
    /// whether they exist or not. A program that writes files must not overwrite them.
    pub fn files(&self) -> Vec<PathBuf> {
        let folder = folder_of(&self.path);
        let mut files = vec![self.path.clone()];
        files.extend(["tokenizer.json", "config.json"].map(|name| folder.join(name)));
        for whole in WHOLE {
            let index = index_of(folder, whole);
            files.extend(shards(&index));
            files.extend([folder.join(whole), index]);
        }
        files
    }
}

/// The files in an index that exist.
fn shards(index: &Path) -> Vec<PathBuf> {
    let mut json = Vec::new();
    let read = File::open(index).and_then(|file| file.take(MAX_INDEX_BYTES).read_to_end(&mut json));
    let json: serde_json::Value = read.ok().and_then(|_| serde_json::from_slice(&json).ok()).unwrap_or_default();
    let names = json["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let names: BTreeSet<&str> = names.filter_map(|name| name.as_str()).collect();
    // An untrusted index must not refer to files outside its folder.
    let plain = |name: &&str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    names.into_iter().filter(plain).map(|name| index.with_file_name(name)).filter(|path| path.is_file()).collect()
}
