//! Splits text into pieces before byte pairs are merged: hand-written code for the patterns of the published encodings.
//!
//! Patterns depend on runs of characters of one kind. A [`Block`] has one bit per byte for each kind, so the end of a run is found
//! by counting zeros.

use super::blocks::{BOTH, Block, Body, CAPITALS, LETTERS, LINE_ENDS, NUMBERS, OTHERS, SMALLS, SPACES};

/// A split pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// tiktoken's `cl100k_base`, and Llama 3's.
    Cl100k,
    /// Qwen's: cl100k's, with each digit as a piece of its own.
    Qwen,
    /// tiktoken's `o200k_base`.
    O200k,
    /// tiktoken's `gpt2`, `r50k_base` and `p50k_base`.
    Gpt2,
}

impl Pattern {
    pub const ALL: [Pattern; 4] = [Pattern::Cl100k, Pattern::Qwen, Pattern::O200k, Pattern::Gpt2];

    /// The pattern as a regular expression, with the look-ahead that leaves the last character of white space to the next word.
    pub fn regex(self) -> String {
        format!(r"{}|\s+(?!\S)|\s+", self.without_look_ahead().trim_end_matches(r"|\s+$"))
    }

    /// The pattern without its look-ahead, as in fingerprints.
    pub fn without_look_ahead(self) -> &'static str {
        match self {
            Pattern::Cl100k => {
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+$"
            }
            Pattern::Qwen => {
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+$"
            }
            Pattern::O200k => concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
                r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+$",
            ),
            Pattern::Gpt2 => r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$",
        }
    }

    /// The pattern of a regular expression, if it is one of the known equivalent spellings.
    ///
    /// tiktoken's own spelling of cl100k is not equivalent: `\s++$` before `\s*[\r\n]` joins a line end and a space at the end of a
    /// text. `'[sS]` is not equivalent either, because it leaves out `ſ`. With the published tokens both give the same ids, but a file
    /// may have other tokens.
    pub fn spelled(regex: &str) -> Option<Pattern> {
        // The order of contractions does not matter, because none is a prefix of another.
        let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let known = Pattern::ALL.into_iter().find(|pattern| pattern.regex() == regex);
        known.or((regex == gpt2).then_some(Pattern::Gpt2))
    }
}

/// Number of blocks in the window.
const BLOCKS: usize = 64;

/// Splits a text into pieces.
pub struct Pieces<'t> {
    text: &'t str,
    body: Body,
    /// Byte at which the first block begins.
    base: usize,
    /// One block more than the window, so that 64 bits can be read from any place.
    blocks: [Block; BLOCKS + 1],
}

impl<'t> Pieces<'t> {
    pub fn new(text: &'t str, body: Body) -> Self {
        let mut pieces = Pieces { text, body, base: 0, blocks: [Block::default(); BLOCKS + 1] };
        pieces.move_to(0);
        pieces
    }

    #[cold]
    fn move_to(&mut self, at: usize) {
        self.base = at & !63;
        // A short text needs few blocks.
        let blocks = (self.text.len().saturating_sub(self.base) / 64 + 2).min(BLOCKS + 1);
        self.body.classify(self.text, self.base, &mut self.blocks[..blocks]);
        if let Some(rest) = self.blocks.get_mut(blocks..) {
            rest.fill(Block::default());
        }
    }

    /// The two blocks with the 64 bits from `at` on, and the offset of `at` in the first of them.
    #[inline]
    fn around(&mut self, at: usize) -> ([&Block; 2], usize) {
        if at.wrapping_sub(self.base) >= 64 * BLOCKS {
            self.move_to(at);
        }
        let block = (at - self.base) / 64;
        ([&self.blocks[block], &self.blocks[block + 1]], at % 64)
    }

    /// 64 bits of a kind, from `at` on.
    #[inline]
    fn bits(&mut self, kind: usize, at: usize) -> u64 {
        let ([low, high], shift) = self.around(at);
        low[kind] >> shift | high[kind] << 1 << (63 - shift)
    }

    #[inline]
    fn is(&mut self, kind: usize, at: usize) -> bool {
        self.bits(kind, at) & 1 != 0
    }

