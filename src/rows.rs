//! Row gradients: the door between a table's layer and its optimizer.
//!
//! Backward puts (ids, output gradient) here instead of building a dense gradient; the optimizer takes them as
//! (rows, values). In the other direction the layer asks, before it reads rows, that they be brought up to date.
//! This module knows neither how rows are looked up nor how they are updated.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, TensorId, WithDType};

use crate::grouping::{Grouping, Groups};
use crate::support::{advise_huge_pages, parallel};
use crate::{Error, Result};

/// Gradients of single rows of a table.
#[derive(Clone, Debug)]
pub struct RowGradients {
    /// The rows, each once, in the order in which they were first looked up.
    pub rows: Vec<u32>,
    /// Their gradients (U, C) f32: each the sum over the positions that hold the row, in their order.
    pub values: Tensor,
}

/// Which rows to bring up to date.
pub(crate) enum Rows<'a> {
    These(&'a [u32]),
    All,
}

/// What an optimizer does for a table that it updates row by row.
pub(crate) trait Keeper: Send + Sync {
    /// Brings rows to the state that the dense optimizer would have given them by now.
    fn replay(&self, weight: &Tensor, rows: Rows, frozen: &[bool]) -> Result<()>;
}

/// What a row-sparse table's layer and optimizer share.
pub(crate) struct RowTable {
    weight: Tensor,
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
    keeper: Option<Arc<dyn Keeper>>,
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

/// Every live table by its memory, so that an optimizer made from variables alone finds it, and a detached tensor of the
/// variable, too. A table keeps its memory alive, so that no other tensor can have the same address meanwhile.
static TABLES: Mutex<Vec<(usize, Weak<RowTable>)>> = Mutex::new(Vec::new());

/// How many there are, so that programs without one do not look.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Variables that another one took the place of. A number each, kept for good: tables are seldom replaced.
static REPLACED: Mutex<Vec<TensorId>> = Mutex::new(Vec::new());

/// Says that another variable has this one's place now.
pub(crate) fn replaced(variable: &Tensor) {
    lock(&REPLACED).push(variable.id());
}

/// Whether another variable has this one's place now.
pub(crate) fn was_replaced(variable: &Tensor) -> bool {
    lock(&REPLACED).contains(&variable.id())
}

/// Where a tensor's storage is. All views of a storage have one address.
fn address(tensor: &Tensor) -> usize {
    &raw const *tensor.storage_and_layout().0 as usize
}

impl Drop for RowTable {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RowTable {
    /// The table of this variable, shared by all layers and optimizers over it.
    pub(crate) fn of(weight: &Tensor) -> Arc<RowTable> {
        let place = address(weight);
        let mut tables = lock(&TABLES);
        tables.retain(|(_, table)| table.strong_count() > 0);
        let known = tables.iter().find(|(other, _)| *other == place).and_then(|(_, table)| table.upgrade());
        known.unwrap_or_else(|| {
            let table = Arc::new(RowTable { weight: weight.clone(), shared: Mutex::default() });
            tables.push((place, Arc::downgrade(&table)));
            LIVE.fetch_add(1, Ordering::Relaxed);
            table
        })
    }

    /// The row-sparse table whose memory this tensor reads: the variable, a detached tensor of it, a view.
    pub(crate) fn find(tensor: &Tensor) -> Option<Arc<RowTable>> {
        if LIVE.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let place = address(tensor);
        lock(&TABLES).iter().find(|(other, _)| *other == place).and_then(|(_, table)| table.upgrade())
    }

    /// Brings the table up to date whose memory this tensor reads, if it is a row-sparse one.
    pub(crate) fn refresh(tensor: &Tensor) -> Result<()> {
        RowTable::find(tensor).map_or(Ok(()), |table| table.replay(Rows::All))
    }

    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Makes `keeper` the one who updates this table.
    pub(crate) fn attach(&self, keeper: Arc<dyn Keeper>) -> Result<()> {
        let mut shared = lock(&self.shared);
        if shared.keeper.is_some() {
            return Err(Error::Config(
                "this row-sparse table has an optimizer already: drop that one first".to_string(),
            ));
        }
        shared.keeper = Some(keeper);
        Ok(())
    }

    pub(crate) fn detach(&self) {
        let mut shared = lock(&self.shared);
        shared.keeper = None;
        shared.forget();
    }

