//! The vocabulary's other end grows with the table, or trains some rows alone.

use candle_core::{Tensor, Var};
use candle_nn::VarMap;

use super::Head;
use crate::embedding::Growth;
use crate::support::variables::{insert, name_of};
use crate::{Error, Fill, Result, TokenEmbedding};

/// A weight, unless the head is tied, and a bias of another size that are about to take the old ones' place.
pub(crate) struct HeadGrowth {
    weight: Option<Growth>,
    bias: Option<(String, Var)>,
}

impl Head {
    /// Gives the head `rows` rows, as [`TokenEmbedding::resize`] does with a table: new variables take the place of weight and bias in
    /// `varmap`. New values of the bias come from its old ones by the same `fill` ([`Fill::Init`] begins it at 0).
    ///
    /// [`TokenEmbedding::add_tokens`] does this with table and tokenizer in one call.
    ///
    /// # Errors
    /// As [`TokenEmbedding::resize`]; [`Error::Config`] for a tied head: resize the table, and make the head anew. Nothing is changed then.
    pub fn resize(&mut self, varmap: &VarMap, rows: usize, fill: Fill) -> Result<()> {
        if self.tied {
            return Err(Error::Config("a tied head is as large as its table: resize that one".to_string()));
        }
        let growth = self.growth(varmap, rows, &[], fill, false)?;
        self.apply(varmap, growth, None)
    }

    /// Trains these rows of the weight alone; the others keep their bits. Of a tied head it is [`TokenEmbedding::freeze_except`] of its
    /// table.
    ///
    /// An optimizer of [`optim`](crate::optim) keeps them so. A backward of [`loss`](Self::loss) without one is
    /// [`Error::NoOptimizer`]; of [`logits`](Self::logits), whose gradient candle computes, it is not noticed.
    ///
    /// # Errors
    /// - [`Error::Config`]: a weight that is no variable or f64; a head with a bias, which trains as a whole.
    /// - [`Error::SecondOptimizer`] if two optimizers have the weight; [`Error::RowOutOfRange`].
    pub fn freeze_except(&self, rows: &[u32]) -> Result<()> {
        let wrong = |what: &str| Err(Error::Config(what.to_string()));
        if self.bias.is_some() {
            return wrong("a head's bias trains as a whole: with it no row keeps what it says");
        }
        if !self.weight.is_variable() || self.weight.dtype() == candle_core::DType::F64 {
            return wrong("rows can be frozen in a head whose weight is a variable of f32, bf16 or f16");
        }
        self.table.make_row_sparse(&self.weight)?;
        self.table.freeze_except(rows)
    }

    /// Whether this is the head of that table.
    pub(crate) fn is_over(&self, wte: &TokenEmbedding) -> bool {
        std::sync::Arc::ptr_eq(&self.table, wte.weight_and_table().1)
    }

    /// What [`resize`](Self::resize) will do, with rows `anew`, which the head has already, filled, too. A `tied` weight is left to its
    /// layer.
    pub(crate) fn growth(
        &self,
        varmap: &VarMap,
        rows: usize,
        anew: &[u32],
        fill: Fill,
        tied: bool,
    ) -> Result<HeadGrowth> {
        let old = self.vocab_size();
        let weight = match tied {
            true => None,
            false => Some(self.as_table()?.growth(varmap, rows, anew, fill)?),
        };
        let bias = |bias: &Tensor| {
            let name = name_of(varmap, bias).ok_or_else(|| {
                Error::Config("this head's bias is no variable of the VarMap: only one that is can grow".to_string())
            })?;
            let ids: Vec<u32> = anew.iter().copied().chain(old as u32..rows as u32).collect();
            let fill = if matches!(fill, Fill::Init { .. }) { Fill::Zero } else { fill };
            let new = fill.rows(&ids, 1, || {
                std::iter::once(bias.detach().unsqueeze(1).map(|old| (0, old)).map_err(Error::from))
            })?;
            let new = new.flatten_all()?.to_dtype(bias.dtype())?.to_device(bias.device())?;
            let grown = match rows > old {
                true => Tensor::cat(&[bias, &new.narrow(0, anew.len(), rows - old)?], 0)?,
                false => bias.copy()?,
            };
            for (i, id) in anew.iter().enumerate() {
                grown.slice_set(&new.narrow(0, i, 1)?, 0, *id as usize)?;
            }
            Ok::<_, Error>((name, Var::from_tensor(&grown.detach())?))
        };
        Ok(HeadGrowth { weight, bias: self.bias.as_ref().map(bias).transpose()? })
    }

    /// `table` is that of a tied head, grown already.
    pub(crate) fn apply(&mut self, varmap: &VarMap, growth: HeadGrowth, table: Option<&TokenEmbedding>) -> Result<()> {
        let mut own = self.as_table()?;
        if let Some(growth) = growth.weight {
            own.apply(varmap, growth)?;
        }
        let (weight, table) = table.unwrap_or(&own).weight_and_table();
        (self.weight, self.table) = (weight.clone(), table.clone());
        if let Some((name, bias)) = growth.bias {
            self.bias = Some(bias.as_tensor().clone());
            insert(varmap, [(name, bias)]);
        }
        Ok(())
    }

    /// The weight as a layer's table, whose growth is the same.
    fn as_table(&self) -> Result<TokenEmbedding> {
        TokenEmbedding::from_weight(self.weight.clone())
    }
}
