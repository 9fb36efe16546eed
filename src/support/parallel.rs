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

/// Products of fewer multiplications stay on one thread: some 40 µs of work, as long as waking others takes.
const SMALL_PRODUCT: usize = 4 << 20;

/// Makes candle's products on the CPU cheaper to begin, for models that do many small ones. Call it first in `main`, after
/// [`keep_pages`](crate::keep_pages).
///
/// It changes two settings of this process:
/// - `RAYON_NUM_THREADS`, where it is not set, becomes the number of threads that candle uses. Without it candle 0.11 counts the
///   cores anew at every product; on Linux that reads `/proc/cpuinfo`, which is longer the more cores there are. (Only on Linux, and
///   only while the process has one thread: the environment of more is not safe to change.)
/// - The size from which the gemm crate shares a product among threads: 4 Mi multiplications instead of 0.6 Mi.
///
/// The lesson's GPT on 2 cores takes 29 ms a step without, and 20 ms with both (measured). Results are the same, bit for bit.
pub fn tune_threads() {
    gemm::set_threading_threshold(SMALL_PRODUCT);
    #[cfg(target_os = "linux")]
    if std::env::var_os("RAYON_NUM_THREADS").is_none()
        && std::fs::read_dir("/proc/self/task").is_ok_and(|t| t.count() == 1)
    {
        let allowed = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
        let threads = candle_core::utils::get_num_threads().min(allowed);
        // SAFETY: this process has one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    }
}
