//! Compares the encoder with regular expressions, with the plain merge rule, and with two other encoders.

use std::sync::LazyLock;

use bpe_openai::Tokenizer as Reference;
use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};

use super::blocks::{Block, Body};
use super::split::{Pattern, Pieces};
use super::tables::Tables;
use super::*;
use crate::Tokenizer;

/// Characters that patterns treat differently, or at the bounds of a kind.
const NASTY: [&str; 24] = [
    "a", "B", "s", "l", "1", " ", "\t", "\n", "\r", "!", "/", "'", "é", "É", "中", "ʰ", "\u{301}", "\u{3000}",
    "\u{A0}", "😀", "ſ", "ǅ", "٣", "𝟘",
];

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    let x = *state ^ *state >> 33;
    x.wrapping_mul(0xFF51_AFD7_ED55_8CCD) >> 20
}

fn pick<'a, T: ?Sized>(from: &[&'a T], state: &mut u64) -> &'a T {
    from[random(state) as usize % from.len()]
}

/// Text of many kinds, of about `bytes` bytes.
fn text(bytes: usize, state: &mut u64) -> String {
    const WORDS: [&str; 20] = [
        "the",
        "Tokenizer",
        " don't",
        "I'll",
        "WE'RE",
        "naïve",
        "数字",
        "矩阵，变成",
        "привет",
        "مرحبا",
        "कि",
        "ภาษาไทย",
        "12345",
        "3.14",
        "foo_bar(",
        "    return",
        "\r\n\r\n",
        "============",
        "\u{200d}👩‍🚀",
        "\u{feff}",
    ];
    let mut text = String::new();
    while text.len() < bytes {
        let run = 1 + random(state) as usize % 40;
        match random(state) % 8 {
            0 => (0..run).for_each(|_| text.push_str(pick(&NASTY, state))),
            1 | 2 => (0..run).for_each(|_| text.push_str(pick(&WORDS, state))),
            3 => (0..run).for_each(|_| text.push((b' ' + (random(state) % 95) as u8) as char)),
            4 => text.push_str(&pick(&NASTY, state).repeat(run * run)),
            5 => text.extend((0..run).filter_map(|_| char::from_u32(0x4E00 + random(state) as u32 % 0x5200))),
            6 => text.extend((0..run).filter_map(|_| char::from_u32(random(state) as u32 % 0x3000))),
            _ => text.extend((0..run).filter_map(|_| char::from_u32(random(state) as u32 % 0x11_0000))),
        }
        if random(state).is_multiple_of(3) {
            text.push(' ');
        }
    }
    text
}

/// Splits by a regular expression. Automata have no look-ahead, so each pattern becomes three, tried in order: all but white space, and
/// white space at the end of the text; white space plus one more character, which is not used; a single white space.
fn by_regex(regex: &Regex, text: &str) -> Vec<usize> {
    let (mut ends, mut start) = (Vec::new(), 0);
    while start < text.len() {
        let found = regex
            .search(&Input::new(text).range(start..).anchored(Anchored::Yes))
            .expect("a pattern matches everything");
        let end = match found.pattern().as_usize() {
            1 => text.floor_char_boundary(found.end() - 1),
            _ => found.end(),
        };
        assert!(end > start);
        ends.push(end);
        start = end;
    }
    ends
}

/// Ends of pieces by `starts` (and by `end` where it stops), and by `end` alone.
fn by_hand(pattern: Pattern, body: Body, text: &str) -> [Vec<usize>; 2] {
    let (mut fast, mut slow, mut at) = (Vec::new(), Vec::new(), 0);
    let mut pieces = Pieces::new(text, body);
    while at < text.len() {
        let starts = pieces.starts(pattern, at) & !1;
        if starts == 0 {
            at = pieces.end(pattern, at);
            fast.push(at);
        } else {
            fast.extend((0..64).filter(|bit| starts >> bit & 1 == 1).map(|bit| at + bit));
            at = fast[fast.len() - 1];
        }
    }
    let mut pieces = Pieces::new(text, body);
    at = 0;
    while at < text.len() {
        at = pieces.end(pattern, at);
        slow.push(at);
    }
    [fast, slow]
}

static REGEXES: LazyLock<[Regex; 4]> = LazyLock::new(|| {
    Pattern::ALL.map(|pattern| Regex::new_many(&[pattern.without_look_ahead(), r"\s+\s", r"\s+"]).unwrap())
});

