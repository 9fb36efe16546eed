//! AdamW on a row-sparse table: rows are updated when they have a gradient, and brought up to date before they are read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, DType, Device, Tensor};
use candle_nn::ParamsAdamW;

use super::history::{History, MAX_ENTRIES, Step};
use super::host::{Disjoint, Weight, in_place};
#[cfg(feature = "cuda")]
use super::on_cuda;
use super::{Replay, kernel, on_device};
use crate::Result;
use crate::grouping::Groups;
use crate::rows::{Grouped, Keeper, RowGradients, RowTable, Rows};
use crate::support::parallel;

/// Elements of one task: some 10 µs of work.
const TASK_ELEMENTS: usize = 1 << 13;

/// The optimizer's side of one table.
pub(super) struct TableState(Mutex<State>);

struct State {
    replay: Replay,
    moments: Moments,
    /// By row: the entry of the history that it is up to date with.
    last: Vec<u32>,
    history: History,
    #[cfg(feature = "cuda")]
    sent: on_cuda::Sent,
}

pub(super) enum Moments {
    /// On the CPU, (V, C) each, in memory that is not touched before a row is.
    Host { m: Vec<f32>, v: Vec<f32> },
    /// On another device, (V, C) f32 each.
    Device { m: Tensor, v: Tensor },
}

