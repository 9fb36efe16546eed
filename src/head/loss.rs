//! The loss as one candle operation. Loss and gradients are computed first; backward passes the gradients to candle.

use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Device, InplaceOp1, Layout, MetalStorage, Shape, Storage, Tensor,
};

use super::fused::{self, Problem};
use super::{CrossEntropyConfig, Grads, Head, Hidden, Reduction, Wanted, by_operations};
use crate::collective::{Shard, checksum};
use crate::rows::RowTable;
use crate::support::parallel;
use crate::{Error, NO_TOKEN, Result, gradients};

pub(super) fn cross_entropy(
    head: &Head,
    hidden: &Hidden,
    targets: &Tensor,
    cfg: &CrossEntropyConfig,
) -> Result<Tensor> {
    let targets = hidden.targets(targets, head.vocab_size())?;
    let dims = &hidden.dims;
    let (mut hidden, mut weight, mut bias) = (hidden.rows.clone(), head.weight.clone(), head.bias.clone());
    if hidden.device().is_cpu() && matches!(hidden.dtype(), DType::BF16 | DType::F16) {
        // Converted by candle's operations, whose backward converts the gradients back.
        hidden = hidden.to_dtype(DType::F32)?;
        weight = weight.to_dtype(DType::F32)?;
        bias = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
    }
    let mut job = Job {
        positions: (0..).zip(&targets).filter(|(_, y)| **y != NO_TOKEN).map(|(position, _)| position).collect(),
        wanted: Wanted {
            hidden: hidden.track_op(),
            weight: weight.track_op(),
            bias: bias.as_ref().is_some_and(|bias| bias.track_op()),
        },
        count: targets.len(),
        targets: targets.into_iter().filter(|y| *y != NO_TOKEN).collect(),
        biased: bias.is_some(),
        dtype: if hidden.dtype() == DType::F64 { DType::F64 } else { DType::F32 },
        cfg: *cfg,
        soft_cap: head.soft_cap,
        shard: head.shard().cloned(),
    };
    let tracked = job.wanted.hidden || job.wanted.weight || job.wanted.bias;
    let tracked_anywhere = job.meet_ranks(tracked, &hidden)?;
    let upstream = match cfg.reduction {
        Reduction::Mean => Some(1.0 / job.targets.len().max(1) as f64),
        Reduction::Sum => Some(1.0),
        Reduction::None => None,
    };
    let upstream = upstream.filter(|_| tracked_anywhere).map(|upstream| vec![upstream; job.targets.len()]);
    // A dummy bias: the operation takes three arguments.
    let bias = bias.map_or_else(|| Tensor::zeros(1, hidden.dtype(), hidden.device()), Ok)?;
    let (losses, grads) = job.run(&hidden, &weight, &bias, upstream.as_deref())?;
    let value = job.reduce(&losses, dims)?;
    if !tracked {
        return Ok(value);
    }
    let ready = Mutex::new(upstream.is_some().then_some(grads));
    Ok(hidden.apply_op3(&weight, &bias, Loss { job, value, ready, table: head.table.clone() })?)
}

struct Job {
    /// Positions with a target, and their targets.
    positions: Vec<u32>,
    targets: Vec<u32>,
    /// All positions, N.
    count: usize,
    biased: bool,
    wanted: Wanted,
    /// Dtype of the loss.
    dtype: DType,
    cfg: CrossEntropyConfig,
    soft_cap: Option<f64>,
    /// The whole weight, if other ranks have the rest of it. Then targets are rows here, or [`NO_TOKEN`].
    shard: Option<Arc<Shard>>,
}

