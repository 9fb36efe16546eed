//! The lesson's transformer on tallow's front layer and head: sinusoidal positions, pre-norm blocks, ReLU, untied output.
//!
//! Differences from the lesson's code: the three matrices of attention are one (the same function); norms and output have no bias
//! (candle's norm with one gives no gradients); weights are drawn as GPT-2's, from the seed.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm_no_bias, ops};
use rayon::prelude::*;
use tallow::{Batch, Gradient, Head, Init, Scale, TokenEmbedding, TokenEmbeddingConfig};

/// Every setting that the weights of a run depend on. The defaults are the lesson's.
#[derive(Clone, Debug, PartialEq, clap::Args, serde::Serialize, serde::Deserialize)]
pub struct Config {
    #[arg(skip)]
    pub vocab_size: usize,
    #[arg(long, default_value_t = 64)]
    pub d_model: usize,
    #[arg(long, default_value_t = 8)]
    pub blocks: usize,
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    #[arg(long, default_value_t = 16)]
    pub context: usize,
    #[arg(long, default_value_t = 4)]
    pub batch: usize,
    #[arg(long, default_value_t = 0.1)]
    pub dropout: f32,
    /// The output's weight is the table
    #[arg(long)]
    pub tied: bool,
    #[arg(long, default_value_t = 1e-3)]
    pub lr: f64,
    #[arg(long, default_value_t = 1337)]
    pub seed: u64,
}

/// Ids → rows → hidden states → loss.
pub struct Gpt {
    pub wte: TokenEmbedding,
    pub body: Body,
    pub head: Head,
}

impl Gpt {
    /// Takes weights from `vb`, or draws them. With detached tensors instead of variables the model has no gradients.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocab_size, d_model, seed, .. } = cfg;
        // Scaled as in the first Transformer: new rows are short, and positions have length sqrt(C / 2).
        let (scale, gradient) = (Scale::SqrtDModel, Gradient::RowSparse);
        let table = TokenEmbeddingConfig { vocab_size, d_model, seed, scale, gradient, ..Default::default() };
        let wte = TokenEmbedding::new(&table, vb.pp("wte"))?;
        let head = match cfg.tied {
            true => Head::tied(&wte),
            false => {
                let seed = seed.wrapping_add(1);
                Head::new(&Init::GPT2.get((vocab_size, d_model), "weight", seed, &vb.pp("lm_head"))?, None)?
            }
        };
        Ok(Gpt { wte, body: Body::new(cfg, vb)?, head })
    }

    /// Ids (B, T) → (B, T, C), for the head. `noise` is the seed of dropout, from the step; `None` for evaluation.
    pub fn hidden(&self, ids: &Tensor, noise: Option<u64>) -> Result<Tensor> {
        self.body.forward(&self.wte.lookup(ids)?, noise)
    }

    /// Mean cross-entropy of a batch, f32.
    pub fn loss(&self, batch: &Batch, noise: Option<u64>) -> Result<Tensor> {
        let hidden = self.hidden(&batch.inputs, noise)?;
        Ok(self.head.loss(&hidden, &batch.targets, &Default::default())?.to_dtype(DType::F32)?)
    }
}

/// The blocks between table and head: (B, T, C) → (B, T, C).
pub struct Body {
    positions: Tensor,
    mask: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Body {
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let fits = cfg.heads > 0 && cfg.d_model.is_multiple_of(cfg.heads);
        ensure!(fits, "d_model {} is no multiple of {} heads", cfg.d_model, cfg.heads);
        ensure!((0.0..1.0).contains(&cfg.dropout), "dropout {} is not in 0..1", cfg.dropout);
        let (t, device) = (cfg.context, vb.device());
        let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let blocks =
            (0..cfg.blocks).map(|i| Block::new(cfg, i as u64, vb.pp(format!("h.{i}")))).collect::<Result<_>>()?;
        Ok(Body {
            positions: sinusoidal(t, cfg.d_model, device)?.to_dtype(vb.dtype())?,
            mask: Tensor::from_vec(mask, (t, t), device)?.to_dtype(vb.dtype())?,
            blocks,
            norm: layer_norm_no_bias(cfg.d_model, 1e-5, vb.pp("ln_f"))?,
        })
    }

    /// At most `context` columns.
    pub fn forward(&self, rows: &Tensor, noise: Option<u64>) -> Result<Tensor> {
        let t = rows.dim(1)?;
        let mut x = rows.broadcast_add(&self.positions.narrow(0, 0, t)?)?;
        let mask = self.mask.narrow(0, 0, t)?.narrow(1, 0, t)?.contiguous()?;
        for block in &self.blocks {
            x = block.forward(&x, &mask, noise)?;
        }
        Ok(self.norm.forward(&x)?)
    }
}

