//! Access to weights in host memory: in place, by row, in their own type.

use std::marker::PhantomData;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, WithDType};
use half::{bf16, f16};

use crate::Result;
use crate::optim::history::Step;

/// Calls `change` with the elements of a contiguous tensor. Tensors that share the storage see the change.
pub(in crate::optim) fn in_place<W: Weight>(tensor: &Tensor, change: impl FnOnce(&mut [W]) + Send) -> Result<()> {
    struct Op<F, W>(Mutex<Option<F>>, PhantomData<fn(W)>);
    impl<W: Weight, F: FnOnce(&mut [W])> InplaceOp1 for Op<F, W> {
        fn name(&self) -> &'static str {
            "optimizer step"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            if layout.start_offset() != 0 || !layout.is_contiguous() {
                candle_core::bail!(
                    "an optimizer's variable must be contiguous, and not a view of a part of its storage"
                )
            }
            let Some(elements) = W::of(storage) else {
                candle_core::bail!("this weight is not a {} tensor", W::DTYPE.as_str())
            };
            if let Some(change) = self.0.lock().ok().and_then(|mut change| change.take()) {
                change(elements);
            }
            Ok(())
        }
    }
    Ok(tensor.inplace_op1(&Op(Mutex::new(Some(change)), PhantomData))?)
}

/// The float types of the arithmetic.
pub(in crate::optim) trait Real: WithDType {
    fn sqrt(self) -> Self;
    /// The value, or zero if its magnitude is below `floor`.
    fn above(self, floor: Self) -> Self;
}

macro_rules! real {
    ($($type:ty),*) => {$(
        impl Real for $type {
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            #[inline(always)]
            fn above(self, floor: Self) -> Self {
                if self.abs() < floor { 0.0 } else { self }
            }
        }
    )*};
}
real!(f32, f64);

/// The dtypes of weights, and the type of their arithmetic: bf16 and f16 in f32, rounded once per step.
pub(in crate::optim) trait Weight: WithDType + Send + Sync {
    type Wide: Real;
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    /// Calls `f` with these elements in the wide type, and stores the result.
    fn change(row: &mut [Self], buffer: &mut Vec<Self::Wide>, f: impl FnOnce(&mut [Self::Wide]));
    /// These elements in the wide type.
    fn wide<'a>(row: &'a [Self], buffer: &'a mut Vec<Self::Wide>) -> &'a [Self::Wide];
    /// The step's constants in the wide type.
    fn step(step: &Step<f64>) -> Step<Self::Wide>;
    /// Rounds to this dtype, as after each step.
    fn round(x: f32) -> f32;
    /// A row's weight and moments for a replay. `None` for f64, whose tables are never row-sparse.
    fn f32(row: [&mut [Self::Wide]; 3]) -> Option<[&mut [f32]; 3]>;
}

macro_rules! weight {
    ($type:ty, $variant:ident, $wide:ty, $step:expr, $f32:expr, $($rest:item)*) => {
        impl Weight for $type {
            type Wide = $wide;
            fn of(storage: &mut CpuStorage) -> Option<&mut [$type]> {
                match storage {
                    CpuStorage::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
            fn step(step: &Step<f64>) -> Step<$wide> {
                $step(*step)
            }
            fn f32(row: [&mut [$wide]; 3]) -> Option<[&mut [f32]; 3]> {
                $f32(row)
            }
            $($rest)*
        }
    };
}

macro_rules! as_it_is {
    ($type:ty, $variant:ident, $step:expr, $f32:expr) => {
        weight! { $type, $variant, $type, $step, $f32,
            fn change(row: &mut [$type], _buffer: &mut Vec<$type>, f: impl FnOnce(&mut [$type])) {
                f(row);
            }
            fn wide<'a>(row: &'a [$type], _buffer: &'a mut Vec<$type>) -> &'a [$type] {
                row
            }
            #[inline(always)]
            fn round(x: f32) -> f32 {
                x
            }
        }
    };
}
as_it_is!(f32, F32, Step::to_f32, Some);
as_it_is!(f64, F64, std::convert::identity, |_| None);

macro_rules! rounded {
    ($type:ty, $variant:ident) => {
        weight! { $type, $variant, f32, Step::to_f32, Some,
            fn change(row: &mut [$type], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32])) {
                Self::wide(row, buffer);
                f(buffer);
                row.iter_mut().zip(buffer).for_each(|(x, new)| *x = <$type>::from_f32(*new));
            }
            fn wide<'a>(row: &'a [$type], buffer: &'a mut Vec<f32>) -> &'a [f32] {
                buffer.clear();
                buffer.extend(row.iter().map(|x| x.to_f32()));
                buffer
            }
            #[inline(always)]
            fn round(x: f32) -> f32 {
                <$type>::from_f32(x).to_f32()
            }
        }
    };
}
rounded!(bf16, BF16);
rounded!(f16, F16);

/// Disjoint rows of one slice, for several threads.
pub(in crate::optim) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` of which `row` returns parts. The contract of `row` keeps them disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(in crate::optim) fn new(slice: &'a mut [T], columns: usize) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), columns, lifetime: PhantomData }
    }

    /// # Safety
    /// A row must not be requested again while it is borrowed.
    ///
    /// # Panics
    /// If there is no such row.
    #[allow(clippy::mut_from_ref)]
    pub(in crate::optim) unsafe fn row(&self, row: u32) -> &mut [T] {
        let first = row as usize * self.columns;
        assert!(first + self.columns <= self.len, "row {row} is outside the table");
        // SAFETY: in bounds, as checked above. The caller promises that no one else borrows the row.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), self.columns) }
    }
}
