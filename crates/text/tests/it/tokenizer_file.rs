//! Tokenizers from files, against Python's tokenizers and against other implementations of the same encodings.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tallow_text::{Error, Specials, Tokenizer, count_tokens, truncate_to_tokens};

use crate::support::{Lcg, PIECES, golden, golden_json, ids_of, rank_file};

#[test]
fn every_family_of_tokenizer_json_gives_pythons_ids() {
    for (name, case) in golden_json("tokenizer_json.json")["cases"].as_object().unwrap() {
        let tokenizer = Tokenizer::from_file(golden(&format!("{name}.json"))).unwrap();
        assert_eq!(tokenizer.name(), name);
        assert_eq!(tokenizer.vocab_size() as u64, case["rows"].as_u64().unwrap(), "{name}");
        let allowing = tokenizer.clone().with_specials(Specials::Allow);
        for case in case["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids, ids_of(&case["as_text"]), "{name}: {text:?}");
            assert_eq!(allowing.encode(text).unwrap(), ids_of(&case["as_tokens"]), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap(), "{name}: {text:?}");
            let (with_offsets, ranges) = tokenizer.encode_with_offsets(text).unwrap();
            assert_eq!(with_offsets, ids);
            assert!(
                ranges.iter().all(|range| range.start <= range.end && range.end <= text.len()),
                "{name}: {ranges:?}"
            );
            for max in 0..4 {
                let prefix = truncate_to_tokens(&tokenizer, text, max).unwrap();
                assert!(
                    text.starts_with(prefix) && count_tokens(&tokenizer, prefix).unwrap() <= max,
                    "{name}: {text:?} {max}"
                );
            }
        }
    }
}

#[test]
fn a_byte_level_file_is_exact_to_the_byte() {
    let tokenizer = Tokenizer::from_file(golden("byte_level.json")).unwrap();
    let text = "😀 naïve\0\u{301}";
    let (ids, ranges) = tokenizer.encode_with_offsets(text).unwrap();
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes());
    for (id, range) in ids.iter().zip(ranges) {
        let bytes = tokenizer.token_bytes(*id).unwrap();
        assert_eq!(bytes.as_ref(), &text.as_bytes()[range]);
        assert_eq!(tokenizer.token_to_id(&bytes), Some(*id));
    }
    assert_eq!(tokenizer.token_to_id("<|endoftext|>"), Some(0));
    assert_eq!((tokenizer.ordinary_vocab_size(), tokenizer.vocab_size()), (383, 383));
    assert!(tokenizer.is_byte_level());
    assert!(!Tokenizer::from_file(golden("unigram.json")).unwrap().is_byte_level());
}

#[test]
fn the_fingerprint_of_a_file_is_that_of_its_meaning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let original = Tokenizer::from_file(golden("byte_level.json")).unwrap().fingerprint();
    let mut json = golden_json("byte_level.json");
    let fingerprint = |json: &serde_json::Value| {
        std::fs::write(&path, serde_json::to_string_pretty(json).unwrap()).unwrap();
        Tokenizer::from_file(&path).unwrap().fingerprint()
    };
    json["truncation"] = serde_json::Value::Null;
    assert_eq!(fingerprint(&json), original);
    json["pre_tokenizer"]["add_prefix_space"] = true.into();
    assert_ne!(fingerprint(&json), original);
}

fn adversarial() -> Vec<String> {
    let mut rng = Lcg(23);
    let mut texts: Vec<String> = (0..400).map(|_| (0..40).map(|_| PIECES[rng.below(26) as usize]).collect()).collect();
    texts.push((0..20_000).map(|_| rng.scalar()).collect());
    texts.push("a".repeat(50_000));
    texts.push("We'LL see: theIR HTTPServer's 12345 files/\r\n\r\n  don't\u{301}".to_string());
    texts
}

