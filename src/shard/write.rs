//! Writing: a file gets its name only when it is whole and on the disk.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use tempfile::NamedTempFile;

use super::index::IndexWriter;
use super::{IdType, ShardInfo};
use crate::{Error, Result};

/// Files that begin so are not finished; a finished folder has none.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// Writes one shard: `NAME.bin` (ids) and `NAME.idx` (where documents are), both at once or not at all.
///
/// # Cost
/// 64 KiB of buffer, whatever the size of the shard: lengths of documents go through a file of their own.
///
/// # Example
/// ```
/// use tallow::shard::{IdType, Io, Shard, ShardWriter};
/// let folder = tempfile::tempdir()?;
/// let mut writer = ShardWriter::create(folder.path().join("000000"), IdType::U32)?;
/// writer.push(&[9906, 1917, 100257])?;
/// writer.end_document()?;
/// let info = writer.finish()?;
/// assert_eq!((info.tokens, info.documents, info.largest_id), (3, 1, Some(100257)));
/// let shard = Shard::open(folder.path().join("000000"), &info, IdType::U32, Io::Map)?;
/// let mut ids = [0; 2];
/// shard.read(1, &mut ids)?;
/// assert_eq!(ids, [1917, 100257]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ShardWriter {
    stem: PathBuf,
    id_type: IdType,
    ids: BufWriter<NamedTempFile>,
    index: IndexWriter,
    bytes: Vec<u8>,
    written: Written,
    /// As it was when the document began.
    document: Written,
}

/// What was written up to some point.
#[derive(Clone, Default)]
struct Written {
    tokens: u64,
    largest: Option<u32>,
    crc: Hasher,
}

impl ShardWriter {
    /// Begins a shard that will be called `stem` with `.bin` and `.idx` appended.
    ///
    /// # Errors
    /// [`Error::Io`] if no file can be made in that folder.
    pub fn create(stem: impl AsRef<Path>, id_type: IdType) -> Result<Self> {
        let stem = stem.as_ref().to_path_buf();
        let ids = BufWriter::with_capacity(1 << 16, temporary(folder_of(&stem))?);
        let index = IndexWriter::new(folder_of(&stem), id_type)?;
        let (written, document) = Default::default();
        Ok(ShardWriter { stem, id_type, ids, index, bytes: Vec::new(), written, document })
    }

    /// Appends ids to the document that is being written.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shard`] if an id does not fit the type.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        for ids in ids.chunks(1 << 14) {
            self.bytes.clear();
            self.id_type.encode(ids, &mut self.bytes).map_err(|id| Error::Shard {
                path: self.stem.clone(),
                reason: format!("id {id} does not fit into 16 bits: write this shard as u32"),
            })?;
            self.ids.write_all(&self.bytes).map_err(|e| Error::io(&self.stem, e))?;
            self.written.crc.update(&self.bytes);
            self.written.tokens += ids.len() as u64;
            self.written.largest = self.written.largest.max(ids.iter().copied().max());
        }
        Ok(())
    }

    /// Ids written so far.
    pub fn tokens(&self) -> u64 {
        self.written.tokens
    }

    /// Ids of the document that is being written.
    pub fn document_tokens(&self) -> u64 {
        self.written.tokens - self.document.tokens
    }

    /// Ends a document. One without ids leaves no trace.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn end_document(&mut self) -> Result<()> {
        self.index.push(self.document_tokens()).map_err(|e| Error::io(&self.stem, e))?;
        self.document = self.written.clone();
        Ok(())
    }

    /// Takes back what was written of the document that has not ended.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn undo_document(&mut self) -> Result<()> {
        let end = self.document.tokens * self.id_type.bytes() as u64;
        self.ids.seek(SeekFrom::Start(end)).map_err(|e| Error::io(&self.stem, e))?;
        self.ids.get_mut().as_file_mut().set_len(end).map_err(|e| Error::io(&self.stem, e))?;
        self.written = self.document.clone();
        Ok(())
    }

    /// Ends the last document, puts both files on the disk and gives them their names. A shard without ids
    /// makes no files.
    ///
    /// # Errors
    /// [`Error::Io`]; the temporary files are then removed.
    pub fn finish(mut self) -> Result<ShardInfo> {
        if self.document_tokens() > 0 {
            self.end_document()?;
        }
        let mut info = ShardInfo {
            name: self.stem.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            tokens: self.written.tokens,
            documents: self.index.documents(),
            largest_id: self.written.largest,
            crc32: self.written.crc.clone().finalize(),
            ..Default::default()
        };
        if info.tokens == 0 {
            return Ok(info);
        }
        let io = |path: &Path, e| Error::io(path, e);
        let (bin, idx) = (with_suffix(&self.stem, ".bin"), with_suffix(&self.stem, ".idx"));
        let mut index = BufWriter::with_capacity(1 << 16, temporary(folder_of(&self.stem))?);
        info.index_crc32 = self.index.finish(&mut index).map_err(|e| io(&idx, e))?;
        persist(self.ids, &bin).map_err(|e| io(&bin, e))?;
        persist(index, &idx).map_err(|e| io(&idx, e))?;
        sync_folder(folder_of(&self.stem))?;
        Ok(info)
    }
}

/// A path with something appended to its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file in `folder` that goes away unless it is given a name.
pub(super) fn temporary(folder: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))
}

pub(super) fn persist(file: BufWriter<NamedTempFile>, path: &Path) -> std::io::Result<()> {
    let file = file.into_inner().map_err(|e| e.into_error())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Writes a small file as a whole: it is there with all of `bytes`, or as it was before.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = BufWriter::new(temporary(folder_of(path))?);
    file.write_all(bytes).and_then(|()| persist(file, path)).map_err(|e| Error::io(path, e))?;
    sync_folder(folder_of(path))
}

/// Writes a small file as a whole, unless there is one already.
#[cfg(feature = "prepare")]
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut file = temporary(folder_of(path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(|e| Error::io(path, e))?;
    match file.persist_noclobber(path) {
        Err(e) if e.error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io(path, e.error)),
        _ => sync_folder(folder_of(path)),
    }
}

/// Makes new names in a folder survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}

#[cfg(feature = "prepare")]
/// Removes what killed processes left in `folder`.
pub(crate) fn remove_temporaries(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            match std::fs::remove_file(entry.path()) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(entry.path(), e)),
                _ => (),
            }
        }
    }
    Ok(())
}
