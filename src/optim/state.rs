//! The state of an optimizer between steps: names and moments. Saves, loads, and carries it over to a resized table.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;

use super::engine::Optim;
use super::rule::Rule;
use super::variable::Variable;
use crate::support::variables::variables;
use crate::{Error, Result};

/// An optimizer that a [`Checkpoint`](crate::Checkpoint) can save: [`AdamW`](super::AdamW), [`Sgd`](super::Sgd).
///
/// # Example
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{ParamsAdamW, VarBuilder, VarMap};
/// use tallow::Checkpoint;
/// use tallow::optim::{AdamW, Stateful};
/// let (folder, varmap) = (tempfile::tempdir()?, VarMap::new());
/// candle_nn::linear(2, 3, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
/// let opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
/// let stateful: &dyn Stateful = &opt;
/// let path = Checkpoint { step: 7, ..Default::default() }.save(folder.path(), &varmap, Some(stateful), 2)?;
/// assert!(path.ends_with("step-00000007"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[allow(private_bounds)] // no other implementations
pub trait Stateful: Parts {}

impl<P: Rule> Stateful for Optim<P> {}

/// What a checkpoint needs of an optimizer.
pub(crate) trait Parts {
    /// Its state. An optimizer without names uses those of `varmap`.
    fn state_by(&self, varmap: Option<&VarMap>) -> Result<HashMap<String, Tensor>>;
    /// Takes the names of `varmap`, if it has none.
    fn take_names(&mut self, varmap: &VarMap) -> Result<()>;
    /// Names and shapes of its state.
    fn state_shapes(&self) -> BTreeMap<String, Vec<usize>>;
    /// The tensors of the state that are missing or have another shape. `shape_of` returns the shape of a name.
    fn misfits(&self, shape_of: &dyn Fn(&str) -> Option<Vec<usize>>) -> Vec<String> {
        let wrong = |(name, shape): (String, Vec<usize>)| match shape_of(&name) {
            None => Some(format!("{name:?} is missing")),
            Some(found) if found != shape => Some(format!("{name:?} has shape {found:?}, not {shape:?}")),
            Some(_) => None,
        };
        self.state_shapes().into_iter().filter_map(wrong).collect()
    }
    /// Discards pending row gradients, and restores a state.
    fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()>;
}

impl<P: Rule> Parts for Optim<P> {
    fn state_by(&self, varmap: Option<&VarMap>) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::from([("step".to_string(), Tensor::new(&[self.step as i64], &Device::Cpu)?)]);
        for (member, name) in self.members().zip(self.names(varmap)?) {
            if let Some([m, v]) = member.moments()? {
                state.insert(format!("{name}.m"), m);
                state.insert(format!("{name}.v"), v);
            }
        }
        Ok(state)
    }

    fn take_names(&mut self, varmap: &VarMap) -> Result<()> {
        self.name_by(varmap)
    }

    fn state_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let kinds: &[&str] = if P::MOMENTS { &["m", "v"] } else { &[] };
        let of = |member: &Variable| {
            let (name, shape) = (member.name.clone(), member.var.dims().to_vec());
            kinds.iter().map(move |kind| (format!("{name}.{kind}"), shape.clone()))
        };
        self.members().flat_map(of).chain([("step".to_string(), vec![1])]).collect()
    }

    fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.zero_grad();
        self.load_state(state)
    }
}

impl<P: Rule> Optim<P> {
    /// Gives the variables of an optimizer that was made without names ([`candle_nn::Optimizer::new`]) their names in `varmap`.
    ///
    /// # Errors
    /// [`Error::Config`]: a variable that is not in `varmap`, or that occurs twice. Nothing is changed after an error.
    pub fn name_by(&mut self, varmap: &VarMap) -> Result<()> {
        if !self.named {
            let names = self.names(Some(varmap))?;
            self.members_mut().zip(names).for_each(|(member, name)| member.name = name);
            self.named = true;
        }
        Ok(())
    }

