//! A model on the command line: its table, its files, and whether a tokenizer is its own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, ensure};
use tallow::{PretrainedTable, Tokenizer};

/// For --help: what a model can be.
pub const MODEL: &str = match cfg!(feature = "hub") {
    true => "A safetensors, GGUF or PyTorch file, a folder with a model, or a repository on the Hub (owner/name)",
    false => "A safetensors, GGUF or PyTorch file, or a folder with a model",
};

/// Names of whole models, as transformers gives them. Of shards there is an index instead.
const WHOLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const KNOWN: [&str; 5] = ["safetensors", "gguf", "bin", "pth", "pt"];

/// Whether a name that is nothing here can be a repository's: `owner/name`, and not that of a missing file.
pub fn is_repository(path: &Path) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let file = |name: &str| KNOWN.iter().chain(&["json", "tiktoken"]).any(|end| name.ends_with(&format!(".{end}")));
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

/// Every file of a model: that of its table, the other shards, and what lies beside them.
pub fn files(model: &Path, table: &PretrainedTable) -> Vec<PathBuf> {
    let folders = BTreeSet::from([folder(model), folder(table.path())]);
    let mut files = vec![model.to_path_buf(), table.path().to_path_buf()];
    files.retain(|file| !file.is_dir());
    for folder in folders {
        files.extend(["tokenizer.json", "config.json"].map(|name| folder.join(name)));
        for whole in WHOLE {
            let index = folder.join(format!("{whole}.index.json"));
            files.extend(shards(&index));
            files.extend([folder.join(whole), index]);
        }
    }
    files
}

/// The files of weights of a folder: one, or the shards that its index names. None where that is in doubt.
pub fn weights(folder: &Path) -> Vec<PathBuf> {
    for whole in WHOLE {
        let (one, index) = (folder.join(whole), folder.join(format!("{whole}.index.json")));
        if one.is_file() {
            return vec![one];
        }
        if index.is_file() {
            return shards(&index);
        }
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|end| KNOWN.iter().any(|known| end == *known))).collect()
}

/// The files that an index names, as far as they are there.
fn shards(index: &Path) -> Vec<PathBuf> {
    let mut json = Vec::new();
    let read = File::open(index).and_then(|file| file.take(64 << 20).read_to_end(&mut json));
    let index_json: serde_json::Value = read.ok().and_then(|_| serde_json::from_slice(&json).ok()).unwrap_or_default();
    let names = index_json["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let names: BTreeSet<&str> = names.filter_map(|name| name.as_str()).collect();
    // A stranger's index must not lead out of its folder.
    let plain = |name: &&str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    names.into_iter().filter(plain).map(|name| index.with_file_name(name)).filter(|path| path.is_file()).collect()
}

/// Refuses a tokenizer that cannot be the table's: the table must have a row for every ordinary token, and at most 5 % or 1024
/// rows more than the tokenizer has ids. (Models pad their tables: DeepSeek-V2 by 2.4 %, Phi-2 by 905 rows.)
pub fn fits(tokenizer: &Tokenizer, table: &PretrainedTable) -> Result<()> {
    let (rows, ids) = (table.vocab_size(), tokenizer.table_rows());
    let (least, most) = (tokenizer.table_rows_ordinary(), ids + (ids / 20).max(1024));
    ensure!(
        (least..=most).contains(&rows),
        "{}: a table of {rows} rows is not {}'s, which needs {least} and can be padded to {most}: give its own tokenizer \
         (--tokenizer)",
        table.path().display(),
        tokenizer.name()
    );
    Ok(())
}
