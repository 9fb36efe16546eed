//! What an id may be: the mark for "no token", and one check on the host, before anything runs on a device.
//!
//! Everything may use this module; it uses nothing but the error.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use crate::{Error, Result};

pub use tallow_text::NO_TOKEN;

/// Ids where the host can read them. Those on a device are copied, which waits for that device.
pub(crate) fn on_host(ids: &Tensor) -> candle_core::Result<Tensor> {
    to_device(ids, &Device::Cpu)
}

/// Contiguous ids on this device. Of a view only what it shows is copied; candle would copy all that it is a view of.
pub(crate) fn to_device(ids: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    if ids.device().same_device(device) {
        ids.contiguous()
    } else if ids.elem_count() == 0 {
        Tensor::zeros(ids.shape(), ids.dtype(), device)
    } else {
        ids.force_contiguous()?.to_device(device)
    }
}

/// Checks every id, on the host, against a table of `rows` rows. [`NO_TOKEN`] passes (also as an i64, where candle's own
/// mark i64::MAX passes too), and so does `padding_id`.
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
        // Every u8 has a row once there are 256.
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

/// The index, one number a dimension, of element `at`.
fn unravel(mut at: usize, dims: &[usize]) -> Vec<usize> {
    let mut position = vec![0; dims.len()];
    for (index, dim) in position.iter_mut().zip(dims).rev() {
        (*index, at) = (at % dim, at / dim);
    }
    position
}

/// Ids as the look-up wants them: contiguous, padding as [`NO_TOKEN`], which makes them u32. No copy where they already
/// are so.
pub(crate) fn normalise(ids: &Tensor, padding_id: Option<u32>) -> candle_core::Result<Tensor> {
    let ids = ids.contiguous()?;
    let Some(padding_id) = padding_id else { return Ok(ids) };
    // The cast keeps u8 255 apart from padding, and turns i64::MAX into NO_TOKEN.
    let ids = ids.to_dtype(DType::U32)?;
    let padding = Tensor::new(NO_TOKEN, ids.device())?.broadcast_as(ids.shape())?;
    ids.eq(padding_id)?.where_cond(&padding, &ids)
}
