//! Names that may be folders here or repositories on the Hub.

use std::path::Path;

use crate::{PretrainedTable, Result, Tokenizer};

#[cfg(feature = "hub")]
pub use online::pull;

// Here, because neither a tokenizer nor a table knows where files come from.
impl Tokenizer {
    /// The tokenizer of a model: a folder with a `tokenizer.json`, or a repository on the Hugging Face Hub (`owner/name`, at a
    /// branch, tag or commit; `None`: main). Where a repository has no `tokenizer.json`, its only `.tiktoken` file is taken.
    ///
    /// # Errors
    /// - [`Error::Config`](crate::Error::Config): no such folder, and a build without the feature `hub`.
    /// - [`Error::Hub`](crate::Error::Hub): what was asked, what came back, what to do; with the repository's files, where none is of use.
    /// - those of [`from_file`](Self::from_file).
    pub fn from_pretrained(name: &str, revision: Option<&str>) -> Result<Self> {
        if Path::new(name).is_dir() {
            return Self::from_file(Path::new(name).join("tokenizer.json"));
        }
        #[cfg(feature = "hub")]
        return online::tokenizer(name, revision);
        #[cfg(not(feature = "hub"))]
        Err(without_hub(name, revision))
    }
}

impl PretrainedTable {
    /// The table of a model: a file or folder as [`open`](Self::open) takes it, or a repository on the Hugging Face Hub (`owner/name`, at
    /// a branch, tag or commit; `None`: main). From the Hub only the header and the table's bytes travel; they stay in the
    /// cache, and the second call asks nobody.
    ///
    /// # Errors
    /// - [`Error::Config`](crate::Error::Config): no such file or folder, and a build without the feature `hub`.
    /// - [`Error::Hub`](crate::Error::Hub): what was asked, what came back, what to do.
    /// - those of [`open`](Self::open).
    ///
    /// # Cost
    /// The table's bytes and at most 64 KiB or the header more, in four parts of 8 MiB at a time. A call that was cut short goes on
    /// with the parts that are missing.
    pub fn from_pretrained(name: &str, revision: Option<&str>, tensor: Option<&str>) -> Result<Self> {
        if Path::new(name).exists() {
            return Self::open(name, tensor);
        }
        #[cfg(feature = "hub")]
        return pull(&crate::hub::Hub::from_env(), name, revision, tensor, &|_, _| ());
        #[cfg(not(feature = "hub"))]
        Err(without_hub(name, revision))
    }
}

#[cfg(not(feature = "hub"))]
fn without_hub(name: &str, _: Option<&str>) -> crate::Error {
    crate::Error::Config(format!(
        "{name:?} is no file or folder here; to look for it on the Hugging Face Hub build with `--features hub`"
    ))
}

#[cfg(feature = "hub")]
mod online {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    use crate::hub::{Hub, unfinished};
    use crate::pretrained::{Sharded, find};
    use crate::tensors::{Header, dtype_of, single_header};
    use crate::{Error, PretrainedTable, Result, Tokenizer};

    const WHOLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";

    pub(super) fn tokenizer(name: &str, revision: Option<&str>) -> Result<Tokenizer> {
        let hub = Hub::from_env();
        match hub.fetch(name, revision, "tokenizer.json") {
            Ok(path) => Tokenizer::from_file(path),
            Err(error) if !absent(&error) => Err(error),
            Err(_) => {
                let files = hub.files(name, revision)?;
                let ranks: Vec<&String> = files.iter().filter(|file| file.ends_with(".tiktoken")).collect();
                match ranks[..] {
                    [file] => Tokenizer::from_file(hub.fetch(name, revision, file)?),
                    _ => Err(nothing(name, "no tokenizer.json, and no single .tiktoken file", &files)),
                }
            }
        }
    }

