//! A split of a folder → files of another trainer.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Foreign, Layout, NAMES, header};
use crate::shard::write::with_suffix;
use crate::shard::{IdType, Io, Manifest, Separator, Shard, ShardInfo};
use crate::support::files::{folder_of, persist, temporary, write_whole};
use crate::support::{belongs_to, lies_in};
use crate::{Error, Result};

/// Writes split `split` of `folder` as a file of another trainer, with its companion files. llm.c's counts have 31 bits, so a
/// larger split becomes several files. Returns the paths of all files. Existing files are replaced.
///
/// The separator is moved to the place where that trainer expects it, after or before each document. The number of documents stays
/// the same. Without a separator the ids are written unchanged, and only datatrove's index keeps the bounds of documents.
///
/// # Errors
/// - [`Error::Config`]: an id or `id_type` does not fit the format, or `out` is in `folder` or is one of its files.
/// - [`Error::Shard`]: the folder has no such split, or a shard is torn.
/// - [`Error::Io`].
pub fn export(folder: &Path, split: &str, format: Foreign, id_type: IdType, out: &Path) -> Result<Vec<PathBuf>> {
    with_layout(folder, split, format.layout(), id_type, out)
}

pub(super) fn with_layout(
    folder: &Path,
    split: &str,
    layout: &Layout,
    id_type: IdType,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let manifest = Manifest::read(folder)?;
    if lies_in(out, folder) || belongs_to(out, folder) {
        let (out, folder) = (out.display(), folder.display());
        return Err(Error::Config(format!("{out} is part of {folder}, which is read: name a file outside of it")));
    }
    let Some(info) = manifest.splits.get(split) else {
        let names: Vec<&str> = manifest.splits.keys().map(String::as_str).collect();
        let reason = format!("no split {split:?}; there are {}", names.join(", "));
        return Err(Error::Shard { path: folder.to_path_buf(), reason });
    };
    if !layout.id_types.contains(&id_type) {
        return Err(Error::Config(format!("{} reads u16 ids only: this tokenizer needs more", layout.trainer)));
    }
    let open = |info: &ShardInfo| manifest.open(folder, split, info, Io::Pread);
    let ids = Ids::new(&info.shards, &open, manifest.separator.as_ref(), layout)?;
    let parts = ids.count().div_ceil(layout.most_ids).max(1);
    let mut files = Vec::new();
    for part in 0..parts {
        let from = part * layout.most_ids;
        let to = from.saturating_add(layout.most_ids).min(ids.count());
        let path = if parts == 1 {
            out.to_path_buf()
        } else {
            let stem = out.file_stem().unwrap_or_default().to_string_lossy();
            out.with_file_name(format!("{stem}_{part:06}.bin"))
        };
        let io = |e| Error::io(&path, e);
        let mut file = BufWriter::with_capacity(1 << 16, temporary(folder_of(&path))?);
        if layout.header {
            file.write_all(&header::of(id_type, to - from)).map_err(io)?;
        }
        let mut bytes = Vec::new();
        ids.each(from, to, &mut |ids| {
            bytes.clear();
            id_type.encode(ids, &mut bytes).map_err(too_large)?;
            file.write_all(&bytes).map_err(io)
        })?;
        persist(file, &path).map_err(io)?;
        files.push(path);
    }
    if layout.index {
        let index = with_suffix(out, ".index");
        let mut file = BufWriter::new(temporary(folder_of(out))?);
        ids.each_end(&mut |end| file.write_all(&end.to_le_bytes()).map_err(|e| Error::io(&index, e)))?;
        persist(file, &index).map_err(|e| Error::io(&index, e))?;
        let metadata = with_suffix(out, ".metadata");
        let name = manifest.tokenizer.as_ref().map_or("Unknown Tokenizer", |tokenizer| &tokenizer.name);
        let text = format!("{name}|{}\n{}\n{} T", id_type.bytes(), ids.count(), ids.count());
        write_whole(&metadata, text.as_bytes())?;
        files.extend([index, metadata]);
    }
    Ok(files)
}

fn too_large(id: u32) -> Error {
    let formats = NAMES.iter().filter(|(_, format)| format.layout().id_types.contains(&IdType::U32));
    let names: Vec<&str> = formats.map(|(name, _)| *name).collect();
    let names = names.join(", ");
    Error::Config(format!("id {id} does not fit into 16 bits: write u32 ids, in a format that has them ({names})"))
}

/// The ids of a split as another trainer stores them: the ids of all shards, with the separator moved from the end of each document
/// to its beginning, or back.
struct Ids<'a> {
    shards: &'a [ShardInfo],
    open: &'a dyn Fn(&ShardInfo) -> Result<Shard>,
    /// A separator to write first.
    before: Option<u32>,
    /// The range of ids that are written: all, except a first or last separator that is moved.
    start: u64,
    end: u64,
    /// A separator to write last.
    after: Option<u32>,
}

impl<'a> Ids<'a> {
    fn new(
        shards: &'a [ShardInfo],
        open: &'a dyn Fn(&ShardInfo) -> Result<Shard>,
        separator: Option<&Separator>,
        layout: &Layout,
    ) -> Result<Self> {
        let end = shards.iter().map(|shard| shard.tokens).fold(0, u64::saturating_add);
        let mut ids = Ids { shards, open, before: None, start: 0, end, after: None };
        let Some(separator) = separator.filter(|separator| separator.before != layout.separator_before) else {
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

    /// Calls `each` with the ids `from..to`, at most 16384 at a time.
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

    /// Calls `each` with the end of each document.
    fn each_end(&self, each: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let mut before = 0;
        for (number, info) in self.shards.iter().enumerate() {
            let shard = (self.open)(info)?;
            let ends = shard.index()?;
            // A document that continues in the next shard does not end here.
            let goes_on = self.shards.get(number + 1).is_some_and(|next| next.continues);
            for document in 1..=ends.documents() - u64::from(goes_on).min(ends.documents()) {
                // The separator before the next document has moved to the end of this one.
                each(before + ends.start(document) - self.start + u64::from(self.after.is_some()))?;
            }
            before += info.tokens;
        }
        Ok(())
    }
}