#[test]
fn rank_files_of_known_encodings_equal_other_implementations() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.tiktoken");

    let bundled = Tokenizer::cl100k();
    rank_file(&path, 100_256, |id| bundled.token_bytes(id).map(|bytes| bytes.into_owned()));
    let from_file = Tokenizer::from_file(&path).unwrap();
    assert_eq!((from_file.name(), from_file.fingerprint()), ("cl100k_base", bundled.fingerprint()));
    for text in adversarial() {
        assert_eq!(from_file.encode(&text).unwrap(), bundled.encode(&text).unwrap());
    }

    let o200k = bpe_openai::o200k_base();
    rank_file(&path, o200k.bpe.num_tokens() as u32, |id| Some(o200k.bpe.token_bytes(id).to_vec()));
    let from_file = Tokenizer::from_file(&path).unwrap();
    assert_eq!((from_file.name(), from_file.vocab_size()), ("o200k_base", 200_019));
    for text in adversarial() {
        assert_eq!(from_file.encode(&text).unwrap(), o200k.encode(&text), "{text:?}");
    }

    for (name, rows, reference) in [
        ("r50k_base", 50_257, tiktoken_rs::r50k_base().unwrap()),
        ("p50k_base", 50_281, tiktoken_rs::p50k_base().unwrap()),
    ] {
        rank_file(&path, rows, |id| reference.decode_bytes(&[id]).ok().filter(|_| id != 50_256));
        let from_file = Tokenizer::from_file(&path).unwrap();
        assert_eq!((from_file.name(), from_file.vocab_size()), (name, rows as usize));
        for text in adversarial() {
            assert_eq!(from_file.encode(&text).unwrap(), reference.encode_ordinary(&text), "{name}: {text:?}");
        }
        let allowing = from_file.with_specials(Specials::Allow);
        assert_eq!(allowing.encode("a<|endoftext|>").unwrap(), [64, 50_256]);
    }
}

/// The o200k pattern decides about a word only at its end, however far that is.
#[test]
fn a_stream_of_o200k_is_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.tiktoken");
    let o200k = bpe_openai::o200k_base();
    rank_file(&path, o200k.bpe.num_tokens() as u32, |id| Some(o200k.bpe.token_bytes(id).to_vec()));
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    for before in [0, 150, 200, 260, 320] {
        let text = "ab ".repeat(((1 << 20) - before) / 3) + "亚洲AV" + &"ACGT".repeat(60) + "b and so on, isn't it";
        let streamed: Vec<u32> =
            tokenizer.encode_reader(text.as_bytes(), false).flat_map(|part| part.unwrap()).collect();
        assert!(streamed == o200k.encode(&text), "{before}");
    }
}

/// As many ranks as a known encoding, and another vocabulary all the same.
#[test]
fn a_number_of_ranks_is_not_an_identity() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.tiktoken");
    let bundled = Tokenizer::cl100k();
    rank_file(&path, 100_256, |id| match id {
        100_255 => Some(b"something else".to_vec()),
        _ => bundled.token_bytes(id).map(|bytes| bytes.into_owned()),
    });
    let other = Tokenizer::from_file(&path).unwrap();
    assert_eq!((other.name(), other.special_ids().len()), ("other", 0));
    assert_ne!(other.fingerprint(), bundled.fingerprint());
    // 50256 ranks, one of them where r50k's special token is.
    rank_file(
        &path,
        50_257,
        |id| if id == 300 { None } else { bundled.token_bytes(id).map(|bytes| bytes.into_owned()) },
    );
    assert_eq!(Tokenizer::from_file(&path).unwrap().special_ids().len(), 0);
}

