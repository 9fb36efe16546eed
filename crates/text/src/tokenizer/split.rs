//! Where text is cut before byte pairs are merged: the patterns of the published encodings.
//!
//! The originals use a look-ahead, `\s+(?!\S)`: white space gives its last character to the word that
//! follows. An automaton has no look-ahead, so each pattern here becomes three, tried in order:
//! everything else and white space at the end of the text; white space plus one more white space, which is
//! given back; single white space. Matching is then linear in the text, with no recursion.

use regex_automata::meta::{Cache, Regex};
use regex_automata::util::pool::Pool;
use regex_automata::{Anchored, Input};

/// tiktoken's `cl100k_base`. (tiktoken 0.14 spells it with possessive quantifiers; the matches are the same.)
pub(super) const CL100K: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+$";

/// tiktoken's `o200k_base`.
pub(super) const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+$",
);

/// tiktoken's `gpt2`, `r50k_base` and `p50k_base`.
pub(super) const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$";

pub(super) const ALL: [&str; 3] = [CL100K, O200K, GPT2];

/// More than the bytes after a run of characters that can still decide where a piece ends (a contraction).
pub(super) const LOOKAHEAD_BYTES: usize = 64;

/// Cuts text into pieces. Cheap to share: a search borrows a cache that no other thread uses meanwhile.
pub(super) struct Splitter {
    regex: Regex,
    /// Whether white space before a word is cut before its last character even if that is a line feed (GPT-2).
    gives_back: bool,
    caches: Pool<Cache, Box<dyn Fn() -> Cache + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>>,
}

impl Splitter {
    pub(super) fn new(pattern: &str) -> Self {
        let regex = Regex::new_many(&[pattern, r"\s+\s", r"\s+"]).expect("the patterns above are valid");
        let for_pool = regex.clone();
        let caches = Pool::new(Box::new(move || for_pool.create_cache()) as Box<_>);
        Splitter { regex, gives_back: pattern == GPT2, caches }
    }

    /// Whether a piece ends between the second and the third of these bytes whatever stands around them, also if the text
    /// ends there.
    ///
    /// Every pattern ends a piece after a line feed that no white space follows, except that o200k lets a slash follow
    /// punctuation and line feeds, and that GPT-2's leaves a run of white space whole where the text ends.
    pub(super) fn cuts(&self, [before, feed, after]: [u8; 3]) -> bool {
        // Lead bytes of the other characters that could be white space: U+0085, U+00A0, U+1680, U+2000, U+3000.
        let space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0B || matches!(byte, 0xC2 | 0xE1..=0xE3);
        // What may be the last byte of such a character.
        let after_space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0B || byte >= 0x80;
        let starts_character = !(0x80..0xC0).contains(&after);
        feed == b'\n' && after != b'/' && starts_character && !space(after) && !(self.gives_back && after_space(before))
    }

    /// Calls `piece(start, end)` for every piece of `text`, in order, until it returns `false`.
    pub(super) fn for_each(&self, text: &str, mut piece: impl FnMut(usize, usize) -> bool) {
        let mut cache = self.caches.get();
        let mut start = 0;
        while start < text.len() {
            let input = Input::new(text).range(start..).anchored(Anchored::Yes);
            // Every character belongs to some alternative; should that ever fail, it is a piece of its own.
            let mut end = match self.regex.search_with(&mut cache, &input) {
                Some(found) if found.pattern().as_usize() == 1 => {
                    found.end() - last_char_len(&text[start..found.end()])
                }
                Some(found) => found.end(),
                None => start,
            };
            if end == start {
                end += text[start..].chars().next().map_or(1, char::len_utf8);
            }
            if !piece(start, end) {
                return;
            }
            start = end;
        }
    }

    /// The end of the part of `text` whose pieces stay as they are whatever text follows.
    ///
    /// A piece is settled when the runs of characters of one kind that it touches have ended in sight: the patterns decide
    /// by such runs (white space keeps or gives its last character, o200k looks for capitals and small letters in a whole
    /// word), and beyond them only a few bytes (contractions). Letters, marks, numbers and all that is not known to be neither
    /// are one kind here, so that a run is never shorter than what a pattern looks at.
    pub(super) fn settled(text: &str, margin: usize) -> usize {
        let kind = |c: char| (c.is_whitespace(), is_punctuation(c));
        let limit = text.floor_char_boundary(text.len().saturating_sub(margin.max(LOOKAHEAD_BYTES)));
        let mut after = text[limit..].chars().next().map(kind);
        for (at, c) in text[..limit].char_indices().rev() {
            if after.is_some_and(|after| after != kind(c)) {
                return at + c.len_utf8();
            }
            after = Some(kind(c));
        }
        0
    }
}

/// Characters that are certainly no letters, marks, numbers or white space: ASCII's, and those of Chinese and Japanese texts,
/// which may have no white space at all.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(
            c,
            '\u{2010}'..='\u{2027}'
                | '\u{2030}'..='\u{205E}'
                | '\u{3001}'..='\u{3003}'
                | '\u{3008}'..='\u{3011}'
                | '\u{3014}'..='\u{301B}'
                | '\u{FF01}'..='\u{FF0F}'
                | '\u{FF1A}'..='\u{FF20}'
                | '\u{FF3B}'..='\u{FF40}'
                | '\u{FF5B}'..='\u{FF65}'
        )
}

fn last_char_len(text: &str) -> usize {
    text.chars().next_back().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is called punctuation is so for every pattern: no letter, no mark, no number, no white space.
    #[test]
    fn punctuation_is_nothing_else() {
        let other = Regex::new(r"^[^\p{L}\p{M}\p{N}\s]$").unwrap();
        let found = (0..=0x10FFFF).filter_map(char::from_u32).filter(|c| is_punctuation(*c));
        let wrong: Vec<char> = found.filter(|c| !other.is_match(c.to_string().as_str())).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
