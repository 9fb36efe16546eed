//! The engine for any Hugging Face `tokenizer.json`, based on the crate `tokenizers`.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};
use tokenizers::tokenizer::pre_tokenizer::OffsetType;
use tokenizers::{AddedToken, Encoding, OffsetReferential, Tokenizer};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::Backend;
use super::bpe::Bpe;
use super::engine::Engine;
use super::specials::{SpecialTokens, Specials};
use super::{WITHOUT_EFFECT, byte_level, known};
use crate::support::Fingerprint;
use crate::{Error, NO_TOKEN};

pub(super) struct File {
    name: String,
    /// The file's content, to save it unchanged.
    json: Vec<u8>,
    /// The parts of the file that are not used here.
    without_effect: Map<String, Value>,
    /// Text and id of every special token.
    specials: Vec<(String, u32)>,
    fingerprint: u64,
    /// The largest id + 1 among all tokens, and among ordinary ones.
    rows: usize,
    ordinary_rows: usize,
    /// Reads the text of a special token as text.
    plain: Tokenizer,
    /// Reads it as the token. Made at its first use.
    with_specials: OnceLock<Tokenizer>,
    /// Reads only tokens of `Tokenizer::add_tokens` as tokens.
    with_added: Option<Tokenizer>,
    alphabet: Alphabet,
    /// Our own encoder for the text between added tokens, if it fits this file.
    bpe: Option<Bpe>,
    /// Finds every added token, under any rule.
    added: Option<AhoCorasick>,
}

/// Number of earlier ids that are kept for decoders whose text depends on neighbors.
const NEIGHBORS: usize = 8;

/// How the strings of a vocabulary encode bytes.
enum Alphabet {
    /// GPT-2's: every byte is one printable character.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0xNN>` a byte, and all other text is itself.
    ByteFallback,
    /// Each string is itself.
    Text,
}

impl File {
    /// Reads a file. `json` is its content, and `value` the same content parsed.
    pub(super) fn new(name: String, json: &[u8], mut value: Value) -> Result<Self, String> {
        check_charsmaps(&value)?;
        let mut plain = contained(|| Tokenizer::from_bytes(json))?;
        // Truncation and padding are for single requests. A corpus is encoded whole.
        plain.with_truncation(None).map_err(|e| e.to_string())?;
        plain.with_padding(None);
        plain.set_encode_special_tokens(true);
        // Unigram has one locked cache for all threads, which is turned off. (BPE has one per thread.)
        if matches!(plain.get_model(), tokenizers::ModelWrapper::Unigram(_)) {
            let mut model = plain.get_model().clone();
            model.resize_cache(0);
            plain.with_model(model);
        }

        let bpe = known::encoder(&value);
        let mut without_effect = Map::new();
        if let Some(object) = value.as_object_mut() {
            without_effect.extend(WITHOUT_EFFECT.iter().filter_map(|key| object.remove_entry(*key)));
        }
        let mut fingerprint = Fingerprint::new("tokenizer.json");
        fingerprint.add_json(&value);

        let added = plain.get_added_tokens_decoder();
        let special = |id: u32| added.get(&id).is_some_and(|token| token.special);
        let vocab = plain.get_vocab(true);
        let rows = |ids: &mut dyn Iterator<Item = u32>| ids.max().map_or(0, |id| id as usize + 1);
        let mut specials: Vec<_> =
            added.iter().filter(|(_, t)| t.special).map(|(id, token)| (token.content.clone(), *id)).collect();
        specials.sort_by_key(|(_, id)| *id);
        let contents: Vec<&str> = added.values().map(|token| token.content.as_str()).collect();
        let finder = AhoCorasick::new(contents).map_err(|e| e.to_string())?;
        Ok(File {
            name,
            json: json.to_vec(),
            without_effect,
            fingerprint: fingerprint.finish(),
            rows: rows(&mut vocab.values().copied()),
            ordinary_rows: rows(&mut vocab.values().copied().filter(|id| !special(*id))),
            specials,
            alphabet: alphabet(&value["decoder"]),
            with_specials: OnceLock::new(),
            with_added: None,
            bpe,
            added: (!added.is_empty()).then_some(finder),
            plain,
        })
    }

