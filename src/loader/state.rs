//! Where a loader is, as a small JSON value.

use serde::{Deserialize, Serialize};

use super::Order;
use crate::{Error, Result};

/// Everything that a [`DataLoader`](super::DataLoader) needs to go on: less than 256 bytes of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Version of this state: 1.
    pub version: u32,
    /// Fingerprint of the data, 16 hexadecimal digits.
    pub dataset: String,
    /// Order of the samples.
    pub order: Order,
    /// Columns of a batch.
    pub context_length: usize,
    /// Seed of the order.
    pub seed: u64,
    /// The epoch, from 0, in which the next sample is. It follows from `samples`; a state in which it does not is refused.
    pub epoch: u64,
    /// Samples that were given out since the beginning, of all ranks and epochs.
    pub samples: u64,
}

impl LoaderState {
    pub(super) fn compare_with(&self, loader: &LoaderState) -> Result<()> {
        let mut differs = Vec::new();
        let mut compare = |what: &str, state: &dyn std::fmt::Display, loader: &dyn std::fmt::Display| {
            let (state, loader) = (state.to_string(), loader.to_string());
            if state != loader {
                differs.push(format!("{what} is {state} in the state and {loader} here"));
            }
        };
        compare("the version", &self.version, &loader.version);
        compare("the dataset", &self.dataset, &loader.dataset);
        compare("the order", &format!("{:?}", self.order), &format!("{:?}", loader.order));
        compare("the context length", &self.context_length, &loader.context_length);
        compare("the seed", &self.seed, &loader.seed);
        match differs.is_empty() {
            true => Ok(()),
            false => Err(Error::LoaderState { reason: differs.join("; ") }),
        }
    }
}
