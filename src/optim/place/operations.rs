//! Updates made of candle's operations, for devices whose memory neither the host nor our kernels reach: correct before fast. Only the
//! rows in question are computed; nothing of the table's size is allocated for them.

use candle_core::{DType, Device, Tensor, Var};

use super::Place;
use crate::Result;
use crate::optim::Replay;
use crate::optim::history::{History, Step};
use crate::optim::rule::Update;
use crate::rows::{Grouped, RowGradients, RowTable};

/// Weights on Metal, and those of f64 on CUDA. Moments are f32, those of f64 weights f64.
pub(in crate::optim) struct Operations(Option<[Tensor; 2]>);

impl Operations {
    pub(in crate::optim) fn new(weight: &Tensor, moments: bool) -> Result<Self> {
        let dtype = if weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let zeros = || Tensor::zeros(weight.shape(), dtype, weight.device());
        Ok(Operations(moments.then(|| Ok::<_, candle_core::Error>([zeros()?, zeros()?])).transpose()?))
    }
}

impl Place for Operations {
    fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()> {
        let new = match (update, &mut self.0) {
            (Update::Sgd { lr }, _) => (weight - (grad * *lr)?)?,
            (Update::AdamW(_), None) => return Ok(()),
            (Update::AdamW(step), Some([m, v])) => {
                // In the moments' dtype.
                let (dtype, step) = (m.dtype(), step.of(m.dtype()));
                (*m, *v) = moments(m, v, Some(&grad.to_dtype(dtype)?), &step)?;
                update_theta(&weight.to_dtype(dtype)?, m, v, &step)?.to_dtype(weight.dtype())?
            }
        };
        Ok(Var::from_tensor(weight)?.set(&new)?)
    }

    fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()> {
        let RowGradients { rows, values } = grouped.sum()?;
        if rows.is_empty() {
            return Ok(());
        }
        match (update, &self.0) {
            (Update::AdamW(_), None) => Ok(()),
            (Update::AdamW(step), Some([m, v])) => {
                let mut taken = Taken::new(weight, m, v, &rows)?;
                let step = step.to_f32().to_f64();
                (taken.m, taken.v) = moments(&taken.m, &taken.v, Some(&values), &step)?;
                taken.theta = update_theta(&taken.theta, &taken.m, &taken.v, &step)?;
                Ok(taken.put_back()?)
            }
            (Update::Sgd { lr }, _) => {
                let index = Tensor::from_slice(&rows, rows.len(), weight.device())?;
                let old = weight.index_select(&index, 0)?.to_dtype(DType::F32)?;
                let new = (old - (values * *lr)?)?.to_dtype(weight.dtype())?;
                Ok(weight.scatter_set(&index.unsqueeze(1)?.broadcast_as(new.shape())?.contiguous()?, &new, 0)?)
            }
        }
    }

    /// Rows that miss the same steps together, step by step.
    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, replay: Replay) -> Result<()> {
        let Some([m, v]) = &self.0 else { return Ok(()) };
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

    fn add(&self, dense: &Tensor, table: &RowTable) -> Result<()> {
        super::waiting(dense, table)?.into_iter().try_for_each(|(ids, grad)| {
            let ids = Tensor::from_slice(&ids, ids.len(), dense.device())?;
            let sum = dense.index_add(&ids, &grad.to_dtype(dense.dtype())?, 0)?;
            Ok(dense.slice_set(&sum, 0, 0)?)
        })
    }

    fn moments(&self, _weight: &Tensor) -> Result<Option<[Tensor; 2]>> {
        let Some([m, v]) = &self.0 else { return Ok(None) };
        Ok(Some([m.to_device(&Device::Cpu)?, v.to_device(&Device::Cpu)?]))
    }

    fn set_moments(&mut self, new: [&Tensor; 2]) -> Result<()> {
        let Some([m, v]) = &mut self.0 else { return Ok(()) };
        // Copies: rows of these are changed in place.
        let copy = |new: &Tensor| new.to_dtype(m.dtype())?.to_device(m.device())?.force_contiguous();
        let (new_m, new_v) = (copy(new[0])?, copy(new[1])?);
        (*m, *v) = (new_m, new_v);
        Ok(())
    }
}

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
