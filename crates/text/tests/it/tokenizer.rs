//! The bundled encoding against tiktoken's word (tests/golden/gen_tokenizer.py).

use std::path::PathBuf;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tallow_text::{Error, NO_TOKEN, Specials, Tokenizer, count_tokens, count_up_to, truncate_to_tokens};

use crate::support::{Lcg, PIECES, golden_json, ids_of, root};

/// Number of ids and the hash of their little-endian bytes.
#[derive(Default)]
struct Record(usize, Sha256);

impl Record {
    fn add(&mut self, ids: &[u32]) {
        self.0 += ids.len();
        ids.iter().for_each(|id| self.1.update(id.to_le_bytes()));
    }

    fn check(self, name: &str, golden: &serde_json::Value) {
        assert_eq!(self.0 as u64, golden["tokens"].as_u64().unwrap(), "{name}: number of tokens");
        assert_eq!(hex(&self.1.finalize()), golden["sha256"], "{name}: ids");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_lesson() {
    let golden = golden_json("cl100k.json");
    let tokenizer = Tokenizer::cl100k();
    let ids = tokenizer.encode(golden["lesson"]["text"].as_str().unwrap()).unwrap();
    assert_eq!(ids, ids_of(&golden["lesson"]["ids"]));
    assert_eq!(
        ids,
        [31809, 31106, 230, 83175, 70277, 61786, 78256, 242, 84150, 109, 38093, 45932, 222, 15225, 35287, 11]
    );
    for (id, text) in [(0, "!"), (1, "\""), (2, "#"), (1000, "indow"), (1001, "lement"), (100_255, " Conveyor")] {
        assert_eq!(tokenizer.token_bytes(id).unwrap().as_ref(), text.as_bytes());
        assert_eq!(tokenizer.token_to_id(text), Some(id));
    }
    assert_eq!(tokenizer.token_bytes(31106).unwrap().as_ref(), [0xE6, 0xB2]);
    assert_eq!(tokenizer.token_to_id([0xE6, 0xB2]), Some(31106));
    assert_eq!(tokenizer.token_bytes(100_256), None);
    assert_eq!((tokenizer.ordinary_vocab_size(), tokenizer.vocab_size()), (100_256, 100_277));
}

/// One test a group of texts would hide nothing, but this way the generator's order of draws is kept.
#[test]
fn ids_are_tiktokens_on_every_scalar_and_on_adversarial_texts() {
    let golden = &golden_json("cl100k.json")["generated"];
    let tokenizer = Tokenizer::cl100k();
    let check = |name: &str, texts: &mut dyn Iterator<Item = String>| {
        let mut record = Record::default();
        for text in texts {
            record.add(&tokenizer.encode(&text).unwrap());
        }
        record.check(name, &golden[name]);
    };
    let scalars = || (0..=0x10FFFF).filter_map(char::from_u32);
    check("every scalar alone", &mut scalars().map(String::from));
    check("every scalar in company", &mut scalars().map(|c| format!("x{c}1 {c}y {c}{c}\n{c} 's")));
    let mut rng = Lcg(7);
    let one = |name: &str, text: String| check(name, &mut std::iter::once(text));
    one("a run", "a".repeat(1_000_000));
    one("space run", " ".repeat(1_000_000));
    one("space run, then a word", " ".repeat(100_000) + "word");
    one("newline run", "\r\n".repeat(300_000));
    one("digits", (0..500_000).map(|_| char::from(48 + rng.below(10) as u8)).collect());
    let han = |rng: &mut Lcg| char::from_u32(0x4E00 + rng.below(0x9FA6 - 0x4E00) as u32).unwrap();
    one("han run", (0..100_000).map(|_| han(&mut rng)).collect());
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    one("base64", (0..300_000).map(|_| char::from(alphabet[rng.below(64) as usize])).collect());
    one("random scalars", (0..100_000).map(|_| rng.scalar()).collect());
    one("mixed pieces", (0..120_000).map(|_| PIECES[rng.below(26) as usize]).collect());
    let alphabet: Vec<char> = " \n\ra's1!".chars().collect();
    let mut short = (0..7u32).flat_map(|len| {
        let alphabet = &alphabet;
        (0..8usize.pow(len)).map(move |n| (0..len).rev().map(|i| alphabet[n / 8usize.pow(i) % 8]).collect::<String>())
    });
    check("short strings", &mut short);
}

/// Real files, of which golden/cl100k.json knows the ids: `TALLOW_CORPORA=folder:folder cargo test -- --ignored needs_corpora`.
#[test]
#[ignore = "needs the files that were recorded: TALLOW_CORPORA"]
fn needs_corpora_ids_are_tiktokens_on_real_files() {
    let golden = &golden_json("cl100k.json")["files"];
    let tokenizer = Tokenizer::cl100k();
    let given = std::env::var("TALLOW_CORPORA").unwrap_or_default();
    let folders = given.split(':').filter(|f| !f.is_empty()).map(PathBuf::from);
    let mut checked = 0;
    for path in
        folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten()).flatten().map(|entry| entry.path())
    {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(expected) = golden.get(&name) else { continue };
        let bytes = std::fs::read(&path).unwrap();
        if hex(&Sha256::digest(&bytes)) != expected["text_sha256"] {
            eprintln!("{name} is not the file that was recorded, skipped");
            continue;
        }
        let mut record = Record::default();
        record.add(&tokenizer.encode(std::str::from_utf8(&bytes).unwrap()).unwrap());
        record.check(&name, expected);
        checked += 1;
    }
    eprintln!("{checked} real files checked");
    assert!(checked > 0, "none of the recorded files is in TALLOW_CORPORA={given:?}");
}

#[test]
fn specials_are_text_or_tokens_or_forbidden() {
    let golden = &golden_json("cl100k.json")["special"];
    let text = golden["text"].as_str().unwrap();
    let tokenizer = Tokenizer::cl100k();
    assert_eq!(tokenizer.encode(text).unwrap(), ids_of(&golden["as_text"]));
    let allowing = tokenizer.clone().with_specials(Specials::Allow);
    assert_eq!(allowing.encode(text).unwrap(), ids_of(&golden["as_tokens"]));
    assert_eq!(allowing.decode(&allowing.encode(text).unwrap()).unwrap(), text);
    let forbidding = tokenizer.clone().with_specials(Specials::Forbid);
    match forbidding.encode("é<|fim_prefix|>").unwrap_err() {
        Error::SpecialForbidden { token, byte } => assert_eq!((token.as_str(), byte), ("<|fim_prefix|>", 2)),
        other => panic!("{other}"),
    }
    assert_eq!(forbidding.encode("<|endoftext|").unwrap(), tokenizer.encode("<|endoftext|").unwrap());
    assert_eq!(tokenizer.token_to_id("<|endoftext|>"), Some(100_257));
    assert_eq!(tokenizer.token_bytes(100_276).unwrap().as_ref(), b"<|endofprompt|>");
}

#[test]
fn the_fingerprint_is_pinned() {
    // Shards and checkpoints carry it: a change here makes every one of them foreign.
    assert_eq!(format!("{:016x}", Tokenizer::cl100k().fingerprint()), "069f486cb9f49323");
}

#[test]
fn unknown_ids_are_named_and_padding_is_nothing() {
    let tokenizer = Tokenizer::cl100k();
    assert_eq!(tokenizer.decode(&[9906, NO_TOKEN, 1917]).unwrap(), "Hello world");
    match tokenizer.decode(&[9906, 100_256]).unwrap_err() {
        Error::UnknownId { id, position, largest, .. } => assert_eq!((id, position, largest), (100_256, 1, 100_276)),
        other => panic!("{other}"),
    }
    assert_eq!(tokenizer.decode(&[31106]).unwrap(), "\u{FFFD}");
    assert_eq!(tokenizer.decode_bytes(&[31106]).unwrap(), [0xE6, 0xB2]);
}

#[test]
fn a_batch_does_not_depend_on_threads() {
    let tokenizer = Tokenizer::cl100k();
    let mut rng = Lcg(11);
    let texts: Vec<String> =
        (0..500).map(|_| (0..rng.below(60)).map(|_| PIECES[rng.below(26) as usize]).collect()).collect();
    let one_by_one: Vec<_> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| tokenizer.encode_batch(&texts)).unwrap(), one_by_one);
    }
    assert_eq!(tokenizer.encode_batch::<&str>(&[]).unwrap(), Vec::<Vec<u32>>::new());
    let forbidding = tokenizer.with_specials(Specials::Forbid);
    assert!(forbidding.encode_batch(&["a", "<|endoftext|>"]).is_err());
}

