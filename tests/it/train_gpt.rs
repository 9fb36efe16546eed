//! The model of examples/train_gpt: its parts, PyTorch's losses, stock candle's bits.

#[path = "../../examples/train_gpt/model.rs"]
#[allow(dead_code)]
mod model;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use model::{Config, Gpt};
use tallow::{Batch, DataLoader, DataLoaderConfig, Dataset, Tokenizer, optim::AdamW};

const CPU: Device = Device::Cpu;
const STEPS: usize = 100;

/// The lesson's settings over a vocabulary of this size.
fn lesson(vocab_size: usize) -> Config {
    Config {
        vocab_size,
        d_model: 64,
        blocks: 8,
        heads: 4,
        context: 16,
        batch: 4,
        dropout: 0.0,
        tied: false,
        lr: 1e-3,
        seed: 1337,
    }
}

fn tiny() -> Config {
    Config { vocab_size: 50, d_model: 16, blocks: 2, heads: 2, context: 8, ..lesson(0) }
}

fn build(cfg: &Config) -> (VarMap, Gpt) {
    let varmap = VarMap::new();
    let gpt = Gpt::new(cfg, VarBuilder::from_varmap(&varmap, DType::F32, &CPU)).unwrap();
    (varmap, gpt)
}

fn params(cfg: &Config) -> ParamsAdamW {
    ParamsAdamW { lr: cfg.lr, ..Default::default() }
}

fn batches(cfg: &Config, ids: &[u32]) -> impl Iterator<Item = Batch> + use<> {
    let split = Dataset::from_ids(ids, 0.0).unwrap().split("train").unwrap();
    let loading =
        DataLoaderConfig { batch_size: cfg.batch, context_length: cfg.context, epochs: None, ..Default::default() };
    DataLoader::new(&split, loading).unwrap().map(Result::unwrap)
}

