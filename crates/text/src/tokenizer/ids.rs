//! The types that ids can have.

use super::Tokenizer;
use super::bpe::Ids;
use crate::{Error, Result};

/// Type of ids in memory: `u32`, or `u16` for tokenizers with at most 65536 ids. The trait is sealed.
///
/// # Example
/// ```
/// use tallow_text::{Id, Tokenizer};
/// fn ids<I: Id>(tokenizer: &Tokenizer, text: &str) -> tallow_text::Result<Vec<I>> {
///     let mut ids = Vec::new();
///     tokenizer.encode_into(text, &mut ids)?;
///     Ok(ids)
/// }
/// assert_eq!(ids::<u32>(&Tokenizer::cl100k(), "Hello world")?, [9906, 1917]);
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub trait Id: sealed::Id {}

impl Id for u16 {}
impl Id for u32 {}

mod sealed {
    use super::{Result, Tokenizer};

    pub trait Id: Sized {
        fn encode(tokenizer: &Tokenizer, text: &str, out: &mut Vec<Self>) -> Result<()>;
    }
}

impl sealed::Id for u32 {
    fn encode(tokenizer: &Tokenizer, text: &str, out: &mut Vec<u32>) -> Result<()> {
        encode(tokenizer, text, out)
    }
}

impl sealed::Id for u16 {
    fn encode(tokenizer: &Tokenizer, text: &str, out: &mut Vec<u16>) -> Result<()> {
        let largest = tokenizer.vocab_size().saturating_sub(1);
        if largest > usize::from(u16::MAX) {
            return Err(Error::Config(format!("{} has ids up to {largest}: u16 ends at 65535", tokenizer.name())));
        }
        encode(tokenizer, text, out)
    }
}

/// Appends the ids of `text` to `out`, until `out` is full.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, out: &mut impl Ids) -> Result<()> {
    let Tokenizer { engine, specials } = tokenizer;
    specials.refuse(text, 0)?;
    match engine.by_pieces() {
        Some(ranks) => ranks.encode(text, specials, out),
        None => {
            let mut ids = Vec::new();
            engine.encode_into(text, specials, &mut ids)?;
            out.push_all(&ids);
        }
    }
    Ok(())
}
