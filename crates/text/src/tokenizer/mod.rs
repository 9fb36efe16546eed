//! Text ⇄ ids: exact tiktoken ids offline, or any `tokenizer.json`.
//!
//! This module knows nothing about tensors or tables.

mod bpe;
mod byte_level;
mod count;
mod decoder;
mod engine;
mod file;
mod ids;
mod known;
mod rank_file;
mod rank_json;
mod ranks;
mod save;
mod specials;
mod stream;

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use crate::support::advise_huge_pages;
use crate::{Error, Result};
use engine::Engine;
use file::File;
use ranks::Ranks;
use specials::SpecialTokens;

pub use count::{count_tokens, count_up_to, truncate_to_tokens};
pub use decoder::Decoder;
pub use ids::Id;
pub use specials::Specials;
pub use stream::EncodeReader;

/// Turns text into token ids and back.
///
/// Cloning is cheap, and one tokenizer can be used from many threads at once: no call waits for another.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// let tokenizer = Tokenizer::cl100k();
/// let ids = tokenizer.encode("小沈阳")?;
/// assert_eq!(ids, [31809, 31106, 230, 83175]); // 沈 is two tokens, half a character each
/// assert_eq!(tokenizer.decode(&ids)?, "小沈阳");
/// # Ok::<(), tallow_text::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    engine: Arc<dyn Engine>,
    specials: SpecialTokens,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("name", &self.name())
            .field("vocab_size", &self.vocab_size())
            .field("specials", &self.specials.rule)
            .finish_non_exhaustive()
    }
}

/// What turns text into ids, and so how fast it is. The ids are the same.
///
/// # Example
/// ```
/// use tallow_text::{Backend, Tokenizer};
/// assert_eq!(Tokenizer::cl100k().backend(), Backend::BytePair);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// tallow's own encoder: byte-level byte-pair encoding with a split pattern that it knows. All bundled encodings and rank
    /// files, and a `tokenizer.json` of that kind.
    BytePair,
    /// The crate `tokenizers`: any other `tokenizer.json`.
    Tokenizers,
}

/// Of a `tokenizer.json`, what serves single requests and is not used here.
const WITHOUT_EFFECT: [&str; 3] = ["truncation", "padding", "post_processor"];

/// What a tokenizer from this file is called: the file's name, or its folder's, where it is `tokenizer.json`.
fn name_of(path: &Path) -> String {
    let name = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let stem = name(path.file_stem()).unwrap_or_default();
    let folder = || name(path.parent().and_then(Path::file_name));
    Some(&stem).filter(|stem| *stem == "tokenizer").and_then(|_| folder()).unwrap_or(stem)
}

impl Tokenizer {
    /// The bundled `cl100k_base` (GPT-4's): no network, no file. Its ids are tiktoken's.
    ///
    /// # Cost
    /// Some microseconds: its tables are part of the program, and are read where they are used.
    pub fn cl100k() -> Self {
        Self::new(Ranks::cl100k())
    }

    /// The bundled `o200k_base` (GPT-4o's), with the feature `o200k`.
    #[cfg(feature = "o200k")]
    pub fn o200k() -> Self {
        Self::new(Ranks::o200k())
    }

    /// The bundled `gpt2`, with the feature `gpt2`. tiktoken's `r50k_base` is the same.
    #[cfg(feature = "gpt2")]
    pub fn gpt2() -> Self {
        Self::new(Ranks::gpt2())
    }

    /// The bundled encoding of this name, if there is one: `cl100k`, and with their features `o200k` and `gpt2`. tiktoken's names
    /// (`cl100k_base`, `o200k_base`, `r50k_base`) mean them, too.
    pub fn bundled(name: &str) -> Option<Self> {
        match name {
            "cl100k" | "cl100k_base" => Some(Self::cl100k()),
            #[cfg(feature = "o200k")]
            "o200k" | "o200k_base" => Some(Self::o200k()),
            #[cfg(feature = "gpt2")]
            "gpt2" | "r50k_base" => Some(Self::gpt2()),
            _ => None,
        }
    }

