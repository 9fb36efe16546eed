//! Updates in the host's memory, in place, on all threads.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};

use super::Place;
pub(in crate::optim) use super::memory::Weight;
use super::memory::{Disjoint, in_place};
use crate::optim::history::{History, Step};
use crate::optim::rule::Update;
use crate::optim::{Replay, kernel};
use crate::rows::{Grouped, RowGradients, RowTable};
use crate::support::parallel;
use crate::{Error, Result};

/// Elements of one task of a dense step: some 10 µs of memory traffic.
const TASK_ELEMENTS: usize = 1 << 15;

/// Elements of one task on rows: some 10 µs of work.
const ROWS_TASK_ELEMENTS: usize = 1 << 13;

/// Weights on the CPU. Moments lie in memory that is not touched before a row is.
pub(super) struct Host(Moments);

enum Moments {
    None,
    F32 { m: Vec<f32>, v: Vec<f32> },
    F64 { m: Vec<f64>, v: Vec<f64> },
}

impl Host {
    pub(super) fn new(weight: &Tensor, moments: bool) -> Self {
        let count = weight.elem_count();
        Host(match weight.dtype() {
            _ if !moments => Moments::None,
            DType::F64 => Moments::F64 { m: vec![0.0; count], v: vec![0.0; count] },
            _ => Moments::F32 { m: vec![0.0; count], v: vec![0.0; count] },
        })
    }

    /// The moments of a row-sparse table.
    fn f32(&mut self) -> Result<(&mut [f32], &mut [f32])> {
        match &mut self.0 {
            Moments::F32 { m, v } => Ok((m, v)),
            _ => Err(Error::Config("a row-sparse table is f32, bf16 or f16".to_string())),
        }
    }
}

impl Place for Host {
    fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()> {
        match (update, &mut self.0) {
            (Update::Sgd { lr }, _) => sgd_dense(weight, grad, *lr),
            (Update::AdamW(step), Moments::F64 { m, v }) => step_dense_f64(weight, grad, m, v, step),
            (Update::AdamW(step), Moments::F32 { m, v }) => step_dense(weight, grad, m, v, &step.to_f32()),
            (Update::AdamW(_), Moments::None) => Ok(()),
        }
    }

    fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()> {
        let RowGradients { rows, values } = grouped.sum()?;
        if rows.is_empty() {
            return Ok(());
        }
        match update {
            Update::AdamW(step) => step_rows(weight, self.f32()?, &rows, &values, &step.to_f32()),
            Update::Sgd { lr } => {
                let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
                change_rows(weight, &rows, &values, |x, g| x - (g * *lr as f32 + 0.0))
            }
        }
    }

    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, replay: Replay) -> Result<()> {
        let (m, v) = self.f32()?;
        replay_rows(weight, (m, v), due, history, replay)
    }

    fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()> {
        super::waiting(dense, table)?.into_iter().try_for_each(|(ids, grad)| {
            let values: Vec<f32> = grad.flatten_all()?.to_vec1()?;
            change_rows(dense, &ids, &values, |sum, value| sum + value)
        })
    }

    fn moments(&self, weight: &Tensor) -> Result<Option<[Tensor; 2]>> {
        let shape = weight.shape();
        Ok(match &self.0 {
            Moments::None => None,
            Moments::F32 { m, v } => {
                Some([Tensor::from_slice(m, shape, &Device::Cpu)?, Tensor::from_slice(v, shape, &Device::Cpu)?])
            }
            Moments::F64 { m, v } => {
                Some([Tensor::from_slice(m, shape, &Device::Cpu)?, Tensor::from_slice(v, shape, &Device::Cpu)?])
            }
        })
    }

    fn set_moments(&mut self, new: [&Tensor; 2]) -> Result<()> {
        let flat = |new: &Tensor, dtype| new.to_device(&Device::Cpu)?.to_dtype(dtype)?.flatten_all();
        match &mut self.0 {
            Moments::None => (),
            Moments::F32 { m, v } => {
                (*m, *v) = (flat(new[0], DType::F32)?.to_vec1()?, flat(new[1], DType::F32)?.to_vec1()?);
            }
            Moments::F64 { m, v } => {
                (*m, *v) = (flat(new[0], DType::F64)?.to_vec1()?, flat(new[1], DType::F64)?.to_vec1()?);
            }
        }
        Ok(())
    }
}

