//! AdamW with candle's interface, candle's bits, and row-sparse tables.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};

use super::history::Step;
use super::table::Attached;
use super::{Replay, add_rows_into, host, is_current, on_device};
use crate::grouping::Groups;
use crate::rows::{RowGradients, RowTable, Rows};
use crate::{Error, Result};

/// Decoupled Adam (Loshchilov and Hutter, 2019), a drop-in for `candle_nn::AdamW`.
///
/// Weights of f32 and f64 take candle's bits (moments below the normal range aside, see [`Replay::Exact`]); bf16 and f16
/// weights are computed in f32 with f32 moments, where candle rounds every intermediate result. Tables whose layer has
/// [`Gradient::RowSparse`](crate::Gradient::RowSparse) are found by their variable and updated by [`Replay`]'s rule.
///
/// **While it lives, updates of such a table's rows are deferred.** Everything of tallow replays the rows that it reads. Before
/// anything else reads or writes the raw variables (`VarMap::save`, `VarMap::load`, `Var::set`, a `candle_nn::Embedding` over
/// the table) call [`flush`](Self::flush): deferred updates would later be applied to the new weights. Dropping the optimizer
/// flushes, too, and forgets gradients that wait.
///
/// # Accumulation
/// Row gradients belong to the `GradStore` of their backward, as dense ones do. To train on a batch in parts, add the stores
/// (candle's `GradStore::extend`), then step once:
/// ```
/// # use candle_core::{DType, Device, Module, Tensor};
/// # use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// # use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
/// # let varmap = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// # let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 4, gradient: Gradient::RowSparse, ..Default::default() };
/// # let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// # let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
/// # let loss = |ids: &[u32]| wte.forward(&Tensor::new(ids, &Device::Cpu)?)?.sqr()?.mean_all();
/// let mut total = tallow::backward(&(loss(&[1, 2])? / 2.0)?)?; // the mean over two parts of equal size
/// total.extend(tallow::backward(&(loss(&[2, 3])? / 2.0)?)?)?;
/// opt.step(&total)?;
/// # Ok::<(), tallow::Error>(())
/// ```
/// A step with a store that lacks the rows of an earlier backward is an error: the table would train on them, and nothing else. So is
/// a second step with one store, or with one that was added to after its step: the table has no rows of it left.
///
/// # Cost
/// Dense: one pass that reads weight, gradient and both moments and writes all but the gradient, on all threads,
/// without temporaries. Row-sparse: proportional to the look-ups of the step.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
///
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// let mut opt = AdamW::new(varmap.all_vars(), ParamsAdamW::default())?; // was candle_nn::AdamW::new(…)
/// let x = wte.forward(&Tensor::new(&[[7u32, 99999]], &Device::Cpu)?)?;
/// opt.backward_step(&x.sqr()?.sum_all()?)?; // moves two rows, touches no other
/// # Ok::<(), tallow::Error>(())
/// ```
pub struct AdamW {
    groups: Vec<ParamGroup>,
    step: usize,
    /// Whether the caller named the variables. Else they are numbered in an order that may change from process to process.
    named: bool,
}

/// Variables that share learning rate, betas, ε and decay.
///
/// A table often wants its own: embeddings are commonly left out of weight decay (rows without a gradient would shrink
/// all the same), and some recipes give them a larger learning rate.
pub struct ParamGroup {
    /// Used by the next step; change it between steps for schedules.
    pub params: ParamsAdamW,
    members: Vec<Member>,
}

struct Member {
    name: String,
    var: Var,
    state: State,
}

enum State {
    Host { m: Vec<f32>, v: Vec<f32> },
    HostF64 { m: Vec<f64>, v: Vec<f64> },
    Device { m: Tensor, v: Tensor },
    Table(Attached),
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    /// One group of all variables, without names: the order of `VarMap::all_vars` is another in every process.
    ///
    /// A [`Checkpoint`](crate::Checkpoint) finds the names in its VarMap. [`state`](AdamW::state),
    /// [`load_state`](AdamW::load_state) and [`follow`](AdamW::follow) need them: call [`name_by`](AdamW::name_by) first, or make
    /// the optimizer by [`from_varmap`](AdamW::from_varmap).
    fn new(vars: Vec<Var>, params: ParamsAdamW) -> candle_core::Result<Self> {
        let numbered = vars.into_iter().enumerate().map(|(i, var)| (i.to_string(), var)).collect();
        Ok(AdamW { named: false, ..Self::with_groups(vec![(numbered, params)])? })
    }

