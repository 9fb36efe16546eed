//! The list of all tables of the process. An optimizer, which is made from variables, finds the tables of the layers here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use candle_core::Tensor;

use super::{RowTable, lock};

/// Tables by the address of their storage, which a detached tensor and a view share with their variable. A table keeps its storage
/// alive, so no other tensor can have the same address.
static TABLES: Mutex<Option<HashMap<usize, Weak<RowTable>>>> = Mutex::new(None);

/// The number of tables that are row-sparse or split between ranks. Programs without one skip the search.
static SOUGHT: AtomicUsize = AtomicUsize::new(0);

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

/// The table over this tensor's memory, for callers that have a VarMap and no layer. Finds row-sparse and split tables.
pub(super) fn find(tensor: &Tensor) -> Option<Arc<RowTable>> {
    if SOUGHT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let at = address(tensor);
    lock(&TABLES).as_ref().and_then(|tables| tables.get(&at).and_then(Weak::upgrade))
}

pub(super) fn count() {
    SOUGHT.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn forget() {
    SOUGHT.fetch_sub(1, Ordering::Relaxed);
}
