//! The trait of all kinds of tokenizers. No other file depends on the kind.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::Backend;
use super::ranks::Ranks;
use super::specials::SpecialTokens;
use crate::{Error, Result};

/// One kind of tokenizer. Each call is for a whole text, so dynamic dispatch costs nothing that matters.
pub(super) trait Engine: Send + Sync {
    fn name(&self) -> &str;

    fn fingerprint(&self) -> u64;

    fn backend(&self) -> Backend;

    /// Text and id of every special token.
    fn special_ids(&self) -> &[(String, u32)];

    /// The largest id + 1 among all tokens.
    fn rows(&self) -> usize;

    /// The largest id + 1 among ordinary tokens.
    fn ordinary_rows(&self) -> usize;

    fn is_byte_level(&self) -> bool;

    fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>>;

    fn token_to_id(&self, token: &[u8]) -> Option<u32>;

    /// Appends the ids of `text`. `specials` decides which text becomes a special token. After an error `out` is unchanged.
    fn encode_into(&self, text: &str, specials: &SpecialTokens, out: &mut Vec<u32>) -> Result<()>;

    /// The ids of `text`, and the byte range of each.
    fn encode_with_offsets(&self, text: &str, specials: &SpecialTokens) -> Result<(Vec<u32>, Vec<Range<usize>>)>;

    /// The bytes of `ids`. [`NO_TOKEN`](crate::NO_TOKEN) has none.
    fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>>;

    /// Appends the bytes that `id` adds to those of the earlier ids. `before` holds the earlier ids that the engine needs. `position`
    /// is for the error, after which nothing is changed.
    fn decode_next(&self, _before: &mut Vec<u32>, id: u32, position: usize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.token_bytes(id).ok_or_else(|| self.unknown(id, position))?);
        Ok(())
    }

    /// A copy with the `new` special tokens. `found` are the tokens, new or not, that count as added from now on.
    fn with_more(self: Arc<Self>, new: &[&str], found: &[&str]) -> Result<Arc<dyn Engine>>;

    /// The `tokenizer.json` of this tokenizer, or the reason why there is none.
    fn to_json(&self) -> std::result::Result<Cow<'_, [u8]>, String>;

    /// The engine itself, if it encodes pieces of text independently. Only then can text be cut or read as a stream.
    fn by_pieces(&self) -> Option<&Ranks> {
        None
    }

    /// The error for an id without a token.
    fn unknown(&self, id: u32, position: usize) -> Error {
        let largest = self.rows().saturating_sub(1) as u32;
        Error::UnknownId { id, position, tokenizer: self.name().to_string(), largest }
    }
}
