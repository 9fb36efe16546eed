//! The variables of a VarMap.

use std::sync::PoisonError;

use candle_core::{Tensor, Var};
use candle_nn::VarMap;

/// All variables by name, in alphabetical order. (A VarMap's own order differs between processes.)
pub(crate) fn variables(varmap: &VarMap) -> Vec<(String, Var)> {
    let data = varmap.data().lock().unwrap_or_else(PoisonError::into_inner);
    let mut named: Vec<_> = data.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
}

/// The name of this variable.
pub(crate) fn name_of(varmap: &VarMap, tensor: &Tensor) -> Option<String> {
    variables(varmap).into_iter().find(|(_, var)| var.as_tensor().id() == tensor.id()).map(|(name, _)| name)
}

/// Inserts variables under these names, and replaces existing ones.
pub(crate) fn insert(varmap: &VarMap, named: impl IntoIterator<Item = (String, Var)>) {
    varmap.data().lock().unwrap_or_else(PoisonError::into_inner).extend(named);
}
