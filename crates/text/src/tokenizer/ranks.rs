//! The engine for tiktoken encodings: a split pattern, ranks that drive the merging, special tokens.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use bpe_openai::byte_pair_encoding::BytePairEncoding;

use super::engine::Engine;
use super::merge::merge;
use super::rank_json;
use super::specials::SpecialTokens;
use super::split::{self, Splitter};
use super::vocab::Vocab;
use crate::NO_TOKEN;
use crate::support::Fingerprint;

pub(super) struct Ranks {
    name: String,
    pub(super) vocab: Vocab,
    /// Text and id of every special token, by id.
    pub(super) specials: Vec<(String, u32)>,
    fingerprint: u64,
    pub(super) pattern: &'static str,
    splitter: Splitter,
    /// Linear-time merging, where this vocabulary is the bundled one.
    linear: Option<&'static BytePairEncoding>,
}

/// What a rank file does not say about itself, told from its number of ranks.
struct Known {
    name: &'static str,
    ranks: usize,
    pattern: &'static str,
    specials: &'static [(&'static str, u32)],
}

const KNOWN: [Known; 4] = [
    Known {
        name: "cl100k_base",
        ranks: 100_256,
        pattern: split::CL100K,
        specials: &[
            ("<|endoftext|>", 100_257),
            ("<|fim_prefix|>", 100_258),
            ("<|fim_middle|>", 100_259),
            ("<|fim_suffix|>", 100_260),
            ("<|endofprompt|>", 100_276),
        ],
    },
    Known {
        name: "o200k_base",
        ranks: 199_998,
        pattern: split::O200K,
        specials: &[("<|endoftext|>", 199_999), ("<|endofprompt|>", 200_018)],
    },
    Known { name: "r50k_base", ranks: 50_256, pattern: split::GPT2, specials: &[("<|endoftext|>", 50_256)] },
    Known { name: "p50k_base", ranks: 50_280, pattern: split::GPT2, specials: &[("<|endoftext|>", 50_256)] },
];

static CL100K: LazyLock<Arc<Ranks>> = LazyLock::new(|| {
    let known = &KNOWN[0];
    let bpe = &bpe_openai::cl100k_base().bpe;
    let tokens = (0..bpe.num_tokens() as u32).map(|id| (id, bpe.token_bytes(id)));
    let vocab = Vocab::new(tokens).expect("the bundled vocabulary is sound");
    Arc::new(Ranks::new(known.name.to_string(), vocab, known.pattern, owned(known.specials), Some(bpe)))
});

fn owned(specials: &[(&str, u32)]) -> Vec<(String, u32)> {
    specials.iter().map(|(text, id)| (text.to_string(), *id)).collect()
}

/// The published encoding that has so many ranks, unless the vocabulary is another one all the same: not cl100k's tokens, or a
/// token where a special one should be.
fn known(vocab: &Vocab) -> Option<&'static Known> {
    let free = |(text, id): &(&str, u32)| vocab.bytes(*id).is_none() && vocab.id(text.as_bytes()).is_none();
    let known = KNOWN.iter().find(|known| known.ranks == vocab.len() && known.specials.iter().all(free))?;
    (known.pattern != split::CL100K || is_cl100k(vocab)).then_some(known)
}

fn is_cl100k(vocab: &Vocab) -> bool {
    let bundled = &Ranks::cl100k().vocab;
    (0..vocab.rows().max(bundled.rows()) as u32).all(|id| vocab.bytes(id) == bundled.bytes(id))
}

/// What is wrong with special tokens from a file or for one. Their ids are bounded as ranks are: a stranger must not decide how
/// large a table is.
pub(super) fn check_specials(vocab: &Vocab, specials: &[(String, u32)]) -> Result<(), String> {
    let largest = (vocab.len() + specials.len()) * 2 + 1024;
    let (mut ids, mut texts) = (HashSet::new(), HashSet::new());
    for (text, id) in specials {
        if text.is_empty() {
            return Err(format!("the special token {id} has no text"));
        }
        if let Some(rank) = vocab.id(text.as_bytes()) {
            return Err(format!("the special token {text:?} is an ordinary token, too: {rank}"));
        }
        if vocab.bytes(*id).is_some() {
            return Err(format!("the id {id} of the special token {text:?} is that of an ordinary token"));
        }
        if *id as usize > largest {
            return Err(format!("the id {id} of {text:?} is above {largest}, the largest accepted for so few tokens"));
        }
        if !ids.insert(id) || !texts.insert(text) {
            return Err(format!("the special token {text:?}, {id}, stands twice"));
        }
    }
    Ok(())
}

impl Ranks {
    /// The bundled cl100k, built once a process.
    pub(super) fn cl100k() -> Arc<Ranks> {
        CL100K.clone()
    }

    /// The encoding of a vocabulary from a file. What is not given is told from the number of ranks, as tiktoken's rank files
    /// leave it to their reader.
    pub(super) fn of(
        path: &Path,
        vocab: Vocab,
        pattern: Option<&'static str>,
        specials: Option<Vec<(String, u32)>>,
    ) -> Result<Self, String> {
        if let Some(byte) = (0..=255u8).find(|byte| vocab.id(&[*byte]).is_none()) {
            return Err(format!("no token for the single byte 0x{byte:02X}: some texts would have no ids"));
        }
        let known = known(&vocab);
        let told = known.map_or(split::CL100K, |known| known.pattern);
        let pattern = pattern.unwrap_or(told);
        let name = known.filter(|known| known.pattern == pattern).map(|known| known.name.to_string());
        let name = name.unwrap_or_else(|| super::name_of(path));
        let mut specials = specials.unwrap_or_else(|| owned(known.map_or(&[], |known| known.specials)));
        specials.sort_by_key(|(_, id)| *id);
        let linear = Ranks::cl100k().linear.filter(|_| is_cl100k(&vocab));
        Ok(Ranks::new(name, vocab, pattern, specials, linear))
    }

