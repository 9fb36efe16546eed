//! The optimizers against candle's own: the naive twin is the dense `candle_nn::AdamW` on `candle_nn::Embedding`.

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{AdamW as Stock, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::Checkpoint;
use tallow::optim::{AdamW, Replay, Sgd};
use tallow::{Error, Gradient, Head, NO_TOKEN, RowGradients, TokenEmbedding, TokenEmbeddingConfig};

use crate::support::{Lcg, golden};

const CPU: Device = Device::Cpu;

fn row_sparse(vocab_size: usize, d_model: usize, dtype: DType) -> (TokenEmbedding, VarMap) {
    let varmap = VarMap::new();
    let cfg = TokenEmbeddingConfig { vocab_size, d_model, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap, dtype, &CPU).pp("wte")).unwrap();
    (wte, varmap)
}

/// candle's layer over a copy of the same weights.
fn stock_twin(wte: &TokenEmbedding) -> (candle_nn::Embedding, Var) {
    let var = Var::from_tensor(&wte.flushed_weight().unwrap().copy().unwrap()).unwrap();
    (candle_nn::Embedding::new(var.as_tensor().clone(), wte.d_model()), var)
}

fn bits(t: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    values.iter().map(|v| v.to_bits()).collect()
}

fn params(lr: f64, weight_decay: f64) -> ParamsAdamW {
    ParamsAdamW { lr, weight_decay, ..Default::default() }
}

fn ids(rng: &mut Lcg, vocab: usize, count: usize) -> Vec<u32> {
    // Weight 1/r for rank r, nearly: 2^(uniform) is log-uniform.
    let bits = (vocab as f64).log2();
    (0..count)
        .map(|_| ((rng.below(1 << 24) as f64 / (1 << 24) as f64 * bits).exp2() as usize).min(vocab) as u32 - 1)
        .collect()
}

/// A loss with a different random direction at every step.
fn loss(x: &Tensor, rng: &mut Lcg) -> Tensor {
    let weights: Vec<f32> = (0..x.elem_count()).map(|_| rng.below(2001) as f32 / 1000.0 - 1.0).collect();
    let weights = Tensor::from_vec(weights, x.shape(), &CPU).unwrap();
    let target = Tensor::full(0.05f32, x.shape(), &CPU).unwrap();
    ((x - target).unwrap().sqr().unwrap() * weights).unwrap().sum_all().unwrap()
}

/// Trains both on the same batches; every loss and, at the end, every weight must have the same bits.
fn equals_candle(
    (vocab, d_model, steps): (usize, usize, usize),
    batch: impl Fn(usize, &mut Lcg) -> Vec<u32>,
    set: impl Fn(usize) -> ParamsAdamW,
    save_at: Option<usize>,
) {
    let (wte, varmap) = row_sparse(vocab, d_model, DType::F32);
    let (stock, stock_var) = stock_twin(&wte);
    let mut theirs = Stock::new(vec![stock_var.clone()], set(0)).unwrap();
    let mut ours = AdamW::from_varmap(&varmap, set(0)).unwrap();
    let mut rng = Lcg(42);
    for step in 0..steps {
        let list = batch(step, &mut rng);
        let ids = Tensor::from_slice(&list, list.len(), &CPU).unwrap();
        ours.set_params(set(step));
        theirs.set_params(set(step));
        let mut again = Lcg(rng.0);
        let our_loss = loss(&wte.forward(&ids).unwrap(), &mut rng);
        let their_loss = loss(&stock.forward(&ids).unwrap(), &mut again);
        assert_eq!(bits(&our_loss), bits(&their_loss), "loss of step {step}");
        ours.backward_step(&our_loss).unwrap();
        theirs.backward_step(&their_loss).unwrap();
        if save_at == Some(step) {
            let state = ours.state().unwrap();
            drop(ours);
            ours = AdamW::from_varmap(&varmap, set(step)).unwrap();
            ours.load_state(&state).unwrap();
        }
    }
    let different =
        bits(wte.flushed_weight().unwrap()).iter().zip(bits(stock_var.as_tensor())).filter(|(a, b)| **a != *b).count();
    assert_eq!(different, 0, "weights that differ of {}", vocab * d_model);
}

#[test]
fn every_weight_of_a_full_table_is_candles() {
    // lr warms up, falls, and jumps up again; padding and repeats in every batch.
    let schedule = |step: usize| params(1e-3 * [0.1, 1.0, 0.3, 0.05, 2.0][step / 80 % 5], 0.01);
    let batch = |_: usize, rng: &mut Lcg| [ids(rng, 100_256, 250), vec![7, 7, 7, NO_TOKEN, 100_255, NO_TOKEN]].concat();
    equals_candle((100_256, 16, 400), batch, schedule, Some(200));
}

#[test]
fn every_setting_gives_candles_bits() {
    let plain = |_: usize, rng: &mut Lcg| ids(rng, 2000, 40);
    for weight_decay in [0.0, 0.01, 0.1] {
        equals_candle((2000, 7, 500), plain, |_| params(1e-3, weight_decay), None);
    }
    // A last block of 64 elements and one short one; empty batches; rows that come late.
    let gaps = |step: usize, rng: &mut Lcg| match step % 7 {
        3 => vec![],
        5 => vec![NO_TOKEN],
        _ => ids(rng, 50 + 3 * step, 30),
    };
    equals_candle((2000, 100, 300), gaps, |step| params(1e-2, if step < 150 { 0.1 } else { 0.0 }), Some(10));
    // Betas that change, a small beta2, a large and a tiny epsilon, decay that eats the weight.
    let odd = |step: usize| ParamsAdamW {
        lr: 3e-3,
        beta1: if step < 100 { 0.9 } else { 0.5 },
        beta2: if step < 200 { 0.95 } else { 0.5 },
        eps: [1e-8, 1e-3, 1e-30][step / 100 % 3],
        weight_decay: if step.is_multiple_of(50) { 30.0 } else { 0.0 },
    };
    equals_candle((500, 64, 300), |_, rng| ids(rng, 500, 8), odd, None);
    // beta1 = 0: every step is replayed in full.
    equals_candle((40, 3, 60), |_, rng| ids(rng, 40, 4), |_| ParamsAdamW { beta1: 0.0, ..params(1e-3, 0.01) }, None);
}

