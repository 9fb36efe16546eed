//! Row gradients: what goes between a table's layer and its optimizer.
//!
//! Backward puts (ids, output gradient) here instead of building a dense gradient; the optimizer takes them as
//! (rows, values). In the other direction the layer asks, before it reads rows, that they be brought up to date.
//! This module knows neither how rows are looked up nor how they are updated.

mod list;
mod sum;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId};

use crate::grouping::Grouping;
use crate::{Error, Result};
pub(crate) use sum::Grouped;

/// Gradients of single rows of a table.
#[derive(Clone, Debug)]
pub struct RowGradients {
    /// The rows, each once, in the order in which they were first looked up.
    pub rows: Vec<u32>,
    /// Their gradients (U, C) f32: each the sum over the positions that hold the row, in their order.
    pub values: Tensor,
}

/// Which rows to replay.
pub(crate) enum Rows<'a> {
    These(&'a [u32]),
    All,
}

/// An optimizer's side of a variable.
pub(crate) trait Keeper: Send + Sync {
    /// Applies the deferred updates of these rows: afterwards they are what the dense optimizer would have made of them.
    fn replay(&self, rows: Rows, frozen: &[bool]) -> Result<()>;
}

/// What the layers, heads and optimizers over one variable share.
pub(crate) struct RowTable {
    /// The first tensor that was met of it: it keeps the storage alive.
    memory: Tensor,
    /// The variable (V, C), from the moment when a layer takes its gradient row by row.
    row_sparse: OnceLock<Tensor>,
    /// Whether another variable has this one's place in the VarMap now.
    replaced: AtomicBool,
    /// Whether every step ends with a table that is up to date.
    flushed: AtomicBool,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    pending: Vec<Waiting>,
    /// What stands for the look-ups among them in the `GradStore` of their backward. They stay while gradients are taken and given
    /// back (to clip them, say), until a step or [`RowTable::clear`].
    marks: Vec<TensorId>,
    /// The marks that the last step, or the last `clear`, was done with.
    done: Vec<TensorId>,
    /// The optimizers: one at most where the gradient is row-sparse.
    keepers: Vec<Arc<dyn Keeper>>,
    /// Rows that never change; empty where none is frozen.
    frozen: Arc<Vec<bool>>,
    grouping: Grouping,
}

enum Waiting {
    /// One look-up that went backward: ids (N) u32, and the gradient (N, C) of what they looked up.
    Lookup {
        ids: Tensor,
        grad: Tensor,
    },
    Rows(RowGradients),
}

impl Shared {
    fn forget(&mut self) {
        self.pending.clear();
        self.retire_marks();
    }

