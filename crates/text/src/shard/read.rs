//! Reading a shard as a slice of ids, through a memory map or `pread`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use super::index::{HEADER_BYTES, Header};
use super::write::with_suffix;
use super::{IdType, ShardInfo};
use crate::support::files::{open_regular, read_at, read_regular, regular};
use crate::{Error, Result};

/// How shards are read.
///
/// # Example
/// ```
/// use tallow_text::shard::{IdType, Io, Shard, ShardWriter};
/// let folder = tempfile::tempdir()?;
/// let mut writer = ShardWriter::create(folder.path().join("000000"), IdType::U16)?;
/// writer.push(&[5, 6, 0])?;
/// let info = writer.finish()?;
/// let shard = Shard::open(folder.path().join("000000"), &info, IdType::U16, Io::Pread)?;
/// let mut ids = [0; 3];
/// shard.read(0, &mut ids)?;
/// assert_eq!(ids, [5, 6, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// Through a memory map, the fastest way. If a file is shortened while it is mapped, the system kills the process (SIGBUS), as
    /// with every memory map.
    #[default]
    Map,
    /// With `pread`, for network disks. A file that is shortened is an error.
    Pread,
}

/// A shard, open for reading.
///
/// # Example
/// ```
/// use tallow_text::shard::Shard;
/// let shard = Shard::from_ids(vec![5u32, 6, 0, 7, 0], vec![0, 3]); // two documents
/// assert_eq!((shard.tokens(), shard.documents()), (5, 2));
/// let mut window = [0; 3];
/// shard.read(1, &mut window)?;
/// assert_eq!(window, [6, 0, 7]);
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub struct Shard {
    stem: PathBuf,
    id_type: IdType,
    tokens: u64,
    documents: u64,
    /// Whether the first document began in an earlier shard.
    continues: bool,
    /// All ids must be below this bound.
    bound: u64,
    io: Io,
    ids: OnceLock<Ids>,
    index: OnceLock<Index>,
}

enum Ids {
    Memory(Arc<[u32]>),
    /// The file stays open for read-ahead: `posix_fadvise` does not block page faults of the map.
    Map(Mmap, #[cfg_attr(not(target_os = "linux"), allow(dead_code))] File),
    File(File),
}

/// Start positions of the documents of a shard. Made by [`Shard::index`].
///
/// # Example
/// ```
/// use tallow_text::shard::Shard;
/// let shard = Shard::from_ids(vec![5u32, 6, 0, 7, 0], vec![0, 3]); // two documents
/// let index = shard.index()?;
/// assert_eq!((index.documents(), index.start(1), index.document_of(4)), (2, 3, 1));
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub struct Index {
    bytes: IndexBytes,
    id_type: IdType,
    sequences: u64,
    documents: u64,
    tokens: u64,
}

enum IndexBytes {
    Map(Mmap),
    Read(Vec<u8>),
    /// Document starts in memory.
    Starts(Vec<u64>),
}

impl Shard {
    /// Opens `stem`.bin and `stem`.idx, and compares their lengths and headers with `info`. It does not compare checksums; see
    /// [`verify`](super::verify).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shard`] if a file is torn or differs from `info`.
    ///
    /// # Cost
    /// Opens the index and reads its 34 bytes of header. The first read of ids opens and maps the `.bin`.
    pub fn open(stem: impl AsRef<Path>, info: &ShardInfo, id_type: IdType, io: Io) -> Result<Self> {
        let stem = stem.as_ref().to_path_buf();
        let shard = Shard {
            id_type,
            tokens: info.tokens,
            documents: info.documents,
            continues: info.continues,
            bound: info.largest_id.map_or(0, |id| u64::from(id) + 1),
            io,
            ids: OnceLock::new(),
            index: OnceLock::new(),
            stem,
        };
        let bin = shard.path();
        let found = regular(&bin).map_err(|e| Error::io(&bin, e))?.len();
        let expected = info.tokens.checked_mul(id_type.bytes() as u64);
        if expected != Some(found) {
            return Err(Error::Shard {
                path: bin,
                reason: format!(
                    "the manifest promises {} ids of {} bytes, but the file has {found} bytes: it is torn or another file; \
                     prepare it again",
                    info.tokens,
                    id_type.bytes()
                ),
            });
        }
        shard.open_index()?;
        Ok(shard)
    }

