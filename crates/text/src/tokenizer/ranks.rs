//! The engine for tiktoken encodings: a split pattern, ranks for merging, and special tokens.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, LazyLock, OnceLock};

use super::Backend;
use super::bpe::split::Pattern;
use super::bpe::tables::Tables;
use super::bpe::{Bpe, Ids, bundled};
use super::engine::Engine;
use super::rank_json;
use super::specials::SpecialTokens;
use crate::NO_TOKEN;
use crate::support::Fingerprint;

pub(super) struct Ranks {
    name: String,
    pub(super) bpe: Bpe,
    /// Text and id of every special token, sorted by id.
    pub(super) specials: Vec<(String, u32)>,
    fingerprint: OnceLock<u64>,
}

/// A published encoding. A rank file does not hold these facts; its number of ranks identifies it.
#[derive(Clone, Copy)]
struct Known {
    name: &'static str,
    ranks: usize,
    pattern: Pattern,
    specials: &'static [(&'static str, u32)],
}

const KNOWN: [Known; 4] = [
    Known {
        name: "cl100k_base",
        ranks: 100_256,
        pattern: Pattern::Cl100k,
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
        pattern: Pattern::O200k,
        specials: &[("<|endoftext|>", 199_999), ("<|endofprompt|>", 200_018)],
    },
    Known { name: "r50k_base", ranks: 50_256, pattern: Pattern::Gpt2, specials: &[("<|endoftext|>", 50_256)] },
    Known { name: "p50k_base", ranks: 50_280, pattern: Pattern::Gpt2, specials: &[("<|endoftext|>", 50_256)] },
];

const CL100K: Known = KNOWN[0];
#[cfg(feature = "o200k")]
const O200K: Known = KNOWN[1];
/// tiktoken has two names for these ranks.
#[cfg(feature = "gpt2")]
const GPT2: Known = Known { name: "gpt2", ..KNOWN[2] };

fn owned(specials: &[(&str, u32)]) -> Vec<(String, u32)> {
    specials.iter().map(|(text, id)| (text.to_string(), *id)).collect()
}

/// The published encoding with this number of ranks. `None` if the vocabulary differs from it: other tokens than cl100k's, or an
/// ordinary token in place of a special one.
fn known(tables: &Tables) -> Option<&'static Known> {
    let free = |(text, id): &(&str, u32)| tables.bytes(*id).is_none() && tables.id(text.as_bytes()).is_none();
    let known = KNOWN.iter().find(|known| known.ranks == tables.len && known.specials.iter().all(free))?;
    let is_cl100k = || {
        let bundled = &Ranks::cl100k().bpe.tables;
        (&bundled.bytes, &bundled.starts) == (&tables.bytes, &tables.starts)
    };
    (known.pattern != Pattern::Cl100k || is_cl100k()).then_some(known)
}

