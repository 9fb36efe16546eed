//! Text → the pieces of its tokens, with the characters that are split between tokens.

use tallow::Tokenizer;

use super::text::{hex, visible};
use crate::Result;

/// The part of a text that one token stands for.
///
/// # Example
/// ```
/// let pieces = tallow_view::pieces(&tallow::Tokenizer::cl100k(), "小沈")?;
/// assert_eq!((pieces[0].label().as_str(), pieces[0].of), ("小", 1));
/// assert_eq!((pieces[1].label().as_str(), pieces[1].of), ("沈 1/2", 2)); // the first of the two tokens of 沈
/// # Ok::<(), tallow_view::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token's id.
    pub id: u32,
    /// Its bytes in the text. The token's own bytes, if a `tokenizer.json` changes the text.
    pub bytes: Vec<u8>,
    /// Its text. `None` if it cuts a character.
    pub text: Option<String>,
    /// Whole characters: the text of this token and of the neighbors that share a character with it.
    pub characters: String,
    /// Number of this token among those, from 1.
    pub part: usize,
    /// How many tokens those are. 1 for a token that shares no character.
    pub of: usize,
}

impl Piece {
    /// A label in one line: the text; for a part of a character, the character and the number of the part (`沈 1/2`); else bytes in hex.
    pub fn label(&self) -> String {
        match &self.text {
            Some(text) => visible(text),
            None if self.of == 1 => hex(&self.bytes),
            None => format!("{} {}/{}", visible(&self.characters), self.part, self.of),
        }
    }
}

/// Cuts `text` into the pieces of its tokens. Neighbors that share a character are numbered.
///
/// # Errors
/// Those of [`Tokenizer::encode`].
///
/// # Example
/// ```
/// use tallow::Tokenizer;
/// let pieces = tallow_view::pieces(&Tokenizer::cl100k(), "小沈")?;
/// assert_eq!(pieces[0].text.as_deref(), Some("小"));
/// assert_eq!((pieces[1].bytes.as_slice(), pieces[1].text.as_deref()), (&[0xE6, 0xB2][..], None));
/// assert_eq!((pieces[2].characters.as_str(), pieces[2].part, pieces[2].of), ("沈", 2, 2));
/// # Ok::<(), tallow_view::Error>(())
/// ```
pub fn pieces(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Piece>> {
    let (ids, ranges) = tokenizer.encode_with_offsets(text)?;
    let mut pieces: Vec<Piece> = Vec::with_capacity(ids.len());
    let mut end = 0;
    let gapless = ranges.iter().all(|range| std::mem::replace(&mut end, range.end) == range.start) && end == text.len();
    if !gapless {
        // A tokenizer.json that inserts or normalizes text: its tokens are not parts of this text, so their own bytes are used.
        return Ok(ids
            .into_iter()
            .map(|id| alone(id, tokenizer.token_bytes(id).unwrap_or_default().into_owned()))
            .collect());
    }
    let mut first = 0;
    for (i, range) in ranges.iter().enumerate() {
        // A group ends with a token that ends at the end of a character.
        if !text.is_char_boundary(range.end) {
            continue;
        }
        let whole = text.get(ranges[first].start..range.end).unwrap_or_default();
        for (part, index) in (first..=i).enumerate() {
            let bytes = text.as_bytes().get(ranges[index].clone()).unwrap_or_default();
            pieces.push(Piece {
                id: ids[index],
                bytes: bytes.to_vec(),
                text: std::str::from_utf8(bytes).ok().filter(|_| i == first).map(String::from),
                characters: whole.to_string(),
                part: part + 1,
                of: i - first + 1,
            });
        }
        first = i + 1;
    }
    Ok(pieces)
}

fn alone(id: u32, bytes: Vec<u8>) -> Piece {
    let text = String::from_utf8(bytes.clone()).ok();
    Piece { id, characters: String::from_utf8_lossy(&bytes).into_owned(), bytes, text, part: 1, of: 1 }
}
