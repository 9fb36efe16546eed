//! What every kind of tokenizer can do, so that no other file asks which kind one is.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::Backend;
use super::ranks::Ranks;
use super::specials::SpecialTokens;
use crate::{Error, Result};

/// Ids of text and text of ids, by one kind of tokenizer. A call is for a whole text, so that it may be virtual.
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

    /// Appends the ids of `text`, in which `specials` says what counts as a special token. After an error `out` is as before.
    fn encode_into(&self, text: &str, specials: &SpecialTokens, out: &mut Vec<u32>) -> Result<()>;

    /// The ids of `text`, and the byte range that each stands for.
    fn encode_with_offsets(&self, text: &str, specials: &SpecialTokens) -> Result<(Vec<u32>, Vec<Range<usize>>)>;

    /// The bytes of ids, of which [`NO_TOKEN`](crate::NO_TOKEN) has none.
    fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>>;

    /// Appends the bytes that `id` adds to those of the ids before it, of which `before` has what the engine keeps of them. An
    /// error is for the id at this position, and changes nothing.
    fn decode_next(&self, _before: &mut Vec<u32>, id: u32, position: usize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.token_bytes(id).ok_or_else(|| self.unknown(id, position))?);
        Ok(())
    }

    /// The same with the `new` special tokens; `found` are those, new or not, that count as added from now on.
    fn with_more(self: Arc<Self>, new: &[&str], found: &[&str]) -> Result<Arc<dyn Engine>>;

    /// The `tokenizer.json` of this tokenizer, or why there is none.
    fn to_json(&self) -> std::result::Result<Cow<'_, [u8]>, String>;

    /// The engine itself, if it encodes pieces of text that do not depend on one another: only then can text be cut, or read as a
    /// stream.
    fn by_pieces(&self) -> Option<&Ranks> {
        None
    }

    /// The error for an id that is no token.
    fn unknown(&self, id: u32, position: usize) -> Error {
        let largest = self.rows().saturating_sub(1) as u32;
        Error::UnknownId { id, position, tokenizer: self.name().to_string(), largest }
    }
}
