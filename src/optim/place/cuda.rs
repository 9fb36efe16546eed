//! Updates by kernels.cu: the arithmetic of `kernel.rs`, on an NVIDIA GPU.

use candle_core::Tensor;

use super::Place;
use crate::Result;

/// The place of a weight that the kernels take: f32, bf16 or f16 on CUDA. None in a build without the feature `cuda`.
pub(super) fn place(weight: &Tensor, moments: bool) -> Result<Option<Box<dyn Place>>> {
    #[cfg(feature = "cuda")]
    if weight.device().is_cuda()
        && matches!(weight.dtype(), candle_core::DType::F32 | candle_core::DType::BF16 | candle_core::DType::F16)
    {
        return Ok(Some(Box::new(device::Cuda::new(weight, moments)?)));
    }
    _ = (weight, moments);
    Ok(None)
}

/// What kernels.cu reads.
#[cfg(any(feature = "cuda", all(test, target_os = "linux")))]
mod wire {
    use crate::optim::Replay;
    use crate::optim::history::{History, Step};

    /// A step of the history, as kernels.cu reads it.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Entry {
        pub(super) step: Step,
        pub(super) factor: f32,
    }

    impl Entry {
        pub(super) fn all_from(history: &History, first: usize) -> Vec<Entry> {
            history.entries[first..].iter().map(|entry| Entry { step: entry.step, factor: entry.factor }).collect()
        }
    }

    /// A row whose updates after entry `from` up to `to` are deferred, and then the products of all later ones.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Due {
        row: u32,
        from: u32,
        to: u32,
        flags: u32,
        decay: f32,
        beta1: f32,
        beta2: f32,
    }

    const BOUNDED: u32 = 1;
    const DECAYS: u32 = 2;
    const JUMPS: u32 = 4;

    // The layouts that kernels.cu declares.
    const _: () = assert!(size_of::<Step>() == 40 && size_of::<Entry>() == 44 && size_of::<Due>() == 28);

    impl Due {
        /// Of (row, entry that it is up to date with), for weights that are `rounded` after every step or not.
        pub(super) fn all(due: &[(u32, u32)], history: &History, replay: Replay, rounded: bool) -> Vec<Due> {
            let now = history.now();
            let of = |&(row, last): &(u32, u32)| {
                let from = last as usize;
                let to = match replay {
                    Replay::Truncated { steps } if history.can_jump(from + steps, now) => from + steps,
                    _ => now,
                };
                let decays = history.entries[from].log_decay != history.entries[to].log_decay;
                let mut flags = if history.mild(from, to) && !(decays && rounded) { BOUNDED } else { 0 };
                flags |= if decays { DECAYS } else { 0 };
                flags |= if to < now { JUMPS } else { 0 };
                let [decay, beta1, beta2] = if to < now { history.products(to, now) } else { [1.0; 3] };
                Due { row, from: last, to: to as u32, flags, decay, beta1, beta2 }
            };
            due.iter().map(of).collect()
        }
    }
}

#[cfg(feature = "cuda")]
mod device {
    use candle_core::cuda::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
    use candle_core::{DType, Device, Storage, Tensor};
    use half::{bf16, f16};

    use super::super::{Place, contiguous};
    use super::wire::{Due, Entry};
    use crate::Result;
    use crate::cuda::{Element, Sums, Threads, in_place, kernel, launch, pack, view};
    use crate::optim::Replay;
    use crate::optim::history::{History, Step};
    use crate::optim::rule::Update;
    use crate::rows::{Grouped, RowTable, joined};

    /// Weights of f32, bf16 and f16 on an NVIDIA GPU; moments (V, C) f32 beside them.
    pub(super) struct Cuda {
        moments: Option<[Tensor; 2]>,
        sent: Sent,
    }

    impl Cuda {
        pub(super) fn new(weight: &Tensor, moments: bool) -> Result<Self> {
            let zeros = || Tensor::zeros(weight.shape(), DType::F32, weight.device());
            let moments = moments.then(|| Ok::<_, candle_core::Error>([zeros()?, zeros()?])).transpose()?;
            Ok(Cuda { moments, sent: Sent::default() })
        }

        /// Calls `f` with the rule's numbers, in f32.
        fn with(&self, update: &Update, f: impl FnOnce(&Numbers) -> candle_core::Result<()>) -> Result<()> {
            match (update, &self.moments) {
                (Update::Sgd { lr }, _) => Ok(f(&Numbers::Sgd { lr: *lr as f32 })?),
                (Update::AdamW(step), Some([m, v])) => Ok(f(&Numbers::AdamW { m, v, step: &step.to_f32() })?),
                (Update::AdamW(_), None) => Ok(()),
            }
        }
    }

