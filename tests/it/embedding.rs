//! The layer: PyTorch's values and gradients, candle's results, the guard, the VarMap.

use candle_core::{DType, Device, IndexOp, Module, Tensor, Var};
use candle_nn::{Optimizer, VarBuilder, VarMap};
use proptest::prelude::*;
use tallow::optim::AdamW;
use tallow::{Error, Gradient, Init, NO_TOKEN, Scale, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

use crate::support::golden;

/// The CPU always; a GPU where the feature is on and one is there.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    devices.extend(Some(()).filter(|()| cfg!(feature = "cuda")).and_then(|()| Device::new_cuda(0).ok()));
    devices.extend(Some(()).filter(|()| cfg!(feature = "metal")).and_then(|()| Device::new_metal(0).ok()));
    devices
}

fn layer(cfg: &TokenEmbeddingConfig, dtype: DType, device: &Device) -> (TokenEmbedding, VarMap) {
    let varmap = VarMap::new();
    let wte = TokenEmbedding::new(cfg, VarBuilder::from_varmap(&varmap, dtype, device).pp("wte")).unwrap();
    (wte, varmap)
}

fn small(vocab_size: usize, d_model: usize) -> TokenEmbeddingConfig {
    TokenEmbeddingConfig { vocab_size, d_model, ..Default::default() }
}

