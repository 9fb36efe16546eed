//! Encodes text larger than memory: the ids of a reader in chunks. Together they equal the ids of the whole text.

use std::io::Read;

use super::Tokenizer;
use super::bpe::cuts;
use super::ranks::Ranks;
use super::specials::SpecialTokens;
use crate::support::take_text;
use crate::{Error, Result};

/// Bytes of text to read for a chunk. Doubled while no piece of text is settled.
const CHUNK_BYTES: usize = 1 << 18;
/// Default of [`EncodeReader::with_longest_run`].
const LONGEST_RUN_BYTES: usize = 64 << 20;

/// Iterator over the ids of a reader's text, in chunks. Made by [`Tokenizer::encode_reader`].
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// let tokenizer = Tokenizer::cl100k();
/// let mut ids = Vec::new();
/// for chunk in tokenizer.encode_reader("Hello world".as_bytes(), false) {
///     ids.extend(chunk?);
/// }
/// assert_eq!(ids, [9906, 1917]);
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub struct EncodeReader<'t, R> {
    tokenizer: &'t Tokenizer,
    reader: R,
    lossy: bool,
    /// Valid text that is not encoded yet.
    text: String,
    /// Bytes read that are not valid text yet, such as the beginning of a character.
    rest: Vec<u8>,
    /// What one read fills.
    chunk: Vec<u8>,
    /// For messages: number of bytes of the source before `rest`, and of text before `text`.
    rest_at: u64,
    text_at: u64,
    want: usize,
    longest_run: usize,
    end: bool,
    done: bool,
}

impl Tokenizer {
    /// Encodes all text of `reader` in chunks. The ids of all chunks, joined, are the ids of the whole text.
    ///
    /// With `lossy`, bytes that are not UTF-8 are read as U+FFFD, as `String::from_utf8_lossy` does. A `tokenizer.json` may have
    /// rules that depend on any part of the text, so its text is read as one chunk.
    ///
    /// # Errors
    /// Each item can be [`Error::InvalidUtf8`] (with the byte of the source), [`Error::SpecialForbidden`] (with the byte of the text),
    /// [`Error::RunTooLong`], [`Error::Tokenize`], or [`Error::Io`]. The iterator ends after an error.
    ///
    /// # Cost
    /// Memory: a few MiB, or up to ten times the longest run of characters that the split pattern keeps together (letters without
    /// white space or punctuation, zero bytes). A run above 64 MiB is an error; see [`EncodeReader::with_longest_run`].
    pub fn encode_reader<R: Read>(&self, reader: R, lossy: bool) -> EncodeReader<'_, R> {
        EncodeReader {
            tokenizer: self,
            reader,
            lossy,
            text: String::new(),
            rest: Vec::new(),
            chunk: vec![0; CHUNK_BYTES],
            rest_at: 0,
            text_at: 0,
            want: CHUNK_BYTES,
            longest_run: LONGEST_RUN_BYTES,
            end: false,
            done: false,
        }
    }
}

impl<R> EncodeReader<'_, R> {
    /// Sets the longest accepted run of characters that the split pattern keeps together, in bytes. The default is 64 MiB.
    pub fn with_longest_run(mut self, bytes: usize) -> Self {
        self.longest_run = bytes;
        self
    }
}

impl Tokenizer {
    /// Returns a function of three bytes that says whether a text may be cut between the last two of them, so that both parts together
    /// have the ids of the whole. `None` for a `tokenizer.json`, whose rules may depend on any part of the text.
    pub(crate) fn cuts(&self) -> Option<impl Fn([u8; 3]) -> bool + Sync + '_> {
        self.engine.by_pieces().map(|ranks| |around| cuts::cuts(ranks.bpe.pattern, around))
    }
}

impl<R: Read> Iterator for EncodeReader<'_, R> {
    type Item = Result<Vec<u32>>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            if let Err(error) = self.fill() {
                self.done = true;
                return Some(Err(error));
            }
            let mut ids = Vec::new();
            match self.encode_settled(&mut ids) {
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
                Ok(()) if self.end => self.done = true,
                Ok(()) if ids.is_empty() && self.text.len() > self.longest_run => {
                    self.done = true;
                    return Some(Err(Error::RunTooLong { byte: self.text_at, bytes: self.longest_run }));
                }
                Ok(()) if ids.is_empty() => {
                    let longest = self.longest_run.saturating_add(CHUNK_BYTES);
                    self.want = CHUNK_BYTES.max(2 * self.text.len()).min(longest);
                }
                Ok(()) => self.want = CHUNK_BYTES,
            }
            if !ids.is_empty() {
                return Some(Ok(ids));
            }
        }
        None
    }
}