    /// A copy with the `new` special tokens. `found` are the tokens, new or earlier, that count as added. The copy equals the result
    /// of saving and reading it, truncation and padding included.
    fn grown(&self, new: &[&str], found: &[&str]) -> Result<Self, String> {
        let mut plain = self.plain.clone();
        contained(|| plain.add_special_tokens(new.iter().map(|token| AddedToken::from(*token, true))))?;
        let json = contained(|| plain.to_string(false))?;
        let mut value: Value = serde_json::from_str(&json).map_err(|e| e.to_string())?;
        if let Some(object) = value.as_object_mut() {
            object.extend(self.without_effect.clone());
        }
        let json = value.to_string();
        let mut grown = File::new(self.name.clone(), json.as_bytes(), value.clone())?;
        // Added tokens that are not special are found in text under every rule, with the same ids. So `found` tokens are marked as
        // not special. For those that the file marks as special, this is possible only in its JSON.
        let earlier = self.with_added.as_ref().map(|tokenizer| tokenizer.get_added_tokens_decoder());
        let earlier =
            earlier.iter().flatten().filter(|(_, token)| !token.special).map(|(_, token)| token.content.as_str());
        let added: Vec<&str> = earlier.chain(found.iter().copied()).collect();
        for token in value["added_tokens"].as_array_mut().into_iter().flatten() {
            if token["content"].as_str().is_some_and(|content| added.contains(&content)) {
                token["special"] = Value::Bool(false);
            }
        }
        let mut with_added = contained(|| Tokenizer::from_bytes(value.to_string()))?;
        with_added.with_truncation(None).map_err(|e| e.to_string())?;
        with_added.with_padding(None);
        with_added.set_encode_special_tokens(true);
        grown.with_added = Some(with_added);
        if new.is_empty() {
            // No new tokens: the original file and its fingerprint stay valid, though `tokenizers` may write them differently.
            (grown.fingerprint, grown.json) = (self.fingerprint, self.json.clone());
        }
        Ok(grown)
    }

    /// The tokenizer for a rule.
    fn tokenizer(&self, specials: Specials) -> &Tokenizer {
        match specials {
            Specials::Added => self.with_added.as_ref().unwrap_or(&self.plain),
            Specials::Text | Specials::Forbid => &self.plain,
            Specials::Allow => self.with_specials.get_or_init(|| {
                let mut tokenizer = self.plain.clone();
                tokenizer.set_encode_special_tokens(false);
                tokenizer
            }),
        }
    }

    fn encode(&self, text: &str, specials: Specials) -> crate::Result<Encoding> {
        let tokenizer = self.tokenizer(specials);
        contained(|| tokenizer.encode(text, false)).map_err(|reason| self.refused(reason))
    }

    /// Appends the ids of `text` with our own encoder. If needed, `tokenizers` first cuts it at added tokens and normalizes it.
    fn encode_by(&self, bpe: &Bpe, text: &str, specials: Specials, out: &mut Vec<u32>) -> crate::Result<()> {
        let tokenizer = self.tokenizer(specials);
        let normal = tokenizer.get_normalizer().is_none() || is_nfc_quick(text.chars()) == IsNormalized::Yes;
        if normal && self.added.as_ref().is_none_or(|added| !added.is_match(text)) {
            bpe.encode(text, out);
            return Ok(());
        }
        let added = tokenizer.get_added_vocabulary();
        let cut = contained(|| Ok(added.extract_and_normalize(tokenizer.get_normalizer(), text)));
        let cut = cut.map_err(|reason| self.refused(reason))?;
        for (part, _, tokens) in cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            match tokens {
                Some(tokens) => out.extend(tokens.iter().map(|token| token.id)),
                None => bpe.encode(part, out),
            }
        }
        Ok(())
    }

    /// Byte ranges of the tokens in `text`, if `text` is their bytes joined.
    fn spelled(&self, text: &str, ids: &[u32]) -> Option<Vec<Range<usize>>> {
        let mut start = 0;
        let ranges = ids.iter().map(|id| {
            let bytes = self.token_bytes(*id).unwrap_or_default();
            let range = start..start + bytes.len();
            start = range.end;
            text.as_bytes()[range.start..].starts_with(&bytes).then_some(range)
        });
        ranges.collect()
    }

    fn refused(&self, reason: String) -> Error {
        Error::Tokenize { tokenizer: self.name.clone(), reason }
    }
}

