//! The list of all tables of the process. An optimizer, which is made from variables, finds the tables of the layers here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use candle_core::Tensor;

use super::{RowTable, lock};

/// Tables by the address of their storage, which a detached tensor and a view share with their variable. A table keeps its storage
/// alive, so no other tensor can have the same address.
static TABLES: Mutex<Option<HashMap<usize, Weak<RowTable>>>> = Mutex::new(None);

/// The number of row-sparse tables. Programs without one skip the search.
static ROW_SPARSE: AtomicUsize = AtomicUsize::new(0);

fn address(tensor: &Tensor) -> usize {
    &raw const *tensor.storage_and_layout().0 as usize
}

/// The table over this tensor's memory, shared by all its layers, heads and optimizers. They call this once, when they are made.
pub(super) fn table_of(tensor: &Tensor) -> Arc<RowTable> {
    let at = address(tensor); // may wait for a writer of the storage, so the list is not locked yet
    let mut tables = lock(&TABLES);
    let tables = tables.get_or_insert_default();
    if tables.len() == tables.capacity() {
        tables.retain(|_, table| table.strong_count() > 0);
    }
    let known = tables.get(&at).and_then(Weak::upgrade);
    known.unwrap_or_else(|| {
        let table = Arc::new(RowTable::new(tensor.clone()));
        tables.insert(at, Arc::downgrade(&table));
        table
    })
}

/// The row-sparse table over this tensor's memory, for callers that have a VarMap and no layer.
pub(super) fn row_sparse_table_of(tensor: &Tensor) -> Option<Arc<RowTable>> {
    if ROW_SPARSE.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let at = address(tensor);
    let known = lock(&TABLES).as_ref().and_then(|tables| tables.get(&at).and_then(Weak::upgrade));
    known.filter(|table| table.is_row_sparse())
}

pub(super) fn count_row_sparse() {
    ROW_SPARSE.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn forget_row_sparse() {
    ROW_SPARSE.fetch_sub(1, Ordering::Relaxed);
}
