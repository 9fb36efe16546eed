//! A column of text in a Parquet file.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use parquet::basic::Type;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::open::open;
use super::{At, Bad, CorpusFile, Each, Flaw, Packing, Source, Stop, WHOLE_BYTES, deliver};

impl From<ParquetError> for Stop {
    fn from(error: ParquetError) -> Self {
        Stop::file(format!("Parquet: {error}"))
    }
}

/// Compressed bytes of each row group. Empty if the file cannot be read.
pub(super) fn row_groups(file: &CorpusFile) -> Vec<u64> {
    let open = || SerializedFileReader::new(File::open(&file.path).ok()?).ok();
    let Ok(Some(reader)) = catch_unwind(open) else { return Vec::new() };
    reader.metadata().row_groups().iter().map(|group| group.compressed_size().max(0) as u64).collect()
}

pub(super) fn documents(source: Source, each: &mut Each) -> Result<(), Stop> {
    let Source { file, piece, rules, read } = source;
    let opened = match file.packing {
        Packing::None => File::open(&file.path)?,
        // A Parquet reader begins at the file's end, so a .gz or .zst is first decompressed into an unnamed temporary file.
        _ => {
            let mut unpacked = tempfile::tempfile()?;
            std::io::copy(&mut open(file, 0, read)?, &mut unpacked)?;
            unpacked
        }
    };
    let reader = guard(|| SerializedFileReader::new(opened))?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr();
    let Some(column) = schema.columns().iter().position(|column| column.path().string() == rules.field) else {
        let names: Vec<String> = schema.columns().iter().take(8).map(|column| column.path().string()).collect();
        return Err(Stop::File(Flaw::no_field(format!("no column {:?}, only {}", rules.field, names.join(", ")))));
    };
    let about = schema.column(column);
    if about.physical_type() != Type::BYTE_ARRAY || about.max_rep_level() > 0 {
        return Err(Stop::file(format!("column {:?} is not a column of text", rules.field)));
    }
    let groups = metadata.num_row_groups();
    if groups == 0 {
        return Err(Stop::file("the file is empty"));
    }
    let mut row: u64 = metadata.row_groups()[..groups.min(piece.start as usize)]
        .iter()
        .fold(0u64, |rows, group| rows.saturating_add(group.num_rows().max(0) as u64));
    for number in piece.start as usize..groups.min(piece.end as usize) {
        let about_group = metadata.row_group(number);
        // The longer the rows, the fewer are read at a time.
        let bytes = about_group.column(column).uncompressed_size().max(0) as u64;
        let all_rows = about_group.num_rows().max(1) as u64;
        let rows = (WHOLE_BYTES.saturating_mul(all_rows) / bytes.max(1)).clamp(1, 1024) as usize;
        let row_bytes = about_group.compressed_size().max(0) as u64 / all_rows;
        let ColumnReader::ByteArrayColumnReader(mut values) =
            guard(|| reader.get_row_group(number)?.get_column_reader(column))?
        else {
            return Err(Stop::file(format!("column {:?} is not a column of text", rules.field)));
        };
        let (mut texts, mut levels): (Vec<ByteArray>, Vec<i16>) = Default::default();
        loop {
            texts.clear();
            levels.clear();
            let (records, _, _) = guard(|| values.read_records(rows, Some(&mut levels), None, &mut texts))?;
            if records == 0 {
                break;
            }
            if file.packing == Packing::None {
                read.fetch_add(row_bytes.saturating_mul(records as u64), Ordering::Relaxed);
            }
            let mut next = texts.iter();
            for i in 0..records {
                let place = source.place(At::Row(row));
                row += 1;
                let there = levels.get(i).is_none_or(|level| *level == about.max_def_level());
                match there.then(|| next.next()).flatten() {
                    Some(text) => deliver(&mut text.data(), place, None, rules, each)?,
                    None => {
                        let flaw = Flaw::new(format!("column {:?} is null", rules.field));
                        each(Err(Bad::New { place, flaw }))?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Turns panics of the parquet crate, which hostile files can cause, into errors.
fn guard<T>(f: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, Stop> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => Ok(result?),
        Err(_) => Err(Stop::file("Parquet: the file is broken")),
    }
}
