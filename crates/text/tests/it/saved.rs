//! Tokenizers that were saved, against themselves, against the tokenizers crate, and against Python's readers of both formats.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tallow_text::{Error, Specials, Tokenizer};

use crate::support::{Lcg, PIECES, golden, golden_json, ids_of, python, rank_file, run};

const ADDED: [&str; 3] = ["<|user|>", "<|bot|>", "<|用户|>"];

/// Texts that meet badly, with special tokens in them.
fn texts() -> Vec<String> {
    let mut rng = Lcg(29);
    let pieces: Vec<&str> = PIECES.iter().chain(&ADDED).copied().collect();
    let text = |rng: &mut Lcg| (0..30).map(|_| pieces[rng.below(pieces.len() as u64) as usize]).collect();
    let mut texts: Vec<String> = (0..300).map(|_| text(&mut rng)).collect();
    texts.extend((0..30).map(|_| (0..80).map(|_| rng.scalar()).collect()));
    let words = b"abeinorst etaoin shrdlu";
    let word = |rng: &mut Lcg| char::from(words[rng.below(words.len() as u64) as usize]);
    texts.extend((0..100).map(|_| (0..60).map(|_| word(&mut rng)).collect()));
    texts.extend(
        ["", "a", "<|user|>", "We'LL see: theIR HTTPServer's 12345 files/\r\n\r\n  don't\u{301}"].map(String::from),
    );
    texts.push("小沈阳 ภาษาไทย नमस्ते 😀👨‍👩‍👧 naïve ".repeat(20));
    texts.push("abcabxabcx".repeat(50));
    texts
}

/// Ranks that no training gives: "ab" comes after the token that is made with it, and "xyz" is made by no merging.
fn odd_ranks(path: &Path) -> Tokenizer {
    let extra = ["bx", "abc", "ab", "xyz", "cab", "é", "\u{301}a"];
    rank_file(path, 263, |id| {
        Some(if id < 256 { vec![id as u8] } else { extra[id as usize - 256].as_bytes().to_vec() })
    });
    Tokenizer::from_file(path).unwrap()
}

/// Every kind of ranks, plain and grown.
fn encodings(folder: &Path) -> Vec<(&'static str, Tokenizer)> {
    let path = folder.join("x.tiktoken");
    let (o200k, r50k) = (bpe_openai::o200k_base(), tiktoken_rs::r50k_base().unwrap());
    rank_file(&path, 199_998, |id| Some(o200k.bpe.token_bytes(id).to_vec()));
    let o200k = Tokenizer::from_file(&path).unwrap();
    rank_file(&path, 50_256, |id| r50k.decode_bytes(&[id]).ok());
    let r50k = Tokenizer::from_file(&path).unwrap();
    let p50k = tiktoken_rs::p50k_base().unwrap();
    rank_file(&path, 50_281, |id| p50k.decode_bytes(&[id]).ok().filter(|_| id != 50_256));
    let p50k = Tokenizer::from_file(&path).unwrap();
    let odd = odd_ranks(&path);
    std::fs::remove_file(&path).unwrap();
    let grown = |mut tokenizer: Tokenizer| {
        tokenizer.add_tokens(&ADDED).unwrap();
        tokenizer
    };
    vec![
        ("cl100k", Tokenizer::cl100k()),
        ("cl100k-grown", grown(Tokenizer::cl100k())),
        ("o200k", o200k.clone()),
        ("o200k-grown", grown(o200k)),
        ("r50k", r50k),
        ("p50k-grown", grown(p50k)),
        ("odd", odd.clone()),
        ("odd-grown", grown(odd)),
    ]
}

fn allowing(tokenizer: &Tokenizer) -> Tokenizer {
    tokenizer.clone().with_specials(Specials::Allow)
}

fn assert_same(found: &Tokenizer, expected: &Tokenizer, name: &str) {
    assert_eq!(found.special_ids(), expected.special_ids(), "{name}");
    let sizes = |t: &Tokenizer| (t.vocab_size(), t.ordinary_vocab_size(), t.is_byte_level());
    assert_eq!(sizes(found), sizes(expected), "{name}");
    let (plain, found_allowing, expected_allowing) =
        (expected.clone().with_specials(Specials::Text), allowing(found), allowing(expected));
    for text in texts() {
        let ids = found.encode(&text).unwrap();
        assert_eq!(ids, plain.encode(&text).unwrap(), "{name}: {text:?}");
        assert_eq!(found.decode_bytes(&ids).unwrap(), text.as_bytes(), "{name}");
        assert_eq!(found_allowing.encode(&text).unwrap(), expected_allowing.encode(&text).unwrap(), "{name}: {text:?}");
    }
}

