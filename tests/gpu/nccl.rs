//! NCCL between the GPUs of this machine, against ranks on the CPU. The ranks are threads: each has a GPU, and an engine of the CPU beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use candle_core::cuda::cudarc::driver::CudaContext;
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, Local, Nccl, ReduceOp, RowExchange, VocabParallelEmbedding};
use tallow::optim::AdamW;
use tallow::prepare::launched_rank_from_env;
use tallow::{Error, Gradient, TokenEmbedding, TokenEmbeddingConfig};

use crate::Report;
use crate::checks::{Ids, ids, numbers};
use crate::ranks::{Threads, run};

pub fn all(report: &mut Report) {
    let devices = CudaContext::device_count().unwrap_or(0) as usize;
    for world in 1..=3 {
        let mut check = |name: &str, check: fn(&Device, &Threads) -> Result<String>| {
            let name = format!("NCCL, world size {world}: {name}");
            match world <= devices {
                true => report.check(&name, || on_ranks(world, |rank| rank, check)),
                false => report.leave_out(&name, "every rank needs a GPU of its own"),
            }
        };
        check("every operation in every dtype", operations);
        check("training, by the union of rows", |device, ranks| train(device, ranks, RowExchange::Union));
        check("training, rows by their owners", |device, ranks| train(device, ranks, RowExchange::Owners));
        check("training, rows in order", |device, ranks| train(device, ranks, RowExchange::Ordered));
        check("training, table and head split by rows", split);
    }
    match launched_rank_from_env(|name| std::env::var(name).ok()) {
        Ok(None) => report.check("NCCL from the environment, without a launcher", alone),
        _ => report.leave_out("NCCL from the environment, without a launcher", "a launcher started this process"),
    }
    // NCCL itself says so, too; but a version that waited instead would take the other checks with it.
    match CudaContext::new(0).and_then(|context| context.name()) {
        Ok(name) if name == "the host" => report.check("NCCL, two ranks on one GPU are an error", || {
            on_ranks(
                2,
                |_| 0,
                |device, ranks| match Nccl::new(device, ranks) {
                    Err(Error::Collective { reason, .. }) if reason.contains("ncclInvalidUsage") => Ok(reason),
                    other => Err(anyhow!("{:?}", other.map(|_| "they are connected"))),
                },
            )
        }),
        _ => report.leave_out("NCCL, two ranks on one GPU are an error", "only on the driver of tests/gpu/driver.cpp"),
    }
}

/// What rank 0 says. A rank that fails panics, so that the others do not wait for it on the CPU.
fn on_ranks(
    world: usize,
    gpu: impl Fn(usize) -> usize + Sync,
    body: impl Fn(&Device, &Threads) -> Result<String> + Sync,
) -> Result<String> {
    let on_rank = |ranks: &Threads| {
        let device = tallow::device::open(&format!("cuda:{}", gpu(ranks.rank())), |_| ()).map_err(anyhow::Error::from);
        device
            .and_then(|device| body(&device, ranks))
            .unwrap_or_else(|error| panic!("rank {}: {error:#}", ranks.rank()))
    };
    let said = catch_unwind(AssertUnwindSafe(|| run(world, on_rank)));
    Ok(said.map_err(|_| anyhow!("a rank failed; its message is above"))?.remove(0))
}

fn alone() -> Result<String> {
    let (nccl, device) = Nccl::from_env()?;
    ensure!((nccl.rank(), nccl.world_size()) == (0, 1) && device.is_cuda());
    let own = Tensor::new(&[3u32, 1], &device)?;
    ensure!(nccl.all_reduce(&own, ReduceOp::Sum)?.to_vec1::<u32>()? == [3, 1]);
    ensure!(matches!(Nccl::new(&Device::Cpu, &Local), Err(Error::Config(_))), "a CPU is no GPU");
    Ok(format!("one rank on {:?}", device.location()))
}

/// On this device. candle moves no empty tensor there.
fn put(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    if tensor.elem_count() > 0 {
        return Ok(tensor.to_device(device)?);
    }
    let mut dims = tensor.dims().to_vec();
    dims[0] = 1;
    Ok(Tensor::zeros(dims, tensor.dtype(), device)?.narrow(0, 0, 0)?)
}

