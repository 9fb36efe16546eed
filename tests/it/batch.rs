//! Ragged rows as one tensor.

use candle_core::{Device, Module};
use candle_nn::{VarBuilder, VarMap};
use tallow::{Error, NO_TOKEN as X, PaddedBatch, Padding, Side, TokenEmbedding, TokenEmbeddingConfig};

fn rows(batch: &PaddedBatch) -> (Vec<Vec<u32>>, Vec<Vec<u8>>) {
    (batch.ids.to_vec2().unwrap(), batch.mask.to_vec2().unwrap())
}

const RAGGED: [&[u32]; 3] = [&[1, 2, 3], &[], &[4]];

#[test]
fn pads_right_and_left() {
    let right = PaddedBatch::from_ids(&RAGGED, Padding::default(), &Device::Cpu).unwrap();
    assert_eq!(rows(&right).0, [[1, 2, 3], [X, X, X], [4, X, X]]);
    assert_eq!(rows(&right).1, [[1, 1, 1], [0, 0, 0], [1, 0, 0]]);
    assert_eq!(right.lengths, [3, 0, 1]);
    let left = Padding { side: Side::Left, context_length: Some(4), max_length: None };
    let left = PaddedBatch::from_ids(&RAGGED, left, &Device::Cpu).unwrap();
    assert_eq!(rows(&left).0, [[X, 1, 2, 3], [X, X, X, X], [X, X, X, 4]]);
    assert_eq!(rows(&left).1, [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]);
}

#[test]
fn cuts_long_rows() {
    let cut = |context_length, max_length| {
        let padding = Padding { side: Side::Left, context_length, max_length };
        let batch = PaddedBatch::from_ids(&RAGGED, padding, &Device::Cpu).unwrap();
        (rows(&batch).0, batch.lengths)
    };
    assert_eq!(cut(Some(2), None), (vec![vec![1, 2], vec![X, X], vec![X, 4]], vec![2, 0, 1]));
    assert_eq!(cut(None, Some(1)), (vec![vec![1], vec![X], vec![4]], vec![1, 0, 1]));
    assert_eq!(cut(Some(3), Some(2)), (vec![vec![X, 1, 2], vec![X, X, X], vec![X, X, 4]], vec![2, 0, 1]));
    assert_eq!(cut(Some(0), None), (vec![vec![], vec![], vec![]], vec![0, 0, 0]));
}

#[test]
fn nothing_is_a_batch_too() {
    let vm = VarMap::new();
    let vb = VarBuilder::from_varmap(&vm, candle_core::DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: 5, d_model: 2, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb).unwrap();
    let none: [&[u32]; 0] = [];
    let empty = PaddedBatch::from_ids(&none, Padding::default(), &Device::Cpu).unwrap();
    assert_eq!(empty.ids.dims(), [0, 0]);
    assert_eq!(wte.forward(&empty.ids).unwrap().dims(), [0, 0, 2]);
    let silent: [&[u32]; 2] = [&[], &[]];
    let silent = PaddedBatch::from_ids(&silent, Padding::default(), &Device::Cpu).unwrap();
    assert_eq!(wte.forward(&silent.ids).unwrap().dims(), [2, 0, 2]);
    let padded = PaddedBatch::from_ids(&RAGGED, Padding::default(), &Device::Cpu).unwrap();
    let x = wte.forward(&padded.ids).unwrap().to_vec3::<f32>().unwrap();
    assert_eq!(x[1], [[0.0; 2]; 3]);
    assert_ne!(x[2][0], [0.0; 2]);
    let huge = Padding { context_length: Some(usize::MAX), ..Default::default() };
    assert!(matches!(PaddedBatch::from_ids(&RAGGED, huge, &Device::Cpu), Err(Error::Config(_))));
}
