//! Writing: a file gets its name only when it is whole and on the disk.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use tempfile::NamedTempFile;

use super::index::IndexWriter;
use super::{IdType, ShardInfo};
use crate::support::files::{folder_of, persist, sync_folder, temporary};
use crate::{Error, Result};

/// Writes one shard: `NAME.bin` (ids) and `NAME.idx` (where documents are), both at once or not at all.
///
/// # Cost
/// 64 KiB of buffer, whatever the size of the shard: lengths of documents go through a file of their own.
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
