//! The device against the CPU.

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, IndexOp, Module, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::{AdamW, Replay, Sgd};
use tallow::{Gradient, NO_TOKEN, RowGradients, Scale, TokenEmbedding, TokenEmbeddingConfig};

use crate::Report;

pub fn all(report: &mut Report, device: &Device, quick: bool) {
    report.check("forward has the CPU's bits", || forward(device));
    report.check("gradients are those of f64 sums", || gradients(device));
    report.check("two runs have the same bits", || twice(device));
    report.check("a bad id is an error, and the device works on", || bad_ids(device));
    for gradient in [Gradient::Dense, Gradient::RowSparse] {
        report.check(&format!("Sgd, 20 steps, {gradient:?}"), || sgd(device, gradient));
        for replay in [Replay::Exact, Replay::Truncated { steps: 4 }, Replay::Lazy] {
            if gradient == Gradient::RowSparse || replay == Replay::Exact {
                report.check(&format!("AdamW, 20 steps, {gradient:?}, {replay:?}"), || adamw(device, gradient, replay));
            }
        }
    }
    report.check("rows beside a dense gradient, frozen rows, clipping", || mixed(device));
    report.check("rows that stand often, and only in some steps", || often(device));
    report.check("rows with more than 2048 deferred steps", || long(device));
    report.check("nothing but padding, views with odd offsets, f64 weights, memory that is kept", || edges(device));
    report.check("memory is flat over 1000 steps", || memory(device));
    if quick || device.is_cpu() {
        report.check("the same steps as on a table beyond 2^32 elements", || huge(device, (300, 64)));
    } else {
        report.check("a table beyond 2^32 elements", || huge(device, (300_000, 16_384)));
    }
    report.check("candle's index_select with strided ids (not ours, noted)", || strided(device));
}

/// splitmix64.
pub fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *seed;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ids {
    Uniform,
    /// Rank r as often as 1 / r: some 8 000 distinct ones among 32 768 out of 100 256.
    Zipf,
    AllEqual,
}

pub fn ids(kind: Ids, count: usize, rows: usize, mut seed: u64) -> Vec<u32> {
    let draw = |_| {
        let unit = random(&mut seed) as f64 / u64::MAX as f64;
        match kind {
            Ids::Uniform => (unit * (rows - 1) as f64) as u32,
            // The inverse of the logarithm that sums of 1 / r come to.
            Ids::Zipf => ((rows as f64).powf(unit) - 1.0).min((rows - 1) as f64) as u32,
            Ids::AllEqual => rows as u32 / 2,
        }
    };
    (0..count).map(draw).collect()
}

pub fn numbers(shape: &[usize], dtype: DType, mut seed: u64) -> Result<Tensor> {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| (random(&mut seed) >> 40) as f32 / (1 << 24) as f32 - 0.5).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    let values: Vec<f32> = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// A layer over this table, and its variable.
pub fn layer(table: &Tensor, device: &Device, cfg: TokenEmbeddingConfig) -> Result<(Var, TokenEmbedding)> {
    let varmap = VarMap::new();
    let var = Var::from_tensor(&table.to_device(device)?.copy()?)?;
    varmap.data().lock().expect("not poisoned").insert("weight".to_string(), var.clone());
    let (vocab_size, d_model) = table.dims2()?;
    let cfg = TokenEmbeddingConfig { vocab_size, d_model, ..cfg };
    Ok((var, TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap, table.dtype(), device))?))
}

