//! Sums of gradients by row.

use std::cell::RefCell;

use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::{CudaDevice, DType, Device, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::launch::{Element, in_place, kernel, launch, view};
use super::parts::Parts;
use super::plan::{LONGEST_RUN, Threads, pack};
use crate::grouping::{Grouping, Groups};

/// Groups of gradients by row on the device. Large groups are already summed in parts. Costs one upload of two to three numbers per
/// position.
pub(crate) struct Sums<A> {
    pub(crate) partials: CudaSlice<A>,
    /// Rows, then starts, then positions.
    indices: CudaSlice<u32>,
    pub(crate) split: u32,
    pub(crate) count: usize,
}

impl<A: Element> Sums<A> {
    /// Groups `grads` (N, C), times `scale`. There must be at least one row.
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
        // SAFETY: the kernel below writes every element. Without parts no element is read.
        let mut partials = unsafe { device.alloc::<A>((parts * columns).max(1)) }?;
        if parts > 0 {
            let first = groups.rows.len() + starts.len() + positions.len();
            let part_starts = indices.slice(first..=first + parts);
            let part_positions = indices.slice(first + parts + 1..);
            let kernel = kernel(device, &format!("sum_rows_{}_{}_{pack}", G::NAME, A::NAME))?;
            let (none, scale, count, columns_arg) = (0u64, A::from_f64(scale), parts as u64, columns as u64);
            let mut args = kernel.args();
            args.arg(grads).arg(&none).arg(&part_starts).arg(&part_positions).arg(&none).arg(&none).arg(&mut partials);
            args.arg(&u32::MAX).arg(&count).arg(&columns_arg).arg(&scale);
            // SAFETY: the parameters of sum_rows. All positions are rows of `grads`; none is a part.
            unsafe { launch(args, Threads::over_rows(parts, columns / pack)) }?;
        }
        Ok(Sums { partials, indices, split, count: groups.rows.len() })
    }

    /// The row of each sum.
    pub(crate) fn rows(&self) -> CudaView<'_, u32> {
        self.indices.slice(..self.count)
    }

    /// The starts of the sums (one more than there are sums), and the positions that they index.
    pub(crate) fn starts_and_positions(&self) -> (CudaView<'_, u32>, CudaView<'_, u32>) {
        (self.indices.slice(self.count..=2 * self.count), self.indices.slice(2 * self.count + 1..))
    }
}

/// The sums (U, C) f32 of `grads` (N, C) f32, bf16 or f16.
pub(crate) fn sum_rows(device: &CudaDevice, groups: &Groups, grads: &Tensor) -> Result<Tensor> {
    let shape = Shape::from((groups.rows.len(), grads.dim(1)?));
    // SAFETY: every row is written.
    let out = unsafe { Tensor::empty(shape, DType::F32, &Device::Cuda(device.clone())) }?;
    let how = How::Alone(groups);
    match grads.dtype() {
        DType::F32 => sum_into::<f32, f32>(device, &how, grads, &out, 1.0)?,
        DType::BF16 => sum_into::<bf16, f32>(device, &how, grads, &out, 1.0)?,
        DType::F16 => sum_into::<f16, f32>(device, &how, grads, &out, 1.0)?,
        dtype => candle_core::bail!("row gradients are f32, bf16 or f16, not {dtype:?}"),
    }
    Ok(out)
}

/// The gradient of a table (V, C) in the dtype of `grads` (…, C), times `scale`, summed in f32 (f64 for f64) and rounded once.
/// `ids` are u32, on the host or on the device. Ids on the device are grouped there, without a sync. Cost: a pass that writes zeros,
/// and a pass over the gradients and the rows that have one.
pub(crate) fn dense_gradient(
    device: &CudaDevice,
    ids: &Tensor,
    grads: &Tensor,
    table: &Shape,
    scale: f64,
) -> Result<Tensor> {
    let (vocab_size, columns) = table.dims2()?;
    let grads = &grads.reshape((ids.elem_count(), columns))?.contiguous()?;
    let out = Tensor::zeros(table, grads.dtype(), grads.device())?;
    let how = match ids.device() {
        Device::Cpu => {
            thread_local!(static GROUPING: RefCell<Grouping> = RefCell::default());
            let ids = ids.flatten_all()?.to_vec1::<u32>()?;
            How::ByRow(GROUPING.with_borrow_mut(|grouping| grouping.group(&ids, vocab_size, &[])))
        }
        _ => How::OnDevice(OnDevice::new(device, ids, vocab_size)?),
    };
    match grads.dtype() {
        DType::F32 => sum_into::<f32, f32>(device, &how, grads, &out, scale)?,
        DType::BF16 => sum_into::<bf16, bf16>(device, &how, grads, &out, scale)?,
        DType::F16 => sum_into::<f16, f16>(device, &how, grads, &out, scale)?,
        DType::F64 => sum_into::<f64, f64>(device, &how, grads, &out, scale)?,
        dtype => candle_core::bail!("token-embedding needs gradients of f32, f64, bf16 or f16, not {dtype:?}"),
    }
    Ok(out)
}

/// How positions were grouped, and where the sums are written.
enum How<'a> {
    /// The sums one after another, without the other rows.
    Alone(&'a Groups),
    /// Each sum to its row of the table.
    ByRow(Groups),
    OnDevice(OnDevice),
}

