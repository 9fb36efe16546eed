//! Loads a model's head into a layer, and saves trained variables together with the model's other tensors.

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
use crate::rows::RowTable;
use crate::support::variables::variables;
use crate::tensors::{TensorFile, dtype_of, wrong};
use crate::{Error, Head, Result, TokenEmbedding, Tokenizer};
use tallow_text::support::files::{folder_of, read_regular, sync_folder, temporary_folder};

impl PretrainedTable {
    /// The model's output layer. If the model has its own (such as `lm_head.weight`), the head has a variable `weight` of `vb` with
    /// its values, else it is tied to `wte`. If the model has a bias, the head has a variable `bias`. Variables that `vb` already has
    /// (in a resumed run) are used unchanged.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`]: more than one of the model's tensors could be the head.
    /// - those of [`embedding`](Self::embedding) and of reading.
    ///
    /// # Cost
    /// One pass over the head, and a few MiB of memory beside it.
    pub fn head(&self, wte: &TokenEmbedding, vb: VarBuilder) -> Result<Head> {
        let (mut weights, mut bias) = (Vec::new(), None);
        for path in self.model_files()? {
            for tensor in
                super::list_tensors(&path)?.into_iter().filter(|tensor| self.is_head(&tensor.name, &tensor.shape))
            {
                match tensor.name.ends_with("bias") {
                    true => bias = Some((path.clone(), tensor.name)),
                    // A pickle also contains a tied head, as the same view of the same storage.
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

    /// Writes this table's model to a new folder. The variables of `varmap` replace the tensors of the same names, and `tokenizer`
    /// replaces the tokenizer. Everything else is copied bit for bit.
    ///
    /// Variables must have the names of the model's tensors (`vb.pp("model.embed_tokens")`, `vb.pp("lm_head")`). In a model in
    /// shards each is written to the shard of its tensor. They are written in the dtype of the file, so untrained rows of a bf16 model
    /// keep their bits. Table, head and the head's bias may have more rows than before; `vocab_size` in config.json is updated.
    /// tokenizer.json is written by [`Tokenizer::save`]. A list of added tokens in tokenizer_config.json also gets the new tokens.
    /// Other files in the model's folder (not in its subfolders) are copied, except other weight files (in other formats, or not in
    /// the index), which would hold the old weights.
    ///
    /// The folder is written completely or not at all. (A killed process leaves a folder `.tmp-…` beside it, which can be deleted.)
    /// transformers loads the new folder as it loads the old one.
    ///
    /// # Errors
    /// - [`Error::Config`]: a variable that is not a tensor of the model, or has another shape, or a dtype that cannot hold the file's
    ///   values; a table that grew while the model's own head, its bias or a copy of the table did not; fewer rows than the tokenizer
    ///   has ids; a config.json without the old `vocab_size`; `out` exists and is not an empty folder.
    /// - [`Error::Checkpoint`]: weights that are not safetensors files, or missing files.
    /// - [`Error::Io`].
    ///
    /// # Cost
    /// One pass over the model's files, as fast as copying them, and about 10 MiB of memory.
    pub fn merge_into(&self, out: impl AsRef<Path>, varmap: &VarMap, tokenizer: &Tokenizer) -> Result<()> {
        let (out, folder) = (out.as_ref(), folder_of(&self.path));
        let files = self.model_files()?.into_iter().map(|path| match Kind::of(&path)? {
            Kind::Safetensors => TensorFile::open(&path),
            _ => Err(wrong(&path, "merge_into needs a model of safetensors files: save it in that format first")),
        });
        let files: Vec<TensorFile> = files.collect::<Result<_>>()?;
        let new = self.replacements(&files, varmap, tokenizer)?;
        let rows = new.get(&self.name).map_or(self.shape.0, |table| table.dims()[0]);
        let empty = || fs::read_dir(out).is_ok_and(|mut inside| inside.next().is_none());
        let is_new = fs::symlink_metadata(out).map_or(true, |about| about.is_dir() && empty());
        if !is_new || out.file_name().is_none() {
            return Err(Error::Config(format!("{} exists already: name a new folder", out.display())));
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

    /// The weight files of this table's model.
    fn model_files(&self) -> Result<Vec<PathBuf>> {
        let all = weight_files(folder_of(&self.path))?;
        Ok(if all.contains(&self.path) { all } else { vec![self.path.clone()] })
    }

    /// The other files of the model's folder: neither weights nor files that are written anew.
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

    /// The variables by name, after a check that they fit the model.
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
                // A model may have copies of the table or the head under other names.
                let is_copy = info.shape == [self.shape.0, self.shape.1] && find::may_be_an_end(&name);
                let is_end = name == self.name || is_copy || self.is_head(&name, &info.shape);
                let mut shape = info.shape.clone();
                if is_end {
                    shape[0] = rows;
                }
                let var = named.get(&name);
                if shape != info.shape && var.is_none_or(|var| var.dims() == info.shape) {
                    return wrong(format!(
                        "{} has {rows} rows now and {name} still {}: pass the head to `add_tokens` (resize any other tensor), and \
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
                        "the variable {name:?} is {} and the model's tensor {}: untrained rows would change; make the \
                         VarBuilder in f32 or in the file's dtype",
                        var.dtype().as_str(),
                        dtype.as_str()
                    ));
                }
                RowTable::flush(var)?;
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

/// Whether `wide` represents every value of `narrow` exactly.
fn holds(wide: DType, narrow: DType) -> bool {
    wide == narrow || wide == DType::F64 || wide == DType::F32 && matches!(narrow, DType::BF16 | DType::F16)
}

/// An error if a tensor of the index is in none of the files.
fn all_here(index: &Path, files: &[TensorFile]) -> Result<()> {
    let text = read_regular(index).map_err(|e| Error::io(index, e))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| wrong(index, format!("it is not an index: {e}")))?;
    let absent = |name: &str| files.iter().all(|file| file.header.info(name).is_none());
    match json["weight_map"].as_object().into_iter().flatten().find(|(name, _)| absent(name)) {
        None => Ok(()),
        Some((name, file)) => {
            Err(wrong(index, format!("{name:?} should be in {file}, which is missing: fetch the whole model")))
        }
    }
}

/// Writes a changed copy of a text file.
fn rewrite_text(from: &Path, to: &Path, change: impl Fn(&str) -> std::result::Result<String, String>) -> Result<()> {
    let text = read_regular(from).map_err(|e| Error::io(from, e))?;
    let text = String::from_utf8(text).map_err(|_| wrong(from, "it is not text"))?;
    let text = change(&text).map_err(|reason| wrong(from, reason))?;
    let mut file = File::create_new(to).map_err(|e| Error::io(to, e))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| Error::io(to, e))
}

/// An index of shards with the new size in bytes, and `more` parameters more, as transformers writes it.
fn with_sizes(text: &str, bytes: u64, more: i64) -> std::result::Result<String, String> {
    let mut index: Value = serde_json::from_str(text).map_err(|e| format!("it is not an index of shards: {e}"))?;
    if let Some(about) = index.get_mut("metadata").and_then(Value::as_object_mut) {
        about.insert("total_size".to_string(), json!(bytes));
        if let Some(parameters) = about.get("total_parameters").and_then(Value::as_i64) {
            about.insert("total_parameters".to_string(), json!(parameters + more));
        }
    }
    serde_json::to_string_pretty(&index).map(|text| text + "\n").map_err(|e| e.to_string())
}

/// Adds all special tokens to the list of added tokens in a tokenizer_config.json, if it has one. Some classes of transformers use this
/// list instead of tokenizer.json.
fn with_added_tokens(text: &str, tokenizer: &Tokenizer) -> std::result::Result<String, String> {
    let mut config: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
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

/// Replaces every old `vocab_size` in a config. The rest of the text does not change.
fn with_vocab_size(text: &str, old: usize, new: usize) -> std::result::Result<String, String> {
    const KEY: &str = "\"vocab_size\"";
    serde_json::from_str::<Value>(text).map_err(|e| format!("it is not JSON: {e}"))?;
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
        false => Err(format!("it has no \"vocab_size\": {old} to replace by {new}")),
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
