//! Models that grow at both ends, and go back into a folder that others read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::AdamW;
use tallow::{
    Error, Fill, Gradient, Head, PretrainedTable, TokenEmbedding, TokenEmbeddingConfig, Tokenizer, list_tensors,
    weight_files,
};

use crate::support;

#[allow(dead_code, clippy::duplicate_mod)] // its main, and the flags of examples
#[path = "../../examples/finetune.rs"]
mod finetune;

type Out = anyhow::Result<()>;
const CPU: Device = Device::Cpu;

fn tiny_llama() -> PathBuf {
    support::root().join("assets/tiny-llama")
}

fn bits(tensor: &Tensor) -> Vec<Vec<u32>> {
    let rows = tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

fn variable(varmap: &VarMap, name: &str) -> Option<Tensor> {
    varmap.data().lock().unwrap().get(name).map(|var| var.as_tensor().clone())
}

fn message<T>(result: Result<T, Error>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

/// A model with a head of its own, bias and all, for a tokenizer of `tokens` ordinary tokens.
fn untied(rows: usize, bias: bool) -> (VarMap, TokenEmbedding, Head) {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let cfg =
        TokenEmbeddingConfig { vocab_size: rows, d_model: 4, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
    let noise = candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 };
    let weight = vb.get_with_hints((rows, 4), "lm_head.weight", noise).unwrap();
    let bias = bias.then(|| vb.get_with_hints(rows, "lm_head.bias", noise).unwrap());
    let head = Head::new(&weight, bias.as_ref()).unwrap().with_soft_cap(30.0).unwrap();
    (varmap, wte, head)
}

fn bytes_tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes.tiktoken");
    support::rank_file(&path, 256, |id| Some(vec![id as u8]));
    Tokenizer::from_file(&path).unwrap()
}

#[test]
fn both_ends_grow_or_neither() -> Out {
    for (spare, bias) in [(0, false), (0, true), (1, true), (5, false)] {
        let mut tokenizer = bytes_tokenizer();
        let rows = 256 + spare;
        let (varmap, mut wte, mut head) = untied(rows, bias);
        let (old_weight, old_bias) = (variable(&varmap, "lm_head.weight").unwrap(), variable(&varmap, "lm_head.bias"));
        let (old_weight, old_bias) = (old_weight.copy()?, old_bias.map(|bias| bias.copy()).transpose()?);
        let hidden = Tensor::new(&[[0.5f32, -1.0, 2.0, 0.25]], &CPU)?;
        let before = head.logits(&hidden)?.to_vec2::<f32>()?;

        let tokens = ["<|user|>", "<|bot|>"];
        let ids = wte.add_tokens(Some(&mut head), &varmap, &mut tokenizer, &tokens, Fill::Mean)?;
        assert_eq!(ids, [256, 257]);
        let after = rows.max(258);
        assert_eq!((wte.vocab_size(), head.vocab_size()), (after, after));
        let weight = variable(&varmap, "lm_head.weight").unwrap();
        assert_eq!(weight.dims(), [after, 4]);
        assert_eq!(bits(&weight)[..256], bits(&old_weight)[..256]);
        let mean = old_weight.mean(0)?.to_vec1::<f32>()?;
        for id in ids {
            let row = weight.get(id as usize)?.to_vec1::<f32>()?;
            assert!(row.iter().zip(&mean).all(|(row, mean)| (row - mean).abs() < 1e-6), "{row:?} {mean:?}");
        }
        if let Some(old) = old_bias {
            let bias = variable(&varmap, "lm_head.bias").unwrap();
            assert_eq!(bias.to_vec1::<f32>()?[..256], old.to_vec1::<f32>()?[..256]);
            let mean = old.mean_all()?.to_scalar::<f32>()?;
            assert!(bias.to_vec1::<f32>()?[256..258].iter().all(|value| (value - mean).abs() < 1e-6));
        }
        // The head reads the new variables, capped as before.
        let logits = head.logits(&hidden)?.to_vec2::<f32>()?;
        assert!(logits[0][..256].iter().zip(&before[0]).all(|(now, before)| (now - before).abs() < 1e-5));
        assert_eq!(logits[0].len(), after);

        // What does not fit changes nothing.
        let (_, _, mut other) = untied(300, false);
        let outside = Head::new(&Tensor::zeros((after, 4), DType::F32, &CPU)?, None)?;
        let mut with = |head: &mut Head, fill| wte.add_tokens(Some(head), &varmap, &mut tokenizer, &["<|c|>"], fill);
        assert!(message(with(&mut other, Fill::Mean)).contains("300 rows"));
        assert!(message(with(&mut outside.clone(), Fill::Mean)).contains("not a variable of the VarMap"));
        assert!(message(with(&mut head, Fill::CopyOf(9999))).contains("9999"));
        assert_eq!((wte.vocab_size(), head.vocab_size(), tokenizer.vocab_size()), (after, after, 258));
        assert_eq!(variable(&varmap, "lm_head.weight").unwrap().id(), weight.id());
    }
    Ok(())
}

#[test]
fn a_tied_head_follows_the_table() -> Out {
    let (mut tokenizer, varmap) = (bytes_tokenizer(), VarMap::new());
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let cfg = TokenEmbeddingConfig { vocab_size: 256, d_model: 4, ..Default::default() };
    let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let mut head = Head::tied(&wte).with_soft_cap(2.0)?;
    wte.add_tokens(
        Some(&mut head),
        &varmap,
        &mut tokenizer,
        &["<|a|>"],
        Fill::Init { init: tallow::Init::CANDLE, seed: 3 },
    )?;
    let hidden = Tensor::new(&[[40f32, -10.0, 20.0, 25.0]], &CPU)?;
    let expected = ((hidden.matmul(&wte.flushed_weight()?.t()?)? / 2.0)?.tanh()? * 2.0)?;
    assert_eq!(bits(&head.logits(&hidden)?), bits(&expected));
    let before = wte.clone();
    for rows in [10, 257, 300] {
        assert!(message(head.resize(&varmap, rows, Fill::Zero)).contains("tied"), "{rows}");
    }
    // A bias of a tied head grows with the table.
    let bias = vb.get_with_hints(257, "lm_head.bias", candle_nn::Init::Const(0.5))?;
    let mut head = head.with_bias(&bias)?;
    wte.add_tokens(Some(&mut head), &varmap, &mut tokenizer, &["<|b|>"], Fill::Mean)?;
    assert_eq!(variable(&varmap, "lm_head.bias").unwrap().to_vec1::<f32>()?, [0.5; 258]);
    let targets = Tensor::new(&[257u32], &CPU)?;
    assert!(head.loss(&hidden, &targets, &Default::default())?.to_scalar::<f32>()?.is_finite());
    // The layer from before would read a table that nothing trains any more.
    let ids = Tensor::new(&[0u32], &CPU)?;
    assert!(message(before.lookup(&ids)).contains("make the layer anew") && wte.lookup(&ids).is_ok());
    // A head over the table by candle's name for it, too.
    let mut by_hand = Head::new(wte.embeddings(), None)?;
    wte.add_tokens(Some(&mut by_hand), &varmap, &mut tokenizer, &["<|c|>"], Fill::Mean)?;
    assert_eq!(bits(&by_hand.logits(&hidden)?), bits(&Head::tied(&wte).logits(&hidden)?));
    Ok(())
}

#[test]
fn rows_of_a_head_train_alone() -> Out {
    let (varmap, _, head) = untied(20, false);
    let before = bits(&variable(&varmap, "lm_head.weight").unwrap());
    head.freeze_except(&[3, 7])?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 1e-2, weight_decay: 0.1, ..Default::default() })?;
    let hidden = Tensor::new(&[[0.5f32, -1.0, 2.0, 0.25], [1.0, 1.0, 0.0, -1.0]], &CPU)?;
    for step in 0..5 {
        let targets = Tensor::new(&[step, 3u32], &CPU)?;
        opt.backward_step(&head.loss(&hidden, &targets, &Default::default())?)?;
    }
    opt.flush()?;
    let after = bits(&variable(&varmap, "lm_head.weight").unwrap());
    for (row, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before != after, [3, 7].contains(&row), "row {row}");
    }
    assert!(matches!(head.freeze_except(&[20]), Err(Error::RowOutOfRange { row: 20, .. })));
    let (_, _, biased) = untied(20, true);
    assert!(message(biased.freeze_except(&[3])).contains("bias"));
    // candle's optimizer knows of no frozen rows.
    let (varmap, _, head) = untied(20, false);
    head.freeze_except(&[3])?;
    let loss = head.loss(&hidden, &Tensor::new(&[1u32, 3], &CPU)?, &Default::default())?;
    let mut candle = candle_nn::AdamW::new(varmap.all_vars(), ParamsAdamW::default())?;
    assert!(candle.backward_step(&loss).unwrap_err().to_string().contains("frozen"));
    let constant = Head::new(&Tensor::zeros((20, 4), DType::F32, &CPU)?, None)?;
    assert!(message(constant.freeze_except(&[3])).contains("variable"));
    Ok(())
}

