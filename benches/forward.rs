//! The forward pass: tallow against candle's own layer, and against PyTorch where it is installed.
//!
//!     cargo bench --bench forward
//!
//! V = 100256, f32; allocating and freeing the output is part of every time. Ours includes the guard. "mode":
//! "guard" compares the guarded forward with `lookup_unchecked`.

mod common;

use std::io::Write;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use common::{ids, python, report, side_by_side};
use serde_json::json;
use tallow::{TokenEmbedding, TokenEmbeddingConfig};

const V: usize = 100_256;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cases = Vec::new();
    for d_model in [64, 1024] {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let cfg = TokenEmbeddingConfig { vocab_size: V, d_model, ..Default::default() };
        let ours = TokenEmbedding::new(&cfg, vb)?;
        let stock: candle_nn::Embedding = ours.clone().into();
        for tokens in [1, 16, 64, 2048, 32768] {
            for kind in ["uniform", "zipf"] {
                let list = ids(kind, V, tokens);
                let path = folder.path().join(format!("{d_model}-{tokens}-{kind}"));
                let mut file = std::fs::File::create(&path)?;
                list.iter().try_for_each(|id| file.write_all(&id.to_le_bytes()))?;
                let ids = Tensor::from_vec(list, tokens, &Device::Cpu)?;

                // The answer first.
                let flat = |t: Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>());
                let expected = flat(ours.flushed_weight()?.index_select(&ids, 0)?)?;
                assert!(flat(ours.forward(&ids)?)? == expected, "forward is not index_select");

                let facts = |mode: &str| json!({"bench": "forward", "d_model": d_model, "tokens": tokens, "ids": kind, "mode": mode});
                let (ours_ms, candle_ms) = side_by_side(|| ours.forward(&ids), || stock.forward(&ids));
                report(facts("forward"), ours_ms, "candle", candle_ms);
                let (guarded, unguarded) = side_by_side(|| ours.forward(&ids), || ours.lookup_unchecked(&ids));
                report(facts("guard"), guarded, "tallow unchecked", unguarded);
                if tokens >= 64 {
                    let step = |layer: &dyn Module| layer.forward(&ids)?.sum_all()?.backward();
                    let (ours_ms, candle_ms) = side_by_side(|| step(&ours), || step(&stock));
                    report(facts("forward+backward"), ours_ms, "candle", candle_ms);
                }
                cases.push((d_model, tokens, kind, path, ours_ms));
            }
        }
    }
    let wanted: Vec<_> =
        cases.iter().map(|(d_model, tokens, kind, path, _)| json!([d_model, tokens, kind, path])).collect();
    if let Some(answer) = python("torch_forward.py", &json!({"vocab": V, "cases": wanted})) {
        let version = answer["version"].as_str().unwrap_or_default().to_string();
        for ((d_model, tokens, kind, _, ours_ms), torch_ms) in
            cases.iter().zip(answer["ms"].as_array().into_iter().flatten())
        {
            let facts = json!({"bench": "forward", "d_model": d_model, "tokens": tokens, "ids": kind, "mode": "forward", "version": version});
            report(facts, *ours_ms, "torch", torch_ms.as_f64().unwrap_or(f64::NAN));
        }
    }
    Ok(())
}
