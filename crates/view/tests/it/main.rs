//! All integration tests of the package in one binary.

#[path = "../../../../tests/support/mod.rs"]
mod support;
#[path = "../../../../tests/support/tables.rs"]
mod tables;
mod view;
