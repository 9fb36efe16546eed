//! What ranks need to exchange the gradient of a table over MPI: milliseconds and bytes. Ours against candle's dense gradient.
//!
//!     cargo bench --locked -p tallow-mpi --bench exchange                      # about four minutes
//!     cargo bench … -- --ranks 2 --transport tcp --tokens 8192 --columns 64    # one case
//!     cargo bench … -- --quick                                                 # the assertions, on a small table
//!
//! It starts its ranks itself, by mpirun (Open MPI). Started by a launcher it is one of the ranks; `.ci/network` does that. "transport" is
//! "shm" (what Open MPI takes by default), "tcp" (the loopback device), or the name that `--transport` gives.
//! "pages" are "kept" with `--keep-pages` (`tallow::keep_pages`).
//!
//! A time begins after the backward pass. It ends when the rank has the summed gradient in the optimizer's form. For candle that is a
//! table of zeros, `index_add` of the tokens' gradients (what the backward of `index_select` does), and one all_reduce. For ours it is
//! `DataParallel::exchange`, and the sum of each row that the optimizer takes. The slowest rank counts; medians.
//!
//! "vocab parallel" is a forward and backward of a table that is split between the ranks (id mod N), with the same ids on all, and a dense or
//! a row-sparse gradient. The references are candle's layer and tallow's with the whole table, on each rank at the same time. "memory" is what
//! table, gradient and AdamW's moments add to a rank's resident memory, split and whole.
//!
//! "overlap" is an all_reduce beside computation, against one after the other.
//!
//! "bytes" is what rank 0 gives to the operations. "wire_bytes" is what a rank sends by the best known algorithms: 2(N-1)/N of the bytes of
//! an all_reduce, N-1 times those of an all_gather, and the rows of an all_to_all that are for others. "wire_ratio" is ours / candle's.
//! "distinct" counts the ids of rank 0, "union" those of all ranks.
//!
//! Ids are drawn from a Zipf-Mandelbrot law, or are windows of 1024 ids of `--ids FILE` (u32, little-endian; an absolute path).

mod common;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use common::{median, report, side_by_side};
use serde_json::{Value, json};
use tallow::distributed::{Collective, DataParallel, Local, ReduceOp, RowExchange, VocabParallelEmbedding};
use tallow::optim::{AdamW, Sgd};
use tallow::{Gradient, RowGradients, TokenEmbedding, TokenEmbeddingConfig};
use tallow_mpi::World;

/// The exchanges that are compared with candle's.
const METHODS: [(&str, RowExchange); 3] =
    [("union", RowExchange::Union), ("owners", RowExchange::Owners), ("ordered", RowExchange::Ordered)];

/// What a launcher tells each rank: Open MPI, MPICH, and those that use PMIx.
const LAUNCHERS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];

fn flag(name: &str) -> bool {
    std::env::args().any(|arg| arg == name)
}

fn value(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn number(name: &str) -> Result<Option<usize>> {
    value(name).map(|text| text.parse().with_context(|| format!("{name} {text}"))).transpose()
}

fn vocab() -> usize {
    if flag("--quick") { 4096 } else { 100_256 }
}

fn main() -> ExitCode {
    if LAUNCHERS.iter().any(|name| std::env::var_os(name).is_some()) {
        return tallow_mpi::run(of_rank);
    }
    match launch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn launch() -> Result<()> {
    let transport = value("--transport");
    if let (None, None) = (&transport, number("--ranks")?) {
        one_rank()?;
        mpirun(2, "shm", &[])?;
        mpirun(2, "tcp", &[])?;
        if flag("--quick") {
            return mpirun(3, "shm", &[]);
        }
        mpirun(2, "shm", &["--keep-pages"])?;
        return mpirun(4, "shm", &["--tokens", "8192", "--columns", "64"]);
    }
    mpirun(number("--ranks")?.unwrap_or(2), transport.as_deref().unwrap_or("shm"), &[])
}

/// Starts ranks with the arguments of this process, and `more`.
fn mpirun(ranks: usize, transport: &str, more: &[&str]) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    let mut command = Command::new("mpirun");
    command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe()?).args(more).args(std::env::args().skip(1));
    command.args(["--transport", transport]);
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        ("RAYON_NUM_THREADS", &(cores / ranks).max(1).to_string()),
    ] {
        command.env(name, value);
    }
    if ranks > cores {
        command.env("OMPI_MCA_mpi_yield_when_idle", "1");
    }
    if transport == "tcp" {
        command.envs([("OMPI_MCA_pml", "ob1"), ("OMPI_MCA_btl", "self,tcp"), ("OMPI_MCA_btl_tcp_if_include", "lo")]);
    }
    let status = command.status().context("mpirun")?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// A step of one process with `exchange`, against the same step without the call.