fn check_split(text: &str) {
    for (pattern, regex) in Pattern::ALL.into_iter().zip(&*REGEXES) {
        let want = by_regex(regex, text);
        for body in Body::all() {
            for got in by_hand(pattern, body, text) {
                if got != want {
                    let at = got.iter().zip(&want).position(|(got, want)| got != want).unwrap_or(0);
                    let from = at.checked_sub(1).map_or(0, |before| want[before]);
                    let near = &text[from..text.ceil_char_boundary(from + 90)];
                    panic!(
                        "{pattern:?} {body:?} at {from}: {} instead of {}: {near:?}",
                        got[at] - from,
                        want[at] - from
                    );
                }
            }
        }
    }
}

#[test]
fn every_character_between_others_is_cut_as_the_patterns_say() {
    let around =
        [("a", "b"), ("A", "b"), (" ", "'"), ("1", "1"), ("\n", " "), ("!", "a"), ("中", "中"), ("", "\n"), ("'", "s")];
    // All that Unicode has assigned. What is left is of one kind, which `kinds_are_those_of_the_patterns` has looked at.
    for page in (0..0x3_4000).chain(0xE_0000..0xE_2000).step_by(0x2000) {
        let chars = (page..page + 0x2000).filter_map(char::from_u32);
        let parts = chars.flat_map(|c| around.map(|(before, after)| format!("{before}{c}{after}")));
        check_split(&parts.collect::<String>());
    }
}

#[test]
fn short_strings_are_cut_as_the_patterns_say() {
    let tail = "x y ".repeat(17);
    let mut strings = String::new();
    for number in 0..NASTY.len().pow(3) {
        let string = [0, 1, 2].map(|place| NASTY[number / NASTY.len().pow(place) % NASTY.len()]).concat();
        check_split(&string);
        strings.push_str(&string);
        strings.push('x');
    }
    // Again as neighbors of one another, and at the beginning of a long text.
    check_split(&(strings + &tail));
    let mut state = 5;
    for _ in 0..4000 {
        let string: String = (0..4 + random(&mut state) % 9).map(|_| pick(&NASTY, &mut state)).collect();
        check_split(&(string + &tail));
    }
}

#[test]
fn block_edges_are_not_seen() {
    let mut state = 9;
    for edge in [64, 4096] {
        for before in edge - 12..edge + 3 {
            for filler in ["x", "é", " ", "!", "1", "\n", "中", "😀"] {
                let mut text = filler.repeat(before / filler.len());
                text.push_str(&"x".repeat(before - text.len()));
                text.extend((0..12).map(|_| pick(&NASTY, &mut state)));
                text.push_str(&"y ".repeat(70));
                check_split(&text);
            }
        }
    }
    for seed in 0..40 {
        check_split(&text(9000, &mut { seed }));
    }
}

#[test]
fn all_bodies_see_the_same_kinds() {
    let mut state = 3;
    for round in 0..300 {
        let text = if round == 0 { (0..128u8).map(char::from).collect() } else { text(700, &mut state) };
        let mut want = [Block::default(); 9];
        Body::Plain.classify(&text, 64, &mut want);
        for body in Body::all() {
            let mut got = [[7; 12]; 9];
            body.classify(&text, 64, &mut got);
            assert!(got == want, "{body:?} {text:?}");
        }
    }
}

/// Compares the kinds of characters. With `TALLOW_WRITE_UNICODE=1` it writes `unicode.bin`, for a new version of regex-syntax.
#[test]
fn kinds_are_those_of_the_patterns() {
    let kinds = [r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\s"];
    let kinds = kinds.map(|kind| Regex::new(kind).unwrap());
    let kind = |code: u32| {
        let Some(c) = char::from_u32(code) else { return 7 };
        let kind = kinds.iter().position(|kind| kind.is_match(c.to_string().as_str()));
        kind.unwrap_or(7) as u8
    };
    let (mut numbers, mut pages) = (Vec::new(), Vec::<Vec<u8>>::new());
    for page in 0..0x1100 {
        let page: Vec<u8> = (0..256).map(|low| kind(page << 8 | low)).collect();
        let number = pages.iter().position(|other| *other == page).unwrap_or_else(|| {
            pages.push(page);
            pages.len() - 1
        });
        numbers.push(u8::try_from(number).unwrap());
    }
    let table = [numbers, pages.concat()].concat();
    if std::env::var_os("TALLOW_WRITE_UNICODE").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tokenizer/bpe/unicode.bin"), &table).unwrap();
    }
    assert!(
        table == unicode::TABLE,
        "the kinds have changed: run this test with TALLOW_WRITE_UNICODE=1, then all of them"
    );
}

