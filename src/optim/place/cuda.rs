//! Updates by kernels.cu on an NVIDIA GPU, with the arithmetic of `kernel.rs`.

use candle_core::Tensor;

use super::Place;
use crate::Result;

/// The place of a weight that the kernels support: f32, bf16 or f16 on CUDA. `None` in a build without the feature `cuda`.
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

/// The structs that kernels.cu reads.
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

    /// A row: updates after entry `from` up to `to` are replayed, then the products of all later entries are applied.
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
        /// From pairs (row, entry up to which its updates are applied). `rounded`: weights are rounded after every step.
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
mod device;

#[cfg(all(test, target_os = "linux"))]
#[path = "../../../tests/kernels/optim.rs"]
mod tests;
