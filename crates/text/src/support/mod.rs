//! Internals that the packages of tallow share. They are not part of the public interface and change without notice.

pub mod files;
mod fingerprint;
mod memory;
mod mix;
mod prefetch;
mod same_file;
mod utf8;

pub use fingerprint::Fingerprint;
pub use memory::advise_huge_pages;
pub use mix::{below, mix};
pub use prefetch::prefetch;
pub use same_file::{belongs_to, lies_in, same_file};
pub(crate) use utf8::take_text;
