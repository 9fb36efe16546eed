//! Training by several processes: what they exchange ([`DataParallel`]), and over which engine ([`Collective`]).
//!
//! Every process is a rank: it has its own copy of the model and its own part of each batch. After the backward pass the ranks
//! exchange gradients, and all make the same step. The package `tallow-mpi` is an engine for CPUs (MPI). `Nccl`, with the feature
//! `nccl`, is one for NVIDIA GPUs. [`Local`] is the engine of one process: a program that is written for several ranks runs with it
//! unchanged.
//!
//! The names are those of `torch.distributed`.

mod exchange;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;
mod row_exchange;
mod vocab_parallel;

pub use crate::collective::{Collective, Local, ReduceOp, check_counts, check_dtype, check_root, gathered_shape};
pub use exchange::DataParallel;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use row_exchange::RowExchange;
pub use vocab_parallel::VocabParallelEmbedding;