fn any_text() -> impl Strategy<Value = String> {
    let piece =
        prop_oneof![proptest::sample::select(&PIECES[..]).prop_map(String::from), any::<String>(), "[ \\n\\r\\t]{0,9}"];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn decoding_gives_the_text_back(text in any_text()) {
        for specials in [Specials::Text, Specials::Allow] {
            let tokenizer = Tokenizer::cl100k().with_specials(specials);
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(&tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes());
            prop_assert_eq!(count_tokens(&tokenizer, &text).unwrap(), ids.len());
        }
    }

    #[test]
    fn offsets_cover_the_text(text in any_text()) {
        let tokenizer = Tokenizer::cl100k().with_specials(Specials::Allow);
        let (ids, ranges) = tokenizer.encode_with_offsets(&text).unwrap();
        let mut end = 0;
        for (id, range) in ids.iter().zip(&ranges) {
            prop_assert_eq!(range.start, end);
            let bytes = tokenizer.token_bytes(*id).unwrap();
            prop_assert_eq!(bytes.as_ref(), &text.as_bytes()[range.clone()]);
            end = range.end;
        }
        prop_assert_eq!((end, ids.len()), (text.len(), ranges.len()));
    }

    #[test]
    fn truncation_keeps_its_promise(text in any_text(), max in 0usize..40) {
        for specials in [Specials::Text, Specials::Allow] {
            let tokenizer = Tokenizer::cl100k().with_specials(specials);
            let prefix = truncate_to_tokens(&tokenizer, &text, max).unwrap();
            prop_assert!(text.starts_with(prefix));
            prop_assert!(count_tokens(&tokenizer, prefix).unwrap() <= max);
            if count_tokens(&tokenizer, &text).unwrap() <= max {
                prop_assert_eq!(prefix, &text);
            }
        }
    }
}

