//! Times by the device's own events: ours and stock candle's in one process, four sets of ids in turn.
//!
//! Each measured call is enqueued behind a kernel that keeps the device busy meanwhile, as other work of a training step would: what the
//! host prepares counts only where the device has to wait for it. `wall` is the same call between two waits for the device.

use std::time::Instant;

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Device, Layout, Module, Shape, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use serde_json::{Value, json};
use tallow::optim::{AdamW, Replay};
use tallow::{Gradient, RowGradients, TokenEmbeddingConfig};

use crate::checks::{Ids, ids, layer};

const ROWS: usize = 100_256;
const WARM: usize = 20;
const RUNS: usize = 100;

struct Clock {
    device: CudaDevice,
    busy: Tensor,
    rows: Vec<Value>,
}

/// The times, and which goals they reach; beside PyTorch's where `torch` is the report of torch_reference.py.
pub fn all(cuda: &CudaDevice, torch: &Value) -> Result<(Value, Value)> {
    let device = Device::Cuda(cuda.clone());
    let busy = Tensor::zeros((1 << 28,), DType::F32, &device)?;
    let mut clock = Clock { device: cuda.clone(), busy, rows: Vec::new() };
    for (d_model, dtype) in [(1024, DType::F32), (64, DType::F32), (1024, DType::BF16), (1024, DType::F16)] {
        for kind in [Ids::Uniform, Ids::Zipf, Ids::AllEqual] {
            case(&mut clock, &device, (d_model, dtype), kind)?;
        }
    }
    tallow::device::keep_memory(&device, false)?;
    stock_step(
        &mut clock,
        &device,
        (1024, DType::F32),
        Ids::Uniform,
        "stock: whole step, memory given back (CUDA's default)",
    )?;
    tallow::device::keep_memory(&device, true)?;
    let goals = goals(&clock.rows, torch);
    for goal in &goals {
        println!(
            "{} {}",
            if goal["met"] == true { "met    " } else { "MISSED " },
            goal["goal"].as_str().unwrap_or_default()
        );
    }
    Ok((Value::Array(clock.rows), Value::Array(goals)))
}

/// What is asked for on an H200.
fn goals(rows: &[Value], torch: &Value) -> Vec<Value> {
    let find = |rows: &[Value], what: &str, d_model: usize, dtype: &str, kind: &str| {
        let row = rows.iter().find(|row| {
            let case = row.get("case").unwrap_or(row);
            row["what"] == what
                && case["d_model"] == d_model
                && case["dtype"].as_str().is_some_and(|found| dtype == found.trim_start_matches("torch."))
                && case["kind"] == kind
        });
        row.and_then(|row| row["device_us"].as_f64())
    };
    let ours = |what: &str, kind: &str| find(rows, what, 1024, "f32", kind);
    let mut goals = Vec::new();
    let mut goal = |goal: String, found: Option<f64>, limit: Option<f64>| {
        if let (Some(found), Some(limit)) = (found, limit) {
            let goal = format!("{goal}: {found:.1}, at most {limit:.1} us");
            goals.push(json!({ "goal": goal, "found_us": found, "limit_us": limit, "met": found <= limit }));
        }
    };
    let sum = ours("candle's sum of the output's gradient alone", "Uniform").unwrap_or(0.0);
    let gradient = ours("dense gradient, with candle's sum of the output's gradient", "Uniform").map(|us| us - sum);
    goal("forward".to_string(), ours("forward, ids on the device", "Uniform"), Some(75.0));
    goal("dense gradient".to_string(), gradient, Some(250.0));
    goal("row-sparse, uniform ids".to_string(), ours("row-sparse backward and AdamW", "Uniform"), Some(250.0));
    goal("row-sparse, text-like ids".to_string(), ours("row-sparse backward and AdamW", "Zipf"), Some(120.0));
    goal("dense AdamW".to_string(), ours("dense AdamW", "Uniform"), Some(800.0));
    for kind in ["Uniform", "Zipf", "AllEqual"] {
        let stock = ours("stock: whole step", kind).map(|us| us / 15.0);
        goal(
            format!("whole step, a 15th of stock candle's, {kind}"),
            ours("row-sparse, Exact: whole step", kind),
            stock,
        );
    }
    let theirs = torch["timings"].as_array().map_or(&[][..], |rows| rows);
    for (d_model, dtype, name) in [(1024, "f32", "float32"), (64, "f32", "float32"), (1024, "bf16", "bfloat16")] {
        for kind in ["Uniform", "Zipf", "AllEqual"] {
            for (our, their) in [
                ("forward, ids on the device", "forward"),
                ("forward, ids on the device", "forward, compiled"),
                ("dense AdamW", "fused AdamW"),
                ("dense: whole step", "whole step, fused AdamW"),
                ("row-sparse, Lazy: whole step", "whole step, SparseAdam"),
            ] {
                let limit = find(theirs, their, d_model, name, kind);
                goal(
                    format!("PyTorch's {their}, {d_model} {dtype} {kind}"),
                    find(rows, our, d_model, dtype, kind),
                    limit,
                );
            }
        }
    }
    goals
}