    /// A shard in memory. `starts` are the positions at which documents begin, ascending. The first document always begins at 0.
    pub fn from_ids(ids: impl Into<Arc<[u32]>>, starts: Vec<u64>) -> Self {
        let ids = ids.into();
        let tokens = ids.len() as u64;
        let mut starts: Vec<u64> = starts.into_iter().filter(|start| *start < tokens).collect();
        if starts.first() != Some(&0) && tokens > 0 {
            starts.insert(0, 0);
        }
        let documents = starts.len() as u64;
        let index =
            Index { bytes: IndexBytes::Starts(starts), id_type: IdType::U32, sequences: documents, documents, tokens };
        Shard {
            stem: PathBuf::from("ids in memory"),
            id_type: IdType::U32,
            tokens,
            documents,
            continues: false,
            bound: ids.iter().copied().max().map_or(0, |id| u64::from(id) + 1),
            io: Io::Map,
            ids: OnceLock::from(Ids::Memory(ids)),
            index: OnceLock::from(index),
        }
    }

    /// Path of the `.bin`.
    pub fn path(&self) -> PathBuf {
        with_suffix(&self.stem, ".bin")
    }

    /// Number of ids.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Whether the first document began in an earlier shard.
    pub fn continues(&self) -> bool {
        self.continues
    }

    /// Copies `out.len()` ids from position `start` on into `out`.
    ///
    /// # Errors
    /// - [`Error::Config`]: the range ends beyond the shard.
    /// - [`Error::Shard`]: an id is larger than the manifest's largest id, or the file became shorter.
    /// - [`Error::Io`].
    pub fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        self.with(start, out.len(), &mut Vec::new(), |ids| out.copy_from_slice(ids))
    }

