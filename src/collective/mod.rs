//! The operations that all ranks take part in, and the rows that each rank holds of a weight that is split.
//!
//! This module does not depend on engines, nor on what is exchanged.

mod shard;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use crc32fast::Hasher;

use crate::{Error, Result};
pub(crate) use shard::{Shard, Stride};

/// How [`Collective::all_reduce`] combines elements.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::distributed::{Collective, Local, ReduceOp};
/// let largest = Local.all_reduce(&Tensor::new(&[3u32, 1], &Device::Cpu)?, ReduceOp::Max)?;
/// assert_eq!(largest.to_vec1::<u32>()?, [3, 1]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum over all ranks.
    Sum,
    /// The maximum over all ranks.
    Max,
}

/// An engine that connects several processes, as `torch.distributed.ProcessGroup`.
///
/// All ranks must call the same operations in the same order, with tensors of the same dtype (and of the same shape, where nothing
/// else is said). A rank that leaves one out blocks the others. Results are on the tensor's device, detached from any graph. Tensors
/// may be views. Dtypes are f32, f64, f16, bf16, u8, u32 and i64.
///
/// Every rank must get the same bits from [`all_reduce`](Self::all_reduce): replicas depend on it.
///
/// # Errors
/// Each operation: [`Error::Collective`] if the engine fails, [`Error::Config`] for a dtype that it does not have, a root that is
/// no rank, or counts that do not fit.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::distributed::{Collective, Local, ReduceOp};
/// // The mean of a number over all ranks, whatever the engine.
/// fn mean(ranks: &dyn Collective, value: f32) -> tallow::Result<f32> {
///     let sum = ranks.all_reduce(&Tensor::new(value, &Device::Cpu)?, ReduceOp::Sum)?;
///     Ok(sum.to_scalar::<f32>()? / ranks.world_size() as f32)
/// }
/// assert_eq!(mean(&Local, 3.0)?, 3.0);
/// # Ok::<(), tallow::Error>(())
/// ```
pub trait Collective: Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world_size(&self) -> usize;

    /// Combines the tensors of all ranks element by element. Every rank gets the result, of the same shape.
    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor>;

    /// Concatenates the tensors (n, …) of all ranks along dimension 0, in the order of ranks: (world size x n, …).
    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor>;

    /// The tensor of rank `root`, on every rank. The other ranks' tensors tell shape, dtype and device.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor>;

    /// Sends rows (n, …) to their ranks: the first `counts[0]` rows to rank 0, the next `counts[1]` to rank 1, and so on. Returns the
    /// rows that were sent here, in the order of ranks, and how many each rank sent. Ranks may have different numbers of rows.
    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<(Tensor, Vec<usize>)>;

    /// Returns when all ranks have called it.
    fn barrier(&self) -> Result<()>;
}

/// A reference or a shared pointer to an engine is an engine.
macro_rules! deref_collective {
    ($pointer:ty) => {
        impl<C: Collective + ?Sized> Collective for $pointer {
            fn rank(&self) -> usize {
                (**self).rank()
            }

            fn world_size(&self) -> usize {
                (**self).world_size()
            }

            fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
                (**self).all_reduce(tensor, op)
            }

            fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
                (**self).all_gather(tensor)
            }

            fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor> {
                (**self).broadcast(tensor, root)
            }

            fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<(Tensor, Vec<usize>)> {
                (**self).all_to_all(rows, counts)
            }

            fn barrier(&self) -> Result<()> {
                (**self).barrier()
            }
        }
    };
}

deref_collective!(&C);
deref_collective!(Arc<C>);