    /// # Errors
    /// Those of candle's operations; a gradient of another dtype than its weight; row gradients that wait and are not of `grads`,
    /// `grads` that were stepped already (see [`AdamW`]), or a table that was replaced since
    /// ([`TokenEmbedding::resize`](crate::TokenEmbedding::resize)). Of the last three nothing is changed.
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.tables().try_for_each(|attached| attached.table.belongs_to(grads))?;
        self.members().try_for_each(|member| is_current(&member.var))?;
        self.step += 1;
        for group in &mut self.groups {
            for member in &mut group.members {
                member.step(grads, &group.params, self.step)?;
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
        self.groups.first().map_or(0.0, |group| group.params.lr)
    }

    /// Sets that of every group; for different ones use [`groups_mut`](AdamW::groups_mut).
    fn set_learning_rate(&mut self, lr: f64) {
        self.groups.iter_mut().for_each(|group| group.params.lr = lr);
    }
}

impl AdamW {
    /// All variables of a VarMap under their names, in one group.
    ///
    /// # Errors
    /// As [`with_groups`](Self::with_groups).
    pub fn from_varmap(varmap: &VarMap, params: ParamsAdamW) -> Result<Self> {
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
    pub fn with_groups(groups: Vec<(Vec<(String, Var)>, ParamsAdamW)>) -> Result<Self> {
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
            let members = vars.map(|(name, var)| Member::new(name, var)).collect::<Result<_>>()?;
            made.push(ParamGroup { params, members });
        }
        Ok(AdamW { groups: made, step: 0, named: true })
    }

    /// Names the variables of an optimizer that was made without names ([`Optimizer::new`]), as `varmap` names them.
    ///
    /// # Errors
    /// [`Error::Config`]: a variable that is not in `varmap`, or two with one name. Nothing is changed then.
    pub fn name_by(&mut self, varmap: &VarMap) -> Result<()> {
        if !self.named {
            let names = self.names(Some(varmap))?;
            self.members_mut().zip(names).for_each(|(member, name)| member.name = name);
            self.named = true;
        }
        Ok(())
    }

    /// The names of all variables: those given, or those that `varmap` has for them.
    fn names(&self, varmap: Option<&VarMap>) -> Result<Vec<String>> {
        if self.named {
            return Ok(self.members().map(|member| member.name.clone()).collect());
        }
        let Some(varmap) = varmap else {
            return Err(Error::Config(
                "this optimizer was made without names (AdamW::new), and the order of its variables may be another in the next \
                 process: make it by AdamW::from_varmap, or call name_by(&varmap) first"
                    .to_string(),
            ));
        };
        let data = varmap.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut by_id: HashMap<_, &String> = HashMap::new();
        for (name, var) in data.iter() {
            let known = by_id.entry(var.as_tensor().id()).or_insert(name);
            *known = name.min(known); // of several names for one variable the first
        }
        let mut names = Vec::new();
        for member in self.members() {
            let Some(name) = by_id.get(&member.var.as_tensor().id()) else {
                return Err(Error::Config(format!(
                    "the optimizer has a variable of shape {:?} that is not in the VarMap, so its moments have no name: make \
                     it by AdamW::with_groups, with names",
                    member.var.dims()
                )));
            };
            if names.contains(*name) {
                return Err(Error::Config(format!("the optimizer has the variable {name:?} twice")));
            }
            names.push((*name).clone());
        }
        Ok(names)
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.groups.iter().flat_map(|group| &group.members)
    }

    fn members_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.groups.iter_mut().flat_map(|group| &mut group.members)
    }

    /// Sets the rule for the deferred updates of all row-sparse tables.
    ///
    /// # Errors
    /// Those of bringing rows up to date under the old rule.
    pub fn with_replay(self, replay: Replay) -> Result<Self> {
        for attached in self.tables() {
            attached.state.set_replay(&attached.table, replay)?;
        }
        Ok(self)
    }

    /// The groups, to change their parameters between steps.
    pub fn groups_mut(&mut self) -> &mut [ParamGroup] {
        &mut self.groups
    }

    /// The first group's parameters, as `candle_nn::AdamW` has them.
    ///
    /// # Panics
    /// If there is no group.
    pub fn params(&self) -> &ParamsAdamW {
        &self.groups[0].params
    }

    /// Sets the parameters of every group.
    pub fn set_params(&mut self, params: ParamsAdamW) {
        self.groups.iter_mut().for_each(|group| group.params = params.clone());
    }