/// Gaps of thousands of steps: moments fade below what can change a weight, and below what f32 holds.
#[test]
fn long_gaps_give_candles_bits() {
    let batch = |step: usize, rng: &mut Lcg| match step % 1000 {
        0 => (0..600).collect(),
        _ => ids(rng, 600, 6),
    };
    for weight_decay in [0.0, 0.05] {
        equals_candle(
            (600, 4, 3000),
            batch,
            |step| params(if step < 2000 { 1e-3 } else { 5e-3 }, weight_decay),
            Some(1500),
        );
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let train = || {
        let (wte, varmap) = row_sparse(5000, 64, DType::F32);
        let mut opt = AdamW::new(varmap.all_vars(), params(1e-3, 0.01)).unwrap();
        let mut rng = Lcg(9);
        for _ in 0..30 {
            let list = ids(&mut rng, 5000, 3000);
            let x = wte.forward(&Tensor::from_slice(&list, list.len(), &CPU).unwrap()).unwrap();
            opt.backward_step(&loss(&x, &mut rng)).unwrap();
        }
        bits(wte.flushed_weight().unwrap())
    };
    // In a pool tallow works alone, outside with all threads.
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(train);
    assert!(alone == train());
}

/// Embedding → linear → cross-entropy, two look-ups of one table in a step, all weights by the fused step.
#[test]
fn a_small_network_trains_to_candles_bits() {
    let make = |gradient| {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        let cfg = TokenEmbeddingConfig { vocab_size: 300, d_model: 16, gradient, ..Default::default() };
        let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
        (wte, varmap)
    };
    let (wte, varmap) = make(Gradient::RowSparse);
    let (other, other_map) = make(Gradient::Dense);
    let twin: candle_nn::Embedding = other.into();
    let draw = |rng: &mut Lcg, n: usize| (0..n).map(|_| rng.below(2001) as f32 / 5000.0 - 0.2).collect::<Vec<_>>();
    let mut rng = Lcg(3);
    for (shape, name) in [((300, 16), "head.weight"), ((1, 300), "head.bias")] {
        let values = Tensor::from_vec(draw(&mut rng, shape.0 * shape.1), shape, &CPU).unwrap();
        for map in [&varmap, &other_map] {
            map.data().lock().unwrap().insert(name.to_string(), Var::from_tensor(&values.copy().unwrap()).unwrap());
        }
    }
    let get = |map: &VarMap, name: &str| map.data().lock().unwrap()[name].as_tensor().clone();
    let run = |layer: &dyn Module, map: &VarMap, ids: &Tensor, context: &Tensor, targets: &Tensor| {
        let x = (layer.forward(ids).unwrap() + layer.forward(context).unwrap()).unwrap();
        let logits =
            x.matmul(&get(map, "head.weight").t().unwrap()).unwrap().broadcast_add(&get(map, "head.bias")).unwrap();
        candle_nn::loss::cross_entropy(&logits, targets).unwrap()
    };
    let mut ours = AdamW::from_varmap(&varmap, params(1e-2, 0.01)).unwrap();
    let mut theirs = Stock::new(other_map.all_vars(), params(1e-2, 0.01)).unwrap();
    let mut first_loss = 0.0;
    let mut last_loss = 0.0;
    for step in 0..120 {
        let [a, b, c] = [0; 3].map(|_| Tensor::from_vec(ids(&mut rng, 300, 20), 20, &CPU).unwrap());
        let targets = if step % 2 == 0 { &a } else { &c };
        let (x, y) = (run(&wte, &varmap, &a, &b, targets), run(&twin, &other_map, &a, &b, targets));
        assert_eq!(bits(&x), bits(&y), "loss of step {step}");
        last_loss = x.to_scalar::<f32>().unwrap();
        first_loss = if step == 0 { last_loss } else { first_loss };
        ours.backward_step(&x).unwrap();
        theirs.backward_step(&y).unwrap();
    }
    ours.flush().unwrap();
    for name in ["wte.weight", "head.weight", "head.bias"] {
        assert!(bits(&get(&varmap, name)) == bits(&get(&other_map, name)), "{name}");
    }
    assert!(last_loss < first_loss, "it learned nothing: {first_loss} → {last_loss}");
}

#[test]
fn a_tied_head_trains_to_candles_bits() {
    let (wte, varmap) = row_sparse(200, 12, DType::F32);
    let (stock, stock_var) = stock_twin(&wte);
    let mut ours = AdamW::new(varmap.all_vars(), params(1e-2, 0.01)).unwrap();
    let mut theirs = Stock::new(vec![stock_var.clone()], params(1e-2, 0.01)).unwrap();
    let mut rng = Lcg(5);
    for step in 0..60 {
        let list = [ids(&mut rng, 200, 20), vec![3, 3, 3]].concat();
        let ids = Tensor::from_slice(&list, list.len(), &CPU).unwrap();
        // Some steps do not use the head: updates are deferred until the head comes back.
        let tied = step % 5 != 4;
        let run = |x: Tensor, logits: &dyn Fn(&Tensor) -> Tensor| match tied {
            true => candle_nn::loss::cross_entropy(&logits(&x), &ids).unwrap(),
            false => x.sqr().unwrap().mean_all().unwrap(),
        };
        let x = run(wte.forward(&ids).unwrap(), &|x| Head::tied(&wte).logits(x).unwrap());
        let y = run(stock.forward(&ids).unwrap(), &|x| x.matmul(&stock_var.as_tensor().t().unwrap()).unwrap());
        assert_eq!(bits(&x), bits(&y), "loss of step {step}");
        ours.backward_step(&x).unwrap();
        theirs.backward_step(&y).unwrap();
    }
    assert_eq!(bits(wte.flushed_weight().unwrap()), bits(stock_var.as_tensor()));
    assert_eq!(
        Head::tied(&wte).logits(&Tensor::zeros((2, 3, 12), DType::F32, &CPU).unwrap()).unwrap().dims(),
        [2, 3, 200]
    );
}

#[test]
fn dense_weights_of_every_dtype_take_the_fused_step() {
    for (dtype, tolerance) in [(DType::F32, 0.0), (DType::F64, 0.0), (DType::BF16, 0.02), (DType::F16, 0.002)] {
        let start: Vec<f32> = (0..70_000).map(|i| ((i * 37 % 1000) as f32 - 500.0) / 1000.0).collect();
        let start = Tensor::from_vec(start, (700, 100), &CPU).unwrap().to_dtype(dtype).unwrap();
        let [a, b] = [0; 2].map(|_| Var::from_tensor(&start.copy().unwrap()).unwrap());
        let mut ours = AdamW::new(vec![a.clone()], params(1e-2, 0.01)).unwrap();
        let mut theirs = Stock::new(vec![b.clone()], params(1e-2, 0.01)).unwrap();
        for step in 0..15 {
            for (var, opt) in [(&a, &mut ours as &mut dyn FnStep), (&b, &mut theirs)] {
                let x = (var.as_tensor() - 0.1 * f64::from(step % 3)).unwrap();
                opt.take(&x.sqr().unwrap().sum_all().unwrap());
            }
        }
        let difference =
            (a.as_tensor().to_dtype(DType::F64).unwrap() - b.as_tensor().to_dtype(DType::F64).unwrap()).unwrap();
        let largest = difference.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(largest <= tolerance, "{dtype:?}: {largest}");
    }
}

/// A step by whichever optimizer.
trait FnStep {
    fn take(&mut self, loss: &Tensor);
}

impl<O: Optimizer> FnStep for O {
    fn take(&mut self, loss: &Tensor) {
        self.backward_step(loss).unwrap();
    }
}

/// A row-sparse bf16 or f16 table equals the same table trained densely by the same optimizer.
#[test]
fn small_floats_by_row_equal_small_floats_dense() {
    for dtype in [DType::BF16, DType::F16] {
        for weight_decay in [0.0, 0.1] {
            let (by_row, map) = row_sparse(60, 5, dtype);
            let var = Var::from_tensor(&by_row.flushed_weight().unwrap().copy().unwrap()).unwrap();
            let dense = TokenEmbedding::from_weight(var.as_tensor().clone()).unwrap();
            let mut a = AdamW::new(map.all_vars(), params(1e-2, weight_decay)).unwrap();
            let mut b = AdamW::new(vec![var.clone()], params(1e-2, weight_decay)).unwrap();
            let mut rng = Lcg(8);
            for _ in 0..150 {
                let list = ids(&mut rng, 60, 3);
                let ids = Tensor::from_slice(&list, 3, &CPU).unwrap();
                for (layer, opt) in [(&by_row, &mut a), (&dense, &mut b)] {
                    let x = layer.forward(&ids).unwrap().to_dtype(DType::F32).unwrap();
                    opt.backward_step(&(x - 0.3).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
                }
            }
            assert_eq!(bits(by_row.flushed_weight().unwrap()), bits(var.as_tensor()), "{dtype:?} {weight_decay}");
        }
    }
}

#[test]
fn repeats_are_summed_in_f32() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let (wte, varmap) = row_sparse(4, 2, dtype);
        let _opt = AdamW::new(varmap.all_vars(), params(1e-3, 0.0)).unwrap();
        let list = [vec![2u32; 1000], vec![NO_TOKEN, 1]].concat();
        let x = wte.forward(&Tensor::from_slice(&list, list.len(), &CPU).unwrap()).unwrap();
        let grads = x.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(wte.flushed_weight().unwrap()).is_none(), "a dense gradient was made");
        let RowGradients { rows, values } = wte.take_row_gradients().unwrap().unwrap();
        assert_eq!((rows, values.to_vec2::<f32>().unwrap()), (vec![2, 1], vec![vec![1000.0; 2], vec![1.0; 2]]));
        assert!(wte.take_row_gradients().unwrap().is_none());
    }
}

