//! One error type for the whole library: every variant holds the facts, every message says what to do next.

use std::io;
use std::path::{Path, PathBuf};

use candle_core::DType;

/// `Result` with tallow's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in tallow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id that has no row in the table.
    #[error(
        "id {id}{} at position {position:?} of the ids is outside the table of {rows} rows: {}",
        .token.as_deref().map(|t| format!(" ({t})")).unwrap_or_default(),
        out_of_range_advice(*.id, *.rows)
    )]
    IdOutOfRange {
        /// The id as it was given.
        id: i64,
        /// Its index in the ids tensor, one number a dimension (`[row, column]` for a batch).
        position: Vec<usize>,
        /// Rows of the table.
        rows: usize,
        /// What the token is, where the layer was given names.
        token: Option<String>,
    },

    /// A target that is not a row of the head's weight.
    #[error(
        "target {target} at position {position:?} of the targets is outside the {rows} rows of the head: targets run from 0 to {}; \
         mark padding with u32::MAX",
        .rows.saturating_sub(1)
    )]
    TargetOutOfRange {
        /// The target as it was given.
        target: i64,
        /// Its index in the targets tensor, one number a dimension.
        position: Vec<usize>,
        /// Rows of the weight.
        rows: usize,
    },

    /// Ids of a dtype that cannot name a row.
    #[error("ids have dtype {dtype:?}: use u8, u32 or i64 (`ids.to_dtype(DType::U32)?`)")]
    IdDType {
        /// The dtype found.
        dtype: DType,
    },

    /// An id that the tokenizer has no token for.
    #[error("id {id} at position {position} is not a token of {tokenizer}, whose largest id is {largest}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Its index in the sequence.
        position: usize,
        /// Name of the tokenizer.
        tokenizer: String,
        /// The largest id that it has.
        largest: u32,
    },

    /// Text that spells a special token while [`Specials::Forbid`](crate::Specials::Forbid) is set.
    #[error(
        "the text spells the special token {token:?} at byte {byte}: read it as text (Specials::Text, --specials text) \
         or as the token (Specials::Allow, --specials allow)"
    )]
    SpecialForbidden {
        /// The token's text.
        token: String,
        /// Byte offset of its first byte.
        byte: u64,
    },

    /// A tokenizer file that cannot be used.
    #[error("tokenizer file {}: {reason}", .path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A tokenizer.json whose own rules refuse this text (for example no unknown token to fall back to).
    #[error("tokenizer {tokenizer}: {reason}")]
    Tokenize {
        /// Name of the tokenizer.
        tokenizer: String,
        /// What it said.
        reason: String,
    },

    /// Bytes that are not UTF-8.
    #[error("invalid UTF-8 at byte {byte}: fix the text, or accept replacement characters (lossy)")]
    InvalidUtf8 {
        /// Offset of the first bad byte.
        byte: u64,
    },

    /// A run of characters that must be held whole, longer than a stream accepts.
    #[error(
        "from byte {byte} of the text on more than {bytes} bytes follow without a place to cut: they would be held in memory whole; \
         break the text by white space or line feeds (is it text at all?)"
    )]
    RunTooLong {
        /// Offset in the text of its first byte.
        byte: u64,
        /// How many are accepted.
        bytes: usize,
    },

    /// A document of a corpus that cannot be used.
    #[error("{place}: {reason} (--on-error skip leaves such documents out{})", utf8_advice(.reason))]
    Document {
        /// The file, and the line, byte or row where the document begins.
        place: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A file of shards that is not what it should be.
    #[error("{}: {reason}", .path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A checkpoint or a file of weights that cannot be taken.
    #[error("{}: {reason}", .path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it; where things do not fit, all of them, one a line.
        reason: String,
    },

    /// The Hugging Face Hub, or a mirror, gave something else than what was asked for.
    #[error("{asked}: {answer}; {advice}")]
    Hub {
        /// What was asked for.
        asked: String,
        /// What came back.
        answer: String,
        /// What to do.
        advice: String,
    },

    /// An output folder in which this work cannot be done.
    #[error("{}: {reason}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },

    /// A figure could not be drawn, or a font not be read.
    #[error("no picture: {reason}")]
    Picture {
        /// Why not.
        reason: String,
    },

    /// A loader state that belongs to other data or another order.
    #[error("this loader state does not fit: {reason}")]
    LoaderState {
        /// What differs.
        reason: String,
    },

    /// A value that makes no sense.
    #[error("{0}")]
    Config(String),

    /// A device that cannot be opened.
    #[error("device {device:?}: {reason}")]
    Device {
        /// The name that was asked for.
        device: String,
        /// Why not.
        reason: String,
    },

    /// Reading or writing failed.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file, or what stands for it.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },

    /// candle refused.
    #[error("{}", one_line(.0))]
    Candle(candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, cause: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        Error::Io { path, cause }
    }

    pub(crate) fn tokenizer_file(path: &Path, reason: impl ToString) -> Self {
        let reason = reason.to_string();
        Error::TokenizerFile { path: path.to_path_buf(), reason }
    }
}

// Causes stand in the message already: no variant has a `source` that would print them again.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::Candle(error)
    }
}

/// The edge to candle's interfaces (`Module::forward`), which must return candle's error: the message stays.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            ours => candle_core::Error::Wrapped(Box::new(ours)),
        }
    }
}

fn out_of_range_advice(id: i64, rows: usize) -> String {
    match u32::try_from(id) {
        Err(_) if id < 0 => "ids are never negative; mark padding with u32::MAX".to_string(),
        Err(_) => "ids are 32-bit; mark padding with u32::MAX".to_string(),
        Ok(_) => format!(
            "its ids run from 0 to {}; give the table at least {} rows (--rows, `vocab_size: tokenizer.table_rows()`)",
            rows.saturating_sub(1),
            id + 1
        ),
    }
}

fn utf8_advice(reason: &str) -> &'static str {
    if reason.starts_with("invalid UTF-8") { ", replace reads bad bytes as U+FFFD" } else { "" }
}

/// candle appends a captured backtrace to its messages; what comes before it, as one line, is the message.
fn one_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let message = text.lines().take_while(|line| !line.trim_start().starts_with("0: "));
    message.collect::<Vec<_>>().join("; ")
}
