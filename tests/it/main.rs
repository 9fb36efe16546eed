//! All integration tests of the package in one binary, so that candle is linked once.

#[path = "../support/acceptance/mod.rs"]
mod acceptance;
mod batch;
mod checkpoint;
mod distributed;
mod embedding;
mod grown;
mod head;
#[cfg(feature = "hub")]
mod hub;
mod init;
mod loader;
mod optim;
mod pieces;
mod pretrained;
mod pth;
#[path = "../support/ranks.rs"]
mod ranks;
#[cfg(feature = "hub")]
#[path = "../support/hub.rs"]
mod server;
#[path = "../support/mod.rs"]
mod support;
mod train_gpt;
