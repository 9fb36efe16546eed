//! NCCL, NVIDIA's library of operations between GPUs, as an engine.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use candle_core::cuda::CudaDType;
use candle_core::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaView, DeviceRepr, ValidAsZeroBits};
use candle_core::cuda::cudarc::nccl::{self, Comm, Id, NcclType, group_end, group_start, result::NcclError};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Storage, Tensor};
use tallow_text::prepare::launched_rank_from_env;

use super::{Collective, ReduceOp, check_counts, check_dtype, check_root, gathered_shape, rendezvous};
use crate::{Error, Result};

/// For the first connection of all ranks, which a scheduler may start minutes apart.
const LIMIT: Duration = Duration::from_secs(300);

/// NCCL between the GPUs of several ranks: an engine of [`distributed`](crate::distributed). Feature `nccl`.
///
/// Each rank has a GPU of its own; NCCL refuses two ranks on one GPU. Tensors on the GPU are exchanged by NCCL, in their own dtype, on
/// candle's stream. Tensors elsewhere are copied to the GPU and back. Call it from the thread that computes: candle has one stream for
/// each thread.
///
/// Dropping it waits for the operations of this GPU, then aborts the connection (`ncclCommAbort`). A rank that ends earlier than the
/// others, or fails, leaves them waiting without a limit. torchrun, mpirun and srun (`--kill-on-bad-exit`) then end all ranks.
///
/// The library must be there when the program is linked and when it starts (`libnccl.so.2`). Set `NCCL_DEBUG=WARN` to see why NCCL
/// fails.
///
/// # Example
/// ```no_run
/// use candle_core::{DType, Module, Tensor};
/// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// use tallow::distributed::{Collective, DataParallel, Nccl};
/// // torchrun --no-python --nproc-per-node 8 target/release/train
/// let (nccl, device) = Nccl::from_env()?;
/// println!("rank {} of {} on {device:?}", nccl.rank(), nccl.world_size());
/// let ranks = DataParallel::new(nccl);
/// let varmap = VarMap::new();
/// let linear = candle_nn::linear(4, 4, VarBuilder::from_varmap(&varmap, DType::F32, &device))?;
/// let mut opt = tallow::optim::AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
/// ranks.broadcast(&varmap)?;
///
/// let x = linear.forward(&Tensor::ones((2, 4), DType::F32, &device)?)?;
/// let mut grads = tallow::backward(&x.sqr()?.sum_all()?)?;
/// ranks.exchange(&opt, &mut grads)?;
/// opt.step(&grads)?;
/// # Ok::<(), tallow::Error>(())
/// ```
pub struct Nccl {
    link: Mutex<Link>,
    device: CudaDevice,
    rank: usize,
    world_size: usize,
}

/// A communicator that may go to another thread.
struct Link(Comm);

// SAFETY: NCCL binds a communicator to a device, not to a thread; it only forbids two calls at a time, which the mutex prevents. Every
// call binds the device's context to its thread first (`Nccl::call`). The rest of a `Comm` is a stream, which is `Send`, and numbers.
unsafe impl Send for Link {}

/// What NCCL and candle both have.
trait Element: NcclType + CudaDType + DeviceRepr + ValidAsZeroBits {}
impl<T: NcclType + CudaDType + DeviceRepr + ValidAsZeroBits> Element for T {}

/// What is to be done, as NCCL wants it.
enum Operation<'a> {
    AllReduce(nccl::ReduceOp),
    AllGather,
    Broadcast(i32),
    /// How many elements are for each rank, and how many come from it.
    AllToAll(&'a [(usize, usize)]),
}

fn failed(operation: &'static str) -> impl Fn(NcclError) -> Error {
    move |error| Error::Collective {
        operation,
        reason: format!("{:?} (NCCL; NCCL_DEBUG=WARN prints the cause)", error.0),
    }
}