impl TableState {
    pub(super) fn new(weight: &Tensor, replay: Replay) -> Result<Self> {
        let (rows, columns) = weight.dims2()?;
        let moments = match weight.device() {
            Device::Cpu => Moments::Host { m: vec![0.0; rows * columns], v: vec![0.0; rows * columns] },
            device => {
                let zeros = || Tensor::zeros((rows, columns), DType::F32, device);
                Moments::Device { m: zeros()?, v: zeros()? }
            }
        };
        Ok(TableState(Mutex::new(State {
            replay,
            moments,
            last: vec![0; rows],
            history: History::new(),
            #[cfg(feature = "cuda")]
            sent: Default::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_replay(&self, table: &RowTable, replay: Replay) -> Result<()> {
        table.catch_up(Rows::All)?;
        self.lock().replay = replay;
        Ok(())
    }

    pub(super) fn replay(&self) -> Replay {
        self.lock().replay
    }

    /// One step on the rows that have a gradient.
    pub(super) fn step_rows(&self, table: &RowTable, params: &ParamsAdamW, t: usize) -> Result<()> {
        let Some(grouped) = table.take_grouped()? else { return Ok(()) };
        let rows = &grouped.groups.rows;
        let mut state = self.lock();
        let step = Step::new(params, t).to_f32();
        let lazy = state.replay == Replay::Lazy;
        if !lazy {
            if state.history.now() == most_entries(table.weight()) {
                state.catch_up(table.weight(), Rows::All, &table.frozen())?;
            }
            // A forward that is older than the last step left rows behind.
            state.catch_up(table.weight(), Rows::These(rows), &table.frozen())?;
            state.history.push(step);
            let now = state.history.now() as u32;
            rows.iter().for_each(|row| state.last[*row as usize] = now);
        }
        state.step_rows(table.weight(), grouped, &step)
    }

    /// One step on the whole table, with a dense gradient.
    pub(super) fn step_dense(&self, table: &RowTable, grad: &Tensor, params: &ParamsAdamW, t: usize) -> Result<()> {
        let mut state = self.lock();
        let frozen = table.frozen();
        state.catch_up(table.weight(), Rows::All, &frozen)?;
        let step = Step::new(params, t);
        if frozen.is_empty() {
            return match &mut state.moments {
                Moments::Host { m, v } => super::host::step_dense(table.weight(), grad, m, v, &step.to_f32()),
                Moments::Device { m, v } => on_device::step_dense(table.weight(), grad, m, v, &step),
            };
        }
        let grouped = Grouped { groups: Groups::of_all_but(&frozen), sources: vec![grad.contiguous()?] };
        state.step_rows(table.weight(), grouped, &step.to_f32())
    }

    /// The moments (V, C) as tensors on the CPU, with every row up to date.
    pub(super) fn moments(&self, table: &RowTable) -> Result<(Tensor, Tensor)> {
        table.catch_up(Rows::All)?;
        let shape = table.weight().dims2()?;
        Ok(match &self.lock().moments {
            Moments::Host { m, v } => {
                (Tensor::from_slice(m, shape, &Device::Cpu)?, Tensor::from_slice(v, shape, &Device::Cpu)?)
            }
            Moments::Device { m, v } => (m.to_device(&Device::Cpu)?, v.to_device(&Device::Cpu)?),
        })
    }

    pub(super) fn set_moments(&self, table: &RowTable, new_m: &Tensor, new_v: &Tensor) -> Result<()> {
        table.catch_up(Rows::All)?;
        match &mut self.lock().moments {
            Moments::Host { m, v } => {
                *m = new_m.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
                *v = new_v.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            }
            Moments::Device { m, v } => {
                // Copies: rows of these are changed in place.
                let copy = |new: &Tensor| new.to_device(m.device())?.force_contiguous();
                (*m, *v) = (copy(new_m)?, copy(new_v)?);
            }
        }
        Ok(())
    }
}

impl Keeper for TableState {
    fn catch_up(&self, weight: &Tensor, rows: Rows, frozen: &[bool]) -> Result<()> {
        self.lock().catch_up(weight, rows, frozen)
    }
}

/// How many steps a row may owe.
fn most_entries(weight: &Tensor) -> usize {
    #[cfg(feature = "cuda")]
    if on_cuda::takes(weight) {
        return on_cuda::MAX_ENTRIES;
    }
    _ = weight;
    MAX_ENTRIES
}

impl State {
    fn catch_up(&mut self, weight: &Tensor, rows: Rows, frozen: &[bool]) -> Result<()> {
        let now = self.history.now() as u32;
        if now == 0 {
            return Ok(());
        }
        // Rows that owe steps, each once: (row, the entry that it is up to date with).
        let mut due = Vec::new();
        let last = &mut self.last;
        let mut collect = |row: u32| {
            if let Some(last) = last.get_mut(row as usize).filter(|last| **last < now) {
                if frozen.get(row as usize) != Some(&true) {
                    due.push((row, *last));
                }
                *last = now;
            }
        };
        let all = matches!(rows, Rows::All);
        match rows {
            Rows::These(rows) => rows.iter().for_each(|row| collect(*row)),
            Rows::All => (0..weight.dim(0)? as u32).for_each(collect),
        }
        if !due.is_empty()
            && let Err(error) = self.replay(weight, &due, now as usize)
        {
            // What was not paid is still owed.
            due.iter().for_each(|(row, last)| self.last[*row as usize] = *last);
            return Err(error);
        }
        if all {
            self.history = History::new();
            self.last.fill(0);
        }
        Ok(())
    }

    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], now: usize) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Moments::Device { m, v } = &self.moments
            && on_cuda::takes(weight)
        {
            let entries = self.sent.update(weight.device(), &mut self.history)?;
            return Ok(on_cuda::replay(weight, m, v, due, (&self.history, entries), self.replay)?);
        }
        let (history, replay) = (&self.history, self.replay);
        let (m, v) = match &mut self.moments {
            Moments::Device { m, v } => return on_device::replay(weight, m, v, due, history, replay),
            Moments::Host { m, v } => (m, v),
        };
        fn rows<T: Weight>(
            weights: &mut [T],
            (m, v): (&mut [f32], &mut [f32]),
            columns: usize,
            due: &[(u32, u32)],
            (history, replay, now): (&History, Replay, usize),
        ) {
            let (weights, m, v) =
                (Disjoint::new(weights, columns), Disjoint::new(m, columns), Disjoint::new(v, columns));
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
            let a_task = (TASK_ELEMENTS / columns.max(1)).max(1).min(due.len().div_ceil(rayon::current_num_threads()));
            let owed: usize = due.iter().map(|(_, last)| (now - *last as usize).min(200)).sum();
            if owed * columns < 1 << 15 {
                work(due);
            } else {
                parallel::for_each(due.chunks(a_task.max(1)), work);
            }
        }
        let columns = weight.dim(1)?;
        let how = (history, replay, now);
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

    /// Sums, and updates the rows that they are for; on CUDA in one pass.
    fn step_rows(&mut self, weight: &Tensor, grouped: Grouped, step: &Step) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Moments::Device { m, v } = &self.moments
            && on_cuda::takes(weight)
        {
            return Ok(on_cuda::step_rows(weight, &grouped, &on_cuda::Rule::AdamW { m, v, step })?);
        }
        let RowGradients { rows, values } = grouped.sum()?;
        self.update(weight, &rows, &values, step)
    }

    fn update(&mut self, weight: &Tensor, rows: &[u32], values: &Tensor, step: &Step) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let (m, v) = match &mut self.moments {
            Moments::Device { m, v } => return on_device::update(weight, m, v, rows, values, step),
            Moments::Host { m, v } => (m, v),
        };
        fn each<T: Weight>(
            weights: &mut [T],
            (m, v): (&mut [f32], &mut [f32]),
            columns: usize,
            (ids, values): (&[u32], &[f32]),
            step: &Step,
        ) {
            let (weights, m, v) =
                (Disjoint::new(weights, columns), Disjoint::new(m, columns), Disjoint::new(v, columns));
            let work = |(ids, values): (&[u32], &[f32])| {
                let mut buffer = Vec::new();
                for (row, g) in ids.iter().zip(values.chunks_exact(columns)) {
                    // SAFETY: `ids` names each row once, and each task has other parts of it.
                    let (weights, m, v) = unsafe { (weights.row(*row), m.row(*row), v.row(*row)) };
                    T::with_f32(weights, &mut buffer, |theta| kernel::step_f32(theta, m, v, g, step));
                }
            };
            let a_task = (TASK_ELEMENTS / columns.max(1)).max(1);
            if values.len() < 4 * TASK_ELEMENTS {
                work((ids, values));
            } else {
                parallel::for_each(ids.chunks(a_task).zip(values.chunks(a_task * columns)), work);
            }
        }
        let columns = weight.dim(1)?;
        let values = values.contiguous()?;
        let (values, layout) = values.storage_and_layout();
        let candle_core::Storage::Cpu(CpuStorage::F32(values)) = &*values else {
            return Err(crate::Error::Config("row gradients are f32 on the table's device".to_string()));
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
}

/// [`Replay::Truncated`]'s short cut: the products of all steps at once, and no updates.
pub(super) fn jump(theta: &mut [f32], m: &mut [f32], v: &mut [f32], history: &History, from: usize, to: usize) {
    let [decay, beta1, beta2] = history.products(from, to);
    theta.iter_mut().for_each(|x| *x *= decay);
    m.iter_mut().for_each(|x| *x *= beta1);
    v.iter_mut().for_each(|x| *x *= beta2);
}

/// A table and its state, tied for as long as the optimizer lives.
pub(super) struct Attached {
    pub(super) table: Arc<RowTable>,
    pub(super) state: Arc<TableState>,
}

impl Attached {
    pub(super) fn new(table: Arc<RowTable>, replay: Replay) -> Result<Self> {
        let state = Arc::new(TableState::new(table.weight(), replay)?);
        table.attach(state.clone())?;
        Ok(Attached { table, state })
    }
}

impl Drop for Attached {
    /// Leaves no row behind. (A device that fails now has failed the caller already.)
    fn drop(&mut self) {
        _ = self.table.catch_up(Rows::All);
        self.table.detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// The path for devices, run on the CPU, against the fused one.
    #[test]
    fn candles_operations_give_the_fused_bits() {
        for (dtype, replay) in [
            (DType::F32, Replay::Exact),
            (DType::BF16, Replay::Exact),
            (DType::F32, Replay::Truncated { steps: 5 }),
            (DType::F32, Replay::Lazy),
        ] {
            let start = Tensor::randn(0f32, 0.1, (9, 5), &Device::Cpu).and_then(|t| t.to_dtype(dtype)).unwrap();
            let tables = [0, 1].map(|_| RowTable::of(Var::from_tensor(&start.copy().unwrap()).unwrap().as_tensor()));
            let states = tables.each_ref().map(|table| Arc::new(TableState::new(table.weight(), replay).unwrap()));
            let zeros = || Tensor::zeros((9, 5), DType::F32, &Device::Cpu).unwrap();
            states[1].lock().moments = Moments::Device { m: zeros(), v: zeros() };
            for (table, state) in tables.iter().zip(&states) {
                table.attach(state.clone()).unwrap();
            }
            table_steps(&tables, &states);
            let bits = |table: &RowTable| {
                table.catch_up(Rows::All).unwrap();
                let values =
                    table.weight().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let (host, device) = (bits(&tables[0]), bits(&tables[1]));
            assert_eq!(host, device, "{dtype:?} {replay:?}");
            assert_ne!(
                host[0],
                start.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0].to_bits()
            );
        }
    }

    fn table_steps(tables: &[Arc<RowTable>; 2], states: &[Arc<TableState>; 2]) {
        let params = ParamsAdamW { lr: 1e-2, weight_decay: 0.1, ..Default::default() };
        for t in 1..=40usize {
            let rows: Vec<u32> = (0..9).filter(|row| t % (*row as usize + 1) == 0).collect();
            let values = Tensor::randn(0f32, 1.0, (rows.len(), 5), &Device::Cpu).unwrap();
            for (table, state) in tables.iter().zip(states) {
                if t == 20 {
                    let grad = Tensor::ones((9, 5), table.weight().dtype(), &Device::Cpu).unwrap();
                    state.step_dense(table, &grad, &params, t).unwrap();
                    continue;
                }
                table.push_rows(RowGradients { rows: rows.clone(), values: values.clone() }).unwrap();
                state.step_rows(table, &params, t).unwrap();
            }
        }
    }
}