/// A table, a dense head and, for `tied`, the table as the head: trained in parts, against the whole batch at once.
#[test]
fn parts_of_a_batch_are_the_whole_batch() {
    for tied in [false, true] {
        let make = || {
            let (wte, varmap) = row_sparse(50, 4, DType::F32);
            let head = Tensor::arange(0f32, 200.0, &CPU).unwrap().affine(0.01, -1.0).unwrap().reshape((50, 4)).unwrap();
            let head = Var::from_tensor(&head).unwrap();
            varmap.data().lock().unwrap().insert("head.weight".to_string(), head.clone());
            let opt = AdamW::from_varmap(&varmap, params(1e-2, 0.01)).unwrap();
            (wte, varmap, head, opt)
        };
        let loss = |wte: &TokenEmbedding, head: &Var, ids: &[u32]| {
            let x = wte.forward(&Tensor::new(ids, &CPU).unwrap()).unwrap();
            let head = if tied { Head::tied(wte) } else { Head::new(head, None).unwrap() };
            head.loss(&x, &Tensor::new(ids, &CPU).unwrap(), &Default::default()).unwrap()
        };
        let (parts, parts_map, parts_head, mut by_parts) = make();
        let (whole, whole_map, whole_head, mut at_once) = make();
        for step in 0..6u32 {
            let batch: Vec<u32> = (0..8).map(|i| (i * i + step * 7) % 20).collect();
            let mut total = tallow::backward(&(loss(&parts, &parts_head, &batch[..4]) / 2.0).unwrap()).unwrap();
            total.extend(tallow::backward(&(loss(&parts, &parts_head, &batch[4..]) / 2.0).unwrap()).unwrap()).unwrap();
            by_parts.clip_grad_norm(&mut total, 0.1).unwrap();
            by_parts.step(&total).unwrap();
            let mut grads = loss(&whole, &whole_head, &batch).backward().unwrap();
            at_once.clip_grad_norm(&mut grads, 0.1).unwrap();
            at_once.step(&grads).unwrap();
        }
        by_parts.flush().unwrap();
        at_once.flush().unwrap();
        let (a, b) = (parts_map.data().lock().unwrap(), whole_map.data().lock().unwrap());
        for name in ["wte.weight", "head.weight"] {
            let difference = (a[name].as_tensor() - b[name].as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-6, "{name} {tied}: {difference}");
        }
        assert_eq!(a["head.weight"].to_vec2::<f32>().unwrap() == make().2.to_vec2::<f32>().unwrap(), tied);
    }
}

/// What was silent: the table would train on every backward since the last step, all else on the last one.
#[test]
fn a_backward_that_the_step_does_not_hold_is_an_error() {
    fn check<O: Optimizer>(mut opt: O, zero_grad: impl Fn(&O), wte: &TokenEmbedding) {
        let backward = |id: u32| wte.forward(&Tensor::new(&[id], &CPU).unwrap()).unwrap().sum_all().unwrap().backward();
        let before = bits(wte.flushed_weight().unwrap());
        let first = backward(1).unwrap();
        let second = backward(2).unwrap();
        for grads in [&first, &second] {
            let refused = opt.step(grads).unwrap_err().to_string();
            assert!(refused.contains("total.extend(grads)?") && refused.contains("zero_grad"), "{refused}");
        }
        assert_eq!(bits(wte.flushed_weight().unwrap()), before, "nothing was changed");
        // A store of neither, the sum of both.
        let mut total = Tensor::zeros(1, DType::F32, &CPU).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(opt.step(&total).is_err());
        total.extend(first).unwrap();
        total.extend(second).unwrap();
        opt.step(&total).unwrap();
        let after = bits(wte.flushed_weight().unwrap());
        assert!((1..3).all(|row| after[row * 2..][..2] != before[row * 2..][..2]), "both rows moved");
        // The same loss backward twice.
        let loss = wte.forward(&Tensor::new(&[3u32], &CPU).unwrap()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let twice = loss.backward().expect_err("the same look-up twice").to_string();
        assert!(twice.contains("a second time without a step"), "{twice}");
        opt.step(&grads).unwrap();
        // After a step it may go backward once more, as with candle.
        let once = bits(wte.flushed_weight().unwrap());
        opt.backward_step(&loss).unwrap();
        assert_ne!(bits(wte.flushed_weight().unwrap())[6..8], once[6..8]);
        // A store that was dropped, and forgotten.
        drop(backward(4).unwrap());
        assert!(opt.step(&backward(5).unwrap()).is_err());
        zero_grad(&opt);
        opt.step(&backward(5).unwrap()).unwrap();
        assert_eq!(bits(wte.flushed_weight().unwrap())[8..10], before[8..10], "row 4 has no decay and no gradient");
    }
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    check(opt, AdamW::zero_grad, &wte);
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    check(Sgd::new(varmap.all_vars(), 0.1).unwrap(), Sgd::zero_grad, &wte);
    // Clipping sees strays, too.
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let backward = || wte.forward(&Tensor::new(&[1u32], &CPU).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    drop(backward());
    assert!(opt.clip_grad_norm(&mut backward(), 1.0).is_err());
    opt.zero_grad();
    opt.step(&backward()).unwrap();
    drop(opt);
    let mut opt = Sgd::new(varmap.all_vars(), 0.1).unwrap();
    drop(backward());
    opt.zero_grad();
    opt.step(&backward()).unwrap();
}

/// Whoever takes the row gradients and gives them back, to clip or exchange them, does not make them a later step's.
#[test]
fn gradients_that_were_clipped_belong_to_their_step() {
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let backward = |id: u32| wte.forward(&Tensor::new(&[id], &CPU).unwrap()).unwrap().sum_all().unwrap().backward();
    let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    let before = bits(wte.flushed_weight().unwrap());
    let refused = |result: candle_core::Result<()>, reason: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    // A spike: clipped, then left out.
    let mut spike = backward(1).unwrap();
    assert!(opt.clip_grad_norm(&mut spike, 1.0).unwrap() > 1.0);
    let mut next = backward(2).unwrap();
    assert!(opt.clip_grad_norm(&mut next, 1.0).is_err());
    refused(opt.step(&next), "zero_grad");
    // The same where gradients are exchanged.
    opt.zero_grad();
    drop(backward(1).unwrap());
    let rows = wte.take_row_gradients().unwrap().unwrap();
    wte.add_row_gradients(rows).unwrap();
    refused(opt.step(&backward(2).unwrap()), "zero_grad");
    assert_eq!(bits(wte.flushed_weight().unwrap()), before);
    // Left out in the right way.
    opt.zero_grad();
    let mut next = backward(2).unwrap();
    opt.clip_grad_norm(&mut next, 1.0).unwrap();
    opt.clip_grad_norm(&mut next, 0.5).unwrap();
    opt.step(&next).unwrap();
    let after = bits(wte.flushed_weight().unwrap());
    assert!(after[2..4] == before[2..4] && after[4..6] != before[4..6]);
    // Once more, added to, or after they were forgotten: the rest would move, and the table would not.
    refused(opt.step(&next), "stepped or discarded already");
    next.extend(backward(3).unwrap()).unwrap();
    refused(opt.step(&next), "stepped or discarded already");
    opt.zero_grad();
    refused(opt.step(&next), "stepped or discarded already");
    assert_eq!(bits(wte.flushed_weight().unwrap()), after);
    let mut sgd = {
        drop(opt);
        Sgd::new(varmap.all_vars(), 0.1).unwrap()
    };
    let grads = backward(4).unwrap();
    sgd.step(&grads).unwrap();
    refused(sgd.step(&grads), "stepped or discarded already");
    // What waits of another backward is no gradient of this one.
    let first = backward(5).unwrap();
    assert!(tallow::gradients::missing(&first, &varmap).is_empty());
    let other = Tensor::ones(1, DType::F32, &CPU).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(tallow::gradients::missing(&other, &varmap), ["wte.weight"]);
}

/// A table that got tokens is another variable: who holds the old one would train what nothing reads.
#[test]
fn a_table_that_was_replaced_is_an_error_until_it_is_followed() {
    for gradient in [Gradient::Dense, Gradient::RowSparse] {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 2, gradient, ..Default::default() };
        let mut wte = TokenEmbedding::new(&cfg, vb).unwrap();
        let mut opt = AdamW::from_varmap(&varmap, params(1e-2, 0.0)).unwrap();
        wte.resize(&varmap, 11, tallow::Fill::Zero).unwrap();
        let new = Tensor::new(&[10u32], &CPU).unwrap();
        let step = |opt: &mut dyn FnMut(&Tensor) -> candle_core::Result<()>| {
            opt(&wte.forward(&new).unwrap().sum_all().unwrap())
        };
        let refused = step(&mut |loss| opt.backward_step(loss)).unwrap_err().to_string();
        assert!(refused.contains("follow(&varmap)"), "{refused}");
        assert_eq!(bits(wte.flushed_weight().unwrap())[20..], [0, 0]);
        opt.follow(&varmap).unwrap();
        step(&mut |loss| opt.backward_step(loss)).unwrap();
        assert!(bits(wte.flushed_weight().unwrap())[20..].iter().all(|bits| *bits != 0));
    }
    // Plain gradient descent has nothing to take along.
    let varmap = VarMap::new();
    let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 2, ..Default::default() };
    let mut wte = TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap, DType::F32, &CPU)).unwrap();
    let mut sgd = Sgd::new(varmap.all_vars(), 0.1).unwrap();
    wte.shrink(&varmap, 9).unwrap();
    let loss = || wte.forward(&Tensor::new(&[1u32], &CPU).unwrap()).unwrap().sum_all().unwrap();
    assert!(sgd.backward_step(&loss()).unwrap_err().to_string().contains("make the optimizer after the change"));
    Sgd::new(varmap.all_vars(), 0.1).unwrap().backward_step(&loss()).unwrap();
}

