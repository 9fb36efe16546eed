//! Row gradients: the connection between a table's layer and its optimizer.
//!
//! Backward stores (ids, output gradient) here instead of building a dense gradient, and the optimizer takes them as
//! (rows, values). Before the layer reads rows, it calls the optimizer to replay their deferred updates.
//! This module depends neither on the look-up nor on the updates.

mod list;
mod sum;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId};

use crate::collective::Shard;
use crate::grouping::Grouping;
use crate::{Error, Result};
pub(crate) use sum::Grouped;

/// Gradients of some rows of a table.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{Gradient, RowGradients, TokenEmbedding, TokenEmbeddingConfig};
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 4, gradient: Gradient::RowSparse, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// wte.add_row_gradients(RowGradients { rows: vec![3], values: Tensor::ones((1, 4), DType::F32, &Device::Cpu)? })?;
/// let pending = wte.take_row_gradients()?.expect("row 3 is pending");
/// assert_eq!(pending.rows, [3]);
/// assert_eq!(pending.values.dims(), [1, 4]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RowGradients {
    /// The rows, each once, in the order of their first look-up.
    pub rows: Vec<u32>,
    /// The gradients (U, C) f32, U rows. Each is the sum over the positions of the row, in their order.
    pub values: Tensor,
}

/// Which rows to replay.
pub(crate) enum Rows<'a> {
    These(&'a [u32]),
    All,
}

/// The optimizer that has the deferred updates of a table's rows.
pub(crate) trait Deferred: Send + Sync {
    /// Replays the deferred updates of these rows. Afterwards they equal the rows of the dense optimizer.
    fn replay(&self, rows: Rows, frozen: &[bool]) -> Result<()>;
}

/// State that is shared by the layers, heads and optimizers over one variable.
pub(crate) struct RowTable {
    /// The first tensor of this memory. It keeps the storage alive.
    memory: Tensor,
    /// The variable (V, C), once its gradient is row-sparse.
    row_sparse: OnceLock<Tensor>,
    /// Whether another variable has replaced this one in the VarMap.
    replaced: AtomicBool,
    /// Whether every step ends with a flush.
    flushed: AtomicBool,
    /// The whole weight, if other ranks hold the rest of its rows.
    shard: OnceLock<Arc<Shard>>,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    pending: Vec<Waiting>,
    /// The marks of the pending look-ups in the `GradStore` of their backward. They stay while row gradients are taken and returned
    /// (for example by clipping), until a step or [`RowTable::clear`].
    marks: Vec<TensorId>,
    /// The marks of the last step or the last `clear`.
    done: Vec<TensorId>,
    /// The optimizers. A row-sparse table has at most one.
    optimizers: Vec<Arc<dyn Deferred>>,
    /// Whether each row is frozen. Empty if none is.
    frozen: Arc<Vec<bool>>,
    grouping: Grouping,
}

enum Waiting {
    /// Backward of one look-up: ids (N) u32, and the gradient (N, C) of its output.
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
        (0..self.is_row_sparse() as usize + self.shard.get().is_some() as usize).for_each(|_| list::forget());
    }
}

impl RowTable {
    fn new(memory: Tensor) -> Self {
        RowTable {
            memory,
            row_sparse: OnceLock::new(),
            replaced: AtomicBool::new(false),
            flushed: AtomicBool::new(false),
            shard: OnceLock::new(),
            shared: Mutex::default(),
        }
    }

    /// The table over a tensor's memory. The tensor is the variable, a detached tensor of it, or a view. Locks the global list.
    pub(crate) fn of(tensor: &Tensor) -> Arc<RowTable> {
        list::table_of(tensor)
    }

    /// The row-sparse table over a tensor's memory, if there is one. Locks the global list.
    pub(crate) fn find(tensor: &Tensor) -> Option<Arc<RowTable>> {
        list::find(tensor).filter(|table| table.is_row_sparse())
    }

    /// The whole weight that this tensor's memory has the rows of one rank of, if it is split.
    pub(crate) fn shard_of(tensor: &Tensor) -> Option<Arc<Shard>> {
        list::find(tensor)?.shard().cloned()
    }

    /// Records that the tensor has some rows of a weight, and other ranks have the others.
    pub(crate) fn split(&self, shard: Arc<Shard>) {
        if self.shard.set(shard).is_ok() {
            list::count();
        }
    }

    pub(crate) fn shard(&self) -> Option<&Arc<Shard>> {
        self.shard.get()
    }

