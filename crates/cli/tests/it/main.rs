//! The binary as a user meets it. All integration tests of the package in one binary.

mod cli;
#[cfg(feature = "hub")]
mod hub;
mod outputs;
mod pictures;
#[cfg(unix)]
mod prepare;
#[cfg(unix)]
mod readme;
#[cfg(feature = "hub")]
#[path = "../../../../tests/support/hub.rs"]
mod server;
mod shards;
#[path = "../../../../tests/support/mod.rs"]
mod support;
#[path = "../../../../tests/support/tables.rs"]
mod tables;
