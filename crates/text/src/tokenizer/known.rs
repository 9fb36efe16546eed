//! Recognizes a `tokenizer.json` that is byte-level byte-pair encoding with a split pattern that `bpe` supports.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use unicode_normalization_alignments::is_nfc;

use super::bpe::Bpe;
use super::bpe::split::Pattern;
use super::bpe::tables::Tables;
use super::byte_level;

/// The encoder for text between added tokens, if its ids equal those that the file defines.
///
/// The file's merges must be those that follow from its tokens and their ids, in the order of ids. Additional merges for a token
/// have no effect, because only one pair of parts is ever joined to a token (see `pairs` in `tables.rs`).
pub(super) fn encoder(json: &Value) -> Option<Bpe> {
    let pattern = pattern(&json["pre_tokenizer"])?;
    let normalizer = &json["normalizer"];
    let model = &json["model"];
    let unset = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value == "" || value == 0.0;
    let plain = ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"];
    if !(normalizer.is_null() || normalizer["type"] == "NFC")
        || model["type"] != "BPE"
        || !plain.iter().all(|key| unset(&model[*key]))
    {
        return None;
    }
    // Such a token would be searched in normalized form, and not by its text.
    let changes = |token: &Value| {
        token["normalized"] != false && token["content"].as_str().is_some_and(|content| !is_nfc(content))
    };
    if !normalizer.is_null() && json["added_tokens"].as_array()?.iter().any(changes) {
        return None;
    }
    let added: HashSet<&str> =
        json["added_tokens"].as_array()?.iter().filter_map(|token| token["content"].as_str()).collect();
    let mut ids: HashMap<&str, u32> = HashMap::new();
    let mut tokens: Vec<(u32, Vec<u8>)> = Vec::new();
    for (token, id) in model["vocab"].as_object()? {
        let id = u32::try_from(id.as_u64()?).ok()?;
        ids.insert(token, id);
        match byte_level::bytes(token) {
            Some(bytes) => tokens.push((id, bytes)),
            // An added token is found in text before encoding.
            None if added.contains(token.as_str()) => {}
            None => return None,
        }
    }
    let mut pairs = HashSet::new();
    let mut last = 0;
    let mut made = HashSet::new();
    for merge in model["merges"].as_array()? {
        let (left, right) = match merge {
            Value::String(pair) => pair.split_once(' ')?,
            Value::Array(pair) => (pair.first()?.as_str()?, pair.get(1)?.as_str()?),
            _ => return None,
        };
        let id = *ids.get(format!("{left}{right}").as_str())?;
        if id < last {
            return None;
        }
        last = id;
        made.insert(id);
        pairs.insert([*ids.get(left)?, *ids.get(right)?]);
    }
    let build = |tokens: &[(u32, Vec<u8>)]| {
        let tokens: Vec<(u32, &[u8])> = tokens.iter().map(|(id, token)| (*id, token.as_slice())).collect();
        Tables::build(&tokens).ok()
    };
    // Without `ignore_merges`, tokens that no merge makes never occur.
    if model["ignore_merges"] != true {
        tokens.retain(|(id, token)| token.len() == 1 || made.contains(id));
    }
    let tables = build(&tokens)?;
    let complete = (0..=255u8).all(|byte| tables.id(&[byte]).is_some());
    let mut joins = tables.joins();
    let same = joins.all(|(pair, id)| pairs.contains(&pair) && made.remove(&id)) && made.is_empty();
    drop(joins);
    (complete && same).then(|| Bpe::new(tables, pattern))
}

/// The split pattern of a pre-tokenizer that first splits by a pattern and then maps bytes to characters.
fn pattern(pre_tokenizer: &Value) -> Option<Pattern> {
    let spells = |value: &Value, cuts: bool| {
        value["type"] == "ByteLevel"
            && value["add_prefix_space"] == false
            && value["use_regex"].as_bool().unwrap_or(true) == cuts
    };
    if spells(pre_tokenizer, true) {
        return Some(Pattern::Gpt2);
    }
    let [split, bytes] = pre_tokenizer["pretokenizers"].as_array()?.as_slice() else { return None };
    // The pattern matches all text, so removing the text between matches has no effect.
    let isolated = split["behavior"] == "Isolated" && split["invert"] == false;
    let matches = split["behavior"] == "Removed" && split["invert"] == true;
    let cuts = pre_tokenizer["type"] == "Sequence" && split["type"] == "Split" && (isolated || matches);
    Pattern::spelled(split["pattern"]["Regex"].as_str()?).filter(|_| cuts && spells(bytes, false))
}