fn one_rank() -> Result<()> {
    let (columns, tokens) = (64, 1024);
    let step = |exchange: bool| -> Result<_> {
        let (wte, varmap) = table(columns)?;
        let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
        let ids = Tensor::new(Draws::new(0)?.take(tokens)?, &Device::Cpu)?;
        let ranks = DataParallel::new(Local);
        Ok(move || -> Result<()> {
            let mut grads = tallow::backward(&wte.forward(&ids)?.sum_all()?)?;
            if exchange {
                ranks.exchange(&opt, &mut grads)?;
            }
            Ok(opt.step(&grads)?)
        })
    };
    let (mut with, mut without) = (step(true)?, step(false)?);
    let (ours_ms, plain_ms) = side_by_side(|| with().expect("a step"), || without().expect("a step"));
    let facts = json!({"bench": "exchange", "case": "one rank", "vocab": vocab(), "columns": columns, "tokens": tokens,
        "percent": ((ours_ms / plain_ms - 1.0) * 1e4).round() / 1e2});
    report(facts, ours_ms, "no exchange", plain_ms);
    Ok(())
}

fn table(columns: usize) -> Result<(TokenEmbedding, VarMap)> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let gradient = Gradient::RowSparse;
    let cfg = TokenEmbeddingConfig { vocab_size: vocab(), d_model: columns, gradient, ..Default::default() };
    Ok((TokenEmbedding::new(&cfg, vb)?, varmap))
}

/// The ids and gradients of a rank.
struct Draws {
    state: u64,
    file: Option<Vec<u32>>,
    /// Sums of the weights of the ids.
    cumulative: Vec<f64>,
}

impl Draws {
    fn new(rank: usize) -> Result<Self> {
        let file = value("--ids").map(PathBuf::from).map(|path| -> Result<_> {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let ids: Vec<u32> =
                bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect();
            ensure!(
                ids.len() > 1024 && ids.iter().all(|id| (*id as usize) < vocab()),
                "{}: needs more than 1024 ids, all below {}",
                path.display(),
                vocab()
            );
            Ok(ids)
        });
        // Fitted to cl100k's ids of mixed text: 1024 have 460 distinct ones, 8192 have 2236, 32768 have 6356.
        let mut sum = 0.0;
        let weights = (0..vocab()).map(|id| {
            sum += (id as f64 + 3.0).powf(-1.2);
            sum
        });
        Ok(Draws { state: 1337 + rank as u64, file: file.transpose()?, cumulative: weights.collect() })
    }

    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 11) as f64 / (1u64 << 53) as f64
    }

    fn take(&mut self, count: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let unit = self.unit();
            match &self.file {
                Some(file) => {
                    let start = (unit * (file.len() - 1024) as f64) as usize;
                    ids.extend_from_slice(&file[start..][..1024.min(count - ids.len())]);
                }
                None => {
                    let at = unit * self.cumulative[self.cumulative.len() - 1];
                    ids.push(self.cumulative.partition_point(|sum| *sum < at) as u32);
                }
            }
        }
        Ok(ids)
    }

    fn gradient(&mut self, tokens: usize, columns: usize) -> Result<Tensor> {
        let values: Vec<f32> = (0..tokens * columns).map(|_| self.unit() as f32 - 0.5).collect();
        Ok(Tensor::from_vec(values, (tokens, columns), &Device::Cpu)?)
    }
}

/// The world, and what this rank has given to its operations.
struct Counted<'a> {
    world: &'a World,
    bytes: AtomicUsize,
    wire: AtomicUsize,
}

