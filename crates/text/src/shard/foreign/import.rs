//! Files of another trainer → a split of a folder.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::ends::Ends;
use super::{ForeignFile, header};
use crate::shard::{FORMAT, IdType, Manifest, Separator, ShardWriter, Skipped, VERSION};
use crate::support::files::open_regular;
use crate::{Error, Result};

/// Imports `files` as split `split` of the folder `out`, one shard per file. Other splits of the folder are kept, so `train.bin` and
/// `val.bin` can be imported one after the other. A document that is cut at the end of a file continues in the next file.
///
/// # Errors
/// - [`Error::Shard`]: a file is torn, contradicts its header or has an id from `table_rows` on; or the folder already has this
///   split, or has ids of another tokenizer, type or separator.
/// - [`Error::Io`].
///
/// # Cost
/// Reads and writes every id once. Memory does not grow with the files.
pub fn import(files: &[PathBuf], about: &ForeignFile, split: &str, out: &Path) -> Result<Manifest> {
    let folder = out.join(split);
    let refuse = |reason: &str| Err(Error::Shard { path: out.to_path_buf(), reason: reason.to_string() });
    if split.is_empty() || split.contains(['/', '\\', ':']) || split.starts_with('.') {
        return refuse("the name of a split must be a plain word, like train or val");
    }
    let layout = about.format.layout();
    let before = layout.separator_before;
    let separator = about.separator.map(|id| Separator { token: None, id, before });
    let id_type = IdType::for_rows(about.table_rows);
    let mut manifest = match Manifest::read(out) {
        Ok(manifest) if manifest.splits.get(split).is_some_and(|split| split.tokens > 0) => {
            return refuse(&format!("it has a split {split} already: take another name for it, or another folder"));
        }
        Ok(manifest)
            if (&manifest.tokenizer, manifest.table_rows, manifest.id_type, &manifest.separator)
                != (&about.tokenizer, about.table_rows, id_type, &separator) =>
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
            id_type,
            val: 0.0,
            seed: 0,
            skipped: Skipped::default(),
            splits: Default::default(),
        },
        Err(error) => return Err(error),
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let mut last = None; // last id of the previous file
    for (number, file) in files.iter().enumerate() {
        let mut writer = ShardWriter::create(folder.join(format!("{number:06}")), id_type)?;
        let ids = read(file, about, &mut writer)?;
        let mut info = writer.finish()?;
        if let (Some(separator), Some(last)) = (about.separator.filter(|_| !layout.index), last) {
            info.continues = separator != if before { ids.0 } else { last };
        }
        last = Some(ids.1);
        manifest.largest_id = manifest.largest_id.max(info.largest_id);
        manifest.splits.entry(split.to_string()).or_default().add(info);
    }
    manifest.write(out)?;
    Ok(manifest)
}

/// Reads one file. Returns its first and its last id.
fn read(path: &Path, about: &ForeignFile, writer: &mut ShardWriter) -> Result<(u32, u32)> {
    let layout = about.format.layout();
    let io = |e| Error::io(path, e);
    let bad = |reason: String| Error::Shard { path: path.to_path_buf(), reason };
    let file = open_regular(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (id_type, bytes) = match layout.header {
        true => header::read(&mut reader, bytes).map_err(bad)?,
        false => (about.id_type, bytes),
    };
    let width = id_type.bytes();
    if bytes == 0 || bytes % width as u64 != 0 {
        return Err(bad(format!(
            "{bytes} bytes are no whole number of {width}-byte ids: set the right type (`ForeignFile::id_type`)"
        )));
    }
    if let Some((beginning, what)) = layout.refused
        && reader.fill_buf().map_err(io)?.starts_with(beginning)
    {
        return Err(bad(what.to_string()));
    }
    let total = bytes / width as u64;
    let mut ends = Ends::open(path, about, layout, total)?;
    let (mut raw, mut ids) = (vec![0; 1 << 16], Vec::new());
    let (mut at, mut first, mut last) = (0u64, 0, 0);
    while at < total {
        let count = (total - at).min((raw.len() / width) as u64) as usize;
        reader.read_exact(&mut raw[..count * width]).map_err(io)?;
        ids.resize(count, 0);
        id_type.decode(&raw[..count * width], &mut ids);
        if let Some(i) = ids.iter().position(|id| *id as usize >= about.table_rows) {
            return Err(bad(format!(
                "id {} at position {} is outside a table of {} rows: are `ForeignFile::id_type` and `ForeignFile::table_rows` right?",
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
            let (take, ended) = ends.split(rest, at, writer.document_tokens() == 0)?;
            writer.push(&rest[..take])?;
            if ended {
                writer.end_document()?;
            }
            at += take as u64;
            rest = &rest[take..];
        }
    }
    Ok((first, last))
}
