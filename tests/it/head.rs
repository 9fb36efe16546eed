//! The head against candle, PyTorch (goldens), a naive twin in f64 and finite differences.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use proptest::prelude::*;
use tallow::head::{CrossEntropyConfig, Reduction};
use tallow::optim::AdamW;
use tallow::{Gradient, Head, NO_TOKEN, TokenEmbedding, TokenEmbeddingConfig};

type Out = anyhow::Result<()>;

/// Numbers from a seed, about -1.7 to 1.7.
fn noise(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut unit = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    (0..count).map(|_| (unit() * 2.0 - 1.0) * 1.7).collect()
}

/// A problem in f64, all values of which f32 holds.
#[derive(Clone, Debug)]
struct Case {
    n: usize,
    c: usize,
    v: usize,
    hidden: Vec<f64>,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    targets: Vec<u32>,
    soft_cap: Option<f64>,
    cfg: CrossEntropyConfig,
}

impl Case {
    fn new(n: usize, c: usize, v: usize, biased: bool, seed: u64, scale: f64, cfg: CrossEntropyConfig) -> Self {
        let scaled =
            |seed, count| noise(seed, count).into_iter().map(|x| f64::from((x * scale) as f32)).collect::<Vec<_>>();
        let targets = noise(seed + 3, n).into_iter().map(|x| {
            let y = ((x + 1.7) / 3.4 * (v as f64) * 1.2) as usize;
            if y < v { y as u32 } else { NO_TOKEN }
        });
        Case {
            n,
            c,
            v,
            hidden: scaled(seed, n * c),
            weight: scaled(seed + 1, v * c),
            bias: biased.then(|| scaled(seed + 2, v)),
            targets: targets.collect(),
            soft_cap: None,
            cfg,
        }
    }

    fn capped(self, soft_cap: Option<f64>) -> Self {
        Case { soft_cap, ..self }
    }

    fn head(&self, weight: &Tensor, bias: Option<&Tensor>) -> tallow::Result<Head> {
        let head = Head::new(weight, bias)?;
        self.soft_cap.map_or(Ok(head.clone()), |cap| head.with_soft_cap(cap))
    }

    /// The naive twin: losses of all positions, straight from the definition.
    fn losses(&self) -> Vec<f64> {
        (0..self.n).map(|i| self.loss(i)).collect()
    }

    fn loss(&self, i: usize) -> f64 {
        if self.targets[i] == NO_TOKEN {
            return 0.0;
        }
        let z: Vec<f64> = (0..self.v)
            .map(|j| {
                let dot: f64 = (0..self.c).map(|k| self.hidden[i * self.c + k] * self.weight[j * self.c + k]).sum();
                let u = dot + self.bias.as_ref().map_or(0.0, |bias| bias[j]);
                self.soft_cap.map_or(u, |cap| cap * (u / cap).tanh())
            })
            .collect();
        let max = z.iter().copied().fold(f64::MIN, f64::max);
        let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let smooth = self.cfg.label_smoothing;
        lse - (1.0 - smooth) * z[self.targets[i] as usize] - smooth * z.iter().sum::<f64>() / self.v as f64
            + self.cfg.z_loss * lse * lse
    }

    fn value(&self) -> f64 {
        let valid = self.targets.iter().filter(|y| **y != NO_TOKEN).count().max(1) as f64;
        let sum: f64 = self.losses().iter().sum();
        if self.cfg.reduction == Reduction::Mean { sum / valid } else { sum }
    }