/// Files that the tokenizers crate reads without complaint, or dies of.
#[test]
fn hostile_files_are_errors_not_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h.json");
    let edit = |file: &str, key: &str, value: serde_json::Value| {
        let mut json = golden_json(file);
        json[key] = value;
        json.to_string()
    };
    use serde_json::json;
    let charsmap = |text: &str| json!({"type": "Precompiled", "precompiled_charsmap": text});
    for content in [
        edit("unigram.json", "normalizer", charsmap("AAAA")),
        edit("unigram.json", "normalizer", charsmap("/////////wAAAAAAAA==")),
        edit("byte_level.json", "normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"})),
        edit("byte_level.json", "pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        format!("{{\"decoder\":{}", "[".repeat(100_000)),
    ] {
        std::fs::write(&path, &content).unwrap();
        let result = Tokenizer::from_file(&path).and_then(|tokenizer| tokenizer.encode("a b"));
        let message = result.map(|_| ()).expect_err(&content[..content.len().min(300)]).to_string();
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_rank_file_of_ones_own_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.tiktoken");
    let extra = ["ab", "abc", "é"];
    rank_file(&path, 259, |id| {
        Some(if id < 256 { vec![id as u8] } else { extra[id as usize - 256].as_bytes().to_vec() })
    });
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.encode("abcab é").unwrap(), [257, 256, 32, 258]);
    assert_eq!((tokenizer.name(), tokenizer.vocab_size(), tokenizer.special_ids().len()), ("mine", 259, 0));
}

#[test]
fn broken_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    let bytes: String = (0..=255u8).map(|b| format!("{} {b}\n", BASE64_STANDARD.encode([b]))).collect();
    let json = std::fs::read_to_string(golden("byte_level.json")).unwrap();
    for (content, reason) in [
        ("".to_string(), "is empty"),
        ("{".to_string(), "tokenizer.json"),
        ("{}".to_string(), "tokenizer.json"),
        (json[..json.len() / 2].to_string(), "tokenizer.json"),
        ("hello".to_string(), "line 1: no \"token rank\" pair"),
        ("IQ== x".to_string(), "line 1: \"x\" is not a rank"),
        ("IQ== 0\n!! 1".to_string(), "line 2: not base64"),
        ("IQ== 0\nIQ== 1".to_string(), "stands twice"),
        ("IQ== 0\nIg== 0".to_string(), "rank 0 stands twice"),
        ("IQ== 4000000000".to_string(), "rank 4000000000 is above"),
        (bytes.clone() + "YWI= 16777216", "rank 16777216 is above"),
        ("IQ== 0".to_string(), "no token for the single byte 0x00"),
        (bytes.replace("/w== 255\n", ""), "no token for the single byte 0xFF"),
        ("\u{0}\u{1}".to_string(), "line 1"),
    ] {
        std::fs::write(&path, &content).unwrap();
        match Tokenizer::from_file(&path).map(|t| t.name().to_string()) {
            Err(error @ Error::TokenizerFile { .. }) => {
                let message = error.to_string();
                assert!(message.contains(reason) && message.contains(path.to_str().unwrap()), "{content:?}: {message}");
                assert!(!message.contains('\n'), "{message}");
            }
            other => panic!("{content:?}: {other:?}"),
        }
    }
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(Tokenizer::from_file(&path).unwrap_err().to_string().contains("not text"));
    assert!(matches!(Tokenizer::from_file(folder.path().join("none")), Err(Error::Io { .. })));
}

/// Cutting a token back to a whole character can cost more tokens than it had: then one more goes.
#[test]
fn truncation_counts_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.tiktoken");
    // "ab" + the first byte of é is one token, "ab" is not.
    let extra: [&[u8]; 2] = [b"b\xC3", b"ab\xC3"];
    rank_file(&path, 258, |id| Some(if id < 256 { vec![id as u8] } else { extra[id as usize - 256].to_vec() }));
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.encode("abé").unwrap(), [257, 0xA9]);
    assert_eq!(count_tokens(&tokenizer, "ab").unwrap(), 2);
    assert_eq!(truncate_to_tokens(&tokenizer, "abé", 1).unwrap(), "");
}

