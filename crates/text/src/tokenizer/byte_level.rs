//! GPT-2's mapping of bytes to printable characters. A `tokenizer.json` writes byte-level tokens in it.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The character for each byte: the byte's own if it is printable, else the next free one from U+0100.
static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut free = (0x100..).filter_map(char::from_u32);
    std::array::from_fn(|byte| match printable(byte as u8) {
        true => char::from(byte as u8),
        false => free.next().unwrap_or(char::REPLACEMENT_CHARACTER),
    })
});

static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| CHARS.iter().copied().zip(0..=255).collect());

/// The characters for these bytes.
pub(super) fn spelled(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| CHARS[usize::from(*byte)]).collect()
}

/// The bytes for these characters. `None` if one of them stands for no byte.
pub(super) fn bytes(spelled: &str) -> Option<Vec<u8>> {
    spelled.chars().map(|c| BYTES.get(&c).copied()).collect()
}
