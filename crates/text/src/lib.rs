//! Text ⇄ ids, and text files → shards of ids on disk: the front half of [tallow](https://docs.rs/tallow), without tensors.
//!
//! ```text
//!  text  ◀──▶ Tokenizer ◀──▶ ids
//!  files ───▶ prepare ─────▶ shard: ids on disk, which tallow's DataLoader, Megatron-LM and others read
//! ```
//!
//! A program that trains takes `tallow`, which has all of this under the same names (the error as
//! `TextError`). A program that only wants ids takes this package: nothing
//! of candle is in its tree, and no C is compiled.
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
//! - Ids of a text, or its text again: [`Tokenizer`]. Larger than memory: [`Tokenizer::encode_reader`]. How many, or how much text
//!   fits into so many: [`count_tokens`], [`count_up_to`], [`truncate_to_tokens`].
//! - The text of ids as a model gives them, one at a time: [`Tokenizer::decoder`]. Ids that it must not give:
//!   [`Tokenizer::ids_without_token`].
//! - Special tokens of one's own: [`Tokenizer::add_tokens`]; for tallow and others to read: [`Tokenizer::save`].
//! - Text files as token shards on disk: [`prepare`]. The files themselves: [`shard`].
//! - A tokenizer from the Hugging Face Hub: [`Tokenizer::from_pretrained`], with the feature `hub`.
//!
//! # Features
//! None is on by default. `parquet`: corpora in Parquet; 24 packages more, and a C compiler for its zstd. `hub`: the Hugging Face Hub; some 190 packages
//! more, and a C compiler for the TLS of its HTTP client. `gpt2`, `o200k`: these encodings in the program, 4 and 9 MB. `full`: all.

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