    fn new(
        name: String,
        vocab: Vocab,
        pattern: &'static str,
        specials: Vec<(String, u32)>,
        linear: Option<&'static BytePairEncoding>,
    ) -> Self {
        let mut fingerprint = Fingerprint::new("ranks");
        for id in 0..vocab.rows() as u32 {
            fingerprint.add(vocab.bytes(id).unwrap_or_default());
        }
        fingerprint.add(pattern.as_bytes());
        for (token, id) in &specials {
            fingerprint.add(token.as_bytes());
            fingerprint.add(&id.to_le_bytes());
        }
        let fingerprint = fingerprint.finish();
        Ranks { name, vocab, specials, fingerprint, pattern, splitter: Splitter::new(pattern), linear }
    }

    /// Whether the number of ranks tells the split pattern.
    pub(super) fn pattern_is_told(&self) -> bool {
        known(&self.vocab).map_or(split::CL100K, |known| known.pattern) == self.pattern
    }

    /// Calls `each(end, ids)` for every piece of ordinary text: where it ends and its ids, until told to stop.
    pub(super) fn pieces(&self, text: &str, mut each: impl FnMut(usize, &[u32]) -> ControlFlow<()>) {
        let mut ids = Vec::new();
        self.splitter.for_each(text, |start, end| {
            ids.clear();
            self.piece(&text.as_bytes()[start..end], &mut ids);
            each(end, &ids).is_continue()
        });
    }

    /// [`Splitter::cuts`]
    pub(super) fn cuts(&self, around: [u8; 3]) -> bool {
        self.splitter.cuts(around)
    }

    /// Appends the ids of ordinary text.
    pub(super) fn encode_ordinary(&self, text: &str, out: &mut Vec<u32>) {
        self.splitter.for_each(text, |start, end| {
            self.piece(&text.as_bytes()[start..end], out);
            true
        });
    }

    fn piece(&self, piece: &[u8], out: &mut Vec<u32>) {
        if let Some(id) = self.vocab.id(piece) {
            return out.push(id);
        }
        match self.linear {
            Some(bpe) => out.extend(bpe.encode_via_backtracking(piece)),
            None => merge(&self.vocab, piece, out),
        }
    }
}

impl Engine for Ranks {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn special_ids(&self) -> &[(String, u32)] {
        &self.specials
    }

    fn rows(&self) -> usize {
        let specials = self.specials.iter().map(|(_, id)| *id as usize + 1).max();
        self.vocab.rows().max(specials.unwrap_or(0))
    }

    fn ordinary_rows(&self) -> usize {
        self.vocab.rows()
    }

    fn is_byte_level(&self) -> bool {
        true
    }

    fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let special = || self.specials.binary_search_by_key(&id, |(_, id)| *id).ok();
        let special = || special().map(|index| self.specials[index].0.as_bytes());
        self.vocab.bytes(id).or_else(special).map(Cow::Borrowed)
    }

    fn token_to_id(&self, token: &[u8]) -> Option<u32> {
        let special = || self.specials.iter().find(|(text, _)| text.as_bytes() == token).map(|(_, id)| *id);
        self.vocab.id(token).or_else(special)
    }

    fn encode_into(&self, text: &str, specials: &SpecialTokens, out: &mut Vec<u32>) -> crate::Result<()> {
        let mut start = 0;
        for (range, id) in specials.find(text) {
            self.encode_ordinary(&text[start..range.start], out);
            out.push(id);
            start = range.end;
        }
        self.encode_ordinary(&text[start..], out);
        Ok(())
    }

    fn encode_with_offsets(
        &self,
        text: &str,
        specials: &SpecialTokens,
    ) -> crate::Result<(Vec<u32>, Vec<Range<usize>>)> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, specials, &mut ids)?;
        let mut start = 0;
        let offsets = ids.iter().map(|id| {
            let end = start + self.token_bytes(*id).map_or(0, |bytes| bytes.len());
            std::mem::replace(&mut start, end)..end
        });
        let offsets = offsets.collect();
        Ok((ids, offsets))
    }

    fn decode_bytes(&self, ids: &[u32]) -> crate::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for (position, id) in ids.iter().enumerate().filter(|(_, id)| **id != NO_TOKEN) {
            bytes.extend_from_slice(&self.token_bytes(*id).ok_or_else(|| self.unknown(*id, position))?);
        }
        Ok(bytes)
    }

    /// New tokens get the first ids that are free.
    fn with_more(self: Arc<Self>, new: &[&str], _found: &[&str]) -> crate::Result<Arc<dyn Engine>> {
        if new.is_empty() {
            return Ok(self);
        }
        let mut specials = self.specials.clone();
        specials.extend(new.iter().map(|token| token.to_string()).zip(self.rows() as u32..));
        Ok(Arc::new(Ranks::new(self.name.clone(), self.vocab.clone(), self.pattern, specials, self.linear)))
    }

    fn by_pieces(&self) -> Option<&Ranks> {
        Some(self)
    }

    fn to_json(&self) -> Result<Cow<'_, [u8]>, String> {
        Ok(Cow::Owned(rank_json::write(self)?.into_bytes()))
    }
}
