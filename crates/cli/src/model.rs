//! A model on the command line: a file, a folder, or a repository.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tallow::PretrainedTable;

/// The help of the argument MODEL.
pub const MODEL: &str = match cfg!(feature = "hub") {
    true => "A safetensors, GGUF or PyTorch file, a folder with a model, or a repository on the Hub (owner/name)",
    false => {
        "A safetensors, GGUF or PyTorch file, or a folder with a model (a repository on the Hub needs a build with --features hub)"
    }
};

/// Endings of file names. A repository has none of them.
const FILES: [&str; 7] = [".safetensors", ".gguf", ".bin", ".pth", ".pt", ".json", ".tiktoken"];

/// Whether a path names a repository on the Hub: it does not exist here, has the form `owner/name`, and has no ending of a file.
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

/// Opens the table of a file, a folder or a repository.
pub fn open(model: &Path, tensor: Option<&str>) -> Result<PretrainedTable> {
    match model.to_str().filter(|_| is_repository(model)) {
        Some(repository) => Ok(PretrainedTable::from_pretrained(repository, None, tensor)?),
        None => {
            must_exist(model, " (a repository on the Hub is named owner/name)")?;
            Ok(PretrainedTable::open(model, tensor)?)
        }
    }
}

/// An error for a path that does not exist. `advice` ends the message.
pub fn must_exist(path: &Path, advice: &str) -> Result<()> {
    ensure!(!matches!(path.try_exists(), Ok(false)), "{}: No such file or folder{advice}", path.display());
    Ok(())
}

/// The folder that holds the model's other files.
pub fn folder(model: &Path) -> PathBuf {
    match model.is_dir() {
        true => model.to_path_buf(),
        false => model.parent().map(Path::to_path_buf).unwrap_or_default(),
    }
}

/// The files that are read of a model: those of its table, its tokenizer and its config.
pub fn files(model: &Path, table: &PretrainedTable) -> Vec<PathBuf> {
    let mut files = table.files();
    match model.is_dir() {
        true => files.extend(["tokenizer.json", "config.json"].map(|name| model.join(name))),
        false => files.push(model.to_path_buf()),
    }
    files
}
