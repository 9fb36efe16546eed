//! Data parallel: every rank has the model, and a part of the batch.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, Local, RowExchange};
use tallow::optim::{Optim, Rule, Sgd};
use tallow::{Checkpoint, Gradient, LoadOptions, NO_TOKEN, TokenEmbedding, TokenEmbeddingConfig, backward};

use super::{Lcg, Ranks};

const EXCHANGES: [RowExchange; 3] = [RowExchange::Union, RowExchange::Owners, RowExchange::Ordered];

pub const V: usize = 37;
pub const C: usize = 5;

pub struct Model {
    pub varmap: VarMap,
    pub wte: TokenEmbedding,
    linear: candle_nn::Linear,
}

pub fn model(gradient: Gradient, seed: u64) -> Model {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: V, d_model: C, gradient, seed, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
    let weights: Vec<f32> = (0..C * C).map(|i| (i as f32 - 9.0) / 16.0).collect();
    let linear = candle_nn::linear(C, C, vb.pp("linear")).unwrap();
    let all = varmap.data().lock().unwrap();
    all["linear.weight"].set(&Tensor::from_vec(weights, (C, C), &Device::Cpu).unwrap()).unwrap();
    all["linear.bias"].set(&Tensor::zeros(C, DType::F32, &Device::Cpu).unwrap()).unwrap();
    drop(all);
    Model { varmap, wte, linear }
}

/// Ids of each rank in each step. The first rank has nothing in the second step, ranks have different numbers, and some ids are padding.
fn batches(world: usize, steps: usize) -> Vec<Vec<Vec<u32>>> {
    let mut lcg = Lcg(7);
    let mut batch = |step: usize, rank: usize| match (step, rank) {
        (1, 0) if world > 1 => Vec::new(),
        _ => (0..3 + (rank + step) % 4)
            .map(|at| match (step + rank + at) % 5 {
                4 => NO_TOKEN,
                _ => lcg.below(V as u64 / 2) as u32 * (1 + rank as u32 % 2),
            })
            .collect(),
    };
    (0..steps).map(|step| (0..world).map(|rank| batch(step, rank)).collect()).collect()
}

/// Gradients of a sum of squares over `total` tokens; of the table alone, if the linear layer is left out.
fn gradients(model: &Model, ids: &[u32], total: usize, with_linear: bool) -> GradStore {
    if ids.is_empty() {
        return Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
    }
    let x = model.wte.forward(&Tensor::new(ids, &Device::Cpu).unwrap()).unwrap();
    let x = if with_linear { model.linear.forward(&x).unwrap() } else { x };
    backward(&((x + 0.25).unwrap().sqr().unwrap().sum_all().unwrap() / total as f64).unwrap()).unwrap()
}