impl Counted<'_> {
    /// Counts a tensor. `wire` gives the bytes that a rank sends, from those of the tensor and the number of ranks.
    fn count(&self, tensor: &Tensor, wire: impl Fn(usize, usize) -> usize) {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.bytes.fetch_add(bytes, Relaxed);
        self.wire.fetch_add(wire(bytes, self.world.world_size()), Relaxed);
    }

    /// What was counted since the last call.
    fn counted(&self) -> (usize, usize) {
        (self.bytes.swap(0, Relaxed), self.wire.swap(0, Relaxed))
    }
}

impl Collective for Counted<'_> {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn world_size(&self) -> usize {
        self.world.world_size()
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> tallow::Result<Tensor> {
        self.count(tensor, |bytes, ranks| 2 * (ranks - 1) * bytes / ranks);
        self.world.all_reduce(tensor, op)
    }

    fn all_gather(&self, tensor: &Tensor) -> tallow::Result<Tensor> {
        self.count(tensor, |bytes, ranks| (ranks - 1) * bytes);
        self.world.all_gather(tensor)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> tallow::Result<Tensor> {
        self.count(tensor, |bytes, ranks| (ranks - 1) * bytes / ranks);
        self.world.broadcast(tensor, root)
    }

    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> tallow::Result<(Tensor, Vec<usize>)> {
        let (all, own) = (counts.iter().sum::<usize>().max(1), counts[self.world.rank()]);
        self.count(rows, |bytes, _| bytes / all * (all - own));
        self.world.all_to_all(rows, counts)
    }

    fn barrier(&self) -> tallow::Result<()> {
        self.world.barrier()
    }
}

fn of_rank(world: &World) -> Result<()> {
    if flag("--keep-pages") {
        tallow::keep_pages();
    }
    let quick = flag("--quick");
    plain(world, if quick { 16 << 20 } else { 64 << 20 })?;
    overlap(world, if quick { 1 << 20 } else { 25 << 20 })?;
    let (some_columns, some_tokens) = (number("--columns")?, number("--tokens")?);
    let columns = some_columns.map_or(if quick { vec![16] } else { vec![64, 1024] }, |one| vec![one]);
    for columns in columns {
        let tokens = some_tokens.unwrap_or(if quick {
            300
        } else if columns > 64 {
            4096
        } else {
            8192
        });
        for gradient in [Gradient::Dense, Gradient::RowSparse] {
            vocab_parallel(world, columns, tokens, gradient, if quick { 2 } else { 9 })?;
        }
        if !flag("--keep-pages") {
            memory(world, columns)?;
        }
        let (wte, varmap) = table(columns)?;
        let opt = Sgd::from_varmap(&varmap, 0.1)?;
        let tokens = some_tokens.map_or(if quick { vec![300] } else { vec![1024, 8192, 32_768] }, |one| vec![one]);
        for tokens in tokens {
            let repeats = if quick { 2 } else { 9 - columns / 1024 * 4 };
            Case { world, wte: &wte, opt: &opt, tokens, columns, repeats }.run()?;
        }
    }
    Ok(())
}

fn facts(world: &World, case: &str) -> Value {
    let pages = if flag("--keep-pages") { "kept" } else { "given back" };
    json!({"bench": "exchange", "case": case, "ranks": world.world_size(), "transport": value("--transport"), "pages": pages,
        "threads": candle_core::utils::get_num_threads()})
}

/// Times one call after a barrier, in milliseconds.
fn timed<T>(world: &World, times: &mut Vec<f64>, body: impl FnOnce() -> Result<T>) -> Result<T> {
    world.barrier()?;
    let start = Instant::now();
    let result = body();
    times.push(start.elapsed().as_secs_f64() * 1e3);
    result
}

/// The median over the calls, of the time of the slowest rank.
fn slowest(world: &World, times: Vec<f64>) -> Result<f64> {
    Ok(median(world.all_reduce(&Tensor::new(times, &Device::Cpu)?, ReduceOp::Max)?.to_vec1()?))
}