fn forward(device: &Device) -> Result<String> {
    let mut compared = 0;
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for d_model in [1, 7, 8, 64, 65, 768, 1030, 4096] {
            let table = numbers(&[97, d_model], dtype, 3)?;
            for scale in [Scale::None, Scale::SqrtDModel] {
                let cfg = TokenEmbeddingConfig { scale, padding_id: Some(5), ..Default::default() };
                let (here, there) = (layer(&table, &Device::Cpu, cfg.clone())?.1, layer(&table, device, cfg)?.1);
                for shape in [(3, 50), (1, 1), (0, 9), (2, 0)] {
                    let mut list = ids(Ids::Uniform, shape.0 * shape.1, 97, 1);
                    if let [first, second, third, ..] = &mut list[..] {
                        (*first, *second, *third) = (96, 0, NO_TOKEN);
                    }
                    let list = Tensor::from_vec(list, shape, &Device::Cpu)?;
                    for id_dtype in [DType::U32, DType::I64] {
                        let list = list.to_dtype(id_dtype)?;
                        let expected = here.lookup(&list)?;
                        // candle moves no empty tensor to a GPU.
                        let empty = list.elem_count() == 0;
                        for list in [list.clone(), if empty { list.clone() } else { list.to_device(device)? }] {
                            for got in [there.lookup(&list)?, there.lookup_unchecked(&list)?] {
                                ensure!(got.dims() == expected.dims() && got.dtype() == expected.dtype());
                                ensure!(
                                    bits(&got)? == bits(&expected)?,
                                    "{dtype:?} d_model {d_model} ids {id_dtype:?} {shape:?} {scale:?}"
                                );
                                compared += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(format!("{compared} look-ups in f32, bf16 and f16"))
}

/// The table's gradient when the layer's output meets this gradient.
fn gradient(var: &Var, layer: &TokenEmbedding, list: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    let loss = (layer.lookup_unchecked(list)? * upstream.to_device(var.device())?)?.sum_all()?;
    match tallow::backward(&loss)?.get(var) {
        Some(gradient) => Ok(gradient.clone()),
        None => bail!("no gradient"),
    }
}

fn gradients(device: &Device) -> Result<String> {
    let mut worst = Vec::new();
    // Sums are f32, rounded once.
    for (dtype, limit) in [(DType::F32, 1e-6), (DType::BF16, 4e-3), (DType::F16, 1e-3)] {
        let mut largest = 0f64;
        for (kind, d_model) in [(Ids::Uniform, 64), (Ids::Zipf, 1024), (Ids::AllEqual, 64), (Ids::Zipf, 65)] {
            let rows = 5000;
            let list = ids(kind, 8192, rows, 2);
            let upstream = numbers(&[8192, d_model], dtype, 4)?;
            let (var, there) =
                layer(&Tensor::zeros((rows, d_model), dtype, &Device::Cpu)?, device, Default::default())?;
            let list_there = Tensor::from_slice(&list, list.len(), &Device::Cpu)?;
            let got = gradient(&var, &there, &list_there, &upstream)?;
            let again = gradient(&var, &there, &list_there.to_device(device)?, &upstream)?;
            ensure!(bits(&got)? == bits(&again)?, "{kind:?} d_model {d_model}: grouped on the device, other bits");
            let floats = |tensor: &Tensor| -> Result<Vec<f32>> {
                Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
            };
            let (got, upstream) = (floats(&got)?, floats(&upstream)?);
            let mut exact = vec![(0f64, 0f64); rows * d_model];
            for (id, row) in list.iter().zip(upstream.chunks(d_model)) {
                for (sum, value) in exact[*id as usize * d_model..].iter_mut().zip(row) {
                    (sum.0, sum.1) = (sum.0 + f64::from(*value), sum.1 + f64::from(value.abs()));
                }
            }
            // f16 has steps of 6e-8 near zero.
            let error = got.iter().zip(&exact).map(|(got, (sum, size))| (f64::from(*got) - sum).abs() / (size + 1e-4));
            let error = error.fold(0.0, f64::max);
            ensure!(error < limit, "{dtype:?} {kind:?} d_model {d_model}: {error:e} of what was added");
            largest = largest.max(error);
        }
        worst.push(format!("{} {largest:.1e}", dtype.as_str()));
        if dtype != DType::F32 {
            // Short rows have the CPU's bits.
            let list = Tensor::from_vec(ids(Ids::Zipf, 90, 50, 3), 90, &Device::Cpu)?;
            let (table, upstream) = (Tensor::zeros((50, 24), dtype, &Device::Cpu)?, numbers(&[90, 24], dtype, 6)?);
            let [here, there] = [&Device::Cpu, device].map(|device| {
                let (var, layer) = layer(&table, device, Default::default())?;
                bits(&gradient(&var, &layer, &list, &upstream)?)
            });
            ensure!(here? == there?, "{dtype:?}: a short row's sum has other bits than the CPU's");
        }
    }
    Ok(format!("largest error of uniform, Zipf and equal ids, of the sum of magnitudes: {}", worst.join(", ")))
}

fn twice(device: &Device) -> Result<String> {
    let run = || -> Result<Vec<u32>> {
        let table = numbers(&[3000, 128], DType::F32, 3)?;
        let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
        let (var, layer) = layer(&table, device, cfg)?;
        let mut optimizer = AdamW::new(vec![var], ParamsAdamW::default())?;
        for step in 0..5 {
            let list = Tensor::from_vec(ids(Ids::Zipf, 4096, 3000, step), 4096, &Device::Cpu)?;
            let loss = layer.forward(&list)?.sqr()?.sum_all()?;
            optimizer.backward_step(&loss)?;
        }
        bits(layer.flushed_weight()?)
    };
    ensure!(run()? == run()?, "the second run has other bits");
    Ok("5 steps, 4096 ids, the commonest in 500 positions".to_string())
}

fn bad_ids(device: &Device) -> Result<String> {
    let (_, layer) = layer(&numbers(&[10, 16], DType::F32, 1)?, device, Default::default())?;
    for bad in [10i64, -1, 1 << 40] {
        let list = Tensor::new(&[[1i64, bad]], device)?;
        match layer.lookup(&list) {
            Ok(_) => bail!("id {bad} was looked up"),
            Err(error) => ensure!(error.to_string().contains("position [0, 1]"), "{error}"),
        }
    }
    if !device.is_cpu() && !device.is_metal() {
        // Without the guard a wrong id is a row of zeros, not a dead context.
        let rows = layer.lookup_unchecked(&Tensor::new(&[10u32, 4_000_000_000], device)?)?;
        ensure!(bits(&rows)?.iter().all(|bits| *bits == 0), "a wrong id gave something");
    }
    device.synchronize()?;
    let sum: f32 = layer.lookup(&Tensor::new(&[9u32], device)?)?.sum_all()?.to_scalar()?;
    ensure!(sum.is_finite());
    Ok("ids 10, -1 and 2^40 of 10 rows; afterwards a look-up".to_string())
}

/// 20 steps of the same gradients on both; elements that differ, and by how much at most.
fn train<O: Optimizer>(
    device: &Device,
    dtype: DType,
    gradient: Gradient,
    make: impl Fn(Vec<Var>) -> Result<O>,
) -> Result<(usize, f32)> {
    let table = numbers(&[400, 72], dtype, 9)?;
    let cfg = TokenEmbeddingConfig { gradient, ..Default::default() };
    let mut tables = Vec::new();
    for device in [&Device::Cpu, device] {
        let (var, layer) = layer(&table, device, cfg.clone())?;
        let mut optimizer = make(vec![var.clone()])?;
        for step in 0..20 {
            let list = Tensor::from_vec(ids(Ids::Zipf, 96, 400, step), (4, 24), &Device::Cpu)?;
            let upstream = numbers(&[4, 24, 72], dtype, step + 100)?.to_device(device)?;
            optimizer.set_learning_rate(if step == 7 { 1e-1 } else { 1e-2 });
            let loss = (layer.forward(&list)? * upstream)?.sum_all()?;
            optimizer.step(&tallow::backward(&loss)?)?;
        }
        tables.push(
            layer.flushed_weight()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?,
        );
        drop(optimizer);
    }
    let moved = table.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    ensure!(moved != tables[1], "nothing moved");
    let differences = tables[0].iter().zip(&tables[1]).map(|(a, b)| (a - b).abs());
    let largest = differences.clone().fold(0.0, f32::max);
    let limit = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
    ensure!(largest < limit, "{dtype:?}: a weight differs by {largest:e}");
    Ok((differences.filter(|difference| *difference > 0.0).count(), largest))
}

fn over_dtypes(run: impl Fn(DType) -> Result<(usize, f32)>) -> Result<String> {
    let mut said = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let (count, largest) = run(dtype)?;
        said.push(format!("{}: {count} of 28800 weights differ, by {largest:.1e} at most", dtype.as_str()));
    }
    Ok(said.join("; "))
}

fn adamw(device: &Device, gradient: Gradient, replay: Replay) -> Result<String> {
    let params = ParamsAdamW { weight_decay: 0.1, ..Default::default() };
    over_dtypes(|dtype| {
        train(device, dtype, gradient, |vars| Ok(AdamW::new(vars, params.clone())?.with_replay(replay)?))
    })
}

fn sgd(device: &Device, gradient: Gradient) -> Result<String> {
    over_dtypes(|dtype| train(device, dtype, gradient, |vars| Ok(Sgd::new(vars, 1e-2)?)))
}

/// A tied table gets a dense gradient and row gradients in one step; one row is frozen, and the norm is clipped.
fn mixed(device: &Device) -> Result<String> {
    let mut both = Vec::new();
    for device in [&Device::Cpu, device] {
        let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
        let (var, layer) = layer(&numbers(&[60, 20], DType::F32, 3)?, device, cfg)?;
        layer.freeze_rows(&[7])?;
        let frozen = bits(&layer.lookup(&Tensor::new(&[7u32], &Device::Cpu)?)?)?;
        let mut optimizer = AdamW::new(vec![var.clone()], ParamsAdamW::default())?;
        for step in 0..6 {
            let list = Tensor::from_vec(ids(Ids::Zipf, 50, 60, step), 50, &Device::Cpu)?;
            let upstream = numbers(&[50, 20], DType::F32, step)?.to_device(device)?;
            let mut grads = tallow::backward(&(layer.forward(&list)? * upstream)?.sum_all()?)?;
            if step % 2 == 0 {
                grads.insert(&var, numbers(&[60, 20], DType::F32, step + 50)?.to_device(device)?);
            }
            let norm = optimizer.clip_grad_norm(&mut grads, 0.5)?;
            ensure!(norm > 0.5, "nothing to clip");
            optimizer.step(&grads)?;
        }
        ensure!(bits(&layer.lookup(&Tensor::new(&[7u32], &Device::Cpu)?)?)? == frozen, "the frozen row moved");
        both.push(layer.flushed_weight()?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
        drop(optimizer);
    }
    let largest = both[0].iter().zip(&both[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    ensure!(largest < 1e-5, "a weight differs by {largest:e}");
    Ok(format!("6 steps, weights differ by {largest:.1e} at most"))
}

/// A row with more than 128 positions is summed in runs: other bits than the CPU's, the same sum.
fn often(device: &Device) -> Result<String> {
    let (mut adamw, mut sgd) = (Vec::new(), Vec::new());
    for device in [&Device::Cpu, device] {
        for replay in [Some(Replay::Exact), None] {
            let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
            let (var, layer) = layer(&numbers(&[30, 20], DType::F32, 3)?, device, cfg)?;
            let mut optimizers = (AdamW::new(vec![], ParamsAdamW::default())?, Sgd::new(vec![], 1e-3)?);
            match replay {
                Some(replay) => optimizers.0 = AdamW::new(vec![var], ParamsAdamW::default())?.with_replay(replay)?,
                None => optimizers.1 = Sgd::new(vec![var], 1e-3)?,
            }
            for step in 0..8 {
                // Three rows 300 times each and more, then 30 rows a few times: AdamW would not see a gradient that is always twice too large.
                let list =
                    ids(Ids::Uniform, if step % 2 == 0 { 1000 } else { 50 }, if step % 2 == 0 { 4 } else { 30 }, step);
                let upstream = numbers(&[list.len(), 20], DType::F32, step + 9)?.to_device(device)?;
                let list = Tensor::from_slice(&list, list.len(), &Device::Cpu)?;
                let grads = tallow::backward(&(layer.forward(&list)? * upstream)?.sum_all()?)?;
                optimizers.0.step(&grads)?;
                optimizers.1.step(&grads)?;
            }
            let weights = layer.flushed_weight()?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            if replay.is_some() { adamw.push(weights) } else { sgd.push(weights) }
        }
    }
    let far = |both: &[Vec<f32>]| both[0].iter().zip(&both[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (adamw, sgd) = (far(&adamw), far(&sgd));
    ensure!(adamw < 1e-5 && sgd < 1e-5, "weights differ by {adamw:e} (AdamW) and {sgd:e} (Sgd)");
    Ok(format!("weights differ by {adamw:.1e} (AdamW) and {sgd:.1e} (Sgd) at most"))
}

/// Rows that are seen again after many steps, or never, have what the CPU gives them.
fn long(device: &Device) -> Result<String> {
    let mut both = Vec::new();
    for device in [&Device::Cpu, device] {
        let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
        let (var, layer) = layer(&numbers(&[9, 8], DType::F32, 3)?, device, cfg)?;
        let mut optimizer = AdamW::new(vec![var], ParamsAdamW::default())?;
        for step in 0..2300usize {
            let row = if step.is_multiple_of(1000) { 7 } else { step % 6 };
            let loss = layer.forward(&Tensor::new(&[row as u32], &Device::Cpu)?)?.sqr()?.sum_all()?;
            optimizer.backward_step(&loss)?;
        }
        both.push(bits(layer.flushed_weight()?)?);
    }
    ensure!(both[0] == both[1], "other bits than the CPU's");
    Ok("2300 steps, one row seen every 1000th, one never: the CPU's bits".to_string())
}

/// What is easily forgotten: the device does what the CPU does.
fn edges(device: &Device) -> Result<String> {
    let mut both = Vec::new();
    for device in [&Device::Cpu, device] {
        let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
        let (var, of_rows) = layer(&numbers(&[30, 20], DType::F32, 3)?, device, cfg)?;
        let mut optimizer = AdamW::with_groups(vec![(vec![("wte".to_string(), var)], ParamsAdamW::default())])?;
        let step = |optimizer: &mut AdamW, ids: [u32; 2]| -> Result<f64> {
            let list = Tensor::new(&ids, &Device::Cpu)?;
            let mut grads = tallow::backward(&of_rows.forward(&list)?.sqr()?.sum_all()?)?;
            let norm = optimizer.clip_grad_norm(&mut grads, 0.01)?;
            optimizer.step(&grads)?;
            Ok(norm)
        };
        step(&mut optimizer, [3, 4])?;
        ensure!(step(&mut optimizer, [NO_TOKEN; 2])? == 0.0, "padding has a gradient");
        let mut state = optimizer.state()?;
        for moment in state.values_mut().filter(|moment| moment.rank() == 2) {
            *moment = Tensor::cat(&[&*moment, moment], 0)?.to_device(device)?.narrow(0, 30, 30)?;
        }
        optimizer.load_state(&state)?;
        step(&mut optimizer, [4, 5])?;
        let weights = of_rows.flushed_weight()?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;

        let wide = Var::from_tensor(&numbers(&[7, 3], DType::F64, 5)?.to_device(device)?)?;
        let mut optimizer = AdamW::new(vec![wide.clone()], ParamsAdamW::default())?;
        for _ in 0..5 {
            optimizer.backward_step(&wide.sqr()?.sum_all()?)?;
        }

        // A table, a gradient of rows and a dense gradient that do not begin where 16 bytes do.
        let odd = |values: Tensor, shape: (usize, usize)| -> Result<Tensor> {
            let first = Tensor::zeros(3, values.dtype(), values.device())?;
            Ok(Tensor::cat(&[first, values.flatten_all()?], 0)?.narrow(0, 3, shape.0 * shape.1)?.reshape(shape)?)
        };
        let mut all = Vec::new();
        for (dtype, gradient) in [(DType::F32, Gradient::RowSparse), (DType::BF16, Gradient::Dense)] {
            let table = odd(numbers(&[9, 64], dtype, 4)?.to_device(device)?, (9, 64))?;
            let list = Tensor::new(&[8u32, 0, NO_TOKEN, 3], &Device::Cpu)?;
            all.extend(bits(&TokenEmbedding::try_from(candle_nn::Embedding::new(table.clone(), 64))?.lookup(&list)?)?);
            let cfg = TokenEmbeddingConfig { gradient, ..Default::default() };
            let (var, of_odd) = layer(&numbers(&[9, 64], dtype, 4)?, device, cfg)?;
            let mut optimizer = Sgd::new(vec![var.clone()], 0.5)?;
            let three = Tensor::ones(3, dtype, device)?;
            let joined = Tensor::cat(&[&three, &of_odd.lookup(&list)?.flatten_all()?], 0)?;
            optimizer.step(&tallow::backward(&joined.sqr()?.sum_all()?)?)?;
            let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu)?.backward()?;
            grads.insert(&var, odd(table.clone(), (9, 64))?);
            optimizer.step(&grads)?;
            if gradient == Gradient::RowSparse {
                let values = odd(table.narrow(0, 0, 3)?, (3, 64))?;
                of_odd.add_row_gradients(RowGradients { rows: vec![8, 2, 8], values })?;
                grads.remove(&var);
                optimizer.step(&grads)?;
            }
            all.extend(bits(of_odd.flushed_weight()?)?);
        }

        let long = Tensor::arange(0u32, 1 << 20, &Device::Cpu)?;
        let before = used_bytes(device)?;
        let rows = of_rows.lookup(&long.narrow(0, 5, 8)?)?;
        let grown = used_bytes(device)?.saturating_sub(before);
        ensure!(grown < 1 << 20, "a look-up of {:?} ids took {grown} bytes", rows.dim(0)?);
        both.push((weights, wide.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f64>()?, all));
    }
    let differ: Vec<usize> = (0..both[0].2.len()).filter(|i| both[0].2[*i] != both[1].2[*i]).collect();
    ensure!(
        differ.is_empty(),
        "views are taken for something else: {} {:?}",
        differ.len(),
        &differ[..10.min(differ.len())]
    );
    kept_memory(device)?;
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let single = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let (f32s, f64s) = (far(&single(&both[0].0), &single(&both[1].0)), far(&both[0].1, &both[1].1));
    ensure!(f32s < 1e-6 && f64s < 1e-14, "weights differ by {f32s:e} (f32) and {f64s:e} (f64)");
    Ok(format!("weights differ by {f32s:.1e} (f32) and {f64s:.1e} (f64) at most"))
}

fn memory(device: &Device) -> Result<String> {
    let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
    let (var, layer) = layer(&numbers(&[20_000, 64], DType::F32, 3)?, device, cfg)?;
    let mut optimizer = AdamW::new(vec![var], ParamsAdamW::default())?;
    let mut used = Vec::new();
    for step in 0..1100 {
        let list = Tensor::from_vec(ids(Ids::Zipf, 1024, 20_000, step % 8), 1024, &Device::Cpu)?;
        optimizer.backward_step(&layer.forward(&list)?.sqr()?.sum_all()?)?;
        if step == 99 || step == 1099 {
            used.push(used_bytes(device)?);
        }
    }
    let grown = used[1].saturating_sub(used[0]);
    ensure!(grown <= 1 << 20, "{grown} bytes more after 1000 steps");
    Ok(format!("{} bytes after 100 steps, {} after 1100", used[0], used[1]))
}

/// An attribute of the device's memory pool; zero on other devices.
#[cfg(feature = "cuda")]
fn pool(device: &Device, attribute: candle_core::cuda::cudarc::driver::sys::CUmemPool_attribute) -> Result<u64> {
    use candle_core::cuda::cudarc::driver::result;
    let Device::Cuda(device) = device else { return Ok(0) };
    let stream = device.cuda_stream();
    stream.synchronize()?;
    let mut value = 0u64;
    // SAFETY: the device is open, and the attributes asked for are 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device())?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast())?;
    }
    Ok(value)
}

#[cfg(feature = "cuda")]
fn used_bytes(device: &Device) -> Result<usize> {
    use candle_core::cuda::cudarc::driver::sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    Ok(pool(device, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)? as usize)
}

/// Memory stays with the process from the opening on, unless it is asked to give it back.
#[cfg(feature = "cuda")]
fn kept_memory(device: &Device) -> Result<()> {
    use candle_core::cuda::cudarc::driver::sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    if device.is_cuda() {
        for (keep, threshold) in [(None, u64::MAX), (Some(false), 0), (Some(true), u64::MAX)] {
            keep.map_or(Ok(()), |keep| tallow::device::keep_memory(device, keep))?;
            let found = pool(device, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)?;
            ensure!(found == threshold, "keep_memory({keep:?}) leaves a threshold of {found}");
        }
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn kept_memory(_: &Device) -> Result<()> {
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn used_bytes(_: &Device) -> Result<usize> {
    Ok(0)
}

/// At 300 000 x 16 384 in bf16 4.9e9 elements: 9.8 GB, with a dense gradient twice that, with moments 49 GB. Three rows are not zero; they
/// must do what they do in a table of their own.
fn huge(device: &Device, (rows, d_model): (usize, usize)) -> Result<String> {
    let known = numbers(&[3, d_model], DType::BF16, 5)?;
    let few = steps_on(&Device::Cpu, &known, 3, &[0, 1, 2])?;
    // In the last third lies what is beyond 2^32.
    let many = steps_on(device, &known, rows, &[0, rows as u32 * 8 / 9, rows as u32 - 1])?;
    for (few, many) in few.iter().zip(&many) {
        ensure!(few.1 == many.1, "{} differs", few.0);
    }
    Ok(format!("{rows} x {d_model} bf16: {}", many.map(|(name, _)| name).join(", ")))
}

type Named = (&'static str, Vec<u32>);

/// What becomes of the rows `list`, `known` at first, in a table of so many rows.
fn steps_on(device: &Device, known: &Tensor, rows: usize, list: &[u32; 3]) -> Result<[Named; 4]> {
    let d_model = known.dim(1)?;
    let known = known.to_device(device)?;
    let weight = Tensor::zeros((rows, d_model), DType::BF16, device)?;
    for (i, id) in list.iter().enumerate() {
        weight.slice_set(&known.i(i..=i)?, 0, *id as usize)?;
    }
    let varmap = VarMap::new();
    varmap.data().lock().expect("not poisoned").insert("weight".to_string(), Var::from_tensor(&weight)?);
    drop(weight);
    let var = varmap.all_vars().remove(0);
    let vb = VarBuilder::from_varmap(&varmap, DType::BF16, device);
    let cfg = |gradient| TokenEmbeddingConfig { vocab_size: rows, d_model, gradient, ..Default::default() };
    let list = Tensor::new(list, &Device::Cpu)?;

    let dense = TokenEmbedding::new(&cfg(Gradient::Dense), vb.clone())?;
    let looked_up = bits(&dense.lookup(&list)?)?;
    let gradient = gradient(&var, &dense, &list, &known)?;
    let of_rows = bits(&gradient.index_select(&list.to_device(device)?, 0)?)?;
    let mut sgd = Sgd::new(vec![var.clone()], 0.5)?;
    let mut grads = tallow::backward(&dense.lookup(&list)?.sum_all()?)?;
    grads.insert(&var, gradient);
    sgd.step(&grads)?;
    drop((grads, sgd));
    let stepped = bits(&dense.lookup(&list)?)?;
    drop(dense);

    let sparse = TokenEmbedding::new(&cfg(Gradient::RowSparse), vb)?;
    let mut adamw = AdamW::new(vec![var], ParamsAdamW::default())?;
    for list in [&list, &list.narrow(0, 1, 1)?, &list] {
        // the second step leaves rows behind
        let loss = sparse.lookup(list)?.sqr()?.sum_all()?;
        adamw.step(&tallow::backward(&loss)?)?;
    }
    let trained = bits(&sparse.lookup(&list)?)?;
    ensure!(trained != stepped && stepped != looked_up, "nothing moved");
    Ok([("look-up", looked_up), ("dense gradient", of_rows), ("dense step", stepped), ("row-sparse AdamW", trained)])
}

fn strided(device: &Device) -> Result<String> {
    let table = numbers(&[10, 4], DType::F32, 1)?;
    let list = Tensor::new(&[[1u32, 2], [3, 4], [5, 6]], &Device::Cpu)?;
    let pick = |device: &Device| -> Result<Vec<u32>> {
        bits(&table.to_device(device)?.index_select(&list.to_device(device)?.i((.., 1))?, 0)?)
    };
    let same = pick(&Device::Cpu)? == pick(device)?;
    Ok(format!("candle gives {} rows", if same { "the right" } else { "WRONG" }))
}
