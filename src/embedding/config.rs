//! What a layer is made of.

use super::Init;

/// What backward gives for the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gradient {
    /// A dense gradient (V, C) in candle's `GradStore`: for any optimizer, at the cost of the whole table.
    #[default]
    Dense,
    /// Only the rows that were looked up, for an optimizer of [`optim`](crate::optim).
    ///
    /// **Reading the raw variable between steps gives old values** for rows that the last batches did not touch: their
    /// updates are deferred. Call [`AdamW::flush`](crate::optim::AdamW::flush) before `VarMap::save`, `Var::set`, a
    /// `candle_nn::Embedding` over the same variable, or any operation of candle's on it. Everything of tallow replays what it
    /// reads first: this layer, layers over [`no_grad`](crate::no_grad) or another detached tensor of the variable,
    /// [`head`](crate::head), [`Checkpoint`](crate::Checkpoint).
    ///
    /// Nothing of the table's size is allocated. candle's `GradStore` holds no gradient of the table then, unless the table is
    /// used densely, too (a [tied head](crate::Head::tied)); it holds a mark for each look-up, so that the row gradients of a
    /// backward belong to its `GradStore` as the dense ones do: to accumulate, add stores together (`total.extend(grads)?`);
    /// a step with a store that lacks some of them is an error. The optimizer must have the variable before a backward, which is an
    /// error else; which of layer and optimizer was made first does not matter. For f32, bf16 and f16 tables that are variables;
    /// others get no gradient at all.
    RowSparse,
}

/// A constant that every look-up is multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// Rows as they are (GPT-2, Llama).
    #[default]
    None,
    /// Times sqrt(d_model), rounded to the table's dtype (the first Transformer, Gemma).
    SqrtDModel,
    /// Times this.
    Constant(f64),
}

/// What a [`TokenEmbedding`](super::TokenEmbedding) is made of. The default holds every id of cl100k, the separator that
/// `prepare` writes included: 100277 x 64, N(0, 0.02), seed 1337. (The lesson's table is its first 100256 rows: `vocab_size: 100256`.)
///
/// ```
/// use tallow::{TokenEmbeddingConfig, Tokenizer};
/// let cfg = TokenEmbeddingConfig { vocab_size: Tokenizer::cl100k().vocab_size(), d_model: 768, ..Default::default() };
/// assert_eq!((cfg.vocab_size, cfg.seed), (100277, 1337));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEmbeddingConfig {
    /// Rows of the table, V. `Tokenizer::vocab_size()` holds every id.
    pub vocab_size: usize,
    /// Columns of the table, C.
    pub d_model: usize,
    /// How new rows are drawn.
    pub init: Init,
    /// What they are drawn from.
    pub seed: u64,
    /// An id that counts as [`NO_TOKEN`](crate::NO_TOKEN): it gives zeros and gets no gradient, whatever its row holds. (PyTorch's
    /// `padding_idx` gives what the row holds, which is zeros too unless weights were loaded over it.)
    pub padding_id: Option<u32>,
    /// What look-ups are multiplied with.
    pub scale: Scale,
    /// What backward gives.
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