    /// Gradients by their formula, in f64: of hidden, weight, bias.
    fn gradients(&self) -> [Vec<f64>; 3] {
        let valid = self.targets.iter().filter(|y| **y != NO_TOKEN).count().max(1) as f64;
        let scale = if self.cfg.reduction == Reduction::Mean { 1.0 / valid } else { 1.0 };
        let (c, v) = (self.c, self.v);
        let (mut dh, mut dw, mut db) = (vec![0.0; self.n * c], vec![0.0; v * c], vec![0.0; v]);
        for i in (0..self.n).filter(|i| self.targets[*i] != NO_TOKEN) {
            let h = &self.hidden[i * c..(i + 1) * c];
            let z: Vec<f64> = (0..v)
                .map(|j| {
                    let dot: f64 = h.iter().zip(&self.weight[j * c..]).map(|(a, b)| a * b).sum();
                    let u = dot + self.bias.as_ref().map_or(0.0, |bias| bias[j]);
                    self.soft_cap.map_or(u, |cap| cap * (u / cap).tanh())
                })
                .collect();
            let max = z.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = z.iter().map(|z| (z - max).exp()).sum();
            let lse = max + sum.ln();
            for j in 0..v {
                let mut g =
                    (z[j] - lse).exp() * (1.0 + 2.0 * self.cfg.z_loss * lse) - self.cfg.label_smoothing / v as f64;
                if self.targets[i] as usize == j {
                    g -= 1.0 - self.cfg.label_smoothing;
                }
                if let Some(cap) = self.soft_cap {
                    g *= 1.0 - (z[j] / cap).powi(2);
                }
                let g = g * scale;
                db[j] += g;
                for k in 0..c {
                    dh[i * c + k] += g * self.weight[j * c + k];
                    dw[j * c + k] += g * h[k];
                }
            }
        }
        [dh, dw, db]
    }

    fn vars(&self, dtype: DType) -> anyhow::Result<(Var, Var, Option<Var>, Tensor)> {
        let var = |values: &[f64], shape: &[usize]| -> anyhow::Result<Var> {
            Ok(Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu)?.to_dtype(dtype)?)?)
        };
        Ok((
            var(&self.hidden, &[self.n, self.c])?,
            var(&self.weight, &[self.v, self.c])?,
            self.bias.as_ref().map(|bias| var(bias, &[self.v])).transpose()?,
            Tensor::from_slice(&self.targets, self.n, &Device::Cpu)?,
        ))
    }

    /// Value and gradients by tallow, in f64 for comparison.
    fn ours(&self, dtype: DType) -> anyhow::Result<(Vec<f64>, [Vec<f64>; 3])> {
        let (hidden, weight, bias, targets) = self.vars(dtype)?;
        let loss = self.head(&weight, bias.as_deref())?.loss(&hidden, &targets, &self.cfg)?;
        let grads = tallow::backward(&loss.sum_all()?)?;
        let flat = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        let of = |var: &Tensor| flat(grads.get(var).expect("a gradient"));
        let of_bias = bias.as_ref().map_or(Ok(Vec::new()), |bias| of(bias))?;
        Ok((flat(&loss)?, [of(&hidden)?, of(&weight)?, of_bias]))
    }
}

/// |a - b| over |b|, both as vectors.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

fn assert_close(case: &Case, dtype: DType, tolerance: f64) -> Out {
    let (value, grads) = case.ours(dtype)?;
    let want = if case.cfg.reduction == Reduction::None { case.losses() } else { vec![case.value()] };
    // A loss near zero is a difference of larger numbers, with their error.
    let off = value.iter().zip(&want).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max);
    assert!(off <= tolerance, "loss {value:?}, should be {want:?}: {off:e}; {:?}", case.cfg);
    for (name, ours, want) in itertools(grads, case.gradients()) {
        if ours.is_empty() && (case.bias.is_none() || want.is_empty()) {
            continue;
        }
        if want.iter().all(|x| x.abs() < 1e-12) {
            assert!(ours.iter().all(|x| x.abs() < 1e-7), "{name} {:?}", case.cfg);
            continue;
        }
        let far = distance(&ours, &want);
        assert!(far <= tolerance, "gradient of {name}: {far:e}; n {} c {} v {} {:?}", case.n, case.c, case.v, case.cfg);
    }
    Ok(())
}

fn itertools(ours: [Vec<f64>; 3], want: [Vec<f64>; 3]) -> impl Iterator<Item = (&'static str, Vec<f64>, Vec<f64>)> {
    ["hidden", "weight", "bias"].into_iter().zip(ours).zip(want).map(|((name, a), b)| (name, a, b))
}

/// Options, and a soft cap.
fn options() -> Vec<(CrossEntropyConfig, Option<f64>)> {
    let plain = CrossEntropyConfig::default();
    vec![
        (plain, None),
        (CrossEntropyConfig { reduction: Reduction::Sum, label_smoothing: 0.1, ..plain }, None),
        (CrossEntropyConfig { z_loss: 1e-2, ..plain }, None),
        (plain, Some(3.0)),
        (CrossEntropyConfig { reduction: Reduction::None, label_smoothing: 0.2, z_loss: 1e-3 }, Some(5.0)),
    ]
}

