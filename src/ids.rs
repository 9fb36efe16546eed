//! Ids: the mark for "no token", and the check on the host before anything runs on a device.
//!
//! This module depends only on the error type.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use crate::{Error, Result};

pub use tallow_text::NO_TOKEN;

/// Ids on the host. Ids on a device are copied, which is a sync.
pub(crate) fn on_host(ids: &Tensor) -> candle_core::Result<Tensor> {
    to_device(ids, &Device::Cpu)
}

/// Contiguous ids on this device. Only the elements of a view are copied; candle would copy its whole storage.
pub(crate) fn to_device(ids: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    if ids.device().same_device(device) {
        ids.contiguous()
    } else if ids.elem_count() == 0 {
        Tensor::zeros(ids.shape(), ids.dtype(), device)
    } else {
        ids.force_contiguous()?.to_device(device)
    }
}

/// Checks every id, on the host, against a table of `rows` rows. Valid are also `padding_id`, [`NO_TOKEN`] (u32 or i64), and in i64
/// candle's own mark i64::MAX.
pub(crate) fn check(
    ids: &Tensor,
    rows: usize,
    padding_id: Option<u32>,
    names: impl Fn(u32) -> Option<String>,
) -> Result<()> {
    let ids = ids.contiguous()?;
    let (storage, layout) = ids.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().unwrap_or((0, 0));
    let bad = match &*storage {
        // With 256 rows every u8 is valid.
        Storage::Cpu(CpuStorage::U8(ids)) => {
            find(&ids[start..end], |id| usize::from(id) >= rows && Some(u32::from(id)) != padding_id)
        }
        Storage::Cpu(CpuStorage::U32(ids)) => {
            find(&ids[start..end], |id| id as usize >= rows && id != NO_TOKEN && Some(id) != padding_id)
        }
        Storage::Cpu(CpuStorage::I64(ids)) => find(&ids[start..end], |id| {
            let row = usize::try_from(id).is_ok_and(|id| id < rows);
            !row && id != i64::MAX && id != i64::from(NO_TOKEN) && Some(id) != padding_id.map(i64::from)
        }),
        _ => return Err(Error::IdDType { dtype: ids.dtype() }),
    };
    let Some((at, id)) = bad else { return Ok(()) };
    Err(Error::IdOutOfRange {
        id,
        position: unravel(at, ids.dims()),
        rows,
        token: u32::try_from(id).ok().and_then(names),
    })
}

fn find<T: Copy + Into<i64>>(ids: &[T], bad: impl Fn(T) -> bool) -> Option<(usize, i64)> {
    let at = ids.iter().position(|id| bad(*id))?;
    Some((at, ids[at].into()))
}

/// The index of element `at`, one number per dimension.
fn unravel(mut at: usize, dims: &[usize]) -> Vec<usize> {
    let mut position = vec![0; dims.len()];
    for (index, dim) in position.iter_mut().zip(dims).rev() {
        (*index, at) = (at % dim, at / dim);
    }
    position
}

/// Ids as the look-up needs them: contiguous, and with `padding_id` replaced by [`NO_TOKEN`], which makes them u32. Without a
/// `padding_id`, contiguous ids are not copied.
pub(crate) fn normalise(ids: &Tensor, padding_id: Option<u32>) -> candle_core::Result<Tensor> {
    let ids = ids.contiguous()?;
    let Some(padding_id) = padding_id else { return Ok(ids) };
    // The cast keeps u8 255 different from padding, and turns i64::MAX into NO_TOKEN.
    let ids = ids.to_dtype(DType::U32)?;
    let padding = Tensor::new(NO_TOKEN, ids.device())?.broadcast_as(ids.shape())?;
    ids.eq(padding_id)?.where_cond(&padding, &ids)
}