/// The ends of a model as variables under the model's names, and its tokenizer.
fn ends(model: &Path) -> anyhow::Result<(PretrainedTable, VarMap, TokenEmbedding, Head, Tokenizer)> {
    let (table, varmap) = (PretrainedTable::open(model, None)?, VarMap::new());
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..table.config() };
    let wte = table.embedding(&cfg, vb.pp(table.name().strip_suffix(".weight").unwrap()))?;
    let head = table.head(&wte, vb.pp("lm_head"))?;
    Ok((table, varmap, wte, head, Tokenizer::from_file(tiny_llama().join("tokenizer.json"))?))
}

/// Bytes of every tensor of a model, by name, with its dtype and shape.
fn tensors(model: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for file in weight_files(model).unwrap() {
        let bytes = std::fs::read(&file).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        all.extend(read.tensors().into_iter().map(|(name, tensor)| {
            (name, (tensor.dtype().to_string(), tensor.shape().to_vec(), tensor.data().to_vec()))
        }));
    }
    all
}

#[test]
fn a_grown_model_is_the_old_one_but_for_its_ends() -> Out {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    std::fs::create_dir(&model)?;
    for file in std::fs::read_dir(tiny_llama())? {
        let path = file?.path();
        std::fs::copy(&path, model.join(path.file_name().unwrap()))?;
    }
    std::fs::write(model.join("chat_template.jinja"), "{{ messages }}")?;
    let listed = r#"{"added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": true}}, "tokenizer_class": "GPT2Tokenizer"}"#;
    std::fs::write(model.join("tokenizer_config.json"), listed)?;
    std::fs::write(model.join("pytorch_model.bin"), "the same weights in an old format")?;
    std::fs::create_dir(model.join("onnx"))?;

    let (table, varmap, mut wte, mut head, mut tokenizer) = ends(&model)?;
    let new = wte.add_tokens(Some(&mut head), &varmap, &mut tokenizer, &["<|user|>", "<|bot|>"], Fill::Mean)?;
    wte.freeze_except(&new)?;
    head.freeze_except(&new)?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 1e-2, ..Default::default() })?;
    for step in 0..20u32 {
        // Rows that rest for some steps have deferred updates at the end.
        let x = wte.lookup(&Tensor::new(&[if step == 3 { new[0] } else { new[1] }, step], &CPU)?)?;
        opt.backward_step(&head.loss(&x, &Tensor::new(&[new[1], new[0]], &CPU)?, &Default::default())?)?;
    }
    let out = model.join("grown"); // within the model's own folder: it is not copied into itself
    table.merge_into(&out, &varmap, &tokenizer)?;

    let (before, mut after) = (tensors(&model), tensors(&out));
    let rows = tokenizer.vocab_size();
    for (name, trained) in [
        ("model.embed_tokens.weight", wte.flushed_weight()?.clone()),
        ("lm_head.weight", variable(&varmap, "lm_head.weight").unwrap()),
    ] {
        let (dtype, shape, bytes) = after.insert(name.to_string(), before[name].clone()).unwrap();
        let (_, _, old) = &before[name];
        assert_eq!((dtype.as_str(), shape), ("BF16", vec![rows, 64]), "{name}");
        assert_eq!(bytes[..old.len()], old[..], "{name}: rows that were frozen keep their bits");
        let rounded: Vec<u8> = trained
            .to_dtype(DType::BF16)?
            .flatten_all()?
            .to_vec1::<half::bf16>()?
            .into_iter()
            .flat_map(half::bf16::to_le_bytes)
            .collect();
        assert_eq!(bytes, rounded, "{name}: the rest is what was trained");
    }
    assert!(before == after, "all other tensors are the same");

    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            entries.filter(|name| !["grown", "onnx", "pytorch_model.bin"].contains(&name.as_str())).collect();
        names.sort();
        names
    };
    assert_eq!(names(&out), names(&model));
    let listed: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(out.join("tokenizer_config.json"))?)?;
    let listed = &listed["added_tokens_decoder"];
    assert_eq!((&listed["641"]["content"], &listed["0"]["content"]), (&"<|bot|>".into(), &"<|endoftext|>".into()));
    for copied in ["generation_config.json", "chat_template.jinja"] {
        assert_eq!(std::fs::read(out.join(copied))?, std::fs::read(model.join(copied))?);
    }
    let config = |folder: &Path| std::fs::read_to_string(folder.join("config.json"));
    assert_eq!(config(&out)?, config(&model)?.replace("\"vocab_size\": 640", "\"vocab_size\": 642"));
    let index = |folder: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join("model.safetensors.index.json")).unwrap()).unwrap()
    };
    assert_eq!(index(&out)["weight_map"], index(&model)["weight_map"]);
    let number = |folder: &Path, key: &str| index(folder)["metadata"][key].as_u64().unwrap();
    assert_eq!(number(&out, "total_size"), number(&model, "total_size") + 2 * 2 * 64 * 2);
    assert_eq!(number(&out, "total_parameters"), number(&model, "total_parameters") + 2 * 2 * 64);
    // Read once more, it is the grown model, and the next tokens follow.
    let (again, varmap, mut wte, mut head, _) = ends(&out)?;
    let mut saved = Tokenizer::from_file(out.join("tokenizer.json"))?;
    assert_eq!((again.vocab_size(), saved.fingerprint()), (642, tokenizer.fingerprint()));
    assert_eq!(wte.add_tokens(Some(&mut head), &varmap, &mut saved, &["<|end|>"], Fill::Mean)?, [642]);
    again.merge_into(folder.path().join("twice"), &varmap, &saved)?;
    assert_eq!(PretrainedTable::open(folder.path().join("twice"), None)?.vocab_size(), 643);
    Ok(())
}

