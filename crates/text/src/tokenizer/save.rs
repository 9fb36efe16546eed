//! Writing a tokenizer to a file that others read, too.

use std::path::Path;

use super::{Tokenizer, rank_file};
use crate::support::files::write_whole;
use crate::{Error, Result};

impl Tokenizer {
    /// Writes the tokenizer to a file that [`from_file`](Self::from_file) reads: with the same ids, and the same
    /// [`fingerprint`](Self::fingerprint), grown by [`add_tokens`](Self::add_tokens) or not.
    ///
    /// The end of the name decides what is written:
    /// - `.json`: a Hugging Face `tokenizer.json`, which tokenizers and transformers read. A tokenizer that was read from such
    ///   a file is written as it was, truncation and padding included.
    /// - `.tiktoken`: a rank file, for the bundled encoding and those that came from ranks. Beside `NAME.tiktoken` lies
    ///   `NAME.special_tokens.json`, text → id of the special tokens: tiktoken's rank files do not hold them. The two belong
    ///   together; `tiktoken.Encoding` takes the second as its `special_tokens`.
    ///
    /// A file that is there is replaced. It is written whole or not at all; of the two files, the special tokens come first.
    ///
    /// Neither format says which special tokens were added. After reading they are special tokens like all others, and text
    /// that spells one stays text under the default rule. Call [`add_tokens`](Self::add_tokens) with them again, which gives
    /// the same ids and the same fingerprint, or use [`Specials::Allow`](crate::Specials::Allow).
    ///
    /// Two things to know of other readers: transformers' `len(tokenizer)` is the number of tokens, which is below
    /// [`vocab_size`](Self::vocab_size) where ids have gaps, as cl100k's have; and tokenizers decodes a special token with letters
    /// such as é to U+FFFD, while its id is right.
    ///
    /// # Errors
    /// - [`Error::TokenizerFile`] for another ending, for a `.tiktoken` of a tokenizer without ranks, or with a split pattern that
    ///   a rank file would not bring back, and for a special token that the format cannot tell from an ordinary one.
    /// - [`Error::Io`] if the file cannot be written.
    ///
    /// # Cost
    /// For cl100k as `.json` (3 MB) some 0.1 s, in which each token's merge is worked out; reading it takes 0.3 s, for it is compared
    /// with what would be written. As `.tiktoken` 0.01 s and 0.02 s.
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
