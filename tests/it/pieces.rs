//! What every training loop takes beside the table: schedules, groups, evaluation, a sampler. Goldens: gen_loop.py.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use serde_json::Value;
use tallow::optim::{AdamW, Decay, Schedule, Sgd, decay_matrices};
use tallow::{
    Batch, DataLoader, DataLoaderConfig, Dataset, Error, Gradient, Head, NO_TOKEN, Sampler, SamplerConfig,
    TokenEmbedding, TokenEmbeddingConfig, Tokenizer, evaluate,
};

use crate::support;

type Out = anyhow::Result<()>;

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap_or(f64::NEG_INFINITY)],
    }
}

#[test]
fn schedules_are_pytorch_s() -> Out {
    for case in support::golden_json("loop.json")["schedules"].as_array().unwrap() {
        let decay = match case["decay"].as_str().unwrap() {
            "constant" => Decay::Constant,
            "linear" => Decay::Linear,
            _ => Decay::Cosine,
        };
        let [peak, min] = ["peak", "min"].map(|key| case[key].as_f64().unwrap());
        let [warmup_steps, total_steps] = ["warmup_steps", "total_steps"].map(|key| case[key].as_u64().unwrap());
        let schedule = Schedule { peak, min, warmup_steps, total_steps, decay };
        let expected = numbers(&case["lr"]);
        assert_eq!(expected.len() as u64, total_steps);
        for (step, expected) in (1..).zip(&expected) {
            // PyTorch goes from rate to rate, and gathers rounding.
            let lr = schedule.lr(step)?;
            assert!((lr - expected).abs() <= 1e-12 * peak, "{schedule:?} step {step}: {lr} {expected}");
        }
        let after = if decay == Decay::Constant { peak } else { min };
        assert_eq!(schedule.lr(10 * total_steps)?, after);
    }
    Ok(())
}

#[test]
fn schedules_that_make_no_sense_are_errors() {
    let sound = Schedule { peak: 1e-3, min: 1e-4, warmup_steps: 5, total_steps: 10, decay: Decay::Linear };
    assert!(sound.lr(1).is_ok() && sound.lr(u64::MAX).is_ok());
    let constant = Schedule { decay: Decay::Constant, total_steps: 0, min: f64::NAN, ..sound };
    assert_eq!(constant.lr(u64::MAX).unwrap(), 1e-3);
    for bad in [
        Schedule { peak: f64::NAN, ..sound },
        Schedule { peak: -1e-3, ..sound },
        Schedule { min: 1e-2, ..sound },
        Schedule { min: f64::NAN, ..sound },
        Schedule { total_steps: 5, ..sound },
        Schedule { total_steps: 0, warmup_steps: 0, ..sound },
    ] {
        assert!(matches!(bad.lr(1), Err(Error::Config(_))), "{bad:?}");
    }
    assert!(sound.lr(0).unwrap_err().to_string().contains("from 1"));
}

/// A layer norm, a linear layer with a bias, and a table.
fn variables() -> (VarMap, VarBuilder<'static>) {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: 20, d_model: 4, ..Default::default() };
    TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
    candle_nn::linear(4, 4, vb.pp("proj")).unwrap();
    candle_nn::layer_norm(4, 1e-5, vb.pp("norm")).unwrap();
    (varmap, vb)
}

