//! A `tokenizer.json` of a kind that tallow's own encoder takes, against the crate `tokenizers`.

use std::path::Path;

use serde_json::{Value, json};
use tallow_text::{Backend, Specials, Tokenizer};

use crate::support::{Lcg, PIECES, rank_file};

const LLAMA: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn texts() -> Vec<String> {
    let mut rng = Lcg(31);
    let more = [
        "<|user|>",
        "<tool>",
        "  <mask> ",
        "<|endoftext|>",
        "e\u{301}",
        "\u{212B}",
        "\u{1E9B}\u{323}",
        "각",
        "\u{1100}\u{1161}",
    ];
    let pieces: Vec<&str> = PIECES.iter().chain(&more).copied().collect();
    let text = |rng: &mut Lcg| (0..25).map(|_| pieces[rng.below(pieces.len() as u64) as usize]).collect();
    let mut texts: Vec<String> = (0..250).map(|_| text(&mut rng)).collect();
    texts.extend((0..40).map(|_| (0..60).map(|_| rng.scalar()).collect()));
    let words = b"abeinorst etaoin shrdlu 12345'SsTt";
    let word = |rng: &mut Lcg| char::from(words[rng.below(words.len() as u64) as usize]);
    texts.extend((0..150).map(|_| (0..120).map(|_| word(&mut rng)).collect()));
    texts.extend(
        ["", "a", "小沈阳江西演唱会邀请了,", "We'LL see: theIR HTTPServer's 12345 files/\r\n\r\n  don't"]
            .map(String::from),
    );
    texts
}

fn split(regex: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
}

/// Writes the file, and compares with what the crate makes of it, under every rule for special tokens.
fn check(path: &Path, json: &Value, name: &str) {
    std::fs::write(path, json.to_string()).unwrap();
    let ours = Tokenizer::from_file(path).unwrap();
    assert_eq!(ours.backend(), Backend::BytePair, "{name}");
    let mut theirs = tokenizers::Tokenizer::from_file(path).unwrap();
    for (specials, skip) in [(Specials::Text, true), (Specials::Allow, false)] {
        theirs.set_encode_special_tokens(skip);
        let ours = ours.clone().with_specials(specials);
        for text in texts() {
            let want = theirs.encode(text.as_str(), false).unwrap();
            assert_eq!(ours.encode(&text).unwrap(), want.get_ids(), "{name} {specials:?} {text:?}");
            let (ids, offsets) = ours.encode_with_offsets(&text).unwrap();
            assert_eq!((ids.as_slice(), offsets.len()), (want.get_ids(), ids.len()), "{name}");
        }
    }
    // A token of one's own, in the file that it is saved as, too.
    let mut grown = ours.clone();
    grown.add_tokens(&["<|user|>"]).unwrap();
    assert_eq!(grown.backend(), Backend::BytePair, "{name}");
    grown.save(path).unwrap();
    let theirs = tokenizers::Tokenizer::from_file(path).unwrap();
    let plain = |text: &str| !text.contains("<|endoftext|>") && !text.contains("<tool>") && !text.contains("<mask>");
    for text in texts().iter().filter(|text| plain(text)) {
        let want = theirs.encode(text.as_str(), false).unwrap();
        assert_eq!(grown.encode(text).unwrap(), want.get_ids(), "{name}, grown: {text:?}");
    }
}

#[test]
fn files_of_known_kinds_have_the_ids_of_the_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let saved = |tokenizer: &Tokenizer| -> Value {
        tokenizer.save(&path).unwrap();
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
    };
    // Llama 3's kind, with more merges than are of use, as its file has them.
    let cl100k = saved(&Tokenizer::cl100k());
    let mut llama = cl100k.clone();
    llama["pre_tokenizer"] = split(LLAMA, "Isolated", false);
    let mut merges: Vec<Value> = Vec::new();
    for merge in llama["model"]["merges"].as_array().unwrap() {
        let [left, right] = [0, 1].map(|side| merge[side].as_str().unwrap());
        if let (Some(last), true) = (left.chars().last(), left.chars().count() == 2) {
            let (first, rest) = (left.trim_end_matches(last), format!("{last}{right}"));
            if llama["model"]["vocab"].get(&rest).is_some() && llama["model"]["vocab"].get(first).is_some() {
                merges.push(json!([first, rest]));
            }
        }
        merges.push(merge.clone());
    }
    assert!(merges.len() > 101_000);
    llama["model"]["merges"] = merges.into();
    check(&path, &llama, "llama 3");

    // Merges as strings, a pattern with matches instead of gaps, pieces that are not taken whole.
    let mut spelled = cl100k.clone();
    spelled["pre_tokenizer"] = split(LLAMA, "Removed", true);
    for merge in spelled["model"]["merges"].as_array_mut().unwrap() {
        *merge = format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()).into();
    }
    spelled["model"]["ignore_merges"] = false.into();
    check(&path, &spelled, "cl100k");

    // Qwen's kind: every digit alone, composed characters, added tokens that are found under every rule.
    let mut qwen = cl100k.clone();
    qwen["pre_tokenizer"] = split(QWEN, "Isolated", false);
    qwen["normalizer"] = json!({"type": "NFC"});
    qwen["model"]["ignore_merges"] = false.into();
    let mut mask = added(100_300, "<mask>", true);
    mask["lstrip"] = true.into();
    mask["normalized"] = true.into();
    let tokens = qwen["added_tokens"].as_array_mut().unwrap();
    tokens.extend([added(100_299, "<tool>", false), mask]);
    check(&path, &qwen, "qwen");

    // GPT-2's own.
    let r50k = tiktoken_rs::r50k_base().unwrap();
    let ranks = folder.path().join("r.tiktoken");
    rank_file(&ranks, 50_256, |id| r50k.decode_bytes(&[id]).ok());
    let mut gpt2 = saved(&Tokenizer::from_file(&ranks).unwrap());
    gpt2["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    gpt2["model"]["ignore_merges"] = false.into();
    gpt2["added_tokens"][0]["normalized"] = true.into();
    check(&path, &gpt2, "gpt2");

    // Other rules: the crate's own encoder.
    let left = |edit: &dyn Fn(&mut Value)| {
        let mut value = gpt2.clone();
        edit(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
        Tokenizer::from_file(&path).unwrap().backend()
    };
    assert_eq!(left(&|_| ()), Backend::BytePair);
    let edits: [&dyn Fn(&mut Value); 6] = [
        &|value| value["model"]["merges"].as_array_mut().unwrap().swap(5, 900),
        &|value| _ = value["model"]["merges"].as_array_mut().unwrap().remove(7),
        &|value| value["pre_tokenizer"]["add_prefix_space"] = true.into(),
        &|value| value["pre_tokenizer"] = split(r"\p{L}+|\P{L}+", "Isolated", false),
        &|value| value["normalizer"] = json!({"type": "Lowercase"}),
        &|value| value["model"]["end_of_word_suffix"] = "</w>".into(),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        assert_eq!(left(edit), Backend::Tokenizers, "{number}");
    }
}