    /// Calls `f` with the `count` ids from position `start` on. u32 ids in a map or in memory are not copied; others are copied to
    /// `scratch`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn with<T>(&self, start: u64, count: usize, scratch: &mut Vec<u32>, f: impl FnOnce(&[u32]) -> T) -> Result<T> {
        if start.checked_add(count as u64).is_none_or(|end| end > self.tokens) {
            return Err(Error::Config(format!(
                "ids {start}..{start}+{count} are not in {}, which has {} ids",
                self.stem.display(),
                self.tokens
            )));
        }
        let width = self.id_type.bytes();
        let (from, len) = (start as usize * width, count * width);
        let scratch_of = |bytes: &[u8], scratch: &mut Vec<u32>| {
            scratch.resize(count, 0);
            self.id_type.decode(bytes, scratch);
        };
        let ids = match self.ids()? {
            Ids::Memory(ids) => &ids[start as usize..start as usize + count],
            Ids::Map(map, _) => {
                let bytes = &map[from..from + len];
                match bytemuck::try_cast_slice(bytes) {
                    Ok(ids) if self.id_type == IdType::U32 && cfg!(target_endian = "little") => ids,
                    _ => {
                        scratch_of(bytes, scratch);
                        &scratch[..]
                    }
                }
            }
            Ids::File(file) => {
                scratch.resize(count, 0);
                // The raw bytes are read into the buffer of the ids. u16 ids are then widened from a copy.
                let bytes: &mut [u8] = &mut bytemuck::cast_slice_mut(scratch)[..len];
                read_at(file, bytes, from as u64).map_err(|e| self.shrunk(e))?;
                match self.id_type {
                    IdType::U32 => scratch.iter_mut().for_each(|id| *id = u32::from_le(*id)),
                    IdType::U16 => {
                        let bytes = bytes.to_vec();
                        self.id_type.decode(&bytes, scratch);
                    }
                }
                &scratch[..]
            }
        };
        // This check has no branch and runs at memory speed. (A maximum would not: baseline x86-64 has none for u32.)
        let bound = u32::try_from(self.bound).unwrap_or(u32::MAX);
        if ids.iter().fold(0, |bad, id| bad | u32::from(*id >= bound)) != 0 {
            let at = ids.iter().position(|id| u64::from(*id) >= self.bound).unwrap_or(0);
            return Err(self.bad(format!(
                "id {} at position {} is larger than the manifest's largest id: the file was changed; \
                 `shard::verify` says more",
                ids[at],
                start + at as u64
            )));
        }
        Ok(f(ids))
    }

    /// Calls `f` with all ids, at most 65536 at a time.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&[u32])) -> Result<()> {
        let mut scratch = Vec::new();
        for at in (0..self.tokens).step_by(1 << 16) {
            self.with(at, (self.tokens - at).min(1 << 16) as usize, &mut scratch, &mut f)?;
        }
        Ok(())
    }

    /// Prefetches mapped ids into the processor's cache. In a random order, the memory latency of a window would take longer than
    /// its copy.
    pub fn prefetch(&self, start: u64, count: usize) {
        if let Some(Ids::Map(map, _)) = self.ids.get() {
            let width = self.id_type.bytes();
            crate::support::prefetch(map.get(start as usize * width..).unwrap_or_default(), count * width);
        }
    }

    /// Asks the system to read ids ahead from disk. It is a hint and never fails.
    pub fn advise(&self, start: u64, count: usize) {
        let width = self.id_type.bytes();
        let (from, len) = (start as usize * width, count * width);
        match self.ids() {
            #[cfg(target_os = "linux")]
            Ok(Ids::File(file) | Ids::Map(_, file)) => {
                use std::os::fd::AsRawFd;
                // SAFETY: a hint about an open file; no memory is involved.
                unsafe {
                    libc::posix_fadvise(
                        file.as_raw_fd(),
                        from as libc::off_t,
                        len as libc::off_t,
                        libc::POSIX_FADV_WILLNEED,
                    )
                };
            }
            #[cfg(all(unix, not(target_os = "linux")))]
            Ok(Ids::Map(map, _)) => {
                _ = map.advise_range(memmap2::Advice::WillNeed, from, len.min(map.len().saturating_sub(from)));
            }
            _ => (),
        }
    }

    /// Start positions of the documents. The first call maps or reads the `.idx`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shard`] if it is torn or differs from the manifest.
    pub fn index(&self) -> Result<&Index> {
        if self.index.get().is_none() {
            _ = self.index.set(self.map_index()?);
        }
        Ok(self.index.get().expect("it was just set"))
    }

    fn ids(&self) -> Result<&Ids> {
        if self.ids.get().is_none() {
            let path = self.path();
            let file = open_regular(&path).map_err(|e| Error::io(&path, e))?;
            let ids = match self.io {
                Io::Pread => Ids::File(file),
                Io::Map => {
                    let map = map(&file).map_err(|e| Error::io(&path, e))?;
                    if map.len() as u64 != self.tokens * self.id_type.bytes() as u64 {
                        return Err(self.bad("its length changed since it was opened".to_string()));
                    }
                    hint_random(&map);
                    Ids::Map(map, file)
                }
            };
            _ = self.ids.set(ids);
        }
        Ok(self.ids.get().expect("it was just set"))
    }

    fn open_index(&self) -> Result<(File, Header)> {
        let path = with_suffix(&self.stem, ".idx");
        let file = open_regular(&path).map_err(|e| Error::io(&path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(&path, e))?.len();
        let mut head = [0; HEADER_BYTES];
        if bytes >= HEADER_BYTES as u64 {
            read_at(&file, &mut head, 0).map_err(|e| Error::io(&path, e))?;
        }
        let bad = |reason| Error::Shard { path: path.clone(), reason };
        let header = Header::parse(&head, bytes).map_err(bad)?;
        if (header.id_type, header.documents) != (self.id_type, self.documents) {
            return Err(bad(format!(
                "it describes {} documents of {:?} ids, the manifest {} of {:?}",
                header.documents, header.id_type, self.documents, self.id_type
            )));
        }
        Ok((file, header))
    }

    fn map_index(&self) -> Result<Index> {
        let (file, header) = self.open_index()?;
        let path = with_suffix(&self.stem, ".idx");
        let bytes = match self.io {
            Io::Map => IndexBytes::Map(map(&file).map_err(|e| Error::io(&path, e))?),
            Io::Pread => IndexBytes::Read(read_regular(&path).map_err(|e| Error::io(&path, e))?),
        };
        let Header { id_type, sequences, documents } = header;
        let index = Index { bytes, id_type, sequences, documents, tokens: self.tokens };
        if index.raw().len() != HEADER_BYTES + sequences as usize * 12 + (documents as usize + 1) * 8 {
            return Err(Error::Shard { path, reason: "its length changed since it was opened".to_string() });
        }
        Ok(index)
    }

    fn bad(&self, reason: String) -> Error {
        Error::Shard { path: self.path(), reason }
    }

    fn shrunk(&self, error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                self.bad("it became shorter while it was open: is another process writing it?".to_string())
            }
            _ => Error::io(self.path(), error),
        }
    }
}