/// As f32 bits, so that comparing them is comparing bits.
fn bits(t: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn values_and_gradients_are_pytorchs() {
    for device in devices() {
        let t = candle_core::safetensors::load(golden("embedding.safetensors"), &device).unwrap();
        for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
            for (case, padding_id) in [("plain", None), ("padded", Some(3))] {
                let (wte, varmap) = layer(&TokenEmbeddingConfig { padding_id, ..small(50, 12) }, dtype, &device);
                let var = varmap.all_vars().remove(0);
                var.set(&t["weight"].to_dtype(dtype).unwrap()).unwrap();
                let out = wte.forward(&t["ids"]).unwrap();
                assert_eq!(bits(&out), bits(&t[&format!("{name}.{case}.out")]), "{name} {case} values");
                let loss = (out * t["grad"].to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
                let grads = loss.backward().unwrap();
                let grad = grads.get(var.as_tensor()).unwrap();
                assert_eq!(grad.dtype(), dtype);
                assert_eq!(bits(grad), bits(&t[&format!("{name}.{case}.grad")]), "{name} {case} gradient");
            }
        }
    }
}

#[test]
fn the_lesson_is_a_1_by_16_by_64_matrix_of_table_rows() {
    for device in devices() {
        let (wte, _varmap) = layer(&TokenEmbeddingConfig::default(), DType::F32, &device);
        let ids = Tokenizer::cl100k().encode("小沈阳江西演唱会邀请了,").unwrap();
        let x = wte.forward(&Tensor::from_slice(&ids, (1, 16), &device).unwrap()).unwrap();
        assert_eq!(x.dims(), [1, 16, 64]);
        for (position, id) in ids.iter().enumerate() {
            assert_eq!(
                bits(&x.i((0, position)).unwrap()),
                bits(&wte.flushed_weight().unwrap().i(*id as usize).unwrap())
            );
            // The same bits as drawn on the host, whatever the device.
            let drawn = Init::GPT2.rows(1337, *id as usize, 1, 64);
            assert_eq!(bits(&x.i((0, position)).unwrap()), drawn.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn it_is_interchangeable_with_candles_layer() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            let (wte, _varmap) = layer(&small(300, 9), dtype, &device);
            let theirs: candle_nn::Embedding = wte.clone().into();
            let back = TokenEmbedding::try_from(theirs.clone()).unwrap();
            let ids = Tensor::new(&[[0u32, 299, 7], [7, 7, NO_TOKEN]], &device).unwrap();
            for layer in [&wte as &dyn Module, &back] {
                assert_eq!(bits(&layer.forward(&ids).unwrap()), bits(&theirs.forward(&ids).unwrap()), "{dtype:?}");
            }
        }
    }
}

#[test]
fn ids_of_every_kind_give_the_right_rows() {
    for device in devices() {
        let (wte, _varmap) = layer(&small(300, 5), DType::F32, &device);
        let row = |id: u32| bits(&wte.flushed_weight().unwrap().i(id as usize).unwrap());
        let check = |ids: &Tensor, expected: &[u32]| {
            let out = wte.forward(ids).unwrap();
            let dims: Vec<usize> = ids.dims().iter().copied().chain([5]).collect();
            assert_eq!(out.dims(), dims);
            let expected: Vec<u32> =
                expected.iter().flat_map(|id| if *id == NO_TOKEN { vec![0; 5] } else { row(*id) }).collect();
            assert_eq!(bits(&out), expected);
        };
        // candle takes u8 255 for "no token": here it is row 255.
        check(&Tensor::new(&[254u8, 255], &device).unwrap(), &[254, 255]);
        check(
            &Tensor::new(&[[1i64, 299], [i64::MAX, i64::from(NO_TOKEN)]], &device).unwrap(),
            &[1, 299, NO_TOKEN, NO_TOKEN],
        );
        check(&Tensor::new(7u32, &device).unwrap(), &[7]);
        let grid = Tensor::new(&[[10u32, 11, 12], [20, 21, 22]], &device).unwrap();
        check(&grid.i((.., 1)).unwrap(), &[11, 21]);
        check(&grid.t().unwrap(), &[10, 20, 11, 21, 12, 22]);
        check(&grid.i((1, 1..)).unwrap(), &[21, 22]);
        check(&grid.to_dtype(DType::I64).unwrap().t().unwrap().i(2).unwrap(), &[12, 22]);
        check(&Tensor::zeros((2, 0, 3), DType::U32, &device).unwrap(), &[]);
        check(&grid.reshape((1, 2, 1, 3)).unwrap(), &[10, 11, 12, 20, 21, 22]);
        let float = wte.lookup(&Tensor::new(&[1f32], &device).unwrap());
        assert!(matches!(float, Err(Error::IdDType { dtype: DType::F32 })));
    }
}

#[test]
fn a_bad_id_is_named_on_every_device_and_the_device_lives_on() {
    for device in devices() {
        let (wte, _varmap) =
            layer(&TokenEmbeddingConfig { vocab_size: 100_256, d_model: 4, ..Default::default() }, DType::F32, &device);
        let wte = wte.with_token_names(Tokenizer::cl100k().names());
        let bad = Tensor::new(&[[1u32, 2, 3], [4, 100_257, 100_256]], &device).unwrap();
        match wte.lookup(&bad).unwrap_err() {
            Error::IdOutOfRange { id, position, rows, token } => {
                assert_eq!((id, position, rows), (100_257, vec![1, 1], 100_256));
                assert_eq!(token.unwrap(), "\"<|endoftext|>\" of cl100k_base");
            }
            other => panic!("{other}"),
        }
        let message = wte.forward(&bad).unwrap_err().to_string();
        assert_eq!(
            message,
            "id 100257 (\"<|endoftext|>\" of cl100k_base) at position [1, 1] of the ids is outside the table of 100256 \
             rows: its ids run from 0 to 100255; give the table at least 100258 rows (`TokenEmbeddingConfig::vocab_size`; \
             `Tokenizer::vocab_size` says how many its ids need)"
        );
        let negative = wte.lookup(&Tensor::new(&[5i64, -1], &device).unwrap()).unwrap_err().to_string();
        assert!(negative.starts_with("id -1 at position [1] ") && negative.contains("never negative"), "{negative}");
        let large = wte.lookup(&Tensor::new(&[1i64 << 40], &device).unwrap()).unwrap_err().to_string();
        assert!(large.starts_with("id 1099511627776 at position [0] ") && large.contains("32-bit"), "{large}");
        assert!(wte.lookup(&Tensor::new(5u32, &device).unwrap()).is_ok());
    }
    let (wte, _varmap) = layer(&small(10, 2), DType::F32, &Device::Cpu);
    assert!(wte.lookup_unchecked(&Tensor::new(&[10u32], &Device::Cpu).unwrap()).is_err());
    let small_bytes = wte.lookup(&Tensor::new(&[9u8, 10], &Device::Cpu).unwrap()).unwrap_err();
    assert!(matches!(small_bytes, Error::IdOutOfRange { id: 10, .. }));
}

#[test]
fn repeated_ids_count_in_every_dtype() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            let (wte, varmap) = layer(&small(4, 3), dtype, &device);
            let out = wte.forward(&Tensor::full(2u32, 1000, &device).unwrap()).unwrap();
            let grads = out.sum_all().unwrap().backward().unwrap();
            let grad = grads.get(varmap.all_vars()[0].as_tensor()).unwrap().to_dtype(DType::F32).unwrap();
            let expected = [[0f32; 3], [0.0; 3], [1000.0; 3], [0.0; 3]];
            assert_eq!(grad.to_vec2::<f32>().unwrap(), expected, "{dtype:?}");
        }
    }
}

