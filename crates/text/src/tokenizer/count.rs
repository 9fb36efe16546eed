//! Counts the tokens of a text, and cuts a text to a number of tokens.

use std::ops::ControlFlow;

use super::Tokenizer;
use super::bpe::Count;
use super::engine::Engine as _;
use super::ids::encode;
use crate::Result;

/// Number of tokens of `text`.
///
/// # Errors
/// As [`Tokenizer::encode`].
///
/// # Example
/// ```
/// use tallow_text::{Tokenizer, count_tokens};
/// assert_eq!(count_tokens(&Tokenizer::cl100k(), "tiktoken is great!")?, 6);
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub fn count_tokens(tokenizer: &Tokenizer, text: &str) -> Result<usize> {
    count_up_to(tokenizer, text, usize::MAX)
}

/// Number of tokens of `text`, at most `limit`.
///
/// To find out whether a text fits into `n` tokens, use the limit `n + 1`.
///
/// # Errors
/// As [`Tokenizer::encode`].
///
/// # Cost
/// Stops some hundred bytes after the limit, and stores no ids. With a `tokenizer.json` the whole text is encoded.
///
/// # Example
/// ```
/// use tallow_text::{Tokenizer, count_up_to};
/// let text = "one two three ".repeat(1_000_000);
/// assert_eq!(count_up_to(&Tokenizer::cl100k(), &text, 8193)?, 8193); // more than 8192; only the beginning was read
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub fn count_up_to(tokenizer: &Tokenizer, text: &str, limit: usize) -> Result<usize> {
    let mut count = Count { ids: 0, limit };
    encode(tokenizer, text, &mut count)?;
    Ok(count.ids.min(limit))
}

/// Cuts `text` to a prefix of at most `max_tokens` tokens that ends between two characters.
///
/// The prefix is the text of the first `max_tokens` tokens, without an unfinished character at its end.
///
/// # Errors
/// As [`Tokenizer::encode`].
///
/// # Cost
/// The bundled encodings and rank files stop at the cut. With a `tokenizer.json` the whole text is encoded.
///
/// # Example
/// ```
/// use tallow_text::{Tokenizer, truncate_to_tokens};
/// assert_eq!(truncate_to_tokens(&Tokenizer::cl100k(), "小沈阳", 2)?, "小"); // 沈 is the tokens 2 and 3
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub fn truncate_to_tokens<'t>(tokenizer: &Tokenizer, text: &'t str, max_tokens: usize) -> Result<&'t str> {
    let mut budget = max_tokens;
    loop {
        let end = text.floor_char_boundary(end_of(tokenizer, text, budget)?);
        let prefix = &text[..end];
        // A cut back to a whole character can change how the last piece is merged, and so the number of tokens.
        if prefix.is_empty() || end == text.len() || count_tokens(tokenizer, prefix)? <= max_tokens {
            return Ok(prefix);
        }
        budget -= 1;
    }
}

/// Byte at which the first `tokens` tokens end. It may be within a character.
fn end_of(tokenizer: &Tokenizer, text: &str, tokens: usize) -> Result<usize> {
    let Tokenizer { engine, specials } = tokenizer;
    let Some(ranks) = engine.by_pieces() else {
        let (_, offsets) = tokenizer.encode_with_offsets(text)?;
        return Ok(offsets.get(tokens).map_or(text.len(), |range| range.start));
    };
    specials.refuse(text, 0)?;
    let (mut end, mut left) = (0, tokens);
    let ordinary = |start: usize, stop: usize, end: &mut usize, left: &mut usize| {
        ranks.bpe.pieces(&text[start..stop], |_, ids| {
            for id in ids {
                if *left == 0 {
                    return ControlFlow::Break(());
                }
                *end += ranks.token_bytes(*id).map_or(0, |bytes| bytes.len());
                *left -= 1;
            }
            ControlFlow::Continue(())
        });
        *left > 0
    };
    let mut start = 0;
    for (range, _) in specials.find(text) {
        if !ordinary(start, range.start, &mut end, &mut left) {
            return Ok(end);
        }
        (start, end, left) = (range.end, range.end, left - 1);
    }
    ordinary(start, text.len(), &mut end, &mut left);
    Ok(end)
}
