//! The look-up as a candle operation, with its backward.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Device, Layout, MetalStorage, Result, Shape, Storage, Tensor, WithDType,
};

use crate::NO_TOKEN;
use crate::rows::RowTable;
use crate::support::{advise_huge_pages, parallel};

/// Smaller outputs are copied by one thread: waking others costs more (measured, see benches/LOG.md).
const PARALLEL_BYTES: usize = 2 << 20;
/// Output bytes of one task.
const TASK_BYTES: usize = 256 << 10;
/// Outputs of at least this size prefetch rows.
const PREFETCH_BYTES: usize = 64 << 10;
/// How many rows ahead memory is prefetched.
const PREFETCH_ROWS: usize = 8;

/// The dtypes of ids.
trait Id: Copy + Send + Sync {
    /// The row of this id. `None` for "no token", usize::MAX for an id that cannot be a row.
    fn row(self) -> Option<usize>;
}

impl Id for u32 {
    #[inline(always)]
    fn row(self) -> Option<usize> {
        (self != NO_TOKEN).then_some(self as usize)
    }
}

impl Id for i64 {
    #[inline(always)]
    fn row(self) -> Option<usize> {
        let no_token = self == i64::MAX || self == i64::from(NO_TOKEN);
        (!no_token).then(|| usize::try_from(self).unwrap_or(usize::MAX))
    }
}

impl Id for u8 {
    #[inline(always)]
    fn row(self) -> Option<usize> {
        Some(self.into())
    }
}

/// `table` (V, C) and contiguous `ids` (…) → (…, C), times `scale`. [`NO_TOKEN`] gives a row of zeros and
/// gets no gradient, on every device.
pub(super) struct Lookup {
    pub(super) scale: Option<f64>,
    /// The table that collects row gradients. `None`: the gradient is dense.
    pub(super) rows: Option<Arc<RowTable>>,
    /// Host copy of the ids (u32), so that backward can group them without a sync. `None`: ids arrived on the device and are grouped
    /// there.
    pub(super) host_ids: Option<Tensor>,
}

impl Lookup {
    fn shape(table: &Layout, ids: &Layout) -> Result<Shape> {
        let (_, d_model) = table.shape().dims2()?;
        let mut dims = ids.dims().to_vec();
        dims.push(d_model);
        Ok(Shape::from(dims))
    }

    fn gather<I: Id>(&self, table: &CpuStorage, span: Range<usize>, ids: &[I], d_model: usize) -> Result<CpuStorage> {
        Ok(match table {
            CpuStorage::F32(table) => CpuStorage::F32(gather(&table[span], ids, d_model, self.scale)?),
            CpuStorage::F64(table) => CpuStorage::F64(gather(&table[span], ids, d_model, self.scale)?),
            CpuStorage::BF16(table) => CpuStorage::BF16(gather(&table[span], ids, d_model, self.scale)?),
            CpuStorage::F16(table) => CpuStorage::F16(gather(&table[span], ids, d_model, self.scale)?),
            _ => candle_core::bail!("token-embedding needs a table of f32, f64, bf16 or f16"),
        })
    }
}

impl CustomOp2 for Lookup {
    fn name(&self) -> &'static str {
        "token-embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, tl: &Layout, ids: &CpuStorage, il: &Layout) -> Result<(CpuStorage, Shape)> {
        let (Some((start, end)), Some((first, last))) = (il.contiguous_offsets(), tl.contiguous_offsets()) else {
            candle_core::bail!("token-embedding needs a contiguous table and contiguous ids")
        };
        let (shape, span) = (Self::shape(tl, il)?, first..last);
        let d_model = tl.dims()[1];
        let storage = match ids {
            CpuStorage::U32(ids) => self.gather(table, span, &ids[start..end], d_model)?,
            CpuStorage::I64(ids) => self.gather(table, span, &ids[start..end], d_model)?,
            CpuStorage::U8(ids) => self.gather(table, span, &ids[start..end], d_model)?,
            _ => candle_core::bail!("token-embedding needs u8, u32 or i64 ids"),
        };
        Ok((storage, shape))
    }

    fn cuda_fwd(
        &self,
        table: &CudaStorage,
        tl: &Layout,
        ids: &CudaStorage,
        il: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((crate::cuda::gather(table, tl, ids, il, self.scale)?, Self::shape(tl, il)?))
    }

    /// The look-up by candle's own kernel.
    fn metal_fwd(
        &self,
        table: &MetalStorage,
        tl: &Layout,
        ids: &MetalStorage,
        il: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let shape = Self::shape(tl, il)?;
        let flat = Layout::contiguous_with_offset(il.shape().elem_count(), il.start_offset());
        let rows = table.index_select(ids, tl, &flat, 0)?;
        Ok(match self.scale {
            None => (rows, shape),
            Some(scale) => (rows.affine(&Layout::contiguous(&shape), scale, 0.0)?, shape),
        })
    }

    /// Row-sparse: ids and output gradient go to the [`RowTable`], and candle gets no gradient of the table. The zeros that candle gets
    /// as the "gradient" of the ids mark the `GradStore` that the row gradients belong to. `GradStore::extend` carries the mark over.
    ///
    /// Dense (V, C): row i is the sum of the output gradients of all positions with id i.
    fn bwd(
        &self,
        table: &Tensor,
        ids: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mark, ids) = (ids, &ids.to_dtype(DType::U32)?);
        if let Some(table) = &self.rows {
            let grad = match self.scale {
                None => grad.clone(),
                Some(scale) => grad.affine(scale, 0.0)?,
            };
            table.push(mark, self.host_ids.as_ref().unwrap_or(ids), &grad)?;
            return Ok((None, Some(mark.zeros_like()?)));
        }
        if let Device::Cuda(device) = table.device() {
            let ids = self.host_ids.as_ref().unwrap_or(ids);
            let scale = self.scale.unwrap_or(1.0);
            return Ok((Some(crate::cuda::dense_gradient(device, ids, grad, table.shape(), scale)?), None));
        }
        // Sums in bf16 and f16 lose small terms (256 + 1 is 256 in bf16): sum in f32 and round once.
        let sum_dtype = match table.dtype() {
            DType::BF16 | DType::F16 => DType::F32,
            dtype => dtype,
        };
        let rows = grad.reshape((ids.elem_count(), table.dim(1)?))?.to_dtype(sum_dtype)?;
        let rows = match self.scale {
            None => rows,
            Some(scale) => rows.affine(scale, 0.0)?,
        };
        let sums = match (table.device(), sum_dtype) {
            (Device::Cpu, DType::F32) => sum_rows::<f32>(table.shape(), ids, &rows)?,
            (Device::Cpu, DType::F64) => sum_rows::<f64>(table.shape(), ids, &rows)?,
            (device, dtype) => Tensor::zeros(table.shape(), dtype, device)?.index_add(&ids.flatten_all()?, &rows, 0)?,
        };
        Ok((Some(sums.to_dtype(table.dtype())?), None))
    }
}