/// An error if the tensors differ in shape, dtype or a value. Values are small whole numbers.
fn same(what: &str, got: &Tensor, expected: &Tensor, device: &Device) -> Result<()> {
    ensure!(got.device().same_device(device), "{what}: the result is on {:?}", got.device().location());
    ensure!(got.dtype() == expected.dtype() && got.dims() == expected.dims(), "{what}: {got:?}, not {expected:?}");
    ensure!(!got.track_op(), "{what}: the result is part of a graph");
    let floats = |tensor: &Tensor| -> Result<Vec<f32>> {
        let tensor = if tensor.elem_count() == 0 { tensor.clone() } else { tensor.to_device(&Device::Cpu)? };
        Ok(if tensor.elem_count() == 0 { vec![] } else { tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()? })
    };
    ensure!(floats(got)? == floats(expected)?, "{what}: {got} is not {expected}");
    Ok(())
}

/// Every operation against that of the ranks on the CPU.
fn operations(gpu: &Device, cpu: &Threads) -> Result<String> {
    let nccl = Nccl::new(gpu, cpu)?;
    let (rank, world) = (cpu.rank(), cpu.world_size());
    ensure!((nccl.rank(), nccl.world_size()) == (rank, world));
    let mut compared = 0;
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U8, DType::U32, DType::I64] {
        // Rows (n, 2) of a transposed matrix that has one more: a view with an offset and strides.
        let rows = |n: usize| -> Result<Tensor> {
            let values: Vec<f32> = (0..2 * n + 2).map(|i| ((7 * i + 3 * rank) % 11) as f32).collect();
            Ok(Tensor::from_vec(values, (2, n + 1), &Device::Cpu)?.to_dtype(dtype)?)
        };
        let view = |all: &Tensor| -> Result<Tensor> { Ok(all.t()?.narrow(0, 1, all.dim(1)? - 1)?) };
        for device in [gpu, &Device::Cpu] {
            for n in [0, 1, 5, 1000] {
                let all = rows(n)?;
                let (own, there) = (view(&all)?, view(&all.to_device(device)?)?);
                let what = |operation: &str| format!("{operation}, {dtype:?}, {n} rows, {:?}", device.location());
                for op in [ReduceOp::Sum, ReduceOp::Max] {
                    same(&what(&format!("{op:?}")), &nccl.all_reduce(&there, op)?, &cpu.all_reduce(&own, op)?, device)?;
                }
                same(&what("all_gather"), &nccl.all_gather(&there)?, &cpu.all_gather(&own)?, device)?;
                for root in 0..world {
                    let expected = cpu.broadcast(&own, root)?;
                    same(&what(&format!("broadcast {root}")), &nccl.broadcast(&there, root)?, &expected, device)?;
                }
                // Contiguous, with an offset.
                let (own, there) = (all.narrow(0, 1, 1)?, all.to_device(device)?.narrow(0, 1, 1)?);
                same(&what("all_gather of a row"), &nccl.all_gather(&there)?, &cpu.all_gather(&own)?, device)?;
                compared += 4 + world;
            }
            // Different numbers of rows, none to itself; one to itself; one that sends nothing; nothing at all.
            let counts: [fn(usize, usize) -> usize; 4] = [
                |from, to| if from == to { 0 } else { from + to + 1 },
                |_, _| 1,
                |from, to| if from == 0 { 0 } else { 2 + to },
                |_, _| 0,
            ];
            for (case, counts) in counts.iter().enumerate() {
                let counts: Vec<usize> = (0..world).map(|to| counts(rank, to)).collect();
                let own = view(&rows(counts.iter().sum())?)?;
                let there = view(&rows(counts.iter().sum())?.to_device(device)?)?;
                let ((got, received), (expected, as_many)) =
                    (nccl.all_to_all(&there, &counts)?, cpu.all_to_all(&own, &counts)?);
                ensure!(received == as_many, "all_to_all {case}: {received:?}, not {as_many:?}");
                same(&format!("all_to_all {case}, {dtype:?}"), &got, &expected, device)?;
                compared += 1;
            }
            // A tensor of no rows that is no view, and one that is part of a graph.
            let empty = put(&rows(0)?.narrow(0, 0, 0)?, device)?;
            ensure!(
                nccl.all_gather(&empty)?.dims() == [0, 1] && nccl.all_reduce(&empty, ReduceOp::Max)?.dims() == [0, 1]
            );
        }
    }
    let var = Var::ones(3, DType::F32, gpu)?;
    same("a variable", &nccl.broadcast(&var, 0)?, &Tensor::ones(3, DType::F32, &Device::Cpu)?, gpu)?;
    let one = Tensor::zeros(1, DType::F32, gpu)?;
    ensure!(matches!(nccl.broadcast(&one, world), Err(Error::Config(_))));
    ensure!(matches!(nccl.all_gather(&Tensor::new(1f32, gpu)?), Err(Error::Config(_))));
    ensure!(matches!(nccl.all_to_all(&one, &vec![1; world + 1]), Err(Error::Config(_))));
    let bad = Tensor::zeros(1, DType::F8E4M3, &Device::Cpu)?;
    ensure!(matches!(nccl.all_reduce(&bad, ReduceOp::Sum), Err(Error::Config(_))));
    nccl.barrier()?;
    Ok(format!("{compared} results on each rank are those of the CPU"))
}

