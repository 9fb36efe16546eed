//! MPI as the engine of [`tallow::distributed`]: [`run`] connects the ranks that `mpirun` or `srun` started, and gives them a
//! [`World`].
//!
//! ```no_run
//! use tallow::distributed::{Collective, DataParallel};
//!
//! fn main() -> std::process::ExitCode {
//!     tallow_mpi::run(|world| {
//!         let ranks = DataParallel::new(world);
//!         println!("rank {} of {}", world.rank(), world.world_size());
//!         // build the model, then ranks.broadcast(&varmap)?; in each step ranks.exchange(&opt, &mut grads)?
//!         ranks.total(1).map(|_| ())
//!     })
//! }
//! ```
//!
//! The MPI library is the one that `mpicc` or pkg-config find when this package is built. A program that is started without a
//! launcher has one rank.

use std::fmt::Display;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Storage, Tensor, WithDType};
use ferrompi::{Communicator, Mpi, MpiDatatype, ThreadLevel};
use tallow::distributed::{Collective, ReduceOp, check_counts, check_dtype, check_root, gathered_shape};
use tallow::{Error, Result};
use tallow_text::support::advise_huge_pages;

/// Connects the ranks, runs `body` on each, and gives the exit code for `main`.
///
/// A rank that returns an error or panics ends all ranks: it prints its message, and MPI aborts the job. Otherwise the others would
/// wait for it for ever. A rank that returns `Ok` early is waited for, as MPI has it: all ranks must call the same operations.
///
/// # Example
/// ```no_run
/// use tallow::distributed::Collective;
/// fn main() -> std::process::ExitCode {
///     tallow_mpi::run(|world| world.barrier())
/// }
/// ```
pub fn run<E: Display>(body: impl FnOnce(&World) -> std::result::Result<(), E>) -> ExitCode {
    let mpi = match Mpi::init_thread(ThreadLevel::Serialized) {
        Ok(mpi) => mpi,
        Err(error) => {
            eprintln!("error: MPI does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let communicator = mpi.world();
    let (rank, world_size) = (communicator.rank() as usize, communicator.size() as usize);
    let world = World { communicator: Arc::new(Mutex::new(communicator)), rank, world_size, most: most() };
    match catch_unwind(AssertUnwindSafe(|| body(&world))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            world.say(&format!("error: {error:#}"));
            world.mpi().abort(1)
        }
        Err(_) => {
            world.say("panicked (its message is above): all ranks end");
            world.mpi().abort(101)
        }
    }
}

/// All ranks of the job. [`run`] makes it.
///
/// Tensors are exchanged through the memory of the CPU: those of a GPU are copied there and back. f16 and bf16 have no MPI dtype;
/// they are summed in f32 and rounded once.
///
/// A clone is the same ranks. What keeps its engine, as
/// [`VocabParallelEmbedding`](tallow::distributed::VocabParallelEmbedding) does, takes `Arc::new(world.clone())`.
#[derive(Clone)]
pub struct World {
    /// MPI was started for one call at a time.
    communicator: Arc<Mutex<Communicator>>,
    rank: usize,
    world_size: usize,
    /// The most elements of one call: MPI counts in 32 bits with a sign.
    most: usize,
}

/// 2^28 elements, 1 GiB of f32. Tests of the cut make it smaller (`TALLOW_MPI_MOST`, in builds with debug assertions).
fn most() -> usize {
    let named = std::env::var("TALLOW_MPI_MOST").ok().filter(|_| cfg!(debug_assertions));
    named.and_then(|most| most.parse().ok()).unwrap_or(1 << 28)
}

fn failed(operation: &'static str) -> impl Fn(ferrompi::Error) -> Error {
    move |error| Error::Collective { operation, reason: error.to_string() }
}

/// Calls a generic method with the element type of its first argument, a tensor that [`plain`] gave.
macro_rules! by_dtype {
    ($self:ident.$method:ident($tensor:expr $(, $argument:expr)*)) => {{
        let tensor = $tensor;
        match tensor.dtype() {
            DType::F32 => $self.$method::<f32>(tensor $(, $argument)*),
            DType::F64 => $self.$method::<f64>(tensor $(, $argument)*),
            DType::U8 => $self.$method::<u8>(tensor $(, $argument)*),
            DType::U32 => $self.$method::<u32>(tensor $(, $argument)*),
            _ => $self.$method::<i64>(tensor $(, $argument)*),
        }
    }};
}

/// The tensor on the CPU, in a dtype that MPI has.
fn plain(tensor: &Tensor) -> Result<Tensor> {
    check_dtype(tensor)?;
    let tensor = tensor.detach().to_device(&Device::Cpu)?;
    let tensor = if matches!(tensor.dtype(), DType::F16 | DType::BF16) { tensor.to_dtype(DType::F32)? } else { tensor };
    Ok(tensor.contiguous()?)
}

/// As the tensor that came in.
fn back(result: Tensor, like: &Tensor) -> Result<Tensor> {
    Ok(result.to_dtype(like.dtype())?.to_device(like.device())?)
}

/// The elements of a contiguous tensor of the CPU.
fn with_slice<T: WithDType, R>(tensor: &Tensor, body: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { unreachable!("`plain` moved it to the CPU") };
    let all = storage.as_slice::<T>()?;
    body(&all[layout.start_offset()..][..layout.shape().elem_count()])
}

trait Element: WithDType + MpiDatatype + Default {}
impl<T: WithDType + MpiDatatype + Default> Element for T {}

impl World {
    fn mpi(&self) -> MutexGuard<'_, Communicator> {
        self.communicator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line on standard error, in one piece: other ranks and the launcher write there, too.
    fn say(&self, what: &str) {
        let line = format!("rank {} of {}: {what}\n", self.rank(), self.world_size());
        _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn reduce<T: Element>(&self, tensor: &Tensor, op: ferrompi::ReduceOp) -> Result<Tensor> {
        let result = with_slice::<T, _>(tensor, |own| {
            let mut result = vec![T::default(); own.len()];
            advise_huge_pages(&mut result);
            for (own, result) in own.chunks(self.most).zip(result.chunks_mut(self.most)) {
                self.mpi().allreduce(own, result, op).map_err(failed("all_reduce"))?;
            }
            Ok(result)
        })?;
        Ok(Tensor::from_vec(result, tensor.shape(), &Device::Cpu)?)
    }

    fn gather<T: Element>(&self, tensor: &Tensor, shape: Shape) -> Result<Tensor> {
        let ranks = self.world_size();
        let result = with_slice::<T, _>(tensor, |own| {
            let mut result = vec![T::default(); ranks * own.len()];
            advise_huge_pages(&mut result);
            if own.len() * ranks <= self.most {
                self.mpi().allgather(own, &mut result).map_err(failed("all_gather"))?;
                return Ok(result);
            }
            let most = (self.most / ranks).max(1);
            let mut part = vec![T::default(); most * ranks];
            for (k, piece) in own.chunks(most).enumerate() {
                let part = &mut part[..piece.len() * ranks];
                self.mpi().allgather(piece, part).map_err(failed("all_gather"))?;
                for (rank, of_rank) in part.chunks(piece.len()).enumerate() {
                    result[rank * own.len() + k * most..][..piece.len()].copy_from_slice(of_rank);
                }
            }
            Ok(result)
        })?;
        Ok(Tensor::from_vec(result, shape, &Device::Cpu)?)
    }

    fn broadcast_from<T: Element>(&self, tensor: &Tensor, root: usize) -> Result<Tensor> {
        let mut values = with_slice::<T, _>(tensor, |own| Ok(own.to_vec()))?;
        for piece in values.chunks_mut(self.most) {
            self.mpi().broadcast(piece, root as i32).map_err(failed("broadcast"))?;
        }
        Ok(Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?)
    }

    /// In rounds of at most `most` elements: of each destination as many rows as fit.
    fn exchange<T: Element>(&self, rows: &Tensor, to: &[usize], from: &[usize]) -> Result<Tensor> {
        let ranks = self.world_size();
        let row = rows.dims()[1..].iter().product::<usize>();
        let rows_a_round = (self.most / ranks / row.max(1)).max(1);
        let longest = to.iter().chain(from).copied().max().unwrap_or(0);
        let longest = Tensor::new(&[longest as i64], &Device::Cpu)?;
        let longest = self.all_reduce(&longest, ReduceOp::Max)?.to_vec1::<i64>()?[0] as usize;
        let starts = |counts: &[usize]| -> Vec<usize> {
            counts.iter().scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count))).collect()
        };
        let (to_starts, from_starts) = (starts(to), starts(from));
        let result = with_slice::<T, _>(rows, |own| {
            let mut result = vec![T::default(); from.iter().sum::<usize>() * row];
            for first in (0..longest).step_by(rows_a_round) {
                // The part of each rank's rows that this round has, in elements.
                let part = |counts: &[usize]| -> Vec<usize> {
                    counts.iter().map(|count| count.saturating_sub(first).min(rows_a_round) * row).collect()
                };
                let (send, receive) = (part(to), part(from));
                let numbers = |counts: &[usize]| counts.iter().map(|count| *count as i32).collect::<Vec<i32>>();
                let mut packed = Vec::with_capacity(send.iter().sum());
                for (count, start) in send.iter().zip(&to_starts).filter(|(count, _)| **count > 0) {
                    packed.extend_from_slice(&own[(start + first) * row..][..*count]);
                }
                let mut got = vec![T::default(); receive.iter().sum()];
                let (send_starts, receive_starts) = (starts(&send), starts(&receive));
                self.mpi()
                    .alltoallv(
                        &packed,
                        &numbers(&send),
                        &numbers(&send_starts),
                        &mut got,
                        &numbers(&receive),
                        &numbers(&receive_starts),
                    )
                    .map_err(failed("all_to_all"))?;
                for (rank, count) in receive.iter().enumerate().filter(|(_, count)| **count > 0) {
                    let at = (from_starts[rank] + first) * row;
                    result[at..][..*count].copy_from_slice(&got[receive_starts[rank]..][..*count]);
                }
            }
            Ok(result)
        })?;
        let mut dims = rows.dims().to_vec();
        dims[0] = from.iter().sum();
        Ok(Tensor::from_vec(result, dims, &Device::Cpu)?)
    }
}

