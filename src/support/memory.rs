//! A setting of the allocator for large buffers.

/// Makes the allocator keep and reuse the pages of large buffers when they are freed.
///
/// A training step allocates and frees buffers of many MiB. By default glibc returns each one to the system, and the next
/// step has a page fault for every page: stock candle's step on a table of 100256 rows (8 x 256 tokens, d_model 1024) takes
/// 5172 ms that way, and 476 ms with kept pages (measured, 2 cores; docs/benchmarks.md). Call it first in `main`. The process then
/// keeps its peak memory.
///
/// It sets `M_MMAP_MAX` and `M_TRIM_THRESHOLD` of glibc, and does nothing with another allocator. On musl, macOS and Windows use
/// an allocator that keeps pages, such as mimalloc, as `#[global_allocator]`. Small buffers of threads other than the main one are not
/// affected.
pub fn keep_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two integers, and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