const V: usize = 37;
const C: usize = 20;

/// Steps of all ranks: what becomes of the table on their GPUs and on the CPU.
fn train(gpu: &Device, cpu: &Threads, rows: RowExchange) -> Result<String> {
    let there = steps(gpu, Nccl::new(gpu, cpu)?, rows)?;
    let here = steps(&Device::Cpu, cpu, rows)?;
    let differ: Vec<f32> =
        here.iter().zip(&there).filter(|(a, b)| a.to_bits() != b.to_bits()).map(|(a, b)| (a - b).abs()).collect();
    let largest = differ.iter().copied().fold(0.0, f32::max);
    ensure!(there.len() == V * C && largest < 1e-5, "a weight differs by {largest:e}");
    Ok(format!("{} of {} weights differ from the CPU's, by {largest:.1e} at most", differ.len(), V * C))
}

/// Eight steps on ids that the ranks share: some ids on several ranks, in one step none on rank 0. A dense layer trains with the table.
fn steps(device: &Device, collective: impl Collective, rows: RowExchange) -> Result<Vec<f32>> {
    let (rank, world) = (collective.rank(), collective.world_size());
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, device);
    // Another seed on each rank: rank 0's weights go to all.
    let (gradient, seed) = (Gradient::RowSparse, rank as u64);
    let cfg = TokenEmbeddingConfig { vocab_size: V, d_model: C, gradient, seed, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    let scale = vb.get_with_hints(C, "scale", candle_nn::Init::Const(0.5))?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let before = wte.flushed_weight()?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
    let ranks = DataParallel::new(collective).with_rows(rows);
    ranks.broadcast(&varmap)?;
    for step in 0..8usize {
        let count = if step == 1 && rank == 0 && world > 1 { 0 } else { 3 + (rank + step) % 4 };
        let total = ranks.total(count)? as f64;
        let mut grads = if count == 0 {
            Tensor::zeros((), DType::F32, device)?.backward()?
        } else {
            let list = Tensor::new(ids(Ids::Uniform, count, V, (10 * step + rank) as u64), &Device::Cpu)?;
            let upstream = numbers(&[count, C], DType::F32, (20 * step + rank) as u64)?.to_device(device)?;
            let x = wte.forward(&list)?;
            let loss = ((&x * upstream)?.sum_all()? + (x.detach().sum(0)? * &scale)?.sum_all()?)?;
            tallow::backward(&(loss / total)?)?
        };
        ranks.exchange(&opt, &mut grads)?;
        candle_nn::Optimizer::step(&mut opt, &grads)?;
        ranks.check_replicas(&varmap)?;
    }
    let after = wte.flushed_weight()?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
    ensure!(after != before, "nothing moved");
    Ok(after.concat())
}

/// Steps of a split table with a tied head: losses and this rank's rows on the GPU and on the CPU.
fn split(gpu: &Device, cpu: &Threads) -> Result<String> {
    let there = split_steps(gpu, Arc::new(Nccl::new(gpu, cpu)?))?;
    let here = split_steps(&Device::Cpu, Arc::new(cpu.clone()))?;
    let largest = here.iter().zip(&there).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    ensure!(there.len() == here.len() && largest < 1e-5, "a loss or a weight differs by {largest:e}");
    Ok(format!("losses and weights differ from the CPU's by {largest:.1e} at most"))
}

fn split_steps(device: &Device, ranks: Arc<dyn Collective>) -> Result<Vec<f32>> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, device);
    let cfg = TokenEmbeddingConfig { vocab_size: V, d_model: C, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = VocabParallelEmbedding::new(&cfg, ranks, vb.pp("wte"))?;
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let mut values = Vec::new();
    for step in 0..6 {
        let [inputs, targets] = [0, 1].map(|k| Tensor::new(ids(Ids::Uniform, 9, V, 2 * step + k), &Device::Cpu));
        let hidden = wte.forward(&inputs?)?;
        let loss = wte.head().loss(&hidden, &targets?, &Default::default())?;
        let mut grads = tallow::backward(&loss)?;
        opt.clip_grad_norm(&mut grads, 0.1)?;
        candle_nn::Optimizer::step(&mut opt, &grads)?;
        values.push(loss.to_scalar::<f32>()?);
    }
    values.extend(wte.flushed_weight()?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
    Ok(values)
}
