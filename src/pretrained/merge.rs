//! The way back: a model's head into a layer, and trained variables among the model's other tensors.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use candle_nn::{VarBuilder, VarMap};
use serde_json::{Value, json};

use super::files::{has_ending, index_of, weight_files};
use super::open::Kind;
use super::{PretrainedTable, find};
use crate::rows::{RowTable, Rows};
use crate::support::variables::variables;
use crate::tensors::{TensorFile, dtype_of, wrong};
use crate::{Error, Head, Result, TokenEmbedding, Tokenizer};
use tallow_text::support::files::{folder_of, read_regular, sync_folder, temporary_folder};

impl PretrainedTable {
    /// The model's output layer: a variable `weight` of `vb` with the values of the model's own (`lm_head.weight`, say), or, where it has
    /// none, the table of `wte`; and a variable `bias`, if the model has that. Variables that `vb` already has (a run that goes on) are
    /// used as they are.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`]: more than one of the model's tensors could be the head.
    /// - those of [`embedding`](Self::embedding) and of reading.
    ///
    /// # Cost
    /// One pass over the head; a few MiB beside it.
    pub fn head(&self, wte: &TokenEmbedding, vb: VarBuilder) -> Result<Head> {
        let (mut weights, mut bias) = (Vec::new(), None);
        for path in self.model_files()? {
            for tensor in
                super::list_tensors(&path)?.into_iter().filter(|tensor| self.is_head(&tensor.name, &tensor.shape))
            {
                match tensor.name.ends_with("bias") {
                    true => bias = Some((path.clone(), tensor.name)),
                    // A pickle names a tied head, too: the same view of the same storage.
                    false if self.tied && path == self.path => (),
                    false => weights.push((path.clone(), tensor.name)),
                }
            }
        }
        let head = match &weights[..] {
            [] => Head::tied(wte),
            [(path, name)] => {
                let table = PretrainedTable::open(path, Some(name))?;
                Head::new(table.embedding(&table.config(), vb.clone())?.flushed_weight()?, None)?
            }
            many => {
                let names: Vec<&String> = many.iter().map(|(_, name)| name).collect();
                return Err(wrong(&self.path, format!("it is unsure which tensor is the head: {names:?}")));
            }
        };
        let Some((path, name)) = bias else { return Ok(head) };
        let new = !vb.contains_tensor("bias");
        let bias = vb.get_with_hints(self.shape.0, "bias", candle_nn::Init::Const(0.0))?;
        if new {
            let values = TensorFile::open(&path)?.read(&name, vb.device())?;
            bias.slice_set(&values.to_dtype(bias.dtype())?, 0, 0)?;
        }
        head.with_bias(&bias)
    }

