//! Plain gradient descent, dense and by row.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::Optimizer;

use super::add_rows_into;
use super::host::{change_rows, sgd_dense};
#[cfg(feature = "cuda")]
use super::on_cuda;
use crate::Result;
use crate::rows::{Keeper, RowGradients, RowTable, Rows};

/// θ ← θ - lr · g: `candle_nn::SGD`, bit for bit in f32, in one pass, and row by row for row-sparse tables.
///
/// A row without a gradient does not change, so there is nothing to make up for.
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
            let table = RowTable::find(var.as_tensor().id());
            if let Some(table) = &table {
                table.attach(std::sync::Arc::new(Nothing))?;
            }
            held.vars.push((var, table));
        }
        Ok(held)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        let lr = self.learning_rate;
        for (var, table) in &self.vars {
            let dense = grads.get(var.as_tensor());
            if let (Some(table), Some(dense)) = (table, dense) {
                add_rows_into(dense, table)?;
                let frozen = table.frozen();
                if !frozen.is_empty() {
                    let rows: Vec<u32> = (0..frozen.len() as u32).filter(|row| !frozen[*row as usize]).collect();
                    let index = Tensor::from_slice(&rows, rows.len(), var.device())?;
                    let values = dense.index_select(&index, 0)?.to_dtype(DType::F32)?;
                    step_rows(table, RowGradients { rows, values }, lr)?;
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
                (None, Some(table)) => match table.take_grouped()? {
                    None => (),
                    #[cfg(feature = "cuda")]
                    Some(grouped) if on_cuda::takes(var.as_tensor()) => {
                        on_cuda::step_rows(var.as_tensor(), &grouped, &on_cuda::Rule::Sgd { lr: lr as f32 })?
                    }
                    Some(grouped) => step_rows(table, grouped.sum()?, lr)?,
                },
                (None, None) => (),
            }
        }
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

fn step_rows(table: &RowTable, gradients: RowGradients, lr: f64) -> Result<()> {
    let weight = table.weight();
    if weight.device().is_cpu() {
        let values: Vec<f32> = gradients.values.flatten_all()?.to_vec1()?;
        return change_rows(weight, &gradients.rows, &values, |x, g| x - (g * lr as f32 + 0.0));
    }
    let index = Tensor::from_slice(&gradients.rows, gradients.rows.len(), weight.device())?;
    let rows = weight.index_select(&index, 0)?.to_dtype(DType::F32)?;
    let rows = (rows - (gradients.values * lr)?)?.to_dtype(weight.dtype())?;
    weight.scatter_set(&index.unsqueeze(1)?.broadcast_as(rows.shape())?.contiguous()?, &rows, 0)?;
    Ok(())
}

impl Drop for Sgd {
    fn drop(&mut self) {
        self.vars.iter().filter_map(|(_, table)| table.as_ref()).for_each(|table| table.detach());
    }
}