/// Added tokens are found in text by every engine, by default; the tokenizer's own special tokens stay text.
#[test]
fn added_tokens_are_found_in_text() {
    let allowed = |t: &Tokenizer, rule| t.clone().with_specials(rule);
    for (original, own) in [
        (Tokenizer::cl100k(), Some("<|endoftext|>")),
        (Tokenizer::from_file(golden("byte_level.json")).unwrap(), Some("<|endoftext|>")),
        (Tokenizer::from_file(golden("unigram.json")).unwrap(), None),
        (Tokenizer::from_file(golden("wordpiece.json")).unwrap(), None),
    ] {
        let name = original.name().to_string();
        let mut grown = original.clone();
        let ids = grown.add_tokens(&["<|user|>", "<|bot|>"]).unwrap();
        let more = grown.add_tokens(&["<|user|>x", "<|bot|>"]).unwrap();
        assert_eq!(more[1], ids[1], "{name}");
        let text = "<|user|>the fox<|bot|>the<|user|>x";
        let found = grown.encode(text).unwrap();
        let of = |text: &str| original.encode(text).unwrap();
        assert_eq!(found[0], ids[0], "{name}: {found:?}");
        assert_eq!(found.last(), Some(&more[0]), "{name}: the longest wins");
        assert_eq!(found.iter().filter(|id| **id == ids[1]).count(), 1, "{name}");
        if grown.is_byte_level() {
            assert_eq!(found, [vec![ids[0]], of("the fox"), vec![ids[1]], of("the"), vec![more[0]]].concat(), "{name}");
            assert_eq!(grown.decode(&found).unwrap(), text);
        }
        let (again, ranges) = grown.encode_with_offsets(text).unwrap();
        assert_eq!((&again, &text[ranges[0].clone()]), (&found, "<|user|>"), "{name}");
        let streamed: Vec<u32> = grown.encode_reader(text.as_bytes(), false).flat_map(|part| part.unwrap()).collect();
        assert_eq!(streamed, found, "{name}");
        // A clone of before, and the other rules.
        assert_eq!(original.encode(text).unwrap(), allowed(&grown, Specials::Text).encode(text).unwrap(), "{name}");
        assert_eq!(allowed(&grown, Specials::Allow).encode(text).unwrap(), found, "{name}");
        let forbidden = allowed(&grown, Specials::Forbid).encode(text).unwrap_err();
        assert!(matches!(forbidden, Error::SpecialForbidden { byte: 0, .. }), "{name}: {forbidden}");
        // The tokenizer's own special token stays text, until it is asked for.
        let Some(own) = own else { continue };
        let text = format!("a{own}<|bot|>");
        assert_eq!(grown.encode(&text).unwrap(), [of(&format!("a{own}")), vec![ids[1]]].concat(), "{name}");
        let fingerprint = grown.fingerprint();
        let id = grown.add_tokens(&[own]).unwrap()[0];
        assert_eq!(Some(id), original.token_to_id(own));
        assert_eq!(grown.encode(&text).unwrap(), [of("a"), vec![id, ids[1]]].concat(), "{name}");
        assert_eq!(grown.fingerprint(), fingerprint, "{name}: the tokens are the same");
    }
}

/// A special token that was added, across the edge of a chunk of a stream.
#[test]
fn an_added_token_is_found_across_chunks() {
    let mut tokenizer = Tokenizer::cl100k();
    let id = tokenizer.add_tokens(&["<|a rather long one, with punctuation.|>"]).unwrap()[0];
    for before in [(1 << 18) - 70, (1 << 18) - 41, (1 << 18) - 20, (1 << 18) - 1, 3 << 20] {
        let text = "ab ".repeat(before / 3) + &"c".repeat(before % 3) + "<|a rather long one, with punctuation.|> d";
        let streamed: Vec<u32> = tokenizer.encode_reader(text.as_bytes(), false).flat_map(|p| p.unwrap()).collect();
        assert!(streamed == tokenizer.encode(&text).unwrap() && streamed.contains(&id), "{before}");
    }
}
