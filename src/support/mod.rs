//! What hot code stands on: memory, threads, wide registers.

mod memory;
pub(crate) mod parallel;
pub(crate) mod widest;

pub(crate) use memory::advise_huge_pages;
pub use memory::keep_pages;
pub use parallel::tune_threads;
