//! Token files of other trainers ⇄ our folders.
//!
//! Sources: nanoGPT `data/*/prepare.py`, llama2.c `tinystories.py`, llm.c `dev/data/data_common.py`, OLMo-core
//! `data/numpy_dataset.py`, datatrove `pipeline/tokens/tokenizer.py`.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::write::with_suffix;
use super::{FORMAT, IdType, Io, Manifest, Separator, Shard, ShardInfo, ShardWriter, Skipped, TokenizerInfo, VERSION};
use crate::support::files::{folder_of, open_regular, persist, temporary, write_whole};
use crate::support::{belongs_to, lies_in};
use crate::{Error, Result};

/// A trainer's file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// nanoGPT's `train.bin`: raw u16 (GPT-2) or u32. The separator stands after each document.
    NanoGpt,
    /// llama2.c's `.bin`: raw u16. BOS (id 1) stands before each document.
    Llama2C,
    /// llm.c: a header of 256 int32, then u16 (magic 20240520) or u32 (20240801). The separator stands before each document.
    LlmC,
    /// OLMo-core: raw u16 or u32 in a file named `.npy`. The separator stands after each document.
    Olmo,
    /// datatrove's `.ds` with `.ds.index` (where documents end) beside it.
    Datatrove,
}

/// What must be known of foreign files to read them.
#[derive(Clone, Debug)]
pub struct ForeignFile {
    /// Their format.
    pub format: Foreign,
    /// How ids are stored, where the file does not say it (all but llm.c's).
    pub dtype: IdType,
    /// The id that separates documents; without it a file (other than datatrove's) is one document.
    pub separator: Option<u32>,
    /// Rows of the table that the ids belong to: larger ids are an error.
    pub table_rows: usize,
    /// Who made the ids, if that is known.
    pub tokenizer: Option<TokenizerInfo>,
}

const LLMC_HEADER_BYTES: usize = 256 * 4;
const LLMC_U16: (i32, i32) = (20_240_520, 1);
const LLMC_U32: (i32, i32) = (20_240_801, 7);

impl Foreign {
    fn separator_before(self) -> bool {
        matches!(self, Foreign::Llama2C | Foreign::LlmC)
    }
}