/// Biases and norms are a group without decay.
#[test]
fn a_closure_makes_groups() -> Out {
    let (varmap, _) = variables();
    let params = ParamsAdamW { lr: 1e-2, weight_decay: 0.3, ..Default::default() };
    let mut opt = AdamW::from_varmap_with(&varmap, decay_matrices(params.clone()))?;
    let decays: Vec<f64> = opt.groups_mut().iter().map(|group| group.params.weight_decay).collect();
    assert_eq!(decays, [0.0, 0.3], "norm.bias comes first");

    // Decay alone moves what decays, and nothing else.
    let values = || -> HashMap<String, Vec<f32>> {
        let data = varmap.data().lock().unwrap();
        data.iter().map(|(name, var)| (name.clone(), var.flatten_all().unwrap().to_vec1().unwrap())).collect()
    };
    let before = values();
    let mut loss = Tensor::new(0f32, &Device::Cpu)?;
    for var in varmap.all_vars() {
        loss = (loss + var.mul(&var.zeros_like()?)?.sum_all()?)?;
    }
    opt.backward_step(&loss)?;
    for (name, after) in values() {
        let moved = after != before[&name];
        assert_eq!(moved, ["wte.weight", "proj.weight"].contains(&name.as_str()), "{name}");
    }

    let sgd = Sgd::from_varmap_with(&varmap, |name, _| if name.starts_with("wte") { 0.5 } else { 0.1 });
    assert_eq!(sgd?.groups_mut().iter().map(|group| group.params).collect::<Vec<_>>(), [0.1, 0.5]);
    Ok(())
}

/// A tokenizer of these tokens and two special ones.
fn tokenizer(tokens: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.tiktoken");
    let hex = |token: &Value| -> Vec<u8> {
        let text = token.as_str().unwrap();
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let tokens: Vec<Vec<u8>> = tokens.as_array().unwrap().iter().map(hex).collect();
    support::rank_file(&path, tokens.len() as u32, |id| Some(tokens[id as usize].clone()));
    let mut tokenizer = Tokenizer::from_file(&path).unwrap();
    tokenizer.add_tokens(&["<|one|>", "<|two|>"]).unwrap();
    tokenizer
}

#[test]
fn evaluation_is_pytorch_s() -> Out {
    let golden = &support::golden_json("loop.json")["evaluation"];
    let tokenizer = tokenizer(&golden["tokens"]);
    let tensor = |key: &str, shape: &[usize]| {
        let values: Vec<f32> = numbers(&golden[key]).into_iter().map(|value| value as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    };
    let head = Head::new(&tensor("weight", &[tokenizer.vocab_size(), 3])?, None)?;
    let hidden = tensor("hidden", &[2, 12, 3])?;
    let target = |value: f64| if value < 0.0 { NO_TOKEN } else { value as u32 };
    let targets: Vec<u32> = numbers(&golden["targets"]).into_iter().map(target).collect();
    let targets = Tensor::from_vec(targets, (2, 12), &Device::Cpu)?;
    let batch = |row: usize| Batch {
        inputs: Tensor::new(&[row as u32], &Device::Cpu).unwrap(),
        targets: targets.narrow(0, row, 1).unwrap(),
        documents: None,
        id_bound: 0,
        epoch: 0,
    };
    // In two batches: the mean is one over all targets, not one of means.
    let result = evaluate([Ok(batch(0)), Ok(batch(1))], &tokenizer, |batch| {
        let row = batch.inputs.to_vec1::<u32>()?[0] as usize;
        head.log_probs(&hidden.narrow(0, row, 1)?, &batch.targets)
    })?;
    let near = |value: f64, key: &str| {
        let expected = golden[key].as_f64().unwrap();
        assert!((value / expected - 1.0).abs() < 1e-5, "{key}: {value} {expected}");
    };
    near(result.loss, "loss");
    near(result.perplexity, "perplexity");
    near(result.bits_per_byte.unwrap(), "bits_per_byte");
    assert_eq!((result.tokens, result.bytes), (golden["count"].as_u64().unwrap(), golden["bytes"].as_u64().unwrap()));
    Ok(())
}

#[test]
fn an_evaluation_of_nothing_or_of_nonsense_is_an_error() -> Out {
    let tokenizer = Tokenizer::cl100k();
    let text = "The table of digits becomes a matrix, row by row.";
    let split = Dataset::from_text(&tokenizer, text, 0.0)?.split("train")?;
    let cfg = DataLoaderConfig { batch_size: 2, context_length: 3, ..Default::default() };
    let once = || DataLoader::new(&split, cfg.once());
    assert_eq!(once()?.collect::<Result<Vec<_>, _>>()?.last().unwrap().inputs.dims(), [1, 3], "the short one, too");
    let zeros = |batch: &Batch| Ok::<_, Error>(batch.targets.to_dtype(DType::F32)?.affine(0.0, 0.0)?);
    let result = evaluate(once()?, &tokenizer, zeros)?;
    assert_eq!((result.loss, result.perplexity, result.bits_per_byte), (0.0, 1.0, Some(0.0)));

    let says = |result: Result<tallow::Evaluation, Error>, what: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    says(evaluate([], &tokenizer, zeros), "no target");
    says(evaluate(once()?, &tokenizer, |batch| Ok(zeros(batch)?.affine(0.0, 0.5)?)), "opposite sign");
    says(evaluate(once()?, &tokenizer, |batch| Ok(zeros(batch)?.affine(0.0, f64::NAN)?)), "NaN");
    says(evaluate(once()?, &tokenizer, |batch| Ok(zeros(batch)?.sum_all()?)), "the shapes must be equal");
    let small = self::tokenizer(&serde_json::json!((0..256).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>()));
    says(evaluate(once()?, &small, zeros), "is not a token of");
    says(evaluate(once()?, &tokenizer, |_| Err(Error::NoOptimizer)), "optimizer");
    // The tokens of a WordPiece do not spell the text.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tokenizer.json");
    let vocab = serde_json::json!({"[UNK]": 0, "a": 1, "##b": 2});
    let model = serde_json::json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab});
    let json = serde_json::json!({"version": "1.0", "added_tokens": [], "model": model, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}});
    std::fs::write(&path, json.to_string())?;
    let words = Tokenizer::from_file(&path)?;
    let ids = Dataset::from_ids(&[1, 2, 1, 2, 1, 2, 1], 0.0)?.split("train")?;
    assert_eq!(evaluate(DataLoader::new(&ids, cfg.once())?, &words, zeros)?.bits_per_byte, None);
    Ok(())
}

