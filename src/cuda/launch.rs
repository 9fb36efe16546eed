//! Kernels by name, their arguments, and the look-up.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaStream, CudaView, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda::{CudaDType, CudaStorageSlice, WrapErr, cudarc::nvrtc};
use candle_core::{CudaDevice, CudaStorage, InplaceOp1, Layout, Result, Tensor, WithDType};
use half::{bf16, f16};

use super::plan::{Threads, unit_bytes};

/// kernels.cu for compute capability 8.0. The driver compiles it for all later ones.
const PTX: &str = include_str!("kernels.ptx");

/// The name of the loaded module in candle.
const MODULE: &str = concat!("tallow-", env!("CARGO_PKG_VERSION"));
const COMPILED_HERE: &str = concat!("tallow-", env!("CARGO_PKG_VERSION"), "-nvrtc");

/// Float types that kernels take.
pub(crate) trait Element: CudaDType + DeviceRepr + WithDType {
    const NAME: &'static str;
    /// The type of sums.
    type Wide: Element;
}

macro_rules! element {
    ($type:ty, $name:literal, $wide:ty) => {
        impl Element for $type {
            const NAME: &'static str = $name;
            type Wide = $wide;
        }
    };
}
element!(f32, "f32", f32);
element!(bf16, "bf16", f32);
element!(f16, "f16", f32);
element!(f64, "f64", f64);

/// A kernel of kernels.cu, and its stream.
pub(crate) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    pub(crate) fn args(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

/// The kernel of this name. If the driver rejects the bundled PTX (a driver older than CUDA 13.0), NVRTC compiles the source, once
/// per process.
pub(crate) fn kernel(device: &CudaDevice, name: &str) -> Result<Kernel> {
    static COMPILED: OnceLock<String> = OnceLock::new();
    let load = |module, ptx| device.get_or_load_custom_func(name, module, ptx);
    let function = match COMPILED.get() {
        Some(ptx) => load(COMPILED_HERE, ptx)?,
        None => load(MODULE, PTX).or_else(|refused| {
            let ptx = compile().map_err(|error| {
                candle_core::Error::Msg(format!(
                    "the driver rejects tallow's kernels ({refused}), and NVRTC does not compile them: {error}"
                ))
            })?;
            load(COMPILED_HERE, COMPILED.get_or_init(|| ptx))
        })?,
    };
    Ok(Kernel { function: function.into_cuda_function(), stream: device.cuda_stream() })
}

fn compile() -> Result<String> {
    // The oldest capability that CUDA 13 supports: all devices of the process use the result.
    let options = nvrtc::CompileOptions {
        fmad: Some(false),
        options: vec!["--std=c++17".to_string(), "--gpu-architecture=compute_75".to_string()],
        ..Default::default()
    };
    Ok(nvrtc::compile_ptx_with_opts(include_str!("kernels.cu"), options).map_err(candle_core::Error::wrap)?.to_src())
}

/// Starts a kernel.
///
/// # Safety
/// The arguments must match the kernel's parameters, and all accesses must be within the buffers.
pub(crate) unsafe fn launch(mut args: LaunchArgs<'_>, threads: Threads) -> Result<()> {
    if threads.blocks == 0 {
        return Ok(());
    }
    let config =
        LaunchConfig { grid_dim: (threads.blocks, 1, 1), block_dim: (threads.x, threads.y, 1), shared_mem_bytes: 0 };
    unsafe { args.launch(config) }.w()?;
    Ok(())
}

/// The elements of a contiguous layout.
pub(crate) fn view<'a, T: Element>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a kernel of tallow needs a contiguous tensor")
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Calls `change` with the storage of a contiguous tensor that starts at offset 0.
pub(crate) fn in_place(tensor: &Tensor, change: impl FnOnce(&mut CudaStorage) -> Result<()>) -> Result<()> {
    struct Op<F>(RefCell<Option<F>>);
    impl<F: FnOnce(&mut CudaStorage) -> Result<()>> InplaceOp1 for Op<F> {
        fn name(&self) -> &'static str {
            "tallow kernel"
        }
        fn cpu_fwd(&self, _: &mut candle_core::CpuStorage, _: &Layout) -> Result<()> {
            candle_core::bail!("expected a tensor on a GPU, not on the CPU")
        }
        fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
            if layout.start_offset() != 0 || !layout.is_contiguous() {
                candle_core::bail!("a variable must be contiguous, and not a view of a part of its storage")
            }
            self.0.take().map_or(Ok(()), |change| change(storage))
        }
    }
    tensor.inplace_op1(&Op(RefCell::new(Some(change))))
}

/// An error if the device cannot load the kernels.
pub(crate) fn check(device: &CudaDevice) -> Result<()> {
    kernel(device, "gather_16").map(|_| ())
}

/// The rows `ids` (u32, contiguous) of `table` (V, C), times `scale`. Ids without a row give zeros.
pub(crate) fn gather(
    table: &CudaStorage,
    table_layout: &Layout,
    ids: &CudaStorage,
    ids_layout: &Layout,
    scale: Option<f64>,
) -> Result<CudaStorage> {
    let (rows, columns) = table_layout.shape().dims2()?;
    let Some((start, end)) = ids_layout.contiguous_offsets() else {
        candle_core::bail!("token-embedding needs contiguous ids")
    };
    let ids = ids.as_cuda_slice::<u32>()?.slice(start..end);
    macro_rules! of {
        ($type:ty) => {
            rows_of::<$type>(table, table_layout, &ids, (rows, columns), scale)
        };
    }
    match &table.slice {
        CudaStorageSlice::F32(_) => of!(f32),
        CudaStorageSlice::BF16(_) => of!(bf16),
        CudaStorageSlice::F16(_) => of!(f16),
        CudaStorageSlice::F64(_) => of!(f64),
        _ => candle_core::bail!("token-embedding needs a table of f32, f64, bf16 or f16"),
    }
}

fn rows_of<T: Element>(
    table: &CudaStorage,
    layout: &Layout,
    ids: &CudaView<u32>,
    (rows, columns): (usize, usize),
    scale: Option<f64>,
) -> Result<CudaStorage> {
    let device = &table.device;
    let (count, elements) = (ids.len(), ids.len() * columns);
    let from = view::<T>(table, layout)?;
    // SAFETY: the kernel below writes every element.
    let out = unsafe { device.alloc::<T>(elements.max(1)) }?;
    if elements > 0 {
        let size = size_of::<T>();
        let unit = unit_bytes(columns * size, layout.start_offset() * size);
        let (name, units) = match scale {
            None => (format!("gather_{unit}"), columns * size / unit),
            Some(_) => (format!("gather_scaled_{}", T::NAME), columns),
        };
        let kernel = kernel(device, &name)?;
        let scale = scale.map(|scale| T::Wide::from_f64(T::from_f64(scale).to_f64()));
        let (rows, count_arg, units_arg) = (rows as u64, count as u64, units as u64);
        let mut args = kernel.args();
        args.arg(&from).arg(ids).arg(&out).arg(&rows).arg(&count_arg).arg(&units_arg);
        if let Some(scale) = &scale {
            args.arg(scale);
        }
        // SAFETY: the parameters of gather. Rows out of range are not read.
        unsafe { launch(args, Threads::over_rows(count, units)) }?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// Whether the process keeps freed memory for later tensors, or returns it to the driver at every synchronization (CUDA's default).
pub(crate) fn keep_memory(device: &CudaDevice, keep: bool) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().w()?;
    let mut threshold = if keep { u64::MAX } else { 0 };
    // SAFETY: the device is open, and the attribute is 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).w()
    }
}