/// A table of zeros with each of `rows` (N, C) added to the row of its id, in the order of positions: candle's `index_add` without
/// its copy of the table.
fn sum_rows<T: WithDType>(table: &Shape, ids: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let (vocab_size, d_model) = table.dims2()?;
    let (ids, rows) = (ids.flatten_all()?, rows.contiguous()?);
    let ((ids, ids_layout), (rows, rows_layout)) = (ids.storage_and_layout(), rows.storage_and_layout());
    let (Storage::Cpu(CpuStorage::U32(ids)), Storage::Cpu(rows)) = (&*ids, &*rows) else {
        candle_core::bail!("token-embedding needs u32 ids and gradients on the CPU")
    };
    let ids = &ids[ids_layout.start_offset()..][..ids_layout.shape().elem_count()];
    let rows = &T::cpu_storage_as_slice(rows)?[rows_layout.start_offset()..];
    let mut sums = vec![T::zero(); vocab_size * d_model];
    for (id, row) in ids.iter().zip(rows.chunks_exact(d_model.max(1))).filter(|(id, _)| **id != NO_TOKEN) {
        let sum = &mut sums[*id as usize * d_model..][..d_model];
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += *value);
    }
    Tensor::from_vec(sums, table, &Device::Cpu)
}

/// Copies the rows `ids` of `table` into a new, uninitialised buffer.
fn gather<T: WithDType, I: Id>(table: &[T], ids: &[I], d_model: usize, scale: Option<f64>) -> Result<Vec<T>> {
    let len = ids.len() * d_model;
    let mut out: Vec<T> = Vec::with_capacity(len);
    if len == 0 {
        return Ok(out);
    }
    let rows = table.len() / d_model;
    let scale = scale.map(T::from_f64);
    // An id out of range is recorded, and reported after the loop: the guard costs nothing.
    let bad = AtomicUsize::new(usize::MAX);
    // Prefetching helps when rows come from memory, not for a few rows in cache.
    let ahead = if len * size_of::<T>() < PREFETCH_BYTES { usize::MAX / 2 } else { PREFETCH_ROWS };
    let copy = |ids: &[I], space: &mut [MaybeUninit<T>]| {
        for (i, (id, out)) in ids.iter().zip(space.chunks_exact_mut(d_model)).enumerate() {
            let next = ids.get(i + ahead).and_then(|id| id.row()).filter(|row| *row < rows);
            if let Some(row) = next {
                tallow_text::support::prefetch(&table[row * d_model..], 256);
            }
            match id.row() {
                Some(row) if row < rows => {
                    let row = &table[row * d_model..(row + 1) * d_model];
                    match scale {
                        None => _ = out.write_copy_of_slice(row),
                        Some(scale) => out.iter_mut().zip(row).for_each(|(out, value)| _ = out.write(*value * scale)),
                    }
                }
                none => {
                    out.fill(MaybeUninit::new(T::zero()));
                    if let Some(row) = none {
                        bad.fetch_min(row.min(usize::MAX - 1), Ordering::Relaxed);
                    }
                }
            }
        }
    };
    let space = &mut out.spare_capacity_mut()[..len];
    if size_of_val(space) < PARALLEL_BYTES {
        copy(ids, space);
    } else {
        advise_huge_pages(space);
        let rows_a_task = (TASK_BYTES / size_of::<T>() / d_model).max(1);
        let tasks = ids.chunks(rows_a_task).zip(space.chunks_mut(rows_a_task * d_model));
        parallel::for_each(tasks, |(ids, space)| copy(ids, space));
    }
    // SAFETY: every one of the first `len` elements was written: the tasks cover `ids` and `space` exactly, and
    // `copy` writes each chunk of `d_model` elements in each of its branches.
    unsafe { out.set_len(len) };
    match bad.into_inner() {
        usize::MAX => Ok(out),
        index => Err(candle_core::Error::InvalidIndex { op: "token-embedding", index, size: rows }),
    }
}