fn sampler(case: &Value) -> Sampler {
    let cfg = &case["cfg"];
    let mut sampler = Sampler::new(SamplerConfig {
        temperature: cfg["temperature"].as_f64().unwrap(),
        top_k: cfg["top_k"].as_u64().map(|k| k as usize),
        top_p: cfg["top_p"].as_f64(),
        seed: cfg["seed"].as_u64().unwrap(),
    })
    .unwrap();
    sampler.mask(support::ids_of(&case["masked"]));
    sampler
}

/// The draws of the definition, which Python computed: the same on every machine.
#[test]
fn draws_are_those_of_the_definition() -> Out {
    let golden = &support::golden_json("loop.json")["sampling"];
    let logits: Vec<f32> = numbers(&golden["logits"]).into_iter().map(|logit| logit as f32).collect();
    let logits = Tensor::from_vec(logits, (1, 1, 15), &Device::Cpu)?;
    for case in golden["samplers"].as_array().unwrap() {
        let mut sampler = sampler(case);
        let expected = support::ids_of(&case["draws"]);
        let drawn = expected.iter().map(|_| sampler.sample(&logits)).collect::<Result<Vec<_>, _>>()?;
        assert_eq!(drawn, expected, "{}", case["cfg"]);
    }
    Ok(())
}

