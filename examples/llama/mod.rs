//! A Llama: tallow's embedding and head, and blocks of candle operations that have a backward (docs/training.md lists those without).

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Linear, Module, RmsNorm, VarBuilder, VarMap, ops, rms_norm, rotary_emb::rope_slow};
use tallow::{Gradient, Head, Init, PretrainedTable, TokenEmbedding, TokenEmbeddingConfig};

pub struct Llama {
    pub wte: TokenEmbedding,
    pub head: Head,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

struct Layer {
    heads: usize,
    norms: [RmsNorm; 2],
    qkvo: [Linear; 4],
    mlp: [Linear; 3],
}

impl Llama {
    /// Takes the weights of the blocks from `vb`, or draws them there.
    pub fn new(wte: TokenEmbedding, head: Head, layers: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        let c = wte.d_model();
        let norm = |name: &str, vb: &VarBuilder| rms_norm(c, 1e-6, vb.pp(name));
        let layer = |i: usize| {
            let vb = vb.pp(format!("model.layers.{i}"));
            let linear = |name: &str, shape: (usize, usize)| -> Result<Linear> {
                let seed = (i * 100 + name.len()) as u64;
                Ok(Linear::new(Init::GPT2.get(shape, "weight", seed, &vb.pp(name))?, None))
            };
            let attention = |name: &str| linear(&format!("self_attn.{name}_proj"), (c, c));
            let [q, k, v, o] = ["q", "k", "v", "o"].map(attention);
            let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"].map(|name| linear(name, (2 * c, c)));
            Ok(Layer {
                heads,
                norms: [norm("input_layernorm", &vb)?, norm("post_attention_layernorm", &vb)?],
                qkvo: [q?, k?, v?, o?],
                mlp: [gate?, up?, linear("mlp.down_proj", (c, 2 * c))?],
            })
        };
        let layers = (0..layers).map(layer).collect::<Result<_>>()?;
        Ok(Llama { wte, head, layers, norm: norm("model.norm", &vb)? })
    }

    #[allow(dead_code)] // some examples do not call it
    /// Reads a folder as transformers writes it. Table and head become variables of `varmap` under the model's names, so that they can be
    /// merged back; the other weights are not trained.
    pub fn load(folder: &Path, varmap: &VarMap, device: &Device) -> Result<(Self, PretrainedTable)> {
        let (table, vb) = (PretrainedTable::open(folder, None)?, VarBuilder::from_varmap(varmap, DType::F32, device));
        let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..table.config() };
        let wte = table.embedding(&cfg, vb.pp("model.embed_tokens"))?;
        let head = table.head(&wte, vb.pp("lm_head"))?;
        let mut tensors = std::collections::HashMap::new();
        for file in tallow::weight_files(folder)? {
            tensors.extend(candle_core::safetensors::load(file, device)?);
        }
        let config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
        let number = |key: &str| config[key].as_u64().map(|n| n as usize).context(format!("config.json: {key}"));
        let (layers, heads) = (number("num_hidden_layers")?, number("num_attention_heads")?);
        let vb = VarBuilder::from_tensors(tensors, DType::F32, device);
        Ok((Llama::new(wte, head, layers, heads, vb)?, table))
    }

    /// Ids (B, T) → hidden states (B, T, C), for the head.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let x = self.wte.lookup(ids)?;
        Ok(self.norm.forward_diff(&self.layers.iter().try_fold(x, |x, layer| layer.forward(&x))?)?)
    }
}

impl Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, c) = x.dims3()?;
        let (width, device) = (c / self.heads, x.device());
        let later = |i: usize| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..t * t).map(later).collect(), (t, t), device)?;
        let half = width / 2;
        let angle = |i: usize| (i / half) as f32 / 10000f32.powf((i % half) as f32 / half as f32);
        let angles = Tensor::from_vec((0..t * half).map(angle).collect(), (t, half), device)?;
        let y = self.norms[0].forward_diff(x)?; // `forward` would stop the gradient
        let part =
            |i: usize| self.qkvo[i].forward(&y)?.reshape((b, t, self.heads, width))?.transpose(1, 2)?.contiguous();
        let turned = |x: Tensor| rope_slow(&x, &angles.cos()?, &angles.sin()?);
        let scores = turned(part(0)?)?.matmul(&turned(part(1)?)?.t()?)?.affine(1.0 / (width as f64).sqrt(), 0.0)?;
        let seen = ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?.matmul(&part(2)?)?;
        let x = (x + self.qkvo[3].forward(&seen.transpose(1, 2)?.reshape((b, t, c))?)?)?;
        let y = self.norms[1].forward_diff(&x)?;
        let [gate, up, down] = &self.mlp;
        Ok((&x + down.forward(&(gate.forward(&y)?.silu()? * up.forward(&y)?)?)?)?)
    }
}
