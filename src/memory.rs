//! Hints to the system about large buffers.

/// Buffers above this ask for huge pages: first touches of 4 KiB pages would cost more than filling them.
#[cfg(target_os = "linux")]
const HUGE_PAGE_BYTES: usize = 4 << 20;

/// Asks Linux to back a large, untouched buffer with huge pages. A hint: failure changes nothing.
#[cfg(target_os = "linux")]
pub(crate) fn advise_huge_pages<T>(space: &mut [T]) {
    let bytes = size_of_val(space);
    if bytes < HUGE_PAGE_BYTES {
        return;
    }
    const PAGE: usize = 4096;
    let start = (space.as_mut_ptr() as usize).next_multiple_of(PAGE);
    let end = (space.as_mut_ptr() as usize + bytes) / PAGE * PAGE;
    // SAFETY: the range lies inside `space`, which is borrowed mutably, and MADV_HUGEPAGE changes no content.
    unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_huge_pages<T>(_space: &mut [T]) {}

/// Asks for the first `bytes` of what will be read soon. A hint: it reads nothing.
#[cfg(target_arch = "x86_64")]
pub(crate) fn prefetch<T>(space: &[T], bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for at in (0..bytes).step_by(64) {
        // SAFETY: a prefetch does not access memory, whatever the address; wrapping_add makes any address.
        unsafe { _mm_prefetch(space.as_ptr().cast::<i8>().wrapping_add(at), _MM_HINT_T0) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch<T>(_space: &[T], _bytes: usize) {}