    /// The names of all variables: the given ones, or those in `varmap`.
    fn names(&self, varmap: Option<&VarMap>) -> Result<Vec<String>> {
        if self.named {
            return Ok(self.members().map(|member| member.name.clone()).collect());
        }
        let Some(varmap) = varmap else {
            return Err(Error::Config(
                "this optimizer was made without names (`new`), and the order of its variables can differ in the next \
                 process: make it with from_varmap, or call name_by(&varmap) first"
                    .to_string(),
            ));
        };
        let known = variables(varmap);
        let mut by_id = HashMap::new();
        // If a variable has several names, the first one is used.
        known.iter().for_each(|(name, var)| _ = by_id.entry(var.as_tensor().id()).or_insert(name));
        let mut names = Vec::new();
        for member in self.members() {
            let Some(name) = by_id.get(&member.var.as_tensor().id()) else {
                return Err(Error::Config(format!(
                    "the optimizer has a variable of shape {:?} that is not in the VarMap, so its moments have no name: make \
                     it with with_groups, with names",
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

    /// The state for a checkpoint: `step` (one i64), and for each variable of AdamW `NAME.m` and `NAME.v` in the
    /// variable's shape, f32 (f64 for f64 weights), on the CPU.
    ///
    /// All rows are flushed first, so the state is that of a dense AdamW for every [`Replay`](super::Replay).
    ///
    /// # Errors
    /// [`Error::Config`] if the variables have no names (see [`name_by`](Self::name_by)); those of candle's operations.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        self.state_by(None)
    }

    /// Restores a state from [`state`](Self::state). Nothing is changed unless everything fits.
    ///
    /// # Errors
    /// [`Error::Config`]: a list of all tensors that are missing or have another shape; or the variables have no names (see
    /// [`name_by`](Self::name_by)).
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.names(None)?;
        let mut wrong = self.misfits(&|name| state.get(name).map(|tensor| tensor.dims().to_vec()));
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
            if P::MOMENTS {
                member.set_moments(["m", "v"].map(|kind| &state[&format!("{}.{kind}", member.name)]))?;
            }
        }
        self.step = step;
        Ok(())
    }

    /// Replaces the optimizer's variables by the current variables of `varmap` with the same names. Call it after
    /// [`TokenEmbedding::resize`](crate::TokenEmbedding::resize) or [`shrink`](crate::TokenEmbedding::shrink). Existing rows
    /// keep their moments, new rows start with zero moments. The step count is shared and is not reset. Pending row gradients of a
    /// replaced table are discarded.
    ///
    /// # Errors
    /// - [`Error::SecondOptimizer`]: a table has another optimizer.
    /// - [`Error::Config`]: a variable differs in dtype, or in more than the first dimension of its shape; or the variables have no
    ///   names (call [`name_by`](Self::name_by) before the table changes).
    ///
    /// # Cost
    /// A copy of the moments of each variable that was replaced.
    pub fn follow(&mut self, varmap: &VarMap) -> Result<()> {
        self.names(None)?;
        let data: HashMap<String, Var> = variables(varmap).into_iter().collect();
        for member in self.members_mut() {
            let Some(var) = data.get(&member.name).filter(|var| var.as_tensor().id() != member.var.as_tensor().id())
            else {
                continue;
            };
            let (old, new) = (member.var.dims().to_vec(), var.dims());
            if old.get(1..) != new.get(1..) || old.len() != new.len() || member.var.dtype() != var.dtype() {
                return Err(Error::Config(format!(
                    "{:?} was {old:?} {} and is {new:?} {}: only the number of rows may change",
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
            let moments = member.moments()?;
            let followed = Variable::new(member.name.clone(), var.clone(), P::MOMENTS)?;
            followed.set_replay(member.how())?;
            if let Some([m, v]) = moments {
                followed.set_moments([&fit(m)?, &fit(v)?])?;
            }
            *member = followed;
        }
        Ok(())
    }
}
