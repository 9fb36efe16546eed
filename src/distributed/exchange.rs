//! Data parallel training: every rank has the whole model, and a part of the batch.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::VarMap;
use crc32fast::Hasher;

use super::row_exchange::{RowExchange, max};
use crate::collective::{Collective, ReduceOp, checksum, differences};
use crate::optim::{Optim, Rule};
use crate::rows::RowTable;
use crate::support::variables::variables;
use crate::{Error, Result};

/// PyTorch's size of a bucket: large enough that latency does not count.
const BUCKET_BYTES: usize = 25 << 20;

/// Exchanges gradients between ranks, after the backward pass and before the step.
///
/// Every rank has the whole model and its own part of the batch. Call [`broadcast`](Self::broadcast) once, before the first step;
/// then [`exchange`](Self::exchange) in each step. Afterwards all ranks hold the same gradients, and their replicas stay equal
/// to the bit.
///
/// Gradients are summed, not averaged. For the mean over the valid tokens of all ranks take the sum of the losses
/// ([`Reduction::Sum`](crate::head::Reduction::Sum)) and divide it by [`total`](Self::total): ranks with more tokens then count for more.
///
/// Source: `torch.nn.parallel.DistributedDataParallel`. The exchange of rows is Horovod's and DeepSpeed's idea (sparse gradients),
/// with a union in place of a gather.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// use tallow::distributed::{DataParallel, Local};
/// use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
/// let ranks = DataParallel::new(Local); // or tallow_mpi's World
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 2, gradient: Gradient::RowSparse, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb)?;
/// let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
/// ranks.broadcast(&varmap)?;
///
/// let x = wte.forward(&Tensor::new(&[3u32, 5, 3], &Device::Cpu)?)?;
/// let loss = (x.sqr()?.sum_all()? / ranks.total(3)? as f64)?;
/// let mut grads = tallow::backward(&loss)?;
/// ranks.exchange(&opt, &mut grads)?;
/// opt.step(&grads)?;
/// ranks.check_replicas(&varmap)?;
/// # Ok::<(), tallow::Error>(())
/// ```
pub struct DataParallel<C> {
    collective: C,
    rows: RowExchange,
    /// Whether the ranks were found to hold the same variables.
    agreed: AtomicBool,
    /// Its entry marks a `GradStore` that was exchanged.
    mark: Tensor,
}

impl<C: Collective> DataParallel<C> {
    /// Ranks that are connected by `collective`.
    pub fn new(collective: C) -> Self {
        // (Infallible: a number on the CPU.)
        let mark = Tensor::new(0u8, &Device::Cpu).unwrap_or_else(|_| unreachable!());
        DataParallel { collective, rows: RowExchange::default(), agreed: AtomicBool::new(false), mark }
    }

    /// Sets how rows are exchanged.
    pub fn with_rows(self, rows: RowExchange) -> Self {
        DataParallel { rows, ..self }
    }

    /// The engine.
    pub fn collective(&self) -> &C {
        &self.collective
    }