#[test]
fn padding_gives_zeros_and_no_gradient() {
    for device in devices() {
        let cfg = TokenEmbeddingConfig { padding_id: Some(1), scale: Scale::Constant(2.0), ..small(3, 2) };
        let (wte, varmap) = layer(&cfg, DType::F32, &device);
        assert_eq!(wte.flushed_weight().unwrap().i(1).unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        let out = wte.forward(&Tensor::new(&[1u32, 2, NO_TOKEN], &device).unwrap()).unwrap();
        let rows = out.to_vec2::<f32>().unwrap();
        assert_eq!((&rows[0], &rows[2]), (&vec![0.0; 2], &vec![0.0; 2]));
        let grads = out.sum_all().unwrap().backward().unwrap();
        let grad = grads.get(varmap.all_vars()[0].as_tensor()).unwrap();
        assert_eq!(grad.to_vec2::<f32>().unwrap(), [[0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]);
        // A padding id beyond the table is padding all the same.
        let (wte, _varmap) = layer(&TokenEmbeddingConfig { padding_id: Some(9), ..small(3, 2) }, DType::F32, &device);
        let out = wte.forward(&Tensor::new(&[9i64], &device).unwrap()).unwrap();
        assert_eq!(out.to_vec2::<f32>().unwrap(), [[0.0, 0.0]]);
    }
}

#[test]
fn scale_multiplies_values_and_gradients() {
    for device in devices() {
        for (scale, factor) in [(Scale::SqrtDModel, 4.0), (Scale::Constant(-0.5), -0.5)] {
            for dtype in [DType::F32, DType::BF16] {
                let (wte, varmap) = layer(&TokenEmbeddingConfig { scale, ..small(10, 16) }, dtype, &device);
                let ids = Tensor::new(&[3u32, 3, 9], &device).unwrap();
                let expected = (wte.flushed_weight().unwrap().index_select(&ids, 0).unwrap() * factor).unwrap();
                let out = wte.forward(&ids).unwrap();
                assert_eq!(bits(&out), bits(&expected));
                let grads = out.sum_all().unwrap().backward().unwrap();
                let grad = grads.get(varmap.all_vars()[0].as_tensor()).unwrap().to_dtype(DType::F32).unwrap();
                assert_eq!(grad.i((3, 0)).unwrap().to_scalar::<f32>().unwrap(), 2.0 * factor as f32);
            }
        }
    }
}

#[test]
fn the_table_lives_in_the_varmap() {
    let (wte, varmap) = layer(&small(20, 4), DType::F32, &Device::Cpu);
    assert_eq!(varmap.data().lock().unwrap().keys().collect::<Vec<_>>(), ["wte.weight"]);
    assert!(varmap.all_vars()[0].is_variable() && wte.flushed_weight().unwrap().is_variable());
    let drawn = bits(wte.flushed_weight().unwrap());

    // What is there already is used, not drawn again.
    varmap.all_vars()[0].set(&Tensor::ones((20, 4), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let again = TokenEmbedding::new(&small(20, 4), vb.pp("wte")).unwrap();
    assert_eq!(bits(again.flushed_weight().unwrap()), vec![1f32.to_bits(); 80]);
    let wrong_shape = TokenEmbedding::new(&small(21, 4), vb.pp("wte")).unwrap_err().to_string();
    assert!(wrong_shape.contains("wte.weight"), "{wrong_shape}");

    // Saved and loaded by candle.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    varmap.save(&path).unwrap();
    let (loaded, mut other) = layer(&small(20, 4), DType::F32, &Device::Cpu);
    assert_eq!(bits(loaded.flushed_weight().unwrap()), drawn);
    other.load(&path).unwrap();
    assert_eq!(bits(loaded.flushed_weight().unwrap()), vec![1f32.to_bits(); 80]);

    // SAFETY: the file was written above and nothing changes it.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&[&path], DType::F32, &Device::Cpu) }.unwrap();
    let frozen = TokenEmbedding::new(&small(20, 4), vb.pp("wte")).unwrap();
    assert_eq!(bits(frozen.flushed_weight().unwrap()), vec![1f32.to_bits(); 80]);
    assert!(!frozen.flushed_weight().unwrap().is_variable());
    assert!(TokenEmbedding::new(&small(20, 4), vb.pp("none")).is_err());
}

#[test]
fn more_rows_begin_with_the_same_rows() {
    let (few, _a) = layer(&small(100, 6), DType::F32, &Device::Cpu);
    let (many, _b) = layer(&small(1000, 6), DType::F32, &Device::Cpu);
    assert_eq!(bits(few.flushed_weight().unwrap()), bits(&many.flushed_weight().unwrap().narrow(0, 0, 100).unwrap()));
    // Large enough to be drawn in several blocks.
    let (wide, _c) = layer(&small(40_000, 128), DType::BF16, &Device::Cpu);
    let expected = Tensor::from_vec(Init::GPT2.rows(1337, 39_999, 1, 128), 128, &Device::Cpu).unwrap();
    assert_eq!(
        bits(&wide.flushed_weight().unwrap().i(39_999).unwrap()),
        bits(&expected.to_dtype(DType::BF16).unwrap())
    );
}

#[test]
fn a_table_that_makes_no_sense_is_refused() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    for (cfg, reason) in [
        (small(0, 4), "holds nothing"),
        (small(4, 0), "holds nothing"),
        (small(usize::MAX, 4), "u32 ids"),
        (small(1 << 31, 1 << 40), "memory"),
        (TokenEmbeddingConfig { init: Init::Normal { std: f64::NAN }, ..small(4, 4) }, "finite"),
    ] {
        let message = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
    let ints = VarBuilder::from_varmap(&varmap, DType::U32, &Device::Cpu);
    assert!(TokenEmbedding::new(&small(4, 4), ints).unwrap_err().to_string().contains("u32 cannot be trained"));
    assert!(varmap.all_vars().is_empty());
    assert!(TokenEmbedding::from_weight(Tensor::zeros((2, 2, 2), DType::F32, &Device::Cpu).unwrap()).is_err());
}

/// The naive twin: one row after the other.
fn naive(table: &[Vec<f32>], ids: &[u32]) -> Vec<f32> {
    let zeros = vec![0.0; table[0].len()];
    ids.iter().flat_map(|id| if *id == NO_TOKEN { &zeros } else { &table[*id as usize] }).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    /// Sizes on both sides of the threshold for threads.
    #[test]
    fn forward_is_the_naive_loop(d_model in 1usize..70, ids in proptest::collection::vec(prop_oneof![9 => 0u32..97, 1 => Just(NO_TOKEN)], 0..6000)) {
        let (wte, _varmap) = layer(&small(97, d_model), DType::F32, &Device::Cpu);
        let table = wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap();
        let out = wte.forward(&Tensor::from_slice(&ids, ids.len(), &Device::Cpu).unwrap()).unwrap();
        prop_assert_eq!(out.flatten_all().unwrap().to_vec1::<f32>().unwrap(), naive(&table, &ids));
    }

    #[test]
    fn the_guard_raises_exactly_on_ids_without_a_row(ids in proptest::collection::vec(prop_oneof![0u32..20, 0..=u32::MAX, Just(NO_TOKEN), Just(NO_TOKEN - 1)], 1..40), rows in 1usize..20, padding_id in proptest::option::of(0u32..30)) {
        let (wte, _varmap) = layer(&TokenEmbeddingConfig { padding_id, ..small(rows, 2) }, DType::F32, &Device::Cpu);
        let first_bad = ids.iter().position(|id| *id as usize >= rows && *id != NO_TOKEN && Some(*id) != padding_id);
        for dtype in [DType::U32, DType::I64] {
            let tensor = Tensor::from_slice(&ids, ids.len(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            match (wte.lookup(&tensor), first_bad) {
                (Ok(out), None) => prop_assert_eq!(out.dims(), [ids.len(), 2]),
                (Err(Error::IdOutOfRange { id, position, .. }), Some(at)) => {
                    prop_assert_eq!((id, position), (i64::from(ids[at]), vec![at]));
                }
                (result, expected) => prop_assert!(false, "{result:?} but {expected:?}"),
            }
        }
    }
}

#[test]
fn large_outputs_are_right_too() {
    // Above the size from which huge pages are asked for.
    let (wte, _varmap) = layer(&small(1000, 256), DType::F32, &Device::Cpu);
    let ids: Vec<u32> = (0..20_000u32).map(|i| i.wrapping_mul(2_654_435_761) % 1000).collect();
    let ids = Tensor::from_vec(ids, 20_000, &Device::Cpu).unwrap();
    assert!(bits(&wte.forward(&ids).unwrap()) == bits(&wte.flushed_weight().unwrap().index_select(&ids, 0).unwrap()));
}

#[test]
fn a_stock_optimizer_trains_the_table() {
    use candle_nn::Optimizer;
    let (wte, varmap) = layer(&small(6, 3), DType::F32, &Device::Cpu);
    let theirs = Var::from_tensor(&wte.flushed_weight().unwrap().copy().unwrap()).unwrap();
    let stock = candle_nn::Embedding::new(theirs.as_tensor().clone(), 3);
    let mut optimizers =
        [varmap.all_vars(), vec![theirs.clone()]].map(|vars| candle_nn::AdamW::new_lr(vars, 0.1).unwrap());
    let ids = Tensor::new(&[[1u32, 1, 4], [4, 0, 1]], &Device::Cpu).unwrap();
    for _ in 0..20 {
        for (layer, optimizer) in [&wte as &dyn Module, &stock].into_iter().zip(&mut optimizers) {
            let loss = layer.forward(&ids).unwrap().sqr().unwrap().mean_all().unwrap();
            optimizer.backward_step(&loss).unwrap();
        }
    }
    assert_eq!(bits(wte.flushed_weight().unwrap()), bits(theirs.as_tensor()));
}

/// After `?` through candle's interfaces a caller can still match the error of tallow.
#[test]
fn typed_errors_survive_candle() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 2, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
    let bad = Tensor::new(&[[1u32, 12]], &Device::Cpu).unwrap();
    let through = || -> tallow::Result<Tensor> { Ok(wte.forward(&bad)?) };
    assert!(matches!(through(), Err(Error::IdOutOfRange { id: 12, rows: 10, .. })));
    // Inside a model, with words around it, and where backtraces are kept.
    let error = wte.forward(&bad).unwrap_err().bt().context("block 3").with_path("model");
    let ours = Error::of(&error).unwrap();
    assert!(matches!(&*ours, Error::IdOutOfRange { id: 12, position, .. } if position == &[0, 1]));
    let kept = Error::from(error).to_string();
    assert!(kept.contains("block 3") && kept.contains("id 12"), "{kept}");
    // An optimizer's step.
    let mut opt = AdamW::new(varmap.all_vars(), Default::default()).unwrap();
    let loss = || wte.forward(&Tensor::new(&[3u32], &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
    tallow::backward(&loss()).unwrap();
    let mut stray = || -> tallow::Result<()> { Ok(opt.backward_step(&loss())?) };
    assert!(matches!(stray(), Err(Error::MissingGradients { lookups: 1 })));
    // A table without columns cannot be made.
    assert!(TokenEmbedding::from_weight(Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap()).is_err());
    // candle's own stay candle's.
    let own = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap().reshape((2, 2)).unwrap_err();
    assert!(Error::of(&own).is_none() && matches!(Error::from(own), Error::Candle(_)));
}

#[path = "../../examples/args/mod.rs"]
mod args;

/// Without `--device` among the arguments (those of the test runner here) the default is opened; a bad default is an error.
#[test]
fn a_device_comes_from_the_arguments_or_the_default() {
    assert!(args::device("cpu").unwrap().is_cpu());
    let refused = args::device("tpu").unwrap_err().to_string();
    assert!(refused.contains("auto, cpu, cuda, cuda:N"), "{refused}");
}

/// Both only change how fast the same bits come: products and steps before and after are equal.
#[test]
fn tuning_changes_no_bit() {
    let product = || {
        let a = Tensor::arange(0f32, 90_000.0, &Device::Cpu)
            .unwrap()
            .affine(1e-4, -3.0)
            .unwrap()
            .reshape((300, 300))
            .unwrap();
        a.matmul(&a)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .into_iter()
            .map(f32::to_bits)
            .collect::<Vec<_>>()
    };
    let before = product();
    tallow::keep_pages();
    tallow::tune_threads();
    assert!(product() == before);
}
