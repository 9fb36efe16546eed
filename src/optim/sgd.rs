//! Plain gradient descent, dense and by row.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::Optimizer;

use super::host::{change_rows, sgd_dense};
#[cfg(feature = "cuda")]
use super::on_cuda;
use super::{add_rows_into, is_current};
use crate::Result;
use crate::grouping::Groups;
use crate::rows::{Grouped, Keeper, RowGradients, RowTable, Rows};

/// θ ← θ - lr · g: `candle_nn::SGD`, bit for bit in f32, in one pass, and row by row for row-sparse tables.
///
/// A row without a gradient does not change, so nothing is deferred. Gradients accumulate as with [`AdamW`](super::AdamW).
pub struct Sgd {
    vars: Vec<(Var, Option<std::sync::Arc<RowTable>>)>,
    learning_rate: f64,
}

/// Rows of a table under [`Sgd`] are always up to date.
struct Nothing;

impl Keeper for Nothing {
    fn catch_up(&self, _weight: &Tensor, _rows: Rows, _frozen: &[bool]) -> Result<()> {
        Ok(())
    }
}

impl Optimizer for Sgd {
    type Config = f64;

    fn new(vars: Vec<Var>, learning_rate: f64) -> candle_core::Result<Self> {
        // Filled one by one: if a table has another optimizer, dropping this lets go of those before it.
        let mut held = Sgd { vars: Vec::new(), learning_rate };
        for var in vars.into_iter().filter(|var| var.dtype().is_float()) {
            let table = RowTable::find(var.as_tensor());
            if let Some(table) = &table {
                table.attach(std::sync::Arc::new(Nothing))?;
            }
            held.vars.push((var, table));
        }
        Ok(held)
    }

    /// # Errors
    /// Those of candle's operations; row gradients that wait and are not of `grads`, `grads` that were stepped already (see
    /// [`AdamW`](super::AdamW)), or a table that was replaced since. Of the last three nothing is changed.
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.tables().try_for_each(|table| table.belongs_to(grads))?;
        self.vars.iter().try_for_each(|(var, _)| is_current(var))?;
        let lr = self.learning_rate;
        for (var, table) in &self.vars {
            let dense = grads.get(var.as_tensor());
            if let (Some(table), Some(dense)) = (table, dense) {
                add_rows_into(dense, table)?;
                let frozen = table.frozen();
                if !frozen.is_empty() {
                    let groups = Groups::of_all_but(&frozen);
                    step_rows(table.weight(), Grouped { groups, sources: vec![dense.contiguous()?] }, lr)?;
                    continue;
                }
            }
            match (dense, table) {
                (Some(grad), _) if var.device().is_cpu() => sgd_dense(var.as_tensor(), grad, lr)?,
                #[cfg(feature = "cuda")]
                (Some(grad), _) if on_cuda::takes(var.as_tensor()) => {
                    on_cuda::step_dense(var.as_tensor(), grad, &on_cuda::Rule::Sgd { lr: lr as f32 })?
                }
                (Some(grad), _) => var.set(&(var.as_tensor() - (grad * lr)?)?)?,
                (None, Some(table)) => {
                    if let Some(grouped) = table.take_grouped()? {
                        step_rows(table.weight(), grouped, lr)?;
                    }
                }
                (None, None) => (),
            }
        }
        self.tables().for_each(|table| table.stepped());
        Ok(())
    }

    /// [`backward`](crate::backward) and a step.
    fn backward_step(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        self.step(&crate::backward(loss)?)
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.learning_rate = lr;
    }
}

impl Sgd {
    /// Forgets the row gradients that wait, as [`AdamW::zero_grad`](super::AdamW::zero_grad) does.
    pub fn zero_grad(&self) {
        self.tables().for_each(|table| table.clear());
    }

    fn tables(&self) -> impl Iterator<Item = &RowTable> {
        self.vars.iter().filter_map(|(_, table)| table.as_deref())
    }
}

fn step_rows(weight: &Tensor, grouped: Grouped, lr: f64) -> Result<()> {
    #[cfg(feature = "cuda")]
    if on_cuda::takes(weight) {
        return Ok(on_cuda::step_rows(weight, &grouped, &on_cuda::Rule::Sgd { lr: lr as f32 })?);
    }
    let RowGradients { rows, values } = grouped.sum()?;
    if weight.device().is_cpu() {
        let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
        return change_rows(weight, &rows, &values, |x, g| x - (g * lr as f32 + 0.0));
    }
    let index = Tensor::from_slice(&rows, rows.len(), weight.device())?;
    let new = (weight.index_select(&index, 0)?.to_dtype(DType::F32)? - (values * lr)?)?.to_dtype(weight.dtype())?;
    weight.scatter_set(&index.unsqueeze(1)?.broadcast_as(new.shape())?.contiguous()?, &new, 0)?;
    Ok(())
}

impl Drop for Sgd {
    fn drop(&mut self) {
        self.tables().for_each(|table| table.detach());
    }
}