fn story() -> Vec<u32> {
    Tokenizer::cl100k().encode(include_str!("../../assets/story.txt")).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn hidden(gpt: &Gpt, ids: &[u32], noise: Option<u64>) -> Vec<f32> {
    let ids = Tensor::new(ids, &CPU).unwrap().unsqueeze(0).unwrap();
    values(&gpt.body.forward(&gpt.wte.forward(&ids).unwrap(), noise).unwrap())
}

#[test]
fn a_position_sees_what_is_before_it_and_nothing_after() {
    let (_varmap, gpt) = build(&tiny());
    let a = hidden(&gpt, &[1, 2, 3, 4, 5, 6, 7, 8], None);
    let b = hidden(&gpt, &[1, 2, 3, 4, 9, 6, 7, 8], None);
    assert_eq!(a[..4 * 16], b[..4 * 16]);
    (4..8).for_each(|t| assert_ne!(a[t * 16..][..16], b[t * 16..][..16], "position {t}"));
    // A shorter text has the beginning of the longer one's states (products of other sizes may round otherwise).
    let c = hidden(&gpt, &[1, 2, 3], None);
    c.iter().zip(&a).for_each(|(c, a)| assert!((c - a).abs() < 1e-5));
    // The same token at two places differs by its position alone.
    let d = hidden(&gpt, &[7, 7], None);
    assert_ne!(d[..16], d[16..]);
    let too_long = Tensor::zeros((1, 9), DType::U32, &CPU).unwrap();
    assert!(gpt.body.forward(&gpt.wte.forward(&too_long).unwrap(), None).is_err());
}

#[test]
fn dropout_is_a_function_of_its_noise() {
    let cfg = Config { dropout: 0.25, ..tiny() };
    let (_varmap, gpt) = build(&cfg);
    let ids = [1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(hidden(&gpt, &ids, Some(5)), hidden(&gpt, &ids, Some(5)));
    assert_ne!(hidden(&gpt, &ids, Some(5)), hidden(&gpt, &ids, Some(6)));
    assert_eq!(hidden(&gpt, &ids, None), hidden(&build(&tiny()).1, &ids, Some(5)));
    // Its share, and that what stays is scaled so that the mean stays.
    let ones = Tensor::ones(100_000, DType::F32, &CPU).unwrap();
    let dropped = values(&model::dropout(ones.clone(), 0.25, Some(1), 0).unwrap());
    assert!(dropped.iter().all(|v| *v == 0.0 || *v == 1.0 / 0.75));
    let zeros = dropped.iter().filter(|v| **v == 0.0).count();
    assert!((24_400..25_600).contains(&zeros), "{zeros}"); // 25000 ± 4.4 σ
    assert_ne!(dropped, values(&model::dropout(ones, 0.25, Some(1), 1).unwrap()));
}

#[test]
fn every_weight_gets_a_gradient() {
    for tied in [false, true] {
        let (varmap, gpt) = build(&Config { tied, ..tiny() });
        let batch = batches(&tiny(), &(0..500).map(|i| i * i % 47).collect::<Vec<_>>()).next().unwrap();
        let _taker = AdamW::from_varmap(&varmap, params(&tiny())).unwrap(); // of the table's row gradients
        let grads = tallow::backward(&gpt.loss(&batch, None).unwrap()).unwrap();
        let rows = gpt.wte.take_row_gradients().unwrap().unwrap();
        assert!(values(&rows.values).iter().any(|v| *v != 0.0));
        let data = varmap.data().lock().unwrap();
        assert_eq!(data.contains_key("lm_head.weight"), !tied);
        for (name, var) in data.iter().filter(|(name, _)| tied || *name != "wte.weight") {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(values(grad).iter().any(|v| *v != 0.0), "{name}");
        }
    }
}

#[test]
fn sizes_that_make_no_sense_are_errors() {
    for cfg in [
        Config { heads: 3, ..tiny() },
        Config { heads: 0, ..tiny() },
        Config { dropout: 1.0, ..tiny() },
        Config { dropout: f32::NAN, ..tiny() },
        Config { vocab_size: 0, ..tiny() },
    ] {
        let varmap = VarMap::new();
        assert!(Gpt::new(&cfg, VarBuilder::from_varmap(&varmap, DType::F32, &CPU)).is_err(), "{cfg:?}");
    }
}

#[test]
fn thirty_steps_learn_more_than_how_often_tokens_occur() {
    let tokenizer = Tokenizer::cl100k();
    let text = "The table has a row for every word. 每个词占一行，一行里放几个小数目。".repeat(8);
    let ids = tokenizer.encode(&text).unwrap();
    // What a model that sees no context can reach at best: the entropy of the tokens.
    let mut times = HashMap::new();
    ids.iter().for_each(|id| *times.entry(id).or_insert(0.0) += 1.0);
    let entropy: f64 = times.values().map(|n: &f64| -n / ids.len() as f64 * (n / ids.len() as f64).ln()).sum();
    let cfg = Config { blocks: 2, lr: 5e-3, batch: 8, dropout: 0.1, ..lesson(tokenizer.vocab_size()) };
    let (varmap, gpt) = build(&cfg);
    let mut opt = AdamW::from_varmap(&varmap, params(&cfg)).unwrap();
    let mut losses = Vec::new();
    for (step, batch) in (0..30).zip(batches(&cfg, &ids)) {
        let loss = gpt.loss(&batch, Some(step)).unwrap();
        opt.backward_step(&loss).unwrap();
        losses.push(f64::from(loss.to_scalar::<f32>().unwrap()));
    }
    assert!((losses[0] - (cfg.vocab_size as f64).ln()).abs() < 0.1, "{losses:?}");
    assert!(losses[29] < entropy * 0.8, "{} and the entropy {entropy}", losses[29]);
}

/// Stock candle's embedding, cross-entropy and AdamW, and tallow's, around the same blocks: the same operations give the same
/// bits of losses and weights, dropout included. (The fused loss sums in another order: see the next test.)
#[test]
fn where_operations_are_the_same_bits_are_stock_candle_s() {
    let cfg = Config { dropout: 0.1, ..lesson(2000) };
    let ids: Vec<u32> = (0..3000u32).map(|i| i * i % 1009 + i % 900).collect();
    let losses = |ours: bool| -> (Vec<u32>, HashMap<String, Vec<f32>>) {
        let (varmap, gpt) = build(&cfg);
        let stock_wte = candle_nn::Embedding::new(gpt.wte.flushed_weight().unwrap().clone(), cfg.d_model);
        let mut stock_opt = candle_nn::AdamW::new(varmap.all_vars(), params(&cfg)).unwrap();
        let mut opt = ours.then(|| AdamW::from_varmap(&varmap, params(&cfg)).unwrap());
        let mut losses = Vec::new();
        for (step, batch) in (0..40).zip(batches(&cfg, &ids)) {
            let rows = match ours {
                true => gpt.wte.forward(&batch.inputs).unwrap(),
                false => (stock_wte.forward(&batch.inputs).unwrap() * 8.0).unwrap(), // sqrt(64)
            };
            let hidden = gpt.body.forward(&rows, Some(step)).unwrap();
            let logits = gpt.head.logits(&hidden.flatten(0, 1).unwrap()).unwrap();
            let loss = candle_nn::loss::cross_entropy(&logits, &batch.targets.flatten_all().unwrap()).unwrap();
            match &mut opt {
                Some(opt) => opt.backward_step(&loss).unwrap(),
                None => stock_opt.backward_step(&loss).unwrap(),
            }
            losses.push(loss.to_scalar::<f32>().unwrap().to_bits());
        }
        opt.iter().for_each(|opt| opt.flush().unwrap());
        let data = varmap.data().lock().unwrap();
        (losses, data.iter().map(|(name, var)| (name.clone(), values(var))).collect())
    };
    let (ours, stock) = (losses(true), losses(false));
    assert_eq!(ours.0, stock.0);
    assert!(ours.1 == stock.1);
}

#[test]
fn the_fused_loss_trains_as_candle_s_does() {
    let cfg = lesson(2000);
    let ids: Vec<u32> = (0..3000u32).map(|i| i * i % 1009 + i % 900).collect();
    let losses = |fused: bool| -> Vec<f32> {
        let (varmap, gpt) = build(&cfg);
        let mut opt = AdamW::from_varmap(&varmap, params(&cfg)).unwrap();
        let step = |batch: Batch| {
            let loss = if fused {
                gpt.loss(&batch, None).unwrap()
            } else {
                let hidden = gpt.body.forward(&gpt.wte.forward(&batch.inputs).unwrap(), None).unwrap();
                let logits = gpt.head.logits(&hidden.flatten(0, 1).unwrap()).unwrap();
                candle_nn::loss::cross_entropy(&logits, &batch.targets.flatten_all().unwrap()).unwrap()
            };
            opt.backward_step(&loss).unwrap();
            loss.to_scalar::<f32>().unwrap()
        };
        batches(&cfg, &ids).take(40).map(step).collect()
    };
    for (ours, stock) in losses(true).iter().zip(losses(false)) {
        assert!((ours - stock).abs() < 1e-4, "{ours} and {stock}");
    }
}

/// Our 100 steps of the lesson's model on the story: losses, and the weights at the beginning and the end.
fn hundred_steps() -> (Vec<f32>, HashMap<String, Tensor>, VarMap, Vec<Batch>) {
    let cfg = lesson(Tokenizer::cl100k().vocab_size());
    let (varmap, gpt) = build(&cfg);
    let start = varmap.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.copy().unwrap())).collect();
    let mut opt = AdamW::from_varmap(&varmap, params(&cfg)).unwrap();
    let batches: Vec<Batch> = batches(&cfg, &story()).take(STEPS).collect();
    let step = |batch: &Batch| {
        let loss = gpt.loss(batch, None).unwrap();
        opt.backward_step(&loss).unwrap();
        loss.to_scalar::<f32>().unwrap()
    };
    let losses = batches.iter().map(step).collect();
    opt.flush().unwrap();
    (losses, start, varmap, batches)
}