    /// Writes the model that this table is of into a new folder, with the variables of `varmap` in the place of the tensors of the same
    /// names, and with this tokenizer. Everything else is copied bit for bit.
    ///
    /// Variables are named as the model names its tensors (`vb.pp("model.embed_tokens")`, `vb.pp("lm_head")`): of a model in
    /// shards each goes into the shard that it was in. They are written in the dtype of the file, so that of a bf16 model rows that
    /// did not train keep their bits. Table, head and the head's bias may have more rows than before; `vocab_size` in config.json
    /// changes with them. tokenizer.json is `tokenizer`'s ([`Tokenizer::save`]). Of other files those that lie in the model's folder
    /// itself are copied, but for other weights (in other formats, or that the index does not name), which would be the old ones; a list of
    /// added tokens in tokenizer_config.json gets the new ones, too.
    ///
    /// The folder appears whole or not at all (killed, this leaves a folder `.tmp-…` beside it, to be deleted). transformers loads it as it
    /// loaded the old one.
    ///
    /// # Errors
    /// - [`Error::Config`]: a variable that is no tensor of the model, of another shape, or of a dtype that cannot hold the file's values; a
    ///   table that grew while the model's own head, its bias or a copy of the table did not; fewer rows than the tokenizer has ids; a
    ///   config.json without the old `vocab_size`; `out` is there already and not an empty folder.
    /// - [`Error::Checkpoint`]: weights that are not safetensors files, or not all there.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// One pass over the model's files, some 10 MiB: as fast as copying them.
    pub fn merge_into(&self, out: impl AsRef<Path>, varmap: &VarMap, tokenizer: &Tokenizer) -> Result<()> {
        let (out, folder) = (out.as_ref(), folder_of(&self.path));
        let files = self.model_files()?.into_iter().map(|path| match Kind::of(&path)? {
            Kind::Safetensors => TensorFile::open(&path),
            _ => Err(wrong(&path, "only a model of safetensors files can be merged into: save it as such first")),
        });
        let files: Vec<TensorFile> = files.collect::<Result<_>>()?;
        let new = self.replacements(&files, varmap, tokenizer)?;
        let rows = new.get(&self.name).map_or(self.shape.0, |table| table.dims()[0]);
        let empty = || fs::read_dir(out).is_ok_and(|mut inside| inside.next().is_none());
        let is_new = fs::symlink_metadata(out).map_or(true, |about| about.is_dir() && empty());
        if !is_new || out.file_name().is_none() {
            return Err(Error::Config(format!("{} is there already: name a new folder", out.display())));
        }
        let (others, index) = (self.other_files(folder)?, index_of(folder, super::files::WHOLE[0]));
        let in_shards = index.is_file() && files.iter().all(|file| !file.path().ends_with(super::files::WHOLE[0]));
        if in_shards {
            all_here(&index, &files)?;
        }

        fs::create_dir_all(folder_of(out)).map_err(|e| Error::io(out, e))?;
        let temporary = temporary_folder(folder_of(out))?;
        let into = |path: &Path| temporary.path().join(path.file_name().unwrap_or_default());
        tokenizer.save(temporary.path().join("tokenizer.json"))?;
        let mut bytes = 0;
        for file in &files {
            bytes += file.rewrite(&into(file.path()), &new)?;
        }
        let more = new.iter().map(|(name, tensor)| {
            let old =
                files.iter().find_map(|file| file.header.info(name)).map_or(0, |info| info.shape.iter().product());
            tensor.elem_count() as i64 - old as i64
        });
        let more = more.sum();
        for path in others {
            let to = into(&path);
            match path.file_name().is_some_and(|name| name == "tokenizer_config.json") {
                true => rewrite_text(&path, &to, |text| with_added_tokens(text, tokenizer))?,
                false => {
                    let copied = fs::copy(&path, &to).and_then(|_| File::open(&to)?.sync_all());
                    copied.map_err(|e| Error::io(&to, e))?;
                }
            }
        }
        if in_shards {
            rewrite_text(&index, &into(&index), |text| with_sizes(text, bytes, more))?;
        }
        let config = folder.join("config.json");
        if config.is_file() {
            rewrite_text(&config, &into(&config), |text| with_vocab_size(text, self.shape.0, rows))?;
        }
        sync_folder(temporary.path())?;
        if out.is_dir() {
            fs::remove_dir(out).map_err(|e| Error::io(out, e))?; // an empty one
        }
        fs::rename(temporary.path(), out).map_err(|e| Error::io(out, e))?;
        sync_folder(folder_of(out))?;
        Ok(())
    }

    /// Whether a tensor is the model's head, or the head's bias.
    fn is_head(&self, name: &str, shape: &[usize]) -> bool {
        find::is_head_or_bias(name) && shape.first() == Some(&self.shape.0)
    }

    /// The weights of the model that this table is of.
    fn model_files(&self) -> Result<Vec<PathBuf>> {
        let all = weight_files(folder_of(&self.path))?;
        Ok(if all.contains(&self.path) { all } else { vec![self.path.clone()] })
    }

