//! Work shared between a few threads of our own and the one that asks.

use std::sync::{LazyLock, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Helpers that do nothing but this crate's small tasks.
static HELPERS: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let threads = rayon::current_num_threads().saturating_sub(1).max(1);
    ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("tallow-{i}")).build().ok()
});

/// Does `work` on every item. The calling thread works too, so that a helper which wakes up late (20 to 50 µs,
/// measured) costs little; items should be worth some 10 µs each. Which thread takes which item is not fixed, so
/// items must not depend on each other.
///
/// On a thread of a rayon pool it works alone: such a thread, while it waits for helpers, would take up other jobs of its
/// pool, one that wants a lock which our caller holds, say; and the pool is busy already.
pub(crate) fn for_each<I: Iterator + Send>(items: I, work: impl Fn(I::Item) + Sync) {
    let alone = rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1;
    let Some(pool) = HELPERS.as_ref().filter(|_| !alone) else { return items.for_each(work) };
    let items = Mutex::new(items);
    // A statement of its own: the lock must be free again while an item is worked on.
    let next = || items.lock().ok().and_then(|mut items| items.next());
    let drain = || {
        while let Some(item) = next() {
            work(item)
        }
    };
    pool.in_place_scope(|scope| {
        (0..pool.current_num_threads()).for_each(|_| scope.spawn(|_| drain()));
        drain();
    });
}