fn streams(tokenizer: &Tokenizer) -> bool {
    let text = "the quick brown fox ".repeat(50_000);
    tokenizer.encode_reader(text.as_bytes(), false).count() > 1
}

#[test]
fn ranks_come_back_from_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    for (name, tokenizer) in encodings(folder.path()) {
        let json = folder.path().join(format!("{name}.json"));
        let ranks = folder.path().join(format!("{name}.tiktoken"));
        for path in [&json, &ranks] {
            tokenizer.save(path).unwrap();
            let written = std::fs::read(path).unwrap();
            let mut found = Tokenizer::from_file(path).unwrap();
            assert_eq!(found.fingerprint(), tokenizer.fingerprint(), "{name}");
            assert!(streams(&found), "{name}");
            assert_same(&found, &tokenizer, name);
            // Saved again it is the same file; added again, tokens have the same ids.
            found.save(path).unwrap();
            assert!(std::fs::read(path).unwrap() == written, "{name}");
            if name.ends_with("grown") {
                let fingerprint = found.fingerprint();
                assert_eq!(found.add_tokens(&ADDED).unwrap(), tokenizer.clone().add_tokens(&ADDED).unwrap());
                assert_eq!(found.fingerprint(), fingerprint);
                let text = "<|user|>a<|用户|><|endoftext|>";
                assert_eq!(found.encode(text).unwrap(), tokenizer.encode(text).unwrap());
            }
            if !name.starts_with("odd") {
                assert_eq!(found.name(), tokenizer.name());
            }
        }
        // The tokenizers crate, which a file that differs in anything is left to, makes the same of it.
        let mut value: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        value["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = true.into();
        let other = folder.path().join("other.json");
        std::fs::write(&other, value.to_string()).unwrap();
        let other = Tokenizer::from_file(&other).unwrap();
        assert!(!streams(&other) && other.fingerprint() != tokenizer.fingerprint());
        assert_same(&other, &tokenizer, name);
    }
}

/// What serves single requests may differ, and all else may not.
#[test]
fn an_edited_file_is_read_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("e.json");
    let mut tokenizer = odd_ranks(&folder.path().join("odd.tiktoken"));
    tokenizer.add_tokens(&["<|user|>"]).unwrap();
    tokenizer.save(&path).unwrap();
    let original: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value = original.clone();
        edit(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
        Tokenizer::from_file(&path)
    };
    let request = json!({"strategy": "LongestFirst", "max_length": 8, "stride": 0, "direction": "Right"});
    for same in [
        edited(&|_| ()),
        edited(&|value| value["truncation"] = request.clone()),
        edited(&|value| _ = value.as_object_mut().unwrap().remove("post_processor")),
    ] {
        let same = same.unwrap();
        assert!(streams(&same) && same.fingerprint() == tokenizer.fingerprint());
    }
    // A merge less, two merges in another order, another flag, another id, a key more: never ranks, and as the file says.
    let swapped = edited(&|value| value["model"]["merges"].as_array_mut().unwrap().swap(0, 2)).unwrap();
    assert!(!streams(&swapped));
    assert_eq!(swapped.encode("abx abc").unwrap(), [258, u32::from(b'x'), u32::from(b' '), 257]);
    assert_eq!(tokenizer.encode("abx abc").unwrap(), [u32::from(b'a'), 256, u32::from(b' '), 257]);
    for edit in [
        &|value: &mut Value| _ = value["model"]["merges"].as_array_mut().unwrap().pop(),
        &|value: &mut Value| value["model"]["byte_fallback"] = true.into(),
        &|value: &mut Value| value["added_tokens"][0]["lstrip"] = true.into(),
        &|value: &mut Value| value["added_tokens"][0]["special"] = false.into(),
        &|value: &mut Value| value["model"]["vocab"]["xyz"] = 300.into(),
        &|value: &mut Value| value["normalizer"] = json!({"type": "NFC"}),
        &|value: &mut Value| value["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into(),
        &|value: &mut Value| value["more"] = true.into(),
        &|value: &mut Value| value["added_tokens"].as_array_mut().unwrap().clear(),
    ] as [&dyn Fn(&mut Value); 9]
    {
        let Ok(other) = edited(edit) else { continue };
        assert!(!streams(&other) || other.fingerprint() != tokenizer.fingerprint());
        other.encode("abc xyz <|user|>").unwrap();
    }
    // Hostile ones: an error or some tokenizer, no panic.
    for (at, value) in [
        ("/model/vocab/a", json!(4_000_000_000u64)),
        ("/model/vocab/a", json!(-1)),
        ("/model/vocab/a", json!("x")),
        ("/model/vocab", json!({})),
        ("/model/vocab", json!([])),
        ("/model/merges", json!([["a"]])),
        ("/model/merges", json!(7)),
        ("/added_tokens", json!({})),
        ("/added_tokens/0/id", json!(4_294_967_295u64)),
        ("/added_tokens/0/content", json!("")),
        ("/added_tokens/0/content", json!("a")),
        ("/pre_tokenizer/pretokenizers", json!([])),
        ("/pre_tokenizer", json!("x")),
    ] {
        _ = edited(&|file| *file.pointer_mut(at).unwrap() = value.clone()).map(|t| t.encode("abc <|user|>"));
    }
    let text = original.to_string();
    for end in [1, text.len() / 2, text.len() - 1] {
        std::fs::write(&path, &text[..end]).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert!(matches!(error, Error::TokenizerFile { .. }), "{error}");
    }
}