    /// Replays all deferred updates of the row-sparse table over a tensor's memory, if there is one.
    pub(crate) fn flush(tensor: &Tensor) -> Result<()> {
        Self::find(tensor).map_or(Ok(()), |table| table.replay(Rows::All))
    }

    /// Makes the gradient of `variable` (V, C) row-sparse.
    pub(crate) fn make_row_sparse(&self, variable: &Tensor) -> Result<()> {
        let shared = lock(&self.shared);
        if shared.optimizers.len() > 1 {
            return Err(Error::SecondOptimizer);
        }
        if self.row_sparse.set(variable.clone()).is_ok() {
            list::count();
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

    /// Records that another variable has replaced this one.
    pub(crate) fn replace(&self) {
        self.replaced.store(true, Ordering::Relaxed);
        self.clear();
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// An error for a `reader` of the table, if the table was replaced. `anew` says what to make anew.
    pub(crate) fn check_current(&self, reader: &str, anew: &str) -> Result<()> {
        match self.is_replaced() {
            true => Err(Error::Config(format!(
                "the table of this {reader} was replaced by one of another size (add_tokens, resize, shrink): make {anew}"
            ))),
            false => Ok(()),
        }
    }

    /// Flushes the table now and at the end of every step, because the tensor has readers that do not replay.
    pub(crate) fn keep_flushed(&self) {
        self.flushed.store(true, Ordering::Relaxed);
        _ = self.replay(Rows::All); // if this fails, the next use of the device fails, too
    }

    /// Adds an optimizer of this variable.
    pub(crate) fn attach(&self, optimizer: Arc<dyn Deferred>) -> Result<()> {
        let mut shared = lock(&self.shared);
        if self.is_row_sparse() && !shared.optimizers.is_empty() {
            return Err(Error::SecondOptimizer);
        }
        shared.optimizers.push(optimizer);
        Ok(())
    }

    pub(crate) fn detach(&self, optimizer: &Arc<dyn Deferred>) {
        let mut shared = lock(&self.shared);
        shared.optimizers.retain(|other| !Arc::ptr_eq(other, optimizer));
        shared.forget();
    }

    /// Replays deferred updates, if there is an optimizer.
    pub(crate) fn replay(&self, rows: Rows) -> Result<()> {
        if !self.is_row_sparse() {
            return Ok(());
        }
        let (optimizer, frozen) = {
            let shared = lock(&self.shared);
            (shared.optimizers.first().cloned(), shared.frozen.clone())
        };
        optimizer.map_or(Ok(()), |optimizer| optimizer.replay(rows, &frozen))
    }

    /// Stores the output gradient of a look-up. `mark` is its mark in the `GradStore`.
    pub(crate) fn push(&self, mark: &Tensor, ids: &Tensor, grad: &Tensor) -> candle_core::Result<()> {
        let mut shared = lock(&self.shared);
        if shared.optimizers.is_empty() {
            return Err(Error::NoOptimizer.into());
        }
        if shared.marks.contains(&mark.id()) {
            return Err(Error::BackwardTwice.into());
        }
        let columns = self.weight().dim(1)?;
        let grad = grad.reshape((ids.elem_count(), columns))?.contiguous()?.detach();
        shared.done.retain(|done| *done != mark.id()); // another backward after a step
        shared.marks.push(mark.id());
        shared.pending.push(Waiting::Lookup { ids: ids.flatten_all()?.detach(), grad });
        Ok(())
    }

    /// An error if a look-up is pending whose backward is not part of `grads`: only the table would be trained on it. Also an error if
    /// `grads` has a look-up that is not pending any more: everything except the table would be trained on it.
    pub(crate) fn belongs_to(&self, grads: &GradStore) -> Result<()> {
        let shared = lock(&self.shared);
        let stepped = shared.done.iter().any(|mark| grads.get_id(*mark).is_some());
        match shared.marks.iter().filter(|mark| grads.get_id(**mark).is_none()).count() {
            0 if stepped => Err(Error::SteppedBefore),
            0 => Ok(()),
            lookups => Err(Error::MissingGradients { lookups }),
        }
    }

    /// Whether a pending row gradient belongs to `grads`, or was added by [`push_rows`](Self::push_rows).
    pub(crate) fn waits_for(&self, grads: &GradStore) -> bool {
        let shared = lock(&self.shared);
        match shared.marks.is_empty() {
            true => !shared.pending.is_empty(),
            false => shared.marks.iter().any(|mark| grads.get_id(*mark).is_some()),
        }
    }

    /// Whether any row gradients are pending.
    pub(crate) fn has_pending(&self) -> bool {
        !lock(&self.shared).pending.is_empty()
    }

    /// Records that a step has used the pending row gradients.
    pub(crate) fn stepped(&self) -> Result<()> {
        lock(&self.shared).retire_marks();
        if self.flushed.load(Ordering::Relaxed) { self.replay(Rows::All) } else { Ok(()) }
    }

    /// Discards the pending row gradients.
    pub(crate) fn clear(&self) {
        lock(&self.shared).forget();
    }

    /// Adds row gradients (for example from another machine) to the pending ones.
    pub(crate) fn push_rows(&self, gradients: RowGradients) -> Result<()> {
        let columns = self.weight().dim(1)?;
        if gradients.values.dims() != [gradients.rows.len(), columns] {
            return Err(Error::Config(format!(
                "row gradients have shape {:?}, expected ({}, {columns})",
                gradients.values.dims(),
                gradients.rows.len()
            )));
        }
        self.check_rows("row gradients", &gradients.rows)?;
        let values = gradients.values.to_dtype(DType::F32)?.to_device(self.weight().device())?.contiguous()?;
        lock(&self.shared).pending.push(Waiting::Rows(RowGradients { rows: gradients.rows, values }));
        Ok(())
    }

    /// Takes the pending row gradients, summed by row. `None` if none are pending.
    pub(crate) fn take(&self) -> Result<Option<RowGradients>> {
        if let Some(summed) = self.take_summed() {
            return Ok(Some(summed));
        }
        self.take_grouped()?.map(Grouped::sum).transpose()
    }

    /// Takes the pending row gradients if they are one list of ascending rows, as an exchange between ranks leaves them: they are summed.
    fn take_summed(&self) -> Option<RowGradients> {
        let mut shared = lock(&self.shared);
        let Shared { pending, frozen, .. } = &mut *shared;
        match &pending[..] {
            [Waiting::Rows(gradients)] if frozen.is_empty() && gradients.rows.is_sorted_by(|a, b| a < b) => (),
            _ => return None,
        }
        match pending.pop() {
            Some(Waiting::Rows(gradients)) => Some(gradients),
            _ => None,
        }
    }

    /// Takes the pending row gradients, grouped by row but not summed: an optimizer on a GPU sums while it updates.
    pub(crate) fn take_grouped(&self) -> Result<Option<Grouped>> {
        let frozen = self.frozen();
        self.group(&frozen)
    }

    /// The same including frozen rows, for a dense gradient, which contains them.
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

    /// Takes the pending row gradients ungrouped: ids and gradients (N, C) of each look-up, in order.
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

    /// An error if rows are frozen and there is no optimizer of tallow's: candle's optimizers would change them.
    pub(crate) fn check_frozen(&self) -> Result<()> {
        let shared = lock(&self.shared);
        match !shared.frozen.is_empty() && shared.optimizers.is_empty() {
            true => Err(Error::NoOptimizer),
            false => Ok(()),
        }
    }

    /// Freezes these rows. An empty list unfreezes all.
    pub(crate) fn freeze(&self, rows: &[u32]) -> Result<()> {
        self.check_rows("rows to freeze", rows)?;
        let mut frozen = vec![false; self.weight().dim(0)?];
        rows.iter().for_each(|row| frozen[*row as usize] = true);
        self.set_frozen(frozen)
    }

    /// Freezes all rows but these.
    pub(crate) fn freeze_except(&self, rows: &[u32]) -> Result<()> {
        self.check_rows("rows to train", rows)?;
        let mut frozen = vec![true; self.weight().dim(0)?];
        rows.iter().for_each(|row| frozen[*row as usize] = false);
        self.set_frozen(frozen)
    }

    /// Freezes the rows that are `true`.
    pub(crate) fn set_frozen(&self, mut frozen: Vec<bool>) -> Result<()> {
        if !frozen.contains(&true) {
            frozen.clear();
        }
        // Updates that were deferred before the freeze are still applied.
        self.replay(Rows::All)?;
        lock(&self.shared).frozen = Arc::new(frozen);
        Ok(())
    }

    pub(crate) fn frozen(&self) -> Arc<Vec<bool>> {
        lock(&self.shared).frozen.clone()
    }
}
