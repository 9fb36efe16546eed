//! The kind of every Unicode scalar, as far as split patterns distinguish them.

/// Lu and Lt.
pub const UPPER: usize = 0;
/// Ll.
pub const LOWER: usize = 1;
/// Lm and Lo.
pub const CASELESS: usize = 2;
/// M.
pub const MARK: usize = 3;
/// N.
pub const NUMBER: usize = 4;
/// White space. All other characters are 7.
pub const SPACE: usize = 5;
/// A page number for every 256 code points, then the pages, with one kind per code point. Written by a test (`tests.rs`).
pub static TABLE: &[u8] = include_bytes!("unicode.bin");

const PAGES: usize = 0x11_0000 / 256;

/// The kind of a character.
#[inline]
pub fn class(code: u32) -> usize {
    let page = usize::from(TABLE[code as usize >> 8]);
    usize::from(TABLE[PAGES + 256 * page + (code as usize & 255)]) & 7
}
