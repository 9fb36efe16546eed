//! All integration tests of the package in one binary.

mod decoder;
mod interop;
mod known;
mod prepare;
mod saved;
mod shard;
mod stream;
#[path = "../../../../tests/support/mod.rs"]
mod support;
mod tokenizer;
mod tokenizer_file;