    /// What else a model consists of: files of its folder that are neither weights nor written anew.
    fn other_files(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let io = |e| Error::io(folder, e);
        let mut others = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let anew = ["config.json", "tokenizer.json"].contains(&name.as_str()) || name.ends_with(".index.json");
            others.extend((!anew && !has_ending(&path) && path.is_file()).then_some(path));
        }
        others.sort();
        Ok(others)
    }

    /// The variables by name, found to fit the model.
    fn replacements(
        &self,
        files: &[TensorFile],
        varmap: &VarMap,
        tokenizer: &Tokenizer,
    ) -> Result<HashMap<String, Tensor>> {
        let wrong = |what: String| Err(Error::Config(what));
        let named: BTreeMap<String, _> = variables(varmap).into_iter().collect();
        let rows = named.get(&self.name).map_or(self.shape.0, |table| table.dims().first().copied().unwrap_or(0));
        if tokenizer.vocab_size() > rows {
            let (name, ids) = (tokenizer.name(), tokenizer.vocab_size());
            return wrong(format!("{} has {rows} rows and {name} {ids} ids: add the tokens to both", self.name));
        }
        let mut new = HashMap::new();
        for file in files {
            for name in file.header.names() {
                let Some(info) = file.header.info(&name) else { continue };
                // Models have copies of either end under names of their own.
                let is_copy = info.shape == [self.shape.0, self.shape.1] && find::may_be_an_end(&name);
                let is_end = name == self.name || is_copy || self.is_head(&name, &info.shape);
                let mut shape = info.shape.clone();
                if is_end {
                    shape[0] = rows;
                }
                let var = named.get(&name);
                if shape != info.shape && var.is_none_or(|var| var.dims() == info.shape) {
                    return wrong(format!(
                        "{} has {rows} rows now and {name} still {}: give the head to `add_tokens` (or resize what else it is), and \
                         name it {name:?} in the VarMap",
                        self.name, info.shape[0]
                    ));
                }
                let Some(var) = var else { continue };
                if var.dims() != shape {
                    return wrong(format!(
                        "the variable {name:?} has shape {:?}, the model's tensor {shape:?}",
                        var.dims()
                    ));
                }
                let dtype = dtype_of(info).map_err(|reason| Error::Config(format!("{name:?} {reason}")))?;
                if !holds(var.dtype(), dtype) {
                    return wrong(format!(
                        "the variable {name:?} is {} and the model's tensor {}: rows that did not train would change; make the \
                         VarBuilder in f32 or in the file's dtype",
                        var.dtype().as_str(),
                        dtype.as_str()
                    ));
                }
                if let Some(table) = RowTable::find(var) {
                    table.replay(Rows::All)?;
                }
                new.insert(name, var.as_tensor().detach());
            }
        }
        match named.into_keys().find(|name| !new.contains_key(name)) {
            Some(name) => wrong(format!(
                "the model has no tensor {name:?}: name variables as the model does, the table {:?}",
                self.name
            )),
            None => Ok(new),
        }
    }
}

/// Whether one dtype has every value of another.
fn holds(wide: DType, narrow: DType) -> bool {
    wide == narrow || wide == DType::F64 || wide == DType::F32 && matches!(narrow, DType::BF16 | DType::F16)
}

/// An error if a tensor that the index names is in none of the files.
fn all_here(index: &Path, files: &[TensorFile]) -> Result<()> {
    let text = read_regular(index).map_err(|e| Error::io(index, e))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| wrong(index, format!("it is no index: {e}")))?;
    let absent = |name: &str| files.iter().all(|file| file.header.info(name).is_none());
    match json["weight_map"].as_object().into_iter().flatten().find(|(name, _)| absent(name)) {
        None => Ok(()),
        Some((name, file)) => {
            Err(wrong(index, format!("{name:?} should lie in {file}, which is not here: fetch the whole model")))
        }
    }
}

