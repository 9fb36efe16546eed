//! Weights, optimizer state and loader state ⇄ one folder, written completely or not at all.
//!
//! ```text
//! runs/mine/                        the folder that is given to save and load
//!   step-00000200/                  one checkpoint; written as .tmp-…, synced, then renamed
//!     model.safetensors             every variable under its name in the VarMap
//!     optimizer.safetensors         what AdamW::state gives: step, NAME.m, NAME.v
//!     state.json                    step, seed, tokenizer, loader, and what the caller adds
//!     complete.json                 written last: bytes and CRC-32 of the three
//! ```
//!
//! This module does not depend on the training loop.

mod folder;
mod weights;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use serde::{Deserialize, Serialize};

use crate::loader::LoaderState;
use crate::optim::Stateful;
use crate::tensors::{self, TensorFile};
use crate::{Error, Result};
use folder::{Draft, Finished};
use weights::Weights;

pub use weights::{IncompatibleKeys, load_weights};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// The moments of a variable NAME are NAME.m and NAME.v.
const KINDS: [&str; 2] = ["m", "v"];

/// The state of a run beside its weights. [`save`](Self::save) and [`load`](Self::load) include weights and optimizer.
///
/// After a load the run continues bit for bit, provided that everything else it draws (dropout, sampling) is a function of seed and step.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
/// use tallow::{Checkpoint, Gradient, LoadOptions, TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
///
/// let build = || -> tallow::Result<(VarMap, TokenEmbedding, AdamW)> {
///     let varmap = VarMap::new();
///     let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
///     let cfg = TokenEmbeddingConfig { vocab_size: 100, d_model: 8, gradient: Gradient::RowSparse, ..Default::default() };
///     let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
///     let opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
///     Ok((varmap, wte, opt))
/// };
/// let step = |wte: &TokenEmbedding, opt: &mut AdamW| -> tallow::Result<()> {
///     let x = wte.forward(&Tensor::new(&[[7u32, 99]], &Device::Cpu)?)?;
///     Ok(opt.backward_step(&x.sqr()?.sum_all()?)?)
/// };
/// let folder = tempfile::tempdir()?;
/// let (varmap, wte, mut opt) = build()?;
/// step(&wte, &mut opt)?;
/// let saved = Checkpoint { step: 1, seed: 1337, ..Default::default() };
/// saved.save(folder.path(), &varmap, Some(&opt), 2)?;
///
/// let (again, wte_again, mut opt_again) = build()?; // another process
/// let (found, _) = Checkpoint::load(folder.path(), &again, Some(&mut opt_again), &LoadOptions::default())?;
/// assert_eq!(found, saved);
/// step(&wte, &mut opt)?;
/// step(&wte_again, &mut opt_again)?;
/// assert_eq!(wte.flushed_weight()?.to_vec2::<f32>()?, wte_again.flushed_weight()?.to_vec2::<f32>()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Steps taken. The folder is named after it.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// [`Tokenizer::fingerprint`](crate::Tokenizer::fingerprint) of the tokenizer that made the ids.
    #[serde(default, with = "fingerprint", skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<u64>,
    /// State of the data loader ([`DataLoader::state`](crate::DataLoader::state)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<LoaderState>,
    /// Any other JSON: the model's sizes, the losses so far. All fields together are at most 16 MiB of JSON.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub extra: serde_json::Value,
}

/// What [`Checkpoint::load`] and [`load_weights`] accept. The default requires equal names, shapes and dtypes.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{LoadOptions, load_weights};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("rows.safetensors");
/// Tensor::new(&[[1f32, 2.]], &Device::Cpu)?.save_safetensors("wte.weight", &path)?;
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// vb.get((1, 2), "wte.weight")?;
/// vb.get(2, "bias")?; // the file has no bias
/// assert!(load_weights(&path, &varmap, &LoadOptions::default()).is_err());
/// let skipped = load_weights(&path, &varmap, &LoadOptions { partial: true, ..Default::default() })?;
/// assert_eq!(skipped.missing, ["bias"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Fingerprint of the tokenizer in use. Weights that were trained with another one are an error. `None`: no check.
    pub tokenizer: Option<u64>,
    /// Load the weights whose names are on both sides, and return the other names (PyTorch's `strict=False`). Shapes must match, and
    /// an optimizer must match completely.
    pub partial: bool,
    /// Convert weights of another dtype.
    pub convert_dtype: bool,
    /// Device of the variables that are made in an empty VarMap. Existing variables keep their device.
    pub device: Device,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { tokenizer: None, partial: false, convert_dtype: false, device: Device::Cpu }
    }
}

