//! Parallel loops on a small thread pool of this crate and the calling thread.

use std::sync::{LazyLock, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool for this crate's small tasks only.
static HELPERS: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let threads = rayon::current_num_threads().saturating_sub(1).max(1);
    ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("tallow-{i}")).build().ok()
});

/// Runs `work` on every item. The calling thread takes part, so a helper thread that wakes up late (20 to 50 µs,
/// measured) costs little. Items should take about 10 µs each. Any thread may take any item, so
/// items must not depend on each other.
///
/// On a thread of a rayon pool only the calling thread works. While it waited for helpers, it would run other jobs of its pool,
/// for example one that waits for a lock that the caller holds.
pub(crate) fn for_each<I: Iterator + Send>(items: I, work: impl Fn(I::Item) + Sync) {
    let alone = rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1;
    let Some(pool) = HELPERS.as_ref().filter(|_| !alone) else { return items.for_each(work) };
    let items = Mutex::new(items);
    // A separate statement, so that the lock is released before the work on the item.
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

/// Products with fewer multiplications run on one thread: about 40 µs of work, as long as waking other threads.
const SMALL_PRODUCT: usize = 4 << 20;

/// Reduces the overhead of candle's small matrix products on the CPU. Call it first in `main`, after
/// [`keep_pages`](crate::keep_pages).
///
/// It changes two settings of this process:
/// - `RAYON_NUM_THREADS`, if it is not set, becomes the number of threads that candle uses. Without it candle 0.11 counts the
///   cores at every product; on Linux that reads `/proc/cpuinfo`, whose size grows with the number of cores. (Only on Linux, and
///   only while the process has one thread, because changing the environment of several threads is unsafe.)
/// - The size from which the gemm crate runs a product on several threads: 4 Mi multiplications instead of 0.6 Mi.
///
/// A training step of `examples/train_gpt` (d_model 64, 4 x 16 tokens) on 2 cores takes 29 ms without and 20 ms with both (measured).
/// Results are the same, bit for bit.
pub fn tune_threads() {
    gemm::set_threading_threshold(SMALL_PRODUCT);
    #[cfg(target_os = "linux")]
    if std::env::var_os("RAYON_NUM_THREADS").is_none()
        && std::fs::read_dir("/proc/self/task").is_ok_and(|t| t.count() == 1)
    {
        let allowed = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
        let threads = candle_core::utils::get_num_threads().min(allowed);
        // SAFETY: this process has one thread, so no other thread reads the environment.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    }
}
