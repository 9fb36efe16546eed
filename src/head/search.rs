//! The rows with the largest logits for each position.

use candle_core::{DType, Device, Tensor};

use super::{Head, Hidden};
use crate::{Error, Result};

/// Logits of a block.
const BLOCK_LOGITS: usize = 1 << 20;

/// [`Head::top_k`], on detached inputs.
pub(super) fn top_k(head: &Head, hidden: &Hidden, k: usize) -> Result<(Tensor, Tensor)> {
    let vocab_size = head.vocab_size();
    if k == 0 || k > vocab_size {
        return Err(Error::Config(format!("top_k with k = {k}: k must be from 1 to {vocab_size}")));
    }
    let positions = hidden.rows.dim(0)?;
    // For each position the largest logits so far, the largest first.
    let mut best: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(k + 1); positions];
    let rows_a_block = (BLOCK_LOGITS / positions.max(1)).clamp(1, vocab_size);
    for first in (0..vocab_size).step_by(rows_a_block) {
        let rows = rows_a_block.min(vocab_size - first);
        let logits = head.logits_of(&hidden.rows, first, rows)?;
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
    let dims = [&hidden.dims[..], &[k]].concat();
    let (values, ids): (Vec<f32>, Vec<u32>) = best.into_iter().flatten().unzip();
    let device = head.weight.device();
    Ok((Tensor::from_vec(values, &dims[..], device)?, Tensor::from_vec(ids, &dims[..], device)?))
}