    fn retire_marks(&mut self) {
        if !self.marks.is_empty() {
            self.done = std::mem::take(&mut self.marks);
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for RowTable {
    fn drop(&mut self) {
        if self.is_row_sparse() {
            list::forget_row_sparse();
        }
    }
}

impl RowTable {
    fn new(memory: Tensor) -> Self {
        let (row_sparse, shared) = (OnceLock::new(), Mutex::default());
        RowTable { memory, row_sparse, replaced: AtomicBool::new(false), flushed: AtomicBool::new(false), shared }
    }

    /// The table over a tensor's memory: the variable, a detached tensor of it, a view. Locks the list of the process.
    pub(crate) fn of(tensor: &Tensor) -> Arc<RowTable> {
        list::table_of(tensor)
    }

    /// The row-sparse table over a tensor's memory, if it is one. Locks the list of the process.
    pub(crate) fn find(tensor: &Tensor) -> Option<Arc<RowTable>> {
        list::row_sparse_table_of(tensor)
    }

    /// Takes the gradient of `variable` (V, C) row by row from now on.
    pub(crate) fn make_row_sparse(&self, variable: &Tensor) -> Result<()> {
        let shared = lock(&self.shared);
        if shared.keepers.len() > 1 {
            return Err(Error::SecondOptimizer);
        }
        if self.row_sparse.set(variable.clone()).is_ok() {
            list::count_row_sparse();
        }
        Ok(())
    }

    pub(crate) fn is_row_sparse(&self) -> bool {
        self.row_sparse.get().is_some()
    }

    /// The variable (V, C).
    pub(crate) fn weight(&self) -> &Tensor {
        self.row_sparse.get().unwrap_or(&self.memory)
    }

    /// Says that another variable has this one's place now.
    pub(crate) fn replace(&self) {
        self.replaced.store(true, Ordering::Relaxed);
        self.clear();
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// An error for a `reader` of the table, if another has its place; `anew` says what to make.
    pub(crate) fn check_current(&self, reader: &str, anew: &str) -> Result<()> {
        match self.is_replaced() {
            true => Err(Error::Config(format!(
                "the table of this {reader} was replaced by one of another size (add_tokens, resize, shrink): make {anew}"
            ))),
            false => Ok(()),
        }
    }

    /// Brings the table up to date, now and at the end of every step: somebody has the tensor who does not ask.
    pub(crate) fn keep_flushed(&self) {
        self.flushed.store(true, Ordering::Relaxed);
        _ = self.replay(Rows::All); // should that fail, the next use of the device does, too
    }

    /// Adds an optimizer of this variable.
    pub(crate) fn attach(&self, keeper: Arc<dyn Keeper>) -> Result<()> {
        let mut shared = lock(&self.shared);
        if self.is_row_sparse() && !shared.keepers.is_empty() {
            return Err(Error::SecondOptimizer);
        }
        shared.keepers.push(keeper);
        Ok(())
    }

    pub(crate) fn detach(&self, keeper: &Arc<dyn Keeper>) {
        let mut shared = lock(&self.shared);
        shared.keepers.retain(|other| !Arc::ptr_eq(other, keeper));
        shared.forget();
    }

    /// Applies deferred updates, where an optimizer has some.
    pub(crate) fn replay(&self, rows: Rows) -> Result<()> {
        if !self.is_row_sparse() {
            return Ok(());
        }
        let (keeper, frozen) = {
            let shared = lock(&self.shared);
            (shared.keepers.first().cloned(), shared.frozen.clone())
        };
        keeper.map_or(Ok(()), |keeper| keeper.replay(rows, &frozen))
    }

    /// Puts aside the output gradient of a look-up, which `mark` stands for in the `GradStore`.
    pub(crate) fn push(&self, mark: &Tensor, ids: &Tensor, grad: &Tensor) -> candle_core::Result<()> {
        let mut shared = lock(&self.shared);
        if shared.keepers.is_empty() {
            return Err(Error::NoOptimizer.into());
        }
        if shared.marks.contains(&mark.id()) {
            return Err(Error::BackwardTwice.into());
        }
        let columns = self.weight().dim(1)?;
        let grad = grad.reshape((ids.elem_count(), columns))?.contiguous()?.detach();
        shared.done.retain(|done| *done != mark.id()); // backward once more, after a step
        shared.marks.push(mark.id());
        shared.pending.push(Waiting::Lookup { ids: ids.flatten_all()?.detach(), grad });
        Ok(())
    }

    /// An error if a look-up waits whose backward is not part of `grads`: the table would train on it, and nothing else would. And
    /// one if `grads` has a look-up that does not wait any more: everything else would train on it, and the table would not.
    pub(crate) fn belongs_to(&self, grads: &GradStore) -> Result<()> {
        let shared = lock(&self.shared);
        let stepped = shared.done.iter().any(|mark| grads.get_id(*mark).is_some());
        match shared.marks.iter().filter(|mark| grads.get_id(**mark).is_none()).count() {
            0 if stepped => Err(Error::SteppedBefore),
            0 => Ok(()),
            lookups => Err(Error::MissingGradients { lookups }),
        }
    }

    /// Whether a gradient waits that belongs to `grads`, or was added by hand.
    pub(crate) fn waits_for(&self, grads: &GradStore) -> bool {
        let shared = lock(&self.shared);
        match shared.marks.is_empty() {
            true => !shared.pending.is_empty(),
            false => shared.marks.iter().any(|mark| grads.get_id(*mark).is_some()),
        }
    }

    /// Says that a step took what waited.
    pub(crate) fn stepped(&self) -> Result<()> {
        lock(&self.shared).retire_marks();
        if self.flushed.load(Ordering::Relaxed) { self.replay(Rows::All) } else { Ok(()) }
    }

    /// Forgets what waits.
    pub(crate) fn clear(&self) {
        lock(&self.shared).forget();
    }

    /// Adds gradients of rows (from another machine, say) to those that wait.
    pub(crate) fn push_rows(&self, gradients: RowGradients) -> Result<()> {
        let columns = self.weight().dim(1)?;
        if gradients.values.dims() != [gradients.rows.len(), columns] {
            return Err(Error::Config(format!(
                "row gradients have shape {:?}, {} rows of {columns} columns were expected",
                gradients.values.dims(),
                gradients.rows.len()
            )));
        }
        self.check_rows("row gradients", &gradients.rows)?;
        let values = gradients.values.to_dtype(DType::F32)?.to_device(self.weight().device())?.contiguous()?;
        lock(&self.shared).pending.push(Waiting::Rows(RowGradients { rows: gradients.rows, values }));
        Ok(())
    }

    /// Takes what waits, summed by row; `None` if no look-up went backward since the last time.
    pub(crate) fn take(&self) -> Result<Option<RowGradients>> {
        self.take_grouped()?.map(Grouped::sum).transpose()
    }

    /// Takes what waits, grouped by row but not yet summed: an optimizer on a GPU sums while it updates.
    pub(crate) fn take_grouped(&self) -> Result<Option<Grouped>> {
        let frozen = self.frozen();
        self.group(&frozen)
    }

    /// The same with frozen rows, for a dense gradient that has them, too.
    pub(crate) fn take_grouped_with_frozen(&self) -> Result<Option<Grouped>> {
        self.group(&[])
    }

    fn group(&self, frozen: &[bool]) -> Result<Option<Grouped>> {
        let mut shared = lock(&self.shared);
        let Shared { pending, grouping, .. } = &mut *shared;
        let pending = std::mem::take(pending);
        if pending.is_empty() {
            return Ok(None);
        }
        let mut ids = Vec::new();
        let mut sources = Vec::new();
        for source in pending {
            let (source_ids, grad) = match source {
                Waiting::Lookup { ids, grad } => (ids.to_vec1()?, grad),
                Waiting::Rows(gradients) => (gradients.rows, gradients.values),
            };
            ids.extend_from_slice(&source_ids);
            sources.push(grad);
        }
        let groups = grouping.group(&ids, self.weight().dim(0)?, frozen);
        Ok(Some(Grouped { groups, sources }))
    }

    /// Takes what waits as it came: ids and gradients (N, C), look-up by look-up, position by position.
    pub(crate) fn take_lookups(&self) -> Result<Vec<(Vec<u32>, Tensor)>> {
        let pending = std::mem::take(&mut lock(&self.shared).pending);
        let ids_and_grads = pending.into_iter().map(|source| match source {
            Waiting::Lookup { ids, grad } => Ok((ids.to_vec1()?, grad)),
            Waiting::Rows(gradients) => Ok((gradients.rows, gradients.values)),
        });
        ids_and_grads.collect()
    }

    pub(crate) fn check_rows(&self, what: &'static str, rows: &[u32]) -> Result<()> {
        let count = self.weight().dim(0)?;
        match rows.iter().find(|row| **row as usize >= count) {
            Some(row) => Err(Error::RowOutOfRange { what, row: *row, rows: count }),
            None => Ok(()),
        }
    }

    /// An error if rows are frozen and there is no optimizer that keeps them so: candle's would move them.
    pub(crate) fn check_frozen(&self) -> Result<()> {
        let shared = lock(&self.shared);
        match !shared.frozen.is_empty() && shared.keepers.is_empty() {
            true => Err(Error::NoOptimizer),
            false => Ok(()),
        }
    }

    /// Marks rows that never change; an empty list frees all.
    pub(crate) fn freeze(&self, rows: &[u32]) -> Result<()> {
        self.check_rows("rows to freeze", rows)?;
        let mut frozen = vec![false; self.weight().dim(0)?];
        rows.iter().for_each(|row| frozen[*row as usize] = true);
        self.set_frozen(frozen)
    }

    /// Marks all rows but these.
    pub(crate) fn freeze_except(&self, rows: &[u32]) -> Result<()> {
        self.check_rows("rows to train", rows)?;
        let mut frozen = vec![true; self.weight().dim(0)?];
        rows.iter().for_each(|row| frozen[*row as usize] = false);
        self.set_frozen(frozen)
    }

    /// Marks the rows that are `true`.
    pub(crate) fn set_frozen(&self, mut frozen: Vec<bool>) -> Result<()> {
        if !frozen.contains(&true) {
            frozen.clear();
        }
        // Steps that were deferred before the freeze still apply.
        self.replay(Rows::All)?;
        lock(&self.shared).frozen = Arc::new(frozen);
        Ok(())
    }

    pub(crate) fn frozen(&self) -> Arc<Vec<bool>> {
        lock(&self.shared).frozen.clone()
    }
}
