//! Plain text: one document per file, or documents between separator lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use super::open::open;
use super::{At, CorpusFile, Cut, Each, HEAD_BYTES, Packing, Part, Source, Stop, deliver, first_line};

pub(super) fn documents(source: Source, each: &mut Each) -> Result<(), Stop> {
    let Source { file, piece, rules, read } = source;
    let begins_file = piece.start == 0;
    if let Some(separator) = rules.split_at {
        let mut reader = open(file, piece.start.saturating_sub(1), read)?;
        let mut at = piece.start;
        if !begins_file {
            // A document belongs to the piece that the separator line before it begins in.
            at = first_line(&mut reader, piece)?;
            let mut before = Separated::new(&mut reader, separator, at);
            // No further than the piece, so that a file without separators is read once, and not once per piece.
            let mut skipped = vec![0; 1 << 16];
            while before.at < piece.end && before.read(&mut skipped)? > 0 {}
            match before.ended {
                Some((start, end)) if start < piece.end => at = end,
                _ => return Ok(()),
            }
        }
        loop {
            let mut document = Separated::new(&mut reader, separator, at);
            deliver(&mut document, source.place(At::Byte(at)), None, rules, each)?;
            io::copy(&mut document, &mut io::sink())?; // the unread rest of the document
            match document.ended {
                Some((start, end)) if start < piece.end => at = end,
                _ => return Ok(()),
            }
        }
    }
    match rules.cuts.filter(|_| file.packing == Packing::None && file.path != "-") {
        Some(cuts) if !begins_file || piece.end < file.bytes => {
            // A part belongs to the piece that it begins in, so that long runs without a cut are searched once.
            let Some(start) = cut(file, piece.start, piece.end, cuts)? else { return Ok(()) };
            let end = cut(file, piece.end, file.bytes, cuts)?.unwrap_or(file.bytes);
            let mut head = Vec::new();
            File::open(&file.path)?.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
            let part = Part { begins: begins_file, ends: end == file.bytes, head };
            let mut reader = open(file, start, read)?.take(end - start);
            deliver(&mut reader, source.place(At::Byte(start)), Some(&part), rules, each)
        }
        _ => deliver(&mut open(file, 0, read)?, source.place(At::File), None, rules, each),
    }
}

/// The first place in `from..until` where the text may be cut. The beginning of the file is always one.
fn cut(file: &CorpusFile, from: u64, until: u64, cuts: &Cut) -> io::Result<Option<u64>> {
    if from == 0 {
        return Ok(Some(0));
    }
    let before = from.min(2);
    let mut source = File::open(&file.path)?;
    source.seek(SeekFrom::Start(from - before))?;
    let mut reader = BufReader::with_capacity(1 << 14, source);
    // The three bytes around the place: two before it (line feeds before the beginning of the file), one after it.
    let mut around = [b'\n'; 3];
    reader.read_exact(&mut around[2 - before as usize..2])?;
    for (at, byte) in (from..until).zip(reader.bytes()) {
        around[2] = byte?;
        if cuts(around) {
            return Ok(Some(at));
        }
        around = [around[1], around[2], 0];
    }
    Ok(None)
}

/// Reads up to the next line that is the separator.
struct Separated<'a, R> {
    reader: &'a mut R,
    separator: &'a [u8],
    /// Bytes read of the current line, and how many of them were returned.
    line: Vec<u8>,
    given: usize,
    at_line_start: bool,
    at: u64,
    /// Where the separator line begins and ends. `None` at the end of the file.
    ended: Option<(u64, u64)>,
    done: bool,
}

impl<'a, R: BufRead> Separated<'a, R> {
    fn new(reader: &'a mut R, separator: &'a str, at: u64) -> Self {
        let (line, separator) = (Vec::new(), separator.as_bytes());
        Separated { reader, separator, line, given: 0, at_line_start: true, at, ended: None, done: false }
    }
}

impl<R: BufRead> Read for Separated<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.given == self.line.len() && !self.done {
            self.line.clear();
            self.given = 0;
            // A long line is read in parts, each long enough to recognize the separator.
            let limit = (1 << 16) + self.separator.len() as u64;
            let read = (&mut *self.reader).take(limit).read_until(b'\n', &mut self.line)? as u64;
            let ends = self.line.ends_with(b"\n");
            let content = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            let content = content.strip_suffix(b"\r").unwrap_or(content);
            if read == 0 {
                self.done = true;
            } else if self.at_line_start && content == self.separator && (ends || read < limit) {
                self.ended = Some((self.at, self.at + read));
                self.done = true;
                self.line.clear();
            }
            self.at += read;
            self.at_line_start = ends;
        }
        let count = bytes.len().min(self.line.len() - self.given);
        bytes[..count].copy_from_slice(&self.line[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}