#[test]
fn a_gradient_without_an_optimizer_is_an_error() {
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let backward =
        || wte.forward(&Tensor::new(&[1u32], &CPU).unwrap()).unwrap().sum_all().unwrap().backward().map(|_| ());
    assert!(backward().unwrap_err().to_string().contains("tallow::optim"));
    let _stock = Stock::new(varmap.all_vars(), params(1e-3, 0.0)).unwrap();
    assert!(backward().is_err());
    let ours = AdamW::new(varmap.all_vars(), params(1e-3, 0.0)).unwrap();
    backward().unwrap();
    let second = AdamW::new(varmap.all_vars(), params(1e-3, 0.0)).err().expect("two optimizers for one table");
    assert!(second.to_string().contains("has an optimizer already"), "{second}");
    drop(ours);
    assert!(backward().is_err());
    assert!(matches!(Error::of(&backward().err().unwrap()).as_deref(), Some(Error::NoOptimizer)));
}

/// The variable, its layer and its optimizer in any order: the same rows.
#[test]
fn an_optimizer_may_be_made_before_the_layer() {
    let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 2, gradient: Gradient::RowSparse, ..Default::default() };
    let after = |steps_before: bool, early: bool| {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        let weight = vb.get_with_hints((10, 2), "weight", candle_nn::Init::Const(1.0)).unwrap();
        let no_grad = TokenEmbedding::from_weight(weight.detach()).unwrap();
        let late = (!early).then(|| TokenEmbedding::new(&cfg, vb.clone()).unwrap());
        let mut opt = AdamW::from_varmap(&varmap, params(1e-2, 0.1)).unwrap();
        let dense = TokenEmbedding::from_weight(weight.clone()).unwrap();
        let step = |opt: &mut AdamW, layer: &TokenEmbedding, ids: &[u32]| {
            let x = layer.forward(&Tensor::new(ids, &CPU).unwrap()).unwrap();
            opt.backward_step(&x.sqr().unwrap().sum_all().unwrap()).unwrap();
        };
        if steps_before {
            step(&mut opt, &dense, &[1, 5]); // moments are there already
        }
        let wte = late.unwrap_or_else(|| TokenEmbedding::new(&cfg, vb).unwrap());
        for ids in [[1u32, 2], [3, 3], [1, 4]] {
            step(&mut opt, &wte, &ids);
        }
        let read = bits(&no_grad.forward(&Tensor::new(&[2u32], &CPU).unwrap()).unwrap());
        let all = bits(wte.flushed_weight().unwrap());
        assert_eq!(read, all[4..6]);
        all
    };
    for steps_before in [false, true] {
        assert_eq!(after(steps_before, true), after(steps_before, false));
    }
    // One variable under two names would move twice a step.
    let varmap = VarMap::new();
    let var = Var::zeros((2, 2), DType::F32, &CPU).unwrap();
    varmap.data().lock().unwrap().extend([("a".to_string(), var.clone()), ("b".to_string(), var)]);
    let twice = AdamW::from_varmap(&varmap, params(1e-2, 0.1)).err().unwrap().to_string();
    assert!(twice.contains("\"a\" occurs again as \"b\""), "{twice}");
    // Two optimizers of a dense variable are candle's habit, too; a row-sparse table has one.
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    vb.get_with_hints((10, 2), "weight", candle_nn::Init::Const(1.0)).unwrap();
    let first = AdamW::new(varmap.all_vars(), params(1e-2, 0.1)).unwrap();
    let _second = AdamW::new(varmap.all_vars(), params(1e-2, 0.1)).unwrap();
    assert!(matches!(TokenEmbedding::new(&cfg, vb.clone()), Err(Error::SecondOptimizer)));
    drop(first);
    let wte = TokenEmbedding::new(&cfg, vb).unwrap();
    assert!(wte.forward(&Tensor::new(&[1u32], &CPU).unwrap()).unwrap().sum_all().unwrap().backward().is_ok());
}

#[test]
fn nothing_stale_can_be_read() {
    let (wte, varmap) = row_sparse(30, 3, DType::F32);
    let (stock, stock_var) = stock_twin(&wte);
    let mut ours = AdamW::from_varmap(&varmap, params(1e-2, 0.1)).unwrap();
    let mut theirs = Stock::new(vec![stock_var.clone()], params(1e-2, 0.1)).unwrap();
    let batches = [vec![1u32, 2], vec![3], vec![1, 4]];
    let mut train = |ours: &mut AdamW| {
        for list in &batches {
            let ids = Tensor::from_slice(list, list.len(), &CPU).unwrap();
            ours.backward_step(&wte.forward(&ids).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
            theirs.backward_step(&stock.forward(&ids).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
        }
    };
    let raw = || bits(varmap.all_vars()[0].as_tensor());
    let expected = || bits(stock_var.as_tensor());
    train(&mut ours);
    assert_ne!(raw(), expected(), "rows are behind between steps; if not, this test tests nothing");
    assert_eq!(bits(wte.flushed_weight().unwrap()), expected());
    assert_eq!(raw(), expected());
    train(&mut ours);
    Head::tied(&wte).logits(&Tensor::zeros((1, 3), DType::F32, &CPU).unwrap()).unwrap();
    assert_eq!(raw(), expected());
    train(&mut ours);
    ours.flush().unwrap();
    assert_eq!(raw(), expected());
    train(&mut ours);
    ours.state().unwrap();
    assert_eq!(raw(), expected());
    train(&mut ours);
    drop(ours);
    assert_eq!(raw(), expected());
}

#[test]
fn frozen_rows_never_change() {
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.1)).unwrap();
    let step = |opt: &mut AdamW, tied: bool| {
        let x = wte.forward(&Tensor::new(&[1u32, 2, 3], &CPU).unwrap()).unwrap();
        let loss = if tied { Head::tied(&wte).logits(&x).unwrap().sqr().unwrap() } else { x.sqr().unwrap() };
        opt.backward_step(&loss.sum_all().unwrap()).unwrap();
    };
    step(&mut opt, false);
    wte.freeze_rows(&[2, 7]).unwrap();
    let before = wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap();
    for tied in [false, true, false] {
        step(&mut opt, tied);
    }
    let after = wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap();
    let changed: Vec<usize> = (0..10).filter(|row| before[*row] != after[*row]).collect();
    assert_eq!(changed, [0, 1, 3, 4, 5, 6, 8, 9]);
    wte.freeze_rows(&[]).unwrap();
    step(&mut opt, false);
    assert_ne!(wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap()[2], after[2]);
    assert!(matches!(wte.freeze_rows(&[10]), Err(Error::RowOutOfRange { row: 10, rows: 10, .. })));
}

