//! Updates by candle's operations, for devices without kernels of tallow: simple rather than fast. Only the affected rows are computed,
//! and nothing of the table's size is allocated for them.

use candle_core::{DType, Tensor, Var};

use super::{Moments, Place};
use crate::Result;
use crate::optim::Replay;
use crate::optim::history::{History, Step};
use crate::optim::rule::Update;
use crate::rows::{Grouped, RowGradients, RowTable};

/// Weights on Metal, and f64 weights on CUDA. Moments are f32 (f64 for f64).
pub(in crate::optim) struct Operations(Moments);

impl Operations {
    pub(in crate::optim) fn new(weight: &Tensor, moments: bool) -> Result<Self> {
        let dtype = if weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        Ok(Operations(Moments::new(weight, dtype, moments)?))
    }
}

impl Place for Operations {
    fn dense(&mut self, weight: &Tensor, grad: &Tensor, update: &Update) -> Result<()> {
        let new = match (update, &mut self.0.0) {
            (Update::Sgd { lr }, _) => (weight - (grad * *lr)?)?,
            (Update::AdamW(_), None) => return Ok(()),
            (Update::AdamW(step), Some([m, v])) => {
                let dtype = m.dtype();
                let step = if dtype == DType::F64 { *step } else { step.to_f32().to_f64() };
                let all = [weight.to_dtype(dtype)?, m.clone(), v.clone()];
                let [theta, new_m, new_v] = after(all, Some(&grad.to_dtype(dtype)?), &step)?;
                (*m, *v) = (new_m, new_v);
                theta.to_dtype(weight.dtype())?
            }
        };
        Ok(Var::from_tensor(weight)?.set(&new)?)
    }

    fn rows(&mut self, weight: &Tensor, grouped: Grouped, update: &Update) -> Result<()> {
        let RowGradients { rows, values } = grouped.sum()?;
        if rows.is_empty() {
            return Ok(());
        }
        match (update, &self.0.0) {
            (Update::AdamW(_), None) => Ok(()),
            (Update::AdamW(step), Some([m, v])) => {
                change([weight, m, v], &rows, |taken| after(taken, Some(&values), &step.to_f32().to_f64()))
            }
            (Update::Sgd { lr }, _) => change([weight], &rows, |[old]| Ok([(old - (values * *lr)?)?])),
        }
    }

    /// Replays rows with the same deferred steps together, step by step.
    fn replay(&mut self, weight: &Tensor, due: &[(u32, u32)], history: &mut History, replay: Replay) -> Result<()> {
        let Some([m, v]) = &self.0.0 else { return Ok(()) };
        let mut due = due.to_vec();
        due.sort_by_key(|(row, last)| (*last, *row));
        for group in due.chunk_by(|a, b| a.1 == b.1) {
            let rows: Vec<u32> = group.iter().map(|(row, _)| *row).collect();
            let (last, now) = (group[0].1 as usize, history.now());
            let full = match replay {
                Replay::Truncated { steps } if history.can_jump(last + steps, now) => last + steps,
                _ => now,
            };
            change([weight, m, v], &rows, |mut taken| {
                for entry in &history.entries[last + 1..=full] {
                    taken = after(taken, None, &entry.step.to_f64())?;
                    // A bf16 weight is rounded after every step, as by the dense optimizer.
                    taken[0] = taken[0].to_dtype(weight.dtype())?.to_dtype(DType::F32)?;
                }
                if full < now {
                    for (rows, product) in taken.iter_mut().zip(history.products(full, now)) {
                        *rows = (&*rows * f64::from(product))?;
                    }
                }
                Ok(taken)
            })?;
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
        self.0.on_host()
    }

    fn set_moments(&mut self, new: [&Tensor; 2]) -> Result<()> {
        self.0.set(new)
    }
}

/// Weight and moments after a step with a gradient or without: candle's own sequence of operations.
fn after([theta, m, v]: [Tensor; 3], grad: Option<&Tensor>, s: &Step<f64>) -> candle_core::Result<[Tensor; 3]> {
    let (mut m, mut v) = ((m * s.beta1)?, (v * s.beta2)?);
    if let Some(g) = grad {
        m = (m + (g * s.one_minus_beta1)?)?;
        v = (v + (g.sqr()? * s.one_minus_beta2)?)?;
    }
    let (m_hat, v_hat) = ((&m * s.scale_m)?, (&v * s.scale_v)?);
    let adjusted = (m_hat / (v_hat.sqrt()? + s.eps)?)?;
    let theta = ((theta * s.decay)? - (adjusted * s.lr)?)?;
    Ok([theta, m, v])
}

/// Replaces some rows of tensors (V, C) by the result of `f`, which gets them in f32.
fn change<const N: usize>(
    all: [&Tensor; N],
    rows: &[u32],
    f: impl FnOnce([Tensor; N]) -> candle_core::Result<[Tensor; N]>,
) -> Result<()> {
    let index = Tensor::from_slice(rows, rows.len(), all[0].device())?;
    let taken: candle_core::Result<Vec<Tensor>> =
        all.iter().map(|all| all.index_select(&index, 0)?.to_dtype(DType::F32)).collect();
    let Ok(taken) = taken?.try_into() else { return Ok(()) }; // never: there are N of them
    for (all, rows) in all.into_iter().zip(f(taken)?) {
        let index = index.unsqueeze(1)?.broadcast_as(rows.shape())?.contiguous()?;
        all.scatter_set(&index, &rows.to_dtype(all.dtype())?, 0)?;
    }
    Ok(())
}