    /// [`PretrainedTable::from_pretrained`] for a repository, with settings of your own; `progress` hears of bytes that are here, and of
    /// how many there will be.
    ///
    /// # Errors
    /// As [`PretrainedTable::from_pretrained`].
    pub fn pull(
        hub: &Hub,
        repo: &str,
        revision: Option<&str>,
        tensor: Option<&str>,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<PretrainedTable> {
        if !hub.refresh
            && let Some(commit) = hub.commit(repo, revision)
        {
            let pulled = pulled(hub, repo, &commit, tensor);
            if pulled.is_file() {
                return PretrainedTable::open(pulled, tensor);
            }
            // Files that the Python client fetched serve as well.
            if let Some(whole) = hub.cached(repo, revision, WHOLE) {
                return PretrainedTable::open(whole, tensor);
            }
            if let Some(index) = hub.cached(repo, revision, INDEX)
                && let Some(folder) = index.parent()
                && let Ok(table) = PretrainedTable::open(folder, tensor)
            {
                return Ok(table);
            }
        }
        let (remote, sharded) = match hub.open(repo, revision, WHOLE) {
            Ok(remote) => (remote, None),
            Err(error) if !absent(&error) => return Err(error),
            Err(_) => {
                let index = match hub.fetch(repo, revision, INDEX) {
                    Err(error) if absent(&error) => {
                        let why = "no model.safetensors, alone or in shards";
                        return Err(nothing(repo, why, &hub.files(repo, revision)?));
                    }
                    index => index?,
                };
                let json = fs::read(&index).map_err(|e| Error::io(&index, e))?;
                let sharded = Sharded::parse(&json, tensor).map_err(|reason| crate::tensors::wrong(&index, reason))?;
                // Shards of the commit that the index is of.
                let commit = hub.commit(repo, revision);
                (hub.open(repo, commit.as_deref().or(revision), &sharded.file)?, Some(sharded))
            }
        };
        let place = Path::new(repo).join(sharded.as_ref().map_or(WHOLE, |sharded| &sharded.file));
        let sound = |reason: String| crate::tensors::wrong(&place, reason);
        let first: [u8; 8] = match remote.bytes {
            0..8 => return Err(sound(format!("{} bytes are no safetensors file", remote.bytes))),
            _ => remote.read(0..8)?.try_into().map_err(|_| sound("it is torn".to_string()))?,
        };
        let length = Header::length(first, remote.bytes).map_err(sound)?;
        let header = Header::parse(&remote.read(8..8 + length)?, remote.bytes).map_err(sound)?;
        let names = header.names();
        let tensors: Vec<_> =
            names.iter().map(|name| (name.as_str(), header.info(name).map(|info| &info.shape[..]))).collect();
        let asked = sharded.as_ref().map(|sharded| sharded.tensor.as_str()).or(tensor);
        let name = find::table(&tensors, asked).map_err(sound)?;
        let tied = match &sharded {
            Some(sharded) => sharded.tied,
            None => !find::has_head(names.iter().map(String::as_str)),
        };
        let (Some(info), Some(range)) = (header.info(name), header.range(name)) else {
            return Err(sound(format!("there is no tensor {name:?}")));
        };
        dtype_of(info).map_err(|reason| sound(format!("{name:?} {reason}")))?;

        let path = pulled(hub, repo, &remote.commit, tensor);
        let folder = crate::files::folder_of(&path);
        let io = |e| Error::io(&path, e);
        fs::create_dir_all(folder).map_err(io)?;
        // The files of a commit never change; a mirror that does not say the commit may have others by now.
        let finished = || path.is_file() && (!hub.refresh || remote.is_pinned());
        if finished() {
            hub.remember(repo, revision, &remote.commit)?;
            return PretrainedTable::open(&path, tensor);
        }
        let (incomplete, notes) = unfinished(&path);
        let out = File::options().read(true).write(true).create(true).truncate(false).open(&incomplete).map_err(io)?;
        // Two processes do not write one file; who waited finds it finished.
        out.lock().map_err(io)?;
        if finished() {
            return PretrainedTable::open(&path, tensor);
        }
        let source = format!("{repo}@{}/{}", remote.commit, place.file_name().unwrap_or_default().display());
        let head = single_header(name, info, &[("source", source), ("tied", tied.to_string())])
            .map_err(|e| sound(e.to_string()))?;
        let bytes = range.end - range.start;
        out.set_len(head.len() as u64 + bytes).map_err(io)?;
        crate::files::write_at(&out, &head, 0).map_err(io)?;
        let arrived = std::sync::atomic::AtomicU64::new(0);
        progress(0, bytes);
        remote.fetch(range, &out, head.len() as u64, &notes, &|count| {
            progress(arrived.fetch_add(count, std::sync::atomic::Ordering::Relaxed) + count, bytes);
        })?;
        out.sync_all().map_err(io)?;
        fs::rename(&incomplete, &path).map_err(io)?;
        fs::remove_file(&notes).or_else(|e| if notes.exists() { Err(Error::io(&notes, e)) } else { Ok(()) })?;
        crate::files::sync_folder(folder)?;
        hub.remember(repo, revision, &remote.commit)?;
        PretrainedTable::open(&path, tensor)
    }

    /// Where a table that was pulled lies: beside what the Python client has of the repository.
    fn pulled(hub: &Hub, repo: &str, commit: &str, tensor: Option<&str>) -> PathBuf {
        let name: String = tensor.map_or("table".to_string(), |tensor| {
            let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
            format!("tensor-{}", tensor.chars().map(plain).collect::<String>())
        });
        hub.folder(repo).join("tallow").join(commit.replace('/', "--")).join(format!("{name}.safetensors"))
    }

    /// Whether the file is not there; mirrors do not always say that the repository is.
    fn absent(error: &Error) -> bool {
        matches!(error, Error::Hub { answer, .. } if answer.contains("EntryNotFound") || answer == "404 Not Found")
    }

    fn nothing(repo: &str, why: &str, files: &[String]) -> Error {
        let shown = files.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
        let more = if files.len() > 20 { ", …" } else { "" };
        Error::Hub {
            asked: repo.to_string(),
            answer: why.to_string(),
            advice: format!("it has {shown}{more}: fetch one (hub::fetch) and open it"),
        }
    }
}