#[test]
fn clipping_sees_the_norm_of_the_dense_gradient() {
    for tied in [false, true] {
        let (wte, varmap) = row_sparse(20, 3, DType::F32);
        let other = Var::from_tensor(&Tensor::new(&[3f32, -4.0], &CPU).unwrap()).unwrap();
        varmap.data().lock().unwrap().insert("other".to_string(), other.clone());
        let (stock, stock_var) = stock_twin(&wte);
        let opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.1)).unwrap();
        let ids = Tensor::new(&[1u32, 5, 1, 1], &CPU).unwrap();
        let run = |x: Tensor, w: &Tensor| {
            let extra = (other.as_tensor() * 2.0).unwrap().sum_all().unwrap();
            let main = if tied { x.matmul(&w.t().unwrap()).unwrap() } else { x };
            ((main * 100.0).unwrap().sqr().unwrap().sum_all().unwrap() + extra).unwrap()
        };
        let mut grads = run(wte.forward(&ids).unwrap(), wte.flushed_weight().unwrap()).backward().unwrap();
        let dense = run(stock.forward(&ids).unwrap(), stock_var.as_tensor()).backward().unwrap();
        let square =
            |v: &Var| dense.get(v.as_tensor()).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let expected = f64::from(square(&stock_var) + square(&other)).sqrt();
        let norm = opt.clip_grad_norm(&mut grads, 0.5).unwrap();
        assert!((norm / expected - 1.0).abs() < 1e-5, "{norm} is not {expected}");
        let again = opt.clip_grad_norm(&mut grads, 0.5).unwrap();
        assert!((again - 0.5).abs() < 1e-4, "{again} after clipping to 0.5");
        assert!(opt.clip_grad_norm(&mut grads, 0.0).is_err());
    }
}

/// Groups, clipping, state, checkpoints and tables that grow are common to the rules: here for plain gradient descent.
#[test]
fn what_is_common_to_the_rules_works_for_sgd() {
    let (mut wte, varmap) = row_sparse(20, 3, DType::F32);
    let other = Var::from_tensor(&Tensor::new(&[3f32, -4.0], &CPU).unwrap()).unwrap();
    varmap.data().lock().unwrap().insert("other".to_string(), other.clone());
    let (stock, stock_var) = stock_twin(&wte);
    let stock_other = Var::from_tensor(&other.as_tensor().copy().unwrap()).unwrap();
    let table = varmap.data().lock().unwrap()["wte.weight"].clone();
    let groups =
        vec![(vec![("wte.weight".to_string(), table)], 0.5), (vec![("other".to_string(), other.clone())], 0.1)];
    let mut opt = Sgd::with_groups(groups).unwrap();
    opt.groups_mut()[1].params = 0.2;
    let ids = Tensor::new(&[1u32, 5, 1, 1], &CPU).unwrap();
    let loss = |x: Tensor, other: &Var| {
        let extra = (other.as_tensor() * 2.0).unwrap().sum_all().unwrap();
        ((x * 100.0).unwrap().sqr().unwrap().sum_all().unwrap() + extra).unwrap()
    };
    for _ in 0..5 {
        let mut grads = tallow::backward(&loss(wte.forward(&ids).unwrap(), &other)).unwrap();
        let norm = opt.clip_grad_norm(&mut grads, 0.5).unwrap();
        opt.step(&grads).unwrap();
        let dense = loss(stock.forward(&ids).unwrap(), &stock_other).backward().unwrap();
        let scale = (0.5 / (norm + 1e-6)).min(1.0);
        for (var, lr) in [(&stock_var, 0.5), (&stock_other, 0.2)] {
            let step = ((dense.get(var.as_tensor()).unwrap() * scale).unwrap() * lr).unwrap();
            var.set(&(var.as_tensor() - step).unwrap()).unwrap();
        }
        assert_eq!(bits(wte.flushed_weight().unwrap()), bits(stock_var.as_tensor()));
        assert_eq!(bits(other.as_tensor()), bits(stock_other.as_tensor()));
    }
    assert_eq!(opt.state().unwrap().len(), 1, "only the number of steps");

    let folder = tempfile::tempdir().unwrap();
    Checkpoint { step: 5, ..Default::default() }.save(folder.path(), &varmap, Some(&opt), 1).unwrap();
    let kept = bits(wte.flushed_weight().unwrap());
    drop(opt);
    let mut opt = Sgd::new(varmap.all_vars(), 0.5).unwrap();
    opt.backward_step(&loss(wte.forward(&ids).unwrap(), &other)).unwrap();
    assert_ne!(bits(wte.flushed_weight().unwrap()), kept);
    Checkpoint::load(folder.path(), &varmap, Some(&mut opt), &Default::default()).unwrap();
    assert_eq!(bits(wte.flushed_weight().unwrap()), kept);
    assert_eq!(opt.state().unwrap()["step"].to_vec1::<i64>().unwrap(), [5]);
    // An AdamW has moments, which this checkpoint lacks.
    drop(opt);
    let mut adamw = AdamW::from_varmap(&varmap, params(1e-2, 0.0)).unwrap();
    let refused = Checkpoint::load(folder.path(), &varmap, Some(&mut adamw), &Default::default()).unwrap_err();
    assert!(refused.to_string().contains("\"wte.weight.m\" is missing"), "{refused}");
    drop(adamw);

    let mut opt = Sgd::from_varmap(&varmap, 0.5).unwrap();
    wte.resize(&varmap, 24, tallow::Fill::Zero).unwrap();
    opt.follow(&varmap).unwrap();
    opt.backward_step(&wte.forward(&Tensor::new(&[23u32], &CPU).unwrap()).unwrap().sum_all().unwrap()).unwrap();
    assert_eq!(wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap()[23], [-0.5; 3]);
}

/// Frozen rows get no update, so they count in no norm: neither by row nor through a tied head.
#[test]
fn clipping_leaves_frozen_rows_out() {
    for tied in [false, true] {
        let (wte, varmap) = row_sparse(20, 3, DType::F32);
        let (stock, stock_var) = stock_twin(&wte);
        let opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.1)).unwrap();
        let frozen: Vec<u32> = (0..20).filter(|row| *row != 5 && *row != 6).collect();
        wte.freeze_rows(&frozen).unwrap();
        let ids = Tensor::new(&[1u32, 5, 1, 6], &CPU).unwrap();
        let run = |x: Tensor, w: &Tensor| {
            if tied { x.matmul(&w.t().unwrap()).unwrap() } else { x }.sqr().unwrap().sum_all().unwrap()
        };
        let mut grads = run(wte.forward(&ids).unwrap(), wte.flushed_weight().unwrap()).backward().unwrap();
        let dense = run(stock.forward(&ids).unwrap(), stock_var.as_tensor()).backward().unwrap();
        let free = dense.get(stock_var.as_tensor()).unwrap().narrow(0, 5, 2).unwrap();
        let expected = f64::from(free.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
        let norm = opt.clip_grad_norm(&mut grads, 1e6).unwrap();
        assert!((norm / expected - 1.0).abs() < 1e-5, "tied {tied}: {norm} is not {expected}");
        let all: Vec<u32> = (0..20).collect();
        wte.freeze_rows(&all).unwrap();
        assert_eq!(opt.clip_grad_norm(&mut grads, 1e6).unwrap(), 0.0, "tied {tied}: nothing trains");
    }
}

#[test]
fn groups_have_their_own_parameters() {
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let other = Var::from_tensor(&Tensor::new(&[1f32], &CPU).unwrap()).unwrap();
    let table = varmap.all_vars().remove(0);
    let groups = vec![
        (vec![("wte".to_string(), table)], params(0.0, 0.0)),
        (vec![("w".to_string(), other.clone())], params(0.1, 0.0)),
    ];
    let mut opt = AdamW::with_groups(groups).unwrap();
    let before = bits(wte.flushed_weight().unwrap());
    let step = |opt: &mut AdamW| {
        let x = wte.forward(&Tensor::new(&[1u32], &CPU).unwrap()).unwrap().sum_all().unwrap();
        opt.backward_step(&(x + other.as_tensor().sum_all().unwrap()).unwrap()).unwrap();
    };
    step(&mut opt);
    assert_eq!(bits(wte.flushed_weight().unwrap()), before);
    assert!(other.as_tensor().to_vec1::<f32>().unwrap()[0] < 0.91);
    opt.groups_mut()[0].params.lr = 0.1;
    step(&mut opt);
    assert_ne!(bits(wte.flushed_weight().unwrap()), before);
}