impl Nccl {
    /// Connects the ranks of another engine, MPI for one: it tells rank and world size, and sends NCCL's id. `device` is the GPU of
    /// this rank.
    ///
    /// # Errors
    /// [`Error::Config`] for a device that is no CUDA device; [`Error::Collective`] if NCCL fails; those of `over`.
    ///
    /// # Example
    /// ```no_run
    /// use tallow::distributed::{Collective, Local, Nccl};
    /// let over = Local; // or tallow_mpi's World
    /// let device = tallow::device::open(&format!("cuda:{}", over.rank() % 8), |_| ())?; // machines with 8 GPUs
    /// let nccl = Nccl::new(&device, &over)?;
    /// nccl.barrier()?;
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn new(device: &Device, over: &dyn Collective) -> Result<Nccl> {
        let mut id = [0u8; 128];
        if over.rank() == 0 {
            id = new_id()?;
        }
        let id = over.broadcast(&Tensor::new(&id, &Device::Cpu)?, 0)?.to_vec1::<u8>()?;
        let id = id.try_into().map_err(|_| Error::Config("the engine cut NCCL's id of 128 bytes".to_string()))?;
        Self::connect(device, id, over.rank(), over.world_size())
    }

    /// Connects the ranks that torchrun, `mpirun` or `srun` started, and opens the GPU of this rank: the one with the number of the
    /// rank on this machine, or the only one that the process sees.
    ///
    /// Rank 0 listens on a port until all ranks have NCCL's id; the others connect to it. `MASTER_ADDR` names its machine, and
    /// `MASTER_PORT` the port (29500 if it is not set). torchrun sets both, and listens on that port itself; the port is then the next
    /// one. With `mpirun` and `srun` set `MASTER_ADDR` yourself. A program that is started without a launcher has one rank.
    ///
    /// The port takes connections from any machine until all ranks have come, unless `MASTER_ADDR` is `localhost`. Neither they nor
    /// NCCL's own are encrypted or authenticated: the network between the ranks must be trusted.
    ///
    /// # Errors
    /// [`Error::Config`] for environment variables that are missing or contradict each other; [`Error::Device`];
    /// [`Error::Collective`] if a rank does not come within 5 minutes, or NCCL fails.
    ///
    /// # Example
    /// ```no_run
    /// use tallow::distributed::{Collective, Nccl};
    /// let (nccl, device) = Nccl::from_env()?;
    /// println!("rank {} of {}: {device:?}", nccl.rank(), nccl.world_size());
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn from_env() -> Result<(Nccl, Device)> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (rank, local_rank) = launched_rank_from_env(variable).map_err(Error::Config)?.unwrap_or_default();
        let ordinal = if CudaContext::device_count().is_ok_and(|count| count == 1) { 0 } else { local_rank };
        let device = crate::device::open(&format!("cuda:{ordinal}"), |_| ())?;
        let id = rendezvous::meet(variable, rank, new_id, LIMIT)?;
        Ok((Self::connect(&device, id, rank.rank, rank.world_size)?, device))
    }

    fn connect(device: &Device, id: rendezvous::Bytes, rank: usize, world_size: usize) -> Result<Nccl> {
        let Device::Cuda(cuda) = device else {
            return Err(Error::Config(format!(
                "NCCL connects CUDA devices, not {:?}: give `cuda:N`",
                device.location()
            )));
        };
        rendezvous::narrow(world_size)?;
        let stream = cuda.cuda_stream();
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let comm = Comm::from_rank(stream, rank, world_size, Id::uninit(bytemuck::cast(id)));
        let comm = comm.map_err(failed(rendezvous::NAME))?;
        Ok(Nccl { link: Mutex::new(Link(comm)), device: cuda.clone(), rank, world_size })
    }

    /// The result of this shape, on the tensor's device.
    fn run(&self, operation: &Operation, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
        check_dtype(tensor)?;
        match tensor.dtype() {
            DType::F32 => self.call::<f32>(operation, tensor, shape),
            DType::F64 => self.call::<f64>(operation, tensor, shape),
            DType::F16 => self.call::<half::f16>(operation, tensor, shape),
            DType::BF16 => self.call::<half::bf16>(operation, tensor, shape),
            DType::U8 => self.call::<u8>(operation, tensor, shape),
            DType::U32 => self.call::<u32>(operation, tensor, shape),
            _ => self.call::<i64>(operation, tensor, shape),
        }
    }

    fn call<T: Element>(&self, operation: &Operation, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
        let (here, count, results) =
            (Device::Cuda(self.device.clone()), tensor.elem_count(), shape.iter().product::<usize>());
        // Backends reject zero-size allocations.
        let own = match count {
            0 => Tensor::zeros(1, tensor.dtype(), &here)?,
            _ => tensor.to_device(&here)?.contiguous()?,
        };
        let mut result = self.device.alloc_zeros::<T>(results.max(1))?;
        if count > 0 || results > 0 {
            let (storage, layout) = own.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { unreachable!("`own` is on the GPU") };
            let own = storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..layout.start_offset() + count);
            let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
            link.0.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
            let (name, done) = match operation {
                Operation::AllReduce(op) => ("all_reduce", link.0.all_reduce(&own, &mut result, op).map(|_| ())),
                Operation::AllGather => ("all_gather", link.0.all_gather(&own, &mut result).map(|_| ())),
                Operation::Broadcast(root) => {
                    ("broadcast", link.0.broadcast(Some(&own), &mut result, *root).map(|_| ()))
                }
                Operation::AllToAll(counts) => ("all_to_all", all_to_all(&link.0, &own, &mut result, counts)),
            };
            done.map_err(failed(name))?;
        }
        let storage = Storage::Cuda(T::wrap_cuda_slice(result, self.device.clone()));
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false).to_device(tensor.device())?)
    }
}