fn tables(reference: &Reference, count: usize) -> Tables {
    let tokens: Vec<(u32, &[u8])> = (0..count as u32).map(|id| (id, reference.bpe.token_bytes(id))).collect();
    Tables::build(&tokens).unwrap()
}

#[test]
fn the_library_holds_what_the_rank_files_say() {
    let built = tables(bpe_openai::cl100k_base(), 100_256);
    let bundled = bundled::cl100k();
    assert!((&built.bytes, &built.starts, &built.byte_ids) == (&bundled.bytes, &bundled.starts, &bundled.byte_ids));
    assert!((&built.short, &built.short_pilots, &built.long) == (&bundled.short, &bundled.short_pilots, &bundled.long));
    assert!((&built.pairs, &built.pair_pilots, &built.chars) == (&bundled.pairs, &bundled.pair_pilots, &bundled.chars));
    assert_eq!((built.len, built.longest), (bundled.len, bundled.longest));
    #[cfg(feature = "o200k")]
    {
        let (built, bundled) = (tables(bpe_openai::o200k_base(), 199_998), bundled::o200k());
        assert!((&built.bytes, &built.short, &built.pairs) == (&bundled.bytes, &bundled.short, &bundled.pairs));
    }
}

/// Merges the bytes of the whole piece at once.
fn by_rule(tables: &View, piece: &[u8]) -> Vec<u32> {
    let mut parts: Vec<u32> = piece.iter().map(|byte| tables.byte(*byte)).collect();
    rule::merge_all(|left, right| tables.joined(left, right), &mut parts);
    parts
}

/// The rule, literally: find the lowest pair, join it, repeat.
fn naive(tables: &View, piece: &[u8]) -> Vec<u32> {
    let mut parts: Vec<&[u8]> = piece.chunks(1).collect();
    loop {
        let ranks = parts.windows(2).map(|pair| tables.id(&[pair[0], pair[1]].concat()));
        let best = ranks.enumerate().filter_map(|(i, rank)| Some((rank?, i))).min();
        let Some((_, i)) = best else { break };
        let start = parts[..i].iter().map(|part| part.len()).sum::<usize>();
        let len = parts[i].len() + parts[i + 1].len();
        parts[i] = &piece[start..start + len];
        parts.remove(i + 1);
    }
    parts.iter().filter_map(|part| tables.id(part)).collect()
}

#[test]
fn merging_is_the_rule() {
    let (tables, reference) = (bundled::cl100k(), &bpe_openai::cl100k_base().bpe);
    let view = tables.view();
    let mut state = 1;
    for round in 0..3000 {
        let alphabet: &[u8] =
            if round % 2 == 0 { b"abenrst \xe6\xb2\x88" } else { b"\xe6\xe4\xb8\xb2\xa0\x80\xd0\xbe\xf0\x9f \xc3" };
        let len = random(&mut state) as usize % 40;
        let piece: Vec<u8> = (0..len).map(|_| alphabet[random(&mut state) as usize % alphabet.len()]).collect();
        let piece = String::from_utf8_lossy(&piece).replace('\u{FFFD}', "").into_bytes();
        let mut merged = Vec::new();
        merge::merge(&view, &piece, &mut merged);
        assert_eq!(merged, naive(&view, &piece), "{piece:?}");
        assert_eq!(merged, by_rule(&view, &piece), "{piece:?}");
        assert_eq!(merged, reference.encode_via_backtracking(&piece), "{piece:?}");
    }
}

