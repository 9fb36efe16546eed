//! Launches of the kernels.

use candle_core::cuda::cudarc::driver::{CudaSlice, DeviceRepr, LaunchArgs, PushKernelArg};
use candle_core::{DType, Device, Storage, Tensor};
use half::{bf16, f16};

use super::super::{Moments, Place};
use super::wire::{Due, Entry};
use crate::Result;
use crate::cuda::{Element, Sums, Threads, in_place, kernel, launch, pack, view};
use crate::optim::Replay;
use crate::optim::history::{History, Step};
use crate::optim::rule::Update;
use crate::rows::{Grouped, RowTable};

/// f32, bf16 and f16 weights on an NVIDIA GPU. Moments are f32.
pub(super) struct Cuda {
    moments: Moments,
    sent: Sent,
}

impl Cuda {
    pub(super) fn new(weight: &Tensor, moments: bool) -> Result<Self> {
        Ok(Cuda { moments: Moments::new(weight, DType::F32, moments)?, sent: Sent::default() })
    }
}

impl Place for Cuda {
    fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()> {
        Ok(step_dense(weight, grad, &Kernel::of(update, self.moments.0.as_ref()))?)
    }

    fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()> {
        Ok(step_rows(weight, &grouped, &Kernel::of(update, self.moments.0.as_ref()))?)
    }

    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, how: Replay) -> Result<()> {
        let entries = self.sent.update(weight.device(), history)?;
        Ok(replay(weight, self.moments.0.as_ref(), due, (history, entries), how)?)
    }

    fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()> {
        let Some(grouped) = table.take_grouped_with_frozen()? else { return Ok(()) };
        // dense - (-1 · sums) is exact, and one pass.
        Ok(step_rows(dense, &grouped, &Kernel::of(&Update::Sgd { lr: -1.0 }, None))?)
    }

    fn moments(&self, _weight: &Tensor) -> Result<Option<[Tensor; 2]>> {
        self.moments.on_host()
    }

    fn set_moments(&mut self, new: [&Tensor; 2]) -> Result<()> {
        self.moments.set(new)
    }

    fn longest_history(&self) -> usize {
        MAX_ENTRIES
    }
}

/// All rows are flushed when there are this many entries. A thread replays an element step by step, so a row that first occurs late in
/// training would take long. The cost is one pass over the table in this many steps.
const MAX_ENTRIES: usize = 1 << 11;

/// The history on the device, 90 kB. Each step changes one or two entries.
#[derive(Default)]
struct Sent(Option<CudaSlice<Entry>>);

impl Sent {
    /// All entries on the device, after the changed ones are copied.
    fn update(&mut self, device: &Device, history: &mut History) -> candle_core::Result<&CudaSlice<Entry>> {
        let Device::Cuda(device) = device else { candle_core::bail!("the weight is not on a GPU") };
        let entries = match &mut self.0 {
            Some(entries) => entries,
            // SAFETY: every entry is written before a row reads it.
            none => none.insert(unsafe { device.alloc(MAX_ENTRIES + 1) }?),
        };
        if history.unsent < history.entries.len() {
            let changed = Entry::all_from(history, history.unsent);
            device.memcpy_htod(&changed, &mut entries.slice_mut(history.unsent..history.entries.len()))?;
            history.unsent = history.entries.len();
        }
        Ok(entries)
    }
}

// SAFETY: plain numbers in the kernel's layout.
unsafe impl DeviceRepr for Step {}
// SAFETY: as above.
unsafe impl DeviceRepr for Entry {}
// SAFETY: as above.
unsafe impl DeviceRepr for Due {}

/// Calls `$run::<W>` or `$run::<W, G>` for the dtypes of a weight and its gradient.
macro_rules! by_dtype {
    ($weight:expr, $run:ident($($arg:expr),*)) => {
        match $weight.dtype() {
            DType::F32 => $run::<f32>($($arg),*),
            DType::BF16 => $run::<bf16>($($arg),*),
            DType::F16 => $run::<f16>($($arg),*),
            dtype => candle_core::bail!("no kernel for weights of {dtype:?}"),
        }
    };
    ($weight:expr, $grads:expr, $run:ident($($arg:expr),*)) => {
        match ($weight.dtype(), $grads.dtype()) {
            (DType::F32, DType::F32) => $run::<f32, f32>($($arg),*),
            (DType::BF16, DType::BF16) => $run::<bf16, bf16>($($arg),*),
            (DType::BF16, DType::F32) => $run::<bf16, f32>($($arg),*),
            (DType::F16, DType::F16) => $run::<f16, f16>($($arg),*),
            (DType::F16, DType::F32) => $run::<f16, f32>($($arg),*),
            (weight, grads) => candle_core::bail!("no kernel for weights of {weight:?} with gradients of {grads:?}"),
        }
    };
}

/// A kernel's name, the moments that it updates, and its last argument: the step, or the learning rate.
struct Kernel<'a> {
    name: &'static str,
    moments: Option<&'a [Tensor; 2]>,
    step: Option<Step>,
    lr: f32,
}

impl<'a> Kernel<'a> {
    fn of(update: &Update, moments: Option<&'a [Tensor; 2]>) -> Self {
        match update {
            Update::AdamW(step) => Kernel { name: "adamw", moments, step: Some(step.to_f32()), lr: 0.0 },
            Update::Sgd { lr } => Kernel { name: "sgd", moments: None, step: None, lr: *lr as f32 },
        }
    }

    fn push_last<'b>(&'b self, args: &mut LaunchArgs<'b>) {
        match &self.step {
            Some(step) => args.arg(step),
            None => args.arg(&self.lr),
        };
    }
}

