//! The front layer of a GPT on [candle](candle_core): text goes in, a trainable `batch x context x d_model`
//! tensor comes out, ready for positional encoding.
//!
//! ```text
//!  text ──▶ Tokenizer ──▶ ids ──▶ PaddedBatch ──▶ TokenEmbedding ──▶ (B, T, C) ──▶ position, blocks
//!                        [u32]     (B, T) u32        one row an id      Tensor
//! ```
//!
//! # From text to a matrix
//! ```
//! use candle_core::{DType, Device, Module};
//! use candle_nn::{VarBuilder, VarMap};
//! use tallow::{PaddedBatch, Padding, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};
//!
//! let (tokenizer, varmap) = (Tokenizer::cl100k(), VarMap::new());
//! let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
//! let wte = TokenEmbedding::new(&TokenEmbeddingConfig::default(), vb.pp("wte"))?;
//! let batch = PaddedBatch::from_texts(&tokenizer, &["小沈阳江西演唱会邀请了,"], Padding::default(), &Device::Cpu)?;
//! let x = wte.forward(&batch.ids)?;
//! assert_eq!(x.dims(), [1, 16, 64]);
//! # Ok::<(), tallow::Error>(())
//! ```
//!
//! # Which part do I want?
//! The guide, in the folder `docs` of the repository, has a page on each part.
//!
//! - Ids of a text, and text of ids: [`Tokenizer`]. For texts larger than memory: [`Tokenizer::encode_reader`].
//! - Texts of different lengths as one tensor: [`PaddedBatch`].
//! - A `candle_nn::Embedding` with a check of the ids, a seed and a faster forward: [`TokenEmbedding`].
//! - Training rows at a cost that depends on the batch, bit for bit as candle's AdamW: [`Gradient::RowSparse`] and
//!   [`optim::AdamW`].
//! - Loss and gradients of the output layer without storing the logits: [`Head::loss`], then [`backward`]. For
//!   generation and evaluation [`Head::logits`], [`Head::top_k`], [`Head::log_probs`].
//! - Parts of a training loop: parameter groups ([`optim::Optim::from_varmap_with`]), a learning rate ([`optim::Schedule`]), loss,
//!   perplexity and bits per byte of a split ([`evaluate()`]), the next id ([`Sampler`]), streaming text ([`Tokenizer::decoder`]).
//! - Before training: [`keep_pages`] and [`tune_threads`].
//! - Variables without a gradient: [`gradients::missing`].
//! - Resuming a run, and weights from PyTorch: [`Checkpoint`], [`load_weights`]. Evaluation without gradients: [`no_grad`].
//! - Only the first values, for a table of your own: [`Init::rows`].
//! - Text files to token shards on disk: [`prepare`]. The format of the shards: [`shard`].
//! - Batches for training from shards or a string, with resume and ranks: [`Dataset`] and [`DataLoader`].
//! - Pretrained rows from a file or the Hub: [`PretrainedTable`]. New tokens in tokenizer, table and head:
//!   [`TokenEmbedding::add_tokens`]. Saving a model that transformers loads: [`PretrainedTable::merge_into`], [`Tokenizer::save`].
//!   More rows: [`TokenEmbedding::resize`]. Nearest rows: [`neighbors`].
//! - Plots of a look-up, of a table before and after training, or of shards: the package tallow-view. The command `tallow`: the
//!   package tallow-cli. Once published, both are on docs.rs: [tallow-view](https://docs.rs/tallow-view),
//!   [tallow-cli](https://docs.rs/tallow-cli).
//! - A device by name, with a fallback: [`device::open`].
//!
//! # Names
//! The names in PyTorch, in candle and here. An empty cell means that there is no equivalent.
//!
//! | PyTorch | candle | tallow |
//! |---|---|---|
//! | `nn.Embedding(V, C)` | `candle_nn::embedding(V, C, vb)` | [`TokenEmbedding::new`]: sizes, init, seed, padding, scale and gradient are in the config |
//! | `nn.Embedding.from_pretrained(weight)` | `Embedding::new(weight, C)` | [`TokenEmbedding::from_weight`]; `TokenEmbedding::try_from(layer)` and `candle_nn::Embedding::from(wte)` |
//! | `nn.Embedding(sparse=True)` | | [`Gradient::RowSparse`] |
//! | `padding_idx` | | [`NO_TOKEN`], [`TokenEmbeddingConfig::padding_id`] |
//! | `embedding.weight` | `embeddings()` | [`TokenEmbedding::flushed_weight`] to read it once; [`TokenEmbedding::embeddings`] |
//! | `num_embeddings`, `embedding_dim` | `hidden_size()` | [`TokenEmbedding::vocab_size`], [`TokenEmbedding::d_model`] |
//! | `pad_sequence` | | [`PaddedBatch`] |
//! | `nn.Linear(C, V)` at the end | `Linear::new(weight, bias)` | [`Head::new`]; [`Head::tied`] |
//! | logits of every position | `linear.forward(&hidden)` | [`Head::logits`], or `head.forward(&hidden)` |
//! | `F.cross_entropy` of the logits, `F.linear_cross_entropy` | `loss::cross_entropy(&logits, &targets)` | [`Head::loss`]: the logits of at most 256 tokens exist at a time |
//! | `ignore_index=-100` | | [`NO_TOKEN`] in the targets |
//! | `torch.topk(logits, k)` | | [`Head::top_k`] |
//! | `loss.backward()` | `loss.backward()` | the same, or [`backward`], which saves two buffers as large as the table |
//! | `torch.no_grad()` | | [`no_grad`]: a `VarBuilder` over the same weights |
//! | `optim.AdamW` | `candle_nn::AdamW::new(vars, params)` | [`optim::AdamW`]: the same call; also [`optim::Optim::from_varmap`] |
//! | `optim.SGD` | `candle_nn::SGD` | [`optim::Sgd`] |
//! | `optim.SparseAdam` | | [`optim::AdamW`] with [`optim::Replay::Lazy`]: another optimizer than AdamW |
//! | parameter groups | | [`optim::Optim::from_varmap_with`], [`optim::Optim::with_groups`] |
//! | `optimizer.step()` | `step(&grads)`, `backward_step(&loss)` | the same |
//! | `optim.lr_scheduler` | `set_learning_rate(lr)` | [`optim::Schedule`] gives the rate; `set_learning_rate(lr)`, or [`optim::Optim::groups_mut`] |
//! | `clip_grad_norm_` | | [`optim::Optim::clip_grad_norm`] |
//! | several backwards before a step | | `total.extend(grads)?` |
//! | `optimizer.zero_grad()` | the `GradStore` is dropped | [`optim::Optim::zero_grad`], if a step is skipped |
//! | `Dataset`, `DataLoader` | | [`Dataset`], [`DataLoader`] |
//! | `DistributedSampler` | | [`DataLoaderConfig::rank`], [`DataLoaderConfig::world_size`] |
//! | `torch.save(model.state_dict())` | `VarMap::save` | the same after [`optim::Optim::flush`]; [`Checkpoint::save`] for a whole run |
//! | `load_state_dict` | `VarMap::load` | [`Checkpoint::load`], [`load_weights`]; [`LoadOptions::partial`] is `strict=False` |
//! | `optimizer.state_dict()` | | [`optim::Optim::state`], [`optim::Optim::load_state`] |
//! | `resize_token_embeddings` (transformers) | | [`TokenEmbedding::add_tokens`], [`TokenEmbedding::resize`], [`optim::Optim::follow`] |
//! | `generate` (transformers) | | [`Sampler`], [`Tokenizer::decoder`] |
//! | `Encoding.n_vocab` (tiktoken) | | [`Tokenizer::vocab_size`] |
//!
//! # What it is not
//! It has one trainable row for each token. It does not compute sentence embeddings for search. Position, attention and the rest of the
//! model are not part of it.
//!
//! # Packages
//! This package has no command line, no plots, and no C code in its dependencies. The code without tensors ([`Tokenizer`], [`prepare`],
//! [`shard`]) is the package [tallow-text](tallow_text), re-exported here under the same names.
//!
//! # Features
//! All are off by default. `parquet`: corpora in Parquet. `hub`: the Hugging Face Hub. Both compile C. `gpt2`, `o200k`: these
//! encodings, bundled. `full`: these four. `cuda`, `cudnn`, `metal`, `accelerate`, `mkl`: candle's features. `nccl`: NCCL
//! between several GPUs ([`distributed`]).

