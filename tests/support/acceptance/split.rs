//! A table and a head whose rows are split between the ranks.

use std::path::Path;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, ReduceOp, VocabParallelEmbedding};
use tallow::head::{CrossEntropyConfig, Reduction};
use tallow::optim::AdamW;
use tallow::{Checkpoint, Gradient, Head, LoadOptions, NO_TOKEN, TokenEmbedding, TokenEmbeddingConfig, backward};

use super::{Lcg, Ranks};

pub const C: usize = 6;

pub fn config(vocab_size: usize, gradient: Gradient) -> TokenEmbeddingConfig {
    TokenEmbeddingConfig { vocab_size, d_model: C, gradient, init: tallow::Init::CANDLE, ..Default::default() }
}

fn ids(tokens: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let mut lcg = Lcg(seed);
    (0..tokens).map(|_| lcg.below(vocab_size as u64) as u32).collect()
}

/// The rows of a rank of a whole (V, C) tensor.
fn part(whole: &Tensor, ranks: &Ranks) -> Vec<Vec<f32>> {
    let whole = whole.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    whole.into_iter().skip(ranks.rank()).step_by(ranks.world_size()).collect()
}

fn rows(own: &Tensor) -> Vec<Vec<f32>> {
    if own.elem_count() == 0 { Vec::new() } else { own.to_dtype(DType::F32).unwrap().to_vec2().unwrap() }
}

fn weighted(out: &Tensor) -> Tensor {
    let factors: Vec<f32> = (0..out.elem_count()).map(|i| (i % 13) as f32 - 5.3).collect();
    let factors = Tensor::from_vec(factors, out.shape(), &Device::Cpu).unwrap().to_dtype(out.dtype()).unwrap();
    (out * factors).unwrap().sum_all().unwrap()
}

pub fn a_table_is_that_of_one_process(ranks: &Ranks) {
    for vocab_size in [5, 128, 131, 100_256] {
        let (world, last) = (ranks.world_size(), vocab_size as u32 - 1);
        let borders: Vec<u32> = (0..world as u32 + 1).flat_map(|i| [i.min(last), last.saturating_sub(i)]).collect();
        let with_gaps = [&ids(10, vocab_size, 3)[..], &[NO_TOKEN, last, NO_TOKEN]].concat();
        for dtype in [DType::F32, DType::BF16] {
            let cfg = config(vocab_size, Gradient::Dense);
            let (varmap, varmap_of_one) = (VarMap::new(), VarMap::new());
            let one = TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap_of_one, dtype, &Device::Cpu)).unwrap();
            let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
            let wte = VocabParallelEmbedding::new(&cfg, ranks.clone(), vb).unwrap();
            // The first rows: each rank draws only its own.
            assert_eq!(rows(wte.flushed_weight().unwrap()), part(one.flushed_weight().unwrap(), ranks));
            for ids in [&ids(40, vocab_size, 7), &vec![0; 9], &vec![last; 7], &borders, &with_gaps, &Vec::new()] {
                let ids = Tensor::new(&ids[..], &Device::Cpu).unwrap();
                let (out, expected) = (wte.forward(&ids).unwrap(), one.forward(&ids).unwrap());
                assert_eq!(rows(&out), rows(&expected), "{vocab_size} rows, {world} ranks");
                if ids.elem_count() == 0 {
                    continue;
                }
                let gradient = |out: &Tensor, varmap: &VarMap| {
                    let grads = backward(&weighted(out)).unwrap();
                    grads.get(&varmap.all_vars()[0]).unwrap().clone()
                };
                assert_eq!(rows(&gradient(&out, &varmap)), part(&gradient(&expected, &varmap_of_one), ranks));
            }
        }
    }
}

pub fn padding_is_no_token_and_starts_as_zeros(ranks: &Ranks) {
    let cfg = TokenEmbeddingConfig { padding_id: Some(4), ..config(7, Gradient::Dense) };
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let wte = VocabParallelEmbedding::new(&cfg, ranks.clone(), vb).unwrap();
    if ranks.rank() == 4 % ranks.world_size() {
        let row = 4 / ranks.world_size();
        assert_eq!(rows(wte.flushed_weight().unwrap())[row], [0.0; C]);
    }
    let table = &varmap.all_vars()[0];
    table.set(&table.ones_like().unwrap()).unwrap();
    let out = wte.forward(&Tensor::new(&[4u32, 1], &Device::Cpu).unwrap()).unwrap();
    assert_eq!(rows(&out), [[0.0; C], [1.0; C]]);
}

/// What a head gives, and the gradients of hidden states and weight.
struct Results {
    loss: Tensor,
    each: Tensor,
    log_probs: Tensor,
    top: (Tensor, Tensor),
    of_hidden: Tensor,
    of_weight: Option<Tensor>,
    of_each: Tensor,
}