#[test]
fn a_hundred_steps_give_pytorch_s_losses_and_table() {
    let (losses, _, varmap, _) = hundred_steps();
    let golden = crate::support::golden_json("train_gpt.json");
    let expected: Vec<f32> = serde_json::from_value(golden["losses"].clone()).unwrap();
    assert_eq!(expected.len(), STEPS);
    for (step, (ours, torch)) in losses.iter().zip(&expected).enumerate() {
        assert!((ours - torch).abs() < 1e-4, "step {step}: {ours}, PyTorch {torch}");
    }
    assert!(expected[STEPS - 1] < expected[0] - 3.0);
    // Rows of the final table: trained ones, and others, which decay moved.
    let data = varmap.data().lock().unwrap();
    for (row, torch) in golden["rows"].as_object().unwrap() {
        let ours = values(&data["wte.weight"].get(row.parse().unwrap()).unwrap());
        let torch: Vec<f32> = serde_json::from_value(torch.clone()).unwrap();
        assert_eq!(ours.len(), torch.len());
        for (ours, torch) in ours.iter().zip(&torch) {
            assert!((ours - torch).abs() < 1e-4, "row {row}: {ours}, PyTorch {torch}");
        }
    }
}

/// Writes what gen_train_gpt.py asks PyTorch about: `TALLOW_EXPORT=DIR cargo test --test it export_for -- --ignored`.
#[test]
#[ignore = "for gen_train_gpt.py"]
fn export_for_pytorch() {
    let folder = std::env::var_os("TALLOW_EXPORT").expect("TALLOW_EXPORT=DIR");
    let folder = Path::new(&folder);
    let (losses, start, varmap, batches) = hundred_steps();
    candle_core::safetensors::save(&start, folder.join("start.safetensors")).unwrap();
    tallow::Checkpoint { step: STEPS as u64, ..Default::default() }.save(folder, &varmap, None, 1).unwrap();
    let stack = |part: fn(&Batch) -> &Tensor| Tensor::stack(&batches.iter().map(part).collect::<Vec<_>>(), 0).unwrap();
    let run = HashMap::from([
        ("inputs".to_string(), stack(|batch| &batch.inputs).to_dtype(DType::I64).unwrap()),
        ("targets".to_string(), stack(|batch| &batch.targets).to_dtype(DType::I64).unwrap()),
        ("losses".to_string(), Tensor::new(losses, &CPU).unwrap()),
    ]);
    candle_core::safetensors::save(&run, folder.join("run.safetensors")).unwrap();
}

