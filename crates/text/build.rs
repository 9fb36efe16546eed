//! Makes the tables of the bundled encodings from the rank files that OpenAI publishes, so that a program opens them as they are.
//!
//! Less than a second for each; no dependency. The tables lie in the memory of the machine that they are made for.

#![allow(dead_code)] // the library uses the rest

#[path = "src/tokenizer/bpe/fold.rs"]
mod fold;
#[path = "src/tokenizer/bpe/pilots.rs"]
mod pilots;
#[path = "src/tokenizer/bpe/rule.rs"]
mod rule;
#[path = "src/tokenizer/bpe/tables.rs"]
mod tables;

use std::path::Path;
use std::{env, fs};

use tables::Tables;

fn main() {
    println!("cargo::rerun-if-changed=src/tokenizer/bpe");
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    let big_endian = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");
    let bundled = [("cl100k_base", None), ("o200k_base", Some("O200K")), ("r50k_base", Some("GPT2"))];
    for (name, feature) in bundled {
        if feature.is_some_and(|feature| env::var_os(format!("CARGO_FEATURE_{feature}")).is_none()) {
            continue;
        }
        let path = format!("assets/{name}.tiktoken");
        println!("cargo::rerun-if-changed={path}");
        let ranks = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let tokens: Vec<(u32, Vec<u8>)> = ranks.lines().map(rank).collect();
        let tokens: Vec<(u32, &[u8])> = tokens.iter().map(|(id, token)| (*id, token.as_slice())).collect();
        let tables = Tables::build(&tokens).unwrap_or_else(|e| panic!("{path}: {e}"));
        let file = Path::new(&out).join(format!("{name}.tables"));
        fs::write(&file, bytes(&tables, big_endian)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

/// A line of a rank file: base64 and a number.
fn rank(line: &str) -> (u32, Vec<u8>) {
    let (token, rank) = line.split_once(' ').expect("a token and its rank");
    let (mut bytes, mut bits, mut len) = (Vec::new(), 0u32, 0);
    for c in token.bytes().take_while(|c| *c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("{token} is not base64"),
        };
        (bits, len) = (bits << 6 | u32::from(value), len + 6);
        if len >= 8 {
            len -= 8;
            bytes.push((bits >> len) as u8);
        }
    }
    (rank.parse().expect("a number"), bytes)
}

/// Eleven numbers: of tokens, of the bytes of the longest, and of the entries of each table. Then the
/// tables, each at a multiple of 16 bytes. `bundled.rs` opens it.
fn bytes(tables: &Tables, big_endian: bool) -> Vec<u8> {
    let Tables { bytes, starts, byte_ids, short, short_pilots, long, pairs, pair_pilots, chars, len, longest } = tables;
    let mut out = Vec::new();
    let header = [
        *len,
        *longest,
        short.len(),
        pairs.len(),
        chars.len(),
        starts.len(),
        byte_ids.len(),
        long.len(),
        short_pilots.len(),
        pair_pilots.len(),
        bytes.len(),
    ];
    let header: Vec<u64> = header.into_iter().map(|len| len as u64).collect();
    macro_rules! put {
        ($($table:expr),*) => {
            $(
                for word in $table.iter() {
                    out.extend_from_slice(&if big_endian { word.to_be_bytes() } else { word.to_le_bytes() });
                }
                out.resize(out.len().next_multiple_of(16), 0);
            )*
        };
    }
    put!(header, short, pairs, chars, starts, byte_ids, long);
    for table in [short_pilots, pair_pilots, bytes] {
        out.extend_from_slice(table);
        out.resize(out.len().next_multiple_of(16), 0);
    }
    out
}
