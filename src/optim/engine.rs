//! The engine of all rules: groups of variables, each in its place.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};

use super::Replay;
use super::place::{self, Place};
use super::rule::{Rule, Update};
use super::table::Attached;
use crate::grouping::Groups;
use crate::rows::{RowGradients, RowTable, was_replaced};
use crate::{Error, Result};

/// An optimizer with the parameters `P` of its rule: [`AdamW`](super::AdamW) and [`Sgd`](super::Sgd) are names of it.
///
/// Everything but the arithmetic is common to the rules: groups, row-sparse tables, accumulation, clipping, frozen rows, the state and
/// its checkpoints.
pub struct Optim<P: Rule> {
    pub(super) groups: Vec<ParamGroup<P>>,
    pub(super) step: usize,
    /// Whether the caller named the variables. Else they are numbered in an order that may change from process to process.
    pub(super) named: bool,
}

/// Variables that share learning rate, betas, ε and decay.
///
/// A table often wants its own: embeddings are commonly left out of weight decay (rows without a gradient would shrink
/// all the same), and some recipes give them a larger learning rate.
pub struct ParamGroup<P = ParamsAdamW> {
    /// Used by the next step; change it between steps for schedules.
    pub params: P,
    pub(super) members: Vec<Member>,
}

pub(super) struct Member {
    pub(super) name: String,
    pub(super) var: Var,
    pub(super) state: State,
}

pub(super) enum State {
    Dense(Box<dyn Place>),
    Table(Attached),
}

impl<P: Rule> Optimizer for Optim<P> {
    type Config = P;

    /// One group of all variables, without names: the order of `VarMap::all_vars` is another in every process.
    ///
    /// A [`Checkpoint`](crate::Checkpoint) finds the names in its VarMap. [`state`](Optim::state),
    /// [`load_state`](Optim::load_state) and [`follow`](Optim::follow) need them: call [`name_by`](Optim::name_by) first, or make
    /// the optimizer by [`from_varmap`](Optim::from_varmap).
    fn new(vars: Vec<Var>, params: P) -> candle_core::Result<Self> {
        let numbered = vars.into_iter().enumerate().map(|(i, var)| (i.to_string(), var)).collect();
        Ok(Optim { named: false, ..Self::with_groups(vec![(numbered, params)])? })
    }

    /// # Errors
    /// Those of candle's operations; a gradient of another dtype than its weight; row gradients that wait and are not of `grads`,
    /// `grads` that were stepped already (see [`AdamW`](super::AdamW)), or a table that was replaced since
    /// ([`TokenEmbedding::resize`](crate::TokenEmbedding::resize)). Of the last three nothing is changed.
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.tables().try_for_each(|attached| attached.table.belongs_to(grads))?;
        self.members().try_for_each(|member| is_current(&member.var))?;
        self.step += 1;
        for group in &mut self.groups {
            let update = group.params.update(self.step);
            for member in &mut group.members {
                member.step(grads, &update)?;
            }
        }
        self.tables().for_each(|attached| attached.table.stepped());
        Ok(())
    }

    /// [`backward`](crate::backward) and a step.
    fn backward_step(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        self.step(&crate::backward(loss)?)
    }

    /// The first group's.
    fn learning_rate(&self) -> f64 {
        self.groups.first().map_or(0.0, |group| group.params.learning_rate())
    }

    /// Sets that of every group; for different ones use [`groups_mut`](Optim::groups_mut).
    fn set_learning_rate(&mut self, lr: f64) {
        self.groups.iter_mut().for_each(|group| group.params.set_learning_rate(lr));
    }
}

impl<P: Rule> Optim<P> {
    /// All variables of a VarMap under their names, in one group.
    ///
    /// # Errors
    /// As [`with_groups`](Self::with_groups).
    pub fn from_varmap(varmap: &VarMap, params: P) -> Result<Self> {
        let data = varmap.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut named: Vec<(String, Var)> = data.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
        drop(data);
        named.sort_by(|a, b| a.0.cmp(&b.0));
        Self::with_groups(vec![(named, params)])
    }

