//! Writing a shard: its files get their names only when they are complete and synced to disk.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use tempfile::NamedTempFile;

use super::index::IndexWriter;
use super::{IdType, ShardInfo};
use crate::support::files::{folder_of, persist, sync_folder, temporary};
use crate::{Error, Result};

/// Writes one shard: `NAME.bin` (ids) and `NAME.idx` (bounds of documents). No unfinished file gets one of these names.
///
/// # Cost
/// Memory: some 64 KiB of buffers for any size of shard. Document lengths are collected in a temporary file.
///
/// # Example
/// ```
/// use tallow_text::shard::{IdType, Io, Shard, ShardWriter};
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
    /// State at the beginning of the current document.
    document: Written,
}

/// State of the ids written so far.
#[derive(Clone, Default)]
struct Written {
    tokens: u64,
    largest: Option<u32>,
    crc: Hasher,
}

impl ShardWriter {
    /// Begins a shard with the files `stem`.bin and `stem`.idx.
    ///
    /// # Errors
    /// [`Error::Io`]: no file can be created in that folder.
    pub fn create(stem: impl AsRef<Path>, id_type: IdType) -> Result<Self> {
        let stem = stem.as_ref().to_path_buf();
        let ids = BufWriter::with_capacity(1 << 16, temporary(folder_of(&stem))?);
        let index = IndexWriter::new(folder_of(&stem), id_type)?;
        let (written, document) = Default::default();
        Ok(ShardWriter { stem, id_type, ids, index, bytes: Vec::new(), written, document })
    }

    /// Appends ids to the current document.
    ///
    /// # Errors
    /// [`Error::Shard`]: an id does not fit the id type. [`Error::Io`].
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

    /// Number of ids written so far.
    pub fn tokens(&self) -> u64 {
        self.written.tokens
    }

    /// Number of ids of the current document.
    pub fn document_tokens(&self) -> u64 {
        self.written.tokens - self.document.tokens
    }

    /// Ends the current document. A document without ids is not recorded.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn end_document(&mut self) -> Result<()> {
        self.index.push(self.document_tokens()).map_err(|e| Error::io(&self.stem, e))?;
        self.document = self.written.clone();
        Ok(())
    }

    /// Removes the ids of the current document.
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

    /// Ends the last document, syncs both files to disk and renames them. A shard without ids has no files.
    ///
    /// # Errors
    /// [`Error::Io`]; the temporary files are removed.
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

/// Appends `suffix` to the name of a path.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}