impl Clock {
    /// The median of the runs, in microseconds, of calls of `run` with the number of the set of ids.
    fn time<R>(&mut self, what: &str, case: &Value, mut run: impl FnMut(usize) -> Result<R>) -> Result<()> {
        let stream = self.device.cuda_stream();
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let (start, end) = (stream.context().new_event(flags)?, stream.context().new_event(flags)?);
        let (mut on_device, mut wall) = (Vec::new(), Vec::new());
        for i in 0..WARM + RUNS {
            let busy = (&self.busy + 1.0)?;
            start.record(&stream)?;
            run(i % 4)?;
            end.record(&stream)?;
            stream.synchronize()?;
            drop(busy);
            let began = Instant::now();
            run(i % 4)?;
            stream.synchronize()?;
            if i >= WARM {
                wall.push(began.elapsed().as_secs_f64() * 1e6);
                on_device.push(f64::from(start.elapsed_ms(&end)?) * 1e3);
            }
        }
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let (on_device, wall) = (median(&mut on_device), median(&mut wall));
        println!("       {:9.1} us on the device {:9.1} us wall  {what}, {case}", on_device, wall);
        self.rows.push(json!({ "what": what, "case": case, "device_us": on_device, "wall_us": wall }));
        Ok(())
    }
}

struct Sets {
    lists: Vec<Vec<u32>>,
    on_host: Vec<Tensor>,
    on_device: Vec<Tensor>,
}

impl Sets {
    fn new(kind: Ids, device: &Device) -> Result<Sets> {
        let lists: Vec<Vec<u32>> = (0..4).map(|seed| ids(kind, 32 * 1024, ROWS, seed)).collect();
        let on_host = lists.iter().map(|list| Tensor::from_slice(list, (32, 1024), &Device::Cpu));
        let on_host = on_host.collect::<candle_core::Result<Vec<_>>>()?;
        let on_device = on_host.iter().map(|list| list.to_device(device)).collect::<candle_core::Result<_>>()?;
        Ok(Sets { lists, on_host, on_device })
    }
}