#[test]
fn a_tokenizer_json_is_written_as_it_was_and_grown_keeps_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let (given, path) = (folder.path().join("given.json"), folder.path().join("saved.json"));
    for name in ["byte_level", "unigram", "wordpiece"] {
        let mut value = golden_json(&format!("{name}.json"));
        value["truncation"] = json!({"strategy": "LongestFirst", "max_length": 8, "stride": 0, "direction": "Right"});
        value["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "x"});
        std::fs::write(&given, serde_json::to_string_pretty(&value).unwrap()).unwrap();
        let original = Tokenizer::from_file(&given).unwrap();
        original.save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&given).unwrap(), "{name}");

        let mut grown = original.clone();
        let ids = grown.add_tokens(&ADDED[..1]).unwrap();
        grown.add_tokens(&ADDED).unwrap();
        grown.save(&path).unwrap();
        let saved: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for key in ["truncation", "padding", "post_processor"] {
            assert_eq!(saved[key], value[key], "{name}: {key}");
        }
        let mut found = Tokenizer::from_file(&path).unwrap();
        assert_eq!((found.fingerprint(), found.special_ids()), (grown.fingerprint(), grown.special_ids()), "{name}");
        let text = "the <|user|>fox<|bot|> ".repeat(20);
        assert_eq!(allowing(&found).encode(&text).unwrap(), allowing(&grown).encode(&text).unwrap(), "{name}");
        assert_eq!(found.encode(&text).unwrap(), original.encode(&text).unwrap(), "{name}");
        assert_eq!(found.add_tokens(&ADDED[..1]).unwrap(), ids);
        found.add_tokens(&ADDED).unwrap();
        assert_eq!(found.encode(&text).unwrap(), grown.encode(&text).unwrap(), "{name}");
        // Found in text or not, the tokens are the same, and so is the file.
        let before = std::fs::read(&path).unwrap();
        found.save(&path).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), found.fingerprint()), (before, grown.fingerprint()), "{name}");

        let error = grown.save(folder.path().join("x.tiktoken")).unwrap_err().to_string();
        assert!(error.contains("save it as .json"), "{error}");
    }
}

#[test]
fn what_cannot_be_saved_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["x", "x.txt", "x.JSON", ".json"] {
        let error = Tokenizer::cl100k().save(at(name)).unwrap_err().to_string();
        assert!(error.contains(".json") && error.contains(".tiktoken"), "{error}");
    }
    assert!(matches!(Tokenizer::cl100k().save(at("none/x.json")), Err(Error::Io { .. })));
    // "Ġqqq" is how a tokenizer.json spells " qqq", and "é" the byte 0xE9.
    for text in ["Ġqqq", "é"] {
        let mut tokenizer = Tokenizer::cl100k();
        match tokenizer.add_tokens(&[text]) {
            Err(Error::TokenExists { .. }) => continue, // an ordinary token
            ids => assert_eq!(ids.unwrap(), [100_277]),
        }
        let error = tokenizer.save(at("x.json")).unwrap_err().to_string();
        assert!(error.contains("cannot tell") && !at("x.json").exists(), "{error}");
        tokenizer.save(at("x.tiktoken")).unwrap();
        assert_eq!(Tokenizer::from_file(at("x.tiktoken")).unwrap().fingerprint(), tokenizer.fingerprint());
    }
    // A pattern that a rank file does not bring back.
    odd_ranks(&at("odd.tiktoken")).save(at("odd.json")).unwrap();
    let mut value: Value = serde_json::from_slice(&std::fs::read(at("odd.json")).unwrap()).unwrap();
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".into();
    std::fs::write(at("gpt2.json"), value.to_string()).unwrap();
    let gpt2 = Tokenizer::from_file(at("gpt2.json")).unwrap();
    assert!(streams(&gpt2));
    let error = gpt2.save(at("gpt2.tiktoken")).unwrap_err().to_string();
    assert!(error.contains("save it as .json"), "{error}");
    let found: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(found.iter().all(|name| !name.to_string_lossy().contains("tmp")), "{found:?}");
}