impl<R: Read> EncodeReader<'_, R> {
    /// Reads until `text` has `want` bytes, or to the end.
    fn fill(&mut self) -> Result<()> {
        let whole = self.tokenizer.engine.by_pieces().is_none();
        while !self.end && (whole || self.text.len() < self.want) {
            let read = loop {
                match self.reader.read(&mut self.chunk) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    result => break result.map_err(|e| Error::io("input", e))?,
                }
            };
            self.rest.extend_from_slice(&self.chunk[..read]);
            self.end = read == 0;
            self.take_text()?;
        }
        Ok(())
    }

    /// Moves what is valid text from `rest` to `text`.
    fn take_text(&mut self) -> Result<()> {
        let taken = take_text(&mut self.rest, &mut self.text, self.lossy, self.end)
            .map_err(|valid| Error::InvalidUtf8 { byte: self.rest_at + valid as u64 })?;
        self.rest_at += taken as u64;
        Ok(())
    }

    /// Encodes the settled part of `text`, whose ids no later text can change, and removes it.
    fn encode_settled(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        let Tokenizer { engine, specials } = self.tokenizer;
        specials.refuse(&self.text, self.text_at)?;
        let taken = match engine.by_pieces() {
            Some(ranks) if !self.end => encode_settled(ranks, &self.text, specials, ids),
            _ => {
                engine.encode_into(&self.text, specials, ids)?;
                self.text.len()
            }
        };
        self.text.drain(..taken);
        self.text_at += taken as u64;
        Ok(())
    }
}

/// Appends the ids of the settled part of `text`, whose ids no later text can change. Returns where that part ends.
fn encode_settled(ranks: &Ranks, text: &str, specials: &SpecialTokens, ids: &mut Vec<u32>) -> usize {
    let margin = specials.longest();
    let settled = cuts::settled(text, margin);
    let mut taken = 0;
    for (range, id) in specials.find(text) {
        if range.start + margin > text.len() {
            break;
        }
        ranks.bpe.encode(&text[taken..range.start], ids);
        ids.push(id);
        taken = range.end;
    }
    if settled <= taken {
        return taken; // the rest is an unfinished run
    }
    taken + ranks.bpe.encode_until(&text[taken..], settled - taken, ids)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::rank_file;
    use crate::tokenizer::specials::Specials;

    const PIECES: [&str; 40] = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "   \n  ",
        "\u{a0}",
        "\u{3000}",
        "'s",
        "'LL",
        "'\u{17f}",
        "!!",
        "...",
        "123",
        "12345",
        "x",
        "Ab",
        "\u{1F600}",
        "\u{200d}",
        "\u{301}",
        "é",
        "漢字",
        "ß",
        "<|endoftext|>",
        "\0",
        "\n",
        "\n",
        "/",
        "\n/",
        "!\n",
        " \n",
        "\u{85}",
        "\u{1680}",
        "\u{2028}",
        "\u{0B}",
        "\r",
        "A",
        "数",
        "\n\n \n",
    ];

    static TOKENIZERS: LazyLock<[Tokenizer; 3]> = LazyLock::new(|| {
        let o200k = bpe_openai::o200k_base();
        let r50k = tiktoken_rs::r50k_base().unwrap();
        let ranks = |count, bytes: &dyn Fn(u32) -> Option<Vec<u8>>| {
            let line = |id| Some(format!("{} {id}\n", BASE64_STANDARD.encode(bytes(id)?)));
            let lines: String = (0..count).filter_map(line).collect();
            Tokenizer::new(Arc::new(rank_file::read("/none/x".as_ref(), &lines).unwrap()))
        };
        let all = [
            Tokenizer::cl100k(),
            ranks(199_998, &|id| Some(o200k.bpe.token_bytes(id).to_vec())),
            ranks(50_256, &|id| r50k.decode_bytes(&[id]).ok()),
        ];
        assert_eq!((all[1].name(), all[2].name()), ("o200k_base", "r50k_base"));
        all
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// A text may be cut at every place that `cuts` allows.
        #[test]
        fn cuts_change_no_ids(picks in prop::collection::vec(0usize..40, 0..60), which in 0usize..3) {
            let text: String = picks.iter().map(|i| PIECES[*i]).collect();
            let specials = if picks.len() % 2 == 0 { Specials::Text } else { Specials::Allow };
            let tokenizer = TOKENIZERS[which].clone().with_specials(specials);
            let whole = tokenizer.encode(&text).unwrap();
            let cuts = tokenizer.cuts().unwrap();
            let bytes = text.as_bytes();
            for at in 2..bytes.len().max(2) {
                if cuts([bytes[at - 2], bytes[at - 1], bytes[at]]) {
                    prop_assert!(text.is_char_boundary(at));
                    let parts = [tokenizer.encode(&text[..at]).unwrap(), tokenizer.encode(&text[at..]).unwrap()].concat();
                    prop_assert_eq!(&parts, &whole, "{:?} cut at {}", &text, at);
                }
            }
        }
    }
}
