//! Opens tables by name: local files and folders, or repositories on the Hub.

use std::path::Path;

use crate::{PretrainedTable, Result};

impl PretrainedTable {
    /// The table of a model: a file or folder as for [`open`](Self::open), or a repository on the Hugging Face Hub (`owner/name`, at
    /// the branch, tag or commit `revision`; `None`: main). From the Hub only the header and the table's bytes are downloaded. They
    /// stay in the cache, and a second call makes no request.
    ///
    /// # Errors
    /// - [`TextError::FeatureMissing`](crate::TextError::FeatureMissing): no such file or folder, in a build without the feature `hub`.
    /// - [`Error::Text`](crate::Error::Text): an error of the Hub, with the request, the answer, and what to do.
    /// - those of [`open`](Self::open).
    ///
    /// # Cost
    /// Downloads the table's bytes and at most 64 KiB more, or the header if it is larger. Four parts of 8 MiB are downloaded at a time.
    /// An interrupted download continues with the missing parts.
    pub fn from_pretrained(name: &str, revision: Option<&str>, tensor: Option<&str>) -> Result<Self> {
        if Path::new(name).exists() {
            return Self::open(name, tensor);
        }
        #[cfg(feature = "hub")]
        return PretrainedTable::pull(&tallow_text::hub::Hub::from_env(), name, revision, tensor, &|_, _| ());
        #[cfg(not(feature = "hub"))]
        {
            _ = revision;
            Err(tallow_text::Error::not_here(name).into())
        }
    }
}

#[cfg(feature = "hub")]
mod online {
    use std::fs::{self, File};
    use std::ops::Range;
    use std::path::{Path, PathBuf};

    use tallow_text::hub::{Hub, RemoteFile, nothing};
    use tallow_text::support::files::{folder_of, sync_folder, write_at};

    use crate::pretrained::{Sharded, find};
    use crate::tensors::{Header, dtype_of, single_header, wrong};
    use crate::{Error, PretrainedTable, Result};

    const WHOLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";

    impl PretrainedTable {
        /// [`PretrainedTable::from_pretrained`] for a repository, with your own settings. `progress` is called with the bytes that were
        /// downloaded and their total number.
        ///
        /// # Errors
        /// As [`PretrainedTable::from_pretrained`].
        pub fn pull(
            hub: &Hub,
            repo: &str,
            revision: Option<&str>,
            tensor: Option<&str>,
            progress: &(dyn Fn(u64, u64) + Sync),
        ) -> Result<Self> {
            if !hub.refresh
                && let Some(table) = cached(hub, repo, revision, tensor)
            {
                return table;
            }
            let table = Remote::find(hub, repo, revision, tensor)?;
            let path = place(hub, repo, &table.file.commit, tensor);
            // The files of a commit never change. Files of a mirror that does not report the commit may have changed.
            let finished = || path.is_file() && (!hub.refresh || table.file.is_pinned());
            if !finished() {
                table.fetch(&path, finished, progress)?;
            }
            hub.remember(repo, revision, &table.file.commit)?;
            PretrainedTable::open(&path, tensor)
        }
    }

    /// The table in the cache: one that was pulled, or one of a model that the Python client downloaded.
    fn cached(hub: &Hub, repo: &str, revision: Option<&str>, tensor: Option<&str>) -> Option<Result<PretrainedTable>> {
        let pulled = place(hub, repo, &hub.commit(repo, revision)?, tensor);
        if pulled.is_file() {
            return Some(PretrainedTable::open(pulled, tensor));
        }
        if let Some(whole) = hub.cached(repo, revision, WHOLE) {
            return Some(PretrainedTable::open(whole, tensor));
        }
        let index = hub.cached(repo, revision, INDEX)?;
        // If the shard with the table is missing, it is pulled.
        PretrainedTable::open(index.parent()?, tensor).ok().map(Ok)
    }

    /// The path of a pulled table, in the Python client's cache folder of the repository.
    fn place(hub: &Hub, repo: &str, commit: &str, tensor: Option<&str>) -> PathBuf {
        let name: String = tensor.map_or("table".to_string(), |tensor| {
            let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
            format!("tensor-{}", tensor.chars().map(plain).collect::<String>())
        });
        hub.folder(repo).join("tallow").join(commit.replace('/', "--")).join(format!("{name}.safetensors"))
    }