/// Sends to and receives from each rank, all at once.
fn all_to_all<T: Element>(
    comm: &Comm,
    own: &CudaView<T>,
    result: &mut CudaSlice<T>,
    counts: &[(usize, usize)],
) -> std::result::Result<(), NcclError> {
    group_start()?;
    let (mut sent, mut received) = (0, 0);
    let each = counts.iter().enumerate().try_for_each(|(peer, (to, from))| {
        if *to > 0 {
            comm.send(&own.slice(sent..sent + to), peer as i32)?;
        }
        if *from > 0 {
            comm.recv(&mut result.slice_mut(received..received + from), peer as i32)?;
        }
        (sent, received) = (sent + to, received + from);
        Ok(())
    });
    // A group that was begun is ended, whatever happened in it.
    let ended = group_end().map(|_| ());
    each.and(ended)
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // The communicator aborts what is not finished. After a panic of this rank nobody needs it.
        if !std::thread::panicking() {
            _ = self.device.cuda_stream().context().synchronize();
        }
    }
}

fn new_id() -> Result<rendezvous::Bytes> {
    Ok(bytemuck::cast(*Id::new().map_err(failed(rendezvous::NAME))?.internal()))
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let op = match op {
            ReduceOp::Sum => nccl::ReduceOp::Sum,
            ReduceOp::Max => nccl::ReduceOp::Max,
        };
        self.run(&Operation::AllReduce(op), tensor, tensor.dims())
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        self.run(&Operation::AllGather, tensor, &gathered_shape(tensor, self.world_size)?)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor> {
        check_root(root, self.world_size)?;
        self.run(&Operation::Broadcast(root as i32), tensor, tensor.dims())
    }

    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<(Tensor, Vec<usize>)> {
        check_counts(rows, counts, self.world_size)?;
        let to: Vec<i64> = counts.iter().map(|count| *count as i64).collect();
        let all = self.all_gather(&Tensor::new(to, &Device::Cpu)?)?.to_vec1::<i64>()?;
        let from: Vec<usize> =
            all.into_iter().skip(self.rank).step_by(self.world_size).map(|count| count as usize).collect();
        let (n, rest) = (from.iter().sum::<usize>(), &rows.dims()[1..]);
        let row = rest.iter().product::<usize>();
        let elements: Vec<_> = counts.iter().zip(&from).map(|(to, from)| (to * row, from * row)).collect();
        let received = self.run(&Operation::AllToAll(&elements), rows, &[&[n], rest].concat())?;
        Ok((received, from))
    }

    fn barrier(&self) -> Result<()> {
        // The copy back waits for the GPU.
        self.all_reduce(&Tensor::zeros(1, DType::U8, &Device::Cpu)?, ReduceOp::Sum).map(|_| ())
    }
}
