//! Where a variable's updates run: in the host's memory, by kernels on CUDA, or by candle's operations. Chosen once, when the
//! optimizer is made.

mod cuda;
pub(super) mod host;
mod memory;
mod operations;

use candle_core::{DType, Tensor};

use super::Replay;
use super::history::{History, MAX_ENTRIES};
use super::rule::Update;
use crate::rows::{Grouped, RowTable};
use crate::{Error, Result};
use host::Host;
pub(super) use operations::Operations;

/// One variable's updates, with the moments that they need.
pub(super) trait Place: Send + Sync {
    /// One step with a dense gradient.
    fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()>;

    /// One step on the rows that have a gradient.
    fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()>;

    /// Replays deferred updates: `due` names each row once, with the entry of the history that it is up to date with.
    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, replay: Replay) -> Result<()>;

    /// Adds the row gradients that wait to a dense gradient of the same table, in place. In f32 in the order of candle's own
    /// sum, look-up by look-up, position by position; bf16 and f16 rows, and those on CUDA, are summed in f32 first.
    fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()>;

    /// Both moments in the weight's shape, on the CPU; none where the rule has none.
    fn moments(&self, weight: &Tensor) -> Result<Option<[Tensor; 2]>>;

    /// Puts moments back that [`moments`](Self::moments) gave.
    fn set_moments(&mut self, moments: [&Tensor; 2]) -> Result<()>;

    /// After so many steps all rows are replayed.
    fn longest_history(&self) -> usize {
        MAX_ENTRIES
    }
}

/// The place of this weight.
pub(super) fn of(weight: &Tensor, moments: bool) -> Result<Box<dyn Place>> {
    if weight.device().is_cpu() {
        return Ok(Box::new(Host::new(weight, moments)));
    }
    match cuda::place(weight, moments)? {
        Some(place) => Ok(place),
        None => Ok(Box::new(Operations::new(weight, moments)?)),
    }
}

/// What is added to a dense gradient, as (ids, gradients).
fn waiting(dense: &Tensor, table: &RowTable) -> Result<Vec<(Vec<u32>, Tensor)>> {
    contiguous(dense)?;
    match dense.dtype() {
        DType::F32 => table.take_lookups(),
        _ => match table.take_grouped_with_frozen()? {
            None => Ok(Vec::new()),
            Some(grouped) => grouped.sum().map(|gradients| vec![(gradients.rows, gradients.values)]),
        },
    }
}

fn contiguous(dense: &Tensor) -> Result<()> {
    match dense.is_contiguous() {
        true => Ok(()),
        false => Err(Error::Config(
            "the gradient of a row-sparse table must be contiguous: rows are added to it in place".to_string(),
        )),
    }
}