    /// Groups of named variables, each with its own parameters. Variables that are not floats are left out.
    ///
    /// # Errors
    /// [`Error::Config`] if a row-sparse table has an optimizer already, or two variables have one name.
    pub fn with_groups(groups: Vec<(Vec<(String, Var)>, P)>) -> Result<Self> {
        let mut names: Vec<&String> = groups.iter().flat_map(|(vars, _)| vars).map(|(name, _)| name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Config(format!(
                "two variables are named {:?}: the optimizer's state needs a name for each",
                twice[0]
            )));
        }
        let mut made = Vec::new();
        for (vars, params) in groups {
            let vars = vars.into_iter().filter(|(_, var)| var.dtype().is_float());
            let members = vars.map(|(name, var)| Member::new(name, var, P::MOMENTS)).collect::<Result<_>>()?;
            made.push(ParamGroup { params, members });
        }
        Ok(Optim { groups: made, step: 0, named: true })
    }

    /// The groups, to change their parameters between steps.
    pub fn groups_mut(&mut self) -> &mut [ParamGroup<P>] {
        &mut self.groups
    }

    /// The first group's parameters, as `candle_nn::AdamW` has them.
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

    /// Replays what is deferred in every row-sparse table. Afterwards the raw variables are those of the dense
    /// optimizer, and can be saved.
    ///
    /// # Cost
    /// Up to one pass over table and moments, and the updates that were deferred.
    ///
    /// # Errors
    /// Those of candle's operations.
    pub fn flush(&self) -> Result<()> {
        self.tables().try_for_each(|attached| attached.table.replay(crate::rows::Rows::All))
    }

    /// Forgets the row gradients that wait. Call this when a step is left out (a loss that is not finite, say): with candle,
    /// dropping a `GradStore` forgets its gradients, but those of row-sparse tables wait, and the next step is an error.
    pub fn zero_grad(&self) {
        self.tables().for_each(|attached| attached.table.clear());
    }

    /// Scales all gradients, dense and by row together, so that their global L2 norm is at most `max_norm`; gives the norm
    /// before. Row gradients are summed by row first, so that the norm is that of the dense gradient. Frozen rows do not count.
    /// Where the norm leads you to leave the step out, call [`zero_grad`](Self::zero_grad).
    ///
    /// # Errors
    /// [`Error::Config`] if `max_norm` is not positive, or row gradients wait that are not of `grads`; and those of candle's
    /// operations.
    ///
    /// Source: `torch.nn.utils.clip_grad_norm_`, with its 1e-6 in the denominator.
    pub fn clip_grad_norm(&self, grads: &mut GradStore, max_norm: f64) -> Result<f64> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            return Err(Error::Config(format!("max_norm must be positive, not {max_norm}")));
        }
        let square = |t: &Tensor| -> Result<f64> { Ok(t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?) };
        self.tables().try_for_each(|attached| attached.table.belongs_to(grads))?;
        let mut sum = 0.0;
        let mut by_row = Vec::new();
        for member in self.members() {
            match (grads.get(member.var.as_tensor()), &member.state) {
                (Some(dense), State::Table(attached)) => {
                    attached.add(dense)?;
                    let trained = match attached.table.frozen() {
                        frozen if frozen.is_empty() => Some(dense.clone()),
                        frozen => without_frozen(dense, &frozen)?,
                    };
                    sum += trained.as_ref().map_or(Ok(0.0), square)?;
                }
                (None, State::Table(attached)) => by_row.extend(attached.table.take()?.map(|rows| (attached, rows))),
                (dense, _) => sum += dense.map_or(Ok(0.0), square)?,
            }
        }
        for (_, rows) in by_row.iter().filter(|(_, rows)| !rows.rows.is_empty()) {
            sum += square(&rows.values)?;
        }
        let norm = sum.sqrt();
        let scale = max_norm / (norm + 1e-6);
        if scale < 1.0 {
            for member in self.members() {
                if let Some(grad) = grads.get(member.var.as_tensor()) {
                    let scaled = (grad * scale)?;
                    grads.insert(member.var.as_tensor(), scaled);
                }
            }
        }
        for (attached, RowGradients { rows, values }) in by_row {
            let values = if scale < 1.0 && !rows.is_empty() { (values * scale)? } else { values };
            attached.table.push_rows(RowGradients { rows, values })?;
        }
        Ok(norm)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.groups.iter().flat_map(|group| &group.members)
    }

    pub(super) fn members_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.groups.iter_mut().flat_map(|group| &mut group.members)
    }

    fn tables(&self) -> impl Iterator<Item = &Attached> {
        self.members().filter_map(|member| match &member.state {
            State::Table(attached) => Some(attached),
            State::Dense(_) => None,
        })
    }
}

impl Optim<ParamsAdamW> {
    /// Sets the rule for the deferred updates of all row-sparse tables.
    ///
    /// # Errors
    /// Those of replaying under the old rule.
    pub fn with_replay(self, replay: Replay) -> Result<Self> {
        self.tables().try_for_each(|attached| attached.set_replay(replay))?;
        Ok(self)
    }
}

impl Member {
    pub(super) fn new(name: String, var: Var, moments: bool) -> Result<Self> {
        let place = place::of(var.as_tensor(), moments)?;
        let state = match RowTable::find(var.as_tensor()) {
            Some(table) => State::Table(Attached::new(table, place)?),
            None => State::Dense(place),
        };
        Ok(Member { name, var, state })
    }

    fn step(&mut self, grads: &GradStore, update: &Update) -> Result<()> {
        let weight = self.var.as_tensor();
        match (&mut self.state, grads.get(weight)) {
            (State::Table(attached), Some(grad)) => attached.step_dense(grad, update),
            (State::Table(attached), None) => attached.step_rows(update),
            (State::Dense(place), Some(grad)) => place.dense(weight, grad, update),
            (State::Dense(_), None) => Ok(()),
        }
    }
}

/// An error for a variable in whose place another one is: it would move, and nothing would read it.
fn is_current(var: &Var) -> Result<()> {
    match was_replaced(var) {
        false => Ok(()),
        true => Err(Error::Config(format!(
            "the table of shape {:?} was replaced by one of another size (add_tokens, resize, shrink), which this \
             optimizer does not know: call `follow(&varmap)` of it, or make the optimizer after the change",
            var.dims()
        ))),
    }
}

/// The rows of a dense gradient that are not frozen; none where all are.
fn without_frozen(dense: &Tensor, frozen: &[bool]) -> Result<Option<Tensor>> {
    let rows = Groups::of_all_but(frozen).rows;
    match rows.is_empty() {
        true => Ok(None), // backends reject allocations of size zero
        false => Ok(Some(dense.index_select(&Tensor::new(rows, dense.device())?, 0)?)),
    }
}