/// Checks special tokens from a file, or for a file. Ids have the same bound as ranks, so that a hostile file cannot demand a huge
/// table.
pub(super) fn check_specials(tables: &Tables, specials: &[(String, u32)]) -> Result<(), String> {
    let largest = (tables.len + specials.len()) * 2 + 1024;
    let (mut ids, mut texts) = (HashSet::new(), HashSet::new());
    for (text, id) in specials {
        if text.is_empty() {
            return Err(format!("the special token {id} has no text"));
        }
        if let Some(rank) = tables.id(text.as_bytes()) {
            return Err(format!("the special token {text:?} is an ordinary token, too: {rank}"));
        }
        if tables.bytes(*id).is_some() {
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
    /// The bundled cl100k, opened once per process.
    pub(super) fn cl100k() -> Arc<Ranks> {
        static OPEN: LazyLock<Arc<Ranks>> = LazyLock::new(|| Ranks::bundled(&CL100K, bundled::cl100k()));
        OPEN.clone()
    }

    #[cfg(feature = "o200k")]
    pub(super) fn o200k() -> Arc<Ranks> {
        static OPEN: LazyLock<Arc<Ranks>> = LazyLock::new(|| Ranks::bundled(&O200K, bundled::o200k()));
        OPEN.clone()
    }

    #[cfg(feature = "gpt2")]
    pub(super) fn gpt2() -> Arc<Ranks> {
        static OPEN: LazyLock<Arc<Ranks>> = LazyLock::new(|| Ranks::bundled(&GPT2, bundled::gpt2()));
        OPEN.clone()
    }

    fn bundled(known: &Known, tables: Tables) -> Arc<Ranks> {
        Arc::new(Ranks::new(known.name.to_string(), Bpe::new(tables, known.pattern), owned(known.specials)))
    }

    /// The encoding for a vocabulary from a file. The number of ranks decides what is not given, because tiktoken's rank files hold
    /// neither pattern nor special tokens.
    pub(super) fn of(
        path: &Path,
        tables: Tables,
        pattern: Option<Pattern>,
        specials: Option<Vec<(String, u32)>>,
    ) -> Result<Self, String> {
        if let Some(byte) = (0..=255u8).find(|byte| tables.id(&[*byte]).is_none()) {
            return Err(format!("no token for the single byte 0x{byte:02X}: some texts would have no ids"));
        }
        let known = known(&tables);
        let told = known.map_or(Pattern::Cl100k, |known| known.pattern);
        let pattern = pattern.unwrap_or(told);
        let name = known.filter(|known| known.pattern == pattern).map(|known| known.name.to_string());
        let name = name.unwrap_or_else(|| super::name_of(path));
        let mut specials = specials.unwrap_or_else(|| owned(known.map_or(&[], |known| known.specials)));
        specials.sort_by_key(|(_, id)| *id);
        Ok(Ranks::new(name, Bpe::new(tables, pattern), specials))
    }

    fn new(name: String, bpe: Bpe, specials: Vec<(String, u32)>) -> Self {
        Ranks { name, bpe, specials, fingerprint: OnceLock::new() }
    }

    /// Whether the number of ranks identifies the split pattern.
    pub(super) fn pattern_is_told(&self) -> bool {
        known(&self.bpe.tables).map_or(Pattern::Cl100k, |known| known.pattern) == self.bpe.pattern
    }

    /// Appends the ids of `text`, special tokens included, until `out` is full.
    pub(super) fn encode(&self, text: &str, specials: &SpecialTokens, out: &mut impl Ids) {
        let mut start = 0;
        for (range, id) in specials.find(text) {
            self.bpe.encode(&text[start..range.start], out);
            if out.is_full() {
                return;
            }
            out.push(id);
            start = range.end;
        }
        self.bpe.encode(&text[start..], out);
    }
}

impl Engine for Ranks {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| {
            let mut fingerprint = Fingerprint::new("ranks");
            for id in 0..self.bpe.tables.rows() as u32 {
                fingerprint.add(self.bpe.tables.bytes(id).unwrap_or_default());
            }
            fingerprint.add(self.bpe.pattern.without_look_ahead().as_bytes());
            for (token, id) in &self.specials {
                fingerprint.add(token.as_bytes());
                fingerprint.add(&id.to_le_bytes());
            }
            fingerprint.finish()
        })
    }

    fn backend(&self) -> Backend {
        Backend::BytePair
    }

    fn special_ids(&self) -> &[(String, u32)] {
        &self.specials
    }

    fn rows(&self) -> usize {
        let specials = self.specials.iter().map(|(_, id)| *id as usize + 1).max();
        self.bpe.tables.rows().max(specials.unwrap_or(0))
    }

    fn ordinary_rows(&self) -> usize {
        self.bpe.tables.rows()
    }

    fn is_byte_level(&self) -> bool {
        true
    }

    fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let special = || self.specials.binary_search_by_key(&id, |(_, id)| *id).ok();
        let special = || special().map(|index| self.specials[index].0.as_bytes());
        self.bpe.tables.bytes(id).or_else(special).map(Cow::Borrowed)
    }

    fn token_to_id(&self, token: &[u8]) -> Option<u32> {
        let special = || self.specials.iter().find(|(text, _)| text.as_bytes() == token).map(|(_, id)| *id);
        self.bpe.tables.id(token).or_else(special)
    }

    fn encode_into(&self, text: &str, specials: &SpecialTokens, out: &mut Vec<u32>) -> crate::Result<()> {
        self.encode(text, specials, out);
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

    /// New tokens get the ids after the largest one.
    fn with_more(self: Arc<Self>, new: &[&str], _found: &[&str]) -> crate::Result<Arc<dyn Engine>> {
        if new.is_empty() {
            return Ok(self);
        }
        let mut specials = self.specials.clone();
        specials.extend(new.iter().map(|token| token.to_string()).zip(self.rows() as u32..));
        Ok(Arc::new(Ranks::new(self.name.clone(), self.bpe.clone(), specials)))
    }

    fn by_pieces(&self) -> Option<&Ranks> {
        Some(self)
    }

    fn to_json(&self) -> Result<Cow<'_, [u8]>, String> {
        Ok(Cow::Owned(rank_json::write(self)?.into_bytes()))
    }
}
