//! What belongs to the rows of the table, not to a look-up: their values, their gradients, which of them train.

use candle_core::Tensor;

use super::{Gradient, TokenEmbedding};
use crate::rows::{RowGradients, RowTable, Rows};
use crate::{Error, Result};

impl TokenEmbedding {
    /// The table (V, C), after every deferred update was applied: right until the next step. For a table out of a VarMap it is the
    /// variable itself. Before something else than tallow reads the variable (`VarMap::save`, say) call this, or
    /// [`AdamW::flush`](crate::optim::AdamW::flush) for all tables.
    ///
    /// # Errors
    /// Those of candle's operations; none for a dense gradient.
    ///
    /// # Cost
    /// Nothing for a dense gradient or when no step was taken since; else up to one pass over table and moments, and the
    /// updates that were deferred.
    pub fn flushed_weight(&self) -> Result<&Tensor> {
        self.table.replay(Rows::All)?;
        Ok(&self.weight)
    }

    /// The table (V, C), as `candle_nn::Embedding` gives it: for code that was written for candle's layer (a tied head,
    /// `Linear::new(wte.embeddings().clone(), None)`).
    ///
    /// What reads the tensor later does not ask whether it is up to date. So from this call on a row-sparse table is brought up to date
    /// at the end of every step, which costs up to a pass over the table. [`flushed_weight`](Self::flushed_weight) is for one look, and
    /// [`Head::tied`](crate::Head::tied) for a head.
    pub fn embeddings(&self) -> &Tensor {
        self.table.keep_flushed();
        &self.weight
    }

    /// Takes the row gradients that wait for the optimizer, summed by row: to log them, to change them, to exchange them
    /// between machines. What is not given back by [`add_row_gradients`](Self::add_row_gradients) is lost to the step, which is that
    /// of the same `GradStore`.
    /// `None` if no look-up went backward since the last step.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient.
    pub fn take_row_gradients(&self) -> Result<Option<RowGradients>> {
        self.row_sparse()?.take()
    }

    /// Adds row gradients to those that wait for the optimizer.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient or values of another shape than (rows, C); [`Error::RowOutOfRange`].
    pub fn add_row_gradients(&self, gradients: RowGradients) -> Result<()> {
        self.row_sparse()?.push_rows(gradients)
    }

    /// Freezes these rows: no optimizer of [`optim`](crate::optim) changes them, by gradient or by decay. Replaces the
    /// rows frozen before; an empty list frees all.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient (candle's optimizers know no rows); [`Error::RowOutOfRange`].
    pub fn freeze_rows(&self, rows: &[u32]) -> Result<()> {
        self.row_sparse()?.freeze(rows)
    }

    /// Freezes all rows but these: what is trained are `rows` alone, the others keep their bits.
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
