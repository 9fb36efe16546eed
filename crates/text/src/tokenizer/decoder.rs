//! Ids to text one at a time, as a model gives them.

use super::Tokenizer;
use crate::support::take_text;
use crate::{Error, NO_TOKEN, Result};

/// The text of ids that come one at a time, made by [`Tokenizer::decoder`].
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
    /// Earlier ids, as far as the engine needs them.
    before: Vec<u32>,
    pushes: usize,
    /// The beginning of a character.
    bytes: Vec<u8>,
    /// What the last push gave.
    text: String,
}

impl Tokenizer {
    /// A decoder for ids that come one at a time: text as soon as it is certain, for showing it while a model writes.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder { tokenizer: self, before: Vec::new(), pushes: 0, bytes: Vec::new(), text: String::new() }
    }
}

impl Decoder<'_> {
    /// The text that `id` makes certain: nothing while a character is incomplete, never half of one.
    ///
    /// All pushes joined are [`Tokenizer::decode`] of the ids, up to a character that the last ones leave incomplete. U+FFFD
    /// stands for bytes that can no longer become a character, as in `String::from_utf8_lossy`. (Byte tokens of a
    /// `tokenizer.json` that is not byte-level: `decode` puts one U+FFFD for each byte of a run that has a wrong one, and a
    /// stream cannot know what will follow.) Padding ([`NO_TOKEN`]) stands for no text.
    ///
    /// # Errors
    /// - [`Error::UnknownId`]; its position is the number of pushes before this one.
    /// - [`Error::Tokenize`] if the decoder of a `tokenizer.json` changes text that it gave before.
    ///
    /// After an error the next push goes on as if this one had not been.
    ///
    /// # Cost
    /// Some 30 ns. A `tokenizer.json` without bytes in its tokens (WordPiece) decodes the last few ids twice: some 10 µs.
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

    /// Checks that the ids did not end within a character.
    ///
    /// # Errors
    /// [`Error::HalfCharacter`] with the bytes that are left.
    pub fn finish(self) -> Result<()> {
        match self.bytes.is_empty() {
            true => Ok(()),
            false => Err(Error::HalfCharacter { bytes: self.bytes }),
        }
    }
}
