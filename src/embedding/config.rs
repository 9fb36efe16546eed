//! Settings of the embedding layer.

use super::Init;

/// The gradient that backward computes for the table.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{ParamsAdamW, VarBuilder, VarMap};
/// use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 4, gradient: Gradient::RowSparse, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// let _opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
/// wte.forward(&Tensor::new(&[3u32, 7], &Device::Cpu)?)?.sqr()?.sum_all()?.backward()?;
/// assert_eq!(wte.take_row_gradients()?.map(|gradients| gradients.rows), Some(vec![3, 7]));
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gradient {
    /// A dense gradient (V, C) in candle's `GradStore`: for any optimizer, at the cost of the whole table.
    #[default]
    Dense,
    /// Only the rows that were looked up, for an optimizer of [`optim`](crate::optim).
    ///
    /// **Between steps the raw variable holds old values** for rows that the last batches did not contain: their updates are
    /// deferred. Call [`AdamW::flush`](crate::optim::AdamW::flush) before `VarMap::save`, `Var::set`, a
    /// `candle_nn::Embedding` over the same variable, or any operation of candle's on it. Everything of tallow replays the rows
    /// before it reads them: this layer, layers over [`no_grad`](crate::no_grad) or another detached tensor of the variable,
    /// [`head`](crate::head), [`Checkpoint`](crate::Checkpoint).
    ///
    /// Nothing of the table's size is allocated. candle's `GradStore` holds no gradient of the table, unless the table is also used
    /// densely (a [tied head](crate::Head::tied)). It holds a mark for each look-up, so that row gradients belong to the `GradStore`
    /// of their backward, as dense ones do. To accumulate, add stores together (`total.extend(grads)?`). A step with a store that
    /// lacks some of them is an error. An optimizer must hold the variable before backward, else backward is an error. Layer and
    /// optimizer may be made in either order. The table must be f32, bf16 or f16. A table that is not a variable gets no gradient.
    RowSparse,
}

/// A constant factor of every looked-up row.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{Init, Scale, TokenEmbedding, TokenEmbeddingConfig};
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let (init, scale) = (Init::Constant(1.0), Scale::SqrtDModel);
/// let wte = TokenEmbedding::new(&TokenEmbeddingConfig { vocab_size: 10, d_model: 4, init, scale, ..Default::default() }, vb)?;
/// assert_eq!(wte.lookup(&Tensor::new(&[3u32], &Device::Cpu)?)?.to_vec2::<f32>()?, [[2.0; 4]]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// No factor (GPT-2, Llama).
    #[default]
    None,
    /// sqrt(d_model), rounded to the table's dtype (the first Transformer, Gemma).
    SqrtDModel,
    /// This factor.
    Constant(f64),
}

/// Settings of a [`TokenEmbedding`](super::TokenEmbedding). The default has a row for every id of cl100k, including the separator
/// that `prepare` writes: 100277 x 64, N(0, 0.02²), seed 1337. (`vocab_size: 100256` has the same first rows, without special tokens.)
///
/// ```
/// use tallow::{TokenEmbeddingConfig, Tokenizer};
/// let cfg = TokenEmbeddingConfig { vocab_size: Tokenizer::cl100k().vocab_size(), d_model: 768, ..Default::default() };
/// assert_eq!((cfg.vocab_size, cfg.seed), (100277, 1337));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEmbeddingConfig {
    /// Rows of the table, V. `Tokenizer::vocab_size()` rows are enough for every id.
    pub vocab_size: usize,
    /// Columns of the table, C.
    pub d_model: usize,
    /// Distribution of the first values.
    pub init: Init,
    /// Seed of the first values.
    pub seed: u64,
    /// An id that is treated as [`NO_TOKEN`](crate::NO_TOKEN): its output is zeros and it gets no gradient, whatever its row holds.
    /// (PyTorch's `padding_idx` returns the row itself, which is zeros unless other weights were loaded.)
    pub padding_id: Option<u32>,
    /// Factor of every looked-up row.
    pub scale: Scale,
    /// Kind of the table's gradient.
    pub gradient: Gradient,
}

impl Default for TokenEmbeddingConfig {
    fn default() -> Self {
        TokenEmbeddingConfig {
            vocab_size: 100_277,
            d_model: 64,
            init: Init::GPT2,
            seed: 1337,
            padding_id: None,
            scale: Scale::None,
            gradient: Gradient::Dense,
        }
    }
}
