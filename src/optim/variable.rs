//! A variable of an optimizer. A dense gradient updates the whole variable. In a row-sparse table only rows with a gradient are updated;
//! AdamW's updates of the other rows are deferred until they are read.

use std::sync::{Arc, Mutex};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::Replay;
use super::history::History;
use super::place::{self, Place};
use super::rule::Update;
use crate::grouping::Groups;
use crate::rows::{Deferred, Grouped, RowTable, Rows, lock};
use crate::{Error, Result};

/// One variable, attached to its table while the optimizer exists.
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) var: Var,
    pub(crate) table: Arc<RowTable>,
    state: Arc<Mutex<State>>,
}

struct State {
    weight: Tensor,
    place: Box<dyn Place>,
    how: Replay,
    /// For each row: the entry of the history up to which its updates are applied. Empty until a step defers an update.
    last: Vec<u32>,
    history: History,
}

impl Deferred for Mutex<State> {
    fn replay(&self, rows: Rows, frozen: &[bool]) -> Result<()> {
        lock(self).replay(rows, frozen)
    }
}

impl State {
    fn replay(&mut self, rows: Rows, frozen: &[bool]) -> Result<()> {
        let now = self.history.now() as u32;
        if now == 0 {
            return Ok(());
        }
        // Rows with deferred updates, each once: (row, the entry up to which its updates are applied).
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
            Rows::All => (0..self.weight.dim(0)? as u32).for_each(collect),
        }
        if !due.is_empty()
            && let Err(error) = self.place.replay(&self.weight, &due, &mut self.history, self.how)
        {
            // These updates were not replayed, and stay deferred.
            due.iter().for_each(|(row, last)| self.last[*row as usize] = *last);
            return Err(error);
        }
        if all {
            self.history = History::new();
            self.last.fill(0);
        }
        Ok(())
    }

    /// One step on the rows that have a gradient.
    fn step_rows(&mut self, grouped: Grouped, update: &Update, frozen: &[bool]) -> Result<()> {
        let rows = &grouped.groups.rows;
        if let Update::AdamW(step) = update
            && self.how != Replay::Lazy
        {
            if self.history.now() == self.place.longest_history() {
                self.replay(Rows::All, frozen)?;
            }
            // Needed if the forward was before the last step: the rows then have deferred updates.
            self.replay(Rows::These(rows), frozen)?;
            self.history.push(step.to_f32());
            let now = self.history.now() as u32;
            if self.last.is_empty() {
                self.last = vec![0; self.weight.dim(0)?];
            }
            rows.iter().for_each(|row| self.last[*row as usize] = now);
        }
        self.place.rows(&self.weight, grouped, update)
    }

    /// Adds the pending row gradients to a dense gradient, in place.
    fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()> {
        match dense.is_contiguous() {
            true => self.place.add(dense, table),
            false => Err(Error::Config("the dense gradient of a row-sparse table must be contiguous".to_string())),
        }
    }

    /// One step on the whole row-sparse table, with a dense gradient to which the pending row gradients are added.
    fn step_all_rows(&mut self, table: &RowTable, grad: &Tensor, update: &Update) -> Result<()> {
        let frozen = table.frozen();
        self.add(grad, table)?;
        self.replay(Rows::All, &frozen)?;
        if frozen.is_empty() {
            return self.place.dense(&self.weight, grad, update);
        }
        let grouped = Grouped { groups: Groups::of_all_but(&frozen), sources: vec![grad.contiguous()?] };
        self.place.rows(&self.weight, grouped, update)
    }
}

impl Variable {
    pub(super) fn new(name: String, var: Var, moments: bool) -> Result<Self> {
        let place = place::of(&var, moments)?;
        Self::in_place(name, var, place)
    }

    pub(super) fn in_place(name: String, var: Var, place: Box<dyn Place>) -> Result<Self> {
        let weight = var.as_tensor().clone();
        let (table, history) = (RowTable::of(&weight), History::new());
        let state = State { weight, place, how: Replay::default(), last: Vec::new(), history };
        let state = Arc::new(Mutex::new(state));
        table.attach(state.clone())?;
        Ok(Variable { name, var, table, state })
    }

    /// One step with the gradient in `grads`, the pending row gradients, or both.
    pub(super) fn step(&self, grads: &GradStore, update: &Update) -> Result<()> {
        let grad = grads.get(&self.var);
        if !self.table.is_row_sparse() {
            return grad.map_or(Ok(()), |grad| lock(&self.state).place.dense(&self.var, grad, update));
        }
        match (grad, &self.table.frozen()) {
            (Some(grad), _) => lock(&self.state).step_all_rows(&self.table, grad, update),
            (None, frozen) => match self.table.take_grouped()? {
                Some(grouped) => lock(&self.state).step_rows(grouped, update, frozen),
                None => Ok(()),
            },
        }
    }

    /// Adds the pending row gradients to a dense gradient of a row-sparse table.
    pub(crate) fn add(&self, dense: &Tensor) -> Result<()> {
        lock(&self.state).add(dense, &self.table)
    }

    pub(super) fn set_replay(&self, replay: Replay) -> Result<()> {
        self.table.replay(Rows::All)?;
        lock(&self.state).how = replay;
        Ok(())
    }

    pub(super) fn how(&self) -> Replay {
        lock(&self.state).how
    }

    /// Both moments in the variable's shape, on the CPU, after all deferred updates are replayed.
    pub(super) fn moments(&self) -> Result<Option<[Tensor; 2]>> {
        self.table.replay(Rows::All)?;
        lock(&self.state).place.moments(&self.var)
    }

    pub(super) fn set_moments(&self, moments: [&Tensor; 2]) -> Result<()> {
        self.table.replay(Rows::All)?;
        lock(&self.state).place.set_moments(moments)
    }
}

impl Drop for Variable {
    /// Flushes the table. (Errors are ignored: a device that fails now has returned an error to the caller before.)
    fn drop(&mut self) {
        _ = self.table.replay(Rows::All);
        let optimizer: Arc<dyn Deferred> = self.state.clone();
        self.table.detach(&optimizer);
    }
}

#[cfg(test)]
#[path = "../../tests/kernels/places.rs"]
mod tests;
