//! kernels.cu on an NVIDIA GPU: loaded, launched, and what the layer and row gradients need of it.
//! The optimizers' part is in `optim/on_cuda.rs`.

pub(crate) mod plan;

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod on_host;

#[cfg(feature = "cuda")]
mod gradients;
#[cfg(feature = "cuda")]
mod launch;

#[cfg(feature = "cuda")]
pub(crate) use gradients::{Sums, dense_gradient, sum_rows};
#[cfg(feature = "cuda")]
pub(crate) use launch::{Element, gather, in_place, keep_memory, kernel, launch, view};
#[cfg(feature = "cuda")]
pub(crate) use plan::{Threads, pack};
