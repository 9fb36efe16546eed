//! Several ranks against one process with the joined batch.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, Local, ReduceOp, RowExchange};
use tallow::optim::{AdamW, Optim, Rule, Sgd};
use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig, backward};

use crate::ranks::{differs, run};
use crate::support::Lcg;

const V: usize = 37;
const C: usize = 5;

struct Model {
    varmap: VarMap,
    wte: TokenEmbedding,
    linear: candle_nn::Linear,
}

fn model(gradient: Gradient, seed: u64) -> Model {
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

fn adamw() -> ParamsAdamW {
    ParamsAdamW { lr: 0.01, ..Default::default() }
}

#[test]
fn in_order_the_table_has_the_bits_of_one_process() {
    for world in 1..=4 {
        let batches = batches(world, 20);
        let ordered = RowExchange::Ordered;
        let one = trained(Local, adamw(), Gradient::RowSparse, ordered, &joined(&batches), false);
        let all = run(world, |ranks| {
            trained(ranks, adamw(), Gradient::RowSparse, ordered, &of_rank(&batches, ranks.rank()), false)
        });
        all.iter().for_each(|rank| assert!(*rank == one, "{world} ranks"));
    }
}

#[test]
fn every_exchange_trains_as_one_process_does() {
    for world in 2..=4 {
        let batches = batches(world, 20);
        for gradient in [Gradient::RowSparse, Gradient::Dense] {
            for rows in [RowExchange::Union, RowExchange::Owners, RowExchange::Ordered] {
                let one = trained(Local, adamw(), gradient, rows, &joined(&batches), true);
                let all =
                    run(world, |ranks| trained(ranks, adamw(), gradient, rows, &of_rank(&batches, ranks.rank()), true));
                all.iter().for_each(|rank| assert!(*rank == all[0], "replicas are equal to the bit"));
                let far = |a: &u32, b: &u32| (f32::from_bits(*a) - f32::from_bits(*b)).abs();
                let far = all[0].concat().iter().zip(&one.concat()).map(|(a, b)| far(a, b)).fold(0.0, f32::max);
                assert!(far < 1e-5, "{world} ranks, {gradient:?}, {rows:?}: {far}");
                // Union and owners sum rank by rank, as dense gradients are summed here.
                let sgd = |gradient| {
                    run(world, |ranks| trained(ranks, 0.1, gradient, rows, &of_rank(&batches, ranks.rank()), true))
                };
                assert!(rows == RowExchange::Ordered || sgd(Gradient::RowSparse) == sgd(Gradient::Dense));
            }
        }
    }
}

/// Sums of whole numbers are exact in any order.
#[test]
fn rows_are_summed_over_all_ranks() {
    let exchanges = [RowExchange::Union, RowExchange::Owners, RowExchange::Ordered];
    for (world, rows) in (1..=4).flat_map(|world| exchanges.map(|rows| (world, rows))) {
        let batches = batches(world, 3);
        run(world, |ranks| {
            let parallel = DataParallel::new(ranks).with_rows(rows);
            for (step, ids) in of_rank(&batches, ranks.rank()).iter().enumerate() {
                let model = model(Gradient::RowSparse, 5);
                let opt = Sgd::from_varmap(&model.varmap, 0.1).unwrap();
                let mut grads = gradients_of_whole_numbers(&model, ids);
                parallel.exchange(&opt, &mut grads).unwrap();
                let rows = model.wte.take_row_gradients().unwrap().unwrap();
                let mut expected = vec![[0f32; C]; V];
                for id in batches[step].concat() {
                    (0..C).for_each(|column| expected[id as usize][column] += whole_number(id, column));
                }
                let values = rows.values.to_vec2::<f32>().unwrap();
                assert_eq!(rows.rows.len(), expected.iter().filter(|row| row[1] != 0.0).count());
                rows.rows.iter().zip(values).for_each(|(row, values)| assert_eq!(values, expected[*row as usize]));
            }
        });
    }
}

fn whole_number(id: u32, column: usize) -> f32 {
    (id as usize % 3 + column) as f32
}

fn gradients_of_whole_numbers(model: &Model, ids: &[u32]) -> GradStore {
    if ids.is_empty() {
        return gradients(model, ids, 1, false);
    }
    let x = model.wte.forward(&Tensor::new(ids, &Device::Cpu).unwrap()).unwrap();
    let factors: Vec<f32> = ids.iter().flat_map(|id| (0..C).map(|column| whole_number(*id, column))).collect();
    let factors = Tensor::from_vec(factors, (ids.len(), C), &Device::Cpu).unwrap();
    backward(&(x * factors).unwrap().sum_all().unwrap()).unwrap()
}

/// Rows of the union and one flag a row: far less than the dense gradient.
#[test]
fn the_union_moves_what_it_says() {
    let (v, c, tokens) = (5000, 64, 100);
    let sent = run(2, |ranks| {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let cfg =
            TokenEmbeddingConfig { vocab_size: v, d_model: c, gradient: Gradient::RowSparse, ..Default::default() };
        let wte = TokenEmbedding::new(&cfg, vb).unwrap();
        let opt = AdamW::from_varmap(&varmap, adamw()).unwrap();
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7 + ranks.rank() as u32).collect();
        let parallel = DataParallel::new(ranks);
        let mut grads =
            backward(&wte.forward(&Tensor::new(ids, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap()).unwrap();
        parallel.exchange(&opt, &mut grads).unwrap();
        ranks.barrier().unwrap();
        let sent = ranks.bytes();
        ranks.barrier().unwrap();
        sent
    });
    // 200 rows, the flags, the check of names, the flags of one variable: from two ranks.
    assert_eq!(sent, [2 * (200 * c * 4 + v + 8 + 2); 2]);
}

#[test]
fn what_does_not_fit_is_named_on_every_rank() {
    run(2, |ranks| {
        let parallel = DataParallel::new(ranks);
        // Another shape on each rank.
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        vb.get_with_hints(3 + ranks.rank(), "w", candle_nn::Init::Const(1.0)).unwrap();
        assert!(differs(&parallel.broadcast(&varmap).unwrap_err()));
        let opt = AdamW::from_varmap(&varmap, adamw()).unwrap();
        let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
        assert!(differs(&parallel.exchange(&opt, &mut grads).unwrap_err()));
        // Another value in one row on one rank.
        let model = model(Gradient::RowSparse, 5 + ranks.rank() as u64);
        let error = parallel.check_replicas(&model.varmap).unwrap_err();
        assert!(differs(&error) && error.to_string().contains("wte.weight"), "{error}");
        parallel.broadcast(&model.varmap).unwrap();
        parallel.check_replicas(&model.varmap).unwrap();
        // What no engine has.
        let bad = Tensor::zeros(2, DType::F8E4M3, &Device::Cpu).unwrap();
        assert!(Local.all_reduce(&bad, ReduceOp::Sum).is_err() && Local.broadcast(&bad, 1).is_err());
        let rows = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(ranks.all_to_all(&rows, &[1, 1]).is_err() && Local.all_to_all(&rows, &[2]).is_err());
    });
}

#[test]
fn rows_go_to_their_ranks() {
    let got = run(3, |ranks| {
        // Rank r sends r + 1 rows to rank 0, none to rank 1, and one to rank 2.
        let own = ranks.rank();
        let rows: Vec<u32> = (0..own as u32 + 2).map(|row| 10 * own as u32 + row).collect();
        let rows = Tensor::new(rows, &Device::Cpu).unwrap().reshape(((), 1)).unwrap();
        let (rows, counts) = ranks.all_to_all(&rows, &[own + 1, 0, 1]).unwrap();
        (rows.flatten_all().unwrap().to_vec1::<u32>().unwrap(), counts)
    });
    assert_eq!(got[0], (vec![0, 10, 11, 20, 21, 22], vec![1, 2, 3]));
    assert_eq!(got[1], (vec![], vec![0, 0, 0]));
    assert_eq!(got[2], (vec![1, 12, 23], vec![1, 1, 1]));
}