impl Job {
    /// If the weight is split, checks that all ranks have the same targets and hidden states, and replaces targets by rows here. All
    /// ranks compute gradients if one needs them, because they compute them together. Returns whether one does.
    fn meet_ranks(&mut self, tracked: bool, hidden: &Tensor) -> Result<bool> {
        let Some(shard) = &self.shard else { return Ok(tracked) };
        let targets = [&self.positions[..], &self.targets[..]].concat();
        shard.check_same("the targets", bytemuck::cast_slice(&targets))?;
        // (A GPU's hidden states stay there; their sum tells most differences.)
        let seen = if hidden.device().is_cpu() { hidden.detach() } else { hidden.detach().sum_all()? };
        shard.check_same("the hidden states", &checksum(&seen)?.to_le_bytes())?;
        self.targets.iter_mut().for_each(|target| *target = shard.row(*target));
        let [hidden, tracked, constant] = shard.any([self.wanted.hidden, tracked, !tracked])?;
        self.wanted.hidden = hidden;
        if self.cfg.reduction == Reduction::None && tracked && constant {
            return Err(Error::Config(
                "Reduction::None with gradients on some ranks only: they compute the gradients together".to_string(),
            ));
        }
        Ok(tracked)
    }

    /// Losses of the positions with a target, and the gradients of their sum weighted by `upstream`.
    fn run(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        upstream: Option<&[f64]>,
    ) -> candle_core::Result<(Tensor, Grads)> {
        let (hidden, weight, bias) = (hidden.detach(), weight.detach(), self.biased.then(|| bias.detach()));
        let device = hidden.device().clone();
        if self.targets.is_empty() {
            // No position has a target: nothing to compute.
            let zeros = |wanted: bool, of: &Tensor| (wanted && upstream.is_some()).then(|| of.zeros_like()).transpose();
            let of_bias = bias.as_ref().map_or(Ok(None), |bias| zeros(self.wanted.bias, bias))?;
            let grads = [zeros(self.wanted.hidden, &hidden)?, zeros(self.wanted.weight, &weight)?, of_bias];
            return Ok((Tensor::zeros(0, self.dtype, &device)?, grads));
        }
        let places = Tensor::from_slice(&self.positions, self.positions.len(), &device)?;
        let all = self.positions.len() == self.count;
        let rows = if all { hidden.clone() } else { hidden.index_select(&places, 0)? };
        let (losses, mut grads) = if device.is_cpu() && hidden.dtype() == DType::F32 {
            self.run_fused(&rows, &weight, bias.as_ref(), upstream)?
        } else {
            let soft_cap = self.soft_cap;
            let shard = self.shard.as_deref();
            let rows = by_operations::Rows { hidden: &rows, weight: &weight, bias: bias.as_ref(), soft_cap, shard };
            by_operations::run(&rows, &self.targets, &self.cfg, upstream, self.wanted)?
        };
        if let (Some(shard), Some(grad)) = (&self.shard, &mut grads[0]) {
            *grad = shard.sum(grad)?;
        }
        if let Some(grad) = grads[0].take_if(|_| !all) {
            grads[0] = Some(hidden.zeros_like()?.index_add(&places, &grad, 0)?);
        }
        Ok((losses, grads))
    }

    fn run_fused(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        upstream: Option<&[f64]>,
    ) -> candle_core::Result<(Tensor, Grads)> {
        let (vocab_size, columns) = weight.dims2()?;
        let (hidden, weight) = (hidden.contiguous()?, weight.contiguous()?);
        let bias = bias.map(|bias| bias.contiguous()).transpose()?;
        let (hidden_storage, weight_storage) = (hidden.storage_and_layout(), weight.storage_and_layout());
        let bias_storage = bias.as_ref().map(|bias| bias.storage_and_layout());
        let problem = Problem {
            hidden: floats(&hidden_storage.0, hidden_storage.1)?,
            weight: floats(&weight_storage.0, weight_storage.1)?,
            bias: bias_storage.as_ref().map(|(storage, layout)| floats(storage, layout)).transpose()?,
            targets: &self.targets,
            vocab_size,
            columns,
            cfg: &self.cfg,
            soft_cap: self.soft_cap,
            shard: self.shard.as_deref(),
        };
        let (losses, grads) = problem.run(upstream, self.wanted)?;
        let fused::Gradients { hidden, weight, bias } = grads;
        let tensor = |wanted: bool, values: Vec<f32>, shape: &[usize]| {
            (wanted && upstream.is_some()).then(|| Tensor::from_vec(values, shape, &Device::Cpu)).transpose()
        };
        let grads = [
            tensor(self.wanted.hidden, hidden, &[self.targets.len(), columns])?,
            tensor(self.wanted.weight, weight, &[vocab_size, columns])?,
            tensor(self.wanted.bias, bias, &[vocab_size])?,
        ];
        Ok((Tensor::from_vec(losses, self.targets.len(), &Device::Cpu)?, grads))
    }

