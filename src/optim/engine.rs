//! The optimizer for all update rules: groups of variables and their updates.

use std::collections::{HashMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};

use super::Replay;
use super::rule::Rule;
use super::variable::Variable;
use crate::grouping::Groups;
use crate::rows::RowGradients;
use crate::support::variables::variables;
use crate::{Error, Result};

/// An optimizer with the parameters `P` of its update rule. [`AdamW`](super::AdamW) and [`Sgd`](super::Sgd) are aliases of it.
///
/// The rules share everything except the arithmetic: groups, row-sparse tables, accumulation, clipping, frozen rows, and the state in
/// checkpoints.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_nn::Optimizer;
/// use tallow::optim::{Optim, Rule};
/// // For any rule.
/// fn step<P: Rule>(opt: &mut Optim<P>, loss: &Tensor) -> tallow::Result<()> {
///     Ok(opt.backward_step(loss)?)
/// }
/// let weight = Var::from_tensor(&Tensor::new(&[2f32, 4.], &Device::Cpu)?)?;
/// let mut opt = Optim::with_groups(vec![(vec![("weight".to_string(), weight.clone())], 0.5f64)])?;
/// step(&mut opt, &weight.sqr()?.sum_all()?)?;
/// assert_eq!(weight.to_vec1::<f32>()?, [0.0, 0.0]); // θ - 0.5 · 2θ
/// # Ok::<(), tallow::Error>(())
/// ```
pub struct Optim<P: Rule> {
    pub(super) groups: Vec<ParamGroup<P>>,
    pub(super) step: usize,
    /// Whether the caller named the variables. Else they are numbered, in an order that can differ between processes.
    pub(super) named: bool,
}

/// Variables that share learning rate, betas, ε and weight decay.
///
/// A table often has its own group: embeddings are commonly excluded from weight decay (which also shrinks rows without a gradient),
/// and some recipes give them a larger learning rate.
///
/// # Example
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// use tallow::optim::AdamW;
/// let varmap = VarMap::new();
/// candle_nn::linear(2, 3, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
/// let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
/// for group in opt.groups_mut() {
///     group.params.lr = 1e-4;
/// }
/// assert_eq!(opt.learning_rate(), 1e-4);
/// # Ok::<(), tallow::Error>(())
/// ```
pub struct ParamGroup<P = ParamsAdamW> {
    /// Parameters of the next step. For schedules, change them between steps.
    pub params: P,
    pub(super) members: Vec<Variable>,
}

impl<P: Rule> Optimizer for Optim<P> {
    type Config = P;

    /// One group of all variables, without names. (The order of `VarMap::all_vars` differs between processes.)
    ///
    /// A [`Checkpoint`](crate::Checkpoint) gets the names from its VarMap. [`state`](Optim::state),
    /// [`load_state`](Optim::load_state) and [`follow`](Optim::follow) need names: call [`name_by`](Optim::name_by) first, or make
    /// the optimizer with [`from_varmap`](Optim::from_varmap).
    fn new(vars: Vec<Var>, params: P) -> candle_core::Result<Self> {
        let numbered = vars.into_iter().enumerate().map(|(i, var)| (i.to_string(), var)).collect();
        Ok(Optim { named: false, ..Self::with_groups(vec![(numbered, params)])? })
    }

    /// # Errors
    /// - Those of candle's operations; a gradient of another dtype than its weight.
    /// - Pending row gradients that are not part of `grads`; `grads` that were stepped already (see [`AdamW`](super::AdamW)); a table
    ///   that was replaced ([`TokenEmbedding::resize`](crate::TokenEmbedding::resize)). Nothing is changed after these.
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.tables().try_for_each(|member| member.table.belongs_to(grads))?;
        if let Some(Variable { name, var, .. }) = self.members().find(|member| member.table.is_replaced()) {
            return Err(Error::ReplacedVariable { name: name.clone(), shape: var.dims().to_vec() }.into());
        }
        self.step += 1;
        for group in &mut self.groups {
            let update = group.params.update(self.step);
            group.members.iter().try_for_each(|member| member.step(grads, &update))?;
        }
        Ok(self.tables().try_for_each(|member| member.table.stepped())?)
    }

    /// [`backward`](crate::backward), then a step.
    fn backward_step(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        self.step(&crate::backward(loss)?)
    }

    /// The learning rate of the first group.
    fn learning_rate(&self) -> f64 {
        self.groups.first().map_or(0.0, |group| group.params.lr())
    }

    /// Sets the learning rate of every group. For different rates use [`groups_mut`](Optim::groups_mut).
    fn set_learning_rate(&mut self, lr: f64) {
        self.groups.iter_mut().for_each(|group| group.params.set_lr(lr));
    }
}

