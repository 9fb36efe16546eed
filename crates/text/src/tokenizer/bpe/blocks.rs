//! Classifies the characters of a text, 64 bytes at a time. Each kind of character has a word with one bit per byte.
//!
//! ASCII is classified with AVX-512, AVX2 or NEON if the processor has it. Other characters are looked up one by one, and all bytes
//! of a character get the same bits.
//!
//! # Safety
//! The tokenizer's only `unsafe` code is here: calls of functions that are compiled for instructions which not every processor has,
//! and their loads from arrays of 64 bytes.

use super::unicode::{self, CASELESS, LOWER, MARK, NUMBER, SPACE, UPPER};

/// The bits of 64 bytes, indexed by kind. Bytes after the end of the text have no bits.
pub type Block = [u64; 12];

// The kinds, in this order:
/// Letters (L).
pub const LETTERS: usize = 0;
/// Numbers (N).
pub const NUMBERS: usize = 1;
/// White space (`\s`), line ends included.
pub const SPACES: usize = 2;
/// `\r` and `\n`.
pub const LINE_ENDS: usize = 3;
/// Characters that are none of these.
pub const OTHERS: usize = 4;
// 5: the space. 6: `'`. 7: all bytes of a character except the first.
/// Beginnings of words (Lu, Lt, Lm, Lo, M), their continuations (`SMALLS`: Ll, Lm, Lo, M), and what is both (`BOTH`: Lm, Lo, M).
pub const CAPITALS: usize = 8;
pub const SMALLS: usize = 9;
pub const BOTH: usize = 10;
// 11: `/`

/// Kinds of a raw block, after those of `unicode`.
const RAW_LINE_ENDS: usize = 6;
const RAW_HIGH: usize = 7;
const RAW_BLANKS: usize = 8;
const RAW_APOSTROPHES: usize = 9;
const RAW_INNER: usize = 10;
const RAW_SLASHES: usize = 11;

