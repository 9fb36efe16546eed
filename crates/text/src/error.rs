//! The error type of the package. Every variant holds the facts, and every message says what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// `Result` with this package's [`enum@Error`].
///
/// # Example
/// ```
/// fn ids(text: &str) -> tallow_text::Result<Vec<u32>> {
///     tallow_text::Tokenizer::cl100k().encode(text)
/// }
/// assert_eq!(ids("Hello world")?, [9906, 1917]);
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong between text, ids and files.
///
/// # Example
/// ```
/// use tallow_text::{Error, Specials, Tokenizer};
/// let tokenizer = Tokenizer::cl100k().with_specials(Specials::Forbid);
/// match tokenizer.encode("a <|endoftext|>") {
///     Err(Error::SpecialForbidden { token, byte }) => assert_eq!((token.as_str(), byte), ("<|endoftext|>", 2)),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id without a token: above the tokenizer's largest id, or in a gap of its ids. Mask
    /// [`Tokenizer::ids_without_token`](crate::Tokenizer::ids_without_token) before sampling, and a model draws no such id.
    #[error("id {id} at position {position} is not a token of {tokenizer}{}", why_unknown(*id, *largest))]
    UnknownId {
        /// The id.
        id: u32,
        /// Its index in the sequence.
        position: usize,
        /// Name of the tokenizer.
        tokenizer: String,
        /// The tokenizer's largest id.
        largest: u32,
    },

    /// The ids end in the middle of a UTF-8 character.
    #[error(
        "the ids end within a character, after its bytes {bytes:02X?}: push the ids that follow, or show U+FFFD for it"
    )]
    HalfCharacter {
        /// The first bytes of the unfinished character.
        bytes: Vec<u8>,
    },

    /// Text that spells a special token while [`Specials::Forbid`](crate::Specials::Forbid) is set.
    #[error(
        "the text spells the special token {token:?} at byte {byte}: read it as text (`Specials::Text`) or as the \
         token (`Specials::Allow`)"
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
        /// The reason that the tokenizer gives.
        reason: String,
    },

    /// Bytes that are not UTF-8.
    #[error("invalid UTF-8 at byte {byte}: fix the text, or accept replacement characters (lossy)")]
    InvalidUtf8 {
        /// Offset of the first bad byte.
        byte: u64,
    },

    /// A run of characters without a place to cut, longer than a stream accepts.
    #[error(
        "from byte {byte} of the text on more than {bytes} bytes follow without a place to cut, and all of them would \
         have to be held in memory: break the text with white space or line feeds (is it text at all?)"
    )]
    RunTooLong {
        /// Byte offset in the text at which the run begins.
        byte: u64,
        /// The longest accepted run, in bytes.
        bytes: usize,
    },

    /// A document of a corpus that cannot be used.
    #[error("{place}: {reason} ({advice})")]
    Document {
        /// The file, and the line, byte or row where the document begins.
        place: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        advice: &'static str,
    },

    /// A file of a shard folder that is torn, changed or of another format.
    #[error("{}: {reason}", .path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// The Hugging Face Hub, or a mirror, did not return what was asked for.
    #[error("{asked}: {answer}; {advice}")]
    Hub {
        /// What was asked for.
        asked: String,
        /// What came back.
        answer: String,
        /// What to do.
        advice: String,
        /// Whether the answer is that the file does not exist. (Mirrors also answer so if the repository does not exist.)
        absent: bool,
    },

    /// An output folder that cannot be used.
    #[error("{}: {reason}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },

    /// An input pattern that matches no file.
    #[error("no file matches {pattern}: name files or folders, or correct the pattern")]
    NoInput {
        /// The pattern.
        pattern: String,
    },

    /// Something that needs a cargo feature which this build does not have.
    #[error("{what} needs the feature `{feature}`")]
    FeatureMissing {
        /// What needs the feature.
        what: String,
        /// The feature.
        feature: &'static str,
    },

    /// A token to add is already an ordinary token.
    #[error("{token:?} is an ordinary token of {tokenizer} already: {id}")]
    TokenExists {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Name of the tokenizer.
        tokenizer: String,
    },

    /// An invalid argument or setting.
    #[error("{0}")]
    Config(String),

    /// Reading or writing failed.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file, or a name for the source, such as `input`.
        path: PathBuf,
        /// The operating system's error.
        cause: io::Error,
    },
}

fn why_unknown(id: u32, largest: u32) -> String {
    match id > largest {
        true => format!(", whose largest id is {largest}"),
        false => format!(": this id has no token, though ids go up to {largest}; mask such ids before sampling"),
    }
}

// Messages include the cause, so no variant has a `source()`.
impl Error {
    /// The error for a name that is not a local file or folder, in a build that cannot ask the Hub.
    #[doc(hidden)]
    pub fn not_here(name: &str) -> Self {
        let what = format!("{name:?} is no file or folder here, and the Hugging Face Hub");
        Error::FeatureMissing { what, feature: "hub" }
    }

    pub(crate) fn io(path: impl AsRef<Path>, cause: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        Error::Io { path, cause }
    }

    /// Looks up the value called `name`. The error lists all names; `kind` says what they name.
    pub(crate) fn named<T: Copy>(kind: &str, name: &str, all: &[(&str, T)]) -> Result<T> {
        all.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
            Error::Config(format!("{kind} {name:?} is none of {}", names.join(", ")))
        })
    }

    pub(crate) fn tokenizer_file(path: &Path, reason: impl ToString) -> Self {
        let reason = reason.to_string();
        Error::TokenizerFile { path: path.to_path_buf(), reason }
    }
}