#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))] // docs.rs shows the feature that an item needs

mod batch;
mod checkpoint;
mod collective;
mod cuda;
pub mod device;
pub mod distributed;
mod embedding;
mod error;
mod evaluate;
pub mod gradients;
mod grouping;
pub mod head;
mod ids;
pub mod loader;
mod neighbors;
pub mod optim;
mod pretrained;
mod remote;
mod rows;
mod sample;
mod support;
mod tensors;

pub use batch::{PaddedBatch, Padding, Side};
pub use checkpoint::{Checkpoint, IncompatibleKeys, LoadOptions, load_weights};
pub use embedding::{Fill, Gradient, Init, Scale, TokenEmbedding, TokenEmbeddingConfig};
pub use error::{Error, Result};
pub use evaluate::{Evaluation, evaluate};
pub use gradients::{backward, no_grad};
pub use head::Head;
pub use ids::NO_TOKEN;
pub use loader::{Batch, DataLoader, DataLoaderConfig, Dataset, Order};
pub use neighbors::{Neighbor, Table, neighbors, neighbors_of};
pub use pretrained::{
    PretrainedTable, RowChange, RowChanges, RowStatistics, TensorInfo, Transplanted, list_tensors, weight_files,
};
pub use rows::RowGradients;
pub use sample::{Sampler, SamplerConfig};
pub use support::{keep_pages, tune_threads};
pub use tallow_text::Error as TextError;
#[cfg(feature = "hub")]
pub use tallow_text::hub;
pub use tallow_text::{
    Backend, Decoder, EncodeReader, Id, Specials, Tokenizer, count_tokens, count_up_to, prepare, shard,
    truncate_to_tokens,
};

/// The programs in the README are compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The same for the Chinese README.
#[cfg(doctest)]
#[doc = include_str!("../README.zh-CN.md")]
struct ReadmeInChinese;

/// The same for the guide.
#[cfg(doctest)]
macro_rules! guide {
    ($($name:ident $page:literal)*) => { $(#[doc = include_str!(concat!("../docs/", $page, ".md"))] struct $name;)* };
}

#[cfg(doctest)]
guide! {
    Guide "README"
    GuideTokenizer "tokenizer"
    GuideCorpora "corpora"
    GuideLoading "loading"
    GuideLayer "layer"
    GuideTraining "training"
    GuideHead "head"
    GuideCheckpoints "checkpoints"
    GuidePretrained "pretrained"
    GuidePictures "pictures"
    GuideGpu "gpu"
    GuideDistributed "distributed"
    GuideFormat "format"
    GuideDesign "design"
}
