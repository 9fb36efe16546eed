//! Megatron-LM's `.idx`: the bounds of the sequences and documents in a `.bin`.
//!
//! Source: Megatron-LM, `megatron/core/datasets/indexed_dataset.py`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use crc32fast::Hasher;

use super::IdType;
use crate::{Error, Result};

pub(super) const MAGIC: [u8; 9] = *b"MMIDIDX\0\0";
/// Magic, version (u64), type code (u8), sequences (u64), documents + 1 (u64).
pub(super) const HEADER_BYTES: usize = 9 + 8 + 1 + 8 + 8;
/// Sequence lengths have 31 bits. Longer documents become several sequences.
const LONGEST_SEQUENCE: u64 = i32::MAX as u64;

/// Collects document lengths in a temporary file, so that memory does not grow with their number.
pub(super) struct IndexWriter {
    id_type: IdType,
    /// Lengths as i32. A negative length marks a document that continues in the next sequence.
    lengths: BufWriter<File>,
    sequences: u64,
    documents: u64,
}

impl IndexWriter {
    pub(super) fn new(folder: &Path, id_type: IdType) -> Result<Self> {
        let lengths = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        Ok(IndexWriter { id_type, lengths: BufWriter::new(lengths), sequences: 0, documents: 0 })
    }

    pub(super) fn documents(&self) -> u64 {
        self.documents
    }

    /// Adds a document of `tokens` ids.
    pub(super) fn push(&mut self, mut tokens: u64) -> io::Result<()> {
        self.documents += u64::from(tokens > 0);
        while tokens > 0 {
            let length = tokens.min(LONGEST_SEQUENCE);
            tokens -= length;
            let length = length as i32;
            self.lengths.write_all(&(if tokens > 0 { -length } else { length }).to_le_bytes())?;
            self.sequences += 1;
        }
        Ok(())
    }

    /// Writes the index and returns its CRC-32.
    pub(super) fn finish(self, out: &mut impl Write) -> io::Result<u32> {
        let mut lengths = self.lengths.into_inner().map_err(|e| e.into_error())?;
        let mut crc = Hasher::new();
        let mut put = |bytes: &[u8]| {
            crc.update(bytes);
            out.write_all(bytes)
        };
        put(&MAGIC)?;
        put(&1u64.to_le_bytes())?;
        put(&[self.id_type.megatron_code()])?;
        put(&self.sequences.to_le_bytes())?;
        put(&(self.documents + 1).to_le_bytes())?;
        each_length(&mut lengths, |length| put(&length.abs().to_le_bytes()))?;
        let mut at = 0i64;
        each_length(&mut lengths, |length| {
            put(&at.to_le_bytes())?;
            at += i64::from(length.unsigned_abs()) * self.id_type.bytes() as i64;
            Ok(())
        })?;
        put(&0i64.to_le_bytes())?;
        let mut sequence = 0i64;
        each_length(&mut lengths, |length| {
            sequence += 1;
            if length > 0 { put(&sequence.to_le_bytes()) } else { Ok(()) }
        })?;
        Ok(crc.finalize())
    }
}

fn each_length(lengths: &mut File, mut each: impl FnMut(i32) -> io::Result<()>) -> io::Result<()> {
    lengths.rewind()?;
    let mut reader = BufReader::with_capacity(1 << 16, lengths);
    let mut bytes = [0; 4];
    loop {
        match reader.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        }
        each(i32::from_le_bytes(bytes))?;
    }
}

/// The header of an `.idx`.
pub(super) struct Header {
    pub(super) id_type: IdType,
    pub(super) sequences: u64,
    pub(super) documents: u64,
}

impl Header {
    /// Parses a header and checks it against the length of its file.
    pub(super) fn parse(bytes: &[u8], file_bytes: u64) -> std::result::Result<Self, String> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>().filter(|header| header.starts_with(&MAGIC)) else {
            return Err("not an index: it does not begin with MMIDIDX".to_string());
        };
        let number = |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("the header is longer"));
        if number(9) != 1 {
            return Err(format!("version {} of the index format; only version 1 is supported", number(9)));
        }
        let id_type = match header[17] {
            8 => IdType::U16,
            4 => IdType::U32,
            code => return Err(format!("type code {code}: ids are u16 (8) or int32 (4)")),
        };
        let (sequences, ends) = (number(18), number(26));
        let expected = sequences
            .checked_mul(12)
            .and_then(|bytes| bytes.checked_add(ends.checked_mul(8)?)?.checked_add(HEADER_BYTES as u64));
        if expected != Some(file_bytes) || ends == 0 {
            return Err(format!(
                "the header promises {sequences} sequences and {} documents, but the file has {file_bytes} bytes",
                ends.saturating_sub(1)
            ));
        }
        Ok(Header { id_type, sequences, documents: ends - 1 })
    }
}