#[test]
fn special_tokens_beside_a_rank_file_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.ranks.tiktoken");
    let beside = folder.path().join("my.ranks.special_tokens.json");
    let tokenizer = odd_ranks(&path);
    assert_eq!(tokenizer.special_ids(), []);
    std::fs::write(&beside, "\u{feff}{\"<b>\": 300, \"<a>\": 263}").unwrap();
    let found = Tokenizer::from_file(&path).unwrap();
    assert_eq!(found.special_ids(), [("<a>".to_string(), 263), ("<b>".to_string(), 300)]);
    assert_eq!(allowing(&found).encode("<b>abc").unwrap(), [300, 257]);
    assert_eq!((found.decode(&[263]).unwrap(), found.vocab_size()), ("<a>".to_string(), 301));
    for (content, reason) in [
        ("", "not an object"),
        ("[]", "not an object"),
        ("{\"<a>\": -1}", "not an object"),
        ("{\"<a>\": 4294967296}", "not an object"),
        ("{\"<a>\": \"263\"}", "not an object"),
        ("{\"<a>\": {}}", "not an object"),
        ("{\"<a>\": 263", "not an object"),
        ("{\"<a>\": 4294967295}", "is above"),
        ("{\"<a>\": 100000}", "is above"),
        ("{\"<a>\": 65}", "that of an ordinary token"),
        ("{\"<a>\": 263, \"<b>\": 263}", "stands twice"),
        ("{\"\": 263}", "has no text"),
        ("{\"abc\": 263}", "an ordinary token, too: 257"),
    ] {
        std::fs::write(&beside, content).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(beside.to_str().unwrap()), "{content}: {error}");
    }
    std::fs::write(&beside, format!("{{\"<a>\": {}", "[".repeat(100_000))).unwrap();
    assert!(Tokenizer::from_file(&path).is_err());
    std::fs::remove_file(&beside).unwrap();
    std::fs::create_dir(&beside).unwrap();
    let error = Tokenizer::from_file(&path).unwrap_err().to_string();
    assert!(error.contains(beside.to_str().unwrap()) && error.contains("regular"), "{error}");
}

/// Python's `tokenizers` and `tiktoken` read what was saved, with the same ids.
#[test]
#[ignore = "needs Python with tokenizers and tiktoken"]
fn needs_python_others_read_what_was_saved() {
    let python = python("tokenizers, tiktoken");
    let folder = tempfile::tempdir().unwrap();
    let mut all = encodings(folder.path());
    let mut byte_level = Tokenizer::from_file(golden("byte_level.json")).unwrap();
    byte_level.add_tokens(&ADDED).unwrap();
    all.push(("byte_level-grown", byte_level));
    let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    for (name, tokenizer) in &all {
        tokenizer.save(folder.path().join(format!("{name}.json"))).unwrap();
        let saved = tokenizer.save(folder.path().join(format!("{name}.tiktoken")));
        assert_eq!(saved.is_ok(), !name.starts_with("byte_level"));
    }
    let texts = texts();
    let path: PathBuf = folder.path().join("cases.json");
    std::fs::write(&path, json!({"names": names, "texts": texts}).to_string()).unwrap();
    let found = run(&python, "saved_tokenizer.py", &[folder.path()]);
    for (name, tokenizer) in &all {
        // What Python's tokenizers writes of it is the same tokenizer still, in other words.
        let again = Tokenizer::from_file(folder.path().join(format!("{name}-again.json"))).unwrap();
        assert_eq!(again.fingerprint(), tokenizer.fingerprint(), "{name}");
        assert_eq!(streams(&again), streams(tokenizer), "{name}");
        let tokenizer = allowing(tokenizer);
        for (number, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode(text).unwrap();
            let of = |reader: &str| &found[*name][reader][number];
            assert_eq!(ids_of(of("tokenizers")), ids, "{name}: {text:?}");
            assert_eq!(of("decoded"), &json!(text), "{name}");
            if !name.starts_with("byte_level") {
                assert_eq!(ids_of(of("tiktoken")), ids, "{name}: {text:?}");
            }
        }
    }
}
