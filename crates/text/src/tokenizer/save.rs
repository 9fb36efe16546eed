//! Writes a tokenizer to a file that other libraries can read, too.

use std::path::Path;

use super::{Tokenizer, rank_file};
use crate::support::files::write_whole;
use crate::{Error, Result};

impl Tokenizer {
    /// Writes the tokenizer to a file. [`from_file`](Self::from_file) reads it back with the same ids and the same
    /// [`fingerprint`](Self::fingerprint), also after [`add_tokens`](Self::add_tokens).
    ///
    /// The ending of the name decides the format:
    /// - `.json`: a Hugging Face `tokenizer.json`, which tokenizers and transformers read. A tokenizer from such a file is written
    ///   unchanged, truncation and padding included.
    /// - `.tiktoken`: a rank file, for bundled encodings and tokenizers with ranks. tiktoken's rank files do not hold special tokens,
    ///   so `NAME.special_tokens.json` (text → id) is written beside `NAME.tiktoken`. Keep both files together. `tiktoken.Encoding`
    ///   takes the second as its `special_tokens`.
    ///
    /// An existing file is replaced, completely or not at all. Of the two files, the special tokens are written first.
    ///
    /// Neither format records which special tokens were added. After reading, all special tokens are alike, and text that spells one
    /// stays text under the default rule. Call [`add_tokens`](Self::add_tokens) with them again, which gives the same ids and the
    /// same fingerprint, or use [`Specials::Allow`](crate::Specials::Allow).
    ///
    /// Other libraries differ in two points. transformers' `len(tokenizer)` is the number of tokens, which is less than
    /// [`vocab_size`](Self::vocab_size) if ids have gaps, as in cl100k. tokenizers decodes special tokens with letters such as é to
    /// U+FFFD, although their ids are right.
    ///
    /// # Errors
    /// - [`Error::TokenizerFile`]: another ending; a `.tiktoken` for a tokenizer without ranks, or with a split pattern that its number
    ///   of ranks does not identify; a special token that the format cannot distinguish from an ordinary one.
    /// - [`Error::Io`]: the file cannot be written.
    ///
    /// # Cost
    /// cl100k as `.json` (3 MB): some 0.1 s to write, and 0.3 s to read, because reading compares it with what would be written. As
    /// `.tiktoken`: 0.01 s and 0.02 s.
    ///
    /// # Example
    /// ```
    /// use tallow_text::Tokenizer;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("tokenizer.json");
    /// let mut tokenizer = Tokenizer::cl100k();
    /// tokenizer.add_tokens(&["<|user|>"])?;
    /// tokenizer.save(&path)?;
    ///
    /// let mut again = Tokenizer::from_file(&path)?;
    /// assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    /// assert_eq!(again.add_tokens(&["<|user|>"])?, [100277]); // found in text from here on
    /// assert_eq!(again.encode("<|user|>hi")?, [100277, 6151]);
    /// # Ok::<(), tallow_text::Error>(())
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let refused = |reason: String| Error::tokenizer_file(path, reason);
        match path.extension().and_then(|end| end.to_str()) {
            Some("json") => write_whole(path, &self.engine.to_json().map_err(refused)?),
            Some("tiktoken") => match self.engine.by_pieces() {
                Some(ranks) => rank_file::write(ranks, path),
                None => Err(refused(format!("{} has no ranks: save it as .json", self.name()))),
            },
            _ => Err(refused("a tokenizer is saved as .json (tokenizer.json) or .tiktoken (ranks)".to_string())),
        }
    }
}
