//! A hint to the allocator about large buffers.

/// Makes the allocator keep the pages of large buffers when they are freed, and hand them out again.
///
/// A training step frees and takes buffers of many MiB. By default glibc gives each one back to the system, and the next
/// step pays for every page again, at its first touch: stock candle's step on the lesson's table takes 487 ms so, and 280 ms
/// with pages kept (measured, 2 cores). Call it first in `main`; the process then stays as large as it once was.
///
/// It sets `M_MMAP_MAX` and `M_TRIM_THRESHOLD` of glibc. With another allocator it does nothing: on musl, macOS and Windows take
/// one that keeps pages, such as mimalloc, as `#[global_allocator]`. Small buffers of other threads than the main one still come and go.
pub fn keep_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers, and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
