//! Files → documents: plain text, JSON lines, Parquet, each plain or compressed.
//!
//! This module knows nothing about ids. It finds the files, cuts them into units of work that can be read independently, and
//! passes the documents of a unit on one by one: small ones whole, large ones as a stream.

mod find;
mod json;
mod jsonl;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
mod pattern;
mod text;
mod units;
mod utf8;

use std::fmt;
use std::io::{BufRead, Read};
use std::ops::ControlFlow;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub(crate) use find::find;
pub(crate) use open::Counted;
pub(crate) use units::{Piece, units};

/// Documents up to this size are passed on whole.
const WHOLE_BYTES: u64 = 1 << 18;
/// Bytes at the beginning of a document that decide its split.
const HEAD_BYTES: usize = 1 << 16;

/// Format of a corpus file.
///
/// # Example
/// ```
/// use tallow_text::prepare::{Format, PrepareConfig};
/// let cfg = PrepareConfig { format: Some("jsonl".parse()?), ..Default::default() }; // for any file names
/// assert_eq!(cfg.format, Some(Format::Jsonl));
/// assert!("csv".parse::<Format>().is_err());
/// # Ok::<(), tallow_text::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text: a file is one document, or separator lines divide it into documents.
    Text,
    /// JSON lines: one object per line, with the text in one of its fields.
    Jsonl,
    /// Parquet, with the text in one column (feature `parquet`).
    Parquet,
}

impl std::str::FromStr for Format {
    type Err = Error;

    /// `text`, `jsonl` or `parquet`.
    fn from_str(name: &str) -> Result<Self> {
        Error::named("format", name, &[("text", Format::Text), ("jsonl", Format::Jsonl), ("parquet", Format::Parquet)])
    }
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// One file of the corpus. The name `-` is standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CorpusFile {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) format: Format,
    pub(crate) packing: Packing,
}

/// How documents are separated and read.
pub(crate) struct Rules<'a> {
    /// The field of a JSON line, or the column of a Parquet file, that holds the text.
    pub(crate) field: &'a str,
    /// The line that separates two documents of a text file.
    pub(crate) split_at: Option<&'a str>,
    /// Read bytes that are not UTF-8 as U+FFFD.
    pub(crate) lossy: bool,
    /// Whether a text may be cut between the last two of three bytes, so that both parts together have the ids of the whole.
    /// `None`: text for this tokenizer cannot be cut.
    pub(crate) cuts: Option<&'a Cut<'a>>,
}

pub(crate) type Cut<'a> = dyn Fn([u8; 3]) -> bool + Sync + 'a;

/// A place in a file, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) file: &'a str,
    pub(crate) at: At,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    File,
    Byte(u64),
    Line(u64),
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    Row(u64),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file == "-" { "standard input" } else { self.file };
        match self.at {
            At::File => write!(f, "{file}"),
            At::Byte(byte) => write!(f, "{file}: byte {byte}"),
            At::Line(line) => write!(f, "{file}: line {line}"),
            At::Row(row) => write!(f, "{file}: row {row}"),
        }
    }
}

/// A document, or a part of a very long one.
pub(crate) struct Document<'a> {
    pub(crate) place: Place<'a>,
    /// The first bytes of the whole document, which decide its split.
    pub(crate) head: &'a [u8],
    /// Whether the document begins and ends here.
    pub(crate) begins: bool,
    pub(crate) ends: bool,
    pub(crate) body: Body<'a>,
}

pub(crate) enum Body<'a> {
    Text(&'a str),
    /// Bytes of text that need not be UTF-8.
    Stream(&'a mut dyn Read),
}

/// A document that cannot be used, or a retraction.
pub(crate) enum Bad<'a> {
    /// A document that cannot be used.
    New { place: Place<'a>, flaw: Flaw },
    /// Retracts the latest document, because of what follows its text in the file. If the document is faulty, `New` follows with
    /// the reason.
    Last,
}

/// Why a document cannot be used, and what to do about it.
pub(crate) struct Flaw {
    pub(crate) reason: String,
    pub(crate) advice: &'static str,
}

impl Flaw {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Flaw { reason: reason.into(), advice: "`OnError::Skip` leaves such documents out" }
    }

    /// The flaw of a document without the field or column.
    fn no_field(reason: String) -> Self {
        let advice = "`PrepareConfig::field` names the one that is the text; `OnError::Skip` leaves such documents out";
        Flaw { reason, advice }
    }

    pub(crate) fn not_utf8(reason: String) -> Self {
        let advice = "`OnError::Skip` leaves such documents out, `OnError::Replace` reads bad bytes as U+FFFD";
        Flaw { reason, advice }
    }
}

/// Receives each document. An error ends the reading.
pub(crate) type Each<'e> = dyn FnMut(std::result::Result<Document<'_>, Bad<'_>>) -> std::result::Result<(), End> + 'e;

/// Why an [`Each`] stops the reading.
pub(crate) enum End {
    /// It has enough documents.
    Enough,
    /// It failed.
    Error(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Error(error)
    }
}

