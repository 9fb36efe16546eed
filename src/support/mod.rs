//! Helpers for other modules: memory, threads, vector registers, the variables of a VarMap.

mod memory;
pub(crate) mod parallel;
pub(crate) mod variables;
pub(crate) mod widest;

pub use memory::keep_pages;
pub use parallel::tune_threads;
pub(crate) use tallow_text::support::advise_huge_pages;