    /// The sum of `count` over all ranks: the valid tokens of the joined batch, say. If it is 0, no rank has a token: skip the step on
    /// all ranks, because a division by it gives NaN.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn total(&self, count: usize) -> Result<usize> {
        let sum = self.collective.all_reduce(&Tensor::new(&[count as i64], &Device::Cpu)?, ReduceOp::Sum)?;
        Ok(sum.to_vec1::<i64>()?[0] as usize)
    }

    /// Gives all variables the values of rank 0. Call it before the first step. To resume from a checkpoint load it on every rank: this
    /// does not give the optimizer's state to the others.
    /// Weights that are split between the ranks are left alone.
    ///
    /// # Errors
    /// [`Error::ReplicasDiffer`] if the ranks have variables of other names, shapes or dtypes; those of the engine.
    pub fn broadcast(&self, varmap: &VarMap) -> Result<()> {
        let variables = replicated(varmap);
        self.agree(variables.iter().map(|(name, var)| (name.as_str(), var.as_tensor())), "")?;
        for (_, var) in variables.iter().filter(|_| self.collective.world_size() > 1) {
            RowTable::flush(var)?;
            let value = self.collective.broadcast(var, 0)?;
            if self.collective.rank() != 0 {
                var.set(&value)?;
            }
        }
        Ok(())
    }

    /// Sums the gradients of `opt`'s variables over all ranks: the dense ones in `grads`, and the pending ones of row-sparse tables.
    /// Afterwards every rank holds the same gradients. A variable that has a gradient on some ranks only counts as zero on the others; so
    /// a rank may have no tokens in a batch (it needs a `GradStore` all the same: that of a constant's backward, say).
    ///
    /// Clip afterwards, by [`Optim::clip_grad_norm`]: the norm is that of the joined batch.
    ///
    /// # Cost
    /// Dense gradients: their bytes, in buckets of 25 MB. A row-sparse table (V, C): V bytes of flags and U x C x 4 bytes of
    /// gradients, for a union of U rows ([`RowExchange::Union`]).
    ///
    /// # Errors
    /// [`Error::ReplicasDiffer`] if the ranks have other variables (checked in the first exchange); [`Error::Config`] for a weight that is
    /// split between the ranks; [`Error::MissingGradients`] and
    /// [`Error::SteppedBefore`] as for a step; those of the engine.
    pub fn exchange<P: Rule>(&self, opt: &Optim<P>, grads: &mut GradStore) -> Result<()> {
        let wrong = |what: String| Err(Error::Config(what));
        if let Some(member) = opt.members().find(|member| member.table.shard().is_some()) {
            return wrong(format!(
                "{:?} is split between the ranks, so all have the same batch and the same gradients: there is nothing to exchange",
                member.name
            ));
        }
        if !opt.is_named() {
            return wrong(
                "this optimizer was made without names (`new`), and the order of its variables can differ between ranks: make it \
                 with from_varmap, or call name_by(&varmap) first"
                    .to_string(),
            );
        }
        if grads.get(&self.mark).is_some() {
            return wrong(
                "these gradients are those of all ranks already: call exchange once for each step".to_string(),
            );
        }
        opt.tables().try_for_each(|member| member.table.belongs_to(grads))?;
        grads.insert(&self.mark, self.mark.clone());
        if self.collective.world_size() == 1 {
            return Ok(());
        }
        if !self.agreed.load(Ordering::Relaxed) {
            let variables = opt.members().map(|member| (member.name.as_str(), member.var.as_tensor()));
            self.agree(variables, &format!("{:?}", self.rows))?;
            self.agreed.store(true, Ordering::Relaxed);
        }
        // For each variable: does any rank have a dense gradient of it, or pending rows?
        let mut has = Vec::new();
        for member in opt.members() {
            has.push(grads.get(&member.var).is_some() as u8);
            has.push(member.table.has_pending() as u8);
        }
        let has = max(&self.collective, has)?;

        let mut bucket = Vec::new();
        for (member, has) in opt.members().zip(has.chunks(2)) {
            if has[0] == 1 {
                let zeros = || member.var.zeros_like().map(|zeros| zeros.detach());
                let own = grads.get(&member.var).map_or_else(zeros, |grad| grad.contiguous())?;
                // A row-sparse table with a tied head: its rows are part of the dense gradient.
                if member.table.is_row_sparse() {
                    member.add(&own)?;
                }
                if !fits(&bucket, &own) {
                    self.reduce(std::mem::take(&mut bucket), grads)?;
                }
                bucket.push((member.var.as_tensor().clone(), own));
            } else if has[1] == 1 {
                self.rows.exchange(&self.collective, &member.table)?;
            }
        }
        self.reduce(bucket, grads)
    }

    /// An error if the variables' bits are not the same on all ranks. Every rank gets the same answer. Weights that are split between
    /// the ranks are left out.
    ///
    /// # Cost
    /// A pass over all weights (a checksum), and a few bytes of each variable between ranks: call it every hundred steps, say.
    ///
    /// # Errors
    /// [`Error::ReplicasDiffer`]; those of the engine.
    pub fn check_replicas(&self, varmap: &VarMap) -> Result<()> {
        let variables = replicated(varmap);
        self.agree(variables.iter().map(|(name, var)| (name.as_str(), var.as_tensor())), "")?;
        let mut sums = Vec::new();
        for (_, var) in &variables {
            RowTable::flush(var)?;
            sums.push(checksum(var)?);
        }
        match differences(&self.collective, &sums)?.iter().position(|differs| *differs) {
            None => Ok(()),
            Some(at) => Err(Error::ReplicasDiffer { what: format!("the values of {:?}", variables[at].0) }),
        }
    }

    /// An error if names, shapes, dtypes or the mode of exchange differ between ranks.
    fn agree<'a>(&self, variables: impl Iterator<Item = (&'a str, &'a Tensor)>, mode: &str) -> Result<()> {
        let mut hasher = Hasher::new();
        hasher.update(mode.as_bytes());
        for (name, tensor) in variables {
            hasher.update(format!("{name:?} {:?} {:?}\n", tensor.dims(), tensor.dtype()).as_bytes());
        }
        match differences(&self.collective, &[hasher.finalize()])?[0] {
            false => Ok(()),
            true => Err(Error::ReplicasDiffer {
                what: "the names, shapes or dtypes of variables, or the ways to exchange rows,".to_string(),
            }),
        }
    }

    /// Sums the bucket's gradients and puts them into `grads`.
    fn reduce(&self, bucket: Vec<(Tensor, Tensor)>, grads: &mut GradStore) -> Result<()> {
        match &bucket[..] {
            [] => (),
            [(var, grad)] => {
                grads.insert(var, self.collective.all_reduce(grad, ReduceOp::Sum)?);
            }
            members => {
                let flat: Vec<Tensor> =
                    members.iter().map(|(_, grad)| grad.flatten_all()).collect::<std::result::Result<_, _>>()?;
                let sum = self.collective.all_reduce(&Tensor::cat(&flat, 0)?, ReduceOp::Sum)?;
                let mut at = 0;
                for (var, grad) in members {
                    let count = grad.elem_count();
                    grads.insert(var, sum.narrow(0, at, count)?.reshape(grad.shape())?);
                    at += count;
                }
            }
        }
        Ok(())
    }
}

/// The variables that every rank has a replica of: all but those that are split between the ranks.
fn replicated(varmap: &VarMap) -> Vec<(String, Var)> {
    variables(varmap).into_iter().filter(|(_, var)| RowTable::shard_of(var).is_none()).collect()
}

/// Whether a gradient can be summed in one operation with those of a bucket of variables and gradients.
fn fits(bucket: &[(Tensor, Tensor)], grad: &Tensor) -> bool {
    let Some((_, first)) = bucket.first() else { return true };
    let bytes = |grad: &Tensor| grad.elem_count() * grad.dtype().size_in_bytes();
    let sum = bucket.iter().map(|(_, grad)| bytes(grad)).sum::<usize>() + bytes(grad);
    sum <= BUCKET_BYTES && first.dtype() == grad.dtype() && first.device().same_device(grad.device())
}