impl Engine for File {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn backend(&self) -> Backend {
        if self.bpe.is_some() { Backend::BytePair } else { Backend::Tokenizers }
    }

    fn special_ids(&self) -> &[(String, u32)] {
        &self.specials
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn ordinary_rows(&self) -> usize {
        self.ordinary_rows
    }

    fn is_byte_level(&self) -> bool {
        matches!(self.alphabet, Alphabet::ByteLevel)
    }

    fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let token = self.plain.id_to_token(id)?;
        let added = self.plain.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        let bytes = match self.alphabet {
            _ if added => token.into_bytes(),
            Alphabet::ByteLevel => byte_level::bytes(&token).unwrap_or_else(|| token.into_bytes()),
            Alphabet::ByteFallback => match token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')) {
                Some(hex) => u8::from_str_radix(hex, 16).map_or(token.clone().into_bytes(), |byte| vec![byte]),
                None => token.replace('▁', " ").into_bytes(),
            },
            Alphabet::Text => token.into_bytes(),
        };
        Some(Cow::Owned(bytes))
    }

    fn token_to_id(&self, token: &[u8]) -> Option<u32> {
        let text = std::str::from_utf8(token).ok();
        let as_it_is = text.and_then(|text| self.plain.token_to_id(text));
        let as_bytes = match self.alphabet {
            Alphabet::ByteLevel => self.plain.token_to_id(&byte_level::spelled(token)),
            Alphabet::ByteFallback if token.len() == 1 && text.is_none() => {
                self.plain.token_to_id(&format!("<0x{:02X}>", token[0]))
            }
            Alphabet::ByteFallback => text.and_then(|text| self.plain.token_to_id(&text.replace(' ', "▁"))),
            Alphabet::Text => None,
        };
        as_bytes.filter(|id| self.token_bytes(*id).as_deref() == Some(token)).or(as_it_is)
    }

    fn encode_into(&self, text: &str, specials: &SpecialTokens, out: &mut Vec<u32>) -> crate::Result<()> {
        if let Some(bpe) = &self.bpe {
            return self.encode_by(bpe, text, specials.rule, out);
        }
        out.extend_from_slice(self.encode(text, specials.rule)?.get_ids());
        Ok(())
    }

    fn encode_with_offsets(
        &self,
        text: &str,
        specials: &SpecialTokens,
    ) -> crate::Result<(Vec<u32>, Vec<Range<usize>>)> {
        if let Some(bpe) = &self.bpe {
            let mut ids = Vec::new();
            self.encode_by(bpe, text, specials.rule, &mut ids)?;
            if let Some(offsets) = self.spelled(text, &ids) {
                return Ok((ids, offsets));
            }
        }
        let encoding = self.encode(text, specials.rule)?;
        let ids = encoding.get_ids().to_vec();
        let reported = || encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        let offsets = self.spelled(text, &ids).unwrap_or_else(reported);
        Ok((ids, offsets))
    }

    /// Exact for byte-level vocabularies, else the result of the file's decoder.
    fn decode_bytes(&self, ids: &[u32]) -> crate::Result<Vec<u8>> {
        let unknown = |id: &u32| *id != NO_TOKEN && self.plain.id_to_token(*id).is_none();
        if let Some(position) = ids.iter().position(unknown) {
            return Err(self.unknown(ids[position], position));
        }
        let ids: Vec<u32> = ids.iter().copied().filter(|id| *id != NO_TOKEN).collect();
        match self.alphabet {
            Alphabet::ByteLevel => {
                Ok(ids.iter().flat_map(|id| self.token_bytes(*id).unwrap_or_default().into_owned()).collect())
            }
            _ => match contained(|| self.plain.decode(&ids, false)) {
                Ok(text) => Ok(text.into_bytes()),
                Err(reason) => Err(self.refused(reason)),
            },
        }
    }

    fn to_json(&self) -> Result<Cow<'_, [u8]>, String> {
        Ok(Cow::Borrowed(&self.json))
    }

    fn decode_next(&self, before: &mut Vec<u32>, id: u32, position: usize, out: &mut Vec<u8>) -> crate::Result<()> {
        let bytes = self.token_bytes(id).ok_or_else(|| self.unknown(id, position))?;
        match self.alphabet {
            Alphabet::ByteLevel => out.extend_from_slice(&bytes),
            // Only the first token may lose its leading space. A token that is a part of a character has none.
            Alphabet::ByteFallback if before.is_empty() && std::str::from_utf8(&bytes).is_ok() => {
                out.extend(self.decode_bytes(&[id])?);
                before.push(id);
            }
            Alphabet::ByteFallback => {
                // The decoder replaces `▁` with a space in all tokens, added ones included.
                match std::str::from_utf8(&bytes) {
                    Ok(text) => out.extend(text.replace('▁', " ").bytes()),
                    Err(_) => out.extend_from_slice(&bytes),
                }
                *before = vec![id];
            }
            Alphabet::Text => {
                let given = self.decode_bytes(before)?;
                let more = self.decode_bytes(&[before.as_slice(), &[id]].concat())?;
                let new = more.strip_prefix(given.as_slice()).ok_or_else(|| {
                    self.refused(format!(
                        "with id {id} at position {position} its decoder changes text that was returned before: decode these ids together"
                    ))
                })?;
                out.extend_from_slice(new);
                before.push(id);
                if before.len() == 2 * NEIGHBORS {
                    before.drain(..NEIGHBORS);
                }
            }
        }
        Ok(())
    }

    fn with_more(self: Arc<Self>, new: &[&str], found: &[&str]) -> crate::Result<Arc<dyn Engine>> {
        Ok(Arc::new(self.grown(new, found).map_err(|reason| self.refused(reason))?))
    }
}

