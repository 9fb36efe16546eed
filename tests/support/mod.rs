//! What the tests of all packages share. Expectations come from others: tests/golden keeps what they said.
//!
//! Tests that need more than Rust are ignored, and named after what they need (`needs_python_…`, `needs_chromium_…`,
//! `needs_root_…`, `needs_corpora_…`), so that none passes without running. Who has it asks for them by name, as .ci/needs does:
//! `cargo test --features full --test it -- --ignored needs_python`. What is missing then is a failure.
#![allow(dead_code)] // each package takes what it needs

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// The folder of the repository.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("tests/golden").is_dir()).expect("a checkout has tests/golden")
}

/// A file of tests/golden.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

/// A JSON file of tests/golden.
pub fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

pub fn ids_of(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The generator of tests/golden/gen_tokenizer.py.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    pub fn scalar(&mut self) -> char {
        loop {
            if let Some(c) = char::from_u32(0x20 + self.below(0x30000 - 0x20) as u32) {
                return c;
            }
        }
    }
}

/// Pieces that meet badly: white space of all kinds, contractions, marks, digits, a special token's text.
pub const PIECES: [&str; 26] = [
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

/// Every file of a folder and what is in it.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path).into_iter().map(|(inner, bytes)| (path.join(inner), bytes)));
        } else {
            files.insert(path.strip_prefix(folder).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
        }
    }
    files.into_iter().map(|(path, bytes)| (path.strip_prefix(folder).unwrap_or(&path).to_path_buf(), bytes)).collect()
}

/// A text of `lines` lines that meet badly, with blank lines among them.
pub fn text(seed: u64, lines: usize) -> String {
    let mut rng = Lcg(seed);
    let mut text = String::new();
    for _ in 0..lines {
        (0..rng.below(12)).for_each(|_| text += PIECES[rng.below(26) as usize]);
        text.push('\n');
    }
    text
}

/// `base64 rank` lines for the ids that `bytes` knows.
pub fn rank_file(path: &Path, ids: u32, bytes: impl Fn(u32) -> Option<Vec<u8>>) {
    let mut text = String::new();
    for id in 0..ids {
        if let Some(bytes) = bytes(id) {
            writeln!(text, "{} {id}", BASE64_STANDARD.encode(bytes)).unwrap();
        }
    }
    std::fs::write(path, text).unwrap();
}

/// The interpreter, which must have these packages.
pub fn python(packages: &str) -> String {
    let python = std::env::var("TALLOW_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let asked = Command::new(&python).args(["-c", &format!("import {packages}")]).output();
    let there = asked.is_ok_and(|output| output.status.success());
    assert!(there, "{python} has no {packages}: install them, or name another interpreter (TALLOW_PYTHON)");
    python
}

/// What a script of tests/interop says.
pub fn run(python: &str, script: &str, args: &[&Path]) -> Value {
    let script = root().join("tests/interop").join(script);
    let output = Command::new(python).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
