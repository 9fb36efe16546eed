//! Tables by names that may be folders here or repositories on the Hub. A table does not know where files come from.

use std::path::Path;

use crate::{PretrainedTable, Result};

impl PretrainedTable {
    /// The table of a model: a file or folder as [`open`](Self::open) takes it, or a repository on the Hugging Face Hub (`owner/name`, at
    /// a branch, tag or commit; `None`: main). From the Hub only the header and the table's bytes travel; they stay in the
    /// cache, and the second call asks nobody.
    ///
    /// # Errors
    /// - [`TextError::FeatureMissing`](crate::TextError::FeatureMissing): no such file or folder, and a build without the feature `hub`.
    /// - [`Error::Text`](crate::Error::Text) of the Hub: what was asked, what came back, what to do.
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
        ) -> Result<Self> {
            if !hub.refresh
                && let Some(table) = cached(hub, repo, revision, tensor)
            {
                return table;
            }
            let table = Remote::find(hub, repo, revision, tensor)?;
            let path = place(hub, repo, &table.file.commit, tensor);
            // The files of a commit never change; a mirror that does not say the commit may have others by now.
            let finished = || path.is_file() && (!hub.refresh || table.file.is_pinned());
            if !finished() {
                table.fetch(&path, finished, progress)?;
            }
            hub.remember(repo, revision, &table.file.commit)?;
            PretrainedTable::open(&path, tensor)
        }
    }

    /// What the cache has: a table that was pulled, or a model that the Python client fetched.
    fn cached(hub: &Hub, repo: &str, revision: Option<&str>, tensor: Option<&str>) -> Option<Result<PretrainedTable>> {
        let pulled = place(hub, repo, &hub.commit(repo, revision)?, tensor);
        if pulled.is_file() {
            return Some(PretrainedTable::open(pulled, tensor));
        }
        if let Some(whole) = hub.cached(repo, revision, WHOLE) {
            return Some(PretrainedTable::open(whole, tensor));
        }
        let index = hub.cached(repo, revision, INDEX)?;
        // Of its shards the one with the table may be missing: then it is pulled.
        PretrainedTable::open(index.parent()?, tensor).ok().map(Ok)
    }

    /// Where a table that was pulled lies: beside what the Python client has of the repository.
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
        /// Its place in the file.
        range: Range<u64>,
        /// What stands before the rows in a file that holds nothing else.
        head: Vec<u8>,
    }

    impl Remote {
        fn find(hub: &Hub, repo: &str, revision: Option<&str>, tensor: Option<&str>) -> Result<Self> {
            let (file, sharded) = open(hub, repo, revision, tensor)?;
            let place = Path::new(repo).join(sharded.as_ref().map_or(WHOLE, |sharded| &sharded.file));
            let bad = |reason: String| wrong(&place, reason);
            let first: [u8; 8] = match file.bytes {
                0..8 => return Err(bad(format!("{} bytes are no safetensors file", file.bytes))),
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

        /// Fetches the table into a file of its own, which has its name once it is whole.
        fn fetch(&self, path: &Path, finished: impl Fn() -> bool, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<()> {
            let io = |e| Error::io(path, e);
            fs::create_dir_all(folder_of(path)).map_err(io)?;
            let with = |suffix: &str| {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                PathBuf::from(name)
            };
            // The bytes, and what is known of them.
            let (incomplete, notes) = (with(".incomplete"), with(".incomplete.json"));
            let out =
                File::options().read(true).write(true).create(true).truncate(false).open(&incomplete).map_err(io)?;
            // Two processes do not write one file; who waited finds it finished.
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

    /// The file that the table is in, and what the index says of it where there is one.
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
        // Shards of the commit that the index is of.
        let commit = hub.commit(repo, revision);
        Ok((hub.open(repo, commit.as_deref().or(revision), &sharded.file)?, Some(sharded)))
    }
}
