//! Weights in the host's memory: reached in place, row by row, in their own type.

use std::marker::PhantomData;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use half::{bf16, f16};

use super::history::{History, Step};
use super::kernel;
use crate::Result;
use crate::support::parallel;

/// Elements of one task of a dense step: some 10 µs of memory traffic.
const TASK_ELEMENTS: usize = 1 << 15;

/// Gives `change` the storage of a contiguous tensor. Everything that shares it sees the change.
pub(super) fn in_place(
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
pub(super) trait Weight: Copy + Send + Sync {
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
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose parts are handed out; `row`'s contract keeps the parts apart.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(super) fn new(slice: &'a mut [T], columns: usize) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), columns, lifetime: PhantomData }
    }

    /// # Safety
    /// No row may be asked for again while it is held.
    ///
    /// # Panics
    /// If there is no such row.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, row: u32) -> &mut [T] {
        let first = row as usize * self.columns;
        assert!(first + self.columns <= self.len, "row {row} is outside the table");
        // SAFETY: inside the slice, as just checked; held by nobody else, as promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), self.columns) }
    }
}

/// One dense step in one pass: reads weight, gradient and both moments, writes weight and moments, allocates nothing.
pub(super) fn step_dense(weight: &Tensor, grad: &Tensor, m: &mut [f32], v: &mut [f32], step: &Step) -> Result<()> {
    fn run<T: Weight>(weights: &mut [T], grads: &[T], m: &mut [f32], v: &mut [f32], step: &Step) {
        let tasks = weights.chunks_mut(TASK_ELEMENTS).zip(grads.chunks(TASK_ELEMENTS));
        let tasks = tasks.zip(m.chunks_mut(TASK_ELEMENTS).zip(v.chunks_mut(TASK_ELEMENTS)));
        each(grads.len(), tasks, |((weights, grads), (m, v))| {
            let (mut buffer, mut g) = (Vec::new(), Vec::new());
            g.extend(grads.iter().map(|g| g.to_f32()));
            T::with_f32(weights, &mut buffer, |theta| kernel::step_f32(theta, m, v, &g, step));
        });
    }
    with_grad(weight, grad, |grads| {
        in_place(weight, |weights| {
            match (weights, grads) {
                (CpuStorage::F32(w), CpuStorage::F32(g)) => {
                    let tasks = w.chunks_mut(TASK_ELEMENTS).zip(g.chunks(TASK_ELEMENTS));
                    let tasks = tasks.zip(m.chunks_mut(TASK_ELEMENTS).zip(v.chunks_mut(TASK_ELEMENTS)));
                    each(g.len(), tasks, |((w, g), (m, v))| kernel::step_f32(w, m, v, g, step));
                }
                (CpuStorage::BF16(w), CpuStorage::BF16(g)) => run(w, g, m, v, step),
                (CpuStorage::F16(w), CpuStorage::F16(g)) => run(w, g, m, v, step),
                _ => candle_core::bail!("weight and gradient must both be f32, bf16 or f16"),
            }
            Ok(())
        })
    })
}

/// The same for f64, moments in f64.
pub(super) fn step_dense_f64(
    weight: &Tensor,
    grad: &Tensor,
    m: &mut [f64],
    v: &mut [f64],
    step: &Step<f64>,
) -> Result<()> {
    with_grad(weight, grad, |grads| {
        in_place(weight, |weights| {
            let (CpuStorage::F64(w), CpuStorage::F64(g)) = (weights, grads) else {
                candle_core::bail!("weight and gradient must both be f64")
            };
            let tasks = w.chunks_mut(TASK_ELEMENTS).zip(g.chunks(TASK_ELEMENTS));
            let tasks = tasks.zip(m.chunks_mut(TASK_ELEMENTS).zip(v.chunks_mut(TASK_ELEMENTS)));
            each(g.len(), tasks, |((w, g), (m, v))| kernel::step_f64(w, m, v, g, step));
            Ok(())
        })
    })
}