/// Compares merging from folded characters with merging from bytes, for neighboring characters.
#[test]
fn folded_characters_give_what_bytes_give() {
    let o200k = tables(bpe_openai::o200k_base(), 199_998);
    let mut state = 11;
    for tables in [bundled::cl100k(), o200k] {
        let view = tables.view();
        let check = |piece: &str| {
            let mut merged = Vec::new();
            merge::merge(&view, piece.as_bytes(), &mut merged);
            assert_eq!(merged, by_rule(&view, piece.as_bytes()), "{piece:?}");
        };
        let chars: Vec<char> = (0x20..0x11_0000).filter_map(char::from_u32).collect();
        // Faults are possible at the parts of tokens that cross the bound of a character, so all of these parts are tested as neighbors.
        let crossing = tables.joins().filter_map(|([left, right], _)| {
            let (left, right) = (view.bytes(left)?, view.bytes(right)?);
            let whole = std::str::from_utf8(left).is_ok() && std::str::from_utf8(right).is_ok();
            (!whole && !(0x80..0xC0).contains(&right[0])).then(|| [left, right].concat())
        });
        let crossing: Vec<Vec<u8>> = crossing.collect();
        assert!(crossing.len() > 100);
        for bytes in &crossing {
            // Random characters with the right part's first bytes, after random ones with the left part's last bytes.
            for _ in 0..30 {
                let mut inner = || 0x80 + (random(&mut state) % 64) as u8;
                let begun = bytes.iter().take_while(|byte| (0x80..0xC0).contains(*byte)).count();
                let lead = if begun == 1 && inner() < 0x90 { 0xC3 + inner() % 24 } else { 0xE1 + inner() % 12 };
                let mut text = if begun == 0 { Vec::new() } else { vec![lead] };
                text.extend(
                    (0..if lead < 0xE0 { 0 } else { 2usize.saturating_sub(begun) })
                        .filter(|_| begun > 0)
                        .map(|_| inner()),
                );
                text.extend_from_slice(bytes);
                while let Err(error) = std::str::from_utf8(&text) {
                    match error.error_len() {
                        None => text.push(inner()),
                        Some(len) => _ = text.drain(error.valid_up_to()..error.valid_up_to() + len),
                    }
                }
                check(std::str::from_utf8(&text).unwrap());
            }
        }
        for _ in 0..60_000 {
            let mut char = || match random(&mut state) % 4 {
                0 => chars[random(&mut state) as usize % chars.len()],
                1 => chars[random(&mut state) as usize % 0x1000],
                _ => char::from_u32(0x4E00 + random(&mut state) as u32 % 0x5200).unwrap_or(' '),
            };
            check(&(0..5).map(|_| char()).collect::<String>());
        }
    }
}

/// Compares windows, whether they meet or not, with the whole piece merged at once.
#[test]
fn windows_give_the_tokens_of_the_whole() {
    let bundled = bundled::cl100k();
    let mut state = 7;
    let mut below = |n: u64| (random(&mut state) % n) as usize;
    let some: String = (0..60_000)
        .map(|_| pick(&["a", "b", "e", "n", "r", "s", "t", " ", "\u{6C88}", "\0"], &mut { below(1 << 40) as u64 }))
        .collect();
    let any: String = (0..20_000).filter_map(|_| char::from_u32(below(0x11_0000) as u32)).collect();
    let han: String = (0..20_000).filter_map(|_| char::from_u32(0x4E00 + below(0x5200) as u32)).collect();
    let mut periodic = String::new();
    for period in 1..40 {
        periodic.push_str(&some[..some.ceil_char_boundary(period)].repeat(80));
    }
    let runs = ["a", "\0", " ", "=", "é", "中", "😀"].map(|c| c.repeat(7001));
    for text in [&some, &any, &han, &periodic].into_iter().chain(&runs) {
        for length in [text.len(), 257, 511, 512, 513, 600, 1111] {
            let (piece, mut windows) = (&text.as_bytes()[..text.ceil_char_boundary(length)], Vec::new());
            merge::merge(&bundled.view(), piece, &mut windows);
            assert!(by_rule(&bundled.view(), piece) == windows, "{:?}… of {length} bytes", &piece[..8]);
        }
    }
    // A vocabulary with tokens that are far longer than the overlap, so that windows within them do not meet at first.
    let mut words: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    words.extend((1..=14).map(|exponent| vec![b'x'; 1 << exponent]));
    let words: Vec<(u32, &[u8])> = (0..).zip(words.iter().map(Vec::as_slice)).collect();
    let long = Tables::build(&words).unwrap();
    for length in [1 << 15, (1 << 15) + 1_234, 3 << 14] {
        let (piece, mut windows) = (vec![b'x'; length], Vec::new());
        merge::merge(&long.view(), &piece, &mut windows);
        assert_eq!(by_rule(&long.view(), &piece), windows, "{length}");
    }
}

#[test]
fn what_cannot_be_a_table_is_refused() {
    let build = |tokens: &[(u32, &[u8])]| Tables::build(tokens).err().unwrap();
    assert_eq!(build(&[(0, b"a"), (1, b"a")]), "the token [97] stands twice, as rank 0 and as rank 1");
    assert_eq!(build(&[(3, b"a"), (3, b"b")]), "rank 3 stands twice");
    assert_eq!(build(&[(0, b"")]), "rank 0 is an empty token");
    assert_eq!(build(&[(5000, b"a")]), "rank 5000 is above 1026, the largest accepted for so few tokens");
}

