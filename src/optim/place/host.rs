//! Updates in host memory, in place, on all threads.

use candle_core::{Device, Storage, Tensor, WithDType};

use super::Place;
use super::memory::{Disjoint, in_place};
pub(in crate::optim) use super::memory::{Real, Weight};
use crate::optim::Replay;
use crate::optim::history::History;
use crate::optim::kernel;
use crate::optim::rule::Update;
use crate::rows::{Grouped, RowGradients, RowTable};
use crate::support::parallel;
use crate::{Error, Result};

/// Elements of one task of a dense step: about 10 µs of memory traffic.
const TASK_ELEMENTS: usize = 1 << 15;

/// Elements of one task on rows: about 10 µs of work.
const ROWS_TASK_ELEMENTS: usize = 1 << 13;

/// Weights on the CPU, and their moments m and v. Memory pages of the moments are mapped when a row is first updated. Empty if the
/// rule has no moments.
pub(in crate::optim) struct Host<W: Weight> {
    has_moments: bool,
    pub(in crate::optim) m: Vec<W::Wide>,
    pub(in crate::optim) v: Vec<W::Wide>,
}

impl<W: Weight> Host<W> {
    pub(in crate::optim) fn new(weight: &Tensor, moments: bool) -> Self {
        let zeros = || vec![W::Wide::from_f64(0.0); if moments { weight.elem_count() } else { 0 }];
        Host { has_moments: moments, m: zeros(), v: zeros() }
    }

    /// Calls `work` with weight and moments of each row in `items`, on several threads if `steps` is large.
    fn each_row<X: Copy + Sync>(
        &mut self,
        weight: &Tensor,
        items: &[(u32, X)],
        steps: usize,
        work: impl Fn(X, [&mut [W::Wide]; 3]) + Sync + Send,
    ) -> Result<()> {
        let columns = weight.dim(1)?;
        in_place::<W>(weight, |weights| {
            let [m, v] = [&mut self.m, &mut self.v].map(|moment| Disjoint::new(moment, columns));
            let weights = Disjoint::new(weights, columns);
            let each = |items: &[(u32, X)]| {
                let mut buffer = Vec::new();
                for (row, item) in items {
                    // SAFETY: each row occurs once, and tasks have different items.
                    let (weights, m, v) = unsafe { (weights.row(*row), m.row(*row), v.row(*row)) };
                    W::change(weights, &mut buffer, |theta| work(*item, [theta, m, v]));
                }
            };
            if steps * columns < 4 * ROWS_TASK_ELEMENTS {
                return each(items);
            }
            let threads = rayon::current_num_threads();
            let a_task = (ROWS_TASK_ELEMENTS / columns.max(1)).min(items.len().div_ceil(threads)).max(1);
            parallel::for_each(items.chunks(a_task), each);
        })
    }
}

impl<W: Weight> Place for Host<W> {
    /// One pass. Reads weight, gradient and both moments, writes weight and moments. Allocates nothing, for bf16 and f16 the elements
    /// of a task.
    fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()> {
        let grad = whole(weight, grad)?;
        let (storage, layout) = grad.storage_and_layout();
        let grads = &elements::<W>(&storage)?[layout.start_offset()..][..weight.elem_count()];
        in_place::<W>(weight, |weights| {
            let tasks = weights.chunks_mut(TASK_ELEMENTS).zip(grads.chunks(TASK_ELEMENTS));
            match update {
                Update::Sgd { lr } => each(grads.len(), tasks, |(weights, grads)| {
                    let (lr, mut buffer, mut wide) = (W::Wide::from_f64(*lr), Vec::new(), Vec::new());
                    let grads = W::wide(grads, &mut wide);
                    W::change(weights, &mut buffer, |theta| {
                        theta.iter_mut().zip(grads).for_each(|(x, g)| *x = kernel::sgd_one(*x, *g, lr));
                    });
                }),
                Update::AdamW(step) => {
                    let step = W::step(step);
                    let moments = self.m.chunks_mut(TASK_ELEMENTS).zip(self.v.chunks_mut(TASK_ELEMENTS));
                    each(grads.len(), tasks.zip(moments), |((weights, grads), (m, v))| {
                        let (mut buffer, mut wide) = (Vec::new(), Vec::new());
                        let grads = W::wide(grads, &mut wide);
                        W::change(weights, &mut buffer, |theta| kernel::step(theta, m, v, grads, &step));
                    });
                }
            }
        })
    }

    fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()> {
        let RowGradients { rows, values } = grouped.sum()?;
        match update {
            _ if rows.is_empty() => Ok(()),
            Update::Sgd { lr } => {
                let lr = W::Wide::from_f64(*lr);
                change_rows::<W>(weight, &rows, &values, |x, g| kernel::sgd_one(x, g, lr))
            }
            Update::AdamW(step) => {
                let (step, columns) = (W::step(step), weight.dim(1)?);
                let values = values.to_dtype(W::Wide::DTYPE)?.contiguous()?;
                let (storage, layout) = values.storage_and_layout();
                let values = &elements::<W::Wide>(&storage)?[layout.start_offset()..][..rows.len() * columns];
                let items: Vec<(u32, &[W::Wide])> = rows.into_iter().zip(values.chunks(columns.max(1))).collect();
                self.each_row(weight, &items, items.len(), |g, [theta, m, v]| kernel::step(theta, m, v, g, &step))
            }
        }
    }

    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, replay: Replay) -> Result<()> {
        let (history, now) = (&*history, history.now());
        let steps: usize = due.iter().map(|(_, last)| (now - *last as usize).min(200)).sum();
        self.each_row(weight, due, steps, |last, row| {
            let (last, Some([theta, m, v])) = (last as usize, W::f32(row)) else { return };
            match replay {
                Replay::Truncated { steps } if history.can_jump(last + steps, now) => {
                    kernel::replay::<W>([theta, m, v], history, last, last + steps);
                    jump([theta, m, v], history, last + steps, now);
                }
                _ => kernel::replay::<W>([theta, m, v], history, last, now),
            }
        })
    }

    fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()> {
        super::waiting(dense, table)?
            .into_iter()
            .try_for_each(|(ids, grad)| change_rows::<W>(dense, &ids, &grad, |sum, value| sum + value))
    }

    fn moments(&self, weight: &Tensor) -> Result<Option<[Tensor; 2]>> {
        if !self.has_moments {
            return Ok(None);
        }
        let tensor = |moment| Tensor::from_slice(moment, weight.shape(), &Device::Cpu);
        Ok(Some([tensor(&self.m)?, tensor(&self.v)?]))
    }

    fn set_moments(&mut self, new: [&Tensor; 2]) -> Result<()> {
        let flat = |new: &Tensor| new.to_device(&Device::Cpu)?.to_dtype(W::Wide::DTYPE)?.flatten_all()?.to_vec1();
        (self.m, self.v) = (flat(new[0])?, flat(new[1])?);
        Ok(())
    }
}

/// Updates rows of a tensor (V, C) in place with `values` (N, C): x ← change(x, value).
pub(in crate::optim) fn change_rows<W: Weight>(
    tensor: &Tensor,
    rows: &[u32],
    values: &Tensor,
    change: impl Fn(W::Wide, W::Wide) -> W::Wide + Sync + Send,
) -> Result<()> {
    let (columns, values) = (tensor.dim(1)?, values.to_dtype(W::Wide::DTYPE)?.flatten_all()?.to_vec1::<W::Wide>()?);
    in_place::<W>(tensor, |all| {
        let mut buffer = Vec::new();
        let rows = rows.iter().zip(values.chunks_exact(columns.max(1)));
        for (row, values) in rows.filter(|(row, _)| **row != crate::NO_TOKEN) {
            W::change(&mut all[*row as usize * columns..][..columns], &mut buffer, |row| {
                row.iter_mut().zip(values).for_each(|(x, value)| *x = change(*x, *value))
            });
        }
    })
}

/// Runs tasks, on this thread if there are few elements.
fn each<I: Iterator + Send>(elements: usize, tasks: I, work: impl Fn(I::Item) + Sync) {
    if elements <= 4 * TASK_ELEMENTS { tasks.for_each(work) } else { parallel::for_each(tasks, work) }
}

/// The gradient of a weight, contiguous and in the weight's dtype.
fn whole(weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    match weight.shape() == grad.shape() {
        true => Ok(grad.contiguous()?),
        false => {
            Err(Error::Config(format!("a gradient of shape {:?} for a weight of {:?}", grad.dims(), weight.dims())))
        }
    }
}

fn elements<T: WithDType>(storage: &Storage) -> Result<&[T]> {
    match storage {
        Storage::Cpu(storage) => Ok(T::cpu_storage_as_slice(storage)?),
        _ => Err(Error::Config("weight and gradient are on different devices".to_string())),
    }
}

/// The second part of [`Replay::Truncated`]: the products of all remaining steps at once, without updates.
pub(in crate::optim) fn jump(row: [&mut [f32]; 3], history: &History, from: usize, to: usize) {
    for (values, product) in row.into_iter().zip(history.products(from, to)) {
        values.iter_mut().for_each(|x| *x *= product);
    }
}