/// x + attention(norm(x)), then x + mlp(norm(x)).
struct Block {
    ln_1: LayerNorm,
    c_attn: Linear,
    c_proj: Linear,
    ln_2: LayerNorm,
    up: Linear,
    down: Linear,
    heads: usize,
    dropout: f32,
    site: u64, // of dropout; each site drops other values
}

impl Block {
    fn new(cfg: &Config, i: u64, vb: VarBuilder) -> Result<Self> {
        let c = cfg.d_model;
        let small = Init::Normal { std: 0.02 / (2.0 * cfg.blocks as f64).sqrt() };
        let seed = |n| cfg.seed.wrapping_add(2 + 4 * i + n);
        let linear = |name, init: Init, shape: (usize, usize), n, bias: bool| -> Result<Linear> {
            let zeros = || vb.pp(name).get_with_hints(shape.0, "bias", candle_nn::Init::Const(0.0));
            Ok(Linear::new(init.get(shape, "weight", seed(n), &vb.pp(name))?, bias.then(zeros).transpose()?))
        };
        Ok(Block {
            ln_1: layer_norm_no_bias(c, 1e-5, vb.pp("ln_1"))?,
            c_attn: linear("attn.c_attn", Init::GPT2, (3 * c, c), 0, false)?,
            c_proj: linear("attn.c_proj", small, (c, c), 1, true)?,
            ln_2: layer_norm_no_bias(c, 1e-5, vb.pp("ln_2"))?,
            up: linear("mlp.c_fc", Init::GPT2, (4 * c, c), 2, true)?,
            down: linear("mlp.c_proj", small, (c, 4 * c), 3, true)?,
            heads: cfg.heads,
            dropout: cfg.dropout,
            site: 3 * i,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, noise: Option<u64>) -> Result<Tensor> {
        let drop = |x: Tensor, site| dropout(x, self.dropout, noise, self.site + site);
        let (b, t, c) = x.dims3()?;
        let qkv = self.c_attn.forward(&self.ln_1.forward(x)?)?.reshape((b, t, 3, self.heads, c / self.heads))?;
        let part = |n| qkv.narrow(2, n, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous(); // (B, heads, T, C / heads)
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q * (1.0 / ((c / self.heads) as f64).sqrt()))?.matmul(&k.t()?)?.broadcast_add(mask)?;
        let seen = drop(ops::softmax(&scores, D::Minus1)?, 0)?.matmul(&v)?;
        let seen = seen.transpose(1, 2)?.reshape((b, t, c))?;
        let x = (x + drop(self.c_proj.forward(&seen)?, 1)?)?;
        let inner = self.up.forward(&self.ln_2.forward(&x)?)?.relu()?;
        Ok((&x + drop(self.down.forward(&inner)?, 2)?)?)
    }
}

/// Dropout whose values depend only on the step and the site. (The generator of candle's dropout cannot be seeded on the CPU,
/// nor saved.)
pub fn dropout(x: Tensor, share: f32, noise: Option<u64>, site: u64) -> Result<Tensor> {
    let Some(noise) = noise.filter(|_| share > 0.0) else { return Ok(x) };
    let (key, keep) = (mix(noise ^ mix(site)), 1.0 / (1.0 - share));
    let kept = |i: usize| if (mix(key ^ i as u64) >> 40) as f32 * 2f32.powi(-24) < share { 0.0 } else { keep };
    let mask: Vec<f32> = (0..x.elem_count()).into_par_iter().with_min_len(1 << 15).map(kept).collect();
    Ok((&x * Tensor::from_vec(mask, x.shape(), &Device::Cpu)?.to_device(x.device())?.to_dtype(x.dtype())?)?)
}

/// SplitMix64's finaliser: mixes the bits of a number.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// P(t, 2i) = sin(t / 10000^(2i/C)), P(t, 2i+1) = cos of the same.
fn sinusoidal(context: usize, d_model: usize, device: &Device) -> Result<Tensor> {
    let value = |t: usize, c: usize| {
        let angle = t as f64 / libm::pow(10000.0, (c / 2 * 2) as f64 / d_model as f64);
        (if c.is_multiple_of(2) { libm::sin(angle) } else { libm::cos(angle) }) as f32
    };
    let values: Vec<f32> = (0..context * d_model).map(|i| value(i / d_model, i % d_model)).collect();
    Ok(Tensor::from_vec(values, (context, d_model), device)?)
}
