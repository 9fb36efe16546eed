//! All integration tests in one binary, so that candle is linked once.

mod batch;
mod checkpoint;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "cli")]
mod cli_outputs;
#[cfg(feature = "cli")]
mod cli_shards;
mod embedding;
mod head;
#[cfg(feature = "hub")]
mod hub;
mod init;
mod interop;
mod loader;
mod optim;
#[cfg(feature = "prepare")]
mod prepare;
mod pretrained;
mod pth;
#[cfg(all(feature = "cli", unix))]
mod readme;
mod shard;
mod stream;
mod tokenizer;
mod tokenizer_file;
#[cfg(feature = "cli")]
mod train_gpt;
#[cfg(feature = "cli")]
mod view;

use std::path::PathBuf;

/// A file of tests/golden.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A JSON file of tests/golden.
fn golden_json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn ids_of(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The generator of tests/golden/gen_tokenizer.py.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    fn scalar(&mut self) -> char {
        loop {
            if let Some(c) = char::from_u32(0x20 + self.below(0x30000 - 0x20) as u32) {
                return c;
            }
        }
    }
}

/// Pieces that meet badly: white space of all kinds, contractions, marks, digits, a special token's text.
const PIECES: [&str; 26] = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "   \n  ",
    "\u{a0}",
    "\u{3000}",
    "'s",
    "'LL",
    "'\u{17f}",
    "!!",
    "...",
    "123",
    "12345",
    "x",
    "Ab",
    "\u{1F600}",
    "\u{200d}",
    "\u{301}",
    "é",
    "漢字",
    "ß",
    "<|endoftext|>",
    "\0",
];