impl<P: Rule> Optim<P> {
    /// All variables of a VarMap under their names, in one group.
    ///
    /// # Errors
    /// As [`with_groups`](Self::with_groups).
    pub fn from_varmap(varmap: &VarMap, params: P) -> Result<Self> {
        Self::with_groups(vec![(variables(varmap), params)])
    }

    /// All variables of a VarMap under their names. `params` returns the parameters of each variable; variables with equal parameters
    /// are a group. Groups are in the alphabetical order of their first variables.
    ///
    /// # Errors
    /// As [`with_groups`](Self::with_groups).
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{ParamsAdamW, VarBuilder, VarMap};
    /// use tallow::{TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
    /// let varmap = VarMap::new();
    /// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// TokenEmbedding::new(&TokenEmbeddingConfig { vocab_size: 100, d_model: 8, ..Default::default() }, vb.pp("wte"))?;
    /// candle_nn::linear(8, 8, vb.pp("proj"))?;
    /// // The table takes larger steps and does not decay.
    /// let mut opt = AdamW::from_varmap_with(&varmap, |name, _var| match name {
    ///     "wte.weight" => ParamsAdamW { lr: 1e-2, weight_decay: 0.0, ..Default::default() },
    ///     _ => ParamsAdamW { lr: 1e-3, ..Default::default() },
    /// })?;
    /// assert_eq!(opt.groups_mut().len(), 2);
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn from_varmap_with(varmap: &VarMap, params: impl Fn(&str, &Var) -> P) -> Result<Self> {
        let mut groups: Vec<(Vec<(String, Var)>, P)> = Vec::new();
        for (name, var) in variables(varmap) {
            let params = params(&name, &var);
            match groups.iter_mut().find(|(_, known)| known.same(&params)) {
                Some((members, _)) => members.push((name, var)),
                None => groups.push((vec![(name, var)], params)),
            }
        }
        Self::with_groups(groups)
    }

    /// Groups of named variables, each with its own parameters. Variables that are not floats are left out.
    ///
    /// # Errors
    /// [`Error::SecondOptimizer`] if a row-sparse table has an optimizer already. [`Error::Config`] if two variables have the same name,
    /// or a variable occurs twice.
    pub fn with_groups(groups: Vec<(Vec<(String, Var)>, P)>) -> Result<Self> {
        let (mut names, mut known) = (HashSet::new(), HashMap::new());
        for (name, var) in groups.iter().flat_map(|(vars, _)| vars) {
            if !names.insert(name) {
                let what = format!("two variables are named {name:?}: the optimizer's state needs different names");
                return Err(Error::Config(what));
            }
            if let Some(other) = known.insert(var.as_tensor().id(), name) {
                let what = format!("the variable {other:?} occurs again as {name:?}: a step would update it twice");
                return Err(Error::Config(what));
            }
        }
        let mut made = Vec::new();
        for (vars, params) in groups {
            let vars = vars.into_iter().filter(|(_, var)| var.dtype().is_float());
            let members = vars.map(|(name, var)| Variable::new(name, var, P::MOMENTS)).collect::<Result<_>>()?;
            made.push(ParamGroup { params, members });
        }
        Ok(Optim { groups: made, step: 0, named: true })
    }

    /// The groups, to change their parameters between steps.
    pub fn groups_mut(&mut self) -> &mut [ParamGroup<P>] {
        &mut self.groups
    }

    /// The parameters of the first group, as `candle_nn::AdamW::params`.
    ///
    /// # Panics
    /// If there is no group.
    pub fn params(&self) -> &P {
        &self.groups[0].params
    }

    /// Sets the parameters of every group.
    pub fn set_params(&mut self, params: P) {
        self.groups.iter_mut().for_each(|group| group.params = params.clone());
    }

    /// Replays all deferred updates of every row-sparse table. Afterwards the raw variables equal those of the dense optimizer,
    /// and can be saved.
    ///
    /// # Cost
    /// Up to one pass over tables and moments, plus the deferred updates.
    ///
    /// # Errors
    /// Those of candle's operations.
    pub fn flush(&self) -> Result<()> {
        self.tables().try_for_each(|member| member.table.replay(crate::rows::Rows::All))
    }

