//! Tables for the tests of view and of the command line.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tallow::{TokenEmbedding, TokenEmbeddingConfig};

pub fn table(rows: usize, d_model: usize) -> TokenEmbedding {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: rows, d_model, ..Default::default() };
    TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap()
}

/// Two tables in a folder: rows 3, 700 and 41 of the second were moved by 3, 2 and 1, row 5 was halved; the others are equal.
pub fn before_and_after(folder: &std::path::Path) -> (String, String) {
    let before = table(1000, 16).flushed_weight().unwrap().copy().unwrap();
    let mut rows = before.to_vec2::<f32>().unwrap();
    for (row, distance) in [(3, 3.0f32), (700, 2.0), (41, 1.0)] {
        rows[row][row % 16] += distance;
    }
    rows[5].iter_mut().for_each(|value| *value *= 0.5);
    let after = Tensor::new(rows, &Device::Cpu).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    for (name, tensor) in [("before.safetensors", before), ("after.safetensors", after)] {
        candle_core::safetensors::save(&[("wte.weight", tensor)].into(), path(name)).unwrap();
    }
    (path("before.safetensors"), path("after.safetensors"))
}