impl Checkpoint {
    /// Writes `FOLDER/step-NNNNNNNN`, then deletes all but the newest `keep` checkpoints (0: keep all). Returns its path.
    ///
    /// Row-sparse tables are flushed first. Moments are saved under the names that the variables have in `varmap`, also for an
    /// optimizer that was made without names. Older checkpoints, also one of the same step, are deleted only after the new one is
    /// complete and on the disk. If the process is killed, all checkpoints in the folder are complete; the next save deletes the
    /// `.tmp-…` folder that is left. Only one process may save into a folder: with several ranks that hold the same model, rank 0.
    ///
    /// With weights that are split between ranks ([`VocabParallelEmbedding`](crate::distributed::VocabParallelEmbedding)) all ranks
    /// call this. Rank 0 collects them on its CPU and writes the file that one process would write; any number of ranks can load it.
    ///
    /// Not saved: the learning rate and the other parameters of the optimizer's groups. The caller sets them.
    ///
    /// # Errors
    /// - [`Error::Io`]: for example a full disk. The new files are deleted, older checkpoints stay.
    /// - [`Error::Checkpoint`]: `folder` is itself a checkpoint, or holds a later step. A run that continues from an earlier step must
    ///   save into another folder.
    /// - [`Error::Config`]: an empty VarMap, a variable of a dtype that candle cannot write to safetensors, JSON above 16 MiB, or an
    ///   optimizer without names whose variables are not in `varmap`.
    /// - [`Error::Candle`]: a variable cannot be copied from its device.
    /// - [`Error::Collective`]: rank 0 could not write the split weights; it has the reason.
    ///
    /// No new checkpoint exists after an error.
    ///
    /// # Cost
    /// Writes weights and moments once. Memory: a copy of the moments, and one weight at a time; on rank 0 also all split weights.
    pub fn save(
        &self,
        folder: impl AsRef<Path>,
        varmap: &VarMap,
        optimizer: Option<&dyn Stateful>,
        keep: usize,
    ) -> Result<PathBuf> {
        let folder = folder.as_ref();
        let weights = Weights::of(varmap);
        if weights.is_empty() {
            return Err(Error::Config("the VarMap is empty: there is nothing to save".to_string()));
        }
        let mut moments = optimizer.map(|optimizer| optimizer.state_by(Some(varmap))).transpose()?;
        weights.replay()?;
        let shards = weights.shards();
        let mut whole = HashMap::new();
        for (name, var, shard) in &shards {
            whole.extend(shard.gather(var)?.map(|weight| (*name, weight)));
            for kind in KINDS {
                let moment = moments.as_mut().and_then(|moments| moments.get_mut(&format!("{name}.{kind}")));
                if let Some(moment) = moment {
                    *moment = shard.gather(moment)?.unwrap_or_else(|| moment.clone());
                }
            }
        }
        let tensors = || weights.tensors().map(|(name, tensor)| (name, whole.get(name).unwrap_or(tensor)));
        let Some((_, _, shard)) = shards.first() else { return self.write(folder, tensors(), moments, keep) };
        let written = match shard.writes() {
            true => self.write(folder, tensors(), moments, keep),
            false => Ok(folder::path_of(folder, self.step)),
        };
        match shard.any([written.is_err()])? {
            [true] if written.is_ok() => Err(Error::Collective {
                operation: "Checkpoint::save",
                reason: "rank 0 could not write the file".to_string(),
            }),
            _ => written,
        }
    }