/// One process: every operation returns its own tensor.
///
/// # Example
/// ```
/// use tallow::distributed::{Collective, Local};
/// assert_eq!((Local.rank(), Local.world_size()), (0, 1));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Collective for Local {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, tensor: &Tensor, _op: ReduceOp) -> Result<Tensor> {
        own(tensor)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        own(tensor)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor> {
        check_root(root, 1)?;
        own(tensor)
    }

    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<(Tensor, Vec<usize>)> {
        check_counts(rows, counts, 1)?;
        Ok((own(rows)?, counts.to_vec()))
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

fn own(tensor: &Tensor) -> Result<Tensor> {
    check_dtype(tensor)?;
    Ok(tensor.detach())
}

/// An error for a dtype that no engine has. For implementations of [`Collective`].
///
/// # Errors
/// [`Error::Config`].
pub fn check_dtype(tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::U8 | DType::U32 | DType::I64 => Ok(()),
        other => Err(Error::Config(format!(
            "tensors of dtype {other:?} cannot be exchanged: use f32, f64, f16, bf16, u8, u32 or i64"
        ))),
    }
}

/// The shape of what `all_gather` gives for this tensor. For implementations of [`Collective`].
///
/// # Errors
/// [`Error::Config`]: a tensor without a dimension.
pub fn gathered_shape(tensor: &Tensor, world_size: usize) -> Result<Vec<usize>> {
    match tensor.dims().split_first() {
        Some((n, rest)) => Ok([&[n * world_size], rest].concat()),
        None => Err(Error::Config("all_gather concatenates along dimension 0: the tensor has none".to_string())),
    }
}

/// An error for a root that is no rank. For implementations of [`Collective`].
///
/// # Errors
/// [`Error::Config`].
pub fn check_root(root: usize, world_size: usize) -> Result<()> {
    match root < world_size {
        true => Ok(()),
        false => Err(Error::Config(format!("rank {root} is not one of {world_size} ranks: they count from 0"))),
    }
}

/// An error for counts that are not of as many rows, or not one for each rank. For implementations of [`Collective`].
///
/// # Errors
/// [`Error::Config`].
pub fn check_counts(rows: &Tensor, counts: &[usize], world_size: usize) -> Result<()> {
    check_dtype(rows)?;
    let (n, sum) = (rows.dims().first().copied(), counts.iter().sum::<usize>());
    match counts.len() == world_size && n == Some(sum) {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "all_to_all has counts of {sum} rows for {} ranks, and a tensor of shape {:?} for {world_size} ranks: give one count \
             for each rank, and as many rows",
            counts.len(),
            rows.dims()
        ))),
    }
}

/// Which of the numbers are not the same on all ranks. All ranks must have as many, and get the same answer.
pub(crate) fn differences(ranks: &dyn Collective, numbers: &[u32]) -> Result<Vec<bool>> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let both: Vec<u32> = numbers.iter().copied().chain(numbers.iter().map(|number| !number)).collect();
    let largest = ranks.all_reduce(&Tensor::new(both, &Device::Cpu)?, ReduceOp::Max)?.to_vec1::<u32>()?;
    let (largest, complements) = largest.split_at(numbers.len());
    Ok(largest.iter().zip(complements).map(|(largest, complement)| *largest != !complement).collect())
}

/// The checksum of a tensor's bytes.
pub(crate) fn checksum(tensor: &Tensor) -> Result<u32> {
    let tensor = tensor.flatten_all()?.to_device(&Device::Cpu)?;
    let mut hasher = Hasher::new();
    // 16-bit floats as f32: every value has one representation there.
    match tensor.dtype() {
        DType::F64 => hasher.update(bytemuck::cast_slice(&tensor.to_vec1::<f64>()?)),
        DType::U8 => hasher.update(&tensor.to_vec1::<u8>()?),
        DType::U32 => hasher.update(bytemuck::cast_slice(&tensor.to_vec1::<u32>()?)),
        DType::I64 => hasher.update(bytemuck::cast_slice(&tensor.to_vec1::<i64>()?)),
        _ => hasher.update(bytemuck::cast_slice(&tensor.to_dtype(DType::F32)?.to_vec1::<f32>()?)),
    }
    Ok(hasher.finalize())
}