    impl Place for Cuda {
        fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()> {
            self.with(update, |numbers| step_dense(weight, grad, numbers))
        }

        fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()> {
            self.with(update, |numbers| step_rows(weight, &grouped, numbers))
        }

        fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, how: Replay) -> Result<()> {
            let Some([m, v]) = &self.moments else { return Ok(()) };
            let entries = self.sent.update(weight.device(), history)?;
            Ok(replay(weight, m, v, due, (history, entries), how)?)
        }

        fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()> {
            contiguous(dense)?;
            let Some(grouped) = table.take_grouped_with_frozen()? else { return Ok(()) };
            // dense - (-1 · sums): exact, in one pass.
            Ok(step_rows(dense, &grouped, &Numbers::Sgd { lr: -1.0 })?)
        }

        fn moments(&self, _weight: &Tensor) -> Result<Option<[Tensor; 2]>> {
            let Some([m, v]) = &self.moments else { return Ok(None) };
            Ok(Some([m.to_device(&Device::Cpu)?, v.to_device(&Device::Cpu)?]))
        }

        fn set_moments(&mut self, new: [&Tensor; 2]) -> Result<()> {
            let Some([m, v]) = &mut self.moments else { return Ok(()) };
            // Copies: rows of these are changed in place.
            let copy = |new: &Tensor| new.to_dtype(m.dtype())?.to_device(m.device())?.force_contiguous();
            let (new_m, new_v) = (copy(new[0])?, copy(new[1])?);
            (*m, *v) = (new_m, new_v);
            Ok(())
        }

