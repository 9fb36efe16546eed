//! Weights in the host's memory: reached in place, row by row, in their own type.

use std::marker::PhantomData;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use half::{bf16, f16};

use crate::Result;
use crate::optim::history::History;
use crate::optim::kernel;

/// Gives `change` the storage of a contiguous tensor. Everything that shares it sees the change.
pub(in crate::optim) fn in_place(
    tensor: &Tensor,
    change: impl FnOnce(&mut CpuStorage) -> candle_core::Result<()> + Send,
) -> Result<()> {
    struct Op<F>(Mutex<Option<F>>);
    impl<F: FnOnce(&mut CpuStorage) -> candle_core::Result<()>> InplaceOp1 for Op<F> {
        fn name(&self) -> &'static str {
            "optimizer step"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            if layout.start_offset() != 0 || !layout.is_contiguous() {
                candle_core::bail!("an optimizer's variable must be contiguous and whole")
            }
            match self.0.lock().ok().and_then(|mut change| change.take()) {
                Some(change) => change(storage),
                None => Ok(()),
            }
        }
    }
    Ok(tensor.inplace_op1(&Op(Mutex::new(Some(change))))?)
}

/// The dtypes of weights; bf16 and f16 are computed in f32 and rounded once a step.
pub(in crate::optim) trait Weight: Copy + Send + Sync {
    fn with_f32(row: &mut [Self], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32]));
    fn to_f32(self) -> f32;
    fn replay(theta: &mut [f32], m: &mut [f32], v: &mut [f32], history: &History, from: usize, to: usize);
}

impl Weight for f32 {
    fn with_f32(row: &mut [f32], _buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32])) {
        f(row);
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn replay(theta: &mut [f32], m: &mut [f32], v: &mut [f32], history: &History, from: usize, to: usize) {
        kernel::replay_f32(theta, m, v, history, from, to);
    }
}

macro_rules! small_float {
    ($type:ty, $replay:path) => {
        impl Weight for $type {
            fn with_f32(row: &mut [$type], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32])) {
                buffer.clear();
                buffer.extend(row.iter().map(|x| x.to_f32()));
                f(buffer);
                row.iter_mut().zip(buffer).for_each(|(x, new)| *x = <$type>::from_f32(*new));
            }
            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }
            fn replay(theta: &mut [f32], m: &mut [f32], v: &mut [f32], history: &History, from: usize, to: usize) {
                $replay(theta, m, v, history, from, to);
            }
        }
    };
}
small_float!(bf16, kernel::replay_bf16);
small_float!(f16, kernel::replay_f16);

/// Rows of one slice, handed to several threads.
pub(in crate::optim) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose parts are handed out; `row`'s contract keeps the parts apart.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(in crate::optim) fn new(slice: &'a mut [T], columns: usize) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), columns, lifetime: PhantomData }
    }

    /// # Safety
    /// No row may be asked for again while it is held.
    ///
    /// # Panics
    /// If there is no such row.
    #[allow(clippy::mut_from_ref)]
    pub(in crate::optim) unsafe fn row(&self, row: u32) -> &mut [T] {
        let first = row as usize * self.columns;
        assert!(first + self.columns <= self.len, "row {row} is outside the table");
        // SAFETY: inside the slice, as just checked; held by nobody else, as promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), self.columns) }
    }
}
