//! Ids decoded one at a time, against the whole decoded at once, and against std's word on bytes that are not UTF-8.

use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use tallow_text::{Error, NO_TOKEN, Tokenizer};

use crate::support::{Lcg, PIECES, golden, rank_file};

const WORDS: [&str; 12] = [
    "😀",
    "👨‍👩‍👧",
    "小沈阳",
    "ภาษาไทย",
    "e\u{301}",
    "naïve",
    " word",
    "नमस्ते",
    "\u{FFFD}",
    "\n",
    "the fox",
    "<|endoftext|>",
];

fn text(rng: &mut Lcg) -> String {
    let pieces: Vec<&str> = PIECES.iter().chain(&WORDS).copied().collect();
    (0..rng.below(20)).map(|_| pieces[rng.below(pieces.len() as u64) as usize]).collect()
}

/// A tokenizer.json of Llama 2's kind: `▁` for spaces, bytes for what is not in the vocabulary, the first space stripped.
fn llama(folder: &Path) -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyz小é".chars().map(String::from));
    let mut merges = Vec::new();
    for (left, right) in [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁"), ("▁", "w"), ("o", "r")] {
        tokens.push(format!("{left}{right}"));
        merges.push([left, right]);
    }
    tokens.push("▁<PRE>".to_string()); // CodeLlama has such
    let last = tokens.len() as u32 - 1;
    let vocab: serde_json::Map<_, _> = tokens.iter().cloned().zip((0..).map(|id: u32| json!(id))).collect();
    let added = |id: u32| {
        json!({"id": id, "content": tokens[id as usize], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let value = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0), added(1), added(2), added(last)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    });
    let path = folder.join("llama.json");
    std::fs::write(&path, value.to_string()).unwrap();
    Tokenizer::from_file(path).unwrap()
}

fn o200k(folder: &Path) -> Tokenizer {
    let (path, bundled) = (folder.join("o.tiktoken"), bpe_openai::o200k_base());
    rank_file(&path, 199_998, |id| Some(bundled.bpe.token_bytes(id).to_vec()));
    Tokenizer::from_file(path).unwrap()
}

/// Pushes all ids. What was given after each push is a beginning of `whole`, all but the beginning of one character, of
/// which `finish` has the bytes.
fn check(tokenizer: &Tokenizer, ids: &[u32], whole: &[u8]) {
    let lossy = String::from_utf8_lossy(whole);
    let mut decoder = tokenizer.decoder();
    let mut text = String::new();
    for id in ids {
        text += decoder.push(*id).unwrap();
        assert!(lossy.starts_with(&text), "{ids:?}: {text:?} of {lossy:?}");
    }
    match decoder.finish() {
        Ok(()) => assert_eq!(text, lossy, "{ids:?}"),
        Err(Error::HalfCharacter { bytes }) => {
            assert!((1..4).contains(&bytes.len()) && whole.ends_with(&bytes), "{ids:?}: {bytes:?}");
            assert_eq!(text, String::from_utf8_lossy(&whole[..whole.len() - bytes.len()]), "{ids:?}");
            // It is the beginning of a character: std knows of no error in it but its end.
            assert_eq!(std::str::from_utf8(&bytes).unwrap_err().error_len(), None);
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn pushes_joined_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut grown = Tokenizer::from_file(golden("byte_level.json")).unwrap();
    grown.add_tokens(&["<|用户|>"]).unwrap();
    let mut rng = Lcg(31);
    for tokenizer in [Tokenizer::cl100k(), o200k(folder.path()), grown] {
        let name = tokenizer.name().to_string();
        let bytes = |ids: &[u32]| ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap().into_owned()).collect();
        for _ in 0..400 {
            let text = text(&mut rng);
            let ids = tokenizer.encode(&text).unwrap();
            check(&tokenizer, &ids, text.as_bytes());
            // Cut anywhere at both ends: half characters, then whole ones.
            let from = rng.below(ids.len() as u64 + 1) as usize;
            let to = from + rng.below((ids.len() - from) as u64 + 1) as usize;
            let cut: Vec<u8> = bytes(&ids[from..to]);
            check(&tokenizer, &ids[from..to], &cut);
        }
        // Single bytes, and ids at random: mostly no UTF-8 at all.
        let single: Vec<u32> = (0..=255u8).map(|byte| tokenizer.token_to_id([byte]).unwrap()).collect();
        for _ in 0..2000 {
            let random = |rng: &mut Lcg| loop {
                let id = match rng.below(4) {
                    0 => rng.below(tokenizer.vocab_size() as u64) as u32,
                    1 => single[rng.below(256) as usize],
                    _ => single[0xE0 + rng.below(24) as usize - 0x40 * (rng.below(2) as usize)],
                };
                if tokenizer.token_bytes(id).is_some() {
                    return id;
                }
            };
            let ids: Vec<u32> = (0..12).map(|_| random(&mut rng)).collect();
            let whole: Vec<u8> = bytes(&ids);
            check(&tokenizer, &ids, &whole);
            assert_eq!(tokenizer.decode(&ids).unwrap(), String::from_utf8_lossy(&whole), "{name}");
        }
    }
}

#[test]
fn byte_fallback_strips_only_the_first_space() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = llama(folder.path());
    assert!(!tokenizer.is_byte_level());
    let mut rng = Lcg(37);
    for number in 0..600 {
        let text = if number == 0 { " the  the 😀x".to_string() } else { text(&mut rng) };
        let ids = tokenizer.encode(&text).unwrap();
        let whole = tokenizer.decode(&ids).unwrap();
        assert_eq!(whole, text);
        check(&tokenizer, &ids, whole.as_bytes());
        // From a token on that does not begin within a character.
        let from = rng.below(ids.len() as u64 + 1) as usize;
        let whole = tokenizer.decode(&ids[from..]).unwrap();
        if !whole.starts_with('\u{FFFD}') {
            check(&tokenizer, &ids[from..], whole.as_bytes());
        }
    }
    // Any tokens that are characters, special ones among them.
    let whole: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|id| *id < 131 || *id > 258).collect();
    for _ in 0..2000 {
        let ids: Vec<u32> = (0..6).map(|_| whole[rng.below(whole.len() as u64) as usize]).collect();
        check(&tokenizer, &ids, tokenizer.decode(&ids).unwrap().as_bytes());
    }
    // Bytes that are no characters: std's word, not one U+FFFD a byte.
    for _ in 0..2000 {
        let ids: Vec<u32> = (0..8).map(|_| 131 + rng.below(128) as u32).collect();
        let bytes: Vec<u8> = ids.iter().map(|id| (*id - 3) as u8).collect();
        check(&tokenizer, &ids, &bytes);
    }
}

