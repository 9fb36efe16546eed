//! What tests/mpirun.rs starts on several ranks: `ranks CASE [ARGUMENTS]`.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, ReduceOp, RowExchange};
use tallow::optim::AdamW;
use tallow::{Gradient, TokenEmbedding, TokenEmbeddingConfig};
use tallow_mpi::World;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    tallow_mpi::run(|world| match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["collectives"] => collectives(world),
        ["train", rows, file] => train(world, rows, file),
        ["error"] if world.rank() == world.world_size() - 1 => bail!("no such luck"),
        ["panic"] if world.rank() == world.world_size() - 1 => panic!("no such luck"),
        ["error" | "panic"] => Ok(world.barrier()?),
        _ => bail!("no such case: {args:?}"),
    })
}

/// Every operation on every dtype, against what the ranks' numbers say.
fn collectives(world: &World) -> Result<()> {
    let (rank, ranks) = (world.rank(), world.world_size());
    let numbers = |rank: usize, n: usize| (0..n).map(|i| ((7 * i + 3 * rank) % 11) as f32).collect::<Vec<f32>>();
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U8, DType::U32, DType::I64] {
        let of = |rank: usize, n: usize| -> Result<Tensor> {
            Ok(Tensor::new(numbers(rank, n), &Device::Cpu)?.to_dtype(dtype)?)
        };
        let floats = |tensor: Tensor| -> Result<Vec<f32>> {
            ensure!(tensor.dtype() == dtype, "{dtype:?} came back as {:?}", tensor.dtype());
            Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        for n in [0, 1, 5, 1000] {
            let all: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(rank, n)).collect();
            let by = |f: fn(f32, f32) -> f32| {
                (0..n).map(|i| all.iter().map(|of| of[i]).reduce(f).unwrap()).collect::<Vec<_>>()
            };
            let own = of(rank, n)?;
            ensure!(floats(world.all_reduce(&own, ReduceOp::Sum)?)? == by(|a, b| a + b), "sum {dtype:?} {n}");
            ensure!(floats(world.all_reduce(&own, ReduceOp::Max)?)? == by(f32::max), "max {dtype:?} {n}");
            ensure!(floats(world.all_gather(&own)?)? == all.concat(), "gather {dtype:?} {n}");
            for (root, expected) in all.iter().enumerate() {
                ensure!(floats(world.broadcast(&own, root)?)? == *expected, "broadcast {dtype:?} {n}");
            }
        }
        // Rank r sends r + t + 1 rows of two columns to rank t, but none to itself; a view of every second row.
        let counts = |from: usize| (0..ranks).map(|to| if to == from { 0 } else { from + to + 1 }).collect::<Vec<_>>();
        let sent = |from: usize| numbers(from, 4 * counts(from).iter().sum::<usize>());
        let n = counts(rank).iter().sum::<usize>();
        let rows =
            Tensor::new(sent(rank), &Device::Cpu)?.to_dtype(dtype)?.reshape((n, 2, 2))?.narrow(1, 0, 1)?.squeeze(1)?;
        let (got, received) = world.all_to_all(&rows, &counts(rank))?;
        ensure!(received == (0..ranks).map(|from| counts(from)[rank]).collect::<Vec<_>>());
        let mut expected = Vec::new();
        for from in 0..ranks {
            let before: usize = counts(from)[..rank].iter().sum();
            for row in before..before + counts(from)[rank] {
                expected.extend_from_slice(&sent(from)[4 * row..][..2]);
            }
        }
        ensure!(floats(got)? == expected, "all_to_all {dtype:?}");
    }
    ensure!(world.broadcast(&Tensor::zeros(1, DType::F32, &Device::Cpu)?, ranks).is_err());
    ensure!(world.all_gather(&Tensor::new(1f32, &Device::Cpu)?).is_err());
    ensure!(world.all_reduce(&Tensor::zeros(1, DType::F8E4M3, &Device::Cpu)?, ReduceOp::Sum).is_err());
    Ok(world.barrier()?)
}

/// 20 steps on batches of twelve tokens that the ranks share. The first has none in the fifth step, if there are others.
fn train(world: &World, rows: &str, file: &str) -> Result<()> {
    let rows = match rows {
        "union" => RowExchange::Union,
        "ordered" => RowExchange::Ordered,
        _ => bail!("no such exchange: {rows}"),
    };
    let (rank, ranks, vocab) = (world.rank(), world.world_size(), 131);
    let parallel = DataParallel::new(world).with_rows(rows);
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let (gradient, seed) = (Gradient::RowSparse, rank as u64);
    let cfg = TokenEmbeddingConfig { vocab_size: vocab, d_model: 8, gradient, seed, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
    parallel.broadcast(&varmap)?;
    for step in 0..20 {
        let all: Vec<u32> = (0..12).map(|i| (step * step + 5 * i * i) as u32 % vocab as u32).collect();
        let first = if step == 5 && ranks > 1 { 1 } else { 0 };
        let share = |rank: usize| (12 * rank.saturating_sub(first)).div_ceil(ranks - first);
        let ids = if rank < first { &[] } else { &all[share(rank)..share(rank + 1)] };
        let total = parallel.total(ids.len())? as f64;
        ensure!(total == 12.0, "{total} tokens");
        let loss = match ids {
            [] => Tensor::zeros((), DType::F32, &Device::Cpu)?,
            ids => ((wte.forward(&Tensor::new(ids, &Device::Cpu)?)? - 0.5)?.sqr()?.sum_all()? / total)?,
        };
        let mut grads = tallow::backward(&loss)?;
        parallel.exchange(&opt, &mut grads)?;
        opt.clip_grad_norm(&mut grads, 1.0)?;
        opt.step(&grads)?;
        parallel.check_replicas(&varmap)?;
    }
    if rank == 0 {
        opt.flush()?;
        varmap.save(file).context("saving")?;
    }
    Ok(())
}
