//! GPT-2's spelling of bytes as printable characters, in which a `tokenizer.json` writes byte-level tokens.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The stand-in for each byte: itself where it is printable, else the next free code from U+0100.
static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut free = (0x100..).filter_map(char::from_u32);
    std::array::from_fn(|byte| match printable(byte as u8) {
        true => char::from(byte as u8),
        false => free.next().unwrap_or(char::REPLACEMENT_CHARACTER),
    })
});

static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| CHARS.iter().copied().zip(0..=255).collect());

/// How these bytes are spelled.
pub(super) fn spelled(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| CHARS[usize::from(*byte)]).collect()
}

/// The bytes that are spelled so, if any are.
pub(super) fn bytes(spelled: &str) -> Option<Vec<u8>> {
    spelled.chars().map(|c| BYTES.get(&c).copied()).collect()
}