/// What the transport gives to one large operation, with the copies that `World` makes.
fn plain(world: &World, bytes: usize) -> Result<()> {
    let tensor = Tensor::zeros(bytes / 4, DType::F32, &Device::Cpu)?;
    let ranks = world.world_size();
    for (operation, wire) in [("broadcast", bytes), ("all_reduce", 2 * (ranks - 1) * bytes / ranks)] {
        let mut times = Vec::new();
        for _ in 0..9 {
            timed(world, &mut times, || match operation {
                "broadcast" => Ok(world.broadcast(&tensor, 0)?),
                _ => Ok(world.all_reduce(&tensor, ReduceOp::Sum)?),
            })?;
        }
        let ms = slowest(world, times)?;
        let mut line = facts(world, operation);
        line["bytes"] = json!(bytes);
        line["ms"] = json!((ms * 1e6).round() / 1e6);
        line["wire_gb_per_s"] = json!((wire as f64 / ms / 1e3).round() / 1e3);
        if world.rank() == 0 {
            println!("{line}");
        }
    }
    Ok(())
}

/// An all_reduce on a thread of its own beside computation that takes as long, against one after the other: what exchanging buckets during
/// the backward pass could gain.
fn overlap(world: &World, bytes: usize) -> Result<()> {
    let tensor = Tensor::zeros(bytes / 4, DType::F32, &Device::Cpu)?;
    let matrix = Tensor::ones((256, 256), DType::F32, &Device::Cpu)?;
    let reduce = || Ok::<_, anyhow::Error>(world.all_reduce(&tensor, ReduceOp::Sum)?);
    let compute = |products: usize| -> Result<()> {
        (0..products).try_for_each(|_| Ok::<_, anyhow::Error>(_ = matrix.matmul(&matrix)?))
    };
    let (mut reduce_ms, mut product_ms) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        timed(world, &mut reduce_ms, reduce)?;
        timed(world, &mut product_ms, || compute(16))?;
    }
    let products = (16.0 * slowest(world, reduce_ms)? / slowest(world, product_ms)?).ceil() as usize;
    let (mut one_by_one, mut together) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        timed(world, &mut one_by_one, || compute(products).and_then(|()| reduce()))?;
        timed(world, &mut together, || {
            std::thread::scope(|scope| {
                let reduced = scope.spawn(reduce);
                compute(products)?;
                reduced.join().map_err(|_| anyhow::anyhow!("the thread of the all_reduce panicked"))?
            })
        })?;
    }
    let (together, one_by_one) = (slowest(world, together)?, slowest(world, one_by_one)?);
    if world.rank() == 0 {
        let mut line = facts(world, "overlap");
        line["bytes"] = json!(bytes);
        report(line, together, "one after the other", one_by_one);
    }
    Ok(())
}

struct Case<'a> {
    world: &'a World,
    wte: &'a TokenEmbedding,
    opt: &'a Sgd,
    tokens: usize,
    columns: usize,
    repeats: usize,
}

