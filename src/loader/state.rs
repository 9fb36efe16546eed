//! The position of a loader, as a small JSON value.

use serde::{Deserialize, Serialize};

use super::Order;
use crate::{Error, Result};

/// The position of a [`DataLoader`](super::DataLoader), to resume it: less than 256 bytes of JSON.
///
/// # Example
/// ```
/// use tallow::loader::LoaderState;
/// use tallow::{DataLoader, DataLoaderConfig, Dataset};
/// let ids: Vec<u32> = (0..100).collect();
/// let train = Dataset::from_ids(&ids, 0.0)?.split("train")?;
/// let cfg = DataLoaderConfig { batch_size: 2, context_length: 8, ..Default::default() };
/// let mut loader = DataLoader::new(&train, cfg)?;
/// loader.next().expect("there are 12 windows of 8")?;
/// let state = loader.state();
/// assert_eq!((state.samples, state.epoch), (2, 0));
/// assert_eq!(serde_json::from_str::<LoaderState>(&serde_json::to_string(&state)?)?, state);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// The epoch of the next sample, from 0. It must match `samples`, else loading the state is an error.
    pub epoch: u64,
    /// Samples that were returned since the start of the run, of all ranks and epochs.
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