/// A piece of a file, and the rules for reading it.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) file: &'a CorpusFile,
    pub(crate) piece: &'a Piece,
    pub(crate) rules: &'a Rules<'a>,
    /// Number of bytes of the file that were read.
    pub(crate) read: &'a AtomicU64,
}

impl<'a> Source<'a> {
    fn place(&self, at: At) -> Place<'a> {
        Place { file: &self.file.path, at }
    }
}

/// Reads one piece of a file until `each` stops it. Faults of the file are passed to `each`; the returned error is always one that
/// `each` returned.
pub(crate) fn documents(source: Source, each: &mut Each) -> Result<ControlFlow<()>> {
    let given = std::cell::Cell::new(0u64);
    let each: &mut Each = &mut |document| {
        given.set(match document {
            Err(Bad::Last) => given.get().saturating_sub(1),
            _ => given.get() + 1,
        });
        each(document)
    };
    let outcome = match source.file.format {
        _ if source.file.bytes == 0 && source.file.path != "-" => Err(Stop::file("the file is empty")),
        Format::Text => text::documents(source, each),
        Format::Jsonl => jsonl::documents(source, each),
        #[cfg(feature = "parquet")]
        Format::Parquet => parquet::documents(source, each),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => Err(Stop::file("Parquet needs the feature `parquet`")),
    };
    let whole = source.piece.start == 0 && source.piece.end == u64::MAX;
    let outcome = match outcome {
        Ok(()) if given.get() == 0 && whole => Err(Stop::file("there is no text in it")),
        other => other,
    };
    let outcome = match outcome {
        Ok(()) => Ok(()),
        Err(Stop::End(end)) => Err(end),
        Err(Stop::File(flaw)) => each(Err(Bad::New { place: source.place(At::File), flaw })),
    };
    match outcome {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(End::Enough) => Ok(ControlFlow::Break(())),
        Err(End::Error(error)) => Err(error),
    }
}

/// Why the reading of a piece ended early.
enum Stop {
    End(End),
    /// The rest of the file cannot be read.
    File(Flaw),
}

impl Stop {
    fn file(reason: impl Into<String>) -> Self {
        Stop::File(Flaw::new(reason))
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        if of_the_machine(&error) { Stop::End(Error::io("input", error).into()) } else { Stop::file(reason(&error)) }
    }
}

/// Whether an error is about the machine's state (memory, disk, open files) and not about the file.
pub(crate) fn of_the_machine(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
    let code = error.raw_os_error().filter(|_| cfg!(unix));
    matches!(error.kind(), OutOfMemory | QuotaExceeded | StorageFull) || matches!(code, Some(5 | 23 | 24)) // EIO, ENFILE, EMFILE
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Stop::End(end)
    }
}

/// Text of a read error. Decompressors report a truncated file only as an unexpected end.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => format!("the compressed file is truncated ({error})"),
        _ => error.to_string(),
    }
}

/// Passes the document in `reader` to `each`, whole if it is small. `head` (the first bytes of the whole document) comes from
/// `part`, if this is a part of a document.
fn deliver(
    reader: &mut dyn Read,
    place: Place,
    part: Option<&Part>,
    rules: &Rules,
    each: &mut Each,
) -> std::result::Result<(), Stop> {
    let mut whole = Vec::new();
    reader.take(WHOLE_BYTES).read_to_end(&mut whole)?;
    let short = (whole.len() as u64) < WHOLE_BYTES;
    if short && whole.is_empty() {
        return Ok(());
    }
    let (begins, ends) = part.map_or((true, true), |part| (part.begins, part.ends));
    let head = match part {
        Some(part) => part.head.clone(),
        None => whole[..whole.len().min(HEAD_BYTES)].to_vec(),
    };
    if !short {
        let mut stream = whole.as_slice().chain(reader);
        let body = Body::Stream(&mut stream);
        return Ok(each(Ok(Document { place, head: &head, begins, ends, body }))?);
    }
    let text = match String::from_utf8(whole) {
        Ok(text) => text,
        Err(error) if rules.lossy => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        Err(error) => {
            let byte = error.utf8_error().valid_up_to();
            let flaw = Flaw::not_utf8(format!("invalid UTF-8 at byte {byte} of the document"));
            return Ok(each(Err(Bad::New { place, flaw }))?);
        }
    };
    Ok(each(Ok(Document { place, head: &head, begins, ends, body: Body::Text(&text) }))?)
}

/// Skips to the first line that begins in `piece` and returns its position. `reader` starts one byte before the piece. It reads no
/// further than the piece, so that a long line is read once, and not once per piece.
fn first_line(reader: &mut dyn BufRead, piece: &Piece) -> std::io::Result<u64> {
    Ok(piece.start - 1 + reader.take(piece.end - piece.start + 1).skip_until(b'\n')? as u64)
}

/// A part of a document that was cut.
struct Part {
    begins: bool,
    ends: bool,
    /// The first bytes of the whole document.
    head: Vec<u8>,
}
