//! Ranks ⇄ a Hugging Face `tokenizer.json` that gives the same ids.
//!
//! Byte-pair encoding in that file is a list of merges, pairs of tokens. The tables have one pair per token. A piece that is a token is
//! not merged (`ignore_merges`), as in tiktoken. Special tokens are in the vocabulary, too, because `tokenizers` would otherwise
//! renumber those that follow a gap in the ids.

use std::collections::HashSet;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::bpe::split::Pattern;
use super::bpe::tables::Tables;
use super::byte_level;
use super::ranks::{Ranks, check_specials};

const DECODER: &str = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}"#;

/// Writes the file. The same ranks give the same bytes.
pub(super) fn write(ranks: &Ranks) -> Result<String, String> {
    let Ranks { bpe, specials, .. } = ranks;
    let tables = &*bpe.tables;
    check_specials(tables, specials)?;
    for (text, _) in specials {
        // An ordinary piece of text with these bytes would have the same string as the special token.
        let bytes = byte_level::bytes(text).filter(|bytes| bytes != text.as_bytes());
        if let Some(bytes) = bytes.filter(|bytes| std::str::from_utf8(bytes).is_ok() || tables.id(bytes).is_some()) {
            let bytes = String::from_utf8_lossy(&bytes).into_owned();
            return Err(format!(
                "a tokenizer.json cannot tell the special token {text:?} from {bytes:?}: save as .tiktoken"
            ));
        }
    }
    let quoted = |text: &str| Value::from(text).to_string();
    let spelled = |id: u32| Some(quoted(&byte_level::spelled(tables.bytes(id)?)));
    let ids = || (0..tables.rows() as u32).into_par_iter();
    let added: Vec<String> = specials
        .iter()
        .map(|(text, id)| {
            let flags = r#""single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true"#;
            format!(r#"{{"id":{id},"content":{},{flags}}}"#, quoted(text))
        })
        .collect();
    let mut tokens: Vec<(u32, String)> = ids().filter_map(|id| Some((id, spelled(id)?))).collect();
    tokens.extend(specials.iter().map(|(text, id)| (*id, quoted(text))));
    tokens.sort_by_key(|(id, _)| *id);
    let tokens: Vec<String> = tokens.iter().map(|(id, text)| format!("{text}:{id}")).collect();
    let mut merges: Vec<(u32, [u32; 2])> = tables.joins().map(|(pair, id)| (id, pair)).collect();
    merges.sort_unstable();
    let merge = |(_, [left, right]): &(u32, [u32; 2])| Some(format!("[{},{}]", spelled(*left)?, spelled(*right)?));
    let merges: Vec<String> = merges.par_iter().filter_map(merge).collect();
    Ok(format!(
        r#"{{
"version":"1.0",
"truncation":null,
"padding":null,
"added_tokens":[
{}
],
"normalizer":null,
"pre_tokenizer":{{"type":"Sequence","pretokenizers":[
{{"type":"Split","pattern":{{"Regex":{}}},"behavior":"Isolated","invert":false}},
{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}}
]}},
"post_processor":null,
"decoder":{DECODER},
"model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"ignore_merges":true,"vocab":{{
{}
}},"merges":[
{}
]}}
}}
"#,
        added.join(",\n"),
        quoted(&bpe.pattern.regex()),
        tokens.join(",\n"),
        merges.join(",\n"),
    ))
}

/// The ranks for which [`write`] makes this JSON, if there are any. To be certain, the ranks are written again and compared.
/// Truncation, padding and the post-processor may differ, because they are ignored in every `tokenizer.json`.
pub(super) fn read(path: &Path, json: &Value) -> Option<Ranks> {
    let model = &json["model"];
    let regex = json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str()?;
    let pattern = Pattern::ALL.into_iter().find(|pattern| pattern.regex() == regex)?;
    // Most other files already differ here, before anything large is built.
    if json["normalizer"] != Value::Null || serde_json::from_str::<Value>(DECODER).ok()? != json["decoder"] {
        return None;
    }
    let (tokens, merges) = (model["vocab"].as_object()?, model["merges"].as_array()?);
    if model["type"] != "BPE" || model["ignore_merges"] != true || merges.len() >= tokens.len() {
        return None;
    }
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    let special = |token: &Value| Some((token["content"].as_str()?.to_string(), id(&token["id"])?));
    let specials: Vec<_> = json["added_tokens"].as_array()?.iter().map(special).collect::<Option<_>>()?;
    let texts: HashSet<&str> = specials.iter().map(|(text, _)| text.as_str()).collect();
    if texts.iter().any(|text| !tokens.contains_key(*text)) {
        return None;
    }
    let ordinary = tokens.iter().filter(|(text, _)| !texts.contains(text.as_str()));
    let ordinary = ordinary.map(|(text, value)| Some((id(value)?, byte_level::bytes(text)?)));
    let ordinary: Vec<_> = ordinary.collect::<Option<_>>()?;
    let ordinary: Vec<_> = ordinary.iter().map(|(id, bytes)| (*id, bytes.as_slice())).collect();
    let ranks = Ranks::of(path, Tables::build(&ordinary).ok()?, Some(pattern), Some(specials)).ok()?;

    let written: Value = serde_json::from_str(&write(&ranks).ok()?).ok()?;
    let (json, written) = (json.as_object()?, written.as_object()?);
    let mut keys = json.keys().chain(written.keys()).filter(|key| !super::WITHOUT_EFFECT.contains(&key.as_str()));
    keys.all(|key| json.get(key) == written.get(key)).then_some(ranks)
}