    /// Brings every row of every row-sparse table up to date. Afterwards the raw variables are those of the dense
    /// optimizer, and can be saved.
    ///
    /// # Cost
    /// Up to one pass over table and moments, and the updates that were deferred.
    ///
    /// # Errors
    /// Those of candle's operations.
    pub fn flush(&self) -> Result<()> {
        self.tables().try_for_each(|attached| attached.table.catch_up(Rows::All))
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
                    add_rows_into(dense, &attached.table)?;
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

    /// Everything that a checkpoint must hold: `step` (one i64), and for each variable `NAME.m` and `NAME.v` in the
    /// variable's shape, f32 (f64 for f64 weights), on the CPU.
    ///
    /// All rows are flushed first, so that nothing is deferred and no history is left: the state is that of a dense AdamW,
    /// whatever the rule.
    ///
    /// # Errors
    /// [`Error::Config`] if the variables have no names (see [`name_by`](Self::name_by)); those of candle's operations.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        self.state_by(None)
    }

    /// [`state`](Self::state), where the names are not known otherwise by those of `varmap`.
    pub(crate) fn state_by(&self, varmap: Option<&VarMap>) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::from([("step".to_string(), Tensor::new(&[self.step as i64], &Device::Cpu)?)]);
        for (member, name) in self.members().zip(self.names(varmap)?) {
            let (m, v) = member.moments()?;
            state.insert(format!("{name}.m"), m);
            state.insert(format!("{name}.v"), v);
        }
        Ok(state)
    }

    /// Puts back what [`state`](Self::state) gave. Nothing is changed unless everything fits.
    ///
    /// # Errors
    /// [`Error::Config`] that lists every tensor that is missing or has another shape; or if the variables have no names (see
    /// [`name_by`](Self::name_by)).
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.names(None)?;
        let mut wrong = self.misfits(|name| state.get(name).map(|tensor| tensor.dims().to_vec()));
        let step = match state.get("step").map(|step| step.to_dtype(DType::I64)?.to_vec1::<i64>()) {
            Some(Ok(step)) if matches!(step[..], [count] if count >= 0) => step[0] as usize,
            _ => {
                wrong.push("\"step\" is not the number of steps".to_string());
                0
            }
        };
        if !wrong.is_empty() {
            return Err(Error::Config(format!("this is not the state of this optimizer: {}", wrong.join("; "))));
        }
        for member in self.members_mut() {
            let [m, v] = ["m", "v"].map(|kind| &state[&format!("{}.{kind}", member.name)]);
            member.set_moments(m, v)?;
        }
        self.step = step;
        Ok(())
    }

    /// Goes on with the variables that `varmap` has now under the names that this optimizer knows: call it after
    /// [`TokenEmbedding::resize`](crate::TokenEmbedding::resize) or [`shrink`](crate::TokenEmbedding::shrink). Rows that stayed
    /// keep their moments, new rows start with zero moments. The step count is shared and is not reset. Row gradients that wait in
    /// a table that was replaced are forgotten.
    ///
    /// # Errors
    /// [`Error::Config`]: a variable whose shape is another in more than its first dimension, or which has another dtype; a
    /// table with another optimizer; or variables without names (call [`name_by`](Self::name_by) before the table changes).
    ///
    /// # Cost
    /// A copy of the moments of each variable that was replaced.
    pub fn follow(&mut self, varmap: &VarMap) -> Result<()> {
        self.names(None)?;
        let data = varmap.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for member in self.members_mut() {
            let Some(var) = data.get(&member.name).filter(|var| var.as_tensor().id() != member.var.as_tensor().id())
            else {
                continue;
            };
            let (old, new) = (member.var.dims().to_vec(), var.dims());
            if old.get(1..) != new.get(1..) || old.len() != new.len() || member.var.dtype() != var.dtype() {
                return Err(Error::Config(format!(
                    "{:?} was {old:?} {} and is {new:?} {}: moments follow only to more or fewer rows",
                    member.name,
                    member.var.dtype().as_str(),
                    var.dtype().as_str()
                )));
            }
            let fit = |moment: Tensor| -> Result<Tensor> {
                let (old, new) = (moment.dim(0)?, var.dim(0)?);
                let kept = moment.narrow(0, 0, old.min(new))?;
                Ok(if new > old { kept.pad_with_zeros(0, 0, new - old)? } else { kept.contiguous()? })
            };
            let (m, v) = member.moments()?;
            let mut followed = Member::new(member.name.clone(), var.clone())?;
            if let (State::Table(new), State::Table(old)) = (&followed.state, &member.state) {
                new.state.set_replay(&new.table, old.state.replay())?;
            }
            followed.set_moments(&fit(m)?, &fit(v)?)?;
            *member = followed;
        }
        Ok(())
    }

    /// Names and shapes of what [`state`](Self::state) gives.
    pub(crate) fn state_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let moments = self
            .members()
            .flat_map(|member| ["m", "v"].map(|kind| (format!("{}.{kind}", member.name), member.var.dims().to_vec())));
        moments.chain([("step".to_string(), vec![1])]).collect()
    }

    /// What of a state is missing or has another shape, given the shapes by name.
    pub(crate) fn misfits(&self, shape_of: impl Fn(&str) -> Option<Vec<usize>>) -> Vec<String> {
        let wrong = |(name, shape): (String, Vec<usize>)| match shape_of(&name) {
            None => Some(format!("{name:?} is missing")),
            Some(found) if found != shape => Some(format!("{name:?} has shape {found:?}, not {shape:?}")),
            Some(_) => None,
        };
        self.state_shapes().into_iter().filter_map(wrong).collect()
    }

    fn tables(&self) -> impl Iterator<Item = &Attached> {
        self.members().filter_map(|member| match &member.state {
            State::Table(attached) => Some(attached),
            _ => None,
        })
    }
}

