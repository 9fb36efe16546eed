//! Decodes ids one at a time, while a model generates them.

use super::Tokenizer;
use crate::support::take_text;
use crate::{Error, NO_TOKEN, Result};

/// Decodes ids one at a time. Made by [`Tokenizer::decoder`].
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// let tokenizer = Tokenizer::cl100k();
/// let mut decoder = tokenizer.decoder();
/// let mut text = String::new();
/// for id in [31809, 31106, 230, 83175] {
///     text += decoder.push(id)?; // "小", "", "沈", "阳": 沈 is two tokens, half a character each
/// }
/// decoder.finish()?;
/// assert_eq!(text, "小沈阳");
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub struct Decoder<'t> {
    tokenizer: &'t Tokenizer,
    /// The earlier ids that the engine needs.
    before: Vec<u32>,
    pushes: usize,
    /// The bytes of an unfinished character.
    bytes: Vec<u8>,
    /// The result of the latest push.
    text: String,
}

impl Tokenizer {
    /// Makes a decoder for ids that arrive one at a time, to show text while a model generates it.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder { tokenizer: self, before: Vec::new(), pushes: 0, bytes: Vec::new(), text: String::new() }
    }
}

impl Decoder<'_> {
    /// Decodes the next id and returns the characters that it completes. The result is empty while a character is unfinished.
    ///
    /// The results of all pushes together equal [`Tokenizer::decode`] of the ids, without an unfinished character at the end. Bytes
    /// that are not UTF-8 become U+FFFD, as in `String::from_utf8_lossy`. One difference: for byte tokens of a `tokenizer.json` that
    /// is not byte-level, `decode` replaces each byte of an invalid run with a U+FFFD, which depends on the bytes that follow.
    /// Padding ([`NO_TOKEN`]) has no text.
    ///
    /// # Errors
    /// - [`Error::UnknownId`]: no token has this id. Its position is the number of earlier pushes.
    /// - [`Error::Tokenize`]: the decoder of a `tokenizer.json` changes text that was already returned.
    ///
    /// After an error the decoder continues as if this push had not happened.
    ///
    /// # Cost
    /// Some 30 ns. A `tokenizer.json` whose tokens are not bytes (WordPiece) decodes the last few ids twice: some 10 µs.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        self.text.clear();
        self.pushes += 1;
        if id != NO_TOKEN {
            let position = self.pushes - 1;
            self.tokenizer.engine.decode_next(&mut self.before, id, position, &mut self.bytes)?;
            _ = take_text(&mut self.bytes, &mut self.text, true, false); // lossy: no error
        }
        Ok(&self.text)
    }

    /// Checks that no character is unfinished.
    ///
    /// # Errors
    /// [`Error::HalfCharacter`] with the bytes of the unfinished character.
    pub fn finish(self) -> Result<()> {
        match self.bytes.is_empty() {
            true => Ok(()),
            false => Err(Error::HalfCharacter { bytes: self.bytes }),
        }
    }
}