/// One dense step in one pass: reads weight, gradient and both moments, writes weight and moments, allocates nothing.
pub(in crate::optim) fn step_dense(
    weight: &Tensor,
    grad: &Tensor,
    m: &mut [f32],
    v: &mut [f32],
    step: &Step,
) -> Result<()> {
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
fn step_dense_f64(weight: &Tensor, grad: &Tensor, m: &mut [f64], v: &mut [f64], step: &Step<f64>) -> Result<()> {
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
pub(in crate::optim) fn sgd_dense(weight: &Tensor, grad: &Tensor, lr: f64) -> Result<()> {
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
pub(in crate::optim) fn change_rows(
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
        return Err(Error::Config(format!(
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
        Storage::Cpu(storage) => f(storage),
        _ => Err(Error::Config("weight and gradient are on different devices".to_string())),
    }
}

/// One step on rows that have a gradient: `values` (U, C) f32.
fn step_rows(
    weight: &Tensor,
    (m, v): (&mut [f32], &mut [f32]),
    rows: &[u32],
    values: &Tensor,
    step: &Step,
) -> Result<()> {
    fn each<T: Weight>(
        weights: &mut [T],
        (m, v): (&mut [f32], &mut [f32]),
        columns: usize,
        (ids, values): (&[u32], &[f32]),
        step: &Step,
    ) {
        let (weights, m, v) = (Disjoint::new(weights, columns), Disjoint::new(m, columns), Disjoint::new(v, columns));
        let work = |(ids, values): (&[u32], &[f32])| {
            let mut buffer = Vec::new();
            for (row, g) in ids.iter().zip(values.chunks_exact(columns)) {
                // SAFETY: `ids` names each row once, and each task has other parts of it.
                let (weights, m, v) = unsafe { (weights.row(*row), m.row(*row), v.row(*row)) };
                T::with_f32(weights, &mut buffer, |theta| kernel::step_f32(theta, m, v, g, step));
            }
        };
        let a_task = (ROWS_TASK_ELEMENTS / columns.max(1)).max(1);
        if values.len() < 4 * ROWS_TASK_ELEMENTS {
            work((ids, values));
        } else {
            parallel::for_each(ids.chunks(a_task).zip(values.chunks(a_task * columns)), work);
        }
    }
    let columns = weight.dim(1)?;
    let values = values.contiguous()?;
    let (values, layout) = values.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*values else {
        return Err(Error::Config("row gradients are f32 on the table's device".to_string()));
    };
    let values = &values[layout.start_offset()..][..rows.len() * columns];
    in_place(weight, |storage| {
        match storage {
            CpuStorage::F32(w) => each(w, (m, v), columns, (rows, values), step),
            CpuStorage::BF16(w) => each(w, (m, v), columns, (rows, values), step),
            CpuStorage::F16(w) => each(w, (m, v), columns, (rows, values), step),
            _ => candle_core::bail!("a row-sparse table is f32, bf16 or f16"),
        }
        Ok(())
    })
}

/// Replays what the history says of each row, in place.
fn replay_rows(
    weight: &Tensor,
    (m, v): (&mut [f32], &mut [f32]),
    due: &[(u32, u32)],
    history: &History,
    replay: Replay,
) -> Result<()> {
    fn rows<T: Weight>(
        weights: &mut [T],
        (m, v): (&mut [f32], &mut [f32]),
        columns: usize,
        due: &[(u32, u32)],
        (history, replay, now): (&History, Replay, usize),
    ) {
        let (weights, m, v) = (Disjoint::new(weights, columns), Disjoint::new(m, columns), Disjoint::new(v, columns));
        let work = |due: &[(u32, u32)]| {
            let mut buffer = Vec::new();
            for (row, last) in due {
                // SAFETY: `due` names each row once, and each task has other parts of it.
                let (weights, m, v) = unsafe { (weights.row(*row), m.row(*row), v.row(*row)) };
                T::with_f32(weights, &mut buffer, |theta| match replay {
                    Replay::Truncated { steps } if history.can_jump(*last as usize + steps, now) => {
                        let cut = *last as usize + steps;
                        T::replay(theta, m, v, history, *last as usize, cut);
                        jump(theta, m, v, history, cut, now);
                    }
                    _ => T::replay(theta, m, v, history, *last as usize, now),
                });
            }
        };
        let a_task = (ROWS_TASK_ELEMENTS / columns.max(1)).max(1).min(due.len().div_ceil(rayon::current_num_threads()));
        let updates: usize = due.iter().map(|(_, last)| (now - *last as usize).min(200)).sum();
        if updates * columns < 1 << 15 {
            work(due);
        } else {
            parallel::for_each(due.chunks(a_task.max(1)), work);
        }
    }
    let columns = weight.dim(1)?;
    let how = (history, replay, history.now());
    in_place(weight, |storage| {
        match storage {
            CpuStorage::F32(w) => rows(w, (m, v), columns, due, how),
            CpuStorage::BF16(w) => rows(w, (m, v), columns, due, how),
            CpuStorage::F16(w) => rows(w, (m, v), columns, due, how),
            _ => candle_core::bail!("a row-sparse table is f32, bf16 or f16"),
        }
        Ok(())
    })
}

/// [`Replay::Truncated`]'s short cut: the products of all steps at once, and no updates.
pub(in crate::optim) fn jump(
    theta: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    history: &History,
    from: usize,
    to: usize,
) {
    let [decay, beta1, beta2] = history.products(from, to);
    theta.iter_mut().for_each(|x| *x *= decay);
    m.iter_mut().for_each(|x| *x *= beta1);
    v.iter_mut().for_each(|x| *x *= beta2);
}