#[test]
fn a_whole_model_goes_back_as_it_is() -> Out {
    let folder = tempfile::tempdir()?;
    let (table, varmap, _, _, tokenizer) = ends(&tiny_llama())?;
    let out = folder.path().join("new/folders/same");
    table.merge_into(&out, &varmap, &tokenizer)?;
    assert!(tensors(&out) == tensors(&tiny_llama()));
    let ends = ["00001", "00004"].map(|shard| format!("model-{shard}-of-00004.safetensors")); // their headers are ours now
    for file in support::contents(&tiny_llama()).keys().filter_map(|file| file.file_name()) {
        let same = std::fs::read(out.join(file))? == std::fs::read(tiny_llama().join(file))?;
        assert!(same || ends.iter().any(|end| file == end.as_str()), "{}", file.display());
    }
    // A tied model of one file, without a config: its table alone is an end.
    let gpt2 = support::golden("pretrained/gpt2");
    let (table, varmap) = (PretrainedTable::open(&gpt2, None)?, VarMap::new());
    assert!(table.tied());
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let mut wte = table.embedding(&table.config(), vb.pp("transformer.wte"))?;
    let head = table.head(&wte, vb.pp("lm_head"))?;
    assert_eq!(head.vocab_size(), 50);
    wte.resize(&varmap, 300, Fill::Zero)?;
    let out = folder.path().join("gpt2");
    std::fs::create_dir(&out)?; // an empty folder may be there
    table.merge_into(&out, &varmap, &bytes_tokenizer())?;
    assert_eq!(PretrainedTable::open(&out, None)?.vocab_size(), 300);
    assert_eq!(list_tensors(out.join("model.safetensors"))?.len(), list_tensors(gpt2.join("model.safetensors"))?.len());
    assert_eq!(Tokenizer::from_file(out.join("tokenizer.json"))?.fingerprint(), bytes_tokenizer().fingerprint());
    Ok(())
}

