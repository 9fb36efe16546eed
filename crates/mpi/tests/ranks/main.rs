//! What tests/mpirun.rs starts on several ranks: `ranks CASE [ARGUMENTS]`.

#[allow(dead_code)] // helpers of tests of other packages
#[path = "../../../../tests/support/acceptance/mod.rs"]
mod acceptance;

use std::path::Path;
use std::sync::Arc;

use acceptance::Ranks;
use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use tallow::distributed::{Collective, ReduceOp};
use tallow_mpi::World;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    tallow_mpi::run(|world| match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["collectives"] => collectives(world),
        ["acceptance"] => {
            let ranks: Ranks = Arc::new(world.clone());
            acceptance::CASES.iter().for_each(|(_, case)| case(&ranks));
            Ok(())
        }
        ["save", folder] => {
            acceptance::split::save(&(Arc::new(world.clone()) as Ranks), Path::new(folder));
            Ok(())
        }
        ["load", from, to] => {
            acceptance::split::load(&(Arc::new(world.clone()) as Ranks), Path::new(from), Path::new(to));
            Ok(())
        }
        ["error"] if world.rank() == world.world_size() - 1 => bail!("no such luck"),
        ["panic"] if world.rank() == world.world_size() - 1 => panic!("no such luck"),
        ["error" | "panic"] => Ok(world.barrier()?),
        _ => bail!("no such case: {args:?}; there are collectives, acceptance, save, load, error, panic"),
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
