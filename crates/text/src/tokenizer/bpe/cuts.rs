//! Places where a text may be cut, so that its parts, encoded independently, have the ids of the whole.

use super::split::Pattern;

/// Bytes after a run of characters that may decide where a piece ends (a contraction), with a margin.
const LOOKAHEAD_BYTES: usize = 64;

/// Whether a piece ends between the second and the third of these bytes for any text around them, also if the text ends there.
///
/// Every pattern ends a piece after a line feed without white space after it. There are two exceptions: in o200k a slash may follow
/// punctuation and line feeds, and GPT-2's pattern keeps a run of white space whole at the end of the text.
pub fn cuts(pattern: Pattern, [before, feed, after]: [u8; 3]) -> bool {
    // Lead bytes of the other characters that could be white space: U+0085, U+00A0, U+1680, U+2000, U+3000.
    let space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0B || matches!(byte, 0xC2 | 0xE1..=0xE3);
    // A possible last byte of such a character.
    let after_space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0B || byte >= 0x80;
    let starts_character = !(0x80..0xC0).contains(&after);
    feed == b'\n'
        && after != b'/'
        && starts_character
        && !space(after)
        && !(pattern == Pattern::Gpt2 && after_space(before))
}

/// The end of the part of `text` whose pieces are the same for any text that follows.
///
/// A piece is settled when all runs of characters of one kind that it touches end within `text`. The patterns depend only on such
/// runs (white space keeps its last character or leaves it to the next piece, o200k looks for capitals and small letters in a whole
/// word) and on a few bytes after them (contractions). All characters other than white space and certain punctuation are one kind
/// here, so that a run is never shorter than the one that a pattern looks at.
pub fn settled(text: &str, margin: usize) -> usize {
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

/// Characters that are not letters, marks, numbers or white space: ASCII punctuation, and that of Chinese and Japanese, whose texts may
/// have no white space at all.
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

#[cfg(test)]
mod tests {
    use regex_automata::meta::Regex;

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