/// Pilots are found for every size, also just below a power of two.
#[test]
fn tables_of_every_size_are_made() {
    for size in (0..60).map(|i| i * 7).chain([3640, 7280, 14_560, 28_000, 29_000, 54_000, 58_250, 104_857, 116_000]) {
        let keys: Vec<u64> = (1..=size).collect();
        let (pilots, table) = pilots::place(&keys, |key| tables::mix(key, 7)).unwrap();
        let view = pilots::Pilots::new(&pilots, &table);
        assert!(keys.iter().all(|key| table[view.place(tables::mix(*key, 7))] == *key), "{size}");
    }
    for rows in [3640, 7280, 29_000] {
        let bundled = bundled::cl100k();
        let first: Vec<(u32, &[u8])> = (0..rows).filter_map(|id| Some((id, bundled.bytes(id)?))).collect();
        assert_eq!(Tables::build(&first).unwrap().rows(), rows as usize);
    }
}

/// Compares megabytes of text of many kinds with GitHub's encoder and tiktoken-rs: whole, cut, and as a stream, with every body.
/// `TALLOW_FUZZ_MB=1000 TALLOW_FUZZ_SEED=7 cargo test --release -p tallow-text --features full fuzz -- --nocapture`.
#[test]
fn fuzz() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (bytes, mut state) = (number("TALLOW_FUZZ_MB", 2) as usize * 1_000_000, number("TALLOW_FUZZ_SEED", 1));
    let reference = |pattern: Pattern, text: &str| match pattern {
        Pattern::O200k => bpe_openai::o200k_base().encode(text),
        Pattern::Gpt2 => tiktoken_rs::r50k_base_singleton().encode_ordinary(text),
        _ => bpe_openai::cl100k_base().encode(text),
    };
    // The encodings of this build.
    let tokenizers: Vec<Tokenizer> = ["cl100k", "o200k", "gpt2"].into_iter().filter_map(Tokenizer::bundled).collect();
    let bodies: Vec<Body> = Body::all().collect();
    let (mut done, mut rounds) = (0, 0);
    while done < bytes {
        let text = text(100_000, &mut state);
        let body = bodies[rounds % bodies.len()];
        for tokenizer in &tokenizers {
            let bpe = &tokenizer.engine.by_pieces().unwrap().bpe;
            let want = reference(bpe.pattern, &text);
            let mut ids: Vec<u32> = Vec::new();
            bpe.with_body(body).encode(&text, &mut ids);
            if ids != want {
                let at = ids.iter().zip(&want).position(|(id, want)| id != want).unwrap_or(0);
                let before: usize = want[..at].iter().map(|id| bpe.tables.bytes(*id).map_or(0, <[u8]>::len)).sum();
                let near = &text.as_bytes()[before.saturating_sub(30)..text.len().min(before + 60)];
                panic!("{body:?} {:?} at {before}: {:?}", bpe.pattern, String::from_utf8_lossy(near));
            }
            // Up to a random cut, and the text up to it.
            let cut = text.floor_char_boundary(random(&mut state) as usize % text.len());
            let (mut first, mut last, mut number) = (Vec::<u32>::new(), 0, 0);
            bpe.pieces(&text, |end, ids| match end <= cut {
                true => {
                    (last, number) = (end, number + ids.len());
                    ControlFlow::Continue(())
                }
                false => ControlFlow::Break(()),
            });
            assert_eq!(bpe.with_body(body).encode_until(&text, cut, &mut first), last);
            assert!(first == want[..number]);
            let want = reference(bpe.pattern, &text[..cut]);
            let (mut ids, mut count) = (Vec::<u32>::new(), Count { ids: 0, limit: usize::MAX });
            bpe.with_body(body).encode(&text[..cut], &mut ids);
            bpe.encode(&text[..cut], &mut count);
            assert!(ids == want && count.ids == want.len());
            // As a stream.
            let streamed: Result<Vec<Vec<u32>>, _> = tokenizer.encode_reader(&text.as_bytes()[..cut], false).collect();
            assert!(streamed.unwrap().concat() == want);
        }
        (done, rounds) = (done + text.len(), rounds + 1);
    }
    println!("{done} bytes in {rounds} texts, {} encodings", tokenizers.len());
}

/// Short texts, one by one.
#[test]
fn every_character_in_company_has_the_ids_of_others() {
    let tokenizer = Tokenizer::cl100k();
    for c in (0..0x11_0000).filter_map(char::from_u32) {
        for text in [format!("x{c}1 {c}y {c}{c}\n{c} 's"), format!("{c}'")] {
            assert_eq!(tokenizer.encode(&text).unwrap(), bpe_openai::cl100k_base().encode(&text), "{text:?}");
        }
    }
}