/// `weight -= lr · grad`, in candle's order of operations.
pub(super) fn sgd_dense(weight: &Tensor, grad: &Tensor, lr: f64) -> Result<()> {
    with_grad(weight, grad, |grads| {
        in_place(weight, |weights| {
            macro_rules! sub {
                ($w:expr, $g:expr, $lr:expr) => {{
                    let tasks = $w.chunks_mut(TASK_ELEMENTS).zip($g.chunks(TASK_ELEMENTS));
                    each($g.len(), tasks, |(w, g)| w.iter_mut().zip(g).for_each(|(w, g)| *w = $lr(*w, *g)));
                }};
            }
            match (weights, grads) {
                (CpuStorage::F32(w), CpuStorage::F32(g)) => sub!(w, g, |w: f32, g: f32| w - (g * lr as f32 + 0.0)),
                (CpuStorage::F64(w), CpuStorage::F64(g)) => sub!(w, g, |w: f64, g: f64| w - (g * lr + 0.0)),
                (CpuStorage::BF16(w), CpuStorage::BF16(g)) => {
                    sub!(w, g, |w: bf16, g: bf16| bf16::from_f32(w.to_f32() - g.to_f32() * lr as f32))
                }
                (CpuStorage::F16(w), CpuStorage::F16(g)) => {
                    sub!(w, g, |w: f16, g: f16| f16::from_f32(w.to_f32() - g.to_f32() * lr as f32))
                }
                _ => candle_core::bail!("weight and gradient must have the same float dtype"),
            }
            Ok(())
        })
    })
}

/// Brings f32 `values` (N, C), row by row, into the rows of a tensor (V, C) in place: x ← change(x, value).
pub(super) fn change_rows(
    tensor: &Tensor,
    rows: &[u32],
    values: &[f32],
    change: impl Fn(f32, f32) -> f32 + Sync + Send,
) -> Result<()> {
    fn run<T: Weight>(all: &mut [T], columns: usize, rows: &[u32], values: &[f32], change: impl Fn(f32, f32) -> f32) {
        let mut buffer = Vec::new();
        let rows = rows.iter().zip(values.chunks_exact(columns.max(1)));
        for (row, values) in rows.filter(|(row, _)| **row != crate::NO_TOKEN) {
            let row = &mut all[*row as usize * columns..][..columns];
            T::with_f32(row, &mut buffer, |row| {
                row.iter_mut().zip(values).for_each(|(x, value)| *x = change(*x, *value))
            });
        }
    }
    let columns = tensor.dim(1)?;
    in_place(tensor, |storage| {
        match storage {
            CpuStorage::F32(all) => run(all, columns, rows, values, change),
            CpuStorage::BF16(all) => run(all, columns, rows, values, change),
            CpuStorage::F16(all) => run(all, columns, rows, values, change),
            _ => candle_core::bail!("rows of f32, bf16 or f16 tensors can be changed"),
        }
        Ok(())
    })
}

/// Small work stays on this thread.
fn each<I: Iterator + Send>(elements: usize, tasks: I, work: impl Fn(I::Item) + Sync) {
    if elements <= 4 * TASK_ELEMENTS { tasks.for_each(work) } else { parallel::for_each(tasks, work) }
}

/// The gradient's contiguous elements from the first on.
fn with_grad<R>(weight: &Tensor, grad: &Tensor, f: impl FnOnce(&CpuStorage) -> Result<R>) -> Result<R> {
    if weight.shape() != grad.shape() {
        return Err(crate::Error::Config(format!(
            "a gradient of shape {:?} for a weight of {:?}",
            grad.dims(),
            weight.dims()
        )));
    }
    let mut grad = grad.contiguous()?;
    if grad.layout().start_offset() != 0 {
        grad = grad.force_contiguous()?;
    }
    let (storage, _) = grad.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => f(storage),
        _ => Err(crate::Error::Config("weight and gradient are on different devices".to_string())),
    }
}