/// Writes a text file once more, changed.
fn rewrite_text(from: &Path, to: &Path, change: impl Fn(&str) -> std::result::Result<String, String>) -> Result<()> {
    let text = read_regular(from).map_err(|e| Error::io(from, e))?;
    let text = String::from_utf8(text).map_err(|_| wrong(from, "it is not text"))?;
    let text = change(&text).map_err(|reason| wrong(from, reason))?;
    let mut file = File::create_new(to).map_err(|e| Error::io(to, e))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| Error::io(to, e))
}

/// An index of shards with another size, and so many numbers more, as transformers writes it.
fn with_sizes(text: &str, bytes: u64, more: i64) -> std::result::Result<String, String> {
    let mut index: Value = serde_json::from_str(text).map_err(|e| format!("it is no index of shards: {e}"))?;
    if let Some(about) = index.get_mut("metadata").and_then(Value::as_object_mut) {
        about.insert("total_size".to_string(), json!(bytes));
        if let Some(parameters) = about.get("total_parameters").and_then(Value::as_i64) {
            about.insert("total_parameters".to_string(), json!(parameters + more));
        }
    }
    serde_json::to_string_pretty(&index).map(|text| text + "\n").map_err(|e| e.to_string())
}

/// A tokenizer_config.json whose list of added tokens, if it has one, has all special tokens: some classes of transformers go by that
/// list and not by tokenizer.json.
fn with_added_tokens(text: &str, tokenizer: &Tokenizer) -> std::result::Result<String, String> {
    let mut config: Value = serde_json::from_str(text).map_err(|e| format!("it is no JSON: {e}"))?;
    let listed = config.get_mut("added_tokens_decoder").and_then(Value::as_object_mut);
    let Some(listed) = listed else { return Ok(text.to_string()) };
    let before = listed.len();
    for (token, id) in tokenizer.special_ids() {
        listed.entry(id.to_string()).or_insert_with(|| {
            json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true})
        });
    }
    match listed.len() == before {
        true => Ok(text.to_string()),
        false => serde_json::to_string_pretty(&config).map(|text| text + "\n").map_err(|e| e.to_string()),
    }
}

/// A config with another `vocab_size`, wherever the old one stands; nothing else in the text changes.
fn with_vocab_size(text: &str, old: usize, new: usize) -> std::result::Result<String, String> {
    const KEY: &str = "\"vocab_size\"";
    serde_json::from_str::<Value>(text).map_err(|e| format!("it is no JSON: {e}"))?;
    let (mut out, mut rest, mut found) = (String::new(), text, false);
    while let Some(at) = rest.find(KEY) {
        let (before, after) = rest.split_at(at + KEY.len());
        out.push_str(before);
        let number = after.trim_start().trim_start_matches(':').trim_start();
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        rest = after;
        if number[..end] == old.to_string() {
            found = true;
            out.push_str(&after[..after.len() - number.len()]);
            out.push_str(&new.to_string());
            rest = &number[end..];
        }
    }
    match found || old == new {
        true => Ok(out + rest),
        false => Err(format!("it has no \"vocab_size\": {old} that could become {new}")),
    }
}

#[cfg(test)]
mod tests {
    use super::with_vocab_size;

    #[test]
    fn only_the_vocabulary_s_size_changes() {
        let config =
            "{\"a\": 64, \"vocab_size\" : 64,\n \"vision\": {\"vocab_size\": 7}, \"text\": {\"vocab_size\":64}}";
        let grown =
            "{\"a\": 64, \"vocab_size\" : 66,\n \"vision\": {\"vocab_size\": 7}, \"text\": {\"vocab_size\":66}}";
        assert_eq!(with_vocab_size(config, 64, 66).unwrap(), grown);
        assert_eq!(with_vocab_size("{}", 64, 64).unwrap(), "{}");
        assert!(with_vocab_size("{\"vocab_size\": 640}", 64, 66).unwrap_err().contains("64"));
        assert!(with_vocab_size("{\"vocab_size\": 64", 64, 66).is_err());
    }
}
