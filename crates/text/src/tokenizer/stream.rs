//! Text larger than memory: the ids of a reader, in chunks, the same as those of the whole text.

use std::io::Read;
use std::ops::ControlFlow;

use super::split::Splitter;
use super::{Engine, Tokenizer};
use crate::{Error, Result};

/// Bytes read before the first ids are given; doubled while no piece of text is settled.
const CHUNK_BYTES: usize = 1 << 18;
/// The longest run that is held, unless [`EncodeReader::with_longest_run`] says otherwise.
const LONGEST_RUN_BYTES: usize = 64 << 20;

/// Iterator over the ids of everything that a reader gives, made by [`Tokenizer::encode_reader`].
pub struct EncodeReader<'t, R> {
    tokenizer: &'t Tokenizer,
    reader: R,
    lossy: bool,
    /// Valid text that has no ids yet.
    text: String,
    /// Bytes read that are not valid text yet: the beginning of a character.
    rest: Vec<u8>,
    /// For messages: bytes of the source before `rest`, bytes of text before `text`.
    rest_at: u64,
    text_at: u64,
    want: usize,
    longest_run: usize,
    end: bool,
    done: bool,
}

impl Tokenizer {
    /// The ids of everything that `reader` gives, chunk by chunk: joined, they are those of the whole text.
    ///
    /// A chunk ends where a piece of text ends that nothing later can change. With `lossy`, bytes that are not
    /// UTF-8 are read as U+FFFD, as `String::from_utf8_lossy` does.
    ///
    /// The rules of a `tokenizer.json` may look arbitrarily far, so its text is read whole, as one chunk.
    ///
    /// # Errors
    /// Each item can be [`Error::InvalidUtf8`] (with the byte of the source), [`Error::SpecialForbidden`] (of the text),
    /// [`Error::RunTooLong`], [`Error::Tokenize`], or [`Error::Io`]. Nothing follows an error.
    ///
    /// # Cost
    /// A few MiB, or up to ten times the longest run of characters that the split pattern keeps together: letters without white
    /// space or punctuation, say, or zero bytes. A run above 64 MiB is an error ([`EncodeReader::with_longest_run`]).
    pub fn encode_reader<R: Read>(&self, reader: R, lossy: bool) -> EncodeReader<'_, R> {
        EncodeReader {
            tokenizer: self,
            reader,
            lossy,
            text: String::new(),
            rest: Vec::new(),
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
    /// Accepts runs of characters that the split pattern keeps together up to so many bytes, instead of 64 MiB.
    pub fn with_longest_run(mut self, bytes: usize) -> Self {
        self.longest_run = bytes;
        self
    }
}

impl Tokenizer {
    /// Where a text may be cut so that its parts, encoded by themselves, give the ids of the whole: between the second and
    /// the third of three bytes. ([`prepare`](crate::prepare) cuts a document of gigabytes so.) `None` for a `tokenizer.json`, whose
    /// rules may look arbitrarily far.
    ///
    /// # Example
    /// ```
    /// let tokenizer = tallow_text::Tokenizer::cl100k();
    /// let cuts = tokenizer.cuts().expect("not a tokenizer.json");
    /// assert!(cuts(*b"a\nb") && !cuts(*b"a\n\n") && !cuts(*b"abc"));
    /// ```
    pub fn cuts(&self) -> Option<impl Fn([u8; 3]) -> bool + Sync + '_> {
        match &self.engine {
            Engine::Ranks(ranks) => Some(|around| ranks.cuts(around)),
            Engine::File(_) => None,
        }
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
    /// Reads until `want` bytes of text are there, or the end.
    fn fill(&mut self) -> Result<()> {
        let whole = matches!(self.tokenizer.engine, Engine::File(_));
        while !self.end && (whole || self.text.len() < self.want) {
            let space = self.rest.len();
            self.rest.resize(space + CHUNK_BYTES, 0);
            let read = loop {
                match self.reader.read(&mut self.rest[space..]) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    result => break result.map_err(|e| Error::io("input", e))?,
                }
            };
            self.rest.truncate(space + read);
            self.end = read == 0;
            self.take_text()?;
        }
        Ok(())
    }

    /// Moves what is valid text from `rest` to `text`.
    fn take_text(&mut self) -> Result<()> {
        let mut taken = 0;
        while taken < self.rest.len() {
            let bytes = &self.rest[taken..];
            match std::str::from_utf8(bytes) {
                Ok(text) => {
                    self.text.push_str(text);
                    taken = self.rest.len();
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.text.push_str(std::str::from_utf8(&bytes[..valid]).unwrap_or_default());
                    taken += valid;
                    let bad = match error.error_len() {
                        Some(len) => len,
                        None if self.end => bytes.len() - valid,
                        None => break,
                    };
                    if !self.lossy {
                        return Err(Error::InvalidUtf8 { byte: self.rest_at + taken as u64 });
                    }
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    taken += bad;
                }
            }
        }
        self.rest.drain(..taken);
        self.rest_at += taken as u64;
        Ok(())
    }

    /// Encodes the part of `text` whose ids nothing later can change, and drops it.
    fn encode_settled(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        let tokenizer = self.tokenizer;
        let Engine::Ranks(ranks) = &tokenizer.engine else {
            tokenizer.encode_into(&self.text, ids)?;
            self.text.clear();
            return Ok(());
        };
        tokenizer.refuse_specials(&self.text, self.text_at)?;
        if self.end {
            tokenizer.encode_into(&self.text, ids)?;
            self.text.clear();
            return Ok(());
        }
        let margin = tokenizer.special_bytes();
        let settled = Splitter::settled(&self.text, margin);
        let mut start = 0;
        for (range, id) in tokenizer.special_tokens(&self.text) {
            if range.start + margin > self.text.len() {
                break;
            }
            ranks.encode_into(&self.text[start..range.start], ids);
            ids.push(id);
            start = range.end;
        }
        let mut taken = start;
        if settled <= start {
            self.text.drain(..taken);
            self.text_at += taken as u64;
            return Ok(()); // a run that has not ended is not encoded in vain
        }
        ranks.pieces(&self.text[start..], |end, piece| {
            if start + end > settled {
                return ControlFlow::Break(());
            }
            ids.extend_from_slice(piece);
            taken = start + end;
            ControlFlow::Continue(())
        });
        self.text.drain(..taken);
        self.text_at += taken as u64;
        Ok(())
    }
}