    /// What turns text into ids.
    pub fn backend(&self) -> Backend {
        self.engine.backend()
    }

    /// Reads a Hugging Face `tokenizer.json`, or a `.tiktoken` rank file (told apart by what is in it). What [`save`](Self::save)
    /// wrote gives the same tokenizer again, as fast as it was. A `tokenizer.json` that is byte-level byte-pair encoding with the split
    /// pattern of GPT-2, Llama 3, Qwen, cl100k or o200k goes through the same encoder; [`backend`](Self::backend) tells.
    ///
    /// Of a `tokenizer.json`, truncation, padding and the post-processor (which adds tokens such as `[CLS]`)
    /// are left out: a corpus must come through whole, with nothing added. A rank file does not hold its
    /// split pattern: 100256, 199998, 50256 and 50280 ranks are taken for cl100k, o200k, r50k and p50k with
    /// their special tokens; any other number is split by cl100k's pattern and has no special tokens. Where
    /// `NAME.special_tokens.json` lies beside `NAME.tiktoken`, its special tokens (text → id) are taken instead.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::TokenizerFile`] if it is neither format, is torn,
    /// names a rank twice, or lacks one of the 256 single bytes, or if the special tokens beside it do not fit.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes); // a mark that Windows editors leave
        let bad = |reason: String| Error::tokenizer_file(path, reason);
        if bytes.trim_ascii_start().starts_with(b"{") {
            let unusable = |reason: String| bad(format!("not a usable tokenizer.json: {reason}"));
            let value = serde_json::from_slice(bytes).map_err(|e| unusable(e.to_string()))?;
            return Ok(Self::new(match rank_json::read(path, &value) {
                Some(ranks) => Arc::new(ranks),
                None => Arc::new(File::new(name_of(path), bytes, value).map_err(unusable)?),
            }));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| bad("neither a tokenizer.json nor a .tiktoken rank file (it is not text)".to_string()))?;
        if text.trim().is_empty() {
            return Err(bad("the file is empty".to_string()));
        }
        Ok(Self::new(Arc::new(rank_file::read(path, text)?)))
    }

    fn new(engine: Arc<dyn Engine>) -> Self {
        let specials = SpecialTokens::new(Specials::default(), engine.special_ids(), Vec::new());
        Tokenizer { engine, specials }
    }

    /// The same tokenizer with another rule for text that spells a special token.
    pub fn with_specials(mut self, specials: Specials) -> Self {
        self.specials.rule = specials;
        self
    }

    /// Adds special tokens, which are found in text from then on: "`<|user|>`" becomes one id wherever it stands. Gives the ids of
    /// all of `tokens`.
    ///
    /// The ids follow the largest one; a token that is special already keeps its id, and is found in text, too. Under
    /// [`Specials::Text`] added tokens stay text, under [`Specials::Forbid`] they are an error. To encode what a stranger wrote
    /// without control tokens, use a clone [`with_specials`](Self::with_specials)`(Specials::Text)`.
    ///
    /// The table must have rows for the new ids (`tallow::TokenEmbedding::add_tokens` does both), and
    /// the [`fingerprint`](Self::fingerprint) is another one: files that carry the old one are refused. Clones made before stay as
    /// they are.
    ///
    /// # Errors
    /// [`Error::TokenExists`] for an ordinary token, [`Error::Config`] for an empty one. Nothing is added then.
    ///
    /// # Cost
    /// Little for the bundled encodings and rank files, as long as reading the file for a `tokenizer.json`.
    ///
    /// # Example
    /// ```
    /// use tallow_text::Tokenizer;
    /// let mut tokenizer = Tokenizer::cl100k();
    /// assert_eq!(tokenizer.add_tokens(&["<|user|>", "<|bot|>"])?, [100277, 100278]);
    /// assert_eq!(tokenizer.encode("<|user|>hi")?, [100277, 6151]);
    /// # Ok::<(), tallow_text::Error>(())
    /// ```
    pub fn add_tokens(&mut self, tokens: &[&str]) -> Result<Vec<u32>> {
        let special = |token: &str| self.special_ids().iter().any(|(text, _)| text == token);
        let mut new: Vec<&str> = Vec::new();
        for token in tokens {
            if token.is_empty() {
                return Err(Error::Config("an empty token cannot be added".to_string()));
            }
            if special(token) || new.contains(token) {
                continue;
            }
            if let Some(id) = self.token_to_id(token) {
                let (token, tokenizer) = (token.to_string(), self.name().to_string());
                return Err(Error::TokenExists { token, id, tokenizer });
            }
            new.push(token);
        }
        let mut added = self.specials.added().to_vec();
        let is_added = |token: &str, added: &[(String, u32)]| added.iter().any(|(text, _)| text == token);
        let found: Vec<&str> = tokens.iter().copied().filter(|token| !is_added(token, &added)).collect();
        let engine = self.engine.clone();
        let engine = if found.is_empty() { engine } else { engine.with_more(&new, &found)? };
        let mut ids = Vec::with_capacity(tokens.len());
        for token in tokens {
            let id = engine.special_ids().iter().find(|(text, _)| text == token).map(|(_, id)| *id);
            let id = id.ok_or_else(|| Error::Config(format!("{} did not take {token:?}", self.name())))?;
            ids.push(id);
            if !is_added(token, &added) {
                added.push((token.to_string(), id));
            }
        }
        let specials = SpecialTokens::new(self.specials.rule, engine.special_ids(), added);
        *self = Tokenizer { engine, specials };
        Ok(ids)
    }

    /// The encoding's name (`cl100k_base`), or what the file is called.
    pub fn name(&self) -> &str {
        self.engine.name()
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// - [`Error::SpecialForbidden`] under [`Specials::Forbid`].
    /// - [`Error::Tokenize`] if the rules of a `tokenizer.json` refuse the text. The bundled encoding and rank
    ///   files accept every text.
    ///
    /// # Cost
    /// Linear in the text for the bundled encodings, rank files and files of their kind, whatever the text; docs/benchmarks.md has figures.
    /// Each thread that encodes keeps 5 MiB at most of what it merged lately.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        advise_huge_pages(ids.spare_capacity_mut());
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of `text` to `out`, which after an error is as it was before. As `u16` they take half the memory, where they
    /// fit.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`Error::Config`] for `u16` and a tokenizer with ids above 65535.
    ///
    /// # Example
    /// ```
    /// use tallow_text::Tokenizer;
    /// let mut ids: Vec<u32> = Vec::with_capacity(1024); // one buffer for many texts
    /// for text in ["Hello", " world"] {
    ///     Tokenizer::cl100k().encode_into(text, &mut ids)?;
    /// }
    /// assert_eq!(ids, [9906, 1917]);
    /// assert!(Tokenizer::cl100k().encode_into("Hello", &mut Vec::<u16>::new()).is_err()); // 100277 ids
    /// # Ok::<(), tallow_text::Error>(())
    /// ```
    pub fn encode_into<I: Id>(&self, text: &str, out: &mut Vec<I>) -> Result<()> {
        I::encode(self, text, out)
    }

    /// The ids of each text, on all of rayon's threads. The result does not depend on their number.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), for the first text that fails.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        let results: Vec<Result<Vec<u32>>> = texts.par_iter().map(|text| self.encode(text.as_ref())).collect();
        results.into_iter().collect()
    }

    /// The ids of `text`, and the byte range that each stands for.
    ///
    /// Ranges may cut a character: `沈` in cl100k is two tokens. They join without gaps, except where a
    /// `tokenizer.json` normalises the text away; there they are what `tokenizers` reports.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        self.specials.refuse(text, 0)?;
        self.engine.encode_with_offsets(text, &self.specials)
    }

    /// The text of `ids`, for people: bytes that are not UTF-8 (half a character) become U+FFFD.
    ///
    /// # Errors
    /// [`Error::UnknownId`]. Padding ([`NO_TOKEN`](crate::NO_TOKEN)) stands for no text.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The bytes of `ids`: exactly those of the text that they were made from.
    ///
    /// A `tokenizer.json` that is not byte-level may normalise text; then these are the bytes that its decoder
    /// gives.
    ///
    /// # Errors
    /// [`Error::UnknownId`]. Padding ([`NO_TOKEN`](crate::NO_TOKEN)) stands for no bytes.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        self.engine.decode_bytes(ids)
    }

    /// The bytes that `id` stands for, or `None` if no token has this id. They need not be UTF-8.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.engine.token_bytes(id)
    }

    /// The id of the token with exactly these bytes, special tokens included.
    pub fn token_to_id(&self, token: impl AsRef<[u8]>) -> Option<u32> {
        self.engine.token_to_id(token.as_ref())
    }

    /// Text and id of every special token, by id.
    pub fn special_ids(&self) -> &[(String, u32)] {
        self.engine.special_ids()
    }

    /// Rows that a table needs for every id, special tokens included (largest id + 1): 100277 for cl100k. It is tiktoken's `n_vocab`, and
    /// what a table's `vocab_size` should be.
    pub fn vocab_size(&self) -> usize {
        self.engine.rows()
    }

    /// Rows that a table needs for every ordinary token (largest id + 1): 100256 for cl100k, the lesson's.
    pub fn ordinary_vocab_size(&self) -> usize {
        self.engine.ordinary_rows()
    }

    /// The ids below `rows` that stand for no token, to be masked when a model's next id is drawn: gaps between the tokens, and
    /// the rows of a table that has more than [`vocab_size`](Self::vocab_size).
    ///
    /// # Cost
    /// One look-up an id.
    ///
    /// # Example
    /// ```
    /// use tallow_text::Tokenizer;
    /// let spare = Tokenizer::cl100k().ids_without_token(100_277);
    /// assert_eq!((spare.len(), spare[0], spare[1]), (16, 100_256, 100_261));
    /// ```
    pub fn ids_without_token(&self, rows: usize) -> Vec<u32> {
        let rows = u32::try_from(rows).unwrap_or(crate::NO_TOKEN);
        (0..rows).filter(|id| self.engine.token_bytes(*id).is_none()).collect()
    }

    /// Whether every token is a string of bytes of the text: then the bytes of parts of a sequence, joined, are
    /// the bytes of the whole.
    pub fn is_byte_level(&self) -> bool {
        self.engine.is_byte_level()
    }

    /// A number that tells tokenizers apart: where it is equal, the same text gives the same ids and back.
    ///
    /// It covers vocabulary, special tokens and the rules of splitting and decoding, not [`Specials`], which is a choice
    /// of the caller; it is the same on every machine, and does not depend on the white space of a JSON file.
    pub fn fingerprint(&self) -> u64 {
        self.engine.fingerprint()
    }

    /// A function that names tokens for error messages, for
    /// `tallow::TokenEmbedding::with_token_names`.
    pub fn names(&self) -> impl Fn(u32) -> Option<String> + Send + Sync + 'static {
        let tokenizer = self.clone();
        move |id| {
            let bytes = tokenizer.token_bytes(id)?;
            Some(match std::str::from_utf8(&bytes) {
                Ok(text) => format!("{text:?} of {}", tokenizer.name()),
                Err(_) => format!("the bytes {bytes:02X?} of {}", tokenizer.name()),
            })
        }
    }

    /// The rule for special tokens as files name it.
    pub(crate) fn rule(&self) -> &'static str {
        self.specials.name()
    }
}