#[test]
fn decoders_of_words_give_the_whole() {
    let mut rng = Lcg(41);
    for name in ["wordpiece.json", "unigram.json"] {
        let mut tokenizer = Tokenizer::from_file(golden(name)).unwrap();
        tokenizer.add_tokens(&["<|user|>"]).unwrap();
        for _ in 0..1000 {
            let ids: Vec<u32> = (0..rng.below(40)).map(|_| rng.below(tokenizer.vocab_size() as u64) as u32).collect();
            check(&tokenizer, &ids, tokenizer.decode(&ids).unwrap().as_bytes());
        }
    }
}

/// A decoder that takes text back.
#[test]
fn text_that_is_taken_back_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.json");
    let mut value = crate::support::golden_json("wordpiece.json");
    value["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Fuse"}, {"type": "Replace", "pattern": {"Regex": "^(.+)(?=.{9})"}, "content": ""}]});
    std::fs::write(&path, value.to_string()).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let mut decoder = tokenizer.decoder();
    let results: Vec<_> = (20..40).map(|id| decoder.push(id).map(String::from)).collect();
    let error = results.into_iter().find_map(Result::err).unwrap();
    assert!(matches!(&error, Error::Tokenize { reason, .. } if reason.contains("changes text")), "{error}");
}

#[test]
fn errors_lose_nothing() {
    let tokenizer = Tokenizer::cl100k();
    let mut decoder = tokenizer.decoder();
    assert_eq!(decoder.push(31106).unwrap(), "");
    assert_eq!(decoder.push(NO_TOKEN).unwrap(), "");
    let unknown = |error: Error| match &error {
        Error::UnknownId { id, position, .. } => (*id, *position, error.to_string()),
        other => panic!("{other}"),
    };
    let (id, position, message) = unknown(decoder.push(100_261).unwrap_err());
    assert_eq!((id, position), (100_261, 2));
    assert!(message.contains("has no token") && message.contains("100276"), "{message}");
    let (id, position, message) = unknown(decoder.push(200_000).unwrap_err());
    assert_eq!((id, position), (200_000, 3));
    assert!(message.ends_with("is not a token of cl100k_base, whose largest id is 100276"), "{message}");
    assert_eq!(decoder.push(230).unwrap(), "沈");
    assert_eq!(decoder.push(31106).unwrap(), "");
    match decoder.finish() {
        Err(Error::HalfCharacter { bytes }) => assert_eq!(bytes, [0xE6, 0xB2]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ids_without_token_are_those_that_cannot_be_decoded() {
    let folder = tempfile::tempdir().unwrap();
    for tokenizer in
        [Tokenizer::cl100k(), llama(folder.path()), Tokenizer::from_file(golden("wordpiece.json")).unwrap()]
    {
        let rows = tokenizer.vocab_size() + 10;
        let without = tokenizer.ids_without_token(rows);
        let expected: Vec<u32> = (0..rows as u32).filter(|id| tokenizer.decode(&[*id]).is_err()).collect();
        assert_eq!(without, expected);
        assert_eq!(tokenizer.ids_without_token(0), [0; 0]);
    }
    let mut gaps = vec![100_256];
    gaps.extend(100_261..100_276);
    assert_eq!(Tokenizer::cl100k().ids_without_token(100_277), gaps);
}

proptest! {
    #[test]
    fn any_bytes_are_stds_lossy_text(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in any::<String>()) {
        let tokenizer = Tokenizer::cl100k();
        let bytes = [bytes.as_slice(), text.as_bytes(), &bytes].concat();
        let ids: Vec<u32> = bytes.iter().map(|byte| tokenizer.token_to_id([*byte]).unwrap()).collect();
        check(&tokenizer, &ids, &bytes);
    }
}