#[test]
fn a_state_that_does_not_fit_is_refused_whole() {
    let (_wte, varmap) = row_sparse(10, 2, DType::F32);
    let mut opt = AdamW::from_varmap(&varmap, params(1e-3, 0.0)).unwrap();
    let mut state = opt.state().unwrap();
    assert_eq!(state["wte.weight.m"].dims(), [10, 2]);
    state.insert("wte.weight.v".to_string(), Tensor::zeros((3, 2), DType::F32, &CPU).unwrap());
    state.remove("step");
    let message = opt.load_state(&state).unwrap_err().to_string();
    assert!(
        message.contains("\"step\"") && message.contains("\"wte.weight.v\" has shape [3, 2], not [10, 2]"),
        "{message}"
    );
}

/// As after an exchange between machines: all gradients in one tensor, each a view of it.
#[test]
fn gradients_that_are_views_are_taken_from_where_they_begin() {
    fn steps<O: Optimizer>(make: impl Fn(Vec<Var>) -> candle_core::Result<O>) -> [Vec<u32>; 2] {
        let draw = |rows: usize| Tensor::arange(0f32, rows as f32 * 3.0, &CPU).unwrap().reshape((rows, 3)).unwrap();
        let [a, b] = [2, 4].map(|rows| Var::from_tensor(&draw(rows)).unwrap());
        let mut optimizer = make(vec![a.clone(), b.clone()]).unwrap();
        for _ in 0..3 {
            let loss = (a.sqr().unwrap().sum_all().unwrap() + b.sqr().unwrap().sum_all().unwrap()).unwrap();
            let mut grads = loss.backward().unwrap();
            let all = [&a, &b].map(|var| grads.get(var.as_tensor()).unwrap().clone());
            let all = Tensor::cat(&all, 0).unwrap();
            grads.insert(a.as_tensor(), all.narrow(0, 0, 2).unwrap());
            grads.insert(b.as_tensor(), all.narrow(0, 2, 4).unwrap());
            optimizer.step(&grads).unwrap();
        }
        [bits(&a), bits(&b)]
    }
    assert_eq!(steps(|vars| AdamW::new(vars, params(0.1, 0.1))), steps(|vars| Stock::new(vars, params(0.1, 0.1))));
    assert_eq!(steps(|vars| Sgd::new(vars, 0.1)), steps(|vars| candle_nn::SGD::new(vars, 0.1)));
}

#[test]
fn sgd_gives_candles_bits() {
    let (wte, varmap) = row_sparse(100, 5, DType::F32);
    let (stock, stock_var) = stock_twin(&wte);
    let mut ours = Sgd::new(varmap.all_vars(), 0.1).unwrap();
    let mut theirs = candle_nn::SGD::new(vec![stock_var.clone()], 0.1).unwrap();
    let mut rng = Lcg(4);
    for step in 0..50 {
        let list = [ids(&mut rng, 100, 20), vec![NO_TOKEN]].concat();
        let ids = Tensor::from_slice(&list, list.len(), &CPU).unwrap();
        let mut again = Lcg(rng.0);
        let mut x = wte.forward(&ids).unwrap();
        let mut y = stock.forward(&ids).unwrap();
        if step % 5 == 0 {
            x = Head::tied(&wte).logits(&x).unwrap();
            y = y.matmul(&stock_var.as_tensor().t().unwrap()).unwrap();
        }
        ours.backward_step(&loss(&x, &mut rng)).unwrap();
        theirs.backward_step(&loss(&y, &mut again)).unwrap();
    }
    assert_eq!(bits(wte.flushed_weight().unwrap()), bits(stock_var.as_tensor()));
}

/// The largest difference after training under another rule than the exact one.
fn difference_under(replay: Replay) -> f32 {
    let (wte, varmap) = row_sparse(300, 4, DType::F32);
    let (stock, stock_var) = stock_twin(&wte);
    let mut ours = AdamW::new(varmap.all_vars(), params(1e-3, 0.01)).unwrap().with_replay(replay).unwrap();
    let mut theirs = Stock::new(vec![stock_var.clone()], params(1e-3, 0.01)).unwrap();
    let mut rng = Lcg(6);
    for _ in 0..600 {
        let list = ids(&mut rng, 300, 4);
        let ids = Tensor::from_slice(&list, 4, &CPU).unwrap();
        let mut again = Lcg(rng.0);
        ours.backward_step(&loss(&wte.forward(&ids).unwrap(), &mut rng)).unwrap();
        theirs.backward_step(&loss(&stock.forward(&ids).unwrap(), &mut again)).unwrap();
    }
    let difference = (wte.flushed_weight().unwrap() - stock_var.as_tensor()).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn other_rules_differ_as_documented() {
    assert_eq!(difference_under(Replay::Exact), 0.0);
    let truncated = difference_under(Replay::Truncated { steps: 200 });
    assert!(truncated > 0.0 && truncated < 1e-4, "{truncated}");
    let lazy = difference_under(Replay::Lazy);
    assert!(lazy > 1e-3, "{lazy}: lazy is another optimizer");
}

#[test]
fn adamw_and_sparse_adam_are_pytorchs() {
    let t = candle_core::safetensors::load(golden("optim.safetensors"), &CPU).unwrap();
    for (name, replay, weight_decay) in [("adamw", Replay::Exact, 0.1), ("sparse", Replay::Lazy, 0.0)] {
        let (wte, varmap) = row_sparse(40, 6, DType::F32);
        varmap.all_vars()[0].set(&t["weight"]).unwrap();
        let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, weight_decay)).unwrap().with_replay(replay).unwrap();
        for step in 0..25 {
            let x = wte.forward(&t["ids"].get(step).unwrap()).unwrap();
            let loss = (x * t["grad"].get(step).unwrap()).unwrap().sum_all().unwrap();
            opt.backward_step(&loss).unwrap();
        }
        let difference = (wte.flushed_weight().unwrap() - &t[name]).unwrap().abs().unwrap().max_all().unwrap();
        let difference = difference.to_scalar::<f32>().unwrap();
        assert!(difference < 1e-6, "{name}: {difference}");
    }
}

#[test]
fn rows_given_twice_are_summed() {
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let (twin, twin_map) = row_sparse(10, 2, DType::F32);
    let mut a = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    let mut b = AdamW::new(twin_map.all_vars(), params(1e-2, 0.0)).unwrap();
    let none = Tensor::zeros(1, DType::F32, &CPU).unwrap().sum_all().unwrap().backward().unwrap();
    let give = |layer: &TokenEmbedding, rows: Vec<u32>, values: &[[f32; 2]]| {
        layer.add_row_gradients(RowGradients {
            rows,
            values: Tensor::from_vec(values.concat(), (values.len(), 2), &CPU).unwrap(),
        })
    };
    give(&wte, vec![3, 5, 3], &[[1.0, 2.0], [1.0, 1.0], [0.5, -1.0]]).unwrap();
    give(&twin, vec![3, 5], &[[1.5, 1.0], [1.0, 1.0]]).unwrap();
    a.step(&none).unwrap();
    b.step(&none).unwrap();
    assert_eq!(bits(wte.flushed_weight().unwrap()), bits(twin.flushed_weight().unwrap()));
    assert!(give(&wte, vec![10], &[[0.0; 2]]).is_err() && give(&wte, vec![1, 2], &[[0.0; 2]]).is_err());
}

