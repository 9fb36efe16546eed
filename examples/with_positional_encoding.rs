//! Adds sinusoidal positions to the rows that the layer gives.
//!
//!     cargo run --example with_positional_encoding
//!
//! prints:
//!
//! ```text
//! tokens    [1, 16, 64]  mean length of a row 0.151
//! positions [16, 64]     length of every row 5.657
//! sum       [1, 16, 64]
//! scaled by sqrt(64): mean length of a token's row 1.207
//! ```

mod args;
use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tallow::{PaddedBatch, Padding, Scale, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

/// P(t, 2i) = sin(t / 10000^(2i/C)), P(t, 2i+1) = cos of the same: "Attention Is All You Need", section 3.5.
fn sinusoidal(context: usize, d_model: usize, device: &Device) -> candle_core::Result<Tensor> {
    let value = |t: usize, c: usize| {
        let angle = t as f64 / 10000f64.powf((c / 2 * 2) as f64 / d_model as f64);
        (if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    let values: Vec<f32> = (0..context * d_model).map(|i| value(i / d_model, i % d_model)).collect();
    Tensor::from_vec(values, (context, d_model), device)
}

/// Mean Euclidean length of the rows.
fn mean_length(x: &Tensor) -> candle_core::Result<f32> {
    x.sqr()?.sum(candle_core::D::Minus1)?.sqrt()?.mean_all()?.to_scalar()
}

fn main() -> Result<()> {
    tallow::keep_pages();
    let device = args::device("cpu")?;
    let batch =
        PaddedBatch::from_texts(&Tokenizer::cl100k(), &["小沈阳江西演唱会邀请了,"], Padding::default(), &device)?;
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let wte = TokenEmbedding::new(&TokenEmbeddingConfig::default(), vb.pp("wte"))?;

    let tokens = wte.forward(&batch.ids)?;
    let (_, context, d_model) = tokens.dims3()?;
    let positions = sinusoidal(context, d_model, &device)?;
    let x = tokens.broadcast_add(&positions)?;
    println!("tokens    {:?}  mean length of a row {:.3}", tokens.dims(), mean_length(&tokens)?);
    println!("positions {:?}     length of every row {:.3}", positions.dims(), mean_length(&positions)?);
    println!("sum       {:?}", x.dims());

    // Positions are much longer than new rows. Therefore the first Transformer scales the look-up.
    let cfg = TokenEmbeddingConfig { scale: Scale::SqrtDModel, ..Default::default() };
    let scaled = TokenEmbedding::new(&cfg, vb.pp("wte"))?.forward(&batch.ids)?;
    println!("scaled by sqrt({d_model}): mean length of a token's row {:.3}", mean_length(&scaled)?);
    Ok(())
}
