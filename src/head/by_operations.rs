//! Losses and gradients by candle's operations, one chunk of tokens at a time: for devices other than the CPU, and for f64.

use candle_core::{DType, Result, Tensor};

use super::{CrossEntropyConfig, Grads, Wanted};
use crate::NO_TOKEN;
use crate::collective::Shard;

/// Minimum and maximum number of tokens in a chunk, and the number of chunks between these limits, as in `fused`.
const TOKENS: (usize, usize) = (64, 256);
const CHUNKS: usize = 16;

/// Hidden states (n, C) of the tokens with a target, and the head.
pub(super) struct Rows<'a> {
    pub(super) hidden: &'a Tensor,
    pub(super) weight: &'a Tensor,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) soft_cap: Option<f64>,
    /// The whole weight, if other ranks have the rest of it.
    pub(super) shard: Option<&'a Shard>,
}

/// Losses (n), n at least 1. With an upstream gradient also the gradients of Σ upstream · loss. Targets are rows of the weight, or
/// [`NO_TOKEN`] if another rank has the row. Products are in the weight's dtype, everything else in f32 (f64 for f64).
pub(super) fn run(
    rows: &Rows,
    targets: &[u32],
    cfg: &CrossEntropyConfig,
    upstream: Option<&[f64]>,
    wanted: Wanted,
) -> Result<(Tensor, Grads)> {
    let (device, dtype) = (rows.weight.device(), rows.weight.dtype());
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let vocab_size = rows.shard.map_or(rows.weight.dim(0)?, |shard| shard.vocab_size());
    let smoothing = cfg.label_smoothing;
    let chunk = (targets.len() / CHUNKS).clamp(TOKENS.0, TOKENS.1);
    let weight = &rows.weight.contiguous()?;
    let mut losses = Vec::new();
    let mut of_hidden = Vec::new();
    let mut of_weight: Option<Tensor> = None;
    let mut of_bias: Option<Tensor> = None;
    for first in (0..targets.len()).step_by(chunk) {
        let n = chunk.min(targets.len() - first);
        let hidden = rows.hidden.narrow(0, first, n)?.contiguous()?;
        let targets = &targets[first..first + n];
        let y: Vec<u32> = targets.iter().map(|y| if *y == NO_TOKEN { 0 } else { *y }).collect();
        let y = Tensor::from_vec(y, (n, 1), device)?;
        // 1 where the target's row is here, 0 where another rank has it.
        let here = |_| {
            let here: Vec<f32> = targets.iter().map(|y| f32::from(*y != NO_TOKEN)).collect();
            Tensor::from_vec(here, (n, 1), device)?.to_dtype(wide)
        };
        let here = rows.shard.map(here).transpose()?;
        let mut z = hidden.matmul(&weight.t()?)?.to_dtype(wide)?;
        if let Some(bias) = rows.bias {
            z = z.broadcast_add(&bias.to_dtype(wide)?)?;
        }
        if let Some(cap) = rows.soft_cap {
            z = ((z / cap)?.tanh()? * cap)?;
        }
        let mut max = z.max_keepdim(1)?;
        if let Some(shard) = rows.shard {
            max = shard.max(&max)?;
        }
        let exp = z.broadcast_sub(&max)?.exp()?;
        let mut exp_sum = exp.sum_keepdim(1)?;
        let mut target = z.gather(&y, 1)?;
        let mut z_sum = if smoothing != 0.0 { z.sum_keepdim(1)? } else { target.zeros_like()? };
        if let (Some(shard), Some(here)) = (rows.shard, &here) {
            let sums = shard.sum(&Tensor::cat(&[exp_sum, (target * here)?, z_sum], 1)?)?;
            [exp_sum, target, z_sum] = [sums.narrow(1, 0, 1)?, sums.narrow(1, 1, 1)?, sums.narrow(1, 2, 1)?];
        }
        let lse = (exp_sum.log()? + max)?;
        let mut loss = (&lse - (target * (1.0 - smoothing))?)?;
        if smoothing != 0.0 {
            loss = (loss - (z_sum * (smoothing / vocab_size as f64))?)?;
        }
        if cfg.z_loss != 0.0 {
            loss = (loss + (lse.sqr()? * cfg.z_loss)?)?;
        }
        losses.push(loss.flatten_all()?);
        let Some(upstream) = upstream else { continue };
        let upstream = Tensor::from_slice(&upstream[first..first + n], (n, 1), device)?.to_dtype(wide)?;
        let factor = ((lse * (2.0 * cfg.z_loss))? + 1.0)?.div(&exp_sum)?.mul(&upstream)?;
        let mut dz = exp.broadcast_mul(&factor)?;
        if smoothing != 0.0 {
            dz = dz.broadcast_sub(&(&upstream * (smoothing / vocab_size as f64))?)?;
        }
        let of_target = (&upstream * (smoothing - 1.0))?;
        dz = dz.scatter_add(&y, &here.map_or(Ok(of_target.clone()), |here| of_target * here)?, 1)?;
        if let Some(cap) = rows.soft_cap {
            dz = (dz * (1.0 - (z / cap)?.sqr()?)?)?;
        }
        if wanted.bias {
            of_bias = sum(of_bias, dz.sum(0)?)?;
        }
        let dz = dz.to_dtype(dtype)?;
        if wanted.hidden {
            of_hidden.push(dz.matmul(weight)?);
        }
        if wanted.weight {
            of_weight = sum(of_weight, dz.t()?.matmul(&hidden)?.to_dtype(wide)?)?;
        }
    }
    let of_hidden = if of_hidden.is_empty() { None } else { Some(Tensor::cat(&of_hidden, 0)?) };
    let narrow = |sum: Option<Tensor>| sum.map(|sum| sum.to_dtype(dtype)).transpose();
    let grads = [of_hidden, narrow(of_weight)?, narrow(of_bias)?];
    Ok((Tensor::cat(&losses, 0)?, grads))
}

fn sum(so_far: Option<Tensor>, more: Tensor) -> Result<Option<Tensor>> {
    Ok(Some(match so_far {
        Some(so_far) => (so_far + more)?,
        None => more,
    }))
}