#[test]
fn gradients_do_not_outlive_their_step() {
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let backward = || wte.forward(&Tensor::new(&[1u32], &CPU).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    let first = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    let before = bits(wte.flushed_weight().unwrap());
    let grads = backward();
    drop(first);
    let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    assert!(opt.step(&grads).is_err());
    assert_eq!(bits(wte.flushed_weight().unwrap()), before, "a gradient of another optimizer was applied");
    let grads = backward();
    opt.zero_grad();
    assert!(opt.step(&grads).is_err());
    assert_eq!(bits(wte.flushed_weight().unwrap()), before, "a gradient that was given up was applied");
    let grads = backward();
    opt.step(&grads).unwrap();
    assert_ne!(bits(wte.flushed_weight().unwrap()), before);
}

#[test]
fn every_layer_over_the_variable_sees_current_rows() {
    let (wte, varmap) = row_sparse(10, 2, DType::F32);
    let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.5)).unwrap();
    let plain = TokenEmbedding::from_weight(varmap.all_vars()[0].as_tensor().clone()).unwrap();
    let step = |opt: &mut AdamW, id: u32| {
        let x = wte.forward(&Tensor::new(&[id], &CPU).unwrap()).unwrap();
        opt.backward_step(&x.sum_all().unwrap()).unwrap();
    };
    // The same memory without gradients: by `no_grad` (made before the table had an optimizer, or after), by a view of it.
    let detached = TokenEmbedding::new(
        &TokenEmbeddingConfig { vocab_size: 10, d_model: 2, ..Default::default() },
        tallow::no_grad(&varmap, DType::F32, &CPU).pp("wte"),
    )
    .unwrap();
    let other = tallow::no_grad(&varmap, DType::F16, &CPU).pp("wte").get((10, 2), "weight").unwrap_err().to_string();
    assert!(other.contains("shares its memory"), "{other}");
    let raw = varmap.all_vars()[0].as_detached_tensor();
    let view = TokenEmbedding::from_weight(raw.narrow(0, 1, 4).unwrap()).unwrap();
    let one = Tensor::new(&[[1f32, 0.], [0., 1.]], &CPU).unwrap();
    for reader in 0..8 {
        step(&mut opt, 1);
        step(&mut opt, 2);
        let look_up = |layer: &dyn Module, id: u32| bits(&layer.forward(&Tensor::new(&[id], &CPU).unwrap()).unwrap());
        let row = |layer: &dyn Module| look_up(layer, 1);
        let read = match reader {
            0 => row(&plain),
            1 => row(&candle_nn::Embedding::from(wte.clone())),
            2 => bits(plain.flushed_weight().unwrap())[2..4].to_vec(),
            3 => row(&detached),
            4 => bits(detached.flushed_weight().unwrap())[2..4].to_vec(),
            5 => look_up(&view, 0),
            // The row as the logits of a head: of the two unit vectors.
            6 => {
                let logits = Head::new(&raw, None).unwrap().logits(&one).unwrap();
                bits(&logits.narrow(1, 1, 1).unwrap())
            }
            _ => bits(&Head::tied(&detached).logits(&one).unwrap().narrow(1, 1, 1).unwrap()),
        };
        let stale = bits(&raw)[2..4].to_vec();
        assert_eq!(read, row(&wte), "reader {reader}");
        assert_eq!(read, stale, "reader {reader} has replayed what it read");
    }
}

/// `state` and `load_state` go by names, and an optimizer of a bare list of variables has none.
#[test]
fn an_optimizer_without_names_says_so() {
    let (mut wte, varmap) = row_sparse(10, 2, DType::F32);
    let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    wte.resize(&varmap, 12, tallow::Fill::Zero).unwrap();
    for refused in [opt.state().map(|_| ()), opt.load_state(&Default::default()), opt.follow(&varmap)] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("from_varmap") && refused.contains("name_by"), "{refused}");
    }
    assert!(opt.name_by(&varmap).unwrap_err().to_string().contains("not in the VarMap"), "the old variable is gone");
    let (mut wte, varmap) = row_sparse(10, 2, DType::F32);
    let mut opt = AdamW::new(varmap.all_vars(), params(1e-2, 0.0)).unwrap();
    opt.name_by(&varmap).unwrap();
    assert!(opt.state().unwrap().contains_key("wte.weight.m"));
    wte.resize(&varmap, 12, tallow::Fill::Zero).unwrap();
    opt.follow(&varmap).unwrap();
    assert_eq!(opt.state().unwrap()["wte.weight.m"].dims(), [12, 2]);
}

/// What docs/training.md says of candle's operations, looked at again with every version of candle.
#[test]
fn operations_without_a_backward_are_those_of_the_page() {
    use candle_nn::{LayerNorm, RmsNorm, ops, rotary_emb};
    let var = || {
        Var::from_tensor(
            &Tensor::arange(0f32, 16.0, &CPU).unwrap().affine(0.1, -0.7).unwrap().reshape((1, 1, 4, 4)).unwrap(),
        )
        .unwrap()
    };
    let ones = Tensor::ones(4, DType::F32, &CPU).unwrap();
    let zeros = Tensor::zeros(4, DType::F32, &CPU).unwrap();
    let angles = Tensor::arange(0f32, 8.0, &CPU).unwrap().affine(0.1, 0.0).unwrap().reshape((4, 2)).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let rms = RmsNorm::new(ones.clone(), 1e-5);
    let layer = LayerNorm::new(ones.clone(), zeros.clone(), 1e-5);
    type Op<'a> = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor> + 'a>;
    let ops: Vec<(&str, Op, &str, Op)> = vec![
        ("ops::softmax_last_dim", Box::new(ops::softmax_last_dim), "ops::softmax", Box::new(|x| ops::softmax(x, 3))),
        ("RmsNorm::forward", Box::new(|x| rms.forward(x)), "RmsNorm::forward_diff", Box::new(|x| rms.forward_diff(x))),
        (
            "ops::rms_norm",
            Box::new(|x| ops::rms_norm(x, &ones, 1e-5)),
            "ops::rms_norm_slow",
            Box::new(|x| ops::rms_norm_slow(x, &ones, 1e-5)),
        ),
        (
            "LayerNorm::forward",
            Box::new(|x| layer.forward(x)),
            "ops::layer_norm_slow",
            Box::new(|x| ops::layer_norm_slow(x, &ones, &zeros, 1e-5)),
        ),
        (
            "ops::layer_norm",
            Box::new(|x| ops::layer_norm(x, &ones, &zeros, 1e-5)),
            "ops::layer_norm_slow",
            Box::new(|x| ops::layer_norm_slow(x, &ones, &zeros, 1e-5)),
        ),
        (
            "rotary_emb::rope",
            Box::new(|x| rotary_emb::rope(x, &cos, &sin)),
            "rotary_emb::rope_slow",
            Box::new(|x| rotary_emb::rope_slow(x, &cos, &sin)),
        ),
        (
            "rotary_emb::rope_i",
            Box::new(|x| rotary_emb::rope_i(x, &cos, &sin)),
            "rotary_emb::rope_i_slow",
            Box::new(|x| rotary_emb::rope_i_slow(x, &cos, &sin)),
        ),
    ];
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/training.md")).unwrap();
    let trains = |op: &Op| {
        let x = var();
        let grads = op(x.as_tensor()).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        grads.get(x.as_tensor()).is_some()
    };
    for (name, without, instead, with) in &ops {
        let said =
            page.lines().any(|line| line.starts_with(&format!("| `{name}`")) && line.contains(&format!("`{instead}`")));
        assert!(said, "{name} and {instead} are not on the page");
        assert!(!trains(without), "{name} has a backward by now");
        assert!(trains(with), "{instead} has none");
        let (a, b) = (without(var().as_tensor()).unwrap(), with(var().as_tensor()).unwrap());
        let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-5, "{name} is not {instead}: {difference}");
    }
}

/// candle's layers that train nothing are named; a row-sparse table counts by its row gradients.
#[test]
fn variables_without_a_gradient_are_named() {
    let (wte, varmap) = row_sparse(10, 4, DType::F32);
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let mix = candle_nn::linear_no_bias(4, 4, vb.pp("mix")).unwrap();
    let norm = candle_nn::rms_norm(4, 1e-5, vb.pp("norm")).unwrap();
    let head = candle_nn::linear(4, 3, vb.pp("head")).unwrap();
    let opt = AdamW::from_varmap(&varmap, params(1e-3, 0.0)).unwrap();
    let x = || mix.forward(&wte.forward(&Tensor::new(&[1u32, 2], &CPU).unwrap()).unwrap()).unwrap();
    let run = |x: Tensor| head.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let grads = run(norm.forward(&x()).unwrap());
    assert_eq!(tallow::gradients::missing(&grads, &varmap), ["mix.weight", "norm.weight", "wte.weight"]);
    let grads = run(norm.forward_diff(&x()).unwrap());
    assert_eq!(tallow::gradients::missing(&grads, &varmap), [""; 0]);
    drop(opt);
}