/// Reads `files` as split `split` of the folder `out`, one shard a file. A folder that has other splits keeps them, so that
/// `train.bin` and `val.bin` can follow one another. A document that a file's end cuts goes on in the next file.
///
/// # Errors
/// - [`Error::Io`].
/// - [`Error::Shard`]: a file is torn, has a header that contradicts it, or an id beyond `table_rows`; or the folder has this
///   split already, or holds ids of another kind.
///
/// # Cost
/// Reads and writes every id once; memory does not grow with the files.
pub fn import(files: &[PathBuf], about: &ForeignFile, out: &Path, split: &str) -> Result<Manifest> {
    let folder = out.join(split);
    let refuse = |reason: &str| Err(Error::Shard { path: out.to_path_buf(), reason: reason.to_string() });
    if split.is_empty() || split.contains(['/', '\\', ':']) || split.starts_with('.') {
        return refuse("a split is called train, val or another plain word");
    }
    let separator = about.separator.map(|id| Separator { token: None, id, before: about.format.separator_before() });
    let dtype = IdType::for_rows(about.table_rows);
    let mut manifest = match Manifest::read(out) {
        Ok(manifest) if manifest.splits.get(split).is_some_and(|split| split.tokens > 0) => {
            return refuse(&format!("it has a split {split} already: take another name for it, or another folder"));
        }
        Ok(manifest)
            if (&manifest.tokenizer, manifest.table_rows, manifest.dtype, &manifest.separator)
                != (&about.tokenizer, about.table_rows, dtype, &separator) =>
        {
            return refuse("it holds ids of another tokenizer or separator: give another folder");
        }
        Ok(manifest) => manifest,
        Err(Error::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => Manifest {
            format: FORMAT.to_string(),
            version: VERSION,
            tokenizer: about.tokenizer.clone(),
            table_rows: about.table_rows,
            largest_id: None,
            separator,
            dtype,
            val: 0.0,
            seed: 0,
            skipped: Skipped::default(),
            splits: Default::default(),
        },
        Err(error) => return Err(error),
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let mut last = None; // id of the file before
    for (number, file) in files.iter().enumerate() {
        let mut writer = ShardWriter::create(folder.join(format!("{number:06}")), dtype)?;
        let ends = read_foreign(file, about, &mut writer)?;
        let mut info = writer.finish()?;
        if let (Some(id), Some(last)) = (about.separator.filter(|_| about.format != Foreign::Datatrove), last) {
            info.continues = id != if about.format.separator_before() { ends.0 } else { last };
        }
        last = Some(ends.1);
        manifest.largest_id = manifest.largest_id.max(info.largest_id);
        manifest.splits.entry(split.to_string()).or_default().add(info);
    }
    manifest.write(out)?;
    Ok(manifest)
}

/// Reads one file; returns its first and its last id.
fn read_foreign(path: &Path, about: &ForeignFile, writer: &mut ShardWriter) -> Result<(u32, u32)> {
    let io = |e| Error::io(path, e);
    let bad = |reason: String| Error::Shard { path: path.to_path_buf(), reason };
    let file = open_regular(path).map_err(io)?;
    let mut bytes = file.metadata().map_err(io)?.len();
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut dtype = about.dtype;
    if about.format == Foreign::LlmC {
        let mut header = [0; LLMC_HEADER_BYTES];
        reader.read_exact(&mut header).map_err(|_| bad("too short for llm.c's header of 1024 bytes".to_string()))?;
        let number = |i: usize| i32::from_le_bytes(*header[i * 4..].first_chunk().expect("256 numbers"));
        dtype = match (number(0), number(1)) {
            LLMC_U16 => IdType::U16,
            LLMC_U32 => IdType::U32,
            (magic, version) => {
                return Err(bad(format!(
                    "not an llm.c file: magic {magic}, version {version} (20240520 v1 and 20240801 v7 are known)"
                )));
            }
        };
        bytes -= LLMC_HEADER_BYTES as u64;
        let count = number(2);
        if u64::try_from(count).ok().and_then(|count| count.checked_mul(dtype.bytes() as u64)) != Some(bytes) {
            return Err(bad(format!("the header promises {count} ids, but {bytes} bytes follow: the file is torn")));
        }
    }
    if bytes == 0 || bytes % dtype.bytes() as u64 != 0 {
        return Err(bad(format!(
            "{bytes} bytes are no whole number of {}-byte ids: say which they are (`ForeignFile::dtype`)",
            dtype.bytes()
        )));
    }
    if about.format == Foreign::Olmo && reader.fill_buf().map_err(io)?.starts_with(b"\x93NUMPY") {
        return Err(bad("a real .npy with a header; OLMo-core's files have none".to_string()));
    }
    let mut ends = match about.format {
        Foreign::Datatrove => Some(DocumentEnds::open(path, bytes / dtype.bytes() as u64)?),
        _ => None,
    };
    let mut next_end = ends.as_mut().map(|ends| ends.next()).transpose()?;
    let (mut raw, mut ids) = (vec![0; 1 << 16], Vec::new());
    let (mut at, total) = (0u64, bytes / dtype.bytes() as u64);
    let (mut first, mut last) = (0, 0);
    while at < total {
        let count = (total - at).min((raw.len() / dtype.bytes()) as u64) as usize;
        reader.read_exact(&mut raw[..count * dtype.bytes()]).map_err(io)?;
        ids.resize(count, 0);
        dtype.decode(&raw[..count * dtype.bytes()], &mut ids);
        if let Some(i) = ids.iter().position(|id| *id as usize >= about.table_rows) {
            return Err(bad(format!(
                "id {} at position {} is outside a table of {} rows: are `ForeignFile::dtype` and `ForeignFile::table_rows` right?",
                ids[i],
                at + i as u64,
                about.table_rows
            )));
        }
        if at == 0 {
            first = ids.first().copied().unwrap_or_default();
        }
        last = ids.last().copied().unwrap_or_default();
        let mut rest = &ids[..];
        while !rest.is_empty() {
            // How much of `rest` belongs to the document at hand, and whether the document ends there.
            let (take, ended) = match (next_end, about.separator) {
                (Some(end), _) => {
                    let left = (end - (at + (count - rest.len()) as u64)) as usize;
                    (left.min(rest.len()), left <= rest.len())
                }
                (None, Some(id)) if about.format.separator_before() => {
                    let skip = usize::from(writer.document_tokens() == 0);
                    match rest.iter().skip(skip).position(|other| *other == id) {
                        Some(found) => (found + skip, true),
                        None => (rest.len(), false),
                    }
                }
                (None, Some(id)) => match rest.iter().position(|other| *other == id) {
                    Some(found) => (found + 1, true),
                    None => (rest.len(), false),
                },
                (None, None) => (rest.len(), false),
            };
            writer.push(&rest[..take])?;
            rest = &rest[take..];
            if ended {
                writer.end_document()?;
                if let Some(ends) = &mut ends {
                    next_end = Some(ends.next()?);
                }
            }
        }
        at += count as u64;
    }
    Ok((first, last))
}

/// datatrove's index: u64 ends of documents, in ids.
struct DocumentEnds {
    path: PathBuf,
    reader: BufReader<File>,
    last: u64,
    total: u64,
}

impl DocumentEnds {
    fn open(ds: &Path, total: u64) -> Result<Self> {
        let path = with_suffix(ds, ".index");
        let file = open_regular(&path).map_err(|e| Error::io(&path, e))?;
        Ok(DocumentEnds { path, reader: BufReader::new(file), last: 0, total })
    }

    /// The next end. After the last document: as many ids as nobody has.
    fn next(&mut self) -> Result<u64> {
        let bad = |reason: String| Error::Shard { path: self.path.clone(), reason };
        let mut bytes = [0; 8];
        while self.last < self.total {
            let end = match self.reader.read_exact(&mut bytes) {
                Ok(()) => u64::from_le_bytes(bytes),
                Err(_) => return Err(bad(format!("it ends at id {} of {}: the file is torn", self.last, self.total))),
            };
            if end < self.last || end > self.total {
                return Err(bad(format!("a document runs from {} to {end}, of {} ids", self.last, self.total)));
            }
            // A document without ids ends where the one before it does.
            if end > self.last {
                self.last = end;
                return Ok(end);
            }
        }
        Ok(u64::MAX)
    }
}

/// Writes split `split` of `folder` as one file of another trainer (llm.c: as many as its 31-bit counts need), with its
/// companions. Returns the files.
///
/// The separator is moved to where that trainer has it, after or before each document, and the documents stay as many. Of a
/// folder without a separator the ids are written as they are: only datatrove's index then tells documents apart.
///
/// # Errors
/// - [`Error::Io`].
/// - [`Error::Shard`]: an id does not fit `dtype`, or the folder has no such split.
/// - [`Error::Config`]: `out` lies in `folder`, or is one of its files by another name. Other files are replaced.
pub fn export(folder: &Path, split: &str, format: Foreign, dtype: IdType, out: &Path) -> Result<Vec<PathBuf>> {
    let most = if format == Foreign::LlmC { i32::MAX as u64 } else { u64::MAX };
    export_parts(folder, split, format, dtype, out, most)
}

/// [`export`] with at most `most` ids a file.
fn export_parts(
    folder: &Path,
    split: &str,
    format: Foreign,
    dtype: IdType,
    out: &Path,
    most: u64,
) -> Result<Vec<PathBuf>> {
    let manifest = Manifest::read(folder)?;
    if lies_in(out, folder) || belongs_to(out, folder) {
        let (out, folder) = (out.display(), folder.display());
        return Err(Error::Config(format!("{out} is part of {folder}, which is read: name a file outside")));
    }
    let Some(info) = manifest.splits.get(split) else {
        let names: Vec<&str> = manifest.splits.keys().map(String::as_str).collect();
        let reason = format!("no split {split:?}; there are {}", names.join(", "));
        return Err(Error::Shard { path: folder.to_path_buf(), reason });
    };
    if format == Foreign::Llama2C && dtype != IdType::U16 {
        return Err(Error::Config("llama2.c reads u16 ids only: this tokenizer needs more".to_string()));
    }
    let open = |info: &ShardInfo| manifest.open(folder, split, info, Io::Pread);
    let ids = Ids::new(&info.shards, &open, manifest.separator.as_ref(), format)?;
    let parts = ids.count().div_ceil(most).max(1);
    let mut files = Vec::new();
    for part in 0..parts {
        let (from, to) = (part * most, part.saturating_add(1).saturating_mul(most).min(ids.count()));
        let path = if parts == 1 {
            out.to_path_buf()
        } else {
            let stem = out.file_stem().unwrap_or_default().to_string_lossy();
            out.with_file_name(format!("{stem}_{part:06}.bin"))
        };
        let io = |e| Error::io(&path, e);
        let mut file = BufWriter::with_capacity(1 << 16, temporary(folder_of(&path))?);
        if format == Foreign::LlmC {
            let (magic, version) = if dtype == IdType::U16 { LLMC_U16 } else { LLMC_U32 };
            let mut header = [0; LLMC_HEADER_BYTES];
            for (i, number) in [magic, version, (to - from) as i32].into_iter().enumerate() {
                header[i * 4..][..4].copy_from_slice(&number.to_le_bytes());
            }
            file.write_all(&header).map_err(io)?;
        }
        let mut bytes = Vec::new();
        ids.each(from, to, &mut |ids| {
            bytes.clear();
            let fits = dtype.encode(ids, &mut bytes);
            fits.map_err(|id| {
                Error::Config(format!(
                    "id {id} does not fit into 16 bits: only as u32, in a format that has it (nanogpt, llmc, olmo, datatrove)"
                ))
            })?;
            file.write_all(&bytes).map_err(io)
        })?;
        persist(file, &path).map_err(io)?;
        files.push(path);
    }
    if format == Foreign::Datatrove {
        let index = with_suffix(out, ".index");
        let mut file = BufWriter::new(temporary(folder_of(out))?);
        ids.each_end(&mut |end| file.write_all(&end.to_le_bytes()).map_err(|e| Error::io(&index, e)))?;
        persist(file, &index).map_err(|e| Error::io(&index, e))?;
        let metadata = with_suffix(out, ".metadata");
        let name = manifest.tokenizer.as_ref().map_or("Unknown Tokenizer", |tokenizer| &tokenizer.name);
        let text = format!("{name}|{}\n{}\n{} T", dtype.bytes(), ids.count(), ids.count());
        write_whole(&metadata, text.as_bytes())?;
        files.extend([index, metadata]);
    }
    Ok(files)
}

/// The ids of a split as another trainer has them: those of the shards one after another, the separator moved from the end
/// of each document to its beginning or back.
struct Ids<'a> {
    shards: &'a [ShardInfo],
    open: &'a dyn Fn(&ShardInfo) -> Result<Shard>,
    /// A separator that is written first.
    before: Option<u32>,
    /// Ids of the shards that are written: all, but the first or last where it is the separator that was moved.
    start: u64,
    end: u64,
    /// A separator that is written last.
    after: Option<u32>,
}

impl<'a> Ids<'a> {
    fn new(
        shards: &'a [ShardInfo],
        open: &'a dyn Fn(&ShardInfo) -> Result<Shard>,
        separator: Option<&Separator>,
        format: Foreign,
    ) -> Result<Self> {
        let end = shards.iter().map(|shard| shard.tokens).fold(0, u64::saturating_add);
        let mut ids = Ids { shards, open, before: None, start: 0, end, after: None };
        let Some(separator) = separator.filter(|separator| separator.before != format.separator_before()) else {
            return Ok(ids);
        };
        let mut there = shards.iter().filter(|shard| shard.tokens > 0);
        let mut id = [0];
        if separator.before {
            let Some(shard) = there.next() else { return Ok(ids) };
            open(shard)?.read(0, &mut id)?;
            ids.start = u64::from(id[0] == separator.id);
            ids.after = Some(separator.id);
        } else {
            let Some(shard) = there.next_back() else { return Ok(ids) };
            open(shard)?.read(shard.tokens - 1, &mut id)?;
            ids.end -= u64::from(id[0] == separator.id);
            ids.before = Some(separator.id);
        }
        Ok(ids)
    }

    fn count(&self) -> u64 {
        u64::from(self.before.is_some()) + (self.end - self.start) + u64::from(self.after.is_some())
    }

    /// Gives ids `from..to` to `each`, some at a time.
    fn each(&self, from: u64, to: u64, each: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
        let shift = u64::from(self.before.is_some());
        if let Some(id) = self.before.filter(|_| from == 0 && to > 0) {
            each(&[id])?;
        }
        let place = |at: u64| self.start.saturating_add(at.saturating_sub(shift)).min(self.end);
        let (from_id, to_id) = (place(from), place(to));
        let (mut scratch, mut shard_start) = (Vec::new(), 0u64);
        for info in self.shards {
            let shard_end = shard_start.saturating_add(info.tokens);
            let (mut at, end) = (from_id.clamp(shard_start, shard_end), to_id.clamp(shard_start, shard_end));
            let shard = (self.open)(info)?;
            while at < end {
                let count = (end - at).min(1 << 14);
                shard.with(at - shard_start, count as usize, &mut scratch, &mut *each)??;
                at += count;
            }
            shard_start = shard_end;
        }
        match self.after.filter(|_| from < to && to == self.count()) {
            Some(id) => each(&[id]),
            None => Ok(()),
        }
    }

    /// Gives the end of each document to `each`, where separators end documents.
    fn each_end(&self, each: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let mut before = 0;
        for (number, info) in self.shards.iter().enumerate() {
            let shard = (self.open)(info)?;
            let ends = shard.index()?;
            // A document that goes on in the next shard does not end here.
            let goes_on = self.shards.get(number + 1).is_some_and(|next| next.continues);
            for document in 1..=ends.documents() - u64::from(goes_on).min(ends.documents()) {
                // A separator that stood before the next document has moved into this one.
                each(before + ends.start(document) - self.start + u64::from(self.after.is_some()))?;
            }
            before += info.tokens;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llm.c counts with 31 bits. Here with 2, so that a test can have several files.
    #[test]
    fn parts_hold_what_the_whole_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let about = ForeignFile {
            format: Foreign::LlmC,
            dtype: IdType::U16,
            separator: Some(0),
            table_rows: 100,
            tokenizer: None,
        };
        // nanoGPT's has the separator after each document, llm.c's before.
        let raw: Vec<u8> = [5u16, 6, 7, 8, 0, 0, 9, 0, 1, 2, 0].iter().flat_map(|id| id.to_le_bytes()).collect();
        std::fs::write(path("nanogpt.bin"), &raw).unwrap();
        let nanogpt = ForeignFile { format: Foreign::NanoGpt, ..about.clone() };
        import(&[path("nanogpt.bin")], &nanogpt, &path("tokens"), "train").unwrap();
        for most in [1, 2, 3, 4, 11, 12] {
            let name = format!("{most}.bin");
            let files = export_parts(&path("tokens"), "train", Foreign::LlmC, IdType::U16, &path(&name), most).unwrap();
            assert_eq!(files.len() as u64, 11u64.div_ceil(most));
            let ids: Vec<u16> = files
                .iter()
                .flat_map(|file| {
                    let bytes = std::fs::read(file).unwrap();
                    let ids: Vec<u16> = bytes[1024..].as_chunks().0.iter().map(|id| u16::from_le_bytes(*id)).collect();
                    assert_eq!(bytes[8..12], (ids.len() as i32).to_le_bytes(), "the header's count");
                    ids
                })
                .collect();
            assert_eq!(ids, [0, 5, 6, 7, 8, 0, 0, 9, 0, 1, 2]);
            let back = path(&format!("back-{most}"));
            let manifest = import(&files, &about, &back, "train").unwrap();
            assert_eq!(manifest.splits["train"].documents, 4, "{most}");
            assert_eq!(super::super::verify(&back, |_| ()).unwrap(), [""; 0]);
            export(&back, "train", Foreign::NanoGpt, IdType::U16, &path("back.bin")).unwrap();
            assert!(std::fs::read(path("back.bin")).unwrap() == raw, "{most}");
        }
    }
}
