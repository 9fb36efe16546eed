//! Whether the program was started without a standard output (`>&-`). Rust's runtime opens /dev/null in its place before `main`,
//! so the check runs earlier.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

pub fn stdout_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

#[cfg(target_os = "linux")]
mod before_main {
    use super::{CLOSED, Ordering};

    // SAFETY: the C library calls each function of this section once, while there is only one thread.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static ASK: extern "C" fn() = ask;

    extern "C" fn ask() {
        // SAFETY: F_GETFD changes nothing. For a closed descriptor it returns -1.
        CLOSED.store(unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1, Ordering::Relaxed);
    }
}
