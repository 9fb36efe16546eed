//! The same updates for devices whose memory the host cannot reach: by kernels.cu on CUDA, else made of candle's operations,
//! correct before fast. Only the rows in question are computed; nothing of the table's size is allocated for them.

use super::Replay;
use super::history::{History, Step};
#[cfg(feature = "cuda")]
use super::on_cuda;
use crate::Result;
use candle_core::{DType, Tensor, Var};

/// candle's own sequence of operations.
fn moments(m: &Tensor, v: &Tensor, grad: Option<&Tensor>, s: &Step<f64>) -> candle_core::Result<(Tensor, Tensor)> {
    let decayed = ((m * s.beta1)?, (v * s.beta2)?);
    let Some(g) = grad else { return Ok(decayed) };
    let m = (decayed.0 + (g * s.one_minus_beta1)?)?;
    let v = (decayed.1 + (g.sqr()? * s.one_minus_beta2)?)?;
    Ok((m, v))
}

fn update_theta(theta: &Tensor, m: &Tensor, v: &Tensor, s: &Step<f64>) -> candle_core::Result<Tensor> {
    let (m_hat, v_hat) = ((m * s.scale_m)?, (v * s.scale_v)?);
    let adjusted = (m_hat / (v_hat.sqrt()? + s.eps)?)?;
    (theta * s.decay)? - (adjusted * s.lr)?
}

/// One dense step, in the moments' dtype.
pub(super) fn step_dense(
    weight: &Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    step: &Step<f64>,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if on_cuda::takes(weight) {
        return Ok(on_cuda::step_dense(weight, grad, &on_cuda::Rule::AdamW { m, v, step: &step.to_f32() })?);
    }
    let (dtype, step) = (m.dtype(), step.of(m.dtype()));
    (*m, *v) = moments(m, v, Some(&grad.to_dtype(dtype)?), &step)?;
    let theta = update_theta(&weight.to_dtype(dtype)?, m, v, &step)?;
    Ok(Var::from_tensor(weight)?.set(&theta.to_dtype(weight.dtype())?)?)
}

/// Some rows of the weight and the moments, taken out and put back.
struct Taken<'a> {
    all: [&'a Tensor; 3],
    index: Tensor,
    theta: Tensor,
    m: Tensor,
    v: Tensor,
}

impl<'a> Taken<'a> {
    fn new(weight: &'a Tensor, m: &'a Tensor, v: &'a Tensor, rows: &[u32]) -> candle_core::Result<Self> {
        let index = Tensor::from_slice(rows, rows.len(), weight.device())?;
        let take = |all: &Tensor| all.index_select(&index, 0)?.to_dtype(DType::F32);
        let (theta, m_rows, v_rows) = (take(weight)?, take(m)?, take(v)?);
        Ok(Taken { all: [weight, m, v], theta, m: m_rows, v: v_rows, index })
    }

    fn put_back(&self) -> candle_core::Result<()> {
        let index = self.index.unsqueeze(1)?.broadcast_as(self.theta.shape())?.contiguous()?;
        for (all, rows) in self.all.into_iter().zip([&self.theta, &self.m, &self.v]) {
            all.scatter_set(&index, &rows.to_dtype(all.dtype())?, 0)?;
        }
        Ok(())
    }
}

/// One step on rows that have a gradient: `values` (U, C) f32.
pub(super) fn update(
    weight: &Tensor,
    m: &Tensor,
    v: &Tensor,
    rows: &[u32],
    values: &Tensor,
    step: &Step,
) -> Result<()> {
    let mut taken = Taken::new(weight, m, v, rows)?;
    let step = step.to_f64();
    (taken.m, taken.v) = moments(&taken.m, &taken.v, Some(values), &step)?;
    taken.theta = update_theta(&taken.theta, &taken.m, &taken.v, &step)?;
    Ok(taken.put_back()?)
}

/// Replays what rows owe: rows that owe the same steps together, step by step.
pub(super) fn replay(
    weight: &Tensor,
    m: &Tensor,
    v: &Tensor,
    due: &[(u32, u32)],
    history: &History,
    replay: Replay,
) -> Result<()> {
    let mut due = due.to_vec();
    due.sort_by_key(|(row, last)| (*last, *row));
    for group in due.chunk_by(|a, b| a.1 == b.1) {
        let rows: Vec<u32> = group.iter().map(|(row, _)| *row).collect();
        let mut taken = Taken::new(weight, m, v, &rows)?;
        let (last, now) = (group[0].1 as usize, history.now());
        let full = match replay {
            Replay::Truncated { steps } if history.can_jump(last + steps, now) => last + steps,
            _ => now,
        };
        for entry in &history.entries[last + 1..=full] {
            let step = entry.step.to_f64();
            (taken.m, taken.v) = moments(&taken.m, &taken.v, None, &step)?;
            let theta = update_theta(&taken.theta, &taken.m, &taken.v, &step)?;
            // A bf16 weight is rounded after every step, as the dense optimizer would.
            taken.theta = theta.to_dtype(weight.dtype())?.to_dtype(DType::F32)?;
        }
        if full < now {
            let [decay, beta1, beta2] = history.products(full, now).map(f64::from);
            taken.theta = (taken.theta * decay)?;
            taken.m = (taken.m * beta1)?;
            taken.v = (taken.v * beta2)?;
        }
        taken.put_back()?;
    }
    Ok(())
}