/// The instructions that classify 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Body {
    /// All that this processor supports, fastest first.
    pub fn all() -> impl Iterator<Item = Body> {
        #[cfg(target_arch = "x86_64")]
        let bodies = [
            (Body::Avx512, is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")),
            (Body::Avx2, is_x86_feature_detected!("avx2")),
            (Body::Plain, true),
        ];
        #[cfg(target_arch = "aarch64")]
        let bodies = [(Body::Neon, std::arch::is_aarch64_feature_detected!("neon")), (Body::Plain, true)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let bodies = [(Body::Plain, true)];
        bodies.into_iter().filter(|(_, has)| *has).map(|(body, _)| body)
    }

    /// Fills `blocks` with the blocks of `text` from byte `start` on, a multiple of 64. Blocks after the end are empty.
    pub fn classify(self, text: &str, start: usize, blocks: &mut [Block]) {
        let bytes = &text.as_bytes()[start.min(text.len())..];
        let (whole, rest) = bytes.as_chunks::<64>();
        let whole = &whole[..whole.len().min(blocks.len())];
        let (filled, after) = blocks.split_at_mut(whole.len());
        self.ascii(whole, filled);
        after.fill(Block::default());
        if let Some(last) = after.first_mut() {
            let mut padded = [[0; 64]];
            padded[0][..rest.len()].copy_from_slice(rest);
            self.ascii(&padded, std::slice::from_mut(last));
        }
        let mut carry = begun_before(text, start);
        for (index, block) in blocks.iter_mut().enumerate() {
            if block[RAW_HIGH] != 0 {
                not_ascii(text.as_bytes(), start + 64 * index, block, &mut carry);
            }
            let left = text.len().saturating_sub(start + 64 * index);
            let inside = if left < 64 { !(u64::MAX << left) } else { u64::MAX };
            let letters = block[UPPER] | block[LOWER] | block[CASELESS];
            let both = block[CASELESS] | block[MARK];
            *block = [
                letters,
                block[NUMBER],
                block[SPACE],
                block[RAW_LINE_ENDS],
                inside & !(letters | block[NUMBER] | block[SPACE]),
                block[RAW_BLANKS],
                block[RAW_APOSTROPHES],
                block[RAW_INNER],
                block[UPPER] | both,
                block[LOWER] | both,
                both,
                block[RAW_SLASHES],
            ];
        }
    }

    /// The raw bits of ASCII characters.
    fn ascii(self, bytes: &[[u8; 64]], blocks: &mut [Block]) {
        match self {
            Body::Plain => plain(bytes, blocks),
            // SAFETY: `Body::all` gives this body only where the processor has AVX2.
            #[cfg(target_arch = "x86_64")]
            Body::Avx2 => unsafe { x86::avx2(bytes, blocks) },
            // SAFETY: `Body::all` gives this body only where the processor has AVX-512 F and BW.
            #[cfg(target_arch = "x86_64")]
            Body::Avx512 => unsafe { x86::avx512(bytes, blocks) },
            // SAFETY: `Body::all` gives this body only where the processor has NEON.
            #[cfg(target_arch = "aarch64")]
            Body::Neon => unsafe { arm::neon(bytes, blocks) },
        }
    }
}

/// The raw bits of the character that begins before `start` and ends after it, if there is one.
fn begun_before(text: &str, start: usize) -> Block {
    let mut bits = Block::default();
    let first = text.floor_char_boundary(start);
    if let Some(c) = text[first..].chars().next().filter(|_| first < start) {
        let len = first + c.len_utf8() - start;
        bits[RAW_HIGH] = u64::MAX >> (64 - len);
        bits[unicode::class(c.into())] = bits[RAW_HIGH];
    }
    bits
}

/// Adds the raw bits of non-ASCII characters to the block that begins at `start`. `carry` has the bits of a character that began in
/// the previous block.
fn not_ascii(text: &[u8], start: usize, block: &mut Block, carry: &mut Block) {
    let mut high = block[RAW_HIGH] & !carry[RAW_HIGH];
    for (bits, rest) in block.iter_mut().zip(carry.iter_mut()) {
        *bits |= std::mem::take(rest);
    }
    while high != 0 {
        let at = high.trailing_zeros();
        let (code, len) = match text[start + at as usize..] {
            [a @ 0xC2..=0xDF, b, ..] => ((u32::from(a) & 0x1F) << 6 | u32::from(b) & 0x3F, 2),
            [a @ 0xE0..=0xEF, b, c, ..] => {
                ((u32::from(a) & 0xF) << 12 | (u32::from(b) & 0x3F) << 6 | u32::from(c) & 0x3F, 3)
            }
            [a @ 0xF0..=0xF4, b, c, d, ..] => {
                let low = (u32::from(b) & 0x3F) << 12 | (u32::from(c) & 0x3F) << 6 | u32::from(d) & 0x3F;
                ((u32::from(a) & 7) << 18 | low, 4)
            }
            _ => (0, 1), // no UTF-8
        };
        let class = unicode::class(code);
        let bits = u128::from(u64::MAX >> (64 - len)) << at;
        high &= !(bits as u64);
        block[class] |= bits as u64;
        let over = (bits >> 64) as u64;
        carry[class] |= over;
        carry[RAW_HIGH] |= over;
    }
}

fn plain(bytes: &[[u8; 64]], blocks: &mut [Block]) {
    for (bytes, block) in bytes.iter().zip(blocks) {
        *block = Block::default();
        for (at, byte) in bytes.iter().enumerate() {
            let bit = 1 << at;
            match byte {
                b'a'..=b'z' => block[LOWER] |= bit,
                b'A'..=b'Z' => block[UPPER] |= bit,
                b'0'..=b'9' => block[NUMBER] |= bit,
                b'\t'..=b'\r' | b' ' => {
                    block[SPACE] |= bit;
                    block[RAW_LINE_ENDS] |= u64::from(matches!(byte, b'\r' | b'\n')) << at;
                    block[RAW_BLANKS] |= u64::from(*byte == b' ') << at;
                }
                b'\'' => block[RAW_APOSTROPHES] |= bit,
                b'/' => block[RAW_SLASHES] |= bit,
                0x80.. => {
                    block[RAW_HIGH] |= bit;
                    block[RAW_INNER] |= u64::from(*byte < 0xC0) << at;
                }
                _ => {}
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn avx512(bytes: &[[u8; 64]], blocks: &mut [Block]) {
        let all = |byte: u8| _mm512_set1_epi8(byte as i8);
        for (bytes, block) in bytes.iter().zip(blocks) {
            // SAFETY: 64 bytes are read from an array of 64, wherever it lies.
            let v = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
            let from = |first: u8, len: u8| _mm512_cmplt_epu8_mask(_mm512_sub_epi8(v, all(first)), all(len));
            let is = |byte: u8| _mm512_cmpeq_epi8_mask(v, all(byte));
            *block = Block::default();
            block[LOWER] = from(b'a', 26);
            block[UPPER] = from(b'A', 26);
            block[NUMBER] = from(b'0', 10);
            block[RAW_BLANKS] = is(b' ');
            block[SPACE] = from(b'\t', 5) | block[RAW_BLANKS];
            block[RAW_LINE_ENDS] = is(b'\r') | is(b'\n');
            block[RAW_APOSTROPHES] = is(b'\'');
            block[RAW_SLASHES] = is(b'/');
            block[RAW_INNER] = from(0x80, 0x40);
            block[RAW_HIGH] = _mm512_movepi8_mask(v);
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn avx2(bytes: &[[u8; 64]], blocks: &mut [Block]) {
        let all = |byte: u8| _mm256_set1_epi8(byte as i8);
        let mask = |v: __m256i| u64::from(_mm256_movemask_epi8(v) as u32);
        for (bytes, block) in bytes.iter().zip(blocks) {
            *block = Block::default();
            for half in 0..2 {
                // SAFETY: 32 bytes are read from each half of an array of 64, wherever it lies.
                let v = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(32 * half).cast()) };
                let from = |first: u8, len: u8| {
                    let v = _mm256_sub_epi8(v, all(first));
                    mask(_mm256_cmpeq_epi8(_mm256_min_epu8(v, all(len - 1)), v)) << (32 * half)
                };
                let is = |byte: u8| mask(_mm256_cmpeq_epi8(v, all(byte))) << (32 * half);
                block[LOWER] |= from(b'a', 26);
                block[UPPER] |= from(b'A', 26);
                block[NUMBER] |= from(b'0', 10);
                block[RAW_BLANKS] |= is(b' ');
                block[SPACE] |= from(b'\t', 5) | is(b' ');
                block[RAW_LINE_ENDS] |= is(b'\r') | is(b'\n');
                block[RAW_APOSTROPHES] |= is(b'\'');
                block[RAW_SLASHES] |= is(b'/');
                block[RAW_INNER] |= from(0x80, 0x40);
                block[RAW_HIGH] |= mask(v) << (32 * half);
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::*;

    /// The bit of each byte within a byte of the mask, twice.
    const WEIGHTS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];

    #[target_feature(enable = "neon")]
    pub fn neon(bytes: &[[u8; 64]], blocks: &mut [Block]) {
        // SAFETY: 16 bytes are read from an array of 16.
        let weights = unsafe { vld1q_u8(WEIGHTS.as_ptr()) };
        // Turns bytes of all ones or all zeros into bits: pairwise sums, until eight bytes are one.
        let mask = |v: [uint8x16_t; 4]| {
            let [a, b, c, d] = v.map(|v| vandq_u8(v, weights));
            let sum = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
            vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(sum, sum)))
        };
        for (bytes, block) in bytes.iter().zip(blocks) {
            // SAFETY: 16 bytes are read from each quarter of an array of 64, wherever it lies.
            let v = [0, 16, 32, 48].map(|at| unsafe { vld1q_u8(bytes.as_ptr().add(at)) });
            let from = |first: u8, len: u8| mask(v.map(|v| vcltq_u8(vsubq_u8(v, vdupq_n_u8(first)), vdupq_n_u8(len))));
            let is = |byte: u8| mask(v.map(|v| vceqq_u8(v, vdupq_n_u8(byte))));
            *block = Block::default();
            block[LOWER] = from(b'a', 26);
            block[UPPER] = from(b'A', 26);
            block[NUMBER] = from(b'0', 10);
            block[RAW_BLANKS] = is(b' ');
            block[SPACE] = from(b'\t', 5) | block[RAW_BLANKS];
            block[RAW_LINE_ENDS] = is(b'\r') | is(b'\n');
            block[RAW_APOSTROPHES] = is(b'\'');
            block[RAW_SLASHES] = is(b'/');
            block[RAW_INNER] = from(0x80, 0x40);
            block[RAW_HIGH] = mask(v.map(|v| vcgeq_u8(v, vdupq_n_u8(0x80))));
        }
    }
}
