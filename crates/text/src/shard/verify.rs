//! Verifies every byte of a folder against its manifest.

use std::io::{BufReader, Read};
use std::path::Path;

use crc32fast::Hasher;

use super::write::with_suffix;
use super::{Io, Manifest, Shard, ShardInfo};
use crate::support::files::{open_regular, regular};
use crate::{Error, Result};

/// Endings of the files of a shard.
const ENDINGS: [&str; 2] = [".bin", ".idx"];

/// Verifies all shards of `folder`. Returns one line per finding; no lines mean that everything is correct. `progress` gets the
/// number of bytes read and the number of all bytes.
///
/// It checks that both files of each shard exist with the right length and CRC-32, the numbers of ids and documents, the largest
/// id, that sequences have no gaps, and that every document has its separator.
///
/// # Errors
/// Those of [`Manifest::read`].
///
/// # Cost
/// Reads every file twice.
pub fn verify(folder: impl AsRef<Path>, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Vec<String>> {
    let folder = folder.as_ref();
    let manifest = Manifest::read(folder)?;
    let stem = |split: &str, shard: &ShardInfo| folder.join(split).join(&shard.name);
    let shards = manifest.splits.iter().flat_map(|(name, split)| split.shards.iter().map(move |info| stem(name, info)));
    let files = shards.flat_map(|stem| ENDINGS.map(|ending| with_suffix(&stem, ending)));
    let total = files.map(|file| regular(&file).map_or(0, |about| about.len())).fold(0, u64::saturating_add);
    let mut done = 0;
    let mut read = |bytes| {
        done += bytes;
        progress(done, total);
    };
    let mut findings = Vec::new();
    for (name, split) in &manifest.splits {
        for (i, info) in split.shards.iter().enumerate() {
            let next_continues = split.shards.get(i + 1).is_some_and(|next| next.continues);
            if let Err(error) = shard(&manifest, &stem(name, info), info, next_continues, &mut read) {
                findings.push(error.to_string());
            }
        }
        let sum = |of: fn(&ShardInfo) -> u64| split.shards.iter().map(of).fold(0u64, u64::saturating_add);
        let documents = sum(|s| s.documents - u64::from(s.continues).min(s.documents));
        if (sum(|s| s.tokens), documents) != (split.tokens, split.documents) {
            findings.push(format!(
                "{}: split {name} promises {} tokens and {} documents, its shards have {} and {documents}",
                folder.join(super::MANIFEST).display(),
                split.tokens,
                split.documents,
                sum(|s| s.tokens),
            ));
        }
    }
    Ok(findings)
}

fn shard(
    manifest: &Manifest,
    stem: &Path,
    info: &ShardInfo,
    next_continues: bool,
    read: &mut dyn FnMut(u64),
) -> Result<()> {
    let shard = Shard::open(stem, info, manifest.id_type, Io::Pread)?;
    for (ending, expected) in ENDINGS.into_iter().zip([info.crc32, info.index_crc32]) {
        let path = with_suffix(stem, ending);
        let found = crc_of(&path, read)?;
        if found != expected {
            let reason =
                format!("CRC-32 {found:08x}, but the manifest promises {expected:08x}: its content was changed");
            return Err(Error::Shard { path, reason });
        }
    }
    let bad = |reason: String| Error::Shard { path: with_suffix(stem, ".idx"), reason };
    let (index, mut largest, mut scratch) = (shard.index()?, None, Vec::new());
    shard.for_each(|ids| largest = largest.max(ids.iter().copied().max()))?;
    if largest != info.largest_id {
        return Err(bad(format!("the largest id is {largest:?}, but the manifest promises {:?}", info.largest_id)));
    }
    if largest.is_some_and(|id| id as usize >= manifest.table_rows) {
        return Err(bad(format!("id {largest:?} is outside the {} table rows of the manifest", manifest.table_rows)));
    }
    if let Some(sequence) = index.gap() {
        return Err(bad(format!("sequence {sequence} does not begin where the one before it ends")));
    }
    for document in 0..index.documents() {
        let (start, end) = (index.start(document), index.start(document + 1));
        if start >= end || (document == 0 && start != 0) {
            return Err(bad(format!("document {document} runs from {start} to {end}")));
        }
        let Some(separator) = manifest.separator.as_ref() else { continue };
        let goes_on = document + 1 == index.documents() && next_continues;
        let at = if separator.before { start } else { end - 1 };
        let found = shard.with(at, 1, &mut scratch, |ids| ids[0])?;
        // Files of other trainers may be cut anywhere, so their first and last documents may be incomplete.
        let edge = if separator.before { document == 0 } else { document + 1 == index.documents() };
        if found != separator.id && !goes_on && !(edge && info.text_bytes == 0) {
            return Err(bad(format!("document {document} has {found} where the separator {} should be", separator.id)));
        }
    }
    Ok(())
}

fn crc_of(path: &Path, read: &mut dyn FnMut(u64)) -> Result<u32> {
    let mut file = BufReader::new(open_regular(path).map_err(|e| Error::io(path, e))?);
    let (mut crc, mut buffer) = (Hasher::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io(path, e))? {
            0 => return Ok(crc.finalize()),
            count => {
                crc.update(&buffer[..count]);
                read(count as u64);
            }
        }
    }
}