impl Case<'_> {
    fn run(&self) -> Result<()> {
        let Case { world, tokens, columns, repeats, .. } = *self;
        let mut draws = Draws::new(world.rank())?;
        let ids = draws.take(tokens)?;
        let distinct = ids.iter().collect::<std::collections::HashSet<_>>().len();
        let (ids, grad) = (Tensor::from_vec(ids, tokens, &Device::Cpu)?, draws.gradient(tokens, columns)?);
        let counted = Counted { world, bytes: AtomicUsize::new(0), wire: AtomicUsize::new(0) };
        let dense = |grad: &Tensor| -> Result<Tensor> {
            let zeros = Tensor::zeros((vocab(), columns), DType::F32, &Device::Cpu)?;
            Ok(counted.all_reduce(&zeros.index_add(&ids, grad, 0)?, ReduceOp::Sum)?)
        };
        let parallel = METHODS.map(|(_, rows)| DataParallel::new(&counted).with_rows(rows));
        let exchanged = |parallel: &DataParallel<&Counted>, grads: &mut GradStore| -> Result<RowGradients> {
            parallel.exchange(self.opt, grads)?;
            self.wte.take_row_gradients()?.context("no rank has a gradient")
        };

        // The answer first.
        let union = {
            let (expected, sizes) = (floats(&dense(&grad)?)?, floats(&dense(&grad.abs()?)?)?);
            let mut union = 0;
            for ((name, rows), parallel) in METHODS.iter().zip(&parallel) {
                let got = exchanged(parallel, &mut self.backward(&ids, &grad)?)?;
                let exact = *rows != RowExchange::Ordered && world.world_size() <= 2;
                assert_same(name, &got, &expected, &sizes, if exact { 0.0 } else { 1e-5 })?;
                union = got.rows.len();
            }
            union
        };

        counted.counted();
        let mut candle = (Vec::new(), (0, 0));
        let mut ours = METHODS.map(|_| (Vec::new(), (0, 0)));
        for _ in 0..repeats {
            timed(world, &mut candle.0, || dense(&grad))?;
            candle.1 = counted.counted();
            for ((times, bytes), parallel) in ours.iter_mut().zip(&parallel) {
                let mut grads = self.backward(&ids, &grad)?;
                timed(world, times, || exchanged(parallel, &mut grads))?;
                *bytes = counted.counted();
            }
        }
        let (candle_ms, candle_bytes) = (slowest(world, candle.0)?, candle.1);
        for ((name, _), (times, (bytes, wire))) in METHODS.iter().zip(ours) {
            let ours_ms = slowest(world, times)?;
            if world.rank() == 0 {
                let mut line = facts(world, name);
                let law = if value("--ids").is_some() { "file" } else { "zipf-mandelbrot" };
                for (name, fact) in [
                    ("vocab", json!(vocab())),
                    ("columns", json!(columns)),
                    ("tokens", json!(tokens)),
                    ("ids", json!(law)),
                    ("distinct", json!(distinct)),
                    ("union", json!(union)),
                    ("bytes", json!(bytes)),
                    ("wire_bytes", json!(wire)),
                    ("reference_bytes", json!(candle_bytes.0)),
                    ("reference_wire_bytes", json!(candle_bytes.1)),
                    ("wire_ratio", json!((wire as f64 / candle_bytes.1 as f64 * 1e4).round() / 1e4)),
                    ("times_faster", json!((candle_ms / ours_ms * 1e2).round() / 1e2)),
                ] {
                    line[name] = fact;
                }
                report(line, ours_ms, "candle", candle_ms);
            }
        }
        Ok(())
    }

    /// Forward and backward, so that `grad` is the gradient of the look-up's output.
    fn backward(&self, ids: &Tensor, grad: &Tensor) -> Result<GradStore> {
        self.opt.zero_grad();
        Ok(tallow::backward(&(self.wte.forward(ids)? * grad)?.sum_all()?)?)
    }
}