    /// Reduces the losses of tokens, to f32 (f64 for f64 inputs).
    fn reduce(&self, losses: &Tensor, dims: &[usize]) -> Result<Tensor> {
        // The fused losses are f64, so that their sum is exact to f32 precision.
        let value = match self.cfg.reduction {
            Reduction::None if self.targets.is_empty() => Tensor::zeros(dims, self.dtype, losses.device())?,
            _ if self.targets.is_empty() => Tensor::zeros((), self.dtype, losses.device())?,
            Reduction::Sum => losses.sum_all()?,
            Reduction::Mean => (losses.sum_all()? / self.targets.len().max(1) as f64)?,
            Reduction::None => {
                let places = Tensor::from_slice(&self.positions, self.positions.len(), losses.device())?;
                Tensor::zeros(self.count, losses.dtype(), losses.device())?
                    .index_add(&places, losses, 0)?
                    .reshape(dims)?
            }
        };
        Ok(value.to_dtype(self.dtype)?)
    }
}

fn floats<'a>(storage: &'a Storage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        candle_core::bail!("the fused loss needs contiguous f32 on the CPU")
    };
    Ok(&values[start..end])
}

/// The operation: forward returns `value`, backward the gradients that are ready.
struct Loss {
    job: Job,
    value: Tensor,
    /// The first backward takes them; a later one computes them again.
    ready: Mutex<Option<Grads>>,
    table: Arc<RowTable>,
}

impl CustomOp3 for Loss {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        match &*self.value.storage_and_layout().0 {
            Storage::Cpu(storage) => Ok((storage.clone(), self.value.shape().clone())),
            _ => candle_core::bail!("the loss is not on the CPU"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => candle_core::bail!("the loss is not on the CUDA device"),
        }
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Metal(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => candle_core::bail!("the loss is not on the Metal device"),
        }
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _value: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.table.check_frozen()?;
        let upstream = upstream.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let ready = self.ready.lock().ok().and_then(|mut ready| ready.take());
        let count = self.job.targets.len();
        let grads = match (ready, self.job.cfg.reduction) {
            (Some(grads), _) => {
                grads.iter().flatten().try_for_each(|grad| scale(grad, upstream[0]))?;
                grads
            }
            (None, Reduction::None) => {
                let of_tokens: Vec<f64> = self.job.positions.iter().map(|at| upstream[*at as usize]).collect();
                self.job.run(hidden, weight, bias, Some(&of_tokens))?.1
            }
            (None, Reduction::Mean) => {
                let one = upstream[0] / count.max(1) as f64;
                self.job.run(hidden, weight, bias, Some(&vec![one; count]))?.1
            }
            (None, Reduction::Sum) => self.job.run(hidden, weight, bias, Some(&vec![upstream[0]; count]))?.1,
        };
        let [of_hidden, of_weight, of_bias] = grads;
        Ok((
            gradients::hand_over(hidden, of_hidden),
            gradients::hand_over(weight, of_weight),
            gradients::hand_over(bias, of_bias),
        ))
    }
}

/// Multiplies a gradient in place.
fn scale(grad: &Tensor, factor: f64) -> candle_core::Result<()> {
    if factor == 1.0 {
        return Ok(());
    }
    struct Scale(f64);
    impl InplaceOp1 for Scale {
        fn name(&self) -> &'static str {
            "scale"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
            let CpuStorage::F32(values) = storage else { candle_core::bail!("fused gradients are f32") };
            let factor = self.0 as f32;
            parallel::for_each(values.chunks_mut(1 << 16), |values| values.iter_mut().for_each(|x| *x *= factor));
            Ok(())
        }
    }
    if grad.device().is_cpu() && grad.dtype() == DType::F32 {
        return grad.inplace_op1(&Scale(factor));
    }
    // On other devices by candle's operations, into the same storage.
    grad.slice_set(&(grad * factor)?, 0, 0)
}
