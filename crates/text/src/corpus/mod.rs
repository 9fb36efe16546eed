//! Files → documents: plain text, JSON lines, Parquet, each plain or compressed.
//!
//! This module knows nothing of ids. It finds the files, cuts them into units of work that can be read by themselves, and
//! gives the documents of a unit one by one: small ones whole, large ones as a stream.

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

/// Documents up to this size are given whole.
const WHOLE_BYTES: u64 = 1 << 18;
/// Bytes at the beginning of a document that tell it from others.
const HEAD_BYTES: usize = 1 << 16;

/// What a file of a corpus holds.
///
/// # Example
/// ```
/// use tallow_text::prepare::{Format, PrepareConfig};
/// let cfg = PrepareConfig { format: Some("jsonl".parse()?), ..Default::default() }; // whatever the files are called
/// assert_eq!(cfg.format, Some(Format::Jsonl));
/// assert!("csv".parse::<Format>().is_err());
/// # Ok::<(), tallow_text::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text: a file is one document, or documents stand between separator lines.
    Text,
    /// One JSON object a line, one of whose fields is the text.
    Jsonl,
    /// Parquet, with a column of text (feature `parquet`).
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

/// How documents are told apart and read.
pub(crate) struct Rules<'a> {
    /// The field of a JSON line, or the column of a Parquet file, that is the text.
    pub(crate) field: &'a str,
    /// The line between two documents of a text file.
    pub(crate) split_at: Option<&'a str>,
    /// Read bytes that are not UTF-8 as U+FFFD.
    pub(crate) lossy: bool,
    /// Whether a text may be cut between two bytes, given those two and the one before: both parts then give the ids of
    /// the whole. `None`: this tokenizer's text cannot be cut.
    pub(crate) cuts: Option<&'a Cut<'a>>,
}

pub(crate) type Cut<'a> = dyn Fn([u8; 3]) -> bool + Sync + 'a;

/// Where something stands, for messages.
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
    /// The first bytes of the whole document, by which it is put into a split.
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

/// Something that is no document.
pub(crate) enum Bad<'a> {
    /// It should have been one.
    New { place: Place<'a>, flaw: Flaw },
    /// The document that was given last is none after all: what came after its text says so. If something is wrong, that is
    /// said next.
    Last,
}

/// What is wrong with a document, and what can be done about it.
pub(crate) struct Flaw {
    pub(crate) reason: String,
    pub(crate) advice: &'static str,
}

impl Flaw {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Flaw { reason: reason.into(), advice: "`OnError::Skip` leaves such documents out" }
    }

    /// There is no such field or column.
    fn no_field(reason: String) -> Self {
        let advice = "`PrepareConfig::field` names the one that is the text; `OnError::Skip` leaves such documents out";
        Flaw { reason, advice }
    }

    pub(crate) fn not_utf8(reason: String) -> Self {
        let advice = "`OnError::Skip` leaves such documents out, `OnError::Replace` reads bad bytes as U+FFFD";
        Flaw { reason, advice }
    }
}

/// What is done with each document. An error ends the reading.
pub(crate) type Each<'e> = dyn FnMut(std::result::Result<Document<'_>, Bad<'_>>) -> std::result::Result<(), End> + 'e;

/// Why whoever gets the documents wants no more of them.
pub(crate) enum End {
    /// There were enough.
    Enough,
    /// It is of no use to go on.
    Error(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Error(error)
    }
}

/// A piece of a file, to be read by some rules.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) file: &'a CorpusFile,
    pub(crate) piece: &'a Piece,
    pub(crate) rules: &'a Rules<'a>,
    /// Counts the bytes of the file that were read.
    pub(crate) read: &'a AtomicU64,
}

impl<'a> Source<'a> {
    fn place(&self, at: At) -> Place<'a> {
        Place { file: &self.file.path, at }
    }
}

/// Reads one piece of a file, unless `each` wants no more of it. Everything that is wrong with the file goes to `each`; an error is
/// only what `each` returned.
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
        Ok(()) if given.get() == 0 && whole => Err(Stop::file("there is no text in it: it is empty")),
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
    /// The file cannot be read on.
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

/// Whether an error says something of the machine at this moment, not of the file: then no document is to blame.
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

/// A read error in words: decompressors say too little.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => format!("the compressed file is truncated ({error})"),
        _ => error.to_string(),
    }
}

/// Reads a document from `reader`: gives it whole if it is small. `head` (what the whole document begins with) is taken
/// from it unless this is a later part.
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

/// Goes to the first line that begins in `piece`, from one byte before it, and returns where that is. A line that ends
/// beyond the piece is not looked for: a long one is read once, not once a piece.
fn first_line(reader: &mut dyn BufRead, piece: &Piece) -> std::io::Result<u64> {
    Ok(piece.start - 1 + reader.take(piece.end - piece.start + 1).skip_until(b'\n')? as u64)
}

/// Which part of a document that was cut.
struct Part {
    begins: bool,
    ends: bool,
    /// What the document begins with.
    head: Vec<u8>,
}