impl Index {
    /// Number of documents that have ids in this shard.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Position of the first id of document `document`. For `document >= documents()`: the number of ids. Positions beyond the shard,
    /// which a torn index may have, are clamped to it.
    pub fn start(&self, document: u64) -> u64 {
        if document >= self.documents {
            return self.tokens;
        }
        if let IndexBytes::Starts(starts) = &self.bytes {
            return starts[document as usize];
        }
        let (pointers, ends) =
            (HEADER_BYTES + self.sequences as usize * 4, HEADER_BYTES + self.sequences as usize * 12);
        let sequence = self.number(ends + document as usize * 8);
        if sequence >= self.sequences {
            return self.tokens;
        }
        (self.number(pointers + sequence as usize * 8) / self.id_type.bytes() as u64).min(self.tokens)
    }

    /// The first sequence that does not begin where the previous one ends, if there is one.
    pub(crate) fn gap(&self) -> Option<u64> {
        let mut at = 0u64;
        (0..self.sequences)
            .find(|sequence| {
                let length =
                    self.raw().get(HEADER_BYTES + *sequence as usize * 4..).and_then(|bytes| bytes.first_chunk());
                let length = length.map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
                let pointer = self.number(HEADER_BYTES + self.sequences as usize * 4 + *sequence as usize * 8);
                let gap = pointer != at || length == 0;
                at = at.saturating_add(length * self.id_type.bytes() as u64);
                gap
            })
            .or((at != self.tokens * self.id_type.bytes() as u64).then_some(self.sequences))
    }

    /// The document of the id at position `at`, by binary search.
    pub fn document_of(&self, at: u64) -> u64 {
        let (mut low, mut high) = (0, self.documents);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.start(middle) <= at { low = middle } else { high = middle }
        }
        low
    }

    fn raw(&self) -> &[u8] {
        match &self.bytes {
            IndexBytes::Map(map) => map,
            IndexBytes::Read(bytes) => bytes,
            IndexBytes::Starts(_) => &[],
        }
    }

    fn number(&self, at: usize) -> u64 {
        self.raw().get(at..).and_then(|bytes| bytes.first_chunk()).map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
    }
}

fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and shared as bytes and u32, for which every bit pattern is valid. The system cannot prevent
    // other processes from changing the file; `Io::Map` documents what happens when a file shrinks.
    unsafe { Mmap::map(file) }
}

/// Turns read-ahead off, which is wasted in a random order. [`Shard::advise`] asks for the ids that are needed.
fn hint_random(map: &Mmap) {
    #[cfg(unix)]
    {
        _ = map.advise(memmap2::Advice::Random);
    }
    #[cfg(not(unix))]
    {
        _ = map;
    }
}
