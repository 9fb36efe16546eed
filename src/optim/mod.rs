//! Gradients, dense or by row → new weights, in place.
//!
//! [`AdamW`] and [`Sgd`] implement `candle_nn::Optimizer` and take candle's parameters: to change over, replace the
//! name of the type. Dense weights are updated in one fused pass, bit for bit as candle would; a row-sparse table
//! ([`Gradient::RowSparse`](crate::Gradient::RowSparse)) costs what the batch costs, not what the vocabulary costs.
//! This module does not know where gradients came from.

mod adamw;
mod history;
mod host;
mod kernel;
#[cfg(any(feature = "cuda", all(test, target_os = "linux")))]
mod on_cuda;
mod on_device;
mod sgd;
mod table;

use candle_core::{DType, Tensor, Var};

use crate::rows::{RowTable, was_replaced};
use crate::{Error, Result};

pub use adamw::{AdamW, ParamGroup};
pub use sgd::Sgd;

/// Adds the row gradients that wait to a dense gradient of the same table, in place. In f32 in the order of candle's own
/// sum, look-up by look-up, position by position; bf16 and f16 rows, and those on CUDA, are summed in f32 first.
fn add_rows_into(dense: &Tensor, table: &RowTable) -> Result<()> {
    if !dense.is_contiguous() {
        return Err(Error::Config(
            "the gradient of a row-sparse table must be contiguous: rows are added to it in place".to_string(),
        ));
    }
    #[cfg(feature = "cuda")]
    if on_cuda::takes(dense) {
        let Some(grouped) = table.take_grouped_with_frozen()? else { return Ok(()) };
        // dense - (-1 · sums): exact, in one pass.
        return Ok(on_cuda::step_rows(dense, &grouped, &on_cuda::Rule::Sgd { lr: -1.0 })?);
    }
    let waiting = match dense.dtype() {
        DType::F32 => table.take_lookups()?,
        _ => match table.take_grouped_with_frozen()? {
            None => Vec::new(),
            Some(grouped) => grouped.sum().map(|gradients| vec![(gradients.rows, gradients.values)])?,
        },
    };
    for (ids, grad) in waiting {
        if dense.device().is_cpu() {
            let values: Vec<f32> = grad.flatten_all()?.to_vec1()?;
            host::change_rows(dense, &ids, &values, |sum, value| sum + value)?;
        } else {
            let ids = Tensor::from_slice(&ids, ids.len(), dense.device())?;
            let sum = dense.index_add(&ids, &grad.to_dtype(dense.dtype())?, 0)?;
            dense.slice_set(&sum, 0, 0)?;
        }
    }
    Ok(())
}

/// An error for a variable in whose place another one is: it would move, and nothing would read it.
fn is_current(var: &Var) -> Result<()> {
    match was_replaced(var) {
        false => Ok(()),
        true => Err(Error::Config(format!(
            "the table of shape {:?} was replaced by one of another size (add_tokens, resize, shrink), which this \
             optimizer does not know: call `AdamW::follow(&varmap)`, or make the optimizer after the change",
            var.dims()
        ))),
    }
}

/// What [`AdamW`] does about the steps in which a row of a row-sparse table had no gradient.
///
/// A dense AdamW moves every row at every step, also those without a gradient: their moments fade, their momentum goes on
/// to move them, decay shrinks them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// Every skipped update is replayed before the row is read: each weight and each loss is that of the dense optimizer, bit
    /// for bit, in f32.
    ///
    /// Full steps are replayed only while they can change a weight (some 150 steps with β1 = 0.9); after that only the
    /// products of moments and decay are left, at a cost that stays bounded over long runs. The proof stands at `History`
    /// in `src/optim/history.rs`. Moments below 2⁻¹²⁶ are stored as zero, by this optimizer's dense steps too: no step
    /// gets slow from subnormal numbers. So a weight can differ from candle's where it is itself below 2⁻¹⁰¹ · lr / ε (4·10⁻²⁶ for
    /// lr = 10⁻³, ε = 10⁻⁸), or where such a moment later meets a gradient element with 0 < |g| < 2⁻⁵¹ / √(1 - β2) (1.4·10⁻¹⁴ for
    /// β2 = 0.999), or a smaller ε. (With an ε below 10⁻¹⁷ nothing is stored as zero.)
    ///
    /// The cost stays bounded for sound settings: β1 and β2 in (0, 1) with β1 < √β2, ε ≥ 10⁻¹⁷, lr · decay < 1. With others every
    /// deferred update is replayed in full: still exact, slower the longer a row had no gradient.
    #[default]
    Exact,
    /// At most so many deferred updates are replayed; for the rest moments and decay are multiplied by their products, and updates
    /// are left out. Close to the dense optimizer (with 200 steps and β1 = 0.9, an update that is left out is below
    /// 10⁻⁹ of the first), not equal.
    Truncated {
        /// Steps replayed in full.
        steps: usize,
    },
    /// Nothing is replayed: a row's moments, decay and weight change only in steps in which it has a gradient. This is
    /// the rule of PyTorch's SparseAdam (which adds ε before bias correction, where this adds it after, as AdamW does), and another
    /// optimizer than AdamW: results differ from the dense one's.
    Lazy,
}