/// Several chunks of tokens, several blocks and spans of the vocabulary, lanes that do not fill registers.
#[test]
fn loss_and_gradients_are_those_of_f64() -> Out {
    for (i, (cfg, soft_cap)) in options().into_iter().enumerate() {
        for (n, c, v) in [(1, 1, 2), (3, 8, 50), (70, 16, 513), (300, 24, 5000), (64, 64, 20_000)] {
            let case = Case::new(n, c, v, i % 2 == 0, i as u64 * 100 + n as u64, 0.5, cfg).capped(soft_cap);
            assert_close(&case, DType::F32, 1e-6)?;
            if v <= 5000 {
                assert_close(&case, DType::F64, 1e-12)?;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_padding_and_option(
        n in 0usize..150, c in 1usize..40, v in 2usize..1200, biased: bool, seed in 0u64..1000,
        smooth in prop_oneof![Just(0.0), 0.0..1.0f64], z_loss in prop_oneof![Just(0.0), 0.0..0.1f64],
        cap in prop_oneof![Just(None), (0.5..50.0f64).prop_map(Some)],
        reduction in prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)],
    ) {
        let cfg = CrossEntropyConfig { reduction, label_smoothing: smooth, z_loss };
        let case = Case::new(n, c, v, biased, seed, 0.5, cfg).capped(cap);
        assert_close(&case, DType::F32, 1e-6).unwrap();
    }
}

/// The formula of the twin's gradients is itself checked: nudging each input moves the loss as it says.
#[test]
fn finite_differences_in_f64_agree() -> Out {
    for (cfg, soft_cap) in options() {
        let case = Case::new(6, 5, 17, true, 42, 1.0, cfg).capped(soft_cap);
        let (_, grads) = case.ours(DType::F64)?;
        let step = 1e-5;
        let nudged = |at: usize, which: usize, by: f64| {
            let mut case = case.clone();
            match which {
                0 => case.hidden[at] += by,
                1 => case.weight[at] += by,
                _ => case.bias.as_mut().expect("a bias")[at] += by,
            }
            case.value()
        };
        for (which, grads) in grads.iter().enumerate() {
            for (at, grad) in grads.iter().enumerate() {
                let slope = (nudged(at, which, step) - nudged(at, which, -step)) / (2.0 * step);
                assert!((slope - grad).abs() < 1e-7 * slope.abs().max(1.0), "{which} {at}: {slope} {grad}");
            }
        }
    }
    Ok(())
}

#[test]
fn equal_to_candle() -> Out {
    let mut case = Case::new(48, 32, 3000, true, 7, 0.5, CrossEntropyConfig::default());
    case.targets.iter_mut().for_each(|y| *y %= 3000); // candle knows no padding
    let (value, grads) = case.ours(DType::F32)?;
    let (hidden, weight, bias, targets) = case.vars(DType::F32)?;
    let bias = bias.expect("a bias");
    let linear = candle_nn::Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
    let loss = candle_nn::loss::cross_entropy(&linear.forward(&hidden)?, &targets)?;
    let theirs = loss.backward()?;
    assert!((f64::from(loss.to_scalar::<f32>()?) - value[0]).abs() < 1e-5 * value[0]);
    for (ours, var) in grads.iter().zip([&hidden, &weight, &bias]) {
        let want = theirs.get(var).expect("candle's gradient").flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        assert!(distance(ours, &want) < 1e-5);
    }
    Ok(())
}

/// Written by tests/golden/gen_head.py with PyTorch.
#[test]
fn equal_to_pytorch() -> Out {
    let golden = crate::support::golden_json("head.json");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() >= 6);
    for golden in cases {
        let numbers = |key: &str| -> Vec<f64> {
            golden[key].as_array().into_iter().flatten().filter_map(|x| x.as_f64()).collect()
        };
        let size = |key: &str| golden[key].as_u64().expect("a size") as usize;
        let reduction = match golden["reduction"].as_str() {
            Some("mean") => Reduction::Mean,
            Some("sum") => Reduction::Sum,
            _ => Reduction::None,
        };
        let case = Case {
            n: size("n"),
            c: size("c"),
            v: size("v"),
            hidden: numbers("hidden"),
            weight: numbers("weight"),
            bias: golden["bias"].is_array().then(|| numbers("bias")),
            targets: numbers("targets").iter().map(|y| if *y < 0.0 { NO_TOKEN } else { *y as u32 }).collect(),
            cfg: CrossEntropyConfig {
                reduction,
                label_smoothing: golden["label_smoothing"].as_f64().unwrap_or(0.0),
                z_loss: golden["z_loss"].as_f64().unwrap_or(0.0),
            },
            soft_cap: golden["soft_cap"].as_f64(),
        };
        for dtype in [DType::F32, DType::F64] {
            let (value, grads) = case.ours(dtype)?;
            assert!(distance(&value, &numbers("loss")) < 1e-5, "{value:?}");
            for (ours, key) in grads.iter().zip(["hidden_grad", "weight_grad", "bias_grad"]) {
                assert!(
                    ours.is_empty() && key == "bias_grad" || distance(ours, &numbers(key)) < 1e-5,
                    "{key} {:?}",
                    case.cfg
                );
            }
        }
    }
    Ok(())
}