/// Forward and backward of a split table, against the whole table on every rank.
fn vocab_parallel(world: &World, columns: usize, tokens: usize, gradient: Gradient, repeats: usize) -> Result<()> {
    let cfg = TokenEmbeddingConfig { vocab_size: vocab(), d_model: columns, gradient, ..Default::default() };
    let model = || {
        let varmap = VarMap::new();
        (VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu), varmap)
    };
    let ((vb, split_map), (whole_vb, whole_map), (_, candle_map)) = (model(), model(), model());
    let split = VocabParallelEmbedding::new(&cfg, Arc::new(world.clone()), vb)?;
    let whole = TokenEmbedding::new(&cfg, whole_vb)?;
    let candle_weight = Var::from_tensor(whole.flushed_weight()?)?;
    candle_map
        .data()
        .lock()
        .map_err(|_| anyhow::anyhow!("a lock"))?
        .insert("weight".to_string(), candle_weight.clone());
    let candle = candle_nn::Embedding::new(candle_weight.as_tensor().clone(), columns);
    let (split_opt, whole_opt) = (Sgd::from_varmap(&split_map, 0.1)?, Sgd::from_varmap(&whole_map, 0.1)?);
    // The same on all ranks.
    let mut draws = Draws::new(0)?;
    let (ids, grad) = (Tensor::from_vec(draws.take(tokens)?, tokens, &Device::Cpu)?, draws.gradient(tokens, columns)?);
    let forward_backward = |layer: &dyn Module| -> Result<(Tensor, GradStore)> {
        let out = layer.forward(&ids)?;
        let grads = tallow::backward(&(&out * &grad)?.sum_all()?)?;
        Ok((out, grads))
    };

    // The answer first.
    let (out, grads) = forward_backward(&split)?;
    let (expected, whole_grads) = forward_backward(&candle)?;
    ensure!(floats(&out)? == floats(&expected)?, "the output is not that of candle's layer");
    let expected = floats(whole_grads.get(&candle_weight).context("no gradient of candle's table")?)?;
    let (rank, ranks) = (world.rank(), world.world_size());
    let own: Vec<f32> = expected.chunks(columns).skip(rank).step_by(ranks).flatten().copied().collect();
    if gradient == Gradient::Dense {
        let got = floats(grads.get(&split_map.all_vars()[0]).context("no gradient")?)?;
        ensure!(got == own, "the gradient is not that of candle's table");
    }
    split_opt.zero_grad();
    drop((out, grads, whole_grads, expected, own));

    let [mut split_ms, mut whole_ms, mut candle_ms] = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..repeats {
        timed(world, &mut split_ms, || forward_backward(&split))?;
        split_opt.zero_grad();
        timed(world, &mut whole_ms, || forward_backward(&whole))?;
        whole_opt.zero_grad();
        timed(world, &mut candle_ms, || forward_backward(&candle))?;
    }
    let [split_ms, whole_ms, candle_ms] =
        [slowest(world, split_ms)?, slowest(world, whole_ms)?, slowest(world, candle_ms)?];
    if rank == 0 {
        let mut line = facts(world, "vocab parallel");
        line["gradient"] = json!(format!("{gradient:?}"));
        for (name, fact) in [("vocab", vocab()), ("columns", columns), ("tokens", tokens)] {
            line[name] = json!(fact);
        }
        line["of_whole"] = json!((split_ms / whole_ms * 1e3).round() / 1e3);
        line["whole_ms"] = json!((whole_ms * 1e3).round() / 1e3);
        line["of_candle"] = json!((split_ms / candle_ms * 1e3).round() / 1e3);
        report(line, split_ms, "candle", candle_ms);
    }
    Ok(())
}

/// What one dense AdamW step leaves in memory: table, gradient, moments.
fn memory(world: &World, columns: usize) -> Result<()> {
    let cfg = TokenEmbeddingConfig { vocab_size: vocab(), d_model: columns, ..Default::default() };
    let ids = Tensor::new(&[1u32, 2, 3], &Device::Cpu)?;
    let added = |ranks: Arc<dyn Collective>| -> Result<f64> {
        let before = resident()?;
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let wte = VocabParallelEmbedding::new(&cfg, ranks, vb)?;
        let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
        let grads = tallow::backward(&wte.forward(&ids)?.sum_all()?)?;
        opt.step(&grads)?;
        Ok((resident()? - before) / 1e6)
    };
    let (split, whole) = (added(Arc::new(world.clone()))?, added(Arc::new(Local))?);
    if world.rank() == 0 {
        let mut line = facts(world, "memory");
        for (name, fact) in [("vocab", vocab()), ("columns", columns)] {
            line[name] = json!(fact);
        }
        line["split_mb"] = json!(split.round());
        line["whole_mb"] = json!(whole.round());
        line["ratio"] = json!((split / whole * 1e3).round() / 1e3);
        println!("{line}");
    }
    Ok(())
}

/// Bytes of this process that are in memory (Linux).
fn resident() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? * 1024.0)
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// An error if the gradient differs from the dense one by more than `bar` times the sum of absolute values of what was summed.
fn assert_same(name: &str, got: &RowGradients, expected: &[f32], sizes: &[f32], bar: f32) -> Result<()> {
    let columns = got.values.dim(1)?;
    let values = floats(&got.values)?;
    let zeros = vec![0f32; columns];
    let mut rows = vec![&zeros[..]; expected.len() / columns];
    for (row, values) in got.rows.iter().zip(values.chunks(columns)) {
        rows[*row as usize] = values;
    }
    for (row, ((got, expected), sizes)) in
        rows.iter().zip(expected.chunks(columns)).zip(sizes.chunks(columns)).enumerate()
    {
        let same =
            got.iter().zip(expected).zip(sizes).all(|((got, expected), size)| (got - expected).abs() <= bar * size);
        ensure!(same, "{name}: row {row} is not that of the dense gradient");
    }
    Ok(())
}
