//! A table and a head that are split between ranks, against one process with all rows.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, VocabParallelEmbedding};
use tallow::head::{CrossEntropyConfig, Reduction};
use tallow::optim::AdamW;
use tallow::{
    Checkpoint, Error, Gradient, Head, LoadOptions, NO_TOKEN, TokenEmbedding, TokenEmbeddingConfig, backward,
    load_weights,
};

use crate::ranks::{Threads, differs, run};
use crate::support::Lcg;

const C: usize = 6;

fn config(vocab_size: usize, gradient: Gradient) -> TokenEmbeddingConfig {
    TokenEmbeddingConfig { vocab_size, d_model: C, gradient, init: tallow::Init::CANDLE, ..Default::default() }
}

fn shared(ranks: &Threads) -> Arc<dyn Collective> {
    Arc::new(ranks.clone())
}

fn ids(tokens: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let mut lcg = Lcg(seed);
    (0..tokens).map(|_| lcg.below(vocab_size as u64) as u32).collect()
}

/// The rows of a rank of a whole (V, C) tensor.
fn part(whole: &Tensor, ranks: &Threads) -> Vec<Vec<f32>> {
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

#[test]
fn output_and_gradient_are_those_of_one_process() {
    for (vocab_size, worlds) in [(5, 2..9), (128, 1..5), (131, 1..5), (100_256, 2..3)] {
        for world in worlds {
            let last = vocab_size as u32 - 1;
            let borders: Vec<u32> = (0..world as u32 + 1).flat_map(|i| [i.min(last), last.saturating_sub(i)]).collect();
            let with_gaps = [&ids(10, vocab_size, 3)[..], &[NO_TOKEN, last, NO_TOKEN]].concat();
            for ids in [ids(40, vocab_size, 7), vec![0; 9], vec![last; 7], borders, with_gaps, Vec::new()] {
                let of = |dtype| {
                    let varmap = VarMap::new();
                    let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
                    (TokenEmbedding::new(&config(vocab_size, Gradient::Dense), vb).unwrap(), varmap)
                };
                run(world, |ranks| {
                    for dtype in [DType::F32, DType::BF16] {
                        let ids = Tensor::new(&ids[..], &Device::Cpu).unwrap();
                        let (one, varmap_of_one) = of(dtype);
                        let expected = one.forward(&ids).unwrap();
                        let varmap = VarMap::new();
                        let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
                        let cfg = config(vocab_size, Gradient::Dense);
                        let wte = VocabParallelEmbedding::new(&cfg, shared(ranks), vb).unwrap();
                        // The first rows: each rank draws only its own.
                        assert_eq!(rows(wte.flushed_weight().unwrap()), part(one.flushed_weight().unwrap(), ranks));
                        let out = wte.forward(&ids).unwrap();
                        assert_eq!(rows(&out), rows(&expected), "{vocab_size} rows, {world} ranks");
                        if ids.elem_count() == 0 {
                            continue;
                        }
                        let gradient = |out: &Tensor, varmap: &VarMap| {
                            let grads = backward(&weighted(out)).unwrap();
                            grads.get(&varmap.all_vars()[0]).unwrap().clone()
                        };
                        let expected = gradient(&expected, &varmap_of_one);
                        assert_eq!(rows(&gradient(&out, &varmap)), part(&expected, ranks));
                    }
                });
            }
        }
    }
}

#[test]
fn padding_is_no_token_and_starts_as_zeros() {
    run(3, |ranks| {
        let cfg = TokenEmbeddingConfig { padding_id: Some(4), ..config(7, Gradient::Dense) };
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let wte = VocabParallelEmbedding::new(&cfg, shared(ranks), vb).unwrap();
        if ranks.rank() == 1 {
            assert_eq!(rows(wte.flushed_weight().unwrap())[1], [0.0; C]);
            varmap.all_vars()[0].set(&Tensor::ones((2, C), DType::F32, &Device::Cpu).unwrap()).unwrap();
        }
        let out = wte.forward(&Tensor::new(&[4u32, 1], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(rows(&out), [[0.0; C], [1.0; C]]);
    });
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

#[test]
fn a_split_head_has_the_loss_and_the_gradients_of_one_process() {
    let plain = CrossEntropyConfig::default();
    let smooth = CrossEntropyConfig { label_smoothing: 0.2, z_loss: 1e-2, reduction: Reduction::Sum };
    // 1500 rows are several blocks, 300 tokens are several chunks; of 5 rows some ranks have none.
    for (vocab_size, tokens, dtype, tolerance) in [
        (1500, 300, DType::F32, 2e-5),
        (5, 70, DType::F32, 2e-5),
        (131, 130, DType::F64, 1e-12),
        (131, 20, DType::BF16, 2e-2),
    ] {
        for (world, cfg, cap) in [(1, plain, None), (2, plain, None), (3, smooth, Some(7.0)), (4, smooth, None)] {
            let values: Vec<f32> = (0..tokens * C).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let mut targets = ids(tokens, vocab_size, 11);
            (targets[1], targets[tokens - 1]) = (NO_TOKEN, vocab_size as u32 - 1);
            let targets = Tensor::new(targets, &Device::Cpu).unwrap();
            let inputs = || {
                let hidden = Tensor::from_vec(values.clone(), (tokens, C), &Device::Cpu).unwrap();
                let varmap = VarMap::new();
                (Var::from_tensor(&hidden.to_dtype(dtype).unwrap()).unwrap(), varmap)
            };
            let (hidden, varmap) = inputs();
            let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
            let wte = TokenEmbedding::new(&config(vocab_size, Gradient::Dense), vb).unwrap();
            let capped = |head: Head| cap.map_or_else(|| head.clone(), |cap| head.clone().with_soft_cap(cap).unwrap());
            let one = results(&capped(Head::tied(&wte)), &varmap.all_vars()[0], &hidden, &targets, &cfg);
            if dtype == DType::F64 && world > vocab_size {
                continue;
            }
            let all = run(world, |ranks| {
                let (hidden, varmap) = inputs();
                let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
                let wte = VocabParallelEmbedding::new(&config(vocab_size, Gradient::Dense), shared(ranks), vb).unwrap();
                let head = capped(wte.head());
                assert_eq!((head.vocab_size(), wte.vocab_size()), (vocab_size, vocab_size));
                let own = results(&head, &varmap.all_vars()[0], &hidden, &targets, &cfg);
                let what = format!("{vocab_size} rows {dtype:?}, {world} ranks");
                near(&own.loss, &one.loss, tolerance, &what);
                near(&own.each, &one.each, tolerance, &what);
                near(&own.log_probs, &one.log_probs, tolerance, &what);
                near(&own.of_hidden, &one.of_hidden, tolerance, &what);
                near(&own.of_each, &one.of_each, tolerance, &what);
                near(&own.top.0, &one.top.0, tolerance, &what);
                if dtype != DType::BF16 {
                    assert_eq!(own.top.1.to_vec2::<u32>().unwrap(), one.top.1.to_vec2::<u32>().unwrap());
                }
                let of_weight = part(one.of_weight.as_ref().unwrap(), ranks).concat();
                let own_weight = rows(&own.of_weight.unwrap()).concat();
                if !of_weight.is_empty() {
                    let tensor = |values: Vec<f32>| Tensor::new(values, &Device::Cpu).unwrap();
                    near(&tensor(own_weight), &tensor(of_weight), tolerance.max(1e-6), &what);
                }
                let bits =
                    |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                (bits(&own.loss), bits(&own.of_hidden), bits(&own.each))
            });
            assert!(all.iter().all(|rank| *rank == all[0]), "all ranks have the same bits");
        }
    }
}

/// A table, a linear layer on every rank, and a head.
struct Model<T> {
    varmap: VarMap,
    wte: T,
    head: Head,
    linear: candle_nn::Linear,
}

const V: usize = 29;

fn trunk(vb: VarBuilder) -> candle_nn::Linear {
    let weights = tallow::Init::GPT2.get((C, C), "weight", 3, &vb.pp("trunk")).unwrap();
    candle_nn::Linear::new((weights + Tensor::eye(C, DType::F32, &Device::Cpu).unwrap()).unwrap(), None)
}

fn one_process(gradient: Gradient, tied: bool) -> Model<TokenEmbedding> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let wte = TokenEmbedding::new(&config(V, gradient), vb.pp("wte")).unwrap();
    let untied = |vb: VarBuilder| Head::tied(&TokenEmbedding::new(&config(V, Gradient::Dense), vb).unwrap());
    let head = if tied { Head::tied(&wte) } else { untied(vb.pp("lm_head")) };
    Model { linear: trunk(vb), varmap, wte, head }
}

fn split(gradient: Gradient, tied: bool, ranks: &Threads) -> Model<VocabParallelEmbedding> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let of = |gradient, vb| VocabParallelEmbedding::new(&config(V, gradient), shared(ranks), vb).unwrap();
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

/// Twenty steps, a checkpoint after ten; each of its files has the shapes of one process, and loads on any number of ranks.
#[test]
fn trained_saved_and_loaded_as_one_process() {
    for (gradient, tied) in [(Gradient::RowSparse, true), (Gradient::RowSparse, false), (Gradient::Dense, true)] {
        let model = one_process(gradient, tied);
        let mut opt = adamw(&model.varmap);
        let expected: Vec<f32> = (1..=20).map(|k| step(&model, &mut opt, k)).collect();
        let folder = tempfile::tempdir().unwrap();
        Checkpoint { step: 20, ..Default::default() }
            .save(folder.path().join("one"), &model.varmap, Some(&opt), 0)
            .unwrap();
        for world in 1..=4 {
            let saved = folder.path().join(format!("{world}"));
            run(world, |ranks| {
                let model = split(gradient, tied, ranks);
                let mut opt = adamw(&model.varmap);
                for (k, expected) in (1..=20).zip(&expected) {
                    let loss = step(&model, &mut opt, k);
                    assert!((loss - expected).abs() < 1e-4, "{world} ranks, step {k}: {loss}, {expected}");
                    if k % 10 == 0 {
                        Checkpoint { step: k, ..Default::default() }
                            .save(&saved, &model.varmap, Some(&opt), 0)
                            .unwrap();
                    }
                    DataParallel::new(ranks).check_replicas(&model.varmap).unwrap();
                }
            });
            for file in ["model.safetensors", "optimizer.safetensors"] {
                let read = |folder: &str| {
                    let path = saved.with_file_name(folder).join("step-00000020").join(file);
                    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
                };
                let (one, many) = (read("one"), read(&world.to_string()));
                assert_eq!(one.len(), many.len());
                for (name, one) in &one {
                    assert_eq!(one.dims(), many[name].dims());
                    near(&many[name], one, 1e-4, &format!("{name}, {world} ranks"));
                }
            }
            // From step 10 on with another number of ranks.
            for other in [1, 3, 4] {
                let again = folder.path().join(format!("{world}-{other}"));
                run(other, |ranks| {
                    let model = split(gradient, tied, ranks);
                    let mut opt = adamw(&model.varmap);
                    let ten = saved.join("step-00000010");
                    let options = LoadOptions::default();
                    let (found, _) = Checkpoint::load(&ten, &model.varmap, Some(&mut opt), &options).unwrap();
                    assert_eq!(found.step, 10);
                    found.save(&again, &model.varmap, Some(&opt), 0).unwrap();
                    for (k, expected) in (11..=20).zip(&expected[10..]) {
                        let loss = step(&model, &mut opt, k);
                        assert!((loss - expected).abs() < 1e-4, "{world} then {other} ranks, step {k}");
                    }
                });
                for file in ["model.safetensors", "optimizer.safetensors"] {
                    let read =
                        |folder: &std::path::Path| std::fs::read(folder.join("step-00000010").join(file)).unwrap();
                    assert!(read(&again) == read(&saved), "saved by {world}, loaded and saved by {other} ranks");
                }
            }
        }
        // One process reads the file of three ranks.
        let path = folder.path().join("3/step-00000020/model.safetensors");
        load_weights(path, &one_process(gradient, tied).varmap, &LoadOptions::default()).unwrap();
    }
}

#[test]
fn what_a_split_table_does_not_do_is_an_error_on_every_rank() {
    run(2, |ranks| {
        let model = split(Gradient::RowSparse, true, ranks);
        let own = Tensor::new(&[3u32, 5 + ranks.rank() as u32], &Device::Cpu).unwrap();
        let error = model.wte.lookup(&own).unwrap_err();
        assert!(differs(&error) && error.to_string().contains("each gets all ids"), "{error}");
        let far = Tensor::new(&[3u32, V as u32], &Device::Cpu).unwrap();
        let error = model.wte.lookup(&far).unwrap_err();
        assert!(matches!(&error, Error::IdOutOfRange { id: 29, rows: V, .. }), "{error}");
        let hidden = Tensor::zeros((2, C), DType::F32, &Device::Cpu).unwrap();
        assert!(differs(&model.head.loss(&hidden, &own, &Default::default()).unwrap_err()));
        assert!(model.head.loss(&hidden, &far, &Default::default()).is_err());
        assert!(model.head.logits(&hidden).unwrap_err().to_string().contains("split between ranks"));
        let bias = Tensor::zeros(V.div_ceil(2), DType::F32, &Device::Cpu).unwrap();
        assert!(model.head.clone().with_bias(&bias.narrow(0, 0, V.div_ceil(2) - ranks.rank()).unwrap()).is_err());
        let opt = adamw(&model.varmap);
        let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
        let error = DataParallel::new(ranks).exchange(&opt, &mut grads).unwrap_err();
        assert!(error.to_string().contains("\"wte.weight\" is split between the ranks"), "{error}");
        // The rest of the model can be given to all ranks.
        DataParallel::new(ranks).broadcast(&model.varmap).unwrap();
        // A file of another size.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.safetensors");
        let own_rows = model.wte.flushed_weight().unwrap();
        own_rows.save_safetensors("wte.weight", &path).unwrap();
        let options = LoadOptions { partial: true, ..Default::default() };
        let error = load_weights(&path, &model.varmap, &options).unwrap_err();
        assert!(error.to_string().contains("29 rows on all ranks"), "{error}");
        // Rank 0 cannot write: both say so, neither waits.
        let taken = folder.path().join("taken");
        std::fs::write(&taken, "a file, no folder").unwrap();
        let saved = Checkpoint::default().save(&taken, &model.varmap, Some(&opt), 0);
        assert!(saved.is_err(), "rank {}", ranks.rank());
    });
    run(3, |ranks| {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F64, &Device::Cpu);
        let error = VocabParallelEmbedding::new(&config(2, Gradient::Dense), shared(ranks), vb).unwrap_err();
        assert!(error.to_string().contains("each rank needs a row"), "{error}");
    });
}