/// Half-precision inputs: the loss of their own values, f32 statistics; gradients rounded once.
#[test]
fn half_precision_inputs() -> Out {
    for (dtype, unit) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        let mut case = Case::new(33, 16, 900, true, 5, 0.5, CrossEntropyConfig::default());
        for values in [&mut case.hidden, &mut case.weight, case.bias.as_mut().expect("a bias")] {
            let rounded =
                Tensor::from_slice(values, values.len(), &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F64)?;
            *values = rounded.to_vec1()?;
        }
        let (value, grads) = case.ours(dtype)?;
        assert!((value[0] - case.value()).abs() < 1e-5, "statistics are f32");
        for (ours, want) in grads.iter().zip(case.gradients()) {
            assert!(distance(ours, &want) < unit);
        }
    }
    Ok(())
}

#[test]
fn only_padding_is_zero_with_zero_gradients() -> Out {
    for (cfg, soft_cap) in options() {
        for dtype in [DType::F32, DType::F64] {
            let mut case = Case::new(5, 4, 30, true, 1, 1.0, cfg).capped(soft_cap);
            case.targets.fill(NO_TOKEN);
            case.hidden[3] = f64::NAN; // nobody looks at a padded position
            let (value, grads) = case.ours(dtype)?;
            assert!(value.iter().all(|x| *x == 0.0), "{value:?}");
            assert!(grads.iter().flatten().all(|x| *x == 0.0));
            assert_eq!(grads.map(|grad| grad.len()), [20, 120, 30]);
        }
    }
    Ok(())
}

