//! Tokenizers by name: a local folder, or a repository on the Hub. The tokenizer module does not know where files come from.

use std::path::Path;

use crate::{Error, Result, Tokenizer};

impl Tokenizer {
    /// Opens the tokenizer of a model. `name` is a local folder with a `tokenizer.json`, or a repository on the Hugging Face Hub
    /// (`owner/name`). `revision` is a branch, tag or commit; `None`: main. If a repository has no `tokenizer.json`, its only
    /// `.tiktoken` file is used.
    ///
    /// # Errors
    /// - [`Error::FeatureMissing`]: there is no such folder, and this build lacks the feature `hub`.
    /// - [`Error::Hub`]: the Hub's answer, or a list of the repository's files if none of them is a tokenizer.
    /// - Those of [`from_file`](Self::from_file).
    pub fn from_pretrained(name: &str, revision: Option<&str>) -> Result<Self> {
        if Path::new(name).is_dir() {
            return Self::from_file(Path::new(name).join("tokenizer.json"));
        }
        from_hub(name, revision)
    }
}

#[cfg(not(feature = "hub"))]
fn from_hub(name: &str, _: Option<&str>) -> Result<Tokenizer> {
    Err(Error::not_here(name))
}

#[cfg(feature = "hub")]
fn from_hub(name: &str, revision: Option<&str>) -> Result<Tokenizer> {
    let hub = crate::hub::Hub::from_env();
    match hub.fetch(name, revision, "tokenizer.json") {
        Ok(path) => return Tokenizer::from_file(path),
        Err(Error::Hub { absent: true, .. }) => (),
        Err(error) => return Err(error),
    }
    let files = hub.files(name, revision)?;
    let ranks: Vec<&String> = files.iter().filter(|file| file.ends_with(".tiktoken")).collect();
    match ranks[..] {
        [file] => Tokenizer::from_file(hub.fetch(name, revision, file)?),
        _ => Err(crate::hub::nothing(name, "no tokenizer.json, and no single .tiktoken file", &files)),
    }
}
