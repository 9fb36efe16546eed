//! Text ⇄ ids, and text files → shards of ids on disk: the part of [tallow](https://docs.rs/tallow) that needs no tensors.
//!
//! ```text
//!  text  ◀──▶ Tokenizer ◀──▶ ids
//!  files ───▶ prepare ─────▶ shard: ids on disk, which tallow's DataLoader, Megatron-LM and others read
//! ```
//!
//! A program that trains uses `tallow`, which re-exports all of this under the same names (the error as `TextError`). A program
//! that only needs ids uses this package: it does not depend on candle and compiles no C.
//!
//! # From text to ids
//! ```
//! use tallow_text::Tokenizer;
//! let tokenizer = Tokenizer::cl100k();
//! let ids = tokenizer.encode("tiktoken is great!")?;
//! assert_eq!(ids, [83, 1609, 5963, 374, 2294, 0]);
//! assert_eq!(tokenizer.decode(&ids)?, "tiktoken is great!");
//! # Ok::<(), tallow_text::Error>(())
//! ```
//!
//! # Which part do I want?
//! - Encode text to ids, and decode ids to text: [`Tokenizer`]. Text larger than memory: [`Tokenizer::encode_reader`]. Count tokens,
//!   or cut text to a number of tokens: [`count_tokens`], [`count_up_to`], [`truncate_to_tokens`].
//! - Decode ids one at a time while a model generates them: [`Tokenizer::decoder`]. Ids that a model must not generate:
//!   [`Tokenizer::ids_without_token`].
//! - Add special tokens: [`Tokenizer::add_tokens`]. Save the tokenizer for tallow and other libraries: [`Tokenizer::save`].
//! - Text files as token shards on disk: [`prepare`]. The files themselves: [`shard`].
//! - A tokenizer from the Hugging Face Hub: [`Tokenizer::from_pretrained`], with the feature `hub`.
//!
//! # Features
//! None is on by default.
//! - `parquet`: corpora in Parquet. 24 more packages, and a C compiler for its zstd.
//! - `hub`: the Hugging Face Hub. Some 190 more packages, and a C compiler for the TLS of its HTTP client.
//! - `gpt2`, `o200k`: these encodings in the program, 4 and 9 MB.
//! - `full`: all of them.

#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))] // docs.rs says which feature an item needs

mod corpus;
mod error;
#[cfg(feature = "hub")]
pub mod hub;
mod ids;
pub mod prepare;
mod remote;
pub mod shard;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod support;
mod tokenizer;

pub use error::{Error, Result};
pub use ids::NO_TOKEN;
pub use tokenizer::{
    Backend, Decoder, EncodeReader, Id, Specials, Tokenizer, count_tokens, count_up_to, truncate_to_tokens,
};

/// The README's program is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
