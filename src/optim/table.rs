//! A row-sparse table: rows are updated when they have a gradient, and what AdamW would have done to them in between is deferred
//! until they are read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

use super::Replay;
use super::history::History;
use super::place::Place;
use super::rule::Update;
use crate::Result;
use crate::grouping::Groups;
use crate::rows::{Grouped, Keeper, RowTable, Rows};

/// The optimizer's side of one table.
pub(super) struct TableState(Mutex<State>);

struct State {
    how: Replay,
    place: Box<dyn Place>,
    /// By row: the entry of the history that it is up to date with. Empty until a step defers something.
    last: Vec<u32>,
    history: History,
}

impl TableState {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for TableState {
    fn replay(&self, weight: &Tensor, rows: Rows, frozen: &[bool]) -> Result<()> {
        self.lock().replay(weight, rows, frozen)
    }
}

impl State {
    fn replay(&mut self, weight: &Tensor, rows: Rows, frozen: &[bool]) -> Result<()> {
        let now = self.history.now() as u32;
        if now == 0 {
            return Ok(());
        }
        // Rows with deferred updates, each once: (row, the entry that it is up to date with).
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
            && let Err(error) = self.place.replay(weight, &due, &mut self.history, self.how)
        {
            // What was not replayed is still deferred.
            due.iter().for_each(|(row, last)| self.last[*row as usize] = *last);
            return Err(error);
        }
        if all {
            self.history = History::new();
            self.last.fill(0);
        }
        Ok(())
    }
}

/// A table and its state, tied for as long as the optimizer lives.
pub(super) struct Attached {
    pub(super) table: Arc<RowTable>,
    state: Arc<TableState>,
}

impl Attached {
    pub(super) fn new(table: Arc<RowTable>, place: Box<dyn Place>) -> Result<Self> {
        let state = State { how: Replay::default(), place, last: Vec::new(), history: History::new() };
        let state = Arc::new(TableState(Mutex::new(state)));
        table.attach(state.clone())?;
        Ok(Attached { table, state })
    }

    pub(super) fn set_replay(&self, replay: Replay) -> Result<()> {
        self.table.replay(Rows::All)?;
        self.state.lock().how = replay;
        Ok(())
    }

    /// The rule for deferred updates.
    pub(super) fn how(&self) -> Replay {
        self.state.lock().how
    }

    /// Adds what waits to a dense gradient of the table.
    pub(super) fn add(&self, dense: &Tensor) -> Result<()> {
        self.state.lock().place.add(dense, &self.table)
    }

    /// One step on the rows that have a gradient.
    pub(super) fn step_rows(&self, update: &Update) -> Result<()> {
        let (weight, frozen) = (self.table.weight(), self.table.frozen());
        let Some(grouped) = self.table.take_grouped()? else { return Ok(()) };
        let rows = &grouped.groups.rows;
        let mut state = self.state.lock();
        if let Update::AdamW(step) = update
            && state.how != Replay::Lazy
        {
            if state.history.now() == state.place.longest_history() {
                state.replay(weight, Rows::All, &frozen)?;
            }
            // A forward that is older than the last step left rows behind.
            state.replay(weight, Rows::These(rows), &frozen)?;
            state.history.push(step.to_f32());
            let now = state.history.now() as u32;
            if state.last.is_empty() {
                state.last = vec![0; weight.dim(0)?];
            }
            rows.iter().for_each(|row| state.last[*row as usize] = now);
        }
        state.place.rows(weight, grouped, update)
    }

    /// One step on the whole table: a dense gradient, to which what waits is added.
    pub(super) fn step_dense(&self, grad: &Tensor, update: &Update) -> Result<()> {
        let (weight, frozen) = (self.table.weight(), self.table.frozen());
        let mut state = self.state.lock();
        state.place.add(grad, &self.table)?;
        state.replay(weight, Rows::All, &frozen)?;
        if frozen.is_empty() {
            return state.place.dense(weight, grad, update);
        }
        let grouped = Grouped { groups: Groups::of_all_but(&frozen), sources: vec![grad.contiguous()?] };
        state.place.rows(weight, grouped, update)
    }

    /// The moments (V, C) on the CPU, with every row up to date.
    pub(super) fn moments(&self) -> Result<Option<[Tensor; 2]>> {
        self.table.replay(Rows::All)?;
        self.state.lock().place.moments(self.table.weight())
    }

    pub(super) fn set_moments(&self, moments: [&Tensor; 2]) -> Result<()> {
        self.table.replay(Rows::All)?;
        self.state.lock().place.set_moments(moments)
    }
}

impl Drop for Attached {
    /// Leaves no row behind. (A device that fails now has failed the caller already.)
    fn drop(&mut self) {
        _ = self.table.replay(Rows::All);
        self.table.detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::place::{self, Operations};
    use crate::optim::rule::Numbers;
    use crate::rows::RowGradients;
    use candle_core::{DType, Device, Var};
    use candle_nn::ParamsAdamW;

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
            let places: [Box<dyn Place>; 2] = [
                place::of(tables[0].weight(), true).unwrap(),
                Box::new(Operations::new(tables[1].weight(), true).unwrap()),
            ];
            let mut attached = Vec::new();
            for (table, place) in tables.into_iter().zip(places) {
                let one = Attached::new(table, place).unwrap();
                one.set_replay(replay).unwrap();
                attached.push(one);
            }
            table_steps(&attached);
            let bits = |attached: &Attached| {
                attached.table.replay(Rows::All).unwrap();
                let weight = attached.table.weight().to_dtype(DType::F32).unwrap();
                let values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let (host, device) = (bits(&attached[0]), bits(&attached[1]));
            assert_eq!(host, device, "{dtype:?} {replay:?}");
            let first = start.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
            assert_ne!(host[0], first.to_bits());
        }
    }

    fn table_steps(attached: &[Attached]) {
        let params = ParamsAdamW { lr: 1e-2, weight_decay: 0.1, ..Default::default() };
        for t in 1..=40usize {
            let rows: Vec<u32> = (0..9).filter(|row| t % (*row as usize + 1) == 0).collect();
            let values = Tensor::randn(0f32, 1.0, (rows.len(), 5), &Device::Cpu).unwrap();
            for one in attached {
                if t == 20 {
                    let grad = Tensor::ones((9, 5), one.table.weight().dtype(), &Device::Cpu).unwrap();
                    one.step_dense(&grad, &params.update(t)).unwrap();
                    continue;
                }
                one.table.push_rows(RowGradients { rows: rows.clone(), values: values.clone() }).unwrap();
                one.step_rows(&params.update(t)).unwrap();
            }
        }
    }
}
