//! Sums of gradients by row.

use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::{CudaDevice, DType, Device, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::launch::{Element, in_place, kernel, launch, view};
use super::plan::{LONGEST_RUN, Threads, pack};
use crate::grouping::{Grouping, Groups, Parts};

/// Which gradients belong to which row, on the device, with the rows of many gradients summed in parts already. Costs one
/// upload of two to three numbers a position.
pub(crate) struct Sums<A> {
    pub(crate) partials: CudaSlice<A>,
    /// Rows, then starts, then positions.
    indices: CudaSlice<u32>,
    pub(crate) split: u32,
    pub(crate) count: usize,
}

impl<A: Element> Sums<A> {
    /// Of `grads` (N, C), times `scale`. There is at least one row.
    pub(crate) fn new<G: Element<Wide = A>>(
        device: &CudaDevice,
        groups: &Groups,
        grads: &CudaView<G>,
        (columns, pack): (usize, usize),
        scale: f64,
    ) -> Result<Self> {
        let Parts { part_starts, part_positions, starts, positions, split } = groups.parts(LONGEST_RUN);
        let indices = device.clone_htod(
            &[&groups.rows, &starts, &positions, &part_starts, &part_positions].map(|part| &part[..]).concat(),
        )?;
        let parts = part_starts.len() - 1;
        // SAFETY: the kernel below writes every element; without parts none is read.
        let mut partials = unsafe { device.alloc::<A>((parts * columns).max(1)) }?;
        if parts > 0 {
            let first = groups.rows.len() + starts.len() + positions.len();
            let part_starts = indices.slice(first..=first + parts);
            let part_positions = indices.slice(first + parts + 1..);
            let kernel = kernel(device, &format!("sum_rows_{}_{}_{pack}", G::NAME, A::NAME))?;
            let (none, scale, count, columns_arg) = (0u64, A::from_f64(scale), parts as u64, columns as u64);
            let mut args = kernel.args();
            args.arg(grads).arg(&none).arg(&part_starts).arg(&part_positions).arg(&none).arg(&mut partials);
            args.arg(&u32::MAX).arg(&count).arg(&columns_arg).arg(&scale);
            // SAFETY: sum_rows' parameters; positions are those of rows of `grads`, and none is a part.
            unsafe { launch(args, Threads::over_rows(parts, columns / pack)) }?;
        }
        Ok(Sums { partials, indices, split, count: groups.rows.len() })
    }

    /// The row of each sum.
    pub(crate) fn rows(&self) -> CudaView<'_, u32> {
        self.indices.slice(..self.count)
    }

    /// One more than there are sums, and what they are the starts in.
    pub(crate) fn starts_and_positions(&self) -> (CudaView<'_, u32>, CudaView<'_, u32>) {
        (self.indices.slice(self.count..=2 * self.count), self.indices.slice(2 * self.count + 1..))
    }
}

/// The sums (U, C) f32 of `grads` (N, C) f32, bf16 or f16.
pub(crate) fn sum_rows(device: &CudaDevice, groups: &Groups, grads: &Tensor) -> Result<Tensor> {
    let shape = Shape::from((groups.rows.len(), grads.dim(1)?));
    // SAFETY: every row is written.
    let out = unsafe { Tensor::empty(shape, DType::F32, &Device::Cuda(device.clone())) }?;
    match grads.dtype() {
        DType::F32 => sum_into::<f32, f32>(device, groups, grads, &out, false, 1.0)?,
        DType::BF16 => sum_into::<bf16, f32>(device, groups, grads, &out, false, 1.0)?,
        DType::F16 => sum_into::<f16, f32>(device, groups, grads, &out, false, 1.0)?,
        dtype => candle_core::bail!("row gradients are f32, bf16 or f16, not {dtype:?}"),
    }
    Ok(out)
}

/// The gradient of a table (V, C) in the dtype of `grads` (…, C), times `scale`, summed in f32 (f64 for f64) and rounded once.
/// `ids` are u32 on the host. A pass that writes zeros, and a pass over the gradients and the rows that have one.
pub(crate) fn dense_gradient(
    device: &CudaDevice,
    ids: &Tensor,
    grads: &Tensor,
    table: &Shape,
    scale: f64,
) -> Result<Tensor> {
    let (vocab_size, columns) = table.dims2()?;
    let ids = ids.flatten_all()?.to_vec1::<u32>()?;
    let groups = Grouping::default().group(&ids, vocab_size, &[]);
    let grads = &grads.reshape((ids.len(), columns))?.contiguous()?;
    let out = Tensor::zeros(table, grads.dtype(), grads.device())?;
    match grads.dtype() {
        DType::F32 => sum_into::<f32, f32>(device, &groups, grads, &out, true, scale)?,
        DType::BF16 => sum_into::<bf16, bf16>(device, &groups, grads, &out, true, scale)?,
        DType::F16 => sum_into::<f16, f16>(device, &groups, grads, &out, true, scale)?,
        DType::F64 => sum_into::<f64, f64>(device, &groups, grads, &out, true, scale)?,
        dtype => candle_core::bail!("token-embedding wants gradients of f32, f64, bf16 or f16, not {dtype:?}"),
    }
    Ok(out)
}

/// Writes each sum to its row of `out`, or, where `out` holds nothing but the sums, one after the other.
fn sum_into<G: Element, O: Element>(
    device: &CudaDevice,
    groups: &Groups,
    grads: &Tensor,
    out: &Tensor,
    by_row: bool,
    scale: f64,
) -> Result<()> {
    let columns = grads.dim(1)?;
    if groups.rows.is_empty() || columns == 0 {
        return Ok(());
    }
    let (storage, layout) = grads.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("gradients are not on the table's device") };
    let grads = view::<G>(storage, layout)?;
    let pack = pack(&[columns, layout.start_offset()]);
    let sums = Sums::<G::Wide>::new(device, groups, &grads, (columns, pack), scale)?;
    let kernel = kernel(device, &format!("sum_rows_{}_{}_{pack}", G::NAME, O::NAME))?;
    let (rows, (starts, positions)) = (sums.rows(), sums.starts_and_positions());
    in_place(out, |out| {
        let out = out.as_cuda_slice_mut::<O>()?;
        let (none, scale, count, columns_arg) = (0u64, G::Wide::from_f64(scale), sums.count as u64, columns as u64);
        let mut args = kernel.args();
        args.arg(&grads).arg(&sums.partials).arg(&starts).arg(&positions);
        if by_row {
            args.arg(&rows)
        } else {
            args.arg(&none)
        };
        args.arg(out).arg(&sums.split).arg(&count).arg(&columns_arg).arg(&scale);
        // SAFETY: sum_rows' parameters; rows are rows of the table, or there is a row of `out` for each sum.
        unsafe { launch(args, Threads::over_rows(sums.count, columns / pack)) }
    })
}