        fn longest_history(&self) -> usize {
            MAX_ENTRIES
        }
    }

    /// All rows are replayed when there are this many entries. A thread replays its element step after step, so a row that is seen for the
    /// first time late in training would keep the device waiting; this costs a pass over the table in so many steps.
    const MAX_ENTRIES: usize = 1 << 11;

    /// The history on the device, 90 kB, of which each step changes one or two entries.
    #[derive(Default)]
    struct Sent(Option<CudaSlice<Entry>>);

    impl Sent {
        /// All entries, with what changed since the last time.
        fn update(&mut self, device: &Device, history: &mut History) -> candle_core::Result<&CudaSlice<Entry>> {
            let Device::Cuda(device) = device else { candle_core::bail!("the weight is on no GPU") };
            let entries = match &mut self.0 {
                Some(entries) => entries,
                // SAFETY: an entry is sent before a row needs it.
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

    /// What an update needs beside weight and gradient.
    enum Numbers<'a> {
        AdamW { m: &'a Tensor, v: &'a Tensor, step: &'a Step },
        Sgd { lr: f32 },
    }

    /// One dense step, in place: one pass.
    fn step_dense(weight: &Tensor, grad: &Tensor, rule: &Numbers) -> candle_core::Result<()> {
        fn run<W: Element>(weight: &Tensor, grad: &Tensor, rule: &Numbers) -> candle_core::Result<()> {
            let (storage, layout) = grad.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                candle_core::bail!("weight and gradient are on different devices")
            };
            let grad = view::<W>(storage, layout)?;
            let pack = pack(&[grad.len(), layout.start_offset()]);
            let (threads, elements) = (Threads::over_elements(grad.len() / pack), grad.len() as u64);
            let kernel = |name: &str| kernel(&storage.device, &format!("{name}_dense_{}_{pack}", W::NAME));
            in_place(weight, |weight| {
                let weight = weight.as_cuda_slice_mut::<W>()?;
                match rule {
                    Numbers::AdamW { m, v, step } => in_place(m, |m| {
                        in_place(v, |v| {
                            let (m, v) = (m.as_cuda_slice_mut::<f32>()?, v.as_cuda_slice_mut::<f32>()?);
                            let kernel = kernel("adamw")?;
                            let mut args = kernel.args();
                            args.arg(weight).arg(&grad).arg(m).arg(v).arg(&elements).arg(*step);
                            // SAFETY: adamw_dense's parameters, all of as many elements.
                            unsafe { launch(args, threads) }
                        })
                    }),
                    Numbers::Sgd { lr } => {
                        let kernel = kernel("sgd")?;
                        let mut args = kernel.args();
                        args.arg(weight).arg(&grad).arg(&elements).arg(lr);
                        // SAFETY: sgd_dense's parameters, both of as many elements.
                        unsafe { launch(args, threads) }
                    }
                }
            })
        }
        if weight.shape() != grad.shape() {
            candle_core::bail!("a gradient of shape {:?} for a weight of {:?}", grad.dims(), weight.dims())
        }
        let grad = grad.to_dtype(weight.dtype())?.contiguous()?;
        by_dtype!(weight, run(weight, &grad, rule))
    }

    /// One step on the rows that have a gradient: sums and updates in one pass.
    fn step_rows(weight: &Tensor, grouped: &Grouped, rule: &Numbers) -> candle_core::Result<()> {
        fn run<W: Element, G: Element<Wide = f32>>(
            weight: &Tensor,
            grads: &Tensor,
            grouped: &Grouped,
            rule: &Numbers,
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
            let kernel = |name: &str| kernel(&storage.device, &format!("{name}_rows_{}_{}_{pack}", W::NAME, G::NAME));
            in_place(weight, |weight| {
                let weight = weight.as_cuda_slice_mut::<W>()?;
                match rule {
                    Numbers::AdamW { m, v, step } => in_place(m, |m| {
                        in_place(v, |v| {
                            let (m, v) = (m.as_cuda_slice_mut::<f32>()?, v.as_cuda_slice_mut::<f32>()?);
                            let kernel = kernel("adamw")?;
                            let mut args = kernel.args();
                            args.arg(weight)
                                .arg(m)
                                .arg(v)
                                .arg(&rows)
                                .arg(&grads)
                                .arg(partials)
                                .arg(&starts)
                                .arg(&positions);
                            args.arg(split).arg(&count).arg(&columns).arg(*step);
                            // SAFETY: adamw_rows' parameters; each row once, and a row of the table.
                            unsafe { launch(args, threads) }
                        })
                    }),
                    Numbers::Sgd { lr } => {
                        let kernel = kernel("sgd")?;
                        let mut args = kernel.args();
                        args.arg(weight).arg(&rows).arg(&grads).arg(partials).arg(&starts).arg(&positions);
                        args.arg(split).arg(&count).arg(&columns).arg(lr);
                        // SAFETY: sgd_rows' parameters; each row once, and a row of the table.
                        unsafe { launch(args, threads) }
                    }
                }
            })
        }
        if grouped.groups.rows.is_empty() || weight.dim(1)? == 0 {
            return Ok(());
        }
        let mut grads = joined(&grouped.sources)?;
        if grads.dtype() != DType::F32 && grads.dtype() != weight.dtype() {
            grads = grads.to_dtype(DType::F32)?;
        }
        by_dtype!(weight, grads, run(weight, &grads, grouped, rule))
    }

    /// Replays deferred updates, each element by itself: the bits of the replay on the host.
    fn replay(
        weight: &Tensor,
        m: &Tensor,
        v: &Tensor,
        due: &[(u32, u32)],
        (history, entries): (&History, &CudaSlice<Entry>),
        replay: Replay,
    ) -> candle_core::Result<()> {
        fn run<W: Element>(
            weight: &Tensor,
            (m, v): (&Tensor, &Tensor),
            due: &[Due],
            entries: &CudaSlice<Entry>,
            unsafe_until: u32,
        ) -> candle_core::Result<()> {
            let Device::Cuda(device) = weight.device() else { candle_core::bail!("the weight is on no GPU") };
            let columns = weight.dim(1)?;
            let (rows, count, columns_arg) = (device.clone_htod(due)?, due.len() as u64, columns as u64);
            let kernel = kernel(device, &format!("replay_{}", W::NAME))?;
            in_place(weight, |weight| {
                in_place(m, |m| {
                    in_place(v, |v| {
                        let mut args = kernel.args();
                        args.arg(weight.as_cuda_slice_mut::<W>()?);
                        args.arg(m.as_cuda_slice_mut::<f32>()?).arg(v.as_cuda_slice_mut::<f32>()?);
                        args.arg(&rows).arg(&count).arg(&columns_arg).arg(entries).arg(&unsafe_until);
                        // SAFETY: replay's parameters; each row once, and a row of the table; entries from 0 to the largest `to`.
                        unsafe { launch(args, Threads::over_rows(due.len(), columns)) }
                    })
                })
            })
        }
        if weight.dim(1)? == 0 {
            return Ok(());
        }
        let due = Due::all(due, history, replay, weight.dtype() != DType::F32);
        by_dtype!(weight, run(weight, (m, v), &due, entries, history.unsafe_until as u32))
    }
}

#[cfg(all(test, target_os = "linux"))]
#[path = "../../../tests/kernels/optim.rs"]
mod tests;