    fn write<'t>(
        &self,
        folder: &Path,
        weights: impl Iterator<Item = (&'t str, &'t Tensor)>,
        moments: Option<HashMap<String, Tensor>>,
        keep: usize,
    ) -> Result<PathBuf> {
        let mut notes = vec![("seed", self.seed.to_string()), ("step", self.step.to_string())];
        notes.extend(self.tokenizer.map(|id| ("tokenizer", format!("{id:016x}"))));
        let state = serde_json::to_vec_pretty(self).map_err(|e| Error::Config(format!("extra: {e}")))?;
        if state.len() as u64 > folder::MAX_JSON_BYTES {
            return Err(Error::Config(format!("{} bytes of JSON are too much for a checkpoint", state.len())));
        }
        let mut draft = Draft::new(folder, self.step)?;
        draft.write(MODEL, |out| tensors::write(out, weights, &notes))?;
        if let Some(moments) = &moments {
            draft.write(OPTIMIZER, |out| tensors::write(out, moments.iter().map(|(n, t)| (n.as_str(), t)), &notes))?;
        }
        draft.write(STATE, |out| Ok(out.write_all(&state)?))?;
        let path = draft.finish()?;
        folder::prune(folder, keep)?;
        Ok(path)
    }

    /// Loads the newest checkpoint of `folder`, or `folder` itself if it is a checkpoint, into the variables of `varmap` and the
    /// optimizer. Nothing is changed unless everything fits.
    ///
    /// An empty VarMap gets the variables of the file, on `options.device`, in their dtypes. Build the model over it, make
    /// the optimizer, and load again with it. (For weights that are split between ranks build the model first.) Without an optimizer,
    /// saved moments are not read. An optimizer that was made without names takes those of `varmap`
    /// ([`name_by`](crate::optim::Optim::name_by)).
    ///
    /// # Errors
    /// - [`Error::Checkpoint`]: no finished checkpoint; a truncated, changed or malicious file; a folder whose name has another
    ///   step; or one list of everything that does not fit: missing variables, shapes, dtypes, moments, the tokenizer.
    /// - [`Error::Config`]: an optimizer without names whose variables are not in `varmap`.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// Reads the files twice (checksums first). Memory: the moments, and one weight at a time. If weights are split between ranks, each
    /// rank reads the whole files, and needs that memory while it picks its rows.
    pub fn load(
        folder: impl AsRef<Path>,
        varmap: &VarMap,
        mut optimizer: Option<&mut dyn Stateful>,
        options: &LoadOptions,
    ) -> Result<(Checkpoint, IncompatibleKeys)> {
        let folder = folder.as_ref();
        let Some(finished) = Finished::find(folder)? else {
            std::fs::metadata(folder).map_err(|e| Error::io(folder, e))?;
            return Err(tensors::wrong(folder, "there is no finished checkpoint in this folder"));
        };
        finished.verify()?;
        let found = Self::parse(&finished)?;
        let model = TensorFile::open(&finished.path(MODEL))?;
        let weights = Weights::of(varmap);
        let (mut misfits, skipped) = weights.compare(&model, options);
        misfits.extend(weights::other_tokenizer(found.tokenizer, options));
        // Moments that are split between ranks, as their weights.
        let mut shards = HashMap::new();
        for (name, _, shard) in weights.shards() {
            shards.extend(KINDS.map(|kind| (format!("{name}.{kind}"), shard.clone())));
        }
        let mut moments = None;
        if let Some(optimizer) = &mut optimizer {
            optimizer.take_names(varmap)?;
            if finished.holds(OPTIMIZER) {
                let file = TensorFile::open(&finished.path(OPTIMIZER))?;
                let expected = optimizer.state_shapes();
                let shape_of = |name: &str| {
                    let shape = &file.header.info(name)?.shape;
                    let shard = shards.get(name).and_then(|shard| shard.part_shape(shape));
                    Some(shard.unwrap_or_else(|| shape.clone()))
                };
                misfits.extend(optimizer.misfits(&shape_of));
                let unknown = file.header.names().into_iter().filter(|name| !expected.contains_key(name));
                misfits.extend(unknown.map(|name| format!("the optimizer here has no {name:?}")));
                moments = Some(file);
            } else {
                misfits.push(format!("there is no {OPTIMIZER}: it was saved without an optimizer"));
            }
        }
        if !misfits.is_empty() {
            return Err(finished.misfit(misfits));
        }
        // The moments are read completely before the first weight changes.
        let mut moments = moments.map(|file| file.read_all()).transpose()?;
        for (name, moment) in moments.iter_mut().flatten() {
            if let Some(shard) = shards.get(name) {
                *moment = shard.part(moment)?;
            }
        }
        weights.fill(&model, varmap, options)?;
        if let (Some(optimizer), Some(moments)) = (optimizer, moments) {
            optimizer.restore(&moments)?;
        }
        Ok((found, skipped))
    }

    /// Reads only `state.json` of the checkpoint that [`load`](Self::load) would read. `None` if there is no finished checkpoint.
    ///
    /// # Errors
    /// As [`load`](Self::load); tensors are not checked.
    pub fn newest(folder: impl AsRef<Path>) -> Result<Option<Checkpoint>> {
        Ok(Self::find(folder)?.map(|(_, found)| found))
    }

    /// As [`newest`](Self::newest), with the folder of the checkpoint.
    ///
    /// # Errors
    /// As [`newest`](Self::newest).
    pub fn find(folder: impl AsRef<Path>) -> Result<Option<(PathBuf, Checkpoint)>> {
        let Some(finished) = Finished::find(folder.as_ref())? else { return Ok(None) };
        Ok(Some((finished.folder().to_path_buf(), Self::parse(&finished)?)))
    }

    fn parse(finished: &Finished) -> Result<Self> {
        let path = finished.path(STATE);
        let found: Self = serde_json::from_slice(&folder::read_json(&path)?)
            .map_err(|e| Error::Checkpoint { path, reason: format!("it is not the state of a checkpoint: {e}") })?;
        finished.is_of(found.step)?;
        Ok(found)
    }
}

/// A fingerprint as 16 hexadecimal digits. JSON readers that store numbers as doubles would round it.
mod fingerprint {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(fingerprint: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match fingerprint {
            Some(fingerprint) => to.serialize_str(&format!("{fingerprint:016x}")),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| u64::from_str_radix(&text, 16).map_err(D::Error::custom)).transpose()
    }
}