#[test]
fn sgd_leaves_frozen_rows_alone() {
    let (wte, varmap) = row_sparse(6, 2, DType::F32);
    let mut opt = Sgd::new(varmap.all_vars(), 0.1).unwrap();
    wte.freeze_rows(&[2, 4]).unwrap();
    let before = wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap();
    for tied in [true, false] {
        let x = wte.forward(&Tensor::new(&[1u32, 2], &CPU).unwrap()).unwrap();
        let x = if tied { Head::tied(&wte).logits(&x).unwrap() } else { x };
        opt.backward_step(&(x + 1.0).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
    }
    let after = wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap();
    let same: Vec<usize> = (0..6).filter(|row| before[*row] == after[*row]).collect();
    assert_eq!(same, [2, 4]);
}

/// Steps whose factors have no logarithm (β1 = 0, a negative decay) cannot be jumped over: what was deferred up to the last of
/// them is replayed in full. So with one at every step truncation is exact.
#[test]
fn truncation_survives_settings_without_logarithms() {
    let odd = || ParamsAdamW { beta1: 0.0, weight_decay: 200.0, ..params(1e-2, 0.0) };
    for odd_steps in [1, 20] {
        let (wte, varmap) = row_sparse(20, 3, DType::F32);
        let (stock, stock_var) = stock_twin(&wte);
        let replay = Replay::Truncated { steps: 3 };
        let mut ours = AdamW::new(varmap.all_vars(), params(1e-2, 0.1)).unwrap().with_replay(replay).unwrap();
        let mut theirs = Stock::new(vec![stock_var.clone()], params(1e-2, 0.1)).unwrap();
        for step in 0..60u32 {
            let set = if step % odd_steps == odd_steps / 3 { odd() } else { params(1e-2, 0.1) };
            ours.set_params(set.clone());
            theirs.set_params(set);
            let ids = Tensor::new(&[step % 19 + 1], &CPU).unwrap();
            ours.backward_step(&wte.forward(&ids).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
            theirs.backward_step(&stock.forward(&ids).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
        }
        let difference =
            (wte.flushed_weight().unwrap() - stock_var.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        let difference = difference.to_scalar::<f32>().unwrap();
        match odd_steps {
            1 => assert_eq!(difference, 0.0),
            _ => assert!(difference > 0.0 && difference.is_finite(), "{difference}: updates were left out"),
        }
    }
}

#[test]
fn a_clipped_step_is_the_dense_optimizers_clipped_step() {
    let (wte, varmap) = row_sparse(30, 4, DType::F32);
    let (stock, stock_var) = stock_twin(&wte);
    let mut ours = AdamW::new(varmap.all_vars(), params(1e-2, 0.1)).unwrap();
    let mut theirs = Stock::new(vec![stock_var.clone()], params(1e-2, 0.1)).unwrap();
    for step in 0..10u32 {
        let ids = Tensor::new(&[step % 7, 3, 3, 20 + step % 5], &CPU).unwrap();
        let mut grads = loss(&wte.forward(&ids).unwrap(), &mut Lcg(step.into())).backward().unwrap();
        let mut dense = loss(&stock.forward(&ids).unwrap(), &mut Lcg(step.into())).backward().unwrap();
        let norm = ours.clip_grad_norm(&mut grads, 0.01).unwrap();
        let scaled = (dense.get(stock_var.as_tensor()).unwrap() * (0.01 / (norm + 1e-6))).unwrap();
        dense.insert(stock_var.as_tensor(), scaled);
        ours.step(&grads).unwrap();
        theirs.step(&dense).unwrap();
    }
    let difference = (wte.flushed_weight().unwrap() - stock_var.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
    assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
}

/// Reading rows in a parallel loop while an optimizer holds its lock: every reader gets the dense optimizer's bits, and none waits
/// for ever (this would be said after a minute).
#[test]
fn parallel_readers_do_not_lock_each_other_out() {
    use rayon::prelude::*;
    let (done, waiting) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (wte, varmap) = row_sparse(20_000, 64, DType::F32);
        let (stock, stock_var) = stock_twin(&wte);
        let mut opt = AdamW::new(varmap.all_vars(), params(1e-3, 0.1)).unwrap();
        let mut theirs = Stock::new(vec![stock_var], params(1e-3, 0.1)).unwrap();
        for step in 0..5 {
            let ids: Vec<u32> = (0..8000).map(|i| (i * 7 + step * 1000) % 20_000).collect();
            let ids = Tensor::from_vec(ids, 8000, &CPU).unwrap();
            opt.backward_step(&wte.forward(&ids).unwrap().sum_all().unwrap()).unwrap();
            theirs.backward_step(&stock.forward(&ids).unwrap().sum_all().unwrap()).unwrap();
            (0..64u32).into_par_iter().for_each(|i| {
                let ids: Vec<u32> = (0..4000).map(|k| (i * 311 + k * 5) % 20_000).collect();
                let ids = Tensor::from_vec(ids, 4000, &CPU).unwrap();
                assert!(bits(&wte.forward(&ids).unwrap()) == bits(&stock.forward(&ids).unwrap()), "reader {i}");
            });
        }
        done.send(()).unwrap();
    });
    let waited = waiting.recv_timeout(std::time::Duration::from_secs(60));
    assert!(waited.is_ok(), "a reader failed, or waits for ever: {waited:?}");
}

/// Row-sparse steps, gaps, a tied step, frozen rows, clipping and state on every device that is there, against candle's dense
/// AdamW on the same device. (On the CPU the other tests ask for equal bits; a GPU's sums may differ in the last one.)
#[test]
fn every_device_trains_like_candle_on_it() {
    for device in crate::embedding::devices() {
        let varmap = VarMap::new();
        let cfg =
            TokenEmbeddingConfig { vocab_size: 60, d_model: 8, gradient: Gradient::RowSparse, ..Default::default() };
        let wte = TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap, DType::F32, &device).pp("wte")).unwrap();
        let (stock, stock_var) = stock_twin(&wte);
        let mut ours = AdamW::from_varmap(&varmap, params(1e-2, 0.1)).unwrap();
        let mut theirs = Stock::new(vec![stock_var.clone()], params(1e-2, 0.1)).unwrap();
        let mut rng = Lcg(12);
        for step in 0..60 {
            let list = [ids(&mut rng, 60, 5), vec![7, 7, NO_TOKEN]].concat();
            let ids = Tensor::from_slice(&list, list.len(), &device).unwrap();
            let (mut x, mut y) = (wte.forward(&ids).unwrap(), stock.forward(&ids).unwrap());
            if step % 20 == 19 {
                x = Head::tied(&wte).logits(&x).unwrap();
                y = y.matmul(&stock_var.as_tensor().t().unwrap()).unwrap();
            }
            let mut grads = (x - 0.5).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
            ours.clip_grad_norm(&mut grads, 1e6).unwrap();
            ours.step(&grads).unwrap();
            theirs.backward_step(&(y - 0.5).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
            if step == 30 {
                let state = ours.state().unwrap();
                ours.load_state(&state).unwrap();
            }
        }
        let difference =
            (wte.flushed_weight().unwrap() - stock_var.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        let difference = difference.to_device(&CPU).unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-5, "{:?}: {difference}", device.location());
        wte.freeze_rows(&[7]).unwrap();
        let frozen = wte.flushed_weight().unwrap().get(7).unwrap().to_vec1::<f32>().unwrap();
        let loss = wte.forward(&Tensor::new(&[7u32, 8], &device).unwrap()).unwrap().sum_all().unwrap();
        ours.backward_step(&loss).unwrap();
        assert_eq!(wte.flushed_weight().unwrap().get(7).unwrap().to_vec1::<f32>().unwrap(), frozen);
    }
}