    /// Brings rows up to date, where an optimizer left some behind.
    pub(crate) fn replay(&self, rows: Rows) -> Result<()> {
        let (keeper, frozen) = {
            let shared = lock(&self.shared);
            (shared.keeper.clone(), shared.frozen.clone())
        };
        keeper.map_or(Ok(()), |keeper| keeper.replay(&self.weight, rows, &frozen))
    }

    /// Puts aside the output gradient of a look-up, which `mark` stands for in the `GradStore`.
    pub(crate) fn push(&self, mark: &Tensor, ids: &Tensor, grad: &Tensor) -> candle_core::Result<()> {
        let mut shared = lock(&self.shared);
        if shared.keeper.is_none() {
            candle_core::bail!(
                "a row-sparse gradient has no taker: make the layer first, then a tallow::optim optimizer from its variable, \
                 then go backward; or use Gradient::Dense with other optimizers. Where the table was resized or got tokens: \
                 `optimizer.follow(&varmap)` before that"
            )
        }
        if shared.marks.contains(&mark.id()) {
            candle_core::bail!(
                "this look-up went backward a second time without a step between: add the losses and go backward once, or \
                 forget the first gradients (`optimizer.zero_grad()`)"
            )
        }
        let columns = self.weight.dim(1)?;
        let grad = grad.reshape((ids.elem_count(), columns))?.contiguous()?.detach();
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
            0 if stepped => Err(Error::Config(
                "these gradients were stepped or forgotten already, and the table has nothing left of them: make them anew, and \
                 accumulate into a new `GradStore` after each step"
                    .to_string(),
            )),
            0 => Ok(()),
            strays => Err(Error::Config(format!(
                "the row gradients of {strays} look-ups wait that these gradients do not hold: an earlier backward was not \
                 followed by a step. Add its gradients to accumulate (`total.extend(grads)?`, then one step), or forget them \
                 (`optimizer.zero_grad()`)"
            ))),
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
    pub(crate) fn stepped(&self) {
        lock(&self.shared).retire_marks();
    }

    /// Forgets what waits.
    pub(crate) fn clear(&self) {
        lock(&self.shared).forget();
    }

    /// Adds gradients of rows (from another machine, say) to those that wait.
    pub(crate) fn push_rows(&self, gradients: RowGradients) -> Result<()> {
        let (vocab_size, columns) = self.weight.dims2()?;
        if gradients.values.dims() != [gradients.rows.len(), columns] {
            return Err(Error::Config(format!(
                "row gradients have shape {:?}, {} rows of {columns} columns were expected",
                gradients.values.dims(),
                gradients.rows.len()
            )));
        }
        if let Some(row) = gradients.rows.iter().find(|row| **row as usize >= vocab_size) {
            return Err(Error::Config(format!(
                "row {row} of the row gradients is not in the table of {vocab_size} rows"
            )));
        }
        let values = gradients.values.to_dtype(DType::F32)?.to_device(self.weight.device())?.contiguous()?;
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
        let groups = grouping.group(&ids, self.weight.dim(0)?, frozen);
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

    /// Marks rows that never change; an empty list frees all.
    pub(crate) fn freeze(&self, rows: &[u32]) -> Result<()> {
        let vocab_size = self.weight.dim(0)?;
        if let Some(row) = rows.iter().find(|row| **row as usize >= vocab_size) {
            return Err(Error::Config(format!("row {row} cannot be frozen: the table has {vocab_size} rows")));
        }
        let mut frozen = vec![false; if rows.is_empty() { 0 } else { vocab_size }];
        rows.iter().for_each(|row| frozen[*row as usize] = true);
        // Steps that were deferred before the freeze still apply.
        self.replay(Rows::All)?;
        lock(&self.shared).frozen = Arc::new(frozen);
        Ok(())
    }

    pub(crate) fn frozen(&self) -> Arc<Vec<bool>> {
        lock(&self.shared).frozen.clone()
    }
}

/// Gradients of look-ups, one tensor (N, C) after the other, and which of them belong to which row.
pub(crate) struct Grouped {
    pub(crate) groups: Groups,
    pub(crate) sources: Vec<Tensor>,
}

impl Grouped {
    pub(crate) fn sum(self) -> Result<RowGradients> {
        let Grouped { groups, sources } = self;
        let values = match sources[0].device() {
            Device::Cpu => sum_on_host(&groups, &sources)?,
            // Backends reject allocations of size zero, but a view may be empty.
            device if groups.rows.is_empty() => {
                Tensor::zeros((1, sources[0].dim(1)?), DType::F32, device)?.narrow(0, 0, 0)?
            }
            Device::Cuda(device) => crate::cuda::sum_rows(device, &groups, &joined(&sources)?)?,
            device => sum_on_device(&groups, &sources, device)?,
        };
        Ok(RowGradients { rows: groups.rows, values })
    }
}

/// All gradients as one tensor (N, C): of their own dtype where they have one, else f32.
pub(crate) fn joined(sources: &[Tensor]) -> Result<Tensor> {
    if let [source] = sources {
        return Ok(source.clone());
    }
    in_f32(sources)
}

/// The gradients that there are, one after the other, in f32.
fn in_f32(sources: &[Tensor]) -> Result<Tensor> {
    let some = sources.iter().filter(|grad| grad.elem_count() > 0);
    let grads = some.map(|grad| grad.to_dtype(DType::F32)).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&grads, 0)?)
}

/// Sums in f32, each row's positions in their order: the order of candle's `index_add`, whatever the threads.
fn sum_on_host(groups: &Groups, sources: &[Tensor]) -> Result<Tensor> {
    let columns = sources[0].dim(1)?;
    let guards: Vec<_> = sources.iter().map(|grad| grad.storage_and_layout()).collect();
    let mut first = 0;
    let mut slices = Vec::new();
    for (source, (storage, layout)) in sources.iter().zip(&guards) {
        slices.push((first, Floats::of(storage, layout.start_offset())?));
        first += source.dim(0)?;
    }
    let count = groups.rows.len();
    let mut values = vec![0f32; count * columns];
    advise_huge_pages(&mut values);
    let sum = |(first, out): (usize, &mut [f32])| {
        for (place, out) in (first..).zip(out.chunks_exact_mut(columns)) {
            let positions = groups.starts[place] as usize..groups.starts[place + 1] as usize;
            for position in &groups.positions[positions] {
                let position = *position as usize;
                let source = slices.partition_point(|(first, _)| *first <= position) - 1;
                // Empty sources share their first position with the next one, which comes later in the list.
                let (first, floats) = &slices[source];
                floats.add_to(out, (position - first) * columns);
            }
        }
    };
    let rows_a_task = (1 << 14) / columns.max(1) + 1;
    let tasks = values.chunks_mut(rows_a_task * columns.max(1)).enumerate().map(|(i, out)| (i * rows_a_task, out));
    if groups.positions.len() * columns < 1 << 15 {
        tasks.for_each(sum);
    } else {
        parallel::for_each(tasks, sum);
    }
    Ok(Tensor::from_vec(values, (count, columns), &Device::Cpu)?)
}

enum Floats<'a> {
    F32(&'a [f32]),
    BF16(&'a [half::bf16]),
    F16(&'a [half::f16]),
}

impl<'a> Floats<'a> {
    fn of(storage: &'a Storage, offset: usize) -> Result<Self> {
        match storage {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(Floats::F32(&values[offset..])),
            Storage::Cpu(CpuStorage::BF16(values)) => Ok(Floats::BF16(&values[offset..])),
            Storage::Cpu(CpuStorage::F16(values)) => Ok(Floats::F16(&values[offset..])),
            _ => Err(Error::Config("row-sparse gradients are f32, bf16 or f16".to_string())),
        }
    }

    fn add_to(&self, out: &mut [f32], at: usize) {
        fn add<T: WithDType>(out: &mut [f32], values: &[T], to_f32: impl Fn(T) -> f32) {
            out.iter_mut().zip(values).for_each(|(sum, value)| *sum += to_f32(*value));
        }
        match self {
            Floats::F32(values) => add(out, &values[at..at + out.len()], |v| v),
            Floats::BF16(values) => add(out, &values[at..at + out.len()], half::bf16::to_f32),
            Floats::F16(values) => add(out, &values[at..at + out.len()], half::f16::to_f32),
        }
    }
}

/// The same sums by candle's operations, where the host cannot read the gradients.
fn sum_on_device(groups: &Groups, sources: &[Tensor], device: &Device) -> Result<Tensor> {
    let grads = in_f32(sources)?;
    let places = Tensor::from_slice(&groups.places, groups.places.len(), device)?;
    Ok(Tensor::zeros((groups.rows.len(), grads.dim(1)?), DType::F32, device)?.index_add(&places, &grads, 0)?)
}