#[test]
fn what_does_not_fit_is_not_merged() -> Out {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    std::fs::write(folder.path().join("notes.txt"), "mine")?;
    let (table, varmap, mut wte, mut head, mut tokenizer) = ends(&tiny_llama())?;
    let fresh = tokenizer.clone();
    // One end alone.
    wte.add_tokens(None, &varmap, &mut tokenizer, &["<|a|>"], Fill::Mean)?;
    let half = message(table.merge_into(&out, &varmap, &tokenizer));
    assert!(half.contains("lm_head.weight") && half.contains("add_tokens"), "{half}");
    let shrunk = VarMap::new();
    VarBuilder::from_varmap(&shrunk, DType::F32, &CPU).get((641, 64), "model.embed_tokens.weight")?;
    let missing = message(table.merge_into(&out, &shrunk, &fresh));
    assert!(missing.contains("lm_head.weight still 640"), "{missing}");
    head.resize(&varmap, 641, Fill::Mean)?;
    // A tokenizer with more ids than rows.
    let mut larger = tokenizer.clone();
    larger.add_tokens(&["<|b|>"])?;
    let ids = message(table.merge_into(&out, &varmap, &larger));
    assert!(ids.contains("641 rows") && ids.contains("642 ids"), "{ids}");
    // Variables that the model does not have.
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    vb.get(3, "adapter")?;
    let unknown = message(table.merge_into(&out, &varmap, &tokenizer));
    assert!(unknown.contains("\"adapter\"") && unknown.contains("model.embed_tokens.weight"), "{unknown}");
    varmap.data().lock().unwrap().remove("adapter");
    vb.get(3, "model.norm.weight")?;
    assert!(message(table.merge_into(&out, &varmap, &tokenizer)).contains("shape [3]"));
    varmap.data().lock().unwrap().remove("model.norm.weight");
    // A folder that is not empty, the model's own, a file.
    for there in [folder.path().to_path_buf(), tiny_llama(), tiny_llama().join("config.json")] {
        let there = message(table.merge_into(&there, &varmap, &tokenizer));
        assert!(there.contains("exists already"), "{there}");
    }
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 1, "nothing is left behind");
    // A dtype that would round what did not train.
    let halves = VarMap::new();
    let vb = VarBuilder::from_varmap(&halves, DType::F16, &CPU);
    table.embedding(&table.config(), vb.pp("model.embed_tokens"))?;
    let rounded = message(table.merge_into(&out, &halves, &fresh));
    assert!(rounded.contains("f16") && rounded.contains("bf16"), "{rounded}");
    // A copy of the table under another name.
    let copied = folder.path().join("copied");
    std::fs::create_dir(&copied)?;
    let zeros = Tensor::zeros((256, 2), DType::F32, &CPU)?;
    let model = [("shared.weight", zeros.clone()), ("encoder.embed_tokens.weight", zeros)];
    candle_core::safetensors::save(&model.into(), copied.join("model.safetensors"))?;
    let shared = PretrainedTable::open(&copied, Some("shared.weight"))?;
    let alone = VarMap::new();
    let mut layer =
        shared.embedding(&shared.config(), VarBuilder::from_varmap(&alone, DType::F32, &CPU).pp("shared"))?;
    layer.resize(&alone, 258, Fill::Zero)?;
    let copy = message(shared.merge_into(&out, &alone, &bytes_tokenizer()));
    assert!(copy.contains("encoder.embed_tokens.weight still 256"), "{copy}");
    std::fs::remove_dir_all(&copied)?;
    // A model that is not whole.
    let part = folder.path().join("part");
    std::fs::create_dir(&part)?;
    for file in ["config.json", "model.safetensors.index.json", "model-00001-of-00004.safetensors"] {
        std::fs::copy(tiny_llama().join(file), part.join(file))?;
    }
    let (of_part, table_alone) = (PretrainedTable::open(&part, None)?, VarMap::new());
    let torn = message(of_part.merge_into(&out, &table_alone, &fresh));
    assert!(torn.contains("fetch the whole model"), "{torn}");
    std::fs::remove_dir_all(&part)?;
    // Another format.
    let gguf = PretrainedTable::open(support::golden("pretrained/f32.gguf"), None)?;
    let refused = message(gguf.merge_into(&out, &VarMap::new(), &fresh));
    assert!(refused.contains("safetensors"), "{refused}");
    table.merge_into(&out, &varmap, &tokenizer)?;
    Ok(())
}

