//! A model on the command line: a file, a folder, or a repository.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tallow::PretrainedTable;

/// For --help: what a model can be.
pub const MODEL: &str = match cfg!(feature = "hub") {
    true => "A safetensors, GGUF or PyTorch file, a folder with a model, or a repository on the Hub (owner/name)",
    false => "A safetensors, GGUF or PyTorch file, or a folder with a model",
};

/// Endings of names that are files' and not repositories'.
const FILES: [&str; 7] = [".safetensors", ".gguf", ".bin", ".pth", ".pt", ".json", ".tiktoken"];

/// Whether a name that is nothing here can be a repository's: `owner/name`, and not that of a missing file.
pub fn is_repository(path: &Path) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let file = |name: &str| FILES.iter().any(|end| name.ends_with(end));
    let parts = path.to_str().and_then(|name| name.split_once('/'));
    !path.exists() && parts.is_some_and(|(owner, name)| plain(owner) && plain(name) && !file(name))
}

/// The table of a file, of a folder or of a repository.
pub fn open(model: &Path, tensor: Option<&str>) -> Result<PretrainedTable> {
    match model.to_str().filter(|_| is_repository(model)) {
        Some(repository) => Ok(PretrainedTable::from_pretrained(repository, None, tensor)?),
        None => Ok(PretrainedTable::open(model, tensor)?),
    }
}

/// The folder in which a model's other files are.
pub fn folder(model: &Path) -> PathBuf {
    match model.is_dir() {
        true => model.to_path_buf(),
        false => model.parent().map(Path::to_path_buf).unwrap_or_default(),
    }
}

/// Every file of a model: that of its table, and what lies beside it or beside the name that was given.
pub fn files(model: &Path, table: &PretrainedTable) -> Vec<PathBuf> {
    let mut files = table.files();
    match model.is_dir() {
        true => files.extend(["tokenizer.json", "config.json"].map(|name| model.join(name))),
        false => files.push(model.to_path_buf()),
    }
    files
}