    /// The end of the run of a kind that begins at `at`. `at` if there is none.
    #[inline]
    fn run(&mut self, kind: usize, mut at: usize) -> usize {
        loop {
            let not = !self.bits(kind, at);
            if not != 0 {
                return at + not.trailing_zeros() as usize;
            }
            at += 64;
        }
    }

    /// The end of the run of `kind`, and the end of its last character that is also of kind `other`.
    fn run_with(&mut self, kind: usize, other: usize, at: usize) -> (usize, Option<usize>) {
        let (mut end, mut last) = (at, None);
        loop {
            let len = (!self.bits(kind, end)).trailing_zeros();
            let inside = if len < 64 { !(u64::MAX << len) } else { u64::MAX };
            let others = self.bits(other, end) & inside;
            if others != 0 {
                last = Some(end + 64 - others.leading_zeros() as usize);
            }
            end += len as usize;
            if len < 64 {
                return (end, last);
            }
        }
    }

    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    /// The end of the character that begins at `at`.
    fn after(&self, at: usize) -> usize {
        at + match self.byte(at) {
            0..=0xBF => 1,
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0.. => 4,
        }
    }

    /// The end of the piece that begins at `at`. `at` must be before the end of the text.
    #[inline]
    pub fn end(&mut self, pattern: Pattern, at: usize) -> usize {
        match pattern {
            Pattern::Cl100k => self.cl100k(at, 3),
            Pattern::Qwen => self.cl100k(at, 1),
            Pattern::O200k => self.o200k(at),
            Pattern::Gpt2 => self.gpt2(at),
        }
    }