#[test]
fn no_grad_sees_the_weights_of_the_moment() {
    let cfg = tiny();
    let (varmap, gpt) = build(&cfg);
    let frozen = Gpt::new(&cfg, tallow::no_grad(&varmap, DType::F32, &CPU)).unwrap();
    let mut opt = AdamW::from_varmap(&varmap, params(&cfg)).unwrap();
    let mut data = batches(&cfg, &(0..500).map(|i| i * i % 47).collect::<Vec<_>>());
    for step in 0..5 {
        let grads = tallow::backward(&gpt.loss(&data.next().unwrap(), None).unwrap()).unwrap();
        assert_eq!(tallow::gradients::missing(&grads, &varmap), [""; 0], "step {step}");
        opt.step(&grads).unwrap();
    }
    let batch = data.next().unwrap();
    let (with, without) = (gpt.loss(&batch, None).unwrap(), frozen.loss(&batch, None).unwrap());
    // (Another path through the head, other sums.)
    assert!((with.to_scalar::<f32>().unwrap() - without.to_scalar::<f32>().unwrap()).abs() < 1e-5);
    assert!(with.track_op() && !without.track_op());
    let vars: Vec<Var> = varmap.all_vars();
    assert!(vars.iter().all(|var| without.backward().unwrap().get(var).is_none()));
}