fn values(model: &Model) -> Vec<Vec<u32>> {
    model.wte.flushed_weight().unwrap();
    let all = model.varmap.data().lock().unwrap();
    let mut names: Vec<&String> = all.keys().collect();
    names.sort();
    let bits = |name: &&String| {
        all[*name].flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    names.iter().map(bits).collect()
}

fn trained<P: Rule>(
    collective: impl Collective,
    params: P,
    gradient: Gradient,
    rows: RowExchange,
    batches: &[Vec<u32>],
    linear: bool,
) -> Vec<Vec<u32>> {
    // Another seed on each rank: rank 0's weights go to all.
    let model = model(gradient, 5 + collective.rank() as u64);
    let mut opt = Optim::from_varmap(&model.varmap, params).unwrap();
    let ranks = DataParallel::new(collective).with_rows(rows);
    ranks.broadcast(&model.varmap).unwrap();
    for ids in batches {
        let total = ranks.total(ids.len()).unwrap();
        let mut grads = gradients(&model, ids, total, linear);
        ranks.exchange(&opt, &mut grads).unwrap();
        opt.clip_grad_norm(&mut grads, 0.5).unwrap();
        opt.step(&grads).unwrap();
        ranks.check_replicas(&model.varmap).unwrap();
    }
    values(&model)
}

fn of_rank(batches: &[Vec<Vec<u32>>], rank: usize) -> Vec<Vec<u32>> {
    batches.iter().map(|step| step[rank].clone()).collect()
}

fn joined(batches: &[Vec<Vec<u32>>]) -> Vec<Vec<u32>> {
    batches.iter().map(|step| step.concat()).collect()
}

pub fn adamw() -> ParamsAdamW {
    ParamsAdamW { lr: 0.01, ..Default::default() }
}

pub fn in_order_the_table_has_the_bits_of_one_process(ranks: &Ranks) {
    let batches = batches(ranks.world_size(), 20);
    let ordered = RowExchange::Ordered;
    let one = trained(Local, adamw(), Gradient::RowSparse, ordered, &joined(&batches), false);
    let own = trained(ranks, adamw(), Gradient::RowSparse, ordered, &of_rank(&batches, ranks.rank()), false);
    assert!(own == one, "{} ranks", ranks.world_size());
}

pub fn every_exchange_trains_as_one_process_does(ranks: &Ranks) {
    let batches = batches(ranks.world_size(), 20);
    let own_batches = of_rank(&batches, ranks.rank());
    let floats = |values: Vec<Vec<u32>>| values.concat().into_iter().map(f32::from_bits).collect::<Vec<f32>>();
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let sgd = |gradient, rows| trained(ranks, 0.1, gradient, rows, &own_batches, true);
    for (gradient, rows) in [Gradient::RowSparse, Gradient::Dense].iter().flat_map(|g| EXCHANGES.map(|rows| (*g, rows)))
    {
        // `trained` compares the replicas after every step.
        let what = format!("{} ranks, {gradient:?}, {rows:?}", ranks.world_size());
        let one = floats(trained(Local, adamw(), gradient, rows, &joined(&batches), true));
        let own = floats(trained(ranks, adamw(), gradient, rows, &own_batches, true));
        assert!(far(&own, &one) < 1e-5, "{what}");
        let one = floats(trained(Local, 0.1, gradient, rows, &joined(&batches), true));
        assert!(far(&floats(sgd(gradient, rows)), &one) < 1e-5, "{what}");
        // With two ranks a sum has one order: rank by rank, as dense gradients are summed.
        if rows != RowExchange::Ordered && ranks.world_size() <= 2 {
            assert!(sgd(Gradient::RowSparse, rows) == sgd(Gradient::Dense, rows), "{what}");
        }
    }
}

/// Sums of whole numbers are exact in any order.
pub fn rows_are_summed_over_all_ranks(ranks: &Ranks) {
    let batches = batches(ranks.world_size(), 3);
    for exchange in EXCHANGES {
        for (step, ids) in of_rank(&batches, ranks.rank()).iter().enumerate() {
            let (rows, values) = exchanged(ranks, exchange, ids, whole_number);
            let mut expected = vec![[0f32; C]; V];
            for id in batches[step].concat().into_iter().filter(|id| *id != NO_TOKEN) {
                (0..C).for_each(|column| expected[id as usize][column] += whole_number(id, column));
            }
            assert_eq!(rows.len(), expected.iter().filter(|row| row[1] != 0.0).count());
            rows.iter().zip(values).for_each(|(row, values)| assert_eq!(values, expected[*row as usize]));
        }
    }
}

/// Within 1e-6 of the sum of absolute values of what is summed.
pub fn gradients_are_those_of_the_joined_batch(ranks: &Ranks) {
    let batches = batches(ranks.world_size(), 3);
    let number = |id: u32, column: usize| ((id as usize * 31 + column * 7) % 97) as f32 / 31.0 - 1.5;
    for exchange in EXCHANGES {
        for (step, ids) in of_rank(&batches, ranks.rank()).iter().enumerate() {
            let (rows, values) = exchanged(ranks, exchange, ids, number);
            let (mut expected, mut sizes) = (vec![[0f64; C]; V], vec![[0f64; C]; V]);
            for id in batches[step].concat().into_iter().filter(|id| *id != NO_TOKEN) {
                for column in 0..C {
                    expected[id as usize][column] += f64::from(number(id, column));
                    sizes[id as usize][column] += f64::from(number(id, column).abs());
                }
            }
            for (row, values) in rows.into_iter().zip(values) {
                for (column, value) in values.into_iter().enumerate() {
                    let (expected, size) = (expected[row as usize][column], sizes[row as usize][column]);
                    assert!((f64::from(value) - expected).abs() <= 1e-6 * size, "{exchange:?}: {value}, {expected}");
                }
            }
        }
    }
}

fn whole_number(id: u32, column: usize) -> f32 {
    (id as usize % 3 + column) as f32
}

/// The exchanged gradient of a look-up, if the gradient of its output is `number` of (id, column).
fn exchanged(
    ranks: &Ranks,
    exchange: RowExchange,
    ids: &[u32],
    number: impl Fn(u32, usize) -> f32,
) -> (Vec<u32>, Vec<Vec<f32>>) {
    let model = model(Gradient::RowSparse, 5);
    let opt = Sgd::from_varmap(&model.varmap, 0.1).unwrap();
    let mut grads = match ids {
        [] => gradients(&model, ids, 1, false),
        ids => {
            let x = model.wte.forward(&Tensor::new(ids, &Device::Cpu).unwrap()).unwrap();
            let factors: Vec<f32> = ids.iter().flat_map(|id| (0..C).map(|column| number(*id, column))).collect();
            let factors = Tensor::from_vec(factors, (ids.len(), C), &Device::Cpu).unwrap();
            backward(&(x * factors).unwrap().sum_all().unwrap()).unwrap()
        }
    };
    DataParallel::new(ranks).with_rows(exchange).exchange(&opt, &mut grads).unwrap();
    let rows = model.wte.take_row_gradients().unwrap().unwrap();
    (rows.rows, rows.values.to_vec2().unwrap())
}

/// Two parts a step, frozen rows, a bf16 table: against one process that gets the parts of all ranks one after the other.
pub fn parts_frozen_rows_and_bf16(ranks: &Ranks) {
    for (exchange, dtype) in EXCHANGES.iter().flat_map(|exchange| [(*exchange, DType::F32), (*exchange, DType::BF16)]) {
        let table = |collective: &dyn Collective, joined: bool| {
            let varmap = VarMap::new();
            let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
            let cfg =
                TokenEmbeddingConfig { vocab_size: V, d_model: C, gradient: Gradient::RowSparse, ..Default::default() };
            let wte = TokenEmbedding::new(&cfg, vb).unwrap();
            wte.freeze_rows(&[0, 2, 4, 6]).unwrap();
            let mut opt = Optim::from_varmap(&varmap, adamw()).unwrap();
            let parallel = DataParallel::new(collective).with_rows(exchange);
            let of_rank = |step: u32, part: u32, rank: u32| -> Vec<u32> {
                // In the third step all rows with a gradient are frozen.
                (0..4)
                    .map(|at| if step == 2 { 2 * (at % 4) } else { (step * 7 + part * 5 + rank * 3 + at) % V as u32 })
                    .collect()
            };
            for step in 0..6 {
                let mut total: Option<GradStore> = None;
                for part in 0..2 {
                    let ids: Vec<u32> = match joined {
                        true => (0..ranks.world_size() as u32).flat_map(|rank| of_rank(step, part, rank)).collect(),
                        false => of_rank(step, part, ranks.rank() as u32),
                    };
                    let x = wte.forward(&Tensor::new(ids, &Device::Cpu).unwrap()).unwrap();
                    let grads = backward(&(x + 0.25).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
                    match &mut total {
                        None => total = Some(grads),
                        Some(total) => total.extend(grads).unwrap(),
                    }
                }
                let mut grads = total.unwrap();
                parallel.exchange(&opt, &mut grads).unwrap();
                let again = parallel.exchange(&opt, &mut grads).unwrap_err();
                assert!(again.to_string().contains("of all ranks already"), "{again}");
                opt.step(&grads).unwrap();
                parallel.check_replicas(&varmap).unwrap();
            }
            let values = wte.flushed_weight().unwrap().to_dtype(DType::F32).unwrap();
            values.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (own, one) = (table(ranks, false), table(&Local, true));
        let far = own.iter().zip(&one).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let bar = if dtype == DType::BF16 { 1e-2 } else { 1e-5 };
        assert!(far <= bar, "{exchange:?} {dtype:?}: {far}");
        assert!(exchange != RowExchange::Ordered || far == 0.0, "{exchange:?} {dtype:?}: {far}");
    }
}

/// Ten steps, a checkpoint by rank 0 that every rank loads, ten steps more: the weights of a run without a stop.
pub fn a_run_resumes(ranks: &Ranks) {
    let batches = of_rank(&batches(ranks.world_size(), 20), ranks.rank());
    let folder = tempfile::tempdir().unwrap();
    // One folder for all ranks: that of rank 0.
    let mut path = [0u8; 256];
    let own = folder.path().to_str().unwrap().as_bytes();
    path[..own.len()].copy_from_slice(own);
    let path = ranks.broadcast(&Tensor::new(&path, &Device::Cpu).unwrap(), 0).unwrap().to_vec1::<u8>().unwrap();
    let path = String::from_utf8(path.into_iter().take_while(|byte| *byte != 0).collect()).unwrap();
    let parallel = DataParallel::new(ranks);
    let train = |model: &Model, opt: &mut Optim<ParamsAdamW>, batches: &[Vec<u32>]| {
        for ids in batches {
            let total = parallel.total(ids.len()).unwrap();
            let mut grads = gradients(model, ids, total, true);
            parallel.exchange(opt, &mut grads).unwrap();
            opt.step(&grads).unwrap();
            parallel.check_replicas(&model.varmap).unwrap();
        }
    };
    let build = || {
        let model = model(Gradient::RowSparse, 5);
        let opt = Optim::from_varmap(&model.varmap, adamw()).unwrap();
        (model, opt)
    };
    let (model, mut opt) = build();
    train(&model, &mut opt, &batches[..10]);
    if ranks.rank() == 0 {
        Checkpoint { step: 10, ..Default::default() }.save(&path, &model.varmap, Some(&opt), 0).unwrap();
    }
    ranks.barrier().unwrap();
    train(&model, &mut opt, &batches[10..]);
    let (again, mut opt_again) = build();
    Checkpoint::load(&path, &again.varmap, Some(&mut opt_again), &LoadOptions::default()).unwrap();
    train(&again, &mut opt_again, &batches[10..]);
    assert!(values(&again) == values(&model));
    ranks.barrier().unwrap(); // rank 0's folder is there until all have read it
}