    /// The beginnings of pieces within 64 bytes from `at` on, one bit each. A piece must begin at `at`.
    ///
    /// The bits stop before the first piece that depends on more than a few neighbors. Up to the last bit they are complete.
    #[inline]
    pub fn starts(&mut self, pattern: Pattern, at: usize) -> u64 {
        if at + 64 > self.text.len() {
            return 1;
        }
        let ([low, high], shift) = self.around(at);
        let bits: Block = std::array::from_fn(|kind| low[kind] >> shift | high[kind] << 1 << (63 - shift));
        match pattern {
            Pattern::Cl100k => starts_cl100k(&bits, threes),
            Pattern::Qwen => starts_cl100k(&bits, |numbers| numbers),
            Pattern::O200k => starts_o200k(&bits),
            Pattern::Gpt2 => starts_gpt2(&bits),
        }
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    #[inline]
    fn cl100k(&mut self, at: usize, digits: usize) -> usize {
        let letters = self.bits(LETTERS, at);
        if letters & 1 != 0 {
            return self.run(LETTERS, at);
        }
        let byte = self.byte(at);
        if byte < 0x80 && letters & 2 != 0 && !matches!(byte, b'0'..=b'9' | b'\r' | b'\n' | b'\'') {
            return self.run(LETTERS, at + 1);
        }
        self.rarer(at, digits)
    }

    /// Pieces other than a word after at most one ASCII character.
    fn rarer(&mut self, at: usize, digits: usize) -> usize {
        if let Some(end) = self.contraction(at) {
            return end;
        }
        if self.is(NUMBERS, at) {
            return self.numbers(at, digits);
        }
        let after = self.after(at);
        if self.is(LETTERS, after) && !self.is(LINE_ENDS, at) {
            return self.run(LETTERS, after);
        }
        if let Some(end) = self.others(at) {
            return self.run(LINE_ENDS, end);
        }
        self.white_space(at, true)
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`; `ſ` is an s.
    fn contraction(&self, at: usize) -> Option<usize> {
        if self.byte(at) != b'\'' {
            return None;
        }
        match [self.byte(at + 1) | 0x20, self.byte(at + 2) | 0x20] {
            [b's' | b't' | b'm' | b'd', _] => Some(at + 2),
            [b'r' | b'v', b'e'] | [b'l', b'l'] => Some(at + 3),
            _ if self.byte(at + 1) == 0xC5 && self.byte(at + 2) == 0xBF => Some(at + 3),
            _ => None,
        }
    }

    /// `\p{N}{1,3}`
    fn numbers(&mut self, at: usize, most: usize) -> usize {
        let mut end = self.after(at);
        for _ in 1..most {
            if self.is(NUMBERS, end) {
                end = self.after(end);
            }
        }
        end
    }

    /// ` ?[^\s\p{L}\p{N}]+`
    fn others(&mut self, at: usize) -> Option<usize> {
        let start = at + usize::from(self.byte(at) == b' ');
        self.is(OTHERS, start).then(|| self.run(OTHERS, start))
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`, the first alternative only if `to_line_end`.
    ///
    /// White space leaves its last character to the next piece.
    fn white_space(&mut self, at: usize, to_line_end: bool) -> usize {
        let (end, line_end) = self.run_with(SPACES, LINE_ENDS, at);
        if let Some(line_end) = line_end.filter(|_| to_line_end) {
            return line_end;
        }
        if end == self.text.len() {
            return end;
        }
        let last = self.text.floor_char_boundary(end - 1);
        if last > at { last } else { end }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    #[inline]
    fn gpt2(&mut self, at: usize) -> usize {
        let byte = self.byte(at);
        if byte == b'\'' {
            match [self.byte(at + 1), self.byte(at + 2)] {
                [b's' | b't' | b'm' | b'd', _] => return at + 2,
                [b'r' | b'v', b'e'] | [b'l', b'l'] => return at + 3,
                _ => {}
            }
        }
        let start = at + usize::from(byte == b' ');
        for kind in [LETTERS, NUMBERS, OTHERS] {
            if self.is(kind, start) {
                return self.run(kind, start);
            }
        }
        self.white_space(at, false)
    }

    /// cl100k's, except that words end where a capital follows a small letter, and include a contraction:
    /// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?`, the same with
    /// `+` before `*`, and `[\r\n/]*` after punctuation.
    #[inline]
    fn o200k(&mut self, at: usize) -> usize {
        let byte = self.byte(at);
        // The most frequent pieces: small letters, with or without a space before them.
        let start = at + usize::from(byte == b' ');
        if self.bits(SMALLS, start) & !self.bits(CAPITALS, start) & 1 != 0 {
            let end = self.run(SMALLS, start);
            return self.contraction(end).unwrap_or(end);
        }
        if self.is(NUMBERS, at) {
            return self.numbers(at, 3);
        }
        let prefix = !self.is(LETTERS, at) && !self.is(LINE_ENDS, at);
        let after = self.after(at);
        let starts = [prefix.then_some(after), Some(at)];
        let (mut small, mut capital) = (None, None);
        for start in starts.into_iter().flatten() {
            let (word, capitals) = self.word(start);
            small = small.or(word);
            if small.is_some() {
                break;
            }
            capital = capital.or(Some(capitals).filter(|end| *end > start));
        }
        if let Some(end) = small.or(capital) {
            return self.contraction(end).unwrap_or(end);
        }
        if let Some(mut end) = self.others(at) {
            while matches!(self.byte(end), b'\r' | b'\n' | b'/') {
                end += 1;
            }
            return end;
        }
        self.white_space(at, true)
    }

    /// The end of a word of capitals and then at least one small letter, if there is one; and the end of the capitals.
    ///
    /// Characters that are both count as capitals if a small letter follows. Else the last of them is the small letter.
    fn word(&mut self, at: usize) -> (Option<usize>, usize) {
        let (end, last_both) = self.run_with(CAPITALS, BOTH, at);
        match self.is(SMALLS, end) {
            true => (Some(self.run(SMALLS, end)), end),
            false => (last_both, end),
        }
    }
}

/// The bits up to `at`, inclusive.
fn up_to(at: u32) -> u64 {
    u64::MAX >> (63 - at.min(63))
}

/// The beginning of the run of `kind` with the lowest bit of `within`. 64 if `within` is 0.
fn run_start(kind: u64, within: u64) -> u32 {
    if within == 0 {
        return 64;
    }
    let before = within & within.wrapping_neg();
    64 - (!kind & (before - 1)).leading_zeros()
}

/// The beginnings of pieces in runs of single-byte digits, every third one.
fn threes(numbers: u64) -> u64 {
    let mut starts = numbers & !(numbers << 1);
    let mut more = starts;
    loop {
        more = more << 3 & numbers & numbers << 1 & numbers << 2;
        if more == 0 {
            return starts;
        }
        starts |= more;
    }
}

/// The beginnings of pieces that cl100k and o200k have in common: white space, letters after punctuation, numbers.
struct Starts {
    /// Beginnings of pieces, except capitals within words.
    starts: u64,
    /// Punctuation of one character that begins a piece. A word may follow in the same piece.
    single: u64,
    /// The bits are complete up to here.
    limit: u32,
}

/// The rules: punctuation includes the line ends after it. White space up to its last line end is a piece. The rest of the white space,
/// except its last character, is a piece. Its last character belongs to the letters after it or, if it is a space, to the punctuation
/// after it. Letters also include one character of punctuation before them, unless that punctuation has a space before it.
#[inline]
fn starts_by_kind(bits: &Block, numbers: impl Fn(u64) -> u64) -> Starts {
    let [l, n, w, line_ends, o, blanks, _, inner, ..] = *bits;
    let (first_l, first_o) = (l & !(l << 1), o & !(o << 1));
    // An addition carries through a run from its first bit on: it clears the run's bits and sets the bit after them.
    let glued = line_ends & !((o << 1 & line_ends).wrapping_add(line_ends));
    let (w_alone, line_ends) = (w & !glued, line_ends & !glued);
    let t = w & !glued & !line_ends;
    let after_line = line_ends << 1 & t;
    let again = after_line.wrapping_add(t) & !t & line_ends;
    let single = first_o & !(blanks << 1);
    let first_char = o & !(o << 1 & !inner);
    let joined = single.wrapping_add(first_char) & !first_char;
    let starts = (first_l & !(t << 1) & !joined)
        | single
        | numbers(n)
        | (w_alone & !(w_alone << 1))
        | after_line
        | (t & !(w >> 1));
    let limit = run_start(w, w & inner | again | w & 1 << 63).min(run_start(n, n & inner));
    Starts { starts, single, limit }
}

#[inline]
fn starts_cl100k(bits: &Block, numbers: impl Fn(u64) -> u64) -> u64 {
    let Starts { starts, single, limit } = starts_by_kind(bits, numbers);
    // A contraction is a piece even if letters follow it.
    let [l, _, _, _, _, _, apostrophes, ..] = *bits;
    let contractions = single & apostrophes & l >> 1 & l >> 2;
    (starts | 1) & up_to(limit.min(contractions.trailing_zeros()))
}

#[inline]
fn starts_o200k(bits: &Block) -> u64 {
    let Starts { starts, limit, .. } = starts_by_kind(bits, threes);
    let [l, _, _, line_ends, _, _, apostrophes, _, capitals, smalls, both, slashes] = *bits;
    let (upper, lower) = (capitals & !both, smalls & !both);
    // Not decided here: a contraction may belong to the previous word, a slash to the previous line ends, a mark to anything. A capital
    // after a character that is both depends on the characters after it.
    let hard = apostrophes & l << 1 & (l >> 1 | 1 << 63) | slashes & line_ends << 1 | both & !l | upper & both << 1;
    let before = (hard >> 1 | hard & 1).trailing_zeros();
    (starts | upper & lower << 1 | 1) & up_to(limit.min(before))
}

#[inline]
fn starts_gpt2(bits: &Block) -> u64 {
    let [l, n, w, _, o, blanks, apostrophes, inner, ..] = *bits;
    let runs = (l & !(l << 1) | n & !(n << 1) | o & !(o << 1)) & !(blanks << 1);
    let starts = runs | w & !(w << 1) | w & !(w >> 1);
    let contractions = o & !(o << 1) & !(blanks << 1) & apostrophes & l >> 1;
    let limit = run_start(w, w & inner | w & 1 << 63).min(contractions.trailing_zeros());
    (starts | 1) & up_to(limit)
}
