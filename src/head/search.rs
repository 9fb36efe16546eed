//! The best rows of a vocabulary for each position.

use candle_core::{DType, Device, Tensor};

use super::{Head, check_soft_cap};
use crate::{Error, Result};

/// Logits that are looked through at a time.
const BLOCK_LOGITS: usize = 1 << 20;

/// The `k` largest logits of every position and their ids, the largest first; of equal ones the lower id first.
///
/// The vocabulary goes by in blocks, so that nothing of size N·V is built. No gradient goes through it.
///
/// # Shapes
/// - hidden: (…, C); weight: (V, C); bias: (V), f32, f64, bf16 or f16
/// - output: logits (…, k), f32, and ids (…, k), u32, on hidden's device
///
/// # Errors
/// [`Error::Config`]: k is 0 or above V, shapes, dtypes or devices that do not fit together, a soft cap that is none, or a logit
/// that is not a number.
///
/// # Cost
/// 2·N·V·C operations, up to k moves for each logit among the best so far (meant for small k), and the logits of a block (4 MiB),
/// which a GPU sends to the host.
pub fn top_k(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    k: usize,
    soft_cap: Option<f64>,
) -> Result<(Tensor, Tensor)> {
    check_soft_cap(soft_cap)?;
    let head = Head::new(hidden, weight, bias)?;
    if k == 0 || k > head.vocab_size {
        return Err(Error::Config(format!("the best {k} of {} rows: ask for 1 to {0}", head.vocab_size)));
    }
    let positions = head.hidden.dim(0)?;
    // By position: the best so far, the best first.
    let mut best: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(k + 1); positions];
    let rows_a_block = (BLOCK_LOGITS / positions.max(1)).clamp(1, head.vocab_size);
    let hidden = head.hidden.detach();
    for first in (0..head.vocab_size).step_by(rows_a_block) {
        let rows = rows_a_block.min(head.vocab_size - first);
        let logits = head.logits(&hidden, first, rows, soft_cap)?.detach();
        let logits: Vec<f32> = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        for (best, logits) in best.iter_mut().zip(logits.chunks_exact(rows)) {
            for (id, logit) in (first as u32..).zip(logits) {
                let worst = if best.len() < k { f32::NEG_INFINITY } else { best[k - 1].0 };
                if *logit <= worst && best.len() == k {
                    continue;
                }
                if logit.is_nan() {
                    return Err(Error::Config(format!("the logit of row {id} is not a number")));
                }
                let at = best.partition_point(|(other, _)| other >= logit);
                best.insert(at, (*logit, id));
                best.truncate(k);
            }
        }
    }
    let dims = [&head.dims[..], &[k]].concat();
    let (values, ids): (Vec<f32>, Vec<u32>) = best.into_iter().flatten().unzip();
    let device = head.weight.device();
    Ok((Tensor::from_vec(values, &dims[..], device)?, Tensor::from_vec(ids, &dims[..], device)?))
}