fn results(head: &Head, weight: &Var, hidden: &Var, targets: &Tensor, cfg: &CrossEntropyConfig) -> Results {
    let loss = head.loss(hidden, targets, cfg).unwrap();
    let grads = backward(&(&loss * 3.0).unwrap()).unwrap();
    let none = CrossEntropyConfig { reduction: Reduction::None, ..*cfg };
    let each = head.loss(hidden, targets, &none).unwrap();
    let of_each = backward(&weighted(&each)).unwrap().get(hidden).unwrap().clone();
    Results {
        loss: loss.detach(),
        each: each.detach(),
        log_probs: head.log_probs(hidden, targets).unwrap(),
        top: head.top_k(hidden, 4).unwrap(),
        of_hidden: grads.get(hidden).unwrap().clone(),
        of_weight: grads.get(weight).cloned(),
        of_each,
    }
}

fn near(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    let flat = |t: &Tensor| -> Result<Vec<f64>> { t.to_dtype(DType::F64)?.flatten_all()?.to_vec1() };
    let (a, b) = (flat(a).unwrap(), flat(b).unwrap());
    assert_eq!(a.len(), b.len(), "{what}");
    let far = a.iter().zip(&b).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max);
    assert!(far <= tolerance, "{what}: {far}");
}

pub fn a_head_is_that_of_one_process(ranks: &Ranks) {
    let plain = CrossEntropyConfig::default();
    let smooth = CrossEntropyConfig { label_smoothing: 0.2, z_loss: 1e-2, reduction: Reduction::Sum };
    // 1500 rows are several blocks, 300 tokens are several chunks; of 5 rows some ranks may have none.
    for (vocab_size, tokens, dtype, tolerance) in [
        (1500, 300, DType::F32, 2e-5),
        (5, 70, DType::F32, 2e-5),
        (131, 130, DType::F64, 1e-12),
        (131, 20, DType::BF16, 2e-2),
    ] {
        for (cfg, cap) in [(plain, None), (smooth, Some(7.0)), (smooth, None)] {
            let what = format!("{vocab_size} rows {dtype:?}, {} ranks", ranks.world_size());
            let values: Vec<f32> = (0..tokens * C).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let hidden = Tensor::from_vec(values, (tokens, C), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let hidden = Var::from_tensor(&hidden).unwrap();
            let mut targets = ids(tokens, vocab_size, 11);
            (targets[1], targets[tokens - 1]) = (NO_TOKEN, vocab_size as u32 - 1);
            let targets = Tensor::new(targets, &Device::Cpu).unwrap();
            let capped = |head: Head| cap.map_or_else(|| head.clone(), |cap| head.clone().with_soft_cap(cap).unwrap());
            let (varmap, varmap_of_one) = (VarMap::new(), VarMap::new());
            let vb = VarBuilder::from_varmap(&varmap_of_one, dtype, &Device::Cpu);
            let wte = TokenEmbedding::new(&config(vocab_size, Gradient::Dense), vb).unwrap();
            let one = results(&capped(Head::tied(&wte)), &varmap_of_one.all_vars()[0], &hidden, &targets, &cfg);
            let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
            let wte = VocabParallelEmbedding::new(&config(vocab_size, Gradient::Dense), ranks.clone(), vb).unwrap();
            let head = capped(wte.head());
            assert_eq!((head.vocab_size(), wte.vocab_size()), (vocab_size, vocab_size));
            let own = results(&head, &varmap.all_vars()[0], &hidden, &targets, &cfg);
            for (own, one) in [
                (&own.loss, &one.loss),
                (&own.each, &one.each),
                (&own.log_probs, &one.log_probs),
                (&own.top.0, &one.top.0),
                (&own.of_hidden, &one.of_hidden),
                (&own.of_each, &one.of_each),
            ] {
                near(own, one, tolerance, &what);
                // All ranks have the same bits: the largest of them is the smallest.
                let own = own.to_dtype(DType::F64).unwrap();
                let [max, min] = [&own, &own.neg().unwrap()].map(|own| ranks.all_reduce(own, ReduceOp::Max).unwrap());
                near(&min.neg().unwrap(), &max, 0.0, &what);
            }
            if dtype != DType::BF16 {
                assert_eq!(own.top.1.to_vec2::<u32>().unwrap(), one.top.1.to_vec2::<u32>().unwrap());
            }
            let of_weight = part(one.of_weight.as_ref().unwrap(), ranks).concat();
            if !of_weight.is_empty() {
                let own = rows(&own.of_weight.unwrap()).concat();
                let [own, one] = [own, of_weight].map(|values| Tensor::new(values, &Device::Cpu).unwrap());
                near(&own, &one, tolerance.max(1e-6), &what);
            }
        }
    }
}

/// A table, a linear layer on every rank, and a head.
pub struct Model<T> {
    pub varmap: VarMap,
    pub wte: T,
    pub head: Head,
    linear: candle_nn::Linear,
}

pub const V: usize = 29;

fn trunk(vb: VarBuilder) -> candle_nn::Linear {
    let weights = tallow::Init::GPT2.get((C, C), "weight", 3, &vb.pp("trunk")).unwrap();
    candle_nn::Linear::new((weights + Tensor::eye(C, DType::F32, &Device::Cpu).unwrap()).unwrap(), None)
}

pub fn one_process(gradient: Gradient, tied: bool) -> Model<TokenEmbedding> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let wte = TokenEmbedding::new(&config(V, gradient), vb.pp("wte")).unwrap();
    let untied = |vb: VarBuilder| Head::tied(&TokenEmbedding::new(&config(V, Gradient::Dense), vb).unwrap());
    let head = if tied { Head::tied(&wte) } else { untied(vb.pp("lm_head")) };
    Model { linear: trunk(vb), varmap, wte, head }
}

