//! Loads and launches kernels.cu on an NVIDIA GPU: look-up and row gradients. The optimizers' part is in `optim/place/cuda`.
//!
//! The functions exist in every build, so that other modules need no check of the feature `cuda`.

#[cfg(any(feature = "cuda", test))]
mod parts;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod plan;

#[cfg(all(test, target_os = "linux"))]
#[path = "../../tests/kernels/on_host.rs"]
pub(crate) mod on_host;

#[cfg(feature = "cuda")]
mod gradients;
#[cfg(feature = "cuda")]
mod launch;

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(not(feature = "cuda"))]
pub(crate) use absent::{check, dense_gradient, gather, keep_memory, sum_rows};
#[cfg(feature = "cuda")]
pub(crate) use gradients::{Sums, dense_gradient, sum_rows};
#[cfg(feature = "cuda")]
pub(crate) use launch::{Element, check, gather, in_place, keep_memory, kernel, launch, view};
#[cfg(feature = "cuda")]
pub(crate) use plan::{Threads, pack};
