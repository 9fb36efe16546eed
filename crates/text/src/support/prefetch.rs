//! Prefetching.

/// Prefetches the first `bytes` bytes of `space` into the processor's cache. It is a hint and reads nothing.
#[cfg(target_arch = "x86_64")]
pub fn prefetch<T>(space: &[T], bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for at in (0..bytes).step_by(64) {
        // SAFETY: a prefetch does not access memory, whatever the address; wrapping_add makes any address.
        unsafe { _mm_prefetch(space.as_ptr().cast::<i8>().wrapping_add(at), _MM_HINT_T0) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn prefetch<T>(_space: &[T], _bytes: usize) {}
