//! Hints to the operating system about large buffers.

/// The smallest buffer that uses huge pages. In larger ones, first touches of 4 KiB pages cost more than filling them.
#[cfg(target_os = "linux")]
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks Linux to back a large, untouched buffer with huge pages. It is a hint, and failure is ignored.
#[cfg(target_os = "linux")]
pub fn advise_huge_pages<T>(space: &mut [T]) {
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
pub fn advise_huge_pages<T>(_space: &mut [T]) {}