/// Groups that were made on the device. Their number is not known on the host.
struct OnDevice {
    rows: CudaSlice<u32>,
    starts: CudaSlice<u32>,
    positions: CudaSlice<u32>,
    /// The upper half is the number of groups.
    taken: CudaSlice<u64>,
    /// An upper bound of the number of groups.
    most: usize,
}

impl OnDevice {
    /// Four launches, and 16 bytes per row of the table. A token that occurs n times costs n² comparisons.
    fn new(device: &CudaDevice, ids: &Tensor, vocab_size: usize) -> Result<Self> {
        let (storage, layout) = ids.storage_and_layout();
        let (Storage::Cuda(storage), Some((first, last))) = (&*storage, layout.contiguous_offsets()) else {
            candle_core::bail!("token-embedding needs contiguous ids on the table's device")
        };
        let ids = storage.as_cuda_slice::<u32>()?.slice(first..last);
        let (count, most) = (ids.len(), ids.len().min(vocab_size));
        let (mut counts, mut filled) = (device.alloc_zeros::<u32>(vocab_size)?, device.alloc_zeros::<u32>(vocab_size)?);
        let mut taken = device.alloc_zeros::<u64>(1)?;
        // SAFETY: elements are written before they are read: the spans of all counted rows, and nothing else.
        let (mut begins, mut rows, mut starts, mut unordered, mut positions) = unsafe {
            let alloc = |len: usize| device.alloc::<u32>(len);
            (alloc(vocab_size)?, alloc(most)?, alloc(most + 1)?, alloc(count)?, alloc(count)?)
        };
        let (n, v) = (count as u64, vocab_size as u64);
        let (by_position, by_row) = (Threads::over_elements(count), Threads::over_elements(vocab_size));
        let kernels = ["group_count_ids", "group_place_rows", "group_fill_spans", "group_order_spans"];
        let [counting, placing, filling, ordering] = kernels.map(|name| kernel(device, name));
        let (counting, placing, filling, ordering) = (counting?, placing?, filling?, ordering?);
        // SAFETY: the parameters of the kernels, of these lengths. Ids out of range are left out.
        unsafe {
            let mut args = counting.args();
            args.arg(&ids).arg(&mut counts).arg(&n).arg(&v);
            launch(args, by_position)?;
            let mut args = placing.args();
            args.arg(&counts).arg(&mut begins).arg(&mut rows).arg(&mut starts).arg(&mut taken).arg(&v);
            launch(args, by_row)?;
            let mut args = filling.args();
            args.arg(&ids).arg(&begins).arg(&mut filled).arg(&mut unordered).arg(&n).arg(&v);
            launch(args, by_position)?;
            let mut args = ordering.args();
            args.arg(&ids).arg(&begins).arg(&counts).arg(&unordered).arg(&mut positions).arg(&n).arg(&v);
            launch(args, by_position)?;
        }
        Ok(OnDevice { rows, starts, positions, taken, most })
    }
}

/// Launches the sums of `grads` into `out`.
fn sum_into<G: Element, O: Element>(
    device: &CudaDevice,
    how: &How,
    grads: &Tensor,
    out: &Tensor,
    scale: f64,
) -> Result<()> {
    let columns = grads.dim(1)?;
    let nothing = match how {
        How::Alone(groups) => groups.rows.is_empty(),
        How::ByRow(groups) => groups.rows.is_empty(),
        How::OnDevice(groups) => groups.most == 0,
    };
    if nothing || columns == 0 {
        return Ok(());
    }
    let (storage, layout) = grads.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("gradients are not on the table's device") };
    let grads = view::<G>(storage, layout)?;
    let pack = pack(&[columns, layout.start_offset()]);
    let kernel = kernel(device, &format!("sum_rows_{}_{}_{pack}", G::NAME, O::NAME))?;
    let sums = match how {
        How::Alone(groups) => Some(Sums::<G::Wide>::new(device, groups, &grads, (columns, pack), scale)?),
        How::ByRow(groups) => Some(Sums::<G::Wide>::new(device, groups, &grads, (columns, pack), scale)?),
        How::OnDevice(_) => None,
    };
    in_place(out, |out| {
        let out = out.as_cuda_slice_mut::<O>()?;
        let (none, scale, columns_arg) = (0u64, G::Wide::from_f64(scale), columns as u64);
        let mut args = kernel.args();
        args.arg(&grads);
        // SAFETY (of both launches): the parameters of sum_rows. Rows are in the table, or `out` has one row for each sum.
        match (how, &sums) {
            (How::OnDevice(OnDevice { rows, starts, positions, taken, most }), _) => {
                let count = *most as u64;
                args.arg(&none).arg(starts).arg(positions).arg(rows).arg(taken);
                args.arg(out).arg(&u32::MAX).arg(&count).arg(&columns_arg).arg(&scale);
                unsafe { launch(args, Threads::over_rows(*most, columns / pack)) }
            }
            (_, Some(sums)) => {
                let (rows, (starts, positions)) = (sums.rows(), sums.starts_and_positions());
                let count = sums.count as u64;
                args.arg(&sums.partials).arg(&starts).arg(&positions);
                if matches!(how, How::ByRow(_)) {
                    args.arg(&rows)
                } else {
                    args.arg(&none)
                };
                args.arg(&none).arg(out).arg(&sums.split).arg(&count).arg(&columns_arg).arg(&scale);
                unsafe { launch(args, Threads::over_rows(sums.count, columns / pack)) }
            }
            (_, None) => Ok(()),
        }
    })
}
