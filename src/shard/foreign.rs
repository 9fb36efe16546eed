//! Token files of other trainers ⇄ our folders.
//!
//! Sources: nanoGPT `data/*/prepare.py`, llama2.c `tinystories.py`, llm.c `dev/data/data_common.py`, OLMo-core
//! `data/numpy_dataset.py`, datatrove `pipeline/tokens/tokenizer.py`.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::write::with_suffix;
use super::{FORMAT, IdType, Io, Manifest, Separator, ShardInfo, ShardWriter, Skipped, TokenizerInfo, VERSION};
use crate::files::{folder_of, persist, temporary, write_whole};
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
/// `train.bin` and `val.bin` can follow one another.
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
            return refuse(&format!("it has a split {split} already: give another --split or folder"));
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
    for (number, file) in files.iter().enumerate() {
        let mut writer = ShardWriter::create(folder.join(format!("{number:06}")), dtype)?;
        read_foreign(file, about, &mut writer)?;
        let info = writer.finish()?;
        manifest.largest_id = manifest.largest_id.max(info.largest_id);
        manifest.splits.entry(split.to_string()).or_default().add(info);
    }
    manifest.write(out)?;
    Ok(manifest)
}

fn read_foreign(path: &Path, about: &ForeignFile, writer: &mut ShardWriter) -> Result<()> {
    let io = |e| Error::io(path, e);
    let bad = |reason: String| Error::Shard { path: path.to_path_buf(), reason };
    let file = File::open(path).map_err(io)?;
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
        return Err(bad(format!("{bytes} bytes are no whole number of {}-byte ids: give --dtype", dtype.bytes())));
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
    while at < total {
        let count = (total - at).min((raw.len() / dtype.bytes()) as u64) as usize;
        reader.read_exact(&mut raw[..count * dtype.bytes()]).map_err(io)?;
        ids.resize(count, 0);
        dtype.decode(&raw[..count * dtype.bytes()], &mut ids);
        if let Some(i) = ids.iter().position(|id| *id as usize >= about.table_rows) {
            return Err(bad(format!(
                "id {} at position {} is outside a table of {} rows: wrong --dtype, --rows or --tokenizer?",
                ids[i],
                at + i as u64,
                about.table_rows
            )));
        }
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
    Ok(())
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
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
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
/// # Errors
/// [`Error::Io`]; [`Error::Shard`] if an id does not fit `dtype`, or the folder has no such split.
pub fn export(folder: &Path, split: &str, format: Foreign, dtype: IdType, out: &Path) -> Result<Vec<PathBuf>> {
    let manifest = Manifest::read(folder)?;
    let Some(info) = manifest.splits.get(split) else {
        let names: Vec<&str> = manifest.splits.keys().map(String::as_str).collect();
        let reason = format!("no split {split:?}; there are {}", names.join(", "));
        return Err(Error::Shard { path: folder.to_path_buf(), reason });
    };
    let open = |info: &ShardInfo| manifest.open(folder, split, info, Io::Pread);
    if format == Foreign::Llama2C && dtype != IdType::U16 {
        return Err(Error::Config("llama2.c reads u16 ids only: this tokenizer needs more".to_string()));
    }
    // Names and ranges of ids: one file, but for llm.c.
    let per_file = if format == Foreign::LlmC { (i32::MAX as u64).min(info.tokens.max(1)) } else { info.tokens.max(1) };
    let parts = info.tokens.div_ceil(per_file).max(1);
    let mut files = Vec::new();
    for part in 0..parts {
        let (from, to) = (part * per_file, ((part + 1) * per_file).min(info.tokens));
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
        let (mut bytes, mut scratch, mut shard_start) = (Vec::new(), Vec::new(), 0);
        for info in &info.shards {
            let shard = open(info)?;
            let mut at = from.clamp(shard_start, shard_start + info.tokens);
            let end = to.clamp(shard_start, shard_start + info.tokens);
            while at < end {
                let count = (end - at).min(1 << 14);
                bytes.clear();
                shard
                    .with(at - shard_start, count as usize, &mut scratch, |ids| dtype.encode(ids, &mut bytes))?
                    .map_err(|id| Error::Config(format!("id {id} does not fit into 16 bits: export as u32")))?;
                file.write_all(&bytes).map_err(io)?;
                at += count;
            }
            shard_start += info.tokens;
        }
        persist(file, &path).map_err(io)?;
        files.push(path);
    }
    if format == Foreign::Datatrove {
        let index = with_suffix(out, ".index");
        let mut file = BufWriter::new(temporary(folder_of(out))?);
        let mut before = 0;
        for (number, shard_info) in info.shards.iter().enumerate() {
            let shard = open(shard_info)?;
            let ends = shard.index()?;
            // A document that goes on in the next shard does not end here.
            let goes_on = info.shards.get(number + 1).is_some_and(|next| next.continues);
            for document in 1..=ends.documents() - u64::from(goes_on).min(ends.documents()) {
                file.write_all(&(before + ends.start(document)).to_le_bytes()).map_err(|e| Error::io(&index, e))?;
            }
            before += shard_info.tokens;
        }
        persist(file, &index).map_err(|e| Error::io(&index, e))?;
        let metadata = with_suffix(out, ".metadata");
        let name = manifest.tokenizer.as_ref().map_or("Unknown Tokenizer", |tokenizer| &tokenizer.name);
        let text = format!("{name}|{}\n{}\n{} T", dtype.bytes(), info.tokens, info.tokens);
        write_whole(&metadata, text.as_bytes())?;
        files.extend([index, metadata]);
    }
    Ok(files)
}