#[test]
fn truncation_never_halves_a_character() {
    let tokenizer = Tokenizer::cl100k();
    let text = "小沈阳";
    let prefixes: Vec<_> = (0..5).map(|max| truncate_to_tokens(&tokenizer, text, max).unwrap()).collect();
    assert_eq!(prefixes, ["", "小", "小", "小沈", "小沈阳"]); // 沈 is tokens 2 and 3
}

/// As tiktoken publishes them.
#[test]
fn bundled_encodings_are_the_published_files() {
    for (name, sha256) in [
        ("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
        ("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
        ("r50k_base", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    ] {
        let path = root().join(format!("crates/text/assets/{name}.tiktoken"));
        assert_eq!(hex(&Sha256::digest(std::fs::read(&path).unwrap())), sha256);
        let Some(bundled) = Tokenizer::bundled(name) else { continue };
        let file = Tokenizer::from_file(&path).unwrap();
        assert_eq!((bundled.fingerprint(), bundled.special_ids()), (file.fingerprint(), file.special_ids()));
        assert_eq!(bundled.vocab_size(), file.vocab_size());
    }
    assert_eq!(Tokenizer::cl100k().fingerprint(), 0x069f_486c_b9f4_9323); // files carry it
    assert!(Tokenizer::bundled("cl200k").is_none());
    assert_eq!(Tokenizer::cl100k().backend(), tallow_text::Backend::BytePair);
}

#[cfg(all(feature = "gpt2", feature = "o200k"))]
#[test]
fn gpt2_and_o200k_are_tiktokens() {
    let text = "小沈阳 We'LL see: theIR HTTPServer's 12345 files/\r\n\r\n  don't <|endoftext|>";
    let (gpt2, o200k) = (Tokenizer::gpt2(), Tokenizer::o200k());
    assert_eq!((gpt2.name(), gpt2.vocab_size(), gpt2.ordinary_vocab_size()), ("gpt2", 50_257, 50_256));
    assert_eq!((o200k.name(), o200k.vocab_size(), o200k.ordinary_vocab_size()), ("o200k_base", 200_019, 199_998));
    for (ours, theirs) in [(gpt2, tiktoken_rs::r50k_base().unwrap()), (o200k, tiktoken_rs::o200k_base().unwrap())] {
        assert_eq!(ours.encode(text).unwrap(), theirs.encode_ordinary(text));
        let allowing = ours.with_specials(Specials::Allow);
        assert_eq!(allowing.encode(text).unwrap(), theirs.encode_with_special_tokens(text));
    }
    let mut small: Vec<u16> = vec![7];
    Tokenizer::gpt2().encode_into(text, &mut small).unwrap();
    let ids: Vec<u32> = small[1..].iter().map(|id| u32::from(*id)).collect();
    assert_eq!((small[0], ids), (7, Tokenizer::gpt2().encode(text).unwrap()));
}

#[test]
fn counting_stops() {
    let tokenizer = Tokenizer::cl100k().with_specials(Specials::Allow);
    let text = format!("{}<|endoftext|>{}", "one two ".repeat(100), "three ".repeat(100));
    let all = tokenizer.encode(&text).unwrap().len();
    assert_eq!(count_tokens(&tokenizer, &text).unwrap(), all);
    for limit in [0, 1, 5, 199, 200, 201, 202, all - 1, all, all + 1, usize::MAX] {
        assert_eq!(count_up_to(&tokenizer, &text, limit).unwrap(), all.min(limit), "{limit}");
    }
    let mut ids = vec![1u32, 2];
    let error = Tokenizer::cl100k().with_specials(Specials::Forbid).encode_into(&text, &mut ids).unwrap_err();
    assert!(matches!(error, Error::SpecialForbidden { byte: 800, .. }), "{error}");
    assert_eq!(ids, [1, 2]);
    let error = Tokenizer::cl100k().encode_into("a", &mut Vec::<u16>::new()).unwrap_err();
    assert_eq!(error.to_string(), "cl100k_base has ids up to 100276: u16 ends at 65535");
}
