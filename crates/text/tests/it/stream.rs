//! Streams: the ids of the parts are the ids of the whole, wherever reads end.

use std::io::Read;

use tallow_text::{Error, Specials, Tokenizer};

use crate::support::{Lcg, PIECES, golden};

/// Gives its bytes a few at a time.
struct Drip<'a>(&'a [u8], Lcg);

impl Read for Drip<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = (1 + self.1.below(400_000) as usize).min(self.0.len()).min(out.len());
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

fn streamed(tokenizer: &Tokenizer, text: &[u8], lossy: bool) -> tallow_text::Result<(Vec<u32>, usize)> {
    let mut ids = Vec::new();
    let mut chunks = 0;
    for part in tokenizer.encode_reader(Drip(text, Lcg(3)), lossy) {
        ids.extend(part?);
        chunks += 1;
    }
    Ok((ids, chunks))
}

#[test]
fn parts_are_the_whole() {
    let mut rng = Lcg(5);
    let mixed: String = (0..1_500_000).map(|_| PIECES[rng.below(26) as usize]).collect();
    let spaces = format!("word{}{}<|endoftext|>x", "\n", " ".repeat(3_000_000));
    let letters = "é".repeat(1_400_000) + " end";
    for specials in [Specials::Text, Specials::Allow] {
        let tokenizer = Tokenizer::cl100k().with_specials(specials);
        for (text, least_chunks) in [(&mixed, 4), (&spaces, 1), (&letters, 1), (&String::new(), 0)] {
            let (ids, chunks) = streamed(&tokenizer, text.as_bytes(), false).unwrap();
            assert!(
                ids == tokenizer.encode(text).unwrap(),
                "{specials:?} {:?}…",
                text.chars().take(20).collect::<String>()
            );
            assert!(chunks >= least_chunks, "{chunks} chunks");
        }
    }
}

/// Every way to cut a chunk: special tokens, white space and contractions moved across the 256 KiB mark.
#[test]
fn the_edge_of_a_chunk_is_not_seen() {
    let tokenizer = Tokenizer::cl100k().with_specials(Specials::Allow);
    for shift in 0..150 {
        let edge = "  \n \n   <|endoftext|>  \n\n  don't I'll   <|fim_prefix|> 12345   x";
        let text = "a ".repeat(((1 << 18) - 140 + shift) / 2)
            + if shift % 2 == 0 { "" } else { "b" }
            + edge
            + &"y z".repeat(60);
        let ids: Vec<u32> = tokenizer.encode_reader(text.as_bytes(), false).flat_map(|part| part.unwrap()).collect();
        assert!(ids == tokenizer.encode(&text).unwrap(), "shift {shift}");
    }
}

#[test]
fn a_tokenizer_json_is_read_whole() {
    let tokenizer = Tokenizer::from_file(golden("unigram.json")).unwrap();
    let text = "数字变矩阵 the fox\n".repeat(100);
    assert_eq!(streamed(&tokenizer, text.as_bytes(), false).unwrap(), (tokenizer.encode(&text).unwrap(), 1));
}

#[test]
fn bad_bytes_are_named_or_replaced() {
    let tokenizer = Tokenizer::cl100k();
    let mut bytes = "好".repeat(700_000).into_bytes();
    bytes[1_500_000] = 0xFF;
    bytes.extend([0xE6, 0xB2]);
    match streamed(&tokenizer, &bytes, false).unwrap_err() {
        Error::InvalidUtf8 { byte } => assert_eq!(byte, 1_500_000),
        other => panic!("{other}"),
    }
    let replaced = String::from_utf8_lossy(&bytes);
    assert!(streamed(&tokenizer, &bytes, true).unwrap().0 == tokenizer.encode(&replaced).unwrap());
    match streamed(&tokenizer, "ab小".as_bytes().split_last().unwrap().1, false).unwrap_err() {
        Error::InvalidUtf8 { byte } => assert_eq!(byte, 2),
        other => panic!("{other}"),
    }
}

#[test]
fn a_forbidden_special_is_found_across_chunks() {
    let tokenizer = Tokenizer::cl100k().with_specials(Specials::Forbid);
    for before in [(1 << 18) - 70, (1 << 18) - 6, 3 << 20] {
        let text = "ab ".repeat(before / 3) + "<|endoftext|>";
        match streamed(&tokenizer, text.as_bytes(), false).unwrap_err() {
            Error::SpecialForbidden { byte, .. } => assert_eq!(byte as usize, before / 3 * 3),
            other => panic!("{other}"),
        }
    }
}

/// A run that the pattern keeps together is held whole, up to a bound: a longer one is an error that says where it begins.
#[test]
fn a_run_is_held_up_to_a_bound() {
    let tokenizer = Tokenizer::cl100k();
    let run = |before: &str, length: usize| before.to_string() + &"\0".repeat(length) + " end";
    let encode = |text: &str, longest: usize| {
        let parts = tokenizer.encode_reader(text.as_bytes(), false).with_longest_run(longest);
        parts.collect::<tallow_text::Result<Vec<_>>>().map(|parts| parts.concat())
    };
    let text = run("words and ", 3 << 20);
    match encode(&text, 2 << 20).unwrap_err() {
        error @ Error::RunTooLong { byte, bytes } => {
            assert_eq!((byte, bytes), (9, 2 << 20), "the space before it is part of it");
            assert!(error.to_string().contains("break the text"), "{error}");
        }
        other => panic!("{other}"),
    }
    assert!(encode(&text, 4 << 20).unwrap() == tokenizer.encode(&text).unwrap());
    // 64 MiB unless said otherwise.
    let long = std::io::Read::take(std::io::repeat(b'a'), 80 << 20);
    let refused = tokenizer.encode_reader(long, false).find_map(Result::err).unwrap();
    assert!(matches!(refused, Error::RunTooLong { byte: 0, bytes } if bytes == 64 << 20), "{refused}");
    // Chinese has no white space: its punctuation is a place to cut, so that no text of it is a run.
    let chinese = "数字变矩阵，每个编号取一行。".repeat(100_000);
    let mut parts = tokenizer.encode_reader(chinese.as_bytes(), false).with_longest_run(1 << 16);
    assert!(parts.by_ref().all(|part| part.is_ok()));
}