pub fn split_model(gradient: Gradient, tied: bool, ranks: &Ranks) -> Model<VocabParallelEmbedding> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let of = |gradient, vb| VocabParallelEmbedding::new(&config(V, gradient), ranks.clone(), vb).unwrap();
    let wte = of(gradient, vb.pp("wte"));
    let head = if tied { wte.head() } else { of(Gradient::Dense, vb.pp("lm_head")).head() };
    Model { linear: trunk(vb), varmap, wte, head }
}

fn step<T: Module>(model: &Model<T>, opt: &mut AdamW, step: u64) -> f32 {
    let all = ids(17, V, 100 + step);
    let [inputs, targets] = [&all[..16], &all[1..]].map(|ids| Tensor::new(ids, &Device::Cpu).unwrap());
    let hidden = model.linear.forward(&model.wte.forward(&inputs).unwrap()).unwrap();
    let loss = model.head.loss(&hidden, &targets, &Default::default()).unwrap();
    let mut grads = backward(&loss).unwrap();
    opt.clip_grad_norm(&mut grads, 0.3).unwrap();
    opt.step(&grads).unwrap();
    loss.to_scalar().unwrap()
}

fn adamw(varmap: &VarMap) -> AdamW {
    AdamW::from_varmap(varmap, ParamsAdamW { lr: 0.01, ..Default::default() }).unwrap()
}

const MODELS: [(Gradient, bool); 3] =
    [(Gradient::RowSparse, true), (Gradient::RowSparse, false), (Gradient::Dense, true)];

pub fn a_model_trains_as_one_process_does(ranks: &Ranks) {
    for (gradient, tied) in MODELS {
        let (one, own) = (one_process(gradient, tied), split_model(gradient, tied, ranks));
        let (mut one_opt, mut own_opt) = (adamw(&one.varmap), adamw(&own.varmap));
        for k in 1..=20 {
            let (expected, loss) = (step(&one, &mut one_opt, k), step(&own, &mut own_opt, k));
            assert!((loss - expected).abs() < 1e-4, "{} ranks, step {k}: {loss}, {expected}", ranks.world_size());
            DataParallel::new(ranks).check_replicas(&own.varmap).unwrap();
        }
        let weight = part(one.wte.flushed_weight().unwrap(), ranks).concat();
        let own = rows(own.wte.flushed_weight().unwrap()).concat();
        let far = own.iter().zip(&weight).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4, "{} ranks: {far}", ranks.world_size());
    }
}

/// Ten steps, then a checkpoint of each model in `folder`.
pub fn save(ranks: &Ranks, folder: &Path) {
    for (at, (gradient, tied)) in MODELS.into_iter().enumerate() {
        let model = split_model(gradient, tied, ranks);
        let mut opt = adamw(&model.varmap);
        (1..=10).for_each(|k| _ = step(&model, &mut opt, k));
        let saved = Checkpoint { step: 10, ..Default::default() };
        saved.save(folder.join(at.to_string()), &model.varmap, Some(&opt), 0).unwrap();
    }
}

/// Loads what [`save`] saved with any number of ranks, saves it again, and trains ten steps more.
pub fn load(ranks: &Ranks, from: &Path, to: &Path) {
    for (at, (gradient, tied)) in MODELS.into_iter().enumerate() {
        let (one, own) = (one_process(gradient, tied), split_model(gradient, tied, ranks));
        let (mut one_opt, mut own_opt) = (adamw(&one.varmap), adamw(&own.varmap));
        let (from, options) = (from.join(at.to_string()), LoadOptions::default());
        Checkpoint::load(&from, &one.varmap, Some(&mut one_opt), &options).unwrap();
        let (found, _) = Checkpoint::load(&from, &own.varmap, Some(&mut own_opt), &options).unwrap();
        found.save(to.join(at.to_string()), &own.varmap, Some(&own_opt), 0).unwrap();
        for k in 11..=20 {
            let (expected, loss) = (step(&one, &mut one_opt, k), step(&own, &mut own_opt, k));
            assert!((loss - expected).abs() < 1e-4, "{} ranks, step {k}: {loss}, {expected}", ranks.world_size());
        }
    }
}

/// What the two folders of [`save`] and [`load`] hold, file by file.
pub fn files(folder: &Path) -> Vec<Vec<u8>> {
    let names = ["model.safetensors", "optimizer.safetensors"];
    let paths = (0..MODELS.len()).flat_map(|at| names.map(|name| format!("{at}/step-00000010/{name}")));
    paths.map(|path| std::fs::read(folder.join(path)).unwrap()).collect()
}
