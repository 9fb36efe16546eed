//! Resizes a head together with its table, and freezes its rows.

use candle_core::{Tensor, Var};
use candle_nn::VarMap;

use super::Head;
use crate::embedding::Growth;
use crate::support::variables::{insert, name_of};
use crate::{Error, Fill, Result, TokenEmbedding};

/// A resized weight (none for a tied head) and bias that have not yet replaced the old ones.
pub(crate) struct HeadGrowth {
    weight: Option<Growth>,
    bias: Option<(String, Var)>,
}

impl Head {
    /// Resizes the head to `rows` rows, as [`TokenEmbedding::resize`] does with a table. New variables replace weight and bias in
    /// `varmap`. New values of the bias are filled from the old ones by the same `fill` (with [`Fill::Init`] they are 0).
    ///
    /// [`TokenEmbedding::add_tokens`] does this with table and tokenizer in one call.
    ///
    /// # Errors
    /// As [`TokenEmbedding::resize`]. [`Error::Config`] for a tied head: resize the table, and make the head anew. Nothing is changed
    /// after an error.
    pub fn resize(&mut self, varmap: &VarMap, rows: usize, fill: Fill) -> Result<()> {
        if self.tied {
            return Err(Error::Config("a tied head has the size of its table: resize the table".to_string()));
        }
        let growth = self.growth(varmap, rows, &[], fill, false)?;
        self.apply(varmap, growth, None)
    }

    /// Freezes all rows of the weight but these: the others keep their bits. For a tied head this is [`TokenEmbedding::freeze_except`]
    /// of its table.
    ///
    /// Only optimizers of [`optim`](crate::optim) respect frozen rows. Without one, backward of [`loss`](Self::loss) is
    /// [`Error::NoOptimizer`]. Backward of [`logits`](Self::logits) cannot detect it, because candle computes that gradient.
    ///
    /// # Errors
    /// - [`Error::Config`]: the weight is not a variable, or is f64; the head has a bias, whose elements cannot be frozen.
    /// - [`Error::SecondOptimizer`]: two optimizers hold the weight.
    /// - [`Error::RowOutOfRange`].
    pub fn freeze_except(&self, rows: &[u32]) -> Result<()> {
        let wrong = |what: &str| Err(Error::Config(what.to_string()));
        self.check_whole("frozen rows")?;
        if self.bias.is_some() {
            return wrong("rows of a head with a bias cannot be frozen: the whole bias is trained");
        }
        if !self.weight.is_variable() || self.weight.dtype() == candle_core::DType::F64 {
            return wrong("to freeze rows, the head's weight must be a variable of f32, bf16 or f16");
        }
        self.table.make_row_sparse(&self.weight)?;
        self.table.freeze_except(rows)
    }

    /// Whether the head is tied to the table of `wte`.
    pub(crate) fn is_over(&self, wte: &TokenEmbedding) -> bool {
        std::sync::Arc::ptr_eq(&self.table, wte.weight_and_table().1)
    }

    /// Prepares a [`resize`](Self::resize) that also fills the existing rows `anew`. The layer resizes a `tied` weight.
    pub(crate) fn growth(
        &self,
        varmap: &VarMap,
        rows: usize,
        anew: &[u32],
        fill: Fill,
        tied: bool,
    ) -> Result<HeadGrowth> {
        self.check_whole("another number of rows")?;
        let old = self.vocab_size();
        let weight = match tied {
            true => None,
            false => Some(self.as_table()?.growth(varmap, rows, anew, fill)?),
        };
        let bias = |bias: &Tensor| {
            let name = name_of(varmap, bias).ok_or_else(|| {
                Error::Config("this head's bias is not a variable of the VarMap, so it cannot be resized".to_string())
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

    /// `table` is the resized table of a tied head.
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

    /// The weight as a layer's table, to share the code of its growth.
    fn as_table(&self) -> Result<TokenEmbedding> {
        TokenEmbedding::from_weight(self.weight.clone())
    }
}
