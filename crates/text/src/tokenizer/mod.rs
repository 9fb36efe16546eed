//! Text ⇄ ids: tiktoken's exact ids offline, or any `tokenizer.json`.
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

/// Encodes text to token ids, and decodes ids to text.
///
/// A clone is cheap. Threads can share one tokenizer; calls never wait for each other.
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

/// The encoder of a [`Tokenizer`]. It decides the speed; the ids do not depend on it.
///
/// # Example
/// ```
/// use tallow_text::{Backend, Tokenizer};
/// assert_eq!(Tokenizer::cl100k().backend(), Backend::BytePair);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// tallow's own encoder, for byte-level byte-pair encoding with a known split pattern: all bundled encodings, all rank files, and
    /// a `tokenizer.json` of that kind.
    BytePair,
    /// The crate `tokenizers`, for any other `tokenizer.json`.
    Tokenizers,
}

/// Keys of a `tokenizer.json` that are for single requests and not used here.
const WITHOUT_EFFECT: [&str; 3] = ["truncation", "padding", "post_processor"];

/// Name of a tokenizer from this file: the file's name, or its folder's name for `tokenizer.json`.
fn name_of(path: &Path) -> String {
    let name = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let stem = name(path.file_stem()).unwrap_or_default();
    let folder = || name(path.parent().and_then(Path::file_name));
    Some(&stem).filter(|stem| *stem == "tokenizer").and_then(|_| folder()).unwrap_or(stem)
}

impl Tokenizer {
    /// The bundled `cl100k_base` (GPT-4's). It needs no network and no file, and its ids equal tiktoken's.
    ///
    /// # Cost
    /// Some microseconds. The tables are part of the program and are not copied.
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

    /// The bundled encoding with this name, if there is one: `cl100k`, and with their features `o200k` and `gpt2`. tiktoken's names
    /// (`cl100k_base`, `o200k_base`, `r50k_base`) are accepted, too.
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

    /// The encoder of this tokenizer.
    pub fn backend(&self) -> Backend {
        self.engine.backend()
    }

    /// Reads a Hugging Face `tokenizer.json` or a `.tiktoken` rank file. The content decides which it is. A file from
    /// [`save`](Self::save) gives the same tokenizer with the same speed.
    ///
    /// `tokenizer.json`: truncation, padding and the post-processor (which adds tokens such as `[CLS]`) are ignored, so that a corpus
    /// is encoded whole, with nothing added. Byte-level byte-pair encoding with the split pattern of GPT-2, Llama 3, Qwen, cl100k or
    /// o200k uses tallow's own encoder; see [`backend`](Self::backend).
    ///
    /// Rank file: it does not hold its split pattern, so the number of ranks decides. 100256, 199998, 50256 and 50280 ranks are read
    /// as cl100k, o200k, r50k and p50k with their special tokens. Any other number gets cl100k's pattern and no special tokens. If
    /// `NAME.special_tokens.json` (text → id) is beside `NAME.tiktoken`, its special tokens are used instead.
    ///
    /// # Errors
    /// - [`Error::Io`]: the file cannot be read.
    /// - [`Error::TokenizerFile`]: it has neither format, is torn, has a rank twice or lacks one of the 256 single bytes, or the
    ///   special tokens beside it do not fit.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes); // the byte order mark of Windows editors
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