/// Turns panics of `tokenizers`, which some files cause, into errors.
fn contained<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(format!("the tokenizers crate panicked on this file: {}", text.lines().next().unwrap_or_default()))
        }
    }
}

/// Checks the table sizes of precompiled charsmaps, because `tokenizers` allocates them unchecked.
fn check_charsmaps(value: &Value) -> Result<(), String> {
    let parts: Vec<&Value> = match value {
        Value::Object(map) => map.values().collect(),
        Value::Array(items) => items.iter().collect(),
        _ => return Ok(()),
    };
    if value["type"] == "Precompiled" {
        let bytes = value["precompiled_charsmap"]
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .unwrap_or_default();
        let size = bytes.first_chunk().map_or(usize::MAX, |size| u32::from_le_bytes(*size) as usize);
        if size > bytes.len().saturating_sub(4) {
            return Err("its precompiled charsmap is torn".to_string());
        }
    }
    parts.into_iter().try_for_each(check_charsmaps)
}

fn alphabet(decoder: &Value) -> Alphabet {
    let is = |value: &Value, kind: &str| value["type"] == kind;
    let parts = decoder["decoders"].as_array().cloned().unwrap_or_else(|| vec![decoder.clone()]);
    if parts.iter().any(|part| is(part, "ByteLevel")) {
        Alphabet::ByteLevel
    } else if parts.iter().any(|part| is(part, "ByteFallback") || is(part, "Metaspace")) {
        Alphabet::ByteFallback
    } else {
        Alphabet::Text
    }
}
