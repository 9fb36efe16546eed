//! Data parallel: every rank has the model, and a part of the batch.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, Local, RowExchange};
use tallow::optim::{Optim, Rule, Sgd};
use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, backward};

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

/// Ids of each rank in each step. The first rank has nothing in the second step, and ranks have different numbers.
fn batches(world: usize, steps: usize) -> Vec<Vec<Vec<u32>>> {
    let mut lcg = Lcg(7);
    let mut batch = |step: usize, rank: usize| match (step, rank) {
        (1, 0) if world > 1 => Vec::new(),
        _ => (0..3 + (rank + step) % 4).map(|_| lcg.below(V as u64 / 2) as u32 * (1 + rank as u32 % 2)).collect(),
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
            for id in batches[step].concat() {
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
            for id in batches[step].concat() {
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
