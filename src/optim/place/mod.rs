//! Where a variable's updates run: in host memory, by kernels on CUDA, or by candle's operations. The choice is made once, when the
//! optimizer is made.

mod cuda;
pub(super) mod host;
mod memory;
mod operations;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::Replay;
use super::history::{History, MAX_ENTRIES};
use super::rule::Update;
use crate::Result;
use crate::rows::{Grouped, RowTable};
use host::Host;
pub(super) use operations::Operations;

/// The updates of one variable, with its moments.
pub(super) trait Place: Send + Sync {
    /// One step with a dense gradient.
    fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()>;

    /// One step on the rows that have a gradient.
    fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()>;

    /// Replays deferred updates. `due` has each row once, with the entry of the history up to which its updates are applied.
    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, replay: Replay) -> Result<()>;

    /// Adds the pending row gradients to a dense gradient of the same table, in place. `dense` is contiguous. In f32 the order is that
    /// of candle's own sum: by look-up, then by position. bf16 and f16 rows, and rows on CUDA, are summed in f32 first.
    fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()>;

    /// Both moments in the weight's shape, on the CPU. `None` if the rule has no moments.
    fn moments(&self, weight: &Tensor) -> Result<Option<[Tensor; 2]>>;

    /// Restores moments from [`moments`](Self::moments).
    fn set_moments(&mut self, moments: [&Tensor; 2]) -> Result<()>;

    /// All rows are flushed after this many steps.
    fn longest_history(&self) -> usize {
        MAX_ENTRIES
    }
}

/// The place of this weight.
pub(super) fn of(weight: &Tensor, moments: bool) -> Result<Box<dyn Place>> {
    if let Some(place) = cuda::place(weight, moments)? {
        return Ok(place);
    }
    Ok(match (weight.device(), weight.dtype()) {
        (Device::Cpu, DType::F32) => Box::new(Host::<f32>::new(weight, moments)),
        (Device::Cpu, DType::F64) => Box::new(Host::<f64>::new(weight, moments)),
        (Device::Cpu, DType::BF16) => Box::new(Host::<bf16>::new(weight, moments)),
        (Device::Cpu, DType::F16) => Box::new(Host::<f16>::new(weight, moments)),
        _ => Box::new(Operations::new(weight, moments)?),
    })
}

/// Moments as tensors on the weight's device. `None` if the rule has no moments.
pub(super) struct Moments(Option<[Tensor; 2]>);

impl Moments {
    fn new(weight: &Tensor, dtype: DType, wanted: bool) -> Result<Self> {
        let zeros = || Tensor::zeros(weight.shape(), dtype, weight.device());
        Ok(Moments(if wanted { Some([zeros()?, zeros()?]) } else { None }))
    }

    fn on_host(&self) -> Result<Option<[Tensor; 2]>> {
        let Some([m, v]) = &self.0 else { return Ok(None) };
        Ok(Some([m.to_device(&Device::Cpu)?, v.to_device(&Device::Cpu)?]))
    }

    fn set(&mut self, new: [&Tensor; 2]) -> Result<()> {
        let Some([m, v]) = &mut self.0 else { return Ok(()) };
        // Copies, because their rows are changed in place.
        let like = |old: &Tensor, new: &Tensor| new.to_dtype(old.dtype())?.to_device(old.device())?.force_contiguous();
        (*m, *v) = (like(m, new[0])?, like(v, new[1])?);
        Ok(())
    }
}

/// The pending row gradients for a dense gradient, as (ids, gradients).
fn waiting(dense: &Tensor, table: &RowTable) -> Result<Vec<(Vec<u32>, Tensor)>> {
    if dense.dtype() == DType::F32 {
        return table.take_lookups();
    }
    let sums = table.take_grouped_with_frozen()?.into_iter().map(Grouped::sum);
    sums.map(|sum| sum.map(|gradients| (gradients.rows, gradients.values))).collect()
}