impl Collective for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let op = match op {
            ReduceOp::Sum => ferrompi::ReduceOp::Sum,
            ReduceOp::Max => ferrompi::ReduceOp::Max,
        };
        let result = by_dtype!(self.reduce(&plain(tensor)?, op))?;
        back(result, tensor)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let shape = Shape::from(gathered_shape(tensor, self.world_size)?);
        let result = by_dtype!(self.gather(&plain(tensor)?, shape))?;
        back(result, tensor)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor> {
        check_root(root, self.world_size())?;
        let result = by_dtype!(self.broadcast_from(&plain(tensor)?, root))?;
        back(result, tensor)
    }

    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<(Tensor, Vec<usize>)> {
        check_counts(rows, counts, self.world_size())?;
        let to: Vec<i64> = counts.iter().map(|count| *count as i64).collect();
        let mut from = vec![0i64; to.len()];
        self.mpi().alltoall(&to, &mut from).map_err(failed("all_to_all"))?;
        let from: Vec<usize> = from.into_iter().map(|count| count as usize).collect();
        let result = by_dtype!(self.exchange(&plain(rows)?, counts, &from))?;
        Ok((back(result, rows)?, from))
    }

    fn barrier(&self) -> Result<()> {
        self.mpi().barrier().map_err(failed("barrier"))
    }
}