impl Member {
    fn new(name: String, var: Var) -> Result<Self> {
        let count = var.elem_count();
        let state = match (RowTable::find(var.as_tensor()), var.device(), var.dtype()) {
            (Some(table), ..) => State::Table(Attached::new(table, Replay::default())?),
            (None, Device::Cpu, DType::F64) => State::HostF64 { m: vec![0.0; count], v: vec![0.0; count] },
            (None, Device::Cpu, _) => State::Host { m: vec![0.0; count], v: vec![0.0; count] },
            (None, device, dtype) => {
                let dtype = if dtype == DType::F64 { dtype } else { DType::F32 };
                let zeros = || Tensor::zeros(var.shape(), dtype, device);
                State::Device { m: zeros()?, v: zeros()? }
            }
        };
        Ok(Member { name, var, state })
    }

    /// Both moments in the variable's shape, on the CPU.
    fn moments(&self) -> Result<(Tensor, Tensor)> {
        let shape = self.var.shape();
        Ok(match &self.state {
            State::Host { m, v } => {
                (Tensor::from_slice(m, shape, &Device::Cpu)?, Tensor::from_slice(v, shape, &Device::Cpu)?)
            }
            State::HostF64 { m, v } => {
                (Tensor::from_slice(m, shape, &Device::Cpu)?, Tensor::from_slice(v, shape, &Device::Cpu)?)
            }
            State::Device { m, v } => (m.to_device(&Device::Cpu)?, v.to_device(&Device::Cpu)?),
            State::Table(attached) => attached.state.moments(&attached.table)?,
        })
    }

    fn set_moments(&mut self, new_m: &Tensor, new_v: &Tensor) -> Result<()> {
        let (new_m32, new_v32) = (new_m.to_dtype(DType::F32)?, new_v.to_dtype(DType::F32)?);
        match &mut self.state {
            State::Host { m, v } => {
                (*m, *v) = (new_m32.flatten_all()?.to_vec1()?, new_v32.flatten_all()?.to_vec1()?);
            }
            State::HostF64 { m, v } => {
                *m = new_m.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
                *v = new_v.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
            }
            State::Device { m, v } => {
                // Copies: these are changed in place.
                let copy = |new: &Tensor| new.to_dtype(m.dtype())?.to_device(m.device())?.force_contiguous();
                (*m, *v) = (copy(new_m)?, copy(new_v)?);
            }
            State::Table(attached) => attached.state.set_moments(&attached.table, &new_m32, &new_v32)?,
        }
        Ok(())
    }

    fn step(&mut self, grads: &GradStore, params: &ParamsAdamW, t: usize) -> Result<()> {
        let weight = self.var.as_tensor();
        let grad = grads.get(weight);
        match (&mut self.state, grad) {
            (State::Table(attached), Some(grad)) => {
                add_rows_into(grad, &attached.table)?;
                attached.state.step_dense(&attached.table, grad, params, t)
            }
            (State::Table(attached), None) => attached.state.step_rows(&attached.table, params, t),
            (_, None) => Ok(()),
            (State::Host { m, v }, Some(grad)) => host::step_dense(weight, grad, m, v, &Step::new(params, t).to_f32()),
            (State::HostF64 { m, v }, Some(grad)) => host::step_dense_f64(weight, grad, m, v, &Step::new(params, t)),
            (State::Device { m, v }, Some(grad)) => on_device::step_dense(weight, grad, m, v, &Step::new(params, t)),
        }
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
