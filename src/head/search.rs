//! The rows with the largest logits for each position.

use candle_core::{DType, Device, Tensor};

use super::{Head, Hidden};
use crate::collective::Shard;
use crate::{Error, NO_TOKEN, Result};

/// Logits of a block.
const BLOCK_LOGITS: usize = 1 << 20;

/// [`Head::top_k`], on detached inputs.
pub(super) fn top_k(head: &Head, hidden: &Hidden, k: usize) -> Result<(Tensor, Tensor)> {
    let vocab_size = head.vocab_size();
    if k == 0 || k > vocab_size {
        return Err(Error::Config(format!("top_k with k = {k}: k must be from 1 to {vocab_size}")));
    }
    let mut best = of_rows_here(head, hidden, k);
    if let Some(shard) = head.shard() {
        // A rank that failed says so before the others wait for its rows.
        if shard.any([best.is_err()])? == [true] && best.is_ok() {
            let reason = "another rank found a logit that is not a number".to_string();
            return Err(Error::Collective { operation: "top_k", reason });
        }
        best = of_all_ranks(best?, k, shard);
    }
    let dims = [&hidden.dims[..], &[k]].concat();
    let (values, ids): (Vec<f32>, Vec<u32>) = best?.into_iter().flatten().unzip();
    let device = head.weight.device();
    Ok((Tensor::from_vec(values, &dims[..], device)?, Tensor::from_vec(ids, &dims[..], device)?))
}

/// For each position the `k` best (logit, id) of the rows here.
fn of_rows_here(head: &Head, hidden: &Hidden, k: usize) -> Result<Vec<Vec<(f32, u32)>>> {
    let (positions, here) = (hidden.rows.dim(0)?, head.rows());
    let id_of = |row: usize| head.shard().map_or(row, |shard| shard.stride().row(row)) as u32;
    // For each position the largest logits so far, the largest first.
    let mut best: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(k + 1); positions];
    let rows_a_block = (BLOCK_LOGITS / positions.max(1)).clamp(1, here.max(1));
    for first in (0..here).step_by(rows_a_block) {
        let rows = rows_a_block.min(here - first);
        let logits = head.logits_of(&hidden.rows, first, rows)?;
        let logits: Vec<f32> = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        for (best, logits) in best.iter_mut().zip(logits.chunks_exact(rows)) {
            for (row, logit) in (first..).zip(logits) {
                let id = id_of(row);
                keep(best, k, (*logit, id))?;
            }
        }
    }
    Ok(best)
}

/// Keeps a logit if it is one of the `k` best. Among equal logits the lower id is first.
fn keep(best: &mut Vec<(f32, u32)>, k: usize, (logit, id): (f32, u32)) -> Result<()> {
    let worst = if best.len() < k { f32::NEG_INFINITY } else { best[k - 1].0 };
    if logit < worst {
        return Ok(());
    }
    if logit.is_nan() {
        return Err(Error::Config(format!("the logit of row {id} is not a number")));
    }
    let at = best.partition_point(|(other, other_id)| *other > logit || (*other == logit && *other_id < id));
    best.insert(at, (logit, id));
    best.truncate(k);
    Ok(())
}

/// The best of all ranks, from the best of each.
fn of_all_ranks(own: Vec<Vec<(f32, u32)>>, k: usize, shard: &Shard) -> Result<Vec<Vec<(f32, u32)>>> {
    // A rank with fewer rows than `k` fills up with NO_TOKEN.
    let padded =
        own.iter().flat_map(|best| (0..k).map(|at| best.get(at).copied().unwrap_or((f32::NEG_INFINITY, NO_TOKEN))));
    let (values, ids): (Vec<f32>, Vec<u32>) = padded.unzip();
    let values = shard.concatenate(&Tensor::from_vec(values, (own.len(), k), &Device::Cpu)?)?.to_vec2::<f32>()?;
    let ids = shard.concatenate(&Tensor::from_vec(ids, (own.len(), k), &Device::Cpu)?)?.to_vec2::<u32>()?;
    let join = |(values, ids): (Vec<f32>, Vec<u32>)| {
        let mut best = Vec::with_capacity(k + 1);
        let found = values.into_iter().zip(ids).filter(|(_, id)| *id != NO_TOKEN);
        found.into_iter().try_for_each(|candidate| keep(&mut best, k, candidate)).map(|()| best)
    };
    values.into_iter().zip(ids).map(join).collect()
}