    /// A table in a file on the Hub.
    struct Remote {
        file: RemoteFile,
        /// Its bytes in the file.
        range: Range<u64>,
        /// The header of a file with only this table.
        head: Vec<u8>,
    }

    impl Remote {
        fn find(hub: &Hub, repo: &str, revision: Option<&str>, tensor: Option<&str>) -> Result<Self> {
            let (file, sharded) = open(hub, repo, revision, tensor)?;
            let place = Path::new(repo).join(sharded.as_ref().map_or(WHOLE, |sharded| &sharded.file));
            let bad = |reason: String| wrong(&place, reason);
            let first: [u8; 8] = match file.bytes {
                0..8 => return Err(bad(format!("a file of {} bytes is not a safetensors file", file.bytes))),
                _ => file.read(0..8)?.try_into().map_err(|_| bad("it is torn".to_string()))?,
            };
            let length = Header::length(first, file.bytes).map_err(bad)?;
            let header = Header::parse(&file.read(8..8 + length)?, file.bytes).map_err(bad)?;
            let names = header.names();
            let tensors: Vec<_> =
                names.iter().map(|name| (name.as_str(), header.info(name).map(|info| &info.shape[..]))).collect();
            let asked = sharded.as_ref().map(|sharded| sharded.tensor.as_str()).or(tensor);
            let name = find::table(&tensors, asked).map_err(bad)?;
            let tied = match &sharded {
                Some(sharded) => sharded.tied,
                None => !find::has_head(names.iter().map(String::as_str)),
            };
            let (Some(info), Some(range)) = (header.info(name), header.range(name)) else {
                return Err(bad(format!("there is no tensor {name:?}")));
            };
            dtype_of(info).map_err(|reason| bad(format!("{name:?} {reason}")))?;
            let source = format!("{repo}@{}/{}", file.commit, place.file_name().unwrap_or_default().display());
            let head = single_header(name, info, &[("source", source), ("tied", tied.to_string())])
                .map_err(|e| bad(e.to_string()))?;
            Ok(Remote { file, range, head })
        }

        /// Downloads the table into its own file, which is renamed to its final name when it is complete.
        fn fetch(&self, path: &Path, finished: impl Fn() -> bool, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<()> {
            let io = |e| Error::io(path, e);
            fs::create_dir_all(folder_of(path)).map_err(io)?;
            let with = |suffix: &str| {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                PathBuf::from(name)
            };
            // The file with the bytes, and the file with the progress.
            let (incomplete, notes) = (with(".incomplete"), with(".incomplete.json"));
            let out =
                File::options().read(true).write(true).create(true).truncate(false).open(&incomplete).map_err(io)?;
            // Two processes must not write the same file. The one that waited for the lock finds it finished.
            out.lock().map_err(io)?;
            if finished() {
                return Ok(());
            }
            let bytes = self.range.end - self.range.start;
            out.set_len(self.head.len() as u64 + bytes).map_err(io)?;
            write_at(&out, &self.head, 0).map_err(io)?;
            progress(0, bytes);
            self.file.fetch(self.range.clone(), &out, self.head.len() as u64, &notes, progress)?;
            out.sync_all().map_err(io)?;
            fs::rename(&incomplete, path).map_err(io)?;
            fs::remove_file(&notes).or_else(|e| if notes.exists() { Err(Error::io(&notes, e)) } else { Ok(()) })?;
            Ok(sync_folder(folder_of(path))?)
        }
    }

    /// The file with the table, and the entry of the index if the model is sharded.
    fn open(
        hub: &Hub,
        repo: &str,
        revision: Option<&str>,
        tensor: Option<&str>,
    ) -> Result<(RemoteFile, Option<Sharded>)> {
        use tallow_text::Error::Hub as Answer;
        match hub.open(repo, revision, WHOLE) {
            Err(Answer { absent: true, .. }) => (),
            file => return Ok((file?, None)),
        }
        let index = match hub.fetch(repo, revision, INDEX) {
            Err(Answer { absent: true, .. }) => {
                let why = "no model.safetensors, alone or in shards";
                return Err(nothing(repo, why, &hub.files(repo, revision)?).into());
            }
            index => index?,
        };
        let json = fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let sharded = Sharded::parse(&json, tensor).map_err(|reason| wrong(&index, reason))?;
        // Shards of the same commit as the index.
        let commit = hub.commit(repo, revision);
        Ok((hub.open(repo, commit.as_deref().or(revision), &sharded.file)?, Some(sharded)))
    }
}
