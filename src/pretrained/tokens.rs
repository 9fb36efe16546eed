//! Changes of tokenizer and table together: new tokens, and a table for another tokenizer.

use candle_nn::{VarBuilder, VarMap};

use super::PretrainedTable;
use crate::{Error, Fill, Head, Init, Result, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

/// The result of [`PretrainedTable::transplant`]: which rows were carried over.
///
/// # Example
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{Fill, PretrainedTable, Tokenizer};
/// let tokenizer = Tokenizer::from_file("assets/tiny-llama/tokenizer.json")?;
/// let table = PretrainedTable::open("assets/tiny-llama", None)?;
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let (wte, result) = table.transplant(&tokenizer, &tokenizer, Fill::Mean, &table.config(), vb.pp("wte"))?;
/// assert_eq!(result.matched + result.filled.len(), wte.vocab_size());
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transplanted {
    /// Number of tokens of the new tokenizer.
    pub tokens: usize,
    /// Number of tokens that keep a row: the old tokenizer has a token with the same bytes.
    pub matched: usize,
    /// Ids without an old row, ascending, including ids without a token. Their rows were filled.
    pub filled: Vec<u32>,
}

// Here, because the module `embedding` does not depend on text.
impl TokenEmbedding {
    /// Adds special tokens to the tokenizer, and rows for them to the table and the head. Returns the ids of `tokens`.
    ///
    /// `head` is the model's output layer. A head with its own weight is resized, so that the model can predict the new tokens. A tied
    /// head is attached to the new table. `None` is for a model without an output over this vocabulary.
    ///
    /// The tokenizer then finds the new tokens in text (not with [`Specials::Text`](crate::Specials::Text); see
    /// [`Tokenizer::add_tokens`]). New tokens get the first free ids. If the table already has rows for them (many models have more
    /// rows than tokens), these rows are filled anew. See [`resize`](Self::resize) for what must be updated afterwards, and
    /// [`freeze_except`](Self::freeze_except) to train only the new rows. The tokenizer's fingerprint changes, so that a
    /// [`Checkpoint`](crate::Checkpoint) or shards of the old tokenizer can be recognized.
    ///
    /// # Errors
    /// Those of [`Tokenizer::add_tokens`] and [`resize`](Self::resize). [`Error::Config`] for a head whose number of rows is not that of
    /// the table, or whose weight is not a variable of `varmap`. Nothing is changed after an error.
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{VarBuilder, VarMap};
    /// use tallow::{Fill, Head, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};
    /// let (mut tokenizer, varmap) = (Tokenizer::cl100k(), VarMap::new());
    /// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// let cfg = TokenEmbeddingConfig { vocab_size: tokenizer.vocab_size(), d_model: 8, ..Default::default() };
    /// let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    /// let mut head = Head::tied(&wte); // or Head::new(&vb.get((tokenizer.vocab_size(), 8), "lm_head.weight")?, None)?
    /// let ids = wte.add_tokens(Some(&mut head), &varmap, &mut tokenizer, &["<|user|>", "<|bot|>"], Fill::Mean)?;
    /// assert_eq!((ids, wte.vocab_size(), head.vocab_size()), (vec![100277, 100278], 100279, 100279));
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn add_tokens(
        &mut self,
        head: Option<&mut Head>,
        varmap: &VarMap,
        tokenizer: &mut Tokenizer,
        tokens: &[&str],
        fill: Fill,
    ) -> Result<Vec<u32>> {
        let mut grown = tokenizer.clone();
        let ids = grown.add_tokens(tokens)?;
        let old = self.vocab_size();
        let new = |id: &&u32| tokenizer.token_bytes(**id).is_none() && (**id as usize) < old;
        let within: Vec<u32> = ids.iter().filter(new).copied().collect();
        let rows = old.max(grown.vocab_size());
        let growth = self.growth(varmap, rows, &within, fill)?;
        match head {
            Some(head) if head.vocab_size() != old => {
                let what =
                    format!("a head of {} rows and a table of {old}: they are of different models", head.vocab_size());
                return Err(Error::Config(what));
            }
            Some(head) => {
                let tied = head.is_over(self);
                let head_growth = head.growth(varmap, rows, &within, fill, tied)?;
                self.apply(varmap, growth)?;
                head.apply(varmap, head_growth, tied.then_some(&*self))?;
            }
            None => self.apply(varmap, growth)?,
        }
        *tokenizer = grown;
        Ok(ids)
    }
}

impl PretrainedTable {
    /// Makes the variable `weight` of `vb` from this table for another tokenizer. Row i is the old row of the token with
    /// the same bytes as token i of `to`. If there is none, `fill` fills it. `cfg` sets gradient, scale and padding. It must have at
    /// least `to.vocab_size()` rows, and the table's width.
    ///
    /// # Errors
    /// - [`Error::Config`]: another width than the table's, or fewer rows than `to.vocab_size()`; or `vb` has the weight already.
    /// - those of [`TokenEmbedding::new`] and of reading.
    ///
    /// # Cost
    /// One pass over the table, and the cost of [`Fill`] for the ids without an old row.
    pub fn transplant(
        &self,
        from: &Tokenizer,
        to: &Tokenizer,
        fill: Fill,
        cfg: &TokenEmbeddingConfig,
        vb: VarBuilder,
    ) -> Result<(TokenEmbedding, Transplanted)> {
        let (rows, columns) = (cfg.vocab_size, self.d_model());
        if cfg.d_model != columns || rows < to.vocab_size() {
            return Err(Error::Config(format!(
                "the config says {rows} x {}: this table for {} needs {} rows or more, and {columns} columns",
                cfg.d_model,
                to.name(),
                to.vocab_size()
            )));
        }
        if vb.contains_tensor("weight") {
            return Err(Error::Config("the VarBuilder has a table already: pass an empty one".to_string()));
        }
        // (old row, new row), sorted by old row; and ids without an old row.
        let (mut pairs, mut filled, mut tokens) = (Vec::new(), Vec::new(), 0);
        for id in 0..rows as u32 {
            let bytes = to.token_bytes(id);
            tokens += usize::from(bytes.is_some());
            let old =
                bytes.and_then(|bytes| from.token_to_id(&bytes)).filter(|old| (*old as usize) < self.vocab_size());
            match old {
                Some(old) => pairs.push((old as usize, id as usize)),
                None => filled.push(id),
            }
        }
        pairs.sort_unstable();
        let layer = TokenEmbedding::new(&TokenEmbeddingConfig { init: Init::Constant(0.0), ..cfg.clone() }, vb)?;
        let weight = layer.flushed_weight()?.clone();
        let here = |rows: candle_core::Tensor| rows.to_dtype(weight.dtype())?.to_device(weight.device());
        let mut left = &pairs[..];
        for block in self.blocks() {
            let (first, block) = block?;
            let block = here(block)?;
            let (now, later) = left.split_at(left.partition_point(|(old, _)| *old < first + block.dims()[0]));
            for (old, new) in now {
                weight.slice_set(&block.narrow(0, old - first, 1)?.contiguous()?, 0, *new)?;
            }
            left = later;
        }
        if !filled.is_empty() {
            let values = here(fill.rows(&filled, columns, || self.blocks())?)?;
            for (i, id) in filled.iter().enumerate() {
                weight.slice_set(&values.narrow(0, i, 1)?.contiguous()?, 0, *id as usize)?;
            }
        }
        Ok((layer, Transplanted { tokens, matched: pairs.len(), filled }))
    }
}