    /// Adds special tokens and returns the ids of all `tokens`. From then on they are found in text: every `<|user|>` becomes one id.
    ///
    /// New ids follow the largest one. A token that is special already keeps its id, and is found in text from then on, too. Under
    /// [`Specials::Text`] added tokens stay text, and under [`Specials::Forbid`] they are an error. To encode untrusted text without
    /// control tokens, use a clone [`with_specials`](Self::with_specials)`(Specials::Text)`.
    ///
    /// The table needs rows for the new ids; `tallow::TokenEmbedding::add_tokens` adds both. The [`fingerprint`](Self::fingerprint)
    /// changes, so files with the old one are refused. Earlier clones are not changed.
    ///
    /// # Errors
    /// [`Error::TokenExists`] for an ordinary token, [`Error::Config`] for an empty one. Then nothing is added.
    ///
    /// # Cost
    /// Small for bundled encodings and rank files. For a `tokenizer.json`, as long as reading the file.
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
            let id = id.ok_or_else(|| Error::Config(format!("{} cannot add {token:?}", self.name())))?;
            ids.push(id);
            if !is_added(token, &added) {
                added.push((token.to_string(), id));
            }
        }
        let specials = SpecialTokens::new(self.specials.rule, engine.special_ids(), added);
        *self = Tokenizer { engine, specials };
        Ok(ids)
    }

    /// Name of the encoding (`cl100k_base`), or of the file.
    pub fn name(&self) -> &str {
        self.engine.name()
    }

    /// Encodes `text` to ids.
    ///
    /// # Errors
    /// - [`Error::SpecialForbidden`] under [`Specials::Forbid`].
    /// - [`Error::Tokenize`]: the rules of a `tokenizer.json` refuse the text. Bundled encodings and rank files accept every text.
    ///
    /// # Cost
    /// O(n) in the length of any text for bundled encodings, rank files and files with [`Backend::BytePair`]. docs/benchmarks.md has
    /// measurements. Each thread that encodes keeps a cache of at most 5 MiB.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        advise_huge_pages(ids.spare_capacity_mut());
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of `text` to `out`. After an error `out` is unchanged. `u16` ids take half the memory, for tokenizers with at most
    /// 65536 ids.
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

    /// Encodes each text, in parallel on rayon's threads. The result does not depend on their number.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), for the first text that fails.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        let results: Vec<Result<Vec<u32>>> = texts.par_iter().map(|text| self.encode(text.as_ref())).collect();
        results.into_iter().collect()
    }

    /// Encodes `text`, and returns the ids and the byte range of each in `text`.
    ///
    /// Ranges may cut a character: `沈` in cl100k is two tokens. They follow each other without gaps. If a `tokenizer.json` normalizes
    /// the text, they are the offsets that `tokenizers` reports.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        self.specials.refuse(text, 0)?;
        self.engine.encode_with_offsets(text, &self.specials)
    }

    /// Decodes `ids` to text. Bytes that are not UTF-8 (half a character) become U+FFFD. Padding ([`NO_TOKEN`](crate::NO_TOKEN)) has no
    /// text.
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// Decodes `ids` to exactly the bytes of the encoded text. Padding ([`NO_TOKEN`](crate::NO_TOKEN)) has no bytes.
    ///
    /// A `tokenizer.json` that is not byte-level may normalize text. Then these are the bytes that its decoder returns.
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        self.engine.decode_bytes(ids)
    }

    /// The bytes of the token with this id, or `None` if there is none. They need not be UTF-8.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.engine.token_bytes(id)
    }

    /// The id of the token with exactly these bytes, special tokens included.
    pub fn token_to_id(&self, token: impl AsRef<[u8]>) -> Option<u32> {
        self.engine.token_to_id(token.as_ref())
    }

    /// Text and id of every special token, sorted by id.
    pub fn special_ids(&self) -> &[(String, u32)] {
        self.engine.special_ids()
    }

    /// Number of rows that a table needs for all ids, special tokens included (largest id + 1): 100277 for cl100k. It equals tiktoken's
    /// `n_vocab`. Use it as the table's `vocab_size`.
    pub fn vocab_size(&self) -> usize {
        self.engine.rows()
    }

    /// Number of rows that a table needs for all ordinary tokens (largest id + 1): 100256 for cl100k.
    pub fn ordinary_vocab_size(&self) -> usize {
        self.engine.ordinary_rows()
    }

    /// The ids below `rows` without a token: gaps between ids, and ids from [`vocab_size`](Self::vocab_size) on. Mask them in a model's
    /// logits before sampling.
    ///
    /// # Cost
    /// One look-up per id.
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

    /// Whether every token stands for bytes of the text. Then the decoded bytes of parts of a sequence, joined, are the decoded bytes of
    /// the whole.
    pub fn is_byte_level(&self) -> bool {
        self.engine.is_byte_level()
    }

    /// A number that identifies the tokenizer. Tokenizers with equal fingerprints give the same ids for a text, and the same text for
    /// ids.
    ///
    /// It covers the vocabulary, the special tokens and the rules of splitting and decoding. It does not cover [`Specials`], which the
    /// caller chooses. It is the same on every machine, and does not depend on the white space of a JSON file.
    pub fn fingerprint(&self) -> u64 {
        self.engine.fingerprint()
    }

    /// A function that returns a token's text for error messages, for `tallow::TokenEmbedding::with_token_names`.
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

    /// Name of the rule for special tokens, as stored in files.
    pub(crate) fn rule(&self) -> &'static str {
        self.specials.name()
    }
}