#[test]
fn large_logits_are_stable() -> Out {
    // Logits of ±1e4: the right target costs nothing, a wrong one their distance.
    let hidden = Tensor::new(&[[1e4f32, 0.0], [1e4, 0.0]], &Device::Cpu)?;
    let weight = Var::from_tensor(&Tensor::new(&[[1f32, 0.0], [-1.0, 0.0], [0.0, 0.0]], &Device::Cpu)?)?;
    let targets = Tensor::new(&[0u32, 1], &Device::Cpu)?;
    let cfg = CrossEntropyConfig { reduction: Reduction::None, ..Default::default() };
    let loss = Head::new(&weight, None)?.loss(&hidden, &targets, &cfg)?;
    assert_eq!(loss.to_vec1::<f32>()?, [0.0, 2e4]);
    let grad = tallow::backward(&loss.sum_all()?)?.get(&weight).expect("a gradient").to_vec2::<f32>()?;
    assert_eq!(grad, [[1e4, 0.0], [-1e4, 0.0], [0.0, 0.0]]);
    // A bias of -inf takes a row out of the vocabulary; a NaN stays one.
    let bias = Tensor::new(&[0f32, f32::NEG_INFINITY, 0.0], &Device::Cpu)?;
    let first = Tensor::new(&[0u32], &Device::Cpu)?;
    let small = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
    let loss = Head::new(&weight, Some(&bias))?.loss(&small, &first, &Default::default())?;
    assert!((loss.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
    let nan = Tensor::new(&[[f32::NAN, 0.0]], &Device::Cpu)?;
    assert!(Head::new(&weight, None)?.loss(&nan, &first, &Default::default())?.to_scalar::<f32>()?.is_nan());
    Ok(())
}

#[test]
fn wrong_input_is_named() -> Out {
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (hidden, weight) = (tensor(&[2, 3, 4])?, tensor(&[10, 4])?);
    let targets = Tensor::new(&[[1u32, 2, 3], [4, 10, NO_TOKEN]], &Device::Cpu)?;
    let plain = CrossEntropyConfig::default();
    let said = |result: tallow::Result<Tensor>| result.unwrap_err().to_string();
    let error = said(Head::new(&weight, None)?.loss(&hidden, &targets, &plain));
    assert!(
        error.starts_with("target 10 at position [1, 1] of the targets is outside the 10 rows of the head"),
        "{error}"
    );
    let negative = Tensor::new(&[[1i64, 2, 3], [4, -100, 5]], &Device::Cpu)?;
    let error = said(Head::new(&weight, None)?.loss(&hidden, &negative, &plain));
    assert!(error.starts_with("target -100 at position [1, 1]"), "{error}");
    let good = Tensor::zeros((2, 3), DType::U32, &Device::Cpu)?;
    for (hidden, weight, bias, targets, what) in [
        (&hidden, &tensor(&[10, 5])?, None, &good, "must end in the same C"),
        (&hidden, &tensor(&[10])?, None, &good, "must be (V, C)"),
        (&hidden, &tensor(&[0, 4])?, None, &good, "a head of 0 rows"),
        (&hidden, &weight, Some(tensor(&[9])?), &good, "a bias of shape [9] for a head of 10 rows"),
        (&hidden, &weight, None, &good.t()?, "one target per position, [2, 3]"),
        (&hidden, &weight.to_dtype(DType::F64)?, None, &good, "they must have one dtype"),
        (&hidden, &weight, None, &good.to_dtype(DType::F32)?, "use u8, u32 or i64"),
    ] {
        let error = said(Head::new(weight, bias.as_ref()).and_then(|head| head.loss(hidden, targets, &plain)));
        assert!(error.contains(what), "{error}");
    }
    for cfg in [
        CrossEntropyConfig { label_smoothing: 1.1, ..plain },
        CrossEntropyConfig { label_smoothing: f64::NAN, ..plain },
        CrossEntropyConfig { z_loss: -1.0, ..plain },
    ] {
        assert!(
            matches!(Head::new(&weight, None)?.loss(&hidden, &good, &cfg), Err(tallow::Error::Config(_))),
            "{cfg:?}"
        );
    }
    assert!(said(Head::new(&weight, None)?.top_k(&hidden, 11).map(|(values, _)| values)).contains("from 1 to 10"));
    assert!(matches!(Head::new(&weight, None)?.with_soft_cap(0.0), Err(tallow::Error::Config(_))));
    Ok(())
}

/// Strided inputs, any shape in front, u8 and i64 targets, and a second backward.
#[test]
fn shapes_strides_and_a_second_backward() -> Out {
    let case =
        Case::new(24, 8, 40, false, 9, 0.7, CrossEntropyConfig { reduction: Reduction::Sum, ..Default::default() });
    let (hidden, weight, _, targets) = case.vars(DType::F32)?;
    let want = tallow::backward(&Head::new(&weight, None)?.loss(&hidden, &targets, &case.cfg)?)?;
    let hidden_t = Var::from_tensor(&hidden.t()?.contiguous()?)?;
    let weight_t = Var::from_tensor(&weight.t()?.contiguous()?)?;
    let shaped = hidden_t.t()?.reshape((2, 3, 4, 8))?;
    let targets = targets.to_dtype(DType::I64)?.reshape((2, 3, 4))?;
    let loss = Head::new(&weight_t.t()?, None)?.loss(&shaped, &targets, &case.cfg)?;
    // Twice as much upstream, through candle's own backward, twice.
    let loss = (loss * 2.0)?;
    for grads in [loss.backward()?, loss.backward()?, tallow::backward(&loss)?] {
        for (ours, theirs) in [(&hidden_t, &hidden), (&weight_t, &weight)] {
            let ours = grads.get(ours).expect("a gradient").t()?;
            let want = (want.get(theirs).expect("a gradient") * 2.0)?;
            assert_eq!(ours.contiguous()?.to_vec2::<f32>()?, want.to_vec2::<f32>()?);
        }
    }
    Ok(())
}

/// The bits do not depend on threads: processes with 1, 2, 3 and 8 of them.
#[test]
fn the_same_bits_for_any_number_of_threads() -> Out {
    if let Ok(path) = std::env::var("TALLOW_TEST_HEAD_BITS") {
        let cfg = CrossEntropyConfig { label_smoothing: 0.1, ..Default::default() };
        let (value, grads) = Case::new(150, 48, 9000, true, 3, 0.5, cfg).ours(DType::F32)?;
        let all: Vec<f64> = value.into_iter().chain(grads.into_iter().flatten()).collect();
        std::fs::write(path, bytemuck::cast_slice(&all))?;
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut bits = Vec::new();
    for threads in ["1", "2", "3", "8"] {
        let path = folder.path().join(threads);
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", "head::the_same_bits_for_any_number_of_threads", "--test-threads=1"])
            .env("RAYON_NUM_THREADS", threads)
            .env("TALLOW_TEST_HEAD_BITS", &path)
            .stdout(std::process::Stdio::null())
            .status()?;
        assert!(status.success());
        bits.push(std::fs::read(path)?);
    }
    assert!(bits[0].len() > 8 * 48 * 9000 && bits.iter().all(|other| *other == bits[0]));
    Ok(())
}

/// With a row-sparse tied table the optimizer reads the very buffer that the head wrote, with the rows added into it, and
/// trains as a dense one would.
#[test]
fn tied_to_the_table() -> Out {
    let train = |gradient: Gradient, theirs: bool| -> anyhow::Result<Vec<f32>> {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let cfg = TokenEmbeddingConfig { vocab_size: 600, d_model: 16, gradient, ..Default::default() };
        let wte = TokenEmbedding::new(&cfg, vb)?;
        let params = ParamsAdamW { lr: 1e-2, ..Default::default() };
        let mut ours = AdamW::new(varmap.all_vars(), params.clone())?;
        let mut stock = candle_nn::AdamW::new(if theirs { varmap.all_vars() } else { Vec::new() }, params)?;
        for step in 0..20u32 {
            let ids: Vec<u32> = (0..32).map(|i| (i * 7 + step * 13) % 600).collect();
            let targets = Tensor::from_iter(ids.iter().map(|id| (id * 3 + 1) % 600), &Device::Cpu)?;
            let hidden = wte.forward(&Tensor::from_vec(ids, 32, &Device::Cpu)?)?;
            let hidden = (hidden * 3.0)?;
            if theirs {
                let loss = candle_nn::loss::cross_entropy(&hidden.matmul(&wte.flushed_weight()?.t()?)?, &targets)?;
                stock.backward_step(&loss)?;
            } else {
                let loss = Head::tied(&wte).loss(&hidden, &targets, &Default::default())?;
                ours.backward_step(&loss)?;
            }
        }
        Ok(wte.flushed_weight()?.flatten_all()?.to_vec1()?)
    };
    let [sparse, dense, stock] = [(Gradient::RowSparse, false), (Gradient::Dense, false), (Gradient::Dense, true)]
        .map(|(gradient, theirs)| train(gradient, theirs).map(|w| w.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()));
    let (sparse, dense, stock) = (sparse?, dense?, stock?);
    assert!(distance(&sparse, &stock) < 1e-4 && distance(&dense, &stock) < 1e-4);
    assert!(distance(&sparse, &dense) < 1e-6);
    Ok(())
}

#[test]
fn log_probs_logits_and_the_best_ids() -> Out {
    let case = Case::new(12, 8, 3000, true, 11, 0.8, CrossEntropyConfig::default()).capped(Some(4.0));
    let (hidden, weight, bias, targets) = case.vars(DType::F32)?;
    let bias = bias.expect("a bias");
    let head = case.head(&weight, Some(&bias))?;
    let probs = head.log_probs(&hidden, &targets)?;
    assert!(!probs.track_op());
    let probs = probs.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    assert!(distance(&probs, &case.losses().iter().map(|x| -x).collect::<Vec<_>>()) < 1e-6);

    // Every logit, by candle.
    let all = ((hidden.matmul(&weight.t()?)?.broadcast_add(&bias)? / 4.0)?.tanh()? * 4.0)?;
    let shaped = hidden.reshape((3, 4, 8))?;
    let logits = head.logits(&shaped)?;
    assert_eq!(logits.dims(), [3, 4, 3000]);
    assert_eq!(head.forward(&shaped)?.dims(), [3, 4, 3000]);
    assert!((logits.reshape((12, 3000))?.sub(&all)?.abs()?.max_all()?.to_scalar::<f32>()?) < 1e-5);
    assert!(tallow::backward(&logits.sum_all()?)?.get(&weight).is_some());

    for k in [1, 5, 3000] {
        let (values, ids) = head.top_k(&shaped, k)?;
        assert_eq!((values.dims(), ids.dims()), (&[3, 4, k][..], &[3, 4, k][..]));
        let (values, ids) = (values.reshape((12, k))?.to_vec2::<f32>()?, ids.reshape((12, k))?.to_vec2::<u32>()?);
        for (row, (values, ids)) in all.to_vec2::<f32>()?.iter().zip(values.iter().zip(&ids)) {
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for ((value, id), want) in values.iter().zip(ids).zip(sorted) {
                assert!((value - want).abs() < 1e-5 && (row[*id as usize] - value).abs() < 1e-5);
            }
        }
    }
    // Equal logits: the lower id first.
    let flat = Tensor::zeros((5, 2), DType::F32, &Device::Cpu)?;
    let (_, ids) = Head::new(&flat, None)?.top_k(&Tensor::zeros((1, 2), DType::F32, &Device::Cpu)?, 3)?;
    assert_eq!(ids.to_vec2::<u32>()?, [[0, 1, 2]]);
    Ok(())
}

/// `backward` gives what candle's gives, also where a variable is used twice.
#[test]
fn backward_is_candles() -> Out {
    let case = Case::new(10, 6, 90, false, 2, 0.5, CrossEntropyConfig::default());
    let (hidden, weight, _, targets) = case.vars(DType::F32)?;
    let loss = || -> anyhow::Result<Tensor> {
        let a = Head::new(&weight, None)?.loss(&hidden, &targets, &case.cfg)?;
        let b = Head::new(&weight, None)?.loss(&(hidden.as_tensor() * 0.5)?, &targets, &case.cfg)?;
        Ok(((a + b)? + weight.sqr()?.sum_all()?)?)
    };
    let (ours, theirs) = (tallow::backward(&loss()?)?, loss()?.backward()?);
    for var in [&hidden, &weight] {
        let flat = |t: Option<&Tensor>| t.expect("a gradient").flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        assert!(distance(&flat(ours.get(var))?, &flat(theirs.get(var))?) < 1e-6);
    }
    // And afterwards nothing is collected any more.
    assert!(loss()?.backward()?.get(&weight).is_some());
    Ok(())
}

/// One position without a batch, no position at all, a vocabulary of one, parts of larger tensors.
#[test]
fn odd_shapes() -> Out {
    let case = Case::new(4, 6, 700, true, 21, 0.6, CrossEntropyConfig::default());
    let (hidden, weight, bias, _) = case.vars(DType::F32)?;
    let bias = bias.expect("a bias");
    let of = |hidden: &Tensor, targets: &Tensor, reduction| -> anyhow::Result<Tensor> {
        let cfg = CrossEntropyConfig { reduction, ..Default::default() };
        Ok(Head::new(&weight, Some(&bias))?.loss(hidden, targets, &cfg)?)
    };
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        // Rows 1 to 3 of four, as a part of a larger tensor.
        let part = of(&hidden.narrow(0, 1, 3)?, &Tensor::new(&[5u32, 699, 0], &Device::Cpu)?, Reduction::None)?;
        let part = part.to_vec1::<f32>()?;
        let one = of(&hidden.get(2)?, &Tensor::new(699u32, &Device::Cpu)?, reduction)?;
        assert!((one.to_scalar::<f32>()? - part[1]).abs() < 1e-5);
        assert!(tallow::backward(&one)?.get(&hidden).is_some());
        let none = Tensor::zeros((0, 3), DType::U32, &Device::Cpu)?;
        let empty = of(&Tensor::zeros((0, 3, 6), DType::F32, &Device::Cpu)?, &none, reduction)?;
        assert_eq!(empty.elem_count(), if reduction == Reduction::None { 0 } else { 1 });
        let grads = tallow::backward(&empty.sum_all()?)?;
        let of_weight = grads.get(&weight).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        assert!(empty.sum_all()?.to_scalar::<f32>()? == 0.0 && of_weight.iter().all(|x| *x == 0.0));
    }
    // Rows of a larger weight: the gradient goes on to it.
    let targets = Tensor::new(&[0u32, 1, 99, 4], &Device::Cpu)?;
    let loss = Head::new(&weight.narrow(0, 600, 100)?, None)?.loss(&hidden, &targets, &Default::default())?;
    let grads = tallow::backward(&loss)?;
    let of_weight = grads.get(&weight).expect("a gradient").to_vec2::<f32>()?;
    assert!(of_weight[..600].iter().flatten().all(|x| *x == 0.0) && of_weight[699].iter().any(|x| *x != 0.0));
    // Certainty: a vocabulary of one costs nothing.
    let sure = Head::new(&weight.narrow(0, 0, 1)?, None)?.loss(
        &hidden,
        &Tensor::zeros(4, DType::U32, &Device::Cpu)?,
        &Default::default(),
    )?;
    assert!(sure.to_scalar::<f32>()?.abs() < 1e-6);
    let nothing = Head::new(&weight, None)?.top_k(&Tensor::zeros((0, 6), DType::F32, &Device::Cpu)?, 3)?;
    assert_eq!(nothing.1.dims(), [0, 3]);
    Ok(())
}

/// Each token's loss has an upstream gradient of its own.
#[test]
fn every_token_has_its_own_upstream() -> Out {
    for dtype in [DType::F32, DType::F64] {
        let cfg = CrossEntropyConfig { reduction: Reduction::None, label_smoothing: 0.1, ..Default::default() };
        let mut case = Case::new(9, 5, 40, true, 31, 0.7, cfg);
        case.targets = vec![3, NO_TOKEN, 0, 39, 7, NO_TOKEN, NO_TOKEN, 8, 3];
        let (hidden, weight, bias, targets) = case.vars(dtype)?;
        let bias = bias.expect("a bias");
        let shares: Vec<f64> = (0..9).map(|i| f64::from(i) - 3.5).collect();
        let loss = Head::new(&weight, Some(&bias))?.loss(&hidden, &targets, &case.cfg)?;
        let weighted = (loss * Tensor::from_slice(&shares, 9, &Device::Cpu)?.to_dtype(dtype)?)?.sum_all()?;
        let grads = tallow::backward(&weighted)?;
        // Token by token, each alone.
        let mut want = [vec![0.0; 45], vec![0.0; 200], vec![0.0; 40]];
        for (i, share) in shares.iter().enumerate() {
            let mut alone = case.clone();
            (0..9).filter(|j| *j != i).for_each(|j| alone.targets[j] = NO_TOKEN);
            for (want, grad) in want.iter_mut().zip(alone.gradients()) {
                want.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x * share);
            }
        }
        for (var, want) in [&hidden, &weight, &bias].into_iter().zip(want) {
            let ours = grads.get(var).expect("a gradient").flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            assert!(distance(&ours, &want) < 2e-6);
        }
    }
    Ok(())
}

/// The best ids across blocks of the vocabulary, ties among them, and in half precision.
#[test]
fn the_best_ids_across_blocks() -> Out {
    let (n, v) = (600, 4000); // more than 2^20 logits
    let hidden = Tensor::ones((n, 1), DType::F32, &Device::Cpu)?;
    let mut column: Vec<f32> = (0..v).map(|i| (i * 37 % 1000) as f32 / 1000.0).collect();
    for (id, value) in [(5, 9.0), (3990, 9.0), (2500, 7.0), (1, -0.0)] {
        column[id] = value;
    }
    let weight = Tensor::from_vec(column, (v, 1), &Device::Cpu)?;
    let (values, ids) = Head::new(&weight, None)?.top_k(&hidden, 3)?;
    assert_eq!(ids.to_vec2::<u32>()?, vec![[5, 3990, 2500]; n]);
    assert_eq!(values.to_vec2::<f32>()?[599], [9.0, 9.0, 7.0]);
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let (hidden, weight) = (hidden.narrow(0, 0, 2)?.to_dtype(dtype)?, weight.to_dtype(dtype)?);
        assert_eq!(Head::new(&weight, None)?.top_k(&hidden, 3)?.1.to_vec2::<u32>()?, vec![[5, 3990, 2500]; 2]);
        assert_eq!(Head::new(&weight, None)?.logits(&hidden)?.dtype(), dtype);
    }
    Ok(())
}