fn case(clock: &mut Clock, device: &Device, (d_model, dtype): (usize, DType), kind: Ids) -> Result<()> {
    let sets = Sets::new(kind, device)?;
    let mut distinct = sets.lists[0].clone();
    distinct.sort_unstable();
    distinct.dedup();
    let case = json!({ "rows": ROWS, "d_model": d_model, "dtype": dtype.as_str(), "ids": "32 x 1024", "kind": format!("{kind:?}"),
        "distinct": distinct.len() });
    let table = Tensor::randn(0f32, 0.02, (ROWS, d_model), &Device::Cpu)?.to_dtype(dtype)?;
    let upstream = Tensor::randn(0f32, 1.0, (32 * 1024, d_model), device)?.to_dtype(dtype)?;

    let (var, dense) = layer(&table, device, TokenEmbeddingConfig::default())?;
    clock.time("forward, ids on the device", &case, |i| Ok(dense.lookup_unchecked(&sets.on_device[i])?))?;
    clock.time("forward, ids on the host, checked", &case, |i| Ok(dense.forward(&sets.on_host[i])?))?;
    let mut optimizer = AdamW::new(vec![var.clone()], ParamsAdamW::default())?;
    let grad = var.zeros_like()?;
    clock.time("dense AdamW", &case, |_| {
        let mut grads = empty()?;
        grads.insert(&var, grad.clone());
        Ok(optimizer.step(&grads)?)
    })?;
    clock.time("dense: whole step", &case, |i| {
        step(|| Ok(dense.forward(&sets.on_host[i])?), &upstream, &mut optimizer)
    })?;
    for (what, lists) in [("", &sets.on_host), (", ids on the device", &sets.on_device)] {
        let losses = lists.iter().map(|list| loss(&dense.lookup_unchecked(list)?, &upstream));
        let losses = losses.collect::<Result<Vec<_>>>()?;
        let what = format!("dense gradient{what}, with candle's sum of the output's gradient");
        clock.time(&what, &case, |i| Ok(losses[i].backward()?))?;
    }
    let output = Var::from_tensor(&upstream)?;
    let nothing = loss(&output, &upstream)?;
    clock.time("candle's sum of the output's gradient alone", &case, |_| Ok(nothing.backward()?))?;
    drop((output, nothing));
    drop((optimizer, dense, var, grad));

    for replay in [Replay::Lazy, Replay::Exact] {
        let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
        let (var, sparse) = layer(&table, device, cfg)?;
        let mut optimizer = AdamW::new(vec![var], ParamsAdamW::default())?.with_replay(replay)?;
        if replay == Replay::Lazy {
            clock.time("row-sparse backward and AdamW", &case, |i| {
                let gradients = RowGradients { rows: sets.lists[i].clone(), values: upstream.clone() };
                sparse.add_row_gradients(gradients)?;
                Ok(optimizer.step(&empty()?)?)
            })?;
        }
        clock.time(&format!("row-sparse, {replay:?}: whole step"), &case, |i| {
            step(|| Ok(sparse.forward(&sets.on_host[i])?), &upstream, &mut optimizer)
        })?;
        drop((optimizer, sparse));
    }
    if dtype == DType::F32 {
        let stock = candle_nn::Embedding::new(table.to_device(device)?, d_model);
        clock.time("stock: forward", &case, |i| Ok(stock.forward(&sets.on_device[i])?))?;
        stock_step(clock, device, (d_model, dtype), kind, "stock: whole step")?;
    }
    Ok(())
}

fn stock_step(
    clock: &mut Clock,
    device: &Device,
    (d_model, dtype): (usize, DType),
    kind: Ids,
    what: &str,
) -> Result<()> {
    let sets = Sets::new(kind, device)?;
    let case = json!({ "rows": ROWS, "d_model": d_model, "dtype": dtype.as_str(), "ids": "32 x 1024", "kind": format!("{kind:?}") });
    let table = Var::from_tensor(&Tensor::randn(0f32, 0.02, (ROWS, d_model), device)?.to_dtype(dtype)?)?;
    let upstream = Tensor::randn(0f32, 1.0, (32 * 1024, d_model), device)?.to_dtype(dtype)?;
    let layer = candle_nn::Embedding::new(table.as_tensor().clone(), d_model);
    let mut optimizer = candle_nn::AdamW::new(vec![table], ParamsAdamW::default())?;
    clock.time(what, &case, |i| step(|| Ok(layer.forward(&sets.on_device[i])?), &upstream, &mut optimizer))
}

/// The model above the layer, at no cost: its gradient by the layer's output is this.
struct Above(Tensor);

impl CustomOp1 for Above {
    fn name(&self) -> &'static str {
        "a model above the layer"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("timings are of a GPU")
    }
    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let loss = storage.device.alloc_zeros::<f32>(1)?;
        Ok((CudaStorage::wrap_cuda_slice(loss, storage.device.clone()), Shape::from(())))
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.reshape(x.shape())?))
    }
}

fn loss(x: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    Ok(x.apply_op1(Above(upstream.clone()))?)
}

/// The whole step of the front layer. (In it candle adds the gradient of the layer's output to zeros, ours and stock alike.)
fn step(forward: impl FnOnce() -> Result<Tensor>, upstream: &Tensor, optimizer: &mut impl Optimizer) -> Result<()> {
    Ok(optimizer.backward_step(&loss(&forward()?, upstream)?)?)
}

/// candle makes a `GradStore` only by a backward.
fn empty() -> Result<GradStore> {
    Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.backward()?)
}
