//! The folder of a checkpoint. It is renamed to its final name when all files are written; its marker lists them with checksums.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::tensors::wrong;
use crate::{Error, Result};
use tallow_text::support::files::{TEMPORARY, open_regular, sync_folder, temporary_folder};

/// Largest JSON file that is read.
pub(super) const MAX_JSON_BYTES: u64 = 16 << 20;
const MARKER: &str = "complete.json";
const VERSION: u32 = 1;
/// Suffix of a checkpoint's folder while a new one of the same step replaces it.
const REPLACED: &str = ".replaced";

/// The marker's content.
#[derive(Serialize, Deserialize)]
struct Marker {
    format: String,
    version: u32,
    files: BTreeMap<String, Facts>,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    bytes: u64,
    crc32: u32,
}

/// The folder of a step's checkpoint.
pub(super) fn path_of(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:08}"))
}

/// A checkpoint that is being written. Dropping it before [`finish`](Self::finish) deletes its files.
pub(super) struct Draft {
    folder: PathBuf,
    target: PathBuf,
    temporary: TempDir,
    files: BTreeMap<String, Facts>,
}

impl Draft {
    /// Starts a checkpoint in `folder`, and deletes the temporary folders of killed processes. An error if `folder` is a checkpoint
    /// itself or holds a later step: a load would not find the new checkpoint.
    pub(super) fn new(folder: &Path, step: u64) -> Result<Self> {
        if is_checkpoint(folder) {
            return Err(wrong(
                folder,
                "this folder is a checkpoint itself: save into its parent folder, or into another one",
            ));
        }
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        if let Some(later) = newest(folder)?.filter(|path| step_of(path).is_some_and(|there| there > step)) {
            let reason = format!(
                "it is later than step {step}: a load would take it instead of the new checkpoint. To continue from an earlier step, \
                 save into another folder, or move the later checkpoints away first. Nothing was written"
            );
            return Err(wrong(&later, reason));
        }
        for path in entries(folder)? {
            if name_of(&path).starts_with(TEMPORARY) && path.is_dir() {
                fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        let temporary = temporary_folder(folder)?;
        let target = path_of(folder, step);
        Ok(Draft { folder: folder.to_path_buf(), target, temporary, files: BTreeMap::new() })
    }

    /// Writes one file and syncs it to the disk.
    pub(super) fn write(
        &mut self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> candle_core::Result<()>,
    ) -> Result<()> {
        // Messages name the final path, not the temporary one.
        let io = |e| Error::io(self.target.join(name), e);
        let file = File::create_new(self.temporary.path().join(name)).map_err(io)?;
        let mut out = Summed { out: BufWriter::with_capacity(1 << 16, file), crc32: Hasher::new(), bytes: 0 };
        content(&mut out).map_err(|error| match error {
            candle_core::Error::Io(cause) => io(cause),
            error => error.into(),
        })?;
        out.flush().and_then(|()| out.out.get_ref().sync_all()).map_err(io)?;
        self.files.insert(name.to_string(), Facts { bytes: out.bytes, crc32: out.crc32.finalize() });
        Ok(())
    }

    /// Writes the marker, and renames the folder to its final name.
    pub(super) fn finish(mut self) -> Result<PathBuf> {
        let files = std::mem::take(&mut self.files);
        let marker = Marker { format: "tallow checkpoint".to_string(), version: VERSION, files };
        self.write(MARKER, |out| Ok(serde_json::to_writer(out, &marker).map_err(io::Error::from)?))?;
        sync_folder(self.temporary.path())?;
        // An old checkpoint of the same step stays readable under another name until this one is renamed.
        let mut replaced = self.target.clone().into_os_string();
        replaced.push(REPLACED);
        let replaced = PathBuf::from(replaced);
        if self.target.exists() {
            remove(&replaced)?;
            fs::rename(&self.target, &replaced).map_err(|e| Error::io(&self.target, e))?;
        }
        fs::rename(self.temporary.path(), &self.target).map_err(|e| Error::io(&self.target, e))?;
        sync_folder(&self.folder)?;
        remove(&replaced)?;
        Ok(self.target)
    }
}

/// A checkpoint whose marker was read.
pub(super) struct Finished {
    path: PathBuf,
    marker: Marker,
}

impl Finished {
    /// The checkpoint at `folder`, or the newest one in it. `None` if the folder does not exist or holds no finished checkpoint.
    pub(super) fn find(folder: &Path) -> Result<Option<Self>> {
        match is_checkpoint(folder) {
            true => Self::open(folder).map(Some),
            false => newest(folder)?.map(|path| Self::open(&path)).transpose(),
        }
    }

    /// An error if the folder's name has another step than its state.
    pub(super) fn is_of(&self, step: u64) -> Result<()> {
        match step_of(&self.path).filter(|named| *named != step) {
            None => Ok(()),
            Some(named) => Err(wrong(
                &self.path,
                format!("its name says step {named}, and it holds step {step}: give it the name step-{step:08}"),
            )),
        }
    }

    fn open(path: &Path) -> Result<Self> {
        let bytes = read_json(&path.join(MARKER))?;
        let marker: Marker = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(&path.join(MARKER), format!("it is not the marker of a checkpoint: {e}")))?;
        if marker.version != VERSION {
            let reason = format!("it has version {}; this version of tallow reads version {VERSION}", marker.version);
            return Err(wrong(&path.join(MARKER), reason));
        }
        Ok(Finished { path: path.to_path_buf(), marker })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.path
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn holds(&self, name: &str) -> bool {
        self.marker.files.contains_key(name)
    }

    /// Reads every file, and compares length and checksum with the marker.
    pub(super) fn verify(&self) -> Result<()> {
        for (name, facts) in &self.marker.files {
            let path = self.path.join(name);
            let io = |e| Error::io(&path, e);
            if Path::new(name).components().count() != 1 || !fs::symlink_metadata(&path).map_err(io)?.is_file() {
                return Err(wrong(&path, "it is not a plain file of this checkpoint"));
            }
            let mut file = File::open(&path).map_err(io)?;
            let bytes = file.metadata().map_err(io)?.len();
            if bytes != facts.bytes {
                let reason = format!("it has {bytes} bytes instead of {}; {}", facts.bytes, self.advice());
                return Err(wrong(&path, reason));
            }
            let (mut crc32, mut buffer) = (Hasher::new(), vec![0; 1 << 18]);
            loop {
                match file.read(&mut buffer).map_err(io)? {
                    0 => break,
                    count => crc32.update(&buffer[..count]),
                }
            }
            if crc32.finalize() != facts.crc32 {
                return Err(wrong(&path, format!("its bytes are not those that were written; {}", self.advice())));
            }
        }
        Ok(())
    }

    fn advice(&self) -> &'static str {
        "delete this checkpoint to load an older one"
    }

    /// One error for everything that does not fit.
    pub(super) fn misfit(&self, misfits: Vec<String>) -> Error {
        wrong(&self.path, super::weights::list(&misfits))
    }
}

/// Whether a folder is a checkpoint itself.
fn is_checkpoint(folder: &Path) -> bool {
    folder.join(MARKER).exists()
}

/// The step in the name of a checkpoint's folder.
fn step_of(path: &Path) -> Option<u64> {
    let name = name_of(path);
    name.strip_suffix(REPLACED).unwrap_or(&name).strip_prefix("step-")?.parse().ok()
}

/// The newest finished checkpoint of a folder. `None` if there is none, or no such folder.
fn newest(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(finished(folder)?.pop())
}

/// Removes the oldest checkpoints beyond `keep`; 0 keeps all.
pub(super) fn prune(folder: &Path, keep: usize) -> Result<()> {
    let paths = finished(folder)?;
    let old = if keep == 0 { 0 } else { paths.len().saturating_sub(keep) };
    paths[..old].iter().try_for_each(|path| remove(path))
}

/// Reads a JSON file of at most [`MAX_JSON_BYTES`].
pub(super) fn read_json(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open_regular(path).map_err(|e| Error::io(path, e))?;
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    match bytes.len() as u64 > MAX_JSON_BYTES {
        true => Err(wrong(path, "it is too large for the JSON of a checkpoint")),
        false => Ok(bytes),
    }
}

/// Checkpoints that have a marker, the oldest first.
fn finished(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for path in entries(folder)? {
        if let Some(step) = step_of(&path).filter(|_| is_checkpoint(&path)) {
            found.push((step, !name_of(&path).ends_with(REPLACED), path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(.., path)| path).collect())
}

/// Deletes a checkpoint. It is renamed first, so that a partly deleted one is never read.
fn remove(path: &Path) -> Result<()> {
    let doomed = path.with_file_name(format!("{TEMPORARY}old-{}", name_of(path)));
    match fs::rename(path, &doomed) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.and_then(|()| fs::remove_dir_all(&doomed)).map_err(|e| Error::io(path, e)),
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    read().map_err(|e| Error::io(folder, e))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Counts the bytes written and computes their CRC-32.
struct Summed<W> {
    out: W,
    crc32: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.crc32.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