/// The example's model, fine-tuned and merged by tallow, as transformers reads it: the same ids, logits and words.
#[test]
#[ignore = "needs Python with transformers and torch"]
fn needs_python_transformers_a_grown_model_speaks() -> Out {
    let python = support::python("transformers, torch");
    let folder = tempfile::tempdir()?;
    let story = std::fs::read_to_string(support::root().join("assets/story.txt"))?;
    let grown = folder.path().join("grown");
    // Some classes of transformers go by the list of added tokens in tokenizer_config.json, not by tokenizer.json.
    let model = folder.path().join("model");
    std::fs::create_dir(&model)?;
    for file in support::contents(&tiny_llama()).keys().filter_map(|file| file.file_name()) {
        std::fs::copy(tiny_llama().join(file), model.join(file))?;
    }
    let end = serde_json::json!({"content": "<|endoftext|>", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    let config = serde_json::json!({"added_tokens_decoder": {"0": end}, "eos_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer"});
    std::fs::write(model.join("tokenizer_config.json"), config.to_string())?;
    finetune::finetune(&model, &grown, &story, &CPU)?;
    let text = "<|user|>What is in the table?";
    let (tokenizer, ids) = finetune::speak(&grown, text, 24, &CPU)?;
    let (prompt, count) = (folder.path().join("prompt"), folder.path().join("count"));
    std::fs::write(&prompt, text)?;
    std::fs::write(&count, "24")?;
    let theirs = support::run(&python, "speak.py", &[&grown, &prompt, &count]);
    std::fs::copy(tiny_llama().join("tokenizer_config.json"), grown.join("tokenizer_config.json"))?;
    assert_eq!(theirs, support::run(&python, "speak.py", &[&grown, &prompt, &count]), "by the other class");
    assert_eq!(theirs["table"], serde_json::json!([642, 64]));
    assert_eq!(theirs["head"], theirs["table"]);
    assert_eq!((&theirs["vocab_size"], &theirs["tied"]), (&serde_json::json!(642), &serde_json::json!(false)));
    assert_eq!(support::ids_of(&theirs["prompt"]), tokenizer.encode(text)?);
    assert_eq!(support::ids_of(&theirs["ids"]), ids);
    assert_eq!(theirs["text"].as_str().unwrap(), tokenizer.decode(&ids)?);
    assert!(ids.contains(&tokenizer.token_to_id("<|bot|>").unwrap()), "the new token is spoken: {:?}", theirs["text"]);
    Ok(())
}

#[test]
fn a_model_s_own_head_is_read_with_its_bias() -> Out {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    let tensor = |shape: &[usize], from: f32| {
        let count = shape.iter().product::<usize>();
        Tensor::arange(from, from + count as f32, &CPU).unwrap().reshape(shape).unwrap()
    };
    let mut model = std::collections::HashMap::from([
        ("transformer.wte.weight", tensor(&[5, 2], 0.0)),
        ("lm_head.weight", tensor(&[5, 2], 20.0)),
        ("lm_head.bias", tensor(&[5], 40.0).to_dtype(DType::BF16)?),
    ]);
    candle_core::safetensors::save(&model, &path)?;
    let table = PretrainedTable::open(&path, None)?;
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let mut wte = table.embedding(&table.config(), vb.pp("transformer.wte"))?;
    let mut head = table.head(&wte, vb.pp("lm_head"))?;
    let hidden = Tensor::new(&[[1f32, -1.0]], &CPU)?;
    assert_eq!(head.logits(&hidden)?.to_vec2::<f32>()?, [[39., 40., 41., 42., 43.]]);
    // What the VarMap has already (of a checkpoint, say) stays.
    variable(&varmap, "lm_head.bias").unwrap().slice_set(&tensor(&[5], 0.0), 0, 0)?;
    let again = table.head(&wte, vb.pp("lm_head"))?;
    assert_eq!(again.logits(&hidden)?.to_vec2::<f32>()?, [[-1., 0., 1., 2., 3.]]);
    // The bias grows, and is written back, too.
    head.resize(&varmap, 7, Fill::Mean)?;
    wte.resize(&varmap, 7, Fill::Mean)?;
    let tokenizer = {
        let path = folder.path().join("small.json");
        let vocab = serde_json::json!({"a": 0, "b": 1, "c": 2});
        let model = serde_json::json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"});
        std::fs::write(&path, serde_json::json!({"version": "1.0", "added_tokens": [], "model": model}).to_string())?;
        Tokenizer::from_file(path)?
    };
    let out = folder.path().join("out");
    table.merge_into(&out, &varmap, &tokenizer)?;
    assert_eq!(tensors(&out)["lm_head.bias"].1, [7]);
    // Two heads are a doubt.
    model.insert("decoder.weight", tensor(&[5, 2], 0.0));
    candle_core::safetensors::save(&model, &path)?;
    let doubt = message(PretrainedTable::open(&path, None)?.head(&wte, vb.pp("other")));
    assert!(doubt.contains("decoder.weight") && doubt.contains("lm_head.weight"), "{doubt}");
    Ok(())
}