/// Pearson's chi-square of 20,000 draws: above its mean by five deviations once in a million seeds.
#[test]
fn the_distribution_is_the_definition_s() -> Out {
    let golden = &support::golden_json("loop.json")["sampling"];
    let logits: Vec<f64> = numbers(&golden["logits"]);
    let logits = Tensor::from_vec(logits, 15, &Device::Cpu)?;
    let draws = 20_000;
    for case in golden["samplers"].as_array().unwrap() {
        let mut sampler = sampler(case);
        let mut counts = HashMap::new();
        for _ in 0..draws {
            *counts.entry(sampler.sample(&logits)?).or_insert(0u32) += 1;
        }
        let (mut chi_square, mut cells) = (0.0, 0);
        for pair in case["probabilities"].as_array().unwrap() {
            let (id, expected) = (pair[0].as_u64().unwrap() as u32, pair[1].as_f64().unwrap() * f64::from(draws));
            let count = f64::from(counts.remove(&id).unwrap_or(0));
            if expected >= 5.0 {
                chi_square += (count - expected).powi(2) / expected;
                cells += 1;
            }
        }
        assert!(counts.is_empty(), "{}: drawn, and never to be: {counts:?}", case["cfg"]);
        let freedom = f64::from(cells - 1).max(1.0);
        assert!(chi_square < freedom + 5.0 * (2.0 * freedom).sqrt(), "{}: {chi_square} of {freedom}", case["cfg"]);
    }
    Ok(())
}

#[test]
fn what_cannot_be_drawn_from_is_an_error() -> Out {
    let plain = SamplerConfig::default();
    for bad in [
        SamplerConfig { temperature: -0.1, ..plain },
        SamplerConfig { temperature: f64::NAN, ..plain },
        SamplerConfig { temperature: f64::INFINITY, ..plain },
        SamplerConfig { top_k: Some(0), ..plain },
        SamplerConfig { top_p: Some(0.0), ..plain },
        SamplerConfig { top_p: Some(1.01), ..plain },
        SamplerConfig { top_p: Some(f64::NAN), ..plain },
    ] {
        assert!(matches!(Sampler::new(bad), Err(Error::Config(_))), "{bad:?}");
    }
    let mut sampler = Sampler::new(plain)?;
    let row = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    let mut says = |logits: &Tensor, what: &str| {
        let error = sampler.sample(logits).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    says(&row(&[0.0, f32::NAN]), "the logit of id 1 is NaN");
    says(&row(&[f32::INFINITY, 0.0]), "the logit of id 0 is inf");
    says(&row(&[f32::NEG_INFINITY; 2]), "no id is left");
    says(&row(&[0.0; 4]).reshape((2, 2))?, "[2, 2] of several positions");
    says(&row(&[]), "no id is left");
    sampler.mask([1, 0, u32::from(u16::MAX)]);
    assert!(sampler.sample(&row(&[0.0, f32::NAN])).unwrap_err().to_string().contains("no id is left"));
    assert_eq!(sampler.sample(&row(&[9.0, f32::NAN, -9.0]))?, 2, "what is masked is not looked at");
    assert_eq!(sampler.sample(&row(&[9.0, 9.0, -9.0]).to_dtype(DType::BF16)?)?, 2);
    Ok(())
}

/// candle's own tied head over `embeddings()` of a row-sparse table reads what the last step made, also where it takes no part in
/// the loss.
#[test]
fn embeddings_stay_up_to_date() -> Out {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: 50, d_model: 4, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let dense = candle_core::Var::from_tensor(wte.flushed_weight()?)?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
    let mut candle = candle_nn::AdamW::new(vec![dense.clone()], ParamsAdamW::default())?;
    let ids = |step: u32| Tensor::new(&[step % 7, 3 * step % 50], &Device::Cpu);
    let mut head = None;
    for step in 0..60 {
        let by_candle = candle_nn::Embedding::new(dense.as_tensor().clone(), 4);
        candle.backward_step(&by_candle.forward(&ids(step)?)?.sqr()?.sum_all()?)?;
        opt.backward_step(&wte.forward(&ids(step)?)?.sqr()?.sum_all()?)?;
        if step == 20 {
            head = Some(candle_nn::Linear::new(wte.embeddings().clone(), None));
        }
        if let Some(head) = &head {
            let expected = dense.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(head.weight().flatten_all()?.to_vec1::<f32>()?, expected, "step {step}");
        }
    }
    Ok(())
}