    /// Discards the pending row gradients. Call this if a step is skipped (for example because the loss is not finite). Dropping a
    /// `GradStore` discards only dense gradients. Row gradients stay pending, and the next step is an error.
    pub fn zero_grad(&self) {
        self.tables().for_each(|member| member.table.clear());
    }

    /// Scales all gradients, dense and row-sparse, so that their global L2 norm is at most `max_norm`. Returns the norm before scaling.
    /// Row gradients are summed by row first, so the norm is that of the dense gradient. Frozen rows are not counted.
    /// If you skip the step because of the norm, call [`zero_grad`](Self::zero_grad). With a weight that is split between ranks
    /// ([`VocabParallelEmbedding`](crate::distributed::VocabParallelEmbedding)) the norm is that of the whole weight: all ranks must
    /// call this.
    ///
    /// # Errors
    /// [`Error::Config`] if `max_norm` is not positive; [`Error::MissingGradients`] or [`Error::SteppedBefore`] as for a step; those of
    /// candle's operations.
    ///
    /// Source: `torch.nn.utils.clip_grad_norm_`, with its 1e-6 in the denominator.
    pub fn clip_grad_norm(&self, grads: &mut GradStore, max_norm: f64) -> Result<f64> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            return Err(Error::Config(format!("max_norm must be positive, not {max_norm}")));
        }
        let square = |t: &Tensor| match t.elem_count() {
            0 => Ok::<_, Error>(0.0), // backends reject zero-size tensors
            _ => Ok(t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?),
        };
        self.tables().try_for_each(|member| member.table.belongs_to(grads))?;
        let mut by_row = Vec::new();
        let mut squares = || {
            let mut sum = 0.0;
            // Of weights whose other rows are on other ranks.
            let (mut split, mut shard) = (0.0, None);
            for member in self.members() {
                let sum = match member.table.shard() {
                    None => &mut sum,
                    some => {
                        shard = some;
                        &mut split
                    }
                };
                match grads.get(&member.var) {
                    Some(dense) if member.table.is_row_sparse() => {
                        member.add(dense)?;
                        let frozen = member.table.frozen();
                        let rows = Groups::of_all_but(&frozen).rows;
                        if frozen.is_empty() {
                            *sum += square(dense)?;
                        } else if !rows.is_empty() {
                            *sum += square(&dense.index_select(&Tensor::new(rows, dense.device())?, 0)?)?;
                        }
                    }
                    Some(dense) => *sum += square(dense)?,
                    None if member.table.is_row_sparse() => {
                        let Some(rows) = member.table.take()? else { continue };
                        by_row.push((&member.table, rows));
                        *sum += square(&by_row[by_row.len() - 1].1.values)?;
                    }
                    None => (),
                }
            }
            Ok(match shard {
                None => sum,
                Some(shard) => sum + shard.sum_number(split)?,
            })
        };
        let sum: Result<f64> = squares();
        // Row gradients that were taken are returned, also after an error.
        let scale = sum.as_ref().map_or(1.0, |sum| max_norm / (sum.sqrt() + 1e-6));
        if scale < 1.0 {
            for member in self.members() {
                if let Some(grad) = grads.get(member.var.as_tensor()) {
                    let scaled = (grad * scale)?;
                    grads.insert(member.var.as_tensor(), scaled);
                }
            }
        }
        for (table, RowGradients { rows, values }) in by_row {
            let values = if scale < 1.0 && !rows.is_empty() { (values * scale)? } else { values };
            table.push_rows(RowGradients { rows, values })?;
        }
        sum.map(f64::sqrt)
    }

    /// Whether its variables have names.
    pub(crate) fn is_named(&self) -> bool {
        self.named
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Variable> {
        self.groups.iter().flat_map(|group| &group.members)
    }

    pub(super) fn members_mut(&mut self) -> impl Iterator<Item = &mut Variable> {
        self.groups.iter_mut().flat_map(|group| &mut group.members)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Variable> {
        self.members().filter(|member| member.table.is_row_sparse())
    }
}

impl Optim<ParamsAdamW> {
    /// Sets how all row-sparse tables treat deferred updates.
    ///
    /// # Errors
    /// Those of candle's operations: updates that are deferred already are replayed first, by the old setting.
    pub fn with_replay(self, replay: Replay) -> Result<Self> {
        self.members().try_for_each(|member| member.set_replay(replay))?;
        Ok(self)
    }
}
