//! The rows of the table: their values, their gradients, and which of them are frozen.

use candle_core::Tensor;

use super::{Gradient, TokenEmbedding};
use crate::rows::{RowGradients, RowTable, Rows};
use crate::{Error, Result};

impl TokenEmbedding {
    /// The table (V, C) after all deferred updates are replayed. It is valid until the next step. For a table of a VarMap it is the
    /// variable itself. Call this, or [`AdamW::flush`](crate::optim::AdamW::flush) for all tables, before code other than tallow's
    /// reads the variable (`VarMap::save`, for example).
    ///
    /// # Errors
    /// Those of candle's operations. None for a dense gradient.
    ///
    /// # Cost
    /// None for a dense gradient, or if there was no step since the last flush. Else up to one pass over table and moments, plus the
    /// deferred updates.
    pub fn flushed_weight(&self) -> Result<&Tensor> {
        self.table.replay(Rows::All)?;
        Ok(&self.weight)
    }

    /// The table (V, C), as `candle_nn::Embedding::embeddings`: for code that was written for candle's layer (a tied head,
    /// `Linear::new(wte.embeddings().clone(), None)`).
    ///
    /// Later readers of the tensor do not replay deferred updates. So from this call on a row-sparse table is flushed at the end of
    /// every step, which costs up to a pass over the table. To read the table once use [`flushed_weight`](Self::flushed_weight), for a
    /// head [`Head::tied`](crate::Head::tied).
    pub fn embeddings(&self) -> &Tensor {
        self.table.keep_flushed();
        &self.weight
    }

    /// Takes the pending row gradients, summed by row: to log them, to change them, or to exchange them between machines. The step
    /// does not see them unless [`add_row_gradients`](Self::add_row_gradients) returns them before it. Step with the `GradStore` of
    /// their backward. `None` if no row gradients are pending.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient.
    pub fn take_row_gradients(&self) -> Result<Option<RowGradients>> {
        self.row_sparse()?.take()
    }

    /// Adds row gradients to the pending ones.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient, or values whose shape is not (rows, C); [`Error::RowOutOfRange`].
    pub fn add_row_gradients(&self, gradients: RowGradients) -> Result<()> {
        self.row_sparse()?.push_rows(gradients)
    }

    /// Freezes these rows: no optimizer of [`optim`](crate::optim) changes them, neither by gradient nor by decay. Replaces the
    /// previous list of frozen rows; an empty list unfreezes all.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient (candle's optimizers cannot skip rows); [`Error::RowOutOfRange`].
    pub fn freeze_rows(&self, rows: &[u32]) -> Result<()> {
        self.row_sparse()?.freeze(rows)
    }

    /// Freezes all rows but these. Only `rows` are trained; the others keep their bits.
    ///
    /// # Errors
    /// As [`freeze_rows`](Self::freeze_rows).
    pub fn freeze_except(&self, rows: &[u32]) -> Result<()> {
        self.row_sparse()?.freeze_except(rows)
    }

    fn row_sparse(&self) -> Result<&RowTable> {
        match self.gradient {
            Gradient::RowSparse => Ok(&self.table),
            Gradient::Dense => {
                Err(Error::Config("this layer's gradient is dense: make it with Gradient::RowSparse".to_string()))
            }
        }
    }
}
