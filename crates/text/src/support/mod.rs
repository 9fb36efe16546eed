//! What the packages of tallow share. No part of the interface: it changes without notice.

pub mod files;
mod fingerprint;
mod mix;
mod prefetch;
mod same_file;

pub use fingerprint::Fingerprint;
pub use mix::{below, mix};
pub use prefetch::prefetch;
pub use same_file::{belongs_to, lies_in, same_file};