/// Calls `f` with the memory of a weight and its moments.
fn lend<W: Element>(
    weight: &Tensor,
    moments: Option<&[Tensor; 2]>,
    f: impl FnOnce(&mut CudaSlice<W>, Option<[&mut CudaSlice<f32>; 2]>) -> candle_core::Result<()>,
) -> candle_core::Result<()> {
    in_place(weight, |weight| {
        let weight = weight.as_cuda_slice_mut::<W>()?;
        let Some([m, v]) = moments else { return f(weight, None) };
        in_place(m, |m| in_place(v, |v| f(weight, Some([m.as_cuda_slice_mut()?, v.as_cuda_slice_mut()?]))))
    })
}

/// One dense step in place, in one pass.
fn step_dense(weight: &Tensor, grad: &Tensor, with: &Kernel) -> candle_core::Result<()> {
    fn run<W: Element>(weight: &Tensor, grad: &Tensor, with: &Kernel) -> candle_core::Result<()> {
        let (storage, layout) = grad.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("weight and gradient are on different devices")
        };
        let grad = view::<W>(storage, layout)?;
        let pack = pack(&[grad.len(), layout.start_offset()]);
        let (threads, elements) = (Threads::over_elements(grad.len() / pack), grad.len() as u64);
        let kernel = kernel(&storage.device, &format!("{}_dense_{}_{pack}", with.name, W::NAME))?;
        lend::<W>(weight, with.moments, |weight, moments| {
            let mut args = kernel.args();
            args.arg(weight).arg(&grad);
            if let Some([m, v]) = moments {
                args.arg(m).arg(v);
            }
            args.arg(&elements);
            with.push_last(&mut args);
            // SAFETY: the parameters of adamw_dense or sgd_dense. All buffers have the same number of elements.
            unsafe { launch(args, threads) }
        })
    }
    if weight.shape() != grad.shape() {
        candle_core::bail!("a gradient of shape {:?} for a weight of {:?}", grad.dims(), weight.dims())
    }
    let grad = grad.to_dtype(weight.dtype())?.contiguous()?;
    by_dtype!(weight, run(weight, &grad, with))
}

/// One step on the rows that have a gradient: sums and updates in one pass.
fn step_rows(weight: &Tensor, grouped: &Grouped, with: &Kernel) -> candle_core::Result<()> {
    fn run<W: Element, G: Element<Wide = f32>>(
        weight: &Tensor,
        grads: &Tensor,
        grouped: &Grouped,
        with: &Kernel,
    ) -> candle_core::Result<()> {
        let (storage, layout) = grads.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("weight and row gradients are on different devices")
        };
        let grads = view::<G>(storage, layout)?;
        let columns = weight.dim(1)?;
        let pack = pack(&[columns, layout.start_offset()]);
        let sums = Sums::<f32>::new(&storage.device, &grouped.groups, &grads, (columns, pack), 1.0)?;
        let (rows, (starts, positions)) = (sums.rows(), sums.starts_and_positions());
        let Sums { partials, split, count, .. } = &sums;
        let (threads, count, columns) = (Threads::over_rows(*count, columns / pack), *count as u64, columns as u64);
        let kernel = kernel(&storage.device, &format!("{}_rows_{}_{}_{pack}", with.name, W::NAME, G::NAME))?;
        lend::<W>(weight, with.moments, |weight, moments| {
            let mut args = kernel.args();
            args.arg(weight);
            if let Some([m, v]) = moments {
                args.arg(m).arg(v);
            }
            args.arg(&rows).arg(&grads).arg(partials).arg(&starts).arg(&positions);
            args.arg(split).arg(&count).arg(&columns);
            with.push_last(&mut args);
            // SAFETY: the parameters of adamw_rows or sgd_rows. Each row occurs once, and is in the table.
            unsafe { launch(args, threads) }
        })
    }
    if grouped.groups.rows.is_empty() || weight.dim(1)? == 0 {
        return Ok(());
    }
    let mut grads = grouped.joined()?;
    if grads.dtype() != DType::F32 && grads.dtype() != weight.dtype() {
        grads = grads.to_dtype(DType::F32)?;
    }
    by_dtype!(weight, grads, run(weight, &grads, grouped, with))
}

/// Replays deferred updates, elementwise, with the same bits as the replay on the host.
fn replay(
    weight: &Tensor,
    moments: Option<&[Tensor; 2]>,
    due: &[(u32, u32)],
    (history, entries): (&History, &CudaSlice<Entry>),
    replay: Replay,
) -> candle_core::Result<()> {
    fn run<W: Element>(
        weight: &Tensor,
        moments: Option<&[Tensor; 2]>,
        due: &[Due],
        entries: &CudaSlice<Entry>,
        unsafe_until: u32,
    ) -> candle_core::Result<()> {
        let Device::Cuda(device) = weight.device() else { candle_core::bail!("the weight is not on a GPU") };
        let columns = weight.dim(1)?;
        let (rows, count, columns_arg) = (device.clone_htod(due)?, due.len() as u64, columns as u64);
        let kernel = kernel(device, &format!("replay_{}", W::NAME))?;
        lend::<W>(weight, moments, |weight, moments| {
            let Some([m, v]) = moments else { return Ok(()) };
            let mut args = kernel.args();
            args.arg(weight).arg(m).arg(v);
            args.arg(&rows).arg(&count).arg(&columns_arg).arg(entries).arg(&unsafe_until);
            // SAFETY: the parameters of replay. Each row occurs once, and is in the table. Entries go from 0 to the largest `to`.
            unsafe { launch(args, Threads::over_rows(due.len(), columns)) }
        })
    }
    if weight.dim(1)? == 0 {
        return Ok(());
    }
    let due = Due::all(due, history, replay, weight.dtype() != DType::F32);
    by_dtype!(weight, run(weight, moments, &due, entries, history.unsafe_until as u32))
}
